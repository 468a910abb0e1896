//! Fingerprints of what a restore will compute anew, under the snapshot of the dump.
//!
//! The dumps are stored by then, so nothing of this can cost a set: what cannot be read, or not in time, is recorded
//! as not read. It is one session that reads, and its bound is the time that the dumps themselves took: a snapshot is
//! not held open for much longer than a backup without this would hold it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::inventory::{Inventory, is_replaced};
use super::plan::Plan;
use crate::error::Result;
use crate::postgres::computed::{self, Kind, Relation};
use crate::postgres::connect::error;
use crate::postgres::sql::Sql;
use crate::set::fingerprint::{RowHasher, RowSecret};
use crate::set::proof::{Computed, ComputedKind, Fingerprint};

/// However short the dumps were, this long may be read.
const SHORTEST_BOUND: Duration = Duration::from_secs(60);
/// How long a view may be locked by whoever refreshes it.
const LOCK_TIMEOUT: &str = "500ms";

/// Reads all that there is, within `took` or a minute.
pub(super) async fn read(
    client: &Client,
    inventory: &Inventory,
    plan: &Plan,
    secret: &RowSecret,
    took: Duration,
    most: Duration,
) -> Vec<Computed> {
    let until = Instant::now() + took.max(SHORTEST_BOUND).min(most);
    let relations = computed::list(client).await.unwrap_or_else(|failure| {
        tracing::warn!("generated columns and materialized views have no fingerprint: {failure}");
        Vec::new()
    });
    let excluded = roots(inventory, &plan.without_data);
    let relations = relations.into_iter().filter(|relation| !excluded.contains(&relation.oid)).map(|of| {
        let kind = match of.kind {
            Kind::Table => ComputedKind::Table,
            Kind::Root => ComputedKind::Root,
            Kind::View => ComputedKind::View,
        };
        (kind, of, true)
    });
    // What decides a verdict comes first.
    let undumped = plan.undumped.iter().filter(|table| !table.is_partitioned).map(|table| {
        let relation = Relation {
            oid: table.oid,
            kind: Kind::Table,
            schema: table.schema.clone(),
            name: table.name.clone(),
            columns: table.columns.clone(),
        };
        (ComputedKind::Undumped, relation, table.is_readable && !table.has_active_row_security)
    });
    let mut found = Vec::new();
    for (kind, relation, is_readable) in undumped.chain(relations) {
        let is_exact =
            !relation.columns.iter().chain([&relation.schema, &relation.name]).any(|name| is_replaced(name));
        let fingerprint = match !(is_readable && is_exact) {
            true => None,
            false => match within(client, &relation, secret, until).await {
                Ok(fingerprint) => Some(fingerprint),
                Err(failure) => {
                    tracing::info!("{}.{} has no fingerprint: {failure}", relation.schema, relation.name);
                    None
                }
            },
        };
        found.push(Computed {
            kind,
            schema: relation.schema,
            name: relation.name,
            columns: relation.columns,
            fingerprint,
        });
    }
    found
}

/// Tables whose rows are not in the set, and the roots above those.
fn roots(inventory: &Inventory, without_data: &HashSet<u32>) -> HashSet<u32> {
    let parents: std::collections::HashMap<u32, u32> =
        inventory.tables.iter().filter_map(|table| Some((table.oid, table.partition_of?))).collect();
    let excluded =
        inventory.tables.iter().filter(|table| without_data.contains(&table.oid) && !table.is_partitioned);
    let mut all = HashSet::new();
    for table in excluded {
        let mut at = Some(table.oid);
        while let Some(oid) = at.filter(|oid| all.insert(*oid)) {
            at = parents.get(&oid).copied();
        }
    }
    all
}

/// The fingerprint of a relation. The savepoint keeps the snapshot when its statement fails.
async fn within(
    client: &Client,
    relation: &Relation,
    secret: &RowSecret,
    until: Instant,
) -> Result<Fingerprint> {
    let left = until.saturating_duration_since(Instant::now()).as_millis().max(1);
    let begin = Sql::new("SAVEPOINT computed; SET LOCAL lock_timeout = ")
        .literal(LOCK_TIMEOUT)
        .then("; SET LOCAL statement_timeout = ")
        .number(i64::try_from(left).unwrap_or(i64::MAX));
    begin.run(client).await.map_err(error)?;
    let mut hasher = RowHasher::new(secret);
    let read = computed::rows(client, relation, |row| hasher.copied(row)).await;
    let end = if read.is_ok() { "RELEASE SAVEPOINT computed" } else { "ROLLBACK TO SAVEPOINT computed" };
    Sql::new(end).run(client).await.map_err(error)?;
    read.map(|()| hasher.take())
}
