//! What scripts rely on: the keys of each `--json` document, and that their values are what somebody
//! else counts. Each document comes from the real command, once.

use std::process::Command;

use serde_json::Value;

use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{Server, bin_dir, default_server, expect_success};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// 700 rows in three tables, one of them large, one without its rows.
fn site() -> (&'static Server, Opsd, String) {
    let server = default_server();
    let database = server.fresh_database("contract");
    fixtures::rows(server, &database, "big", 600);
    server.psql(
        &database,
        "CREATE TABLE small AS SELECT generate_series(1, 100) AS id; CREATE TABLE none ();
         CREATE TABLE sessions AS SELECT generate_series(1, 50) AS id; CREATE EXTENSION pgcrypto",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("large_table", quoted("64KiB")).set("exclude_table_data", quoted_list(&["public.sessions"]));
    opsd.job.set("rpo", quoted("24h"));
    opsd.verify.set("assert", quoted_list(&["select count(*) = 600 from big"]));
    (server, opsd, database)
}

#[test]
fn documents_have_these_keys_and_values_that_others_count() {
    let (server, opsd, database) = site();
    let clock = std::time::Instant::now();
    let run = opsd.ok(&["backup", "--json"]);
    let took = clock.elapsed().as_secs_f64();
    let document = run.json();
    assert_eq!(keys(&document), ["sets"]);
    let set = &document["sets"][0];
    assert_eq!(
        keys(set),
        [
            "databases",
            "duration_seconds",
            "id",
            "job",
            "lacking",
            "manifest_sha256",
            "plain_bytes",
            "proof",
            "signed",
            "stored_bytes",
            "warnings"
        ]
    );
    let of_database = &set["databases"][0];
    assert_eq!(keys(of_database), ["bytes", "excluded", "name", "rows", "tables"]);
    assert_eq!(
        (&set["job"], &set["proof"], &set["signed"]),
        (&"db".into(), &"complete".into(), &true.into())
    );
    assert_eq!((&of_database["name"], &of_database["rows"]), (&database.as_str().into(), &700.into()));
    assert_eq!(of_database["tables"], 3, "without the excluded one: {run}");
    assert_eq!(of_database["excluded"], serde_json::json!(["public.sessions"]));
    let seconds = number(&set["duration_seconds"]);
    assert!(seconds > 0.0 && seconds <= took, "{seconds} of {took}");
    let id = set["id"].as_str().unwrap();

    // Bytes of rows, as COPY writes them; bytes of streams, as they are read back; bytes of files.
    let copied = |table: &str| {
        let mut psql = server.client("psql");
        psql.env("PGDATABASE", &database).env("PGOPTIONS", "-c timezone=UTC -c bytea_output=hex");
        psql.args(["-X", "-q", "-c", &format!("COPY {table} TO STDOUT")]);
        psql.output().unwrap().stdout.len() as u64
    };
    let rows = copied("big") + copied("small");
    assert_eq!(of_database["bytes"], rows, "{run}");
    let streams = ["schema", "data-1", "data-rest"];
    let plain: usize = streams
        .iter()
        .map(|stream| opsd.command(&["backups", "cat", id, &database, stream]).output().unwrap().stdout.len())
        .sum();
    // The roles and the proof are streams too.
    let plain_bytes = number(&set["plain_bytes"]);
    assert!(plain_bytes > plain as f64 && plain_bytes < plain as f64 + 65_536.0, "{plain}: {run}");
    let files = opsd.repository_files();
    let size = |file: &String| std::fs::metadata(opsd.path("repository").join(file)).unwrap().len();
    // What the manifest names: all of it but manifest and signature.
    let stored: u64 = files.iter().filter(|f| !f.contains("/manifest.json")).map(size).sum();
    assert_eq!(set["stored_bytes"], stored, "{run}");

    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let document = run.json();
    assert_eq!(keys(&document), ["results"]);
    let result = &document["results"][0];
    assert_eq!(
        keys(result),
        [
            "contained",
            "databases",
            "differences",
            "error",
            "hints",
            "id",
            "job",
            "place",
            "scope",
            "seconds",
            "server_version",
            "total_seconds",
            "verdict",
            "warnings"
        ]
    );
    assert_eq!(
        (&result["id"], &result["verdict"], &result["error"]),
        (&id.into(), &"proven".into(), &Value::Null)
    );
    let proven = &result["databases"][0];
    assert_eq!(keys(proven), ["differences", "name", "rows", "tables_proven", "tables_total"]);
    assert_eq!(
        (&proven["rows"], &proven["tables_proven"], &proven["tables_total"], &proven["differences"]),
        (&700.into(), &3.into(), &4.into(), &serde_json::json!([])),
        "{run}"
    );
    let phases = &result["seconds"];
    assert_eq!(keys(phases), ["assert", "check", "data", "post-data", "prove", "roles", "schema", "server"]);
    let sum: f64 = phases.as_object().unwrap().values().map(number).sum();
    let total = number(&result["total_seconds"]);
    assert!(phases.as_object().unwrap().values().all(|s| number(s) > 0.0) && total > 0.0, "{run}");
    assert!((sum - total).abs() < 0.001, "the phases are what it took: {sum} of {total}");
    assert!(result["server_version"].as_str().unwrap().starts_with(&server.major.to_string()), "{run}");

    let run = opsd.ok(&["backups", "list", "--json"]);
    let document = run.json();
    assert_eq!(keys(&document), ["jobs", "sets", "site"]);
    assert_eq!(keys(&document["jobs"][0]), ["job", "newest", "overdue", "rpo_seconds"]);
    let listed = &document["sets"][0];
    // What the set takes in the store, its records included.
    let taken: u64 = opsd.repository_files().iter().map(size).sum();
    assert_eq!(listed["occupied_bytes"], taken, "{run}");
    for key in ["job", "id", "proof", "plain_bytes", "stored_bytes", "warnings"] {
        assert_eq!(listed[key], set[key], "{key}: {run}");
    }
    assert_eq!(
        (&listed["state"], &listed["rows"], &listed["signature"]),
        (&"complete".into(), &700.into(), &"trusted".into())
    );
    assert_eq!(listed["verified"]["verdict"], "proven");
    assert_eq!((&listed["reliance"], &listed["doubt"]), (&"sound".into(), &Value::Null), "{run}");
    assert_eq!(keys(&listed["databases"][0]), ["bytes", "name", "rows", "tables"]);
    assert_eq!(keys(&listed["verified"]), ["seconds", "time", "verdict"]);
    assert_eq!(
        keys(listed),
        [
            "databases",
            "doubt",
            "error",
            "failed_rehearsal",
            "finished",
            "id",
            "job",
            "occupied_bytes",
            "plain_bytes",
            "proof",
            "reliance",
            "rows",
            "signature",
            "started",
            "state",
            "stored_bytes",
            "tables",
            "verified",
            "warnings"
        ]
    );
    server.drop_database(&database);
}

#[test]
fn a_dry_run_tells_streams_sizes_keys_and_versions_and_dumps_nothing() {
    let (server, opsd, database) = site();
    let run = opsd.ok(&["backup", "--dry-run", "--json"]);
    let document = run.json();
    assert_eq!(keys(&document), ["plans"]);
    let plan = &document["plans"][0];
    assert_eq!(
        keys(plan),
        ["databases", "job", "pg_dump", "prefix", "recipients", "repository", "server_version", "way"]
    );
    assert_eq!(plan["recipients"], serde_json::json!([opsd.recipient]));
    // As the programs themselves say it.
    let mut version = Command::new(bin_dir(server.major).join("pg_dump"));
    let version = String::from_utf8(expect_success(version.arg("--version"))).unwrap();
    let version = version.split_whitespace().nth(2).unwrap();
    let pg_dump = plan["pg_dump"].as_str().unwrap();
    assert!(pg_dump.contains(version) && pg_dump.contains(bin_dir(server.major).to_str().unwrap()), "{run}");
    let server_version = server.psql("postgres", "SHOW server_version");
    assert!(server_version.starts_with(plan["server_version"].as_str().unwrap()), "{server_version}: {run}");

    let of_database = &plan["databases"][0];
    assert_eq!(
        keys(of_database),
        ["estimated_bytes", "excluded", "locks", "name", "preflights", "streams", "tables", "warnings"]
    );
    assert_eq!((&of_database["name"], &of_database["tables"]), (&database.as_str().into(), &3.into()));
    let size = |table: &str| -> u64 {
        server.psql(&database, &format!("SELECT pg_table_size('{table}')")).parse().unwrap()
    };
    let streams: Vec<(&str, &Value, u64)> = of_database["streams"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["name"].as_str().unwrap(), &s["table"], s["estimated_bytes"].as_u64().unwrap()))
        .collect();
    let names: Vec<&str> = streams.iter().map(|s| s.0).collect();
    assert_eq!(names, ["schema", "data-1", "data-rest"], "{run}");
    assert_eq!(streams[1].1, "public.big");
    let near = |estimate: u64, size: u64| estimate * 2 >= size && estimate <= size * 2;
    assert!(near(streams[1].2, size("big")) && near(streams[2].2, size("small")), "{run}");
    assert_eq!(of_database["estimated_bytes"], streams.iter().map(|s| s.2).sum::<u64>());
    assert_eq!(of_database["excluded"], serde_json::json!(["public.sessions"]));

    let text = opsd.ok(&["backup", "--dry-run"]).stdout;
    for expected in [
        format!("server      PostgreSQL {server_version}"),
        format!("pg_dump     {version} in "),
        format!("readable by {}", opsd.recipient),
        format!("database {database:?}: 3 tables, about "),
        "data-1".to_owned(),
        "public.big".to_owned(),
        "without the rows of public.sessions".to_owned(),
        "ok: row security hides no rows".to_owned(),
        "nothing was dumped".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected:?} in\n{text}");
    }
    assert_eq!(opsd.repository_files(), Vec::<String>::new());
    server.drop_database(&database);
}
