//! `opsd backups prune`: print the plan, then follow it.

use std::fmt::Write;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{entries, locks_unknown, removed, under_lease};
use crate::backup::prune::{self, JobPlan};
use crate::cli::Global;
use crate::cli::output::{self, counted, wrapped};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::set::catalog::ahead_warning;
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
    /// Prune although the newest set lacks a database, or has much less of one than usual
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
    warnings: Vec<String>,
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
    /// Until when it cannot be deleted, where it would go otherwise.
    locked_until: Option<DateTime<Utc>>,
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
    let work = planned_and_followed(args, config, store, now, global, shutdown);
    under_lease(args.dry_run, config, store, "backups prune", global, shutdown, work).await
}

async fn planned_and_followed(
    args: &Args,
    config: &Config,
    store: &dyn Store,
    now: DateTime<Utc>,
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let say = |text: String| if args.json || global.quiet { Ok(()) } else { output::text(text) };
    let plans = shutdown.guard(plans(args, config, store, now)).await?;
    let unknown = plans.iter().find_map(|plan| plan.locks_unknown.as_deref());
    let warnings = unknown.map(locks_unknown).into_iter().collect();
    let mut document = Document { dry_run: args.dry_run, jobs: Vec::new(), warnings };
    if !global.quiet {
        document.warnings.iter().for_each(|warning| output::note("warning: ", warning));
    }
    for plan in &plans {
        let mut job = planned(plan);
        say(text(&job))?;
        if global.quiet {
            needs_a_person(&job, plan).iter().for_each(output::say);
        }
        if !args.dry_run {
            follow(plan, &mut job, store, shutdown).await;
        }
        for set in &job.sets {
            if let Some(error) = &set.error {
                say(wrapped("  ! ", &format!("removing {} failed: {error}", set.id)))?;
            }
        }
        document.jobs.push(job);
    }
    say(outcome(&document))?;
    if args.json {
        output::json(&document)?;
    }
    if shutdown.is_requested() {
        return Err(shutdown.error().context("pruning stopped early"));
    }
    let failed: Vec<&Set> =
        document.jobs.iter().flat_map(|j| &j.sets).filter(|s| s.error.is_some()).collect();
    match failed[..] {
        [] => Ok(()),
        [first, ..] => Err(Error::new(format!(
            "{} could not be removed, the first of them {}: {}",
            counted(failed.len() as u64, "set"),
            first.id,
            first.error.as_deref().unwrap_or_default()
        ))
        .with_hint("a set whose manifest is gone is listed as incomplete; the others are still whole")),
    }
}

/// Removes a job's sets, the oldest first; one that fails does not spare the others.
async fn follow(plan: &JobPlan, job: &mut Job, store: &dyn Store, shutdown: &Shutdown) {
    for set in job.sets.iter_mut().rev() {
        let Some(removal) = plan.removals.get(&set.id) else { continue };
        if shutdown.is_requested() {
            return;
        }
        (set.removed, set.error) = removed(store, removal, shutdown).await;
    }
}

async fn plans(args: &Args, config: &Config, store: &dyn Store, now: DateTime<Utc>) -> Result<Vec<JobPlan>> {
    // Says so where a named job exists nowhere.
    let mut listed = entries(config, store, &args.jobs).await?;
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
        let trusted = &config.encryption.trusted;
        let entries = listed.remove(name).unwrap_or_default();
        plans.push(prune::plan(store, trusted, name, entries, rules, now, args.accept_shrink).await?);
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
        let locked_until = plan.locked.get(&decision.id).copied();
        let locked = locked_until.map(|until| format!("locked until {until}"));
        Set {
            id: decision.id.clone(),
            time: decision.time,
            action: if removal.is_some() { "remove" } else { "keep" },
            reasons: decision.reasons.iter().map(ToString::to_string).chain(locked).collect(),
            locked_until,
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

/// What is said even when nothing but errors is wanted: a plan that stays frozen fills the store.
fn needs_a_person(job: &Job, plan: &JobPlan) -> Vec<String> {
    let ahead: Vec<String> = plan.plan.ahead().map(|d| d.id.clone()).collect();
    let ahead = ahead_warning(&ahead).map(|warning| format!("job {}: {warning}", job.job));
    let frozen = job.frozen.iter().map(|why| format!("job {}: nothing is removed: {why}", job.job));
    let refused =
        job.refused.iter().map(|r| format!("job {}: {} does not count: {}", job.job, r.id, r.error));
    frozen.chain(refused).chain(ahead).collect()
}

/// What was done, which the plan alone does not tell.
fn outcome(document: &Document) -> String {
    let removed = || document.jobs.iter().flat_map(|j| &j.sets).filter(|s| s.removed == Some(true));
    match (document.dry_run, removed().count()) {
        (true, _) => "nothing was removed (dry run)".to_owned(),
        (false, 0) => "nothing was removed".to_owned(),
        (false, n) => {
            let freed = output::size(removed().filter_map(|s| s.bytes).sum());
            format!("removed {} ({freed})", counted(n as u64, "set"))
        }
    }
}

fn text(job: &Job) -> String {
    let goes = job.sets.iter().filter(|s| s.action == "remove").count();
    let freed = output::size(job.sets.iter().filter_map(|s| s.bytes).sum());
    let sets = counted(job.sets.len() as u64, "set");
    let mut out = match &job.frozen {
        Some(_) => format!("job {}: {sets}, nothing is removed\n", job.job),
        None if goes == 0 => format!("job {}: {sets}, all stay\n", job.job),
        None => format!("job {}: {sets}, {goes} no longer kept ({freed})\n", job.job),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::backup::prune::Removal;
    use crate::backup::retention::{Decision, Plan, Reason};
    use crate::store::faulty::{Fault, FaultyStore, Operation, Rule};
    use crate::store::memory::MemoryStore;
    use crate::store::{self, StoreError};

    fn plan_for(ids: &[&str]) -> JobPlan {
        let removal =
            |id: &str| Removal { keys: vec![format!("s/j/{id}/manifest.json")], bytes: 10, foreign: vec![] };
        let decision = |id: &str| Decision {
            id: id.to_owned(),
            time: Utc::now(),
            keep: false,
            reasons: vec![Reason::Unneeded],
        };
        JobPlan {
            job: "j".into(),
            plan: Plan { frozen: None, decisions: ids.iter().map(|id| decision(id)).collect() },
            removals: ids.iter().map(|id| ((*id).to_owned(), removal(id))).collect::<BTreeMap<_, _>>(),
            locked: BTreeMap::new(),
            locks_unknown: None,
            refused: vec![],
        }
    }

    #[tokio::test]
    async fn a_set_that_cannot_be_removed_does_not_spare_the_others() {
        let memory = MemoryStore::new();
        for id in ["c", "b", "a"] {
            store::put(&memory, &format!("s/j/{id}/manifest.json"), "{}", false).await.unwrap();
        }
        let fault = Fault::Fail(StoreError::Denied("object lock".into()));
        let faulty = FaultyStore::new(Arc::new(memory.clone()), vec![Rule::new(Operation::Delete, 2, fault)]);
        let plan = plan_for(&["c", "b", "a"]);
        let mut job = planned(&plan);
        follow(&plan, &mut job, &faulty, &Shutdown::default()).await;
        let outcome: Vec<_> = job.sets.iter().map(|s| (s.id.as_str(), s.removed)).collect();
        assert_eq!(outcome, [("c", Some(true)), ("b", Some(false)), ("a", Some(true))], "oldest first");
        assert!(job.sets[1].error.as_deref().unwrap().contains("object lock"));
        let left: Vec<String> = memory.list("").await.unwrap().into_iter().map(|o| o.key).collect();
        assert_eq!(left, ["s/j/b/manifest.json"]);
    }
}
