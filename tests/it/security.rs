//! Nobody gets in: code that comes with a dump, objects planted under names that everybody uses,
//! people who look at process lists and logs; and what signals leave behind.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, geteuid};

use crate::support::compare::{assert_same, db};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, finish_child, quoted};
use crate::support::postgres::{
    Options, SUPERUSER, Server, bin_dir, default_major, default_server, identifier, unique,
};
use crate::support::processes::{self, Process, until};
use crate::support::s3::s3s_fs;
use crate::support::sets::{self, back_up, complete, contents, result};

/// A directory that anybody may write to, for what an attacker brings home.
fn open_directory(opsd: &Opsd, name: &str) -> PathBuf {
    let path = opsd.path(name);
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    path
}

fn executable(path: &Path, script: &str) {
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// A table whose owner is nobody special, and whose CHECK, generated column and index call functions
/// that run a program as whoever restores it.
fn hostile_database(server: &Server, program: &Path) -> String {
    let database = server.fresh_database("hostile");
    let mallory = unique("mallory");
    let program = program.display();
    server.psql(
        &database,
        &format!(
            "CREATE ROLE {mallory}; CREATE SCHEMA m AUTHORIZATION {mallory}; SET ROLE {mallory};
             CREATE FUNCTION m.run(what text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$ BEGIN
               IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
                 EXECUTE pg_catalog.format('COPY (SELECT 1) TO PROGRAM %L', '{program} ' || what);
               END IF;
               RETURN true;
             EXCEPTION WHEN insufficient_privilege THEN RETURN true; END $$;
             CREATE FUNCTION m.run_immutably(id integer, what text) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
             BEGIN PERFORM m.run(what); RETURN id; END $$;
             CREATE TABLE m.bait (id integer CHECK (m.run('check')),
                                  copy integer GENERATED ALWAYS AS (m.run_immutably(id, 'generated')) STORED);
             CREATE INDEX ON m.bait (m.run_immutably(id, 'index'));
             INSERT INTO m.bait VALUES (1)"
        ),
    );
    database
}

/// The restore attack: what comes with a dump runs as the restoring superuser, and finds nothing.
#[test]
fn restored_code_finds_nothing_worth_stealing() {
    let server = default_server();
    let mut opsd = Opsd::without_server();
    let loot = open_directory(&opsd, "loot");
    let program = opsd.path("attack.sh");
    let database = hostile_database(server, &program);
    opsd.postgres
        .set("url", quoted(&server.socket_url(SUPERUSER, &database)))
        .set("bin_dir", quoted(bin_dir(server.major).to_str().unwrap()));
    opsd.job.set("source", "{ postgres = \"main\" }");
    opsd.env("AWS_SECRET_ACCESS_KEY", "c4nary-of-the-environment");
    let site = opsd.path("").display().to_string();
    executable(
        &program,
        &format!(
            "#!/bin/sh\nexec > {0}/$1.$$ 2>&1\necho \"uid $(id -u)\"\n\
             cat {site}identity.txt {site}sign.key {site}opsd.toml\n\
             for p in /proc/[0-9]*; do tr '\\0' '\\n' < $p/environ; tr '\\0' '\\n' < $p/cmdline; ls -l $p/fd; done\n\
             for f in {site}owned {site}repository/owned {site}scratch/owned {site}identity.txt {site}opsd.toml; do \
             echo x >> $f && echo \"wrote to $f\"; done\n\
             ls {site}repository && echo \"saw the repository\"\n\
             rm -rf {site}repository/test && echo removed > {0}/removed\nmv {0}/$1.$$ {0}/$1.done\n",
            loot.display()
        ),
    );
    std::fs::set_permissions(opsd.path("repository"), PermissionsExt::from_mode(0o700)).unwrap();
    let id = back_up(&opsd);
    assert!(loot.read_dir().unwrap().next().is_none(), "a backup runs nothing of it");
    let before = contents(&opsd);

    let command = opsd.command(&["restore", "--verify", "--json"]);
    std::fs::set_permissions(opsd.path("opsd.toml"), PermissionsExt::from_mode(0o600)).unwrap();
    let config = std::fs::read_to_string(opsd.path("opsd.toml")).unwrap();
    let identity = std::fs::read_to_string(opsd.path("identity.txt")).unwrap();
    let run = crate::support::opsd::finish(command);
    let result = result(&run);
    let report = std::fs::read_to_string(loot.join("check.done")).expect("the attack ran");
    if !geteuid().is_root() {
        // There is nobody else to run it as, and what it did to its own user's repository is its
        // affair; the operator is told.
        assert!(result["hints"].to_string().contains("runs as opsd's own user"), "{run}");
        return;
    }
    let run = run.expect_code(0);
    assert_eq!((&result["verdict"], &result["id"]), (&"proven".into(), &id.as_str().into()), "{run}");
    assert!(report.starts_with("uid ") && !report.starts_with("uid 0\n"), "{report}");
    let secrets = [
        "c4nary-of-the-environment",
        identity.trim(),
        std::fs::read_to_string(opsd.path("sign.key")).unwrap().lines().nth(1).unwrap(),
        "[encryption]",
        "saw the repository",
        "wrote to",
    ]
    .map(str::to_owned);
    for entry in loot.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for secret in &secrets {
            assert!(!text.contains(secret), "{} holds {secret:?}:\n{text}", path.display());
        }
    }
    assert!(!loot.join("removed").exists());
    assert_eq!(std::fs::read_to_string(opsd.path("identity.txt")).unwrap(), identity);
    assert_eq!(std::fs::read_to_string(opsd.path("opsd.toml")).unwrap(), config);
    let after = contents(&opsd);
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "a stored object changed");
    // Nor does anything that it started stay.
    assert_eq!(processes::of_scratch(&opsd.path("scratch")), []);
    assert!(opsd.path("scratch").read_dir().unwrap().next().is_none());
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
    opsd.ok(&["restore", "db", "--to", &to, "--replace"]);
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

/// A database whose rehearsal waits until a file is there, and has left a process in the background
/// by then.
fn waiting_site() -> (Opsd, PathBuf) {
    let (server, opsd, database) = small_site();
    let hold = open_directory(&opsd, "hold");
    let here = hold.display();
    server.psql(
        &database,
        &format!(
            "CREATE FUNCTION hold(integer) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
               IF current_user = 'opsd_scratch' AND (pg_stat_file('{here}/go', true)).size IS NULL THEN
                 EXECUTE 'COPY (SELECT 1) TO PROGRAM ''setsid sleep 1000 > /dev/null 2>&1 < /dev/null & touch {here}/reached''';
                 PERFORM pg_sleep(1000);
               END IF;
               RETURN true; END $$;
             CREATE TABLE held (id integer CHECK (hold(id))); INSERT INTO held VALUES (1)"
        ),
    );
    (opsd, hold)
}

#[test]
fn a_signal_in_the_middle_of_a_rehearsal_leaves_nothing() {
    let (opsd, hold) = waiting_site();
    let id = back_up(&opsd);
    let before = contents(&opsd);
    let scratch = opsd.path("scratch");
    for (which, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let _ = std::fs::remove_file(hold.join("reached"));
        let child = opsd.command(&["restore", "--verify"]).spawn().unwrap();
        until("the restore has begun", || hold.join("reached").exists());
        let family = [processes::descendants(child.id()), processes::of_scratch(&scratch)].concat();
        assert!(family.iter().any(|p| p.command_line().contains("pg_restore")), "{family:?}");
        signal(&child, which);
        finish_child(child, "restore --verify".into()).expect_code(code);
        assert!(scratch.read_dir().unwrap().next().is_none(), "the scratch server's directory was left");
        until("everything it started is gone", || !family.iter().any(Process::lives));
        assert!(contents(&opsd) == before, "no record");
    }
    std::fs::write(hold.join("go"), "").unwrap();
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["id"], id.as_str());
}

#[test]
fn the_next_rehearsal_removes_what_a_killed_one_left() {
    let (opsd, hold) = waiting_site();
    back_up(&opsd);
    let scratch = opsd.path("scratch");
    let child = opsd.command(&["restore", "--verify"]).spawn().unwrap();
    until("the restore has begun", || hold.join("reached").exists());
    // As an OOM killer does that takes the whole group: the one who would tidy up goes first.
    let keeper: Vec<Process> = processes::descendants(child.id())
        .into_iter()
        .filter(|process| process.command_line().contains("keep-scratch"))
        .collect();
    assert_eq!(keeper.len(), 1);
    let pid = Pid::from_raw(keeper[0].pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    until("the keeper is gone", || !keeper[0].lives());
    signal(&child, Signal::KILL);
    assert_eq!(finish_child(child, "restore --verify".into()).code, None);
    let left = processes::of_scratch(&scratch);
    assert!(left.iter().any(|p| p.command_line().contains("postgres")), "its server still runs: {left:?}");
    assert_eq!(scratch.read_dir().unwrap().count(), 1);

    std::fs::write(hold.join("go"), "").unwrap();
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    assert!(scratch.read_dir().unwrap().next().is_none());
    assert!(!left.iter().any(Process::lives), "{left:?}");
}
