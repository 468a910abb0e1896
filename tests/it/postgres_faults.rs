//! PostgreSQL fails, blocks, changes and dawdles while opsd works: a run either makes a set that proves
//! itself, or fails with a reason and leaves nothing that is listed; and the next one works.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use opsd::backup::coordinator;
use opsd::postgres::connect::connect;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, finish_child, quoted};
use crate::support::postgres::{
    Options, PASSWORD, SUPERUSER, Server, bin_dir, default_major, default_server, literal, unique,
};
use crate::support::postgres_proxy::PostgresProxy;
use crate::support::processes::{self, until};
use crate::support::sets::{self, back_up, complete};
use crate::support::torture::{Moments, rounds, seed};
use crate::traps::{Background, Psql, paused, slow_database};

/// A database that takes a moment to dump and to restore, and its site.
fn site(server: &Server) -> (Opsd, String) {
    let database = server.fresh_database("faults");
    fixtures::rows(server, &database, "accounts", 5_000);
    fixtures::rows(server, &database, "statuses", 5_000);
    server.psql(
        &database,
        "CREATE TABLE notes (id serial PRIMARY KEY, note text); INSERT INTO notes SELECT i, 'note' FROM generate_series(1, 100) i;
         CREATE VIEW seen AS SELECT * FROM notes; SELECT lo_from_bytea(0, 'large')",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("large_table", quoted("256KiB"));
    (opsd, database)
}

/// The newest set restores, and every row comes back.
fn is_proven(opsd: &Opsd) {
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(sets::result(&run)["verdict"], "proven", "{run}");
}

/// A run that failed as it should: a reason, no set more than before.
fn failed_cleanly(opsd: &Opsd, run: &Run, sets_before: usize) {
    assert_eq!(run.code, Some(1), "{run}");
    assert!(run.stderr.contains("backup of job db: "), "{run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
    assert_eq!(complete(opsd).len(), sets_before, "{run}");
}

/// Ends the sessions of a database that fit; says how many there were.
fn terminate(server: &Server, database: &str, condition: &str) -> u32 {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
           WHERE datname = {} AND application_name LIKE 'opsd%' AND pid <> pg_backend_pid() AND {condition}) s",
        literal(database)
    );
    server.psql("postgres", &sql).parse().expect("a count")
}

#[test]
fn without_its_lock_a_run_ends() {
    let server = default_server();
    let database = slow_database(server);
    let mut opsd = Opsd::new(server, &[&database]);
    let run = paused(server, &database, &mut opsd);
    let mut run = run;
    let holds_it = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)";
    assert_eq!(terminate(server, &database, holds_it), 1);
    run.signal(Signal::CONT);
    let run = run.finish();
    failed_cleanly(&opsd, &run, 0);
    for expected in ["the session that held the job's lock is gone", "(SQLSTATE 57P01)", "hint: "] {
        assert!(run.stderr.contains(expected), "{expected:?} is not in {run}");
    }
    // What it had stored already is gone, but for the word that it failed.
    let files = opsd.repository_files();
    assert!(files.iter().all(|file| file.ends_with("/failed.json")), "{files:?}");
    back_up(&opsd);
    is_proven(&opsd);
    server.drop_database(&database);
}

#[test]
fn a_pg_dump_whose_session_is_ended_fails_the_set() {
    let server = default_server();
    let database = slow_database(server);
    let mut opsd = Opsd::new(server, &[&database]);
    let mut run = paused(server, &database, &mut opsd);
    assert_eq!(terminate(server, &database, "query LIKE 'COPY public.big %'"), 1);
    run.signal(Signal::CONT);
    let run = run.finish();
    failed_cleanly(&opsd, &run, 0);
    // The server's word is lost where its connection had no room for it.
    let said = [
        "terminating connection due to administrator command",
        "Verbindung wird abgebrochen",
        "server closed the connection",
    ];
    assert!(said.iter().any(|text| run.stderr.contains(text)), "{run}");
    back_up(&opsd);
    is_proven(&opsd);
    server.drop_database(&database);
}

#[test]
fn any_session_that_ends_at_any_moment_makes_no_wrong_set() {
    let server = default_server();
    let (mut opsd, database) = site(server);
    opsd.env("OPSD_LOG", "info");
    back_up(&opsd);
    let begun = Instant::now();
    back_up(&opsd);
    let mut made = 2;
    let mut moments = Moments::new("terminated sessions", begun.elapsed(), 5, 60);
    while let Some(after) = moments.next() {
        let begun = Instant::now();
        let mut run = Background::start(&opsd);
        std::thread::sleep(after);
        let mut ended = 0;
        while ended == 0 && !run.has_ended() {
            let any = "pid = (SELECT pid FROM pg_stat_activity WHERE datname = current_database()
                              AND application_name LIKE 'opsd%' ORDER BY random() LIMIT 1)"
                .replace("current_database()", &literal(&database));
            ended = terminate(server, &database, &any);
        }
        let run = run.finish();
        moments.tell(ended > 0, begun.elapsed());
        if run.code == Some(0) {
            made += 1;
            assert_eq!(complete(&opsd).len(), made, "{run}");
            if ended > 0 {
                is_proven(&opsd);
            }
        } else {
            failed_cleanly(&opsd, &run, made);
        }
    }
    back_up(&opsd);
    is_proven(&opsd);
    server.drop_database(&database);
}

#[test]
fn a_restore_whose_sessions_end_leaves_no_database_that_looks_restored() {
    let server = default_server();
    let (opsd, database) = site(server);
    back_up(&opsd);
    let target = unique("restored");
    let to = server.socket_url(SUPERUSER, &target);
    let args = ["restore", "db", "--to", &to, "--create"];
    let begun = Instant::now();
    opsd.ok(&args);
    let mut moments = Moments::new("terminated restores", begun.elapsed(), 3, 40);
    server.drop_database(&target);
    while let Some(after) = moments.next() {
        let begun = Instant::now();
        let mut child = opsd.command(&args).spawn().unwrap();
        std::thread::sleep(after);
        while child.try_wait().unwrap().is_none() && terminate(server, &target, "true") == 0 {}
        let run = finish_child(child, args.join(" "));
        moments.tell(run.code != Some(0), begun.elapsed());
        let is_there = server.databases().contains(&target);
        if run.code != Some(0) {
            assert_eq!(run.code, Some(1), "{run}");
            // Who was struck after the rows keeps them, and says that it is not all.
            assert_eq!(is_there, run.stderr.contains("holds all rows of the set, but"), "{run}");
        }
        if is_there {
            assert_eq!(server.psql(&target, "SELECT count(*) FROM accounts"), "5000", "{run}");
            assert_eq!(server.psql(&target, "SELECT count(*) FROM notes"), "100", "{run}");
        }
        server.drop_database(&target);
    }
    opsd.ok(&args);
    server.drop_database(&target);
    server.drop_database(&database);
}

#[test]
fn a_scratch_server_that_dies_fails_the_rehearsal_and_accuses_nobody() {
    let server = default_server();
    let (opsd, database) = site(server);
    back_up(&opsd);
    let before = sets::contents(&opsd);
    let scratch = opsd.path("scratch");
    let begun = Instant::now();
    is_proven(&opsd);
    let mut moments = Moments::new("dying scratch servers", begun.elapsed(), 2, 20);
    forget_records(&opsd, &before);
    while let Some(after) = moments.next() {
        let begun = Instant::now();
        let mut child = opsd.command(&["restore", "--verify", "--json"]).spawn().unwrap();
        let mut postmaster = None;
        until("the scratch server runs", || {
            let found = processes::of_scratch(&scratch);
            postmaster = found.into_iter().find(|p| p.command_line().contains("config_file="));
            postmaster.is_some() || child.try_wait().unwrap().is_some()
        });
        std::thread::sleep(after.saturating_sub(begun.elapsed()));
        let mut was_struck = false;
        if let Some(process) = postmaster.filter(processes::Process::lives) {
            let pid = Pid::from_raw(process.pid.try_into().unwrap()).unwrap();
            was_struck = kill_process(pid, Signal::KILL).is_ok();
        }
        let run = finish_child(child, "restore --verify".into());
        moments.tell(was_struck, begun.elapsed());
        if run.code != Some(0) {
            assert_eq!((run.code, &sets::result(&run)["verdict"]), (Some(1), &"failed".into()), "{run}");
            // A record that it failed, and its signature.
            assert_eq!(sets::contents(&opsd).len(), before.len() + 2, "{run}");
        }
        // Or it died when everything was proven, and that is the record.
        forget_records(&opsd, &before);
        assert_eq!(processes::of_scratch(&scratch), [], "{run}");
        assert!(scratch.read_dir().unwrap().next().is_none(), "{run}");
    }
    is_proven(&opsd);
    server.drop_database(&database);
}

/// Removes what is in the repository now and was not before.
fn forget_records(opsd: &Opsd, before: &BTreeMap<String, Vec<u8>>) {
    for name in sets::contents(opsd).keys().filter(|name| !before.contains_key(*name)) {
        std::fs::remove_file(opsd.path("repository").join(name)).unwrap();
    }
}

#[test]
fn a_server_that_goes_down_fails_the_set_and_the_next_works() {
    let mut server = Server::start(default_major(), &Options::default());
    let database = slow_database(&server);
    let mut opsd = Opsd::new(&server, &[&database]);
    for signal in [Signal::QUIT, Signal::KILL] {
        let before = complete(&opsd).len();
        let mut run = paused(&server, &database, &mut opsd);
        server.crash(signal);
        run.signal(Signal::CONT);
        let run = run.finish();
        failed_cleanly(&opsd, &run, before);
        // Down: told as what it is.
        opsd.run(&["backup"]).expect_failure(1, &["cannot connect to", "hint: "]);
        server.restart();
        back_up(&opsd);
        is_proven(&opsd);
        // `paused` looks for the first schema in the repository.
        std::fs::remove_dir_all(opsd.path("repository/test")).unwrap();
    }
}

/// A pg_dump that waits for a file before it begins, every time it is started until then.
pub fn held_pg_dump(opsd: &Opsd, major: u32) -> std::path::PathBuf {
    let directory = opsd.path("held");
    std::fs::create_dir(&directory).unwrap();
    let real = bin_dir(major);
    std::os::unix::fs::symlink(real.join("pg_dumpall"), directory.join("pg_dumpall")).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--version*) exec {0}/pg_dump --version;; esac\n\
         touch {1}/reached\nwhile [ ! -e {1}/go ]; do sleep 0.02; done\nexec {0}/pg_dump \"$@\"\n",
        real.display(),
        directory.display()
    );
    std::fs::write(directory.join("pg_dump"), script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.join("pg_dump"), mode).unwrap();
    directory
}

/// The worst moment: the coordinator has its locks, a migration waits behind them, and every pg_dump
/// then waits behind the migration. Nobody but opsd can see that this never ends.
#[test]
fn a_migration_between_the_snapshot_and_pg_dump_gets_its_turn_and_the_backup_is_made() {
    a_migration_gets_its_turn(default_server());
}

pub fn a_migration_gets_its_turn(server: &Server) {
    let (mut opsd, database) = site(server);
    let held = held_pg_dump(&opsd, server.major);
    opsd.postgres.set("bin_dir", quoted(held.to_str().unwrap()));
    opsd.env("OPSD_LOG", "info");
    let run = Background::start(&opsd);
    until("pg_dump is started", || held.join("reached").exists());
    let mut migration = Psql::new(server, &database);
    migration.send("ALTER TABLE accounts ADD COLUMN added integer DEFAULT 7; SELECT 'done';");
    until("the migration waits behind the snapshot", || migration.is("wait_event_type = 'Lock'"));
    std::fs::write(held.join("go"), "").unwrap();
    let run = run.finish().expect_code(0);
    assert!(run.stderr.contains("starting over (1/"), "the reason is in the log: {run}");
    assert!(run.stderr.contains("LOCK TABLE"), "{run}");
    migration.end("SELECT 1;");
    // The set is of after the migration, which got its lock as soon as opsd let go.
    let restored = unique("restored");
    opsd.postgres.set("bin_dir", quoted(bin_dir(default_major()).to_str().unwrap()));
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    assert_eq!(server.psql(&restored, "SELECT count(added) FROM accounts"), "5000");
    is_proven(&opsd);
    for name in [&restored, &database] {
        server.drop_database(name);
    }
}

/// The session whose snapshot every pg_dump is to use ends before the first of them asks for it.
#[test]
fn a_coordinator_that_is_ended_before_the_dumps_begin_takes_the_snapshot_anew() {
    the_snapshot_is_taken_anew(default_server());
}

pub fn the_snapshot_is_taken_anew(server: &Server) {
    let (mut opsd, database) = site(server);
    let held = held_pg_dump(&opsd, server.major);
    opsd.postgres.set("bin_dir", quoted(held.to_str().unwrap()));
    opsd.env("OPSD_LOG", "info");
    let run = Background::start(&opsd);
    until("pg_dump is started", || held.join("reached").exists());
    // Between two statements, and not in the middle of one.
    until("the coordinator is ended", || terminate(server, &database, "state = 'idle in transaction'") == 1);
    std::fs::write(held.join("go"), "").unwrap();
    let run = run.finish().expect_code(0);
    assert!(run.stderr.contains("starting over (1/"), "the reason is in the log: {run}");
    is_proven(&opsd);
    server.drop_database(&database);
}

/// A view is under no lock: pg_dump finds it in the snapshot, and asks for its definition, which is gone.
#[test]
fn a_view_that_is_dropped_before_the_dumps_begin_takes_the_snapshot_anew() {
    a_dropped_view_starts_over(default_server());
}

pub fn a_dropped_view_starts_over(server: &Server) {
    let (mut opsd, database) = site(server);
    let held = held_pg_dump(&opsd, server.major);
    opsd.postgres.set("bin_dir", quoted(held.to_str().unwrap()));
    opsd.env("OPSD_LOG", "info");
    let run = Background::start(&opsd);
    until("pg_dump is started", || held.join("reached").exists());
    server.psql(&database, "DROP VIEW seen");
    std::fs::write(held.join("go"), "").unwrap();
    let run = run.finish().expect_code(0);
    assert!(run.stderr.contains("starting over (1/"), "the reason is in the log: {run}");
    is_proven(&opsd);
    server.drop_database(&database);
}

/// What fails in the same way again and again is no change that somebody makes: it is told, and soon.
#[test]
fn a_query_that_always_fails_fails_the_backup() {
    let server = default_server();
    let (mut opsd, database) = site(server);
    opsd.env("OPSD_LOG", "info");
    // A function is gone from the catalog, as after a crash on a bad disk.
    server.psql(
        &database,
        "CREATE FUNCTION lost() RETURNS integer LANGUAGE sql AS 'SELECT 1';
         CREATE TABLE broken (n integer DEFAULT lost());
         SET allow_system_table_mods = on;
         DELETE FROM pg_proc WHERE proname = 'lost'",
    );
    let run = opsd.run(&["backup"]);
    failed_cleanly(&opsd, &run, 0);
    assert!(run.stderr.contains("query failed"), "{run}");
    assert_eq!(run.stderr.matches("starting over").count(), 2, "{run}");
    server.drop_database(&database);
}

/// A migration holds one table and then wants another: it must not find opsd holding that one while
/// opsd waits for the first.
#[test]
fn who_holds_a_table_finds_the_others_free_while_the_backup_waits() {
    let server = default_server();
    let (opsd, database) = site(server);
    for _ in 0..rounds(2, 10) {
        let before = complete(&opsd).len();
        let mut migration = Psql::new(server, &database);
        migration.send_within("BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE;");
        let run = Background::start(&opsd);
        let waits = format!(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = {} AND application_name LIKE 'opsd%' AND wait_event_type = 'Lock'",
            literal(&database)
        );
        until("the backup waits", || server.psql("postgres", &waits) == "t");
        // A deadlock would end one of the two after a second.
        migration.send_within(
            "SET lock_timeout = '20s'; LOCK TABLE statuses, notes IN ACCESS EXCLUSIVE MODE; ALTER TABLE notes ADD COLUMN IF NOT EXISTS more text;",
        );
        migration.end("COMMIT;");
        run.finish().expect_code(0);
        assert_eq!(complete(&opsd).len(), before + 1);
    }
    is_proven(&opsd);
    server.drop_database(&database);
}

#[test]
fn a_schema_that_changes_all_the_time_makes_sets_that_prove_themselves_or_none() {
    let server = default_server();
    let (mut opsd, database) = site(server);
    opsd.env("OPSD_LOG", "info");
    let mut random = StdRng::seed_from_u64(seed("changing schema"));
    let (stop, changes) = (AtomicBool::new(false), AtomicU32::new(0));
    let wanted = rounds(3, 40);
    let made = std::thread::scope(|scope| {
        let (stop, changes, database) = (&stop, &changes, &database);
        let chaos = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let (a, b, v) =
                    (random.random_range(0..6), random.random_range(0..6), random.random::<u16>());
                let statements = [
                    format!("CREATE TABLE c_{a} AS SELECT i, 'x' || i AS t FROM generate_series(1, 200) i"),
                    format!("DROP TABLE IF EXISTS c_{a} CASCADE"),
                    format!("TRUNCATE c_{a}; INSERT INTO c_{a} SELECT i, 'y' FROM generate_series(1, 50) i"),
                    format!("ALTER TABLE c_{a} ADD COLUMN n_{v} integer DEFAULT {v}"),
                    format!("ALTER TABLE c_{a} ALTER i TYPE bigint"),
                    format!("ALTER TABLE c_{a} RENAME TO c_{b}"),
                    format!("CREATE OR REPLACE VIEW v_{b} AS SELECT count(*) FROM c_{a}"),
                    format!("DROP VIEW IF EXISTS v_{b}"),
                    format!("CREATE SEQUENCE IF NOT EXISTS s_{b}; SELECT nextval('s_{b}')"),
                    format!("DROP SEQUENCE IF EXISTS s_{b}"),
                    format!("CREATE INDEX IF NOT EXISTS i_{b} ON c_{a} (i)"),
                    format!("UPDATE accounts SET who = 'u{v}' WHERE id % 50 = {a}"),
                ];
                let statement = &statements[random.random_range(0..statements.len())];
                // Some fail: the table is not there, or there already.
                let done = server.try_psql(database, statement);
                std::thread::sleep(Duration::from_millis(random.random_range(0..60)));
                changes.fetch_add(u32::from(done.is_ok()), Ordering::Relaxed);
                if let Err(error) = done {
                    assert!(!error.contains("deadlock"), "opsd was in the way of {statement}: {error}");
                }
            }
        });
        let mut made = 0;
        for _ in 0..wanted {
            let run = opsd.run(&["backup", "--json"]);
            if run.code == Some(0) {
                made += 1;
                is_proven(&opsd);
            } else {
                failed_cleanly(&opsd, &run, made);
                eprintln!("{run}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        chaos.join().expect("the changes go on");
        made
    });
    assert!(changes.into_inner() > 20, "the schema hardly changed");
    assert!(made * 2 > wanted, "only {made} of {wanted} sets were made");
    server.drop_database(&database);
}

/// Milliseconds to every answer, as over an ocean.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_is_only_slow() {
    let server = default_server();
    let (mut opsd, database) = site(server);
    let proxy = PostgresProxy::start(server.port).await;
    proxy.delay(Duration::from_millis(25));
    let url = format!("postgres://{SUPERUSER}@127.0.0.1:{}/{database}?sslmode=disable", proxy.port);
    opsd.postgres.set("url", quoted(&url));
    opsd.env("PGPASSWORD", PASSWORD);
    back_up(&opsd);
    assert!(proxy.accepted() >= 4, "everything went through the proxy");
    is_proven(&opsd);
    server.drop_database(&database);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_breaks_fails_the_set_and_the_next_works() {
    let server = default_server();
    let database = slow_database(server);
    let mut opsd = Opsd::new(server, &[&database]);
    let proxy = PostgresProxy::start(server.port).await;
    let url = format!("postgres://{SUPERUSER}@127.0.0.1:{}/{database}?sslmode=disable", proxy.port);
    opsd.postgres.set("url", quoted(&url));
    opsd.env("PGPASSWORD", PASSWORD);
    // Slow enough that the large table takes seconds.
    proxy.delay(Duration::from_millis(20));
    opsd.job.set("streams", "1").set("large_table", quoted("1MiB"));
    let run = Background::start(&opsd);
    until("the schema is stored", || {
        opsd.repository_files().iter().any(|file| file.ends_with("/schema.pgdump.zst.age"))
    });
    proxy.cut();
    proxy.refuse(true);
    let run = run.finish();
    proxy.delay(Duration::ZERO);
    failed_cleanly(&opsd, &run, 0);
    opsd.run(&["backup"]).expect_failure(1, &["cannot connect to", "hint: "]);
    proxy.refuse(false);
    back_up(&opsd);
    is_proven(&opsd);
    server.drop_database(&database);
}

/// The key of the job's advisory lock, from the documented recipe.
fn lock_key(site: &str, job: &str) -> i64 {
    let digest = Sha256::digest(format!("opsd/{site}/{job}"));
    i64::from_be_bytes(digest[..8].try_into().unwrap())
}

#[test]
fn a_squatter_on_the_lock_does_not_pass_for_another_run() {
    // Of its own: others would find the role in their globals.
    let server = &Server::start(default_major(), &Options::default());
    let (opsd, database) = site(server);
    let squatter = unique("squatter");
    server.psql("postgres", &format!("CREATE ROLE {squatter} LOGIN"));
    let key = lock_key("test", "db");
    // A foreign role, whatever it calls itself; and our own role in a program that is not opsd.
    for (role, name) in
        [(squatter.as_str(), "psql of somebody"), (&squatter, "opsd backup db host:1"), (SUPERUSER, "cron")]
    {
        let mut child = server
            .client("psql")
            .env("PGUSER", role)
            .env("PGDATABASE", &database)
            .env("PGAPPNAME", name)
            .args([
                "-X",
                "-q",
                "-c",
                &format!("SELECT pg_advisory_lock({key})"),
                "-c",
                "SELECT pg_sleep(600)",
            ])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        until("the lock is taken", || !server.psql(&database, holder).is_empty());
        let pid = server.psql(&database, holder);
        let run = opsd.run(&["backup"]);
        let hint = format!("pg_terminate_backend({pid})");
        let run = run.expect_failure(
            1,
            &[
                "is held by a session that is no run of it",
                name,
                &format!("pid {pid}"),
                &format!("role {role}"),
                "since 20",
                &hint,
            ],
        );
        assert!(!run.stderr.contains("running already"), "{run}");
        assert!(opsd.repository_files().is_empty(), "{run}");
        server.psql("postgres", &format!("SELECT pg_terminate_backend({pid})"));
        child.wait().unwrap();
    }
    back_up(&opsd);
}

/// Whether pg_dumps still make progress is asked within the snapshot's own transaction, in which the server would
/// repeat what it said first.
#[tokio::test]
async fn what_a_runs_sessions_do_is_seen_within_the_transaction_of_its_snapshot() {
    let server = default_server();
    let (site, database) = site(server);
    // Writes the file.
    site.command(&["config", "check"]);
    let (config, _) = opsd::config::load(Some(&site.path("opsd.toml"))).unwrap();
    let job = &config.backup["db"];
    let connection = &config.postgres[&job.postgres].connection;
    let name = unique("run");
    let session = coordinator::open(connection, &database, &name).await.unwrap();
    let coordinator = coordinator::start(session, &database, false, job).await.unwrap();
    let nobody = coordinator.activity().await;
    let other = connect(connection, Some(&database), &name).await.unwrap();
    let arrived = coordinator.activity().await;
    assert_ne!(arrived, nobody);
    other.client.batch_execute("SELECT 1").await.unwrap();
    assert_ne!(coordinator.activity().await, arrived);
    other.close().await;
    coordinator.close().await;
    server.drop_database(&database);
}
