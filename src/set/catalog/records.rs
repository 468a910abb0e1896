//! Which of a set's verification records are read: whoever may write to the repository may put there as
//! many, and as large ones, as they please.
//!
//! The newest come first, by their names, and a record counts only under the name that its own end gives it:
//! else an old one could be put there again as the newest. What does not count must not hide what does, so
//! reading goes on behind it until one is found that proved the set or found it to differ. Where that has no
//! end either, or a record cannot be read, what the rehearsals found is unknown, which is not the same as
//! nothing.

use chrono::{DateTime, Utc};

use super::reliance::{Difference, Unknown};
use super::{Entry, Signature, Unread, read_signed};
use crate::config::Trusted;
use crate::error::{Error, Kind, Result};
use crate::set::manifest::Manifest;
use crate::set::signature::Purpose;
use crate::set::verification::{self, Verdict, Verification};
use crate::store::{ObjectMeta, Store};

/// Largest verification record that is read: a line for each of thousands of tables.
pub(super) const RECORD_LIMIT: u64 = verification::SIZE_MAX as u64;

/// Rehearsals of a set that are looked at, the newest by their names: a set that is rehearsed each night
/// for a month has as many, and what is older decides nothing once one of them is conclusive.
const RECORDS: usize = 32;

/// Records that are read at the most, where none of the newest decides.
const TRIED: usize = 128;

/// Bytes of all records of a set that are kept. What is parsed takes several times as much.
pub(super) const RECORDS_LIMIT: u64 = 2 * RECORD_LIMIT;

/// What the records of a set say.
pub(super) struct Records {
    /// Rehearsals that count, oldest first.
    pub(super) counting: Vec<Verification>,
    /// What the newest conclusive one found, where that is a difference.
    pub(super) difference: Option<Difference>,
    /// Why it is not known what the newest conclusive one found.
    pub(super) unknown: Option<Unknown>,
    /// What does not count, by name, and why.
    pub(super) ignored: Vec<(String, Error)>,
}

/// Reads the records of a set, the newest first.
pub(super) async fn read(
    store: &dyn Store,
    trusted: &Trusted,
    entry: &Entry,
    manifest: &Manifest,
    manifest_sha256: &str,
) -> Records {
    let mut records = Records { counting: Vec::new(), difference: None, unknown: None, ignored: Vec::new() };
    let mut decided: Option<DateTime<Utc>> = None;
    let (mut tried, mut unsaid, mut unread) = (0, 0_u64, 0_u64);
    let mut left = RECORDS_LIMIT;
    for object in entry.objects.iter().rev().filter(|o| verification::is_name(&o.key)) {
        let ignored = if object.size > RECORD_LIMIT {
            Error::new(format!("it has {} bytes, and a record at most {RECORD_LIMIT}", object.size))
        } else if !verification::is_written_name(&object.key) {
            Error::new("opsd gives no record such a name")
        } else {
            let is_among_newest = tried < RECORDS && object.size <= left;
            if !is_among_newest {
                left = 0;
            }
            if tried == TRIED || (!is_among_newest && decided.is_some()) {
                unread += 1;
                continue;
            }
            tried += 1;
            left = left.saturating_sub(object.size);
            match one(store, trusted, entry, object, manifest, manifest_sha256).await {
                Ok((record, by)) => {
                    let decides = decided.is_none() && record.verdict.is_conclusive();
                    if decides {
                        decided = Some(record.finished);
                        let differs = record.verdict == Verdict::Differs;
                        records.difference = differs.then(|| Difference::new(&record, &by));
                    }
                    if decides || is_among_newest {
                        records.counting.push(record);
                    }
                    continue;
                }
                Err(Unread::Refused(why)) => why,
                Err(Unread::Store(why)) => {
                    if decided.is_none() && records.unknown.is_none() {
                        records.unknown = Some(Unknown::Unread(why.to_string()));
                    }
                    why
                }
            }
        };
        if records.ignored.len() < RECORDS {
            records.ignored.push((object.key.clone(), ignored));
        } else {
            unsaid += 1;
        }
    }
    if decided.is_none() && unread > 0 && records.unknown.is_none() {
        let why = format!(
            "none of the newest {TRIED} records decides, and {unread} more are not read; remove those that opsd did \
             not write"
        );
        records.unknown = Some(Unknown::Hidden(why));
    }
    if unread + unsaid > 0 {
        let why = format!("only the newest {RECORDS} of at most {} KiB are shown", RECORDS_LIMIT >> 10);
        let rest = format!("the rest of the verification records ({})", unread + unsaid);
        records.ignored.push((rest, Error::new(why)));
    }
    records.counting.sort_by_key(|v| v.finished);
    records
}

/// Reads one record, if it counts, and who vouches for it.
async fn one(
    store: &dyn Store,
    trusted: &Trusted,
    entry: &Entry,
    object: &ObjectMeta,
    manifest: &Manifest,
    manifest_sha256: &str,
) -> Result<(Verification, Signature), Unread> {
    let name = object.key.as_str();
    if trusted.verifications.is_empty() && !trusted.is_nobody() {
        return Err(Unread::Refused(
            Error::usage("no key is trusted for records of rehearsals here")
                .with_hint("name the key of the host that rehearses in trusted_verify_keys"),
        ));
    }
    let keys = &trusted.verifications;
    let (bytes, by) = read_signed(store, keys, Purpose::Verification, entry, name, RECORD_LIMIT).await?;
    let parsed = Verification::parse(&bytes, &entry.site, &entry.job, &entry.id, manifest_sha256);
    let found = parsed.map_err(|why| match why.kind() {
        Kind::Differs => Unread::Refused(why),
        // A newer opsd wrote it, and may have found a difference.
        _ => Unread::Store(why),
    })?;
    let written = verification::name(found.finished);
    if written != name {
        let why = format!("verification record was written as {written}");
        return Err(Unread::Refused(Error::differs(why)));
    }
    let names = |name: &str| found.databases.iter().any(|d| d.name == name);
    match manifest.databases.iter().find(|d| !names(&d.name)) {
        Some(missing) if found.verdict == Verdict::Proven => Err(Unread::Refused(Error::differs(format!(
            "verification record says proven, but not of database {:?}",
            missing.name
        )))),
        _ => Ok((found, by)),
    }
}
