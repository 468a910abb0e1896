//! The worst day: a restore into a server that is there, where something is in its way. Rows that are in
//! are not thrown away, and nothing is called done that is not.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::rehearsals::ORPHAN;
use crate::support::compare::{assert_same, assert_same_content, db};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, finish_child, quoted};
use crate::support::postgres::{
    Options, PASSWORD, SUPERUSER, Server, bin_dir, default_major, default_server, identifier, unique,
};
use crate::support::sets::{back_up, forge};

fn site(server: &Server, sql: &str) -> (Opsd, String) {
    let database = server.fresh_database("worst");
    server.psql(&database, sql);
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("large_table", quoted("32KiB"));
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    (opsd, database)
}

#[test]
fn what_fails_after_the_rows_does_not_cost_the_rows() {
    let server = default_server();
    let more = "; SET session_replication_role = origin;
        CREATE FUNCTION f(integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT $1';
        CREATE INDEX odd ON parent (f(id));
        CREATE MATERIALIZED VIEW report AS SELECT f(id) FROM parent;
        CREATE OR REPLACE FUNCTION f(integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT $1 / 0'";
    let (opsd, database) = site(server, &format!("{ORPHAN}{more}"));
    back_up(&opsd);
    let rows = "SELECT (SELECT count(*) FROM parent), (SELECT count(*) FROM child),
                       (SELECT count(*) FROM pg_constraint WHERE conname = 'parent_pkey')";
    let failed = ["FK CONSTRAINT child child_secret_fkey", "INDEX odd", "MATERIALIZED VIEW DATA report"];

    let target = unique("kept");
    let to = server.socket_url(SUPERUSER, &target);
    let restore = ["restore", "db", "--to", to.as_str(), "--json"];
    let run = opsd.run(&[&restore[..], &["--create"]].concat());
    let run = run.expect_failure(1, &[&target, "all rows", "3 statements failed: "]);
    let listed = run.json()["failed"].clone();
    let listed: Vec<&str> = listed.as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    for entry in failed {
        assert!(listed.iter().any(|l| l.contains(entry)), "{entry} is not in {listed:?}");
        assert!(run.stderr.contains(entry), "{run}");
    }
    assert_eq!(listed.len(), 3, "{listed:?}");
    assert!(!format!("{}{}", run.stdout, run.stderr).contains("424242"), "{run}");
    assert_eq!(server.psql(&target, rows), "1|1|1");

    // It does not take another's place, and the operator is told how it can.
    server.psql(&target, "DELETE FROM child; CREATE TABLE precious (id integer)");
    let run = opsd.run(&[&restore[..], &["--replace", "--yes"]].concat()).expect_code(1);
    let made = run.json()["restored_as"].as_str().unwrap().to_owned();
    assert!(made.starts_with(&format!("{target}_restoring_")), "{run}");
    assert_eq!(run.json()["old_database"], json!(null), "{run}");
    for said in [
        format!("database {target:?} is as it was"),
        format!("ALTER DATABASE {} RENAME TO {}", identifier(&made), identifier(&target)),
        format!("DROP DATABASE {}", identifier(&made)),
    ] {
        assert!(run.stderr.contains(&said), "{said}: {run}");
    }
    assert_eq!(server.psql(&target, "SELECT count(*) FROM child"), "0");
    assert_eq!(server.psql(&target, "SELECT count(*) FROM precious"), "0");
    assert_eq!(server.psql(&made, rows), "1|1|1");
    for name in [&target, &made, &database] {
        server.drop_database(name);
    }
}

/// Bytes that mean nothing in UTF-8 go into it unexamined where the other side says SQL_ASCII.
#[test]
fn an_empty_database_of_another_encoding_is_filled_only_where_the_server_converts() {
    let server = default_server();
    let restore = |source: &str, value: &str, target: &str| {
        let (from, into) = (unique("from"), unique("into"));
        server.create_database_in(&from, source);
        server.psql(&from, &format!("CREATE TABLE t (v text); INSERT INTO t VALUES ({value})"));
        server.create_database_in(&into, target);
        let opsd = Opsd::new(server, &[&from]);
        back_up(&opsd);
        let to = server.socket_url(SUPERUSER, &into);
        let run = opsd.run(&["restore", "db", "--to", &to, "--json"]);
        (run, into)
    };
    for (source, value, target) in
        [("SQL_ASCII", "E'\\xff'", "UTF8"), ("UTF8", "'é'", "SQL_ASCII"), ("LATIN1", "'x'", "EUC_JP")]
    {
        let (run, into) = restore(source, value, target);
        run.expect_failure(1, &[source, target, "--create"]);
        assert_eq!(server.psql(&into, "SELECT count(*) FROM pg_class WHERE relname = 't'"), "0", "{source}");
        server.drop_database(&into);
    }
    let (run, into) = restore("LATIN1", "'é'", "UTF8");
    let run = run.expect_code(0);
    assert!(run.json()["warnings"].to_string().contains("LATIN1"), "{run}");
    assert_eq!(server.psql(&into, "SELECT v, octet_length(v) FROM t"), "é|2");
    server.drop_database(&into);
}

#[test]
fn a_replace_that_cannot_carry_everything_over_does_not_swap() {
    let server = &Server::start(default_major(), &Options::default());
    server.psql("postgres", "CREATE ROLE maker LOGIN CREATEDB; CREATE ROLE other");
    let (opsd, _) =
        site(server, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id; ALTER TABLE a OWNER TO maker");
    back_up(&opsd);
    // A setting that only a superuser may make; an owner that one may not give.
    for (name, property, said) in [
        ("set", "ALTER DATABASE \"set\" SET log_statement = 'ddl'", "log_statement"),
        ("owned", "ALTER DATABASE owned OWNER TO other", "owner \"other\""),
    ] {
        server.psql("postgres", &format!("CREATE DATABASE \"{name}\" OWNER maker"));
        server.psql(name, "CREATE TABLE precious (id integer)");
        server.psql("postgres", property);
        let to = server.socket_url("maker", name);
        let run = opsd.run(&["restore", "db", "--to", &to, "--replace", "--yes", "--json"]).expect_code(1);
        assert!(run.stderr.contains(&format!("database {name:?} is as it was")), "{run}");
        assert!(run.json()["failed"].to_string().contains(said.split(' ').next().unwrap()), "{run}");
        assert_eq!(server.psql(name, "SELECT count(*) FROM precious"), "0", "{run}");
        let made = run.json()["restored_as"].as_str().unwrap().to_owned();
        assert_eq!(server.psql(&made, "SELECT count(*) FROM a"), "9", "{run}");
    }
}

#[test]
fn a_locale_that_the_server_lacks_is_an_error_before_anything_is_made() {
    let server = default_server();
    let (opsd, database) = site(server, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let id = back_up(&opsd);
    forge(&opsd, &id, |manifest| manifest["databases"][0]["locale"]["collate"] = "xx_XX.UTF-8".into());
    let target = unique("elsewhere");
    let to = server.socket_url(SUPERUSER, &target);
    opsd.run(&["restore", "db", "--to", &to, "--create"])
        .expect_failure(1, &["xx_XX.UTF-8", "hint: ", "install the locale", "empty database"]);
    assert!(!server.databases().contains(&target));
    // The operator's own choice is taken, and the difference told.
    server.create_database(&target);
    let run = opsd.ok(&["restore", "db", "--to", &to, "--json"]);
    assert!(run.json()["warnings"].to_string().contains("xx_XX.UTF-8"), "{run}");
    assert_eq!(server.psql(&target, "SELECT count(*) FROM a"), "9");
    // A rehearsal falls back, as it did.
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert!(run.stdout.contains("xx_XX.UTF-8"), "{run}");
    server.drop_database(&target);
    server.drop_database(&database);
}

/// What the cluster has beside the database is none of its concern.
#[test]
fn only_roles_that_the_database_names_are_needed() {
    let server = &Server::start(default_major(), &Options::default());
    let roles = ["stranger", "Guest \"o", "owns", "sets"];
    for role in roles {
        server.psql("postgres", &format!("CREATE ROLE {}", identifier(role)));
    }
    let rename = |from: &dyn Fn(&str) -> String, to: &dyn Fn(&str) -> String| {
        for role in roles {
            let sql = format!("ALTER ROLE {} RENAME TO {}", identifier(&from(role)), identifier(&to(role)));
            server.psql("postgres", &sql);
        }
    };
    let (here, away) = (|role: &str| role.to_owned(), |role: &str| format!("{role} away"));
    for (said, needed) in [
        ("CREATE TABLE a AS SELECT 1 AS stranger_id", None),
        ("CREATE TABLE a AS SELECT 1 AS id; GRANT SELECT ON a TO \"Guest \"\"o\"", Some("Guest \"o")),
        ("CREATE SCHEMA s AUTHORIZATION owns", Some("owns")),
        (
            "DO $$ BEGIN EXECUTE format('ALTER ROLE sets IN DATABASE %I SET work_mem = %L',
                                        current_database(), '5MB'); END $$",
            Some("sets"),
        ),
    ] {
        let (opsd, database) = site(server, said);
        back_up(&opsd);
        server.drop_database(&database);
        rename(&here, &away);
        let to = server.socket_url(SUPERUSER, &database);
        let run = opsd.run(&["restore", "db", "--to", &to, "--create"]);
        rename(&away, &here);
        match needed {
            None => drop(run.expect_code(0)),
            Some(role) => {
                let run = run.expect_failure(1, &["the server lacks roles of the set: ", role, "--globals"]);
                assert!(!run.stderr.contains("stranger"), "{run}");
                assert!(!server.databases().contains(&database), "{run}");
            }
        }
    }
}

/// A role that owns everything and may make databases needs no superuser; also where it has taken the
/// right to truncate from itself.
#[test]
fn an_owner_that_may_create_databases_restores_without_being_superuser() {
    let server = &Server::start(default_major(), &Options::default());
    server.psql("postgres", "CREATE ROLE keeper LOGIN CREATEDB; CREATE ROLE clerk LOGIN");
    server.psql("postgres", "CREATE DATABASE mine OWNER keeper");
    let mine = "CREATE SCHEMA shop; CREATE TABLE shop.items (id serial PRIMARY KEY, note text);
        INSERT INTO shop.items (note) SELECT repeat('x', 100) FROM generate_series(1, 1000);
        CREATE TABLE shop.log (item integer REFERENCES shop.items, note text);
        INSERT INTO shop.log SELECT i, repeat('y', 100) FROM generate_series(1, 1000) i;
        REVOKE TRUNCATE ON shop.log FROM keeper;
        CREATE VIEW shop.counted AS SELECT count(*) FROM shop.items;
        CREATE MATERIALIZED VIEW shop.filled AS SELECT * FROM shop.counted;
        SELECT lo_from_bytea(4711, 'large')";
    server.psql("mine", &format!("SET SESSION AUTHORIZATION keeper; {mine}"));
    let mut opsd = Opsd::new(server, &["mine"]);
    opsd.job.set("large_table", quoted("32KiB"));
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    back_up(&opsd);
    assert!(opsd.repository_files().iter().any(|f| f.ends_with("data-2.pgdump.zst.age")), "two large tables");
    let keeper = |name: &str| server.socket_url("keeper", name);
    let run = opsd.ok(&["restore", "db", "--to", &keeper("again"), "--create", "--json"]);
    assert_eq!(run.json()["warnings"], json!([]), "{run}");
    assert_same(db(server, "mine"), db(server, "again"));
    server.psql("again", "SET SESSION AUTHORIZATION keeper; DELETE FROM shop.log");
    let run = opsd.ok(&["restore", "db", "--to", &keeper("again"), "--replace", "--yes", "--json"]);
    assert_eq!(run.json()["warnings"], json!([]), "{run}");
    assert_same_content(db(server, "mine"), db(server, "again"));
    assert_eq!(
        server.psql("again", "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'again'"),
        "keeper"
    );

    let run = opsd.run(&["restore", "db", "--to", &server.socket_url("clerk", "third"), "--create"]);
    run.expect_failure(1, &["permission denied to create database", "hint: ", "CREATEDB"]);
    assert!(!server.databases().iter().any(|name| name == "third"));
}

/// Between opsd and the server; cuts the connection when the server has answered the swap.
fn cut_after_the_swap(port: u16) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let here = listener.local_addr().unwrap().port();
    let cut = Arc::new(AtomicBool::new(false));
    let was_cut = cut.clone();
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let swaps = Arc::new(AtomicBool::new(false));
            let (seen, cut) = (swaps.clone(), cut.clone());
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(n @ 1..) = from.read(&mut buffer) {
                    if buffer[..n].windows(9).any(|w| w == b"RENAME TO") {
                        seen.store(true, Ordering::SeqCst);
                    }
                    if to.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Both);
            });
            let (mut from, mut to) = (server, client);
            std::thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(n @ 1..) = from.read(&mut buffer) {
                    let done = buffer[..n].windows(7).any(|w| w == b"COMMIT\0");
                    if done && swaps.load(Ordering::SeqCst) {
                        cut.store(true, Ordering::SeqCst);
                        break;
                    }
                    if to.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    });
    (here, was_cut)
}

#[test]
fn a_connection_that_is_lost_while_the_swap_commits_is_looked_after() {
    let server = default_server();
    let (mut opsd, database) = site(server, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    back_up(&opsd);
    let target = server.fresh_database("swapped");
    server.psql(&target, "CREATE TABLE precious (id integer)");
    let (port, was_cut) = cut_after_the_swap(server.port);
    opsd.env("PGPASSWORD", PASSWORD);
    let to = format!("postgres://{SUPERUSER}@127.0.0.1:{port}/{target}");
    let run = opsd.ok(&["restore", "db", "--to", &to, "--replace", "--yes", "--json"]);
    assert!(was_cut.load(Ordering::SeqCst), "{run}");
    let old = run.json()["old_database"].as_str().unwrap().to_owned();
    assert_eq!(server.psql(&target, "SELECT count(*) FROM a"), "9");
    assert_eq!(server.psql(&old, "SELECT count(*) FROM precious"), "0");
    for name in [&target, &old, &database] {
        server.drop_database(name);
    }
}

#[test]
fn a_signal_while_the_target_does_not_answer_ends_the_restore() {
    let (opsd, database) = site(default_server(), "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    back_up(&opsd);
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let to = format!("postgres://nobody@127.0.0.1:{}/x", silent.local_addr().unwrap().port());
    let child = opsd.command(&["restore", "db", "--to", &to, "--create"]).spawn().unwrap();
    let _connection = silent.accept().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    finish_child(child, "restore --to".into()).expect_code(143);
    default_server().drop_database(&database);
}

#[test]
fn a_schema_that_claims_more_than_memory_is_refused() {
    let server = default_server();
    let (opsd, database) = site(server, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let id = back_up(&opsd);
    forge(&opsd, &id, |manifest| {
        let streams = manifest["databases"][0]["streams"].as_array_mut().unwrap();
        let schema = streams.iter_mut().find(|s| s["name"] == "schema").unwrap();
        schema["plain_size"] = (1u64 << 40).into();
    });
    let target = unique("large");
    let to = server.socket_url(SUPERUSER, &target);
    opsd.run(&["restore", "db", "--to", &to, "--create"])
        .expect_failure(1, &["definitions", "1048576 MiB", "RESTORE.md"]);
    assert!(!server.databases().contains(&target));
    server.drop_database(&database);
}

/// A foreign table ends ANALYZE of everything; each table by itself includes partitioned ones.
#[test]
fn partitioned_tables_are_analyzed_beside_a_foreign_table() {
    let server = default_server();
    let database = fixtures::database_with(server, "roots", &[fixtures::ROLES, fixtures::FOREIGN]);
    server.psql(
        &database,
        "CREATE TABLE root (id integer) PARTITION BY RANGE (id);
         CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (1000);
         INSERT INTO root SELECT generate_series(1, 900)",
    );
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let target = unique("roots");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &target), "--create"]);
    assert_eq!(server.psql(&target, "SELECT count(*) FROM pg_stats WHERE tablename = 'root'"), "1");
    server.drop_database(&target);
}
