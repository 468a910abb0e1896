//! One database's snapshot, held open while every pg_dump reads under it.
//!
//! The order is what keeps rows from vanishing: list the tables, lock them ACCESS SHARE (which takes
//! no snapshot), only then export the snapshot, then list again under it and lock the newcomers. A
//! table rewritten or truncated between a snapshot and a lock is dumped as empty, with exit status 0;
//! [`Coordinator::changed_table`] notices by the file the table is stored in. The check is repeated
//! once every pg_dump holds its own locks, so that it also covers the case where the lock table has
//! no room for the coordinator's.

use chrono::{DateTime, Utc};
use tokio_postgres::error::SqlState;

use super::inventory::{self, Capacity, Inventory, Properties, Table, is_replaced};
use super::plan::{Plan, plan};
use crate::config::{BackupJob, Connection};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, connect_with, error};
use crate::postgres::large_objects;
use crate::set::fingerprint::{RowHasher, RowSecret};
use crate::set::proof::Fingerprint;

/// How often lists may change under our hands before we give up: a schema that changes this often
/// within seconds is being migrated.
pub const ATTEMPTS: u32 = 5;
/// How long one LOCK may wait behind an ACCESS EXCLUSIVE lock, and with it how long a queue of
/// others may form behind ours.
pub const LOCK_TIMEOUT: &str = "60s";
/// What money is written in: every host has it, and nothing is lost. The manifest records what the
/// coordinator's session says, and a restore reads under the same.
pub const MONETARY: &str = "C";
/// Tables named in one LOCK statement.
const LOCK_BATCH: usize = 200;

/// The session that holds the snapshot.
pub struct Coordinator {
    session: Session,
    /// `pg_dump --snapshot`'s argument.
    pub snapshot: String,
    /// WAL position at the snapshot.
    pub lsn: String,
    /// The server's clock at the snapshot.
    pub time: DateTime<Utc>,
    /// Tables and sequences under the snapshot.
    pub inventory: Inventory,
    /// The database itself.
    pub properties: Properties,
    /// What will be dumped.
    pub plan: Plan,
}

/// Connects to `database` and plans without locking or exporting anything.
pub async fn preview(
    connection: &Connection,
    database: &str,
    in_recovery: bool,
    job: &BackupJob,
    application_name: &str,
) -> Result<Plan> {
    let session = connect_bounded(connection, database, application_name).await?;
    keep_open(&session).await?;
    let inventory = inventory::read(&session.client).await?;
    let capacity = inventory::capacity(&session.client).await?;
    plan(database, &inventory, capacity, in_recovery, job)
}

/// No statement may wait for a lock without end: even a table's size is behind one.
async fn connect_bounded(connection: &Connection, database: &str, application_name: &str) -> Result<Session> {
    let settings = [("lock_timeout", LOCK_TIMEOUT), ("lc_monetary", MONETARY)];
    connect_with(connection, Some(database), application_name, &settings).await?.without_conversion().await
}

/// Takes the snapshot, starting over while the schema changes underneath.
pub async fn start(
    connection: &Connection,
    database: &str,
    in_recovery: bool,
    job: &BackupJob,
    application_name: &str,
) -> Result<Coordinator> {
    let session = connect_bounded(connection, database, application_name).await?;
    keep_open(&session).await?;
    let version = session.server_version_num;
    let mut attempt = 1;
    let (snapshot, inventory, properties, plan) = loop {
        match attempt_snapshot(&session, database, in_recovery, job, version).await? {
            Attempt::Taken(taken) => break *taken,
            Attempt::Changed(what) if attempt < ATTEMPTS => {
                tracing::info!(
                    "{database}: {what} while the snapshot was taken; starting over ({attempt}/{ATTEMPTS})"
                );
                attempt += 1;
            }
            Attempt::Changed(what) => {
                return Err(Error::new(format!("the schema of {database:?} keeps changing: {what}"))
                    .with_hint("run the backup when no migration is running"));
            }
        }
    };
    let (lsn, time) = inventory::position(&session.client).await?;
    Ok(Coordinator { session, snapshot, lsn, time, inventory, properties, plan })
}

/// Switches off the timeouts that end sessions which hold something and are otherwise idle for hours.
pub async fn keep_open(session: &Session) -> Result<()> {
    let mut timeouts = vec!["idle_in_transaction_session_timeout", "statement_timeout"];
    if session.server_version_num >= 140_000 {
        timeouts.push("idle_session_timeout");
    }
    if session.server_version_num >= 170_000 {
        timeouts.push("transaction_timeout");
    }
    let sql: Vec<String> = timeouts.iter().map(|name| format!("SET {name} = 0")).collect();
    session.client.batch_execute(&sql.join("; ")).await.map_err(error).context("cannot keep the session open")
}

enum Attempt {
    Taken(Box<(String, Inventory, Properties, Plan)>),
    Changed(String),
}

async fn attempt_snapshot(
    session: &Session,
    database: &str,
    in_recovery: bool,
    job: &BackupJob,
    version: u32,
) -> Result<Attempt> {
    let client = &session.client;
    let before = inventory::read(client).await?;
    let capacity: Capacity = inventory::capacity(client).await?;
    let lock_first = plan(database, &before, capacity, in_recovery, job)?.lock_first;

    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await.map_err(error)?;
    if lock_first {
        let tables: Vec<&Table> = before.tables.iter().collect();
        if let Some(changed) = lock(session, &tables).await? {
            return Ok(Attempt::Changed(changed));
        }
    }
    let row = client.query_one("SELECT pg_export_snapshot()", &[]).await.map_err(error);
    let snapshot: String = row.context("cannot export a snapshot")?.get(0);
    let inventory = inventory::read(client).await?;
    if lock_first && let Some(changed) = lock(session, &inventory::newcomers(&before, &inventory)).await? {
        return Ok(Attempt::Changed(changed));
    }
    if let Some(table) = inventory::rewritten(client).await?.first() {
        client.batch_execute("ROLLBACK").await.map_err(error)?;
        return Ok(Attempt::Changed(format!("table {table} was rewritten")));
    }
    let plan = plan(database, &inventory, capacity, in_recovery, job)?;
    let properties = inventory::properties(client, version).await?;
    Ok(Attempt::Taken(Box::new((snapshot, inventory, properties, plan))))
}

/// Locks tables ACCESS SHARE; says what changed where one of them is gone.
async fn lock(session: &Session, tables: &[&Table]) -> Result<Option<String>> {
    // What cannot be named cannot be locked; the files that tables are stored in are watched anyway.
    let tables: Vec<&&Table> = tables.iter().filter(|t| !is_replaced(&t.display())).collect();
    for batch in tables.chunks(LOCK_BATCH) {
        let names: Vec<String> = batch.iter().map(|t| format!("ONLY {}", t.quoted())).collect();
        let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
        let Err(failure) = session.client.batch_execute(&sql).await else { continue };
        let code = failure.code().cloned();
        session.client.batch_execute("ROLLBACK").await.map_err(error)?;
        let gone = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME, SqlState::WRONG_OBJECT_TYPE];
        if code.as_ref().is_some_and(|c| gone.contains(c)) {
            return Ok(Some("a table was dropped".into()));
        }
        let failure = error(failure).context("cannot lock the tables to dump");
        return Err(if code == Some(SqlState::LOCK_NOT_AVAILABLE) {
            failure.with_hint(format!(
                "another session holds ACCESS EXCLUSIVE on one of them for longer than {LOCK_TIMEOUT}; see pg_locks"
            ))
        } else {
            failure
        });
    }
    Ok(None)
}

impl Coordinator {
    /// A table that was rewritten, renamed or dropped since the snapshot. Asked once every pg_dump
    /// holds its locks.
    pub async fn changed_table(&self) -> Result<Option<String>> {
        Ok(inventory::rewritten(&self.session.client).await?.into_iter().next())
    }

    /// Owners, privileges and comments of large objects, where there are any, as the snapshot has them.
    pub async fn large_object_properties(&self, secret: &RowSecret) -> Result<Option<Fingerprint>> {
        if self.inventory.large_objects == 0 {
            return Ok(None);
        }
        let mut hasher = RowHasher::new(secret);
        large_objects::properties(&self.session.client, |line| hasher.row(line)).await?;
        Ok(Some(hasher.take()))
    }

    /// Keeps the session from looking dead.
    pub async fn heartbeat(&self) -> Result<()> {
        self.session
            .client
            .batch_execute("SELECT")
            .await
            .map_err(error)
            .context("the snapshot's session is gone")
    }

    /// PostgreSQL's version number.
    pub fn server_version_num(&self) -> u32 {
        self.session.server_version_num
    }
}
