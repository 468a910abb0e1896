//! What a set has less of than the one before it.

use crate::set::manifest::{Database, Lacking, Manifest};

/// Databases that are gone, or that lost more than half of their rows or bytes since the set before: a truncated table,
/// a wrong host, an empty restore. Retention freezes on it; here it is said.
pub(super) fn told(previous: &Manifest, now: &[Database], lacking: &[Lacking]) -> Vec<String> {
    let mut warnings = Vec::new();
    let is_told = |name: &str| now.iter().any(|n| n.name == name) || lacking.iter().any(|l| l.name == name);
    for gone in previous.databases.iter().filter(|d| !is_told(&d.name)) {
        warnings
            .push(format!("database {:?}, which set {} holds, is not in this one", gone.name, previous.id));
    }
    for database in now {
        let Some(before) = previous.databases.iter().find(|d| d.name == database.name) else { continue };
        for (unit, before, now) in
            [("rows", before.rows, database.rows), ("bytes", before.bytes, database.bytes)]
        {
            if now < before / 2 {
                let since = &previous.id;
                warnings
                    .push(format!("{}: {unit} fell from {before} to {now} since set {since}", database.name));
            }
        }
    }
    warnings
}
