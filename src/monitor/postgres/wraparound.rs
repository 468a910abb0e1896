//! How near each database is to running out of transaction ids and multixacts.

use super::{Concern, Facts, Need, Scope, number, text};
use crate::metrics;
use crate::postgres::sql::Sql;

pub(super) const CONCERN: Concern = Concern {
    name: "wraparound",
    need: Need::Nothing,
    scope: Scope::Server,
    pages: None,
    sql,
    read: |_, rows, found| {
        for row in rows {
            let name = text(row, "name")?;
            for kind in ["transactions", "multixacts"] {
                found.add(&metrics::POSTGRES_WRAPAROUND, [&*name, kind], Some(number(row, kind)?));
            }
        }
        Ok(())
    },
};

/// Half of 2³² ids are the past. The server stops 3,000,000 before that, and did 1,000,000 (multixacts:
/// 100) before until 13. Templates count, too: they stop the cluster just as well.
fn sql(facts: &Facts) -> Option<Sql> {
    let (transactions, multixacts) =
        if facts.version >= 140_000 { ("3000000", "3000000") } else { ("1000000", "100") };
    let sql = Sql::template(
        "SELECT datname::text AS name,
                age(datfrozenxid)::float8 / (2147483648 - {transactions}) AS transactions,
                mxid_age(datminmxid)::float8 / (2147483648 - {multixacts}) AS multixacts
           FROM pg_database ORDER BY datname",
        &[("transactions", transactions.into()), ("multixacts", multixacts.into())],
    );
    Some(sql)
}
