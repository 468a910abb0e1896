//! `opsd backups prune`: print the plan, then follow it.

use std::fmt::Write;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{entries, wrapped};
use crate::backup::prune::{self, JobPlan};
use crate::cli::{Global, output};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::shutdown::Shutdown;
use crate::store::Store;

/// Arguments of `opsd backups prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these jobs [default: every job that has a retention]
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// Print the plan and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Prune although the newest set is much smaller than usual
    #[arg(long)]
    accept_shrink: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    dry_run: bool,
    jobs: Vec<Job>,
}

#[derive(Debug, Serialize)]
struct Job {
    job: String,
    /// Why nothing is removed, where that is so.
    frozen: Option<String>,
    sets: Vec<Set>,
    refused: Vec<Refused>,
}

#[derive(Debug, Serialize)]
struct Set {
    id: String,
    time: DateTime<Utc>,
    /// `keep` or `remove`.
    action: &'static str,
    reasons: Vec<String>,
    /// Bytes that removing it frees.
    bytes: Option<u64>,
    /// Whether it is gone; null where nothing was tried.
    removed: Option<bool>,
    error: Option<String>,
    /// Objects in its folder that opsd did not write, and left.
    foreign: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Refused {
    id: String,
    error: String,
}

/// Plans every job, prints, and removes what the plan says, job by job, the oldest set first.
pub async fn run(
    args: &Args,
    config: &Config,
    store: &dyn Store,
    now: DateTime<Utc>,
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let say = |text: String| if args.json || global.quiet { Ok(()) } else { output::text(text) };
    let plans = shutdown.guard(plans(args, config, store, now)).await?;
    let mut document = Document { dry_run: args.dry_run, jobs: Vec::new() };
    let mut failures = 0;
    let mut stopped = false;
    for plan in &plans {
        let mut job = planned(plan);
        say(text(&job, args.dry_run))?;
        for set in job.sets.iter_mut().rev() {
            let Some(removal) = plan.removals.get(&set.id) else { continue };
            stopped = stopped || shutdown.is_requested();
            if args.dry_run || stopped {
                continue;
            }
            match shutdown.guard(prune::remove(store, removal)).await {
                Ok(()) => set.removed = Some(true),
                Err(error) => {
                    failures += 1;
                    set.removed = Some(false);
                    set.error = Some(error.to_string());
                    say(wrapped("  ! ", &format!("removing {} failed: {error}", set.id)))?;
                }
            }
        }
        document.jobs.push(job);
    }
    if args.json {
        output::json(&document)?;
    }
    if shutdown.is_requested() {
        return Err(shutdown.error().context("pruning stopped early"));
    }
    if failures > 0 {
        return Err(Error::new(format!("{failures} sets could not be removed completely"))
            .with_hint("what is left of them has no manifest any more and is listed as incomplete"));
    }
    Ok(())
}

async fn plans(args: &Args, config: &Config, store: &dyn Store, now: DateTime<Utc>) -> Result<Vec<JobPlan>> {
    // Says so where a named job exists nowhere.
    entries(config, store, &args.jobs).await?;
    let mut plans = Vec::new();
    for (name, job) in &config.backup {
        let named = args.jobs.contains(name);
        if !named && !args.jobs.is_empty() {
            continue;
        }
        let Some(rules) = &job.retention else {
            if named {
                return Err(Error::usage(format!("job {name:?} has no retention, so nothing is removed"))
                    .with_hint(format!("set `retention` in [backup.{name}]")));
            }
            continue;
        };
        let trusted = &config.encryption.trusted_keys;
        plans.push(prune::plan(store, trusted, &config.site, name, rules, now, args.accept_shrink).await?);
    }
    if let Some(foreign) = args.jobs.iter().find(|job| !config.backup.contains_key(*job)) {
        return Err(Error::usage(format!(
            "job {foreign:?} is not configured here, so nothing of it is removed"
        )));
    }
    if plans.is_empty() {
        return Err(Error::usage("no job has a retention, so nothing is removed")
            .with_hint("set `retention` in a [backup.NAME]"));
    }
    Ok(plans)
}

fn planned(plan: &JobPlan) -> Job {
    let sets = plan.plan.decisions.iter().map(|decision| {
        let removal = plan.removals.get(&decision.id);
        Set {
            id: decision.id.clone(),
            time: decision.time,
            action: if removal.is_some() { "remove" } else { "keep" },
            reasons: decision.reasons.iter().map(ToString::to_string).collect(),
            bytes: removal.map(|r| r.bytes),
            removed: None,
            error: None,
            foreign: removal.map(|r| r.foreign.clone()).unwrap_or_default(),
        }
    });
    Job {
        job: plan.job.clone(),
        frozen: plan.plan.frozen.clone(),
        sets: sets.collect(),
        refused: plan.refused.iter().cloned().map(|(id, error)| Refused { id, error }).collect(),
    }
}

fn text(job: &Job, dry_run: bool) -> String {
    let goes = job.sets.iter().filter(|s| s.action == "remove").count();
    let freed = output::size(job.sets.iter().filter_map(|s| s.bytes).sum());
    let would = if dry_run { "would go" } else { "go" };
    let mut out = match &job.frozen {
        Some(_) => format!("job {}: {} sets, nothing is removed\n", job.job, job.sets.len()),
        None if goes == 0 => format!("job {}: {} sets, all stay\n", job.job, job.sets.len()),
        None => format!("job {}: {} sets, {goes} {would} ({freed})\n", job.job, job.sets.len()),
    };
    if let Some(frozen) = &job.frozen {
        out.push_str(&wrapped("  ! ", frozen));
    }
    for set in &job.sets {
        out.push_str(&wrapped(&format!("  {:<6}  {}  ", set.action, set.id), &set.reasons.join(", ")));
        if !set.foreign.is_empty() {
            let left = format!("opsd did not write these, and leaves them: {}", set.foreign.join(", "));
            out.push_str(&wrapped("          ! ", &left));
        }
    }
    for refused in &job.refused {
        let _ =
            write!(out, "{}", wrapped("  ! ", &format!("{} does not count: {}", refused.id, refused.error)));
    }
    out
}
