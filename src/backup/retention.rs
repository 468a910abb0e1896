//! What prune keeps and why: a pure function.
//!
//! It sees every set of one job and says of each whether it stays, and why. Nothing here deletes,
//! reads a store or asks for the time. All periods are UTC, so daylight saving never moves a set
//! from one day to another. "The last 30 days that have a set", not "the last 30 days": an owner
//! who was away for a year comes back to the sets that were there.
//!
//! Kept whatever the rules say: the newest complete set, the newest proven one, and sets dated in the
//! future. Those last take no rule's place, or one wrong clock would push good sets out, and neither freeze
//! the plan nor hide what does.
//!
//! A set that is being written neither counts nor freezes: the rules count sets, not days that went by, so what goes
//! is what would have gone before that one was begun. A backup that takes until the morning would else keep
//! the prune of each night from its work.
//!
//! Which set counts is the catalogue's answer ([`crate::set::catalog::Reliance`]). One that differs freezes the
//! plan until a newer one is proven: until then nobody knows that any newer set is better, and the older ones
//! may be all there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, Utc};

use crate::config::Retention;
use crate::set::catalog::is_from_future;

/// How many earlier sets tell what size is usual.
const HISTORY: usize = 7;

/// One set, as far as retention cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Set id.
    pub id: String,
    /// The manifest's `started`; for a set without a usable manifest, the time in its id.
    pub time: DateTime<Utc>,
    /// Whether it counts.
    pub standing: Standing,
}

/// Whether a set counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Stored whole, and trusted where that is asked for.
    Complete {
        /// The last conclusive rehearsal said `proven`.
        proven: bool,
        /// How much of each database.
        databases: BTreeMap<String, Amount>,
    },
    /// Stored whole, and a rehearsal found that it differs; the text says what. It takes no place of a set that
    /// counts, and stays as long as the rules keep a set of its time.
    Differs(String),
    /// Stored whole but for a database that could not be dumped; the text says which. It takes no place of a set
    /// that counts, and stays as long as the rules keep a set of its time. As the newest it freezes.
    Partial(String),
    /// No manifest: the set is being written, or its run was killed; the text says so. Never counted, never
    /// removed, and no reason to freeze.
    Unfinished(String),
    /// Failed, unreadable or not trusted: never counted, never removed. The text says which.
    NotCounted(String),
}

/// How much a set holds of one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// Bytes before compression.
    pub bytes: u64,
    /// Rows, where they are known.
    pub rows: Option<u64>,
}

/// What becomes of every set, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Why nothing at all is removed, where that is so.
    pub frozen: Option<String>,
    /// One for each candidate.
    pub decisions: Vec<Decision>,
}

/// What becomes of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Set id.
    pub id: String,
    /// The time it was ordered by.
    pub time: DateTime<Utc>,
    /// Whether it stays.
    pub keep: bool,
    /// Why; never empty.
    pub reasons: Vec<Reason>,
}

/// Why a set stays or goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The newest complete set.
    NewestComplete,
    /// The newest set that a rehearsal proved.
    NewestProven,
    /// Started after now.
    Future,
    /// Among the last N.
    Last,
    /// The newest of a UTC day.
    Daily(NaiveDate),
    /// The newest of an ISO week: year and week.
    Weekly(i32, u32),
    /// The newest of a month: year and month.
    Monthly(i32, u32),
    /// The newest of a year.
    Yearly(i32),
    /// It does not count; the text says why.
    NotCounted(String),
    /// A rehearsal found that it differs, so it takes no place of a set that counts; the text says what.
    Differs(String),
    /// The rules would remove it, but the plan is frozen.
    Frozen,
    /// No rule keeps it: it goes.
    Unneeded,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NewestComplete => f.write_str("newest complete set"),
            Reason::NewestProven => f.write_str("newest proven set"),
            Reason::Future => f.write_str("dated in the future, check the clocks"),
            Reason::Last => f.write_str("one of the last"),
            Reason::Daily(day) => write!(f, "newest of {day}"),
            Reason::Weekly(year, week) => write!(f, "newest of week {year}-W{week:02}"),
            Reason::Monthly(year, month) => write!(f, "newest of {year}-{month:02}"),
            Reason::Yearly(year) => write!(f, "newest of {year}"),
            Reason::NotCounted(why) => write!(f, "left alone: {why}"),
            Reason::Differs(why) => write!(f, "takes no place of another: {why}"),
            Reason::Frozen => f.write_str("no rule keeps it, but nothing is removed now"),
            Reason::Unneeded => f.write_str("no rule keeps it"),
        }
    }
}

impl Plan {
    /// Sets dated in the future, newest first.
    pub fn ahead(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|d| d.reasons.contains(&Reason::Future))
    }

    /// The sets that go, oldest first: that is the order to remove them in.
    pub fn removed(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().rev().filter(|d| !d.keep)
    }
}

/// Decides about every set of one job. With `accept_shrink` a newest set that lacks a database, or has
/// much less of one than is usual, does not freeze the plan.
pub fn plan(sets: &[Candidate], rules: &Retention, now: DateTime<Utc>, accept_shrink: bool) -> Plan {
    let mut ordered: Vec<&Candidate> = sets.iter().collect();
    // Two sets of one instant: the id decides, so that the same sets always give the same plan.
    ordered.sort_by(|a, b| (b.time, &b.id).cmp(&(a.time, &a.id)));

    let is_ahead = |set: &Candidate| is_from_future(set.time, now);
    let past: Vec<&Candidate> = ordered.iter().copied().filter(|set| !is_ahead(set)).collect();
    let mut frozen = None;
    if *rules == Retention::default() {
        frozen = Some("the retention has no rule".to_owned());
    } else if let Some(newest) = past.iter().find(|set| !matches!(set.standing, Standing::Unfinished(_)))
        && let Standing::NotCounted(why) | Standing::Partial(why) = &newest.standing
    {
        frozen = Some(format!("the newest set, {}, does not count: {why}", newest.id));
    } else if let Some((id, why)) = differing(&past) {
        frozen = Some(format!(
            "no newer set than {id} is proven, of which a rehearsal says: {why} (back up, and rehearse the new set: \
             `opsd restore --verify`)"
        ));
    } else if !accept_shrink {
        frozen = shrunk(&past);
    }

    let mut seen = Seen::default();
    let decisions = ordered
        .iter()
        .map(|set| {
            let said = match &set.standing {
                Standing::NotCounted(why) | Standing::Unfinished(why) | Standing::Partial(why) => {
                    Some(Reason::NotCounted(why.clone()))
                }
                Standing::Differs(why) => Some(Reason::Differs(why.clone())),
                Standing::Complete { .. } => None,
            };
            let mut kept_by = match &set.standing {
                _ if is_ahead(set) => vec![Reason::Future],
                Standing::NotCounted(_) | Standing::Unfinished(_) => Vec::new(),
                Standing::Complete { proven, .. } => seen.reasons(set.time, *proven, rules),
                Standing::Differs(_) | Standing::Partial(_) => seen.clone().reasons(set.time, false, rules),
            };
            let is_left_alone = matches!(set.standing, Standing::NotCounted(_) | Standing::Unfinished(_));
            let unneeded = kept_by.is_empty() && !is_left_alone;
            if unneeded {
                kept_by.push(if frozen.is_some() { Reason::Frozen } else { Reason::Unneeded });
            }
            let reasons = said.into_iter().chain(kept_by).collect();
            let keep = !unneeded || frozen.is_some();
            Decision { id: set.id.clone(), time: set.time, keep, reasons }
        })
        .collect();
    Plan { frozen, decisions }
}

/// What the rules have kept so far, walking from the newest set to the oldest.
#[derive(Default, Clone)]
struct Seen {
    sets: u64,
    proven: bool,
    days: BTreeSet<NaiveDate>,
    weeks: BTreeSet<(i32, u32)>,
    months: BTreeSet<(i32, u32)>,
    years: BTreeSet<i32>,
}

impl Seen {
    fn reasons(&mut self, time: DateTime<Utc>, proven: bool, rules: &Retention) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if self.sets == 0 {
            reasons.push(Reason::NewestComplete);
        }
        if proven && !self.proven {
            reasons.push(Reason::NewestProven);
        }
        self.proven |= proven;
        if self.sets < u64::from(rules.last) {
            reasons.push(Reason::Last);
        }
        self.sets += 1;
        let day = time.date_naive();
        let week = (day.iso_week().year(), day.iso_week().week());
        let month = (day.year(), day.month());
        if first_of(&mut self.days, day, rules.daily) {
            reasons.push(Reason::Daily(day));
        }
        if first_of(&mut self.weeks, week, rules.weekly) {
            reasons.push(Reason::Weekly(week.0, week.1));
        }
        if first_of(&mut self.months, month, rules.monthly) {
            reasons.push(Reason::Monthly(month.0, month.1));
        }
        if first_of(&mut self.years, day.year(), rules.yearly) {
            reasons.push(Reason::Yearly(day.year()));
        }
        reasons
    }
}

/// The newest set that differs, where none after it is proven, and what was found.
fn differing<'c>(past: &[&'c Candidate]) -> Option<(&'c str, &'c str)> {
    let is_proven = |set: &&&Candidate| matches!(set.standing, Standing::Complete { proven: true, .. });
    past.iter().take_while(|set| !is_proven(set)).find_map(|set| match &set.standing {
        Standing::Differs(why) => Some((set.id.as_str(), why.as_str())),
        Standing::Complete { .. }
        | Standing::Partial(_)
        | Standing::Unfinished(_)
        | Standing::NotCounted(_) => None,
    })
}

/// Whether this is the newest set of its period and the period one of the last `limit`.
fn first_of<T: Ord>(seen: &mut BTreeSet<T>, period: T, limit: u32) -> bool {
    (seen.len() as u64) < u64::from(limit) && seen.insert(period)
}

/// Says so where the newest set lacks a database that most of the sets before it have, or has less
/// than half of the bytes or rows that they usually have of it. A dump that lost most of its content
/// must not push the whole ones out, and a small database must not vanish beside a large one. The
/// median follows a change that lasts, so the freeze ends by itself after a few more sets.
fn shrunk(ordered: &[&Candidate]) -> Option<String> {
    let mut complete = ordered.iter().filter_map(|set| match &set.standing {
        Standing::Complete { databases, .. } => Some((&set.id, databases)),
        Standing::Differs(_) | Standing::Partial(_) | Standing::Unfinished(_) | Standing::NotCounted(_) => {
            None
        }
    });
    let (id, newest) = complete.next()?;
    let before: Vec<_> = complete.take(HISTORY).map(|(_, databases)| databases).collect();
    let names: BTreeSet<&String> = before.iter().flat_map(|databases| databases.keys()).collect();
    names.into_iter().find_map(|name| {
        let amounts: Vec<Amount> =
            before.iter().filter_map(|databases| databases.get(name)).copied().collect();
        let what = match newest.get(name) {
            None if amounts.len() * 2 > before.len() => {
                format!(
                    "lacks database {name:?}, which {} of the {} before it have",
                    amounts.len(),
                    before.len()
                )
            }
            None => return None,
            Some(now) => lost(name, *now, &amounts)?,
        };
        Some(format!("the newest set, {id}, {what} (--accept-shrink, once you know that this is right)"))
    })
}

/// What is less than half of what is usual.
fn lost(name: &str, now: Amount, before: &[Amount]) -> Option<String> {
    let usual_bytes = median(before.iter().map(|a| a.bytes).collect())?;
    if now.bytes < usual_bytes / 2 {
        return Some(format!(
            "has {} bytes of database {name:?} before compression where {usual_bytes} are usual",
            now.bytes
        ));
    }
    // Rows that nobody counted are unknown, not zero.
    let (rows, usual_rows) = (now.rows?, median(before.iter().filter_map(|a| a.rows).collect())?);
    (rows < usual_rows / 2)
        .then(|| format!("has {rows} rows of database {name:?} where {usual_rows} are usual"))
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests;
