//! Removing sets that were named one by one: those that nobody believes any more, or nobody wants.
//!
//! Retention never touches a set that does not count, so one that became refused stays until somebody says that it
//! may go. As [`super::prune`] does, this plans first and deletes only what opsd wrote: of a believed set what its
//! manifest names, of another one what has such a name. What everything else rests on does not go: the newest set that
//! may be relied on, and the newest that a rehearsal proved; where none may be relied on, the newest of all.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use futures_util::StreamExt;

use super::prune::{self, Removal};
use crate::config::Trusted;
use crate::error::{Context, Kind, Result};
use crate::set::catalog::{self, Entry, Reliance, State};
use crate::set::{is_written_by_opsd, set_prefix};
use crate::store::object_lock::{self, Protection};
use crate::store::{ObjectMeta, Store};

/// A set that is to go.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its job.
    pub job: String,
    /// Its id.
    pub id: String,
    /// When it was started; by its id, where its manifest is not believed.
    pub started: DateTime<Utc>,
    /// Whether it may be relied on, and why not.
    pub standing: String,
    /// Why it does not go, where that is so.
    pub stays: Option<String>,
    /// How it is removed.
    pub removal: Removal,
}

/// Decides about some sets of one job, all of whose sets a listing told of. With them, why it is not known what is
/// locked, where that is so.
pub async fn plan(
    store: &dyn Store,
    trusted: &Trusted,
    entries: Vec<Entry>,
    ids: &BTreeSet<String>,
    now: DateTime<Utc>,
) -> Result<(Vec<Item>, Option<String>)> {
    let mut items = BTreeMap::new();
    let (mut newest, mut newest_proven) = (None, None);
    let (mut unread, mut newest_complete) = (None, None);
    let mut sets = std::pin::pin!(catalog::load_each(store, trusted, entries));
    while let Some((entry, loaded)) = sets.next().await {
        let reliance = catalog::reliance(&entry, &loaded, now);
        let started = loaded.as_ref().map_or(entry.id_time(), |set| set.manifest.started);
        if reliance == Reliance::Sound {
            let this = Some((started, entry.id.clone()));
            newest = newest.max(this.clone());
            if loaded.as_ref().is_ok_and(|set| set.is_proven()) {
                newest_proven = newest_proven.max(this);
            }
        }
        if entry.state == State::Complete {
            newest_complete = newest_complete.max(Some((started, entry.id.clone())));
        }
        // A store that does not answer, or a newer opsd's format, says nothing of a set. It may be the one that
        // everything rests on.
        if let (State::Complete, Err(error)) = (entry.state, &loaded)
            && !matches!(error.kind(), Kind::Refused | Kind::Differs)
        {
            unread = Some(format!(
                "set {} cannot be read now, and nobody knows what rests on it: {error}",
                entry.id
            ));
        }
        if !ids.contains(&entry.id) {
            continue;
        }
        let stays = match entry.state {
            State::Complete => None,
            State::Incomplete | State::Failed => {
                Some("it is no complete set: `opsd backups sweep` removes what runs left behind".to_owned())
            }
        };
        let removal = loaded.as_ref().map_or_else(|_| unbelieved(&entry), prune::removal);
        let standing = match &reliance {
            Reliance::Sound => "sound".to_owned(),
            other => other.to_string(),
        };
        let (job, id) = (entry.job.clone(), entry.id.clone());
        items.insert(id.clone(), Item { job, id, started, standing, stays, removal });
    }
    // Where nothing may be relied on, it may be the trusted keys that are wrong.
    let last = newest_complete.filter(|_| newest.is_none());
    for (kept, what) in [
        (last, "no set of this job may be relied on, and it is the newest: are the trusted keys right?"),
        (newest_proven, "it is the newest set that a rehearsal proved"),
        (newest, "it is the newest set that may be relied on"),
    ] {
        if let Some(item) = kept.and_then(|(_, id)| items.get_mut(&id)) {
            item.stays = Some(what.to_owned());
        }
    }
    if let Some(why) = unread {
        items.values_mut().for_each(|item| item.stays = Some(why.clone()));
    }
    let mut unknown = None;
    for item in items.values_mut().filter(|item| item.stays.is_none()) {
        let protection = object_lock::protection(store, &item.removal.keys).await;
        match protection.with_context(|| format!("set {}", item.id))? {
            Protection::None => {}
            Protection::Until(until) => item.stays = Some(format!("it is locked until {until}")),
            Protection::Unknown(why) => unknown = Some(why),
        }
    }
    Ok((items.into_values().collect(), unknown))
}

/// Of a set whose manifest nobody believes, what has the name of something that opsd writes.
fn unbelieved(entry: &Entry) -> Removal {
    let (mut ours, foreign): (Vec<&ObjectMeta>, Vec<&ObjectMeta>) =
        entry.objects.iter().partition(|object| is_written_by_opsd(&object.key));
    prune::manifest_first(&mut ours);
    let prefix = set_prefix(&entry.site, &entry.job, &entry.id);
    Removal {
        keys: ours.iter().map(|object| format!("{prefix}{}", object.key)).collect(),
        bytes: ours.iter().map(|object| object.size).sum(),
        foreign: foreign.into_iter().map(|object| object.key.clone()).collect(),
    }
}
