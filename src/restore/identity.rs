//! What a database is that takes another's place: the other's, as far as the server lets it, and the rest is said.
//!
//! Kept are name, owner, privileges, settings, connection limit, comment, tablespace, security labels and whether it
//! is a template; encoding and locale are the set's. What cannot change hands stays with the old database:
//! logical slots, because their place in the log is one that the new database was not there at, and subscriptions.
//! `tests/it/identity.rs` has a table of all that PostgreSQL knows of a database, and fails where it learns more.

use super::databases::Server;
use super::subscriptions::{self, Paused};
use super::swap;
use crate::config::Connection;
use crate::error::{Context, Result};
use crate::postgres::connect::{Session, connect, error};
use crate::postgres::ident::Name;
use crate::postgres::locale::{self, Locale};
use crate::postgres::properties::{self, Applied, Properties};

/// What the locale of the database that is to be replaced has other than the set's, a line each.
pub async fn other_locale(connection: &Connection, wanted: &Locale) -> Result<Vec<String>> {
    let session = connect(connection, None, "opsd restore").await?;
    let name = &connection.dbname;
    let row = session
        .client
        .query_one(
            "SELECT pg_encoding_to_char(encoding)::text FROM pg_database WHERE datname = current_database()",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot read the database's encoding")?;
    let mut lines = locale::differences(&session, name, wanted).await?;
    let encoding: String = row.get(0);
    if encoding != wanted.encoding {
        lines.push(format!("database {name:?} is in {encoding}, the set in {}", wanted.encoding));
    }
    session.close().await;
    Ok(lines.into_iter().map(|line| format!("{line}; the set's takes its place")).collect())
}

/// Gives the new database what the old one has now, which may be other than when the restore began.
pub async fn take_over(admin: &Session, name: &str, made: &str) -> Result<Applied> {
    let wanted = properties::read(&admin.client, name).await?;
    let mut applied = properties::apply(&admin.client, made, name, &wanted).await;
    if applied.refused.is_empty() {
        let found = properties::read(&admin.client, made).await?;
        let differ = properties::differences(&wanted, &found);
        applied.refused.extend(differ.iter().map(|what| format!("{what} could not be taken over")));
    }
    Ok(applied)
}

/// Puts `made` in the place of `name`. Returns what the old one is called now, and what stayed with it.
pub async fn replace(
    server: &Server<'_>,
    name: &str,
    made: &str,
    applied: &Applied,
) -> Result<(String, Vec<String>)> {
    let paused = match subscriptions::pause(server, name).await {
        Ok(paused) => paused,
        Err(failure) => return Err(swap::refused(name, made, failure)),
    };
    let old = match swap::swap(server, name, made, &applied.opening).await {
        Ok(old) => old,
        Err(failure) => {
            return Err(match subscriptions::resume(server.connection, name, &paused).await {
                Ok(()) => failure,
                Err(also) => failure.context(also),
            });
        }
    };
    // From here on it is done; what cannot be asked any more is not held against it.
    let left = stayed(server.admin, name, &old, &paused).await;
    let left =
        left.unwrap_or_else(|e| vec![format!("what stayed with database {old:?} cannot be listed: {e}")]);
    Ok((old, left))
}

/// What the old database keeps, a line each.
async fn stayed(admin: &Session, name: &str, old: &str, paused: &Paused) -> Result<Vec<String>> {
    let new = subscriptions::list(admin, name, false).await?;
    let mut lines = Vec::new();
    for subscription in subscriptions::list(admin, old, false).await? {
        let was = if paused.names.contains(&subscription) { "is disabled" } else { "was disabled already" };
        let now = match new.contains(&subscription) {
            true => format!("in {name:?} it is disabled, too, with rows as old as the set"),
            false => format!("the set has none of that name for {name:?}"),
        };
        lines.push(format!("subscription {subscription:?} {was} in {old:?}; {now}"));
    }
    let slots = admin
        .client
        .query(
            "SELECT slot_name, restart_lsn::text FROM pg_replication_slots
              WHERE database = $1 AND NOT temporary ORDER BY slot_name",
            &[&old],
        )
        .await
        .map_err(error)
        .context("cannot list replication slots")?;
    for slot in slots {
        let (Name(slot), lsn): (Name, Option<String>) = (slot.get(0), slot.get(1));
        let from = lsn.map(|lsn| format!(" from {lsn} on")).unwrap_or_default();
        lines.push(format!(
            "logical slot {slot:?} stays with {old:?} and keeps WAL{from}; who read it must begin anew in {name:?}"
        ));
    }
    Ok(lines)
}

/// Tablespace for a new database: the one it was in, where the server has it, and a line where not.
pub async fn tablespace(
    admin: &Session,
    wanted: Option<&Properties>,
) -> Result<(Option<String>, Option<String>)> {
    let Some(tablespace) = wanted.and_then(|properties| properties.tablespace.clone()) else {
        return Ok((None, None));
    };
    let found = admin.client.query("SELECT FROM pg_tablespace WHERE spcname = $1", &[&tablespace]).await;
    if found.map_err(error).context("cannot list tablespaces")?.is_empty() {
        let line = format!(
            "the database was in tablespace {tablespace:?}, which is not here: it is in the default one"
        );
        return Ok((None, Some(line)));
    }
    Ok((Some(tablespace), None))
}
