//! A lease: work on a repository that two must not do at the same time.
//!
//! It is one small object that only one can create. Its holder renews it by replacing it, and removes
//! it at the end. One whose holder is gone runs out by the store's clock alone: the age of the object
//! is compared with the time of a fresh answer, so no clock of this machine matters. Whoever finds it
//! expired replaces it by the next generation; of several that do, the store lets one through.
//!
//! Where a store cannot replace on condition, an expired lease is deleted and created anew, which two
//! could do in the same instant: the slower one then deletes what the faster one has just made. So who
//! makes one that way looks again after a pause, and does nothing before. Where a store cannot even
//! create on condition there is no lease, and the caller says so.
//!
//! A lease that was lost is not removed at the end, and neither is one that another write has replaced.
//!
//! Deliberately absent: waiting for a lease, and leases on anything that is not worth minutes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::probe::{self, State};
use super::{Store, StoreError, Version, get, put};
use crate::error::{Context, Error, Kind, Result};

/// How long a lease holds without being renewed. Long enough to ride out a store that is down for a
/// while, short enough that nobody misses the next night's run.
pub const DURATION: Duration = Duration::from_secs(300);

/// Renewals in the time that a lease holds.
const RENEWALS: u32 = 5;

/// The longest that anybody's lease is believed to hold, whatever it says of itself.
const LONGEST: Duration = Duration::from_secs(3600);

/// How often an expired lease is tried for while others win it.
const ATTEMPTS: usize = 5;

/// How long after an expired lease was deleted and made anew it is looked at again: longer than anybody
/// takes from looking at the expired one to deleting it.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// A lease is a few hundred bytes.
const LIMIT: u64 = 64 * 1024;

const FORMAT: u32 = 1;

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Always 1.
    pub format: u32,
    /// One more than the lease that expired before this one had.
    pub generation: u64,
    /// Told from every other.
    pub token: String,
    /// What the holder does: `backups prune`.
    pub command: String,
    /// Its machine.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// The same, told from a later process and from one in another container.
    pub process: String,
    /// When it was taken, by the holder's clock: for people.
    pub since: DateTime<Utc>,
    /// Seconds that it holds from when it was last written.
    pub seconds: u64,
    /// How often it was renewed.
    pub renewed: u64,
}

impl Document {
    /// `backups prune on db1, process 4711, since 2026-11-21 03:00:00 UTC`.
    fn describe(&self) -> String {
        let Self { command, host, pid, since, .. } = self;
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).take(100).collect::<String>();
        format!("{} on {}, process {pid}, since {since}", clean(command), clean(host))
    }
}

/// How a store lets leases be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// By creating and replacing on condition.
    Replace,
    /// By creating on condition alone.
    Recreate,
}

/// A lease that is held. Dropping it keeps it until it expires; [`Lease::release`] ends it.
#[derive(Debug)]
pub struct Lease<'s> {
    store: &'s dyn Store,
    means: Means,
    key: String,
    document: Box<Document>,
    version: Version,
    /// When the last renewal that succeeded was sent.
    written: Instant,
    /// Somebody else has it.
    lost: bool,
}

/// A lease, or why this store has none.
#[derive(Debug)]
pub enum Acquired<'s> {
    /// It is ours.
    Held(Lease<'s>),
    /// There cannot be one; the text says why.
    Impossible(String),
}

/// Takes the lease at `key` for `duration`. Where somebody else holds it, that is an error of
/// [`Kind::LockHeld`] that names the holder.
pub async fn acquire<'s>(
    store: &'s dyn Store,
    key: &str,
    command: &str,
    duration: Duration,
) -> Result<Acquired<'s>> {
    let means = match means(store).await? {
        Ok(means) => means,
        Err(why) => return Ok(Acquired::Impossible(why)),
    };
    for _ in 0..ATTEMPTS {
        let written = Instant::now();
        let is_recreated = means == Means::Recreate;
        let (taken, document) = match store.version(key).await {
            Err(StoreError::NotFound(_)) => {
                let document = new_document(1, command, duration);
                (put(store, key, document.to_bytes()?, true).await, document)
            }
            Err(error) => return Err(error.into()),
            Ok(version) => {
                let Some(generation) = expired(store, key, &version, duration).await? else { continue };
                let document = new_document(generation + 1, command, duration);
                (take_over(store, means, key, document.to_bytes()?, &version).await, document)
            }
        };
        let doubt = match taken {
            Ok(()) => None,
            // Somebody else was faster.
            Err(StoreError::Exists(_)) => continue,
            // It may have been written all the same; what is there now tells.
            Err(error @ (StoreError::InDoubt(_) | StoreError::Other(_))) => Some(error),
            Err(error) => return Err(not_taken(key, error)),
        };
        // Also where there was none: somebody may have deleted an expired one just now, and another may
        // be about to.
        if is_recreated {
            tokio::time::sleep(SECOND_LOOK.min(duration / 4)).await;
        }
        // What is there now is ours, or that of whoever took it for expired as well.
        let looked = async {
            let version = store.version(key).await?;
            Ok::<_, StoreError>((version, get(store, key, LIMIT).await?))
        };
        let (version, found) = match (looked.await, &doubt) {
            (Err(StoreError::NotFound(_)), None) => continue,
            (Err(_), Some(doubt)) => return Err(not_taken(key, doubt.clone())),
            (looked, _) => looked.with_context(|| format!("cannot read back the lease {key}"))?,
        };
        if parse(&found).is_some_and(|found| found.token == document.token) {
            let key = key.to_owned();
            let document = Box::new(document);
            return Ok(Acquired::Held(Lease { store, means, key, document, version, written, lost: false }));
        }
        if let Some(doubt) = doubt {
            return Err(not_taken(key, doubt));
        }
    }
    Err(Error::new(format!("others keep taking the lease {key} in {}", store.describe()))
        .with_kind(Kind::LockHeld))
}

fn not_taken(key: &str, error: StoreError) -> Error {
    Error::from(error).context(format!("cannot take the lease {key}"))
}

/// How leases can be taken here, as a trial finds each time. The probe's report is not asked: nobody signs it,
/// and whoever can write to the repository could turn leases off, or make them hold nobody.
async fn means(store: &dyn Store) -> Result<Result<Means, String>> {
    let (put, replace) = probe::conditions(store).await;
    Ok(match (put, replace) {
        (State::Yes, State::Yes) => Ok(Means::Replace),
        (State::Yes, _) => Ok(Means::Recreate),
        (State::No, _) => Err("the store cannot refuse to overwrite an object".into()),
        (State::Denied, _) => Err("this credential may not write the lease".into()),
        (State::Unknown, _) => Err("whether the store honours conditions is not known".into()),
    })
}

fn new_document(generation: u64, command: &str, duration: Duration) -> Document {
    Document {
        format: FORMAT,
        generation,
        token: format!("{:032x}", rand::random::<u128>()),
        command: command.to_owned(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
        process: own_process().unwrap_or_default(),
        since: Utc::now().trunc_subsecs(0),
        seconds: duration.as_secs().max(1),
        renewed: 0,
    }
}

impl Document {
    fn to_bytes(&self) -> Result<Bytes> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes.into())
    }
}

fn parse(bytes: &[u8]) -> Option<Document> {
    serde_json::from_slice::<Document>(bytes).ok().filter(|document| document.format == FORMAT)
}

/// The generation of a lease that has expired; an error where it has not, `None` where it is gone.
/// What cannot be read holds as long as one of ours would: somebody may know what it means.
async fn expired(store: &dyn Store, key: &str, version: &Version, duration: Duration) -> Result<Option<u64>> {
    let document = match get(store, key, LIMIT).await {
        Ok(bytes) => parse(&bytes),
        Err(StoreError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(Error::from(error).context(format!("cannot read the lease {key}"))),
    };
    let holds = document.as_ref().map_or(duration, |d| Duration::from_secs(d.seconds)).min(LONGEST);
    let now = store.now().await.context("cannot learn the store's time")?;
    // An object from the store's future was written just now.
    let age = (now - version.modified).to_std().unwrap_or_default();
    let is_dead = document.as_ref().is_some_and(|d| is_dead(&d.process));
    if age >= holds || is_dead {
        return Ok(Some(document.map_or(0, |d| d.generation)));
    }
    let holder = document.map_or_else(|| "somebody unknown".to_owned(), |d| d.describe());
    let left = (holds - age).as_secs().max(1);
    Err(Error::new(format!("the lease {key} in {} is held by {holder}", store.describe()))
        .with_kind(Kind::LockHeld)
        .with_hint(format!("wait for it to end; if it was killed, its lease expires in {left} seconds")))
}

async fn take_over(
    store: &dyn Store,
    means: Means,
    key: &str,
    body: Bytes,
    version: &Version,
) -> Result<(), StoreError> {
    match means {
        Means::Replace => store.replace(key, body, version).await,
        Means::Recreate => {
            match store.version(key).await {
                Ok(found) if found == *version => store.delete(key).await?,
                Ok(_) => return Err(StoreError::Exists(format!("{key} was taken meanwhile"))),
                Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
            put(store, key, body, true).await
        }
    }
}

impl Lease<'_> {
    /// What is stored of it.
    pub fn document(&self) -> &Document {
        &self.document
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.document.seconds)
    }

    /// Does `work` and keeps the lease meanwhile. Where the lease is lost the work is dropped, and
    /// that is the error.
    pub async fn hold<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let (done, lost) = (CancellationToken::new(), CancellationToken::new());
        let key = self.key.clone();
        let guarded = async {
            let result = tokio::select! {
                biased;
                () = lost.cancelled() => Err(Error::new(format!("the lease {key} was lost, so the work was stopped"))
                    .with_hint("the store did not answer for too long, or somebody took it")),
                result = work => result,
            };
            done.cancel();
            result
        };
        let kept = async {
            let every = self.duration() / RENEWALS;
            loop {
                tokio::select! {
                    () = done.cancelled() => return,
                    () = tokio::time::sleep(every) => {}
                }
                if !self.renew().await {
                    self.lost = true;
                    lost.cancel();
                    return;
                }
            }
        };
        tokio::join!(guarded, kept).0
    }

    /// Writes it anew; whether it is still ours. A store that does not answer costs it only once it
    /// would have expired.
    async fn renew(&mut self) -> bool {
        let sent = Instant::now();
        let mut document = self.document.clone();
        document.renewed += 1;
        let write = async {
            match self.write(&document, &self.version).await {
                // An earlier renewal may have arrived, whose answer did not.
                Err(StoreError::Exists(_)) => self.write(&document, &self.own_version().await?).await,
                written => written,
            }
        };
        let written = tokio::time::timeout(self.left(), write).await;
        match written {
            Ok(Ok(version)) => {
                (self.document, self.version, self.written) = (document, version, sent);
                true
            }
            Ok(Err(StoreError::Exists(_) | StoreError::NotFound(_))) => false,
            Ok(Err(error)) => {
                tracing::warn!(key = self.key, %error, "the lease could not be renewed yet");
                self.is_ours()
            }
            Err(_) => false,
        }
    }

    async fn write(&self, document: &Document, over: &Version) -> Result<Version, StoreError> {
        let body = document.to_bytes().map_err(|e| StoreError::Other(e.to_string()))?;
        match self.means {
            Means::Replace => self.store.replace(&self.key, body, over).await?,
            Means::Recreate => {
                if self.store.version(&self.key).await? != *over {
                    return Err(StoreError::Exists(format!("{} was taken", self.key)));
                }
                put(self.store, &self.key, body, false).await?;
            }
        }
        self.store.version(&self.key).await
    }

    /// Which version of it the store holds, if that is one that this lease wrote.
    async fn own_version(&self) -> Result<Version, StoreError> {
        let version = self.store.version(&self.key).await?;
        if version == self.version {
            return Ok(version);
        }
        let found = parse(&get(self.store, &self.key, LIMIT).await?);
        match found.is_some_and(|found| found.token == self.document.token) {
            true => Ok(version),
            false => Err(StoreError::Exists(format!("{} was taken", self.key))),
        }
    }

    /// Whether nobody can have taken it yet, by the time that passed since it was written.
    fn is_ours(&self) -> bool {
        !self.left().is_zero()
    }

    /// How much longer it certainly holds. Stores count in whole seconds, and clocks differ in speed:
    /// the last tenth is nobody's.
    fn left(&self) -> Duration {
        (self.duration() * 9 / 10).saturating_sub(self.written.elapsed())
    }

    /// Ends it. One that is or may be somebody else's by now is left alone.
    pub async fn release(self) {
        if self.lost || !self.is_ours() {
            return;
        }
        let delete = async {
            match self.own_version().await {
                Ok(_) => self.store.delete(&self.key).await,
                Err(StoreError::Exists(_) | StoreError::NotFound(_)) => Ok(()),
                Err(error) => Err(error),
            }
        };
        // Not later than it holds: a deletion that arrives afterwards would hit the next holder's.
        let deleted = tokio::time::timeout(self.left(), delete).await;
        if let Ok(Err(error)) = deleted {
            tracing::warn!(key = self.key, %error, "the lease could not be removed; it expires by itself");
        }
    }
}

/// This process, told from every other: boot, process namespace, number, start.
fn own_process() -> Option<String> {
    let pid = std::process::id();
    Some(format!("{} {pid} {}", own_machine()?, started(pid)?))
}

fn own_machine() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.to_string_lossy()))
}

/// When a process started, in ticks since boot.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether a process certainly ended: it was one of this machine and namespace, and its number is
/// nobody's now, or that of one that started later. Of others nobody here can tell.
fn is_dead(process: &str) -> bool {
    let mut words = process.rsplitn(3, ' ');
    let (Some(start), Some(pid), Some(machine)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let (Ok(start), Ok(raw)) = (start.parse::<u64>(), pid.parse::<i32>()) else { return false };
    let Some(pid) = Pid::from_raw(raw).filter(|_| own_machine().is_some_and(|own| own == machine)) else {
        return false;
    };
    match test_kill_process(pid) {
        Err(rustix::io::Errno::SRCH) => true,
        // Somebody else's process may be hidden: then it counts as alive.
        Ok(()) | Err(_) => started(raw.unsigned_abs()).is_some_and(|now| now != start),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::faulty::{Fault, FaultyStore, Operation, Rule};
    use crate::store::memory::MemoryStore;

    const KEY: &str = "site/lease.json";
    const LONG: Duration = Duration::from_secs(300);

    async fn held<'s>(store: &'s dyn Store, command: &str) -> Lease<'s> {
        match acquire(store, KEY, command, LONG).await.unwrap() {
            Acquired::Held(lease) => lease,
            Acquired::Impossible(why) => panic!("{why}"),
        }
    }

    /// The lease of a process that nobody here can look at.
    async fn leave(store: &MemoryStore, age: i64) {
        let mut lease = held(store, "backups prune").await;
        lease.document.process = "elsewhere 1 1".to_owned();
        lease.document.host = "db2".to_owned();
        store.overwrite(KEY, lease.document.to_bytes().unwrap());
        store.set_modified(KEY, Utc::now() - chrono::TimeDelta::seconds(age));
    }

    #[tokio::test]
    async fn a_second_is_told_who_holds_it() {
        let store = MemoryStore::new();
        let lease = held(&store, "backups prune").await;
        assert_eq!(lease.document().generation, 1);
        let error = acquire(&store, KEY, "backups sweep", LONG).await.unwrap_err();
        assert_eq!(error.kind(), Kind::LockHeld);
        let pid = format!("process {}", std::process::id());
        assert!(
            error.to_string().contains("backups prune on ") && error.to_string().contains(&pid),
            "{error}"
        );
        lease.release().await;
        assert!(store.list("").await.unwrap().is_empty(), "nothing is left");
        held(&store, "backups sweep").await.release().await;
    }

    #[tokio::test]
    async fn one_that_ran_out_is_taken_over_with_the_next_generation() {
        let store = MemoryStore::new();
        leave(&store, 299).await;
        let error = acquire(&store, KEY, "backups prune", LONG).await.unwrap_err();
        assert!(error.to_string().contains("on db2"), "{error}");
        store.set_modified(KEY, Utc::now() - chrono::TimeDelta::seconds(301));
        let lease = held(&store, "backups sweep").await;
        assert_eq!(lease.document().generation, 2);
        lease.release().await;
    }

    #[tokio::test]
    async fn one_whose_holder_died_on_this_machine_is_taken_over_at_once() {
        let store = MemoryStore::new();
        let mut lease = held(&store, "backups prune").await;
        assert!(!is_dead(&lease.document.process));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        lease.document.process = format!("{} {pid} 1", own_machine().unwrap());
        store.overwrite(KEY, lease.document.to_bytes().unwrap());
        assert_eq!(held(&store, "backups prune").await.document().generation, 2);
        // The same number of a process elsewhere says nothing.
        assert!(!is_dead(&format!("another-boot pid:[1] {pid} 1")));
        // Nor does noise.
        for noise in ["", "x", "a b c", "a b 1 -1", "1 1", "a b 0 0"] {
            assert!(!is_dead(noise), "{noise}");
        }
    }

    #[tokio::test]
    async fn of_many_that_find_it_expired_one_wins() {
        let store = MemoryStore::new();
        leave(&store, 301).await;
        let tries = (0..16).map(|_| acquire(&store, KEY, "backups prune", LONG));
        let results = futures_util::future::join_all(tries).await;
        let won = results.iter().filter(|r| matches!(r, Ok(Acquired::Held(_)))).count();
        assert_eq!(won, 1, "{results:?}");
        assert!(results.iter().all(|r| r.as_ref().map_or_else(|e| e.kind() == Kind::LockHeld, |_| true)));
    }

    /// Two seconds, renewed every 400 ms.
    async fn short<'s>(store: &'s dyn Store) -> Lease<'s> {
        match acquire(store, KEY, "backups prune", Duration::from_secs(2)).await.unwrap() {
            Acquired::Held(lease) => lease,
            Acquired::Impossible(why) => panic!("{why}"),
        }
    }

    /// Work that goes on until the lease was renewed so often.
    async fn until_renewed(store: &MemoryStore, times: u64) -> Result<u64> {
        loop {
            let stored = parse(&get(store, KEY, LIMIT).await?).unwrap();
            if stored.renewed >= times {
                return Ok(stored.renewed);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn it_is_renewed_while_the_work_goes_on() {
        let store = MemoryStore::new();
        let mut lease = short(&store).await;
        // For longer than it would hold otherwise.
        let renewed = lease.hold(until_renewed(&store, 6)).await.unwrap();
        assert_eq!(lease.document().renewed, renewed);
        lease.release().await;
        assert!(store.list("").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn work_stops_when_the_lease_is_somebody_elses() {
        let store = MemoryStore::new();
        let mut lease = short(&store).await;
        store.overwrite(KEY, "{}");
        let work = std::future::pending::<Result<()>>();
        let error = lease.hold(work).await.unwrap_err();
        assert!(error.to_string().contains("was lost"), "{error}");
        // Whoever has it keeps it.
        lease.release().await;
        assert_eq!(get(&store, KEY, LIMIT).await.unwrap(), "{}");
    }

    #[tokio::test]
    async fn the_lease_that_replaced_ours_is_not_removed() {
        let store = MemoryStore::new();
        let lease = held(&store, "backups prune").await;
        store.overwrite(KEY, "the winner's");
        lease.release().await;
        assert_eq!(get(&store, KEY, LIMIT).await.unwrap(), "the winner's");
    }

    /// The slower of two that found it expired deletes what the faster one has made by then.
    #[tokio::test]
    async fn without_conditional_replacement_the_faster_one_finds_out_that_it_lost() {
        let memory = MemoryStore::new();
        leave(&memory, 301).await;
        let fault = Fault::Fail(StoreError::Unsupported("not here".into()));
        let store = FaultyStore::new(Arc::new(memory.clone()), vec![Rule::new(Operation::Replace, 0, fault)]);
        let slower = async {
            let made = async || {
                let found = get(&memory, KEY, LIMIT).await.ok().and_then(|bytes| parse(&bytes));
                found.filter(|found| found.command == "backups prune" && found.generation == 2)
            };
            while made().await.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let winner = new_document(2, "backups sweep", LONG);
            memory.overwrite(KEY, winner.to_bytes().unwrap());
        };
        let (faster, ()) = tokio::join!(acquire(&store, KEY, "backups prune", LONG), slower);
        let error = faster.unwrap_err();
        assert!(error.kind() == Kind::LockHeld && error.to_string().contains("backups sweep"), "{error}");
    }

    #[tokio::test]
    async fn a_renewal_that_fails_once_costs_nothing() {
        let memory = MemoryStore::new();
        let rule = Rule::new(Operation::Replace, 3, Fault::Fail(StoreError::Other("down".into())));
        let store = FaultyStore::new(Arc::new(memory.clone()), vec![rule]);
        let mut lease = short(&store).await;
        lease.hold(until_renewed(&memory, 3)).await.unwrap();
        lease.release().await;
        assert!(memory.list("").await.unwrap().is_empty());
    }

    /// The answer of a write is lost, and the write was done.
    #[tokio::test]
    async fn a_lease_in_doubt_is_read_back() {
        let memory = MemoryStore::new();
        let lost = |operation, nth| Rule::new(operation, nth, Fault::LoseResponse).on_keys_with(KEY);
        // Of the taking, of a renewal, and of the last one before it is released.
        let rules =
            vec![lost(Operation::Commit, 1), lost(Operation::Replace, 1), lost(Operation::Replace, 3)];
        let store = FaultyStore::new(Arc::new(memory.clone()), rules);
        let mut lease = short(&store).await;
        lease.hold(until_renewed(&memory, 4)).await.unwrap();
        lease.release().await;
        assert!(memory.list("").await.unwrap().is_empty());
        let mut lease = short(&store).await;
        let rule = vec![Rule::new(Operation::Replace, 0, Fault::LoseResponse)];
        let store = FaultyStore::new(Arc::new(memory.clone()), rule);
        lease.store = &store;
        lease.hold(until_renewed(&memory, 1)).await.unwrap();
        lease.release().await;
        assert!(memory.list("").await.unwrap().is_empty());
        // What was not written is not taken for ours.
        let down = Fault::Fail(StoreError::InDoubt("no answer".into()));
        let store = FaultyStore::new(
            Arc::new(memory.clone()),
            vec![Rule::new(Operation::Commit, 1, down).on_keys_with(KEY)],
        );
        let error = acquire(&store, KEY, "backups prune", LONG).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InDoubt, "{error}");
    }

    #[tokio::test]
    async fn without_conditional_replacement_it_is_deleted_and_made_anew() {
        let memory = MemoryStore::new();
        leave(&memory, 301).await;
        let fault = Fault::Fail(StoreError::Unsupported("not here".into()));
        let store = FaultyStore::new(Arc::new(memory), vec![Rule::new(Operation::Replace, 0, fault)]);
        let lease = held(&store, "backups prune").await;
        assert_eq!((lease.means, lease.document.generation), (Means::Recreate, 2));
        assert!(acquire(&store, KEY, "backups sweep", LONG).await.is_err());
    }

    #[tokio::test]
    async fn without_any_condition_there_is_none_and_that_is_said() {
        let fault = Fault::Fail(StoreError::Denied("no".into()));
        let memory = Arc::new(MemoryStore::new());
        let store = FaultyStore::new(memory.clone(), vec![Rule::new(Operation::Commit, 0, fault)]);
        let acquired = acquire(&store, KEY, "backups prune", LONG).await.unwrap();
        assert!(
            matches!(&acquired, Acquired::Impossible(why) if why.contains("may not write")),
            "{acquired:?}"
        );
        assert!(memory.list("").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn noise_is_a_lease_of_somebody_unknown() {
        let store = MemoryStore::new();
        for noise in ["", "{}", "{\"format\": 2}", "\u{0}"] {
            store.overwrite(KEY, noise);
            let error = acquire(&store, KEY, "backups prune", LONG).await.unwrap_err();
            assert!(error.kind() == Kind::LockHeld && error.to_string().contains("unknown"), "{error}");
        }
        store.set_modified(KEY, Utc::now() - chrono::TimeDelta::seconds(301));
        assert_eq!(held(&store, "backups prune").await.document().generation, 1);
    }
}
