//! What a restore has to know of the server that it goes to, before it asks for anything there.
//!
//! A standby takes nothing. An older server may not know what is in the set. And event triggers of the databases that
//! a restore connects to are off, as they are on a scratch server: one on logins would refuse the restore's own
//! sessions or leave rows of theirs, and a guard against changes would refuse what follows it. A replica's sessions are
//! enough for most of them; those that always fire have a setting of their own from 17 on. Before that they fire in a
//! rehearsal and in a restore alike.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::to::{Options, connect_admin};
use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, connect, error, is_starting};
use crate::postgres::limits;
use crate::progress::{Event, Progress};
use crate::set::manifest::{Database, Manifest, Stream, TRANSACTION_SIZE};

/// How long a server that starts is waited for, as a multiple of how long a connection may take (a minute by default),
/// and how often it is asked. A container that was just started makes its cluster first.
const START_TIMEOUTS: u32 = 6;
const START_POLL: Duration = Duration::from_millis(250);

/// What turns event triggers off, and the first major that has it.
const NO_EVENT_TRIGGERS: (u32, &str) = (17, "-c event_triggers=off");

/// A database that a restored one takes the place of, as a person would know it.
#[derive(Debug, Clone)]
pub struct Replaced {
    /// The server and the database, as a URL without a password.
    pub url: String,
    /// The database.
    pub name: String,
    /// Bytes; absent where our role may not see that.
    pub size: Option<u64>,
    /// Tables, views, sequences and large objects.
    pub objects: u64,
    /// Sessions that use it.
    pub sessions: u64,
    /// When it was made; only superusers and members of pg_read_server_files see that.
    pub made: Option<DateTime<Utc>>,
}

/// What of a database a person would know it by.
pub async fn describe(admin: &Session, connection: &Connection, objects: u64) -> Result<Replaced> {
    let name = &connection.dbname;
    let sessions = admin
        .client
        .query_one("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", &[name])
        .await
        .map_err(error)
        .context("cannot count the sessions of the database")?;
    // The server refuses either of these to roles that may nevertheless restore.
    let size = admin.client.query_one("SELECT pg_database_size($1::text::name)", &[name]).await;
    // The file is written once, with the database.
    let made = admin
        .client
        .query_one(
            "SELECT extract(epoch FROM (pg_stat_file('base/' || oid || '/PG_VERSION')).modification)::int8
               FROM pg_database WHERE datname = $1",
            &[name],
        )
        .await;
    Ok(Replaced {
        url: connection.describe(),
        name: name.clone(),
        size: size.ok().and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()),
        objects,
        sessions: u64::try_from(sessions.get::<_, i64>(0)).unwrap_or(0),
        made: made.ok().and_then(|row| DateTime::from_timestamp(row.try_get(0).ok()?, 0)),
    })
}

/// The same options with a connection for whose sessions no event trigger fires, where our role may have that; and
/// what the operator should know.
pub async fn look(
    options: &Options,
    manifest: &Manifest,
    progress: &Progress,
) -> Result<(Options, Vec<String>)> {
    let mut options = options.clone();
    let admin = connect_once_up(&options.connection, progress).await?;
    let row = admin
        .client
        .query_one("SELECT rolsuper, pg_is_in_recovery() FROM pg_roles WHERE rolname = session_user", &[])
        .await
        .map_err(error)?;
    let (is_superuser, is_standby): (bool, bool) = (row.get(0), row.get(1));
    if is_standby {
        return Err(Error::new(format!("{} is a standby, and read-only", options.connection.describe()))
            .with_hint("restore into its primary, or into a server of its own"));
    }
    let (since, setting) = NO_EVENT_TRIGGERS;
    if is_superuser && admin.major() >= since {
        let own = options.connection.options.take();
        let all: Vec<&str> = own.as_deref().into_iter().chain([setting]).collect();
        options.connection.options = Some(all.join(" "));
    }
    let of_set = manifest.server.version_num / 10_000;
    let newer = (of_set > admin.major()).then(|| {
        format!(
            "the set is of PostgreSQL {of_set}, and the server is {}: what the older one does not know is not restored",
            admin.major()
        )
    });
    admin.close().await;
    Ok((options, newer.into_iter().collect()))
}

/// A session beside the database, once the server is up: whoever restores has often just started it.
async fn connect_once_up(connection: &Connection, progress: &Progress) -> Result<Session> {
    let begun = Instant::now();
    let bound = connection.connect_timeout.saturating_mul(START_TIMEOUTS);
    let mut is_told = false;
    loop {
        match connect_admin(connection).await {
            Err(error) if is_starting(&error) && begun.elapsed() < bound => {
                if !is_told {
                    let waits = format!("waiting for the server for up to {} s", bound.as_secs());
                    tracing::warn!("{error}; {waits}");
                    progress(Event::Phase(waits));
                    is_told = true;
                }
                tokio::time::sleep(START_POLL).await;
            }
            done => return done,
        }
    }
}

/// A database that was made by somebody else: rows may only go in where the server looks at every byte.
/// Where one side is SQL_ASCII, it does not.
pub async fn check_encoding(
    session: &Session,
    name: &str,
    encoding: &str,
    database: &Database,
) -> Result<Option<String>> {
    let wanted = &database.locale.encoding;
    if encoding == wanted {
        return Ok(None);
    }
    let converts = session
        .client
        .query_opt(
            "SELECT FROM pg_conversion WHERE condefault AND conforencoding = pg_char_to_encoding($1::text::name)
                AND contoencoding = pg_char_to_encoding($2::text::name) LIMIT 1",
            &[wanted, &encoding],
        )
        .await
        .map_err(error)
        .context("cannot see what the server converts")?;
    if converts.is_some() && ![encoding, wanted].contains(&"SQL_ASCII") {
        return Ok(Some(format!(
            "the set is in {wanted}, the database in {encoding}: the server converted what it has"
        )));
    }
    Err(Error::new(format!(
        "database {name:?} is in {encoding}, the set in {wanted}, and the server does not convert one to the other"
    ))
    .with_hint(format!("name a database that is not there and say --create, or make an empty one in {wanted}")))
}

/// How many tables, views, sequences and large objects a database holds.
pub async fn count_objects(connection: &Connection) -> Result<u64> {
    let session = connect(connection, None, "opsd restore").await?;
    let row = session
        .client
        .query_one(
            "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                      WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
                  + (SELECT count(*) FROM pg_largeobject_metadata)",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot see what the database holds")?;
    session.close().await;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// Whether the server's lock table, which its applications share, has room for the transactions that load the
/// set. Else they would end after hours.
pub async fn room_for_locks(admin: &Session, database: &Database, jobs: usize) -> Result<()> {
    let needed = locks_of_load(&database.streams, jobs);
    let capacity = limits::capacity(&admin.client, admin.major()).await?;
    if needed <= capacity.free_locks {
        return Ok(());
    }
    Err(Error::new(format!(
        "loading takes up to {needed} locks at a time, and the server has room for {} ({} in all)",
        capacity.free_locks, capacity.locks
    ))
    .with_hint("raise max_locks_per_transaction and restart PostgreSQL, or restore with --jobs 1"))
}

/// Locks of as many transactions as run at a time, at the most.
fn locks_of_load(streams: &[Stream], jobs: usize) -> u64 {
    let mut locks: Vec<u64> = streams
        .iter()
        .filter(|s| s.name != "schema" && s.name != "full")
        .map(|s| s.locks.unwrap_or(TRANSACTION_SIZE).min(TRANSACTION_SIZE))
        .collect();
    locks.sort_unstable_by(|a, b| b.cmp(a));
    locks.iter().take(jobs.max(1)).sum()
}
