//! `create`: the linear story of one backup, from the lock to the manifest.
//!
//! A set exists only once its manifest is stored, and the manifest is written last: a run that ends
//! anywhere before leaves objects that nothing lists. Deliberately absent: pruning (another command,
//! perhaps another credential) and any knowledge of schedules.

pub mod adopt;
mod clock;
mod computed;
pub mod coordinator;
mod drain;
pub mod evidence;
mod failure;
pub mod forget;
mod globals;
pub mod heartbeat;
pub mod inventory;
pub mod lock;
pub mod plan;
pub mod prune;
pub mod restore_md;
pub mod retention;
mod shrunk;
mod source;
pub mod streams;
pub mod sweep;
mod undumped;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep_until, timeout_at};

use self::coordinator::Coordinator;
use self::heartbeat::Heartbeat;
use self::plan::Plan;
use self::source::Source;
use self::streams::Destination;
use crate::buffer_pool::BufferPool;
use crate::config::{BackupJob, Config, keys};
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::connect::Session;
use crate::postgres::messages;
use crate::progress::{Event, Progress};
use crate::set::archive::parser::Contents;
use crate::set::fingerprint::RowSecret;
use crate::set::manifest::{Database, Document, FORMAT, Lacking, Manifest, Server, Stream};
use crate::set::proof::Fingerprint;
use crate::set::seal::{Recipients, SealOptions, seal_bytes, sha256_hex};
use crate::set::signature::Purpose;
use crate::set::{self, catalog, signature};
use crate::shutdown::Shutdown;
use crate::store::{self, Store, StoreError, object_lock};

/// Parts in an object before the next begins: what the strictest known provider allows.
const MAX_PARTS: u64 = 1_000;

/// What [`create`] made.
#[derive(Debug)]
pub struct Created {
    /// The manifest as stored.
    pub manifest: Manifest,
    /// Its SHA-256, in hexadecimal.
    pub manifest_sha256: String,
    /// Whether it is signed.
    pub is_signed: bool,
}

/// What [`preview`] found out without dumping anything.
#[derive(Debug)]
pub struct Preview {
    /// The server.
    pub server: Server,
    /// The way to a server in a container.
    pub way: Option<String>,
    /// pg_dump's version and where it is.
    pub pg_dump: String,
    /// One plan a database.
    pub plans: Vec<Plan>,
    /// Where objects would go.
    pub prefix: String,
    /// Public keys.
    pub recipients: Vec<String>,
}

/// Plans a backup: connects, looks, dumps nothing.
pub async fn preview(config: &Config, job: &BackupJob) -> Result<Preview> {
    recipients(config)?;
    if let Some(path) = &config.encryption.sign_key_file {
        signature::public_key(path)?;
    }
    let source = source::open(config, job).await?;
    let mut plans = Vec::new();
    for database in &source.databases {
        let (mut plan, session) = source::preview(&source, database, job).await?;
        session.close().await;
        // opsd's own session may get through where pg_dump does not.
        source
            .tools
            .try_dump(&source.connection, database)
            .await
            .context(format!("database {database:?}"))?;
        plan.preflights.push("pg_dump gets through".into());
        plans.push(plan);
    }
    if let Some(first) = plans.first_mut() {
        first.warnings.extend(source.warnings);
    }
    Ok(Preview {
        server: source.server,
        way: source.way,
        pg_dump: source.tools.describe(),
        plans,
        prefix: set::job_prefix(&config.site, &job.name),
        recipients: config.encryption.recipients.clone(),
    })
}

/// Makes one set: lock → plan → dump every database → globals → RESTORE.md → signature → all of it is
/// there → manifest. `heartbeat` is how often a run that takes so long shows that it is alive.
pub async fn create(
    config: &Config,
    job: &BackupJob,
    store: Arc<dyn Store>,
    progress: Progress,
    heartbeat: Duration,
    shutdown: &Shutdown,
) -> Result<Created> {
    let recipients = recipients(config)?;
    if let Some(path) = &config.encryption.sign_key_file {
        signature::public_key(path)?;
    }
    progress(Event::Phase("connecting".into()));
    let prepared = async {
        let source = source::open(config, job).await?;
        let clock_warning = clock::check(config, store.as_ref(), &source).await?;
        let sets = object_lock::locking(&store, &config.repository).await?;
        lock::acquire(&source.session, &config.site, &job.name).await?;
        progress(Event::Phase("planning".into()));
        let mut first = None;
        let mut unfit = HashMap::new();
        for (index, database) in source.databases.iter().enumerate() {
            match source::preview(&source, database, job).await {
                Ok((_, session)) if index == 0 => first = Some(session),
                Ok((_, session)) => session.close().await,
                // A mistake in the configuration, or the only database: nothing is dumped.
                Err(error) if error.kind() == Kind::Usage || source.databases.len() == 1 => {
                    return Err(error);
                }
                Err(error) => drop(unfit.insert(database.clone(), error)),
            }
        }
        Ok((source, first, unfit, clock_warning, sets))
    };
    let deadline = Instant::now() + job.timeout;
    let prepared =
        async { timeout_at(deadline, Box::pin(prepared)).await.unwrap_or_else(|_| Err(late(job))) };
    let (source, first, unfit, clock_warning, sets) = shutdown.guard(prepared).await?;

    let started = Utc::now();
    let id = set::new_id(started);
    let part_size = usize::try_from(job.part_size).unwrap_or(usize::MAX);
    let prefix = set::set_prefix(&config.site, &job.name, &id);
    let run = Run {
        config,
        job,
        heartbeat: Heartbeat::new(store.clone(), &prefix),
        deadline,
        plain_store: store,
        store: sets,
        prefix,
        id,
        started,
        seal: SealOptions {
            recipients,
            level: job.compression,
            part_size,
            segment_limit: job.part_size.saturating_mul(MAX_PARTS),
            pool: BufferPool::new(part_size),
        },
        progress,
        is_published: AtomicBool::new(false),
    };
    let warnings = source.warnings.iter().cloned().chain(clock_warning).collect();
    // Without the lock another run may be under way, so this one ends.
    let work = async {
        tokio::select! {
            ready = run.dump(&source, first, unfit, warnings) => ready,
            why = source.session.lost() => Err(lock::lost(why)),
            never = run.heartbeat.keep(heartbeat) => match never {},
            () = sleep_until(deadline) => Err(late(job)),
        }
    };
    // A signal drops the work, which ends every pg_dump and aborts every upload. The manifest alone is not
    // dropped on its way: nobody could tell afterwards whether the set exists.
    let created = match shutdown.guard(Box::pin(work)).await {
        Ok(ready) => run.publish(ready).await,
        // Whether an object arrived is no matter where no manifest names it: there is no set.
        Err(error) if error.kind() == Kind::InDoubt => Err(error.with_kind(Kind::Failed)),
        Err(error) => Err(error),
    };
    match created {
        Ok(created) => Ok(created),
        Err(error) => {
            let error = if source.server.in_recovery { messages::explain_conflict(error) } else { error };
            run.clean_up(&error).await;
            Err(error)
        }
    }
}

fn late(job: &BackupJob) -> Error {
    Error::new(format!("the backup did not end within {} s", job.timeout.as_secs()))
        .with_hint(format!("set backup.{}.timeout, if the database or the line takes longer", job.name))
}

/// Whom the set is encrypted to. A host that only restores has nobody configured.
fn recipients(config: &Config) -> Result<Recipients> {
    if config.encryption.recipients.is_empty() {
        return Err(Error::usage("encryption.recipients: no recipient, so nobody could read the backup")
            .with_hint("recipients = [\"age1…\"]; `opsd keygen` makes a key"));
    }
    Ok(Arc::new(keys::recipients(&config.encryption.recipients)?))
}

/// A set that is stored but for its manifest.
struct Ready {
    manifest: Manifest,
    bytes: Vec<u8>,
    is_signed: bool,
}

/// The snapshot of a database, and the pg_dumps that read under it.
struct Snapshot {
    coordinator: Coordinator,
    large_objects: Option<Fingerprint>,
    running: streams::Running,
}

/// One run of one job.
struct Run<'a> {
    config: &'a Config,
    job: &'a BackupJob,
    /// What the set is written with: it locks, where a lock is configured.
    store: Arc<dyn Store>,
    /// The store without a lock, for what is no part of the set.
    plain_store: Arc<dyn Store>,
    prefix: String,
    id: String,
    started: chrono::DateTime<Utc>,
    seal: SealOptions,
    progress: Progress,
    heartbeat: Heartbeat,
    /// When the run is ended.
    deadline: Instant,
    /// Whether the manifest was on its way.
    is_published: AtomicBool,
}

impl Run<'_> {
    /// All of a set but its manifest. `looked` is a session with the first database, `unfit` the databases that
    /// cannot be planned.
    async fn dump(
        &self,
        source: &Source,
        mut looked: Option<Session>,
        mut unfit: HashMap<String, Error>,
        mut warnings: Vec<String>,
    ) -> Result<Ready> {
        let previous = self.previous(&mut warnings).await;
        let mut databases = Vec::new();
        let mut lacking: Vec<Lacking> = Vec::new();
        let mut roles = Vec::new();
        let last = source.databases.len().saturating_sub(1);
        for (index, name) in source.databases.iter().enumerate() {
            (self.progress)(Event::Phase(format!("dumping {name}")));
            let roles = (index == 0 || index == last).then_some(&mut roles);
            let dumped = match unfit.remove(name) {
                Some(error) => Err(error),
                None => {
                    let dumped = self.dump_database(source, name, looked.take(), roles, &mut warnings).await;
                    dumped.with_context(|| format!("database {name:?}"))
                }
            };
            match dumped {
                Ok(database) => databases.push(database),
                Err(error) => match self.left_out(source, name, error).await? {
                    Some(database) => lacking.push(database),
                    None => warnings
                        .push(format!("database {name:?} was dropped meanwhile and is not in this set")),
                },
            }
        }
        match (databases.is_empty(), lacking.first()) {
            (false, _) => {}
            (true, None) => return Err(Error::new("every database was dropped meanwhile")),
            (true, Some(first)) => {
                return Err(Error::new(first.why.clone()).context("no database could be dumped"));
            }
        }
        if roles.is_empty() {
            roles.push(globals::dump(source, &mut warnings).await?);
        }
        (self.progress)(Event::Phase("finishing".into()));
        let later = roles.pop().unwrap_or_default();
        let sql = match roles.pop() {
            Some(earlier) => globals::merged(&earlier, later)?,
            None => later,
        };
        let globals = Some(self.seal_globals(sql).await?);
        if let Some(previous) = &previous {
            warnings.extend(shrunk::told(previous, &databases, &lacking));
        }
        let mut manifest = Manifest {
            format: FORMAT,
            site: self.config.site.clone(),
            job: self.job.name.clone(),
            id: self.id.clone(),
            started: self.started,
            finished: Utc::now(),
            previous: previous.map(|p| p.id),
            opsd_version: env!("CARGO_PKG_VERSION").into(),
            server: source.server.clone(),
            pg_dump_version: source.tools.version.clone(),
            recipients: self.config.encryption.recipients.clone(),
            globals,
            databases,
            lacking,
            left_out: source.left_out.clone(),
            restore_md: Document { key: set::RESTORE_MD.into(), size: 0, sha256: String::new() },
            warnings,
        };
        let restore_md = restore_md::render(&manifest).into_bytes();
        manifest.restore_md.size = restore_md.len() as u64;
        manifest.restore_md.sha256 = sha256_hex(&restore_md);
        self.put(set::RESTORE_MD, restore_md, false).await?;
        manifest.finished = Utc::now();
        let bytes = manifest.to_bytes()?;
        let sign_key = self.config.encryption.sign_key_file.as_deref();
        if let Some(path) = sign_key {
            let comment = Purpose::Manifest.comment(&manifest.site, &manifest.job, &manifest.id);
            let signature = signature::sign(path, &bytes, &comment)?;
            self.put(set::MANIFEST_SIGNATURE, signature.into_bytes(), false).await?;
        }
        self.check_stored(&manifest).await?;
        lock::check(&source.session).await?;
        Ok(Ready { manifest, bytes, is_signed: sign_key.is_some() })
    }

    /// Whether everything that the manifest will name still lies there: somebody may have swept what he
    /// took for the rest of a killed run. A credential that may only write cannot look.
    async fn check_stored(&self, manifest: &Manifest) -> Result<()> {
        let stored = match self.store.list(&self.prefix).await {
            Ok(stored) => stored,
            Err(StoreError::Denied(why) | StoreError::Unsupported(why)) => {
                tracing::debug!("what is stored is not listed: {why}");
                return Ok(());
            }
            Err(error) => return Err(Error::from(error).context("cannot list what was stored")),
        };
        let size = |key: &str| {
            let key = format!("{}{key}", self.prefix);
            stored.binary_search_by(|o| o.key.cmp(&key)).ok().map(|at| stored[at].size)
        };
        match manifest.stored().find(|o| size(o.key) != Some(o.size)) {
            None => Ok(()),
            Some(gone) => Err(Error::new(format!(
                "{}{} is missing or has another size than was stored, so there is no set",
                self.prefix, gone.key
            ))
            .with_hint("see who removes objects there: a sweep, or a lifecycle rule of the bucket")),
        }
    }

    /// The manifest makes the set exist, if nobody else wrote one.
    async fn publish(&self, ready: Ready) -> Result<Created> {
        let Ready { manifest, bytes, is_signed } = ready;
        let manifest_sha256 = sha256_hex(&bytes);
        self.heartbeat.end().await;
        // From here on the set may exist, whatever becomes of the answer.
        self.is_published.store(true, Ordering::Relaxed);
        self.put(set::MANIFEST, bytes, true).await.map_err(|error| match error.kind() {
            Kind::InDoubt => error.with_hint(format!(
                "`opsd backups list {}` tells whether set {} exists; until then count on the one before it",
                self.job.name, self.id
            )),
            _ => error,
        })?;
        Ok(Created { manifest, manifest_sha256, is_signed })
    }

    /// A snapshot, and pg_dumps that hold their locks under it. Without room for the coordinator's own locks
    /// a table can still change before pg_dump's hold; then all starts over.
    async fn take_snapshot(
        &self,
        source: &Source,
        name: &str,
        mut looked: Option<Session>,
        destination: &Destination,
    ) -> Result<Snapshot> {
        let in_recovery = source.server.in_recovery;
        let mut attempt = 1;
        let mut failures = streams::Failures::default();
        loop {
            let session = match looked.take() {
                Some(session) => session,
                None => source.open(name).await?,
            };
            let coordinator = coordinator::start(session, name, in_recovery, self.job).await?;
            // Before the pg_dumps: once they run they are not to wait.
            let large_objects = coordinator.large_object_properties(&destination.secret).await?;
            let dump = source.dump(name, &coordinator.inventory.encoding);
            let running = match streams::start(dump, &coordinator, destination).await {
                Err(error) if attempt < coordinator::START_ATTEMPTS && failures.may_start_over(&error) => {
                    tracing::info!(
                        "{name}: {error}; starting over ({attempt}/{})",
                        coordinator::START_ATTEMPTS
                    );
                    attempt += 1;
                    // Whoever waits behind the locks gets them now.
                    coordinator.close().await;
                    tokio::time::sleep(coordinator::LOCK_PAUSE).await;
                    continue;
                }
                Err(error) => {
                    coordinator.close().await;
                    return Err(error);
                }
                Ok(running) => running,
            };
            match coordinator.changed_table().await? {
                None => {
                    running.open();
                    return Ok(Snapshot { coordinator, large_objects, running });
                }
                Some(table) if attempt < coordinator::START_ATTEMPTS => {
                    tracing::info!("{name}: table {table} changed while the dump started; starting over");
                    attempt += 1;
                    // Two attempts at once would take twice the connections and locks.
                    running.stop().await;
                    coordinator.close().await;
                }
                Some(table) => {
                    running.stop().await;
                    coordinator.close().await;
                    return Err(Error::new(format!("table {table} keeps changing while the dump starts"))
                        .with_hint("run the backup when no migration is running"));
                }
            }
        }
    }

    /// `roles` are dumped as close to the snapshot as can be: one that the schema names should still be
    /// among them.
    async fn dump_database(
        &self,
        source: &Source,
        name: &str,
        looked: Option<Session>,
        roles: Option<&mut Vec<Vec<u8>>>,
        warnings: &mut Vec<String>,
    ) -> Result<Database> {
        let moved = Arc::new(AtomicU64::new(0));
        let destination = Destination {
            store: self.store.clone(),
            prefix: self.prefix.clone(),
            folder: format!("{}/", set::database_component(name)),
            seal: self.seal.clone(),
            secret: RowSecret::generate(),
            progress: self.progress.clone(),
        };
        let destination = drain::counted(destination, moved.clone());
        let Snapshot { coordinator, large_objects, mut running } =
            self.take_snapshot(source, name, looked, &destination).await?;
        let mut said = Vec::new();
        let dumped_roles = async {
            match roles {
                None => {}
                // Roles are no part of this database: where nobody else dumps them, the run tries once more.
                Some(roles) => match globals::dump(source, &mut said).await {
                    Ok(sql) => roles.push(sql),
                    Err(error) => tracing::info!("{error}; later once more"),
                },
            }
        };
        let begun = Instant::now();
        let drained = drain::drain_all(&mut running, &moved, &coordinator, warnings);
        let (drained, ()) = tokio::join!(drained, dumped_roles);
        let dumped = match drained {
            Ok(dumped) => dumped,
            Err(error) => {
                // The next database needs their connections, and nothing of theirs may arrive later.
                running.stop().await;
                coordinator.close().await;
                return Err(error);
            }
        };
        let is_said = |line: &String| warnings.iter().any(|known| known.ends_with(line.as_str()));
        said.retain(|line| !is_said(line));
        warnings.extend(said);
        // What was dumped is not given up for it.
        let left = self.deadline.saturating_duration_since(Instant::now());

        let mut streams: Vec<Stream> = Vec::new();
        let mut archives: Vec<(String, Contents)> = Vec::new();
        for dump in dumped {
            archives.push((dump.stream.name.clone(), dump.contents));
            streams.push(dump.stream);
        }
        let (version, secret) = (&source.server.version, &destination.secret);
        let along = undumped::along::dump(&coordinator, version, &destination, &archives).await?;
        if let Some(dump) = along {
            archives.push((dump.stream.name.clone(), dump.contents));
            streams.push(dump.stream);
        }
        let told = coordinator.told().await?;
        warnings.extend(told.iter().map(|line| format!("{name}: {line}")));
        let computed = coordinator.computed(secret, begun.elapsed(), left / 2).await;
        let found =
            evidence::evidence(&coordinator, &destination.secret, large_objects, computed, &archives)?;
        warnings
            .extend(coordinator.plan.warnings.iter().chain(&found.warnings).map(|w| format!("{name}: {w}")));
        let proof_object = match &found.proof {
            None => None,
            Some(proof) => {
                let key = format!("{}proof.json.zst.age", destination.folder);
                let bytes = serde_json::to_vec(proof)?;
                Some(seal_bytes(self.store.as_ref(), &self.prefix, &key, "proof", bytes, &self.seal).await?)
            }
        };
        Ok(Database {
            name: name.into(),
            locale: coordinator.properties.locale.clone(),
            snapshot_lsn: coordinator.lsn.clone(),
            snapshot_time: coordinator.time,
            extensions: coordinator.properties.extensions.clone(),
            collations: coordinator.properties.collations.clone(),
            excluded: coordinator.plan.excluded.clone(),
            streams,
            proof_object,
            proof: found.state,
            tables: found.tables,
            rows: found.rows,
            bytes: found.bytes,
        })
    }

    async fn seal_globals(&self, sql: Vec<u8>) -> Result<Stream> {
        seal_bytes(self.store.as_ref(), &self.prefix, set::GLOBALS, "globals", sql, &self.seal).await
    }

    /// The set before this one. A credential that may only write cannot know, and has no chain.
    async fn previous(&self, warnings: &mut Vec<String>) -> Option<Manifest> {
        let (store, site, job) = (self.store.as_ref(), &self.config.site, &self.job.name);
        let prefix = set::job_prefix(site, job);
        let listed = match store.list(&prefix).await {
            Err(StoreError::Denied(why)) => {
                tracing::debug!("the set before this one is not known: {why}");
                return None;
            }
            listed => listed,
        };
        let found = async {
            let listed = listed.with_context(|| format!("listing {prefix} in {}", store.describe()))?;
            let entries = catalog::group(listed, site).remove(job).unwrap_or_default();
            let newest = catalog::newest_complete(&entries, self.started);
            let ahead: Vec<String> = newest.ahead.iter().map(|entry| entry.id.clone()).collect();
            warnings.extend(catalog::ahead_warning(&ahead));
            let Some(entry) = newest.entry.cloned() else { return Ok(None) };
            let manifest = set::set_prefix(site, job, &entry.id) + set::MANIFEST;
            if let Err(StoreError::Denied(why)) = store.read(&manifest, 0..1).await {
                tracing::debug!("the set before this one cannot be read: {why}");
                return Ok(None);
            }
            let set = catalog::load_entry(store, &self.config.encryption.trusted, entry).await?;
            Ok::<_, Error>(Some(set.manifest))
        };
        match found.await {
            Ok(manifest) => manifest,
            Err(error) => {
                warnings.push(format!("this set is compared with none before it: {error}"));
                None
            }
        }
    }

    async fn put(&self, name: &str, bytes: Vec<u8>, if_absent: bool) -> Result<()> {
        let key = format!("{}{name}", self.prefix);
        let written = store::put(self.store.as_ref(), &key, bytes, if_absent).await;
        written.map_err(|error| {
            let context = store::writing(self.store.as_ref(), &key, &error);
            Error::from(error).context(context)
        })
    }
}
