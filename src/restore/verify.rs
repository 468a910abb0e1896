//! A rehearsal: fetch and check → scratch server → restore → prove → record.
//!
//! A verdict says something about the set (`proven`, `differs`, `unproven`) or only about the attempt
//! (`failed`). What disagrees with manifest or proof is a difference; what keeps the rehearsal from
//! running (no space, no server programs, a missing extension) is a failure.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;

use super::load::{self, Origin, Target};
use super::{definitions, identities, origin, prove, read_globals, read_proof, roles};
use crate::config::{BackupJob, Config};
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::connect::{Session, connect, connect_with, error};
use crate::postgres::ident::{quote_ident, quote_literal};
use crate::postgres::scratch::{self, Scratch, ScratchOptions, create_database};
use crate::postgres::settings;
use crate::postgres::tools::{self, ServerBinaries};
use crate::progress::{Event, Progress};
use crate::set::catalog::{self, Loaded, Selector};
use crate::set::manifest::{Database, Manifest, ProofState};
use crate::set::proof::Proof;
use crate::set::seal::sha256_hex;
use crate::set::verification::{self, Phases, Verdict, Verification};
use crate::set::{self, signature};
use crate::store::{self, Store};

/// Bytes that a scratch server needs before it holds anything: its system catalogs and WAL.
const SCRATCH_OVERHEAD: u64 = 256 << 20;
/// Databases that every server has; sets of them are restored under another name.
const RESERVED: [&str; 3] = ["postgres", "template0", "template1"];
/// Bound on one assertion.
const ASSERT_TIMEOUT: &str = "300s";

/// What a rehearsal came to.
#[derive(Debug)]
pub struct Rehearsal {
    /// The record, as written to the repository.
    pub record: Verification,
    /// Why it failed, where it failed.
    pub error: Option<Error>,
}

/// Rehearses the restore of one set.
pub async fn verify(
    config: &Config,
    job: &BackupJob,
    selector: &Selector,
    store: Arc<dyn Store>,
    progress: Progress,
) -> Result<Rehearsal> {
    let identities = identities(config)?;
    for removed in scratch::sweep(&job.verify.scratch_dir).await? {
        tracing::info!("removed what an earlier run left: {removed}");
    }
    let set =
        catalog::find(store.as_ref(), &config.encryption.trusted_keys, &config.site, &job.name, selector)
            .await?;
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
        warnings: Vec::new(),
        server_version: None,
        opsd_version: env!("CARGO_PKG_VERSION").into(),
    };
    let origin = origin(store.clone(), manifest, identities, progress);
    let outcome = rehearse(config, job, &set, &origin, &mut record).await;
    record.finished = Utc::now();
    let (verdict, error) = match outcome {
        Ok(complete) if record.databases.iter().all(|d| d.differences.is_empty()) => {
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
    if verdict != Verdict::Failed
        && let Err(error) = write_record(config, store.as_ref(), &origin.prefix, &record).await
    {
        record.warnings.push(format!("the result is not recorded in the repository: {error}"));
    }
    Ok(Rehearsal { record, error })
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

/// Everything between the manifest and the verdict. `Ok(true)` means that the proof is complete.
async fn rehearse(
    config: &Config,
    job: &BackupJob,
    set: &Loaded,
    origin: &Origin,
    record: &mut Verification,
) -> Result<bool> {
    let manifest = &set.manifest;
    let mut clock = Instant::now();
    (origin.progress)(Event::Phase("checking the set".into()));
    if let Some(missing) = set.missing().first() {
        return Err(Error::differs(format!(
            "object {missing} is missing or has another size than the manifest says"
        )));
    }
    check_restore_md(origin, manifest).await?;
    let globals = read_globals(origin, manifest).await?;
    lap(record, "check", &mut clock);

    (origin.progress)(Event::Phase("starting a scratch server".into()));
    let scratch = start_scratch(config, job, manifest).await?;
    record.server_version = Some(scratch.version.clone());
    record.warnings.extend(scratch.warnings.iter().cloned());
    let result = rehearse_on(&scratch, config, job, manifest, origin, &globals, record, clock).await;
    (origin.progress)(Event::Phase("removing the scratch server".into()));
    let stopped = scratch.stop().await;
    let complete = result?;
    if let Err(error) = stopped {
        record.warnings.push(format!("scratch server: {error}"));
    }
    Ok(complete)
}

#[expect(clippy::too_many_arguments, reason = "one story, split only so that the server is always stopped")]
async fn rehearse_on(
    scratch: &Scratch,
    config: &Config,
    job: &BackupJob,
    manifest: &Manifest,
    origin: &Origin,
    globals: &str,
    record: &mut Verification,
    mut clock: Instant,
) -> Result<bool> {
    let admin = connect(&scratch.connection("postgres"), None, "opsd verify").await?;
    create_stubs(&admin, globals).await?;
    check_extensions(&admin, manifest).await?;
    lap(record, "server", &mut clock);

    let source_major = manifest.server.version_num / 10_000;
    let same_major = source_major == scratch.major && dump_major(manifest) == scratch.major;
    let mut complete = true;
    for (index, database) in manifest.databases.iter().enumerate() {
        let name = scratch_name(&database.name);
        record.warnings.extend(create(&admin, &name, database).await?);
        let target = Target {
            tools: binaries(config, job, manifest).await?.tools(),
            connection: scratch.connection(&name),
            dbname: name.clone(),
            jobs: jobs(job),
            is_superuser: true,
            no_tablespaces: true,
        };
        let loaded = load::load(origin, database, &target).await?;
        for (phase, seconds) in &loaded.seconds {
            add_seconds(record, phase, *seconds);
        }
        record.warnings.extend(loaded.warnings);

        clock = Instant::now();
        (origin.progress)(Event::Phase(format!("{}: proving", database.name)));
        let proof = read_proof(origin, database).await?;
        let found = match &proof {
            None => prove::Found::default(),
            Some(proof) => prove::prove(&target.connection, proof, target.jobs).await?,
        };
        let entry = &mut record.databases[index];
        entry.tables_total = database.tables + proof.as_ref().map_or(0, |p| p.excluded.len() as u64);
        entry.tables_proven = found.tables_proven;
        entry.rows = found.rows;
        entry.differences = found.differences;

        let fresh = definitions::dump_schema(&target.tools, &target.connection, &name).await?;
        let mut changed = definitions::compare(&loaded.schema, &fresh, None);
        let mut comparable = true;
        if !changed.is_empty() {
            let reference = format!("opsd reference {index}");
            create(&admin, &reference, database).await?;
            let second = Target {
                connection: scratch.connection(&reference),
                dbname: reference.clone(),
                ..target.clone()
            };
            // Without rows a materialized view may fail that was filled with them; what did not come
            // into being is then not judged.
            if let Err(error) = load::load_schema(origin, database, &second).await {
                record.warnings.push(format!("{}: definitions alone: {error}", database.name));
                comparable = false;
            }
            let expected = definitions::dump_schema(&second.tools, &second.connection, &reference).await?;
            changed = definitions::compare(&loaded.schema, &fresh, Some(&expected));
        }
        entry.differences.extend(definitions::unpopulated(&target.connection, &loaded.schema).await?);
        if same_major && comparable {
            entry.differences.append(&mut changed);
        } else if !changed.is_empty() {
            // Another major may split the same definitions into other entries.
            complete = false;
            record.warnings.extend(changed.into_iter().map(|c| {
                format!("{}: {c} (source {source_major}, scratch server {})", database.name, scratch.major)
            }));
        }
        if let Some(proof) = &proof {
            let different = apply_settings(scratch, &name, proof).await?;
            record.warnings.extend(different.into_iter().map(|w| format!("{}: {w}", database.name)));
            if !proof.excluded.is_empty() {
                record.warnings.push(format!(
                    "{}: without the rows of {}",
                    database.name,
                    proof.excluded.join(", ")
                ));
            }
        }
        if database.proof != ProofState::Complete {
            complete = false;
            record.warnings.push(format!("{}: the set has no complete proof of its rows", database.name));
        }
        lap(record, "prove", &mut clock);
    }
    if let Some(index) = assert_database(config, job, manifest) {
        (origin.progress)(Event::Phase("asserting".into()));
        let name = scratch_name(&manifest.databases[index].name);
        let failed = assertions(scratch, &name, &job.verify.assert).await?;
        record.databases[index].differences.extend(failed);
        lap(record, "assert", &mut clock);
    }
    admin.close().await;
    Ok(complete)
}

fn lap(record: &mut Verification, phase: &str, clock: &mut Instant) {
    add_seconds(record, phase, clock.elapsed().as_secs_f64());
    *clock = Instant::now();
}

fn add_seconds(record: &mut Verification, phase: &str, seconds: f64) {
    match record.seconds.0.iter_mut().find(|(name, _)| name == phase) {
        Some((_, total)) => *total += seconds,
        None => record.seconds.push(phase, seconds),
    }
}

fn jobs(job: &BackupJob) -> usize {
    job.streams.max(std::thread::available_parallelism().map_or(1, usize::from))
}

fn scratch_name(name: &str) -> String {
    if RESERVED.contains(&name) { format!("opsd_{name}") } else { name.to_owned() }
}

fn dump_major(manifest: &Manifest) -> u32 {
    manifest.pg_dump_version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

async fn check_restore_md(origin: &Origin, manifest: &Manifest) -> Result<()> {
    let object = &manifest.restore_md;
    let bytes =
        store::get(origin.store.as_ref(), &format!("{}{}", origin.prefix, object.key), object.size).await?;
    let found = sha256_hex(&bytes);
    if found == object.sha256 {
        return Ok(());
    }
    Err(Error::differs(format!(
        "object {} has SHA-256 {found}, the manifest says {}",
        object.key, object.sha256
    )))
}

/// Server programs for a set: of the newer of the source's and pg_dump's major, because an older
/// pg_restore refuses the archive and an older server some of its settings.
async fn binaries(config: &Config, job: &BackupJob, manifest: &Manifest) -> Result<ServerBinaries> {
    let major = dump_major(manifest).max(manifest.server.version_num / 10_000);
    let configured: Option<PathBuf> = config.postgres.get(&job.postgres).and_then(|p| p.bin_dir.clone());
    if let Some(dir) = &configured
        && let Ok(found) = tools::find_server(major, Some(dir)).await
    {
        return Ok(found);
    }
    tools::find_server(major, None).await
}

async fn start_scratch(config: &Config, job: &BackupJob, manifest: &Manifest) -> Result<Scratch> {
    let dir = &job.verify.scratch_dir;
    let needed = 2 * manifest.plain_bytes() + SCRATCH_OVERHEAD;
    let free = scratch::free_space(dir)?;
    if free < needed {
        return Err(Error::new(format!(
            "no space for a scratch server in {}: {} MiB free, about {} MiB needed",
            dir.display(),
            free >> 20,
            needed >> 20
        ))
        .with_hint(format!("set backup.{}.verify.scratch_dir to a larger disk", job.name)));
    }
    let tables: u64 = manifest.databases.iter().map(|d| d.tables).sum();
    scratch::start(ScratchOptions {
        scratch_dir: dir.clone(),
        user: job.verify.scratch_user.clone(),
        binaries: binaries(config, job, manifest).await?,
        jobs: jobs(job),
        // A table comes with indexes, sequences and a TOAST table.
        objects: 5 * tables + 1_000,
        memory: None,
    })
    .await
}

/// Every role of the set, unable to log in, so that owners and privileges can be restored.
async fn create_stubs(admin: &Session, globals: &str) -> Result<()> {
    let rows = admin.client.query("SELECT rolname::text FROM pg_roles", &[]).await.map_err(error)?;
    let existing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    for role in roles::roles(globals).iter().filter(|r| !existing.contains(&r.name)) {
        let superuser = if role.is_superuser { " SUPERUSER" } else { "" };
        let sql = format!("CREATE ROLE {} NOLOGIN{superuser}", quote_ident(&role.name));
        admin
            .client
            .batch_execute(&sql)
            .await
            .map_err(error)
            .with_context(|| format!("role {:?}", role.name))?;
    }
    Ok(())
}

async fn check_extensions(admin: &Session, manifest: &Manifest) -> Result<()> {
    let rows =
        admin.client.query("SELECT name::text FROM pg_available_extensions", &[]).await.map_err(error)?;
    let available: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let mut missing: Vec<&str> = manifest
        .databases
        .iter()
        .flat_map(|d| &d.extensions)
        .map(|e| e.name.as_str())
        .filter(|name| !available.iter().any(|a| a == name))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("extension {} is not available to the scratch server", missing.join(", ")))
        .with_hint("install it for the PostgreSQL of this host; the set itself is not in question"))
}

async fn create(admin: &Session, name: &str, database: &Database) -> Result<Vec<String>> {
    let l = &database.locale;
    let wanted = scratch::Locale {
        encoding: &l.encoding,
        collate: &l.collate,
        ctype: &l.ctype,
        provider: &l.provider,
        locale: l.locale.as_deref(),
        icu_rules: l.icu_rules.as_deref(),
    };
    let mut warnings = create_database(admin, name, &wanted).await?;
    // Money is written and read by it.
    let sql =
        format!("ALTER DATABASE {} SET lc_monetary TO {}", quote_ident(name), quote_literal(&l.monetary));
    if let Err(failure) = admin.client.batch_execute(&sql).await {
        warnings.push(format!(
            "{}: lc_monetary {:?} is not available: {}",
            database.name,
            l.monetary,
            error(failure)
        ));
    }
    Ok(warnings)
}

/// The settings that pg_dump leaves to others: applied, and read back. What this server does not take
/// (a library that is not there, a locale) is said, not counted against the set.
async fn apply_settings(scratch: &Scratch, name: &str, proof: &Proof) -> Result<Vec<String>> {
    let session = connect(&scratch.connection(name), None, "opsd verify").await?;
    let wanted: Vec<settings::Setting> = proof
        .settings
        .iter()
        .map(|s| settings::Setting { role: s.role.clone(), setting: s.setting.clone() })
        .collect();
    settings::apply(&session.client, name, &wanted).await
}

/// Assertions run in one database: the URL's if the set has it, else the first.
fn assert_database(config: &Config, job: &BackupJob, manifest: &Manifest) -> Option<usize> {
    if job.verify.assert.is_empty() {
        return None;
    }
    let of_url = config.postgres.get(&job.postgres).map(|p| p.connection.dbname.as_str());
    let index = manifest.databases.iter().position(|d| Some(d.name.as_str()) == of_url);
    index.or((!manifest.databases.is_empty()).then_some(0))
}

/// Runs assertions as a role that can only read; what is not true is a difference.
async fn assertions(scratch: &Scratch, name: &str, queries: &[String]) -> Result<Vec<String>> {
    let pinned = [
        ("search_path", "public"),
        ("default_transaction_read_only", "on"),
        ("statement_timeout", ASSERT_TIMEOUT),
    ];
    let session = connect_with(&scratch.reader(name), None, "opsd assert", &pinned).await?;
    session.client.batch_execute("BEGIN READ ONLY").await.map_err(error)?;
    let mut failed = Vec::new();
    for query in queries {
        let result = session.client.query(query.as_str(), &[]).await;
        let what = match result {
            Err(failure) => {
                session.client.batch_execute("ROLLBACK; BEGIN READ ONLY").await.map_err(error)?;
                error(failure).to_string()
            }
            Ok(rows) => match rows.as_slice() {
                [row] if row.len() == 1 => match row.try_get::<_, Option<bool>>(0) {
                    Ok(Some(true)) => continue,
                    Ok(Some(false)) => "it is false".into(),
                    Ok(None) => "it is null".into(),
                    Err(_) => "its column is no boolean".into(),
                },
                rows => format!("it returned {} rows instead of one row with one column", rows.len()),
            },
        };
        failed.push(format!("assertion {query:?}: {what}"));
    }
    Ok(failed)
}

/// The record, signature first.
async fn write_record(config: &Config, store: &dyn Store, prefix: &str, record: &Verification) -> Result<()> {
    let bytes = record.to_bytes()?;
    let key = format!("{prefix}{}", verification::name(record.finished));
    if let Some(path) = &config.encryption.sign_key_file {
        let comment = format!("opsd verification {}/{}/{}", record.site, record.job, record.id);
        let signature = signature::sign(path, &bytes, &comment)?;
        store::put(store, &format!("{key}.minisig"), signature.into_bytes(), false).await?;
    }
    store::put(store, &key, bytes, true).await?;
    debug_assert!(key.starts_with(&set::job_prefix(&record.site, &record.job)));
    Ok(())
}
