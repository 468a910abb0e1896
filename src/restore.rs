//! Restoring a set: into a server that is there (`to`), or into a scratch server, to prove it
//! (`verify`). Streams go in (`load`, by `copy` and `pg_restore`), what came out is read back (`prove`,
//! `definitions`).
//!
//! What is restored is code that the dumped database's users wrote, and it runs with the restoring
//! role's privileges: a rehearsal's server therefore runs as a user with nothing worth stealing in
//! reach.

pub mod analyze;
mod assertions;
pub mod builds;
pub mod collations;
pub mod complaints;
pub mod computed;
pub mod copy;
mod coverage;
pub mod databases;
pub mod definitions;
pub mod extensions;
pub mod foreign_keys;
pub mod identity;
pub mod large_objects;
pub mod load;
pub mod pg_restore;
pub mod prove;
mod record;
pub mod refresh;
mod rehearsal_server;
pub mod rest;
pub mod role_changes;
pub mod role_proof;
pub mod role_updates;
pub mod roles;
pub mod selection;
pub mod subscriptions;
pub mod swap;
pub mod target;
pub mod to;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::selection::Wanted;
use crate::config::{Config, Connection, REFRESH_TIMEOUT, keys};
use crate::error::{Error, Result};
use crate::postgres::connect::{self, Session, error};
use crate::postgres::properties::Properties;
use crate::postgres::settings;
use crate::postgres::tools::Tools;
use crate::progress::Progress;
use crate::set;
use crate::set::globals::Globals;
use crate::set::manifest::{Database, Manifest};
use crate::set::proof::Proof;
use crate::set::seal::{Identities, read_bytes};
use crate::store::Store;

/// Triggers that the dump brings along must not fire while it is restored.
const NO_TRIGGERS: (&str, &str) = ("session_replication_role", "replica");
/// Most bytes of a proof or of globals that are held in memory: a million tables fit.
const MAX_DOCUMENT: u64 = 512 << 20;

/// Where a database is restored to.
#[derive(Clone)]
pub struct Target {
    /// pg_restore, and how it is started.
    pub tools: Tools,
    /// The server.
    pub connection: Connection,
    /// The database, which exists and is empty.
    pub dbname: String,
    /// Streams and index builds at the same time.
    pub jobs: usize,
    /// Whether our role may set what only superusers may.
    pub is_superuser: bool,
    /// Tablespaces there; where the set needs another, all of it goes into the default one.
    pub tablespaces: Vec<String>,
    /// `lc_monetary` that the set's money is written in; absent where the server does not have it.
    pub monetary: Option<String>,
    /// What the operator wants set in each session, such as `maintenance_work_mem`.
    pub settings: BTreeMap<String, String>,
    /// What is not restored.
    pub left_out: LeftOut,
    /// The part of the set that is; absent where all of it is.
    pub wanted: Option<Arc<Wanted>>,
    /// How long materialized views may take that ask other servers.
    pub refresh_timeout: Duration,
}

/// What of a set is not restored, in the words of pg_restore's options.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeftOut {
    /// Who owns what: all of it belongs to the restoring role.
    pub owner: bool,
    /// GRANT and REVOKE.
    pub privileges: bool,
    /// COMMENT.
    pub comments: bool,
}

impl LeftOut {
    /// As pg_restore is told it.
    fn arguments(self) -> impl Iterator<Item = &'static str> {
        let said = [
            (self.owner, "--no-owner"),
            (self.privileges, "--no-privileges"),
            (self.comments, "--no-comments"),
        ];
        said.into_iter().filter(|(is_left_out, _)| *is_left_out).map(|(_, argument)| argument)
    }
}

impl Target {
    /// A database of a scratch server, whose settings are those of a rehearsal already.
    fn of_scratch(tools: Tools, connection: Connection, jobs: usize) -> Self {
        Self {
            tools,
            dbname: connection.dbname.clone(),
            connection,
            jobs,
            is_superuser: true,
            tablespaces: Vec::new(),
            monetary: None, // a setting of the database
            settings: BTreeMap::new(),
            left_out: LeftOut::default(),
            wanted: None,
            refresh_timeout: REFRESH_TIMEOUT,
        }
    }

    /// What is set in each session, beside what is pinned for all. What the operator wants comes first, and what
    /// the restore depends on has the last word.
    fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        let operators = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        // What a server says decides what is done.
        let superusers = self.is_superuser.then_some([NO_TRIGGERS, ("lc_messages", "C")]);
        let monetary = self.monetary.iter().map(|value| ("lc_monetary", value.as_str()));
        operators.chain(superusers.into_iter().flatten()).chain(monetary)
    }

    /// A session in the database, with these settings as well.
    async fn connect(&self, more: &[(&str, &str)]) -> Result<Session> {
        let settings: Vec<(&str, &str)> = self.settings().chain(more.iter().copied()).collect();
        connect::connect_with(&self.connection, Some(&self.dbname), "opsd restore", &settings).await
    }
}

/// An error where the operator wants something else than what a restore depends on.
fn check_settings(wanted: &BTreeMap<String, String>) -> Result<()> {
    const OURS: [&str; 4] = ["session_replication_role", "lc_messages", "lc_monetary", "search_path"];
    let is_ours = |name: &&String| settings::value(name).is_some() || OURS.contains(&name.as_str());
    match wanted.keys().find(is_ours) {
        None => Ok(()),
        Some(name) => Err(Error::usage(format!("restore.settings.{name}: a restore sets this itself"))
            .with_hint("remove it from [restore]")),
    }
}

/// Where a set's streams come from.
#[derive(Clone)]
pub struct Origin {
    /// The repository.
    pub store: Arc<dyn Store>,
    /// The set's prefix.
    pub prefix: String,
    /// Who can read it.
    pub identities: Identities,
    /// Who listens.
    pub progress: Progress,
}

/// The identities, or what to do about their absence.
pub fn identities(config: &Config) -> Result<Identities> {
    let path: &Path = config.encryption.identity_file.as_deref().ok_or_else(|| {
        Error::usage("encryption.identity_file is not set, and nothing can be decrypted without it")
            .with_hint("set it in [encryption] on the host where restores and rehearsals run")
    })?;
    Ok(Arc::new(keys::identities(path)?))
}

/// Where a set's streams come from.
pub fn origin(
    store: Arc<dyn Store>,
    manifest: &Manifest,
    identities: Identities,
    progress: Progress,
) -> Origin {
    let prefix = set::set_prefix(&manifest.site, &manifest.job, &manifest.id);
    Origin { store, prefix, identities, progress }
}

/// The proof of one database, where it has one.
async fn read_proof(origin: &Origin, database: &Database) -> Result<Option<Proof>> {
    let Some(stream) = &database.proof_object else { return Ok(None) };
    let bytes = read_document(origin, stream).await?;
    let proof: Proof = serde_json::from_slice(&bytes)
        .map_err(|e| Error::differs(e).context(format!("proof of {:?} is damaged", database.name)))?;
    if proof.format != crate::set::manifest::FORMAT {
        return Err(Error::new(format!("proof has format {}, which this opsd does not read", proof.format)));
    }
    Ok(Some(proof))
}

/// The dumped database's owner, privileges and settings.
fn own_properties(proof: &Proof) -> Properties {
    Properties {
        owner: proof.owner.clone(),
        acl: proof.acl.clone(),
        comment: proof.comment.clone(),
        connection_limit: proof.connection_limit,
        settings: proof.settings.clone(),
        is_template: proof.is_template,
        tablespace: proof.tablespace.clone(),
        labels: proof.labels.clone(),
    }
}

/// Refuses a server that lacks an extension of these databases.
async fn check_extensions(admin: &Session, databases: &[Database]) -> Result<()> {
    let rows =
        admin.client.query("SELECT name::text FROM pg_available_extensions", &[]).await.map_err(error)?;
    let available: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let wanted = databases.iter().flat_map(|d| &d.extensions).map(|e| e.name.as_str());
    let missing: BTreeSet<&str> = wanted.filter(|name| !available.iter().any(|a| a == name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<&str> = missing.into_iter().collect();
    Err(Error::new(format!("extension {} is not available on the server", missing.join(", ")))
        .with_hint("install it for the PostgreSQL that is restored into; the set itself is not in question"))
}

/// Roles that the session's server has.
async fn existing_roles(admin: &Session) -> Result<BTreeSet<String>> {
    let rows = admin.client.query("SELECT rolname::text FROM pg_roles", &[]).await.map_err(error)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The set's roles; none where the set has no globals.
async fn read_globals(origin: &Origin, manifest: &Manifest) -> Result<Globals> {
    let Some(stream) = &manifest.globals else { return Ok(Globals::default()) };
    Globals::parse(&String::from_utf8_lossy(&read_document(origin, stream).await?))
}

async fn read_document(origin: &Origin, stream: &set::manifest::Stream) -> Result<Vec<u8>> {
    read_bytes(origin.store.clone(), &origin.prefix, stream, origin.identities.clone(), MAX_DOCUMENT).await
}
