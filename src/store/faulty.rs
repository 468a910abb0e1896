//! A store that fails on command, around another one: for tests of everything above the storage.
//!
//! What happens is decided by a list of [`Rule`]s, counted per rule, so that a run with the same
//! calls in the same order fails in the same place every time. Deliberately absent: randomness and
//! delays.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::object_lock::Retention;
use super::{ObjectMeta, Store, StoreError, Unfinished, Upload, Version};

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Store::begin`].
    Begin,
    /// [`Upload::put_part`].
    PutPart,
    /// [`Upload::commit`].
    Commit,
    /// [`Store::read`].
    Read,
    /// [`Store::head`].
    Head,
    /// [`Store::list`].
    List,
    /// [`Store::delete`].
    Delete,
    /// [`Store::now`].
    Now,
    /// [`Store::unfinished`].
    Unfinished,
    /// [`Store::abort_unfinished`].
    AbortUnfinished,
    /// [`Store::version`].
    Version,
    /// [`Store::replace`].
    Replace,
    /// [`Store::locked_until`].
    LockedUntil,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The call fails and does nothing.
    Fail(StoreError),
    /// The call does its work, then reports a failure: the response was lost.
    LoseResponse,
    /// `Read`: the byte at this offset of what is returned is flipped (the last one where the
    /// answer is shorter). `PutPart`: the same for what is stored.
    Flip(usize),
    /// `Read`: only this many bytes are returned. `PutPart`: only this many are stored.
    Truncate(usize),
}

/// One thing that goes wrong.
#[derive(Debug, Clone)]
pub struct Rule {
    /// On which call.
    pub operation: Operation,
    /// Only keys that contain this; empty means every key.
    pub key_contains: String,
    /// On the how-manieth matching call, from 1; 0 means every one.
    pub nth: u64,
    /// What happens then.
    pub fault: Fault,
}

impl Rule {
    /// The `nth` call (from 1; 0 is every one) of `operation` on any key.
    pub fn new(operation: Operation, nth: u64, fault: Fault) -> Self {
        Self { operation, key_contains: String::new(), nth, fault }
    }

    /// The same, only for keys that contain `text`.
    pub fn on_keys_with(mut self, text: impl Into<String>) -> Self {
        self.key_contains = text.into();
        self
    }
}

/// Decorates a store with faults.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    plan: Plan,
}

/// Each rule with the number of calls that matched it so far.
#[derive(Debug, Clone)]
struct Plan(Arc<Mutex<Vec<(Rule, u64)>>>);

impl Plan {
    /// Counts a call, and says what goes wrong with it: the first rule whose turn it is.
    fn next(&self, operation: Operation, key: &str) -> Option<Fault> {
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fault = None;
        for (rule, calls) in rules.iter_mut() {
            if rule.operation == operation && key.contains(&rule.key_contains) {
                *calls += 1;
                if rule.nth == 0 || rule.nth == *calls {
                    fault.get_or_insert_with(|| rule.fault.clone());
                }
            }
        }
        fault
    }
}

impl FaultyStore {
    /// `inner`, going wrong as the rules say; without rules it is `inner` itself.
    pub fn new(inner: Arc<dyn Store>, rules: Vec<Rule>) -> Self {
        let rules = rules.into_iter().map(|rule| (rule, 0)).collect();
        Self { inner, plan: Plan(Arc::new(Mutex::new(rules))) }
    }

    /// Calls that each rule matched so far, in the order of the rules.
    pub fn calls(&self) -> Vec<u64> {
        let rules = self.plan.0.lock().unwrap_or_else(PoisonError::into_inner);
        rules.iter().map(|(_, calls)| *calls).collect()
    }
}

fn lost(key: &str) -> StoreError {
    StoreError::Other(format!("the response for {key} was lost"))
}

/// Faults of calls that carry no bytes; those that only damage bytes leave them alone.
async fn run<T>(
    fault: Option<Fault>,
    key: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match fault {
        Some(Fault::Fail(error)) => Err(error),
        Some(Fault::LoseResponse) => work.await.and_then(|_| Err(lost(key))),
        Some(Fault::Flip(_) | Fault::Truncate(_)) | None => work.await,
    }
}

fn damage(bytes: Bytes, fault: Option<&Fault>) -> Bytes {
    match fault {
        Some(Fault::Flip(at)) if !bytes.is_empty() => {
            let mut changed = bytes.to_vec();
            let at = (*at).min(changed.len() - 1);
            changed[at] ^= 1;
            Bytes::from(changed)
        }
        Some(Fault::Truncate(length)) => bytes.slice(..bytes.len().min(*length)),
        _ => bytes,
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn begin(&self, key: &str, if_absent: bool) -> Result<Box<dyn Upload>, StoreError> {
        let fault = self.plan.next(Operation::Begin, key);
        let inner = run(fault, key, self.inner.begin(key, if_absent)).await?;
        Ok(Box::new(FaultyUpload { inner, plan: self.plan.clone(), key: key.to_owned(), missing: 0 }))
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let fault = self.plan.next(Operation::Read, key);
        let bytes = run(fault.clone(), key, self.inner.read(key, range)).await?;
        Ok(damage(bytes, fault.as_ref()))
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        run(self.plan.next(Operation::Head, key), key, self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        run(self.plan.next(Operation::List, prefix), prefix, self.inner.list(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        run(self.plan.next(Operation::Delete, key), key, self.inner.delete(key)).await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        run(self.plan.next(Operation::Now, ""), "the time", self.inner.now()).await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, StoreError> {
        run(self.plan.next(Operation::Unfinished, prefix), prefix, self.inner.unfinished(prefix)).await
    }

    async fn abort_unfinished(&self, upload: &Unfinished) -> Result<(), StoreError> {
        let fault = self.plan.next(Operation::AbortUnfinished, &upload.key);
        run(fault, &upload.key, self.inner.abort_unfinished(upload)).await
    }

    async fn version(&self, key: &str) -> Result<Version, StoreError> {
        run(self.plan.next(Operation::Version, key), key, self.inner.version(key)).await
    }

    async fn replace(&self, key: &str, body: Bytes, version: &Version) -> Result<(), StoreError> {
        let fault = self.plan.next(Operation::Replace, key);
        run(fault, key, self.inner.replace(key, body, version)).await
    }

    fn with_retention(&self, retention: Retention) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(Self { inner: self.inner.with_retention(retention)?, plan: self.plan.clone() }))
    }

    async fn has_object_lock(&self) -> Result<bool, StoreError> {
        self.inner.has_object_lock().await
    }

    async fn locked_until(&self, key: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
        run(self.plan.next(Operation::LockedUntil, key), key, self.inner.locked_until(key)).await
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    plan: Plan,
    key: String,
    /// Bytes that truncation swallowed: the store underneath must not notice.
    missing: u64,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let fault = self.plan.next(Operation::PutPart, &self.key);
        let sent = damage(part.clone(), fault.as_ref());
        self.missing += (part.len() - sent.len()) as u64;
        run(fault, &self.key, self.inner.put_part(sent)).await
    }

    async fn commit(self: Box<Self>, size: u64) -> Result<(), StoreError> {
        let fault = self.plan.next(Operation::Commit, &self.key);
        run(fault, &self.key, self.inner.commit(size.saturating_sub(self.missing))).await
    }

    async fn abort(self: Box<Self>) {
        self.inner.abort().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{get, put};

    fn faulty(rules: Vec<Rule>) -> FaultyStore {
        FaultyStore::new(Arc::new(MemoryStore::new()), rules)
    }

    #[tokio::test]
    async fn the_nth_call_fails_and_no_other() {
        let broken = StoreError::Other("broken".into());
        let store = faulty(vec![Rule::new(Operation::Commit, 2, Fault::Fail(broken)).on_keys_with("data")]);
        put(&store, "other", "x", false).await.unwrap();
        put(&store, "data-1", "x", false).await.unwrap();
        assert!(put(&store, "data-2", "x", false).await.is_err());
        put(&store, "data-3", "x", false).await.unwrap();
        let keys: Vec<_> = store.list("").await.unwrap().into_iter().map(|o| o.key).collect();
        assert_eq!(keys, ["data-1", "data-3", "other"]);
        assert_eq!(store.calls(), [3]);
    }

    #[tokio::test]
    async fn a_lost_response_means_that_the_work_was_done() {
        let store = faulty(vec![Rule::new(Operation::Commit, 1, Fault::LoseResponse)]);
        assert!(put(&store, "a", "x", false).await.is_err());
        assert_eq!(get(&store, "a", 9).await.unwrap(), "x");
    }

    #[tokio::test]
    async fn bytes_are_damaged_on_the_way_out_and_in() {
        let store = faulty(vec![
            Rule::new(Operation::Read, 1, Fault::Flip(1)),
            Rule::new(Operation::Read, 2, Fault::Truncate(2)),
            Rule::new(Operation::PutPart, 2, Fault::Truncate(1)),
        ]);
        put(&store, "a", "abc", false).await.unwrap();
        assert_eq!(get(&store, "a", 9).await.unwrap(), "acc");
        assert_eq!(get(&store, "a", 9).await.unwrap(), "ab");
        put(&store, "b", "abc", false).await.unwrap();
        assert_eq!(get(&store, "b", 9).await.unwrap(), "a");
    }
}
