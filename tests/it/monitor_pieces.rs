//! Each piece of a PostgreSQL monitor fails alone, on servers that withhold, raise or name things oddly.

use crate::postgres::fake;
use crate::support::exporter::{Scrape, collected, postgres_monitor};
use crate::support::opsd::{Opsd, quoted_list};
use crate::support::postgres::{self, Options, SUPERUSER, Server, literal};

/// The concerns of a monitor that are down, as `name reason`.
fn down(scrape: &Scrape, monitor: &str) -> Vec<String> {
    let of = format!("monitor=\"{monitor}\"");
    let part = |series: &str, label: &str| {
        series.split(&format!("{label}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    let failures = scrape.of("opsd_monitor_concern_failure", &[&of]);
    failures.iter().map(|(s, _)| format!("{} {}", part(s, "concern"), part(s, "reason"))).collect()
}

/// A monitor that has time, and these databases.
fn patient(name: &str, url: &str, databases: &[&str]) -> String {
    let databases = format!("timeout = \"20s\"\ndatabases = {}\n", quoted_list(databases));
    postgres_monitor(name, url, "").replace("timeout = \"1s\"\n", &databases).replace("\"1s\"", "\"30s\"")
}

/// Hosters withhold functions and views, and Aurora's writer raises where others answer.
#[test]
fn what_is_withheld_or_raises_fails_alone() {
    postgres::for_some_majors(|server| {
        let database = server.fresh_database("withheld");
        let role = postgres::unique("watcher");
        server.psql("postgres", &format!("CREATE ROLE {role} LOGIN; GRANT pg_monitor TO {role}"));
        let withheld = [
            "FUNCTION pg_catalog.pg_control_system()",
            "FUNCTION pg_catalog.pg_postmaster_start_time()",
            "FUNCTION pg_catalog.pg_has_role(name, text)",
            "FUNCTION pg_catalog.pg_has_role(name, name, text)",
            "FUNCTION pg_catalog.pg_has_role(text, text)",
            "FUNCTION pg_catalog.has_function_privilege(text, text)",
            "TABLE pg_locks",
            "TABLE pg_stat_archiver",
            "TABLE pg_prepared_xacts",
        ];
        let withhold = |what: &str| {
            let kind = if what.starts_with("TABLE") { "SELECT" } else { "EXECUTE" };
            format!("REVOKE {kind} ON {what} FROM PUBLIC; REVOKE {kind} ON {what} FROM pg_monitor;")
        };
        let known = withheld.iter().filter(|what| {
            let name = what.split_once(' ').unwrap().1;
            let kind = if what.starts_with("TABLE") { "regclass" } else { "regprocedure" };
            server.psql("postgres", &format!("SELECT to_{kind}({}) IS NOT NULL", literal(name))) == "t"
        });
        let all: String = known.map(|what| withhold(what)).collect();
        server.psql(
            &database,
            &format!(
                "{all} ALTER FUNCTION pg_catalog.pg_current_wal_lsn() RENAME TO pg_real_wal_lsn;
                 CREATE FUNCTION pg_catalog.pg_current_wal_lsn() RETURNS pg_lsn LANGUAGE plpgsql AS
                 'BEGIN RAISE feature_not_supported USING MESSAGE = ''wal_level must be logical''; END'"
            ),
        );
        let slot = postgres::unique("seen");
        server.psql("postgres", &format!("SELECT pg_create_physical_replication_slot({})", literal(&slot)));
        let mut opsd = Opsd::without_server();
        opsd.more = patient("main", &server.socket_url(&role, &database), &[&database, "postgres"]);
        let scrape = collected(&opsd);
        let slot_label = format!("slot=\"{slot}\"");
        let found = (
            scrape.up("main"),
            scrape.one("opsd_postgres_in_recovery", &[]),
            scrape.one("opsd_postgres_slot_active", &[&slot_label]),
            scrape.of("opsd_postgres_connections", &[]).len(),
        );
        server.psql("postgres", &format!("SELECT pg_drop_replication_slot({})", literal(&slot)));
        let expected = [
            "activity permission",
            "archiver permission",
            "identity permission",
            "prepared_transactions permission",
            "start permission",
            "wal_position refused",
        ];
        assert_eq!(found, (Some(1.0), Some(0.0), Some(0.0), 7), "{}", scrape.text);
        assert_eq!(down(&scrape, "main"), expected, "{}", scrape.text);
        server.drop_database(&database);
        server.psql("postgres", &format!("DROP ROLE {role}"));
    });
}

/// A server of the test's own: its names are such that other tests could not read them.
#[test]
fn odd_names_forbidden_databases_and_shared_sequences() {
    let server = Server::start(postgres::default_major(), &Options::default());
    let psql = |database: &str, sql: &str| server.psql(database, sql);
    // Its name is in the encoding of the database that it was made from.
    server.create_database_in("latin", "LATIN1");
    psql("latin", "CREATE DATABASE \"caf\u{e9}\" TEMPLATE template0");
    psql("latin", "CREATE DATABASE \"caf\u{e8}\" TEMPLATE template0");
    for database in
        ["forbidden", "rdsadmin", "azure_maintenance", "cloudsqladmin", "app", "scratch", "second"]
    {
        server.create_database(database);
    }
    psql(
        "postgres",
        "CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher; CREATE ROLE stats LOGIN;
                      GRANT pg_read_all_stats TO stats; REVOKE CONNECT ON DATABASE forbidden FROM PUBLIC;
                      REVOKE CONNECT ON DATABASE rdsadmin FROM PUBLIC",
    );
    psql(
        "app",
        "CREATE DOMAIN small AS int; CREATE DOMAIN smaller AS small;
         CREATE SEQUENCE unowned; CREATE TABLE a (id int DEFAULT nextval('unowned'));
         CREATE SEQUENCE in_domain; CREATE TABLE b (id smaller DEFAULT nextval('in_domain'));
         CREATE SEQUENCE shared; CREATE TABLE c (id bigint DEFAULT nextval('shared'), low smallint DEFAULT nextval('shared'));
         ALTER SEQUENCE shared OWNED BY c.id;
         CREATE SEQUENCE of_domain; CREATE DOMAIN numbered AS int DEFAULT nextval('of_domain');
         CREATE TABLE d (id numbered);
         SELECT setval('unowned', 2147483646), setval('in_domain', 2147483646), setval('shared', 32766),
                setval('of_domain', 2147483646);
         GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO watcher",
    );
    let mut opsd = Opsd::without_server();
    let at = |role: &str| server.socket_url(role, "postgres");
    opsd.more = patient("names", &at(SUPERUSER), &["app"]);
    opsd.more.push_str(&patient("stats", &at("stats"), &["postgres"]));
    // A database that says what it has, and in no encoding.
    server.create_database_in("bytes", "SQL_ASCII");
    psql(
        "bytes",
        "SET client_encoding = SQL_ASCII; CREATE TABLE \"\u{e9}\" (id int); CREATE SEQUENCE \"\u{e8}\";
         GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO watcher",
    );
    opsd.more.push_str(&patient("bytes", &server.socket_url(SUPERUSER, "bytes"), &["bytes"]));
    let scrape = collected(&opsd);
    let of = |monitor: &str, metric: &str, part: &str| {
        scrape.one(metric, &[&format!("monitor=\"{monitor}\""), part])
    };
    for sequence in ["unowned", "in_domain", "shared", "of_domain"] {
        let used = of("names", "opsd_postgres_sequence_used_ratio", &format!("sequence=\"{sequence}\""));
        assert!(used > Some(0.99), "{sequence} is used to {used:?}");
    }
    assert_eq!(down(&scrape, "names"), Vec::<String>::new(), "{}", scrape.text);
    assert_eq!(down(&scrape, "bytes"), Vec::<String>::new(), "{}", scrape.text);
    let found = ["caf\\\\xE9", "caf\\\\xE8", "latin", "app"]
        .into_iter()
        .flat_map(|name| ["names", "bytes"].map(|monitor| (name, monitor)));
    for (name, monitor) in found {
        let database = format!("database=\"{name}\"");
        for metric in ["opsd_postgres_database_size_bytes", "opsd_postgres_database_commits_total"] {
            assert!(of(monitor, metric, &database).is_some(), "no {metric} of {name}\n{}", scrape.text);
        }
        let kind = [&database, "kind=\"transactions\"", &format!("monitor=\"{monitor}\"")];
        assert!(scrape.one("opsd_postgres_wraparound_ratio", &kind).is_some(), "{name}");
    }
    // What a role may see is tried, and not which role it has: all statistics are enough for most.
    assert_eq!(down(&scrape, "stats"), ["archive_backlog permission"], "{}", scrape.text);
    assert!(of("stats", "opsd_postgres_database_size_bytes", "database=\"forbidden\"").is_some());

    // What is forbidden is somebody's decision; what is not there is a mistake, whichever comes first.
    let verdict = |databases: &[&str], more: &str| {
        let mut opsd = Opsd::without_server();
        let role = server.socket_url("watcher", "postgres");
        opsd.more = patient("main", &role, databases)
            .replace("\n[monitor.main]\n", &format!("\n[monitor.main]\n{more}"));
        opsd.run(&["check"])
    };
    verdict(&["postgres", "missing"], "").expect_code(3);
    let run = verdict(&["postgres", "forbidden", "missing"], "").expect_code(3);
    assert!(run.stdout.contains("no sequences, refused") && run.stdout.contains("missing"), "{run}");
    verdict(&["postgres", "forbidden"], "").expect_code(0);

    psql("app", "SELECT setval(oid::regclass, 1) FROM pg_class WHERE relkind = 'S'");
    // All, but for those that a hoster keeps for itself, and those that are named.
    let more = format!("exclude_databases = {}\n", quoted_list(&["forbidden", "scratch"]));
    let run = verdict(&["*"], &more).expect_code(0);
    assert!(!run.stdout.contains("may not read"), "{run}");
    let mut opsd = Opsd::without_server();
    let everywhere = patient("main", &server.socket_url("watcher", "postgres"), &["*"]);
    opsd.more = everywhere.replace("\n[monitor.main]\n", &format!("\n[monitor.main]\n{more}"));
    let scrape = collected(&opsd);
    let visited = scrape.of("opsd_postgres_dead_rows", &[]);
    let names: Vec<&str> = visited
        .iter()
        .map(|(s, _)| s.split("database=\"").nth(1).unwrap().split('"').next().unwrap())
        .collect();
    assert_eq!(names, ["app", "bytes", "latin", "postgres", "second"], "{}", scrape.text);
    let run = verdict(&["app"], &more);
    assert!(run.stdout.contains("exclude_databases"), "{run}");
}

/// A pooler answers, and is not the server: that is no network trouble, and the person on duty reads what to do.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_pooler_says_is_an_answer_and_its_hint_arrives() {
    let dropping = fake::row(&["170011", "17.11", "\"$user\", public", "1", "4711"]);
    let dropping = fake::server(fake::welcome(), dropping).await;
    let refusing = fake::fatal("08P01", "unsupported startup parameter in options: search_path");
    let refusing = fake::server(refusing, Vec::new()).await;
    let mut opsd = Opsd::without_server();
    for (name, port) in [("dropping", dropping), ("refusing", refusing)] {
        let url = format!("postgres://watcher@127.0.0.1:{port}/app?sslmode=disable");
        opsd.more.push_str(&postgres_monitor(name, &url, ""));
    }
    let run = opsd.run(&["check", "--json"]).expect_code(2);
    for monitor in run.json()["monitors"].as_array().unwrap() {
        assert_eq!(monitor["reason"], "refused", "{run}");
        let hint = monitor["findings"][0]["hint"].as_str().unwrap_or_default();
        assert!(
            hint.contains("transaction pooling") && hint.contains("connect to the server itself"),
            "{run}"
        );
    }
    for args in [&["check"][..], &["status"]] {
        let run = opsd.run(args);
        let said = run.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(said.matches("transaction pooling").count(), 2, "{run}");
        assert!(!said.contains("unreachable") && !said.contains("-0"), "{run}");
    }
}
