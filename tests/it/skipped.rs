//! Databases that are no ordinary ones: templates, one that lets nobody in, one that an interrupted DROP left.

use crate::support::compare::{assert_same_content, db};
use crate::support::opsd::Opsd;
use crate::support::postgres::{Options, SUPERUSER, Server, default_major, for_some_majors};
use crate::support::sets;
use crate::traps::site;

fn site_of(server: &Server, databases: &str) -> Opsd {
    let mut opsd = site(server, "postgres");
    opsd.job.set("source", format!("{{ postgres = \"main\", databases = {databases} }}"));
    opsd
}

fn names(set: &serde_json::Value) -> Vec<String> {
    set["databases"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect()
}

fn odd_server(major: u32) -> Server {
    let server = Server::start(major, &Options::default());
    for name in ["apples", "model", "closed", "broken"] {
        server.create_database(name);
        server.psql(name, "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    }
    server.psql(
        "postgres",
        "ALTER DATABASE model IS_TEMPLATE true; ALTER DATABASE closed ALLOW_CONNECTIONS false;
         UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'broken'",
    );
    server
}

#[test]
fn no_database_is_left_out_in_silence() {
    for_some_majors(|shared| {
        let server = &odd_server(shared.major);
        let opsd = site_of(server, "[\"*\"]");
        let run = opsd.ok(&["backup", "--json"]);
        let set = &run.json()["sets"][0];
        assert_eq!(names(set), ["apples", "model", "postgres"], "{run}");
        let warnings = set["warnings"].to_string();
        assert!(warnings.contains("\\\"closed\\\"") && warnings.contains("ALLOW_CONNECTIONS"), "{run}");
        assert!(warnings.contains("\\\"broken\\\"") && warnings.contains("DROP DATABASE"), "{run}");
        assert!(!warnings.contains("template0") && !warnings.contains("template1"), "{run}");
        let dry = opsd.ok(&["backup", "--dry-run"]);
        let said = format!("{}{}", dry.stdout, dry.stderr);
        assert!(said.contains("closed") && said.contains("broken"), "{dry}");
        let result = sets::result(&opsd.ok(&["restore", "--verify", "--json"]));
        assert_eq!(result["verdict"], "proven", "{result}");
        let scope = result["scope"].as_array().unwrap();
        let left_out = scope.iter().find(|s| s["what"] == "databases").unwrap_or_else(|| panic!("{result}"));
        assert_eq!((&left_out["covered"], &left_out["count"]), (&false.into(), &2.into()), "{result}");
        assert_eq!(left_out["note"], "broken, closed", "{result}");
        // It is again what it was.
        let to = ["restore", "db", "--database", "model", "--create", "--to"];
        opsd.ok(&[&to[..], &[&server.socket_url(SUPERUSER, "model2")]].concat());
        assert_same_content(db(server, "model"), db(server, "model2"));
        let kind = "SELECT datistemplate FROM pg_database WHERE datname = 'model2'";
        assert_eq!(server.psql("postgres", kind), "t");
    });
}

#[test]
fn a_database_that_is_named_is_dumped_or_the_reason_is_the_right_one() {
    let server = &odd_server(default_major());
    let opsd = site_of(server, "[\"model\"]");
    assert_eq!(names(&opsd.ok(&["backup", "--json"]).json()["sets"][0]), ["model"]);
    for (name, why) in [("closed", "ALLOW_CONNECTIONS"), ("broken", "DROP DATABASE")] {
        let opsd = site_of(server, &format!("[\"apples\", \"{name}\"]"));
        let run = opsd.run(&["backup", "--json"]).expect_failure(1, &[name, why]);
        assert!(!run.stderr.contains("does not exist"), "{run}");
        assert_eq!(names(&run.json()["sets"][0]), ["apples"], "{run}");
    }
    let opsd = site_of(server, "[\"apples\", \"none\"]");
    opsd.run(&["backup"]).expect_failure(1, &["database \"none\" does not exist", "model"]);
}

#[test]
fn what_template1_holds_is_in_the_set() {
    let server = &Server::start(default_major(), &Options::default());
    let opsd = site_of(server, "[\"*\"]");
    assert_eq!(names(&opsd.ok(&["backup", "--json"]).json()["sets"][0]), ["postgres"]);
    server.psql("template1", "CREATE FUNCTION answer() RETURNS integer LANGUAGE sql AS 'SELECT 42'");
    let run = opsd.ok(&["backup", "--json"]);
    assert_eq!(names(&run.json()["sets"][0]), ["postgres", "template1"], "{run}");
    assert_eq!(sets::result(&opsd.ok(&["restore", "--verify", "--json"]))["verdict"], "proven");
}
