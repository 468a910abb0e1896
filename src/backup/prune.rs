//! Removing the sets that retention does not keep.
//!
//! Plan first: [`plan`] reads the repository and decides, [`remove`] deletes one set of that plan.
//! Only keys that the set's own manifest names, or that the layout of a set knows, are deleted;
//! anything else that lies there is left and reported. Sets that do not count (incomplete, failed,
//! refused) are never touched, and a set of which anything is locked stays whole until the lock ends: a
//! DELETE would only hide it. Backups never prune: this is another command, and may be another
//! credential.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;

use super::retention::{self, Amount, Candidate, Plan, Standing};
use crate::config::{Retention, Trusted};
use crate::error::{Context, Result};
use crate::set::catalog::{self, Entry, Loaded, Reliance};
use crate::set::manifest::{Database, ProofState};
use crate::set::{MANIFEST, MANIFEST_SIGNATURE, set_prefix};
use crate::store::object_lock::{self, Protection};
use crate::store::{ObjectMeta, Store};

/// What prune would do to one job.
#[derive(Debug, Clone)]
pub struct JobPlan {
    /// The job.
    pub job: String,
    /// What retention says about every set.
    pub plan: Plan,
    /// How to remove those that go, by id.
    pub removals: BTreeMap<String, Removal>,
    /// Sets that would go and are locked, by id: until when.
    pub locked: BTreeMap<String, DateTime<Utc>>,
    /// Why it is not known what is locked, where that is so.
    pub locks_unknown: Option<String>,
    /// Sets that have a manifest and do not count (damaged, not trusted, too new, objects missing): id and reason.
    pub refused: Vec<(String, String)>,
}

/// How to remove one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Keys in the order of deletion: the manifest first, so that the set stops existing before
    /// anything of it is missing; then its signature; then the rest.
    pub keys: Vec<String>,
    /// Bytes that they hold.
    pub bytes: u64,
    /// What also lies in the set's folder and is not opsd's: it stays.
    pub foreign: Vec<String>,
}

/// Reads the sets of a job that a listing told of, and decides about each.
pub async fn plan(
    store: &dyn Store,
    trusted: &Trusted,
    job: &str,
    entries: Vec<Entry>,
    rules: &Retention,
    now: DateTime<Utc>,
    accept_shrink: bool,
) -> Result<JobPlan> {
    let mut candidates = Vec::new();
    let mut removable = BTreeMap::new();
    let mut refused = Vec::new();
    let mut sets = std::pin::pin!(catalog::load_each(store, trusted, entries));
    while let Some((entry, loaded)) = sets.next().await {
        let reliance = catalog::reliance(&entry, &loaded, now);
        let (id, why) = (entry.id.clone(), reliance.to_string());
        let time = loaded.as_ref().map_or(entry.id_time(), |set| set.manifest.started);
        // There is a manifest, and still no set to count on.
        if matches!(reliance, Reliance::Refused(_) | Reliance::Lacking(_) | Reliance::Unknown(_)) {
            refused.push((id.clone(), why.clone()));
        }
        let standing = match (reliance, &loaded) {
            (Reliance::Sound | Reliance::Ahead, Ok(set)) => {
                Standing::Complete { proven: set.is_proven(), databases: amounts(set) }
            }
            (Reliance::Differs(_), Ok(_)) => Standing::Differs(why),
            (Reliance::Partial(_), Ok(_)) => Standing::Partial(why),
            (Reliance::Incomplete, _) => Standing::Unfinished(why),
            _ => Standing::NotCounted(why),
        };
        if let Ok(set) = &loaded
            && matches!(standing, Standing::Complete { .. } | Standing::Differs(_) | Standing::Partial(_))
        {
            removable.insert(id.clone(), removal(set));
        }
        candidates.push(Candidate { id, time, standing });
    }
    let plan = retention::plan(&candidates, rules, now, accept_shrink);
    removable.retain(|id, _| plan.removed().any(|d| d.id == *id));
    let mut planned = JobPlan {
        job: job.to_owned(),
        plan,
        removals: removable,
        locked: BTreeMap::new(),
        locks_unknown: None,
        refused,
    };
    keep_locked(store, &mut planned).await?;
    Ok(planned)
}

/// Takes the sets out of the plan of which anything is locked.
async fn keep_locked(store: &dyn Store, planned: &mut JobPlan) -> Result<()> {
    for (id, removal) in &planned.removals {
        match object_lock::protection(store, &removal.keys).await.with_context(|| format!("set {id}"))? {
            Protection::None => {}
            Protection::Until(until) => {
                planned.locked.insert(id.clone(), until);
            }
            Protection::Unknown(why) => {
                planned.locks_unknown = Some(why);
                break;
            }
        }
    }
    planned.removals.retain(|id, _| !planned.locked.contains_key(id));
    Ok(())
}

/// How much of each database a set holds.
fn amounts(set: &Loaded) -> BTreeMap<String, Amount> {
    let amount = |d: &Database| Amount {
        bytes: d.streams.iter().map(|s| s.plain_size).sum(),
        rows: (d.proof != ProofState::None).then_some(d.rows),
    };
    set.manifest.databases.iter().map(|d| (d.name.clone(), amount(d))).collect()
}

/// Sorts what is stored of a believed set into ours and not ours.
pub(super) fn removal(set: &Loaded) -> Removal {
    let entry = &set.entry;
    let foreign: Vec<String> = set.foreign().into_iter().map(str::to_owned).collect();
    let mut ours: Vec<&ObjectMeta> = entry.objects.iter().filter(|o| !foreign.contains(&o.key)).collect();
    manifest_first(&mut ours);
    let prefix = set_prefix(&entry.site, &entry.job, &entry.id);
    Removal {
        keys: ours.iter().map(|o| format!("{prefix}{}", o.key)).collect(),
        bytes: ours.iter().map(|o| o.size).sum(),
        foreign,
    }
}

/// Orders what is to be deleted of a set.
pub(super) fn manifest_first(objects: &mut [&ObjectMeta]) {
    objects.sort_by_key(|o| match o.key.as_str() {
        MANIFEST => 0,
        MANIFEST_SIGNATURE => 1,
        _ => 2,
    });
}

/// Removes one set. Once the manifest is gone the set does not exist, whatever happens to the rest;
/// the rest is then tried to the end, and the first failure is the error.
pub async fn remove(store: &dyn Store, removal: &Removal) -> Result<()> {
    let mut result = Ok(());
    for (index, key) in removal.keys.iter().enumerate() {
        let deleted = store.delete(key).await.with_context(|| format!("deleting {key}"));
        if index == 0 {
            deleted?;
        } else {
            result = result.and(deleted);
        }
    }
    result
}
