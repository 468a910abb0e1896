//! Removing what runs that did not end well left behind: objects of sets that never came to be,
//! unfinished uploads, a probe's small objects.
//!
//! Plan first: [`plan`] is a pure function of a listing and says of each thing why it goes or stays;
//! [`remove`] follows one line of it, after looking again. Only keys as opsd writes them, below
//! `site/job/id/` of this site, are ever touched, and only where the set has no manifest and nothing of
//! it was written for the limit, by the store's clock. A run may store nothing for as long as PostgreSQL
//! makes it wait, and an upload keeps the time at which it began. So a run that takes long renews a
//! heartbeat beside its objects ([`super::heartbeat`]), and the limit is to be longer than two of those, not
//! than a backup takes.
//!
//! `failed.json` of the newest run stays: it is what freezes pruning until a backup succeeds. A run
//! that is dated in the future freezes nothing and is not the newest.
//!
//! Objects that are locked stay until the lock ends ([`keep_locked`]): a DELETE would only hide them. An
//! upload is no object yet, and nothing locks it.
//!
//! Deliberately absent: anything in a complete set (that is `prune`), and the lease (the caller's).

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::error::{Context, Error, Result};
use crate::set::catalog::{self, Entry, State};
use crate::set::{self, FAILED, MANIFEST, is_written_by_opsd};
use crate::store::object_lock::{self, Protection};
use crate::store::probe::{self, is_probe_key};
use crate::store::{ObjectMeta, Store, StoreError, Unfinished};

/// The shortest limit: a run that is alive has written for sure within it, if only its heartbeat.
pub const LEAST_AGE: Duration = Duration::from_secs(3600);

/// What is there, as far as sweeping cares.
#[derive(Debug, Clone)]
pub struct Found {
    /// Every object of the site, and those of probes, sorted by key.
    pub objects: Vec<ObjectMeta>,
    /// Every unfinished upload among them.
    pub uploads: Vec<Unfinished>,
    /// Why unfinished uploads could not be listed, where that is so.
    pub uploads_unknown: Option<String>,
    /// The store's time.
    pub now: DateTime<Utc>,
}

/// What becomes of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// `job/id`, or the folder of a probe.
    pub place: String,
    /// Prefix of its keys, with a slash at the end.
    pub prefix: String,
    /// Why it goes or stays.
    pub reason: String,
    /// Keys that go; empty, like `uploads`, where it stays.
    pub keys: Vec<String>,
    /// Unfinished uploads that go.
    pub uploads: Vec<Unfinished>,
    /// Bytes in those keys.
    pub bytes: u64,
    /// What lies there, was not written by opsd, and stays; relative to the prefix.
    pub foreign: Vec<String>,
    /// The last write that was seen: a later one means that somebody is at work.
    pub last_write: DateTime<Utc>,
    /// Until when objects of it are locked that would go otherwise.
    pub locked_until: Option<DateTime<Utc>>,
}

impl Item {
    /// Whether this is a key as opsd writes them there.
    fn is_ours(&self, key: &str) -> bool {
        key.strip_prefix(&self.prefix).is_some_and(is_written_by_opsd)
    }

    /// Whether anything of it goes.
    pub fn goes(&self) -> bool {
        !self.keys.is_empty() || !self.uploads.is_empty()
    }
}

/// Lists what sweeping looks at.
pub async fn find(store: &dyn Store, site: &str) -> Result<Found> {
    // The clock first: what is written meanwhile is then from the future, and stays.
    let now = store.now().await.context("cannot learn the store's time")?;
    let mut found = Found { objects: Vec::new(), uploads: Vec::new(), uploads_unknown: None, now };
    // Some stores answer that there are none, whatever there is.
    let report = probe::remembered(store).await.context("cannot learn what the store can do")?;
    let lists_none = report.and_then(|report| report.lacks(probe::Name::MultipartList).map(str::to_owned));
    for prefix in [format!("{site}/"), probe::PREFIX.to_owned()] {
        let listed = store.list(&prefix).await;
        found.objects.extend(listed.with_context(|| format!("listing {prefix} in {}", store.describe()))?);
        match store.unfinished(&prefix).await {
            Ok(uploads) => found.uploads.extend(uploads),
            Err(StoreError::Unsupported(why) | StoreError::Denied(why)) => found.uploads_unknown = Some(why),
            Err(error) => return Err(Error::from(error).context("cannot list unfinished uploads")),
        }
    }
    if found.uploads.is_empty() && found.uploads_unknown.is_none() {
        found.uploads_unknown = lists_none.map(|how| format!("the last probe found that the store {how}"));
    }
    Ok(found)
}

/// Decides about everything in a site that belongs to no complete set; with `jobs`, only theirs.
pub fn plan(found: &Found, site: &str, jobs: &[String], older_than: Duration) -> Vec<Item> {
    let limit = Limit { now: found.now, older_than };
    let mut sets: BTreeMap<String, BTreeMap<String, Left>> = BTreeMap::new();
    let of_site: Vec<ObjectMeta> =
        found.objects.iter().filter(|o| catalog::split(&o.key, site).is_some()).cloned().collect();
    for (job, entries) in catalog::group(of_site, site) {
        let of_job = sets.entry(job).or_default();
        for entry in entries {
            let id = entry.id.clone();
            of_job.entry(id).or_default().entry = Some(entry);
        }
    }
    for upload in &found.uploads {
        if let Some([job, id, _]) = catalog::split(&upload.key, site) {
            let left = sets.entry(job.to_owned()).or_default().entry(id.to_owned()).or_default();
            left.uploads.push(upload.clone());
        }
    }
    let mut items = Vec::new();
    for (job, of_job) in sets {
        if jobs.is_empty() || jobs.contains(&job) {
            items.extend(plan_job(site, &job, of_job, &limit));
        }
    }
    if jobs.is_empty() {
        items.extend(plan_probes(found, &limit));
    }
    items
}

/// What is there under one id.
#[derive(Default)]
struct Left {
    entry: Option<Entry>,
    uploads: Vec<Unfinished>,
}

struct Limit {
    now: DateTime<Utc>,
    older_than: Duration,
}

impl Limit {
    /// How long ago, where that is longer than the limit. What has no time has no age.
    fn passed(&self, time: DateTime<Utc>) -> Option<Duration> {
        let age = (self.now - time).to_std().ok().filter(|_| time != DateTime::<Utc>::default());
        age.filter(|age| *age >= self.older_than)
    }
}

/// One job's sets from the newest to the oldest: of failed runs only the newest of what stays keeps
/// its `failed.json`.
fn plan_job(site: &str, job: &str, sets: BTreeMap<String, Left>, limit: &Limit) -> Vec<Item> {
    let mut ordered: Vec<(String, Left)> = sets.into_iter().collect();
    ordered.sort_by_key(|(id, _)| std::cmp::Reverse((set::id_time(id), id.clone())));
    let mut items = Vec::new();
    let mut newer_stays = false;
    for (id, left) in ordered {
        let prefix = set::set_prefix(site, job, &id);
        let place = format!("{job}/{id}");
        let state = left.entry.as_ref().map_or(State::Incomplete, |e| e.state);
        let is_ahead = set::id_time(&id).is_some_and(|time| catalog::is_from_future(time, limit.now));
        if state == State::Complete {
            newer_stays |= !is_ahead;
            items.extend(stale_uploads(&place, &prefix, left.uploads, limit));
            continue;
        }
        let objects = left.entry.map(|e| e.objects).unwrap_or_default();
        let is_newest = !newer_stays && !is_ahead;
        let item = plan_set(place, prefix, state, objects, left.uploads, is_newest, limit);
        let keeps_failed = state == State::Failed && is_newest;
        let goes_whole = item.goes() && item.foreign.is_empty() && !keeps_failed;
        newer_stays |= !goes_whole && !is_ahead;
        items.push(item);
    }
    items.reverse();
    items
}

/// A set without a manifest: all of it goes, or none.
fn plan_set(
    place: String,
    prefix: String,
    state: State,
    objects: Vec<ObjectMeta>,
    uploads: Vec<Unfinished>,
    is_newest: bool,
    limit: &Limit,
) -> Item {
    let (ours, foreign): (Vec<ObjectMeta>, Vec<ObjectMeta>) =
        objects.into_iter().partition(|o| is_written_by_opsd(&o.key));
    let (uploads, foreign_uploads): (Vec<Unfinished>, Vec<Unfinished>) = uploads
        .into_iter()
        .partition(|u| is_written_by_opsd(u.key.strip_prefix(&prefix).unwrap_or_default()));
    let foreign_uploads: Vec<String> =
        foreign_uploads.iter().map(|u| u.key.strip_prefix(&prefix).unwrap_or(&u.key).to_owned()).collect();
    let mut times: Vec<DateTime<Utc>> = ours.iter().map(|o| o.modified).collect();
    times.extend(uploads.iter().map(|u| u.started));
    let last_write = times.iter().copied().max().unwrap_or_default();
    let is_dated = times.iter().all(|time| *time != DateTime::<Utc>::default());
    let mut item = Item {
        place,
        prefix,
        reason: String::new(),
        keys: Vec::new(),
        uploads: Vec::new(),
        bytes: 0,
        foreign: foreign.into_iter().map(|o| o.key).chain(foreign_uploads).collect(),
        last_write,
        locked_until: None,
    };
    let keeps_failed = state == State::Failed && is_newest;
    let ago = (limit.now - last_write).to_std().unwrap_or_default();
    item.reason = match limit.passed(last_write).filter(|_| is_dated) {
        _ if times.is_empty() => "nothing in it was written by opsd".to_owned(),
        None if !is_dated => "the store does not say when it was written".to_owned(),
        None => format!("written to {} ago: may be in progress", short(ago)),
        Some(ago) => {
            let goes: Vec<&ObjectMeta> = ours.iter().filter(|o| !(keeps_failed && o.key == FAILED)).collect();
            item.keys = goes.iter().map(|o| format!("{}{}", item.prefix, o.key)).collect();
            // What says that the run failed goes last: until then the rest is known for what it is.
            item.keys.sort_by_key(|key| key.ends_with(&format!("/{FAILED}")));
            item.bytes = goes.iter().map(|o| o.size).sum();
            item.uploads = uploads;
            match state {
                State::Failed if keeps_failed && item.goes() => format!(
                    "its run failed {} ago; {FAILED} stays, because it is the newest run and freezes pruning",
                    short(ago)
                ),
                State::Failed if keeps_failed => {
                    format!("{FAILED} of the newest run, which freezes pruning until a backup succeeds")
                }
                State::Failed => format!("its run failed {} ago", short(ago)),
                State::Incomplete | State::Complete => {
                    format!("no manifest, and nothing written for {}: its run was killed", short(ago))
                }
            }
        }
    };
    item
}

/// Uploads to a set that is complete without them.
fn stale_uploads(place: &str, prefix: &str, uploads: Vec<Unfinished>, limit: &Limit) -> Option<Item> {
    let stale: Vec<Unfinished> = uploads
        .into_iter()
        .filter(|u| is_written_by_opsd(u.key.strip_prefix(prefix).unwrap_or_default()))
        .filter(|u| limit.passed(u.started).is_some())
        .collect();
    let last_write = stale.iter().map(|u| u.started).max()?;
    Some(Item {
        place: place.to_owned(),
        prefix: prefix.to_owned(),
        reason: "unfinished uploads that its complete set does not need".to_owned(),
        keys: Vec::new(),
        uploads: stale,
        bytes: 0,
        foreign: Vec::new(),
        last_write,
        locked_until: None,
    })
}

/// What interrupted probes left; a folder goes as a whole.
fn plan_probes(found: &Found, limit: &Limit) -> Vec<Item> {
    let mut folders: BTreeMap<String, Item> = BTreeMap::new();
    let folder_of = |key: &str| key.split_once('/').map(|(folder, _)| folder.to_owned()).unwrap_or_default();
    let empty = |folder: &str| Item {
        place: folder.to_owned(),
        prefix: format!("{folder}/"),
        reason: String::new(),
        keys: Vec::new(),
        uploads: Vec::new(),
        bytes: 0,
        foreign: Vec::new(),
        last_write: DateTime::default(),
        locked_until: None,
    };
    for object in found.objects.iter().filter(|o| is_probe_key(&o.key)) {
        let folder = folder_of(&object.key);
        let item = folders.entry(folder.clone()).or_insert_with(|| empty(&folder));
        item.keys.push(object.key.clone());
        item.bytes += object.size;
        item.last_write = item.last_write.max(object.modified);
    }
    for upload in found.uploads.iter().filter(|u| is_probe_key(&u.key)) {
        let folder = folder_of(&upload.key);
        let item = folders.entry(folder.clone()).or_insert_with(|| empty(&folder));
        item.uploads.push(upload.clone());
        item.last_write = item.last_write.max(upload.started);
    }
    let decide = |mut item: Item| {
        match limit.passed(item.last_write) {
            Some(ago) => item.reason = format!("left {} ago by a probe that was interrupted", short(ago)),
            None => {
                item.reason = "a probe's, and young: it may be running".to_owned();
                (item.keys, item.uploads, item.bytes) = (Vec::new(), Vec::new(), 0);
            }
        }
        item
    };
    folders.into_values().map(decide).collect()
}

/// Takes the objects out of a plan that are locked, with all that lies beside them; uploads go as planned.
/// Why it is not known what is locked, where that is so.
pub async fn keep_locked(store: &dyn Store, items: &mut [Item]) -> Result<Option<String>> {
    for item in items.iter_mut().filter(|item| !item.keys.is_empty()) {
        let protection = object_lock::protection(store, &item.keys).await;
        match protection.with_context(|| item.place.clone())? {
            Protection::None => {}
            Protection::Until(until) => {
                (item.keys, item.bytes, item.locked_until) = (Vec::new(), 0, Some(until));
                let stays = if item.uploads.is_empty() { "" } else { "; only its unfinished uploads go" };
                item.reason = format!("{}, and it is locked until {until}{stays}", item.reason);
            }
            Protection::Unknown(why) => return Ok(Some(why)),
        }
    }
    Ok(None)
}

/// `3h`, `12d`.
fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Removes what a line of the plan says, after looking whether it still is what it was. The rest is
/// tried to the end when something cannot be removed, and the first failure is the error.
pub async fn remove(store: &dyn Store, item: &Item) -> Result<()> {
    let objects = store.list(&item.prefix).await.with_context(|| format!("listing {}", item.prefix))?;
    let manifest = format!("{}{MANIFEST}", item.prefix);
    let is_complete = objects.iter().any(|o| o.key == manifest);
    if is_complete && !item.keys.is_empty() {
        return Err(Error::new(format!("{} became complete meanwhile: left alone", item.place)));
    }
    // What is left beside a complete set is no run's, whenever the set was written.
    if !is_complete && objects.iter().any(|o| item.is_ours(&o.key) && o.modified > item.last_write) {
        return Err(Error::new(format!("{} was written to meanwhile: left alone", item.place)));
    }
    let mut result = Ok(());
    // Uploads first: one that is completed meanwhile would leave an object that nobody planned for.
    for upload in &item.uploads {
        let aborted = store.abort_unfinished(upload).await;
        result = result.and(aborted.with_context(|| format!("aborting the upload of {}", upload.key)));
    }
    for key in &item.keys {
        let deleted = store.delete(key).await.with_context(|| format!("deleting {key}"));
        result = result.and(deleted);
    }
    result
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 9] = [
        "manifest.json",
        "failed.json",
        "heartbeat.json",
        "RESTORE.md",
        "app/schema.pgdump.zst.age",
        "app/data-1.pgdump.zst.age.001",
        "notes.txt",
        "app/notes.txt",
        "x/app/schema.pgdump.zst.age",
    ];
    const PLACES: [&str; 5] = [
        "site/db/20261101T030000Z-aaaa",
        "site/db/20261102T030000Z-aaaa",
        "site/web/20261101T030000Z-aaaa",
        "other/db/20261101T030000Z-aaaa",
        "probe-0123456789abcdef",
    ];

    fn now() -> DateTime<Utc> {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn found() -> impl Strategy<Value = Found> {
        let thing = (0..PLACES.len(), 0..NAMES.len(), 0i64..72);
        let things = || proptest::collection::vec(thing.clone(), 0..25);
        (things(), things()).prop_map(|(objects, uploads)| {
            let key = |place: usize, name: usize| match place {
                4 => format!("{}/{}", PLACES[4], ["plain", "crc", "notes.txt"][name % 3]),
                _ => format!("{}/{}", PLACES[place], NAMES[name]),
            };
            let at = |hours: i64| now() - TimeDelta::hours(hours);
            let mut objects: Vec<ObjectMeta> = objects
                .into_iter()
                .map(|(place, name, hours)| ObjectMeta {
                    key: key(place, name),
                    size: 1,
                    modified: at(hours),
                })
                .collect();
            objects.sort_by(|a, b| a.key.cmp(&b.key));
            objects.dedup_by(|a, b| a.key == b.key);
            let uploads = uploads.into_iter().map(|(place, name, hours)| Unfinished {
                key: key(place, name),
                id: hours.to_string(),
                started: at(hours),
            });
            Found { objects, uploads: uploads.collect(), uploads_unknown: None, now: now() }
        })
    }

    /// Its clock was ahead once: it must neither stay for ever nor take the newest run's place.
    #[test]
    fn a_failed_run_of_the_future_goes_and_the_newest_one_stays() {
        let meta = |id: &str| ObjectMeta {
            key: format!("site/db/{id}/{FAILED}"),
            size: 1,
            modified: now() - TimeDelta::days(9),
        };
        let newest = "20261110T030000Z-aaaa";
        let found = Found {
            objects: vec![meta(newest), meta("20991101T030000Z-aaaa")],
            uploads: Vec::new(),
            uploads_unknown: None,
            now: now(),
        };
        let plan = plan(&found, "site", &[], Duration::from_secs(3600));
        let gone: Vec<&String> = plan.iter().flat_map(|i| &i.keys).collect();
        assert_eq!(gone, ["site/db/20991101T030000Z-aaaa/failed.json"], "{plan:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn only_old_orphans_of_ours_go(found in found()) {
            let plan = plan(&found, "site", &[], Duration::from_secs(24 * 3600));
            let limit = now() - TimeDelta::hours(24);
            let has = |key: &str| found.objects.iter().any(|o| o.key == key);
            for item in &plan {
                prop_assert!(!item.reason.is_empty());
                let complete = has(&format!("{}manifest.json", item.prefix));
                prop_assert!(!complete || item.keys.is_empty());
                for key in &item.keys {
                    prop_assert!(key.starts_with("site/") || key.starts_with("probe-"), "{}", key);
                    prop_assert!(key.starts_with(&item.prefix) && !key.ends_with("notes.txt") && !key.contains("/x/"));
                    let object = found.objects.iter().find(|o| o.key == *key).unwrap();
                    prop_assert!(object.modified <= limit);
                }
                prop_assert!(item.uploads.iter().all(|u| u.started <= limit && u.key.starts_with(&item.prefix)));
                // A set goes only when nothing of ours in it is young.
                if !item.keys.is_empty() && item.prefix.starts_with("site/") {
                    let ours = |key: &str| key.strip_prefix(&item.prefix).is_some_and(is_written_by_opsd);
                    prop_assert!(found.objects.iter().all(|o| !ours(&o.key) || o.modified <= limit));
                    prop_assert!(found.uploads.iter().all(|u| !ours(&u.key) || u.started <= limit));
                }
            }
        }

        /// What freezes pruning before a sweep because a run failed freezes it afterwards.
        #[test]
        fn the_word_of_the_newest_failed_run_stays(found in found()) {
            let plan = plan(&found, "site", &[], Duration::ZERO);
            let gone: Vec<&String> = plan.iter().flat_map(|i| &i.keys).collect();
            let newest = format!("{}/", PLACES[1]);
            let failed = format!("{newest}{FAILED}");
            let has = |key: &str| found.objects.iter().any(|o| o.key == key);
            if has(&failed) && !has(&format!("{newest}{MANIFEST}")) {
                prop_assert!(!gone.contains(&&failed));
            }
        }
    }
}
