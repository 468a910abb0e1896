//! A sign of life: a small object beside those of a set, which a run that takes long writes anew.
//!
//! Nothing else that a store shows tells a slow run from a killed one. An upload has the time at which it
//! began, and a run that waits for PostgreSQL sends no part for as long as that takes. The times of parts
//! would want one more permission, and some stores have none. Any store lists objects with the time of their
//! last write, by its own clock, and a credential that may only write can renew one.
//!
//! A run shorter than [`EVERY`] writes none, so in a bucket that keeps versions only long runs leave some: three
//! an hour, of a few hundred bytes each. The object is written without a lock, and removed before the manifest
//! is written. A credential that may not delete leaves it, and `prune` removes it with its set. What a killed
//! run left grows old like all the rest.
//!
//! Deliberately absent: anything that reads it. Its age alone counts.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;

use crate::set::HEARTBEAT;
use crate::store::{self, Store};

/// How often it is renewed. Within the least age of what is swept two may fail.
pub const EVERY: Duration = Duration::from_secs(20 * 60);

/// How long its removal may take: a store that does not answer must not keep the manifest waiting.
const END_BOUND: Duration = Duration::from_secs(30);

/// What is stored, for people who look.
#[derive(Serialize)]
struct Document {
    format: u32,
    host: String,
    pid: u32,
    renewed: u64,
}

/// The sign of life of one run.
#[derive(Debug)]
pub struct Heartbeat {
    store: Arc<dyn Store>,
    key: String,
    is_written: AtomicBool,
    /// Held while it is written: a write that was begun is not left behind by the end of a run.
    writing: Arc<Mutex<()>>,
}

impl Heartbeat {
    /// For the set below `prefix`; nothing is written yet. The store is to be one that does not lock.
    pub fn new(store: Arc<dyn Store>, prefix: &str) -> Self {
        let key = format!("{prefix}{HEARTBEAT}");
        Self { store, key, is_written: AtomicBool::new(false), writing: Arc::default() }
    }

    /// Renews it for as long as it is polled. One that cannot be written is said and costs the run nothing: a
    /// store that is down ends the run by itself, if anything is to be written.
    pub async fn keep(&self, every: Duration) -> Infallible {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let mut document = Document { format: 1, host, pid: std::process::id(), renewed: 0 };
        loop {
            tokio::time::sleep(every).await;
            let Ok(bytes) = serde_json::to_vec_pretty(&document) else { continue };
            self.is_written.store(true, Ordering::Relaxed);
            let (store, key, writing) =
                (self.store.clone(), self.key.clone(), self.writing.clone().lock_owned().await);
            let written = tokio::spawn(async move {
                let written = store::put(store.as_ref(), &key, bytes, false).await;
                drop(writing);
                written
            });
            match written.await {
                Ok(Ok(())) => document.renewed += 1,
                Ok(Err(error)) => tracing::warn!(
                    "this run cannot show that it is alive, so `opsd backups sweep` may take it for a killed one: {error}"
                ),
                Err(error) => tracing::warn!("the heartbeat was not written: {error}"),
            }
        }
    }

    /// Removes it, where it was written and the credential may.
    pub async fn end(&self) {
        if !self.is_written.load(Ordering::Relaxed) {
            return;
        }
        let removed = async {
            let _writing = self.writing.lock().await;
            self.store.delete(&self.key).await
        };
        match tokio::time::timeout(END_BOUND, removed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("{} stays: {error}", self.key),
            Err(_) => tracing::debug!("{} stays: the store does not answer", self.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::sweep::LEAST_AGE;
    use crate::store::StoreError;
    use crate::store::faulty::{Fault, FaultyStore, Operation, Rule};
    use crate::store::memory::MemoryStore;

    const KEY: &str = "site/db/20261101T030000Z-aaaa/heartbeat.json";

    fn heartbeat(store: Arc<dyn Store>) -> Heartbeat {
        Heartbeat::new(store, "site/db/20261101T030000Z-aaaa/")
    }

    /// Keeps it until it was renewed so often.
    async fn renewed(heartbeat: &Heartbeat, store: &MemoryStore, times: u64) {
        let seen = async {
            loop {
                let stored = store::get(store, KEY, 4096).await.ok();
                let document = stored.and_then(|b| serde_json::from_slice::<serde_json::Value>(&b).ok());
                if document.is_some_and(|d| d["renewed"].as_u64() >= Some(times)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            never = heartbeat.keep(Duration::from_millis(2)) => match never {},
            () = seen => {}
        }
    }

    #[test]
    fn two_may_fail_before_a_run_looks_dead() {
        assert!(EVERY * 3 <= LEAST_AGE);
    }

    #[tokio::test]
    async fn it_is_renewed_and_goes_at_the_end() {
        let memory = MemoryStore::new();
        // A store that refuses one of them is asked again.
        let refused = Fault::Fail(StoreError::Denied("no".into()));
        let store =
            FaultyStore::new(Arc::new(memory.clone()), vec![Rule::new(Operation::Commit, 2, refused)]);
        let heartbeat = heartbeat(Arc::new(store));
        renewed(&heartbeat, &memory, 3).await;
        heartbeat.end().await;
        assert!(memory.list("").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_short_run_writes_none_and_one_that_may_not_delete_leaves_it() {
        let memory = MemoryStore::new();
        let denied = Fault::Fail(StoreError::Denied("no".into()));
        let store = FaultyStore::new(Arc::new(memory.clone()), vec![Rule::new(Operation::Delete, 0, denied)]);
        let store = Arc::new(store);
        heartbeat(store.clone()).end().await;
        assert_eq!(store.calls(), [0], "nothing to delete");
        let heartbeat = heartbeat(store.clone());
        renewed(&heartbeat, &memory, 0).await;
        heartbeat.end().await;
        assert_eq!((store.calls(), memory.list("").await.unwrap().len()), (vec![1], 1));
    }
}
