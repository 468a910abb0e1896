//! What a set needs of the server around it: libraries that are loaded at the start, privileges that an extension's
//! script gives to whoever runs it, the one database that an extension may be in.

use serde_json::Value;

use crate::support::compare::{assert_same, assert_same_content, db, plain_restore};
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{Options, SUPERUSER, Server, default_server, distribution, unique};
use crate::support::sets::{self, back_up};
use crate::traps::site;

/// The distribution's server, which has packages of extensions, with these libraries.
fn server(libraries: &str, more: &[(&str, &str)]) -> Server {
    let (major, bin) = distribution();
    let settings = [&[("shared_preload_libraries", libraries)], more].concat();
    Server::start(major, &Options { bin_dir: Some(bin), settings: &settings, ..Options::default() })
}

/// pg_cron for a database that is still to be made, which its worker would miss.
const CRON: &[(&str, &str)] = &[("cron.database_name", "app"), ("max_worker_processes", "0")];

/// Its programs for opsd, too.
fn site_of(server: &Server, database: &str) -> Opsd {
    let mut opsd = site(server, database);
    let bin = distribution().1;
    opsd.postgres.set("bin_dir", quoted(bin.to_str().unwrap()));
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    opsd
}

fn rehearsed(opsd: &Opsd) -> Value {
    sets::result(&opsd.run(&["restore", "--verify", "--json"]))
}

#[test]
fn an_extension_that_must_be_loaded_at_the_start_is_loaded_for_the_rehearsal() {
    let server = &server("auto_explain, pgaudit", &[]);
    server.create_database("app");
    server.psql("app", "CREATE EXTENSION pgaudit; CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    server.psql("app", "ALTER DATABASE app SET pgaudit.log = 'ddl'; CREATE ROLE backup LOGIN; GRANT pg_read_all_data TO backup");
    let mut opsd = site_of(server, "app");
    back_up(&opsd);
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
    // A role that may not see the setting.
    opsd.postgres.set("url", quoted(&server.socket_url("backup", "app")));
    back_up(&opsd);
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
}

#[test]
fn an_extension_of_one_database_alone_is_rehearsed_and_restored() {
    let server = &server("pg_cron", CRON);
    server.create_database("app");
    server.psql(
        "app",
        "CREATE EXTENSION pg_cron; CREATE TABLE t AS SELECT generate_series(1, 10) AS id;
         SELECT cron.schedule('once a year', '0 0 1 1 *', 'DELETE FROM public.t')",
    );
    let opsd = site_of(server, "app");
    back_up(&opsd);
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");

    // Beside the database that it may be in, it cannot be made.
    let url = server.socket_url(SUPERUSER, "app");
    opsd.run(&["restore", "db", "--to", &url, "--replace", "--yes"])
        .expect_failure(1, &["pg_cron", "\"app\"", "RENAME"]);
    assert_eq!(server.databases(), ["app", "postgres"]);
    // Where there is no such database yet, it is.
    let empty = &self::server("pg_cron", CRON);
    opsd.ok(&["restore", "db", "--to", &empty.socket_url(SUPERUSER, "app"), "--create"]);
    assert_eq!(empty.psql("app", "SELECT jobname FROM cron.job"), "once a year");
    let elsewhere = empty.socket_url(SUPERUSER, "other");
    opsd.run(&["restore", "db", "--to", &elsewhere, "--create"])
        .expect_failure(1, &["pg_cron", "\"app\"", "\"other\""]);
}

/// The source does not say what it loads, or this host does not have it: that is no fault of the set.
#[test]
fn an_extension_that_cannot_be_made_here_leaves_the_set_unproven() {
    let server = &server("pgaudit", &[]);
    server.create_database("app");
    server.psql("app", "CREATE EXTENSION pgaudit; CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    let opsd = site_of(server, "app");
    let id = back_up(&opsd);
    sets::forge(&opsd, &id, |manifest| manifest["server"]["preloaded"] = serde_json::json!([]));
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "unproven", "{result}");
    assert!(result["warnings"].to_string().contains("shared_preload_libraries"), "{result}");
    assert_eq!(result["databases"][0]["rows"], 10, "{result}");
}

/// Rows of the extension's own tables need it.
#[test]
fn rows_of_an_extension_that_cannot_be_made_here_leave_the_set_unproven() {
    let server = &server("pg_cron", CRON);
    server.create_database("app");
    server.psql(
        "app",
        "CREATE EXTENSION pg_cron; CREATE TABLE t AS SELECT generate_series(1, 10) AS id;
         SELECT cron.schedule('once a year', '0 0 1 1 *', 'DELETE FROM public.t')",
    );
    let opsd = site_of(server, "app");
    let id = back_up(&opsd);
    sets::forge(&opsd, &id, |manifest| manifest["server"]["preloaded"] = serde_json::json!([]));
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "unproven", "{result}");
    assert!(result["warnings"].to_string().contains("EXTENSION pg_cron"), "{result}");
    assert_eq!(result["databases"][0]["differences"], serde_json::json!([]), "{result}");
    assert_eq!(result["databases"][0]["rows"], 10, "{result}");
}

#[test]
fn partitions_that_an_extension_manages_come_back() {
    let server = &server("", &[]);
    server.create_database("app");
    server.psql(
        "app",
        "CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman;
         CREATE TABLE events (id bigint, at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT partman.create_parent('public.events', 'at', 'native', 'daily');
         INSERT INTO events SELECT i, now() FROM generate_series(1, 20) i",
    );
    let opsd = site_of(server, "app");
    back_up(&opsd);
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, "again"), "--create"]);
    assert_same_content(db(server, "app"), db(server, "again"));
}

/// PostGIS brings thousands of reference systems, and pg_dump takes those alone that it does not know.
#[test]
fn geometries_come_back_and_a_changed_reference_system_is_told_and_taken_along() {
    let server = &server("", &[]);
    server.create_database("app");
    server.psql(
        "app",
        "CREATE EXTENSION postgis;
         CREATE TABLE places (id integer PRIMARY KEY, at geometry(Point, 4326) NOT NULL, area geography(Polygon),
             height double precision GENERATED ALWAYS AS (ST_Y(at)) STORED, CHECK (ST_IsValid(at)));
         INSERT INTO places SELECT i, ST_SetSRID(ST_MakePoint(i, i / 7.0), 4326), ST_Buffer(ST_MakePoint(i, 1)::geography, 10)
           FROM generate_series(1, 50) i;
         CREATE INDEX ON places USING gist (at);
         CREATE VIEW near AS SELECT id FROM places WHERE ST_DWithin(at, ST_SetSRID(ST_MakePoint(1, 1), 4326), 5);
         INSERT INTO spatial_ref_sys (srid, auth_name, auth_srid, proj4text) VALUES (990001, 'own', 1, '+proj=longlat +no_defs')",
    );
    server.psql(
        "app",
        "UPDATE spatial_ref_sys SET proj4text = '+proj=longlat +ellps=intl +no_defs' WHERE srid = 4326",
    );
    let mut opsd = site_of(server, "app");
    let run = opsd.ok(&["backup", "--json"]);
    assert!(run.json()["sets"][0]["warnings"].to_string().contains("public.spatial_ref_sys"), "{run}");
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "unproven", "{result}");
    assert_eq!(result["databases"][0]["differences"], serde_json::json!([]), "{result}");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, "again"), "--create"]);
    assert_same(db(server, &plain_restore(db(server, "app"))), db(server, "again"));

    opsd.job.set("include_extension_tables", quoted_list(&["public.spatial_ref_sys"]));
    back_up(&opsd);
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
}

/// `ALTER DEFAULT PRIVILEGES` in a script speaks of the role that creates the extension; the scratch server has
/// another superuser.
#[test]
fn default_privileges_of_whoever_makes_an_extension_are_no_difference() {
    let server = default_server();
    let database = server.fresh_database("acl");
    server.psql(&database, "CREATE EXTENSION opsd_privileges; CREATE TABLE t AS SELECT 1 AS id");
    let opsd = site(server, &database);
    back_up(&opsd);
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
    let url = server.socket_url(SUPERUSER, &unique("restored"));
    opsd.ok(&["restore", "db", "--to", &url, "--create"]);
    server.drop_database(&database);
}
