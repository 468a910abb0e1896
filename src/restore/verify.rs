//! A rehearsal: fetch and check → scratch server → restore → prove → record.
//!
//! A verdict says something about the set (`proven`, `differs`, `unproven`) or only about the attempt
//! (`failed`). What disagrees with manifest or proof is a difference; what keeps the rehearsal from
//! running (no space, no server programs, a missing extension) is a failure, and recorded like the others:
//! whoever watches must hear that nothing is proven any more.

use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use tokio::time::timeout_at;

use super::complaints;
use super::record::{MOST_FAILURES, has_failed_often, uncounted, write_record};
use super::rehearsal_server::Found;
use super::{
    Origin, Target, assertions, check_extensions, collations, computed, coverage, definitions, extensions,
    identities, load, origin, own_properties, prove, read_globals, read_proof, rehearsal_server, role_proof,
    roles,
};
use crate::config::{BackupJob, Config};
use crate::error::{Error, Kind, Result};
use crate::postgres::connect::{Session, connect, error};
use crate::postgres::locale::{self, Fallback};
use crate::postgres::properties::{self, Setting};
use crate::postgres::scratch::{self, Scratch};
use crate::postgres::sql::Sql;
use crate::postgres::tools::Tools;
use crate::progress::{Event, Progress};
use crate::set;
use crate::set::archive::Entry;
use crate::set::catalog::{self, Loaded, Selector};
use crate::set::globals::Globals;
use crate::set::manifest::{Database, Manifest, ProofState};
use crate::set::proof::Proof;
use crate::set::scope::{Scope, What, named};
use crate::set::seal::{changed, sha256_hex};
use crate::set::verification::{self, Phases, Verdict, Verification};
use crate::store::{self, Store, StoreError};

/// Databases that every server has; sets of them are restored under another name.
const RESERVED: [&str; 3] = ["postgres", "template0", "template1"];
/// Most bytes of `RESTORE.md` that are held in memory: it has a few lines for each database and each large
/// table, and tens of thousands of those fit.
const MAX_RESTORE_MD: u64 = 16 << 20;

/// Characters of the reason for a failure that are recorded.
const REASON_MAX: usize = 2000;
/// The phase that a failure ended.
const UNFINISHED: &str = "unfinished";

/// What a rehearsal came to.
#[derive(Debug)]
pub struct Rehearsal {
    /// The record, as written to the repository.
    pub record: Verification,
    /// Why it failed, where it failed.
    pub error: Option<Error>,
    /// What is as configured, or could be better on this host; no word about the set, and not recorded.
    pub hints: Vec<String>,
}

/// Whether a rehearsal may run where the machine does not contain the code of the dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uncontained {
    /// The rehearsal is refused.
    Refused,
    /// The operator says that it may.
    Allowed,
}

/// Rehearses the restore of one set.
pub async fn verify(
    config: &Config,
    job: &BackupJob,
    selector: &Selector,
    store: Arc<dyn Store>,
    uncontained: Uncontained,
    progress: Progress,
) -> Result<Rehearsal> {
    if config.encryption.identity_file.is_none() {
        identities(config)?;
    }
    let deadline = tokio::time::Instant::now() + job.verify.timeout;
    let (trusted, site) = (&config.encryption.trusted, &config.site);
    let found = catalog::find(store.as_ref(), trusted, site, &job.name, selector, catalog::Use::Rehearsal);
    let set = timeout_at(deadline, found).await.map_err(|_| late(job))??;
    let manifest = &set.manifest;
    let mut record = Verification {
        format: verification::FORMAT,
        site: manifest.site.clone(),
        job: manifest.job.clone(),
        id: manifest.id.clone(),
        manifest_sha256: set.manifest_sha256.clone(),
        verdict: Verdict::Failed,
        started: Utc::now(),
        finished: Utc::now(),
        seconds: Phases::default(),
        databases: manifest.databases.iter().map(expected).collect(),
        differences: Vec::new(),
        scope: Vec::new(),
        reason: None,
        warnings: Vec::new(),
        server_version: None,
        place: None,
        contained: None,
        opsd_version: env!("CARGO_PKG_VERSION").into(),
    };
    let mut hints = Vec::new();
    let outcome = match prepare(config, job, deadline).await {
        Err(error) => Err(error),
        Ok(identities) => {
            let origin = origin(store.clone(), manifest, identities, progress);
            let mut run = Run {
                config,
                job,
                manifest,
                origin: &origin,
                record: &mut record,
                uncontained,
                hints: Vec::new(),
                clock: Instant::now(),
            };
            run.hints.extend(catalog::unauthenticated(store.as_ref(), &set).await);
            let outcome = timeout_at(deadline, Box::pin(run.rehearse(&set))).await;
            if outcome.is_err() {
                run.lap(UNFINISHED);
            }
            hints = run.hints;
            outcome.unwrap_or_else(|_| Err(late(job)))
        }
    };
    record.finished = Utc::now();
    let prefix = set::set_prefix(&manifest.site, &manifest.job, &manifest.id);
    // Not a word about a set that somebody pruned meanwhile, nor a record where it was.
    let is_gone = is_gone(store.as_ref(), &prefix).await;
    let outcome = if is_gone {
        record.databases.iter_mut().for_each(|d| d.differences.clear());
        record.differences.clear();
        Err(Error::new(format!("set {} was removed meanwhile", record.id)))
    } else {
        outcome
    };
    let (verdict, error) = match outcome {
        Ok(complete) if !record.differs() => {
            (if complete { Verdict::Proven } else { Verdict::Unproven }, None)
        }
        Ok(_) => (Verdict::Differs, None),
        Err(error) if error.kind() == Kind::Differs => {
            if let Some(first) = record.databases.first_mut() {
                first.differences.push(error.to_string());
            }
            (Verdict::Differs, Some(error))
        }
        Err(error) => (Verdict::Failed, Some(error)),
    };
    record.verdict = verdict;
    if verdict == Verdict::Failed {
        record.reason = error.as_ref().map(|error| error.to_string().chars().take(REASON_MAX).collect());
    }
    // Another rehearsal that runs here writes a record of its own.
    let is_other_at_work = error.as_ref().is_some_and(|error| error.kind() == Kind::LockHeld);
    if verdict == Verdict::Failed && has_failed_often(&set) {
        record.warnings.push(format!(
            "this failure is not recorded: the {MOST_FAILURES} rehearsals of this set before it are, and failed, too"
        ));
    } else if !is_gone
        && !is_other_at_work
        && let Err(error) = write_record(config, store.clone(), &prefix, &record).await
    {
        let is = if error.kind() == Kind::InDoubt { "may not be" } else { "is not" };
        record.warnings.push(format!("the result {is} recorded in the repository: {error}"));
    }
    if let Some(why) = uncounted(&config.encryption) {
        record.warnings.push(format!("the record will not count here: {why}"));
    }
    Ok(Rehearsal { record, error, hints })
}

/// What a rehearsal needs before it looks at its set: keys, and a scratch directory in which nobody is.
async fn prepare(
    config: &Config,
    job: &BackupJob,
    deadline: tokio::time::Instant,
) -> Result<super::Identities> {
    let identities = identities(config)?;
    let swept = timeout_at(deadline, scratch::sweep(&job.verify.scratch_dir)).await;
    let swept = swept.map_err(|_| late(job).context("removing what earlier rehearsals left"))??;
    for removed in swept.removed {
        tracing::info!("removed what an earlier rehearsal left: {}", removed.display());
    }
    // Rows of a restored database lie there.
    for left in swept.left {
        tracing::error!("{left}");
    }
    Ok(identities)
}

fn late(job: &BackupJob) -> Error {
    Error::new(format!("the rehearsal did not end within {} s", job.verify.timeout.as_secs()))
        .with_hint(format!("set backup.{}.verify.timeout, if the database takes longer", job.name))
}

/// Whether the set's manifest is certainly no longer there.
async fn is_gone(store: &dyn Store, prefix: &str) -> bool {
    matches!(store.read(&format!("{prefix}{}", set::MANIFEST), 0..1).await, Err(StoreError::NotFound(_)))
}

fn expected(database: &Database) -> verification::Database {
    verification::Database {
        name: database.name.clone(),
        tables_total: database.tables,
        tables_proven: 0,
        rows: 0,
        differences: Vec::new(),
    }
}

/// One rehearsal under way.
struct Run<'a> {
    config: &'a Config,
    job: &'a BackupJob,
    manifest: &'a Manifest,
    origin: &'a Origin,
    record: &'a mut Verification,
    uncontained: Uncontained,
    hints: Vec<String>,
    clock: Instant,
}

impl Run<'_> {
    /// Everything between the manifest and the verdict. `Ok(true)` means that the proof is complete.
    async fn rehearse(&mut self, set: &Loaded) -> Result<bool> {
        let started = self.start(set).await;
        let (scratch, tools, globals) = match started {
            Ok(started) => started,
            Err(error) => {
                self.lap(UNFINISHED);
                return Err(error);
            }
        };
        let result = self.rehearse_on(&scratch, &tools, &globals).await;
        let result = match result {
            Ok(complete) => Ok(complete),
            Err(error) => Err(complaints::of_rehearsal(scratch.cause(error).await)),
        };
        if result.is_err() {
            self.lap(UNFINISHED);
            let log = complaints::log_lines(&scratch.log());
            self.record
                .warnings
                .extend(log.into_iter().map(|line| format!("the scratch server's log: {line}")));
        }
        self.phase("removing the scratch server");
        let stopped = scratch.stop().await;
        if let Err(error) = stopped {
            self.record.warnings.push(format!("the scratch server is left behind: {error}"));
        }
        result
    }

    /// A scratch server for a set that looks whole.
    async fn start(&mut self, set: &Loaded) -> Result<(Scratch, Tools, Globals)> {
        self.phase("checking the set");
        if self.manifest.databases.is_empty() {
            return Err(Error::differs("the set holds no database"));
        }
        if let Some(missing) = set.missing().first() {
            return Err(Error::differs(format!(
                "object {missing} is missing or has another size than the manifest says"
            )));
        }
        check_restore_md(self.origin, self.manifest).await?;
        let globals = read_globals(self.origin, self.manifest).await?;
        self.lap("check");

        self.phase("starting a scratch server");
        let finding = rehearsal_server::find(self.config, self.job, self.manifest, self.uncontained);
        let Found { scratch, tools, place, warnings } = finding.await?;
        self.record.place = Some(place);
        self.record.warnings.extend(warnings);
        self.record.server_version = Some(scratch.version.clone());
        self.record.contained = Some(scratch.containment.to_string());
        self.hints.extend(scratch.warnings.iter().cloned());
        Ok((scratch, tools, globals))
    }

    async fn rehearse_on(&mut self, scratch: &Scratch, tools: &Tools, globals: &Globals) -> Result<bool> {
        let admin = connect(&scratch.connection("postgres"), None, "opsd verify").await?;
        roles::create_stubs(&admin, globals).await?;
        check_extensions(&admin, &self.manifest.databases).await?;
        self.lap("server");
        // What the set lacks is not proven by what it has.
        let mut complete = self.manifest.lacking.is_empty();
        self.record.warnings.extend(coverage::lacking(self.manifest));
        for (index, database) in self.manifest.databases.iter().enumerate() {
            complete &= self.rehearse_database(scratch, tools, &admin, index, database).await?;
        }
        if let Some(index) = assertions::database(self.config, self.job, self.manifest) {
            self.phase("asserting");
            let name = scratch_name(&self.manifest.databases[index].name);
            let failed = assertions::failed(scratch, &name, &self.job.verify.assert).await?;
            self.record.databases[index].differences.extend(failed);
            self.lap("assert");
        }
        self.phase("comparing roles");
        let roles = role_proof::prove(&admin, globals).await?;
        self.record.differences.extend(roles.differences);
        self.record.scope.extend(roles.scope.into_iter().chain(coverage::left_out(self.manifest)));
        self.lap("roles");
        admin.close().await;
        Ok(complete)
    }

    /// Restores one database and proves it; says whether everything in it has a proof.
    async fn rehearse_database(
        &mut self,
        scratch: &Scratch,
        tools: &Tools,
        admin: &Session,
        index: usize,
        database: &Database,
    ) -> Result<bool> {
        let name = scratch_name(&database.name);
        let substituted = create(admin, &name, database).await?;
        self.record.warnings.extend(substituted);
        let target = Target::of_scratch(tools.clone(), scratch.connection(&name), jobs(self.job));
        let session = connect(&target.connection, None, "opsd verify").await?;
        collations::check(&session.client, database).await?;
        extensions::install(&session, database).await?;
        session.close().await;
        self.lap("server");
        let loaded = load::load_whole(self.origin, database, &target).await.map_err(complaints::blame)?;
        for (phase, seconds) in &loaded.seconds {
            add_seconds(self.record, phase, *seconds);
        }
        self.record.warnings.extend(loaded.warnings);
        let (refused, elsewhere) = complaints::told_apart(&loaded.failed)?;
        let (lacking, lacks_rows) = (!elsewhere.is_empty(), !loaded.lost.is_empty());
        let elsewhere = elsewhere.into_iter().chain(loaded.lost.iter().map(Error::to_string));
        self.record.warnings.extend(elsewhere.map(|c| format!("{}: {c}", database.name)));

        self.clock = Instant::now();
        self.phase(&format!("{}: proving", database.name));
        let proof = read_proof(self.origin, database).await?.map(Arc::new);
        let found = match &proof {
            None => prove::Found::default(),
            Some(proof) => prove::prove(&target.connection, proof.clone(), target.jobs).await?,
        };
        let mut complete = !lacking;
        let mut differences = refused;
        // Rows that need what is not here say nothing of the set, and which they are cannot be told.
        if lacks_rows { &mut self.record.warnings } else { &mut differences }.extend(found.differences);
        if database.proof == ProofState::Complete {
            check_counts(database, proof.as_deref())?;
        }
        if !lacking {
            differences.extend(definitions::unpopulated(&target.connection, &loaded.schema).await?);
        }
        let (changed, comparable) =
            self.changed_definitions(scratch, admin, &target, database, &loaded.schema).await?;
        let source_major = self.manifest.server.version_num / 10_000;
        let same_major = source_major == scratch.major && self.manifest.dump_major() == scratch.major;
        let can_judge = comparable && same_major && !lacking;
        if can_judge || changed.is_empty() {
            self.record.scope.extend(coverage::of_definitions(&database.name, &loaded.schema));
        }
        if can_judge {
            differences.extend(changed);
        } else if !changed.is_empty() {
            // Another major may split the same definitions into other entries.
            complete = false;
            let entries = definitions::count(&loaded.schema);
            let (of, why) = (Some(database.name.as_str()), "compared, and not judged: see the warnings");
            self.record.scope.extend(Scope::uncovered(What::Definitions, of, entries, why));
            self.record.warnings.extend(changed.into_iter().map(|c| {
                format!("{}: {c} (source {source_major}, scratch server {})", database.name, scratch.major)
            }));
        }
        let session = connect(&target.connection, None, "opsd verify").await?;
        let other_versions = extensions::other_versions(&session, database).await?;
        session.close().await;
        self.record.scope.extend(coverage::of_content(
            database,
            proof.as_deref(),
            found.tables_proven,
            &loaded.schema,
            &other_versions,
        ));
        if let Some(proof) = &proof {
            let computed = computed::compare(&target.connection, &database.name, proof).await?;
            self.record.scope.extend(computed.scope);
            complete &= computed.unproven.is_empty();
            let unproven = computed.unproven.iter().map(|why| format!("{}: {why}", database.name));
            self.record.warnings.extend(unproven);
        }
        let entry = &mut self.record.databases[index];
        entry.tables_total = database.tables + proof.as_ref().map_or(0, |p| p.excluded.len() as u64);
        entry.tables_proven = found.tables_proven;
        entry.rows = found.rows;
        entry.differences = differences;
        if let Some(proof) = &proof {
            // What this server does not take (a library, a locale) is said, and not counted against the set.
            let settings = own_properties(proof).settings;
            let refused = properties::apply_settings(&admin.client, &name, &settings).await;
            let found = properties::read(&admin.client, &name).await?.settings;
            // Servers of different majors may write the same list in different ways.
            let found: Vec<_> = found.iter().map(|s| (&s.role, properties::values(&s.setting))).collect();
            let is_kept = |s: &&Setting| found.contains(&(&s.role, properties::values(&s.setting)));
            let kept = settings.iter().filter(is_kept).count();
            if kept + refused.len() < settings.len() {
                self.record.databases[index].differences.push(format!(
                    "{} of the database's settings have another value",
                    settings.len() - kept - refused.len()
                ));
            }
            let of = Some(database.name.as_str());
            let (kept, lost) = (kept as u64, refused.len() as u64);
            let scope = &mut self.record.scope;
            scope.extend(Scope::covered(What::DatabaseSettings, of, kept));
            scope.extend(Scope::uncovered(What::DatabaseSettings, of, lost, named(&refused)));
            self.record.warnings.extend(refused.into_iter().map(|w| format!("{}: {w}", database.name)));
            if !proof.excluded.is_empty() {
                let excluded = proof.excluded.join(", ");
                self.hints.push(format!("{}: without the rows of {excluded}", database.name));
            }
        }
        if database.proof != ProofState::Complete {
            complete = false;
            self.record
                .warnings
                .push(format!("{}: the set has no complete proof of its rows", database.name));
        }
        self.lap("prove");
        Ok(complete)
    }

    /// Definitions that differ from the archive's, and whether they could be judged. Where the text alone differs, a
    /// second restore of the definitions without any rows says what PostgreSQL makes of it.
    async fn changed_definitions(
        &mut self,
        scratch: &Scratch,
        admin: &Session,
        target: &Target,
        database: &Database,
        archived: &[Entry],
    ) -> Result<(Vec<String>, bool)> {
        let encoding = &database.locale.encoding;
        let fresh =
            definitions::dump_schema(&target.tools, &target.connection, &target.dbname, encoding).await?;
        let fresh = definitions::without_own_privileges(archived, fresh);
        let changed = definitions::compare(archived, &fresh, None);
        if changed.is_empty() {
            return Ok((changed, true));
        }
        let index = self.manifest.databases.iter().position(|d| d.name == database.name).unwrap_or_default();
        let name = format!("opsd_reference_{index}");
        create(admin, &name, database).await?;
        let second = Target { connection: scratch.connection(&name), dbname: name.clone(), ..target.clone() };
        let session = connect(&second.connection, None, "opsd verify").await?;
        extensions::install(&session, database).await?;
        session.close().await;
        // Without rows a materialized view may fail that was filled with them; what did not come into
        // being is then not judged.
        let mut comparable = true;
        if let Err(error) = load::load_schema(self.origin, database, &second).await {
            self.record.warnings.push(format!("{}: definitions alone: {error}", database.name));
            comparable = false;
        }
        let expected = definitions::dump_schema(&second.tools, &second.connection, &name, encoding).await?;
        Ok((definitions::compare(archived, &fresh, Some(&expected)), comparable))
    }

    fn phase(&self, text: &str) {
        (self.origin.progress)(Event::Phase(text.to_owned()));
    }

    fn lap(&mut self, phase: &str) {
        add_seconds(self.record, phase, self.clock.elapsed().as_secs_f64());
        self.clock = Instant::now();
    }
}

fn add_seconds(record: &mut Verification, phase: &str, seconds: f64) {
    match record.seconds.0.iter_mut().find(|(name, _)| name == phase) {
        Some((_, total)) => *total += seconds,
        None => record.seconds.push(phase, seconds),
    }
}

pub(super) fn jobs(job: &BackupJob) -> usize {
    job.streams.max(std::thread::available_parallelism().map_or(1, usize::from))
}

pub(super) fn scratch_name(name: &str) -> String {
    if RESERVED.contains(&name) { format!("opsd_{name}") } else { name.to_owned() }
}

async fn check_restore_md(origin: &Origin, manifest: &Manifest) -> Result<()> {
    let object = &manifest.restore_md;
    if object.size > MAX_RESTORE_MD {
        return Err(Error::differs(format!(
            "object {} has {} bytes, and instructions have no more than {MAX_RESTORE_MD}",
            object.key, object.size
        )));
    }
    let bytes =
        store::get(origin.store.as_ref(), &format!("{}{}", origin.prefix, object.key), object.size).await?;
    let found = sha256_hex(&bytes);
    if found == object.sha256 {
        return Ok(());
    }
    Err(changed(&object.key, &format!("its SHA-256 is {found}, the manifest says {}", object.sha256)))
}

async fn create(admin: &Session, name: &str, database: &Database) -> Result<Vec<String>> {
    let options = Sql::new("");
    let mut warnings =
        locale::create_database(admin, name, &database.locale, &options, Fallback::Nearest).await?;
    let l = &database.locale;
    // Money is written and read by it.
    let sql = Sql::new("ALTER DATABASE ").ident(name).then(" SET lc_monetary TO ").literal(&l.monetary);
    if let Err(failure) = sql.run(&admin.client).await {
        warnings.push(format!(
            "{}: lc_monetary {:?} is not available: {}",
            database.name,
            l.monetary,
            error(failure)
        ));
    }
    Ok(warnings)
}

/// A proof that calls itself complete covers what the manifest counts; nothing is proven by less.
fn check_counts(database: &Database, proof: Option<&Proof>) -> Result<()> {
    let Some(proof) = proof else {
        return Err(Error::differs(format!(
            "database {:?} has a complete proof, but no proof is stored",
            database.name
        )));
    };
    let entries: u64 = proof.tables.iter().map(|t| t.entries).sum();
    let rows: u64 = proof.tables.iter().map(|t| t.fingerprint.rows).sum();
    if (entries, rows) == (database.tables, database.rows) {
        return Ok(());
    }
    Err(Error::differs(format!(
        "the proof of {:?} covers {entries} tables and {rows} rows, the manifest says {} and {}",
        database.name, database.tables, database.rows
    )))
}
