//! Watching for a long time and much: connections, visits, locks, memory, and passwords that change
//! meanwhile.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::exporter::{Exporter, Scrape, collected, postgres_monitor};
use crate::support::opsd::{Opsd, quoted, quoted_list, write_private};
use crate::support::postgres::{self, SUPERUSER};
use crate::support::processes::until;
use crate::support::redis::{Redis, Software};
use crate::support::torture::rounds;

fn collections(scrape: &Scrape) -> f64 {
    scrape.of("opsd_monitor_collections_total", &[]).iter().map(|(_, count)| count).sum()
}

/// Twelve databases: more than a collection visits twice.
#[test]
fn databases_are_visited_in_turn() {
    let server = postgres::default_server();
    let names: Vec<String> = (0..12).map(|_| server.fresh_database("turn")).collect();
    for name in &names {
        server.psql(name, "CREATE SEQUENCE s MAXVALUE 100; SELECT setval('s', 11)");
    }
    let mut opsd = Opsd::without_server();
    opsd.more = format!(
        "[postgres.main]\nurl = {}\n[monitor.main]\npostgres = \"main\"\ndatabases = {}\ninterval = \"1s\"\n",
        quoted(&server.socket_url(SUPERUSER, "postgres")),
        quoted_list(&names)
    );
    let exporter = Exporter::start(&mut opsd, "");
    let used = |scrape: &Scrape, name: &str| {
        let database = format!("database=\"{name}\"");
        scrape.one("opsd_postgres_sequence_used_ratio", &[&database])
    };
    let all = |value: f64| {
        let names = &names;
        move |scrape: &Scrape| names.iter().all(|name| used(scrape, name) == Some(value))
    };
    // On a busy machine one collection has no time for all of them.
    exporter.scrape_until("every database is known", all(10.0 / 99.0));
    for name in &names {
        server.psql(name, "SELECT setval('s', 100)");
    }
    let before = collections(&exporter.scrape());
    let is_up =
        |scrape: &Scrape| scrape.one("opsd_monitor_concern_up", &["concern=\"sequences\""]) == Some(1.0);
    let after =
        exporter.scrape_until("every database had a turn", |scrape| all(1.0)(scrape) && is_up(scrape));
    // The one under way, one that visits ten, and one that visits two and eight others.
    assert!(collections(&after) >= before + 1.0, "{}", after.text);

    // One that is gone takes the concern down at its turn, its figures with it, and nobody else.
    server.drop_database(&names[3]);
    exporter.scrape_until("it is gone, and nobody else", |scrape| {
        used(scrape, &names[3]).is_none()
            && !is_up(scrape)
            && scrape.of("opsd_postgres_sequence_used_ratio", &[]).len() == 11
    });
    exporter.stop();
    for name in names.iter().filter(|name| **name != names[3]) {
        server.drop_database(name);
    }
}

/// A session for a locked database would wait where no timeout of the server's reaches it.
#[test]
fn a_locked_database_costs_only_itself() {
    let server = postgres::default_server();
    let names: Vec<String> = (0..2).map(|_| server.fresh_database("locked")).collect();
    for name in &names {
        server.psql(name, "CREATE SEQUENCE s MAXVALUE 100; SELECT setval('s', 11)");
    }
    let role = postgres::unique("visitor");
    server.psql("postgres", &format!("CREATE ROLE {role} LOGIN SUPERUSER"));
    let mut psql = server.client("psql");
    let rename = format!("BEGIN; ALTER DATABASE {} RENAME TO {}_renamed;\n", names[0], names[0]);
    let mut holder = psql.arg("postgres").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    holder.stdin.as_mut().unwrap().write_all(rename.as_bytes()).unwrap();
    let locked = format!(
        "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND locktype = 'object'
            AND objid = (SELECT oid FROM pg_database WHERE datname = '{}')",
        names[0]
    );
    until("the database is locked", || server.psql("postgres", &locked) == "1");
    let mut opsd = Opsd::without_server();
    let more = format!("databases = {}", quoted_list(&names));
    opsd.more = postgres_monitor("main", &server.socket_url(&role, "postgres"), &more);
    let exporter = Exporter::start(&mut opsd, "");
    let reason = ["concern=\"sequences\"", "reason=\"locked\""];
    let seen = |scrape: &Scrape| scrape.one("opsd_monitor_concern_failure", &reason) == Some(1.0);
    // A busy machine may not come to the other one in the first of its collections.
    exporter.scrape_until("it is seen, and the other one read", |scrape| {
        seen(scrape)
            && scrape.up("main") == Some(1.0)
            && scrape.of("opsd_postgres_sequence_used_ratio", &[]).len() == 1
    });
    let scrape = exporter.scrape_until("more collections", |scrape| collections(scrape) >= 4.0);
    assert_eq!(scrape.one("opsd_monitor_failures_total", &["reason=\"timeout\""]), Some(0.0));
    // Rolled back.
    drop(holder.stdin.take());
    holder.wait().unwrap();
    exporter.scrape_until("it is visited again", |scrape| {
        scrape.of("opsd_postgres_sequence_used_ratio", &[]).len() == 2 && !seen(scrape)
    });
    exporter.stop();
    names.iter().for_each(|name| server.drop_database(name));
    server.psql("postgres", &format!("DROP ROLE {role}"));
}

/// Each is locked to the end of the statement that reads it.
#[test]
fn sequences_are_read_page_by_page() {
    let server = postgres::default_server();
    let database = server.fresh_database("sequences");
    server.psql(
        &database,
        "DO $$ BEGIN FOR i IN 1..1200 LOOP EXECUTE format('CREATE SEQUENCE s%s MAXVALUE 1000', i); END LOOP; END $$;
         SELECT setval('s1', 991); SELECT setval('s600', 992); SELECT setval('s1200', 993)",
    );
    let mut opsd = Opsd::without_server();
    opsd.more = postgres_monitor("main", &server.socket_url(SUPERUSER, &database), "");
    opsd.more = opsd.more.replace("\"1s\"", "\"30s\"");
    let scrape = collected(&opsd);
    let used =
        |name: &str| scrape.one("opsd_postgres_sequence_used_ratio", &[&format!("sequence=\"{name}\"")]);
    assert_eq!(["s1", "s600", "s1200"].map(used), [990.0, 991.0, 992.0].map(|n| Some(n / 999.0)));
    assert_eq!(scrape.one("opsd_postgres_sequences_unreadable", &[]), Some(0.0));
    server.drop_database(&database);
}

/// A server that takes connections and says nothing may have a process for each of them, which never
/// learns that nobody waits any more.
#[test]
fn a_server_that_hangs_is_not_asked_each_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicU64::new(0));
    let count = accepted.clone();
    // Ends with the tests.
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
            held.push(stream);
        }
    });
    let mut opsd = Opsd::without_server();
    opsd.more = postgres_monitor("main", &format!("postgres://u@127.0.0.1:{port}/db?sslmode=disable"), "");
    let exporter = Exporter::start(&mut opsd, "");
    // It is asked at the first, second, fourth, eighth and sixteenth collection.
    let scrape = exporter.scrape_until("nine collections", |scrape| collections(scrape) >= 9.0);
    assert!(collections(&scrape) < 15.0, "{}", scrape.text);
    assert_eq!(accepted.load(Ordering::SeqCst), 4, "{}", scrape.text);
    let failures = scrape.one("opsd_monitor_failures_total", &["monitor=\"main\"", "reason=\"timeout\""]);
    assert_eq!(failures, Some(collections(&scrape)), "{}", scrape.text);
}

#[test]
fn a_new_password_in_the_password_file_needs_no_restart() {
    let server = postgres::default_server();
    let role = postgres::unique("renewed");
    let sql = |text: &str| server.psql("postgres", &text.replace("$role", &role));
    sql("CREATE ROLE $role LOGIN PASSWORD 'first'; GRANT pg_monitor TO $role");
    let mut opsd = Opsd::without_server();
    opsd.more = postgres_monitor("main", &server.url(&role, "postgres"), "");
    let file = opsd.path("pgpass");
    opsd.env("PGPASSFILE", &file);
    write_private(&file, &format!("*:*:*:{role}:first\n"));
    let exporter = Exporter::start(&mut opsd, "");
    exporter.scrape_until("up", |scrape| scrape.up("main") == Some(1.0));
    sql("ALTER ROLE $role PASSWORD 'second'");
    sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '$role'");
    exporter.scrape_until("down", |scrape| scrape.up("main") == Some(0.0));
    write_private(&file, &format!("*:*:*:{role}:second\n"));
    exporter.scrape_until("up again", |scrape| scrape.up("main") == Some(1.0));
    exporter.stop();
    sql("DROP ROLE $role");
}

/// 10,000 collections in `make torture`.
#[test]
fn many_collections_leave_memory_and_connections_as_they_were() {
    let wanted = rounds(200, 10_000) as f64;
    let server = postgres::default_server();
    let roles = [postgres::unique("one"), postgres::unique("two")];
    let stores = [Redis::start(Software::Redis, &[]), Redis::start(Software::Valkey, &[])];
    let mut opsd = Opsd::without_server();
    for role in &roles {
        server.psql("postgres", &format!("CREATE ROLE {role} LOGIN; GRANT pg_monitor TO {role}"));
        let url = quoted(&server.socket_url(role, "postgres"));
        let _ = write!(
            opsd.more,
            "[postgres.{role}]\nurl = {url}\n[monitor.{role}]\npostgres = \"{role}\"\ninterval = \"1s\"\n"
        );
    }
    for (i, store) in stores.iter().enumerate() {
        let _ = write!(
            opsd.more,
            "[redis.r{i}]\nurl = {}\n[monitor.r{i}]\nredis = \"r{i}\"\ninterval = \"1s\"\n",
            quoted(&store.url(0))
        );
    }
    for i in 0..10 {
        stores[i % 2].push(&format!("queue:q{i}"), 10, "{\"enqueued_at\":1790000000.5,\"n\":", "}");
        let _ = write!(
            opsd.more,
            "[monitor.q{i}]\nqueue = {{ kind = \"sidekiq\", redis = \"r{}\", queues = [\"q{i}\"] }}\ninterval = \"1s\"\n",
            i % 2
        );
    }
    let exporter = Exporter::start(&mut opsd, "");
    let resident = || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", exporter.pid().as_raw_pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap()
    };
    let sessions = |role: &str| {
        server.psql("postgres", &format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'"))
    };
    let mut memory = Vec::new();
    let mut scrape = exporter.scrape();
    while collections(&scrape) < wanted {
        let next = collections(&scrape) + 20.0;
        scrape = exporter.scrape_until("twenty more", |scrape| collections(scrape) >= next);
        memory.push(resident());
        for role in &roles {
            assert!(sessions(role).parse::<u32>().unwrap() <= 1, "{role} has several sessions");
        }
    }
    // By then everything has been needed once.
    let before = memory[memory.len() / 5];
    let most = memory.iter().copied().fold(0.0, f64::max);
    assert!(most <= before * 1.1 + 1024.0, "memory grew from {before} kB to {most} kB");
    let up = scrape.of("opsd_monitor_up", &[]);
    assert!(up.len() == 14 && up.iter().all(|(_, up)| *up == 1.0), "{}", scrape.text);
    exporter.stop();
    for role in roles {
        server.psql("postgres", &format!("DROP ROLE {role}"));
    }
}
