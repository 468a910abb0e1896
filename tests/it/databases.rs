//! Making and dropping databases on a server where somebody is in the way.

use std::time::Duration;

use opsd::config::Connection;
use opsd::error::Kind;
use opsd::postgres::connect::connect;
use opsd::postgres::locale::Locale;
use opsd::restore::{databases, swap};
use opsd::shutdown::Shutdown;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::opsd::{Opsd, finish_child};
use crate::support::postgres::{Options, SUPERUSER, Server, default_major, literal};
use crate::support::processes::until;
use crate::support::sets::back_up;
use crate::traps::Psql;

/// Nobody makes, renames or drops a database meanwhile; connecting and reading is possible.
const NO_CHANGES: &str = "BEGIN; LOCK TABLE pg_catalog.pg_database IN SHARE MODE;";

/// How many sessions wait for a lock with such a statement.
fn waiting(server: &Server, statement: &str) -> String {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE {}
            AND pid <> pg_backend_pid()",
        literal(&format!("{statement}%"))
    );
    server.psql("postgres", &sql)
}

#[test]
fn ctrl_c_ends_a_restore_that_waits_to_make_or_drop_its_database() {
    // Its own server: the others make databases all the time.
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql(
        "app",
        "CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN true; END';
         CREATE TABLE slow (id integer CHECK (public.slow())); INSERT INTO slow SELECT generate_series(1, 150)",
    );
    let opsd = Opsd::new(&server, &["app"]);
    back_up(&opsd);
    let to = server.socket_url(SUPERUSER, "target");
    let restore = ["restore", "db", "--to", &to, "--create"];
    let is_there = || server.databases().contains(&"target".to_owned());

    let mut locker = Psql::new(&server, "postgres");
    locker.send_within(NO_CHANGES);
    let child = opsd.command(&restore).spawn().unwrap();
    until("CREATE DATABASE waits", || waiting(&server, "CREATE DATABASE") == "1");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let run = finish_child(child, "restore that makes".into()).expect_failure(130, &["interrupted"]);
    assert!(!run.stderr.contains("may still make"), "{run}");
    // The server was told, too: nothing appears once the way is free.
    until("it was cancelled", || waiting(&server, "CREATE DATABASE") == "0");
    locker.end("COMMIT;");
    assert!(!is_there());

    // Its sessions end while rows go in, and what it made so far cannot be dropped.
    let child = opsd.command(&restore).spawn().unwrap();
    let loads = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'target' AND query LIKE 'COPY %'";
    until("rows go in", || is_there() && server.psql("postgres", loads) != "0");
    let mut locker = Psql::new(&server, "postgres");
    locker.send_within(NO_CHANGES);
    until("its sessions end", || {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'target'";
        server.psql("postgres", end);
        waiting(&server, "DROP DATABASE") == "1"
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let run = finish_child(child, "restore that drops".into());
    run.expect_failure(
        130,
        &[
            "database \"target\" is incomplete and could not be dropped",
            "the server still tries: interrupted",
        ],
    );
    locker.end("COMMIT;");
    until("the server has dropped it by itself", || !is_there());
}

#[test]
fn ctrl_c_ends_a_restore_that_waits_for_roles_for_properties_or_to_swap() {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql(
        "app",
        "CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN true; END';
         CREATE TABLE slow (id integer CHECK (public.slow())); INSERT INTO slow SELECT generate_series(1, 150);
         CREATE ROLE late; COMMENT ON DATABASE app IS 'ours'",
    );
    let opsd = Opsd::new(&server, &["app"]);
    back_up(&opsd);
    server.psql("postgres", "DROP ROLE late");
    let to = server.socket_url(SUPERUSER, "target");
    let interrupted = |arguments: &[&str], waits: &str, meanwhile: &mut dyn FnMut()| {
        let mut command = opsd.command(&[&["restore", "db", "--to", to.as_str()], arguments].concat());
        let child = command.spawn().unwrap();
        meanwhile();
        until(waits, || waiting(&server, waits) == "1");
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let run = finish_child(child, arguments.join(" "));
        until("it was cancelled", || waiting(&server, waits) == "0");
        run
    };

    let mut locker = Psql::new(&server, "postgres");
    locker.send_within("BEGIN; LOCK TABLE pg_catalog.pg_authid IN SHARE MODE;");
    let run = interrupted(&["--create", "--globals"], "BEGIN; CREATE ROLE \"late\"", &mut || ());
    run.expect_failure(130, &["nothing was restored, and no role was made: interrupted"]);
    locker.end("COMMIT;");
    assert_eq!(server.psql("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'late'"), "0");
    assert_eq!(server.databases(), ["app", "postgres"]);

    server.psql("postgres", "CREATE ROLE late");
    let mut locker = Psql::new(&server, "postgres");
    let run = interrupted(&["--create"], "COMMENT ON DATABASE", &mut || {
        until("the database is there", || server.databases().contains(&"target".to_owned()));
        locker.send_within("BEGIN; COMMENT ON DATABASE target IS 'held';");
    });
    run.expect_failure(130, &["database \"target\" holds all rows of the set, but not all of its owner"]);
    locker.end("COMMIT;");
    assert_eq!(server.psql("target", "SELECT count(*) FROM slow"), "150");

    server.psql("target", "TRUNCATE slow; CREATE TABLE precious ()");
    let mut locker = Psql::new(&server, "postgres");
    locker.send_within("BEGIN; COMMENT ON DATABASE target IS 'held';");
    let run = interrupted(&["--replace", "--yes"], "SELECT pg_terminate_backend", &mut || ());
    let run = run.expect_failure(
        130,
        &["did not take the place of \"target\", which is as it was", "to swap them by hand: ALTER DATABASE"],
    );
    locker.end("COMMIT;");
    let found = server.databases();
    assert!(found.len() == 4 && found[3].starts_with("target_restoring_"), "{found:?}");
    assert!(run.stderr.contains(&found[3]), "{run}");
    assert_eq!(server.psql(&found[3], "SELECT count(*) FROM slow"), "150");
    assert_eq!(server.psql("target", "SELECT count(*) FROM slow, precious"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_somebody_is_bounded_and_names_them() {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("kept");
    let connection = Connection::from_arg(&server.socket_url(SUPERUSER, "kept")).unwrap().connection;
    let locale = Locale {
        encoding: "UTF8".into(),
        collate: "C.UTF-8".into(),
        ctype: "C.UTF-8".into(),
        provider: "libc".into(),
        locale: None,
        icu_rules: None,
        monetary: "C".into(),
    };
    let shutdown = Shutdown::default();
    let admin = connect(&connection, Some("postgres"), "opsd test").await.unwrap();
    let bound = Duration::from_millis(500);
    let on = databases::Server { admin: &admin, connection: &connection, shutdown: &shutdown, bound };

    let mut locker = Psql::new(&server, "postgres");
    locker.send_within(NO_CHANGES);
    let pid =
        server.psql("postgres", "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'locker%'");
    let name =
        server.psql("postgres", &format!("SELECT application_name FROM pg_stat_activity WHERE pid = {pid}"));
    let made = on.create("new", &locale, None).await.unwrap_err();
    let in_the_way = format!("given up after 0.5 s; in the way: pid {pid} ({name:?})");
    for (error, statement) in [
        (made, "CREATE DATABASE \"new\" was "),
        (on.drop("kept").await.unwrap_err(), "DROP DATABASE \"kept\" was "),
    ] {
        let text = error.to_string();
        assert!(
            text.contains(statement) && text.contains(&in_the_way) && !text.contains("LOCK"),
            "{error:?}"
        );
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(&format!("SELECT pg_terminate_backend({pid})")), "{error:?}");
        assert_eq!(error.kind(), Kind::Failed);
    }
    locker.end("COMMIT;");
    // What was given up was cancelled where it would have made something, and goes on where it removes.
    until("it is dropped", || !server.databases().contains(&"kept".to_owned()));
    assert!(!server.databases().contains(&"new".to_owned()));
    on.create("new", &locale, None).await.unwrap();
    on.create("app", &locale, None).await.unwrap();
    let mut locker = Psql::new(&server, "postgres");
    locker.send_within("BEGIN; COMMENT ON DATABASE app IS 'held';");
    let error = swap::swap(&on, "app", "new", &[]).await.unwrap_err();
    for said in ["\"new\"", "did not take the place of \"app\"", "given up after 0.5 s; in the way: pid "] {
        assert!(error.to_string().contains(said), "{error:?}");
    }
    assert_eq!(server.databases(), ["app", "new", "postgres"]);
    locker.end("COMMIT;");
    server.psql("new", "CREATE TABLE mark ()");
    let admin = connect(&connection, Some("postgres"), "opsd test").await.unwrap();
    let on = databases::Server { admin: &admin, bound: databases::BOUND, ..on };
    let old = swap::swap(&on, "app", "new", &[]).await.unwrap();
    assert_eq!(server.databases(), ["app", &old, "postgres"]);
    assert_eq!(server.psql("app", "SELECT count(*) FROM mark"), "0");
    on.drop("app").await.unwrap();
}
