//! Runs monitors in the background and keeps what they found; knows none of them.
//!
//! Each monitor is one task: at its own phase (a stable hash of its name, so that a fleet does not
//! collect in step), once an interval, each collection within its own deadline. A collection that is
//! late is dropped where it waits. Intervals that were missed are skipped.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::budget::admit;
use super::{Collected, Concern, Failure, Monitor, Reason};
use crate::config;
use crate::error::Error;
use crate::metrics::Sample;

/// A snapshot is served for so many intervals; then its figures are no longer true enough.
const STALE_INTERVALS: u32 = 3;
/// First collections are spread over this much, so that a start is no stampede and yet soon complete.
const START_SPREAD: Duration = Duration::from_secs(1);

/// A monitor and what is known of it.
pub struct Target {
    /// What others may look at.
    pub watch: Arc<Watch>,
    monitor: Box<dyn Monitor>,
}

impl Target {
    /// A monitor that has not collected yet.
    pub fn new(config: config::Monitor, monitor: Box<dyn Monitor>) -> Self {
        Self { watch: Arc::new(Watch { config, state: Mutex::default() }), monitor }
    }
}

/// What is known of a monitor; never held up by its collection.
pub struct Watch {
    /// Its configuration.
    pub config: config::Monitor,
    state: Mutex<State>,
}

/// The figures of one collection that reached its target.
#[derive(Debug)]
pub struct Snapshot {
    /// The figures.
    pub samples: Arc<Vec<Sample>>,
    /// The pieces, and why some are absent.
    pub concerns: Vec<Concern>,
    /// When it ended.
    pub at: SystemTime,
    taken: Instant,
}

/// How the last collection went.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// When it ended.
    pub at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Why it failed.
    pub failure: Option<Failure>,
}

#[derive(Default)]
struct State {
    last: Option<Attempt>,
    good: Option<Arc<Snapshot>>,
    collections: u64,
    failures: [u64; Reason::ALL.len()],
    dropped: u64,
}

/// A monitor as it stands at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// How the last collection went; absent before the first has ended.
    pub last: Option<Attempt>,
    /// The last good figures, unless they are stale.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Collections that have ended.
    pub collections: u64,
    /// Those that failed, by reason.
    pub failures: [u64; Reason::ALL.len()],
    /// Series that were left out so far.
    pub dropped: u64,
}

impl Watch {
    /// What is known now.
    pub fn view(&self) -> View {
        let stale = self.config.interval.saturating_mul(STALE_INTERVALS);
        let state = self.state();
        View {
            last: state.last.clone(),
            snapshot: state.good.clone().filter(|snapshot| snapshot.taken.elapsed() <= stale),
            collections: state.collections,
            failures: state.failures,
            dropped: state.dropped,
        }
    }

    fn record(&self, took: Duration, outcome: Result<Collected, Failure>) {
        let at = SystemTime::now();
        let mut state = self.state();
        state.collections += 1;
        let failure = match outcome {
            Ok(Collected { samples, concerns }) => {
                let (samples, dropped) = admit(samples, self.config.max_series);
                state.dropped += dropped;
                let samples = Arc::new(samples);
                state.good = Some(Arc::new(Snapshot { samples, concerns, at, taken: Instant::now() }));
                None
            }
            Err(failure) => {
                // The reasons are numbered in the order of `Reason::ALL`.
                state.failures[failure.reason as usize] += 1;
                Some(failure)
            }
        };
        state.last = Some(Attempt { at, took, failure });
    }

    /// A panic while it was held leaves it as it was: every change is one assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts every monitor; dropping the set ends them.
pub fn start(targets: Vec<Target>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for target in targets {
        tasks.spawn(run(target));
    }
    tasks
}

/// Collects from all at once, each within its own deadline, and tells what was found, in their order. Whoever
/// is done early is looked at then: its figures are not stale because another one takes its time.
pub async fn collect_once(targets: &mut [Target]) -> Vec<View> {
    let looks = targets.iter_mut().map(async |target| {
        collect(target).await;
        target.watch.view()
    });
    let mut views = join_all(looks).await;
    for (target, view) in targets.iter().zip(&mut views) {
        let Some(snapshot) = &view.snapshot else { continue };
        if let Some(samples) = target.monitor.settle(&snapshot.samples) {
            let (samples, _) = admit(samples, target.watch.config.max_series);
            let concerns = snapshot.concerns.clone();
            let (at, taken) = (snapshot.at, snapshot.taken);
            view.snapshot = Some(Arc::new(Snapshot { samples: Arc::new(samples), concerns, at, taken }));
        }
    }
    views
}

async fn run(mut target: Target) {
    let config = target.watch.config.clone();
    let phase = phase(&config.name, config.interval.min(START_SPREAD));
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + phase, config.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        match target.monitor.looks_again_in() {
            None => {
                ticks.tick().await;
            }
            // The next one in its turn, or this bound: whichever comes first.
            Some(soon) => drop(tokio::time::timeout(soon, ticks.tick()).await),
        }
        let before = target.watch.view().last;
        collect(&mut target).await;
        say(&target.watch, before);
    }
}

/// A target that stays down is said once, not every few seconds.
fn say(watch: &Watch, before: Option<Attempt>) {
    let name = &watch.config.name;
    let was_up = before.map(|attempt| attempt.failure.is_none());
    match (watch.view().last.and_then(|attempt| attempt.failure), was_up) {
        (Some(failure), None | Some(true)) => tracing::warn!("monitor {name} is down: {failure}"),
        (None, Some(false)) => tracing::warn!("monitor {name} is up again"),
        _ => {}
    }
}

async fn collect(target: &mut Target) {
    let Target { watch, monitor } = target;
    let bound = watch.config.timeout;
    let started = Instant::now();
    let collection = AssertUnwindSafe(monitor.collect()).catch_unwind();
    let outcome = match tokio::time::timeout(bound, collection).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Failure::new(Reason::Internal, Error::new("the collection panicked"))),
        Err(_) => {
            let error = Error::new(format!("no result within {} s", bound.as_secs_f64()));
            Err(Failure::new(Reason::Timeout, error))
        }
    };
    watch.record(started.elapsed(), outcome);
}

/// Where in `span` a monitor begins: the same at every start, different from one name to the next.
fn phase(name: &str, span: Duration) -> Duration {
    let part = xxhash_rust::xxh3::xxh3_64(name.as_bytes()) as f64 / u64::MAX as f64;
    span.mul_f64(part.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
