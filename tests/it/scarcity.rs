//! Rehearsals on hosts that lack something: space, or PostgreSQL itself.
//!
//! opsd runs in a mount namespace of its own, in which a small file system, or an empty one, covers
//! what it would find. The namespace ends with it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use crate::support::opsd::{Opsd, Run, finish};
use crate::support::postgres::default_server;
use crate::support::processes::of_scratch;
use crate::support::sets::{back_up, complete, listed, result};

/// Runs opsd after `prepare` (a shell script, which may mount) in a mount namespace of its own, and
/// `afterwards` in the same.
fn in_namespace(opsd: &Opsd, prepare: &str, args: &[&str], afterwards: &str) -> Run {
    let inner = opsd.command(args);
    let mut command = Command::new("unshare");
    if !geteuid().is_root() {
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    command.args(["--mount", "/bin/sh", "-c"]);
    command.arg(format!("{prepare} || exit 99\n\"$@\"\ncode=$?\n{afterwards}\nexit $code"));
    command.arg("sh").arg(inner.get_program()).args(inner.get_args()).env_clear();
    for (name, value) in inner.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.current_dir(opsd.path("")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command)
}

fn mount(size_mib: u32, on: &Path) -> String {
    format!("mount -t tmpfs -o size={size_mib}m,mode=755 tmpfs {}", on.display())
}

/// A site with a set, and an empty directory for the scratch server.
fn site(sql: &str) -> (Opsd, String, String) {
    let server = default_server();
    let database = server.fresh_database("scarce");
    server.psql(&database, sql);
    let opsd = Opsd::new(server, &[&database]);
    let id = back_up(&opsd);
    let scratch = opsd.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    // Whatever the mask: some distributions let a user's group write.
    std::fs::set_permissions(&scratch, PermissionsExt::from_mode(0o755)).unwrap();
    (opsd, id, database)
}

fn left(opsd: &Opsd) -> String {
    std::fs::read_to_string(opsd.path("left")).unwrap()
}

fn list_scratch(opsd: &Opsd) -> String {
    format!("find {} -mindepth 1 > {}", opsd.path("scratch").display(), opsd.path("left").display())
}

#[test]
fn a_file_system_that_is_too_small_is_refused_before_anything_starts() {
    let (opsd, id, database) = site("CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
    let scratch = opsd.path("scratch");
    let run =
        in_namespace(&opsd, &mount(100, &scratch), &["restore", "--verify", "--json"], &list_scratch(&opsd));
    let run = run.expect_failure(1, &["no space for a scratch server", "100 MiB free", "verify.scratch_dir"]);
    assert_eq!(result(&run)["verdict"], "failed", "{run}");
    assert_eq!(left(&opsd), "");
    assert_eq!(complete(&opsd), [id]);
    default_server().drop_database(&database);
}

#[test]
fn a_disk_that_fills_up_in_the_middle_fails_the_rehearsal_and_leaves_nothing() {
    // Small in the source and in the set, and large where it is restored: no estimate knows.
    let (opsd, id, database) = site(
        "CREATE TABLE t AS SELECT generate_series(1, 100) AS id;
         CREATE MATERIALIZED VIEW large AS SELECT i, repeat(md5(i::text), 60) AS filler
           FROM generate_series(1, CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = 'opsd_scratch')
                                        THEN 250000 ELSE 1 END) i",
    );
    let scratch = opsd.path("scratch");
    let run =
        in_namespace(&opsd, &mount(270, &scratch), &["restore", "--verify", "--json"], &list_scratch(&opsd));
    let run = run.expect_code(1);
    let result = result(&run);
    assert_eq!(result["verdict"], "failed", "{run}");
    // PostgreSQL says so, unless the sandbox is ended before that.
    let is_full = |text: &str| text.contains("No space left on device") || text.contains("nearly full");
    assert!(is_full(&run.stderr) && is_full(&result["error"].to_string()), "{run}");
    assert_eq!(left(&opsd), "");
    assert_eq!(of_scratch(&scratch), []);
    assert_eq!(listed(&opsd)[0].verdict.as_deref(), Some("failed"), "nothing is said of the set");
    assert_eq!(complete(&opsd), [id]);
    // With room it is what it was.
    opsd.ok(&["restore", "--verify"]);
    default_server().drop_database(&database);
}

#[test]
fn a_host_without_any_postgresql_says_what_to_install() {
    let (mut opsd, id, database) = site("CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
    opsd.postgres.unset("bin_dir");
    let places = "for place in /usr/lib/postgresql /usr/pgsql-* /usr/local/pgsql*; do\n\
                  [ ! -d \"$place\" ] || mount -t tmpfs tmpfs \"$place\" || exit 99\ndone\ntrue";
    let major = default_server().major;
    let install = format!("apt-get install postgresql-{major}");
    let fragments = ["no PostgreSQL server programs found", install.as_str(), "bin_dir"];
    let run =
        in_namespace(&opsd, places, &["restore", "--verify", "--json"], "").expect_failure(1, &fragments);
    assert_eq!(result(&run)["verdict"], "failed", "{run}");
    let install = format!("apt-get install postgresql-client-{major}");
    in_namespace(&opsd, places, &["backup"], "").expect_failure(1, &["no pg_dump found", &install]);
    assert_eq!(complete(&opsd), [id]);
    default_server().drop_database(&database);
}
