//! `opsd backups scrub`: read every object again.

use std::collections::BTreeSet;
use std::fmt::Write;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::entries;
use crate::cli::output::{self, wrapped};
use crate::cli::{Global, progress};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::progress::Event;
use crate::set::catalog::{self, Entry, State};
use crate::set::scrub::{self, Report};
use crate::store::Store;

/// Arguments of `opsd backups scrub`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It needs no identity. Exit code 3 means that something differs,\nor that nobody who is trusted signed it."
)]
pub struct Args {
    /// Only these jobs [default: every job, also those that only the repository has]
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// Only this set: its id, the beginning of it, JOB/ID, or `latest` of each
    /// job [default: every complete set]
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    results: Vec<Outcome>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    job: String,
    id: String,
    /// Null, like the bytes, where it could not be read.
    objects: Option<u64>,
    bytes: Option<u64>,
    differences: Vec<String>,
    notes: Vec<String>,
    /// Why it is not believed, so that nothing of it was read.
    refused: Option<String>,
    /// Why it could not be read to its end.
    error: Option<String>,
}

/// Scrubs set after set; one that differs or cannot be read does not spare the others.
pub async fn run(args: &Args, config: &Config, store: &dyn Store, global: &Global) -> Result<()> {
    let bars = progress::bars(global, "listing");
    let events = bars.progress();
    let (jobs, id) = match args.backup.as_deref().and_then(|b| b.rsplit_once('/')) {
        Some((job, id)) => (vec![job.to_owned()], Some(id)),
        None => (args.jobs.clone(), args.backup.as_deref()),
    };
    let jobs = entries(config, store, &jobs).await?;
    let all: Vec<&Entry> = jobs.values().flatten().collect();
    let chosen = choose(&all, id, Utc::now())?;
    let mut document = Document { results: Vec::new() };
    let mut worst: Option<Error> = None;
    let mut differing = Vec::new();
    for (n, entry) in chosen.iter().enumerate() {
        events(Event::Phase(format!("reading set {} of {}", n + 1, chosen.len())));
        let siblings = jobs.get(&entry.job).map_or(&[][..], Vec::as_slice);
        let scrubbed = scrub::scrub(store, &config.encryption.trusted, entry, siblings, &events).await;
        let outcome = match scrubbed {
            Ok(report) => of_report(report),
            Err(error) => {
                let outcome = of_error(entry, &error);
                if worst.is_none() || error.kind() == Kind::Refused {
                    worst = Some(error.context(format!("set {}/{}", entry.job, entry.id)));
                }
                outcome
            }
        };
        if let Some(first) = outcome.differences.first() {
            differing.push(format!("set {}/{}: {first}", outcome.job, outcome.id));
        }
        document.results.push(outcome);
    }
    drop(bars);
    if args.json {
        output::json(&document)?;
    } else if !global.quiet {
        output::text(text(&document))?;
    }
    match (differing.first(), worst) {
        (None, None) => Ok(()),
        (None, Some(error)) => Err(error),
        (Some(first), _) => Err(Error::differs(match differing.len() {
            1 => first.clone(),
            n => format!("{n} sets differ from their manifests, the first of them: {first}"),
        })
        .with_kind(Kind::Differs)
        .with_hint("what differs does not restore; an older set, or another copy of the repository, may")),
    }
}

/// The sets that are meant, by job and id.
fn choose<'e>(all: &[&'e Entry], id: Option<&str>, now: DateTime<Utc>) -> Result<Vec<&'e Entry>> {
    let complete = || all.iter().copied().filter(|e| e.state == State::Complete);
    match id {
        None => Ok(complete().collect()),
        Some("latest") => {
            // Whether it may be relied on is what is to be found out; a clock that was ahead hides nothing.
            let jobs: BTreeSet<&str> = complete().map(|entry| entry.job.as_str()).collect();
            let newest = |job| catalog::newest_complete(complete().filter(|e| e.job == job), now);
            let latest: Vec<&Entry> = jobs
                .into_iter()
                .map(newest)
                .filter_map(|newest| newest.entry.or(newest.ahead.last().copied()))
                .collect();
            if latest.is_empty() {
                return Err(Error::new("there is no complete set")
                    .with_hint("`opsd backups list` shows what is there"));
            }
            Ok(latest)
        }
        Some(id) => {
            let entries: Vec<Entry> = all.iter().map(|e| (*e).clone()).collect();
            let found = catalog::find_entry(&entries, id)?;
            Ok(all.iter().copied().filter(|e| *e == found).collect())
        }
    }
}

fn of_report(report: Report) -> Outcome {
    Outcome {
        job: report.job,
        id: report.id,
        objects: Some(report.objects),
        bytes: Some(report.bytes),
        differences: report.differences,
        notes: report.notes,
        refused: None,
        error: None,
    }
}

fn of_error(entry: &Entry, error: &Error) -> Outcome {
    let is_refused = error.kind() == Kind::Refused;
    Outcome {
        job: entry.job.clone(),
        id: entry.id.clone(),
        objects: None,
        bytes: None,
        differences: Vec::new(),
        notes: Vec::new(),
        refused: is_refused.then(|| error.to_string()),
        error: (!is_refused).then(|| error.to_string()),
    }
}

fn text(document: &Document) -> String {
    let mut out = String::new();
    if document.results.is_empty() {
        out.push_str("there is no complete set to read\n");
    }
    for outcome in &document.results {
        let Outcome { job, id, objects, bytes, differences, notes, refused, error } = outcome;
        let what = match (error, &differences[..]) {
            _ if refused.is_some() => "refused".to_owned(),
            (Some(_), _) => "not read".to_owned(),
            (None, []) => {
                let (objects, bytes) = (objects.unwrap_or_default(), bytes.unwrap_or_default());
                format!("as written, {} in {objects} objects", output::size(bytes))
            }
            (None, [_]) => "differs".to_owned(),
            (None, several) => format!("differs in {} places", several.len()),
        };
        let _ = write!(out, "{}", wrapped(&format!("{job}/{id}  "), &what));
        for line in differences.iter().chain(refused).chain(error) {
            out.push_str(&wrapped("  ! ", line));
        }
        for line in notes {
            out.push_str(&wrapped("  - ", line));
        }
    }
    out
}
