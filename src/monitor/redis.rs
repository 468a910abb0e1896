//! A Redis or Valkey server: `INFO`, and what the slow log says. Reads only.
//!
//! One connection, kept between collections, given up with one that was dropped. `INFO` is what
//! everything rests on; the slow log is a piece of its own, because roles may lack the right. Its
//! commands' arguments are not looked at. Deliberately absent: the key space (`SCAN`, big keys), `KEYS`,
//! `MONITOR`, `LATENCY` (which must be switched on), clusters.

mod bounded;
mod info;
pub(super) mod link;

use std::time::{Duration, SystemTime};

use ::redis::Value;
use async_trait::async_trait;

use super::{Collected, Concern, Failure, Monitor, Reason};
use crate::config::monitoring::Bound::{Above, Below};
use crate::config::{self, Redis, Threshold};
use crate::error::Error;
use crate::metrics::{self, Metric, Sample};

use info::{Info, Reads};
use link::{Link, Reply};

/// A monitor of one server.
pub struct Target {
    name: String,
    server: Redis,
    timeout: Duration,
    /// Absent while a collection has it, and after one that failed or was dropped.
    link: Option<Link>,
    reads: Option<Reads>,
}

/// A monitor that is not connected yet.
pub fn open(monitor: &config::Monitor, server: &Redis) -> Target {
    Target {
        name: monitor.name.clone(),
        server: server.clone(),
        timeout: monitor.timeout,
        link: None,
        reads: None,
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
        let mut commands = vec![::redis::cmd("INFO"), ::redis::cmd("SLOWLOG"), ::redis::cmd("SLOWLOG")];
        commands[1].arg("LEN");
        commands[2].arg("GET").arg(1);
        let mut replies = link.ask(commands).await?.into_iter();
        let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
        let text = text(next()?)?;
        let info = Info::parse(&text).ok_or_else(|| protocol("INFO was answered with something else"))?;
        let mut samples = info::samples(&info, now(), &self.server.address.to_string());
        let reads = info.reads();
        if let (Some(before), Some(after)) = (&self.reads, &reads) {
            let ratio = info::hit_ratio(before, after);
            samples.extend(ratio.map(|ratio| Sample::plain(&metrics::REDIS_HIT_RATIO, ratio)));
        }
        self.reads = reads;
        let slowlog = slowlog(next(), next());
        let failure = match slowlog {
            Ok(found) => {
                samples.extend(found);
                None
            }
            Err(failure) => Some(failure),
        };
        let is_cache = self.server.cache.or_else(|| info.evicts());
        samples.extend(
            is_cache.map(|is_cache| Sample::plain(&metrics::REDIS_CACHE, f64::from(u8::from(is_cache)))),
        );
        self.link = Some(link);
        let role = Concern { name: "role", failure: info.strange_role().map(not_offered) };
        Ok(Collected { samples, concerns: vec![Concern { name: "slowlog", failure }, role] })
    }
}

/// Entries are numbered from 0 since the server started, whatever was dropped or reset.
fn slowlog(length: Reply, last: Reply) -> Result<Vec<Sample>, Failure> {
    let Value::Int(length) = length? else { return Err(protocol("SLOWLOG LEN is no number")) };
    let mut samples = vec![Sample::plain(&metrics::REDIS_SLOWLOG_LENGTH, length as f64)];
    let Value::Array(entries) = last? else { return Err(protocol("SLOWLOG GET is no list")) };
    if let Some(Value::Array(entry)) = entries.first() {
        let [Value::Int(id), Value::Int(at), ..] = entry.as_slice() else {
            return Err(protocol("an entry of the slow log has no number"));
        };
        samples.push(Sample::plain(&metrics::REDIS_SLOW_COMMANDS, (id + 1) as f64));
        samples.push(Sample::plain(&metrics::REDIS_SLOW_TIMESTAMP, *at as f64));
    }
    Ok(samples)
}

/// This host's clock.
pub(super) fn now() -> f64 {
    metrics::timestamp(SystemTime::now())
}

fn not_offered(message: String) -> Failure {
    Failure::new(Reason::NotOffered, Error::new(message))
}

/// An answer that is not what was asked for.
pub(super) fn protocol(message: &str) -> Failure {
    Failure::new(Reason::Protocol, Error::new(message))
}

fn text(value: Value) -> Result<String, Failure> {
    match value {
        Value::BulkString(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Ok(text),
        _ => Err(protocol("the answer is no text")),
    }
}

/// When a server's figures are bad unless the configuration says otherwise.
pub static THRESHOLDS: &[Threshold] = &[
    Threshold::of(&metrics::REDIS_LOADING, Some(Above(0.5)), None),
    Threshold::of(&metrics::REDIS_MEMORY_EXHAUSTION, Some(Above(0.85)), Some(Above(0.95))),
    Threshold::of(&metrics::REDIS_CLIENTS_USED, Some(Above(0.8)), None),
    Threshold::of(&metrics::REDIS_RDB_OK, None, Some(Below(0.5))),
    Threshold::of(&metrics::REDIS_AOF_WRITE_OK, None, Some(Below(0.5))),
    Threshold::of(&metrics::REDIS_AOF_REWRITE_OK, Some(Below(0.5)), None),
    Threshold::of(&metrics::REDIS_LINK_UP, None, Some(Below(0.5))),
    Threshold::of(&metrics::REDIS_REPLICA_LAG, Some(Above(64.0 * 1_048_576.0)), None),
];

/// `redis 7.0.15 primary, 1.2 MiB of 10.0 MiB, 98 % hits, 12 clients`.
pub fn headline(samples: &[Sample]) -> String {
    let find = |metric: &Metric| samples.iter().find(|sample| sample.metric == metric);
    let value = |metric| find(metric).map(|sample| sample.value);
    let mut parts = Vec::new();
    if let Some(server) = find(&metrics::REDIS_SERVER) {
        let label = |name| server.label(name).unwrap_or_default();
        let is = |sample: &&Sample| sample.metric == &metrics::REDIS_ROLE_STATE && sample.value == 1.0;
        let role = samples.iter().find(is).and_then(|sample| sample.label("state")).unwrap_or_default();
        parts.push(format!("{} {} {role}", label("software"), label("version")));
    }
    let mebibytes = |bytes: f64| format!("{:.1} MiB", bytes / f64::from(1 << 20));
    match (value(&metrics::REDIS_MEMORY_USED), value(&metrics::REDIS_MEMORY_LIMIT)) {
        (Some(used), Some(limit)) => parts.push(format!("{} of {}", mebibytes(used), mebibytes(limit))),
        (Some(used), None) => parts.push(mebibytes(used)),
        _ => {}
    }
    parts.extend(value(&metrics::REDIS_HIT_RATIO).map(|ratio| format!("{:.0} % hits", ratio * 100.0)));
    parts.extend(value(&metrics::REDIS_CLIENTS).map(|clients| format!("{clients} clients")));
    parts.join(", ")
}
