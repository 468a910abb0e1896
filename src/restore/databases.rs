//! Making, renaming and dropping whole databases on a server that others use.
//!
//! All may wait for somebody: for a lock, and from PostgreSQL 15 on until every session of the server has
//! taken note, which one that writes to a client who does not read never does. Neither a signal nor an
//! operator waits for ever with them: the first signal ends the wait, and a bound does, with an error that
//! names who is in the way. What the server is left with differs: making and renaming are cancelled, so that
//! nothing changes after it was said to have failed; dropping goes on there by itself, which is what was wanted.

use std::pin::{Pin, pin};
use std::time::Duration;

use super::to::connect_admin;
use crate::config::Connection;
use crate::error::{Error, Result};
use crate::postgres::connect::{Session, error};
use crate::postgres::locale::{self, Fallback, Locale};
use crate::postgres::properties;
use crate::postgres::sql::Sql;
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

/// How something ended that would not be waited for for ever.
pub(super) enum Waited<T> {
    /// By itself, one way or the other.
    Ended(Result<T>),
    /// It was given up for this reason, and the server does not do it any more.
    Cancelled(Error),
    /// The same, but whether the server still does it, or has done it, is not known.
    Unknown(Error),
}

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
    /// Makes an empty database, exactly as it is wanted. Nobody but its owner and superusers may connect to it at
    /// any time before it is opened.
    pub async fn create(&self, name: &str, wanted: &Locale, tablespace: Option<&str>) -> Result<()> {
        let mut options = Sql::new(" ALLOW_CONNECTIONS false");
        if let Some(tablespace) = tablespace {
            options = options.then(" TABLESPACE ").ident(tablespace);
        }
        let made = locale::create_database(self.admin, name, wanted, &options, Fallback::Refused);
        match self.wait(&format!("CREATE DATABASE {name:?}"), made).await {
            Waited::Ended(made) => made.map(|_| ())?,
            Waited::Cancelled(why) => return Err(why),
            Waited::Unknown(why) => {
                return Err(why.context(format!("the server may still make database {name:?}")));
            }
        }
        let close = properties::close(name);
        let closed = async { close.run(&self.admin.client).await.map_err(error) };
        let Err(failure) = self.wait_or_leave(&format!("ALTER DATABASE {name:?}"), closed).await else {
            return Ok(());
        };
        match self.drop(name).await {
            Ok(()) => Err(failure),
            Err(e) => {
                Err(failure.context(format!("database {name:?} is empty and could not be dropped ({e})")))
            }
        }
    }

    /// Waits for what the session of this server does in one transaction, or as one statement. When that
    /// takes too long, it is cancelled; where it got through in the last moment, it is done.
    pub(super) async fn wait<T>(&self, statement: &str, work: impl Future<Output = Result<T>>) -> Waited<T> {
        if self.shutdown.is_requested() {
            return Waited::Cancelled(self.shutdown.error());
        }
        let mut work = pin!(work);
        let why = match self.gave_up(statement, work.as_mut()).await {
            Ok(ended) => return Waited::Ended(ended),
            Err(why) => why,
        };
        if let Err(failure) = within(LAST_WORD_BOUND, self.cancel()).await {
            return Waited::Unknown(why.context(format!("the server could not be told to stop ({failure})")));
        }
        match tokio::time::timeout(LAST_WORD_BOUND, work).await {
            Ok(Ok(done)) => Waited::Ended(Ok(done)),
            Ok(Err(_)) if !self.admin.client.is_closed() => Waited::Cancelled(why),
            Ok(Err(_)) | Err(_) => {
                Waited::Unknown(why.context("the server was told to stop, and did not say that it did"))
            }
        }
    }

    /// Drops a database, with whoever is connected to it.
    pub async fn drop(&self, name: &str) -> Result<()> {
        let sql = Sql::new("DROP DATABASE IF EXISTS ").ident(name).then(" WITH (FORCE)");
        let dropped = async { sql.run(&self.admin.client).await.map_err(error) };
        match self.gave_up(&format!("DROP DATABASE {name:?}"), pin!(dropped)).await {
            Ok(ended) => ended,
            Err(why) => Err(why.context("the server still tries")),
        }
    }

    /// Waits for several statements of which each may be missing afterwards: when they take too long, the
    /// one that is under way is cancelled, and no other begins.
    pub(super) async fn wait_or_leave<T>(
        &self,
        statement: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if self.shutdown.is_requested() {
            return Err(self.shutdown.error());
        }
        let why = {
            let work = pin!(work);
            match self.gave_up(statement, work).await {
                Ok(ended) => return ended,
                Err(why) => why,
            }
        };
        match within(LAST_WORD_BOUND, self.cancel()).await {
            Ok(()) => Err(why),
            Err(failure) => Err(why.context(format!("the server could not be told to stop ({failure})"))),
        }
    }

    /// What came of the statement, or why it was not waited for any longer.
    async fn gave_up<T>(
        &self,
        statement: &str,
        work: Pin<&mut impl Future<Output = Result<T>>>,
    ) -> Result<Result<T>> {
        // The signal that this cleans up after does not end it as well; the next one ends the process.
        let is_late = self.shutdown.is_requested();
        let bound = if is_late { self.bound.min(HURRIED_BOUND) } else { self.bound };
        tokio::select! {
            biased;
            done = work => return Ok(done),
            () = self.shutdown.requested(), if !is_late => return Err(self.shutdown.error()),
            () = tokio::time::sleep(bound) => {}
        }
        let waited = format!("{statement} was given up after {} s", bound.as_secs_f64());
        Err(match within(LAST_WORD_BOUND, self.in_the_way()).await {
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
        })
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
        let cancelled = admin.client.query_one("SELECT pg_cancel_backend($1)", &[&self.admin.backend]).await;
        cancelled.map_err(error)?;
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
