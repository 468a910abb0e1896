//! The driver with monitors that succeed, fail, hang and panic.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::config::{Databases, MonitorKind};
use crate::metrics::{MONITOR_CONCERN_UP, MONITOR_UP};

enum Act {
    Good(f64),
    Fail,
    Slow,
    Hang,
    Panic,
}

struct Script {
    soon: Option<Duration>,
    acts: Vec<Act>,
    calls: usize,
    dropped: Arc<AtomicUsize>,
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl Monitor for Script {
    fn name(&self) -> &str {
        "script"
    }

    fn looks_again_in(&self) -> Option<Duration> {
        self.soon.filter(|_| self.calls > 0)
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let act = &self.acts[self.calls.min(self.acts.len() - 1)];
        self.calls += 1;
        let _guard = Guard(self.dropped.clone());
        match act {
            Act::Good(value) => Ok(Collected {
                samples: vec![
                    Sample::plain(&MONITOR_UP, *value),
                    Sample::new(&MONITOR_CONCERN_UP, ["a"], 1.0),
                    Sample::new(&MONITOR_CONCERN_UP, ["b"], 1.0),
                ],
                concerns: Vec::new(),
            }),
            Act::Fail => Err(Failure::new(Reason::Refused, Error::new("no"))),
            Act::Slow => {
                tokio::time::sleep(Duration::from_millis(15)).await;
                Err(Failure::new(Reason::Refused, Error::new("no")))
            }
            Act::Hang => std::future::pending().await,
            Act::Panic => panic!("a mistake"),
        }
    }
}

fn target(acts: Vec<Act>) -> (Target, Arc<AtomicUsize>) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let config = config::Monitor {
        name: "script".into(),
        kind: MonitorKind::Postgres {
            server: "main".into(),
            databases: Databases::Url,
            excluded: Vec::new(),
        },
        interval: Duration::from_secs(15),
        timeout: Duration::from_millis(20),
        max_series: 2,
        thresholds: Vec::new(),
        replaced: Vec::new(),
    };
    let monitor = Script { soon: None, acts, calls: 0, dropped: dropped.clone() };
    (Target::new(config, Box::new(monitor)), dropped)
}

#[tokio::test]
async fn a_failure_shows_at_once_and_the_last_good_figures_stay() {
    let (mut target, _) = target(vec![Act::Good(7.0), Act::Fail, Act::Good(8.0)]);
    assert!(target.watch.view().last.is_none());
    collect(&mut target).await;
    let view = target.watch.view();
    assert!(view.last.unwrap().failure.is_none());
    // Above the limit of two, one is left out and counted.
    assert_eq!((view.snapshot.unwrap().samples.len(), view.dropped), (2, 1));
    collect(&mut target).await;
    let view = target.watch.view();
    assert_eq!(view.last.unwrap().failure.unwrap().reason, Reason::Refused);
    assert_eq!(view.snapshot.unwrap().samples[0].value, 7.0);
    assert_eq!(view.failures[Reason::Refused as usize], 1);
    collect(&mut target).await;
    let view = target.watch.view();
    assert!(view.last.unwrap().failure.is_none());
    assert_eq!((view.snapshot.unwrap().samples[0].value, view.collections), (8.0, 3));
}

#[tokio::test]
async fn a_late_collection_is_dropped_and_the_next_one_works() {
    let (mut target, dropped) = target(vec![Act::Hang, Act::Panic, Act::Good(1.0)]);
    collect(&mut target).await;
    assert_eq!(target.watch.view().last.unwrap().failure.unwrap().reason, Reason::Timeout);
    assert_eq!(dropped.load(Ordering::SeqCst), 1, "the collection goes on somewhere");
    collect(&mut target).await;
    assert_eq!(target.watch.view().last.unwrap().failure.unwrap().reason, Reason::Internal);
    collect(&mut target).await;
    let view = target.watch.view();
    assert!(view.last.unwrap().failure.is_none() && view.snapshot.is_some());
}

/// Its figures were left out where another monitor took longer than three of its intervals, and that was
/// called well.
#[tokio::test]
async fn whoever_is_done_early_is_not_stale_when_the_last_one_is_done() {
    let (mut early, _) = target(vec![Act::Good(7.0)]);
    let watch = Arc::get_mut(&mut early.watch).unwrap();
    watch.config.interval = Duration::from_millis(1);
    let (late, _) = target(vec![Act::Slow]);
    let views = collect_once(&mut [early, late]).await;
    assert_eq!(views[0].snapshot.as_ref().unwrap().samples[0].value, 7.0);
    assert_eq!(views[1].last.as_ref().unwrap().failure.as_ref().unwrap().reason, Reason::Refused);
}

#[test]
fn stale_figures_are_not_served() {
    let (target, _) = target(vec![Act::Fail]);
    let Some(taken) = Instant::now().checked_sub(Duration::from_secs(46)) else { return };
    let old = Snapshot { samples: Arc::default(), concerns: Vec::new(), at: SystemTime::now(), taken };
    target.watch.state().good = Some(Arc::new(old));
    assert!(target.watch.view().snapshot.is_none());
    let Some(taken) = Instant::now().checked_sub(Duration::from_secs(40)) else { return };
    let fresh = Snapshot { samples: Arc::default(), concerns: Vec::new(), at: SystemTime::now(), taken };
    target.watch.state().good = Some(Arc::new(fresh));
    assert!(target.watch.view().snapshot.is_some());
}

#[test]
fn reasons_are_numbered_in_their_order() {
    for (index, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index);
    }
}

#[test]
fn phases_are_stable_and_differ() {
    let span = Duration::from_secs(15);
    assert_eq!(phase("a", span), phase("a", span));
    assert_ne!(phase("a", span), phase("b", span));
    assert!((0..200).all(|i| phase(&i.to_string(), span) <= span));
}

/// The exporter runs before the first backup is made, and is looked at when it was.
#[tokio::test]
async fn a_monitor_that_waits_for_something_looks_again_before_its_interval() {
    let (mut target, dropped) = target(vec![]);
    let soon = Some(Duration::from_millis(1));
    target.monitor = Box::new(Script { soon, acts: vec![Act::Good(1.0)], calls: 0, dropped });
    let (watch, began) = (target.watch.clone(), Instant::now());
    let tasks = start(vec![target]);
    while watch.view().collections < 3 {
        assert!(began.elapsed() < watch.config.interval, "it waits for its interval");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(tasks);
}
