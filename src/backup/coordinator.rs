//! One database's snapshot, held open while every pg_dump reads under it.
//!
//! The order is what keeps rows from vanishing: list the tables, lock them ACCESS SHARE (which takes
//! no snapshot), only then export the snapshot, then list again under it and lock the newcomers. A
//! table rewritten or truncated between a snapshot and a lock is dumped as empty, with exit status 0;
//! [`Coordinator::changed_table`] notices by the file the table is stored in. The check is repeated
//! once every pg_dump holds its own locks, so that it also covers the case where the lock table has
//! no room for the coordinator's.
//!
//! Waiting for a lock while holding others would make sessions queue behind us, or drive them into a
//! deadlock that PostgreSQL resolves by ending somebody's migration. So a lock that is not to be had at
//! once makes the coordinator let go of everything, and try again until its patience ends.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::computed;
use super::inventory::{self, Inventory, Properties, Table, is_replaced};
use super::plan::{Plan, plan};
use super::undumped;
use crate::config::{BackupJob, Connection};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, connect_with, error, sqlstate};
use crate::postgres::ident::Name;
use crate::postgres::sql::Sql;
use crate::postgres::{large_objects, limits};
use crate::set::fingerprint::{RowHasher, RowSecret};
use crate::set::proof::{Computed, Fingerprint};

/// How often lists may change under our hands before we give up: a schema that changes this often
/// within seconds is being migrated.
const ATTEMPTS: u32 = 5;
/// How often all is let go and begun anew because something changed, or was locked, after the snapshot
/// was taken and before every pg_dump held its locks. A migration that goes through the schema table by
/// table is in the way of several in a row.
pub const START_ATTEMPTS: u32 = 20;
/// How long a pg_dump waits for a lock while the others and the coordinator hold theirs. Whoever wants
/// ACCESS EXCLUSIVE meanwhile waits as long behind us; then all is let go, and the snapshot taken anew.
pub const LOCK_TIMEOUT: &str = "2s";
/// The same for the coordinator: below PostgreSQL's `deadlock_timeout`, which is a second.
const OWN_LOCK_TIMEOUT: &str = "500ms";
/// How long a table may stay locked, while we hold nothing, before the backup fails: a migration that
/// rewrites a table takes minutes.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);
/// How long it is waited for without a word: most locks are held for less.
const LOCK_SILENCE: Duration = Duration::from_secs(3);
/// Between two attempts, so that whoever waits gets the turn.
pub const LOCK_PAUSE: Duration = Duration::from_secs(1);
/// What money is written in: every host has it, and nothing is lost. The manifest records what the
/// coordinator's session says, and a restore reads under the same.
pub const MONETARY: &str = "C";
/// A server that does not say within this what its sessions do is asked again later.
const ACTIVITY_BOUND: Duration = Duration::from_secs(5);
/// Tables named in one LOCK statement.
const LOCK_BATCH: usize = 200;

/// The session that holds the snapshot.
pub struct Coordinator {
    session: Session,
    /// `pg_dump --snapshot`'s argument.
    pub snapshot: String,
    /// A WAL position just before the snapshot: what was committed by then is in it.
    pub lsn: String,
    /// The server's clock at that position.
    pub time: DateTime<Utc>,
    /// Tables and sequences under the snapshot.
    pub inventory: Inventory,
    /// The database itself.
    pub properties: Properties,
    /// What will be dumped.
    pub plan: Plan,
}

/// Connects to `database`, for a look at it or for its snapshot. No statement of the session waits for a lock for
/// long, so that whoever is in the way can be named: even a table's size is behind one.
pub async fn open(connection: &Connection, database: &str, application_name: &str) -> Result<Session> {
    // A list of many tables looks expensive enough to be compiled, which takes longer than it.
    let settings = [("lock_timeout", OWN_LOCK_TIMEOUT), ("lc_monetary", MONETARY), ("jit", "off")];
    let session = connect_with(connection, Some(database), application_name, &settings).await?;
    session.without_conversion().await
}

/// Waiting for who holds a table, while we hold nothing.
struct Patience {
    begun: Instant,
    has_spoken: bool,
}

impl Patience {
    fn new() -> Self {
        Self { begun: Instant::now(), has_spoken: false }
    }

    /// Waits for a moment, and says for whom after the first few; an error once it has been long enough.
    async fn wait(&mut self, session: &Session, database: &str) -> Result<()> {
        let waited = self.begun.elapsed();
        if waited > LOCK_PATIENCE {
            let Locker { who, end } = locker(session).await;
            let patience = LOCK_PATIENCE.as_secs();
            return Err(Error::new(format!("a table was locked by others for {patience} s: {who}"))
                .with_hint(format!("run the backup when no migration is running, or end that: {end}")));
        }
        if waited > LOCK_SILENCE && !self.has_spoken {
            let Locker { who, end } = locker(session).await;
            let patience = LOCK_PATIENCE.as_secs();
            tracing::warn!("{database}: {who}; waiting for it, up to {patience} s ({end} ends it)");
            self.has_spoken = true;
        }
        tokio::time::sleep(LOCK_PAUSE).await;
        Ok(())
    }
}

/// Whether a statement waited for a lock for too long.
fn is_locked(error: &Error) -> bool {
    sqlstate(error) == Some(SqlState::LOCK_NOT_AVAILABLE.code())
}

/// Plans without locking or exporting anything.
pub async fn preview(session: &Session, database: &str, in_recovery: bool, job: &BackupJob) -> Result<Plan> {
    let mut patience = Patience::new();
    loop {
        match look(session, database, in_recovery, job).await {
            Err(error) if is_locked(&error) => patience.wait(session, database).await?,
            looked => return looked,
        }
    }
}

async fn look(session: &Session, database: &str, in_recovery: bool, job: &BackupJob) -> Result<Plan> {
    inventory::check_settings(&session.client).await?;
    let inventory = inventory::read(&session.client, None).await?;
    let capacity = limits::capacity(&session.client, session.major()).await?;
    let mut plan = plan(database, &inventory, capacity, in_recovery, job)?;
    session.client.batch_execute("BEGIN READ ONLY").await.map_err(error)?;
    plan.warnings.extend(undumped::told(&session.client, &plan.undumped).await?);
    session.client.batch_execute("ROLLBACK").await.map_err(error)?;
    Ok(plan)
}

/// Takes the snapshot, starting over while the schema changes underneath. A session that has looked at
/// the database before has ten thousand tables in its cache, and takes half a second less for them.
pub async fn start(
    session: Session,
    database: &str,
    in_recovery: bool,
    job: &BackupJob,
) -> Result<Coordinator> {
    let version = session.server_version_num;
    let mut patience = Patience::new();
    let mut attempt = 1;
    let Taken { snapshot, position: (lsn, time), inventory, properties, plan } = loop {
        let attempted = match attempt_snapshot(&session, database, in_recovery, job, version).await {
            Err(failure) if is_locked(&failure) => {
                session.client.batch_execute("ROLLBACK").await.map_err(error)?;
                Attempt::Locked
            }
            attempted => attempted?,
        };
        match attempted {
            Attempt::Taken(taken) => break *taken,
            Attempt::Locked => patience.wait(&session, database).await?,
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
    Ok(Coordinator { session, snapshot, lsn, time, inventory, properties, plan })
}

struct Taken {
    snapshot: String,
    position: (String, DateTime<Utc>),
    inventory: Inventory,
    properties: Properties,
    plan: Plan,
}

enum Attempt {
    Taken(Box<Taken>),
    Changed(String),
    /// Another session holds a table, or waits for it.
    Locked,
}

async fn attempt_snapshot(
    session: &Session,
    database: &str,
    in_recovery: bool,
    job: &BackupJob,
    version: u32,
) -> Result<Attempt> {
    let client = &session.client;
    let before = inventory::read(client, None).await?;
    let capacity = limits::capacity(client, session.major()).await?;
    let lock_first = plan(database, &before, capacity, in_recovery, job)?.lock_first;

    // Within the transaction the query would itself take the snapshot, and what is committed between that
    // and the answer would be promised and not there.
    let position = inventory::position(client).await?;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await.map_err(error)?;
    if lock_first {
        let set = Sql::new("SET LOCAL lock_timeout = ").literal(OWN_LOCK_TIMEOUT);
        set.run(client).await.map_err(error)?;
        let tables: Vec<&Table> = before.tables.iter().collect();
        if let Some(instead) = lock(session, &tables).await? {
            return Ok(instead);
        }
    }
    let row = client.query_one("SELECT pg_export_snapshot()", &[]).await.map_err(error);
    let snapshot: String = row.context("cannot export a snapshot")?.get(0);
    let inventory = inventory::read(client, Some(&before)).await?;
    if lock_first && let Some(instead) = lock(session, &inventory::newcomers(&before, &inventory)).await? {
        return Ok(instead);
    }
    if let Some(table) = inventory::rewritten(client).await?.first() {
        client.batch_execute("ROLLBACK").await.map_err(error)?;
        return Ok(Attempt::Changed(format!("table {table} was rewritten")));
    }
    let plan = plan(database, &inventory, capacity, in_recovery, job)?;
    let properties = inventory::properties(client, version).await?;
    Ok(Attempt::Taken(Box::new(Taken { snapshot, position, inventory, properties, plan })))
}

/// Locks tables ACCESS SHARE; where that does not work, the transaction is over, and this says why.
async fn lock(session: &Session, tables: &[&Table]) -> Result<Option<Attempt>> {
    // What cannot be named cannot be locked; the files that tables are stored in are watched anyway.
    // Nor what may not be read: an extension's tables, which it makes again itself (the plan has refused
    // others).
    let is_lockable = |t: &&&Table| !is_replaced(&t.display()) && (t.is_readable || !t.is_extension_member);
    let tables: Vec<&&Table> = tables.iter().filter(is_lockable).collect();
    for batch in tables.chunks(LOCK_BATCH) {
        let names = batch.iter().map(|t| Sql::new("ONLY ").qualified(&t.schema, &t.name));
        let sql = Sql::new("LOCK TABLE ").join(names, ", ").then(" IN ACCESS SHARE MODE");
        let Err(failure) = sql.run(&session.client).await else { continue };
        if session.client.is_closed() {
            return Err(error(failure).context("cannot lock the tables to dump"));
        }
        session.client.batch_execute("ROLLBACK").await.map_err(error)?;
        let code = failure.code().unwrap_or(&SqlState::SUCCESSFUL_COMPLETION);
        let gone = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME, SqlState::WRONG_OBJECT_TYPE];
        if gone.contains(code) {
            return Ok(Some(Attempt::Changed("a table was dropped".into())));
        }
        if [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].contains(code) {
            return Ok(Some(Attempt::Locked));
        }
        return Err(error(failure).context("cannot lock the tables to dump"));
    }
    Ok(None)
}

/// Who is in the way, and what ends that.
struct Locker {
    who: String,
    end: String,
}

/// Who holds a table of this database, or waits for it, in the way that keeps everybody else out. A prepared
/// transaction holds it without a session, until somebody ends it. Best effort: the lock may be gone by now.
async fn locker(session: &Session) -> Locker {
    let found = session
        .client
        .query_opt(
            "SELECT CASE WHEN p.gid IS NULL
                         THEN format('table %s is locked by pid %s%s%s', l.relation::regclass, coalesce(l.pid::text, 'unknown'),
                                     ', role ' || a.usename, ', ' || nullif(a.application_name, ''))
                         ELSE format('table %s is locked by the prepared transaction %L of role %s, prepared %s',
                                     l.relation::regclass, p.gid, p.owner, p.prepared) END,
                    CASE WHEN p.gid IS NULL THEN format('SELECT pg_terminate_backend(%s)', l.pid)
                         ELSE format('COMMIT PREPARED or ROLLBACK PREPARED %L', p.gid) END
               FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
               LEFT JOIN pg_locks own ON l.pid IS NULL AND own.pid IS NULL AND own.locktype = 'transactionid'
                                     AND own.virtualtransaction = l.virtualtransaction
               LEFT JOIN pg_prepared_xacts p ON p.transaction = own.transactionid
              WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.relation >= 16384
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
              ORDER BY l.granted DESC, p.gid LIMIT 1",
            &[],
        )
        .await;
    let unknown = || Locker {
        who: "a table is locked by another session".to_owned(),
        end: "pg_locks names it; its end".to_owned(),
    };
    found
        .ok()
        .flatten()
        .map_or_else(unknown, |row| Locker { who: row.get::<_, Name>(0).0, end: row.get::<_, Name>(1).0 })
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
        large_objects::properties(&self.session.client, |line| hasher.copied(line)).await?;
        Ok(Some(hasher.take()))
    }

    /// Fingerprints of what a restore computes anew, once the dumps are stored, which took so long.
    pub async fn computed(&self, secret: &RowSecret, took: Duration, most: Duration) -> Vec<Computed> {
        computed::read(&self.session.client, &self.inventory, &self.plan, secret, took, most).await
    }

    /// Which tables hold rows that are not in the set, a sentence for each kind.
    pub async fn told(&self) -> Result<Vec<String>> {
        undumped::told(&self.session.client, &self.plan.undumped).await
    }

    /// The session of the snapshot.
    pub fn client(&self) -> &Client {
        &self.session.client
    }

    /// Lets go of the snapshot and the locks, and returns when the server has.
    pub async fn close(self) {
        self.session.close().await;
    }

    /// What the other sessions of this run did last. Best effort: it changes as long as one of them goes on.
    pub async fn activity(&self) -> String {
        let client = &self.session.client;
        let asked = async {
            // Within a transaction the server says what it said first.
            client.batch_execute("SELECT pg_stat_clear_snapshot()").await?;
            client.query_one(
            "SELECT coalesce(string_agg(format('%s %s %s', pid, query_start, state_change), ' ' ORDER BY pid), '')
               FROM pg_stat_activity
              WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()",
            &[],
            ).await
        };
        match tokio::time::timeout(ACTIVITY_BOUND, asked).await {
            Ok(Ok(row)) => row.get(0),
            Ok(Err(_)) | Err(_) => String::new(),
        }
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
