//! `opsd backups sweep`: print the plan, then follow it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{entries, locks_unknown, under_lease};
use crate::backup::sweep::{self, Found, Item};
use crate::cli::Global;
use crate::cli::output::{self, counted, wrapped};
use crate::config::Config;
use crate::config::units::parse_duration;
use crate::error::{Error, Result};
use crate::shutdown::Shutdown;
use crate::store::Store;

/// Arguments of `opsd backups sweep`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Complete sets, what opsd did not write, and other sites are never touched.")]
pub struct Args {
    /// Only these jobs [default: every job, also those that only the repository
    /// has, and what interrupted probes left]
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// Only what nothing was written to for so long, by the store's clock; at least 1h
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_age)]
    older_than: Duration,
    /// Print the plan and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

fn parse_age(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        age if age < sweep::LEAST_AGE => {
            Err("at least 1h: a run that is under way may show no sign of life for almost that long".into())
        }
        age => Ok(age),
    }
}

#[derive(Debug, Serialize)]
struct Document {
    site: String,
    dry_run: bool,
    older_than_seconds: u64,
    items: Vec<Line>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    /// `JOB/ID`, or a probe's folder.
    place: String,
    /// `remove` or `keep`.
    action: &'static str,
    reason: String,
    /// Keys of objects that go.
    objects: Vec<String>,
    /// Keys of unfinished uploads that go.
    uploads: Vec<String>,
    bytes: u64,
    /// Until when objects of it cannot be deleted, where they would go otherwise.
    locked_until: Option<DateTime<Utc>>,
    /// Objects that opsd did not write, and leaves.
    foreign: Vec<String>,
    /// Whether it is gone; null where nothing was tried.
    removed: Option<bool>,
    error: Option<String>,
}

/// Plans, prints, and removes what the plan says, the oldest first.
pub async fn run(
    args: &Args,
    config: &Config,
    store: &dyn Store,
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let work = planned_and_followed(args, config, store, global, shutdown);
    if args.dry_run {
        return shutdown.guard(work).await;
    }
    under_lease(false, config, store, "backups sweep", global, shutdown, work).await
}

async fn planned_and_followed(
    args: &Args,
    config: &Config,
    store: &dyn Store,
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let say = |text: String| if args.json || global.quiet { Ok(()) } else { output::text(text) };
    let found = shutdown.guard(find(args, config, store)).await?;
    let mut items = sweep::plan(&found, &config.site, &args.jobs, args.older_than);
    let unknown = shutdown.guard(sweep::keep_locked(store, &mut items)).await?;
    let unlisted = found.uploads_unknown.iter().map(|why| format!("{UPLOADS_UNKNOWN}: {why}"));
    let mut document = Document {
        site: config.site.clone(),
        dry_run: args.dry_run,
        older_than_seconds: args.older_than.as_secs(),
        items: items.iter().map(line).collect(),
        warnings: unlisted.chain(unknown.as_deref().map(locks_unknown)).collect(),
    };
    say(text(&document))?;
    if !global.quiet {
        document.warnings.iter().for_each(|warning| output::note("warning: ", warning));
    }
    if !args.dry_run {
        for (item, line) in items.iter().zip(&mut document.items).filter(|(item, _)| item.goes()) {
            if shutdown.is_requested() {
                break;
            }
            let removed = shutdown.guard(sweep::remove(store, item)).await;
            line.removed = Some(removed.is_ok());
            if let Err(error) = removed {
                say(wrapped("  ! ", &format!("{}: {error}", item.place)))?;
                line.error = Some(error.to_string());
            }
        }
    }
    say(outcome(&document))?;
    if args.json {
        output::json(&document)?;
    }
    if shutdown.is_requested() {
        return Err(shutdown.error().context("sweeping stopped early"));
    }
    let failed: Vec<&Line> = document.items.iter().filter(|l| l.error.is_some()).collect();
    match failed[..] {
        [] => Ok(()),
        [first, ..] => Err(Error::new(format!(
            "{} of {} could not be removed: {}",
            failed.len(),
            items.iter().filter(|i| i.goes()).count(),
            first.error.as_deref().unwrap_or_default()
        ))
        .with_hint("what is left of it is swept the next time")),
    }
}

const UPLOADS_UNKNOWN: &str = "unfinished uploads are not swept, because they cannot be listed (a lifecycle \
                               rule that aborts incomplete multipart uploads does it)";

async fn find(args: &Args, config: &Config, store: &dyn Store) -> Result<Found> {
    if !args.jobs.is_empty() {
        // Says so where a named job exists nowhere.
        entries(config, store, &args.jobs).await?;
    }
    sweep::find(store, &config.site).await
}

fn line(item: &Item) -> Line {
    Line {
        place: item.place.clone(),
        action: if item.goes() { "remove" } else { "keep" },
        reason: item.reason.clone(),
        objects: item.keys.clone(),
        uploads: item.uploads.iter().map(|u| u.key.clone()).collect(),
        bytes: item.bytes,
        locked_until: item.locked_until,
        foreign: item.foreign.clone(),
        removed: None,
        error: None,
    }
}

/// What was done, which the plan alone does not tell.
fn outcome(document: &Document) -> String {
    match amount(document, |line| line.removed == Some(true)) {
        Some(amount) => format!("removed {amount}"),
        None if document.dry_run => "nothing was removed (dry run)".to_owned(),
        None => "nothing was removed".to_owned(),
    }
}

/// How much these lines are in all; nothing where there are none.
fn amount(document: &Document, is_meant: impl Fn(&Line) -> bool) -> Option<String> {
    let lines: Vec<&Line> = document.items.iter().filter(|line| is_meant(line)).collect();
    let objects: usize = lines.iter().map(|l| l.objects.len()).sum();
    let uploads: usize = lines.iter().map(|l| l.uploads.len()).sum();
    let freed = output::size(lines.iter().map(|l| l.bytes).sum());
    (!lines.is_empty()).then(|| {
        let uploads = counted(uploads as u64, "unfinished upload");
        format!("{} ({freed}) and {uploads}", counted(objects as u64, "object"))
    })
}

fn text(document: &Document) -> String {
    let mut out = match amount(document, |line| line.action == "remove") {
        None => format!("site {}: nothing to sweep\n", document.site),
        Some(amount) => format!("site {}: {amount} to sweep\n", document.site),
    };
    for line in &document.items {
        out.push_str(&wrapped(&format!("  {:<6}  {}  ", line.action, line.place), &line.reason));
        if !line.foreign.is_empty() {
            let left = format!("opsd did not write these, and leaves them: {}", line.foreign.join(", "));
            out.push_str(&wrapped("          ! ", &left));
        }
    }
    out
}
