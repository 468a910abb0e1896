//! Making and dropping whole databases on a server that others use.
//!
//! Both may wait for somebody: for a lock, and from PostgreSQL 15 on until every session of the server has
//! taken note, which one that writes to a client who does not read never does. Neither a signal nor an
//! operator waits for ever with them: the first signal ends the wait, and a bound does, with an error that
//! names who is in the way. What the server is left with differs: making is cancelled, so that no database
//! appears after it was said to have failed; dropping goes on there by itself, which is what was wanted.

use std::time::Duration;

use super::to::connect_admin;
use crate::config::Connection;
use crate::error::{Error, Result};
use crate::postgres::connect::{Session, error};
use crate::postgres::ident::quote_ident;
use crate::postgres::locale::{self, Fallback, Locale};
use crate::shutdown::Shutdown;

/// How long a statement on a whole database may take. A busy server's checkpoint, which it includes, takes
/// a minute or two; whoever is in the way for longer will be there tomorrow.
pub const BOUND: Duration = Duration::from_secs(180);

/// The same for cleaning up after a signal: somebody wants this to end.
pub const HURRIED_BOUND: Duration = Duration::from_secs(10);

/// How long a second session may take to tell who is in the way, and to cancel.
const LAST_WORD_BOUND: Duration = Duration::from_secs(5);

/// Sessions that are named.
const MOST_NAMED: usize = 5;

/// A server, the session there that makes and drops, and what ends its patience.
pub struct Server<'a> {
    /// In another database than the one that is made or dropped.
    pub admin: &'a Session,
    /// How to get a second session.
    pub connection: &'a Connection,
    /// Ends a wait.
    pub shutdown: &'a Shutdown,
    /// Ends a wait, too; [`BOUND`] but in tests.
    pub bound: Duration,
}

impl Server<'_> {
    /// Makes an empty database, exactly as it is wanted.
    pub async fn create(&self, name: &str, wanted: &Locale<'_>) -> Result<()> {
        if self.shutdown.is_requested() {
            return Err(self.shutdown.error());
        }
        let made = locale::create_database(self.admin, name, wanted, Fallback::Refused);
        let Some(why) = self.gave_up(&format!("CREATE DATABASE {name:?}"), made).await? else {
            return Ok(());
        };
        let cancelled = within(LAST_WORD_BOUND, self.cancel()).await;
        Err(match cancelled {
            Ok(()) => why,
            Err(failure) => why.context(format!(
                "the server may still make database {name:?}, because it could not be told to stop ({failure})"
            )),
        })
    }

    /// Drops a database, with whoever is connected to it.
    pub async fn drop(&self, name: &str) -> Result<()> {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_ident(name));
        let dropped = async { self.admin.client.batch_execute(&sql).await.map_err(error) };
        match self.gave_up(&format!("DROP DATABASE {name:?}"), dropped).await? {
            None => Ok(()),
            Some(why) => Err(why.context("the server still tries")),
        }
    }

    /// Why the statement was not waited for any longer; nothing where it ended.
    async fn gave_up<T>(
        &self,
        statement: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Option<Error>> {
        // The signal that this cleans up after does not end it as well; the next one ends the process.
        let is_late = self.shutdown.is_requested();
        let bound = if is_late { self.bound.min(HURRIED_BOUND) } else { self.bound };
        tokio::select! {
            biased;
            done = work => return done.map(|_| None),
            () = self.shutdown.requested(), if !is_late => return Ok(Some(self.shutdown.error())),
            () = tokio::time::sleep(bound) => {}
        }
        let waited = format!("{statement} was given up after {} s", bound.as_secs_f64());
        Ok(Some(match within(LAST_WORD_BOUND, self.in_the_way()).await {
            Ok(sessions) if !sessions.is_empty() => {
                let pids: Vec<String> =
                    sessions.iter().map(|(pid, _)| format!("SELECT pg_terminate_backend({pid})")).collect();
                let named: Vec<String> =
                    sessions.iter().map(|(pid, name)| format!("pid {pid} ({name:?})")).collect();
                Error::new(format!("{waited}; in the way: {}", named.join(", "))).with_hint(format!(
                    "wait until they are done, or end them ({}), and try again",
                    pids.join("; ")
                ))
            }
            Ok(_) => Error::new(waited).with_hint(
                "pg_stat_activity, read by a superuser, tells what the server waits for: a lock, or a session \
                 that does not take note of it",
            ),
            Err(failure) => Error::new(format!("{waited}; who is in the way cannot be asked: {failure}"))
                .with_hint("see whether the server answers at all"),
        }))
    }

    /// Process ids and application names of those who hold what the statement waits for. Those who keep it
    /// waiting without a lock are not known to the server; they write to a client who does not read.
    async fn in_the_way(&self) -> Result<Vec<(i32, String)>> {
        let admin = connect_admin(self.connection).await?;
        let rows = admin
            .client
            .query(
                "SELECT pid, application_name::text FROM pg_stat_activity
                  WHERE pid = ANY (pg_blocking_pids($1))
                     OR wait_event = 'ClientWrite'
                        AND (SELECT wait_event FROM pg_stat_activity WHERE pid = $1) = 'ProcSignalBarrier'
                  ORDER BY pid LIMIT $2",
                &[&self.admin.backend, &(MOST_NAMED as i64)],
            )
            .await
            .map_err(error)?;
        admin.close().await;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Ends the statement on the server.
    async fn cancel(&self) -> Result<()> {
        let admin = connect_admin(self.connection).await?;
        let sql = "SELECT pg_cancel_backend($1)";
        admin.client.query_one(sql, &[&self.admin.backend]).await.map_err(error)?;
        admin.close().await;
        Ok(())
    }
}

async fn within<T>(bound: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(bound, work).await {
        Ok(done) => done,
        Err(_) => Err(Error::new(format!("no answer within {} s", bound.as_secs()))),
    }
}
