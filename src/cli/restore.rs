//! `opsd restore`: into a server that is there, or (`--verify`) into a scratch server, to prove it.

mod contents;
mod place;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::Utc;
use serde::Serialize;

use self::place::{approve, choose_database, target};
use super::backup::select;
use super::{Global, output, ping, progress};
use crate::config::libpq::Resolved;
use crate::config::{BackupJob, Config};
use crate::error::{Error, Kind, Result};
use crate::printable;
use crate::restore::role_changes::RoleChanges;
use crate::restore::selection::Selection;
use crate::restore::to::{self, Options, Report};
use crate::restore::verify::{self, Rehearsal, Uncontained};
use crate::restore::{self, LeftOut};
use crate::set::archive::Section;
use crate::set::catalog::{self, Selector, Use};
use crate::set::scope::Scope;
use crate::set::verification::{self, Phases, Verdict};
use crate::shutdown::Shutdown;
use crate::store::{self, Store};

/// Arguments of `opsd restore`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  opsd restore --verify                rehearse the latest set of each job\n  \
    opsd restore db --to admin --replace put the latest set in the place of main's\n                                       \
    database, which is kept under another name\n  \
    opsd restore db --to postgres://admin@host/app_test --create\n  \
    opsd restore db --to admin --as rescue --table public.accounts\n                                       \
    one table into a database beside the live one",
    group = clap::ArgGroup::new("where").args(["to", "verify"])
)]
pub struct Args {
    /// Job whose set is restored; with --verify any number [default: all]
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// Restore into a scratch server, prove every row, and remove it again
    #[arg(long)]
    verify: bool,
    /// Set: latest, an id, or the beginning of one [default: latest, which
    /// for --to is never one that differs or lacks objects]
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// The newest set whose data is not younger than this
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    at: Option<String>,
    /// Server from the configuration, or a URL without password [default with
    /// --as: the one that the job backs up]
    #[arg(long, value_name = "NAME|URL")]
    to: Option<String>,
    /// Database of the set, where it holds several
    #[arg(long, value_name = "NAME", conflicts_with = "verify")]
    database: Option<String>,
    /// Database at the target, made if it is missing [default: the one that
    /// the URL names, else called as in the set]
    #[arg(long = "as", value_name = "NAME", conflicts_with = "verify")]
    as_name: Option<String>,
    /// Make the database if it is missing
    #[arg(long, conflicts_with = "verify")]
    create: bool,
    /// Put the restored database in the place of one that holds tables; asks
    /// for its name first
    #[arg(long, conflicts_with = "verify")]
    replace: bool,
    /// Agree beforehand to what --replace would ask
    #[arg(long, requires = "replace")]
    yes: bool,
    /// Restore this table, view or sequence with what belongs to it: NAME or
    /// SCHEMA.NAME, where * and ? match anything. May be given several times
    #[arg(long, value_name = "TABLE", conflicts_with_all = ["verify", "replace"])]
    table: Vec<String>,
    /// Restore what is in this schema. May be given several times
    #[arg(long, value_name = "NAME", conflicts_with_all = ["verify", "replace"])]
    schema: Vec<String>,
    /// Leave out this table, view or sequence and what needs it. May be given
    /// several times
    #[arg(long, value_name = "TABLE", conflicts_with_all = ["verify", "replace"])]
    exclude: Vec<String>,
    /// Restore this section: pre-data (definitions), data (rows) or post-data
    /// (indexes, constraints). May be given several times
    #[arg(long, value_name = "NAME", value_parser = section, conflicts_with_all = ["verify", "replace"])]
    section: Vec<Section>,
    /// Make roles of the set that the server lacks; with =update also give
    /// those that exist, and a database that is there, what the set has
    #[arg(
        long, value_name = "make|update", num_args = 0..=1, require_equals = true,
        default_missing_value = "make", value_parser = role_changes, conflicts_with = "verify",
    )]
    globals: Option<RoleChanges>,
    /// Leave out who owns what: all of it belongs to the restoring role
    #[arg(long, conflicts_with = "verify")]
    no_owner: bool,
    /// Leave out privileges (GRANT and REVOKE)
    #[arg(long, conflicts_with = "verify")]
    no_privileges: bool,
    /// Leave out comments
    #[arg(long, conflicts_with = "verify")]
    no_comments: bool,
    /// Look at everything that a restore needs, and change nothing
    #[arg(long, conflicts_with = "verify")]
    dry_run: bool,
    /// Streams and index builds at the same time [default: the job's streams]
    #[arg(long = "jobs", value_name = "N", conflicts_with = "verify")]
    jobs_at_once: Option<usize>,
    /// Rehearse even where this machine does not contain the code of a dump
    #[arg(long, requires = "verify")]
    uncontained: bool,
    /// Print the result as one JSON document
    #[arg(long)]
    json: bool,
}

/// What `--globals` may say.
fn role_changes(word: &str) -> std::result::Result<RoleChanges, String> {
    match word {
        "make" => Ok(RoleChanges::Make),
        "update" => Ok(RoleChanges::Update),
        _ => Err("make or update".into()),
    }
}

/// A section by pg_restore's name of it.
fn section(name: &str) -> std::result::Result<Section, String> {
    match name {
        "pre-data" => Ok(Section::PreData),
        "data" => Ok(Section::Data),
        "post-data" => Ok(Section::PostData),
        _ => Err("pre-data, data or post-data".into()),
    }
}

#[derive(Serialize)]
struct Results {
    results: Vec<ResultReport>,
}

#[derive(Serialize)]
struct ResultReport {
    job: String,
    /// Absent where the set could not even be read.
    id: Option<String>,
    verdict: Outcome,
    databases: Vec<verification::Database>,
    /// Of roles, memberships and their settings.
    differences: Vec<String>,
    /// What was compared, and what was not.
    scope: Vec<Scope>,
    seconds: Phases,
    total_seconds: f64,
    server_version: Option<String>,
    /// Where the server's programs were.
    place: Option<String>,
    /// Absent where no scratch server was started.
    contained: Option<String>,
    warnings: Vec<String>,
    hints: Vec<String>,
    error: Option<String>,
}

/// What a rehearsal came to, or why there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Proven,
    Differs,
    Failed,
    Unproven,
    /// The set is not believed, and nothing of it was looked at.
    Refused,
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Proven => Outcome::Proven,
            Verdict::Differs => Outcome::Differs,
            Verdict::Failed => Outcome::Failed,
            Verdict::Unproven => Outcome::Unproven,
        }
    }
}

#[derive(Serialize)]
struct RestoreReport {
    job: String,
    id: String,
    /// Why the set may not be relied on, where that is so.
    doubt: Option<String>,
    database: String,
    restored_as: String,
    old_database: Option<String>,
    lost: Vec<String>,
    failed: Vec<String>,
    roles_created: Vec<String>,
    seconds: Phases,
    warnings: Vec<String>,
}

/// Runs the command.
pub async fn run(args: Args, config: &Config, global: &Global, shutdown: &Shutdown) -> Result<()> {
    let selector = Selector::from_options(args.backup.as_deref(), args.at.as_deref())?;
    if args.verify {
        return run_verify(&args, config, &selector, global, shutdown).await;
    }
    if args.to.is_none() && args.as_name.is_none() {
        return contents::show(&args, config, shutdown).await;
    }
    let store = shutdown.guard(store::open(&config.repository)).await?;
    let jobs = shutdown.guard(jobs(config, store.as_ref(), &args.jobs)).await?;
    let [job] = jobs.as_slice() else {
        return Err(Error::usage("name one job to restore").with_hint("opsd restore JOB --to NAME|URL"));
    };
    run_to(&args, config, job, &selector, store, global, shutdown).await
}

/// The jobs of these names; all where none is named. A host that only restores has none in its configuration: there
/// they are those that the repository holds sets of.
async fn jobs(config: &Config, store: &dyn Store, names: &[String]) -> Result<Vec<BackupJob>> {
    let all_known = names.iter().all(|name| config.backup.contains_key(name));
    if all_known && !config.backup.is_empty() {
        return Ok(select(config, names)?.into_iter().cloned().collect());
    }
    let sites = match catalog::sites(store).await {
        Ok(sites) => sites,
        // A key may be good for one site's folder alone.
        Err(_) => BTreeMap::from([(config.site.clone(), catalog::jobs(store, &config.site).await?)]),
    };
    let held: Vec<&str> =
        sites.get(&config.site).into_iter().flat_map(|jobs| jobs.keys().map(String::as_str)).collect();
    let place = || match (held.as_slice(), config.backup.is_empty()) {
        ([], true) => format!(
            "{} holds sets of these sites: {}; `site` at the top of {} says which is meant",
            store.describe(),
            listed(sites.keys().map(String::as_str)),
            config.path.display()
        ),
        (held, true) => format!("site {:?} has sets of: {}", config.site, listed(held.iter().copied())),
        (_, false) => {
            format!("jobs in {}: {}", config.path.display(), listed(config.backup.keys().map(String::as_str)))
        }
    };
    if names.is_empty() && held.is_empty() {
        return Err(Error::new(format!("no set of site {:?} in {}", config.site, store.describe()))
            .with_hint(place()));
    }
    let known = |name: &String| match config.backup.get(name) {
        Some(job) => Ok(job.clone()),
        None if held.contains(&name.as_str()) => Ok(BackupJob::named(name)),
        None => Err(Error::usage(format!("unknown job {}", printable::word(name))).with_hint(place())),
    };
    match names {
        [] => Ok(held.iter().map(|name| BackupJob::named(name)).collect()),
        names => names.iter().map(known).collect(),
    }
}

/// Names for a sentence.
fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.map(printable::line).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

async fn run_verify(
    args: &Args,
    config: &Config,
    selector: &Selector,
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let store = shutdown.guard(store::open(&config.repository)).await?;
    let jobs = shutdown.guard(jobs(config, store.as_ref(), &args.jobs)).await?;
    let mut results = Results { results: Vec::new() };
    let mut failures: Vec<(&str, Error)> = Vec::new();
    for job in &jobs {
        let bars = progress::bars(global, "looking for the set");
        let uncontained = if args.uncontained { Uncontained::Allowed } else { Uncontained::Refused };
        let work = verify::verify(config, job, selector, store.clone(), uncontained, bars.progress());
        let is_good = |r: &Rehearsal| matches!(r.record.verdict, Verdict::Proven | Verdict::Unproven);
        let result = ping::around(&job.verify.ping, global, shutdown.guard(work), is_good).await;
        drop(bars);
        let (report, failure) = match result {
            Ok(rehearsal) => judged(&job.name, rehearsal),
            Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::Terminated) => return Err(error),
            Err(error) => (unread(&job.name, &error), Some(error)),
        };
        let wants_attention = report.verdict == Outcome::Unproven || !report.warnings.is_empty();
        if !args.json && (global.is_watched() || (wants_attention && !global.quiet)) {
            say(&report);
        }
        results.results.push(report);
        failures.extend(failure.map(|error| (job.name.as_str(), error)));
    }
    if args.json {
        output::json(&results)?;
    }
    super::worst(failures, "rehearsal")
}

/// A rehearsal's report, and the error that it ends with unless it went well.
fn judged(job: &str, rehearsal: Rehearsal) -> (ResultReport, Option<Error>) {
    let Rehearsal { record, error, hints } = rehearsal;
    let total_seconds = record.total_seconds();
    let failure = match record.verdict {
        Verdict::Proven | Verdict::Unproven => None,
        Verdict::Failed => error.clone(),
        Verdict::Differs => Some(error.clone().unwrap_or_else(|| {
            let all: Vec<String> = record
                .databases
                .iter()
                .flat_map(|d| d.differences.iter().map(|difference| format!("{}: {difference}", d.name)))
                .chain(record.differences.iter().cloned())
                .collect();
            Error::differs(all.join("; ")).context(format!("set {} differs", record.id))
        })),
    };
    let report = ResultReport {
        job: job.to_owned(),
        id: Some(record.id),
        verdict: record.verdict.into(),
        databases: record.databases,
        differences: record.differences,
        scope: record.scope,
        seconds: record.seconds,
        total_seconds,
        server_version: record.server_version,
        place: record.place,
        contained: record.contained,
        warnings: record.warnings,
        hints,
        error: error.map(|e| e.to_string()),
    };
    (report, failure)
}

/// A set whose manifest was not even believed.
fn unread(job: &str, error: &Error) -> ResultReport {
    ResultReport {
        job: job.to_owned(),
        id: None,
        verdict: match error.kind() {
            Kind::Differs => Outcome::Differs,
            Kind::Refused => Outcome::Refused,
            _ => Outcome::Failed,
        },
        databases: Vec::new(),
        differences: Vec::new(),
        scope: Vec::new(),
        seconds: Phases::default(),
        total_seconds: 0.0,
        server_version: None,
        place: None,
        contained: None,
        warnings: Vec::new(),
        hints: Vec::new(),
        error: Some(error.to_string()),
    }
}

fn say(report: &ResultReport) {
    let id = report.id.as_deref().unwrap_or("(no set)");
    output::say(match report.verdict {
        Outcome::Proven => format!("{} {id}: PROVEN, every row came back", report.job),
        Outcome::Differs => format!("{} {id}: DIFFERS, do not rely on this set", report.job),
        Outcome::Refused => format!("{} {id}: REFUSED, nobody who is trusted here signed it", report.job),
        Outcome::Failed => {
            format!("{} {id}: the rehearsal FAILED, which says nothing about the set", report.job)
        }
        Outcome::Unproven => format!("{} {id}: restored, but UNPROVEN", report.job),
    });
    for d in &report.databases {
        output::say(format!(
            "  {}: {} of {} proven, {}",
            d.name,
            output::count(d.tables_proven),
            output::counted(d.tables_total, "table"),
            output::counted(d.rows, "row")
        ));
    }
    if let (Some(version), Some(place)) = (&report.server_version, &report.place) {
        output::note("  ", rehearsed_on(version, place));
    }
    for scope in report.scope.iter().filter(|scope| !scope.covered) {
        output::note("  not covered: ", scope.to_string());
    }
    for difference in &report.differences {
        output::note("  differs: ", difference);
    }
    if !report.seconds.0.is_empty() {
        let total = output::seconds(report.total_seconds);
        output::note("  ", format!("{total} in all: {}", phases(&report.seconds)));
    }
    for warning in &report.warnings {
        output::note("  warning: ", warning);
    }
    for hint in &report.hints {
        output::note("  note: ", hint);
    }
}

/// Where the set came back.
pub(super) fn rehearsed_on(version: &str, place: &str) -> String {
    format!("on PostgreSQL {version} ({place})")
}

/// `data 12s, post-data 4.0s`.
fn phases(seconds: &Phases) -> String {
    let one = |(phase, seconds): &(String, f64)| format!("{phase} {}", output::seconds(*seconds));
    seconds.0.iter().map(one).collect::<Vec<_>>().join(", ")
}

async fn run_to(
    args: &Args,
    config: &Config,
    job: &BackupJob,
    selector: &Selector,
    store: Arc<dyn Store>,
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let identities = restore::identities(config)?;
    let trusted = &config.encryption.trusted;
    let found = catalog::find(store.as_ref(), trusted, &config.site, &job.name, selector, Use::Restore);
    let set = shutdown.guard(found).await?;
    let unauthenticated =
        shutdown.guard(async { Ok(catalog::unauthenticated(store.as_ref(), &set).await) }).await?;
    // Whoever watches or not: code of the set's is about to run on a server of the operator's.
    if let Some(warning) = &unauthenticated {
        output::note("warning: ", warning);
    }
    let doubt = set.reliance(Utc::now()).doubt(&set.manifest.id);
    if let Some(doubt) = &doubt {
        output::note("WARNING: ", doubt);
    }
    let database = choose_database(&set.manifest, args.database.as_deref())?;
    let (resolved, server) = target(args, config, job, database)?;
    let Resolved { connection, warnings, .. } = resolved;
    // A URL says nothing of programs: then those of the job's own server are at hand.
    let bin_dir = server.or(config.postgres.get(&job.postgres)).and_then(|s| s.bin_dir.as_deref());
    let work = async {
        let major = set.manifest.dump_major();
        let look = place::reach(connection, server, bin_dir, major);
        let place::At { connection, tools, way } = shutdown.guard(look).await?;
        let sends_password = tools.password_warning(&connection).await?;
        if let Some(warning) = &sends_password {
            output::note("warning: ", warning);
        }
        let options = Options {
            connection,
            tools,
            create: args.create || args.as_name.is_some(),
            replace: args.replace,
            roles: args.globals.unwrap_or_default(),
            jobs: args.jobs_at_once.unwrap_or(job.streams).max(1),
            settings: config.restore_settings.clone(),
            left_out: LeftOut {
                owner: args.no_owner,
                privileges: args.no_privileges,
                comments: args.no_comments,
            },
            selection: Selection {
                sections: args.section.clone(),
                schemas: args.schema.clone(),
                tables: args.table.clone(),
                excluded: args.exclude.clone(),
            },
            refresh_timeout: config.refresh_timeout,
        };
        let bars = progress::bars(global, "looking at the server");
        let origin = restore::origin(store, &set.manifest, identities, bars.progress());
        if args.dry_run {
            let preview = shutdown.guard(to::preview(&origin, &set.manifest, database, &options)).await?;
            drop(bars);
            return plan::print(args, &job.name, &set.manifest.id, &options, way, preview);
        }
        let agreed =
            async |replaced: &_| approve(args, global, &bars, (&set.manifest.id, database), replaced).await;
        let restored = to::restore(&origin, &set.manifest, database, &options, agreed, shutdown);
        let mut report = restored.await?;
        drop(bars);
        let failure = incomplete(&options.connection.dbname, &report);
        if args.json {
            report.warnings.extend(unauthenticated);
            report.warnings.extend(doubt.clone());
            report.warnings.extend(sends_password);
        }
        print(args, global, &job.name, &set.manifest.id, doubt, &database.name, report)?;
        failure.map_or(Ok(()), Err)
    };
    global.with_warnings(warnings, work).await
}

/// The error that a restore ends with where the server refused something of the set.
fn incomplete(wanted: &str, report: &Report) -> Option<Error> {
    let made = &report.database;
    let failed = || {
        let statements = output::counted(report.failed.len() as u64, "statement");
        format!("{statements} failed: {}", report.failed.join("; "))
    };
    let what = match (report.lost.is_empty(), report.failed.is_empty()) {
        (true, true) => return None,
        (true, false) => format!("database {made:?} holds all rows of the set, but {}", failed()),
        (false, true) => format!("database {made:?} lacks rows of the set: {}", report.lost.join("; ")),
        (false, false) => {
            format!(
                "database {made:?} lacks rows of the set: {}; beside them {}",
                report.lost.join("; "),
                failed()
            )
        }
    };
    if made == wanted {
        let closed = match report.is_closed {
            true => " (it is closed to all but its owner and superusers: GRANT CONNECT opens it)",
            false => "",
        };
        let hint =
            format!("set right by hand what failed, or drop it{closed}; {}", restore::complaints::HINT);
        return Some(Error::new(what).with_hint(hint));
    }
    let hint = format!("{}; {}", restore::swap::by_hand(wanted, made), restore::complaints::HINT);
    Some(Error::new(what).context(format!("database {wanted:?} is as it was")).with_hint(hint))
}

fn print(
    args: &Args,
    global: &Global,
    job: &str,
    id: &str,
    doubt: Option<String>,
    database: &str,
    report: Report,
) -> Result<()> {
    let document = RestoreReport {
        job: job.to_owned(),
        id: id.to_owned(),
        doubt,
        database: database.to_owned(),
        restored_as: report.database,
        old_database: report.old_database,
        lost: report.lost,
        failed: report.failed,
        roles_created: report.roles_created,
        seconds: Phases(report.seconds),
        warnings: report.warnings,
    };
    if args.json {
        return output::json(&document);
    }
    // What became of the old database must be known, whoever watches.
    if let Some(old) = &document.old_database {
        output::say(format!("the database that was there is kept as {old:?}; drop it when you are sure"));
    }
    for warning in &document.warnings {
        output::note("warning: ", warning);
    }
    if !global.is_watched() {
        return Ok(());
    }
    output::say(format!("{job} {id}: {database:?} restored as {:?}", document.restored_as));
    if !document.roles_created.is_empty() {
        output::say(format!("  roles made: {}", document.roles_created.join(", ")));
    }
    output::note("  ", phases(&document.seconds));
    Ok(())
}
