//! Waiting for the streams of one database, with the snapshot's session kept alive beside them, and an end
//! to waiting for a server that is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::coordinator::Coordinator;
use super::streams::{Destination, Dumped, Running};
use crate::error::{Error, Result};
use crate::progress::Event;

/// How often the coordinator's session shows that it is alive while streams are drained.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// A server that is only slow answers within this.
const HEARTBEAT_BOUND: Duration = Duration::from_secs(60);
/// How long no stream may move once the server does not answer. A repository that is down is waited for
/// less than this.
const STALL: Duration = Duration::from_secs(600);

/// Waits until every stream is stored, in the order that a set has them, while the coordinator's session is kept
/// alive.
pub(super) async fn drain_all(
    running: &mut Running,
    moved: &AtomicU64,
    coordinator: &Coordinator,
    warnings: &mut Vec<String>,
) -> Result<Vec<Dumped>> {
    let database = &coordinator.plan.database;
    let mut done: Vec<Dumped> = Vec::new();
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut is_alive = true;
    let mut movement = Movement::new(0, Instant::now());
    loop {
        tokio::select! {
            finished = running.next() => match finished {
                None => break,
                Some(dumped) => {
                    moved.fetch_add(1, Ordering::Relaxed);
                    let (dumped, said) = dumped?;
                    // Each pg_dump may say the same of the database.
                    for line in said.iter().map(|line| format!("{database}: {line}")) {
                        if !warnings.contains(&line) {
                            warnings.push(line);
                        }
                    }
                    done.extend(dumped);
                }
            },
            _ = heartbeat.tick() => {
                if is_alive && let Err(error) = beat(coordinator).await {
                    // Every pg_dump has its snapshot and its locks already: the set is not harmed.
                    warnings.push(format!("{database}: {error}; the dumps went on without it"));
                    is_alive = false;
                }
                let is_still = movement.is_still(moved.load(Ordering::Relaxed), Instant::now(), STALL);
                if !is_alive && is_still {
                    return Err(Error::new(format!(
                        "the server does not answer, and no stream moved for {} s", STALL.as_secs()
                    ))
                    .with_hint("see whether the server's host is up; run it again"));
                }
            }
        }
    }
    let order: Vec<&str> = coordinator.plan.streams().iter().map(|s| s.name.as_str()).collect();
    done.sort_by_key(|dumped| order.iter().position(|name| *name == dumped.stream.name));
    Ok(done)
}

async fn beat(coordinator: &Coordinator) -> Result<()> {
    match tokio::time::timeout(HEARTBEAT_BOUND, coordinator.heartbeat()).await {
        Ok(answer) => answer,
        Err(_) => {
            let bound = HEARTBEAT_BOUND.as_secs();
            Err(Error::new(format!("the snapshot's session has not answered for {bound} s")))
        }
    }
}

/// A destination that counts whatever passes.
pub(super) fn counted(destination: Destination, moved: Arc<AtomicU64>) -> Destination {
    let told = destination.progress.clone();
    let progress = Arc::new(move |event: Event| {
        if let Event::StreamBytes { bytes, .. } = &event {
            moved.fetch_add(*bytes, Ordering::Relaxed);
        }
        told(event);
    });
    Destination { progress, ..destination }
}

/// Since when nothing has moved.
pub(super) struct Movement<T> {
    seen: T,
    since: Instant,
}

impl<T: PartialEq> Movement<T> {
    pub(super) fn new(seen: T, since: Instant) -> Self {
        Self { seen, since }
    }

    /// Whether what is looked at has been the same for longer than `bound`.
    pub(super) fn is_still(&mut self, seen: T, now: Instant, bound: Duration) -> bool {
        if seen != self.seen {
            *self = Self { seen, since: now };
        }
        now.duration_since(self.since) > bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_moves_is_waited_for_and_one_that_does_not_is_given_up() {
        let start = Instant::now();
        let mut movement = Movement::new(0, start);
        assert!(!movement.is_still(0, start + STALL, STALL));
        assert!(movement.is_still(0, start + STALL + HEARTBEAT, STALL));
        // However slowly.
        for n in 1..50u32 {
            assert!(!movement.is_still(u64::from(n), start + STALL * n, STALL));
        }
        assert!(movement.is_still(49, start + STALL * 51, STALL));
    }

    #[test]
    fn what_passes_is_counted_and_told() {
        let told = Arc::new(AtomicU64::new(0));
        let (moved, listener) = (Arc::new(AtomicU64::new(0)), told.clone());
        let destination = Destination {
            store: Arc::new(crate::store::memory::MemoryStore::new()),
            prefix: String::new(),
            folder: String::new(),
            seal: crate::set::seal::SealOptions {
                recipients: Arc::new(Vec::new()),
                level: 1,
                part_size: 1,
                segment_limit: 1,
                pool: crate::buffer_pool::BufferPool::new(1),
            },
            secret: crate::set::fingerprint::RowSecret::generate(),
            progress: Arc::new(move |_| {
                listener.fetch_add(1, Ordering::Relaxed);
            }),
        };
        let counted = counted(destination, moved.clone());
        (counted.progress)(Event::StreamBytes { name: "x".into(), bytes: 7 });
        assert_eq!((moved.load(Ordering::Relaxed), told.load(Ordering::Relaxed)), (7, 1));
    }
}
