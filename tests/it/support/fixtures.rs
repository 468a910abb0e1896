//! Databases full of odd objects, in pieces (`tests/fixtures/*.sql`) that can be put together.
//!
//! Pieces keep to a schema of their own, so any of them go together; some need `roles` first. What
//! depends on the server's version is decided in the SQL. Things that are large, or need a place on
//! disk, are made by functions here.

use super::postgres::{Server, identifier, literal};

/// A piece of a database.
#[derive(Clone, Copy)]
pub struct Fixture {
    /// The file's name without its ending.
    pub name: &'static str,
    sql: &'static str,
}

macro_rules! fixtures {
    ($($constant:ident $name:literal,)*) => {
        $(
            #[doc = concat!("`tests/fixtures/", $name, ".sql`")]
            pub const $constant: Fixture =
                Fixture { name: $name, sql: include_str!(concat!("../../fixtures/", $name, ".sql")) };
        )*
    };
}

fixtures! {
    ROLES "roles",
    PARTITIONS "partitions",
    INHERITANCE "inheritance",
    COLUMNS "columns",
    SEQUENCES "sequences",
    LARGE_OBJECTS "large_objects",
    TYPES "types",
    VIEWS "views",
    CONSTRAINTS "constraints",
    CODE "code",
    PRIVILEGES "privileges",
    FOREIGN "foreign",
    PUBLICATIONS "publications",
    NAMES "names",
    EXTENSIONS "extensions",
    EVENT_TRIGGERS "event_triggers",
    DATABASE "database",
    SUBSCRIPTION "subscription",
}

/// Everything that goes together, in an order in which it loads.
pub const ALL: &[Fixture] = &[
    ROLES,
    PARTITIONS,
    INHERITANCE,
    COLUMNS,
    SEQUENCES,
    LARGE_OBJECTS,
    TYPES,
    VIEWS,
    CONSTRAINTS,
    CODE,
    PRIVILEGES,
    FOREIGN,
    PUBLICATIONS,
    NAMES,
    EXTENSIONS,
    EVENT_TRIGGERS,
    DATABASE,
];

/// A name that no path, URL, pattern or shell should take apart.
pub const ODD_DATABASE: &str = r#"../x "y""#;

/// Loads pieces into a database, in the order given.
pub fn load(server: &Server, database: &str, fixtures: &[Fixture]) {
    for fixture in fixtures {
        if let Err(error) = server.try_psql(database, fixture.sql) {
            panic!("fixture {} does not load on PostgreSQL {}: {error}", fixture.name, server.major);
        }
    }
}

/// A fresh database with these pieces.
pub fn database_with(server: &Server, prefix: &str, fixtures: &[Fixture]) -> String {
    let name = server.fresh_database(prefix);
    load(server, &name, fixtures);
    name
}

/// A table of `rows` varied rows, some 250 bytes each.
pub fn rows(server: &Server, database: &str, table: &str, rows: u64) {
    let table = identifier(table);
    server.psql(
        database,
        &format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, at timestamptz NOT NULL, who text, amount numeric, ok boolean, doc jsonb, bin bytea);
             INSERT INTO {table} SELECT i, timestamptz '2026-01-01 00:00:00+00' + i * interval '7 seconds', 'person ' || i % 997,
                    (i::bigint * 7919 % 1000003) / 100.0, CASE WHEN i % 5 > 0 THEN i % 2 = 0 END,
                    jsonb_build_object('n', i, 'text', md5(i::text), 'list', ARRAY[i, i + 1]), decode(md5((i + 1)::text), 'hex')
               FROM generate_series(1, {rows}) i"
        ),
    );
}

/// `count` tables, `many.t_1` and so on, of which every seventh has three rows.
pub fn many_tables(server: &Server, database: &str, count: u32) {
    server.psql(
        database,
        &format!(
            "CREATE SCHEMA many;
             DO $$ BEGIN
                 FOR i IN 1..{count} LOOP
                     EXECUTE format('CREATE TABLE many.t_%s (id integer, note text)', i);
                     IF i % 7 = 0 THEN
                         EXECUTE format('INSERT INTO many.t_%s SELECT x, ''row '' || x FROM generate_series(1, 3) x', i);
                     END IF;
                 END LOOP;
             END $$"
        ),
    );
}

/// `wide`, a table of 1,600 columns, which is as many as PostgreSQL allows, with two rows.
pub fn wide_table(server: &Server, database: &str) {
    server.psql(
        database,
        "DO $$ BEGIN
             EXECUTE (SELECT 'CREATE TABLE wide (' || string_agg(format('c_%s smallint', i), ', ' ORDER BY i) || ')' FROM generate_series(1, 1600) i);
             EXECUTE (SELECT 'INSERT INTO wide VALUES (' || string_agg(i::text, ', ' ORDER BY i) || ')' FROM generate_series(1, 1600) i);
             EXECUTE 'INSERT INTO wide (c_1, c_1600) VALUES (1, -1)';
         END $$",
    );
}

/// `huge`, whose second row holds one value of `bytes` bytes of text. PostgreSQL stores it as it is.
pub fn huge_value(server: &Server, database: &str, bytes: u64) {
    server.psql(
        database,
        &format!(
            "CREATE TABLE huge (id integer PRIMARY KEY, value text);
             ALTER TABLE huge ALTER value SET STORAGE EXTERNAL;
             INSERT INTO huge VALUES (1, 'small'), (3, NULL);
             -- Pages enough to be read back in pieces.
             INSERT INTO huge SELECT i, repeat('x', 300) FROM generate_series(4, 1000) i;
             WITH block AS MATERIALIZED (SELECT string_agg(md5(i::text), '') AS text FROM generate_series(1, 32768) i)
             INSERT INTO huge SELECT 2, left(string_agg(md5(i::text) || text, ''), {bytes}) FROM block, generate_series(0, {bytes} >> 20) i"
        ),
    );
}

/// A tablespace in the server's own directory, and `spaced`, a table and its index in it. The
/// server should be the test's own: a tablespace belongs to the cluster.
pub fn tablespace(server: &Server, database: &str, name: &str) {
    let directory = server.subdirectory(name);
    let path = literal(directory.to_str().expect("a UTF-8 path"));
    let name = identifier(name);
    server.psql("postgres", &format!("CREATE TABLESPACE {name} LOCATION {path}"));
    server.psql(
        database,
        &format!(
            "CREATE TABLE spaced (id integer, note text) TABLESPACE {name};
             INSERT INTO spaced SELECT i, 'note' FROM generate_series(1, 100) i;
             CREATE INDEX ON spaced (id) TABLESPACE {name}"
        ),
    );
}
