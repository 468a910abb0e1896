//! Client connections by state, against what ordinary roles may have.

use std::collections::BTreeMap;

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Need, Scope, number, text};
use crate::error::Result;
use crate::metrics;
use crate::postgres::sql::Sql;

/// Every state there is, so that one without a connection is 0.
const STATES: &[&str] = &[
    "active",
    "idle",
    "idle in transaction",
    "idle in transaction (aborted)",
    "fastpath function call",
    "disabled",
    "unknown",
];

pub(super) const CONCERN: Concern =
    Concern { name: "connections", need: Need::Nothing, scope: Scope::Server, sql, pages: None, read };

/// Since 10 the view has background processes, too. A role without `pg_monitor` sees that others'
/// sessions are there, but neither their kind nor their state; their database is visible. States that later versions
/// add (18: starting) count as unknown.
fn sql(facts: &Facts) -> Option<Sql> {
    let also_reserved =
        if facts.version >= 160_000 { "- current_setting('reserved_connections')::int" } else { "" };
    let states = Sql::new("").join(STATES.iter().map(|state| Sql::new("").literal(state)), ",");
    let sql = Sql::template(
        "SELECT s.state, count(a.pid)::float8 AS count,
                (current_setting('max_connections')::int
                 - current_setting('superuser_reserved_connections')::int {also_reserved})::float8 AS usable
           FROM unnest(ARRAY[{states}]) AS s (state)
           LEFT JOIN pg_stat_activity a
             ON CASE WHEN a.state IN ({states}) THEN a.state ELSE 'unknown' END = s.state
            AND (a.backend_type = 'client backend' OR (a.backend_type IS NULL AND a.datid IS NOT NULL))
          GROUP BY s.state",
        &[("states", states), ("also_reserved", also_reserved.into())],
    );
    Some(sql)
}

fn read(_: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    let mut total = 0.0;
    let mut usable = None;
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    for row in rows {
        let count = number(row, "count")?;
        counts.insert(text(row, "state")?, count);
        total += count;
        usable = Some(number(row, "usable")?);
    }
    for (state, count) in counts {
        // Label values are words; the view's have blanks and brackets.
        let label = match state.as_str() {
            "idle in transaction" => "idle_in_transaction",
            "idle in transaction (aborted)" => "idle_in_transaction_aborted",
            "fastpath function call" => "fastpath",
            other => other,
        };
        found.add(&metrics::POSTGRES_CONNECTIONS, [label], Some(count));
    }
    found.plain(&metrics::POSTGRES_CONNECTIONS_USABLE, usable);
    let used = usable.filter(|usable| *usable > 0.0).map(|usable| total / usable);
    found.plain(&metrics::POSTGRES_CONNECTIONS_USED, used);
    Ok(())
}
