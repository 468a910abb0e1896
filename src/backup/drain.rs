//! Draining the streams of one database: as many at a time as the job allows, with the snapshot's
//! session kept alive beside them, and an end to waiting for a server that is gone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::coordinator::Coordinator;
use super::streams::{self, Destination, Dumped};
use crate::error::{Error, Result};
use crate::progress::Event;

/// How often the coordinator's session shows that it is alive while streams are drained.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// A server that is only slow answers within this.
const HEARTBEAT_BOUND: Duration = Duration::from_secs(60);
/// How long no stream may move once the server does not answer. A repository that is down is waited for
/// less than this.
const STALL: Duration = Duration::from_secs(600);

/// Drains as many at a time as the job allows, schema first and large tables by size, while the
/// coordinator's session is kept alive.
pub(super) async fn drain_all(
    started: Vec<streams::Started>,
    destination: &Destination,
    width: usize,
    coordinator: &Coordinator,
    warnings: &mut Vec<String>,
) -> Result<Vec<Dumped>> {
    let moved = Arc::new(AtomicU64::new(0));
    let destination = counted(destination, moved.clone());
    let mut waiting: VecDeque<_> = started.into_iter().enumerate().collect();
    let mut running = tokio::task::JoinSet::new();
    let mut done = Vec::new();
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut is_alive = true;
    let mut movement = Movement { seen: 0, since: Instant::now() };
    loop {
        while running.len() < width.max(1)
            && let Some((i, next)) = waiting.pop_front()
        {
            let to = destination.clone();
            running.spawn(async move { (i, streams::drain(next, to).await) });
        }
        tokio::select! {
            finished = running.join_next() => match finished {
                None => break,
                Some(Err(error)) => return Err(Error::new(format!("a stream stopped: {error}"))),
                Some(Ok((i, dumped))) => {
                    moved.fetch_add(1, Ordering::Relaxed);
                    done.push((i, dumped?));
                }
            },
            _ = heartbeat.tick() => {
                let database = &coordinator.plan.database;
                if is_alive && let Err(error) = beat(coordinator).await {
                    // Every pg_dump has its snapshot and its locks already: the set is not harmed.
                    warnings.push(format!("{database}: {error}; the dumps went on without it"));
                    is_alive = false;
                }
                let is_still = movement.is_still(moved.load(Ordering::Relaxed), Instant::now());
                if !is_alive && is_still {
                    return Err(Error::new(format!(
                        "the server does not answer, and no stream moved for {} s", STALL.as_secs()
                    ))
                    .with_hint("see whether the server's host is up; run it again"));
                }
            }
        }
    }
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, dumped)| dumped).collect())
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

/// The same, and whatever passes is counted.
fn counted(destination: &Destination, moved: Arc<AtomicU64>) -> Destination {
    let told = destination.progress.clone();
    let progress = Arc::new(move |event: Event| {
        if let Event::StreamBytes { bytes, .. } = &event {
            moved.fetch_add(*bytes, Ordering::Relaxed);
        }
        told(event);
    });
    Destination { progress, ..destination.clone() }
}

/// Since when nothing has moved.
struct Movement {
    seen: u64,
    since: Instant,
}

impl Movement {
    fn is_still(&mut self, moved: u64, now: Instant) -> bool {
        if moved != self.seen {
            *self = Self { seen: moved, since: now };
        }
        now.duration_since(self.since) > STALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_moves_is_waited_for_and_one_that_does_not_is_given_up() {
        let start = Instant::now();
        let mut movement = Movement { seen: 0, since: start };
        assert!(!movement.is_still(0, start + STALL));
        assert!(movement.is_still(0, start + STALL + HEARTBEAT));
        // However slowly.
        for n in 1..50u32 {
            assert!(!movement.is_still(u64::from(n), start + STALL * n));
        }
        assert!(movement.is_still(49, start + STALL * 51));
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
        let counted = counted(&destination, moved.clone());
        (counted.progress)(Event::StreamBytes { name: "x".into(), bytes: 7 });
        assert_eq!((moved.load(Ordering::Relaxed), told.load(Ordering::Relaxed)), (7, 1));
    }
}
