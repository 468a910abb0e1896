//! Queues in Redis: how many jobs wait, for how long, who works on them, and when it will be over.
//!
//! A kind is a file in `queue/`: it asks, and says of each queue what it found as a `Reading`; what
//! follows from two collections is computed here, for all kinds alike. Each command is O(1) in the
//! length of a queue or bounded by a constant, and none writes: the libraries' own ways of counting
//! often do. A queue without a key is empty; one that cannot be read is absent. Deliberately absent:
//! jobs' arguments, `SCAN`, `KEYS`, and whatever would need a script on the server.

mod bullmq;
mod celery;
mod clients;
mod flow;
mod generic;
mod list;
mod sidekiq;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::redis::link::Link;
use super::redis::now;
use super::{Collected, Concern, Failure, Monitor};
use crate::config::monitoring::Bound::{Above, Below};
use crate::config::{self, Queue, QueueKind, Redis, Threshold};
use crate::metrics::{self, Metric, Sample, states};

use flow::{Flow, Point};
use list::Marks;

/// A monitor of the queues of one library.
pub struct Target {
    name: String,
    server: Redis,
    timeout: Duration,
    queue: Queue,
    /// Absent while a collection has it, and after one that failed or was dropped.
    link: Option<Link>,
    marks: Marks,
    past: HashMap<String, Past>,
    started: Instant,
}

/// What is remembered of a queue.
#[derive(Default)]
struct Past {
    flow: Flow,
    /// Whether it was looked at before.
    is_known: bool,
    /// Hash of the job that is next, and since when.
    head: Option<(u64, f64)>,
    /// Jobs that ever came in.
    total: Option<f64>,
}

/// How many came in since the last collection.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Arrivals {
    #[default]
    Unknown,
    /// So many.
    Counted(f64),
    /// So many since the queue exists.
    Total(f64),
}

/// Who takes jobs from a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Consumers {
    #[default]
    Unknown,
    /// So many.
    Exactly(f64),
    /// So many clients wait for this or another queue, and nobody else can take jobs.
    AtMost(f64),
    /// So many clients wait for this or another queue; others may come and take without waiting.
    Waiting(f64),
}

/// What one collection found of one queue.
#[derive(Debug, Default)]
struct Reading {
    queue: String,
    waiting: f64,
    /// Whether more may be waiting than that: how many, nobody knows.
    is_least: bool,
    arrivals: Arrivals,
    /// What tells the next job from another.
    head: Option<Vec<u8>>,
    consumers: Consumers,
    /// Further figures that have only the label `queue`.
    more: Vec<(&'static Metric, f64)>,
}

/// What one collection found.
#[derive(Default)]
struct Found {
    readings: Vec<Reading>,
    samples: Vec<Sample>,
    concerns: Vec<Concern>,
}

impl Found {
    fn plain(&mut self, metric: &'static Metric, value: Option<f64>) {
        self.samples.extend(value.map(|value| Sample::plain(metric, value)));
    }

    /// A piece of the collection, and why it could not be read: of several reasons the first.
    fn note(&mut self, name: &'static str, failure: Option<Failure>) {
        match self.concerns.iter_mut().find(|concern| concern.name == name) {
            Some(known) => known.failure = known.failure.take().or(failure),
            None => self.concerns.push(Concern { name, failure }),
        }
    }

    /// The reading of one queue, or why there is none.
    fn queue(&mut self, name: &str, reading: Result<Reading, Failure>) {
        let failure = match reading {
            Ok(reading) => {
                self.readings.push(reading);
                None
            }
            Err(Failure { reason, error }) => {
                Some(Failure::new(reason, error.context(format!("queue {name}"))))
            }
        };
        self.note("queues", failure);
    }
}

/// A monitor that is not connected yet.
pub fn open(monitor: &config::Monitor, server: &Redis, queue: &Queue) -> Target {
    Target {
        name: monitor.name.clone(),
        server: server.clone(),
        timeout: monitor.timeout,
        queue: queue.clone(),
        link: None,
        marks: Marks::new(),
        past: HashMap::new(),
        started: Instant::now(),
    }
}

#[async_trait]
impl Monitor for Target {
    fn name(&self) -> &str {
        &self.name
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::connect(&self.server, self.timeout).await?,
        };
        let mut found = Found::default();
        let (queues, marks) = (&self.queue.queues, &mut self.marks);
        match &self.queue.kind {
            QueueKind::Sidekiq { prefix } => {
                sidekiq::collect(&mut link, prefix, queues, marks, &mut found).await
            }
            QueueKind::Celery { prefix, separator } => {
                let keys = celery::Keys { prefix, separator, database: self.server.database };
                celery::collect(&mut link, &keys, queues, marks, &mut found).await
            }
            QueueKind::BullMq { prefix } => bullmq::collect(&mut link, prefix, queues, &mut found).await,
            QueueKind::List { take_from } => {
                let database = self.server.database;
                generic::lists(&mut link, *take_from, database, queues, marks, &mut found).await
            }
            QueueKind::SortedSet { scores } => {
                generic::sorted_sets(&mut link, *scores, self.server.database, queues, &mut found).await
            }
            QueueKind::Stream => generic::streams(&mut link, queues, &mut found).await,
        }?;
        self.link = Some(link);
        let source = [self.queue.kind.as_str(), &self.server.address.to_string()];
        let mut samples = vec![Sample::new(&metrics::QUEUE_SOURCE, source, 1.0)];
        samples.append(&mut found.samples);
        let at = self.started.elapsed().as_secs_f64();
        let mut past = HashMap::new();
        for reading in found.readings {
            let mut before = self.past.remove(&reading.queue).unwrap_or_default();
            samples.extend(judge(&reading, &mut before, at, now()));
            past.insert(reading.queue, before);
        }
        // A queue that could not be read this time begins anew: nobody knows what happened meanwhile.
        self.past = past;
        Ok(Collected { samples, concerns: found.concerns })
    }
}

/// Everything about one queue; `at` is for rates, `now` for timestamps.
fn judge(reading: &Reading, past: &mut Past, at: f64, now: f64) -> Vec<Sample> {
    let queue = [reading.queue.as_str()];
    let mut samples = Vec::new();
    let mut add = |metric, value: Option<f64>| {
        samples.extend(value.map(|value| Sample::new(metric, queue, value)));
    };
    add(&metrics::QUEUE_WAITING, Some(reading.waiting).filter(|_| !reading.is_least));
    let is_first = !std::mem::replace(&mut past.is_known, true);
    let moved = head(reading, past, now);
    // Since when a job is next that was so at the first look, the second one can tell.
    add(&metrics::QUEUE_HEAD_TIMESTAMP, past.head.map(|(_, since)| since).filter(|_| !is_first));
    let (consumers, unread) = unread(reading.consumers, reading.waiting, moved);
    add(&metrics::QUEUE_CONSUMERS, consumers);
    add(&metrics::QUEUE_UNREAD, unread);
    let arrived = match reading.arrivals {
        // What comes until it is known again is nobody's rate.
        Arrivals::Unknown => {
            past.total = None;
            None
        }
        Arrivals::Counted(number) => Some(number),
        Arrivals::Total(total) => {
            past.total.replace(total).map(|before| total - before).filter(|number| *number >= 0.0)
        }
    };
    if reading.is_least {
        past.flow = Flow::default();
    } else {
        past.flow.push(Point { at, waiting: reading.waiting, arrived });
    }
    let rates = past.flow.rates();
    add(&metrics::QUEUE_ARRIVAL_RATE, rates.map(|(arrivals, _)| arrivals));
    add(&metrics::QUEUE_DRAIN_RATE, rates.map(|(_, drained)| drained));
    let emptying = past.flow.emptying();
    add(&metrics::QUEUE_UNTIL_EMPTY, emptying.seconds());
    for (metric, value) in &reading.more {
        add(metric, Some(*value));
    }
    samples.extend(states(&metrics::QUEUE_EMPTYING_STATE, &queue, emptying.as_str()));
    samples
}

/// Remembers the job that is next; says whether it is another one than before, if there was one.
fn head(reading: &Reading, past: &mut Past, now: f64) -> Option<bool> {
    let hash = reading.head.as_deref().filter(|_| reading.waiting > 0.0).map(xxhash_rust::xxh3::xxh3_64);
    match (hash, past.head) {
        (Some(hash), Some((before, _))) if hash == before => Some(false),
        (hash, before) => {
            past.head = hash.map(|hash| (hash, now));
            before.map(|_| true)
        }
    }
}

/// Consumers, and jobs that none of them would take; none where that cannot be known.
fn unread(consumers: Consumers, waiting: f64, moved: Option<bool>) -> (Option<f64>, Option<f64>) {
    match consumers {
        Consumers::Exactly(0.0) | Consumers::AtMost(0.0) => (Some(0.0), Some(waiting)),
        Consumers::Exactly(number) => (Some(number), Some(0.0)),
        // Somebody takes jobs, or none is there to be taken.
        _ if moved == Some(true) || waiting <= 0.0 => (None, Some(0.0)),
        // Nobody waits for it, and nobody came for it.
        Consumers::Waiting(0.0) if moved == Some(false) => (Some(0.0), Some(waiting)),
        _ => (None, None),
    }
}

/// When queues are bad unless the configuration says otherwise.
pub static THRESHOLDS: &[Threshold] = &[
    Threshold::of(&metrics::QUEUE_UNREAD, None, Some(Above(0.0))),
    Threshold::of(&metrics::QUEUE_OLDEST_TIMESTAMP, Some(Above(600.0)), Some(Above(3_600.0))),
    Threshold::of(&metrics::QUEUE_OVERDUE_TIMESTAMP, Some(Above(300.0)), None),
    Threshold::of(&metrics::QUEUES_OVERDUE_TIMESTAMP, Some(Above(300.0)), None),
    Threshold::of(&metrics::QUEUES_WORKERS, None, Some(Below(0.5))),
    Threshold::of(&metrics::QUEUES_WORKERS_LOST, Some(Above(0.0)), None),
    Threshold::of(&metrics::QUEUES_RETRYING, Some(Above(1_000.0)), None),
    // Then it is given to a second worker.
    Threshold::of(&metrics::QUEUES_OLDEST_UNACKNOWLEDGED_TIMESTAMP, Some(Above(3_600.0)), None),
];

/// `sidekiq: 1200 waiting in 3 queues, 7 that nobody reads, default is empty in 40 s`.
pub fn headline(samples: &[Sample]) -> String {
    let of = |metric: &'static Metric| samples.iter().filter(move |sample| sample.metric == metric);
    // A sum of nothing would be -0.
    let sum = |metric| of(metric).fold(0.0, |sum, sample| sum + sample.value);
    let kind =
        of(&metrics::QUEUE_SOURCE).filter_map(|sample| sample.label("kind")).next().unwrap_or("queues");
    let count = of(&metrics::QUEUE_WAITING).count();
    if count == 0 {
        return format!("{kind}: how many wait is not known");
    }
    let queues = if count == 1 { "queue" } else { "queues" };
    let mut text = format!("{kind}: {} waiting in {count} {queues}", sum(&metrics::QUEUE_WAITING));
    let unread = sum(&metrics::QUEUE_UNREAD);
    if unread > 0.0 {
        text.push_str(&format!(", {unread} that nobody reads"));
    }
    let slowest = of(&metrics::QUEUE_UNTIL_EMPTY).max_by(|a, b| a.value.total_cmp(&b.value));
    if let Some(slowest) = slowest.filter(|sample| sample.value > 0.0) {
        let queue = slowest.label("queue").unwrap_or_default();
        text.push_str(&format!(", {queue} is empty in {:.0} s", slowest.value));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(reading: &Reading, past: &mut Past, at: f64) -> HashMap<&'static str, f64> {
        let samples = judge(reading, past, at, 1_000.0 + at);
        assert!(samples.iter().all(Sample::is_whole));
        samples
            .iter()
            .filter(|sample| sample.label("state").is_none())
            .map(|sample| (sample.metric.name, sample.value))
            .collect()
    }

    #[test]
    fn what_was_not_read_is_no_number_of_jobs() {
        let source = Sample::new(&metrics::QUEUE_SOURCE, ["celery", "h:1"], 1.0);
        assert_eq!(headline(std::slice::from_ref(&source)), "celery: how many wait is not known");
        let queue = Sample::new(&metrics::QUEUE_WAITING, ["q"], 0.0);
        assert_eq!(headline(&[source, queue]), "celery: 0 waiting in 1 queue");
    }

    #[test]
    fn work_without_workers_is_unread() {
        let (new, still, moved) = (None, Some(false), Some(true));
        assert_eq!(unread(Consumers::Exactly(0.0), 7.0, moved), (Some(0.0), Some(7.0)));
        assert_eq!(unread(Consumers::Exactly(2.0), 7.0, still), (Some(2.0), Some(0.0)));
        assert_eq!(unread(Consumers::AtMost(0.0), 7.0, new), (Some(0.0), Some(7.0)));
        assert_eq!(unread(Consumers::AtMost(3.0), 7.0, still), (None, None), "it may read another queue");
        assert_eq!(unread(Consumers::AtMost(3.0), 7.0, moved), (None, Some(0.0)), "somebody took one");
        assert_eq!(unread(Consumers::Waiting(0.0), 7.0, new), (None, None), "one may come");
        assert_eq!(unread(Consumers::Waiting(0.0), 7.0, still), (Some(0.0), Some(7.0)));
        assert_eq!(unread(Consumers::Waiting(0.0), 7.0, moved), (None, Some(0.0)));
        assert_eq!(unread(Consumers::Unknown, 0.0, new), (None, Some(0.0)));
    }

    #[test]
    fn a_head_that_stays_ages() {
        let mut past = Past::default();
        let reading = |head: Option<&str>| Reading {
            queue: "q".into(),
            waiting: if head.is_some() { 2.0 } else { 0.0 },
            head: head.map(|head| head.as_bytes().to_vec()),
            ..Reading::default()
        };
        let since =
            |figures: HashMap<&str, f64>| figures.get("opsd_queue_head_since_timestamp_seconds").copied();
        assert_eq!(since(figures(&reading(Some("a")), &mut past, 0.0)), None, "nobody knows since when");
        assert_eq!(since(figures(&reading(Some("a")), &mut past, 9.0)), Some(1_000.0));
        assert_eq!(since(figures(&reading(Some("b")), &mut past, 10.0)), Some(1_010.0));
        assert_eq!(since(figures(&reading(None), &mut past, 11.0)), None);
        assert_eq!(since(figures(&reading(Some("b")), &mut past, 12.0)), Some(1_012.0));
    }

    #[test]
    fn totals_become_rates_and_begin_anew() {
        let mut past = Past::default();
        let reading = |total, waiting| Reading {
            queue: "q".into(),
            waiting,
            arrivals: Arrivals::Total(total),
            ..Reading::default()
        };
        assert!(!figures(&reading(100.0, 10.0), &mut past, 0.0).contains_key("opsd_queue_arrival_rate"));
        let second = figures(&reading(120.0, 5.0), &mut past, 10.0);
        assert_eq!((second["opsd_queue_arrival_rate"], second["opsd_queue_drain_rate"]), (2.0, 2.5));
        assert_eq!(second["opsd_queue_until_empty_seconds"], 10.0);
        assert!(!figures(&reading(3.0, 5.0), &mut past, 20.0).contains_key("opsd_queue_arrival_rate"));
    }
}
