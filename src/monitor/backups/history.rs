//! What is kept of a set, and what the sets of a job together say. Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::set::catalog::{self, Entry, Loaded, Reliance, State};
use crate::set::manifest::ProofState;
use crate::set::verification::Verdict;

/// How many earlier sets tell what size is usual; retention asks as many.
const HISTORY: usize = 7;

/// A complete set whose documents were read.
pub(super) enum Known {
    /// It is not believed.
    Refused,
    /// It is.
    Believed(Box<Summary>),
}

/// What matters of a believed set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary {
    pub(super) started: DateTime<Utc>,
    pub(super) finished: DateTime<Utc>,
    pub(super) databases: BTreeMap<String, Amount>,
    pub(super) plain_bytes: u64,
    /// Public keys in canonical form, sorted.
    pub(super) recipients: Vec<String>,
    pub(super) signature: &'static str,
    pub(super) missing: usize,
    /// Whether it may be relied on, clocks aside: those are asked each time.
    pub(super) reliance: Reliance,
    /// Whether the last conclusive rehearsal proved it.
    pub(super) is_proven: bool,
    /// Its rehearsals, oldest first.
    pub(super) rehearsals: Vec<Rehearsal>,
}

/// How much a set holds of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amount {
    /// Absent where nobody counted them.
    pub(super) rows: Option<u64>,
    pub(super) bytes: u64,
}

/// One rehearsal of a set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rehearsal {
    pub(super) finished: DateTime<Utc>,
    pub(super) verdict: Verdict,
    pub(super) total: f64,
    pub(super) phases: Vec<(String, f64)>,
}

impl Known {
    pub(super) fn of_set(set: &Loaded, recipients: Vec<String>) -> Self {
        let manifest = &set.manifest;
        let amount = |d: &crate::set::manifest::Database| {
            let rows = (d.proof != ProofState::None).then_some(d.rows);
            (d.name.clone(), Amount { rows, bytes: d.bytes })
        };
        let rehearsals = set.verifications.iter().map(|v| Rehearsal {
            finished: v.finished,
            verdict: v.verdict,
            total: v.total_seconds(),
            phases: v.seconds.0.clone(),
        });
        Known::Believed(Box::new(Summary {
            started: manifest.started,
            finished: manifest.finished,
            databases: manifest.databases.iter().map(amount).collect(),
            plain_bytes: manifest.plain_bytes(),
            recipients,
            signature: set.signature.as_str(),
            missing: set.missing().len(),
            reliance: set.reliance(DateTime::<Utc>::MAX_UTC),
            is_proven: set.is_proven(),
            rehearsals: rehearsals.collect(),
        }))
    }

    pub(super) fn standing(&self) -> Standing<'_> {
        match self {
            Known::Refused => Standing::Refused,
            Known::Believed(summary) => Standing::Believed(summary),
        }
    }
}

/// What is known of a set beside the listing.
#[derive(Clone, Copy)]
pub(super) enum Standing<'a> {
    /// Its documents were not read.
    Unread,
    /// They are not believed.
    Refused,
    /// They are.
    Believed(&'a Summary),
}

impl Summary {
    /// Whether it may be relied on, of a set that is not from the future.
    fn is_sound(&self) -> bool {
        self.reliance.is_sound()
    }
}

/// The recovery point against the objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    Fresh,
    Overdue,
    Missing,
    Unbounded,
    Unknown,
}

impl Freshness {
    /// As a label's value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Freshness::Fresh => "fresh",
            Freshness::Overdue => "overdue",
            Freshness::Missing => "missing",
            Freshness::Unbounded => "unbounded",
            Freshness::Unknown => "unknown",
        }
    }
}

/// The sets of a job, newest first where they are several.
pub(super) struct Job<'a> {
    pub(super) rpo: Option<Duration>,
    pub(super) freshness: Freshness,
    /// Complete, refused, incomplete and failed ones, as the catalogue has the states of sets.
    pub(super) counts: [u64; 4],
    pub(super) ahead: u64,
    pub(super) stored_bytes: u64,
    /// When the newest complete set was started, by its id.
    pub(super) listed: Option<DateTime<Utc>>,
    /// Who vouches for the newest complete set; absent where there is none or it was not read.
    pub(super) signature: Option<&'static str>,
    /// Believed sets that are not from the future, newest first.
    pub(super) believed: Vec<(&'a Entry, &'a Summary)>,
    /// The newest usable one, as an index of `believed`.
    pub(super) usable: Option<usize>,
}

impl<'a> Job<'a> {
    /// What the sets of a job say; `readable` tells whether all documents that should be read were.
    pub(super) fn new(
        sets: impl Iterator<Item = (&'a Entry, Standing<'a>)>,
        rpo: Option<Duration>,
        readable: bool,
        now: DateTime<Utc>,
    ) -> Self {
        let mut job = Job {
            rpo,
            freshness: Freshness::Unknown,
            counts: [0; 4],
            ahead: 0,
            stored_bytes: 0,
            listed: None,
            signature: None,
            believed: Vec::new(),
            usable: None,
        };
        for (entry, standing) in sets {
            job.stored_bytes = job.stored_bytes.saturating_add(entry.occupied_bytes());
            let kind = match (entry.state, standing) {
                (State::Complete, Standing::Refused) => 1,
                (State::Complete, _) => 0,
                (State::Incomplete, _) => 2,
                (State::Failed, _) => 3,
            };
            job.counts[kind] += 1;
            let started = match standing {
                Standing::Believed(summary) => summary.started,
                Standing::Unread | Standing::Refused => entry.id_time(),
            };
            if catalog::is_from_future(started, now) {
                job.ahead += 1;
                continue;
            }
            if entry.state != State::Complete {
                continue;
            }
            // Only its name tells when a set was started that nobody believes.
            if job.listed.is_none_or(|listed| entry.id_time() >= listed) {
                job.listed = Some(entry.id_time());
                job.signature = match standing {
                    Standing::Unread => None,
                    Standing::Refused => Some("refused"),
                    Standing::Believed(summary) => Some(summary.signature),
                };
            }
            if let Standing::Believed(summary) = standing {
                job.believed.push((entry, summary));
            }
        }
        job.believed.sort_by(|(a, x), (b, y)| (y.started, &b.id).cmp(&(x.started, &a.id)));
        job.usable = job.believed.iter().position(|(_, summary)| summary.is_sound());
        job.freshness = match (job.newest(), rpo) {
            (Some(_), None) => Freshness::Unbounded,
            (Some((_, set)), Some(rpo)) if is_within(now - set.started, rpo) => Freshness::Fresh,
            // An unread one may be newer.
            _ if !readable => Freshness::Unknown,
            (Some(_), Some(_)) => Freshness::Overdue,
            (None, _) => Freshness::Missing,
        };
        job
    }

    /// The newest usable set.
    pub(super) fn newest(&self) -> Option<(&'a Entry, &'a Summary)> {
        self.usable.and_then(|at| self.believed.get(at)).copied()
    }

    /// The last rehearsal of any set, whatever it came to, and the last that proved one.
    pub(super) fn rehearsals(&self) -> (Option<&'a Rehearsal>, Option<&'a Rehearsal>) {
        let all = || self.believed.iter().flat_map(|(_, set)| &set.rehearsals);
        let proven = all().filter(|r| r.verdict == Verdict::Proven);
        (all().max_by_key(|r| r.finished), proven.max_by_key(|r| r.finished))
    }

    /// When the newest set was started that is proven now.
    pub(super) fn proven_point(&self) -> Option<DateTime<Utc>> {
        let is_proven = |set: &Summary| set.is_proven && set.is_sound();
        self.believed.iter().find(|(_, set)| is_proven(set)).map(|(_, set)| set.started)
    }

    /// Whether the newest believed set is for other keys than the one before it.
    pub(super) fn recipients_changed(&self) -> Option<bool> {
        match self.believed.as_slice() {
            [(_, newest), (_, before), ..] => Some(newest.recipients != before.recipients),
            _ => None,
        }
    }

    /// Every database of the newest usable set and of most of those before it.
    pub(super) fn databases(&self) -> Vec<Compared<'a>> {
        let Some((at, (_, newest))) = self.usable.zip(self.newest()) else { return Vec::new() };
        let before = self.believed.iter().skip(at + 1).map(|(_, set)| *set).filter(|set| set.is_sound());
        let before: Vec<&Summary> = before.take(HISTORY).collect();
        let names: BTreeSet<&String> =
            before.iter().copied().chain([newest]).flat_map(|set| set.databases.keys()).collect();
        let compare = |name: &'a String| {
            let amounts: Vec<Amount> =
                before.iter().filter_map(|set| set.databases.get(name)).copied().collect();
            let is_usual = amounts.len() * 2 > before.len();
            let now = newest.databases.get(name).copied();
            let usual_rows = median(amounts.iter().filter_map(|a| a.rows).collect());
            let usual_bytes = median(amounts.iter().map(|a| a.bytes).collect());
            (now.is_some() || is_usual).then_some(Compared {
                name,
                now,
                rows_ratio: ratio(now.and_then(|a| a.rows), usual_rows),
                bytes_ratio: ratio(now.map(|a| a.bytes), usual_bytes),
            })
        };
        names.into_iter().filter_map(compare).collect()
    }
}

/// A database in the newest set beside what is usual.
#[derive(Debug, PartialEq)]
pub(super) struct Compared<'a> {
    pub(super) name: &'a str,
    pub(super) now: Option<Amount>,
    pub(super) rows_ratio: Option<f64>,
    pub(super) bytes_ratio: Option<f64>,
}

fn is_within(age: TimeDelta, rpo: Duration) -> bool {
    // A negative age is one of clocks that differ a little.
    age.to_std().is_ok_and(|age| age <= rpo) || age < TimeDelta::zero()
}

/// Nothing is no part of nothing.
fn ratio(now: Option<u64>, usual: Option<u64>) -> Option<f64> {
    let usual = usual.filter(|usual| *usual > 0)?;
    Some(now? as f64 / usual as f64)
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
