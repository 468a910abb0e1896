//! Everything comes back: backed up, rehearsed and restored through the built `opsd`, and compared
//! without it, with what a plain `pg_dump | pg_restore` makes of the same source.

use serde_json::Value;

use crate::support::compare::{assert_same, assert_same_content, assert_same_settings, db, plain_restore};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{self, Options, SUPERUSER, Server, bin_dir, unique};

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
    postgres::for_each_major(|server| {
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
