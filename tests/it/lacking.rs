//! A job of several databases, of which one cannot be dumped, or is dropped meanwhile.

use rustix::process::Signal;

use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{self, Options, SUPERUSER, Server};
use crate::support::sets;
use crate::traps::{paused, site, slow_database, wait_for};

/// All databases of a server.
fn all(server: &Server) -> Opsd {
    let mut opsd = site(server, "postgres");
    opsd.job.set("source", "{ postgres = \"main\", databases = [\"*\"] }");
    opsd
}

/// A row that COPY cannot write: its value of an enum is gone.
const BROKEN: &str = "CREATE TYPE colour AS ENUM ('red', 'blue');
    CREATE TABLE car AS SELECT 'blue'::colour AS colour;
    DELETE FROM pg_enum WHERE enumlabel = 'blue';";

#[test]
fn one_database_that_cannot_be_dumped_leaves_no_other_without_a_backup() {
    let server = &Server::start(postgres::default_major(), &Options::default());
    for name in ["apples", "bananas", "cherries"] {
        server.create_database(name);
        server.psql(name, "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    }
    let opsd = all(server);
    opsd.ok(&["backup"]);
    server.psql("bananas", BROKEN);
    let run = opsd.run(&["backup", "--json"]).expect_failure(
        1,
        &["lacks database \"bananas\"", "invalid internal value for enum", "its other databases are whole"],
    );
    let set = &run.json()["sets"][0];
    let names = |set: &serde_json::Value| -> Vec<String> {
        set["databases"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(set), ["apples", "cherries", "postgres"]);
    assert_eq!(set["lacking"][0]["name"], "bananas", "{run}");
    let id = set["id"].as_str().unwrap().to_owned();
    assert!(
        !opsd.repository_files().iter().any(|f| f.contains(&format!("{id}/bananas"))),
        "nothing is left of it"
    );
    assert!(opsd.repository_files().iter().any(|f| f.ends_with(&format!("{id}/globals.sql.zst.age"))));

    // Nobody counts on it, and it is there for who asks for it.
    let listed = opsd.ok(&["backups", "list", "--json"]);
    assert!(listed.stdout.contains("\"partial\""), "{listed}");
    let listed = opsd.ok(&["backups", "list"]);
    assert!(
        listed.stdout.contains("a database lacking") && listed.stdout.contains("\"bananas\""),
        "{listed}"
    );
    let url = server.socket_url(SUPERUSER, "again");
    let to = ["restore", "db", "--database", "apples", "--to", &url, "--create"];
    opsd.run(&to).expect_failure(3, &["bananas", "--backup"]);
    opsd.ok(&[&to[..], &["--backup", &id]].concat());
    assert_eq!(server.psql("again", "SELECT count(*) FROM t"), "10");
    server.drop_database("again");

    let named = ["restore", "db", "--database", "bananas", "--to", &url, "--create", "--backup", &id];
    opsd.run(&named).expect_failure(1, &["lacks database \"bananas\"", "exited with status 1"]);
    // What it has is no proof of what it lacks.
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_code(0);
    assert_eq!(sets::result(&run)["verdict"], "unproven", "{run}");
    assert!(sets::result(&run)["warnings"].to_string().contains("bananas"), "{run}");

    server.psql("bananas", "DROP TYPE colour CASCADE; DROP TABLE car");
    let run = opsd.ok(&["backup", "--json"]);
    assert_eq!(names(&run.json()["sets"][0]).len(), 4);
    assert_eq!(sets::result(&opsd.ok(&["restore", "--verify", "--json"]))["verdict"], "proven");
}

/// The only database that such a set holds is not taken for the one that is meant.
#[test]
fn the_one_that_is_left_does_not_take_the_place_of_the_one_that_is_lacking() {
    let server = &Server::start(postgres::default_major(), &Options::default());
    for name in ["app", "audit"] {
        server.create_database(name);
        server.psql(name, "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    }
    let mut opsd = site(server, "app");
    opsd.job.set("source", "{ postgres = \"main\", databases = [\"app\", \"audit\"] }");
    server.psql("app", BROKEN);
    let run = opsd.run(&["backup", "--json"]).expect_code(1);
    let id = run.json()["sets"][0]["id"].as_str().unwrap().to_owned();
    let manifest = sets::manifest(&opsd, &id);
    assert!(
        !manifest["lacking"].to_string().contains("enum"),
        "no words of the server's about rows: {manifest}"
    );
    let url = server.socket_url(SUPERUSER, "app");
    let to = ["restore", "db", "--to", &url, "--replace", "--yes", "--backup", &id];
    opsd.run(&to).expect_failure(2, &["the set holds audit alone", "--database audit"]);
    assert_eq!(server.psql("app", "SELECT count(*) FROM car"), "1");
}

/// One that may not be read is found before anything is dumped.
#[test]
fn nor_does_one_that_cannot_be_planned() {
    let server = &Server::start(postgres::default_major(), &Options::default());
    server.psql("postgres", "CREATE ROLE backup LOGIN PASSWORD 'x'; CREATE TABLE t AS SELECT 1 AS id; GRANT SELECT ON t TO backup");
    server.create_database("closed");
    server.psql("closed", "CREATE TABLE secret AS SELECT 1 AS id");
    let mut opsd = all(server);
    opsd.postgres.set("url", quoted(&server.socket_url("backup", "postgres")));
    let run = opsd
        .run(&["backup", "--json"])
        .expect_failure(1, &["closed", "no SELECT privilege on table public.secret"]);
    assert_eq!(run.json()["sets"][0]["lacking"][0]["name"], "closed", "{run}");
    server.psql("postgres", "REVOKE SELECT ON t FROM backup");
    opsd.run(&["backup"]).expect_failure(1, &["no database could be dumped", "no SELECT privilege"]);
}

#[test]
fn a_database_that_is_dropped_meanwhile_is_a_warning() {
    let server = &Server::start(postgres::default_major(), &Options::default());
    let database = slow_database(server);
    server.create_database("zz");
    let mut opsd = all(server);
    let mut run = paused(server, &database, &mut opsd);
    // It may wait for a session that waits for its client, which is stopped here (`served` shows that none does else).
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'ProcSignalBarrier')
                     OR NOT EXISTS (SELECT FROM pg_database WHERE datname = 'zz')";
    std::thread::scope(|scope| {
        scope.spawn(|| server.drop_database("zz"));
        wait_for("DROP DATABASE", || server.psql("postgres", waits) == "t");
        run.signal(Signal::CONT);
    });
    let run = run.finish().expect_code(0);
    let set = &run.json()["sets"][0];
    assert!(set["warnings"].to_string().contains("zz\\\" was dropped meanwhile"), "{run}");
    assert!(set["lacking"].as_array().unwrap().is_empty(), "{run}");
    // One that has another name now is not gone.
    server.create_database("zz");
    let mut run = paused(server, &database, &mut opsd);
    server.psql("postgres", "ALTER DATABASE zz RENAME TO zzz");
    run.signal(Signal::CONT);
    let run = run.finish().expect_code(1);
    assert!(run.json()["sets"][0]["lacking"].to_string().contains("renamed to \\\"zzz"), "{run}");
    // By name it is a mistake.
    opsd.job.set("source", format!("{{ postgres = \"main\", databases = [{}, \"zz\"] }}", quoted(&database)));
    opsd.run(&["backup"]).expect_failure(1, &["database \"zz\" does not exist"]);
}
