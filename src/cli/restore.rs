//! `opsd restore`: into a server that is there, or (`--verify`) into a scratch server, to prove it.

use std::sync::Arc;

use chrono::Utc;
use serde::Serialize;

use super::backup::select;
use super::{Global, output, ping, progress};
use crate::config::libpq::Resolved;
use crate::config::{BackupJob, Config, Connection};
use crate::error::{Error, Kind, Result};
use crate::postgres::tools;
use crate::printable;
use crate::restore::to::{self, Options, Report};
use crate::restore::verify::{self, Rehearsal, Uncontained};
use crate::restore::{self, LeftOut};
use crate::set::catalog::{self, Selector, Use};
use crate::set::manifest::{Database, Manifest};
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
    opsd restore db --to postgres://admin@host/app_test --create",
    group = clap::ArgGroup::new("where").args(["to", "verify"]).required(true)
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
    /// Server from the configuration, or a URL without password
    #[arg(long, value_name = "NAME|URL")]
    to: Option<String>,
    /// Database of the set, where it holds several; also its name at the
    /// target, unless the URL there names another
    #[arg(long, value_name = "NAME", conflicts_with = "verify")]
    database: Option<String>,
    /// Make the database if it is missing
    #[arg(long, conflicts_with = "verify")]
    create: bool,
    /// Put the restored database in the place of one that holds tables
    #[arg(long, conflicts_with = "verify")]
    replace: bool,
    /// Make roles of the set that the server lacks
    #[arg(long, conflicts_with = "verify")]
    globals: bool,
    /// Leave out who owns what: all of it belongs to the restoring role
    #[arg(long, conflicts_with = "verify")]
    no_owner: bool,
    /// Leave out privileges (GRANT and REVOKE)
    #[arg(long, conflicts_with = "verify")]
    no_privileges: bool,
    /// Leave out comments
    #[arg(long, conflicts_with = "verify")]
    no_comments: bool,
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
    let job = match args.jobs.as_slice() {
        [name] => select(config, std::slice::from_ref(name))?[0],
        [] if config.backup.len() == 1 => select(config, &[])?[0],
        _ => return Err(Error::usage("name one job to restore").with_hint("opsd restore JOB --to NAME|URL")),
    };
    let store = shutdown.guard(store::open(&config.repository)).await?;
    run_to(&args, config, job, &selector, store, global, shutdown).await
}

async fn run_verify(
    args: &Args,
    config: &Config,
    selector: &Selector,
    global: &Global,
    shutdown: &Shutdown,
) -> Result<()> {
    let jobs = select(config, &args.jobs)?;
    let store = shutdown.guard(store::open(&config.repository)).await?;
    let mut results = Results { results: Vec::new() };
    let mut failures: Vec<(&str, Error)> = Vec::new();
    for job in jobs {
        let bars = progress::bars(global);
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
    let (resolved, server) = target(args, config, database)?;
    let Resolved { connection, warnings, .. } = resolved;
    // A URL says nothing of programs: then those of the job's own server are at hand.
    let bin_dir = server.or(config.postgres.get(&job.postgres)).and_then(|s| s.bin_dir.as_deref());
    let prefix = server.map_or(&[][..], |s| s.tool_prefix.as_slice());
    let work = async {
        let tools = tools::find(set.manifest.dump_major(), bin_dir, prefix).await?;
        let sends_password = tools.password_warning(&connection).await?;
        if let Some(warning) = &sends_password {
            output::note("warning: ", warning);
        }
        let options = Options {
            connection,
            tools,
            create: args.create,
            replace: args.replace,
            globals: args.globals,
            jobs: args.jobs_at_once.unwrap_or(job.streams).max(1),
            settings: config.restore_settings.clone(),
            left_out: LeftOut {
                owner: args.no_owner,
                privileges: args.no_privileges,
                comments: args.no_comments,
            },
        };
        let bars = progress::bars(global);
        let origin = restore::origin(store, &set.manifest, identities, bars.progress());
        let mut report = to::restore(&origin, &set.manifest, database, &options, shutdown).await?;
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

/// The database that is meant. The only one that a set holds is meant only if nothing else belongs into it.
fn choose_database<'m>(manifest: &'m Manifest, wanted: Option<&str>) -> Result<&'m Database> {
    let databases = manifest.databases.as_slice();
    let names = || databases.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(lacking) = manifest.lacking.iter().find(|l| Some(l.name.as_str()) == wanted) {
        return Err(Error::new(printable::line(&lacking.why).into_owned())
            .context(format!("the set lacks database {:?}, which could not be dumped", lacking.name))
            .with_hint("`opsd backups list` shows the sets before it"));
    }
    match (wanted, databases) {
        (None, [only]) if manifest.lacking.is_empty() => Ok(only),
        (None, [only]) => {
            Err(Error::usage(format!("the set holds {} alone, of several databases", only.name))
                .with_hint(format!("--database {}, if that is meant", only.name)))
        }
        (None, _) => Err(Error::usage(format!("the set holds several databases: {}", names()))
            .with_hint("choose one with --database")),
        (Some(name), all) => all.iter().find(|d| d.name == name).ok_or_else(|| {
            Error::usage(format!("the set holds no database {}", printable::word(name))).with_hint(format!(
                "it holds {}; the name that it is restored under stands in the URL: --to postgres://…/NAME",
                names()
            ))
        }),
    }
}

/// The server that is meant, and the database there: the one that a URL names, else one called as in
/// the set. libpq's own default, the role's name, would be a surprise.
fn target<'c>(
    args: &Args,
    config: &'c Config,
    database: &Database,
) -> Result<(Resolved, Option<&'c crate::config::Postgres>)> {
    let to = args.to.as_deref().unwrap_or_default();
    if let Some(server) = config.postgres.get(to) {
        let connection = Connection { dbname: database.name.clone(), ..server.connection.clone() };
        // Its warnings are those of the configuration.
        let resolved = Resolved { connection, warnings: Vec::new(), password_in_dsn: false };
        return Ok((resolved, Some(server)));
    }
    if Connection::looks_like_dsn(to) {
        let mut resolved = Connection::from_arg(to)?;
        if !Connection::names_database(to) {
            resolved.connection.dbname.clone_from(&database.name);
        }
        return Ok((resolved, None));
    }
    let known: Vec<&str> = config.postgres.keys().map(String::as_str).collect();
    let hint = match known.as_slice() {
        [] => format!("{} has no [postgres.NAME]: give a URL, as in postgres://…", config.path.display()),
        known => format!("servers in {}: {}", config.path.display(), known.join(", ")),
    };
    let shown = printable::word(to);
    Err(Error::usage(format!("--to {shown} is neither a postgres:// URL nor a [postgres.NAME]"))
        .with_hint(hint))
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
