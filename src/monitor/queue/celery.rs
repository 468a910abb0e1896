//! Celery with Redis as its broker.
//!
//! A queue is a list for each priority: `NAME` for the highest, `NAME` with a separator and a digit
//! for the others; jobs are put in on the left and taken from the right. What workers have taken is in
//! `unacked`, for all queues together, and in `unacked_index` by the time they took it. A message says
//! neither when it was sent nor who will read it. So there is the time since the head has been the
//! same, and, as the most that can be known of workers, the clients that wait for lists of the
//! database.
//!
//! An empty queue has no key, and so has one under another prefix. What kombu leaves of each exchange that was ever
//! declared, `_kombu.binding.*`, tells them apart.

use redis::Value;

use super::super::redis::link::{Link, Reply};
use super::super::{Failure, Reason};
use super::list::{self, Marks, integer};
use super::{Arrivals, Consumers, Found, Reading, clients};
use crate::config::monitoring::End;
use crate::error::Error;
use crate::metrics;

/// Priorities that a message may have; workers round down to those that are configured.
const PRIORITIES: std::ops::RangeInclusive<u8> = 0..=9;
/// What a worker's connection that waits does.
const WAITS: &[&str] = &["brpop"];

/// What kombu binds queues to: the default exchange, and those that every worker declares for itself. A queue's own
/// exchange has its name unless somebody gave it another.
const EXCHANGES: [&str; 4] = ["celery", "celery.pidbox", "reply.celery.pidbox", "celeryev"];

/// Where things are.
pub(super) struct Keys<'a> {
    /// Before every key.
    pub prefix: &'a str,
    /// Between a name and a priority.
    pub separator: &'a str,
    /// Number of the database.
    pub database: u32,
}

/// The lists of a queue, the one that is read first being first.
fn lists<'a>(keys: &'a Keys<'_>, queue: &'a str) -> impl Iterator<Item = String> + 'a {
    PRIORITIES.map(move |priority| match priority {
        0 => format!("{}{queue}", keys.prefix),
        other => format!("{}{queue}{}{other}", keys.prefix, keys.separator),
    })
}

/// Collects everything.
pub(super) async fn collect(
    link: &mut Link,
    keys: &Keys<'_>,
    queues: &[String],
    marks: &mut Marks,
    found: &mut Found,
) -> Result<(), Failure> {
    let consumers = match clients::list(link).await? {
        Ok(clients) => {
            let waiting = clients::waiting(&clients, keys.database, WAITS);
            found.plain(&metrics::QUEUES_WORKERS, Some(waiting));
            found.note("workers", None);
            Consumers::AtMost(waiting)
        }
        Err(failure) => {
            found.note("workers", Some(failure));
            Consumers::Unknown
        }
    };
    let mut commands = Vec::new();
    for key in queues.iter().flat_map(|queue| lists(keys, queue)) {
        commands.extend(list::commands(&key, End::Right, marks));
    }
    let mut unacknowledged = redis::cmd("HLEN");
    unacknowledged.arg(format!("{}unacked", keys.prefix));
    commands.push(unacknowledged);
    commands.extend(list::set_commands(&format!("{}unacked_index", keys.prefix)));
    let mut declared = redis::cmd("EXISTS");
    for exchange in queues.iter().map(String::as_str).chain(EXCHANGES) {
        declared.arg(format!("{}_kombu.binding.{exchange}", keys.prefix));
    }
    commands.push(declared);
    let mut replies = link.ask(commands).await?.into_iter();
    let mut readings = Vec::new();
    for queue in queues {
        let lists: Vec<_> =
            lists(keys, queue).map(|key| list::read(&key, End::Right, &mut replies, marks)).collect();
        let lists = lists.into_iter().collect::<Result<Vec<_>, _>>();
        readings.push(lists.map(|lists| reading(queue, lists, consumers)));
    }
    let failure = unacknowledged_tasks(&mut replies, found).err();
    // Whoever may not ask is not told.
    let nobody = matches!(replies.next(), Some(Ok(Value::Int(0))));
    let is_empty = |reading: &Result<Reading, Failure>| reading.as_ref().is_ok_and(|r| r.waiting == 0.0);
    if nobody && readings.iter().all(is_empty) {
        let error = Error::new(format!(
            "no Celery has declared a queue in database {} with the prefix {:?}",
            keys.database, keys.prefix
        ))
        .with_hint(
            "compare prefix with global_keyprefix of the transport's options, and the database of the URL",
        );
        found.note("queues", Some(Failure::new(Reason::Refused, error)));
    } else {
        for (queue, reading) in queues.iter().zip(readings) {
            found.queue(queue, reading);
        }
    }
    found.note("unacknowledged", failure);
    Ok(())
}

/// The sum over the priorities. Lists that stayed empty had no arrivals to count.
fn reading(queue: &str, lists: Vec<list::State>, consumers: Consumers) -> Reading {
    let waiting: i64 = lists.iter().map(|list| list.length).sum();
    let filled = lists.iter().filter(|list| list.length > 0);
    let arrived = filled.map(|list| list.arrived).sum::<Option<f64>>().filter(|_| waiting > 0);
    Reading {
        queue: queue.to_owned(),
        waiting: waiting as f64,
        arrivals: arrived.map_or(Arrivals::Unknown, Arrivals::Counted),
        head: lists.into_iter().find_map(|list| list.head),
        consumers,
        ..Reading::default()
    }
}

fn unacknowledged_tasks(replies: &mut impl Iterator<Item = Reply>, found: &mut Found) -> Result<(), Failure> {
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
    let (length, _, oldest) = (next(), next(), next());
    found.plain(&metrics::QUEUES_UNACKNOWLEDGED, Some(integer(length?)? as f64));
    let oldest = list::lowest_score(oldest?)?.map(|at| at.min(super::now()));
    found.plain(&metrics::QUEUES_OLDEST_UNACKNOWLEDGED_TIMESTAMP, oldest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_ten_lists() {
        let keys = Keys { prefix: "app:", separator: "\u{6}\u{16}", database: 0 };
        let lists: Vec<_> = lists(&keys, "celery").collect();
        assert_eq!(lists.len(), 10);
        assert_eq!((lists[0].as_str(), lists[3].as_str()), ("app:celery", "app:celery\u{6}\u{16}3"));
    }

    #[test]
    fn priorities_are_summed_and_the_most_urgent_is_next() {
        let state = |length, head: Option<&str>, arrived| list::State {
            length,
            head: head.map(|head| head.as_bytes().to_vec()),
            arrived,
        };
        let of = |states| reading("q", states, Consumers::Unknown);
        let some =
            of(vec![state(0, None, None), state(2, Some("b"), Some(1.0)), state(3, Some("c"), Some(0.0))]);
        assert_eq!((some.waiting, some.head.as_deref()), (5.0, Some(&b"b"[..])));
        assert_eq!(some.arrivals, Arrivals::Counted(1.0));
        let new = of(vec![state(1, Some("a"), None), state(2, Some("b"), Some(1.0))]);
        assert_eq!(new.arrivals, Arrivals::Unknown, "one of them was not counted");
        assert_eq!(of(vec![state(0, None, None)]).arrivals, Arrivals::Unknown);
    }
}
