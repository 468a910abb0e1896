//! Watching: what a monitor is, which kinds there are, and why a collection fails.
//!
//! A monitor collects figures about one target. [`driver`] runs each in the background, on its own
//! interval and with its own deadline, and keeps the last good snapshot; whoever serves figures reads
//! that and waits for nobody. A kind is one file here: `open`, `THRESHOLDS` and `headline`, and an
//! arm in each of the three functions below.
//!
//! A collection that is late is dropped, never detached. So a monitor keeps nothing half used in
//! itself: it takes its connection out, and puts it back when it has the answer. Deliberately absent:
//! retries (the next interval is one), and any knowledge of how figures are served.

pub mod backups;
pub mod budget;
pub mod driver;
pub mod host;
pub mod http;
pub mod mqtt;
pub mod postgres;
pub mod queue;
pub mod redis;
pub mod tcp;
pub mod tls;
pub mod trust;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::config::{Config, MonitorKind, Threshold, units};
use crate::error::{Error, Result};
use crate::metrics::Sample;
use crate::printable;

pub use driver::{Snapshot, Target, View, Watch};

/// Something that collects figures about one target.
#[async_trait]
pub trait Monitor: Send {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// Collects once. The future may be dropped at any await; the next call must work nevertheless.
    async fn collect(&mut self) -> Result<Collected, Failure>;

    /// How soon it looks again, where that is sooner than the interval: somebody waits for what it did not find.
    fn looks_again_in(&self) -> Option<Duration> {
        None
    }

    /// Its figures once more, where others that collected at the same time found what changes them.
    fn settle(&self, _samples: &[Sample]) -> Option<Vec<Sample>> {
        None
    }
}

/// What one collection found.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    /// The figures; above the monitor's limit, the first ones count.
    pub samples: Vec<Sample>,
    /// The pieces it is made of, where each can fail alone.
    pub concerns: Vec<Concern>,
}

/// A piece of a collection.
#[derive(Debug, Clone)]
pub struct Concern {
    /// Its name, a label's value.
    pub name: &'static str,
    /// Why it could not be read.
    pub failure: Option<Failure>,
}

/// Why something could not be collected.
#[derive(Clone)]
pub struct Failure {
    /// For machines.
    pub reason: Reason,
    /// For people.
    pub error: Error,
}

impl Failure {
    /// A failure with its error.
    pub fn new(reason: Reason, error: impl Into<Error>) -> Self {
        Self { reason, error: error.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.error)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why: few words, so that they can be labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No answer in time.
    Timeout,
    /// Nobody there, or the connection broke.
    Unreachable,
    /// TLS could not be negotiated.
    Tls,
    /// Name or password is wrong.
    Authentication,
    /// The role may not.
    Permission,
    /// The server does not have it: a command that was removed, figures that are switched off.
    NotOffered,
    /// The server has no connection left.
    TooManyConnections,
    /// The server is starting or stopping.
    NotReady,
    /// Somebody holds a lock on it.
    Locked,
    /// The server refused for another reason.
    Refused,
    /// The answer was not understood.
    Protocol,
    /// A mistake of opsd's own.
    Internal,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Reason; 12] = [
        Reason::Timeout,
        Reason::Unreachable,
        Reason::Tls,
        Reason::Authentication,
        Reason::Permission,
        Reason::NotOffered,
        Reason::TooManyConnections,
        Reason::NotReady,
        Reason::Locked,
        Reason::Refused,
        Reason::Protocol,
        Reason::Internal,
    ];

    /// As a label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Timeout => "timeout",
            Reason::Unreachable => "unreachable",
            Reason::Tls => "tls",
            Reason::Authentication => "authentication",
            Reason::Permission => "permission",
            Reason::NotOffered => "not_offered",
            Reason::TooManyConnections => "too_many_connections",
            Reason::NotReady => "not_ready",
            Reason::Locked => "locked",
            Reason::Refused => "refused",
            Reason::Protocol => "protocol",
            Reason::Internal => "internal",
        }
    }
}

/// The monitors of the configuration: all, or those that are named.
pub fn open(config: &Config, names: &[String]) -> Result<Vec<Target>> {
    if config.monitor.is_empty() {
        return Err(Error::usage(format!("{} has no [monitor.NAME]", config.path.display()))
            .with_hint("add one, as in [monitor.main] with postgres = \"main\""));
    }
    if let Some(unknown) = names.iter().find(|name| !config.monitor.contains_key(*name)) {
        return Err(Error::usage(format!(
            "there is no monitor {} in {}",
            printable::word(unknown),
            config.path.display()
        ))
        .with_hint(units::meant(unknown, config.monitor.keys().map(String::as_str))));
    }
    let board = postgres::Board::default();
    let mut targets = Vec::new();
    for (name, monitor) in &config.monitor {
        if !names.is_empty() && !names.contains(name) {
            continue;
        }
        let opened: Box<dyn Monitor> = match &monitor.kind {
            MonitorKind::Postgres { server, databases, excluded } => {
                let server = config.postgres.get(server).ok_or_else(|| {
                    Error::usage(format!("[monitor.{name}] names a [postgres.…] that is not there"))
                })?;
                Box::new(postgres::open(monitor, server, databases, excluded, &board))
            }
            MonitorKind::Backups(options) => Box::new(backups::open(name, config, options)),
            MonitorKind::Http(http) => Box::new(http::open(name, http, monitor.timeout)),
            MonitorKind::Tcp(tcp) => Box::new(tcp::open(name, tcp, monitor.timeout)),
            MonitorKind::Tls(tls) => Box::new(tls::open(name, tls, monitor.timeout)),
            MonitorKind::Host(options) => Box::new(host::open(name, config, options)),
            MonitorKind::Mqtt(mqtt) => Box::new(mqtt::open(name, mqtt, monitor.timeout)),
            MonitorKind::Redis { server } => {
                Box::new(redis::open(monitor, redis_server(config, name, server)?))
            }
            MonitorKind::Queue(queue) => {
                Box::new(queue::open(monitor, redis_server(config, name, &queue.server)?, queue))
            }
        };
        targets.push(Target::new(monitor.clone(), opened));
    }
    Ok(targets)
}

fn redis_server<'a>(config: &'a Config, monitor: &str, server: &str) -> Result<&'a crate::config::Redis> {
    let missing = || Error::usage(format!("[monitor.{monitor}] names a [redis.…] that is not there"));
    config.redis.get(server).ok_or_else(missing)
}

/// When a kind's figures are bad unless the configuration says otherwise.
pub fn thresholds(kind: &MonitorKind) -> &'static [Threshold] {
    match kind {
        MonitorKind::Postgres { .. } => postgres::THRESHOLDS,
        MonitorKind::Backups(_) => backups::THRESHOLDS,
        MonitorKind::Http(_) => http::THRESHOLDS,
        MonitorKind::Tcp(_) => tcp::THRESHOLDS,
        MonitorKind::Tls(_) => tls::THRESHOLDS,
        MonitorKind::Host(_) => host::THRESHOLDS,
        MonitorKind::Mqtt(_) => mqtt::THRESHOLDS,
        MonitorKind::Redis { .. } => redis::THRESHOLDS,
        MonitorKind::Queue(_) => queue::THRESHOLDS,
    }
}

/// Whether a figure is as somebody wants it, so that no threshold holds for it.
pub fn is_meant(kind: &MonitorKind, sample: &Sample, samples: &[Sample]) -> bool {
    matches!(kind, MonitorKind::Postgres { .. }) && postgres::is_meant(sample, samples)
}

/// The figures that matter most, for a person: a few words.
pub fn headline(kind: &MonitorKind, samples: &[Sample]) -> String {
    match kind {
        MonitorKind::Postgres { .. } => postgres::headline(samples),
        MonitorKind::Backups(_) => backups::headline(samples),
        MonitorKind::Http(_) => http::headline(samples),
        MonitorKind::Tcp(_) => tcp::headline(samples),
        MonitorKind::Tls(_) => tls::headline(samples),
        MonitorKind::Host(_) => host::headline(samples),
        MonitorKind::Mqtt(_) => mqtt::headline(samples),
        MonitorKind::Redis { .. } => redis::headline(samples),
        MonitorKind::Queue(_) => queue::headline(samples),
    }
}

#[cfg(test)]
mod tests;
