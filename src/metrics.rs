//! The catalogue: every metric that opsd exports, one row each, and what a measured value is.
//!
//! A collector can only name a metric that has a row, so code and catalogue cannot disagree; a row
//! that nothing uses, and a page (`docs/metrics.md`) that is not the catalogue's, fail a test.
//! Names begin with `opsd_` and end with their base unit; ages are timestamps; a state is a gauge
//! with a `state` label, 1 for the state it is in and 0 for the others; text is an `_info`. Counters
//! are named without `_total` and infos without `_info`: the encoders append both. The labels `site`
//! and `monitor` are not listed: every series of a monitor carries them.
//!
//! Deliberately absent: histograms, and any registry of live values. Values live in snapshots.

use std::time::SystemTime;

mod backups;
mod exporter;
mod markdown;
mod postgres;
mod probes;
mod queue;
mod redis;

pub use backups::*;
pub use exporter::*;
pub use markdown::markdown;
pub use postgres::*;
pub use probes::*;
pub use queue::*;
pub use redis::*;

/// The catalogue, by subject; the subject is a heading of the page.
pub static CATALOGUE: &[(&str, &[&Metric])] = &[
    ("The exporter itself", exporter::ROWS),
    ("PostgreSQL", postgres::ROWS),
    ("Backups", backups::ROWS),
    ("HTTP, TCP, TLS, MQTT and the host", probes::ROWS),
    ("Redis and Valkey", redis::ROWS),
    ("Queues", queue::ROWS),
];

/// A timestamp's value: seconds since 1970, to the millisecond.
pub fn timestamp(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as f64 / 1000.0
}

/// A row of the catalogue.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// What the code calls it.
    pub id: &'static str,
    /// Name with its unit, without `_total` and `_info`.
    pub name: &'static str,
    /// What it is to Prometheus.
    pub kind: Kind,
    /// What it counts in.
    pub unit: Unit,
    /// Labels beside `site` and `monitor`; `state` stands last.
    pub labels: &'static [&'static str],
    /// The values of the label `state`, where there is one.
    pub states: &'static [&'static str],
    /// One sentence, ending with a full stop.
    pub help: &'static str,
}

/// What a metric is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, or starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// 1, with text in its labels.
    Info,
}

impl Kind {
    /// As written on the page.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Info => "info",
        }
    }
}

/// Base units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A number of things, or a truth (1 or 0).
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Seconds since 1970; thresholds on it are about its age.
    Timestamp,
    /// Seconds since 1970, still to come; thresholds on it are about what remains.
    Deadline,
    /// A part of 1.
    Ratio,
}

impl Unit {
    /// What a name in this unit ends with, without the underscore before it.
    pub fn suffix(self) -> Option<&'static str> {
        match self {
            Unit::None => None,
            Unit::Bytes => Some("bytes"),
            Unit::Seconds | Unit::Timestamp | Unit::Deadline => Some("seconds"),
            Unit::Ratio => Some("ratio"),
        }
    }
}

impl Metric {
    /// The name of its series in Prometheus.
    pub fn series(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge => self.name.to_owned(),
            Kind::Info => format!("{}_info", self.name),
        }
    }
}

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What was measured.
    pub metric: &'static Metric,
    /// Values of the metric's labels, in its order.
    pub labels: Vec<String>,
    /// The value; finite.
    pub value: f64,
}

impl Sample {
    /// A value of a metric without labels of its own.
    pub fn plain(metric: &'static Metric, value: f64) -> Self {
        Self { metric, labels: Vec::new(), value }
    }

    /// A value with labels, in the order of the catalogue.
    pub fn new<const N: usize>(metric: &'static Metric, labels: [&str; N], value: f64) -> Self {
        Self { metric, labels: labels.map(str::to_owned).to_vec(), value }
    }

    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let at = self.metric.labels.iter().position(|label| *label == name)?;
        self.labels.get(at).map(String::as_str)
    }

    /// Whether it can be exported at all: every label has a value, a state one of the catalogue's, and the
    /// value is a number.
    pub fn is_whole(&self) -> bool {
        self.labels.len() == self.metric.labels.len()
            && self.label("state").is_none_or(|state| self.metric.states.contains(&state))
            && self.value.is_finite()
    }
}

/// A state as series: 1 for the one it is in, 0 for the others of the catalogue. `labels` come before
/// `state`.
pub fn states(metric: &'static Metric, labels: &[&str], now: &str) -> Vec<Sample> {
    let sample = |state: &str| {
        let labels = labels.iter().copied().chain([state]).map(str::to_owned).collect();
        Sample { metric, labels, value: f64::from(u8::from(state == now)) }
    };
    metric.states.iter().map(|state| sample(state)).collect()
}

/// The row with this name, as it stands in the catalogue or as Prometheus calls the series.
pub fn find(name: &str) -> Option<&'static Metric> {
    all().find(|metric| metric.name == name || metric.series() == name)
}

/// Every row.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    CATALOGUE.iter().flat_map(|(_, rows)| rows.iter().copied())
}

/// Rows as statics, and the list of them: `NAME = Kind Unit "name" ["label", …] "Help.";`, where the last
/// label is `state` with `of ["state", …]` after the labels.
macro_rules! rows {
    ($(
        $id:ident = $kind:ident $unit:ident $name:literal [$($label:literal),*]
            $(of [$($state:literal),*])? $help:literal;
    )*) => {
        $(
            #[doc = $help]
            pub static $id: $crate::metrics::Metric = $crate::metrics::Metric {
                id: stringify!($id),
                name: $name,
                kind: $crate::metrics::Kind::$kind,
                unit: $crate::metrics::Unit::$unit,
                labels: &[$($label),*],
                states: &[$($($state),*)?],
                help: $help,
            };
        )*
        pub(super) static ROWS: &[&$crate::metrics::Metric] = &[$(&$id),*];
    };
}
use rows;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn names_follow_the_rules() {
        let mut names = BTreeSet::new();
        for metric in all() {
            let Metric { name, kind, unit, labels, states, help, .. } = metric;
            assert!(names.insert(name), "{name} stands there twice");
            assert!(name.starts_with("opsd_"), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
            for suffix in ["_total", "_info", "_age_seconds", "_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(suffix), "{name} ends with {suffix}");
            }
            if let Some(suffix) = unit.suffix() {
                assert!(name.ends_with(&format!("_{suffix}")), "{name} does not end with {suffix}");
            }
            let timestamp = name.ends_with("_timestamp_seconds");
            assert_eq!(timestamp, matches!(unit, Unit::Timestamp | Unit::Deadline), "{name}");
            assert!(!name.ends_with("_state") || labels.contains(&"state"), "{name}");
            assert_eq!(labels.last() == Some(&"state"), !states.is_empty(), "{name}");
            assert_eq!(labels.contains(&"state"), labels.last() == Some(&"state"), "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '"']), "{name}: {help}");
            assert!(*kind != Kind::Info || !labels.is_empty(), "{name}");
            let own: BTreeSet<_> = labels.iter().collect();
            assert_eq!(own.len(), labels.len(), "{name}");
            for reserved in ["site", "monitor", "job", "instance", "le", "quantile", "pid", "port"] {
                assert!(!labels.contains(&reserved), "{name} has the label {reserved}");
            }
        }
    }

    #[test]
    fn every_row_is_used_and_the_page_is_the_catalogues() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut code = String::new();
        let mut directories = vec![root.join("src")];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if !path.starts_with(root.join("src/metrics")) && path.extension().is_some() {
                    code.push_str(&std::fs::read_to_string(path).unwrap());
                }
            }
        }
        let words: BTreeSet<&str> = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        for metric in all() {
            assert!(words.contains(metric.id), "nothing exports {}", metric.name);
        }
        let page = std::fs::read_to_string(root.join("docs/metrics.md")).unwrap_or_default();
        assert!(
            page == markdown(),
            "docs/metrics.md is old: run `opsd metrics --markdown > docs/metrics.md`"
        );
    }

    #[test]
    fn a_state_is_one_among_zeros() {
        let samples = states(&REDIS_ROLE_STATE, &[], "replica");
        let seen: Vec<_> = samples.iter().map(|s| (s.label("state").unwrap(), s.value)).collect();
        assert_eq!(seen, [("primary", 0.0), ("replica", 1.0)]);
        assert!(samples.iter().all(Sample::is_whole));
        assert!(!Sample::new(&REDIS_ROLE_STATE, ["master"], 1.0).is_whole());
        assert!(!Sample::plain(&POSTGRES_REPLICATION_STATE, 1.0).is_whole());
        assert!(!Sample::plain(&MONITOR_UP, f64::NAN).is_whole());
    }
}
