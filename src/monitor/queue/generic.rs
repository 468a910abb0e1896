//! Queues that are nothing but a list, a sorted set or a stream.
//!
//! Nothing is known of what a job is. Of a list there is the depth, what comes in, and since when the
//! same job has been next; of a sorted set the depth, and where scores are times, what is overdue; of a
//! stream each consumer group, which is the only one of the three that says who reads it.

use redis::Value;

use super::super::Failure;
use super::super::redis::link::{Link, Reply};
use super::super::redis::{now, protocol};
use super::list::{self, Marks, bytes, integer};
use super::{Arrivals, Consumers, Found, Reading, clients};
use crate::config::monitoring::{End, Scores};
use crate::metrics;

/// What clients do that wait for a list.
const LIST_WAITS: &[&str] = &["brpop", "blpop", "blmove", "brpoplpush", "blmpop"];
/// What clients do that wait for a sorted set.
const SET_WAITS: &[&str] = &["bzpopmin", "bzpopmax", "bzmpop"];
/// A consumer of a group that asked for nothing for so long does not live: while entries wait, asking
/// is answered at once.
const IDLE_MAX_MS: i64 = 300_000;
/// One that holds entries may be at work on them, and has an hour.
const BUSY_MAX_MS: i64 = 3_600_000;
/// More consumers of a group are not listed: names that are never used again stay for ever.
const CONSUMERS_MAX: f64 = 1_000.0;
/// Groups of a stream that are looked at.
const GROUPS_MAX: usize = 50;

/// Lists under the names of the queues.
pub(super) async fn lists(
    link: &mut Link,
    end: End,
    database: u32,
    queues: &[String],
    marks: &mut Marks,
    found: &mut Found,
) -> Result<(), Failure> {
    let waits = readers(link, database, LIST_WAITS, found).await?;
    let commands = queues.iter().flat_map(|queue| list::commands(queue, end, marks)).collect();
    let mut replies = link.ask(commands).await?.into_iter();
    for queue in queues {
        let reading = list::read(queue, end, &mut replies, marks).map(|state| Reading {
            queue: queue.clone(),
            waiting: state.length as f64,
            arrivals: state.arrived.map_or(Arrivals::Unknown, Arrivals::Counted),
            head: state.head,
            consumers: waits,
            ..Reading::default()
        });
        found.queue(queue, reading);
    }
    Ok(())
}

/// Sorted sets under the names of the queues.
pub(super) async fn sorted_sets(
    link: &mut Link,
    scores: Scores,
    database: u32,
    queues: &[String],
    found: &mut Found,
) -> Result<(), Failure> {
    let consumers = readers(link, database, SET_WAITS, found).await?;
    let commands = queues.iter().flat_map(|queue| list::set_commands(queue)).collect();
    let mut replies = link.ask(commands).await?.into_iter();
    for queue in queues {
        let (size, lowest) = (replies.next(), replies.next());
        let answers = [size, lowest].map(|reply| reply.unwrap_or(Ok(Value::Nil)));
        let reading = sorted_set(queue, scores, answers);
        // A job that is not due yet is left alone by workers that live.
        found.queue(
            queue,
            reading.map(|reading| match scores {
                Scores::Numbers => Reading { consumers, ..reading },
                Scores::Seconds | Scores::Milliseconds => reading,
            }),
        );
    }
    Ok(())
}

fn sorted_set(queue: &str, scores: Scores, [size, lowest]: [Reply; 2]) -> Result<Reading, Failure> {
    let waiting = integer(size?)? as f64;
    let lowest = lowest?;
    let head = match &lowest {
        Value::Array(pair) => pair.first().cloned().map(bytes).transpose()?.flatten(),
        _ => None,
    };
    let score = list::lowest_score(lowest)?;
    let due = match scores {
        Scores::Numbers => None,
        Scores::Seconds => score,
        Scores::Milliseconds => score.map(|score| score / 1_000.0),
    };
    let overdue = due.filter(|due| *due < now());
    // One that is next for days because its time has not come is not stuck.
    let head = head.filter(|_| due.is_none() || overdue.is_some());
    let more = overdue.map(|due| (&metrics::QUEUE_OVERDUE_TIMESTAMP, due)).into_iter().collect();
    Ok(Reading { queue: queue.to_owned(), waiting, head, more, ..Reading::default() })
}

/// Clients that wait for anything of this kind in the database, which is the most that can be known.
async fn readers(
    link: &mut Link,
    database: u32,
    commands: &[&str],
    found: &mut Found,
) -> Result<Consumers, Failure> {
    match clients::list(link).await? {
        Ok(clients) => {
            let waiting = clients::waiting(&clients, database, commands);
            // One that asks again and again leaves no trace: that none waits does not mean that none is there.
            found.plain(&metrics::QUEUES_WORKERS, Some(waiting).filter(|waiting| *waiting > 0.0));
            found.note("workers", None);
            Ok(Consumers::Waiting(waiting))
        }
        Err(failure) => {
            found.note("workers", Some(failure));
            Ok(Consumers::Unknown)
        }
    }
}

/// Streams under the names of the queues; a group is a queue of its own, `STREAM/GROUP`.
pub(super) async fn streams(link: &mut Link, queues: &[String], found: &mut Found) -> Result<(), Failure> {
    let mut commands = Vec::new();
    for queue in queues {
        let mut length = redis::cmd("XLEN");
        length.arg(queue);
        let mut stream = redis::cmd("XINFO");
        stream.arg("STREAM").arg(queue);
        let mut groups = redis::cmd("XINFO");
        groups.arg("GROUPS").arg(queue);
        commands.extend([length, stream, groups]);
    }
    let mut replies = link.ask(commands).await?.into_iter();
    for queue in queues {
        let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
        let (length, about, groups) = (next(), next(), next());
        match stream(length, about, groups) {
            Ok(Stream { length, added, groups }) if groups.is_empty() => {
                let arrivals = added.map_or(Arrivals::Unknown, Arrivals::Total);
                let reading =
                    Reading { queue: queue.clone(), waiting: length, arrivals, ..Reading::default() };
                found.queue(queue, Ok(reading));
            }
            Ok(stream) => {
                for group in stream.groups {
                    let name = format!("{queue}/{}", group.name);
                    let reading = of_group(link, queue, name.clone(), group, stream.added).await?;
                    found.queue(&name, reading);
                }
            }
            Err(failure) => found.queue(queue, Err(failure)),
        }
    }
    Ok(())
}

/// A stream as it stands.
#[derive(Debug, PartialEq)]
struct Stream {
    length: f64,
    /// Entries ever added; known since Redis 7.
    added: Option<f64>,
    groups: Vec<Group>,
}

/// A consumer group.
#[derive(Debug, PartialEq)]
struct Group {
    name: String,
    /// That were ever seen, and not removed.
    consumers: f64,
    /// Delivered and not acknowledged.
    pending: f64,
    /// Not delivered; unknown before Redis 7, and after entries were deleted.
    lag: Option<f64>,
    last_delivered: String,
}

fn stream(length: Reply, about: Reply, groups: Reply) -> Result<Stream, Failure> {
    let length = integer(length?)? as f64;
    if length == 0.0 && about.is_err() {
        // There is no such key, and no group.
        return Ok(Stream { length, added: None, groups: Vec::new() });
    }
    let added = field(&about?, "entries-added").and_then(whole);
    let Value::Array(entries) = groups? else { return Err(protocol("XINFO GROUPS is no list")) };
    if entries.len() > GROUPS_MAX {
        return Err(protocol("it has too many groups"));
    }
    let group = |entry: &Value| {
        let text = |key| field(entry, key).cloned().map(bytes).transpose().ok().flatten().flatten();
        let text = |key| text(key).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Some(Group {
            name: text("name")?,
            consumers: field(entry, "consumers").and_then(whole)?,
            pending: field(entry, "pending").and_then(whole)?,
            lag: field(entry, "lag").and_then(whole),
            last_delivered: text("last-delivered-id")?,
        })
    };
    let groups = entries.iter().map(group).collect::<Option<Vec<_>>>();
    Ok(Stream { length, added, groups: groups.ok_or_else(|| protocol("a group has no name"))? })
}

/// The value after a key in a flat list.
fn field<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let Value::Array(fields) = value else { return None };
    let is = |field: &Value| matches!(field, Value::BulkString(name) if name == key.as_bytes());
    fields.chunks_exact(2).find(|pair| is(&pair[0])).map(|pair| &pair[1])
}

fn whole(value: &Value) -> Option<f64> {
    match value {
        Value::Int(number) => Some(*number as f64),
        _ => None,
    }
}

async fn of_group(
    link: &mut Link,
    stream: &str,
    name: String,
    group: Group,
    added: Option<f64>,
) -> Result<Result<Reading, Failure>, Failure> {
    let mut next = redis::cmd("XRANGE");
    next.arg(stream).arg(format!("({}", group.last_delivered)).arg("+").arg("COUNT").arg(1);
    let mut pending = redis::cmd("XPENDING");
    pending.arg(stream).arg(&group.name).arg("-").arg("+").arg(1);
    let mut commands = vec![next, pending];
    if group.consumers <= CONSUMERS_MAX {
        let mut consumers = redis::cmd("XINFO");
        consumers.arg("CONSUMERS").arg(stream).arg(&group.name);
        commands.push(consumers);
    }
    let mut replies = link.ask(commands).await?.into_iter();
    let mut reply = || replies.next().unwrap_or(Ok(Value::Nil));
    let (next, pending, consumers) = (reply(), reply(), reply());
    let read = || -> Result<Reading, Failure> {
        let first = first_id(&next?);
        // Before Redis 7, and after entries were deleted, the server does not know how far the group is.
        let (waiting, is_least) = match (group.lag, &first) {
            (_, None) => (0.0, false),
            (Some(lag), Some(_)) => (lag, false),
            (None, Some(_)) => (1.0, true),
        };
        let mut more = vec![(&metrics::QUEUE_ACTIVE, group.pending)];
        let time = |id: &str| id.split('-').next()?.parse::<f64>().ok().map(|ms| (ms / 1_000.0).min(now()));
        let oldest = first.as_deref().and_then(time);
        more.extend(oldest.map(|at| (&metrics::QUEUE_OLDEST_TIMESTAMP, at)));
        let oldest = first_id(&pending?).and_then(|id| time(&id));
        more.extend(oldest.map(|at| (&metrics::QUEUE_OLDEST_ACTIVE_TIMESTAMP, at)));
        Ok(Reading {
            queue: name,
            waiting,
            is_least,
            arrivals: added.map_or(Arrivals::Unknown, Arrivals::Total),
            head: first.map(String::into_bytes),
            consumers: match consumers? {
                Value::Array(consumers) => live(&consumers),
                _ => Consumers::Unknown,
            },
            more,
        })
    };
    Ok(read())
}

/// The id of the first entry of a range.
fn first_id(range: &Value) -> Option<String> {
    let Value::Array(entries) = range else { return None };
    let Some(Value::Array(entry)) = entries.first() else { return None };
    let id = bytes(entry.first()?.clone()).ok()??;
    Some(String::from_utf8_lossy(&id).into_owned())
}

/// Consumers that asked for something lately. Where there is none, one that holds an entry may be at work
/// on it, or dead.
fn live(consumers: &[Value]) -> Consumers {
    let number = |consumer: &Value, key| field(consumer, key).and_then(whole);
    let idle = |consumer: &Value, less: i64| number(consumer, "idle").is_some_and(|idle| idle < less as f64);
    let holds = |consumer: &Value| number(consumer, "pending").is_some_and(|pending| pending > 0.0);
    match consumers.iter().filter(|consumer| idle(consumer, IDLE_MAX_MS)).count() {
        0 if consumers.iter().any(|c| holds(c) && idle(c, BUSY_MAX_MS)) => Consumers::Unknown,
        live => Consumers::Exactly(live as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn scores_may_be_times() {
        let answers = || {
            let lowest = Value::Array(vec![text("job"), text("1700000000500")]);
            [Value::Int(4), lowest].map(Ok)
        };
        let reading = sorted_set("q", Scores::Milliseconds, answers()).unwrap();
        assert_eq!(reading.more, [(&metrics::QUEUE_OVERDUE_TIMESTAMP, 1_700_000_000.5)]);
        assert_eq!((reading.waiting, reading.head.as_deref()), (4.0, Some(&b"job"[..])));
        assert!(sorted_set("q", Scores::Numbers, answers()).unwrap().more.is_empty());
        let later = sorted_set("q", Scores::Seconds, answers()).unwrap();
        assert!(later.more.is_empty(), "its time has not come");
    }

    #[test]
    fn groups_of_both_versions() {
        let group = |lag: &[Value]| {
            let mut group = vec![text("name"), text("g"), text("consumers"), Value::Int(1), text("pending")];
            group.extend([Value::Int(2), text("last-delivered-id"), text("5-0")]);
            group.extend(lag.iter().cloned());
            Ok(Value::Array(vec![Value::Array(group)]))
        };
        let about =
            Ok(Value::Array(vec![text("length"), Value::Int(9), text("entries-added"), Value::Int(12)]));
        let found = stream(Ok(Value::Int(9)), about, group(&[text("lag"), Value::Int(7)])).unwrap();
        assert_eq!((found.added, found.groups[0].lag), (Some(12.0), Some(7.0)));
        let about = Ok(Value::Array(vec![text("length"), Value::Int(9)]));
        let found = stream(Ok(Value::Int(9)), about, group(&[])).unwrap();
        assert_eq!((found.added, found.groups[0].lag), (None, None));
        let none = || Err(protocol("no such key"));
        assert_eq!(stream(Ok(Value::Int(0)), none(), none()).unwrap().groups, []);
        assert!(stream(none(), none(), none()).is_err());
    }

    #[test]
    fn consumers_that_asked_lately_live() {
        let consumer = |pending, idle| {
            let named = vec![text("name"), text("c"), text("pending"), Value::Int(pending)];
            Value::Array([named, vec![text("idle"), Value::Int(idle)]].concat())
        };
        let exactly = Consumers::Exactly;
        assert_eq!(live(&[consumer(0, 10), consumer(0, IDLE_MAX_MS), consumer(0, 0)]), exactly(2.0));
        // At work for a quarter of an hour, or dead; gone for two hours.
        assert_eq!(live(&[consumer(1, 900_000), consumer(1, 7_200_000)]), Consumers::Unknown);
        assert_eq!(live(&[consumer(1, 900_000), consumer(0, 10)]), exactly(1.0));
        assert_eq!(live(&[consumer(1, 7_200_000)]), exactly(0.0));
    }

    #[test]
    fn a_range_begins_with_an_id() {
        let entry = Value::Array(vec![text("7-1"), Value::Array(vec![text("f"), text("v")])]);
        assert_eq!(first_id(&Value::Array(vec![entry])).as_deref(), Some("7-1"));
        assert_eq!(first_id(&Value::Array(vec![])), None);
    }
}
