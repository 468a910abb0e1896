//! Whether a restore made what the source had and no dump holds: values of generated columns, rows of materialized
//! views, rows of extensions' own tables.
//!
//! None is in a dump, so a difference is no damage to the set. A view's rows differ where it was stale when it was
//! dumped, or where its query depends on the time or on chance; that is usual, and nobody can tell it from a loss. A
//! generated value differs where its function was changed since it was stored, or where this host's locales are
//! others; that is rare, and whoever restores gets other values than there were: the set is then not proven. Nor is it
//! where a table that pg_dump leaves out came back otherwise than it was, or where nobody knows how it was.

use crate::config::Connection;
use crate::error::Result;
use crate::postgres::computed::{self, Kind, Relation};
use crate::postgres::connect::connect;
use crate::set::fingerprint::{RowHasher, RowSecret};
use crate::set::proof::{Computed, ComputedKind, Proof};
use crate::set::scope::{Scope, What, named};

/// What came of it.
#[derive(Debug, Default)]
pub struct Found {
    /// What was compared and agrees, and what did not.
    pub scope: Vec<Scope>,
    /// Why what came back is not all that there was, a sentence each.
    pub unproven: Vec<String>,
}

/// Reads what the proof has a fingerprint of, and compares.
pub async fn compare(connection: &Connection, database: &str, proof: &Proof) -> Result<Found> {
    let mut found = Found::default();
    if proof.computed.is_empty() {
        return Ok(found);
    }
    let secret = RowSecret::from_base64(&proof.secret)?;
    let session = connect(connection, None, "opsd verify").await?.without_conversion().await?;
    let (mut columns, mut views, mut undumped) = (0, 0, 0);
    let (mut other_values, mut lost, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let (mut other_columns, mut unread_columns, mut unread_tables) = (0, 0, Vec::new());
    let mut other_views = Vec::new();
    for expected in &proof.computed {
        let name = format!("{}.{}", expected.schema, expected.name);
        let count = expected.columns.len() as u64;
        let is_view = expected.kind == ComputedKind::View;
        let same = match expected.fingerprint {
            None => None,
            Some(fingerprint) => {
                let mut hasher = RowHasher::new(&secret);
                let read =
                    computed::rows(&session.client, &relation(expected), |row| hasher.copied(row)).await;
                if session.client.is_closed() {
                    read?;
                    continue;
                }
                // What cannot be read is missing, and that is a difference of its own.
                Some(read.is_ok() && hasher.take() == fingerprint)
            }
        };
        match same {
            _ if expected.kind == ComputedKind::Undumped => match same {
                Some(true) => undumped += 1,
                Some(false) => lost.push(name),
                None => unknown.push(name),
            },
            Some(true) if is_view => views += 1,
            Some(true) => columns += count,
            _ if is_view => other_views.push(name),
            Some(false) => {
                other_columns += count;
                other_values.push(name);
            }
            None => {
                unread_columns += count;
                unread_tables.push(name);
            }
        }
    }
    session.close().await;
    let of = Some(database);
    let other = format!("other values than at the source: {}", named(&other_values));
    if !other_values.is_empty() {
        found.unproven.push(format!(
            "generated columns have other values than at the source: {}; their function was changed since they were \
             stored, or depends on a time zone, or this host's locales are others",
            named(&other_values)
        ));
    }
    if !lost.is_empty() {
        found.unproven.push(format!(
            "rows of {} are not in the set, and no restore makes them: pg_dump leaves out what belongs to an extension \
             or to the system; include_extension_tables takes them along",
            named(&lost)
        ));
    }
    if !unknown.is_empty() {
        found.unproven.push(format!(
            "rows of {} are not in the set, and were not read when it was taken: nobody knows whether they came back",
            named(&unknown)
        ));
    }
    let not_there = (lost.len() + unknown.len()) as u64;
    lost.extend(unknown);
    let unread = format!("not read when the set was taken: {}", named(&unread_tables));
    found.scope.extend(
        [
            Scope::covered(What::GeneratedColumns, of, columns),
            Scope::uncovered(What::GeneratedColumns, of, other_columns, other),
            Scope::uncovered(What::GeneratedColumns, of, unread_columns, unread),
            Scope::covered(What::UndumpedRows, of, undumped),
            Scope::uncovered(What::UndumpedRows, of, not_there, named(&lost)),
            Scope::covered(What::MaterializedViewRows, of, views),
            Scope::uncovered(What::MaterializedViewRows, of, other_views.len() as u64, named(&other_views)),
        ]
        .into_iter()
        .flatten(),
    );
    Ok(found)
}

fn relation(computed: &Computed) -> Relation {
    Relation {
        oid: 0,
        kind: match computed.kind {
            ComputedKind::Table | ComputedKind::Undumped => Kind::Table,
            ComputedKind::Root => Kind::Root,
            ComputedKind::View => Kind::View,
        },
        schema: computed.schema.clone(),
        name: computed.name.clone(),
        columns: computed.columns.clone(),
    }
}
