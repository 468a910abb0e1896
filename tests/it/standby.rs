//! A streaming replica as the source: what comes back, what cannot, and what a recovery conflict does.

use rustix::process::Signal;

use crate::support::compare::{assert_same, assert_same_content, db, plain_restore};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, quoted};
use crate::support::postgres::{self, Options, SUPERUSER, Server, bin_dir, literal};
use crate::support::sets;
use crate::traps::{paused, slow_database, wait_for};

/// A primary and its replica. The replica is dropped first.
struct Pair {
    standby: Server,
    primary: Server,
}

fn pair(major: u32, settings: &[(&str, &str)]) -> Pair {
    // A replica is sent what is flushed.
    let options = Options { settings: &[("synchronous_commit", "on")], ..Options::default() };
    let primary = Server::start(major, &options);
    let standby = primary.standby(settings);
    Pair { standby, primary }
}

fn site(pair: &Pair, database: &str) -> Opsd {
    pair.standby.catch_up(&pair.primary);
    let mut opsd = Opsd::new(&pair.standby, &[database]);
    opsd.job.set("large_table", quoted("32KiB"));
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(pair.primary.major).display()));
    opsd
}

/// Backs up, rehearses, and restores into a database of the primary.
fn round_trip(pair: &Pair, opsd: &Opsd, restored: &str) -> Run {
    let run = opsd.ok(&["backup", "--json"]);
    assert_eq!(run.json()["sets"][0]["proof"], "complete", "{run}");
    let verified = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(sets::result(&verified)["verdict"], "proven", "{verified}");
    let url = pair.primary.socket_url(SUPERUSER, restored);
    opsd.ok(&["restore", "db", "--to", &url, "--create"]);
    run
}

#[test]
fn a_standby_gives_what_the_primary_holds() {
    let pair = pair(postgres::default_major(), &[]);
    let primary = &pair.primary;
    fixtures::rows(primary, "postgres", "big", 2_000);
    fixtures::load(primary, "postgres", fixtures::ALL);
    // Its rows cannot be on a standby.
    primary.psql("postgres", "DROP TABLE col.unlogged");
    // A replica's sequences stand up to 32 ahead, unless their values were set.
    primary.psql(
        "postgres",
        "SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, last_value)
           FROM pg_sequences WHERE last_value IS NOT NULL",
    );
    let opsd = site(&pair, "postgres");
    round_trip(&pair, &opsd, "restored");
    let plain = plain_restore(db(primary, "postgres"));
    assert_same(db(primary, &plain), db(primary, "restored"));
    assert_same_content(db(primary, "postgres"), db(primary, "restored"));
    let show = opsd.ok(&["backups", "show", &sets::complete(&opsd)[0], "--json"]).json();
    assert_eq!(show["manifest"]["server"]["in_recovery"], true, "{show}");
}

#[test]
fn what_is_unlogged_is_not_on_a_standby_and_named() {
    for major in [14, 15, 18] {
        let pair = pair(major, &[]);
        pair.primary.psql(
            "postgres",
            "CREATE UNLOGGED TABLE fleeting (id serial, n integer GENERATED ALWAYS AS IDENTITY, v text);
             INSERT INTO fleeting (v) SELECT repeat('x', 500) FROM generate_series(1, 1000);
             CREATE TABLE lasting AS SELECT generate_series(1, 100) AS id;",
        );
        let opsd = site(&pair, "postgres");
        let run = round_trip(&pair, &opsd, "restored");
        let set = &run.json()["sets"][0];
        assert_eq!(set["databases"][0]["rows"], 100, "{run}");
        let warnings = set["warnings"].to_string();
        assert!(warnings.contains("unlogged") && warnings.contains("public.fleeting"), "{run}");
        let count = "SELECT (SELECT count(*) FROM fleeting), (SELECT count(*) FROM lasting)";
        assert_eq!(pair.primary.psql("restored", count), "0|100");
    }
}

/// A backup from a standby that cancels whoever is in the way at once, paused in the middle.
fn conflict(happens: impl FnOnce(&Server, &str)) {
    let pair = pair(postgres::default_major(), &[("max_standby_streaming_delay", "0")]);
    let database = slow_database(&pair.primary);
    let mut opsd = site(&pair, &database);
    let mut run = paused(&pair.standby, &database, &mut opsd);
    happens(&pair.primary, &database);
    // Either its COPY is cancelled by now; or it waits for its client to read, cannot be cancelled yet,
    // and the replay stands still.
    let lsn = pair.primary.psql("postgres", "SELECT pg_current_wal_flush_lsn()");
    let look = format!(
        "SELECT pg_last_wal_receive_lsn() >= '{lsn}', pg_last_wal_replay_lsn(),
                (SELECT count(*) FROM pg_stat_activity WHERE datname = {} AND state = 'active' AND query LIKE 'COPY%')",
        literal(&database)
    );
    let (mut seen, mut times) = (String::new(), 0);
    wait_for("a recovery conflict", || {
        let now = pair.standby.psql("postgres", &look);
        times = if now == seen { times + 1 } else { 0 };
        seen = now;
        seen.starts_with("t|") && (seen.ends_with("|0") || times == 20)
    });
    run.signal(Signal::CONT);
    run.finish().expect_failure(
        1,
        &[
            "conflict with recovery",
            "hint: the source is a standby",
            "max_standby_streaming_delay",
            "hot_standby_feedback",
        ],
    );
    assert_eq!(sets::complete(&opsd), Vec::<String>::new());
    opsd.run(&["restore", "--verify"]).expect_code(1);
    pair.standby.catch_up(&pair.primary);
    round_trip(&pair, &opsd, "restored");
    assert_same_content(db(&pair.primary, &database), db(&pair.primary, "restored"));
}

#[test]
fn a_table_truncated_on_the_primary_fails_the_set_and_not_the_next() {
    conflict(|primary, database| drop(primary.psql(database, "TRUNCATE big")));
}

#[test]
fn rows_vacuumed_on_the_primary_fail_the_set_and_not_the_next() {
    conflict(|primary, database| {
        drop(primary.psql(database, "DELETE FROM big WHERE id % 2 = 0"));
        drop(primary.psql(database, "VACUUM big"));
    });
}

/// A queue that need not survive a crash, as an extension for queues makes it.
#[test]
fn an_unlogged_table_of_an_extension_fails_no_backup_of_a_standby() {
    let pair = pair(postgres::default_major(), &[]);
    pair.primary.psql(
        "postgres",
        "CREATE EXTENSION opsd_fixture; CREATE TABLE kept (id integer); INSERT INTO kept SELECT generate_series(1, 20);
         CREATE UNLOGGED TABLE fleeting (id bigint GENERATED ALWAYS AS IDENTITY, message text);
         INSERT INTO fleeting (message) SELECT 'x' FROM generate_series(1, 10);
         ALTER EXTENSION opsd_fixture ADD TABLE kept; ALTER EXTENSION opsd_fixture ADD TABLE fleeting",
    );
    let mut opsd = site(&pair, "postgres");
    opsd.job.set("include_extension_tables", "[\"public.*\"]");
    let run = round_trip(&pair, &opsd, "restored");
    let warnings = run.json()["sets"][0]["warnings"].to_string();
    assert!(warnings.contains("unlogged") && warnings.contains("public.fleeting"), "{run}");
    assert!(!warnings.contains("public.kept"), "{run}");
    assert_eq!(pair.primary.psql("restored", "SELECT count(*) FROM kept"), "20");
}
