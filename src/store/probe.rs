//! What a store can do, found out by really trying, and remembered in the repository.
//!
//! Everything is tried under a random `probe-…/` prefix that is removed again, whatever was found
//! (a probe that is interrupted leaves it). The result is a [`Report`]: one line a
//! capability, and for what is missing a warning that says what opsd does without it.
//!
//! Deliberately absent: limits that are expensive to find (the largest object, the number of
//! parts) and anything that changes the bucket's configuration.

mod report;

use std::sync::Arc;

use bytes::Bytes;
use chrono::Utc;

pub use self::report::{Capability, Name, Report, State};
use self::report::{FORMAT, state, warnings};
use super::fs::FsStore;
use super::s3::{self, Access, Checksums, Options, S3Store, TrialChecksum, TrialUpload};
use super::{Store, StoreError, get, put};
use crate::config::{Location, Repository};
use crate::error::{Context, Error, Result};

/// Where the last report is kept, at the root of the repository.
pub const REPORT_KEY: &str = "opsd-probe.json";

/// A report is a few kilobytes; more is not a report.
const REPORT_LIMIT: u64 = 1 << 20;

/// The smallest part that S3 allows before the last.
const PART: usize = 5 << 20;

/// Tries everything on the configured repository and remembers the report there.
pub async fn probe(repository: &Repository) -> Result<Report> {
    probe_with(repository, &Access::Chain).await
}

/// [`probe`] with other credentials than those of the environment.
pub async fn probe_with(repository: &Repository, access: &Access) -> Result<Report> {
    let mut trials = Trials::new();
    let (store, checksums): (Arc<dyn Store>, Checksums) = match &repository.location {
        Location::S3 { .. } => {
            let store = s3::open_with(repository, access, Options { checksums: Checksums::None }).await?;
            first_contact(repository, access, &store, &mut trials).await?;
            try_s3(&store, &mut trials).await;
            abort_uploads(&store, &trials).await;
            let checksums = trials.checksums();
            (Arc::new(store.with_options(Options { checksums })), checksums)
        }
        Location::File(path) => {
            let store = FsStore::open(path)?;
            put(&store, &trials.key("plain"), PLAIN, false).await?;
            trials.note(Name::Write, State::Yes, "");
            (Arc::new(store), Checksums::None)
        }
        Location::Nowhere => return Err(super::nowhere()),
    };
    try_store(store.as_ref(), &mut trials).await;
    clean_up(store.as_ref(), &mut trials).await;
    let report = trials.report(store.as_ref(), checksums, repository);
    if report.state(Name::Write) == State::Yes {
        let mut json = serde_json::to_vec_pretty(&report)?;
        json.push(b'\n');
        put(store.as_ref(), REPORT_KEY, json, false).await.context("cannot remember what was found")?;
    }
    Ok(report)
}

/// The report that an earlier probe left, where there is one and the credential may read it.
pub async fn remembered(store: &dyn Store) -> Result<Option<Report>> {
    let bytes = match get(store, REPORT_KEY, REPORT_LIMIT).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound(_)) => return Ok(None),
        Err(StoreError::Denied(why)) => {
            tracing::debug!("what the last probe found is not known: {why}");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match serde_json::from_slice::<Report>(&bytes) {
        Ok(report) if report.format == FORMAT => Ok(Some(report)),
        Ok(_) | Err(_) => {
            tracing::warn!(
                "{REPORT_KEY} in {} is not a report that this opsd reads: using defaults; \
                 run `opsd repository probe` again",
                store.describe()
            );
            Ok(None)
        }
    }
}

/// What a probe writes below its prefix.
const OBJECTS: [&str; 8] =
    ["plain", "crc", "wrong", "multipart", "conditional", "conditional-multipart", "aborted", "replaced"];

/// What every key of a probe begins with.
pub const PREFIX: &str = "probe-";

/// Whether a key is one that a probe writes and should have removed.
pub fn is_probe_key(key: &str) -> bool {
    let Some((folder, name)) = key.split_once('/') else { return false };
    let tail = folder.strip_prefix(PREFIX).unwrap_or_default();
    let is_random =
        tail.len() == 16 && tail.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_random && OBJECTS.contains(&name)
}

const PLAIN: &[u8] = b"opsd was here: 0123456789";

/// What has been found so far, and what must be cleaned up.
struct Trials {
    prefix: String,
    /// What is sent where a checksum is not what is tried: none, unless the bucket demands one.
    usual: TrialChecksum,
    found: Vec<Capability>,
    uploads: Vec<TrialUpload>,
}

impl Trials {
    fn new() -> Self {
        let prefix = format!("{PREFIX}{:016x}", rand::random::<u64>());
        Self { prefix, usual: TrialChecksum::None, found: Vec::new(), uploads: Vec::new() }
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    fn note(&mut self, name: Name, state: State, detail: impl Into<String>) {
        self.found.push(Capability { name, state, detail: detail.into() });
    }

    /// Notes a trial that either works or fails.
    fn outcome<T>(&mut self, name: Name, result: &Result<T, StoreError>) -> bool {
        match result {
            Ok(_) => self.note(name, State::Yes, ""),
            Err(StoreError::Denied(why)) => self.note(name, State::Denied, why),
            Err(error) => self.note(name, State::No, error.to_string()),
        }
        result.is_ok()
    }

    /// Notes whether a second write was refused because of the first.
    fn conditional(&mut self, name: Name, first: Result<(), StoreError>, second: Result<(), StoreError>) {
        match (first, second) {
            (Ok(()), Err(StoreError::Exists(_))) => self.note(name, State::Yes, ""),
            (Ok(()), Ok(())) => self.note(name, State::No, "accepted, but not honoured"),
            (Err(StoreError::Denied(why)), _) | (_, Err(StoreError::Denied(why))) => {
                self.note(name, State::Denied, why);
            }
            (Err(error), _) | (_, Err(error)) => self.note(name, State::No, error.to_string()),
        }
    }

    fn checksums(&self) -> Checksums {
        let accepted = state(&self.found, Name::Checksum) == State::Yes;
        if accepted { Checksums::Crc32 } else { Checksums::None }
    }

    fn report(mut self, store: &dyn Store, checksums: Checksums, repository: &Repository) -> Report {
        self.found.sort_by_key(|c| c.name as u8);
        Report {
            format: FORMAT,
            probed: Utc::now(),
            opsd_version: env!("CARGO_PKG_VERSION").to_owned(),
            repository: store.describe(),
            checksums,
            warnings: match repository.location {
                Location::S3 { .. } => warnings(&self.found, repository.lock),
                Location::File(_) | Location::Nowhere => Vec::new(),
            },
            capabilities: self.found,
        }
    }
}

/// The first write to a bucket. Where it fails, the bucket may demand a checksum (one that locks what is written by
/// itself does), or the other way of addressing it may work; where writing is denied, reading may still be allowed.
async fn first_contact(
    repository: &Repository,
    access: &Access,
    store: &S3Store,
    trials: &mut Trials,
) -> Result<()> {
    let key = trials.key("plain");
    let style = |path_style| if path_style { "path style" } else { "virtual-host style" };
    let mut written = store.trial_put(&key, PLAIN, trials.usual, false).await;
    if matches!(written, Err(StoreError::Other(_)))
        && store.trial_put(&key, PLAIN, TrialChecksum::Right, false).await.is_ok()
    {
        trials.usual = TrialChecksum::Right;
        written = Ok(());
    }
    match written {
        Ok(()) => {
            trials.note(Name::Write, State::Yes, "");
            trials.note(Name::Addressing, State::Yes, style(repository.path_style));
            Ok(())
        }
        Err(StoreError::Denied(why)) => {
            // Where nothing else is allowed either, the credential is wrong: that is an error.
            if store.list(&trials.key("")).await.is_err() {
                return Err(StoreError::Denied(why).into());
            }
            trials.note(Name::Write, State::Denied, why);
            trials.note(Name::Addressing, State::Yes, style(repository.path_style));
            Ok(())
        }
        Err(error) => {
            let other = Repository { path_style: !repository.path_style, ..repository.clone() };
            let works = match s3::open_with(&other, access, Options { checksums: Checksums::None }).await {
                Ok(store) => {
                    let works = store.trial_put(&key, PLAIN, TrialChecksum::None, false).await.is_ok();
                    if works && let Err(error) = store.delete(&key).await {
                        tracing::debug!(%error, "the probe's object stays");
                    }
                    works
                }
                Err(_) => false,
            };
            let error = Error::from(error);
            Err(if works {
                error.with_hint(format!(
                    "{} works here: set repository.path_style = {}",
                    style(other.path_style),
                    other.path_style
                ))
            } else {
                error
            })
        }
    }
}

/// What only S3 has. Failures are findings.
async fn try_s3(store: &S3Store, trials: &mut Trials) {
    let versioning = store.trial_versioning().await;
    match versioning {
        Ok(true) => trials.note(Name::Versioning, State::Yes, ""),
        Ok(false) => trials.note(Name::Versioning, State::No, "off"),
        Err(error) => unreadable(trials, Name::Versioning, error),
    }
    match store.trial_object_lock().await {
        Ok(Some(lock)) => trials.note(Name::ObjectLock, State::Yes, lock),
        Ok(None) => trials.note(Name::ObjectLock, State::No, "off"),
        Err(error) => unreadable(trials, Name::ObjectLock, error),
    }
    if state(&trials.found, Name::Write) != State::Yes {
        return;
    }
    let accepted = store.trial_put(&trials.key("crc"), PLAIN, TrialChecksum::Right, false).await;
    let wrong = store.trial_put(&trials.key("wrong"), PLAIN, TrialChecksum::Wrong, false).await;
    let put_accepts = accepted.is_ok();
    if put_accepts {
        match wrong {
            Ok(()) => trials.note(Name::ChecksumEnforced, State::No, "a wrong one was accepted"),
            Err(_) => trials.note(Name::ChecksumEnforced, State::Yes, ""),
        }
    }
    try_multipart(store, trials, accepted).await;
    let key = trials.key("conditional");
    let first = store.trial_put(&key, PLAIN, trials.usual, true).await;
    let second = store.trial_put(&key, b"another", trials.usual, true).await;
    trials.conditional(Name::ConditionalPut, first, second);
}

/// Configuration that cannot be read: some stores do not have it at all.
fn unreadable(trials: &mut Trials, name: Name, error: StoreError) {
    match error {
        StoreError::Denied(why) => trials.note(name, State::Denied, why),
        error => trials.note(name, State::Unknown, error.to_string()),
    }
}

/// Begins an upload and notes it down for the clean-up.
async fn begin(
    store: &S3Store,
    trials: &mut Trials,
    name: &str,
    checksums: Checksums,
) -> Result<TrialUpload, StoreError> {
    let upload = store.trial_begin(&trials.key(name), checksums).await?;
    trials.uploads.push(upload.clone());
    Ok(upload)
}

/// A whole multipart object, with checksums if single objects take them, and the conditions.
async fn try_multipart(store: &S3Store, trials: &mut Trials, put_with_checksum: Result<(), StoreError>) {
    let parts =
        [Bytes::from(vec![b'a'; PART]), Bytes::from(vec![b'b'; PART]), Bytes::from_static(b"the last part")];
    let mut checksums = Checksums::None;
    let mut checksum = put_with_checksum;
    if checksum.is_ok() {
        let whole = async {
            let upload = begin(store, trials, "multipart", Checksums::Crc32).await?;
            store.trial_complete(&upload, &parts, Checksums::Crc32, false).await
        };
        checksum = whole.await;
        if checksum.is_ok() {
            checksums = Checksums::Crc32;
        }
    }
    trials.outcome(Name::Checksum, &checksum);
    let whole = match checksums {
        Checksums::Crc32 => Ok(()),
        Checksums::None => {
            let without = async {
                let upload = begin(store, trials, "multipart", checksums).await?;
                store.trial_complete(&upload, &parts, checksums, false).await
            };
            without.await
        }
    };
    if trials.outcome(Name::Multipart, &whole) {
        let small = [Bytes::from_static(b"small")];
        let mut conditional = Vec::new();
        for _ in 0..2 {
            let one = async {
                let upload = begin(store, trials, "conditional-multipart", checksums).await?;
                store.trial_complete(&upload, &small, checksums, true).await
            };
            conditional.push(one.await);
        }
        let (second, first) = (conditional.pop(), conditional.pop());
        if let (Some(first), Some(second)) = (first, second) {
            trials.conditional(Name::ConditionalComplete, first, second);
        }
    }
    match begin(store, trials, "aborted", checksums).await {
        Ok(upload) => {
            // The very request by which a sweep finds them.
            match lists(store, PREFIX, &upload).await {
                Ok(true) => trials.note(Name::MultipartList, State::Yes, ""),
                Ok(false) => {
                    let by_key = lists(store, &upload.key, &upload).await.unwrap_or(false);
                    let how = if by_key { "only to who knows its key" } else { "not at all" };
                    trials.note(Name::MultipartList, State::No, format!("shows an unfinished upload {how}"));
                }
                Err(error) => {
                    trials.outcome::<()>(Name::MultipartList, &Err(error));
                }
            }
            let aborted = store.trial_abort(&upload).await;
            trials.outcome(Name::MultipartAbort, &aborted);
        }
        Err(error) => unreadable(trials, Name::MultipartAbort, error),
    }
}

/// Whether an unfinished upload is among those below a prefix.
async fn lists(store: &S3Store, prefix: &str, upload: &TrialUpload) -> Result<bool, StoreError> {
    let listed = store.unfinished(prefix).await?;
    Ok(listed.iter().any(|found| found.key == upload.key && found.id == upload.id))
}

/// What every store has. The object written first is there.
async fn try_store(store: &dyn Store, trials: &mut Trials) {
    let plain = trials.key("plain");
    let listed = store.list(&trials.key("")).await;
    if state(&trials.found, Name::Write) != State::Yes {
        trials.outcome(Name::List, &listed);
        return;
    }
    let read = get(store, &plain, REPORT_LIMIT).await;
    match &read {
        Ok(bytes) if bytes == PLAIN => trials.note(Name::Read, State::Yes, ""),
        Ok(_) => trials.note(Name::Read, State::No, "returned other bytes than were written"),
        Err(_) => {
            trials.outcome(Name::Read, &read);
        }
    }
    let range = store.read(&plain, 5..8).await;
    match &range {
        Ok(bytes) if bytes == &PLAIN[5..8] => trials.note(Name::RangedRead, State::Yes, ""),
        Ok(_) => trials.note(Name::RangedRead, State::No, "returned other bytes than asked for"),
        Err(_) => {
            trials.outcome(Name::RangedRead, &range);
        }
    }
    match &listed {
        Ok(objects) if objects.iter().any(|o| o.key == plain && o.size == PLAIN.len() as u64) => {
            trials.note(Name::List, State::Yes, "");
        }
        Ok(_) => trials.note(Name::List, State::No, "does not show an object that was written"),
        Err(_) => {
            trials.outcome(Name::List, &listed);
        }
    }
    if state(&trials.found, Name::ConditionalPut) == State::Unknown {
        try_conditional_put(store, trials).await;
    }
    try_conditional_replace(store, trials).await;
}

async fn try_conditional_put(store: &dyn Store, trials: &mut Trials) {
    let key = trials.key("conditional");
    let first = put(store, &key, PLAIN, true).await;
    let second = put(store, &key, "another", true).await;
    trials.conditional(Name::ConditionalPut, first, second);
}

/// Replaces an object, and then once more as if it were still the first.
async fn try_conditional_replace(store: &dyn Store, trials: &mut Trials) {
    let key = trials.key("replaced");
    let seen = async {
        put(store, &key, PLAIN, false).await?;
        store.version(&key).await
    };
    let (first, second) = match seen.await {
        Ok(version) => (
            store.replace(&key, Bytes::from_static(b"replaced"), &version).await,
            store.replace(&key, Bytes::from_static(b"replaced again"), &version).await,
        ),
        Err(error) => (Err(error.clone()), Err(error)),
    };
    trials.conditional(Name::ConditionalReplace, first, second);
}

/// Whether objects are written, and replaced, only on condition: tried out where no report says so.
pub(super) async fn conditions(store: &dyn Store) -> (State, State) {
    let mut trials = Trials::new();
    try_conditional_put(store, &mut trials).await;
    try_conditional_replace(store, &mut trials).await;
    for name in ["conditional", "replaced"] {
        if let Err(error) = store.delete(&trials.key(name)).await {
            tracing::debug!(%error, "the trial's object stays");
        }
    }
    (state(&trials.found, Name::ConditionalPut), state(&trials.found, Name::ConditionalReplace))
}

/// Whether a bucket really refuses an upload with checksums. A credential that may not write has none to send.
pub(super) async fn refuses_checksums(store: &S3Store) -> bool {
    let mut trials = Trials::new();
    let small = [Bytes::from_static(PLAIN)];
    let whole = async {
        let upload = begin(store, &mut trials, "multipart", Checksums::Crc32).await?;
        store.trial_complete(&upload, &small, Checksums::Crc32, false).await
    };
    let outcome = whole.await;
    abort_uploads(store, &trials).await;
    if let Err(error) = store.delete(&trials.key("multipart")).await {
        tracing::debug!(%error, "the trial's object stays");
    }
    matches!(outcome, Err(error) if !matches!(error, StoreError::Denied(_)))
}

/// Best effort: of the completed ones the store says that there is nothing to abort.
async fn abort_uploads(store: &S3Store, trials: &Trials) {
    for upload in &trials.uploads {
        if let Err(error) = store.trial_abort(upload).await {
            tracing::debug!(key = upload.key, %error, "nothing to abort");
        }
    }
}

/// Removes everything that was written, and notes whether it went.
async fn clean_up(store: &dyn Store, trials: &mut Trials) {
    if state(&trials.found, Name::Write) != State::Yes {
        return;
    }
    let mut deleted = Ok(());
    for name in OBJECTS {
        let one = store.delete(&trials.key(name)).await;
        deleted = deleted.and(one);
    }
    let left = store.list(&trials.key("")).await.map(|objects| objects.len());
    match (&deleted, left) {
        (Ok(()), Ok(0) | Err(_)) => trials.note(Name::Delete, State::Yes, ""),
        (Ok(()), Ok(left)) => {
            let detail = format!("{left} objects are still there under {}/", trials.prefix);
            trials.note(Name::Delete, State::No, detail);
        }
        (Err(_), _) => {
            trials.outcome(Name::Delete, &deleted);
        }
    }
}
