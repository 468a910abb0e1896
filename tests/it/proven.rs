//! What a rehearsal says that it proved, and what it says that it did not.

use serde_json::{Value, json};

use crate::support::opsd::{Opsd, quoted_list};
use crate::support::postgres::{Options, SUPERUSER, Server, bin_dir, default_major, for_some_majors};
use crate::support::sets::back_up;

fn site(server: &Server) -> Opsd {
    let mut opsd = Opsd::new(server, &["app"]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd
}

/// Backs up, rehearses, and returns the result.
fn rehearsed(opsd: &Opsd) -> Value {
    back_up(opsd);
    let run = opsd.run(&["restore", "--verify", "--json"]);
    run.json()["results"][0].clone()
}

/// Count and note of what is said of a kind.
fn said(result: &Value, what: &str, covered: bool) -> (u64, String) {
    let rows = result["scope"].as_array().unwrap_or_else(|| panic!("no scope: {result}"));
    let row = rows.iter().find(|r| r["what"] == what && r["covered"] == covered);
    let row = row.unwrap_or_else(|| panic!("{what}, covered {covered}: {result}"));
    (row["count"].as_u64().unwrap(), row["note"].as_str().unwrap_or_default().to_owned())
}

fn is_said(result: &Value, what: &str, covered: bool) -> bool {
    result["scope"].as_array().unwrap().iter().any(|r| r["what"] == what && r["covered"] == covered)
}

const COMPUTED: &str = "CREATE TABLE computed (id integer, twice integer GENERATED ALWAYS AS (id * 2) STORED, \"it's\" text GENERATED ALWAYS AS (id::text || 'x') STORED);
    INSERT INTO computed SELECT generate_series(1, 500);
    CREATE TABLE parts (id integer, twice integer GENERATED ALWAYS AS (id * 2) STORED) PARTITION BY HASH (id);
    CREATE TABLE part0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE part1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    INSERT INTO parts SELECT generate_series(1, 500);
    CREATE MATERIALIZED VIEW fresh AS SELECT id, twice FROM computed WHERE id < 100;
    CREATE MATERIALIZED VIEW unfilled AS SELECT id FROM computed WITH NO DATA;";

#[test]
fn what_was_compared_and_what_was_not_is_listed() {
    for_some_majors(|shared| {
        let server = &Server::start(shared.major, &Options::default());
        server.create_database("app");
        server.psql(
            "app",
            &format!(
                "{COMPUTED}
                 CREATE TABLE plain (id serial, a integer, b integer); INSERT INTO plain (a) SELECT generate_series(1, 50);
                 CREATE TABLE left_out (id integer); INSERT INTO left_out VALUES (1);
                 CREATE STATISTICS ab ON a, b FROM plain;
                 CREATE MATERIALIZED VIEW stale AS SELECT count(*) FROM plain; INSERT INTO plain (a) VALUES (51);
                 CREATE MATERIALIZED VIEW random AS SELECT clock_timestamp() AS now;
                 CREATE FOREIGN DATA WRAPPER far; CREATE SERVER elsewhere FOREIGN DATA WRAPPER far;
                 CREATE FOREIGN TABLE distant (id integer) SERVER elsewhere;
                 SELECT lo_from_bytea(0, 'x')"
            ),
        );
        let mut opsd = site(server);
        opsd.job.set("exclude_table_data", quoted_list(&["public.left_out"]));
        let result = rehearsed(&opsd);
        assert_eq!((&result["verdict"], &result["warnings"]), (&json!("proven"), &json!([])), "{result}");
        assert_eq!(said(&result, "rows", true).0, 4, "{result}");
        assert_eq!(said(&result, "excluded-rows", false), (1, "public.left_out".into()));
        assert_eq!(said(&result, "generated-columns", true).0, 3);
        assert!(!is_said(&result, "generated-columns", false));
        assert_eq!(said(&result, "materialized-view-rows", true).0, 1);
        let (stale, names) = said(&result, "materialized-view-rows", false);
        assert!(stale == 2 && names.contains("public.random, public.stale"), "{names}");
        assert_eq!(said(&result, "foreign-table-rows", false), (1, "public.distant".into()));
        assert_eq!(said(&result, "statistics-objects", true).0, 1);
        assert_eq!(said(&result, "extension-versions", true).0, 1);
        assert!(!is_said(&result, "extension-versions", false));
        assert_eq!(said(&result, "sequences", true).0, 1);
        assert_eq!(said(&result, "large-objects", true).0, 1);
        assert!(said(&result, "definitions", true).0 > 10);
        assert_eq!(said(&result, "database-properties", false).0, 1);
    });
}

/// Its rows came back, and the values that are computed of them did not: nobody would have known.
#[test]
fn generated_values_that_a_restore_computes_otherwise_are_not_proven() {
    let server = &Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql(
        "app",
        "CREATE FUNCTION rate(integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 19';
         CREATE TABLE bills (id integer, tax integer GENERATED ALWAYS AS (public.rate(id)) STORED);
         INSERT INTO bills SELECT generate_series(1, 9);
         CREATE OR REPLACE FUNCTION rate(integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 16'",
    );
    let opsd = site(server);
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "unproven", "{result}");
    assert!(result["warnings"].to_string().contains("public.bills"), "{result}");
    let (count, note) = said(&result, "generated-columns", false);
    assert!(count == 1 && note.contains("public.bills"), "{note}");
    assert_eq!(result["databases"][0]["differences"], json!([]), "{result}");
}

/// A function that calls itself immutable and depends on the time zone of who computes.
#[test]
fn generated_values_that_depend_on_a_time_zone_are_not_proven() {
    let server = &Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql(
        "app",
        "SET timezone = 'Pacific/Auckland';
         CREATE FUNCTION day(timestamptz) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT to_char($1, 'YYYY-MM-DD HH24') $$;
         CREATE TABLE visits (at timestamptz, day text GENERATED ALWAYS AS (public.day(at)) STORED);
         INSERT INTO visits SELECT timestamptz '2026-01-01' + i * interval '7 hours' FROM generate_series(1, 50) i",
    );
    let opsd = site(server);
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "unproven", "{result}");
    let (count, note) = said(&result, "generated-columns", false);
    assert!(count == 1 && note.contains("public.visits"), "{note}");
    assert!(result["warnings"].to_string().contains("time zone"), "{result}");
}

#[test]
fn an_extension_comes_back_at_the_sets_version_where_that_can_be_had() {
    let server = &Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql(
        "app",
        "CREATE EXTENSION hstore VERSION '1.7'; CREATE TABLE t (h hstore);
         CREATE SCHEMA ours; CREATE EXTENSION pg_trgm SCHEMA ours VERSION '1.5'",
    );
    let opsd = site(server);
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
    assert_eq!(said(&result, "extension-versions", true).0, 2, "hstore and plpgsql: {result}");
    // Its schema is only made with the definitions.
    let (count, note) = said(&result, "extension-versions", false);
    assert!(count == 1 && note.contains("pg_trgm 1.6 instead of 1.5"), "{note}");
    let run =
        opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, "again"), "--create", "--json"]);
    let versions = "SELECT string_agg(extname || ' ' || extversion, ', ' ORDER BY extname) FROM pg_extension WHERE extname <> 'plpgsql'";
    assert_eq!(server.psql("again", versions), "hstore 1.7, pg_trgm 1.6");
    assert!(run.json()["warnings"].to_string().contains("pg_trgm 1.6 instead of 1.5"), "{run}");
}

/// Whoever looks at the terminal, or at the record later, reads it as well.
#[test]
fn what_is_not_covered_is_said_to_people() {
    let server = &Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql("app", "CREATE TABLE plain (id integer); CREATE MATERIALIZED VIEW stale AS SELECT count(*) FROM plain; INSERT INTO plain VALUES (1)");
    let opsd = site(server);
    let id = back_up(&opsd);
    let run = opsd.ok(&["-v", "restore", "--verify"]);
    let line = "not covered: app: rows of materialized views (1): public.stale";
    assert!(run.stderr.contains(line), "{run}");
    let shown = opsd.ok(&["backups", "show", &id]).stdout;
    assert!(shown.contains(line), "{shown}");
}
