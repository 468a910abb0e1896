//! A PostgreSQL monitor on real servers: every major, every role, and each way in which things go wrong.

use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::settings::HOSTILE;
use crate::support::alerting::watched;
use crate::support::exporter::{Exporter, Scrape, postgres_monitor, site};
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{self, Options, SUPERUSER, Server, identifier, literal};
use crate::support::postgres_proxy::PostgresProxy;
use crate::support::processes::until;

/// Collects once, as cron would.
fn collect(opsd: &Opsd) -> Scrape {
    let file = opsd.path("once.prom");
    opsd.ok(&["exporter", "--textfile", file.to_str().unwrap()]);
    Scrape::parse(&std::fs::read_to_string(file).unwrap())
}

/// The concerns that are down, as `name reason`.
fn down(scrape: &Scrape, monitor: &str) -> Vec<String> {
    let of = format!("monitor=\"{monitor}\"");
    let part = |series: &str, label: &str| {
        series.split(&format!("{label}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    let failures = scrape.of("opsd_monitor_concern_failure", &[&of]);
    failures.iter().map(|(s, _)| format!("{} {}", part(s, "concern"), part(s, "reason"))).collect()
}

/// Metrics that every primary has, whatever it does.
const ALWAYS: &[&str] = &[
    "opsd_postgres_server_info",
    "opsd_postgres_in_recovery",
    "opsd_postgres_start_timestamp_seconds",
    "opsd_postgres_wal_position_bytes",
    "opsd_postgres_connections",
    "opsd_postgres_connections_usable",
    "opsd_postgres_connections_used_ratio",
    "opsd_postgres_blocked_sessions",
    "opsd_postgres_prepared_transactions",
    "opsd_postgres_database_size_bytes",
    "opsd_postgres_database_commits_total",
    "opsd_postgres_database_rollbacks_total",
    "opsd_postgres_database_block_hits_total",
    "opsd_postgres_database_block_reads_total",
    "opsd_postgres_database_temporary_bytes_total",
    "opsd_postgres_database_deadlocks_total",
    "opsd_postgres_database_conflicts_total",
    "opsd_postgres_wraparound_ratio",
    "opsd_postgres_archiver_state",
    "opsd_postgres_checkpoints_total",
    "opsd_postgres_checkpoint_write_seconds_total",
    "opsd_postgres_checkpoint_sync_seconds_total",
    "opsd_postgres_checkpoint_buffers_total",
    "opsd_postgres_dead_rows",
    "opsd_postgres_table_dead_rows",
    "opsd_postgres_table_vacuum_debt_ratio",
    "opsd_postgres_sequence_used_ratio",
];

#[test]
fn every_major_answers_and_a_role_with_pg_monitor_is_enough() {
    postgres::for_each_major(|server| {
        let database = server.fresh_database("watched");
        server.psql(
            &database,
            "CREATE TABLE debt (id int); ALTER TABLE debt SET (autovacuum_enabled = off);
             INSERT INTO debt SELECT generate_series(1, 1000); DELETE FROM debt;
             CREATE TABLE near (id serial); SELECT setval('near_id_seq', 2040109465);
             CREATE SEQUENCE wide; CREATE TABLE narrow (id smallint DEFAULT nextval('wide'));
             ALTER SEQUENCE wide OWNED BY narrow.id; SELECT setval('wide', 32000);
             CREATE SEQUENCE falling INCREMENT -1 MINVALUE -100 MAXVALUE -1 START -1; SELECT setval('falling', -100);",
        );
        let counted =
            "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'debt' AND n_dead_tup = 1000";
        until("the dead rows are counted", || server.psql(&database, counted) == "1000");
        let role = postgres::unique("watcher");
        let plain = postgres::unique("plain");
        server.psql(
            "postgres",
            &format!("CREATE ROLE {role} LOGIN; GRANT pg_monitor TO {role}; CREATE ROLE {plain} LOGIN"),
        );

        // What would end, stall or change the sessions of a backup does nothing to those of a monitor.
        for (_, name, value) in HOSTILE.iter().filter(|(since, ..)| *since <= server.major) {
            let set = format!("SET exit_on_error = off; ALTER ROLE {role} SET {name} = {}", literal(value));
            server.psql("postgres", &set);
        }

        let mut opsd = Opsd::without_server();
        let databases = format!("databases = [\"postgres\", {}]\ntimeout = \"20s\"\n", quoted(&database));
        for (name, user) in [("super", SUPERUSER), ("watcher", &*role), ("plain", &*plain)] {
            let monitor = postgres_monitor(name, &server.socket_url(user, "postgres"), "");
            let monitor = monitor.replace("timeout = \"1s\"\n", &databases).replace("\"1s\"", "\"30s\"");
            opsd.more.push_str(&monitor);
        }
        let scrape = collect(&opsd);
        assert_eq!(down(&scrape, "super"), Vec::<String>::new(), "{}", scrape.text);
        let missing: Vec<_> =
            ALWAYS.iter().filter(|m| scrape.of(m, &["monitor=\"super\""]).is_empty()).collect();
        assert!(missing.is_empty(), "{missing:?} are missing of\n{}", scrape.text);
        let database_label = format!("database=\"{database}\"");
        let of = |metric: &str, parts: &[&str]| {
            let parts: Vec<&str> =
                ["monitor=\"super\"", &database_label].iter().chain(parts).copied().collect();
            scrape.one(metric, &parts).unwrap_or_else(|| panic!("no {metric} {parts:?} in\n{}", scrape.text))
        };
        assert_eq!(of("opsd_postgres_table_dead_rows", &["table=\"debt\""]), 1000.0);
        // Threshold 50, and nothing is alive.
        assert!(of("opsd_postgres_table_vacuum_debt_ratio", &["table=\"debt\""]) > 3.0);
        let used = |name: &str| of("opsd_postgres_sequence_used_ratio", &[&format!("sequence=\"{name}\"")]);
        assert!((used("near_id_seq") - 0.95).abs() < 0.001, "{}", used("near_id_seq"));
        assert!(used("wide") > 0.97 && used("falling") == 1.0, "{} {}", used("wide"), used("falling"));
        let version = format!("version=\"{}", server.major);
        assert_eq!(scrape.of("opsd_postgres_server_info", &["monitor=\"super\"", &version]).len(), 1);

        // What pg_monitor does not include, and only that, is missing.
        assert_eq!(down(&scrape, "watcher"), ["sequences permission"], "{}", scrape.text);
        let restricted =
            ["activity", "archive_backlog", "replication", "sequences"].map(|c| format!("{c} permission"));
        assert_eq!(down(&scrape, "plain"), restricted);
        assert_eq!(["super", "watcher", "plain"].map(|m| scrape.up(m)), [Some(1.0); 3]);
        assert_eq!(
            scrape.of("opsd_monitor_series_dropped_total", &[]).iter().map(|(_, n)| n).sum::<f64>(),
            0.0
        );
        server.drop_database(&database);
        server.psql("postgres", &format!("DROP ROLE {role}; DROP ROLE {plain}"));
    });
}

/// A runbook goes by the reason: a server that is there and asks for what it is not given is not unreachable.
#[test]
fn what_the_server_asks_for_in_vain_is_the_reason() {
    let server = postgres::default_server();
    let mut opsd = Opsd::without_server();
    let without_tls = format!("{}?sslmode=require", server.url(SUPERUSER, "postgres"));
    opsd.more.push_str(&postgres_monitor("password", &server.url(SUPERUSER, "postgres"), ""));
    opsd.more.push_str(&postgres_monitor("encryption", &without_tls, ""));
    opsd.more.push_str(&postgres_monitor("database", &server.socket_url(SUPERUSER, "nowhere"), ""));
    let scrape = collect(&opsd);
    for (monitor, reason) in [("password", "authentication"), ("encryption", "tls"), ("database", "refused")]
    {
        let labels = [format!("monitor=\"{monitor}\""), format!("reason=\"{reason}\"")];
        let failures = scrape.one("opsd_monitor_failures_total", &labels.each_ref().map(String::as_str));
        assert_eq!(failures, Some(1.0), "{monitor}\n{}", scrape.text);
    }
}

/// A primary, its standby, and a way between them that can be cut; an exporter that watches both.
struct Pair {
    exporter: Exporter,
    opsd: Opsd,
    proxy: PostgresProxy,
    standby: Server,
    primary: Server,
    runtime: Runtime,
}

fn pair() -> Pair {
    let hba = ["host replication all 127.0.0.1/32 trust"];
    let primary = Server::start(postgres::default_major(), &Options { hba: &hba, ..Options::default() });
    let standby = primary.standby(&[]);
    let runtime = Runtime::new().unwrap();
    let proxy = runtime.block_on(PostgresProxy::start(primary.port));
    let conninfo = format!("host=127.0.0.1 port={} user={SUPERUSER}", proxy.port);
    let change = format!("ALTER SYSTEM SET primary_conninfo = {}", literal(&conninfo));
    standby.psql("postgres", &change);
    standby.psql("postgres", "SELECT pg_reload_conf()");
    until("the standby streams through the proxy", || proxy.accepted() > 0);
    let mut opsd = site(&primary);
    opsd.more.push_str(&postgres_monitor("standby", &standby.socket_url(SUPERUSER, "postgres"), ""));
    let exporter = watched(&mut opsd, "");
    Pair { exporter, opsd, proxy, standby, primary, runtime }
}

impl Pair {
    /// The verdicts of both ends.
    fn states(scrape: &Scrape) -> [Option<String>; 2] {
        ["main", "standby"].map(|monitor| {
            scrape.state("opsd_postgres_replication_state", &[&format!("monitor=\"{monitor}\"")])
        })
    }

    fn until_both(&self, wanted: &str) -> Scrape {
        let both = [Some(wanted.to_owned()), Some(wanted.to_owned())];
        self.exporter.scrape_until(wanted, |scrape| Self::states(scrape) == both)
    }
}

#[test]
fn a_pair_of_servers_is_judged_from_both_ends() {
    let pair = pair();
    let (primary, standby) = (&pair.primary, &pair.standby);
    primary.psql("postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id");
    standby.catch_up(primary);

    // An idle primary is no lag, whatever the clock says about the last transaction.
    let scrape = pair.until_both("source_idle");
    assert_eq!(scrape.one("opsd_postgres_receiver_up", &[]), Some(1.0));
    let states = scrape.of("opsd_postgres_replication_state", &["monitor=\"standby\""]);
    assert_eq!(states.len(), 7, "{states:?}");
    pair.opsd.ok(&["check"]);
    pair.exporter.until_quiet();

    // Replay is paused: few bytes, and yet it is seen, at both ends.
    standby.psql("postgres", "SELECT pg_wal_replay_pause()");
    primary.psql("postgres", "INSERT INTO t SELECT generate_series(1, 1000)");
    let scrape = pair.until_both("paused");
    assert_eq!(scrape.one("opsd_postgres_replay_paused", &[]), Some(1.0));
    let lag = pair.exporter.scrape_until("the lag shows", |scrape| {
        scrape.one("opsd_postgres_standby_replay_lag_bytes", &[]) > Some(10_000.0)
    });
    assert_eq!(lag.state("opsd_postgres_standby_stream_state", &[]).as_deref(), Some("streaming"));
    let run = pair.opsd.run(&["check"]).expect_code(1);
    assert!(run.stdout.contains("postgres_replication_state is paused"), "{run}");
    pair.exporter.until_alerts(&["PostgresReplayPaused{monitor=standby}"]);
    standby.psql("postgres", "SELECT pg_wal_replay_resume()");
    standby.catch_up(primary);
    pair.until_both("source_idle");

    // The link is cut. All that was received is replayed, which is no comfort.
    pair.proxy.refuse(true);
    pair.proxy.cut();
    let scrape = pair.until_both("link_cut");
    assert_eq!(scrape.one("opsd_postgres_receiver_up", &[]), Some(0.0));
    let position = |metric: &str| scrape.one(metric, &[]).unwrap();
    assert_eq!(
        position("opsd_postgres_received_position_bytes"),
        position("opsd_postgres_replayed_position_bytes")
    );
    assert_eq!(scrape.one("opsd_postgres_slot_active", &["monitor=\"main\""]), Some(0.0));
    let run = pair.opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("postgres_replication_state is link_cut"), "{run}");
    let [main, at_standby] =
        ["main", "standby"].map(|m| format!("PostgresReplicationLinkCut{{monitor={m}}}"));
    pair.exporter.until_alerts(&[&main, &at_standby]);
    pair.proxy.refuse(false);
    pair.until_both("source_idle");
    pair.exporter.until_over(&["PostgresReplicationLinkCut", "PostgresReplayPaused"]);

    // Promoted: the new primary is no end of a pair, and the old one has lost its standby.
    standby.psql("postgres", "SELECT pg_promote()");
    let scrape = pair.exporter.scrape_until("the promotion", |scrape| {
        Pair::states(scrape) == [Some("link_cut".to_owned()), None]
            && scrape.one("opsd_postgres_in_recovery", &["monitor=\"standby\""]) == Some(0.0)
    });
    assert_eq!(scrape.of("opsd_postgres_receiver_up", &[]), []);
    assert!(scrape.one("opsd_postgres_wal_position_bytes", &["monitor=\"standby\""]).is_some());
    let run = pair.opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("main: postgres_replication_state is link_cut"), "{run}");
    pair.exporter.until_alerts(&[&main]);
    let Pair { exporter, proxy, runtime, .. } = pair;
    drop(exporter);
    runtime.block_on(async { drop(proxy) });
}

#[test]
fn an_exclusive_lock_takes_down_only_what_it_covers() {
    let server = postgres::default_server();
    let database = server.fresh_database("locked");
    server.psql(&database, "CREATE TABLE t (id serial); INSERT INTO t DEFAULT VALUES");
    let mut opsd = Opsd::without_server();
    opsd.more = postgres_monitor("main", &server.socket_url(SUPERUSER, &database), "");
    let exporter = watched(&mut opsd, "");
    exporter.scrape_until("the first collection", |scrape| scrape.up("main").is_some());
    let sessions = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'opsd monitor' AND datname = {}",
        literal(&database)
    );
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| {
            // It takes ACCESS EXCLUSIVE of the table and of the sequence that goes with its column.
            let sql = "BEGIN; ALTER TABLE t DROP COLUMN id; SELECT 'the holder', pg_sleep(300)";
            server.try_psql(&database, sql)
        });
        let held = "SELECT count(*) FROM pg_locks WHERE relation = 't_id_seq'::regclass AND granted
                    AND mode = 'AccessExclusiveLock'";
        until("the lock is held", || server.psql(&database, held) == "1");
        for _ in 0..3 {
            exporter.next_scrape("main");
            // On a busy machine a collection of a second may be late as a whole, too.
            let scrape = exporter.scrape_until("only the sequences are missing", |scrape| {
                scrape.up("main") == Some(1.0) && down(scrape, "main") == ["sequences locked"]
            });
            assert!(scrape.one("opsd_postgres_oldest_transaction_timestamp_seconds", &[]).is_some());
            assert_eq!(server.psql(&database, &sessions), "1");
        }
        let run = opsd.run(&["check"]).expect_code(3);
        assert!(run.stdout.contains("no sequences, locked"), "{run}");
        exporter.until_alerts(&["OpsdPieceFailing{concern=sequences}"]);
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%''the holder''%'
                   AND pid <> pg_backend_pid()";
        server.psql(&database, end);
        assert!(holder.join().unwrap().is_err());
    });
    let scrape = exporter.scrape_until("the lock is gone", |scrape| down(scrape, "main").is_empty());
    assert_eq!(scrape.one("opsd_monitor_concern_up", &["concern=\"sequences\""]), Some(1.0));
    drop(exporter);
    server.drop_database(&database);
}

#[test]
fn an_archive_that_takes_nothing_is_failing_until_it_does() {
    let settings = [("archive_mode", "on"), ("archive_command", "false")];
    let server =
        Server::start(postgres::default_major(), &Options { settings: &settings, ..Options::default() });
    let mut opsd = site(&server);
    let exporter = watched(&mut opsd, "");
    let is = |wanted: &'static str| {
        move |scrape: &Scrape| scrape.state("opsd_postgres_archiver_state", &[]).as_deref() == Some(wanted)
    };
    exporter.scrape_until("nothing was tried yet", is("working"));
    server.psql("postgres", "CREATE TABLE t (); SELECT pg_switch_wal()");
    let scrape = exporter.scrape_until("it failed", is("failing"));
    assert!(scrape.one("opsd_postgres_archive_failures_total", &[]) >= Some(1.0), "{}", scrape.text);
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("postgres_archiver_state is failing"), "{run}");
    exporter.until_alerts(&["PostgresArchiverFailing{monitor=main}"]);
    server.psql("postgres", "ALTER SYSTEM SET archive_command = 'true'");
    server.psql("postgres", "SELECT pg_reload_conf()");
    exporter.scrape_until("it works again", is("working"));
    exporter.until_over(&["PostgresArchiverFailing"]);
    opsd.ok(&["check"]);
}

#[test]
fn a_full_server_is_still_watched_and_the_newcomer_says_why_not() {
    let settings = [("max_connections", "12"), ("max_wal_senders", "2")];
    let server =
        Server::start(postgres::default_major(), &Options { settings: &settings, ..Options::default() });
    server.psql("postgres", "CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher; CREATE ROLE app LOGIN");
    let mut opsd = Opsd::without_server();
    opsd.more = postgres_monitor("main", &server.socket_url("watcher", "postgres"), "");
    let exporter = watched(&mut opsd, "");
    exporter.scrape_until("the first collection", |scrape| scrape.up("main") == Some(1.0));
    let runtime = Runtime::new().unwrap();
    let clients = runtime.block_on(async {
        let mut clients = Vec::new();
        loop {
            let mut config = tokio_postgres::Config::new();
            config.host_path(server.socket_dir()).port(server.port).user("app").dbname("postgres");
            match config.connect(tokio_postgres::NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    clients.push(client);
                }
                Err(error) => {
                    assert_eq!(error.code().unwrap().code(), "53300", "{error}");
                    return clients;
                }
            }
        }
    });
    assert_eq!(clients.len(), 8);
    let scrape = exporter.next_scrape("main");
    assert_eq!(scrape.up("main"), Some(1.0));
    assert_eq!(scrape.one("opsd_postgres_connections_usable", &[]), Some(9.0));
    assert_eq!(scrape.one("opsd_postgres_connections_used_ratio", &[]), Some(1.0));
    assert_eq!(scrape.one("opsd_postgres_connections", &["state=\"idle\""]), Some(8.0));
    let run = opsd.run(&["check", "--json"]).expect_code(2);
    assert_eq!(run.json()["monitors"][0]["reason"], "too_many_connections", "{run}");
    exporter.until_alerts(&["PostgresConnectionsHigh", "PostgresConnectionsExhausted"]);
    drop(clients);
    opsd.ok(&["check"]);
}

#[test]
fn a_restarted_server_is_down_and_up_again() {
    let mut server = Server::start(postgres::default_major(), &Options::default());
    let mut opsd = site(&server);
    let exporter = watched(&mut opsd, "");
    let before = exporter.scrape_until("up", |scrape| scrape.up("main") == Some(1.0));
    server.crash(Signal::QUIT);
    let scrape = exporter.scrape_until("down", |scrape| scrape.up("main") == Some(0.0));
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("main: down, unreachable"), "{run}");
    exporter.until_alerts(&["PostgresDown"]);
    // The last good figures are served for a while, with the time that they are of; then they are gone.
    assert!(scrape.one("opsd_monitor_collected_timestamp_seconds", &[]).is_some());
    let scrape = exporter.scrape_until("stale figures vanish", |scrape| {
        scrape.of("opsd_postgres_server_info", &[]).is_empty()
    });
    assert_eq!(scrape.one("opsd_monitor_collected_timestamp_seconds", &[]), None);
    assert_eq!(scrape.up("main"), Some(0.0));
    server.restart();
    let after = exporter.scrape_until("up again", |scrape| scrape.up("main") == Some(1.0));
    let started = |scrape: &Scrape| scrape.one("opsd_postgres_start_timestamp_seconds", &[]).unwrap();
    assert!(started(&after) > started(&before));
    opsd.ok(&["check"]);
    exporter.until_over(&["PostgresDown"]);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'opsd monitor'";
    assert_eq!(server.psql("postgres", sessions), "1");
}

#[test]
fn a_stopped_server_is_a_timeout_and_the_page_is_there() {
    let server = Server::start(postgres::default_major(), &Options::default());
    let mut opsd = site(&server);
    let exporter = Exporter::start(&mut opsd, "");
    exporter.scrape_until("up", |scrape| scrape.up("main") == Some(1.0));
    let find = "SELECT pid FROM pg_stat_activity WHERE application_name = 'opsd monitor'";
    let backend: i32 = server.psql("postgres", find).parse().unwrap();
    let signal = |signal| {
        let pid = rustix::process::Pid::from_raw(backend).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    };
    // Its backend says nothing any more, as a machine does that hangs. The next collection has another.
    signal(Signal::STOP);
    let reason = ["reason=\"timeout\""];
    exporter.scrape_until("the timeout", |s| s.one("opsd_monitor_failures_total", &reason) >= Some(1.0));
    exporter.scrape_until("up again", |scrape| scrape.up("main") == Some(1.0));
    signal(Signal::CONT);
    until("the one that was given up is gone", || {
        server.psql("postgres", &format!("{find} AND pid = {backend}")).is_empty()
    });
    assert_eq!(exporter.scrape().one("opsd_monitor_failures_total", &reason), Some(1.0));
}

#[test]
fn a_rotated_password_is_named_and_not_shown() {
    let server = postgres::default_server();
    let role = postgres::unique("rotated");
    let sql = |text: &str| server.psql("postgres", &text.replace("$role", &identifier(&role)));
    sql("CREATE ROLE $role LOGIN PASSWORD 'f1rstsecret'; GRANT pg_monitor TO $role");
    let mut opsd = Opsd::without_server();
    let url = format!("postgres://{role}:${{PASSWORD}}@127.0.0.1:{}/postgres", server.port);
    opsd.more = postgres_monitor("main", &url, "");
    opsd.env("PASSWORD", "f1rstsecret");
    let exporter = watched(&mut opsd, "");
    exporter.scrape_until("up", |scrape| scrape.up("main") == Some(1.0));
    // Whoever is connected stays so; the next connection is refused.
    sql("ALTER ROLE $role PASSWORD 's3condsecret'");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ";
    server.psql("postgres", &format!("{end}{}", literal(&role)));
    let refused = ["reason=\"authentication\""];
    let scrape = exporter.scrape_until("the refusal", |scrape| {
        scrape.up("main") == Some(0.0)
            && scrape.one("opsd_monitor_failures_total", &refused).is_some_and(|count| count >= 1.0)
    });
    let run = opsd.run(&["check", "--json"]).expect_code(2);
    assert_eq!(run.json()["monitors"][0]["reason"], "authentication", "{run}");
    exporter.until_alerts(&["PostgresDown"]);
    let (_, said) = exporter.stop();
    for text in [&scrape.text, &run.stdout, &run.stderr, &said] {
        assert!(!text.contains("f1rstsecret"), "{text}");
    }
    opsd.env("PASSWORD", "s3condsecret");
    opsd.ok(&["check"]);
    sql("DROP ROLE $role");
}
