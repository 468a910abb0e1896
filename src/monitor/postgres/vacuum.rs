//! Vacuum debt: the tables whose dead rows are most above what brings autovacuum, and their sum. No
//! table is opened, so none that somebody has locked holds this up.

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Need, Scope, get, number, text};
use crate::error::Result;
use crate::metrics;
use crate::postgres::sql::Sql;

/// Tables that are named, in each database.
const WORST: u32 = 10;

pub(super) const CONCERN: Concern =
    Concern { name: "vacuum", need: Need::Nothing, scope: Scope::Database, sql, pages: None, read };

/// A standby does not vacuum, and knows of no dead rows. Options of a table's own win. The first row is
/// the sum, and has no table.
fn sql(facts: &Facts) -> Option<Sql> {
    if facts.in_recovery {
        return None;
    }
    let own = |name: &str| {
        Sql::new("(SELECT option_value::float8 FROM pg_options_to_table(c.reloptions) WHERE option_name = ")
            .literal(name)
            .then(")")
    };
    let limit = Sql::template(
        "coalesce({threshold}, current_setting('autovacuum_vacuum_threshold')::float8) + greatest(c.reltuples, 0) \
         * coalesce({scale}, current_setting('autovacuum_vacuum_scale_factor')::float8)",
        &[
            ("threshold", own("autovacuum_vacuum_threshold")),
            ("scale", own("autovacuum_vacuum_scale_factor")),
        ],
    );
    // Version 18 caps the number for huge tables; -1 turns the cap off.
    let limit = if facts.version >= 180_000 {
        Sql::template(
            "least({limit}, nullif(coalesce({cap}, current_setting('autovacuum_vacuum_max_threshold')::float8), -1))",
            &[("limit", limit), ("cap", own("autovacuum_vacuum_max_threshold"))],
        )
    } else {
        limit
    };
    let sql = Sql::template(
        "WITH tables AS MATERIALIZED (
             SELECT s.schemaname::text AS schema, s.relname::text AS name, s.n_dead_tup::float8 AS dead,
                    s.n_dead_tup / greatest({limit}, 1) AS debt,
                    extract(epoch FROM greatest(s.last_vacuum, s.last_autovacuum))::float8 AS vacuumed
               FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
              WHERE s.n_dead_tup > 0)
         SELECT NULL AS schema, NULL AS name, coalesce(sum(dead), 0) AS dead, NULL AS debt, NULL AS vacuumed
           FROM tables
         UNION ALL
         (SELECT schema, name, dead, debt, vacuumed FROM tables ORDER BY debt DESC, schema, name LIMIT {worst})",
        &[("limit", limit), ("worst", Sql::new("").number(WORST))],
    );
    Some(sql)
}

fn read(facts: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    let database = facts.database.as_str();
    for row in rows {
        let dead = Some(number(row, "dead")?);
        if get::<super::Text>(row, "name")?.is_none() {
            found.add(&metrics::POSTGRES_DEAD_ROWS, [database], dead);
            continue;
        }
        let labels = [database, &*text(row, "schema")?, &*text(row, "name")?];
        found.add(&metrics::POSTGRES_TABLE_DEAD_ROWS, labels, dead);
        found.add(&metrics::POSTGRES_TABLE_VACUUM_DEBT, labels, get(row, "debt")?);
        found.add(&metrics::POSTGRES_TABLE_VACUUMED_TIMESTAMP, labels, get(row, "vacuumed")?);
    }
    Ok(())
}
