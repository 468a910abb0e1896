//! Replication slots: who keeps WAL from being removed, and whether what they need is there.

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Need, Scope, get, text, truth};
use crate::error::Result;
use crate::metrics;
use crate::postgres::sql::Sql;

pub(super) const CONCERN: Concern =
    Concern { name: "slots", need: Need::Nothing, scope: Scope::Server, sql, pages: None, read };

/// Since 17 a standby may have copies of its primary's slots, which nobody reads there: their figures are the primary's.
fn sql(facts: &Facts) -> Option<Sql> {
    let own = if facts.version >= 170_000 && facts.in_recovery { "NOT synced" } else { "true" };
    let sql = Sql::template(
        "SELECT slot_name::text AS slot, slot_type AS type, coalesce(database::text, '') AS database, active,
                pg_wal_lsn_diff({now}, restart_lsn)::float8 AS retained,
                wal_status, safe_wal_size::float8 AS safe, temporary
           FROM pg_replication_slots WHERE {own} ORDER BY slot_name",
        &[("now", super::replication::written(facts).into()), ("own", own.into())],
    );
    Some(sql)
}

fn read(facts: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    for row in rows {
        let (slot, kind, database) = (&*text(row, "slot")?, text(row, "type")?, text(row, "database")?);
        found.add(&metrics::POSTGRES_SLOT, [slot, &kind, &database], Some(1.0));
        let active: Option<bool> = get(row, "active")?;
        found.add(&metrics::POSTGRES_SLOT_ACTIVE, [slot], active.map(truth));
        // A temporary one goes with its session, and one that copies a table of a subscription with the copy. On a standby
        // nobody reads what waits there for a promotion.
        let goes = get(row, "temporary")?.unwrap_or(false) || is_of_a_copy(slot);
        if kind == "logical" && !goes && (!facts.in_recovery || active == Some(true)) {
            let state = if active == Some(true) { "active" } else { "inactive" };
            let labels = [slot, &*database];
            found.samples.extend(metrics::states(&metrics::POSTGRES_LOGICAL_SLOT_STATE, &labels, state));
        }
        let retained: Option<f64> = get(row, "retained")?;
        found.add(&metrics::POSTGRES_SLOT_RETAINED, [slot], retained.map(|bytes| bytes.max(0.0)));
        found.add(&metrics::POSTGRES_SLOT_SAFE, [slot], get(row, "safe")?);
        if let Some(status) = get::<&str>(row, "wal_status")? {
            found.samples.extend(metrics::states(&metrics::POSTGRES_SLOT_WAL_STATE, &[slot], status));
        }
    }
    Ok(())
}

/// Whether a slot is one that a subscription makes to copy a table (`pg_16394_sync_16384_7…`,
/// `ReplicationSlotNameForTablesync` in PostgreSQL's source). Nobody reads it while the copy runs.
fn is_of_a_copy(slot: &str) -> bool {
    slot.starts_with("pg_") && slot.contains("_sync_")
}
