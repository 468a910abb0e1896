//! Which set of a job is meant: by its id, as the latest, as of a time.

use chrono::{DateTime, Utc};
use futures_util::StreamExt;

use super::{Entry, Loaded, State, is_from_future, load_each, load_entry, sets};
use crate::config::Trusted;
use crate::error::{Error, Kind, Result};
use crate::printable;
use crate::store::Store;

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
pub struct Newest<'e> {
    /// It, those from the future left out.
    pub entry: Option<&'e Entry>,
    /// Complete sets from the future, oldest first.
    pub ahead: Vec<&'e Entry>,
}

/// The newest complete set of a job's as of `now`, by the listing alone: whether it may be relied on, nobody
/// has read yet.
pub fn newest_complete<'e>(entries: impl IntoIterator<Item = &'e Entry>, now: DateTime<Utc>) -> Newest<'e> {
    let complete = entries.into_iter().filter(|e| e.state == State::Complete);
    let (mut ahead, past): (Vec<&Entry>, Vec<&Entry>) =
        complete.partition(|e| is_from_future(e.id_time(), now));
    ahead.sort_by(|a, b| a.id.cmp(&b.id));
    Newest { entry: past.into_iter().max_by(|a, b| a.id.cmp(&b.id)), ahead }
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
/// For a restore of the latest, or as of a time, a set that may not be relied on ([`Loaded::reliance`]), or that is refused
/// (damaged, not trusted, too new), is not passed over in silence where it could have been the one: that is an
/// error, and to name it, or an older set, by its id is the operator's decision. Sets from the future are
/// passed over with a warning, unless there is nothing else: then it is rather this clock that is wrong.
pub async fn find(
    store: &dyn Store,
    trusted: &Trusted,
    site: &str,
    job: &str,
    selector: &Selector,
    wanted_for: Use,
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
            .with_hint("`opsd restore` alone lists the sites and jobs that the repository holds"));
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
    let mut passed_over: Option<PassedOver> = None;
    let mut pass_over = |id: String, started, why| {
        if passed_over.as_ref().is_none_or(|p| (p.started, &p.id) <= (started, &id)) {
            passed_over = Some(PassedOver { id, started, why });
        }
    };
    let mut ahead = Vec::new();
    let mut sets = std::pin::pin!(load_each(store, trusted, complete));
    while let Some((entry, loaded)) = sets.next().await {
        match loaded {
            Ok(set) if until.is_none_or(|time| set.as_of() <= time) => {
                let order = |s: &Loaded| (s.manifest.started, s.entry.id.clone());
                let reliance = set.reliance(now);
                let is_ahead = is_from_future(set.manifest.started, now);
                if is_ahead {
                    ahead.push(entry.id.clone());
                }
                if wanted_for == Use::Restore && reliance.is_flawed() {
                    if !is_ahead {
                        let kind = if reliance.is_known() { Kind::Differs } else { Kind::Failed };
                        let why = Error::new(format!("set {} may not be relied on: {reliance}", entry.id));
                        pass_over(entry.id, set.manifest.started, why.with_kind(kind));
                    }
                    continue;
                }
                let best = if is_ahead { &mut from_future } else { &mut chosen };
                if best.as_ref().is_none_or(|b| order(b) < order(&set)) {
                    *best = Some(set);
                }
            }
            Ok(_) => {}
            Err(_) if is_from_future(entry.id_time(), now) => ahead.push(entry.id),
            // Only its id tells when it started; the latest of the refused ones is named.
            Err(error) if until.is_none_or(|time| entry.id_time() <= time) => {
                let started = entry.id_time();
                pass_over(entry.id, started, error.context("a set is refused"));
            }
            Err(_) => {}
        }
    }
    if let Some(warning) = ahead_warning(&ahead) {
        tracing::warn!("job {job}: {warning}");
    }
    if let Some(PassedOver { id, started, why }) = passed_over
        && chosen.as_ref().is_none_or(|c| started >= c.manifest.started)
    {
        return Err(match chosen {
            Some(c) => {
                let older = &c.entry.id;
                why.context(format!(
                    "not the newest set that may be relied on, {older}, is the newest of all"
                ))
                .with_hint(format!(
                    "--backup {older} takes that one, which lacks what came after it; --backup {id} asks for \
                         the newer one all the same"
                ))
            }
            None => why.with_hint(format!("--backup {id} asks for it all the same")),
        });
    }
    chosen.or(from_future).ok_or_else(|| match until {
        None => Error::new(format!("job {job:?} has no complete set: {ids}")),
        Some(time) => Error::new(format!("job {job:?} has no complete set from {time} or earlier: {ids}")),
    })
}

/// What a set is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It is to be relied on.
    Restore,
    /// What an earlier rehearsal found, and what is missing, is no reason to leave the newest set alone: to find
    /// out about that one is what a rehearsal is for, and what it finds now counts from now on.
    Rehearsal,
}

/// The newest set that is not taken, and why.
struct PassedOver {
    id: String,
    /// When it was started; by its id, where its manifest is not believed.
    started: DateTime<Utc>,
    why: Error,
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

/// The newest ids for messages, with what a listing tells against them. Whether one that has a manifest is
/// believed, it does not tell.
fn some_ids(entries: &[Entry]) -> String {
    const SHOWN: usize = 5;
    let mut newest: Vec<&Entry> = entries.iter().collect();
    newest.sort_by_key(|e| std::cmp::Reverse((e.id_time(), &e.id)));
    let shown = |e: &&Entry| match e.state {
        State::Complete => format!("{} ({})", e.id, e.job),
        State::Incomplete | State::Failed => format!("{} ({}, {})", e.id, e.job, e.state.as_str()),
    };
    let mut ids: Vec<String> = newest.iter().take(SHOWN).map(shown).collect();
    if newest.len() > SHOWN {
        ids.push(format!("and {} more", newest.len() - SHOWN));
    }
    if ids.is_empty() { "there is none".to_owned() } else { format!("there is {}", ids.join(", ")) }
}
