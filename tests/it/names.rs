//! Names that take patterns, paths and shells apart, each in a stream of its own (`-t`) or left out
//! (`exclude_table_data`).

use serde_json::Value;

use crate::support::compare::{assert_same, assert_same_content, db, plain_restore};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{SUPERUSER, Server, bin_dir, default_server, shared, unique};
use crate::support::sets::result;

fn site(server: &Server, database: &str) -> Opsd {
    let mut opsd = Opsd::new(server, &[database]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd.job.set("large_table", quoted("1B"));
    opsd
}

/// Tables with rows, as `schema.table`, sorted.
fn filled(server: &Server, database: &str) -> Vec<String> {
    let sql = "SELECT json_agg(n.nspname || '.' || c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
                  AND pg_relation_size(c.oid) > 0";
    let mut names: Vec<String> = serde_json::from_str(&server.psql(database, sql)).unwrap();
    names.sort();
    names
}

/// The tables that have streams of their own in a plan.
fn of_their_own(plan: &Value) -> Vec<String> {
    let streams = plan["plans"][0]["databases"][0]["streams"].as_array().unwrap();
    let mut tables: Vec<String> =
        streams.iter().filter_map(|s| s["table"].as_str()).map(str::to_owned).collect();
    tables.sort();
    tables
}

#[test]
fn odd_tables_have_streams_of_their_own_and_come_back() {
    for server in [default_server(), shared(18)] {
        let database = fixtures::database_with(server, "odd", &[fixtures::ROLES, fixtures::NAMES]);
        let opsd = site(server, &database);
        let plan = opsd.ok(&["backup", "--dry-run", "--json"]).json();
        let tables = filled(server, &database);
        assert!(tables.len() > 12 && tables.contains(&"public.new\nline".to_owned()), "{tables:?}");
        assert_eq!(of_their_own(&plan), tables);

        let run = opsd.ok(&["backup", "--json"]);
        assert_eq!(run.json()["sets"][0]["proof"], "complete", "{run}");
        let verified = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(result(&verified)["verdict"], "proven", "{verified}");
        let restored = unique("restored");
        opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
        let plain = plain_restore(db(server, &database));
        assert_same(db(server, &plain), db(server, &restored));
        assert_same_content(db(server, &database), db(server, &restored));
        for name in [&database, &restored, &plain] {
            server.drop_database(name);
        }
    }
}

#[test]
fn odd_tables_are_excluded_by_their_names_and_no_other() {
    let server = default_server();
    let database = fixtures::database_with(server, "left_out", &[fixtures::ROLES, fixtures::NAMES]);
    let opsd = |patterns: &[&str], large_table: &str| {
        let mut opsd = site(server, &database);
        opsd.job.set("large_table", quoted(large_table)).set("exclude_table_data", quoted_list(patterns));
        opsd
    };
    let all = filled(server, &database);
    for (patterns, gone) in [
        (
            &["we\"ird.Näme.Täble with \"quotes\" and.dots", "public.new\nline", "public.--schema=x"][..],
            vec!["we\"ird.Näme.Täble with \"quotes\" and.dots", "public.new\nline", "public.--schema=x"],
        ),
        // A wildcard is one; what looks like another table's name is not.
        (&["public.a?b", "public.UPPER"][..], vec!["public.a1b", "public.a?b", "public.UPPER"]),
        (
            &["public.100%s ${HOME} $(id)".replace("${", "$${").as_str(), "*.\\."][..],
            vec!["public.100%s ${HOME} $(id)", "public.\\."],
        ),
        (&["*.new?line"][..], vec!["public.new\nline", "we\"ird.Näme.new\nline"]),
    ] {
        let mut gone: Vec<String> = gone.into_iter().map(str::to_owned).collect();
        gone.sort();
        assert!(gone.iter().all(|name| all.contains(name)), "{gone:?} of {all:?}");
        let site = opsd(patterns, "1B");
        let plan = site.ok(&["backup", "--dry-run", "--json"]).json();
        let expected: Vec<String> = all.iter().filter(|name| !gone.contains(name)).cloned().collect();
        assert_eq!(of_their_own(&plan), expected, "{patterns:?}");

        // In one stream with all others, where only the arguments of pg_dump decide.
        for site in [site, opsd(patterns, "1GiB")] {
            let run = site.ok(&["backup", "--json"]).json();
            let mut excluded: Vec<String> =
                serde_json::from_value(run["sets"][0]["databases"][0]["excluded"].clone()).unwrap();
            excluded.sort();
            assert_eq!(excluded, gone);
        }
    }
    // And really without rows, all others with theirs.
    let site = opsd(&["we\"ird.Näme.*", "public.a?b"], "1GiB");
    site.ok(&["backup"]);
    let restored = unique("restored");
    site.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    let expected: Vec<String> = all
        .iter()
        .filter(|name| !name.starts_with("we\"ird.") && *name != "public.a?b" && *name != "public.a1b")
        .cloned()
        .collect();
    assert_eq!(filled(server, &restored), expected);
    server.drop_database(&restored);
    server.drop_database(&database);
}
