//! Nobody gets in: code that comes with a dump, objects planted under names that everybody uses,
//! people who look at process lists and logs; and what signals leave behind.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

use crate::support::compare::{assert_same, db};
use crate::support::fixtures;
use crate::support::inside;
use crate::support::opsd::{Opsd, Run, finish_child, quoted};
use crate::support::postgres::{
    Options, SUPERUSER, Server, bin_dir, default_major, default_server, identifier, unique,
};
use crate::support::processes::{self, Process, until};
use crate::support::s3::s3s_fs;
use crate::support::sets::{self, back_up, complete, contents, result};

/// Writes a script that may be run.
pub fn executable(path: &Path, script: &str) {
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Functions and operators with the names of PostgreSQL's own, each of which fails when it is called.
const PLANTED: &str = r"
    CREATE FUNCTION public.planted() RETURNS boolean LANGUAGE plpgsql AS $$
      BEGIN RAISE EXCEPTION 'planted code ran as %', current_user; END $$;
    CREATE FUNCTION public.pg_table_size(oid) RETURNS bigint LANGUAGE sql AS 'SELECT public.planted()::int::bigint';
    CREATE FUNCTION public.pg_get_userbyid(oid) RETURNS name LANGUAGE sql AS 'SELECT public.planted()::text::name';
    CREATE FUNCTION public.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT public.planted()::text';
    CREATE FUNCTION public.has_table_privilege(oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT public.planted()';
    CREATE FUNCTION public.has_schema_privilege(oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT public.planted()';
    CREATE FUNCTION public.row_security_active(oid) RETURNS boolean LANGUAGE sql AS 'SELECT public.planted()';
    CREATE FUNCTION public.pg_relation_filenode(oid) RETURNS oid LANGUAGE sql AS 'SELECT 1::oid WHERE public.planted()';
    CREATE FUNCTION public.pg_export_snapshot() RETURNS text LANGUAGE sql AS 'SELECT public.planted()::text';
    CREATE FUNCTION public.pg_try_advisory_lock(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT public.planted()';
    CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT public.planted()';
    CREATE FUNCTION public.pg_encoding_to_char(integer) RETURNS name LANGUAGE sql AS 'SELECT public.planted()::text::name';
    CREATE FUNCTION public.current_database() RETURNS name LANGUAGE sql AS 'SELECT public.planted()::text::name';
    CREATE FUNCTION public.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT public.planted()::text';
    CREATE FUNCTION public.count(name) RETURNS bigint LANGUAGE sql AS 'SELECT public.planted()::int::bigint';
    CREATE FUNCTION public.equal(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT public.planted()';
    CREATE FUNCTION public.equal(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT public.planted()';
    CREATE FUNCTION public.equal(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT public.planted()';
    CREATE FUNCTION public.equal(char, char) RETURNS boolean LANGUAGE sql AS 'SELECT public.planted()';
    CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = name, FUNCTION = public.equal);
    CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = public.equal);
    CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.equal);
    CREATE OPERATOR public.!~ (LEFTARG = name, RIGHTARG = text, FUNCTION = public.equal);
    CREATE OPERATOR public.<> (LEFTARG = name, RIGHTARG = name, FUNCTION = public.equal);
";

/// Every connection pins search_path, whatever a role or a database would rather have.
#[test]
fn planted_functions_and_operators_do_not_run() {
    let server = default_server();
    let database = server.fresh_database("planted");
    fixtures::rows(server, &database, "accounts", 50);
    let quoted_database = identifier(&database);
    // A role of its own: its settings would be everybody's otherwise.
    let role = unique("victim");
    let hostile = |name: &str| {
        server.psql(name, PLANTED);
        let name = identifier(name);
        server.psql(
            "postgres",
            &format!(
                "ALTER DATABASE {name} SET search_path = public, pg_catalog;
                 ALTER ROLE {role} IN DATABASE {name} SET search_path = public, pg_catalog"
            ),
        );
    };
    server.psql("postgres", &format!("CREATE ROLE {role} SUPERUSER LOGIN"));
    hostile(&database);
    // It does work against who does not pin it.
    let naive = server.try_psql(&database, "SELECT pg_is_in_recovery()").unwrap_err();
    assert!(naive.contains("planted code ran"), "{naive}");

    let mut opsd = Opsd::new(server, &[&database]);
    opsd.postgres.set("url", quoted(&server.socket_url(&role, &database)));
    opsd.job.set("large_table", quoted("1B"));
    opsd.ok(&["backup", "--dry-run"]);
    back_up(&opsd);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    // Into a database that is there, empty but for the plants, and in the place of one.
    let target = server.fresh_database("planted_target");
    hostile(&target);
    server.psql(&target, "SET search_path = pg_catalog; CREATE TABLE public.t (i integer)");
    let to = server.socket_url(&role, &target);
    opsd.run(&["restore", "db", "--to", &to]).expect_failure(1, &["is not empty"]);
    opsd.ok(&["restore", "db", "--to", &to, "--replace", "--yes"]);
    assert_same(db(server, &database), db(server, &target));
    assert!(!quoted_database.is_empty());
}

/// Runs opsd while the process list is read as fast as it can be.
fn watched(opsd: &Opsd, args: &[&str], secrets: &[String]) -> Run {
    let child = opsd.command(args).spawn().unwrap();
    let pid = child.id();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (run, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                seen.extend(processes::descendants(pid).iter().map(Process::command_line));
            }
            seen
        });
        let run = finish_child(child, args.join(" "));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        (run, watcher.join().unwrap())
    });
    let run = run.expect_code(0);
    assert!(run.stderr.contains("TRACE"), "the log is as talkative as it gets: {run}");
    for secret in secrets {
        for line in &seen {
            assert!(!line.contains(secret.as_str()), "{secret:?} is in a process list: {line}");
        }
        for (name, text) in [("stdout", &run.stdout), ("stderr", &run.stderr)] {
            let at = text.lines().find(|line| line.contains(secret.as_str()));
            assert!(at.is_none(), "{secret:?} is in {name} of {args:?}: {at:?}");
        }
    }
    let tool = |name: &str| seen.iter().any(|line| line.contains(name));
    match args {
        ["backup", ..] => assert!(tool("pg_dump"), "{seen:?}"),
        ["restore", ..] => assert!(tool("pg_restore"), "{seen:?}"),
        _ => {}
    }
    run
}

/// Not in an argument of a child, not in output, not in a log as talkative as it gets, and not in
/// the repository, which also holds no row in plain text.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_rows_show_nowhere() {
    let s3 = s3s_fs().await;
    let server = default_server();
    let database = server.fresh_database("secret");
    let (role, password) = (unique("secretive"), "c4nary/p@ss=w%rd'\"");
    let marker = "m4rker-of-a-row-value";
    server.psql(
        &database,
        &format!(
            "CREATE ROLE {role} SUPERUSER LOGIN PASSWORD {};
             CREATE TABLE t (id integer, note text); INSERT INTO t SELECT i, '{marker}' FROM generate_series(1, 50) i",
            crate::support::postgres::literal(password)
        ),
    );
    let hash =
        server.psql("postgres", &format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"));
    let mut opsd = Opsd::new(server, &[&database]);
    let percent: String = password.bytes().map(|b| format!("%{b:02X}")).collect();
    opsd.postgres
        .set("url", quoted(&format!("postgres://{role}:{percent}@127.0.0.1:{}/{database}", server.port)));
    opsd.job.set("large_table", quoted("1B"));
    opsd.use_s3(&format!("s3://{}/p", s3.bucket), &s3.endpoint, &s3.keys.access_key, &s3.keys.secret_key);
    opsd.env("OPSD_LOG", "trace");
    let read = |name: &str| std::fs::read_to_string(opsd.path(name)).unwrap();
    let secrets = [
        password.to_owned(),
        percent.clone(),
        s3.keys.secret_key.clone(),
        read("identity.txt").trim().to_owned(),
        read("sign.key").lines().nth(1).unwrap().to_owned(),
        hash,
        marker.to_owned(),
    ];
    let id =
        watched(&opsd, &["backup", "--json"], &secrets).json()["sets"][0]["id"].as_str().unwrap().to_owned();
    watched(&opsd, &["restore", "--verify", "--json"], &secrets);
    watched(&opsd, &["backups", "list"], &secrets);
    watched(&opsd, &["backups", "show", &id], &secrets);
    // To a server that lacks the role: it is made from the set, password hash and all.
    let other = Server::start(default_major(), &Options::default());
    let to = other.socket_url(SUPERUSER, "copy");
    watched(&opsd, &["restore", "db", "--to", &to, "--create", "--globals", "--json"], &secrets);
    assert_eq!(
        other.psql("postgres", &format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'")),
        secrets[5]
    );
    // A run that fails leaves a failed.json.
    let fake = opsd.path("bin");
    std::fs::create_dir(&fake).unwrap();
    let real = bin_dir(default_major());
    executable(
        &fake.join("pg_dump"),
        &format!(
            "#!/bin/sh\ncase \"$*\" in *--version*) exec {}/pg_dump --version;; esac\necho failing >&2; exit 1\n",
            real.display()
        ),
    );
    opsd.postgres.set("bin_dir", quoted(fake.to_str().unwrap()));
    let run = opsd.run(&["backup"]).expect_failure(1, &["failing"]);
    for secret in &secrets {
        assert!(!run.stderr.contains(secret.as_str()), "{secret:?} is in {run}");
    }
    // Nothing of it is stored, either.
    let mut stored = 0;
    let mut directories = vec![s3.directory.clone(), opsd.path("scratch")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            stored += 1;
            let bytes = std::fs::read(&path).unwrap();
            for secret in &secrets {
                let is_there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!is_there, "{secret:?} is in {}", path.display());
            }
        }
    }
    assert!(stored >= 10, "a set, its record and a failed.json: {stored}");
    assert!(opsd.path("scratch").read_dir().unwrap().next().is_none());
}

/// A pg_dump that does all its work and then does not end.
pub fn endless_pg_dump(opsd: &Opsd) -> PathBuf {
    let directory = opsd.path("endless");
    std::fs::create_dir(&directory).unwrap();
    let real = bin_dir(default_major());
    std::os::unix::fs::symlink(real.join("pg_dumpall"), directory.join("pg_dumpall")).unwrap();
    executable(
        &directory.join("pg_dump"),
        &format!(
            "#!/bin/sh\ncase \"$*\" in *--version*) exec {0}/pg_dump --version;; esac\n\
             {0}/pg_dump \"$@\" || exit\ntouch {1}/reached\nsleep 1000\n",
            real.display(),
            opsd.path("").display()
        ),
    );
    directory
}

fn signal(child: &std::process::Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

/// The server has no session of this database's backup any more.
fn sessions_are_gone(server: &Server, database: &str) {
    let query = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'");
    until("the sessions of the backup end", || server.psql("postgres", &query) == "0");
}

fn small_site() -> (&'static Server, Opsd, String) {
    let server = default_server();
    let database = server.fresh_database("signal");
    fixtures::rows(server, &database, "accounts", 300);
    let opsd = Opsd::new(server, &[&database]);
    (server, opsd, database)
}

#[test]
fn a_signal_in_the_middle_of_a_backup_leaves_nothing() {
    let (server, mut opsd, database) = small_site();
    let first = back_up(&opsd);
    let real = quoted(bin_dir(default_major()).to_str().unwrap());
    let endless = quoted(endless_pg_dump(&opsd).to_str().unwrap());
    for (which, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let _ = std::fs::remove_file(opsd.path("reached"));
        opsd.postgres.set("bin_dir", endless.clone());
        let child = opsd.command(&["backup"]).spawn().unwrap();
        until("pg_dump has dumped", || opsd.path("reached").exists());
        let family = processes::descendants(child.id());
        assert!(!family.is_empty());
        signal(&child, which);
        let run = finish_child(child, "backup".into()).expect_code(code);
        assert_eq!(run.stdout, "", "{run}");
        until("its children are gone", || !family.iter().any(Process::lives));
        sessions_are_gone(server, &database);
        assert_eq!(complete(&opsd).len(), 1);
    }
    opsd.postgres.set("bin_dir", real);
    assert_eq!(complete(&opsd), [first]);
    back_up(&opsd);
    assert_eq!(complete(&opsd).len(), 2, "nothing blocks the next one");
}

#[test]
fn a_killed_backup_leaves_nothing_that_looks_like_one() {
    let (server, mut opsd, database) = small_site();
    let first = back_up(&opsd);
    let endless = quoted(endless_pg_dump(&opsd).to_str().unwrap());
    let real = quoted(bin_dir(default_major()).to_str().unwrap());
    opsd.postgres.set("bin_dir", endless);
    let child = opsd.command(&["backup"]).spawn().unwrap();
    until("pg_dump has dumped", || opsd.path("reached").exists());
    let family = processes::descendants(child.id());
    signal(&child, Signal::KILL);
    assert_eq!(finish_child(child, "backup".into()).code, None);
    assert_eq!(complete(&opsd), [first.as_str()]);
    let (to_list, states) = (sets::listed(&opsd), ["complete", "incomplete"]);
    assert!(to_list.iter().all(|set| states.contains(&set.state.as_str())), "{to_list:?}");
    // At once: the sleeping leftovers of the killed one still run.
    opsd.postgres.set("bin_dir", real);
    let second = back_up(&opsd);
    let both = complete(&opsd);
    assert!(both.len() == 2 && both.contains(&first) && both.contains(&second), "{both:?}");
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    // Each pg_dump led a group of its own; what it starts after our look is in it, too.
    for process in family {
        let group = Pid::from_raw(process.pid.try_into().unwrap()).unwrap();
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    sessions_are_gone(server, &database);
}

/// A database whose rehearsal waits until it is let go, and has left a process in the background by then.
fn waiting_site() -> Opsd {
    let (server, opsd, database) = small_site();
    let statements = format!(
        "EXECUTE 'COPY (SELECT WHERE false) TO PROGRAM ''setsid sleep 1000 > /dev/null 2>&1 < /dev/null &'''; {}",
        inside::reach_and_wait()
    );
    server.psql(&database, &inside::runs_in_scratch("hold", &statements));
    opsd
}

fn rehearse_and_let_go(opsd: &Opsd) -> Run {
    let child = opsd.command(&["restore", "--verify", "--json"]).spawn().unwrap();
    inside::await_file(&opsd.path("scratch"), "reached");
    inside::go(&opsd.path("scratch"));
    finish_child(child, "restore --verify".into()).expect_code(0)
}

#[test]
fn a_signal_in_the_middle_of_a_rehearsal_leaves_nothing() {
    let opsd = waiting_site();
    let id = back_up(&opsd);
    let before = contents(&opsd);
    let scratch = opsd.path("scratch");
    for (which, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let child = opsd.command(&["restore", "--verify"]).spawn().unwrap();
        inside::await_file(&scratch, "reached");
        let family = [processes::descendants(child.id()), processes::of_scratch(&scratch)].concat();
        assert!(family.iter().any(|p| p.command_line().contains("pg_restore")), "{family:?}");
        signal(&child, which);
        finish_child(child, "restore --verify".into()).expect_code(code);
        assert!(scratch.read_dir().unwrap().next().is_none(), "the scratch server's directory was left");
        until("everything it started is gone", || !family.iter().any(Process::lives));
        assert!(contents(&opsd) == before, "no record");
    }
    let run = rehearse_and_let_go(&opsd);
    assert_eq!(result(&run)["id"], id.as_str());
}

#[test]
fn the_next_rehearsal_removes_what_a_killed_one_left() {
    let opsd = waiting_site();
    back_up(&opsd);
    let scratch = opsd.path("scratch");
    let child = opsd.command(&["restore", "--verify"]).spawn().unwrap();
    inside::await_file(&scratch, "reached");
    // As an OOM killer does that takes the whole group: the one who would tidy up goes first.
    let family = [processes::descendants(child.id()), processes::of_scratch(&scratch)].concat();
    let (keepers, family): (Vec<Process>, Vec<Process>) =
        family.into_iter().partition(|process| process.command_line().contains("keep-scratch"));
    assert_eq!(keepers.len(), 1);
    let pid = Pid::from_raw(keepers[0].pid.try_into().unwrap()).unwrap();
    // It must not see that its owner dies before it.
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    signal(&child, Signal::KILL);
    assert_eq!(finish_child(child, "restore --verify".into()).code, None);
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    until("what ran inside went with its keeper", || !family.iter().any(Process::lives));
    assert_eq!(scratch.read_dir().unwrap().count(), 1, "its directory is left");
    // So that the next one's is waited for.
    std::fs::remove_file(inside::data_file(&scratch, "reached").unwrap()).unwrap();

    let run = rehearse_and_let_go(&opsd);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    assert!(scratch.read_dir().unwrap().next().is_none());
}

/// The exporter, once it has read its configuration.
fn serving(opsd: &Opsd) -> std::process::Child {
    use std::io::{BufRead as _, BufReader};
    let mut child = opsd.command(&["exporter"]).spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    while !line.contains("serving http://") {
        assert!(stderr.read_line(&mut line).unwrap() > 0, "{line}");
    }
    child
}

/// How often bytes stand in what a process may write to.
fn copies(memory: &std::fs::File, pid: u32, needle: &[u8]) -> usize {
    use std::os::unix::fs::FileExt as _;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw") && !line.contains("[stack]")) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = (number(start), number(end));
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            found += memchr::memmem::find_iter(&bytes, needle).count();
        }
    }
    found
}

/// What is left of a configuration with passwords in it, in a process that goes on for weeks: the passwords
/// themselves.
#[test]
fn a_configuration_that_was_read_leaves_no_copies_of_its_passwords() {
    let mut opsd = Opsd::without_server();
    let filler = "# a line of no meaning, which makes the file as long as others are\n".repeat(40);
    opsd.postgres.set("url", "\"postgres://watcher:c4nary-of-postgres@127.0.0.1:1/d\"");
    opsd.more = format!(
        "\n[redis.r]\nurl = \"redis://:c4nary-of-redis@127.0.0.1:1/0\"\n\
         [monitor.pg]\npostgres = \"main\"\n[monitor.r]\nredis = \"r\"\n\
         [exporter]\nlisten = \"127.0.0.1:0\"\n{filler}"
    );
    let mut child = serving(&opsd);
    // It keeps its memory from everybody but who may trace every process.
    let Ok(memory) = std::fs::File::open(format!("/proc/{}/mem", child.id())) else {
        child.kill().unwrap();
        child.wait().unwrap();
        return;
    };
    let found = ["watcher:c4nary-of-postgres", "c4nary-of-postgres", ":c4nary-of-redis", "c4nary-of-redis"]
        .map(|needle| (needle, copies(&memory, child.id(), needle.as_bytes())));
    child.kill().unwrap();
    child.wait().unwrap();
    eprintln!("{found:?}");
    assert_eq!((found[0].1, found[2].1), (0, 0), "copies of the configuration: {found:?}");
    assert!(found[1].1 > 0 && found[3].1 > 0, "the passwords themselves are needed: {found:?}");
}

/// Whoever gets a core file of a process gets its keys.
#[test]
fn a_process_that_holds_keys_leaves_no_core_dump() {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::process::ExitStatusExt as _;
    let mut opsd = Opsd::without_server();
    opsd.more = "\n[monitor.host]\nhost = {}\n[exporter]\nlisten = \"127.0.0.1:0\"\n".into();
    let command = opsd.command(&["exporter"]);
    let mut child = crate::support::opsd::behind(&["prlimit", "--core=unlimited"], &command).spawn().unwrap();
    // It serves, so that its configuration is read.
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    while !line.contains("serving http://") {
        assert!(stderr.read_line(&mut line).unwrap() > 0, "{line}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    rustix::process::kill_process(Pid::from_child(&child), Signal::ABORT).unwrap();
    let status = child.wait().unwrap();
    assert!(!status.core_dumped(), "{status}");
    assert_eq!(core.split_whitespace().rev().skip(1).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}
