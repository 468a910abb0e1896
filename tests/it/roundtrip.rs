//! Everything comes back: backed up, rehearsed and restored through the built `opsd`, and compared
//! without it, with what a plain `pg_dump | pg_restore` makes of the same source.

use serde_json::Value;

use crate::support::compare::{assert_same, assert_same_content, assert_same_settings, db, plain_restore};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{self, Options, SUPERUSER, Server, bin_dir, unique};
use crate::support::torture::torture;

/// A site whose every table of some size gets a stream of its own.
fn site<S: AsRef<str>>(server: &Server, databases: &[S]) -> Opsd {
    let mut opsd = Opsd::new(server, databases);
    opsd.job.set("large_table", quoted("32KiB"));
    // A restore to a URL takes the tools that it finds.
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd
}

/// Backs up; the one set's report.
fn back_up(opsd: &Opsd, proof: &str) -> Value {
    let run = opsd.ok(&["backup", "--json"]);
    let set = run.json()["sets"][0].clone();
    assert_eq!(set["proof"], proof, "{run}");
    set
}

/// Rehearses; every table must be proven.
fn verify(opsd: &Opsd) -> Value {
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let result = run.json()["results"][0].clone();
    assert_eq!(result["verdict"], "proven", "{run}");
    for database in result["databases"].as_array().expect("databases") {
        assert_eq!(database["tables_proven"], database["tables_total"], "{run}");
    }
    result
}

/// Restores one database of the set into a new one.
fn restore(opsd: &Opsd, server: &Server, database: Option<&str>, name: &str) -> Value {
    let url = server.socket_url(SUPERUSER, name);
    let mut args = vec!["restore", "db", "--to", &url, "--create", "--globals", "--json"];
    args.extend(database.iter().flat_map(|database| ["--database", database]));
    opsd.ok(&args).json()
}

/// Names of the streams in the repository.
fn streams(opsd: &Opsd) -> Vec<String> {
    opsd.repository_files()
        .iter()
        .filter_map(|f| f.rsplit('/').next()?.strip_suffix(".pgdump.zst.age").map(str::to_owned))
        .collect()
}

/// The whole circle for a database that is there.
fn round_trip(server: &Server, source: &str) -> Opsd {
    let opsd = site(server, &[source]);
    back_up(&opsd, "complete");
    verify(&opsd);
    let restored = unique("restored");
    restore(&opsd, server, None, &restored);
    let plain = plain_restore(db(server, source));
    assert_same(db(server, &plain), db(server, &restored));
    assert_same_content(db(server, source), db(server, &restored));
    assert_same_settings(db(server, source), db(server, &restored));
    server.drop_database(&plain);
    server.drop_database(&restored);
    opsd
}

#[test]
fn everything_comes_back() {
    // The other majors have every command in `majors`.
    postgres::for_some_majors(|server| {
        let source = server.fresh_database("round");
        fixtures::rows(server, &source, "first large", 2_000);
        fixtures::rows(server, &source, "second large", 1_000);
        fixtures::load(server, &source, fixtures::ALL);
        let opsd = round_trip(server, &source);
        let streams = streams(&opsd);
        for name in ["schema", "data-rest", "data-1", "data-2", "data-3"] {
            assert!(streams.iter().any(|s| s == name), "no stream {name} among {streams:?}");
        }
        server.drop_database(&source);
    });
}

#[test]
fn an_empty_database_comes_back() {
    let server = postgres::default_server();
    let source = server.fresh_database("empty");
    round_trip(server, &source);
    server.drop_database(&source);
}

#[test]
fn thousands_of_tables_come_back_at_the_default_lock_limit() {
    // From 2,000 on a database is one archive.
    let count = if torture() { 3_000 } else { 2_000 };
    let settings = [("max_locks_per_transaction", "64")];
    let server =
        Server::start(postgres::default_major(), &Options { settings: &settings, ..Options::default() });
    let source = server.fresh_database("many");
    // A statement each: in one transaction, creating them would need the locks that are missing.
    server.psql(
        &source,
        &format!("SELECT format('CREATE TABLE t_%s (id integer, note text)', i) FROM generate_series(1, {count}) i \\gexec
         SELECT format('INSERT INTO t_%s VALUES (%s, ''row'')', i, i) FROM generate_series(1, {count}, 7) i \\gexec"),
    );
    let mut opsd = site(&server, &[&source]);
    opsd.job.unset("large_table");
    let set = back_up(&opsd, "complete");
    assert_eq!(streams(&opsd), ["full"]);
    assert_eq!(set["databases"][0]["rows"], count / 7 + 1);
    verify(&opsd);
    restore(&opsd, &server, None, "many_again");
    assert_same_content(db(&server, &source), db(&server, "many_again"));
}

#[test]
fn a_table_of_1600_columns_comes_back() {
    let server = postgres::default_server();
    let source = server.fresh_database("wide");
    fixtures::wide_table(server, &source);
    round_trip(server, &source);
    server.drop_database(&source);
}

#[test]
fn a_value_of_many_parts_comes_back() {
    // More than all parts that are held, and under torture much more.
    let size = if torture() { 200_000_000 } else { 30_000_000 };
    let server = postgres::default_server();
    let source = server.fresh_database("huge");
    fixtures::huge_value(server, &source, size);
    let opsd = site(server, &[&source]);
    back_up(&opsd, "complete");
    verify(&opsd);
    let restored = unique("restored");
    restore(&opsd, server, None, &restored);
    let digest = "SELECT id, length(value), md5(value) FROM huge ORDER BY id";
    assert_eq!(server.psql(&restored, digest), server.psql(&source, digest));
    server.drop_database(&source);
    server.drop_database(&restored);
}

#[test]
fn every_database_comes_back_with_roles_on_another_server() {
    let major = postgres::default_major();
    let (source, target) =
        (Server::start(major, &Options::default()), Server::start(major, &Options::default()));
    source.create_database(fixtures::ODD_DATABASE);
    fixtures::load(&source, fixtures::ODD_DATABASE, fixtures::ALL);
    source.create_database("plain");
    fixtures::load(&source, "plain", &[fixtures::ROLES, fixtures::NAMES, fixtures::SUBSCRIPTION]);
    source.psql("postgres", "CREATE TABLE in_postgres AS SELECT generate_series(1, 5) AS id");

    let mut opsd = site(&source, &["postgres"]);
    opsd.job.set("source", "{ postgres = \"main\", databases = [\"*\"] }");
    let set = back_up(&opsd, "complete");
    let names: Vec<&Value> = set["databases"].as_array().unwrap().iter().map(|d| &d["name"]).collect();
    assert_eq!(names, [fixtures::ODD_DATABASE, "plain", "postgres"]);
    verify(&opsd);
    for (i, name) in [fixtures::ODD_DATABASE, "plain", "postgres"].into_iter().enumerate() {
        let restored = if name == "postgres" { "postgres_again" } else { name };
        let report = restore(&opsd, &target, Some(name), restored);
        assert_eq!(!report["roles_created"].as_array().unwrap().is_empty(), i == 0, "{report}");
        let plain = plain_restore(db(&source, name));
        assert_same(db(&source, &plain), db(&target, restored));
        assert_same_content(db(&source, name), db(&target, restored));
        assert_same_settings(db(&source, name), db(&target, restored));
    }
    let roles =
        "SELECT rolname, rolcanlogin, rolvaliduntil, rolpassword, (SELECT setconfig FROM pg_db_role_setting
                   WHERE setrole = a.oid AND setdatabase = 0), shobj_description(oid, 'pg_authid')
                   FROM pg_authid a WHERE rolname ~* 'fixture' ORDER BY 1";
    assert_eq!(source.psql("postgres", roles), target.psql("postgres", roles));
    let members = "SELECT roleid::regrole, member::regrole, admin_option FROM pg_auth_members
                    WHERE member >= 16384 ORDER BY roleid::regrole::text, member::regrole::text";
    assert_eq!(source.psql("postgres", members), target.psql("postgres", members));
}

#[test]
fn a_latin1_database_comes_back() {
    let server = postgres::default_server();
    let source = unique("latin1");
    server.create_database_in(&source, "LATIN1");
    server.psql(
        &source,
        "CREATE TABLE words (word text); INSERT INTO words VALUES ('Käse'), ('garçon'), (chr(233));
         CREATE TABLE filler AS SELECT i, repeat('é', 200) AS t FROM generate_series(1, 500) i;",
    );
    round_trip(server, &source);
    // A name that is not ASCII has no proof of its rows, but is in the set once, and comes back.
    server.psql(
        &source,
        "CREATE TABLE \"Käse\" (id serial, \"größe\" text);
         INSERT INTO \"Käse\" (\"größe\") SELECT repeat('é', 200) FROM generate_series(1, 1000);",
    );
    assert_partly_proven(server, &source);
    server.drop_database(&source);
}

#[test]
fn a_sql_ascii_database_comes_back_byte_by_byte() {
    let server = postgres::default_server();
    let source = unique("ascii");
    server.create_database_in(&source, "SQL_ASCII");
    server.psql(
        &source,
        r"CREATE TABLE bytes (id integer, value text);
          INSERT INTO bytes VALUES (1, E'caf\xe9'), (2, E'\xff\xfe'), (3, E'\xc3\xa9'), (4, 'plain');
          INSERT INTO bytes SELECT i, repeat(E'\xe9', 100) FROM generate_series(5, 1000) i;",
    );
    round_trip(server, &source);
    server.psql(
        &source,
        r"DO $$ BEGIN
              EXECUTE format('CREATE TABLE %I (id serial, %I text)', E'caf\xe9', E'na\xefve');
              EXECUTE format('INSERT INTO %I (%I) SELECT repeat(E''\xe9'', 200) FROM generate_series(1, 1000)', E'caf\xe9', E'na\xefve');
              EXECUTE format('CREATE TABLE %I (id serial)', E'caf\xe8');
          END $$",
    );
    assert_partly_proven(server, &source);
    server.drop_database(&source);
}

/// The circle for a database of which some names are not UTF-8: what is proven agrees, the rest is
/// said not to be, and all of it comes back.
fn assert_partly_proven(server: &Server, source: &str) {
    let opsd = site(server, &[source]);
    let set = back_up(&opsd, "partial");
    assert!(set["warnings"].to_string().contains("no proof"), "{set}");
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let result = &run.json()["results"][0];
    assert_eq!(result["verdict"], "unproven", "{run}");
    assert_eq!(result["databases"][0]["differences"], serde_json::json!([]), "{run}");
    let restored = unique("restored");
    restore(&opsd, server, None, &restored);
    assert_same_content(db(server, source), db(server, &restored));
    server.drop_database(&restored);
}
