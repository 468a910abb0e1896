//! Vacuum debt: the tables whose dead rows are most above what brings autovacuum, and their sum. No
//! table is opened, so none that somebody has locked holds this up.

use std::borrow::Cow;

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Scope, get, number, text};
use crate::error::Result;
use crate::metrics;

/// Tables that are named, in each database.
const WORST: usize = 10;

pub(super) const CONCERN: Concern =
    Concern { name: "vacuum", privileged: false, scope: Scope::Database, sql, pages: None, read };

/// A standby does not vacuum, and knows of no dead rows. Options of a table's own win. The first row is
/// the sum, and has no table.
fn sql(facts: &Facts) -> Option<Cow<'static, str>> {
    if facts.in_recovery {
        return None;
    }
    let own = |name: &str| {
        format!(
            "(SELECT option_value::float8 FROM pg_options_to_table(c.reloptions) WHERE option_name = '{name}')"
        )
    };
    let limit = format!(
        "coalesce({}, current_setting('autovacuum_vacuum_threshold')::float8) + greatest(c.reltuples, 0) \
         * coalesce({}, current_setting('autovacuum_vacuum_scale_factor')::float8)",
        own("autovacuum_vacuum_threshold"),
        own("autovacuum_vacuum_scale_factor")
    );
    // Version 18 caps the number for huge tables; -1 turns the cap off.
    let limit = if facts.version >= 180_000 {
        let cap = format!(
            "nullif(coalesce({}, current_setting('autovacuum_vacuum_max_threshold')::float8), -1)",
            own("autovacuum_vacuum_max_threshold")
        );
        format!("least({limit}, {cap})")
    } else {
        limit
    };
    let sql = format!(
        "WITH tables AS MATERIALIZED (
             SELECT s.schemaname::text AS schema, s.relname::text AS name, s.n_dead_tup::float8 AS dead,
                    s.n_dead_tup / greatest({limit}, 1) AS debt,
                    extract(epoch FROM greatest(s.last_vacuum, s.last_autovacuum))::float8 AS vacuumed
               FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
              WHERE s.n_dead_tup > 0)
         SELECT NULL AS schema, NULL AS name, coalesce(sum(dead), 0) AS dead, NULL AS debt, NULL AS vacuumed
           FROM tables
         UNION ALL
         (SELECT schema, name, dead, debt, vacuumed FROM tables ORDER BY debt DESC, schema, name LIMIT {WORST})"
    );
    Some(sql.into())
}

fn read(facts: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    let database = facts.database.as_str();
    for row in rows {
        let dead = Some(number(row, "dead")?);
        if get::<&str>(row, "name")?.is_none() {
            found.add(&metrics::POSTGRES_DEAD_ROWS, [database], dead);
            continue;
        }
        let labels = [database, text(row, "schema")?, text(row, "name")?];
        found.add(&metrics::POSTGRES_TABLE_DEAD_ROWS, labels, dead);
        found.add(&metrics::POSTGRES_TABLE_VACUUM_DEBT, labels, get(row, "debt")?);
        found.add(&metrics::POSTGRES_TABLE_VACUUMED_TIMESTAMP, labels, get(row, "vacuumed")?);
    }
    Ok(())
}
