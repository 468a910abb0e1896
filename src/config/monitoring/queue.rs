//! `queue = { kind = "sidekiq", redis = "main", queues = ["default"] }`: which queues, and how they
//! are kept.
//!
//! Queues are named, except where a library lists its own: a queue that is empty has no key in Redis,
//! and whoever is to report 0 for it must know that it should exist.

use super::super::units;
use super::super::walk::{Section, Walk};
use super::reference;

const KINDS: &[&str] = &["sidekiq", "celery", "bullmq", "list", "zset", "stream"];
/// Each costs a few commands a collection.
const MAX_QUEUES: usize = 200;
/// What kombu puts between a queue's name and a priority.
const CELERY_SEPARATOR: &str = "\u{6}\u{16}";

/// The queues that one monitor watches.
#[derive(Debug, Clone)]
pub struct Queue {
    /// Which `[redis.NAME]`.
    pub server: String,
    /// What keeps them.
    pub kind: QueueKind,
    /// Their names; empty means those that the library lists.
    pub queues: Vec<String>,
}

/// What keeps queues, and what must be known of how it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueKind {
    /// Sidekiq.
    Sidekiq {
        /// What stands before every key, with its colon; usually nothing.
        prefix: String,
    },
    /// Celery, with Redis as its broker.
    Celery {
        /// `global_keyprefix`; usually nothing.
        prefix: String,
        /// `sep`: what stands between a queue's name and a priority.
        separator: String,
    },
    /// BullMQ.
    BullMq {
        /// What stands before every key, without its colon.
        prefix: String,
    },
    /// Lists under the names of the queues.
    List {
        /// Where the next job is taken from.
        take_from: End,
    },
    /// Sorted sets; the lowest score is next.
    SortedSet {
        /// What a score means.
        scores: Scores,
    },
    /// Streams, with or without consumer groups.
    Stream,
}

/// An end of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// LPOP and BLPOP.
    Left,
    /// RPOP and BRPOP.
    Right,
}

/// What the scores of a sorted set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// Priorities, or anything else.
    Numbers,
    /// When a job is due, in seconds since 1970.
    Seconds,
    /// The same in milliseconds.
    Milliseconds,
}

impl QueueKind {
    /// Its name in the configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            QueueKind::Sidekiq { .. } => "sidekiq",
            QueueKind::Celery { .. } => "celery",
            QueueKind::BullMq { .. } => "bullmq",
            QueueKind::List { .. } => "list",
            QueueKind::SortedSet { .. } => "zset",
            QueueKind::Stream => "stream",
        }
    }
}

/// Reads the value of a monitor's `queue`.
pub(super) fn queue(walk: &mut Walk<'_>, section: &Section<'_>, redis: &[String]) -> Option<Queue> {
    let kind = kind(walk, section);
    if !section.has("redis") {
        walk.missing(section, "redis", "redis = \"NAME\", as in [redis.NAME]");
    }
    let server = walk.filled(section, "redis").and_then(|name| reference(walk, name, redis, "redis"));
    let mut queues = Vec::new();
    if let Some((place, names)) = walk.strings(section, "queues") {
        if names.len() > MAX_QUEUES {
            walk.mistake(
                &place,
                format!("lists more than {MAX_QUEUES}"),
                "spread them over several monitors",
            );
        }
        for name in names {
            if queues.contains(&name.value) {
                walk.mistake(&name.place, "is listed twice", "leave one of them out");
            } else {
                queues.push(name.value);
            }
        }
    }
    let lists_its_own = matches!(kind, Some(QueueKind::Sidekiq { .. }) | None);
    if queues.is_empty() && !lists_its_own {
        walk.missing(section, "queues", "queues = [\"NAME\"]; this kind keeps no list of its queues");
    }
    Some(Queue { server: server?, kind: kind?, queues })
}

fn kind(walk: &mut Walk<'_>, section: &Section<'_>) -> Option<QueueKind> {
    let Some(name) = walk.filled(section, "kind") else {
        if !section.has("kind") {
            walk.missing(section, "kind", &format!("one of: {}", KINDS.join(", ")));
        }
        return None;
    };
    let mut text = |own: &[&str], key: &str, otherwise: &str| {
        let keys: Vec<&str> = ["kind", "redis", "queues"].iter().chain(own).copied().collect();
        walk.only(section, &keys);
        if key.is_empty() {
            return otherwise.to_owned();
        }
        walk.filled(section, key).map_or_else(|| otherwise.to_owned(), |text| text.value)
    };
    Some(match name.value.as_str() {
        "sidekiq" => {
            let mut prefix = text(&["namespace"], "namespace", "");
            if !prefix.is_empty() {
                prefix.push(':');
            }
            QueueKind::Sidekiq { prefix }
        }
        "celery" => {
            let own = &["key_prefix", "separator"];
            let prefix = text(own, "key_prefix", "");
            let separator = walk.filled(section, "separator");
            let separator = separator.map_or_else(|| CELERY_SEPARATOR.to_owned(), |text| text.value);
            QueueKind::Celery { prefix, separator }
        }
        "bullmq" => QueueKind::BullMq { prefix: text(&["prefix"], "prefix", "bull") },
        "list" => {
            let end = text(&["take_from"], "take_from", "right");
            let ends = [("left", End::Left), ("right", End::Right)];
            QueueKind::List { take_from: word(walk, section, "take_from", &end, &ends)? }
        }
        "zset" => {
            let scores = text(&["scores"], "scores", "numbers");
            let all = [
                ("numbers", Scores::Numbers),
                ("seconds", Scores::Seconds),
                ("milliseconds", Scores::Milliseconds),
            ];
            QueueKind::SortedSet { scores: word(walk, section, "scores", &scores, &all)? }
        }
        "stream" => {
            text(&[], "", "");
            QueueKind::Stream
        }
        other => {
            let hint = units::meant(other, KINDS.iter().copied());
            walk.mistake(&name.place, "is no kind of queue", &hint);
            return None;
        }
    })
}

fn word<T: Copy>(
    walk: &mut Walk<'_>,
    section: &Section<'_>,
    key: &str,
    given: &str,
    known: &[(&str, T)],
) -> Option<T> {
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == given) {
        return Some(*value);
    }
    let place = walk.place(section, key);
    walk.mistake(&place, "is not known", &units::meant(given, known.iter().map(|(name, _)| *name)));
    None
}
