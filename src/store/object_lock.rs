//! Object Lock: what a run writes cannot be deleted before the days are over that are configured.
//!
//! [`locking`] hands out the store that a set is written with. It is asked for before anything is written,
//! and an error where the bucket cannot lock: no object of a set is ever stored without the lock that is
//! configured. Leases, the probe's objects, its report and `failed.json` are written with the plain store,
//! because they are replaced or removed.
//!
//! A bucket with Object Lock keeps versions, and a DELETE hides the newest one whether it is locked or not.
//! So whoever removes things asks [`protection`] first.
//!
//! Deliberately absent: ending a lock before its time, legal holds, and the bucket's own configuration.

use std::sync::Arc;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use futures_util::StreamExt;

use super::probe::{self, Name, State};
use super::{Store, StoreError};
use crate::config::{LockMode, Repository};
use crate::error::{Context, Error, Result};

/// Objects that are asked about at the same time: each is a request of its own.
const LOOKS: usize = 8;

/// What is asked for with each object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Who may end it.
    pub mode: LockMode,
    /// When it ends; whole seconds.
    pub until: DateTime<Utc>,
}

/// The store that a run writes its set with: `store` itself where no lock is configured.
///
/// Whether the bucket can lock is what the last probe found. Nobody signs its report, and it is believed
/// only as far as that does no harm: a false `no` is an error here, and after a false `yes` the bucket
/// refuses the first object. Without a report the bucket is asked. All objects of the run are locked until
/// the same time, by the store's clock where it tells.
pub async fn locking(store: &Arc<dyn Store>, repository: &Repository) -> Result<Arc<dyn Store>> {
    let Some(lock) = repository.lock else { return Ok(store.clone()) };
    let place = store.describe();
    let report = probe::remembered(store.as_ref()).await.context("cannot learn what the bucket can do")?;
    let known = report.map_or(State::Unknown, |report| report.state(Name::ObjectLock));
    if known == State::No {
        return Err(cannot_lock(&place, "says the last probe").with_hint(
            "make a bucket with Object Lock, or remove `lock`; where the bucket has one by now, run `opsd \
             repository probe` again",
        ));
    }
    if known != State::Yes {
        match store.has_object_lock().await {
            Ok(true) => {}
            Ok(false) | Err(StoreError::Unsupported(_)) => {
                return Err(cannot_lock(&place, "says the store")
                    .with_hint("make a bucket with Object Lock, or remove `lock` from [repository]"));
            }
            Err(StoreError::Denied(why)) => tracing::warn!(
                "whether {place} has Object Lock is not known, and its answer to the first object decides: {why}"
            ),
            Err(error) => {
                return Err(Error::from(error).context("cannot learn whether the bucket has Object Lock"));
            }
        }
    }
    let now = store.now().await.unwrap_or_else(|error| {
        tracing::debug!("the repository does not tell its time: {error}");
        Utc::now()
    });
    let until = (now + TimeDelta::days(lock.days.into())).trunc_subsecs(0);
    Ok(store.with_retention(Retention { mode: lock.mode, until })?)
}

fn cannot_lock(place: &str, who: &str) -> Error {
    Error::usage(format!("[repository] lock is configured, and {place} has no Object Lock, {who}"))
}

/// What keeps some objects from being deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// Nothing, as far as the store knows of locks.
    None,
    /// At least one of them is locked, the last one until then.
    Until(DateTime<Utc>),
    /// The credential may not ask, or the store does not answer such a question; the text says why.
    Unknown(String),
}

/// Until when objects are locked, by the store's clock.
pub async fn protection(store: &dyn Store, keys: &[String]) -> Result<Protection> {
    let mut looks = std::pin::pin!(
        futures_util::stream::iter(keys).map(|key| store.locked_until(key)).buffer_unordered(LOOKS)
    );
    let mut last: Option<DateTime<Utc>> = None;
    while let Some(look) = looks.next().await {
        match look {
            Ok(until) => last = last.max(until),
            Err(StoreError::Denied(why) | StoreError::Unsupported(why)) => {
                return Ok(Protection::Unknown(why));
            }
            Err(error) => return Err(Error::from(error).context("cannot learn what is locked")),
        }
    }
    let Some(until) = last else { return Ok(Protection::None) };
    let now = store.now().await.unwrap_or_else(|_| Utc::now());
    Ok(if is_over(until, now) { Protection::None } else { Protection::Until(until) })
}

/// Whether a lock has ended. One that ends at this very second still holds.
fn is_over(until: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    until < now
}
