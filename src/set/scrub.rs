//! Reading a whole set again and comparing it with its manifest, without restoring anything.
//!
//! Every object's ciphertext is hashed, every signature checked, every document held to the place it
//! is found in. No identity is needed: whoever may read the repository can do it. What it cannot see
//! is whether the ciphertext restores (that is what a rehearsal is for) and what is not there at all:
//! a newest set that somebody deleted leaves no trace in the bucket.
//!
//! A difference is what is stored and disagrees. A note is what may be as it should: an earlier set
//! that is gone, as retention makes them go, or an object that opsd did not write.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};

use super::catalog::{self, Entry, Loaded, Signature, State};
use super::manifest::Stored;
use super::{MANIFEST, MANIFEST_SIGNATURE, id_time, seal, set_prefix, signature};
use crate::config::Trusted;
use crate::error::{Context, Error, Kind, Result};
use crate::progress::{Event, Progress};
use crate::store::{self, Store, StoreError};

/// Bytes asked for at once. Together with [`IN_FLIGHT`] this is the memory that a scrub takes.
const RANGE: u64 = 2 << 20;

/// Ranges on their way or waiting to be hashed.
const IN_FLIGHT: usize = 8;

/// Largest signature that is read.
const SIGNATURE_LIMIT: u64 = 16 * 1024;

/// What came of scrubbing one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its job.
    pub job: String,
    /// Its id.
    pub id: String,
    /// Objects that were read, documents and signatures among them.
    pub objects: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// What disagrees, one line each.
    pub differences: Vec<String>,
    /// What may be as it should.
    pub notes: Vec<String>,
}

/// Reads every object of a set. `siblings` are the sets of the same job, to tell whether the one
/// before it is there. What keeps it from being read (a store that does not answer, a manifest of a
/// newer version) is an error; what is wrong with it is in the report.
pub async fn scrub(
    store: &dyn Store,
    trusted: &Trusted,
    entry: &Entry,
    siblings: &[Entry],
    progress: &Progress,
) -> Result<Report> {
    let mut report = Report {
        job: entry.job.clone(),
        id: entry.id.clone(),
        objects: 0,
        bytes: 0,
        differences: Vec::new(),
        notes: Vec::new(),
    };
    let set = match catalog::load_entry(store, trusted, entry.clone()).await {
        Ok(set) => set,
        Err(error) if error.kind() == Kind::Differs => {
            report.differences.push(error.to_string());
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    documents(store, &set, &mut report).await?;
    chain(&set, siblings, &mut report);
    let prefix = set_prefix(&entry.site, &entry.job, &entry.id);
    let name = format!("{}/{}", entry.job, entry.id);
    progress(Event::StreamStarted { name: name.clone(), estimate: set.manifest.stored_bytes() });
    let read = objects(store, &prefix, &set, &mut report, |bytes| {
        progress(Event::StreamBytes { name: name.clone(), bytes });
    });
    let read = read.await;
    progress(Event::StreamFinished { name: name.clone() });
    read.map(|()| report)
}

/// What is beside the streams: the manifest itself is read and believed by now.
async fn documents(store: &dyn Store, set: &Loaded, report: &mut Report) -> Result<()> {
    let entry = &set.entry;
    for object in &entry.objects {
        let record = object.key.strip_suffix(".minisig").unwrap_or(&object.key);
        if object.key == MANIFEST || object.key == MANIFEST_SIGNATURE || super::verification::is_name(record)
        {
            report.objects += 1;
            report.bytes += object.size;
        }
    }
    for (name, why) in &set.ignored {
        // Whom this host trusts says nothing against the set.
        let lines = if why.kind() == Kind::Usage { &mut report.notes } else { &mut report.differences };
        lines.push(format!("{name} does not count: {why}"));
    }
    for signed in entry.objects.iter().filter_map(|o| o.key.strip_suffix(".minisig")) {
        let key = format!("{signed}.minisig");
        if signed != MANIFEST && !super::verification::is_name(signed) {
            continue;
        }
        if !entry.has(signed) {
            report.differences.push(format!("{key} is a signature of something that is missing"));
            continue;
        }
        let full = set_prefix(&entry.site, &entry.job, &entry.id) + &key;
        let text = match store::get(store, &full, SIGNATURE_LIMIT).await {
            Err(StoreError::NotFound(_)) => continue,
            text => text.with_context(|| format!("reading {full}"))?,
        };
        // Verifying ignores what does not matter to it: a comment, white space.
        if !signature::is_as_written(&String::from_utf8_lossy(&text)) {
            report.differences.push(format!("{key} is not as it was written"));
        }
    }
    match set.signature {
        Signature::Trusted(_) => {}
        Signature::Unchecked => {
            report.notes.push("signed, but no key is trusted to check the signatures with".into());
        }
        Signature::Unsigned => {
            report.notes.push("not signed: whoever can write to the repository could have made it".into());
        }
    }
    let foreign = set.foreign();
    report
        .notes
        .extend(foreign.iter().map(|key| format!("{key} was not written by opsd, or is not of this set")));
    Ok(())
}

/// The set that this one names as the one before it.
fn chain(set: &Loaded, siblings: &[Entry], report: &mut Report) {
    let Some(previous) = &set.manifest.previous else { return };
    match siblings.iter().find(|e| e.id == *previous) {
        Some(found) if found.state == State::Complete => {}
        Some(found) => report.notes.push(format!(
            "the set before it, {previous}, is {}: its manifest was removed since",
            found.state.as_str()
        )),
        None => report.notes.push(format!(
            "the set before it, {previous}, is gone: retention removes sets, and so can others"
        )),
    }
    if id_time(previous).is_none_or(|time| time > set.entry.id_time()) {
        report
            .notes
            .push(format!("the set before it, {previous}, is not older by its id: a clock went back"));
    }
}

/// A range of one of the objects.
struct Piece {
    object: usize,
    bytes: Result<Bytes, StoreError>,
    is_last: bool,
}

/// Reads and hashes what the manifest names. Ranges of all objects are in one line, so that many small
/// ones are read as fast as a large one.
async fn objects(
    store: &dyn Store,
    prefix: &str,
    set: &Loaded,
    report: &mut Report,
    progress: impl Fn(u64),
) -> Result<()> {
    let named: Vec<Stored<'_>> = set.manifest.stored().collect();
    // Sizes are what a manifest claims: one after another, never as a list. The last range of each
    // object asks for a byte too many, which nothing should answer.
    let ranges = named.iter().enumerate().flat_map(|(object, named)| {
        (0..=named.size / RANGE).map(move |i| {
            let end = (i + 1).saturating_mul(RANGE).min(named.size.saturating_add(1));
            (object, i * RANGE..end, i == named.size / RANGE)
        })
    });
    let mut pieces = stream::iter(ranges)
        .map(|(object, range, is_last)| {
            let key = format!("{prefix}{}", named[object].key);
            async move { Piece { object, bytes: store.read(&key, range).await, is_last } }
        })
        .buffered(IN_FLIGHT);
    let mut hasher = Sha256::new();
    let mut size = 0u64;
    // Of the object that is being read: much shorter than a range.
    let mut header = None;
    let mut broken: BTreeSet<usize> = BTreeSet::new();
    while let Some(piece) = pieces.next().await {
        let object = named[piece.object];
        match piece.bytes {
            Ok(bytes) => {
                if size == 0 {
                    let pinned = object.header.and_then(|header| usize::try_from(header.size).ok());
                    header = pinned.and_then(|size| bytes.get(..size)).map(seal::header::pin);
                }
                progress(bytes.len() as u64);
                size += bytes.len() as u64;
                report.bytes += bytes.len() as u64;
                hasher = hashed(hasher, bytes).await?;
            }
            Err(StoreError::NotFound(_)) if broken.insert(piece.object) => {
                report.differences.push(format!("object {} is missing", object.key));
            }
            Err(StoreError::Corrupt(why)) if broken.insert(piece.object) => {
                report.differences.push(format!("object {}: {why}", object.key));
            }
            Err(StoreError::NotFound(_) | StoreError::Corrupt(_)) => {}
            Err(error) => {
                return Err(Error::from(error).context(format!("cannot read {prefix}{}", object.key)));
            }
        }
        if !piece.is_last {
            continue;
        }
        report.objects += 1;
        let found = seal::hex(&std::mem::take(&mut hasher).finalize());
        let (size, header) = (std::mem::take(&mut size), header.take());
        if broken.contains(&piece.object) {
            continue;
        }
        if size > object.size {
            report.differences.push(format!("object {} is longer than the manifest says", object.key));
        } else if size < object.size {
            let expected = object.size;
            report.differences.push(format!("object {} has {size} bytes of {expected}", object.key));
        } else if found != object.sha256 {
            let how = format!("its SHA-256 is {found}, the manifest says {}", object.sha256);
            report.differences.push(seal::changed(object.key, &how).to_string());
        } else if object.header.is_some_and(|pinned| header.as_ref() != Some(pinned)) {
            // It would not be decrypted.
            report
                .differences
                .push(format!("object {} has another header than the manifest pins", object.key));
        }
    }
    Ok(())
}

/// Hashing 2 MiB takes milliseconds, which the runtime's own threads do not wait for.
async fn hashed(mut hasher: Sha256, bytes: Bytes) -> Result<Sha256> {
    if bytes.len() < 64 << 10 {
        hasher.update(&bytes);
        return Ok(hasher);
    }
    let hashed = tokio::task::spawn_blocking(move || {
        hasher.update(&bytes);
        hasher
    });
    hashed.await.map_err(|e| Error::new(format!("hashing stopped: {e}")))
}
