//! Mistakes that were made once, each by the name of what went wrong.

use crate::support::opsd::{Opsd, Run, quoted, quoted_list};
use crate::support::postgres::{
    Options, SUPERUSER, Server, bin_dir, default_major, default_server, shared, unique,
};
use crate::support::sets::{back_up, forge};

fn rehearsal(run: &Run) -> serde_json::Value {
    run.json()["results"][0].clone()
}

/// pg_restore 17 begins each connection with a setting that an older server refuses, and in a single
/// transaction that ends it before the first row.
#[test]
fn a_set_of_a_newer_pg_dump_goes_back_into_its_older_server() {
    let server = shared(14);
    let database = server.fresh_database("older");
    server.psql(
        &database,
        "CREATE TABLE a (id integer PRIMARY KEY, v text); INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, 700) i;
         CREATE TABLE b (id integer REFERENCES a); INSERT INTO b SELECT generate_series(1, 90);",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.postgres.set("bin_dir", quoted(bin_dir(17).to_str().unwrap()));
    opsd.job.set("large_table", quoted("8KiB"));
    back_up(&opsd);
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    let sums =
        "SELECT (SELECT count(*) || md5(string_agg(v, ',' ORDER BY id)) FROM a), (SELECT count(*) FROM b)";
    assert_eq!(server.psql(&restored, sums), server.psql(&database, sums));
    // The scratch server is of 17: rows are proven, whatever becomes of the definitions.
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let result = rehearsal(&run);
    assert!(["proven", "unproven"].contains(&result["verdict"].as_str().unwrap()), "{run}");
    assert_eq!(result["databases"][0]["tables_proven"], 2, "{run}");
    server.drop_database(&restored);
    server.drop_database(&database);
}

/// It is in the source because triggers were off; no restore will ever take it. That is a word about
/// the set, not about the rehearsal.
#[test]
fn a_set_that_does_not_restore_differs() {
    let server = default_server();
    let database = server.fresh_database("orphan");
    server.psql(
        &database,
        "CREATE TABLE parent (id integer PRIMARY KEY); CREATE TABLE child (secret integer REFERENCES parent);
         SET session_replication_role = replica; INSERT INTO child VALUES (424242);",
    );
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_code(3);
    assert_eq!(rehearsal(&run)["verdict"], "differs", "{run}");
    assert!(run.stderr.contains("does not restore"), "{run}");
    assert!(!run.stdout.contains("424242"), "a row is in the record: {run}");
    server.drop_database(&database);
}

/// REFRESH runs as the view's owner, who may read the table only through a membership.
#[test]
fn a_materialized_view_that_is_filled_through_a_membership_is_proven() {
    let server = Server::start(default_major(), &Options::default());
    server.psql(
        "postgres",
        "CREATE ROLE readonly; CREATE ROLE reporting; GRANT readonly TO reporting;
         CREATE TABLE base AS SELECT generate_series(1, 33) AS id; GRANT SELECT ON base TO readonly;
         CREATE MATERIALIZED VIEW report AS SELECT count(*) FROM base; ALTER MATERIALIZED VIEW report OWNER TO reporting;",
    );
    let opsd = Opsd::new(&server, &["postgres"]);
    back_up(&opsd);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(rehearsal(&run)["verdict"], "proven", "{run}");
}

#[test]
fn leaving_out_a_table_that_others_refer_to_is_refused() {
    let server = default_server();
    let database = server.fresh_database("referred");
    server.psql(
        &database,
        "CREATE TABLE sessions (id integer PRIMARY KEY); CREATE TABLE logins (session integer REFERENCES sessions);",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("exclude_table_data", quoted_list(&["public.sessions"]));
    opsd.run(&["backup"]).expect_failure(2, &["public.sessions", "public.logins refers to it", "hint: "]);
    opsd.job.set("exclude_table_data", quoted_list(&["public.sessions", "public.logins"]));
    opsd.ok(&["backup"]);
    server.drop_database(&database);
}

/// Proven means that what the manifest counts was proven; a proof that covers less is no proof.
#[test]
fn a_proof_that_covers_less_than_the_manifest_counts_is_a_difference() {
    let server = default_server();
    let database = server.fresh_database("counts");
    server.psql(&database, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let opsd = Opsd::new(server, &[&database]);
    let id = back_up(&opsd);
    forge(&opsd, &id, |manifest| manifest["databases"][0]["tables"] = 2.into());
    let run = opsd.run(&["restore", "--verify"]).expect_code(3);
    assert!(run.stderr.contains("covers 1 tables"), "{run}");
    forge(&opsd, &id, |manifest| {
        manifest["databases"][0]["tables"] = 1.into();
        manifest["databases"][0]["proof_object"] = serde_json::Value::Null;
    });
    let run = opsd.run(&["restore", "--verify"]).expect_code(3);
    assert!(run.stderr.contains("no proof is stored"), "{run}");
    server.drop_database(&database);
}

/// pg_dump loads only the leaves below the hash through the root; their siblings are dumped alone.
#[test]
fn a_partition_tree_in_which_only_some_leaves_load_through_the_root_is_proven() {
    let server = shared(17);
    let database = server.fresh_database("mixed");
    server.psql(
        &database,
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
         CREATE TABLE root (region text, m mood, v integer) PARTITION BY LIST (region);
         CREATE TABLE plain PARTITION OF root FOR VALUES IN ('a');
         CREATE TABLE hashed PARTITION OF root FOR VALUES IN ('b') PARTITION BY HASH (m);
         CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (modulus 2, remainder 0);
         CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (modulus 2, remainder 1);
         INSERT INTO root SELECT CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END,
             (ARRAY['sad', 'ok', 'happy']::mood[])[1 + i % 3], i FROM generate_series(1, 400) i;",
    );
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let result = rehearsal(&run);
    assert_eq!(
        (&result["verdict"], &result["databases"][0]["rows"]),
        (&"proven".into(), &400.into()),
        "{run}"
    );
    server.drop_database(&database);
}

/// A database cannot be renamed from within, and `postgres` is where one usually connects for that.
#[test]
fn the_database_named_postgres_can_be_replaced() {
    let server = Server::start(default_major(), &Options::default());
    server.psql("postgres", "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let opsd = Opsd::new(&server, &["postgres"]);
    back_up(&opsd);
    server.psql("postgres", "DELETE FROM a");
    let run = opsd.ok(&["restore", "db", "--to", "main", "--replace", "--yes", "--json"]);
    assert_eq!(server.psql("postgres", "SELECT count(*) FROM a"), "9", "{run}");
    let old = run.json()["old_database"].as_str().unwrap().to_owned();
    assert_eq!(server.psql(&old, "SELECT count(*) FROM a"), "0", "{run}");
}

/// A query that cannot run is the operator's mistake, not the set's.
#[test]
fn an_assertion_that_cannot_run_says_nothing_about_the_set() {
    let server = default_server();
    let database = server.fresh_database("assertion");
    server.psql(&database, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let mut opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    opsd.verify.set("assert", quoted_list(&["select count(*) > 0 from b"]));
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(1, &["could not run (42P01)"]);
    assert_eq!(rehearsal(&run)["verdict"], "failed", "{run}");
    opsd.verify.set("assert", quoted_list(&["select count(*) > 9 from a"]));
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_code(3);
    assert_eq!(rehearsal(&run)["verdict"], "differs", "{run}");
    opsd.verify.set("assert", quoted_list(&["select count(*) = 9 from a"]));
    opsd.ok(&["restore", "--verify"]);
    server.drop_database(&database);
}

/// libpq would take the role's name for the database, and a hurried `--replace` the wrong one.
#[test]
fn a_url_without_a_database_means_the_sets_own() {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("shop");
    server.psql("shop", "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let opsd = Opsd::new(&server, &["shop"]);
    back_up(&opsd);
    let url = server.socket_url(SUPERUSER, "");
    opsd.run(&["restore", "db", "--to", url.as_str()]).expect_failure(1, &["database \"shop\" is not empty"]);
    let run = opsd.ok(&["restore", "db", "--to", url.as_str(), "--replace", "--yes", "--json"]);
    assert_eq!(run.json()["restored_as"], "shop", "{run}");
}

#[test]
fn a_dry_run_lists_what_it_looked_at() {
    let server = default_server();
    let database = server.fresh_database("dry");
    server.psql(&database, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let opsd = Opsd::new(server, &[&database]);
    let run = opsd.ok(&["backup", "--dry-run"]);
    for expected in [
        "ok: role \"postgres\" may read all tables (1) and sequences (0)",
        "locks needed",
        "connections needed",
        "nothing was dumped",
    ] {
        assert!(run.stdout.contains(expected), "{expected}: {run}");
    }
    assert!(opsd.repository_files().is_empty(), "{run}");
    server.drop_database(&database);
}

#[test]
fn keygen_tells_a_script_what_it_made_and_never_the_secret() {
    let opsd = Opsd::without_server();
    for (arguments, kind, file) in
        [(&["keygen"][..], "age", "i.txt"), (&["keygen", "--sign"], "minisign", "s.key")]
    {
        let path = opsd.path(file);
        let mut command: Vec<&str> = arguments.to_vec();
        command.extend(["--json", "-o", path.to_str().unwrap()]);
        let made = opsd.ok(&command).json();
        assert_eq!((&made["kind"], &made["secret_key_file"]), (&kind.into(), &path.to_str().unwrap().into()));
        let secret = std::fs::read_to_string(&path).unwrap();
        let secret = secret.lines().rfind(|line| !line.is_empty()).unwrap();
        assert!(
            made["public_key"].as_str().is_some_and(|key| key.len() > 40)
                && !made.to_string().contains(secret)
        );
    }
    opsd.run(&["keygen", "--json"]).expect_code(2);
}
