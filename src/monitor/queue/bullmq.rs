//! BullMQ 3 to 6.
//!
//! Everything of a queue is below `PREFIX:NAME:`. Jobs wait in the list `wait` (or `paused`), those
//! with a priority in `prioritized`, those for later in `delayed`, whose scores are milliseconds times
//! 4096. Up to version 4 a marker that begins with `0:` may stand in a list; it is no job. `id` counts
//! every job that was ever added. Workers name their connections after the queue. `getCounts` of the
//! library's own is not used: it removes markers.

use base64::Engine;
use redis::{Cmd, Value};

use super::super::Failure;
use super::super::redis::link::{Link, Reply};
use super::super::redis::now;
use super::list::{self, bytes, integer, number};
use super::{Arrivals, Consumers, Found, Reading, clients};
use crate::metrics;

/// Scores of `delayed` are milliseconds times this, and a number.
const SCORE: f64 = 4096.0;
/// What a marker begins with.
const MARKER: &[u8] = b"0:";

/// Collects everything.
pub(super) async fn collect(
    link: &mut Link,
    prefix: &str,
    queues: &[String],
    found: &mut Found,
) -> Result<(), Failure> {
    let clients = match clients::list(link).await? {
        Ok(clients) => {
            found.note("workers", None);
            Some(clients)
        }
        Err(failure) => {
            found.note("workers", Some(failure));
            None
        }
    };
    let commands = queues.iter().flat_map(|queue| commands(prefix, queue)).collect();
    let mut replies = link.ask(commands).await?.into_iter();
    let mut read: Vec<Result<(Reading, Option<String>), Failure>> = Vec::new();
    for queue in queues {
        let answers: Vec<Reply> = replies.by_ref().take(COMMANDS).collect();
        read.push(counts(queue, answers));
    }
    // When the next job was added stands in the job.
    let next = |read: &Result<(Reading, Option<String>), Failure>| read.as_ref().ok()?.1.clone();
    let heads: Vec<Option<String>> = read.iter().map(next).collect();
    let jobs = queues.iter().zip(&heads).filter_map(|(queue, id)| {
        let mut job = redis::cmd("HGET");
        job.arg(format!("{prefix}:{queue}:{}", id.as_ref()?)).arg("timestamp");
        Some(job)
    });
    let mut times = link.ask(jobs.collect()).await?.into_iter();
    for ((queue, read), head) in queues.iter().zip(read).zip(heads) {
        let time = head.and_then(|_| times.next());
        let reading = read.and_then(|(mut reading, _)| {
            if let Some(clients) = &clients {
                reading.consumers = Consumers::Exactly(workers(clients, prefix, queue));
            }
            let oldest = time.map_or(Ok(None), |reply| reply.and_then(number))?;
            let oldest = oldest.map(|ms| (&metrics::QUEUE_OLDEST_TIMESTAMP, (ms / 1_000.0).min(now())));
            reading.more.extend(oldest);
            Ok(reading)
        });
        found.queue(queue, reading);
    }
    Ok(())
}

/// How many commands a queue costs.
const COMMANDS: usize = 17;

fn commands(prefix: &str, queue: &str) -> Vec<Cmd> {
    let command = |name: &str, key: &str| {
        let mut command = redis::cmd(name);
        command.arg(format!("{prefix}:{queue}:{key}"));
        command
    };
    let mut commands = Vec::with_capacity(COMMANDS);
    for key in ["wait", "paused"] {
        commands.push(command("LLEN", key));
        for index in [-1, -2] {
            let mut last = command("LINDEX", key);
            last.arg(index);
            commands.push(last);
        }
    }
    commands.push(command("LLEN", "active"));
    commands.push(command("ZCARD", "prioritized"));
    commands.extend(list::set_commands(&format!("{prefix}:{queue}:delayed")));
    commands.push(command("ZCARD", "failed"));
    commands.push(command("ZCARD", "waiting-children"));
    commands.push(command("GET", "id"));
    let mut paused = command("HEXISTS", "meta");
    paused.arg("paused");
    commands.push(paused);
    for key in ["metrics:completed", "metrics:failed"] {
        let mut count = command("HGET", key);
        count.arg("count");
        commands.push(count);
    }
    let mut head = command("ZRANGE", "prioritized");
    head.arg(0).arg(0);
    commands.push(head);
    commands
}

/// A list without its marker: jobs, and the one that is next.
fn without_marker(length: i64, last: Option<Vec<u8>>, before: Option<Vec<u8>>) -> (i64, Option<Vec<u8>>) {
    match last {
        Some(marker) if marker.starts_with(MARKER) => ((length - 1).max(0), before),
        last => (length, last),
    }
}

fn counts(queue: &str, answers: Vec<Reply>) -> Result<(Reading, Option<String>), Failure> {
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
    let mut list = || -> Result<_, Failure> {
        let (length, last, before) = (integer(next()?)?, bytes(next()?)?, bytes(next()?)?);
        Ok(without_marker(length, last, before))
    };
    let (wait, head) = list()?;
    let (held, held_head) = list()?;
    let active = integer(next()?)? as f64;
    let prioritized = integer(next()?)?;
    let delayed = integer(next()?)? as f64;
    let due = list::lowest_score(next()?)?.map(|score| (score / SCORE).floor() / 1_000.0);
    let failed = integer(next()?)? as f64;
    let children = integer(next()?)? as f64;
    let total = number(next()?)?;
    let paused = integer(next()?)?;
    let (completed, failures) = (number(next()?)?, number(next()?)?);
    let urgent = match next()? {
        Value::Array(mut first) => first.pop().map(bytes).transpose()?.flatten(),
        _ => None,
    };
    let waiting = wait + held + prioritized;
    let mut more = vec![
        (&metrics::QUEUE_ACTIVE, active),
        (&metrics::QUEUE_DELAYED, delayed + children),
        (&metrics::QUEUE_KEPT_FAILED, failed),
        (&metrics::QUEUE_PAUSED, f64::from(u8::from(paused != 0))),
    ];
    more.extend(due.filter(|due| *due < now()).map(|due| (&metrics::QUEUE_OVERDUE_TIMESTAMP, due)));
    more.extend(completed.map(|count| (&metrics::QUEUE_PROCESSED, count)));
    more.extend(failures.map(|count| (&metrics::QUEUE_FAILED, count)));
    // Those without a priority come first; those with one are not in the order of their age.
    let oldest = head.or(held_head);
    let id = oldest.as_deref().and_then(|id| std::str::from_utf8(id).ok()).map(str::to_owned);
    let reading = Reading {
        queue: queue.to_owned(),
        waiting: waiting as f64,
        // Jobs for later count when they are added.
        arrivals: match total {
            Some(total) if delayed + children == 0.0 => Arrivals::Total(total),
            _ => Arrivals::Unknown,
        },
        head: oldest.or(urgent),
        more,
        ..Reading::default()
    };
    Ok((reading, id))
}

/// Connections that are named after the queue, or after it and the worker; Node's library encodes the
/// name, Python's does not, and names two a worker.
fn workers(clients: &[clients::Client], prefix: &str, queue: &str) -> f64 {
    let encoded = base64::engine::general_purpose::STANDARD.encode(queue);
    let names = [encoded.as_str(), queue].map(|queue| format!("{prefix}:{queue}"));
    let is = |client: &&clients::Client| {
        let rest = names.iter().find_map(|name| client.name.strip_prefix(name.as_str()));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(":w:"))
    };
    clients.iter().filter(is).count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_no_job() {
        let job = |id: &str| Some(id.as_bytes().to_vec());
        assert_eq!(without_marker(2, job("0:0"), job("7")), (1, job("7")));
        assert_eq!(without_marker(1, job("0:1700000000000"), None), (0, None));
        assert_eq!(without_marker(2, job("10"), job("9")), (2, job("10")));
        assert_eq!(without_marker(0, None, None), (0, None));
    }

    fn answers(wait: i64, last: Value, before: Value, score: &str) -> Vec<Reply> {
        let text = |text: &str| Value::BulkString(text.into());
        let delayed = Value::Array(vec![text("9"), text(score)]);
        let empty = [Value::Int(0), Value::Nil, Value::Nil];
        let rest =
            [Value::Int(3), Value::Int(4), Value::Int(1), delayed, Value::Int(2), Value::Int(0), text("50")];
        let end = [Value::Int(1), text("40"), Value::Nil, Value::Array(vec![text("3")])];
        let all = [Value::Int(wait), last, before].into_iter().chain(empty).chain(rest).chain(end);
        all.map(Ok).collect()
    }

    #[test]
    fn scores_are_milliseconds_times_4096() {
        let text = |text: &str| Value::BulkString(text.into());
        let given = answers(2, text("0:0"), text("7"), "6963200001024002");
        assert_eq!(given.len(), COMMANDS);
        assert_eq!(commands("bull", "q").len(), COMMANDS);
        let (reading, id) = counts("q", given).unwrap();
        assert_eq!((reading.waiting, id.as_deref()), (5.0, Some("7")));
        assert_eq!(reading.arrivals, Arrivals::Unknown, "one is for later");
        let of = |metric| reading.more.iter().find(|(m, _)| *m == metric).map(|(_, value)| *value);
        assert_eq!(of(&metrics::QUEUE_OVERDUE_TIMESTAMP), Some(1_700_000_000.25));
        assert_eq!(of(&metrics::QUEUE_PAUSED), Some(1.0));
        assert_eq!(of(&metrics::QUEUE_PROCESSED), Some(40.0));
        assert_eq!(of(&metrics::QUEUE_FAILED), None, "it is not counted");
    }

    #[test]
    fn workers_are_named_after_their_queue() {
        let client =
            |name: &str| clients::Client { name: name.into(), database: 0, command: "bzpopmin".into() };
        let clients =
            ["bull:bWFpbA==", "bull:bWFpbA==:w:one", "bull:bWFpbA==:qe", "bull:b3RoZXI=", "bull:mail", ""]
                .map(client);
        assert_eq!(workers(&clients, "bull", "mail"), 3.0);
        assert_eq!(workers(&clients, "app", "mail"), 0.0);
    }
}
