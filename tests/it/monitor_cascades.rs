//! Verdicts where servers look alike: a cascade whose levels share one name, slots that nobody reads, streams that are
//! no standbys, and a standby that is late on purpose.

use std::process::Stdio;

use tokio::runtime::Runtime;

use crate::support::exporter::{Exporter, Scrape, collected, postgres_monitor, site};
use crate::support::opsd::Opsd;
use crate::support::postgres::{self, MAJORS, Options, SUPERUSER, Server, is_installed, literal};
use crate::support::postgres_proxy::PostgresProxy;
use crate::support::processes::until;
use crate::support::torture::torture;

const STATE: &str = "opsd_postgres_replication_state";

/// What Debian calls every cluster of this major, and so every standby that has no other name.
const NAME: &str = "main";

/// The verdict of a monitor on a standby, whose client is given where the monitor is the sender.
fn verdict(scrape: &Scrape, monitor: &str, standby: &str, client: &str) -> String {
    let labels =
        [format!("monitor=\"{monitor}\""), format!("standby=\"{standby}\""), format!("client=\"{client}\"")];
    scrape.state(STATE, &labels.each_ref().map(String::as_str)).unwrap_or_default()
}

/// A standby of this server that has no slot and the name that all have, by this way.
fn nameless(of: &Server, conninfo: &str) -> Server {
    let standby = of.standby(&[("cluster_name", NAME), ("hot_standby_feedback", "on")]);
    let change = format!("ALTER SYSTEM SET primary_conninfo = {}", literal(conninfo));
    standby.psql("postgres", &change);
    standby.psql("postgres", "ALTER SYSTEM SET primary_slot_name = ''");
    standby.psql("postgres", "SELECT pg_reload_conf()");
    let named = format!(
        "SELECT count(*) > 0 FROM pg_stat_replication WHERE application_name = {} AND state = 'streaming'
          AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE active)",
        literal(NAME)
    );
    until("it streams without its slot", || of.psql("postgres", &named) == "t");
    of.psql("postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    standby
}

#[test]
fn in_a_cascade_of_one_name_each_pair_has_its_own_verdict() {
    let hba = ["host replication all 127.0.0.1/32 trust"];
    // Whoever copies a standby needs whole pages.
    let settings = [("cluster_name", NAME), ("full_page_writes", "on")];
    let options = Options { hba: &hba, settings: &settings, ..Options::default() };
    let primary = Server::start(postgres::default_major(), &options);
    // A standby knows no such isolation, and refused every statement of a session that asked for it.
    primary.psql("postgres", "CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher");
    primary.psql("postgres", "ALTER ROLE watcher SET default_transaction_isolation = 'serializable'");
    let here = |server: &Server| {
        format!("host={} port={} user={SUPERUSER}", server.socket_dir().display(), server.port)
    };
    let first = nameless(&primary, &here(&primary));
    let runtime = Runtime::new().unwrap();
    let proxy = runtime.block_on(PostgresProxy::start(first.port));
    let second = nameless(&first, &format!("host=127.0.0.1 port={} user={SUPERUSER}", proxy.port));
    let mut opsd = Opsd::without_server();
    let monitor = |name: &str, server: &Server| {
        postgres_monitor(name, &server.socket_url("watcher", "postgres"), "").replace("\"1s\"", "\"2s\"")
    };
    for (name, server) in [("main", &primary), ("first", &first), ("second", &second)] {
        opsd.more.push_str(&monitor(name, server));
    }
    let exporter = Exporter::start(&mut opsd, "");
    // Of the primary on the first, of the first on itself, of the first on the second, and of the second on itself.
    let all = |scrape: &Scrape| {
        [("main", "local"), ("first", ""), ("first", "127.0.0.1"), ("second", "")]
            .map(|(monitor, client)| verdict(scrape, monitor, NAME, client))
    };
    let idle = "source_idle";
    exporter.scrape_until("all is well", |scrape| all(scrape) == [idle; 4]);

    // The second is paused: that is said by it, and by the server that sends to it.
    second.psql("postgres", "SELECT pg_wal_replay_pause()");
    exporter.scrape_until("it is paused", |scrape| all(scrape) == [idle, idle, "paused", "paused"]);
    second.psql("postgres", "SELECT pg_wal_replay_resume()");
    exporter.scrape_until("all is well again", |scrape| all(scrape) == [idle; 4]);

    // The first is a server in recovery. A slot there is its cluster manager's, and no standby that is away.
    first.psql("postgres", "SELECT pg_create_physical_replication_slot('member', true)");
    proxy.refuse(true);
    proxy.cut();
    exporter.scrape_until("its link is cut", |scrape| all(scrape) == [idle, idle, "", "link_cut"]);
    for _ in 0..2 {
        let scrape = exporter.next_scrape("main");
        // On a busy machine a collection may be late, and then it says nothing.
        let found = all(&scrape);
        let is_well = |state: &String| ["", "source_idle", "caught_up"].contains(&state.as_str());
        assert!(found[..3].iter().all(is_well), "{found:?}\n{}", scrape.text);
        assert!(["", "link_cut"].contains(&found[3].as_str()), "{found:?}\n{}", scrape.text);
        assert_eq!(verdict(&scrape, "first", "member", ""), "", "{}", scrape.text);
    }
    // Looked at once, it is the same.
    let run = opsd.run(&["check", "main", "first", "second"]).expect_code(2);
    assert!(run.stdout.contains("second: postgres_replication_state is link_cut"), "{run}");
    assert_eq!(run.stdout.matches("link_cut (").count(), 1, "{run}");
    proxy.refuse(false);
    exporter.scrape_until("all is well once more", |scrape| all(scrape) == [idle; 4]);

    // A slot of the primary that nobody reads and somebody moves on is no standby either.
    primary.psql("postgres", "SELECT pg_create_physical_replication_slot('kept', true)");
    exporter.scrape_until("nobody reads it", |scrape| verdict(scrape, "main", "kept", "") == "link_cut");
    primary.psql("postgres", "CREATE TABLE t (id int)");
    let advance = "INSERT INTO t VALUES (1);
                   SELECT pg_replication_slot_advance('kept', pg_current_wal_flush_lsn())";
    exporter.scrape_until("it moves", |scrape| {
        primary.psql("postgres", advance);
        verdict(scrape, "main", "kept", "") != "link_cut"
    });
    // The one who moved it may be gone with it. A move that comes with much WAL is a move.
    exporter.next_scrape("main");
    primary.psql("postgres", "INSERT INTO t SELECT generate_series(1, 500000)");
    exporter.scrape_until("it is left behind", |scrape| verdict(scrape, "main", "kept", "") == "link_cut");
    primary.psql("postgres", "SELECT pg_drop_replication_slot('kept')");

    // A standby that is late on purpose says so at both ends, and is no alarm.
    second.psql("postgres", "ALTER SYSTEM SET recovery_min_apply_delay = '1h'");
    second.psql("postgres", "SELECT pg_reload_conf()");
    exporter.scrape_until("it has the setting", |scrape| {
        scrape.one("opsd_postgres_replay_delay_seconds", &["monitor=\"second\""]) == Some(3600.0)
    });
    // Its first commit waits, and all that comes after it.
    primary.psql("postgres", "INSERT INTO t VALUES (1)");
    primary.psql("postgres", "INSERT INTO t SELECT generate_series(1, 100000)");
    exporter.scrape_until("it is late", |scrape| {
        all(scrape)[2..] == ["delayed", "delayed"]
            && scrape.one("opsd_postgres_standby_replay_lag_bytes", &["monitor=\"first\""]) > Some(2e6)
    });
    let bound = "[monitor.first.thresholds]\nopsd_postgres_standby_replay_lag_bytes = { critical = 1e6 }\n";
    let before = opsd.more.len();
    opsd.more.push_str(bound);
    opsd.ok(&["check", "first", "second"]);
    opsd.more.truncate(before);
    second.psql("postgres", "ALTER SYSTEM RESET recovery_min_apply_delay");
    second.psql("postgres", "SELECT pg_reload_conf()");

    // A twin of the first: one name, one address, and two standbys all the same.
    let twin = nameless(&primary, &here(&primary));
    let twins = |scrape: &Scrape| ["local", "local#2"].map(|client| verdict(scrape, "main", NAME, client));
    exporter.scrape_until("there are two", |scrape| twins(scrape) == [idle; 2]);
    opsd.more.push_str(&monitor("twin", &twin));
    drop(exporter);
    let exporter = Exporter::start(&mut opsd, "");
    twin.psql("postgres", "SELECT pg_wal_replay_pause()");
    let scrape = exporter.scrape_until("one is paused", |scrape| {
        verdict(scrape, "twin", NAME, "") == "paused" && twins(scrape) == [idle, "paused"]
    });
    assert_ne!(all(&scrape)[1], "paused", "{}", scrape.text);
    let dropped = scrape.of("opsd_monitor_series_dropped_total", &[]);
    assert!(dropped.iter().all(|(_, count)| *count == 0.0), "{dropped:?}");
    drop(exporter);
    runtime.block_on(async { drop(proxy) });
}

/// What `pg_basebackup` and `pg_receivewal` open reads WAL and replays none.
#[test]
fn the_stream_of_a_base_backup_is_no_standby() {
    // Its own: a base backup whose client is gone keeps DROP DATABASE waiting there.
    let primary = &Server::start(postgres::default_major(), &Options::default());
    let directory = primary.subdirectory(&postgres::unique("copy"));
    let mut copy = primary.client("pg_basebackup");
    copy.args(["--no-slot", "-X", "stream", "-c", "fast", "--max-rate=32", "-U", SUPERUSER, "-D"]);
    copy.arg(directory.join("data"))
        .arg("-h")
        .arg(primary.socket_dir())
        .args(["-p", &primary.port.to_string()]);
    let mut copy = copy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let there = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pg_basebackup'
                    AND state = 'streaming'";
    until("it streams", || primary.psql("postgres", there) == "1");
    let scrape = collected(&site(primary));
    let _ = copy.kill();
    let _ = copy.wait();
    assert_eq!(scrape.up("main"), Some(1.0));
    assert_eq!(scrape.of(STATE, &["standby=\"pg_basebackup\""]), [], "{}", scrape.text);
}

/// A logical slot that nobody reads keeps WAL and old rows; a subscription that is off looks healthy on its own side.
#[test]
fn a_logical_slot_and_a_subscription_that_stand_still_are_seen_at_both_ends() {
    for major in if torture() { &MAJORS[..] } else { &[14, 18] }.iter().filter(|major| is_installed(**major))
    {
        // Its own: whoever else checks a shared server would be told of the slot.
        let server = &Server::start(*major, &Options::default());
        let [from, to] = ["publisher", "subscriber"].map(|name| server.fresh_database(name));
        let slot = postgres::unique("feed");
        server.psql(&from, "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t");
        server.psql(
            &from,
            &format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput')", literal(&slot)),
        );
        let conninfo = format!(
            "host={} port={} user={SUPERUSER} dbname={from}",
            server.socket_dir().display(),
            server.port
        );
        server.psql(&to, "CREATE TABLE t (id int PRIMARY KEY)");
        let create = format!(
            "CREATE SUBSCRIPTION {slot} CONNECTION {} PUBLICATION p WITH (create_slot = false)",
            literal(&conninfo)
        );
        server.psql(&to, &create);
        let active = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE active AND slot_name = {}",
            literal(&slot)
        );
        until("it is read", || server.psql("postgres", &active) == "1");
        let mut opsd = Opsd::without_server();
        opsd.more = postgres_monitor("main", &server.socket_url(SUPERUSER, &from), "");
        let (subscription, of_slot) = (format!("subscription=\"{slot}\""), format!("slot=\"{slot}\""));
        let states = |scrape: &Scrape| {
            [
                scrape.state("opsd_postgres_logical_slot_state", &[&of_slot]),
                scrape.state("opsd_postgres_subscription_state", &[&subscription]),
            ]
            .map(Option::unwrap_or_default)
        };
        until("it streams", || states(&collected(&opsd)) == ["active", "running"]);
        let scrape = collected(&opsd);
        let heard = scrape.one("opsd_postgres_subscription_message_timestamp_seconds", &[&subscription]);
        assert!(heard > Some(1e9), "{}", scrape.text);

        server.psql(&to, &format!("ALTER SUBSCRIPTION {slot} DISABLE"));
        until("nobody reads it", || states(&collected(&opsd)) == ["inactive", "disabled"]);
        let run = opsd.run(&["check"]).expect_code(1);
        for said in ["postgres_logical_slot_state is inactive", "postgres_subscription_state is disabled"] {
            assert!(run.stdout.contains(said) && run.stdout.contains(&slot), "{run}");
        }
        // It is on, and what it is sent cannot be applied: its worker comes and goes.
        server.psql(&from, "INSERT INTO t VALUES (1)");
        server.psql(&to, "INSERT INTO t VALUES (1)");
        server.psql(&to, &format!("ALTER SUBSCRIPTION {slot} ENABLE"));
        until("it cannot apply", || {
            let scrape = collected(&opsd);
            let errors = scrape.one("opsd_postgres_subscription_errors_total", &[&subscription]);
            states(&scrape)[1] == "not_running" && (errors >= Some(1.0) || server.major < 15)
        });
    }
}
