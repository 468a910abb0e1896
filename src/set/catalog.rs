//! The sets of a job, read from the repository itself.
//!
//! There is no index to lose or to believe: a listing tells which sets exist, a set's own manifest
//! tells the rest. Order is by the manifest's `started`, never by name alone. Where keys are
//! trusted, a manifest is parsed only after its signature was checked, and a rehearsal's record
//! counts only when it is signed.
//!
//! A clock that was once ahead leaves a set dated in the future, which would be the newest one for
//! ever. So the newest is chosen among those that are not from the future ([`is_from_future`]); one that
//! is can still be named by its id.
//!
//! Deliberately absent: any cache, and any writing.

mod choice;
mod records;
mod reliance;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::Semaphore;

pub use self::choice::{Newest, Selector, Use, ahead_warning, find, find_entry, newest_complete, parse_time};
use self::records::{RECORD_LIMIT, RECORDS_LIMIT};
pub use self::reliance::{Difference, Reliance, Unknown, reliance};
use super::manifest::{self, Manifest};
use super::signature::Purpose;
use super::verification::{Verdict, Verification};
use super::{
    FAILED, HEARTBEAT, MANIFEST, MANIFEST_SIGNATURE, id_time, job_prefix, seal, set_prefix, signature,
    verification,
};
use crate::config::Trusted;
use crate::error::{Context, Error, Result};
use crate::store::{self, ObjectMeta, Store, StoreError};

/// Sets that are read at the same time: a repository of a thousand sets lists in a second or two
/// at 10 ms a request.
const LOADING: usize = 32;

/// KiB of documents that are read at the same time, by the sizes that the listing tells: one of
/// [`manifest::SIZE_MAX`] is read alone. What has been read is the caller's to reduce before the next comes.
const LOADING_KIB: u32 = (manifest::SIZE_MAX >> 10) as u32;

/// How much clocks may differ before a set counts as one from the future.
pub const CLOCK_TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// Whether a set that started then was dated by a clock that was ahead.
pub fn is_from_future(started: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    started.signed_duration_since(now) > CLOCK_TOLERANCE
}

/// Largest signature that is read.
const SIGNATURE_LIMIT: u64 = 16 * 1024;

/// What a listing tells about a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Site it was found under.
    pub site: String,
    /// Job it was found under.
    pub job: String,
    /// Its id.
    pub id: String,
    /// Whether it exists as a backup.
    pub state: State,
    /// What is stored of it, keys relative to its folder, sorted.
    pub objects: Vec<ObjectMeta>,
}

/// Whether a set exists as a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has a manifest.
    Complete,
    /// It has none: still being written, killed, or partly removed.
    Incomplete,
    /// The run that made it said that it failed.
    Failed,
}

impl State {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Complete => "complete",
            State::Incomplete => "incomplete",
            State::Failed => "failed",
        }
    }
}

impl Entry {
    /// Bytes of everything in its folder, what its manifest does not name included.
    pub fn occupied_bytes(&self) -> u64 {
        self.objects.iter().map(|o| o.size).sum()
    }

    /// The time in its id.
    pub fn id_time(&self) -> DateTime<Utc> {
        id_time(&self.id).unwrap_or_default()
    }

    /// KiB that reading its documents takes at the most.
    fn documents_kib(&self) -> u32 {
        let manifest =
            self.objects.iter().find(|o| o.key == MANIFEST).map_or(0, |o| o.size.min(manifest::SIZE_MAX));
        let is_record = |o: &&ObjectMeta| verification::is_name(&o.key) && o.size <= RECORD_LIMIT;
        let records: u64 = self.objects.iter().filter(is_record).map(|o| o.size).sum();
        let bytes = manifest + records.min(RECORDS_LIMIT);
        u32::try_from(bytes >> 10).unwrap_or(u32::MAX).clamp(1, LOADING_KIB)
    }

    /// Whether this object is stored.
    pub fn has(&self, relative: &str) -> bool {
        self.objects.binary_search_by(|o| o.key.as_str().cmp(relative)).is_ok()
    }

    fn key(&self, relative: &str) -> String {
        set_prefix(&self.site, &self.job, &self.id) + relative
    }

    fn describe(&self) -> String {
        format!("set {}/{}/{}", self.site, self.job, self.id)
    }
}

/// A complete set whose manifest was read and, where keys are trusted, believed.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The listing's view.
    pub entry: Entry,
    /// What it holds.
    pub manifest: Manifest,
    /// SHA-256 of the manifest as stored, in hexadecimal.
    pub manifest_sha256: String,
    /// Who vouches for it.
    pub signature: Signature,
    /// Rehearsals that count, oldest first.
    pub verifications: Vec<Verification>,
    /// What the last conclusive one of them found, where that is a difference.
    pub difference: Option<Difference>,
    /// Why it is not known what the last conclusive one found, where that is so.
    pub unknown: Option<Unknown>,
    /// Records that do not count, by name, and why.
    pub ignored: Vec<(String, Error)>,
}

/// Who vouches for a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// This trusted key.
    Trusted(String),
    /// Nobody: there is no signature, and no key is trusted.
    Unsigned,
    /// It has a signature, but no key is trusted to check it with.
    Unchecked,
}

impl Signature {
    /// As in JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Signature::Trusted(_) => "trusted",
            Signature::Unsigned => "unsigned",
            Signature::Unchecked => "unchecked",
        }
    }
}

impl Loaded {
    /// When the data is from: the latest snapshot of its databases.
    pub fn as_of(&self) -> DateTime<Utc> {
        let snapshots = self.manifest.databases.iter().map(|d| d.snapshot_time);
        snapshots.max().unwrap_or(self.manifest.started)
    }

    /// Objects that the manifest names and the listing lacks, or has with another size.
    pub fn missing(&self) -> Vec<&str> {
        let stored: BTreeMap<&str, u64> =
            self.entry.objects.iter().map(|o| (o.key.as_str(), o.size)).collect();
        self.manifest.stored().filter(|o| stored.get(o.key) != Some(&o.size)).map(|o| o.key).collect()
    }

    /// What lies in the set's folder and is neither named by the manifest nor part of the layout.
    pub fn foreign(&self) -> Vec<&str> {
        let named: BTreeSet<&str> = self.manifest.stored().map(|o| o.key).collect();
        let keys = self.entry.objects.iter().map(|o| o.key.as_str());
        keys.filter(|key| !named.contains(key) && !is_layout(key)).collect()
    }

    /// The rehearsal that tells how the set stands: the last that proved it or found a difference,
    /// else the last that was tried. A rehearsal that could not run takes no proof away.
    pub fn verified(&self) -> Option<&Verification> {
        let conclusive = self.verifications.iter().rfind(|v| v.verdict.is_conclusive());
        conclusive.or(self.verifications.last())
    }

    /// Whether the last conclusive rehearsal proved it.
    pub fn is_proven(&self) -> bool {
        self.verified().is_some_and(|v| v.verdict == Verdict::Proven)
    }
}

/// Whether a key relative to a set's folder is opsd's whatever the manifest says.
fn is_layout(relative: &str) -> bool {
    let document = relative.strip_suffix(".minisig").unwrap_or(relative);
    [MANIFEST, MANIFEST_SIGNATURE, FAILED, HEARTBEAT].contains(&relative) || verification::is_name(document)
}

/// The sets of one job, ordered by id.
pub async fn sets(store: &dyn Store, site: &str, job: &str) -> Result<Vec<Entry>> {
    Ok(list(store, site, &job_prefix(site, job)).await?.remove(job).unwrap_or_default())
}

/// The sets of every job of a site, by job.
pub async fn jobs(store: &dyn Store, site: &str) -> Result<BTreeMap<String, Vec<Entry>>> {
    list(store, site, &format!("{site}/")).await
}

/// The sets of every job of every site, by both. All of the repository is listed.
pub async fn sites(store: &dyn Store) -> Result<BTreeMap<String, BTreeMap<String, Vec<Entry>>>> {
    let objects = store.list("").await.with_context(|| format!("listing {}", store.describe()))?;
    let mut by_site: BTreeMap<String, Vec<ObjectMeta>> = BTreeMap::new();
    for object in objects {
        if let Some((site, _)) = object.key.split_once('/') {
            by_site.entry(site.to_owned()).or_default().push(object);
        }
    }
    let sites = by_site.into_iter().map(|(site, objects)| {
        let jobs = group(objects, &site);
        (site, jobs)
    });
    Ok(sites.filter(|(_, jobs)| !jobs.is_empty()).collect())
}

/// Lists and groups. What is not under `site/job/id/` is somebody else's and is not looked at.
async fn list(store: &dyn Store, site: &str, prefix: &str) -> Result<BTreeMap<String, Vec<Entry>>> {
    let objects =
        store.list(prefix).await.with_context(|| format!("listing {prefix} in {}", store.describe()))?;
    Ok(group(objects, site))
}

/// The sets in a sorted listing, by job.
pub fn group(objects: Vec<ObjectMeta>, site: &str) -> BTreeMap<String, Vec<Entry>> {
    let mut jobs: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for mut object in objects {
        let Some([job, id, relative]) = split(&object.key, site) else { continue };
        let (job, id, relative) = (job.to_owned(), id.to_owned(), relative.to_owned());
        let entries = jobs.entry(job.clone()).or_default();
        if entries.last().is_none_or(|e| e.id != id) {
            let (site, state) = (site.to_owned(), State::Incomplete);
            entries.push(Entry { site, job, id, state, objects: Vec::new() });
        }
        if let Some(entry) = entries.last_mut() {
            object.key = relative;
            entry.objects.push(object);
        }
    }
    for entry in jobs.values_mut().flatten() {
        entry.state = if entry.has(MANIFEST) {
            State::Complete
        } else if entry.has(FAILED) {
            State::Failed
        } else {
            State::Incomplete
        };
    }
    jobs
}

/// `[job, id, the rest]` of a key of a set of this site.
pub fn split<'k>(key: &'k str, site: &str) -> Option<[&'k str; 3]> {
    let (job, rest) = key.strip_prefix(site)?.strip_prefix('/')?.split_once('/')?;
    let (id, relative) = rest.split_once('/')?;
    id_time(id).map(|_| [job, id, relative])
}

/// Reads one set. Where keys are trusted for backups, a set that none of them signed is an error.
pub async fn load(store: &dyn Store, trusted: &Trusted, site: &str, job: &str, id: &str) -> Result<Loaded> {
    let prefix = set_prefix(site, job, id);
    match list(store, site, &prefix).await?.remove(job).and_then(|mut sets| sets.pop()) {
        Some(entry) => load_entry(store, trusted, entry).await,
        None => Err(Error::new(format!("no set {prefix} in {}", store.describe()))),
    }
}

/// Reads the sets that have a manifest, several at a time, in the order given; the others, and
/// those that are refused, come out with the reason. Each is the caller's as it comes: to hold all of
/// them would take as much memory as whoever wrote the manifests pleases.
pub fn load_each<'a>(
    store: &'a dyn Store,
    trusted: &'a Trusted,
    entries: Vec<Entry>,
) -> impl Stream<Item = (Entry, Result<Loaded>)> + 'a {
    let room = Arc::new(Semaphore::new(LOADING_KIB as usize));
    stream::iter(entries)
        // In order, so that the one that is waited for never waits for those behind it.
        .then(move |entry| {
            let room = room.clone();
            async move { (room.acquire_many_owned(entry.documents_kib()).await.ok(), entry) }
        })
        .map(move |(held, entry)| async move {
            let loaded = load_entry(store, trusted, entry.clone()).await;
            (held, entry, loaded)
        })
        .buffered(LOADING)
        .map(|(_held, entry, loaded)| (entry, loaded))
}

/// Reads one set that a listing named.
pub async fn load_entry(store: &dyn Store, trusted: &Trusted, entry: Entry) -> Result<Loaded> {
    let name = entry.describe();
    match entry.state {
        State::Complete => {}
        State::Incomplete => {
            return Err(Error::new(format!("{name} is incomplete: it has no manifest"))
                .with_hint("a run is still writing it, or was killed; it cannot be restored"));
        }
        State::Failed => {
            return Err(Error::new(format!("{name} comes from a run that failed"))
                .with_hint(format!("`opsd backups show {}` tells why", entry.id)));
        }
    }
    let (bytes, vouched) =
        read_signed(store, &trusted.backups, Purpose::Manifest, &entry, MANIFEST, manifest::SIZE_MAX)
            .await
            .map_err(|why| Error::from(why).context(&name))?;
    let manifest = Manifest::parse(&bytes, &entry.site, &entry.job, &entry.id).context(&name)?;
    let manifest_sha256 = seal::sha256_hex(&bytes);

    let records = records::read(store, trusted, &entry, &manifest, &manifest_sha256).await;
    Ok(Loaded {
        entry,
        manifest,
        manifest_sha256,
        signature: vouched,
        verifications: records.counting,
        difference: records.difference,
        unknown: records.unknown,
        ignored: records.ignored,
    })
}

/// Why a document is not there as one that somebody vouches for.
enum Unread {
    /// The store does not hand it out, or only a newer opsd understands it: what it says is not known.
    Store(Error),
    /// It is not believed, or not there any more.
    Refused(Error),
}

impl From<Unread> for Error {
    fn from(why: Unread) -> Self {
        match why {
            Unread::Store(error) | Unread::Refused(error) => error,
        }
    }
}

/// Reads a document and who vouches for it, before anybody parses it.
async fn read_signed(
    store: &dyn Store,
    trusted_keys: &[String],
    purpose: Purpose,
    entry: &Entry,
    document: &str,
    limit: u64,
) -> Result<(bytes::Bytes, Signature), Unread> {
    let signature_name = &format!("{document}.minisig");
    let signature = entry.objects.iter().find(|o| o.key == *signature_name);
    let read = async |name: &str, limit| match store::get(store, &entry.key(name), limit).await {
        Ok(bytes) => Ok(bytes),
        Err(error @ StoreError::NotFound(_)) => Err(Unread::Refused(Error::from(error).context(name))),
        Err(error) => Err(Unread::Store(Error::from(error).context(name))),
    };
    if trusted_keys.is_empty() {
        let vouched = if signature.is_some() { Signature::Unchecked } else { Signature::Unsigned };
        return Ok((read(document, limit).await?, vouched));
    }
    let Some(signature) = signature else {
        let id = &entry.id;
        return Err(Unread::Refused(Error::refused(format!("{document} is not signed")).with_hint(format!(
            "{} is set, and who can write to the repository could have planted this; a set of before you \
                 signed: `opsd backups adopt {id}`, if you know that it is yours, else `opsd backups forget {id}`",
            purpose.lists()
        ))));
    };
    if signature.size > SIGNATURE_LIMIT {
        let why = format!("{signature_name} has {} bytes, and is no signature", signature.size);
        return Err(Unread::Refused(Error::differs(why)));
    }
    let (bytes, text) = tokio::try_join!(read(document, limit), read(signature_name, SIGNATURE_LIMIT))?;
    let text = String::from_utf8_lossy(&text);
    let comment = purpose.comment(&entry.site, &entry.job, &entry.id);
    let verified = signature::verify(trusted_keys, &comment, &bytes, &text).context(document);
    verified.map_err(|error| {
        Unread::Refused(error.with_hint(format!(
            "somebody else wrote it, or the signer's public key is missing from {}",
            purpose.lists()
        )))
    })?;
    let made_it =
        |key: &&String| signature::verify(std::slice::from_ref(*key), &comment, &bytes, &text).is_ok();
    let key = match trusted_keys {
        [only] => only.clone(),
        several => several.iter().find(made_it).cloned().unwrap_or_default(),
    };
    Ok((bytes, Signature::Trusted(key)))
}

/// What there is to say of a set that nobody authenticated, and how that is changed; nothing where keys are
/// trusted.
pub async fn unauthenticated(store: &dyn Store, set: &Loaded) -> Option<String> {
    let what = "nobody is authenticated: without trusted_keys, whoever can write to the repository decides what \
                is in it";
    let how = match set.signature {
        Signature::Trusted(_) => return None,
        Signature::Unsigned => {
            "the set is not signed; set encryption.sign_key_file where backups are made, and trusted_keys here"
                .to_owned()
        }
        Signature::Unchecked => {
            let key = set.entry.key(MANIFEST_SIGNATURE);
            let text = store::get(store, &key, SIGNATURE_LIMIT).await.ok();
            let claimed = text.and_then(|text| signature::claimed_key(&String::from_utf8_lossy(&text)));
            format!(
                "the set says that key {} signed it; if the host that makes the backups has that key (its public key \
                 begins like that), take the public key from there and add trusted_keys = [\"RW...\"] to \
                 [encryption]",
                claimed.as_deref().unwrap_or("of an unreadable signature")
            )
        }
    };
    Some(format!("{what}; {how}"))
}
