//! What a rehearsal says of a set that does not come back, or not here: the verdict, and that no row and
//! no password is in it.

use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::json;

use crate::support::fixtures;
use crate::support::inside;
use crate::support::opsd::{Opsd, Run, finish_child, quoted};
use crate::support::postgres::{SUPERUSER, Server, bin_dir, default_server, literal, shared, unique};
use crate::support::sets::{back_up, directory, forge, listed, next_second, record_failure, result};

fn site(sql: &str) -> (&'static Server, Opsd, String) {
    let server = default_server();
    let database = server.fresh_database("rehearsal");
    server.psql(&database, sql);
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("large_table", quoted("32KiB"));
    opsd.env("OPSD_LOG", "opsd=debug");
    (server, opsd, database)
}

/// Nothing that begins with `c4nary` is said or stored (the archives are encrypted).
pub fn no_canary(opsd: &Opsd, run: &Run) {
    assert!(!run.stdout.contains("c4nary") && !run.stderr.contains("c4nary"), "a row is told: {run}");
    for name in opsd.repository_files() {
        let bytes = std::fs::read(opsd.path("repository").join(&name)).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"c4nary"), "a row is in {name}");
    }
}

/// Each restores only as long as its function says yes, and fails with its values in another place: a
/// row of several lines in DETAIL, a password in the statement and in what a function raises, a literal
/// in the message itself; and the latter again in a table with a stream of its own.
#[test]
fn rows_and_passwords_stay_out_of_records_and_messages() {
    let row = "CREATE FUNCTION ok(text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
        CREATE TABLE failing (note text CHECK (ok(note)));
        INSERT INTO failing VALUES (E'c4nary one\\nc4nary two\\nDETAIL: c4nary three');
        CREATE OR REPLACE FUNCTION ok(text) RETURNS boolean LANGUAGE sql AS 'SELECT false'";
    let password = "CREATE FUNCTION valid(text[], oid) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
        CREATE FOREIGN DATA WRAPPER failing_wrapper VALIDATOR valid;
        CREATE SERVER failing FOREIGN DATA WRAPPER failing_wrapper;
        CREATE USER MAPPING FOR PUBLIC SERVER failing OPTIONS (password E'c4nary\\nc4nary two');
        CREATE OR REPLACE FUNCTION valid(text[], oid) RETURNS void LANGUAGE plpgsql AS
          $$ BEGIN IF $1 <> '{}' THEN RAISE EXCEPTION 'refused: %', $1; END IF; END $$";
    let literal = "CREATE FUNCTION ok(text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
        CREATE TABLE failing (note text CHECK (ok(note)));
        INSERT INTO failing SELECT 'c4nary\"x' || repeat('-', 40) FROM generate_series(1, $rows) i;
        CREATE OR REPLACE FUNCTION ok(text) RETURNS boolean LANGUAGE plpgsql AS
          'BEGIN RETURN $1::integer > 0; END'";
    let cases = [
        (row.to_owned(), "failing", "violates check constraint \"failing_note_check\""),
        (password.to_owned(), "USER MAPPING", "raised"),
        (literal.replace("$rows", "3"), "failing", "raised"),
        (literal.replace("$rows", "3000"), "failing", "raised"),
    ];
    for (sql, object, message) in cases {
        let (server, opsd, database) = site(&sql);
        let id = back_up(&opsd);
        let run = opsd.run(&["restore", "--verify", "--json"]).expect_code(3);
        no_canary(&opsd, &run);
        let result = result(&run);
        assert_eq!(result["verdict"], "differs", "{run}");
        let difference = result["databases"][0]["differences"].to_string().replace("\\\"", "\"");
        assert!(difference.contains(object) && difference.contains(message), "{run}");
        assert!(difference.contains("does not restore"), "{run}");
        let target = unique("told");
        let to = server.socket_url(SUPERUSER, &target);
        let run = opsd.run(&["restore", "db", "--to", &to, "--create", "--backup", &id, "--json"]);
        let run = run.expect_failure(1, &[object, message, "log"]);
        no_canary(&opsd, &run);
        server.drop_database(&target);
        server.drop_database(&database);
    }
}

/// The file that a foreign table reads, or a dictionary's stop words, are not part of a dump: that a
/// scratch server has none of them says nothing about the set.
#[test]
fn what_a_scratch_server_cannot_have_is_unproven_and_no_difference() {
    let far = default_server().subdirectory(&unique("far")).join("rows.csv");
    std::fs::write(&far, "1\n2\n").unwrap();
    std::fs::set_permissions(&far, PermissionsExt::from_mode(0o644)).unwrap();
    let foreign = format!(
        "CREATE EXTENSION file_fdw; CREATE SERVER far FOREIGN DATA WRAPPER file_fdw;
         CREATE FOREIGN TABLE far (id integer) SERVER far OPTIONS (filename {}, format 'csv');
         CREATE MATERIALIZED VIEW near AS SELECT * FROM far;
         CREATE MATERIALIZED VIEW nearer AS SELECT * FROM near;
         CREATE TABLE own AS SELECT generate_series(1, 7) AS id",
        literal(far.to_str().unwrap())
    );
    let words = "CREATE TEXT SEARCH DICTIONARY dict (TEMPLATE = simple);
        CREATE TEXT SEARCH CONFIGURATION conf (COPY = simple);
        ALTER TEXT SEARCH CONFIGURATION conf ALTER MAPPING FOR asciiword WITH dict;
        UPDATE pg_ts_dict SET dictinitoption = 'stopwords = ''nosuch''' WHERE dictname = 'dict';
        CREATE TABLE own AS SELECT generate_series(1, 7) AS id";
    for (sql, said, view) in [(foreign.as_str(), "near", true), (words, "dict", false)] {
        let (server, opsd, database) = site(sql);
        back_up(&opsd);
        std::fs::remove_file(&far).or_else(|e| if view { Err(e) } else { Ok(()) }).unwrap();
        let run = opsd.run(&["restore", "--verify", "--json"]).expect_code(0);
        let result = result(&run);
        assert_eq!(result["verdict"], "unproven", "{run}");
        assert_eq!(result["databases"][0]["differences"], json!([]), "{run}");
        assert_eq!(result["databases"][0]["tables_proven"], 1, "{run}");
        assert!(result["warnings"].to_string().contains(said), "{run}");
        assert!(result["warnings"].to_string().contains("could not open"), "{run}");
        server.drop_database(&database);
    }
}

#[test]
fn a_set_that_is_removed_while_it_is_rehearsed_fails_the_rehearsal_only() {
    let (server, opsd, database) = site("CREATE TABLE own AS SELECT generate_series(1, 7) AS id");
    server.psql(&database, &inside::runs_in_scratch("hold", &inside::reach_and_wait()));
    let id = back_up(&opsd);
    let child = opsd.command(&["restore", "--verify", "--json"]).spawn().unwrap();
    inside::await_file(&opsd.path("scratch"), "reached");
    std::fs::remove_dir_all(directory(&opsd, &id)).unwrap();
    inside::go(&opsd.path("scratch"));
    let run = finish_child(child, "restore --verify".into());
    let run = run.expect_failure(1, &[&id, "removed meanwhile"]);
    assert_eq!(result(&run)["verdict"], "failed", "{run}");
    assert_eq!(result(&run)["databases"][0]["differences"], json!([]), "{run}");
    assert_eq!(opsd.repository_files(), Vec::<String>::new(), "a record of a set that is gone");
    server.drop_database(&database);
}

/// The definitions of such a table are the same; the archive says it beside them.
#[test]
fn a_table_access_method_that_is_lost_is_a_difference() {
    let server = shared(15);
    let database = server.fresh_database("method");
    server.psql(
        &database,
        "CREATE ACCESS METHOD second TYPE TABLE HANDLER heap_tableam_handler;
         CREATE TABLE other (id integer) USING second; INSERT INTO other VALUES (1)",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    let programs = opsd.path("programs");
    std::fs::create_dir(&programs).unwrap();
    std::fs::set_permissions(&programs, PermissionsExt::from_mode(0o755)).unwrap();
    for program in ["postgres", "initdb", "pg_dump", "pg_dumpall"] {
        symlink(bin_dir(15).join(program), programs.join(program)).unwrap();
    }
    // It follows what the session says, and that is left out.
    let script =
        format!("#!/bin/sh\nexec {}/pg_restore --no-table-access-method \"$@\"\n", bin_dir(15).display());
    std::fs::write(programs.join("pg_restore"), script).unwrap();
    std::fs::set_permissions(programs.join("pg_restore"), PermissionsExt::from_mode(0o755)).unwrap();
    opsd.postgres.set("bin_dir", quoted(programs.to_str().unwrap()));
    let run = opsd.run(&["restore", "--verify", "--json"]);
    let run = run.expect_failure(3, &["table public.other", "access method \"heap\" instead of \"second\""]);
    assert_eq!(result(&run)["verdict"], "differs", "{run}");
    server.drop_database(&database);
}

#[test]
fn instructions_of_any_size_are_not_read_into_memory() {
    let (server, opsd, database) = site("CREATE TABLE own AS SELECT generate_series(1, 7) AS id");
    let id = back_up(&opsd);
    let large = vec![b'\n'; 17 << 20];
    std::fs::write(directory(&opsd, &id).join("RESTORE.md"), &large).unwrap();
    forge(&opsd, &id, |manifest| {
        manifest["restore_md"]["size"] = large.len().into();
        manifest["restore_md"]["sha256"] = opsd::set::seal::sha256_hex(&large).into();
    });
    let run = opsd.run(&["restore", "--verify", "--json"]);
    run.expect_failure(3, &["RESTORE.md", "17825792 bytes"]);
    server.drop_database(&database);
}

/// Large objects are read in pieces; one that ends with a piece has no next one.
#[test]
fn large_objects_that_end_where_a_piece_ends_are_proven() {
    let (server, opsd, database) = site(
        "SELECT lo_from_bytea(0, decode(repeat('ab', size), 'hex'))
           FROM unnest(ARRAY[0, 1, 65535, 65536, 65537, 1048576, 1114112, 1114113, 2162688]) AS size",
    );
    back_up(&opsd);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    server.drop_database(&database);
}

/// Where there is one archive, its own order tells what came after the rows.
#[test]
fn an_archive_of_everything_tells_what_failed_after_the_rows() {
    let settings = [("max_locks_per_transaction", "10"), ("max_connections", "20")];
    let options = crate::support::postgres::Options { settings: &settings, ..Default::default() };
    let server = Server::start(crate::support::postgres::default_major(), &options);
    server.create_database("app");
    fixtures::many_tables(&server, "app", 90);
    server.psql("app", ORPHAN);
    let opsd = Opsd::new(&server, &["app"]);
    let id = back_up(&opsd);
    assert!(directory(&opsd, &id).join("app/full.pgdump.zst.age").exists());
    let run = opsd.run(&["restore", "--verify", "--json"]);
    run.expect_failure(3, &["does not restore", "child_secret_fkey", "violates foreign key constraint"]);
    let to = server.socket_url(SUPERUSER, "again");
    let run = opsd.run(&["restore", "db", "--to", &to, "--create", "--backup", &id, "--json"]);
    let run = run.expect_failure(1, &["child_secret_fkey", "\"again\"", "1 statement failed: "]);
    assert_eq!(run.json()["failed"].as_array().unwrap().len(), 1, "{run}");
    assert_eq!(server.psql("again", "SELECT count(*) FROM child"), "1");
}

/// A row that no restore will give its constraint back to: triggers were off.
pub const ORPHAN: &str = "CREATE TABLE parent (id integer PRIMARY KEY);
    CREATE TABLE child (secret integer REFERENCES parent);
    INSERT INTO parent VALUES (1);
    SET session_replication_role = replica; INSERT INTO child VALUES (424242)";

/// More rehearsals than seconds: on some of them the clock shows the same second.
#[test]
fn rehearsals_that_end_in_the_same_second_are_each_recorded() {
    let (server, mut opsd, database) = site("CREATE TABLE own AS SELECT generate_series(1, 7) AS id");
    back_up(&opsd);
    opsd.encryption.set("identity_file", quoted("/nonexistent/identity.txt"));
    let commands: Vec<_> = (0..8).map(|_| opsd.command(&["restore", "--verify", "--json"])).collect();
    let runs: Vec<_> = commands.into_iter().map(|mut command| command.spawn().unwrap()).collect();
    for run in runs {
        let run = finish_child(run, "restore --verify".to_owned()).expect_failure(1, &["identity.txt"]);
        assert!(!result(&run)["warnings"].to_string().contains("recorded"), "{run}");
    }
    let is_record = |name: &&String| name.contains("/verified-") && !name.ends_with(".minisig");
    assert_eq!(opsd.repository_files().iter().filter(is_record).count(), 8);
    server.drop_database(&database);
}

/// Only so many records of a set are read: a host on which no rehearsal runs must not hide what was proven before.
#[test]
fn failures_without_end_are_not_recorded_without_end() {
    let (server, mut opsd, database) = site("CREATE TABLE own AS SELECT generate_series(1, 7) AS id");
    let id = back_up(&opsd);
    let now = chrono::Utc::now();
    for seconds in 1..=16 {
        record_failure(&opsd, &id, now - chrono::TimeDelta::seconds(seconds));
    }
    let records = |opsd: &Opsd| {
        let is_record = |name: &&String| name.contains("/verified-") && !name.ends_with(".minisig");
        opsd.repository_files().iter().filter(is_record).count()
    };
    let identity = opsd.encryption.clone();
    opsd.encryption.set("identity_file", quoted("/nonexistent/identity.txt"));
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(1, &["identity.txt"]);
    assert!(result(&run)["warnings"].to_string().contains("is not recorded"), "{run}");
    assert_eq!(records(&opsd), 16);
    opsd.encryption = identity.clone();
    opsd.ok(&["restore", "--verify"]);
    next_second();
    opsd.encryption.set("identity_file", quoted("/nonexistent/identity.txt"));
    opsd.run(&["restore", "--verify"]).expect_code(1);
    assert_eq!(records(&opsd), 18);
    opsd.encryption = identity;
    assert_eq!(listed(&opsd)[0].verdict.as_deref(), Some("proven"));
    server.drop_database(&database);
}
