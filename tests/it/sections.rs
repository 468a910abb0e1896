//! What pg_dump puts into which section, what it leaves out, and what a restore makes of it: each comes
//! back once, and is proven.

use crate::support::compare::{assert_same_content, assert_same_settings, db};
use crate::support::fixtures::{self, Fixture};
use crate::support::opsd::{Run, quoted, quoted_list};
use crate::support::postgres::{self, SUPERUSER, Server, literal, unique};
use crate::traps::{AA, assert_comes_back, site};

#[test]
fn a_sequence_owned_by_a_large_table_is_in_the_set_once() {
    let server = postgres::default_server();
    let database = server.fresh_database("owned");
    server.psql(
        &database,
        "CREATE TABLE big (id serial, \"od\"\"d.x\" bigserial, note text);
         INSERT INTO big (note) SELECT repeat('x', 500) FROM generate_series(1, 2000)",
    );
    let mut opsd = site(server, &database);
    opsd.job.set("large_table", quoted("64KiB"));
    opsd.ok(&["backup"]);
    assert!(opsd.repository_files().iter().any(|f| f.ends_with("/data-1.pgdump.zst.age")));
    assert_comes_back(&opsd, server, &database);
    server.drop_database(&database);
}

/// Backs up a database of some fixtures, every table of a page or more in a stream of its own, and
/// brings it back.
fn fixture_comes_back(server: &Server, fixtures: &[Fixture], more: &str) -> Run {
    let database = fixtures::database_with(server, "trap", fixtures);
    server.psql(&database, more);
    let mut opsd = site(server, &database);
    opsd.job.set("large_table", quoted("8KiB"));
    let run = opsd.ok(&["backup", "--json"]);
    assert_comes_back(&opsd, server, &database);
    server.drop_database(&database);
    run
}

#[test]
fn large_objects_are_counted_and_proven_whichever_section_they_are_in() {
    postgres::for_some_majors(|server| {
        fixture_comes_back(server, &[fixtures::ROLES, fixtures::LARGE_OBJECTS], "");
    });
}

#[test]
fn rows_that_a_restore_moves_to_another_partition_are_proven() {
    fixture_comes_back(postgres::default_server(), &[fixtures::PARTITIONS], "");
}

#[test]
fn rows_that_an_extension_brings_itself_are_not_expected() {
    fixture_comes_back(postgres::default_server(), &[fixtures::EXTENSIONS], "");
}

#[test]
fn materialized_views_are_populated_unless_they_were_not() {
    fixture_comes_back(postgres::default_server(), &[fixtures::VIEWS], "");
}

#[test]
fn event_triggers_do_not_fire_while_a_set_is_restored() {
    fixture_comes_back(
        postgres::default_server(),
        &[fixtures::ROLES, fixtures::CODE, fixtures::EVENT_TRIGGERS],
        "",
    );
}

#[test]
fn a_check_that_reads_another_table_gets_its_rows_exactly_once() {
    let server = postgres::default_server();
    let database = fixtures::database_with(server, "check", &[fixtures::CONSTRAINTS]);
    // Larger than what it needs, so that it is restored first, and fails first.
    server.psql(
        &database,
        "ALTER TABLE con.check_rows ADD filler text; UPDATE con.check_rows SET filler = repeat('x', 4000)",
    );
    let mut opsd = site(server, &database);
    opsd.job.set("large_table", quoted("8KiB"));
    opsd.ok(&["backup"]);
    assert_comes_back(&opsd, server, &database);
    let restored = unique("restored");
    let url = server.socket_url(SUPERUSER, &restored);
    opsd.ok(&["restore", "db", "--to", &url, "--create", "--jobs", "1"]);
    assert_eq!(server.psql(&restored, "SELECT count(*) FROM con.check_rows"), "30");
    assert_same_content(db(server, &database), db(server, &restored));
    assert!(server.log().contains("violates check constraint"), "nothing failed first: the trap is not set");
    server.drop_database(&restored);
    server.drop_database(&database);
}

#[test]
fn settings_of_the_database_come_back_and_do_not_change_a_fingerprint() {
    let server = postgres::default_server();
    let database = fixtures::database_with(
        server,
        "settings",
        &[fixtures::ROLES, fixtures::COLUMNS, fixtures::TYPES, fixtures::DATABASE],
    );
    let name = literal(&database);
    server.psql(
        "postgres",
        &format!("SELECT format('ALTER DATABASE %I SET lc_monetary = ''C.UTF-8''', {name}) \\gexec"),
    );
    server.psql(
        &database,
        "CREATE TABLE typ.prices AS SELECT (i * 1.5)::numeric::money AS price FROM generate_series(-3, 3) i",
    );
    let opsd = site(server, &database);
    opsd.ok(&["backup"]);
    assert_comes_back(&opsd, server, &database);
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    assert_same_settings(db(server, &database), db(server, &restored));
    server.drop_database(&restored);
    server.drop_database(&database);
}

#[test]
fn what_pg_dump_warns_of_at_exit_0_is_in_the_report_and_in_the_manifest() {
    let server = postgres::default_server();
    let database = fixtures::database_with(server, "warned", &[fixtures::SUBSCRIPTION]);
    let role = unique("opsd_reader");
    server.psql("postgres", &format!("CREATE ROLE {role} LOGIN IN ROLE pg_read_all_data"));
    let mut opsd = site(server, &database);
    opsd.postgres.set("url", quoted(&server.socket_url(&role, &database)));
    let run = opsd.ok(&["backup", "--json"]);
    let warnings = run.json()["sets"][0]["warnings"].to_string();
    assert!(warnings.contains("subscriptions not dumped"), "{run}");
    let manifest = opsd.repository_files().into_iter().find(|f| f.ends_with("/manifest.json")).unwrap();
    let manifest = std::fs::read_to_string(opsd.path("repository").join(manifest)).unwrap();
    assert!(manifest.contains("subscriptions not dumped"), "{manifest}");
    server.psql(
        &database,
        "ALTER SUBSCRIPTION fixture_subscription DISABLE; DROP SUBSCRIPTION fixture_subscription",
    );
    server.drop_database(&database);
    server.psql("postgres", &format!("DROP ROLE {role}"));
}

#[test]
fn statistics_of_postgresql_18_are_left_to_analyze() {
    let server = postgres::shared(18);
    let database = server.fresh_database("statistics");
    fixtures::rows(server, &database, "big", 2_000);
    server.psql(&database, "CREATE STATISTICS pair (mcv) ON who, ok FROM big; ANALYZE");
    let mut opsd = site(server, &database);
    opsd.job.set("large_table", quoted("64KiB"));
    opsd.ok(&["backup"]);
    assert_comes_back(&opsd, server, &database);
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    let count = "SELECT count(*) FROM pg_stats WHERE schemaname = 'public' UNION ALL SELECT count(*) FROM pg_stats_ext";
    assert_eq!(server.psql(&restored, count), server.psql(&database, count));
    server.drop_database(&restored);
    server.drop_database(&database);
}

#[test]
fn an_excluded_table_is_there_without_its_rows() {
    let server = postgres::default_server();
    let database = fixtures::database_with(server, "excluded", &[fixtures::PARTITIONS]);
    server.psql(&database, AA);
    let mut opsd = site(server, &database);
    opsd.job.set("exclude_table_data", quoted_list(&["public.aa", "part.measure"]));
    let run = opsd.ok(&["backup", "--json"]);
    assert!(run.json()["sets"][0]["databases"][0]["excluded"].to_string().contains("public.aa"), "{run}");
    let verified = opsd.ok(&["restore", "--verify", "--json"]);
    let result = &verified.json()["results"][0]["databases"][0];
    assert!(result["tables_proven"].as_u64() < result["tables_total"].as_u64(), "{verified}");
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    let count = "SELECT (SELECT count(*) FROM aa), (SELECT count(*) FROM part.measure), (SELECT count(*) FROM bb), (SELECT count(*) FROM part.by_hash)";
    assert_eq!(server.psql(&restored, count), "0|0|50|300");
    server.drop_database(&restored);
    server.drop_database(&database);
}
