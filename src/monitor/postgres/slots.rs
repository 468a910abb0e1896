//! Replication slots: who keeps WAL from being removed, and whether what they need is there.

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Scope, get, text, truth};
use crate::error::Result;
use crate::metrics;
use crate::postgres::sql::Sql;

pub(super) const CONCERN: Concern =
    Concern { name: "slots", privileged: false, scope: Scope::Server, sql, pages: None, read };

fn sql(facts: &Facts) -> Option<Sql> {
    let sql = Sql::template(
        "SELECT slot_name::text AS slot, slot_type AS type, coalesce(database::text, '') AS database, active,
                pg_wal_lsn_diff({now}, restart_lsn)::float8 AS retained,
                wal_status, safe_wal_size::float8 AS safe
           FROM pg_replication_slots ORDER BY slot_name",
        &[("now", super::replication::written(facts).into())],
    );
    Some(sql)
}

fn read(_: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    for row in rows {
        let slot = text(row, "slot")?;
        let labels = [slot, text(row, "type")?, text(row, "database")?];
        found.add(&metrics::POSTGRES_SLOT, labels, Some(1.0));
        found.add(&metrics::POSTGRES_SLOT_ACTIVE, [slot], get(row, "active")?.map(truth));
        let retained: Option<f64> = get(row, "retained")?;
        found.add(&metrics::POSTGRES_SLOT_RETAINED, [slot], retained.map(|bytes| bytes.max(0.0)));
        found.add(&metrics::POSTGRES_SLOT_SAFE, [slot], get(row, "safe")?);
        if let Some(status) = get::<&str>(row, "wal_status")? {
            found.samples.extend(metrics::states(&metrics::POSTGRES_SLOT_WAL_STATE, &[slot], status));
        }
    }
    Ok(())
}
