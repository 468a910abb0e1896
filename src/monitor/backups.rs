//! The backups, from the repository itself: what is there is true on every host that can see it.
//!
//! A set never changes once it is complete, so its documents are read once and what matters of them is
//! kept, until the listing tells that something in its folder changed. A collection is a listing and
//! what is new. A credential that may list and not read still tells what a listing tells; one that may
//! not even list tells nothing, and the monitor is down.
//! Deliberately absent: reading any object but manifests and records (`backups scrub` does), and any
//! opinion on retention.

mod figures;
mod history;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use futures_util::StreamExt;

use super::{Collected, Concern, Failure, Monitor, Reason};
use crate::config::monitoring::Backups;
use crate::config::{Config, Location, Repository, Trusted, keys};
use crate::error::{Error, Kind, Result};
use crate::set::catalog::{self, Entry, State, Unknown};
use crate::set::{MANIFEST, set_prefix};
use crate::store::{self, Store, StoreError};

pub use figures::{THRESHOLDS, headline};
use history::{Freshness, Job, Known, Standing};

/// Refused sets that a collection looks at again, the newest of them.
const REFUSED_AGAIN: usize = 10;

/// How soon a repository is looked at again in which a set is missing or overdue. Whoever makes the first one looks
/// then, and should not read for a quarter of an hour that there is none.
const AWAITED: Duration = Duration::from_secs(60);

/// A monitor of one repository.
pub struct Target {
    name: String,
    site: String,
    repository: Repository,
    trusted: Trusted,
    /// In canonical form, sorted; empty where this host makes no backups.
    recipients: Vec<String>,
    /// Jobs that must be there, and how old their newest set may be.
    jobs: BTreeMap<String, Option<Duration>>,
    /// Whether other jobs of the repository are looked at, too.
    all: bool,
    rpo: Option<Duration>,
    store: Option<Arc<dyn Store>>,
    known: BTreeMap<(String, String), (u64, Known)>,
    /// Whether a job has no set that is new enough.
    is_awaited: bool,
}

/// A monitor that has read nothing yet.
pub fn open(name: &str, config: &Config, options: &Backups) -> Target {
    let rpo_of = |job: &str| config.backup.get(job).and_then(|job| job.rpo).or(options.rpo);
    let jobs: Vec<&String> =
        if options.jobs.is_empty() { config.backup.keys().collect() } else { options.jobs.iter().collect() };
    Target {
        name: name.to_owned(),
        site: config.site.clone(),
        repository: config.repository.clone(),
        trusted: config.encryption.trusted.clone(),
        recipients: canonical(&config.encryption.recipients),
        jobs: jobs.into_iter().map(|job| (job.clone(), rpo_of(job))).collect(),
        all: options.jobs.is_empty(),
        rpo: options.rpo,
        store: None,
        known: BTreeMap::new(),
        is_awaited: false,
    }
}

/// Public keys so that equal ones are equal texts, sorted. One that is no key stays as it is.
fn canonical(recipients: &[String]) -> Vec<String> {
    let one =
        |text: &String| keys::parse_recipient(text).map_or(text.trim().to_owned(), |key| key.canonical());
    let mut all: Vec<String> = recipients.iter().map(one).collect();
    all.sort();
    all.dedup();
    all
}

#[async_trait]
impl Monitor for Target {
    fn name(&self) -> &str {
        &self.name
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let store = match &self.store {
            Some(store) => store.clone(),
            None => {
                let opened = store::open(&self.repository).await;
                let opened = opened.map_err(|error| Failure::new(Reason::Unreachable, error))?;
                // A directory is opened each time: a file system cannot be unmounted while it is held.
                if matches!(self.repository.location, Location::S3 { .. }) {
                    self.store = Some(opened.clone());
                }
                opened
            }
        };
        self.read(&*store).await
    }

    fn looks_again_in(&self) -> Option<Duration> {
        self.is_awaited.then_some(AWAITED)
    }
}

impl Target {
    async fn read(&mut self, store: &dyn Store) -> Result<Collected, Failure> {
        let prefix = format!("{}/", self.site);
        let on = || format!("listing {prefix} in {}", store.describe());
        let listed = store.list(&prefix).await.map_err(|error| failure(error).in_context(on()))?;
        let mut jobs = catalog::group(listed, &self.site);
        if !self.all {
            jobs.retain(|job, _| self.jobs.contains_key(job));
        }
        for job in self.jobs.keys() {
            jobs.entry(job.clone()).or_default();
        }
        // Nothing to watch is not the same as nothing wrong.
        let none = jobs.is_empty().then(|| {
            let error = Error::new(format!("no job is configured here, and there is none in {}", store.describe()))
                .context(format!("site {:?}", self.site))
                .with_hint("is the repository's url right, and the site's name? Else name jobs: backups = { jobs = [\"db\"] }");
            Failure::new(Reason::Refused, error)
        });
        self.known.retain(|(job, id), _| {
            jobs.get(job).is_some_and(|entries| entries.binary_search_by(|e| e.id.cmp(id)).is_ok())
        });
        let unread = self.learn(store, jobs.values().flatten().cloned().collect()).await;
        let readable = unread.is_none();
        let concerns = vec![
            Concern { name: "listing", failure: None },
            Concern { name: "manifests", failure: unread },
            Concern { name: "jobs", failure: none },
        ];
        let now = Utc::now();
        let mut samples = Vec::new();
        self.is_awaited = false;
        for (name, entries) in jobs {
            let sets = entries.iter().map(|entry| {
                let known = self.known.get(&(name.clone(), entry.id.clone()));
                (entry, known.map_or(Standing::Unread, |(_, known)| known.standing()))
            });
            let rpo = self.jobs.get(&name).copied().unwrap_or(self.rpo);
            let job = Job::new(sets, rpo, readable, now);
            self.is_awaited |= matches!(job.freshness, Freshness::Missing | Freshness::Overdue);
            samples.extend(figures::samples(&name, &job, &self.recipients));
        }
        Ok(Collected { samples, concerns })
    }

    /// Reads the documents of complete sets that are new or changed, newest first: where time runs out,
    /// those matter most, and what was read is kept. A few that were refused are looked at again: the
    /// store may have been at fault. The failure says why sets could not be read.
    async fn learn(&mut self, store: &dyn Store, entries: Vec<Entry>) -> Option<Failure> {
        let mut new: Vec<Entry> =
            entries.into_iter().filter(|entry| entry.state == State::Complete).collect();
        new.sort_by(|a, b| b.id.cmp(&a.id));
        let mut again = 0;
        new.retain(|entry| match self.known.get(&(entry.job.clone(), entry.id.clone())) {
            Some((seen, known)) if *seen == fingerprint(entry) => {
                again += usize::from(matches!(known, Known::Refused));
                matches!(known, Known::Refused) && again <= REFUSED_AGAIN
            }
            _ => true,
        });
        // One refusal stands for those of all the others.
        if let Some(entry) = new.first()
            && let Err(error @ StoreError::Denied(_)) = is_readable(store, entry).await
        {
            return Some(failure(error));
        }
        let mut unread = None;
        let trusted = self.trusted.clone();
        let mut sets = std::pin::pin!(catalog::load_each(store, &trusted, new));
        while let Some((entry, loaded)) = sets.next().await {
            // What disagrees, or is not believed, is refused. Anything else may be a store that does not answer, or did not.
            let loaded = match loaded {
                Err(error) if !matches!(error.kind(), Kind::Differs | Kind::Refused) => {
                    match is_readable(store, &entry).await {
                        Ok(()) => catalog::load_entry(store, &trusted, entry.clone()).await,
                        Err(StoreError::NotFound(_)) => continue,
                        Err(error) => {
                            unread.get_or_insert_with(|| failure(error));
                            continue;
                        }
                    }
                }
                loaded => loaded,
            };
            // A record that could not be read is looked at the next time: until then nobody knows.
            if let Ok(set) = &loaded
                && let Some(Unknown::Unread(why)) = &set.unknown
            {
                let what = format!("a record of set {}/{}: {why}", entry.job, entry.id);
                unread.get_or_insert_with(|| failure(StoreError::Other(what)));
                continue;
            }
            let known =
                loaded.map_or(Known::Refused, |set| Known::of_set(&set, canonical(&set.manifest.recipients)));
            let seen = fingerprint(&entry);
            self.known.insert((entry.job, entry.id), (seen, known));
        }
        unread
    }
}

/// Whether the credential can read a set's manifest; its first byte tells.
async fn is_readable(store: &dyn Store, entry: &Entry) -> Result<(), StoreError> {
    let key = set_prefix(&entry.site, &entry.job, &entry.id) + MANIFEST;
    store.read(&key, 0..1).await.map(|_| ())
}

/// Changes with everything that a listing tells of a set.
fn fingerprint(entry: &Entry) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
    for object in &entry.objects {
        (&object.key, object.size, object.modified.timestamp_micros()).hash(&mut hasher);
    }
    hasher.finish()
}

fn failure(error: StoreError) -> Failure {
    let (reason, hint) = match &error {
        StoreError::Denied(_) => {
            (Reason::Permission, "a monitor needs a credential that may list, and read manifests and records")
        }
        StoreError::NotFound(_) => (Reason::Refused, "is the repository's url right?"),
        StoreError::Unsupported(_) | StoreError::Corrupt(_) | StoreError::Exists(_) => {
            (Reason::Protocol, "`opsd repository probe` tells what the store can do")
        }
        StoreError::InDoubt(_) | StoreError::Other(_) => {
            (Reason::Unreachable, "`opsd repository probe` tells more")
        }
    };
    Failure::new(reason, Error::from(error).with_hint(hint))
}

impl Failure {
    /// The same, on what.
    fn in_context(mut self, context: impl std::fmt::Display) -> Self {
        self.error = self.error.context(context);
        self
    }
}

#[cfg(test)]
mod tests;
