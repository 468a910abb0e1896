//! Verdicts on standbys that are out of the ordinary: one that reads the archive, and two that nobody gave a
//! name.

use std::process::Stdio;

use rustix::process::Signal;

use crate::support::exporter::{Exporter, Scrape, collected, postgres_monitor, site};
use crate::support::postgres::{self, Options, SUPERUSER, Server, literal};
use crate::support::processes::until;

fn verdict(scrape: &Scrape, monitor: &str, client: &str) -> Option<String> {
    let labels = [format!("monitor=\"{monitor}\""), format!("client=\"{client}\"")];
    scrape.state("opsd_postgres_replication_state", &labels.each_ref().map(String::as_str))
}

/// As long as the archive has WAL, a standby does not even try to connect. Nothing is cut then.
#[test]
fn a_standby_that_reads_the_archive_is_replaying_until_it_streams() {
    let settings = [("archive_mode", "on"), ("archive_timeout", "0")];
    let segments = Options { settings: &settings, initdb: &["--wal-segsize=1"], ..Options::default() };
    let primary = Server::start(postgres::default_major(), &segments);
    let archive = primary.subdirectory("archive").display().to_string();
    let command = format!("ALTER SYSTEM SET archive_command = {}", literal(&format!("cp %p {archive}/%f")));
    primary.psql("postgres", &command);
    primary.psql("postgres", "SELECT pg_reload_conf()");
    // One segment after the other, so that several collections see it.
    let restore = format!("sleep 0.3; cp {archive}/%f %p");
    let mut standby = primary.standby(&[("restore_command", &restore)]);
    let mut opsd = site(&primary);
    opsd.more.push_str(&postgres_monitor("standby", &standby.socket_url(SUPERUSER, "postgres"), ""));
    let exporter = Exporter::start(&mut opsd, "");
    let both = |scrape: &Scrape| {
        let at_primary = scrape.state("opsd_postgres_replication_state", &["monitor=\"main\""]);
        [at_primary, verdict(scrape, "standby", "")].map(Option::unwrap_or_default)
    };
    exporter.scrape_until("it streams", |scrape| both(scrape) == ["source_idle", "source_idle"]);

    standby.crash(Signal::QUIT);
    primary.psql("postgres", "CREATE TABLE t (id int)");
    for _ in 0..40 {
        primary.psql("postgres", "INSERT INTO t SELECT generate_series(1, 1000); SELECT pg_switch_wal()");
    }
    let archived = "SELECT archived_count >= 40 FROM pg_stat_archiver";
    until("all is in the archive", || primary.psql("postgres", archived) == "t");
    exporter.scrape_until("it is away", |scrape| both(scrape) == ["link_cut", ""]);
    standby.restart();
    exporter.scrape_until("it reads the archive", |scrape| {
        both(scrape) == ["replaying", "replaying"]
            && scrape.one("opsd_postgres_receiver_up", &[]) == Some(0.0)
    });
    let scrape = exporter
        .scrape_until("it streams again", |scrape| scrape.one("opsd_postgres_receiver_up", &[]) == Some(1.0));
    let position = |metric: &str| scrape.one(metric, &[]).unwrap();
    assert!(
        position("opsd_postgres_received_position_bytes")
            >= position("opsd_postgres_replayed_position_bytes")
    );
    exporter.scrape_until("it is over", |scrape| both(scrape) == ["source_idle", "source_idle"]);
}

/// Both are called `walreceiver`; only where they connect from tells them apart.
#[test]
fn two_standbys_of_one_name_are_judged_apart() {
    let hba = ["host replication all 127.0.0.1/32 trust"];
    let primary = Server::start(postgres::default_major(), &Options { hba: &hba, ..Options::default() });
    let standbys = [primary.standby(&[]), primary.standby(&[])];
    let hosts = ["127.0.0.1", primary.socket_dir().to_str().unwrap()];
    for (standby, host) in standbys.iter().zip(hosts) {
        let conninfo = format!("host={host} port={} user={SUPERUSER}", primary.port);
        let change = format!("ALTER SYSTEM SET primary_conninfo = {}", literal(&conninfo));
        standby.psql("postgres", &change);
        standby.psql("postgres", "ALTER SYSTEM SET primary_slot_name = ''");
        standby.psql("postgres", "SELECT pg_reload_conf()");
    }
    let unnamed = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walreceiver'
                      AND state = 'streaming' AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE active)";
    until("neither uses its slot", || primary.psql("postgres", unnamed) == "2");
    primary.psql("postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    let mut opsd = site(&primary);
    for (name, standby) in ["tcp", "local"].iter().zip(&standbys) {
        opsd.more.push_str(&postgres_monitor(name, &standby.socket_url(SUPERUSER, "postgres"), ""));
    }
    let exporter = Exporter::start(&mut opsd, "");
    let all = |scrape: &Scrape| {
        [("main", "127.0.0.1"), ("main", "local"), ("tcp", ""), ("local", "")]
            .map(|(monitor, client)| verdict(scrape, monitor, client).unwrap_or_default())
    };
    exporter.scrape_until("all is well", |scrape| all(scrape) == ["source_idle"; 4]);

    // One is paused: the primary hears which one, and the other does not hear of it.
    standbys[1].psql("postgres", "SELECT pg_wal_replay_pause()");
    let idle = "source_idle";
    exporter.scrape_until("one is paused", |scrape| all(scrape) == [idle, "paused", idle, "paused"]);
    primary.psql("postgres", "CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)");
    standbys[0].catch_up(&primary);
    exporter.scrape_until("and stays so", |scrape| all(scrape) == [idle, "paused", idle, "paused"]);
    standbys[1].psql("postgres", "SELECT pg_wal_replay_resume()");
    standbys[1].catch_up(&primary);
    exporter.scrape_until("all is well again", |scrape| all(scrape) == [idle; 4]);
}

/// A standby that connects again has, for a moment, a connection without its slot beside a slot without a
/// reader: the pair had two verdicts, and a standby appeared that never was.
#[test]
fn a_connection_that_has_not_asked_for_wal_yet_is_no_standby() {
    let primary = postgres::default_server();
    let conninfo = format!(
        "host={} port={} user={SUPERUSER} dbname=postgres replication=1 application_name=visitor",
        primary.socket_dir().display(),
        primary.port
    );
    let mut visitor = primary.client("psql");
    visitor.arg(conninfo).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut visitor = visitor.spawn().expect("start psql");
    let there =
        "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'visitor' AND state = 'startup'";
    until("it is connected", || primary.psql("postgres", there) == "1");
    let scrape = collected(&site(primary));
    assert_eq!(scrape.up("main"), Some(1.0));
    assert!(!scrape.text.contains("visitor"), "{}", scrape.text);
    drop(visitor.stdin.take());
    assert!(visitor.wait().expect("wait").success());
}
