//! Logical replication as the subscriber sees it: whether each subscription is on, has its worker, and hears anything.
//! The publisher's side is a slot (`slots`), and the connection of its reader (`replication`).

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Need, Scope, get, text};
use crate::error::Result;
use crate::metrics;
use crate::postgres::sql::Sql;

pub(super) const CONCERN: Concern =
    Concern { name: "subscriptions", need: Need::Nothing, scope: Scope::Server, sql, pages: None, read };

/// The row without a relation is the worker that applies changes; others copy tables, or (since 16) help it. Version 13
/// does not say to everybody which worker belongs to which subscription: they are joined by name there. A standby has
/// its primary's subscriptions, and runs none.
fn sql(facts: &Facts) -> Option<Sql> {
    if facts.in_recovery {
        return None;
    }
    let same = if facts.version >= 140_000 { "w.subid = s.oid" } else { "w.subname = s.subname" };
    let helper = if facts.version >= 160_000 { "AND w.leader_pid IS NULL" } else { "" };
    let errors = if facts.version >= 150_000 {
        "(SELECT (e.apply_error_count + e.sync_error_count)::float8
            FROM pg_stat_subscription_stats e WHERE e.subid = s.oid)"
    } else {
        "NULL::float8"
    };
    let sql = Sql::template(
        "SELECT d.datname::text AS database, s.subname::text AS name, s.subenabled AS enabled,
                count(w.pid) > 0 AS running, {errors} AS errors,
                extract(epoch FROM max(w.last_msg_receipt_time))::float8 AS heard
           FROM pg_subscription s
           JOIN pg_database d ON d.oid = s.subdbid
           LEFT JOIN pg_stat_subscription w ON {same} AND w.relid IS NULL {helper}
          GROUP BY {key}, d.datname, s.subname, s.subenabled
          ORDER BY 1, 2",
        &[
            ("same", same.into()),
            ("helper", helper.into()),
            ("errors", errors.into()),
            ("key", if facts.version >= 140_000 { "s.oid" } else { "s.subdbid" }.into()),
        ],
    );
    Some(sql)
}

fn read(_: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    for row in rows {
        let labels = [&*text(row, "database")?, &*text(row, "name")?];
        let is = |column: &str| Ok::<_, crate::error::Error>(get(row, column)?.unwrap_or(false));
        let state = match (is("enabled")?, is("running")?) {
            (false, _) => "disabled",
            (true, true) => "running",
            (true, false) => "not_running",
        };
        found.samples.extend(metrics::states(&metrics::POSTGRES_SUBSCRIPTION_STATE, &labels, state));
        found.add(&metrics::POSTGRES_SUBSCRIPTION_ERRORS, labels, get(row, "errors")?);
        found.add(&metrics::POSTGRES_SUBSCRIPTION_MESSAGE_TIMESTAMP, labels, get(row, "heard")?);
    }
    Ok(())
}
