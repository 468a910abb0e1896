//! Sequences near their end: the next insert after it fails.
//!
//! What counts is the nearer end of two: the sequence's, and that of the column which owns it (a
//! bigint sequence may feed an integer column). `pg_monitor` may not read sequences; those that the
//! role may not are counted, and where it may read none the piece is missing.

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Scope, get, number, text};
use crate::error::{Error, Result};
use crate::metrics;

/// The fullest ones of each database are named. A standby's unlogged sequences cannot be read, and the
/// primary has them all.
const SQL: &str = "
    WITH sequences AS MATERIALIZED (
        SELECT n.nspname::text AS schema, c.relname::text AS name, q.seqincrement > 0 AS ascends,
               q.seqmin, q.seqmax, a.atttypid,
               has_sequence_privilege(c.oid, 'SELECT, USAGE') AS readable,
               CASE WHEN has_sequence_privilege(c.oid, 'SELECT, USAGE')
                    THEN pg_sequence_last_value(c.oid) END AS last
          FROM pg_sequence q
          JOIN pg_class c ON c.oid = q.seqrelid
          JOIN pg_namespace n ON n.oid = c.relnamespace
          LEFT JOIN pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
               AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
               AND d.refobjsubid > 0
          LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
         WHERE NOT q.seqcycle AND NOT pg_is_other_temp_schema(n.oid)),
    bounded AS (
        SELECT *, least(seqmax, CASE atttypid WHEN 21 THEN 32767 WHEN 23 THEN 2147483647 END)::float8 AS top,
               greatest(seqmin, CASE atttypid WHEN 21 THEN -32768 WHEN 23 THEN -2147483648 END)::float8 AS bottom
          FROM sequences)
    SELECT NULL AS schema, NULL AS name, NULL::float8 AS used,
           count(*) FILTER (WHERE NOT readable)::float8 AS unreadable, count(*)::float8 AS all
      FROM sequences
    UNION ALL
    (SELECT schema, name,
            CASE WHEN ascends THEN (last - bottom) / nullif(top - bottom, 0)
                 ELSE (top - last) / nullif(top - bottom, 0) END AS used, NULL, NULL
       FROM bounded WHERE last IS NOT NULL ORDER BY 3 DESC NULLS LAST, 1, 2 LIMIT 10)";

pub(super) const CONCERN: Concern = Concern {
    name: "sequences",
    privileged: false,
    scope: Scope::Database,
    sql: |facts| (!facts.in_recovery).then_some(SQL.into()),
    read,
};

fn read(facts: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    let database = facts.database.as_str();
    for row in rows {
        if get::<&str>(row, "name")?.is_some() {
            let labels = [database, text(row, "schema")?, text(row, "name")?];
            found.add(&metrics::POSTGRES_SEQUENCE_USED, labels, get(row, "used")?);
            continue;
        }
        let (unreadable, all) = (number(row, "unreadable")?, number(row, "all")?);
        found.add(&metrics::POSTGRES_SEQUENCES_UNREADABLE, [database], Some(unreadable));
        if all > 0.0 && unreadable >= all {
            return Err(Error::new(format!("permission denied for all {all} sequences (SQLSTATE 42501)"))
                .with_hint("GRANT pg_read_all_data, or SELECT ON ALL SEQUENCES, to opsd's role"));
        }
    }
    Ok(())
}
