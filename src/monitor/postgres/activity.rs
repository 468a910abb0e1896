//! Who holds others up: old transactions, sessions idle in one, waits for locks, and transactions that
//! were prepared and forgotten.

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Need, Scope, get, number};
use crate::error::Result;
use crate::metrics;
use crate::postgres::sql::Sql;

pub(super) const CONCERN: Concern =
    Concern { name: "activity", need: Need::Statistics, scope: Scope::Server, sql, pages: None, read };

/// Waits are counted by their wait event, which costs nothing; `pg_blocking_pids` locks the lock
/// table. When a wait began is known since version 14.
fn sql(facts: &Facts) -> Option<Sql> {
    let longest = if facts.version >= 140_000 {
        "(SELECT extract(epoch FROM min(waitstart)) FROM pg_locks WHERE NOT granted)::float8"
    } else {
        "NULL::float8"
    };
    let sql = Sql::template(
        "SELECT extract(epoch FROM min(xact_start))::float8 AS oldest,
                extract(epoch FROM min(state_change)
                        FILTER (WHERE state LIKE 'idle in transaction%'))::float8 AS oldest_idle,
                count(*) FILTER (WHERE wait_event_type = 'Lock')::float8 AS blocked,
                {longest} AS longest
           FROM pg_stat_activity
          WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        &[("longest", longest.into())],
    );
    Some(sql)
}

fn read(_: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    for row in rows {
        found.plain(&metrics::POSTGRES_OLDEST_TRANSACTION_TIMESTAMP, get(row, "oldest")?);
        found.plain(&metrics::POSTGRES_OLDEST_IDLE_TRANSACTION_TIMESTAMP, get(row, "oldest_idle")?);
        found.plain(&metrics::POSTGRES_BLOCKED_SESSIONS, Some(number(row, "blocked")?));
        found.plain(&metrics::POSTGRES_LONGEST_WAIT_TIMESTAMP, get(row, "longest")?);
    }
    Ok(())
}

pub(super) const PREPARED: Concern = Concern {
    name: "prepared_transactions",
    need: Need::Nothing,
    scope: Scope::Server,
    pages: None,
    sql: |_| {
        let sql = "SELECT count(*)::float8 AS count, extract(epoch FROM min(prepared))::float8 AS oldest
                     FROM pg_prepared_xacts";
        Some(sql.into())
    },
    read: |_, rows, found| {
        for row in rows {
            found.plain(&metrics::POSTGRES_PREPARED_TRANSACTIONS, Some(number(row, "count")?));
            found.plain(&metrics::POSTGRES_OLDEST_PREPARED_TIMESTAMP, get(row, "oldest")?);
        }
        Ok(())
    },
};
