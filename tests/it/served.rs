//! The server while a backup waits for a slow repository: nothing there waits with it.
//!
//! A session that cannot write until its client reads takes no part in what all sessions must take part in:
//! DROP DATABASE waits for it, whatever database it is in, and so do the replay of WAL on a standby and a
//! promotion.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::compare::{assert_same_content, db};
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{self, Options, SUPERUSER, Server, bin_dir, unique};
use crate::support::processes::until;
use crate::support::s3::SeaweedFs;
use crate::support::s3_proxy::{Fate, Proxy, error};
use crate::support::torture::torture;
use crate::traps::Background;

/// Tables whose rows zstd cannot make smaller, each of more than all that lies between a server and opsd.
const LARGE: &str = "
    CREATE TABLE large_1 (id int PRIMARY KEY, v bytea);
    INSERT INTO large_1 SELECT i, decode(string_agg(md5(i::text || j::text), ''), 'hex')
      FROM generate_series(1, 300) i, generate_series(1, 2000) j GROUP BY i;
    CREATE TABLE large_2 AS TABLE large_1;
    CREATE TABLE large_3 AS TABLE large_1;
    CREATE TABLE large_4 AS TABLE large_1;
    CREATE TABLE small AS SELECT generate_series(1, 10) AS id;";

/// Far above what anything here takes, and far below what a table takes to arrive in the bucket.
const BOUND: Duration = Duration::from_secs(3);

/// How long a bucket stands still: longer than reading a part and all that is on its way takes then.
const OUTAGE: Duration = Duration::from_secs(60);

/// Backs up into a bucket whose every request takes this long, and which takes nothing while it is down.
async fn slow_site(
    server: &Server,
    database: &str,
    weed: &SeaweedFs,
    streams: usize,
    is_down: Arc<AtomicBool>,
) -> (Opsd, Proxy) {
    let delay = Duration::from_millis(1000);
    let proxy = Proxy::start(&weed.endpoint, 1, delay, move |request, _| {
        if is_down.load(Ordering::Relaxed) && request.writes() {
            error(503, "SlowDown")
        } else {
            Fate::Forward
        }
    })
    .await;
    let mut opsd = Opsd::new(server, &[database]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    let keys = &weed.admin;
    let url = format!("s3://{}/{}", weed.bucket, unique("served"));
    opsd.use_s3(&url, &proxy.endpoint, &keys.access_key, &keys.secret_key);
    opsd.job
        .set("streams", streams.to_string())
        .set("large_table", quoted("1MiB"))
        .set("part_size", quoted("5MiB"));
    (opsd, proxy)
}

/// How many sessions of the backup copy rows.
fn copying(server: &Server, database: &str) -> usize {
    let sql =
        format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND query LIKE 'COPY %'");
    server.psql("postgres", &sql).parse().unwrap()
}

/// Makes a database and drops it within the bound. Returns how long the drop took.
fn drop_elsewhere(server: &Server) -> Duration {
    let database = server.fresh_database("elsewhere");
    let begun = Instant::now();
    server.psql(
        "postgres",
        &format!("SET statement_timeout = '{}s';\nDROP DATABASE {database};", BOUND.as_secs()),
    );
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_into_a_slow_bucket_keeps_nobody_waiting() {
    let weed = SeaweedFs::start().await;
    let server = &Server::start(postgres::default_major(), &Options::default());
    let database = server.fresh_database("served");
    server.psql(&database, LARGE);
    for streams in [1, 2] {
        let (opsd, _proxy) = slow_site(server, &database, &weed, streams, Arc::default()).await;
        let mut run = Background::start(&opsd);
        until("rows are on their way", || copying(server, &database) >= streams);
        let mut drops = Vec::new();
        while !run.has_ended() {
            drops.push(drop_elsewhere(server));
        }
        run.finish().expect_code(0);
        assert!(drops.len() >= 3, "the backup was too fast to tell: {drops:?}");
    }
    if !torture() {
        return;
    }
    // One that takes nothing at all for a while.
    let is_down = Arc::new(AtomicBool::new(false));
    let (opsd, _proxy) = slow_site(server, &database, &weed, 1, is_down.clone()).await;
    let mut run = Background::start(&opsd);
    until("rows are on their way", || copying(server, &database) >= 1);
    is_down.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    while begun.elapsed() < OUTAGE {
        drop_elsewhere(server);
        assert!(!run.has_ended(), "the backup was too fast to tell");
    }
    is_down.store(false, Ordering::Relaxed);
    run.finish().expect_code(0);
}

/// On a standby it is worse: its startup process waits, so no WAL is replayed, and nobody can promote it.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_backed_up_replays_and_is_promoted() {
    let weed = SeaweedFs::start().await;
    let primary = Server::start(
        postgres::default_major(),
        &Options { settings: &[("synchronous_commit", "on")], ..Options::default() },
    );
    let database = primary.fresh_database("served");
    primary.psql(&database, LARGE);
    let standby = primary.standby(&[]);
    standby.catch_up(&primary);
    let (opsd, _proxy) = slow_site(&standby, &database, &weed, 1, Arc::default()).await;
    let mut run = Background::start(&opsd);
    until("rows are on their way", || copying(&standby, &database) >= 1);
    for _ in 0..3 {
        drop_elsewhere(&primary);
        let begun = Instant::now();
        standby.catch_up(&primary);
        assert!(begun.elapsed() < BOUND, "the replay of WAL stood still");
        assert!(!run.has_ended(), "the backup was too fast to tell");
    }
    assert_eq!(standby.psql("postgres", "SELECT pg_promote(true, 10)"), "t");
    assert!(!run.has_ended(), "the backup was too fast to tell");
    run.finish().expect_code(0);
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &standby.socket_url(SUPERUSER, &restored), "--create"]);
    assert_same_content(db(&standby, &database), db(&standby, &restored));
}
