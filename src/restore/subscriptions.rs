//! Subscriptions of a database whose name goes to another, or that is dropped.
//!
//! A subscription belongs to its database, whatever that is called, and goes on filling it where nobody looks
//! any more. It is therefore disabled just before its database loses its name. The set's own is restored as pg_dump
//! writes it, disabled: its rows are as old as the set, while the publisher has moved on, so whether it is enabled
//! or begun anew is a person's decision.

use super::databases::{HURRIED_BOUND, Server};
use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, connect, error};
use crate::postgres::ident::Name;
use crate::postgres::sql::Sql;

/// Subscriptions of one database that were disabled.
#[derive(Debug, Default)]
pub struct Paused {
    /// The database's OID, which it keeps under another name.
    database: u32,
    /// Those that were enabled until then.
    pub names: Vec<String>,
}

/// Names of a database's subscriptions, of all or of those that are enabled.
pub async fn list(admin: &Session, database: &str, only_enabled: bool) -> Result<Vec<String>> {
    let rows = admin
        .client
        .query(
            "SELECT subname FROM pg_subscription
              WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = $1) AND (subenabled OR NOT $2)
              ORDER BY subname",
            &[&database, &only_enabled],
        )
        .await
        .map_err(error)
        .context("cannot list subscriptions")?;
    Ok(rows.iter().map(|row| row.get::<_, Name>(0).0).collect())
}

/// Disables the subscriptions of a database: all, or none where that fails.
pub async fn pause(server: &Server<'_>, database: &str) -> Result<Paused> {
    let names = list(server.admin, database, true).await?;
    if names.is_empty() {
        return Ok(Paused::default());
    }
    let connection = Connection { dbname: database.to_owned(), ..server.connection.clone() };
    let session = connect(&connection, None, "opsd restore").await?;
    let within = Server { admin: &session, ..*server };
    let cannot = || format!("cannot disable the subscriptions of database {database:?}");
    let paused = Paused { database: database_oid(&session).await.with_context(cannot)?, names };
    let disabling = alter(&session, &paused.names, " DISABLE");
    let disabled = within.wait_or_leave("ALTER SUBSCRIPTION DISABLE", disabling).await;
    session.close().await;
    let Err(failure) = disabled.with_context(cannot) else { return Ok(paused) };
    // Some may be disabled by now.
    Err(match resume(server.connection, database, &paused).await {
        Ok(()) => failure,
        Err(why) => failure.context(why.to_string()),
    })
}

/// Enables them again, where their database still has its name; also after a signal.
pub async fn resume(connection: &Connection, database: &str, paused: &Paused) -> Result<()> {
    if paused.names.is_empty() {
        return Ok(());
    }
    let connection = Connection { dbname: database.to_owned(), ..connection.clone() };
    let enabling = async {
        let session = connect(&connection, None, "opsd restore").await?;
        // Where the names were swapped after all, these are the set's.
        if database_oid(&session).await? == paused.database {
            alter(&session, &paused.names, " ENABLE").await?;
        }
        session.close().await;
        Ok::<(), Error>(())
    };
    let enabled = match tokio::time::timeout(HURRIED_BOUND, enabling).await {
        Ok(enabled) => enabled,
        Err(_) => Err(Error::new(format!("no answer within {} s", HURRIED_BOUND.as_secs()))),
    };
    enabled.with_context(|| {
        format!(
            "subscriptions of database {database:?} were disabled for the swap, and may not be enabled again: {}",
            paused.names.join(", ")
        )
    })
}

/// Gives up the subscriptions of a database that is about to be dropped, and leaves alone what is theirs at the
/// publisher: the slot is the original's.
pub async fn forget(server: &Server<'_>, database: &str) -> Result<()> {
    let names = list(server.admin, database, false).await?;
    if names.is_empty() {
        return Ok(());
    }
    let connection = Connection { dbname: database.to_owned(), ..server.connection.clone() };
    let forgetting = async {
        let session = connect(&connection, None, "opsd restore").await?;
        for name in &names {
            for end in [" DISABLE", " SET (slot_name = NONE)"] {
                alter(&session, std::slice::from_ref(name), end).await?;
            }
            let sql = Sql::new("DROP SUBSCRIPTION ").ident(name);
            sql.run(&session.client).await.map_err(error)?;
        }
        session.close().await;
        Ok::<(), Error>(())
    };
    match tokio::time::timeout(HURRIED_BOUND, forgetting).await {
        Ok(forgotten) => forgotten,
        Err(_) => Err(Error::new(format!("no answer within {} s", HURRIED_BOUND.as_secs()))),
    }
}

async fn alter(session: &Session, names: &[String], end: &'static str) -> Result<()> {
    let alter = |name: &String| Sql::new("ALTER SUBSCRIPTION ").ident(name).then(end);
    // One after another are one transaction.
    Sql::new("").join(names.iter().map(alter), "; ").run(&session.client).await.map_err(error)
}

async fn database_oid(session: &Session) -> Result<u32> {
    let row = session
        .client
        .query_one("SELECT oid FROM pg_database WHERE datname = current_database()", &[])
        .await
        .map_err(error)?;
    Ok(row.get(0))
}
