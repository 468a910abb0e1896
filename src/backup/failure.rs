//! What a run does when it, or one of its databases, fails: what is said in the repository, and what of it is
//! removed there.

use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::Utc;
use serde::Serialize;

use super::Run;
use super::source::Source;
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::connect::error as postgres_error;
use crate::printable;
use crate::set;
use crate::set::manifest::{FORMAT, Lacking};
use crate::store::{self, StoreError};

/// How long a run that failed may take to say so in the repository and to remove what it stored.
const CLEAN_UP_BOUND: Duration = Duration::from_secs(15);
/// Characters of an error that a manifest repeats.
const WHY_MAX: usize = 1_000;
const CLEAN_UP_ROUNDS: usize = 5;
const CLEAN_UP_PAUSE: Duration = Duration::from_millis(50);

/// What `failed.json` says.
#[derive(Serialize)]
struct Failed<'a> {
    format: u32,
    site: &'a str,
    job: &'a str,
    id: &'a str,
    failed: chrono::DateTime<Utc>,
    error: String,
}

/// An error for a document that is stored in plain text: a server's own words about rows and statements stay out.
/// What names the database again is left out, too.
fn without_details(name: &str, error: &Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix(&format!("database {name:?}: ")).unwrap_or(&text);
    let words = text.split_once("pg_dump: detail: ").map_or(text, |(words, _)| words);
    printable::bounded(words.trim_end(), WHY_MAX).into_owned()
}

impl Run<'_> {
    /// What becomes of a set of several databases when one cannot be dumped. The others are dumped all the same,
    /// because one broken database must not leave all of them without a backup, night after night; the set is
    /// recorded as one that lacks it, is relied on by nobody, and the command fails. Where all databases are
    /// wanted, one that was dropped is none of them any more: nothing then.
    ///
    /// A repository from which nothing can be removed fails itself, and so does the run.
    pub(super) async fn left_out(
        &self,
        source: &Source,
        name: &str,
        error: Error,
    ) -> Result<Option<Lacking>> {
        let is_the_jobs = matches!(error.kind(), Kind::Usage | Kind::InDoubt);
        if source.databases.len() == 1 || is_the_jobs {
            return Err(error);
        }
        let folder = format!("{}{}/", self.prefix, set::database_component(name));
        if let Err(why) = self.remove_stored(&folder).await {
            tracing::info!("what was stored of {name:?} cannot be removed: {why}");
            return Err(error);
        }
        let mut why = without_details(name, &error);
        if let Some(oid) = source.all.as_ref().and_then(|all| all.get(name)) {
            let client = &source.session.client;
            let asked =
                client.query_opt("SELECT datname::text FROM pg_database WHERE oid = $1", &[oid]).await;
            let now = asked.map_err(postgres_error).context("cannot look for the database")?;
            let now: Option<String> = now.map(|row| row.get(0));
            match now {
                None => return Ok(None),
                Some(now) if now != name => why = format!("it was renamed to {now:?}: {why}"),
                Some(_) => {}
            }
        }
        tracing::error!("{error}");
        Ok(Some(Lacking { name: name.to_owned(), why }))
    }

    /// Removes what lies under a prefix, `failed.json` aside, and says how much it was. A credential that may
    /// only write cannot tidy up either; that is no error.
    async fn remove_stored(&self, prefix: &str) -> Result<usize, StoreError> {
        let allowed = |error: StoreError| match error {
            StoreError::Denied(_) | StoreError::Unsupported(_) => Ok(()),
            other => Err(other),
        };
        let stored = match self.store.list(prefix).await {
            Ok(stored) => stored,
            Err(error) => return allowed(error).map(|()| 0),
        };
        let left: Vec<_> = stored.into_iter().filter(|object| !object.key.ends_with(set::FAILED)).collect();
        for object in &left {
            if let Err(error) = self.store.delete(&object.key).await {
                return allowed(error).map(|()| 0);
            }
        }
        Ok(left.len())
    }

    /// Best effort, and bounded: whoever sent a signal waits for it.
    pub(super) async fn clean_up(&self, error: &Error) {
        if self.is_published.load(Ordering::Relaxed) {
            return;
        }
        let work = async {
            self.record_failure(error).await;
            self.remove_objects().await;
        };
        if tokio::time::timeout(CLEAN_UP_BOUND, work).await.is_err() {
            tracing::debug!("the repository does not answer: what this run stored is left there");
        }
    }

    /// Removes what this run has stored, which no set will ever name. An upload that was being finished
    /// when the work was dropped may still appear, so one look is not enough.
    async fn remove_objects(&self) {
        let mut is_empty = false;
        for _ in 0..CLEAN_UP_ROUNDS {
            match self.remove_stored(&self.prefix).await {
                Ok(0) if std::mem::replace(&mut is_empty, true) => return,
                Ok(_) => {}
                Err(error) => return tracing::debug!("what this run stored cannot be removed: {error}"),
            }
            tokio::time::sleep(CLEAN_UP_PAUSE).await;
        }
    }

    /// Retention freezes while the newest id is no complete set.
    async fn record_failure(&self, error: &Error) {
        let failed = Failed {
            format: FORMAT,
            site: &self.config.site,
            job: &self.job.name,
            id: &self.id,
            failed: Utc::now(),
            error: error.to_string(),
        };
        let Ok(bytes) = serde_json::to_vec_pretty(&failed) else { return };
        let key = format!("{}{}", self.prefix, set::FAILED);
        if let Err(error) = store::put(self.plain_store.as_ref(), &key, bytes, false).await {
            tracing::debug!("cannot record the failure: {error}");
        }
    }
}
