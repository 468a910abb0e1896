//! `opsd backups forget`: remove sets that are named, once it is sure that nothing rests on them.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{entries, locks_unknown, named, removed, under_lease};
use crate::backup::forget;
use crate::cli::Global;
use crate::cli::output::{self, counted, wrapped};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::shutdown::Shutdown;
use crate::store::Store;

/// Arguments of `opsd backups forget`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sets, by their ids, the beginnings of them, or JOB/ID
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Print the plan and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    dry_run: bool,
    sets: Vec<Line>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    job: String,
    id: String,
    started: DateTime<Utc>,
    /// `keep` or `remove`.
    action: &'static str,
    /// Whether it may be relied on.
    standing: String,
    /// Why it stays, where it does.
    stays: Option<String>,
    bytes: u64,
    /// Whether it is gone; null where nothing was tried.
    removed: Option<bool>,
    error: Option<String>,
    /// Objects in its folder that opsd did not write, and leaves.
    foreign: Vec<String>,
}

/// Plans, prints, and removes what may go.
pub async fn run(
    args: &Args,
    config: &Config,
    store: &dyn Store,
    now: DateTime<Utc>,
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let work = planned_and_followed(args, config, store, now, global, shutdown);
    under_lease(args.dry_run, config, store, "backups forget", global, shutdown, work).await
}

async fn planned_and_followed(
    args: &Args,
    config: &Config,
    store: &dyn Store,
    now: DateTime<Utc>,
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let (items, unknown) = shutdown.guard(plan(args, config, store, now)).await?;
    let mut document = Document {
        dry_run: args.dry_run,
        sets: items.iter().map(line).collect(),
        warnings: unknown.as_deref().map(locks_unknown).into_iter().collect(),
    };
    let say = |text: String| if args.json || global.quiet { Ok(()) } else { output::text(text) };
    say(document.sets.iter().map(text).collect())?;
    if !global.quiet {
        document.warnings.iter().for_each(|warning| output::note("warning: ", warning));
    }
    if !args.dry_run {
        for (item, line) in items.iter().zip(&mut document.sets).filter(|(item, _)| item.stays.is_none()) {
            if shutdown.is_requested() {
                break;
            }
            (line.removed, line.error) = removed(store, &item.removal, shutdown).await;
        }
    }
    let gone = document.sets.iter().filter(|line| line.removed == Some(true));
    say(match gone.clone().count() {
        0 if args.dry_run => "nothing was removed (dry run)".to_owned(),
        0 => "nothing was removed".to_owned(),
        n => {
            let freed = output::size(gone.map(|line| line.bytes).sum());
            format!("removed {} ({freed})", counted(n as u64, "set"))
        }
    })?;
    if args.json {
        output::json(&document)?;
    }
    if shutdown.is_requested() {
        return Err(shutdown.error().context("stopped early"));
    }
    let failed = document.sets.iter().find_map(|line| Some((line, line.error.as_ref()?)));
    if let Some((line, error)) = failed {
        return Err(Error::new(error).context(format!("set {} could not be removed", line.id)));
    }
    match document.sets.iter().find_map(|line| Some((line, line.stays.as_ref()?))) {
        None => Ok(()),
        Some((line, why)) => Err(Error::refused(why).context(format!("set {} stays", line.id))),
    }
}

async fn plan(
    args: &Args,
    config: &Config,
    store: &dyn Store,
    now: DateTime<Utc>,
) -> Result<(Vec<forget::Item>, Option<String>)> {
    let mut jobs = entries(config, store, &[]).await?;
    let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for id in &args.ids {
        let entry = named(&jobs, id)?;
        wanted.entry(entry.job.clone()).or_default().insert(entry.id.clone());
    }
    let (mut items, mut unknown) = (Vec::new(), None);
    for (job, ids) in wanted {
        let of_job = jobs.remove(&job).unwrap_or_default();
        let (found, why) = forget::plan(store, &config.encryption.trusted, of_job, &ids, now).await?;
        items.extend(found);
        unknown = unknown.or(why);
    }
    Ok((items, unknown))
}

fn line(item: &forget::Item) -> Line {
    Line {
        job: item.job.clone(),
        id: item.id.clone(),
        started: item.started,
        action: if item.stays.is_some() { "keep" } else { "remove" },
        standing: item.standing.clone(),
        stays: item.stays.clone(),
        bytes: item.removal.bytes,
        removed: None,
        error: None,
        foreign: item.removal.foreign.clone(),
    }
}

fn text(line: &Line) -> String {
    let head = format!("  {:<6}  {}/{}  ", line.action, line.job, line.id);
    let why = match &line.stays {
        Some(stays) => stays.clone(),
        None => format!("{}, {}", output::size(line.bytes), line.standing),
    };
    let mut out = wrapped(&head, &why);
    if !line.foreign.is_empty() {
        let left = format!("opsd did not write these, and leaves them: {}", line.foreign.join(", "));
        out.push_str(&wrapped("          ! ", &left));
    }
    out
}
