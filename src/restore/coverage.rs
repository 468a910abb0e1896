//! What a rehearsal says that it covered of a database, and what it did not.

use super::definitions;
use crate::printable;
use crate::set::archive::Entry;
use crate::set::manifest::{Database, Manifest};
use crate::set::proof::Proof;
use crate::set::scope::{Scope, What, named};

/// Databases that belong into a set and could not be dumped, a line each.
pub fn lacking(manifest: &Manifest) -> impl Iterator<Item = String> {
    manifest
        .lacking
        .iter()
        .map(|l| format!("the set lacks database {:?}: {}", l.name, printable::line(&l.why)))
}

/// Databases of the server that are no part of the set.
pub fn left_out(manifest: &Manifest) -> Option<Scope> {
    let names: Vec<&str> = manifest.left_out.iter().map(|l| l.name.as_str()).collect();
    Scope::uncovered(What::Databases, None, names.len() as u64, named(&names))
}

/// Definitions that agree.
pub fn of_definitions(database: &str, schema: &[Entry]) -> impl Iterator<Item = Scope> {
    let statistics = of_kind(schema, "STATISTICS").len() as u64;
    [
        Scope::covered(What::Definitions, Some(database), definitions::count(schema)),
        Scope::covered(What::StatisticsObjects, Some(database), statistics),
    ]
    .into_iter()
    .flatten()
}

/// Entries of one kind, `schema.name` each.
fn of_kind(entries: &[Entry], desc: &str) -> Vec<String> {
    let of_kind = entries.iter().filter(|entry| entry.desc == desc);
    of_kind.map(|entry| format!("{}.{}", entry.namespace, entry.tag)).collect()
}

/// What was covered of a database's content, and what cannot be.
pub fn of_content(
    database: &Database,
    proof: Option<&Proof>,
    tables_proven: u64,
    schema: &[Entry],
    other_versions: &[String],
) -> Vec<Scope> {
    let of = Some(database.name.as_str());
    let with_proof = proof.map_or(0, |proof| proof.tables.iter().map(|table| table.entries).sum());
    let excluded: &[String] = proof.map_or(&database.excluded, |proof| &proof.excluded);
    let foreign = of_kind(schema, "FOREIGN TABLE");
    let mut spaces: Vec<&str> =
        schema.iter().map(|e| e.tablespace.as_str()).filter(|t| !t.is_empty()).collect();
    spaces.sort_unstable();
    spaces.dedup();
    let versions = database.extensions.len().saturating_sub(other_versions.len()) as u64;
    [
        Scope::covered(What::Rows, of, tables_proven),
        Scope::uncovered(What::Rows, of, database.tables.saturating_sub(with_proof), "no fingerprint"),
        Scope::uncovered(What::ExcludedRows, of, excluded.len() as u64, named(excluded)),
        Scope::covered(What::LargeObjects, of, proof.map_or(0, |proof| proof.large_objects.rows)),
        Scope::covered(What::Sequences, of, proof.map_or(0, |proof| proof.sequences.len() as u64)),
        Scope::covered(What::ExtensionVersions, of, versions),
        Scope::uncovered(What::ExtensionVersions, of, other_versions.len() as u64, named(other_versions)),
        Scope::uncovered(What::ForeignTableRows, of, foreign.len() as u64, named(&foreign)),
        Scope::uncovered(What::Tablespaces, of, spaces.len() as u64, named(&spaces)),
        Scope::uncovered(What::DatabaseProperties, of, 1, ""),
    ]
    .into_iter()
    .flatten()
    .collect()
}
