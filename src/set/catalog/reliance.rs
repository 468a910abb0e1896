//! The one answer to the question whether a set may be relied on.
//!
//! Whatever counts sets, chooses one, or compares their age asks here: `prune`, `list` and its `overdue`, the
//! latest set, a restore, and the monitor of backups. Of several rehearsals of a set the newest conclusive one
//! that counts decides: what was proven after it differed may be relied on again, and the other way round.

use std::fmt;

use chrono::{DateTime, Utc};

use super::{Entry, Loaded, Signature, State, is_from_future};
use crate::error::Result;
use crate::printable;
use crate::set::verification::Verification;

/// Characters of a difference that are repeated as its headline.
const HEADLINE: usize = 300;

/// Missing objects that are named.
const NAMED: usize = 5;

/// Whether a set may be relied on, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reliance {
    /// It is complete and believed, has all of its objects, and no rehearsal that counts says that it differs.
    Sound,
    /// The same, but a clock dated it in the future: it is no sign of life, and the newest only where there is
    /// no other.
    Ahead,
    /// No manifest: the set is being written, or its run was killed.
    Incomplete,
    /// The run that made it said that it failed.
    Failed,
    /// It has a manifest, which is not believed or cannot be read.
    Refused(String),
    /// Objects are missing or have another size: these, as a text.
    Lacking(String),
    /// Its run could not dump all of its databases; the text says which and why.
    Partial(String),
    /// The newest conclusive rehearsal found a difference.
    Differs(Difference),
    /// What the newest conclusive rehearsal found is not known.
    Unknown(Unknown),
}

/// What a rehearsal found to differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// When the rehearsal ended.
    pub found: DateTime<Utc>,
    /// Who vouches for its record.
    pub by: Signature,
    /// The first of its lines; absent where the record has none.
    pub headline: Option<String>,
    /// How many more it has.
    pub more: usize,
}

/// Why nobody knows what a rehearsal found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// The store did not hand out a record; it may the next time.
    Unread(String),
    /// There are more records that do not count than are read, and others behind them.
    Hidden(String),
}

/// Whether a set may be relied on, from what a listing told and what came of reading it.
pub fn reliance(entry: &Entry, loaded: &Result<Loaded>, now: DateTime<Utc>) -> Reliance {
    match (loaded, entry.state) {
        (Ok(set), _) => set.reliance(now),
        (Err(_), State::Incomplete) => Reliance::Incomplete,
        (Err(_), State::Failed) => Reliance::Failed,
        (Err(error), State::Complete) => Reliance::Refused(error.to_string()),
    }
}

impl Loaded {
    /// Whether this set may be relied on.
    pub fn reliance(&self, now: DateTime<Utc>) -> Reliance {
        let missing = self.missing();
        if !missing.is_empty() {
            let more = missing.len().saturating_sub(NAMED);
            let named = missing.get(..NAMED).unwrap_or(&missing).join(", ");
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            return Reliance::Lacking(format!("{named}{more}"));
        }
        let mut lacking = self.manifest.lacking.iter();
        match (&self.difference, &self.unknown) {
            (Some(difference), _) => Reliance::Differs(difference.clone()),
            (None, None) if let Some(first) = lacking.next() => {
                let why = printable::bounded(&first.why, HEADLINE);
                let more = match lacking.count() {
                    0 => String::new(),
                    more => format!(" (and {more} more)"),
                };
                Reliance::Partial(format!("database {:?} could not be dumped: {why}{more}", first.name))
            }
            (None, Some(unknown)) => Reliance::Unknown(unknown.clone()),
            (None, None) if is_from_future(self.manifest.started, now) => Reliance::Ahead,
            (None, None) => Reliance::Sound,
        }
    }
}

impl Reliance {
    /// As in JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Reliance::Sound => "sound",
            Reliance::Ahead => "ahead",
            Reliance::Incomplete => "incomplete",
            Reliance::Failed => "failed",
            Reliance::Refused(_) => "refused",
            Reliance::Lacking(_) => "lacking",
            Reliance::Partial(_) => "partial",
            Reliance::Differs(_) => "differs",
            Reliance::Unknown(_) => "unknown",
        }
    }

    /// Whether it may be relied on, as far as anybody knows.
    pub fn is_sound(&self) -> bool {
        *self == Reliance::Sound
    }

    /// Whether something speaks against the set itself, rather than against the clock that dated it.
    pub fn is_flawed(&self) -> bool {
        !matches!(self, Reliance::Sound | Reliance::Ahead)
    }

    /// Whether what speaks against it is known, rather than that nothing is.
    pub fn is_known(&self) -> bool {
        !matches!(self, Reliance::Unknown(_))
    }

    /// What there is to say before it is used all the same; nothing where nothing speaks against the set.
    pub fn doubt(&self, id: &str) -> Option<String> {
        self.is_flawed().then(|| format!("set {id} may not be relied on: {self}"))
    }
}

/// Why, without on what.
impl fmt::Display for Reliance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reliance::Sound => f.write_str("nothing speaks against it"),
            Reliance::Ahead => f.write_str("it is dated in the future"),
            Reliance::Incomplete => f.write_str("incomplete: it is being written, or its run was killed"),
            Reliance::Failed => f.write_str("failed: its run gave up"),
            Reliance::Refused(why) | Reliance::Partial(why) => f.write_str(why),
            Reliance::Lacking(what) => write!(f, "{what} is missing or has another size"),
            Reliance::Differs(difference) => difference.fmt(f),
            Reliance::Unknown(Unknown::Unread(why) | Unknown::Hidden(why)) => {
                write!(f, "what its rehearsals found is not known: {why}")
            }
        }
    }
}

impl Difference {
    pub(super) fn new(record: &Verification, by: &Signature) -> Self {
        let mut lines = record
            .databases
            .iter()
            .flat_map(|d| d.differences.iter().map(move |line| format!("{}: {line}", d.name)))
            .chain(record.differences.iter().cloned());
        let headline = lines.next().map(|line| printable::bounded(&line, HEADLINE).into_owned());
        Self { found: record.finished, by: by.clone(), headline, more: lines.count() }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.found.format("%Y-%m-%d %H:%M:%S UTC");
        write!(f, "it differs, as a rehearsal found that ended {found}")?;
        if let Some(headline) = &self.headline {
            write!(f, ": {headline}")?;
        }
        if self.more > 0 {
            write!(f, " (and {} more)", self.more)?;
        }
        match &self.by {
            Signature::Trusted(key) => write!(f, "; key {key} signed its record"),
            Signature::Unsigned => f.write_str("; nobody signed its record"),
            Signature::Unchecked => {
                f.write_str("; its record is signed, and no key is trusted to check it with")
            }
        }
    }
}
