//! Sidekiq 5 to 8, in one database or below a namespace.
//!
//! | key | what |
//! |---|---|
//! | `queues` | names of queues, empty ones too |
//! | `queue:NAME` | list; the oldest job is last, `enqueued_at` in float seconds (7 and before) or milliseconds |
//! | `processes`, `ID` | worker processes, dead ones too; one lives while its hash has a heartbeat |
//! | `ID:work`, `ID:workers` | what its threads do (since 7; before) |
//! | `retry`, `schedule`, `dead` | sorted sets; the score is a time in float seconds |
//! | `paused` | paused queues (Sidekiq Pro) |
//!
//! Never its clean-up of dead processes, which writes.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use redis::{Cmd, Value};
use serde::Deserialize;

use super::super::redis::link::{Link, Reply};
use super::super::redis::{now, protocol};
use super::super::{Failure, Reason};
use super::list::{self, Marks, bytes, integer, number};
use super::{Arrivals, Consumers, Found, Reading};
use crate::config::monitoring::End;
use crate::error::Error;
use crate::metrics;

/// More are not asked: dead ones stay listed until something of Sidekiq's cleans up.
const PROCESSES_MAX: usize = 500;
/// More are not watched unless they are named.
const QUEUES_MAX: usize = 200;
/// Job ids' times before and after Sidekiq 8 are this far apart; as seconds, it is the year 5138.
const MILLISECONDS_FROM: f64 = 1e11;

/// Collects everything.
pub(super) async fn collect(
    link: &mut Link,
    prefix: &str,
    queues: &[String],
    marks: &mut Marks,
    found: &mut Found,
) -> Result<(), Failure> {
    let command = |name: &str, key: &str| {
        let mut command = redis::cmd(name);
        command.arg(format!("{prefix}{key}"));
        command
    };
    let mut commands = vec![command("SCARD", "processes"), command("SCARD", "queues")];
    let mut sizes = link.ask(commands).await?.into_iter();
    let mut small = |max: usize, what: &str| match sizes.next().unwrap_or(Ok(Value::Nil)).and_then(integer) {
        Ok(size) if usize::try_from(size).is_ok_and(|size| size <= max) => Ok(()),
        Ok(size) => {
            Err(Failure::new(Reason::Refused, Error::new(format!("{size} {what} are too many to ask"))))
        }
        Err(failure) => Err(failure),
    };
    let (few_processes, few_queues) = (small(PROCESSES_MAX, "processes"), small(QUEUES_MAX, "queues"));
    commands = Vec::new();
    if few_processes.is_ok() {
        commands.push(command("SMEMBERS", "processes"));
    }
    if queues.is_empty() && few_queues.is_ok() {
        commands.push(command("SMEMBERS", "queues"));
    }
    let mut members = link.ask(commands).await?.into_iter();
    let mut next = || members.next().unwrap_or(Ok(Value::Nil)).and_then(strings);
    let processes = match few_processes {
        Ok(()) => next(),
        Err(failure) => Err(failure),
    };
    let names = match (queues, few_queues) {
        ([], Ok(())) => next(),
        ([], Err(failure)) => Err(failure),
        (named, _) => Ok(named.to_vec()),
    };
    let names = names.unwrap_or_else(|failure| {
        found.note("queues", Some(failure));
        Vec::new()
    });

    let workers = match processes {
        Ok(ids) => workers(link, prefix, &ids).await?,
        Err(failure) => Err(failure),
    };
    let workers = match workers {
        Ok(workers) => {
            workers.figures(found);
            found.note("processes", None);
            Some(workers)
        }
        Err(failure) => {
            found.note("processes", Some(failure));
            None
        }
    };

    // A queue that is gone leaves nothing behind.
    let key = |name: &String| format!("{prefix}queue:{name}");
    let keys: HashSet<String> = names.iter().map(key).collect();
    marks.retain(|marked, _| keys.contains(marked));
    let mut commands = Vec::new();
    for name in &names {
        commands.extend(list::commands(&key(name), End::Right, marks));
        let mut paused = command("SISMEMBER", "paused");
        paused.arg(name);
        commands.push(paused);
    }
    for (key, _) in SETS {
        commands.extend(list::set_commands(&format!("{prefix}{key}")));
    }
    commands.push(command("GET", "stat:processed"));
    commands.push(command("GET", "stat:failed"));
    let mut replies = link.ask(commands).await?.into_iter();
    for name in &names {
        let reading = queue(prefix, name, &mut replies, marks, workers.as_ref());
        found.queue(name, reading);
    }
    for (key, size) in SETS {
        let failure = set(key, size, &mut replies, found).err();
        found.note("sets", failure);
    }
    for metric in [&metrics::QUEUES_PROCESSED, &metrics::QUEUES_FAILED] {
        // A counter that nothing was counted on is 0 at Sidekiq's own page, too.
        match replies.next().unwrap_or(Ok(Value::Nil)).and_then(number) {
            Ok(value) => {
                found.plain(metric, Some(value.unwrap_or(0.0)));
                found.note("totals", None);
            }
            Err(failure) => found.note("totals", Some(failure)),
        }
    }
    Ok(())
}

static SETS: &[(&str, &metrics::Metric)] = &[
    ("schedule", &metrics::QUEUES_SCHEDULED),
    ("retry", &metrics::QUEUES_RETRYING),
    ("dead", &metrics::QUEUES_DEAD),
];

fn set(
    key: &str,
    size: &'static metrics::Metric,
    replies: &mut impl Iterator<Item = Reply>,
    found: &mut Found,
) -> Result<(), Failure> {
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
    let (card, lowest) = (next(), next());
    found.plain(size, Some(integer(card?)? as f64));
    let due = list::lowest_score(lowest?)?;
    // The dead wait for nothing.
    if let Some(due) = due.filter(|due| key != "dead" && *due < now()) {
        found.samples.push(metrics::Sample::new(&metrics::QUEUES_OVERDUE_TIMESTAMP, [key], due));
    }
    Ok(())
}

fn queue(
    prefix: &str,
    name: &str,
    replies: &mut impl Iterator<Item = Reply>,
    marks: &mut Marks,
    workers: Option<&Workers>,
) -> Result<Reading, Failure> {
    let state = list::read(&format!("{prefix}queue:{name}"), End::Right, replies, marks);
    let paused = replies.next().unwrap_or(Ok(Value::Nil)).and_then(integer);
    let state = state?;
    let mut more = Vec::new();
    let oldest = state.head.as_deref().and_then(|job| enqueued_at(job, now()));
    more.extend(oldest.map(|at| (&metrics::QUEUE_OLDEST_TIMESTAMP, at)));
    more.push((&metrics::QUEUE_PAUSED, paused? as f64));
    let consumers = workers.map_or(Consumers::Unknown, |workers| {
        more.push((&metrics::QUEUE_ACTIVE, workers.busy_on.get(name).copied().unwrap_or(0.0)));
        if workers.vague {
            return Consumers::Unknown;
        }
        Consumers::Exactly(workers.readers.get(name).copied().unwrap_or(0.0))
    });
    let arrivals = state.arrived.map_or(Arrivals::Unknown, Arrivals::Counted);
    Ok(Reading {
        queue: name.into(),
        waiting: state.length as f64,
        arrivals,
        head: state.head,
        consumers,
        more,
        ..Reading::default()
    })
}

/// When a job was put into its queue, never later than now: clocks differ.
fn enqueued_at(job: &[u8], now: f64) -> Option<f64> {
    #[derive(Deserialize)]
    struct Job {
        enqueued_at: Option<f64>,
        created_at: Option<f64>,
    }
    let job: Job = serde_json::from_slice(job).ok()?;
    let at = job.enqueued_at.or(job.created_at)?;
    let seconds = if at >= MILLISECONDS_FROM { at / 1_000.0 } else { at };
    Some(seconds.min(now))
}

/// What the live processes say of themselves.
#[derive(Debug, Default, PartialEq)]
struct Workers {
    live: f64,
    lost: f64,
    quiet: f64,
    /// Whether one did not tell which queues it reads.
    vague: bool,
    concurrency: f64,
    busy: f64,
    /// Processes that take jobs from a queue.
    readers: BTreeMap<String, f64>,
    /// Jobs of a queue that are being done.
    busy_on: BTreeMap<String, f64>,
}

impl Workers {
    fn figures(&self, found: &mut Found) {
        found.plain(&metrics::QUEUES_WORKERS, Some(self.live));
        found.plain(&metrics::QUEUES_WORKERS_LOST, Some(self.lost));
        found.plain(&metrics::QUEUES_WORKERS_QUIET, Some(self.quiet));
        found.plain(&metrics::QUEUES_CONCURRENCY, Some(self.concurrency));
        found.plain(&metrics::QUEUES_BUSY, Some(self.busy));
    }

    /// Adds one listed process: `info`, `busy` and `quiet` of its hash, and what its threads do.
    fn add(&mut self, info: Option<&[u8]>, busy: Option<f64>, quiet: bool, work: &[Vec<u8>]) {
        /// Version 8.1 gives each capsule (threads with queues of their own) its concurrency, and no sum.
        #[derive(Default, Deserialize)]
        struct About {
            concurrency: Option<f64>,
            queues: Option<Vec<String>>,
            #[serde(default)]
            capsules: BTreeMap<String, Capsule>,
        }
        #[derive(Deserialize)]
        struct Capsule {
            #[serde(default)]
            concurrency: f64,
            #[serde(default)]
            weights: BTreeMap<String, serde::de::IgnoredAny>,
        }
        #[derive(Deserialize)]
        struct Work {
            queue: String,
        }
        let Some(info) = info else {
            self.lost += 1.0;
            return;
        };
        self.live += 1.0;
        self.busy += busy.unwrap_or(0.0);
        for work in work {
            if let Ok(Work { queue }) = serde_json::from_slice(work) {
                *self.busy_on.entry(queue).or_default() += 1.0;
            }
        }
        let about: About = serde_json::from_slice(info).unwrap_or_default();
        if quiet {
            self.quiet += 1.0;
            return;
        }
        if about.queues.is_none() && about.capsules.is_empty() {
            // What it reads is not known, and so of no queue whether anybody reads it.
            self.vague = true;
            return;
        }
        let capsules = about.capsules.values();
        self.concurrency += about.concurrency.unwrap_or_else(|| capsules.map(|c| c.concurrency).sum());
        let weighted = about.capsules.into_values().flat_map(|capsule| capsule.weights.into_keys());
        // A weight was written as a repetition.
        let queues: BTreeSet<String> = weighted.chain(about.queues.into_iter().flatten()).collect();
        for queue in queues {
            *self.readers.entry(queue).or_default() += 1.0;
        }
    }
}

async fn workers(link: &mut Link, prefix: &str, ids: &[String]) -> Result<Result<Workers, Failure>, Failure> {
    let mut commands = Vec::new();
    for id in ids {
        let key = format!("{prefix}{id}");
        let mut about = redis::cmd("HMGET");
        about.arg(&key).arg("info").arg("busy").arg("quiet");
        let work = ["work", "workers"].map(|name| {
            let mut work: Cmd = redis::cmd("HVALS");
            work.arg(format!("{key}:{name}"));
            work
        });
        commands.push(about);
        commands.extend(work);
    }
    let mut replies = link.ask(commands).await?.into_iter();
    let mut workers = Workers::default();
    for _ in ids {
        let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
        if let Err(failure) = process(next(), [next(), next()], &mut workers) {
            return Ok(Err(failure));
        }
    }
    Ok(Ok(workers))
}

fn process(about: Reply, work: [Reply; 2], workers: &mut Workers) -> Result<(), Failure> {
    let Value::Array(fields) = about? else { return Err(protocol("a process is no hash")) };
    let mut fields = fields.into_iter();
    let mut next = || fields.next().unwrap_or(Value::Nil);
    let (info, busy, quiet) = (bytes(next())?, number(next())?, bytes(next())?);
    let mut jobs = Vec::new();
    for reply in work {
        let Value::Array(values) = reply? else { return Err(protocol("a process' work is no hash")) };
        for value in values {
            jobs.extend(bytes(value)?);
        }
    }
    workers.add(info.as_deref(), busy, quiet.as_deref() == Some(b"true"), &jobs);
    Ok(())
}

fn strings(value: Value) -> Result<Vec<String>, Failure> {
    let (Value::Array(values) | Value::Set(values)) = value else {
        return Err(protocol("a set is none"));
    };
    let mut strings = Vec::new();
    for value in values {
        strings.extend(bytes(value)?.map(|text| String::from_utf8_lossy(&text).into_owned()));
    }
    strings.sort_unstable();
    Ok(strings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_formats_of_time() {
        let now = 1_800_000_000.0;
        let job = |time: &str| enqueued_at(format!("{{\"jid\":\"a\",\"args\":[1],{time}}}").as_bytes(), now);
        assert_eq!(job("\"enqueued_at\":1700000000.25"), Some(1_700_000_000.25));
        assert_eq!(job("\"enqueued_at\":1700000000250"), Some(1_700_000_000.25));
        assert_eq!(job("\"created_at\":1700000000.5"), Some(1_700_000_000.5));
        assert_eq!(job("\"enqueued_at\":1900000000.0"), Some(now), "a clock that is ahead");
        assert_eq!(job("\"enqueued_at\":\"soon\""), None);
        assert_eq!(job("\"x\":1"), None);
        assert_eq!(enqueued_at(b"\xff{", now), None);
    }

    #[test]
    fn only_processes_with_a_heartbeat_that_are_not_quiet_read_queues() {
        let mut workers = Workers::default();
        let work = vec![b"{\"queue\":\"mail\",\"payload\":\"{}\",\"run_at\":1}".to_vec()];
        let info = b"{\"concurrency\":5,\"queues\":[\"mail\",\"mail\",\"low\"],\"labels\":[],\"pid\":1}";
        workers.add(Some(info), Some(1.0), false, &work);
        workers.add(Some(info), Some(0.0), true, &[]);
        workers.add(None, None, false, &[]);
        assert_eq!((workers.live, workers.lost, workers.quiet), (2.0, 1.0, 1.0));
        assert_eq!((workers.concurrency, workers.busy), (5.0, 1.0));
        assert_eq!(workers.readers, BTreeMap::from([("mail".into(), 1.0), ("low".into(), 1.0)]));
        assert_eq!(workers.busy_on, BTreeMap::from([("mail".into(), 1.0)]));
    }

    /// As Sidekiq 8.1.7 writes it, with a second capsule.
    #[test]
    fn capsules_are_added_up() {
        let mut workers = Workers::default();
        let info = br#"{"hostname":"h","pid":1,"tag":"app","capsules":{
            "default":{"concurrency":2,"mode":"strict","weights":{"default":0}},
            "single":{"concurrency":1,"mode":"weighted","weights":{"mail":2,"low":1}}},
            "queues":["default","mail","low"],"weights":[{"default":0},{"mail":2,"low":1}],"version":"8.1.7"}"#;
        workers.add(Some(info), Some(0.0), false, &[]);
        assert_eq!(workers.concurrency, 3.0);
        assert_eq!(workers.readers.keys().collect::<Vec<_>>(), ["default", "low", "mail"]);
        assert!(!workers.vague);
        workers.add(Some(b"{\"pid\":1}"), None, false, &[]);
        assert!(workers.vague, "a format that is not known is not nobody");
    }

    proptest! {
        #[test]
        fn no_job_is_from_the_future(job in prop::collection::vec(any::<u8>(), 0..60), time in any::<f64>()) {
            prop_assert!(enqueued_at(&job, 1.0).is_none_or(|at| at <= 1.0));
            let job = format!("{{\"enqueued_at\":{time}}}");
            prop_assert!(enqueued_at(job.as_bytes(), 1.0).is_none_or(|at| at <= 1.0));
        }
    }
}
