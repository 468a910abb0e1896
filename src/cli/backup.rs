//! `opsd backup`: make a set of each job, or say what would be made.

use std::time::Instant;

use serde::Serialize;

use super::output::entry;
use super::{Global, output, ping, progress};
use crate::backup::{self, Created, Preview};
use crate::config::{BackupJob, Config};
use crate::error::{Error, Kind, Result};
use crate::printable;
use crate::set;
use crate::set::manifest::{Lacking, ProofState};
use crate::shutdown::Shutdown;
use crate::store::{self, object_lock};

/// Arguments of `opsd backup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  opsd backup             every job of the configuration\n  \
    opsd backup db --json   one job, its result as JSON\n  \
    opsd backup --dry-run   the plan, and what would stand in its way")]
pub struct Args {
    /// Jobs to run [default: all]
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// Connect and plan, but dump nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    sets: Vec<SetReport>,
}

#[derive(Serialize)]
struct SetReport {
    job: String,
    id: String,
    databases: Vec<DatabaseReport>,
    /// Databases that could not be dumped.
    lacking: Vec<Lacking>,
    plain_bytes: u64,
    stored_bytes: u64,
    duration_seconds: f64,
    proof: ProofState,
    signed: bool,
    manifest_sha256: String,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct DatabaseReport {
    name: String,
    tables: u64,
    rows: u64,
    bytes: u64,
    excluded: Vec<String>,
}

#[derive(Serialize)]
struct PlanReport {
    plans: Vec<JobPlan>,
}

#[derive(Serialize)]
struct JobPlan {
    job: String,
    server_version: String,
    /// The way to a server in a container.
    way: Option<String>,
    pg_dump: String,
    repository: String,
    prefix: String,
    recipients: Vec<String>,
    databases: Vec<DatabasePlan>,
}

#[derive(Serialize)]
struct DatabasePlan {
    name: String,
    tables: usize,
    locks: u64,
    estimated_bytes: u64,
    streams: Vec<StreamPlan>,
    excluded: Vec<String>,
    preflights: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct StreamPlan {
    name: String,
    table: Option<String>,
    estimated_bytes: u64,
}

/// Runs the command. A job that fails does not keep the others from running.
/// `advice` is what the configuration gives reason for; it is said with the first set of a day.
pub async fn run(
    args: Args,
    config: &Config,
    advice: &[String],
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let jobs = select(config, &args.jobs)?;
    if args.dry_run {
        return shutdown.guard(dry_run(config, &jobs, args.json)).await;
    }
    let mut store = shutdown.guard(store::open(&config.repository)).await?;
    let mut report = Report { sets: Vec::new() };
    let mut failures: Vec<(&str, Error)> = Vec::new();
    let mut unsaid = advice;
    for job in jobs {
        let begun = Instant::now();
        let bars = progress::bars(global, &format!("connecting to {}", job.postgres));
        let every = backup::heartbeat::EVERY;
        let work = async {
            let mut result =
                backup::create(config, job, store.clone(), bars.progress(), every, shutdown).await;
            if let Err(failure) = &result
                && !is_stopped(failure)
            {
                let found_out = store::open_as_found_out(&config.repository, failure);
                match shutdown.guard(found_out).await {
                    Ok(Some(anew)) => {
                        store = anew;
                        result = backup::create(config, job, store.clone(), bars.progress(), every, shutdown)
                            .await;
                    }
                    Ok(None) => {}
                    // Bars are on the screen: what is logged now leaves them there.
                    Err(error) if is_stopped(&error) => {}
                    Err(error) => tracing::warn!("{error}"),
                }
            }
            drop(bars);
            result
        };
        let is_whole = |created: &Created| created.manifest.lacking.is_empty();
        match ping::around(&job.ping, global, work, is_whole).await {
            Ok(created) => {
                if global.is_watched() && is_first_of_its_day(&created) {
                    for advice in std::mem::take(&mut unsaid) {
                        output::note("warning: ", format!("{advice} (said once a day)"));
                    }
                }
                let set = set_report(&created, begun.elapsed().as_secs_f64());
                match (args.json || global.quiet, global.is_watched()) {
                    (true, _) => {}
                    (false, true) => say(&set),
                    // Silent on success, but a success that wants attention is not silent.
                    (false, false) => {
                        for warning in &set.warnings {
                            output::note("warning: ", format!("{} {}: {warning}", set.job, set.id));
                        }
                    }
                }
                report.sets.push(set);
                failures.extend(lacking(&created).map(|error| (job.name.as_str(), error)));
            }
            Err(error) => {
                let stop = is_stopped(&error);
                failures.push((&job.name, error));
                if stop {
                    break;
                }
            }
        }
    }
    if args.json {
        output::json(&report)?;
    }
    super::worst(failures, "backup")
}

fn is_stopped(error: &Error) -> bool {
    matches!(error.kind(), Kind::Interrupted | Kind::Terminated)
}

/// Whether no earlier set of the job is known that is of the same day, in UTC.
fn is_first_of_its_day(created: &Created) -> bool {
    let manifest = &created.manifest;
    let previous = manifest.previous.as_deref().and_then(set::id_time);
    previous.is_none_or(|time| time.date_naive() != manifest.started.date_naive())
}

/// The jobs that were named, or all.
pub fn select<'c>(config: &'c Config, names: &[String]) -> Result<Vec<&'c BackupJob>> {
    if config.backup.is_empty() {
        return Err(Error::usage(format!("{} has no [backup.NAME]", config.path.display()))
            .with_hint("`opsd config init` writes a starter file"));
    }
    if names.is_empty() {
        return Ok(config.backup.values().collect());
    }
    names
        .iter()
        .map(|name| {
            config.backup.get(name).ok_or_else(|| {
                let known: Vec<&str> = config.backup.keys().map(String::as_str).collect();
                Error::usage(format!("unknown job {}", printable::word(name))).with_hint(format!(
                    "jobs in {}: {}",
                    config.path.display(),
                    known.join(", ")
                ))
            })
        })
        .collect()
}

/// A set that lacks a database is recorded, and its run failed.
fn lacking(created: &Created) -> impl Iterator<Item = Error> {
    let id = &created.manifest.id;
    created.manifest.lacking.iter().map(move |l| {
        Error::new(l.why.clone()).context(format!("set {id} lacks database {:?}", l.name)).with_hint(format!(
            "its other databases are whole: opsd restore --to … --backup {id} --database NAME; nothing counts on the set"
        ))
    })
}

fn set_report(created: &Created, duration_seconds: f64) -> SetReport {
    let manifest = &created.manifest;
    SetReport {
        job: manifest.job.clone(),
        id: manifest.id.clone(),
        lacking: manifest.lacking.clone(),
        databases: manifest
            .databases
            .iter()
            .map(|d| DatabaseReport {
                name: d.name.clone(),
                tables: d.tables,
                rows: d.rows,
                bytes: d.bytes,
                excluded: d.excluded.clone(),
            })
            .collect(),
        plain_bytes: manifest.plain_bytes(),
        stored_bytes: manifest.stored_bytes(),
        duration_seconds,
        proof: manifest.proof(),
        signed: created.is_signed,
        manifest_sha256: created.manifest_sha256.clone(),
        warnings: manifest.warnings.clone(),
    }
}

fn say(set: &SetReport) {
    output::say(format!(
        "{} {}: stored{} in {}, {} as {}",
        set.job,
        set.id,
        if set.signed { " and signed" } else { "" },
        output::seconds(set.duration_seconds),
        output::size(set.plain_bytes),
        output::size(set.stored_bytes),
    ));
    for d in &set.databases {
        output::say(format!(
            "  {}: {}, {}",
            d.name,
            output::counted(d.tables, "table"),
            output::counted(d.rows, "row")
        ));
    }
    for warning in &set.warnings {
        output::note("  warning: ", warning);
    }
    output::say(match set.proof {
        ProofState::Complete => "  every row has a fingerprint; to prove the set: opsd restore --verify",
        ProofState::Partial => "  some rows have no fingerprint; see the warnings",
        ProofState::None => "  no fingerprints: this opsd does not know pg_dump's archive version",
    });
}

async fn dry_run(config: &Config, jobs: &[&BackupJob], json: bool) -> Result<()> {
    let mut report = PlanReport { plans: Vec::new() };
    if config.repository.lock.is_some() {
        // A bucket that cannot lock stands in the way of every job.
        let store = store::open(&config.repository).await?;
        object_lock::locking(&store, &config.repository).await?;
    }
    for job in jobs {
        let preview =
            backup::preview(config, job).await.map_err(|e| e.context(format!("job {}", job.name)))?;
        report.plans.push(job_plan(config, job, preview));
    }
    if json {
        return output::json(&report);
    }
    for plan in &report.plans {
        output::text(render(plan))?;
    }
    Ok(())
}

fn job_plan(config: &Config, job: &BackupJob, preview: Preview) -> JobPlan {
    let stream = |s: &backup::plan::Stream| StreamPlan {
        name: s.name.clone(),
        table: s.table.as_ref().map(|(schema, name)| format!("{schema}.{name}")),
        estimated_bytes: s.estimate,
    };
    JobPlan {
        job: job.name.clone(),
        server_version: preview.server.version,
        way: preview.way,
        pg_dump: preview.pg_dump,
        repository: config.repository.location.describe(),
        prefix: preview.prefix,
        recipients: preview.recipients,
        databases: preview
            .plans
            .into_iter()
            .map(|p| DatabasePlan {
                name: p.database.clone(),
                tables: p.tables,
                locks: p.locks,
                estimated_bytes: p.streams().iter().map(|s| s.estimate).sum(),
                streams: p.streams().into_iter().map(stream).collect(),
                excluded: p.excluded,
                preflights: p.preflights,
                warnings: p.warnings,
            })
            .collect(),
    }
}

fn render(plan: &JobPlan) -> String {
    let mut lines = vec![
        format!("job {}", plan.job),
        entry("  server      ", format!("PostgreSQL {}", plan.server_version)),
        entry("  pg_dump     ", &plan.pg_dump),
        entry("  to          ", format!("{}/{}", plan.repository, plan.prefix)),
    ];
    if let Some(way) = &plan.way {
        lines.insert(2, entry("  reached as  ", way));
    }
    for (i, recipient) in plan.recipients.iter().enumerate() {
        lines.push(format!("  {}{recipient}", if i == 0 { "readable by " } else { "            " }));
    }
    for database in &plan.databases {
        lines.push(format!(
            "  database {:?}: {}, about {}, {}",
            database.name,
            output::counted(database.tables as u64, "table"),
            output::size(database.estimated_bytes),
            output::counted(database.locks, "lock")
        ));
        for stream in &database.streams {
            lines.push(format!(
                "    {:<10} {:>10}  {}",
                stream.name,
                if stream.estimated_bytes == 0 {
                    String::new()
                } else {
                    output::size(stream.estimated_bytes)
                },
                stream.table.as_deref().unwrap_or_default()
            ));
        }
        if !database.excluded.is_empty() {
            lines.push(entry("    without the rows of ", database.excluded.join(", ")));
        }
        lines.extend(database.preflights.iter().map(|p| entry("    ok: ", p)));
        lines.extend(database.warnings.iter().map(|w| entry("    warning: ", w)));
    }
    lines.push("  nothing was dumped".into());
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}
