//! Giving a restored database the name of the one that it replaces.
//!
//! Both renames are one transaction, with the privileges to connect to the new one, so that there is no state in
//! between that could be left. It may have to
//! wait: for sessions to go, or for somebody's lock. Where the wait ends before it does, the error says which
//! of the two databases has which name now. Deliberately absent: dropping the old one, which is a person's
//! decision.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::databases::{Server, Waited};
use super::to::{connect_admin, other_name};
use crate::config::Connection;
use crate::error::{Error, Result};
use crate::postgres::connect::error;
use crate::postgres::sql::{Sql, quote_ident};

/// A rename waits five seconds for sessions to go; a pool that comes back faster each time will not be
/// beaten by more attempts.
const RENAME_ATTEMPTS: u32 = 6;

/// How long a server that hung up in the middle of a swap is asked what became of it: a restart takes
/// that long.
const LOST_BOUND: Duration = Duration::from_secs(60);
/// Between two such questions.
const LOST_PAUSE: Duration = Duration::from_millis(500);

/// Ends the sessions of `name`, gives its name to `beside`, opens that by `opening`, and keeps the old one under
/// another name, which is returned.
pub async fn swap(server: &Server<'_>, name: &str, beside: &str, opening: &[Sql]) -> Result<String> {
    let old = other_name(name, "before");
    let renaming = rename(server, name, beside, &old, opening);
    let (failure, is_over) = match server.wait(&format!("ALTER DATABASE {name:?} RENAME"), renaming).await {
        Waited::Ended(Ok(())) => return Ok(old),
        Waited::Ended(Err(failure)) => (failure, !server.admin.client.is_closed()),
        Waited::Cancelled(why) => (why, true),
        Waited::Unknown(why) => (why, false),
    };
    if is_over {
        return Err(refused(name, beside, failure));
    }
    let asked = was_swapped(server.connection, server.admin.backend, &old, beside);
    match server.shutdown.guard(asked).await {
        Ok(true) => Ok(old),
        Ok(false) => Err(refused(name, beside, failure)),
        Err(e) => Err(failure.context(format!(
            "the restored database is complete, but the connection was lost while it took the place of \
             {name:?}; if there is a database {old:?}, it did, else it is called {beside:?} ({e})"
        ))),
    }
}

/// Why nothing was swapped, and what a person can do about it.
pub(super) fn refused(name: &str, beside: &str, failure: Error) -> Error {
    let hint =
        [failure.hint(), Some(&by_hand(name, beside))].into_iter().flatten().collect::<Vec<_>>().join("; ");
    Error::new(&failure).with_kind(failure.kind()).with_hint(hint).context(format!(
        "the restored database is complete as {beside:?}, but did not take the place of {name:?}, which is as it was"
    ))
}

/// What a person can do about two databases, of which the restored one has the wrong name.
pub fn by_hand(name: &str, beside: &str) -> String {
    let (old, place, made) = (quote_ident(&format!("{name}_before")), quote_ident(name), quote_ident(beside));
    format!(
        "to swap them by hand: ALTER DATABASE {place} RENAME TO {old}; ALTER DATABASE {made} RENAME TO {place}; \
         GRANT CONNECT ON DATABASE {place} to those who may (until then only its owner and superusers can connect); \
         to give it up: DROP DATABASE {made}"
    )
}

/// While it waits for the last session to go, PostgreSQL lets nobody new in.
async fn rename(server: &Server<'_>, name: &str, beside: &str, old: &str, opening: &[Sql]) -> Result<()> {
    let client = &server.admin.client;
    let sql = Sql::new("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ")
        .literal(name)
        .then(" AND pid <> pg_backend_pid(); BEGIN; ALTER DATABASE ")
        .ident(name)
        .then(" RENAME TO ")
        .ident(old)
        .then("; ALTER DATABASE ")
        .ident(beside)
        .then(" RENAME TO ")
        .ident(name)
        .then("; ")
        .join(opening.iter().cloned().chain([Sql::new("COMMIT")]), "; ");
    let mut attempt = 1;
    while let Err(failure) = sql.run(client).await {
        let in_use = failure.code() == Some(&SqlState::OBJECT_IN_USE);
        if client.is_closed() || !in_use || attempt == RENAME_ATTEMPTS || server.shutdown.is_requested() {
            return Err(error(failure));
        }
        client.batch_execute("ROLLBACK").await.map_err(error)?;
        attempt += 1;
    }
    Ok(())
}

/// Whether both renames were committed, although nobody said so: asked once the backend that was about
/// to is gone.
async fn was_swapped(connection: &Connection, backend: i32, old: &str, beside: &str) -> Result<bool> {
    let bound = tokio::time::Instant::now() + LOST_BOUND;
    loop {
        let asked = async {
            let admin = connect_admin(connection).await?;
            let row = admin
                .client
                .query_one(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND application_name = 'opsd restore'),
                            EXISTS (SELECT FROM pg_database WHERE datname = $2),
                            EXISTS (SELECT FROM pg_database WHERE datname = $3)",
                    &[&backend, &old, &beside],
                )
                .await
                .map_err(error)?;
            admin.close().await;
            Ok::<(bool, bool, bool), Error>((row.get(0), row.get(1), row.get(2)))
        };
        let error = match asked.await {
            Ok((false, is_kept, is_beside)) => return Ok(is_kept && !is_beside),
            Ok((true, ..)) => Error::new("the lost session is still there"),
            Err(error) => error,
        };
        if tokio::time::Instant::now() > bound {
            return Err(error);
        }
        tokio::time::sleep(LOST_PAUSE).await;
    }
}
