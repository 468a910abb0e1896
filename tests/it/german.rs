//! A server that speaks another language than opsd reads is backed up and restored into all the same.
//!
//! `make torture` runs whole subjects on such a server (`OPSD_TEST_LANGUAGE=de`); here is what each decision
//! that was once made by a server's words comes to.

use crate::postgres_faults;
use crate::support::compare::{assert_same_content, db};
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{
    Server, bin_dir, default_server, german_server, is_installed, literal, shared, unique,
};
use crate::support::sets::back_up;

#[test]
fn a_migration_gets_its_turn() {
    postgres_faults::a_migration_gets_its_turn(german_server());
}

#[test]
fn a_coordinator_that_is_ended_takes_the_snapshot_anew() {
    postgres_faults::the_snapshot_is_taken_anew(german_server());
}

#[test]
fn a_dropped_view_takes_the_snapshot_anew() {
    postgres_faults::a_dropped_view_starts_over(german_server());
}

/// A role that may make databases, and may not choose the language.
fn maker(server: &Server) -> String {
    let role = unique("maker");
    server.psql("postgres", &format!("CREATE ROLE {role} LOGIN CREATEDB"));
    role
}

/// A site whose tools are those of a major.
fn site(server: &Server, database: &str) -> Opsd {
    let mut opsd = Opsd::new(server, &[database]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd
}

/// A CHECK refuses the rows of a table until those of another are there.
#[test]
fn rows_that_are_refused_once_are_tried_again() {
    let server = german_server();
    let role = maker(server);
    let database = server.fresh_database("refused");
    server.psql("postgres", &format!("ALTER DATABASE {database} OWNER TO {role}"));
    server.psql(
        &database,
        &format!(
            "SET ROLE {role};
             CREATE SEQUENCE tries; SELECT nextval('tries');
             CREATE TABLE checked (n integer CHECK (nextval('public.tries') > 1));
             INSERT INTO checked SELECT i FROM generate_series(1, 3000) i;
             CREATE TABLE other AS SELECT i FROM generate_series(1, 3000) i"
        ),
    );
    let mut opsd = site(server, &database);
    // Either as a stream of its own, which opsd sends itself, or within the rest, which pg_restore does.
    for large in ["32KiB", "1GiB"] {
        opsd.job.set("large_table", quoted(large));
        let id = back_up(&opsd);
        let target = unique("again");
        let to = server.socket_url(&role, &target);
        // The sequence's value is in the rest, which comes after the larger stream.
        let args = ["-v", "restore", "db", "--to", &to, "--create", "--backup", &id, "--jobs", "1"];
        let run = opsd.ok(&args);
        assert!(run.stderr.contains("trying once more, after the others"), "{run}");
        // Trying takes numbers of the sequence.
        let rows = "SELECT (SELECT count(*) FROM checked), (SELECT count(*) FROM other)";
        assert_eq!(server.psql(&target, rows), "3000|3000", "{run}");
        server.drop_database(&target);
    }
    server.drop_database(&database);
}

/// What pg_restore of 17 sends, and an older server does not know.
#[test]
fn a_newer_servers_set_comes_back() {
    let server = german_server();
    let newer = [18, 17].into_iter().find(|major| *major > server.major && is_installed(*major));
    let newer = shared(newer.expect("a server newer than the distribution's: run make setup"));
    let role = maker(server);
    let database = newer.fresh_database("newer");
    newer.psql("postgres", &format!("CREATE ROLE {role}; ALTER DATABASE {database} OWNER TO {role}"));
    newer.psql(
        &database,
        &format!("SET ROLE {role}; CREATE TABLE t AS SELECT i FROM generate_series(1, 100) i"),
    );
    let opsd = site(newer, &database);
    back_up(&opsd);
    let target = unique("again");
    let to = server.socket_url(&role, &target);
    let run = opsd.ok(&["restore", "db", "--to", &to, "--create", "--json"]);
    assert_eq!(run.json()["failed"], serde_json::json!([]), "{run}");
    assert_same_content(db(newer, &database), db(server, &target));
    server.drop_database(&target);
    newer.drop_database(&database);
    newer.psql("postgres", &format!("DROP ROLE {role}"));
}

#[test]
fn who_may_not_make_a_database_is_told_what_to_do() {
    let server = german_server();
    let database = server.fresh_database("plain");
    server.psql(&database, "CREATE TABLE t AS SELECT 1 AS id");
    let opsd = site(server, &database);
    back_up(&opsd);
    let role = unique("reader");
    server.psql("postgres", &format!("CREATE ROLE {role} LOGIN"));
    let to = server.socket_url(&role, &unique("again"));
    let run = opsd.run(&["restore", "db", "--to", &to, "--create"]);
    run.expect_failure(1, &["(SQLSTATE 42501)", "hint: ", "CREATEDB"]);
    server.drop_database(&database);
}

/// Passwords of roles are left out where they cannot be read, and for no other reason.
#[test]
fn a_role_that_may_not_read_passwords_saves_the_rest() {
    for server in [german_server(), default_server()] {
        let database = server.fresh_database("hashless");
        let role = unique("hashless");
        server.psql(
            &database,
            &format!(
                "CREATE TABLE t AS SELECT 1 AS id;
                 CREATE ROLE {role} LOGIN PASSWORD {}; GRANT SELECT ON t TO {role}; GRANT USAGE ON SCHEMA public TO {role}",
                literal("x")
            ),
        );
        let mut opsd = site(server, &database);
        opsd.postgres.set("url", quoted(&server.socket_url(&role, &database)));
        let run = opsd.ok(&["backup", "--json"]);
        assert!(run.stdout.contains("roles are saved without their passwords"), "{run}");
        server.drop_database(&database);
    }
}
