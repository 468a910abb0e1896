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

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::Semaphore;

use self::records::{RECORD_LIMIT, RECORDS_LIMIT};
use super::manifest::Manifest;
use super::signature::Purpose;
use super::verification::{Verdict, Verification};
use super::{
    FAILED, MANIFEST, MANIFEST_SIGNATURE, id_time, job_prefix, seal, set_prefix, signature, verification,
};
use crate::config::Trusted;
use crate::error::{Context, Error, Result};
use crate::printable;
use crate::store::{self, ObjectMeta, Store};

/// Sets that are read at the same time: a repository of a thousand sets lists in a second or two
/// at 10 ms a request.
const LOADING: usize = 32;

/// KiB of documents that are read at the same time, by the sizes that the listing tells: one of
/// [`DOCUMENT_LIMIT`] is read alone. What has been read is the caller's to reduce before the next comes.
const LOADING_KIB: u32 = (DOCUMENT_LIMIT >> 10) as u32;

/// How much clocks may differ before a set counts as one from the future.
pub const CLOCK_TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// Whether a set that started then was dated by a clock that was ahead.
pub fn is_from_future(started: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    started > now + CLOCK_TOLERANCE
}

/// Largest manifest that is read; a thousand times what one usually needs.
const DOCUMENT_LIMIT: u64 = 16 * 1024 * 1024;

/// JSON values of a manifest: fifteen times as many as those of a thousand databases. An empty text takes
/// three bytes in a document and ten times as much when it is parsed.
const VALUES_LIMIT: usize = 500_000;

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
            self.objects.iter().find(|o| o.key == MANIFEST).map_or(0, |o| o.size.min(DOCUMENT_LIMIT));
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
    [MANIFEST, MANIFEST_SIGNATURE, FAILED].contains(&relative) || verification::is_name(document)
}

/// The sets of one job, ordered by id.
pub async fn sets(store: &dyn Store, site: &str, job: &str) -> Result<Vec<Entry>> {
    Ok(list(store, site, &job_prefix(site, job)).await?.remove(job).unwrap_or_default())
}

/// The sets of every job of a site, by job.
pub async fn jobs(store: &dyn Store, site: &str) -> Result<BTreeMap<String, Vec<Entry>>> {
    list(store, site, &format!("{site}/")).await
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
        read_signed(store, &trusted.backups, Purpose::Manifest, &entry, MANIFEST, DOCUMENT_LIMIT)
            .await
            .context(&name)?;
    // Each value but the first follows one of these.
    let values = bytes.iter().filter(|byte| matches!(byte, b',' | b'{' | b'[')).count();
    if values > VALUES_LIMIT {
        return Err(Error::new(format!("manifest has more than {VALUES_LIMIT} values")).context(&name));
    }
    let manifest = Manifest::parse(&bytes, &entry.site, &entry.job, &entry.id).context(&name)?;
    let manifest_sha256 = seal::sha256_hex(&bytes);

    let mut verifications = Vec::new();
    let (records, mut ignored) = records::to_read(&entry);
    for record in records {
        match load_record(store, trusted, &entry, record, &manifest, &manifest_sha256).await {
            Ok(verification) => verifications.push(verification),
            Err(error) => ignored.push((record.to_owned(), error)),
        }
    }
    verifications.sort_by_key(|v: &Verification| v.finished);
    Ok(Loaded { entry, manifest, manifest_sha256, signature: vouched, verifications, ignored })
}

async fn load_record(
    store: &dyn Store,
    trusted: &Trusted,
    entry: &Entry,
    record: &str,
    manifest: &Manifest,
    manifest_sha256: &str,
) -> Result<Verification> {
    if trusted.verifications.is_empty() && !trusted.is_nobody() {
        return Err(Error::usage("no key is trusted for records of rehearsals here")
            .with_hint("name the key of the host that rehearses in trusted_verify_keys"));
    }
    let keys = &trusted.verifications;
    let (bytes, _) = read_signed(store, keys, Purpose::Verification, entry, record, RECORD_LIMIT).await?;
    let found = Verification::parse(&bytes, &entry.site, &entry.job, &entry.id, manifest_sha256)?;
    let names = |name: &str| found.databases.iter().any(|d| d.name == name);
    match manifest.databases.iter().find(|d| !names(&d.name)) {
        Some(missing) if found.verdict == Verdict::Proven => Err(Error::differs(format!(
            "verification record says proven, but not of database {:?}",
            missing.name
        ))),
        _ => Ok(found),
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
) -> Result<(bytes::Bytes, Signature)> {
    let signature_name = &format!("{document}.minisig");
    let signed = entry.has(signature_name);
    let read = async |name: &str, limit| store::get(store, &entry.key(name), limit).await.context(name);
    if trusted_keys.is_empty() {
        let vouched = if signed { Signature::Unchecked } else { Signature::Unsigned };
        return Ok((read(document, limit).await?, vouched));
    }
    if !signed {
        return Err(Error::differs(format!("{document} is not signed"))
            .with_hint("trusted_keys is set: who can write to the repository could have planted this"));
    }
    let (bytes, text) = tokio::try_join!(read(document, limit), read(signature_name, SIGNATURE_LIMIT))?;
    let text = String::from_utf8_lossy(&text);
    let comment = purpose.comment(&entry.site, &entry.job, &entry.id);
    signature::verify(trusted_keys, &comment, &bytes, &text).context(document)?;
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
                "the set says that key {} signed it; if the host that makes the backups has that key (the first \
                 line of its public key's file names it), take the public key from there and add \
                 trusted_keys = [\"RW...\"] to [encryption]",
                claimed.as_deref().unwrap_or("of an unreadable signature")
            )
        }
    };
    Some(format!("{what}; {how}"))
}

/// Which set is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The newest complete one.
    Latest,
    /// An id, or the beginning of just one.
    Id(String),
    /// The newest complete one whose data is not younger than this.
    At(DateTime<Utc>),
}

impl Selector {
    /// From `--backup` and `--at`; neither means the latest.
    pub fn from_options(backup: Option<&str>, at: Option<&str>) -> Result<Self> {
        match (backup, at) {
            (None | Some("latest"), None) => Ok(Selector::Latest),
            (Some(id), None) => Ok(Selector::Id(id.to_owned())),
            (None | Some("latest"), Some(at)) => parse_time(at).map(Selector::At),
            (Some(_), Some(_)) => Err(Error::usage("a set is named by its id or by a time, not by both")),
        }
    }
}

/// A point in time as people write it: RFC 3339, or date and time in UTC. A date alone is refused:
/// whether it means the day's beginning or its end would be a guess.
pub fn parse_time(text: &str) -> Result<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"]
        .iter()
        .find_map(|format| chrono::NaiveDateTime::parse_from_str(text.trim_end_matches('Z'), format).ok())
        .map(|time| time.and_utc())
        .ok_or_else(|| {
            Error::usage(format!("{} is no point in time", printable::word(text))).with_hint(
                "write 2026-11-21T03:00:00Z, with an offset instead of Z, or \"2026-11-21 03:00\" in UTC",
            )
        })
}

/// What the listing alone tells of a job's newest complete set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Newest {
    /// Its id, those from the future left out.
    pub id: Option<String>,
    /// Complete sets from the future.
    pub ahead: Vec<String>,
}

/// The newest complete set as of `now`, by the listing alone.
pub async fn newest_complete(store: &dyn Store, site: &str, job: &str, now: DateTime<Utc>) -> Result<Newest> {
    let complete = sets(store, site, job).await?.into_iter().filter(|e| e.state == State::Complete);
    let (ahead, past): (Vec<Entry>, Vec<Entry>) = complete.partition(|e| is_from_future(e.id_time(), now));
    Ok(Newest { id: past.into_iter().map(|e| e.id).max(), ahead: ahead.into_iter().map(|e| e.id).collect() })
}

/// What is said of sets from the future.
pub fn ahead_warning(ids: &[String]) -> Option<String> {
    let (first, more) = ids.split_first()?;
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    Some(format!(
        "{first}{more} is dated in the future and does not count as the newest: a clock was ahead, or this \
         one is behind"
    ))
}

/// Finds the set of a job that is meant.
///
/// For the latest, and for a time, a set that is refused (damaged, not trusted, too new) is not
/// passed over in silence where it could have been the one: that is an error, and naming an older
/// set by its id is the operator's decision. Sets from the future are passed over with a warning,
/// unless there is nothing else: then it is rather this clock that is wrong.
pub async fn find(
    store: &dyn Store,
    trusted: &Trusted,
    site: &str,
    job: &str,
    selector: &Selector,
) -> Result<Loaded> {
    let entries = sets(store, site, job).await?;
    let mut now = Utc::now();
    // The clock of the host where one restores may be behind, and sets must not look as if they came from
    // the future for that. It is only asked then: telling the time makes a directory write.
    if entries.iter().any(|entry| is_from_future(entry.id_time(), now)) {
        match store.now().await {
            Ok(theirs) => now = now.max(theirs),
            Err(error) => tracing::debug!("{} does not tell its time: {error}", store.describe()),
        }
    }
    if entries.is_empty() {
        return Err(Error::new(format!("no set of job {job:?} of site {site:?} in {}", store.describe()))
            .with_hint("`opsd backups list` shows what is there"));
    }
    let until = match selector {
        Selector::Id(id) => {
            let entry = find_entry(&entries, id)?.clone();
            return load_entry(store, trusted, entry).await;
        }
        Selector::Latest => None,
        Selector::At(time) => Some(*time),
    };
    let ids = some_ids(&entries);
    let complete = entries.into_iter().filter(|e| e.state == State::Complete).collect();
    let mut chosen: Option<Loaded> = None;
    let mut from_future: Option<Loaded> = None;
    let mut refused: Option<(Entry, Error)> = None;
    let mut ahead = Vec::new();
    let mut sets = std::pin::pin!(load_each(store, trusted, complete));
    while let Some((entry, loaded)) = sets.next().await {
        match loaded {
            Ok(set) if until.is_none_or(|time| set.as_of() <= time) => {
                let order = |s: &Loaded| (s.manifest.started, s.entry.id.clone());
                let is_ahead = is_from_future(set.manifest.started, now);
                if is_ahead {
                    ahead.push(entry.id);
                }
                let best = if is_ahead { &mut from_future } else { &mut chosen };
                if best.as_ref().is_none_or(|b| order(b) < order(&set)) {
                    *best = Some(set);
                }
            }
            Ok(_) => {}
            Err(_) if is_from_future(entry.id_time(), now) => ahead.push(entry.id),
            // Only its id tells when it started; the latest of the refused ones is named.
            Err(error) if until.is_none_or(|time| entry.id_time() <= time) => refused = Some((entry, error)),
            Err(_) => {}
        }
    }
    if let Some(warning) = ahead_warning(&ahead) {
        tracing::warn!("job {job}: {warning}");
    }
    if let Some((entry, error)) = refused
        && chosen.as_ref().is_none_or(|c| entry.id_time() >= c.manifest.started)
    {
        return Err(match chosen {
            Some(c) => {
                error.context(format!("a set newer than the newest usable one, {}, is refused", c.entry.id))
            }
            None => error,
        });
    }
    chosen.or(from_future).ok_or_else(|| match until {
        None => Error::new(format!("job {job:?} has no complete set: {ids}")),
        Some(time) => Error::new(format!("job {job:?} has no complete set from {time} or earlier: {ids}")),
    })
}

/// The entry that an id, or the beginning of just one id, means. Two jobs that started in the same
/// second may have the same id, so even a whole id can mean two sets.
pub fn find_entry<'e>(entries: &'e [Entry], id: &str) -> Result<&'e Entry> {
    let exact: Vec<&Entry> = entries.iter().filter(|e| e.id == id).collect();
    let begins = |e: &&Entry| !id.is_empty() && e.id.starts_with(id);
    let matching = if exact.is_empty() { entries.iter().filter(begins).collect() } else { exact };
    match matching[..] {
        [only] => Ok(only),
        [] => Err(Error::new(format!("no set {}: {}", printable::word(id), some_ids(entries)))
            .with_hint("`opsd backups list` shows what is there")),
        _ => {
            let matching: Vec<Entry> = matching.into_iter().cloned().collect();
            Err(Error::new(format!(
                "{} means more than one set: {}",
                printable::word(id),
                some_ids(&matching)
            ))
            .with_hint("give more of the id, or JOB/ID where two jobs have the same one"))
        }
    }
}

/// The newest ids with their states, for messages.
fn some_ids(entries: &[Entry]) -> String {
    const SHOWN: usize = 5;
    let mut newest: Vec<&Entry> = entries.iter().collect();
    newest.sort_by_key(|e| std::cmp::Reverse((e.id_time(), &e.id)));
    let mut ids: Vec<String> =
        newest.iter().take(SHOWN).map(|e| format!("{} ({}, {})", e.id, e.job, e.state.as_str())).collect();
    if newest.len() > SHOWN {
        ids.push(format!("and {} more", newest.len() - SHOWN));
    }
    if ids.is_empty() { "there is none".to_owned() } else { format!("there is {}", ids.join(", ")) }
}
