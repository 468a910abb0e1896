//! Sequences near their end: the next insert after it fails.
//!
//! What counts is the nearest end of all: the sequence's, and those of the columns that it feeds (a bigint sequence may
//! feed an integer column). A column is fed whose default asks the sequence, or its domain's default does, whoever owns
//! the sequence; of a domain the type beneath counts. `pg_monitor` may not read sequences; those that the
//! role may not are counted, and where it may read none the piece is missing.

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Need, Scope, get, text};
use crate::error::{Error, Result};
use crate::metrics;

/// The fullest ones of each database are named.
const FULLEST: usize = 10;
/// Reading a sequence locks it to the end of the statement, and the server has room for so many locks
/// altogether (64 a connection by default).
const PAGE: usize = 500;

/// One page, after the oid `$1`. A standby's unlogged sequences cannot be read, and the primary has them
/// all.
const SQL: &str = "
    WITH RECURSIVE domains AS (
        SELECT oid, typbasetype AS base FROM pg_type WHERE typtype = 'd'
        UNION ALL
        SELECT d.oid, t.typbasetype FROM domains d JOIN pg_type t ON t.oid = d.base WHERE t.typtype = 'd'),
    page AS MATERIALIZED (
        SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, q.seqincrement > 0 AS ascends,
               q.seqmin, q.seqmax, has_sequence_privilege(c.oid, 'SELECT, USAGE') AS readable
          FROM pg_sequence q
          JOIN pg_class c ON c.oid = q.seqrelid
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE NOT q.seqcycle AND NOT pg_is_other_temp_schema(n.oid) AND c.oid::int8 > $1
         ORDER BY c.oid LIMIT 500),
    fed AS (
        SELECT p.oid, a.atttypid AS type
          FROM page p
          JOIN pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = p.oid
               AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
               AND d.refobjsubid > 0
          JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        UNION
        SELECT p.oid, a.atttypid
          FROM page p
          JOIN pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = p.oid
               AND d.classid = 'pg_catalog.pg_attrdef'::regclass
          JOIN pg_attrdef e ON e.oid = d.objid
          JOIN pg_attribute a ON a.attrelid = e.adrelid AND a.attnum = e.adnum
        UNION
        SELECT p.oid, d.objid
          FROM page p
          JOIN pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = p.oid
               AND d.classid = 'pg_catalog.pg_type'::regclass),
    ends AS (
        SELECT t.oid, min(CASE t.type WHEN 21 THEN 32767 WHEN 23 THEN 2147483647 END) AS top,
               max(CASE t.type WHEN 21 THEN -32768 WHEN 23 THEN -2147483648 END) AS bottom
          FROM (SELECT oid, type FROM fed
                UNION ALL SELECT f.oid, d.base FROM fed f JOIN domains d ON d.oid = f.type) AS t
         GROUP BY t.oid),
    bounded AS (
        SELECT p.*, CASE WHEN readable THEN pg_sequence_last_value(p.oid) END AS last,
               least(seqmax, e.top)::float8 AS top, greatest(seqmin, e.bottom)::float8 AS bottom
          FROM page p LEFT JOIN ends e ON e.oid = p.oid)
    SELECT oid::int8 AS oid, schema, name, readable,
           CASE WHEN ascends THEN (last - bottom) / nullif(top - bottom, 0)
                ELSE (top - last) / nullif(top - bottom, 0) END AS used
      FROM bounded ORDER BY oid";

pub(super) const CONCERN: Concern = Concern {
    name: "sequences",
    need: Need::Nothing,
    scope: Scope::Database,
    pages: Some(|page| page.get(PAGE - 1).and_then(|last| get(last, "oid").ok().flatten())),
    sql: |facts| (!facts.in_recovery).then_some(SQL.into()),
    read,
};

fn read(facts: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    let database = facts.database.as_str();
    let (mut used, mut unreadable) = (Vec::new(), 0);
    for row in rows {
        unreadable += usize::from(!get(row, "readable")?.unwrap_or(false));
        if let Some(part) = get::<f64>(row, "used")? {
            used.push((part, text(row, "schema")?, text(row, "name")?));
        }
    }
    used.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (&a.1, &a.2).cmp(&(&b.1, &b.2))));
    for (part, schema, name) in used.into_iter().take(FULLEST) {
        found.add(&metrics::POSTGRES_SEQUENCE_USED, [database, &*schema, &*name], Some(part));
    }
    found.add(&metrics::POSTGRES_SEQUENCES_UNREADABLE, [database], Some(unreadable as f64));
    if unreadable > 0 && unreadable == rows.len() {
        return Err(Error::new(format!("permission denied for all {unreadable} sequences (SQLSTATE 42501)"))
            .with_hint("GRANT pg_read_all_data, or SELECT ON ALL SEQUENCES, to opsd's role"));
    }
    Ok(())
}
