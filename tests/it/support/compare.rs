//! Compares two databases without opsd: what pg_dump says of their definitions, and every row.
//!
//! A restored database is compared twice: with what a plain `pg_dump | pg_restore` makes of the same
//! source ([`assert_same`]), because a plain restore itself changes some definitions (the columns of
//! inherited children move, `IN` lists are spelled anew), and in content with the source
//! ([`assert_same_content`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::postgres::{Server, expect_success, run_with_input, unhex, unique};

/// One database of one server.
#[derive(Clone, Copy)]
pub struct Db<'a> {
    /// Where.
    pub server: &'a Server,
    /// Its name.
    pub name: &'a str,
}

/// Short for [`Db`].
pub fn db<'a>(server: &'a Server, name: &'a str) -> Db<'a> {
    Db { server, name }
}

/// Settings under which values have one text, whatever the database's own settings say.
const SESSION: &str = "-c timezone=UTC -c bytea_output=hex -c extra_float_digits=3 -c datestyle=ISO,MDY \
     -c intervalstyle=postgres -c search_path= -c row_security=off -c quote_all_identifiers=off \
     -c lc_monetary=C -c statement_timeout=0";

/// Restores a plain `pg_dump -Fc` of a database into a new one on the same server.
pub fn plain_restore(source: Db) -> String {
    let name = unique("plain");
    create_like(source, &name);
    let archive = tempfile::NamedTempFile::new().expect("create a file");
    let mut dump = source.server.client("pg_dump");
    dump.args(["-Fc", "-Z0", "--file"]).arg(archive.path()).env("PGDATABASE", source.name);
    // The archive has the database's encoding, as opsd's should; bytes that fit none have no other.
    dump.env_remove("PGCLIENTENCODING");
    expect_success(&mut dump);
    let mut restore = source.server.client("pg_restore");
    restore.args(["--exit-on-error", "--dbname", &name]).arg(archive.path());
    expect_success(&mut restore);
    name
}

/// Creates an empty database with the encoding and locale of another.
pub fn create_like(source: Db, name: &str) {
    let sql = format!(
        "SELECT format('CREATE DATABASE %I TEMPLATE template0 ENCODING %L LC_COLLATE %L LC_CTYPE %L', \
         {}, pg_encoding_to_char(encoding), datcollate, datctype) FROM pg_database WHERE datname = current_database()",
        super::postgres::literal(name)
    );
    let statement = source.server.psql(source.name, &sql);
    source.server.psql("postgres", &statement);
}

/// Fails with the differences unless definitions and content are the same.
pub fn assert_same(left: Db, right: Db) {
    none(left, right, &differences(left, right));
}

/// The same for content alone: rows, large objects, sequences, what is populated.
pub fn assert_same_content(left: Db, right: Db) {
    none(left, right, &content_differences(left, right));
}

/// The same for what belongs to the database as a whole and no `pg_dump` without `--create` carries:
/// owner, privileges, encoding, locale, settings.
pub fn assert_same_settings(left: Db, right: Db) {
    none(left, right, &setting_differences(left, right));
}

fn none(left: Db, right: Db, differences: &str) {
    assert!(differences.is_empty(), "{} and {} differ:\n{differences}", left.name, right.name);
}

/// What of definitions and content is not the same; empty where all is.
pub fn differences(left: Db, right: Db) -> String {
    let mut report = String::new();
    let major = left.server.major.max(right.server.major);
    compare_lists("definition", &definitions(left, major), &definitions(right, major), &mut report);
    compare_content(left, right, &mut report);
    report
}

/// The same of content alone.
pub fn content_differences(left: Db, right: Db) -> String {
    let mut report = String::new();
    compare_content(left, right, &mut report);
    report
}

/// The same of what belongs to the database as a whole.
pub fn setting_differences(left: Db, right: Db) -> String {
    let mut report = String::new();
    compare_lists("setting", &settings(left), &settings(right), &mut report);
    report
}

fn compare_content(left: Db, right: Db, report: &mut String) {
    let (tables_left, tables_right) = (tables(left), tables(right));
    let names = |tables: &BTreeMap<Vec<u8>, Table>| -> BTreeSet<String> {
        tables.values().map(|t| format!("{} ({})", t.label, t.columns.len())).collect()
    };
    compare_lists("table (columns)", &names(&tables_left), &names(&tables_right), report);
    let shared = |tables: &BTreeMap<Vec<u8>, Table>, other: &BTreeMap<Vec<u8>, Table>| -> Vec<Table> {
        tables.iter().filter(|(key, _)| other.contains_key(*key)).map(|(_, table)| table.clone()).collect()
    };
    let (shared_left, shared_right) =
        (shared(&tables_left, &tables_right), shared(&tables_right, &tables_left));
    let (rows_left, rows_right) = (copies(left, &shared_left), copies(right, &shared_right));
    for ((table, left), right) in shared_left.iter().zip(&rows_left).zip(&rows_right) {
        compare_rows(&table.label, left, right, report);
    }
    compare_lists("access method", &access_methods(left), &access_methods(right), report);
    compare_lists("sequence", &sequences(left), &sequences(right), report);
    compare_lists("large object", &large_objects(left), &large_objects(right), report);
}

/// The schema as pg_dump of `major` writes it, one string an object. Sorted, because objects that
/// pg_dump cannot tell apart by name come in the order of their creation.
pub fn definitions(db: Db, major: u32) -> BTreeSet<String> {
    let mut dump = db.server.client_of(major, "pg_dump");
    dump.args(["--schema-only"])
        .env("PGDATABASE", db.name)
        .env("PGOPTIONS", SESSION)
        .env_remove("PGCLIENTENCODING");
    let text = expect_success(&mut dump);
    let text = String::from_utf8_lossy(&text);
    let mut entries = BTreeSet::new();
    let mut entry = String::new();
    for line in text.lines() {
        // Where the next lines stand depends on the order; the key of \restrict is random.
        let noise = line.is_empty()
            || line == "--"
            || line.starts_with("\\restrict ")
            || line.starts_with("\\unrestrict ")
            || line.starts_with("-- Dumped ")
            || line.starts_with("SET default_");
        if noise {
            continue;
        }
        if line.starts_with("-- Name: ") && !entry.is_empty() {
            entries.insert(std::mem::take(&mut entry));
        }
        entry.push_str(line);
        entry.push('\n');
    }
    entries.insert(entry);
    entries
}

/// What to read of a table, and how to call it.
#[derive(Clone)]
struct Table {
    label: String,
    columns: Vec<Vec<u8>>,
    /// `SELECT … FROM …`; `None` where there is nothing to read.
    query: Option<Vec<u8>>,
}

/// Tables and materialized views. Columns are read in the order of their names, because inheritance
/// moves them. Partitions below a hash are read through their root only: which of them holds a row
/// may depend on the OIDs of the database.
fn tables(db: Db) -> BTreeMap<Vec<u8>, Table> {
    let sql = r#"
        WITH RECURSIVE part AS (
            SELECT i.inhrelid AS leaf, i.inhparent AS ancestor FROM pg_inherits i
              JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
            UNION ALL
            SELECT part.leaf, i.inhparent FROM part JOIN pg_inherits i ON i.inhrelid = part.ancestor
        )
        SELECT encode(convert_to(quote_ident(nspname) || '.' || quote_ident(relname), 'SQL_ASCII'), 'hex'),
               (SELECT coalesce(string_agg(encode(convert_to(quote_ident(attname), 'SQL_ASCII'), 'hex'), ','
                                           ORDER BY attname COLLATE pg_catalog."C"), '')
                  FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
               CASE WHEN relkind = 'm' AND NOT relispopulated THEN 'unpopulated'
                    WHEN relkind = 'p' THEN 'root' ELSE 'plain' END
          FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
         WHERE relkind IN ('r', 'm', 'p') AND relpersistence <> 't'
           AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND nspname !~ '^pg_(temp|toast_temp)_'
           AND NOT (relkind = 'p' AND relispartition)
           AND NOT EXISTS (SELECT FROM part JOIN pg_partitioned_table p ON p.partrelid = part.ancestor
                            WHERE part.leaf = c.oid AND p.partstrat = 'h')
           AND NOT EXISTS (SELECT FROM part JOIN pg_class f ON f.oid = part.leaf AND f.relkind = 'f'
                            WHERE part.ancestor = c.oid)
         ORDER BY 1"#;
    let mut tables = BTreeMap::new();
    for line in query(db, sql).lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let name = unhex(fields[0]);
        let columns: Vec<Vec<u8>> = fields[1].split(',').filter(|s| !s.is_empty()).map(unhex).collect();
        let mut label = String::from_utf8_lossy(&name).into_owned();
        let only: &[u8] = if fields[2] == "root" { b"" } else { b"ONLY " };
        let text = if fields[2] == "unpopulated" {
            label.push_str(", not populated");
            None
        } else {
            Some([b"SELECT ", columns.join(&b", "[..]).as_slice(), b" FROM ", only, &name].concat())
        };
        tables.insert(name, Table { label, columns, query: text });
    }
    tables
}

/// Every row of each table as COPY text, sorted.
fn copies(db: Db, tables: &[Table]) -> Vec<Vec<Vec<u8>>> {
    // No line of COPY text starts with `\#`: backslashes of the data are doubled.
    let mut script = Vec::new();
    for table in tables {
        script.extend_from_slice(b"\\echo '\\\\#'\n");
        if let Some(query) = &table.query {
            script.extend_from_slice(&[b"COPY (", query.as_slice(), b") TO STDOUT;\n"].concat());
        }
    }
    let output = run_psql(db, &script);
    let mut all: Vec<Vec<Vec<u8>>> = Vec::new();
    for line in output.split(|&b| b == b'\n') {
        if line == b"\\#" {
            all.push(Vec::new());
        } else if let Some(rows) = all.last_mut() {
            rows.push(line.to_vec());
        }
    }
    // What follows the last newline is no row.
    if let Some(rows) = all.last_mut() {
        rows.pop();
    }
    assert_eq!(all.len(), tables.len(), "COPY of every table of {}", db.name);
    for rows in &mut all {
        rows.sort_unstable();
    }
    all
}

fn compare_rows(table: &str, left: &[Vec<u8>], right: &[Vec<u8>], report: &mut String) {
    if checksum(left) == checksum(right) && left.len() == right.len() {
        return;
    }
    writeln!(report, "table {table}: {} rows against {}", left.len(), right.len())
        .expect("write to a string");
    let show = |row: &Vec<u8>| String::from_utf8_lossy(row).chars().take(300).collect::<String>();
    let (mut l, mut r, mut shown) = (0, 0, 0);
    while shown < 5 && (l < left.len() || r < right.len()) {
        match (left.get(l), right.get(r)) {
            (Some(a), Some(b)) if a == b => {
                (l, r) = (l + 1, r + 1);
                continue;
            }
            (Some(a), b) if b.is_none_or(|b| a < b) => {
                writeln!(report, "  only left:  {}", show(a)).expect("write to a string");
                l += 1;
            }
            (_, Some(b)) => {
                writeln!(report, "  only right: {}", show(b)).expect("write to a string");
                r += 1;
            }
            (_, None) => break,
        }
        shown += 1;
    }
}

fn checksum(rows: &[Vec<u8>]) -> Vec<u8> {
    let mut sum = Sha256::new();
    for row in rows {
        sum.update(row);
        sum.update(b"\n");
    }
    sum.finalize().to_vec()
}

/// Of every table: `pg_dump` says it in a setting between the definitions, which come in any order.
fn access_methods(db: Db) -> BTreeSet<String> {
    let sql = "SELECT format('%I.%I %s', n.nspname, c.relname, coalesce(a.amname, '-')) FROM pg_class c
                 JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am a ON a.oid = c.relam
                WHERE c.relkind IN ('r', 'm', 'p') AND c.relpersistence <> 't' AND n.nspname <> 'pg_toast'";
    query(db, sql).lines().map(str::to_owned).collect()
}

fn sequences(db: Db) -> BTreeSet<String> {
    let sql = "SELECT encode(convert_to(format('SELECT %L, last_value, is_called FROM %s', oid::regclass, oid::regclass), \
               'SQL_ASCII'), 'hex') FROM pg_class WHERE relkind = 'S' AND relpersistence <> 't'";
    let mut script = Vec::new();
    for line in query(db, sql).lines() {
        script.extend_from_slice(&unhex(line));
        script.extend_from_slice(b";\n");
    }
    let output = run_psql(db, &script);
    // Names may hold newlines; as a set of lines they still compare.
    String::from_utf8_lossy(&output).lines().map(str::to_owned).collect()
}

fn large_objects(db: Db) -> BTreeSet<String> {
    let sql = "SELECT oid, md5(lo_get(oid)), pg_get_userbyid(lomowner), lomacl, obj_description(oid, 'pg_largeobject') \
               FROM pg_largeobject_metadata ORDER BY oid";
    query(db, sql).lines().map(str::to_owned).collect()
}

fn settings(db: Db) -> BTreeSet<String> {
    let sql = "SELECT 'owner ' || pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()
        UNION ALL SELECT 'encoding ' || pg_encoding_to_char(encoding) || ' ' || datcollate || ' ' || datctype
                    FROM pg_database WHERE datname = current_database()
        UNION ALL SELECT 'privilege ' || a
                    FROM pg_database, unnest(coalesce(datacl, acldefault('d', datdba))) a WHERE datname = current_database()
        UNION ALL SELECT 'connections ' || datconnlimit FROM pg_database WHERE datname = current_database()
        UNION ALL SELECT 'comment ' || shobj_description(oid, 'pg_database') FROM pg_database
                   WHERE datname = current_database() AND shobj_description(oid, 'pg_database') IS NOT NULL
        UNION ALL SELECT 'set ' || coalesce(r.rolname, '-') || ' ' || c
                    FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = setrole, unnest(setconfig) c
                   WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())";
    query(db, sql).lines().map(str::to_owned).collect()
}

fn query(db: Db, sql: &str) -> String {
    String::from_utf8_lossy(&run_psql(db, sql.as_bytes())).into_owned()
}

/// psql that passes bytes through as they are stored, whatever the encoding.
fn run_psql(db: Db, script: &[u8]) -> Vec<u8> {
    let mut psql = db.server.client("psql");
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"])
        .env("PGDATABASE", db.name)
        .env("PGCLIENTENCODING", "SQL_ASCII")
        .env("PGOPTIONS", SESSION);
    let output = run_with_input(psql, script);
    assert!(
        output.status.success(),
        "reading {} failed: {}",
        db.name,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn compare_lists(what: &str, left: &BTreeSet<String>, right: &BTreeSet<String>, report: &mut String) {
    for (side, only) in [("left", left.difference(right)), ("right", right.difference(left))] {
        for item in only.take(30) {
            writeln!(report, "{what}, only {side}: {}", item.trim_end()).expect("write to a string");
        }
    }
}
