//! What plain pg_restore brings back, opsd brings back. Databases that others built, whose archives hold their
//! entries in an order that sections do not tell, rows that need what comes later, or statements that fail and
//! that no row needs.

use crate::support::compare::{assert_same, assert_same_content, db, plain_restore};
use crate::support::fixtures;
use crate::support::opsd::Opsd;
use crate::support::postgres::{
    Options, SUPERUSER, Server, bin_dir, default_server, for_some_majors, identifier, unique,
};
use crate::support::sets::{back_up, manifest, result};

/// A database made by this SQL, and a job for it.
fn site(server: &Server, sql: &str) -> (Opsd, String) {
    let database = server.fresh_database("plain");
    server.psql(&database, sql);
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    (opsd, database)
}

/// Restores the newest set into a new database.
fn restored(opsd: &Opsd, server: &Server) -> String {
    let target = unique("restored");
    let url = server.socket_url(SUPERUSER, &target);
    opsd.ok(&["restore", "db", "--to", &url, "--create"]);
    target
}

/// pg_dump moves the view behind its table's key, and so behind the rows; what is made of the view follows it
/// there, whatever section it is marked as.
pub const BEHIND_A_KEY: &str = "CREATE TABLE u (id integer PRIMARY KEY, n text);
    INSERT INTO u SELECT i, 'row ' || i FROM generate_series(1, 20) i;
    CREATE MATERIALIZED VIEW m AS SELECT id, n, count(*) FROM u GROUP BY id;
    CREATE FUNCTION f() RETURNS SETOF m LANGUAGE sql AS 'SELECT * FROM m';
    COMMENT ON FUNCTION f() IS 'made of a materialized view';
    CREATE VIEW above AS SELECT id FROM f() WHERE id > 10;
    GRANT SELECT ON above TO PUBLIC;";

#[test]
fn what_is_made_of_a_view_that_groups_by_a_key_comes_back() {
    for_some_majors(|server| {
        let atomic = "CREATE FUNCTION newest() RETURNS bigint LANGUAGE sql
            BEGIN ATOMIC SELECT count(*) FROM (SELECT id, n FROM u GROUP BY id) AS grouped; END;
            CREATE TABLE counted (id integer, of bigint DEFAULT newest()); INSERT INTO counted VALUES (1)";
        let (opsd, database) = site(server, BEHIND_A_KEY);
        if server.major >= 14 {
            server.psql(&database, atomic);
        }
        back_up(&opsd);
        assert_eq!(result(&opsd.ok(&["restore", "--verify", "--json"]))["verdict"], "proven");
        let (target, plain) = (restored(&opsd, server), plain_restore(db(server, &database)));
        assert_same(db(server, &target), db(server, &plain));
        assert_same_content(db(server, &target), db(server, &database));
        for name in [database, target, plain] {
            server.drop_database(&name);
        }
    });
}

/// CHECKs that read another table, one of them by way of search_path; a row that names an index, and views that read each other through functions.
const WAITING: &str = "CREATE TABLE zones (id integer); INSERT INTO zones SELECT generate_series(1, 20);
    CREATE FUNCTION known(integer) RETURNS boolean LANGUAGE sql
        AS 'SELECT EXISTS (SELECT FROM public.zones WHERE id = $1)';
    CREATE TABLE areas (zone integer CHECK (known(zone))); INSERT INTO areas SELECT generate_series(1, 10);
    CREATE FUNCTION charted(integer) RETURNS boolean LANGUAGE sql
        AS 'SELECT EXISTS (SELECT FROM zones WHERE id = $1)';
    CREATE TABLE lanes (zone integer CHECK (charted(zone))); INSERT INTO lanes SELECT generate_series(1, 10);
    CREATE TABLE other (id integer); INSERT INTO other VALUES (1);
    CREATE INDEX zones_id ON zones (id);
    CREATE TABLE watched (what regclass); INSERT INTO watched VALUES ('zones_id');
    CREATE SEQUENCE numbers; SELECT nextval('numbers');
    CREATE MATERIALIZED VIEW z_base AS SELECT count(*) AS n FROM zones;
    CREATE FUNCTION base() RETURNS bigint LANGUAGE sql AS 'SELECT n FROM public.z_base';
    CREATE MATERIALIZED VIEW m_middle AS SELECT base() AS n;
    CREATE FUNCTION middle() RETURNS bigint LANGUAGE sql AS 'SELECT n FROM public.m_middle';
    CREATE MATERIALIZED VIEW a_top AS SELECT middle() AS n;";

#[test]
fn rows_and_views_that_need_what_comes_later_come_back() {
    for_some_majors(|server| {
        let (opsd, database) = site(server, WAITING);
        back_up(&opsd);
        assert_eq!(result(&opsd.ok(&["restore", "--verify", "--json"]))["verdict"], "proven");
        let target = restored(&opsd, server);
        assert_same(db(server, &target), db(server, &database));
        server.drop_database(&target);
        server.drop_database(&database);
    });
}

/// Plain pg_restore, too, brings back all rows but those of one table.
#[test]
fn rows_that_are_refused_to_the_last_cost_no_others() {
    let server = default_server();
    let (opsd, database) = site(
        server,
        "CREATE FUNCTION fits(integer) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true';
         CREATE TABLE a_refused (id integer CHECK (public.fits(id))); INSERT INTO a_refused VALUES (424242);
         CREATE TABLE sound (id integer PRIMARY KEY); INSERT INTO sound SELECT generate_series(1, 20);
         CREATE OR REPLACE FUNCTION fits(integer) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT false'",
    );
    back_up(&opsd);
    let target = unique("lost");
    let url = server.socket_url(SUPERUSER, &target);
    let run = opsd.run(&["restore", "db", "--to", &url, "--create", "--json"]);
    let run = run.expect_failure(1, &["lacks rows of the set", "a_refused"]);
    assert!(!format!("{}{}", run.stdout, run.stderr).contains("424242"), "{run}");
    let report = run.json();
    let lost = report["lost"].as_array().unwrap();
    assert!(lost.len() == 1 && lost[0].as_str().unwrap().contains("a_refused"), "{run}");
    assert_eq!(report["failed"], serde_json::json!([]), "{run}");
    let may_connect = format!("SELECT has_database_privilege('pg_monitor', '{target}', 'CONNECT')");
    assert_eq!(server.psql("postgres", &may_connect), "f", "nobody takes it for the whole");
    let counts = "SELECT (SELECT count(*) FROM a_refused), (SELECT count(*) FROM sound)";
    assert_eq!(server.psql(&target, counts), "0|20");
    assert_eq!(server.psql(&target, "SELECT count(*) FROM pg_index WHERE indrelid = 'sound'::regclass"), "1");

    // The one that is there stays there.
    let run = opsd.run(&["restore", "db", "--to", &url, "--replace", "--yes", "--json"]).expect_code(1);
    let made = run.json()["restored_as"].as_str().unwrap().to_owned();
    assert!(made.starts_with(&format!("{target}_restoring_")), "{run}");
    let verdict = opsd.run(&["restore", "--verify", "--json"]);
    assert_eq!(result(&verdict)["verdict"], "differs", "{verdict}");
    for name in [&target, &made, &database] {
        server.drop_database(name);
    }
}

/// As on a server that somebody else manages: the role may make what it needs, and little else.
#[test]
fn what_no_row_needs_does_not_cost_the_rows() {
    for_some_majors(|server| {
        let role = unique("manager");
        server.psql("postgres", &format!("CREATE ROLE {} LOGIN CREATEDB", identifier(&role)));
        let (opsd, database) = site(
            server,
            &format!(
                "CREATE EXTENSION hstore; CREATE SCHEMA reports; CREATE TABLE reports.daily (id integer PRIMARY KEY, of hstore);
                 INSERT INTO reports.daily SELECT i, 'a=>1' FROM generate_series(1, 20) i;
                 CREATE FOREIGN DATA WRAPPER far; COMMENT ON FOREIGN DATA WRAPPER far IS 'for superusers';
                 ALTER SCHEMA reports OWNER TO {role}; ALTER TABLE reports.daily OWNER TO {role}"
            ),
        );
        back_up(&opsd);
        let target = unique("managed");
        server.psql("postgres", &format!("CREATE DATABASE {target} OWNER {role}"));
        // Whoever manages the server made these.
        server.psql(&target, &format!("CREATE EXTENSION hstore; CREATE SCHEMA reports AUTHORIZATION {role}"));
        let url = server.socket_url(&role, &target);
        let run = opsd.run(&["restore", "db", "--to", &url, "--json"]);
        let run = run.expect_failure(1, &["holds all rows"]);
        let report = run.json();
        let failed = report["failed"].to_string();
        for what in ["COMMENT EXTENSION hstore", "SCHEMA reports", "FOREIGN DATA WRAPPER far"] {
            assert!(failed.contains(what), "{what}: {run}");
        }
        assert_eq!(report["lost"], serde_json::json!([]), "{run}");
        let owner = "SELECT r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.relname = 'daily'";
        assert_eq!(server.psql(&target, owner), role);
        assert_eq!(server.psql(&target, "SELECT count(*) FROM reports.daily"), "20");
        assert_eq!(
            server.psql(&target, "SELECT count(*) FROM pg_index WHERE indrelid = 'reports.daily'::regclass"),
            "1"
        );
        server.drop_database(&target);
        server.drop_database(&database);
        server.psql("postgres", &format!("DROP ROLE {}", identifier(&role)));
    });
}

#[test]
fn owners_privileges_and_comments_are_left_out_where_that_is_asked_for() {
    let server = default_server();
    let role = unique("somebody");
    let (opsd, database) = site(
        server,
        &format!(
            "CREATE ROLE {role}; CREATE TABLE t (id integer); INSERT INTO t VALUES (1); ALTER TABLE t OWNER TO {role};
             GRANT SELECT ON t TO PUBLIC; COMMENT ON TABLE t IS 'said of it'; COMMENT ON COLUMN t.id IS 'a number'"
        ),
    );
    server.psql("postgres", &format!("COMMENT ON DATABASE {database} IS 'all of it'"));
    back_up(&opsd);
    server.drop_database(&database);
    server.psql("postgres", &format!("DROP ROLE {role}"));
    let target = unique("bare");
    let url = server.socket_url(SUPERUSER, &target);
    let restore = ["restore", "db", "--to", &url, "--create", "--no-comments"];
    opsd.run(&restore).expect_failure(1, &["lacks roles of the set", &role]);
    opsd.ok(&[&restore[..], &["--no-owner", "--no-privileges"]].concat());
    let found =
        "SELECT c.relowner::regrole, c.relacl IS NULL, obj_description(c.oid), col_description(c.oid, 1),
                        (SELECT count(*) FROM t), shobj_description(d.oid, 'pg_database')
                   FROM pg_class c, pg_database d WHERE c.relname = 't' AND d.datname = current_database()";
    assert_eq!(server.psql(&target, found), format!("{SUPERUSER}|t|||1|"));
    server.drop_database(&target);
}

/// Rows that get in only when everything else is there, by a role whose sessions fire triggers.
#[test]
fn rows_that_come_last_meet_no_trigger_and_are_in_the_views() {
    let server = default_server();
    let role = unique("maker");
    server.psql("postgres", &format!("CREATE ROLE {role} LOGIN CREATEDB"));
    let (opsd, database) = site(
        server,
        &format!(
            "GRANT ALL ON SCHEMA public TO {role}; SET ROLE {role};
             CREATE TABLE zones (id integer); CREATE INDEX zones_id ON zones (id);
             CREATE TABLE watched (what regclass); INSERT INTO watched VALUES ('zones_id');
             CREATE TABLE audit (n integer);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO public.audit VALUES (1); RETURN NEW; END';
             CREATE TRIGGER note AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION note();
             CREATE MATERIALIZED VIEW seen AS SELECT count(*) AS n FROM watched"
        ),
    );
    back_up(&opsd);
    let target = unique("last");
    server.psql("postgres", &format!("CREATE DATABASE {target} OWNER {role}"));
    let url = server.socket_url(&role, &target);
    let run = opsd.run(&["restore", "db", "--to", &url, "--json", "--no-owner", "--no-privileges"]);
    assert_eq!(run.json()["lost"], serde_json::json!([]), "{run}");
    let found = "SELECT (SELECT count(*) FROM watched), (SELECT count(*) FROM audit), (SELECT n FROM seen)";
    assert_eq!(server.psql(&target, found), "1|0|1", "{run}");
    server.drop_database(&target);
    server.drop_database(&database);
    server.psql("postgres", &format!("DROP ROLE {role}"));
}

/// Somebody who takes connections, and never says a word.
fn mute() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Up to 15 no timeout of the server's and no `pg_terminate_backend` ends a session that waits for such a one.
#[test]
fn a_view_of_a_server_that_never_answers_keeps_nothing_else_waiting() {
    // Without room for more locks there is one archive.
    let tight: &[(&str, &str)] = &[("max_locks_per_transaction", "10"), ("max_connections", "20")];
    for (settings, first) in [(tight, "full"), (&[], "schema")] {
        let server = &Server::start(15, &Options { settings, ..Options::default() });
        one_view_is_mute(server, first);
    }
}

fn one_view_is_mute(server: &Server, first: &str) {
    let (_listener, port) = mute();
    let (mut opsd, source) = site(
        server,
        &format!(
            "CREATE EXTENSION postgres_fdw;
             CREATE SERVER mute FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '{port}');
             CREATE USER MAPPING FOR PUBLIC SERVER mute OPTIONS (user 'u', password 'p');
             CREATE FOREIGN TABLE far (id integer) SERVER mute;
             CREATE TABLE near (id integer PRIMARY KEY); INSERT INTO near SELECT generate_series(1, 20);
             CREATE TABLE split (id integer) PARTITION BY RANGE (id);
             CREATE TABLE split_here PARTITION OF split FOR VALUES FROM (0) TO (10);
             CREATE FOREIGN TABLE split_far PARTITION OF split FOR VALUES FROM (10) TO (20) SERVER mute;
             INSERT INTO split_here SELECT generate_series(0, 9);
             CREATE MATERIALIZED VIEW of_far AS SELECT id FROM far WITH NO DATA;
             CREATE MATERIALIZED VIEW of_near AS SELECT id FROM near; CREATE INDEX ON of_near (id);
             -- As it is at the source, where the server answered once.
             UPDATE pg_class SET relispopulated = true WHERE relname = 'of_far'"
        ),
    );
    if first == "full" {
        fixtures::many_tables(server, &source, 90);
    }
    let id = back_up(&opsd);
    assert_eq!(manifest(&opsd, &id)["databases"][0]["streams"][0]["name"], first);
    // Nobody is reached from there.
    let verdict = result(&opsd.run(&["restore", "--verify", "--json"]));
    assert_eq!(verdict["verdict"], "unproven", "{verdict}");
    assert!(verdict["warnings"].to_string().contains("of_far"), "{verdict}");

    opsd.more = "\n[restore]\nrefresh_timeout = \"2s\"\n".to_owned();
    let target = unique("mute");
    let url = server.socket_url(SUPERUSER, &target);
    let begun = std::time::Instant::now();
    let run = opsd.run(&["restore", "db", "--to", &url, "--create", "--json"]);
    assert!(begun.elapsed().as_secs() < 60, "{run}");
    let run = run.expect_failure(1, &["holds all rows"]);
    let report = run.json();
    let failed = report["failed"].as_array().unwrap();
    assert!(failed.len() == 1 && failed[0].to_string().contains("of_far"), "{run}");
    assert!(failed[0].to_string().contains("refresh_timeout"), "{run}");
    let found = "SELECT (SELECT count(*) FROM of_near), (SELECT count(*) FROM pg_indexes WHERE tablename IN ('near', 'of_near')),
                        (SELECT count(*) FROM pg_stats WHERE tablename = 'split_here')";
    assert_eq!(server.psql(&target, found), "20|2|1", "{run}");
}
