//! Rows that pg_dump takes into no dump: of tables that are members of an extension, those that an extension
//! brings itself, of tables in a system's schema. A set without them says so, and is not called proven; a job may
//! take them along.

use serde_json::Value;

use crate::restore_md;
use crate::support::compare::{assert_same, assert_same_content, db, plain_restore};
use crate::support::opsd::{Opsd, Run, quoted_list};
use crate::support::postgres::{
    Options, SUPERUSER, Server, default_major, default_server, for_some_majors, shared, unique,
};
use crate::support::sets::{self, back_up};
use crate::traps::site;

/// A queue as an extension for queues makes it: a table that becomes a member of the extension.
const QUEUE: &str = "CREATE EXTENSION opsd_fixture; CREATE SCHEMA mq;
    CREATE TABLE mq.q (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, message text NOT NULL CHECK (message <> ''),
        seen timestamptz NOT NULL DEFAULT '2026-01-01 00:00+00', twice integer GENERATED ALWAYS AS (length(message) * 2) STORED);
    CREATE INDEX q_seen ON mq.q (seen) WHERE message <> 'x';
    INSERT INTO mq.q (message) SELECT 'message ' || i FROM generate_series(1, 40) i;
    ALTER EXTENSION opsd_fixture ADD TABLE mq.q;
    CREATE TABLE plain AS SELECT generate_series(1, 9) AS id";

fn backed_up(opsd: &Opsd) -> (Run, String) {
    let run = opsd.ok(&["backup", "--json"]);
    let warnings = run.json()["sets"][0]["warnings"].to_string();
    (run, warnings)
}

fn rehearsed(opsd: &Opsd) -> Value {
    sets::result(&opsd.run(&["restore", "--verify", "--json"]))
}

/// Counts and note of what is said of such rows.
fn said(result: &Value, covered: bool) -> Option<(u64, String)> {
    let rows = result["scope"].as_array().unwrap_or_else(|| panic!("no scope: {result}"));
    let row = rows.iter().find(|r| r["what"] == "undumped-rows" && r["covered"] == covered)?;
    Some((row["count"].as_u64().unwrap(), row["note"].as_str().unwrap_or_default().to_owned()))
}

#[test]
fn rows_of_a_table_that_is_a_member_of_an_extension_are_told() {
    for_some_majors(|server| {
        let database = server.fresh_database("member");
        server.psql(&database, QUEUE);
        let mut opsd = site(server, &database);
        let (run, warnings) = backed_up(&opsd);
        assert!(warnings.contains("mq.q") && warnings.contains("include_extension_tables"), "{run}");
        assert!(!warnings.contains("opsd_fixture.kind"), "the extension makes them again: {run}");
        let result = rehearsed(&opsd);
        assert_eq!(result["verdict"], "unproven", "{result}");
        assert!(result["warnings"].to_string().contains("mq.q"), "{result}");
        let (count, note) = said(&result, false).unwrap_or_else(|| panic!("{result}"));
        assert!(count == 1 && note.contains("mq.q"), "{result}");
        // Those that come back by themselves are vouched for.
        assert_eq!(said(&result, true).map(|(count, _)| count), Some(2), "{result}");
        let dry = opsd.ok(&["backup", "--dry-run"]);
        assert!(format!("{}{}", dry.stdout, dry.stderr).contains("mq.q"), "{dry}");

        // Who says that they may go has them named as left out.
        opsd.job.set("exclude_table_data", quoted_list(&["mq.q"]));
        let (run, warnings) = backed_up(&opsd);
        assert!(!warnings.contains("mq.q"), "{run}");
        let result = rehearsed(&opsd);
        assert_eq!(result["verdict"], "proven", "{result}");
        assert!(result["scope"].to_string().contains("mq.q"), "{result}");
        server.drop_database(&database);
    });
}

#[test]
fn a_job_takes_the_tables_of_an_extension_along() {
    for_some_majors(|server| {
        // Its pg_dump, of an old minor version, writes the definition of an identity column alone.
        if server.major == 13 {
            return;
        }
        let database = server.fresh_database("taken");
        server.psql(&database, QUEUE);
        let mut opsd = site(server, &database);
        opsd.job.set("include_extension_tables", quoted_list(&["mq.*"]));
        let (run, warnings) = backed_up(&opsd);
        assert_eq!(warnings, "[]", "{run}");
        let result = rehearsed(&opsd);
        assert_eq!(
            (&result["verdict"], result["warnings"].to_string().as_str()),
            (&"proven".into(), "[]"),
            "{result}"
        );
        assert_eq!(result["databases"][0]["rows"], 40 + 9, "{result}");
        let restored = unique("restored");
        let url = server.socket_url(SUPERUSER, &restored);
        opsd.ok(&["restore", "db", "--to", &url, "--create"]);
        assert_same_content(db(server, &database), db(server, &restored));
        let definition = "SELECT string_agg(format('%s %s %s %s %s', attname, atttypid::regtype, attnotnull, attidentity, attgenerated), ',' ORDER BY attnum)
             || (SELECT string_agg(pg_get_constraintdef(oid), ',' ORDER BY conname) FROM pg_constraint WHERE conrelid = 'mq.q'::regclass)
             || (SELECT string_agg(indexdef, ',' ORDER BY indexdef) FROM pg_indexes WHERE schemaname = 'mq')
             || (SELECT string_agg(pg_describe_object(refclassid, refobjid, 0), ',') FROM pg_depend WHERE objid = 'mq.q'::regclass AND deptype = 'e')
             FROM pg_attribute WHERE attrelid = 'mq.q'::regclass AND attnum > 0";
        assert_eq!(server.psql(&database, definition), server.psql(&restored, definition));
        server.psql(&restored, "INSERT INTO mq.q (message) VALUES ('next')");
        assert_eq!(server.psql(&restored, "SELECT max(id) FROM mq.q"), "41");
        server.drop_database(&restored);
        server.drop_database(&database);
    });
}

/// PostGIS has such a table: what it brings itself is not dumped, changed or not.
#[test]
fn rows_that_were_changed_in_an_extensions_own_table_are_told_and_taken_along() {
    let server = default_server();
    let database = server.fresh_database("own");
    server.psql(
        &database,
        "CREATE EXTENSION opsd_fixture;
         INSERT INTO opsd_fixture.setting SELECT 'own ' || i, 'value' FROM generate_series(1, 19) i;
         UPDATE opsd_fixture.setting SET value = 'changed' WHERE builtin;
         UPDATE opsd_fixture.kind SET name = 'changed' WHERE id = 2",
    );
    let mut opsd = site(server, &database);
    let (run, warnings) = backed_up(&opsd);
    assert!(warnings.contains("opsd_fixture.kind"), "{run}");
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "unproven", "{result}");
    let (count, note) = said(&result, false).unwrap_or_else(|| panic!("{result}"));
    assert!(
        count == 2 && note.contains("opsd_fixture.setting") && note.contains("opsd_fixture.kind"),
        "{result}"
    );

    opsd.job.set("include_extension_tables", quoted_list(&["opsd_fixture.setting", "*.kind"]));
    let (run, warnings) = backed_up(&opsd);
    assert_eq!(warnings, "[]", "{run}");
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
    assert_eq!(said(&result, false), None, "{result}");
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    assert_same_content(db(server, &database), db(server, &restored));
    server.drop_database(&restored);
    server.drop_database(&database);
}

/// What is there already, and what nobody has made yet, is restored by one and the same line.
#[test]
fn the_document_brings_the_tables_of_an_extension_back() {
    let (source, target) = (shared(default_major()), Server::start(default_major(), &Options::default()));
    let database = source.fresh_database("document");
    source.psql(&database, QUEUE);
    source.psql(
        &database,
        "DELETE FROM opsd_fixture.kind WHERE id = 1; INSERT INTO opsd_fixture.kind VALUES (9, 'nine')",
    );
    let mut opsd = site(source, &database);
    opsd.job.set("include_extension_tables", quoted_list(&["mq.q", "opsd_fixture.kind"]));
    let id = back_up(&opsd);
    restore_md::follow(&opsd, &id, &target);
    assert_same_content(db(source, &database), db(&target, &database));
    source.drop_database(&database);
}

#[test]
fn partitions_of_an_extension_come_back_below_their_table() {
    let server = default_server();
    let database = server.fresh_database("parts");
    server.psql(
        &database,
        "CREATE EXTENSION opsd_fixture; CREATE SEQUENCE ids;
         CREATE TABLE events (id bigint DEFAULT nextval('ids'), at date NOT NULL, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         CREATE TABLE events_rest PARTITION OF events DEFAULT;
         CREATE TABLE notes (id bigint, at date, FOREIGN KEY (id, at) REFERENCES events);
         INSERT INTO events (at) SELECT date '2025-12-01' + i FROM generate_series(0, 60) i;
         INSERT INTO notes SELECT id, at FROM events;
         ALTER EXTENSION opsd_fixture ADD TABLE notes; ALTER EXTENSION opsd_fixture ADD SEQUENCE ids;
         ALTER EXTENSION opsd_fixture ADD TABLE events; ALTER EXTENSION opsd_fixture ADD TABLE events_2026;
         ALTER EXTENSION opsd_fixture ADD TABLE events_rest",
    );
    let mut opsd = site(server, &database);
    opsd.job.set("include_extension_tables", quoted_list(&["public.*"]));
    let (run, warnings) = backed_up(&opsd);
    assert_eq!(warnings, "[]", "{run}");
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    assert_same_content(db(server, &database), db(server, &restored));
    let keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'notes'::regclass AND conparentid = 0";
    assert_eq!(server.psql(&restored, keys), server.psql(&database, keys));
    server.drop_database(&restored);
    server.drop_database(&database);
}

#[test]
fn a_table_in_the_schema_of_a_system_is_told() {
    let server = default_server();
    let database = server.fresh_database("system");
    server.psql(
        &database,
        "CREATE TABLE information_schema.odd AS SELECT generate_series(1, 5) AS id; CREATE TABLE plain AS SELECT 1 AS id",
    );
    let opsd = site(server, &database);
    let (run, warnings) = backed_up(&opsd);
    assert!(warnings.contains("information_schema.odd"), "{run}");
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "unproven", "{result}");
    assert!(
        said(&result, false)
            .is_some_and(|(count, note)| count == 1 && note.contains("information_schema.odd")),
        "{result}"
    );
    server.drop_database(&database);
}

#[test]
fn a_pattern_that_names_no_such_table_is_a_mistake() {
    let server = default_server();
    let database = server.fresh_database("pattern");
    server.psql(&database, "CREATE TABLE plain AS SELECT 1 AS id");
    let mut opsd = site(server, &database);
    opsd.job.set("include_extension_tables", quoted_list(&["public.plain"]));
    opsd.run(&["backup"]).expect_failure(2, &["include_extension_tables", "public.plain"]);
    server.drop_database(&database);
}

/// pg_dump takes neither the table nor its sequence; the value was looked for in vain.
#[test]
fn an_identity_sequence_of_an_extensions_table_fails_no_backup() {
    for_some_majors(|server| {
        let database = server.fresh_database("identity");
        server.psql(
            &database,
            "CREATE EXTENSION opsd_fixture; CREATE TABLE q (id bigint GENERATED ALWAYS AS IDENTITY, n serial);
             CREATE TABLE plain (id serial); INSERT INTO plain DEFAULT VALUES; ALTER EXTENSION opsd_fixture ADD TABLE q",
        );
        let opsd = site(server, &database);
        opsd.ok(&["backup"]);
        server.drop_database(&database);
    });
}

/// Without the key the queues are gone, as with plain pg_restore, and that is said; with it they go on where they were.
#[test]
fn queues_that_an_extension_makes_come_back_and_go_on() {
    let server = default_server();
    let database = server.fresh_database("queues");
    server.psql(
        &database,
        r#"CREATE EXTENSION opsd_queue; SELECT mq.make('orders'), mq.make('it''s "odd"', true);
           SELECT mq.send('orders', jsonb_build_object('n', i)) FROM generate_series(1, 30) i;
           SELECT mq.send('it''s "odd"', '"x"') FROM generate_series(1, 5);
           SELECT mq.archive('orders', i) FROM generate_series(1, 10) i;
           CREATE VIEW waiting AS SELECT name FROM mq.meta"#,
    );
    let mut opsd = site(server, &database);
    let (run, warnings) = backed_up(&opsd);
    for name in ["mq.q_orders", "mq.a_orders", "odd"] {
        assert!(warnings.contains(name), "{name}: {run}");
    }
    assert_eq!(rehearsed(&opsd)["verdict"], "unproven");
    let restored = unique("restored");
    let url = server.socket_url(SUPERUSER, &restored);
    opsd.ok(&["restore", "db", "--to", &url, "--create"]);
    let plain = plain_restore(db(server, &database));
    assert_same(db(server, &plain), db(server, &restored));
    server.drop_database(&plain);
    server.drop_database(&restored);

    opsd.job.set("include_extension_tables", quoted_list(&["mq.*"]));
    let (run, warnings) = backed_up(&opsd);
    assert_eq!(warnings, "[]", "{run}");
    let result = rehearsed(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
    opsd.ok(&["restore", "db", "--to", &url, "--create"]);
    assert_same_content(db(server, &database), db(server, &restored));
    assert_eq!(
        server.psql(&restored, "SELECT mq.send('orders', '1'), mq.send('it''s \"odd\"', '2')"),
        "31|6"
    );
    let unlogged = "SELECT relname FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'";
    assert_eq!(server.psql(&restored, unlogged), "q_it's \"odd\"");
    server.drop_database(&restored);
    server.drop_database(&database);
}
