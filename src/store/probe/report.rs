//! What a probe found out, as it is stored and shown.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::config::ObjectLock;
use crate::store::s3::{Checksums, Options};

/// The format of a report that this opsd writes and reads.
pub(super) const FORMAT: u32 = 1;

/// What was found out about a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Always 1.
    pub format: u32,
    /// When.
    pub probed: DateTime<Utc>,
    /// By which opsd.
    pub opsd_version: String,
    /// Where, as [`crate::store::Store::describe`] says it.
    pub repository: String,
    /// Which checksum opsd sends from now on.
    pub checksums: Checksums,
    /// What was tried, in the order in which people read it.
    pub capabilities: Vec<Capability>,
    /// What opsd will do without what is missing.
    pub warnings: Vec<String>,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capability {
    /// What.
    pub name: Name,
    /// What came of it.
    pub state: State,
    /// More about it; may be empty.
    pub detail: String,
}

/// What a store may be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    /// The configured way of addressing the bucket works.
    Addressing,
    /// Objects can be written.
    Write,
    /// They come back as written.
    Read,
    /// So does a range of one.
    RangedRead,
    /// They can be listed by prefix.
    List,
    /// They can be deleted.
    Delete,
    /// CRC32 checksums are accepted.
    Checksum,
    /// A wrong one is refused.
    ChecksumEnforced,
    /// Writing a small object only if it is absent.
    ConditionalPut,
    /// Completing a large object only if it is absent.
    ConditionalComplete,
    /// Replacing an object only if it is still the same.
    ConditionalReplace,
    /// Objects in parts, the last one smaller.
    Multipart,
    /// Unfinished uploads can be aborted.
    MultipartAbort,
    /// Unfinished uploads can be listed.
    MultipartList,
    /// The bucket keeps old versions.
    Versioning,
    /// The bucket protects objects from deletion for a while.
    ObjectLock,
}

impl Name {
    /// For tables and JSON alike.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::Addressing => "addressing",
            Name::Write => "write",
            Name::Read => "read",
            Name::RangedRead => "ranged-read",
            Name::List => "list",
            Name::Delete => "delete",
            Name::Checksum => "checksum",
            Name::ChecksumEnforced => "checksum-enforced",
            Name::ConditionalPut => "conditional-put",
            Name::ConditionalComplete => "conditional-complete",
            Name::ConditionalReplace => "conditional-replace",
            Name::Multipart => "multipart",
            Name::MultipartAbort => "multipart-abort",
            Name::MultipartList => "multipart-list",
            Name::Versioning => "versioning",
            Name::ObjectLock => "object-lock",
        }
    }
}

/// What came of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It works.
    Yes,
    /// It does not.
    No,
    /// The credential may not, so nobody knows about others.
    Denied,
    /// It could not be tried.
    Unknown,
}

impl State {
    /// For tables and JSON alike.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Yes => "yes",
            State::No => "no",
            State::Denied => "denied",
            State::Unknown => "unknown",
        }
    }
}

impl Report {
    /// What came of one trial; [`State::Unknown`] where this store was not asked.
    pub fn state(&self, name: Name) -> State {
        state(&self.capabilities, name)
    }

    /// How a trial failed that found that the store cannot do a thing.
    pub fn lacks(&self, name: Name) -> Option<&str> {
        let lacking = |c: &&Capability| c.name == name && c.state == State::No;
        self.capabilities.iter().find(lacking).map(|c| c.detail.as_str())
    }

    /// The table that people read: capability, state, detail.
    pub fn rows(&self) -> Vec<[&str; 3]> {
        self.capabilities.iter().map(|c| [c.name.as_str(), c.state.as_str(), c.detail.as_str()]).collect()
    }

    /// How a store is to be used, as far as this report knows.
    pub fn options(&self) -> Options {
        Options { checksums: self.checksums }
    }
}

/// What came of one trial; unknown where it was not made.
pub(super) fn state(found: &[Capability], name: Name) -> State {
    found.iter().find(|c| c.name == name).map_or(State::Unknown, |c| c.state)
}

/// What opsd will do without what is missing, in S3's terms.
pub(super) fn warnings(found: &[Capability], lock: Option<ObjectLock>) -> Vec<String> {
    let is = |name| state(found, name);
    let mut warnings = Vec::new();
    let mut warn = |text: &str| warnings.push(text.to_owned());
    if is(Name::Write) != State::Yes {
        warn("this credential may not write: it can list and restore, not back up");
    }
    if is(Name::Read) == State::Denied {
        warn(
            "this credential may not read: backups work; restores, `backups list` and `backups prune` \
             need another one, and uploads are believed from the store's answer",
        );
    }
    if is(Name::List) == State::Denied {
        warn(
            "this credential may not list: `backups list`, restores and `backups prune` need another one, and a \
             backup knows no set before it: it names none, is compared with none, and nobody looks whether \
             its objects are still there before the manifest is written",
        );
    }
    if is(Name::Delete) == State::Denied {
        warn(
            "this credential may not delete: good for the host that backs up; `backups prune` needs \
             another one, and the probe's small objects stay under probe-…/",
        );
    }
    if is(Name::RangedRead) == State::No {
        warn("ranged reads do not work: restores from this store are not possible");
    }
    if is(Name::Checksum) == State::No {
        warn("CRC32 checksums are refused: opsd sends none, the signature still covers every byte");
    } else if is(Name::ChecksumEnforced) == State::No {
        warn("wrong checksums are accepted: damage on the way is only found by a rehearsal");
    }
    if is(Name::ConditionalPut) == State::No {
        warn(
            "the store cannot refuse to overwrite an object: opsd relies on set ids being random and on \
             its lock in the database, and nothing keeps two runs of `backups prune` or `sweep` apart",
        );
    } else if is(Name::ConditionalComplete) == State::No {
        warn("conditions on large objects are not honoured: only small ones are protected from overwriting");
    }
    if is(Name::ConditionalPut) == State::Yes && is(Name::ConditionalReplace) == State::No {
        warn(
            "an object cannot be replaced on condition: the lease of a killed run is deleted and taken \
             anew, which two runs could do in the same instant",
        );
    }
    if is(Name::Multipart) == State::No {
        warn("multipart uploads do not work: only objects of one part can be written");
    }
    if matches!(is(Name::MultipartAbort), State::No | State::Denied) {
        warn(
            "unfinished uploads cannot be aborted and cost money: add a lifecycle rule that aborts \
             incomplete multipart uploads",
        );
    } else if matches!(is(Name::MultipartList), State::No | State::Denied) {
        warn(
            "unfinished uploads of a killed run cannot be found: add a lifecycle rule that aborts \
             incomplete multipart uploads",
        );
    }
    if is(Name::Versioning) == State::Yes {
        warn("the bucket keeps old versions: what prune deletes stays until a lifecycle rule expires it");
    }
    if is(Name::Versioning) == State::No
        && is(Name::ObjectLock) != State::Yes
        && is(Name::Delete) == State::Yes
    {
        warn(
            "whoever has this credential can delete every backup: consider object lock, versioning, or \
             a credential that may only put",
        );
    }
    match (lock, is(Name::ObjectLock)) {
        (None, State::Yes) => warn(
            "the bucket has object lock, and `lock` is not set in [repository]: only the bucket's default \
             retention protects what opsd writes, where it has one",
        ),
        (Some(_), State::No) => {
            warn("`lock` is set in [repository], and the bucket has no object lock: no backup is made")
        }
        (Some(_), State::Denied) => warn(
            "this credential may not read the bucket's object lock: with `lock` set in [repository], the \
             store's answer to the first object decides",
        ),
        _ => {}
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(states: &[(Name, State)]) -> Vec<Capability> {
        let capability =
            |(name, state): &(Name, State)| Capability { name: *name, state: *state, detail: String::new() };
        states.iter().map(capability).collect()
    }

    #[test]
    fn names_in_json_and_tables_are_the_same() {
        let names = [
            Name::Addressing,
            Name::Write,
            Name::Read,
            Name::RangedRead,
            Name::List,
            Name::Delete,
            Name::Checksum,
            Name::ChecksumEnforced,
            Name::ConditionalPut,
            Name::ConditionalComplete,
            Name::Multipart,
            Name::MultipartAbort,
            Name::MultipartList,
            Name::Versioning,
            Name::ObjectLock,
        ];
        for name in names {
            assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
        }
        for state in [State::Yes, State::No, State::Denied, State::Unknown] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }

    #[test]
    fn nothing_is_said_about_what_works() {
        use Name::*;
        let all = [Write, Read, RangedRead, List, Checksum, ChecksumEnforced, ConditionalPut]
            .into_iter()
            .chain([ConditionalComplete, Multipart, MultipartAbort, MultipartList])
            .map(|name| (name, State::Yes));
        let mut states: Vec<_> = all.collect();
        states.extend([(Versioning, State::No), (Delete, State::Denied)]);
        let warnings = warnings(&found(&states), None);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("may not delete"));
    }

    #[test]
    fn what_is_missing_is_said() {
        let said =
            |name, state| warnings(&found(&[(Name::Write, State::Yes), (name, state)]), None).join("\n");
        assert!(said(Name::ConditionalPut, State::No).contains("random"));
        assert!(said(Name::MultipartAbort, State::Denied).contains("lifecycle"));
        assert!(said(Name::Checksum, State::No).contains("signature"));
        assert!(said(Name::Versioning, State::Yes).contains("prune"));
        assert!(warnings(&[], None)[0].contains("may not write"));
    }

    #[test]
    fn a_lock_that_is_there_and_not_used_or_wanted_and_not_there_is_said() {
        use crate::config::LockMode;
        let said = |lock, state| {
            warnings(&found(&[(Name::Write, State::Yes), (Name::ObjectLock, state)]), lock).join("\n")
        };
        let lock = Some(ObjectLock { mode: LockMode::Governance, days: 1 });
        assert!(said(None, State::Yes).contains("`lock` is not set"));
        assert!(said(lock, State::No).contains("no backup is made"));
        assert!(said(lock, State::Denied).contains("decides"));
        assert_eq!(said(lock, State::Yes), "");
        assert_eq!(said(None, State::No), "");
    }
}
