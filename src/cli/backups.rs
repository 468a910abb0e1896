//! `opsd backups`: what is in the repository, whether it is still as it was, and removing what nobody
//! needs.

mod adopt;
mod cat;
mod forget;
mod list;
mod prune;
mod scrub;
mod show;
mod sweep;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Global, output};
use crate::backup::prune::{self as prune_sets, Removal};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::printable;
use crate::set::catalog::{self, Entry, Loaded};
use crate::set::manifest::{Manifest, ProofState};
use crate::set::verification::Verdict;
use crate::shutdown::Shutdown;
use crate::store::lease::{self, Acquired};
use crate::store::{self, Store};

/// Arguments of `opsd backups`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the sets of every job, or of some
    List(list::Args),
    /// Tell everything about one set
    Show(show::Args),
    /// Decrypt and decompress one stream to stdout
    Cat(cat::Args),
    /// Remove the sets that retention does not keep
    Prune(prune::Args),
    /// Read every object again and compare it with its set's manifest
    Scrub(scrub::Args),
    /// Remove what runs that were killed left behind
    Sweep(sweep::Args),
    /// Sign sets of before signing began, so that they are believed
    Adopt(adopt::Args),
    /// Remove sets that are named, unless something rests on them
    Forget(forget::Args),
}

/// Runs the command.
pub async fn run(args: Args, config: &Config, global: &Global, shutdown: &Shutdown) -> Result<()> {
    let store = store::open(&config.repository).await?;
    let now = Utc::now();
    match args.command {
        Command::List(args) => shutdown.guard(list::run(&args, config, &*store, now)).await,
        Command::Show(args) => shutdown.guard(show::run(&args, config, &*store, now)).await,
        Command::Cat(args) => shutdown.guard(cat::run(&args, config, store)).await,
        Command::Prune(args) => prune::run(&args, config, &*store, now, global, shutdown).await,
        Command::Scrub(args) => shutdown.guard(scrub::run(&args, config, &*store, global)).await,
        Command::Adopt(args) => shutdown.guard(adopt::run(&args, config, store, global)).await,
        Command::Forget(args) => forget::run(&args, config, &*store, now, global, shutdown).await,
        Command::Sweep(args) => sweep::run(&args, config, &*store, global, shutdown).await,
    }
}

/// Does work that removes things, under the site's lease; a dry run needs none. Where the store has none, that is said
/// once.
async fn under_lease<T>(
    dry_run: bool,
    config: &Config,
    store: &dyn Store,
    command: &str,
    global: &Global,
    shutdown: &Shutdown,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    if dry_run {
        return work.await;
    }
    let key = crate::set::lease_key(&config.site);
    match shutdown.guard(lease::acquire(store, &key, command, lease::DURATION)).await? {
        Acquired::Held(mut lease) => {
            let result = lease.hold(work).await;
            lease.release().await;
            result
        }
        Acquired::Impossible(why) => {
            if !global.quiet {
                output::note(
                    "warning: ",
                    format!("no lease is taken: {why}; see that no other prune or sweep runs now"),
                );
            }
            work.await
        }
    }
}

/// Removes a set: whether it is gone, and why not.
async fn removed(
    store: &dyn Store,
    removal: &Removal,
    shutdown: &Shutdown,
) -> (Option<bool>, Option<String>) {
    let removed = shutdown.guard(prune_sets::remove(store, removal)).await;
    (Some(removed.is_ok()), removed.err().map(|error| error.to_string()))
}

/// What is said where the credential may not ask what is locked.
fn locks_unknown(why: &str) -> String {
    format!(
        "whether anything of this is locked is not known, and what is locked is hidden instead of deleted \
         (the credential needs s3:GetObjectRetention): {why}"
    )
}

/// One set in JSON. What is not known is null, never zero.
#[derive(Debug, Serialize)]
struct Summary {
    job: String,
    id: String,
    /// `complete`, `incomplete`, `failed`, or `refused`: there is a manifest, and it is not believed.
    state: &'static str,
    /// Why it is refused.
    error: Option<String>,
    /// Whether it may be relied on: `sound`, `ahead` (dated in the future), `incomplete`, `failed`, `refused`,
    /// `lacking` (objects), `differs` (as a rehearsal found), or `unknown` (what a rehearsal found).
    reliance: &'static str,
    /// Why it may not.
    doubt: Option<String>,
    started: DateTime<Utc>,
    finished: Option<DateTime<Utc>>,
    databases: Vec<SummaryDatabase>,
    tables: Option<u64>,
    rows: Option<u64>,
    plain_bytes: Option<u64>,
    /// Of the objects that the manifest names, as `opsd backup` says them.
    stored_bytes: Option<u64>,
    /// Of all that lies in its folder: with manifest, signature, records of rehearsals, and the rest.
    occupied_bytes: u64,
    proof: Option<ProofState>,
    verified: Option<SummaryVerified>,
    /// The newest rehearsal, where that one failed.
    failed_rehearsal: Option<SummaryFailed>,
    signature: Option<&'static str>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SummaryDatabase {
    name: String,
    tables: u64,
    rows: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct SummaryVerified {
    verdict: &'static str,
    time: DateTime<Utc>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct SummaryFailed {
    time: DateTime<Utc>,
    reason: Option<String>,
}

impl SummaryFailed {
    fn of_set(set: &Loaded) -> Option<Self> {
        let newest = set.verifications.last().filter(|newest| newest.verdict == Verdict::Failed)?;
        Some(Self { time: newest.finished, reason: newest.reason.clone().map(shortened) })
    }
}

impl Summary {
    fn new(entry: &Entry, loaded: &Result<Loaded>, now: DateTime<Utc>) -> Self {
        let summary = match loaded {
            Ok(set) => Self::of_set(set),
            Err(error) => Self::of_entry(entry, error),
        };
        let reliance = catalog::reliance(entry, loaded, now);
        let doubt = (!reliance.is_sound()).then(|| shortened(reliance.to_string()));
        Self { reliance: reliance.as_str(), doubt, ..summary }
    }

    fn of_entry(entry: &Entry, error: &Error) -> Self {
        use crate::set::catalog::State;
        let refused = entry.state == State::Complete;
        Self {
            job: entry.job.clone(),
            id: entry.id.clone(),
            state: if refused { "refused" } else { entry.state.as_str() },
            error: refused.then(|| error.to_string()),
            reliance: "",
            doubt: None,
            started: entry.id_time(),
            finished: None,
            databases: Vec::new(),
            tables: None,
            rows: None,
            plain_bytes: None,
            stored_bytes: None,
            occupied_bytes: entry.occupied_bytes(),
            proof: None,
            verified: None,
            failed_rehearsal: None,
            signature: None,
            warnings: Vec::new(),
        }
    }

    fn of_set(set: &Loaded) -> Self {
        let manifest = &set.manifest;
        let databases = manifest.databases.iter().map(|d| SummaryDatabase {
            name: d.name.clone(),
            tables: d.tables,
            rows: d.rows,
            bytes: d.bytes,
        });
        Self {
            job: set.entry.job.clone(),
            id: set.entry.id.clone(),
            state: set.entry.state.as_str(),
            error: None,
            reliance: "",
            doubt: None,
            started: manifest.started,
            finished: Some(manifest.finished),
            databases: databases.collect(),
            tables: rows_known(manifest).then(|| manifest.databases.iter().map(|d| d.tables).sum()),
            rows: rows_known(manifest).then(|| manifest.databases.iter().map(|d| d.rows).sum()),
            plain_bytes: Some(manifest.plain_bytes()),
            stored_bytes: Some(manifest.stored_bytes()),
            occupied_bytes: set.entry.occupied_bytes(),
            proof: Some(manifest.proof()),
            verified: set.verified().map(|v| SummaryVerified {
                verdict: v.verdict.as_str(),
                time: v.finished,
                seconds: v.total_seconds(),
            }),
            failed_rehearsal: SummaryFailed::of_set(set),
            signature: Some(set.signature.as_str()),
            warnings: some_warnings(set),
        }
    }
}

/// Without a fingerprint nobody counted the rows.
fn rows_known(manifest: &Manifest) -> bool {
    manifest.proof() != ProofState::None
}

/// Warnings of one set in a list, and characters of one: a list holds many sets in memory, and a
/// manifest may be large. `backups show` has all of them.
const MOST_WARNINGS: usize = 50;
const LONGEST_WARNING: usize = 500;

/// The same, as far as a list has room.
fn some_warnings(set: &Loaded) -> Vec<String> {
    let all = warnings(set);
    let more = all.len().saturating_sub(MOST_WARNINGS);
    let mut some: Vec<String> = all.into_iter().take(MOST_WARNINGS).map(shortened).collect();
    if more > 0 {
        some.push(format!("and {more} more: `opsd backups show {}`", set.entry.id));
    }
    some
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(LONGEST_WARNING) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The manifest's warnings, and what the repository itself gives reason to warn of.
fn warnings(set: &Loaded) -> Vec<String> {
    let mut warnings = set.manifest.warnings.clone();
    warnings.extend(set.missing().iter().map(|key| format!("object {key} is missing or has another size")));
    warnings.extend(set.ignored.iter().map(|(name, why)| format!("{name} does not count: {why}")));
    warnings
}

/// `3h`, `12d`: how long ago, in at most four columns.
fn age(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - time).num_seconds();
    match seconds {
        ..0 => "soon".to_owned(),
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        172_800..86_400_000 => format!("{}d", seconds / 86_400),
        _ => format!("{}y", seconds / 31_557_600),
    }
}

/// `3h ago`, in at most eight columns.
fn ago(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let age = age(time, now);
    if time > now { age } else { format!("{age} ago") }
}

/// `950`, `1.2M`: a number in at most six columns.
fn short_count(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 999.5 {
            return if unit.is_empty() || value >= 99.95 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.0}P")
}

/// A time for people, in UTC.
fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The set among these that an id, the beginning of just one id, or `JOB/ID` means.
fn named<'e>(jobs: &'e std::collections::BTreeMap<String, Vec<Entry>>, id: &str) -> Result<&'e Entry> {
    let (job, id) = id.rsplit_once('/').map_or((None, id), |(job, id)| (Some(job), id));
    let of_job = jobs.iter().filter(|(name, _)| job.is_none_or(|job| job == name.as_str()));
    let all: Vec<Entry> = of_job.flat_map(|(_, entries)| entries.iter().cloned()).collect();
    let found = catalog::find_entry(&all, id)?;
    let same = |entry: &&Entry| (&entry.job, &entry.id) == (&found.job, &found.id);
    jobs.values().flatten().find(same).ok_or_else(|| Error::new("the listing changed while it was read"))
}

/// Sets of the jobs that are meant, by job: the configured ones and those that the repository has.
/// A name that is neither is an error.
async fn entries(
    config: &Config,
    store: &dyn Store,
    jobs: &[String],
) -> Result<std::collections::BTreeMap<String, Vec<Entry>>> {
    let mut found = crate::set::catalog::jobs(store, &config.site).await?;
    for job in config.backup.keys() {
        found.entry(job.clone()).or_default();
    }
    if let Some(unknown) = jobs.iter().find(|job| !found.contains_key(*job)) {
        let known: Vec<&str> = found.keys().map(String::as_str).collect();
        return Err(Error::usage(format!(
            "no job {} in the configuration or the repository",
            printable::word(unknown)
        ))
        .with_hint(format!(
            "there is {}",
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        )));
    }
    if !jobs.is_empty() {
        found.retain(|job, _| jobs.contains(job));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_fit_four_columns() {
        let now: DateTime<Utc> = "2026-11-21T12:00:00Z".parse().unwrap();
        let ago = |seconds| age(now - chrono::TimeDelta::seconds(seconds), now);
        assert_eq!(ago(-1), "soon");
        assert_eq!(ago(0), "0s");
        assert_eq!(ago(59), "59s");
        assert_eq!(ago(3599), "59m");
        assert_eq!(ago(172_799), "47h");
        assert_eq!(ago(172_800), "2d");
        assert_eq!(ago(86_399_999), "999d");
        assert_eq!(ago(86_400_000), "2y");
    }

    #[test]
    fn counts_fit_six_columns() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (1_234_567_890, "1.2G"),
            (u64::MAX, "18447P"),
        ] {
            assert_eq!(short_count(number), text);
        }
    }
}
