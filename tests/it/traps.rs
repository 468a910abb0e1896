//! Traps of PostgreSQL and of pg_dump that lose rows or judge wrongly without a word, each as a test named
//! after it.
//!
//! What must happen at a certain moment is made to happen by locks, by stopping opsd, and by looking
//! at the server; never by waiting for some time.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::compare::{assert_same_content, db};
use crate::support::opsd::{Opsd, Run, finish_child, quoted};
use crate::support::postgres::{self, Options, SUPERUSER, Server, bin_dir, literal, unique};
use crate::support::sets;

/// How long a condition may take to come true before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A psql that is told what to do a piece at a time. It ends, and rolls back, when dropped.
pub struct Psql<'s> {
    server: &'s Server,
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
}

impl<'s> Psql<'s> {
    pub fn new(server: &'s Server, database: &str) -> Self {
        let name = unique("locker");
        let mut child = server
            .client("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .env("PGDATABASE", database)
            .env("PGAPPNAME", &name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("start psql");
        let stdin = child.stdin.take();
        Self { server, name, child, stdin }
    }

    pub fn send(&mut self, sql: &str) {
        let stdin = self.stdin.as_mut().expect("psql's stdin");
        writeln!(stdin, "{sql}").and_then(|()| stdin.flush()).expect("write to psql");
    }

    /// Sends what leaves a transaction open, and waits until it is done.
    pub fn send_within(&mut self, sql: &str) {
        self.send(sql);
        self.send("SAVEPOINT done;");
        wait_for(sql, || self.is("state = 'idle in transaction' AND query = 'SAVEPOINT done;'"));
    }

    /// Whether this session's row of pg_stat_activity is like that.
    pub fn is(&self, condition: &str) -> bool {
        let name = literal(&self.name);
        let sql =
            format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = {name} AND {condition}");
        self.server.psql("postgres", &sql) == "1"
    }

    pub fn end(mut self, sql: &str) {
        self.send(sql);
        drop(self.stdin.take());
        assert!(self.child.wait().expect("wait").success(), "psql failed at {sql}");
    }
}

impl Drop for Psql<'_> {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// opsd in the background. Killed if the test fails.
pub struct Background {
    opsd: Option<Child>,
    /// A pg_dump of it that stands still.
    stopped: Option<Pid>,
}

impl Background {
    pub fn start(opsd: &Opsd) -> Self {
        let child = opsd.command(&["backup", "--json"]).spawn().expect("start opsd");
        Self { opsd: Some(child), stopped: None }
    }

    pub fn child(&mut self) -> &mut Child {
        self.opsd.as_mut().expect("a running opsd")
    }

    /// Whatever opsd is told, its pg_dump goes on.
    pub fn signal(&mut self, signal: Signal) {
        self.go_on();
        kill_process(Pid::from_child(self.child()), signal).expect("kill");
    }

    fn go_on(&mut self) {
        if let Some(pid) = self.stopped.take() {
            // A test may have killed it.
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child().try_wait().expect("wait").is_some()
    }

    /// Fails with what opsd said, where it has ended.
    fn expect_running(&mut self) {
        if self.has_ended() {
            let run = finish_child(self.opsd.take().expect("a running opsd"), "opsd backup --json".into());
            panic!("opsd ended too early: {run}");
        }
    }

    pub fn finish(mut self) -> Run {
        self.go_on();
        finish_child(self.opsd.take().expect("a running opsd"), "opsd backup --json".into())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.go_on();
        if let Some(mut child) = self.opsd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The statement with which opsd, or a pg_dump of it, waits for a lock in a database.
fn waiting(server: &Server, database: &str) -> Option<String> {
    let sql = format!(
        "SELECT query FROM pg_stat_activity WHERE application_name LIKE 'opsd%' AND datname = {}
            AND wait_event_type = 'Lock' AND cardinality(pg_blocking_pids(pid)) > 0 LIMIT 1",
        literal(database)
    );
    let query = server.psql("postgres", &sql);
    (!query.is_empty()).then_some(query)
}

/// Runs a backup during which sessions hold ACCESS EXCLUSIVE on `aa` one after the other, so that opsd
/// waits wherever it asks for the table. At the wait that `at` chooses (by number and statement),
/// `strike` acts, with the holder's session at hand; then the lock is given up.
fn ambush<'s>(
    server: &'s Server,
    database: &str,
    opsd: &Opsd,
    at: impl Fn(u32, &str) -> bool,
    strike: impl FnOnce(&mut Psql<'s>),
) -> Run {
    const LOCK: &str = "BEGIN; LOCK TABLE aa IN ACCESS EXCLUSIVE MODE;";
    let mut holder = Psql::new(server, database);
    holder.send_within(LOCK);
    let mut run = Background::start(opsd);
    let mut round = 0;
    loop {
        let mut query = None;
        wait_for("opsd to wait for the lock", || {
            query = waiting(server, database);
            query.is_some() || run.has_ended()
        });
        let Some(query) = query else {
            panic!("opsd ended before the moment came: {}", run.finish());
        };
        round += 1;
        if at(round, &query) {
            break;
        }
        // Locks are granted in turn: the next one gets it when opsd lets go again.
        let mut next = Psql::new(server, database);
        next.send(LOCK);
        next.send("SAVEPOINT done;");
        wait_for("the next session to wait", || next.is("wait_event_type = 'Lock'"));
        holder.end("COMMIT;");
        wait_for("the next session to hold the lock", || next.is("state = 'idle in transaction'"));
        holder = next;
    }
    strike(&mut holder);
    holder.end("COMMIT;");
    run.finish()
}

fn at_our_lock(_: u32, query: &str) -> bool {
    query.starts_with("LOCK TABLE ONLY \"")
}

pub fn site(server: &Server, database: &str) -> Opsd {
    let mut opsd = Opsd::new(server, &[database]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd
}

/// `aa` with 500 rows, and some company.
pub const AA: &str =
    "CREATE TABLE aa (id integer, v integer); INSERT INTO aa SELECT i, i FROM generate_series(1, 500) i;
    CREATE TABLE bb (id integer); INSERT INTO bb SELECT generate_series(1, 50);
    CREATE TABLE zz (id integer); INSERT INTO zz SELECT generate_series(1, 70);";

/// Rehearses the set and restores it: proven, and the same as the source is now.
pub fn assert_comes_back(opsd: &Opsd, server: &Server, source: &str) {
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let result = &run.json()["results"][0];
    assert_eq!(result["verdict"], "proven", "{run}");
    assert_eq!(result["databases"][0]["tables_proven"], result["databases"][0]["tables_total"], "{run}");
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    assert_same_content(db(server, source), db(server, &restored));
    server.drop_database(&restored);
}

fn rows(run: &Run) -> u64 {
    run.json()["sets"][0]["databases"][0]["rows"].as_u64().expect("rows")
}

/// Whether the repository holds a whole set.
fn has_set(opsd: &Opsd) -> bool {
    opsd.repository_files().iter().any(|f| f.ends_with("/manifest.json"))
}

#[test]
fn a_table_rewritten_while_the_snapshot_waits_is_dumped_with_its_rows() {
    let server = postgres::default_server();
    let database = server.fresh_database("rewritten");
    server.psql(&database, AA);
    let opsd = site(server, &database);
    let run = ambush(server, &database, &opsd, at_our_lock, |holder| {
        holder.send_within("ALTER TABLE aa ALTER v TYPE bigint USING v::bigint * 5000000000;");
    })
    .expect_code(0);
    assert_eq!(rows(&run), 620, "{run}");
    assert_comes_back(&opsd, server, &database);
    server.drop_database(&database);
}

#[test]
fn a_table_truncated_and_refilled_while_the_snapshot_waits_is_dumped_with_its_rows() {
    let server = postgres::default_server();
    let database = server.fresh_database("refilled");
    server.psql(&database, AA);
    let opsd = site(server, &database);
    let run = ambush(server, &database, &opsd, at_our_lock, |holder| {
        holder.send_within("TRUNCATE aa; INSERT INTO aa SELECT i, -i FROM generate_series(1, 123) i;");
    })
    .expect_code(0);
    assert_eq!(rows(&run), 243, "{run}");
    assert_comes_back(&opsd, server, &database);
    server.drop_database(&database);
}

#[test]
fn without_room_for_locks_a_rewritten_table_starts_over_and_is_dumped_with_its_rows() {
    // 300 locks: enough for two pg_dumps of 95 tables, but not for the coordinator's own.
    let settings = [("max_locks_per_transaction", "10"), ("max_connections", "30"), ("max_wal_senders", "0")];
    let major = postgres::default_major();
    let server = Server::start(major, &Options { settings: &settings, ..Options::default() });
    let mut started_over = 0;
    for stage in 1..=3 {
        let database = server.fresh_database("lean");
        server.psql(&database, AA);
        server.psql(
            &database,
            "SELECT format('CREATE TABLE t_%s (id integer)', i) FROM generate_series(1, 92) i \\gexec",
        );
        let mut opsd = site(&server, &database);
        opsd.env("OPSD_LOG", "info");
        let run = ambush(
            &server,
            &database,
            &opsd,
            |round, query| {
                assert!(!query.starts_with("LOCK TABLE ONLY \""), "opsd locks first: {query}");
                round == stage
            },
            |holder| holder.send_within("ALTER TABLE aa ALTER v TYPE bigint USING v::bigint * 5000000000;"),
        );
        let run = run.expect_code(0);
        assert_eq!(rows(&run), 620, "stage {stage}: {run}");
        started_over += u32::from(run.stderr.contains("changed while the dump started; starting over"));
        assert_comes_back(&opsd, &server, &database);
        server.drop_database(&database);
    }
    assert_eq!(started_over, 1, "the last moment is that of pg_dump's own lock");
}

#[test]
fn tables_that_come_go_and_change_names_while_the_snapshot_is_taken() {
    let server = postgres::default_server();
    for (change, expected) in [
        ("CREATE TABLE newcomer AS SELECT generate_series(1, 9) AS id", 629),
        ("DROP TABLE zz", 550),
        ("ALTER TABLE zz RENAME TO yy", 620),
        ("CREATE SCHEMA other; ALTER TABLE zz SET SCHEMA other", 620),
        ("DROP TABLE zz; CREATE VIEW zz AS SELECT 1", 550),
    ] {
        let database = server.fresh_database("changing");
        server.psql(&database, AA);
        let opsd = site(server, &database);
        let run = ambush(server, &database, &opsd, at_our_lock, |_| drop(server.psql(&database, change)))
            .expect_code(0);
        assert_eq!(rows(&run), expected, "{change}: {run}");
        assert_comes_back(&opsd, server, &database);
        server.drop_database(&database);
    }
}

/// A database with a table that is small on disk and takes long to read, a view and a smaller table.
pub fn slow_database(server: &Server) -> String {
    let database = server.fresh_database("slow");
    server.psql(
        &database,
        "CREATE TABLE big AS SELECT i AS id, i::text || repeat('x', 100000) AS v FROM generate_series(1, 2500) i;
         CREATE TABLE small AS SELECT generate_series(1, 10) AS id; CREATE VIEW seen AS SELECT * FROM small",
    );
    database
}

/// For how long a pg_dump runs until it is looked at again.
const MOMENT: Duration = Duration::from_millis(1);
/// So many of them, until it is looked whether opsd still runs.
const MOMENTS: u32 = 100;

/// The argument of the pg_dump that takes the large table and nothing else.
const BIG_ALONE: &str = "--table=\"public\".\"big\"";

/// Starts a backup and stops it while the large table is on its way: every pg_dump holds its locks,
/// the schema is stored, and nothing moves.
pub fn paused(server: &Server, database: &str, opsd: &mut Opsd) -> Background {
    opsd.job.set("streams", "2").set("large_table", quoted("1MiB"));
    let mut run = Background::start(opsd);
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = {} AND state = 'active' AND query LIKE 'COPY public.big %'",
        literal(database)
    );
    // The pg_dump runs for a moment at a time, so that it cannot be through with the table unseen.
    wait_for("the large table's COPY", || {
        run.expect_running();
        let Some(pid) = dumps(run.child().id(), BIG_ALONE).first().and_then(|p| Pid::from_raw(*p)) else {
            return false;
        };
        for _ in 0..MOMENTS {
            // It may end meanwhile, as its opsd starts over.
            let _ = kill_process(pid, Signal::STOP);
            if has_written(pid) {
                break;
            }
            let _ = kill_process(pid, Signal::CONT);
            std::thread::sleep(MOMENT);
        }
        if !has_written(pid) {
            return false;
        }
        if server.psql("postgres", &sql) == "1" {
            run.stopped = Some(pid);
            return true;
        }
        let _ = kill_process(pid, Signal::CONT);
        false
    });
    wait_for("the schema to be stored", || {
        run.expect_running();
        opsd.repository_files().iter().any(|f| f.ends_with("/schema.pgdump.zst.age"))
    });
    kill_process(Pid::from_child(run.child()), Signal::STOP).expect("stop opsd");
    run
}

/// Whether a pg_dump has written some of its archive.
fn has_written(pid: Pid) -> bool {
    let io = std::fs::read_to_string(format!("/proc/{}/io", pid.as_raw_nonzero())).unwrap_or_default();
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok());
    // Less than this may be its questions to the server.
    written.is_some_and(|bytes| bytes > 1 << 20)
}

#[test]
fn a_view_dropped_in_the_middle_is_in_the_set() {
    let server = postgres::default_server();
    let database = slow_database(server);
    let mut opsd = site(server, &database);
    let mut run = paused(server, &database, &mut opsd);
    server.psql(&database, "DROP VIEW seen");
    run.signal(Signal::CONT);
    run.finish().expect_code(0);
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    assert_eq!(server.psql(&restored, "SELECT count(*) FROM seen"), "10");
    opsd.ok(&["restore", "--verify"]);
    server.drop_database(&restored);
    server.drop_database(&database);
}

#[test]
fn who_waits_for_access_exclusive_does_not_stall_a_dump_that_has_started() {
    let server = postgres::default_server();
    let database = slow_database(server);
    let mut opsd = site(server, &database);
    let mut run = paused(server, &database, &mut opsd);
    let mut migration = Psql::new(server, &database);
    migration.send("BEGIN; DROP TABLE small CASCADE; SAVEPOINT done;");
    let mut other = Psql::new(server, &database);
    other.send("BEGIN; ALTER TABLE big ALTER id TYPE text; SAVEPOINT done;");
    wait_for("both to wait", || {
        migration.is("wait_event_type = 'Lock'") && other.is("wait_event_type = 'Lock'")
    });
    run.signal(Signal::CONT);
    run.finish().expect_code(0);
    // They get their locks as soon as the dump is over; nothing of theirs is committed.
    wait_for("the migration", || migration.is("state = 'idle in transaction'"));
    drop(migration);
    drop(other);
    assert_comes_back(&opsd, server, &database);
    server.drop_database(&database);
}

#[test]
fn timeouts_of_the_database_do_not_end_the_sessions_that_wait() {
    let server = postgres::shared(18);
    let database = slow_database(server);
    for name in [
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "transaction_timeout",
        "statement_timeout",
    ] {
        server.psql("postgres", &format!("ALTER DATABASE {database} SET {name} = '700ms'"));
    }
    let mut opsd = site(server, &database);
    let mut run = paused(server, &database, &mut opsd);
    // Sessions that were idle for this long hold something: one that was being closed or opened as opsd was
    // stopped is gone, or comes later.
    let idle_for = |milliseconds: u32| {
        let sql = format!(
            "SELECT pid FROM pg_stat_activity WHERE datname = {} AND application_name LIKE 'opsd%'
             AND state LIKE 'idle%' AND state_change < now() - interval '{milliseconds} ms' ORDER BY pid",
            literal(&database)
        );
        server.psql("postgres", &sql).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    wait_for("the lock's and the snapshot's session", || idle_for(300).len() >= 2);
    let waiting = idle_for(300);
    wait_for("all timeouts to have passed", || {
        let now = idle_for(0);
        assert!(waiting.iter().all(|pid| now.contains(pid)), "a session was ended: {waiting:?}, now {now:?}");
        let long = idle_for(1_500);
        waiting.iter().all(|pid| long.contains(pid))
    });
    run.signal(Signal::CONT);
    let run = run.finish().expect_code(0);
    assert!(!run.stdout.contains("is gone"), "{run}");
    // A comparison's own sessions would take longer than that.
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(sets::result(&run)["verdict"], "proven", "{run}");
    server.drop_database(&database);
}

#[test]
fn a_second_backup_of_the_job_exits_5_and_names_the_first() {
    let server = postgres::default_server();
    let database = slow_database(server);
    let mut opsd = site(server, &database);
    let mut run = paused(server, &database, &mut opsd);
    let pid = run.child().id();
    opsd.run(&["backup"])
        .expect_failure(5, &["a backup of job \"db\" is running already", &format!(":{pid}, pid ")]);
    run.signal(Signal::CONT);
    run.finish().expect_code(0);
    // The lock is gone with its session.
    opsd.ok(&["backup"]);
    server.drop_database(&database);
}

/// Process ids of the pg_dumps that `parent` started with `argument`.
fn dumps(parent: u32, argument: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in parentheses may hold anything; the state and the parent follow it.
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_asked_for = line.split(|&b| b == 0).any(|word| word == argument.as_bytes());
        if after.split(' ').nth(1) == Some(&parent.to_string()) && is_asked_for {
            found.push(pid);
        }
    }
    found
}

#[test]
fn a_pg_dump_that_is_killed_leaves_no_set() {
    let server = postgres::default_server();
    let database = slow_database(server);
    let mut opsd = site(server, &database);
    let mut run = paused(server, &database, &mut opsd);
    let dumps = dumps(run.child().id(), BIG_ALONE);
    assert_eq!(dumps.len(), 1, "{dumps:?}");
    kill_process(Pid::from_raw(dumps[0]).expect("a pid"), Signal::KILL).expect("kill");
    run.signal(Signal::CONT);
    run.finish().expect_failure(1, &["data-1", "signal"]);
    let files = opsd.repository_files();
    let names: Vec<&str> = files.iter().filter_map(|f| f.rsplit('/').next()).collect();
    assert!(names.contains(&"failed.json"), "{names:?}");
    assert!(!names.iter().any(|n| n.starts_with("manifest.json") || n.starts_with("data-1")), "{names:?}");
    let listed = opsd.ok(&["backups", "list", "--json"]);
    assert!(!listed.stdout.contains("\"complete\""), "{listed}");
    server.drop_database(&database);
}

#[test]
fn a_lost_lock_session_or_snapshot_session_does_not_make_a_wrong_set() {
    let server = postgres::default_server();
    let database = slow_database(server);
    let mut opsd = site(server, &database);
    let mut run = paused(server, &database, &mut opsd);
    let ended = server.psql(
        "postgres",
        &format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = {}
                AND application_name LIKE 'opsd%' AND state = 'idle in transaction' AND query NOT LIKE 'COPY%'",
            literal(&database)
        ),
    );
    assert_ne!(ended, "0");
    run.signal(Signal::CONT);
    let run = run.finish();
    // Every pg_dump has its snapshot: the set is whole. Otherwise there must be none.
    if run.code == Some(0) {
        assert_comes_back(&opsd, server, &database);
    } else {
        assert!(!has_set(&opsd), "{run}");
    }
    server.drop_database(&database);
}

/// The time counts from the beginning, also while a backup waits for somebody's lock before it dumps anything.
#[test]
fn a_backup_that_waits_for_a_lock_is_ended_in_time() {
    let server = postgres::default_server();
    let database = server.fresh_database("held");
    server.psql(&database, "CREATE TABLE aa (i integer)");
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("timeout", quoted("3s"));
    let mut holder = Psql::new(server, &database);
    holder.send_within("BEGIN; LOCK TABLE aa IN ACCESS EXCLUSIVE MODE;");
    let run = opsd.run(&["backup"]);
    drop(holder);
    run.expect_failure(1, &["the backup did not end within 3 s", "backup.db.timeout"]);
    server.drop_database(&database);
}
