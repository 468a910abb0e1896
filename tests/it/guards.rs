//! What keeps one bad run from harming the sets before and after it: comparisons with the history, checks
//! before the manifest, roles made in the meantime, and starting over.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{bin_dir, default_major, default_server, identifier, unique};
use crate::support::sets::{self, back_up, complete, manifest};

/// A directory with PostgreSQL's programs, of which `name` is this shell script; `REAL` is the true one.
pub fn programs(opsd: &mut Opsd, name: &str, script: &str) -> PathBuf {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let real = bin_dir(default_major());
    let directory = opsd.path("programs");
    std::fs::create_dir(&directory).unwrap();
    for program in ["pg_dump", "pg_dumpall", "psql"] {
        if program != name {
            symlink(real.join(program), directory.join(program)).unwrap();
        }
    }
    let script = script.replace("REAL", real.join(name).to_str().unwrap());
    std::fs::write(directory.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(directory.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    opsd.postgres.set("bin_dir", quoted(directory.to_str().unwrap()));
    directory
}

fn warnings(run: &crate::support::opsd::Run) -> String {
    run.json()["sets"][0]["warnings"].to_string()
}

#[test]
fn a_table_that_was_emptied_is_told_and_freezes_pruning_until_it_is_accepted() {
    let server = default_server();
    let (database, other) = (server.fresh_database("shrinks"), server.fresh_database("stays"));
    server.psql(&database, "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 400) i");
    // Beside a database this large nobody would see it in a sum.
    server.psql(&other, "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i");
    let mut opsd = Opsd::new(server, &[&database, &other]);
    opsd.job.set("retention", "{ last = 1 }");
    for _ in 0..3 {
        back_up(&opsd);
        sets::next_second();
    }
    server.psql(&database, "TRUNCATE t");
    let run = opsd.ok(&["backup", "db", "--json"]);
    assert!(warnings(&run).contains(&format!("{database}: rows fell from 400 to 0")), "{run}");
    assert!(!warnings(&run).contains(&format!("{other}: ")), "{run}");
    let run = opsd.ok(&["backups", "prune", "--json"]);
    let frozen = run.json()["jobs"][0]["frozen"].to_string();
    assert!(frozen.contains(&database) && frozen.contains("are usual"), "{run}");
    assert_eq!(complete(&opsd).len(), 4);
    opsd.ok(&["backups", "prune", "--accept-shrink"]);
    assert_eq!(complete(&opsd).len(), 1);
    server.drop_database(&database);
    server.drop_database(&other);
}

/// Roles were dumped once, with the first database, and the second was dumped hours later.
#[test]
fn a_role_that_is_made_between_two_databases_is_in_the_set() {
    let server = default_server();
    let (first, second) = (server.fresh_database("first"), server.fresh_database("second"));
    server.psql(&second, "CREATE TABLE t (id integer)");
    let mut opsd = Opsd::new(server, &[&first, &second]);
    let role = unique("late");
    let made = opsd.path("made");
    let script = format!(
        "REAL \"$@\" || exit\ncase \"$*\" in *globals-only*) if [ ! -e {0} ]; then touch {0}\n\
         PGDATABASE={second} {1}/psql -X -q -c 'CREATE ROLE {role}; ALTER TABLE t OWNER TO {role}' >&2; fi;; esac",
        made.display(),
        bin_dir(default_major()).display(),
    );
    programs(&mut opsd, "pg_dumpall", &script);
    let id = back_up(&opsd);
    assert!(made.exists());
    let globals = opsd.ok(&["backups", "cat", &id, &first, "globals"]).stdout;
    assert!(globals.contains(&format!("CREATE ROLE {role};")), "{globals}");
    server.drop_database(&first);
    server.drop_database(&second);
    server.psql("postgres", &format!("DROP ROLE {}", identifier(&role)));
}

/// A sweep with too short a limit, or a rule of the bucket's, takes what a running backup has stored.
#[test]
fn what_vanishes_before_the_manifest_makes_no_set() {
    let server = default_server();
    let (first, second) = (server.fresh_database("first"), server.fresh_database("second"));
    let mut opsd = Opsd::new(server, &[&first, &second]);
    let stored = opsd.path("repository").join("test/db");
    let script = format!(
        "if [ \"$PGDATABASE\" = {second} ]; then rm {}/*/{first}/schema.pgdump.zst.age; fi\nexec REAL \"$@\"",
        stored.display()
    );
    // pg_dump runs several times for the second database, and once is enough.
    programs(&mut opsd, "pg_dump", &script.replace("rm ", "rm -f "));
    opsd.run(&["backup", "db"]).expect_failure(
        1,
        &["schema.pgdump.zst.age is missing or has another size", "hint: see who removes"],
    );
    assert!(complete(&opsd).is_empty());
    assert_eq!(sets::listed(&opsd)[0].state, "failed");
    server.drop_database(&first);
    server.drop_database(&second);
}

/// It was a line of the debug log, whatever the reason.
#[test]
fn a_previous_set_that_is_not_believed_is_a_warning_of_the_next() {
    let server = default_server();
    let database = server.fresh_database("chain");
    let opsd = Opsd::new(server, &[&database]);
    let id = back_up(&opsd);
    let path = sets::directory(&opsd, &id).join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap().replace("\"rows\": ", "\"rows\": 1");
    std::fs::write(&path, text).unwrap();
    let run = opsd.ok(&["backup", "db", "--json"]);
    assert!(warnings(&run).contains("this set is compared with none before it"), "{run}");
    assert!(warnings(&run).contains("signature"), "{run}");
    server.drop_database(&database);
}

/// Position and time were read after the lists had been: what was committed in between was promised.
#[test]
fn everything_committed_by_the_snapshots_time_is_in_the_set() {
    let server = default_server();
    let database = server.fresh_database("position");
    server.psql(
        &database,
        "CREATE TABLE commits (at timestamptz DEFAULT clock_timestamp());
         DO $$ BEGIN FOR i IN 1..600 LOOP EXECUTE format('CREATE TABLE t%s (id integer)', i); END LOOP; END $$",
    );
    let opsd = Opsd::new(server, &[&database]);
    let mut writer = server.client("psql");
    writer.args(["-X", "-q", "-d", &database]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut writer = writer.spawn().unwrap();
    let mut input = writer.stdin.take().unwrap();
    let feeder =
        std::thread::spawn(
            move || {
                while input.write_all(b"INSERT INTO commits DEFAULT VALUES;\n").is_ok() {}
            },
        );
    let id = back_up(&opsd);
    writer.kill().unwrap();
    writer.wait().unwrap();
    feeder.join().unwrap();
    let document = manifest(&opsd, &id);
    let time = document["databases"][0]["snapshot_time"].as_str().unwrap();
    let rows = document["databases"][0]["rows"].as_u64().unwrap();
    // An insertion's time is from before its commit, by less than this.
    let due = format!("SELECT count(*) FROM commits WHERE at < timestamptz '{time}' - interval '5 ms'");
    let due: u64 = server.psql(&database, &due).parse().unwrap();
    assert!(due > 0 && rows >= due, "{rows} rows of {due} that were committed by {time}");
    server.drop_database(&database);
}

/// Two attempts at once take twice the connections and locks.
#[test]
fn starting_over_waits_for_the_pg_dumps_of_the_attempt_before() {
    let server = default_server();
    let database = server.fresh_database("again");
    server.psql(&database, "CREATE TABLE t AS SELECT 1 AS id");
    let mut opsd = Opsd::new(server, &[&database]);
    let (log, again) = (opsd.path("log"), opsd.path("again"));
    let script = format!(
        "case \"$*\" in *--version*) exec REAL \"$@\";; esac
         if [ -e {again} ]; then echo second >> {log}; exec REAL \"$@\"; fi
         case \"$*\" in *section=pre-data*)
             while [ ! -s {log} ]; do sleep 0.05; done; touch {again}
             echo 'pg_dump: error: query failed: ERROR:  cache lookup failed for relation 1' >&2; exit 1;;
         esac
         trap 'sleep 2; echo gone >> {log}; exit 1' TERM; echo first >> {log}; while :; do sleep 0.1; done",
        again = again.display(),
        log = log.display(),
    );
    programs(&mut opsd, "pg_dump", &script);
    back_up(&opsd);
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.lines().collect::<Vec<_>>(), ["first", "gone", "second", "second"]);
    server.drop_database(&database);
}

/// What an extension makes again itself need not be readable.
#[test]
fn an_extensions_table_that_may_not_be_read_does_not_fail_the_backup() {
    let server = default_server();
    let database = server.fresh_database("members");
    let role = unique("limited");
    server.psql(
        &database,
        &format!(
            "CREATE EXTENSION pgcrypto; CREATE TABLE hidden (id integer); ALTER EXTENSION pgcrypto ADD TABLE hidden;
             CREATE TABLE t AS SELECT 1 AS id; CREATE ROLE {0} LOGIN; GRANT SELECT ON t TO {0}",
            identifier(&role)
        ),
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.postgres.set("url", quoted(&server.socket_url(&role, &database)));
    let id = back_up(&opsd);
    assert_eq!(manifest(&opsd, &id)["databases"][0]["rows"], 1);
    server.drop_database(&database);
    server.psql("postgres", &format!("DROP ROLE {}", identifier(&role)));
}
