//! What a person wants to know first, and when it is bad.

use std::borrow::Cow;

use crate::config::Threshold;
use crate::config::monitoring::Bound::{self, Above};
use crate::metrics::{self, Metric, Sample};

/// When a PostgreSQL server's figures are bad unless the configuration says otherwise.
pub static THRESHOLDS: &[Threshold] = &[
    is(&metrics::POSTGRES_REPLICATION_STATE, "link_cut", None, Some(Above(0.5))),
    is(&metrics::POSTGRES_REPLICATION_STATE, "paused", Some(Above(0.5)), None),
    above(&metrics::POSTGRES_CONNECTIONS_USED, Some(0.8), Some(0.95)),
    above(&metrics::POSTGRES_STANDBY_REPLAY_LAG_BYTES, None, Some(1_073_741_824.0)),
    above(&metrics::POSTGRES_STANDBY_REPLAY_LAG, Some(60.0), None),
    above(&metrics::POSTGRES_SLOT_RETAINED, Some(10.0 * 1_073_741_824.0), None),
    is(&metrics::POSTGRES_LOGICAL_SLOT_STATE, "inactive", Some(Above(0.5)), None),
    is(&metrics::POSTGRES_SUBSCRIPTION_STATE, "disabled", Some(Above(0.5)), None),
    is(&metrics::POSTGRES_SUBSCRIPTION_STATE, "not_running", None, Some(Above(0.5))),
    is(&metrics::POSTGRES_SLOT_WAL_STATE, "unreserved", None, Some(Above(0.5))),
    is(&metrics::POSTGRES_SLOT_WAL_STATE, "lost", None, Some(Above(0.5))),
    // Autovacuum forces itself at a tenth.
    above(&metrics::POSTGRES_WRAPAROUND, Some(0.4), Some(0.7)),
    above(&metrics::POSTGRES_OLDEST_TRANSACTION_TIMESTAMP, Some(3_600.0), Some(6.0 * 3_600.0)),
    above(&metrics::POSTGRES_OLDEST_IDLE_TRANSACTION_TIMESTAMP, Some(600.0), None),
    above(&metrics::POSTGRES_LONGEST_WAIT_TIMESTAMP, None, Some(600.0)),
    above(&metrics::POSTGRES_BLOCKED_SESSIONS, Some(5.0), None),
    above(&metrics::POSTGRES_OLDEST_PREPARED_TIMESTAMP, Some(3_600.0), None),
    above(&metrics::POSTGRES_DATABASE_CHECKSUM_FAILURES, None, Some(0.0)),
    is(&metrics::POSTGRES_ARCHIVER_STATE, "failing", None, Some(Above(0.5))),
    above(&metrics::POSTGRES_ARCHIVE_BACKLOG, Some(100.0), None),
    above(&metrics::POSTGRES_SEQUENCES_UNREADABLE, Some(0.0), None),
    above(&metrics::POSTGRES_SEQUENCE_USED, Some(0.8), Some(0.95)),
];

const fn above(metric: &'static Metric, warning: Option<f64>, critical: Option<f64>) -> Threshold {
    let warning = match warning {
        Some(limit) => Some(Above(limit)),
        None => None,
    };
    let critical = match critical {
        Some(limit) => Some(Above(limit)),
        None => None,
    };
    Threshold::of(metric, warning, critical)
}

const fn is(
    metric: &'static Metric,
    state: &'static str,
    warning: Option<Bound>,
    critical: Option<Bound>,
) -> Threshold {
    Threshold { metric, state: Some(Cow::Borrowed(state)), warning, critical }
}

/// Whether a figure is as somebody wants it: how far a standby is behind that is late on purpose.
pub fn is_meant(sample: &Sample, samples: &[Sample]) -> bool {
    let lags = [&metrics::POSTGRES_STANDBY_REPLAY_LAG_BYTES, &metrics::POSTGRES_STANDBY_REPLAY_LAG];
    let is_delayed = |state: &Sample| {
        state.metric == &metrics::POSTGRES_REPLICATION_STATE
            && state.value == 1.0
            && state.label("state") == Some("delayed")
            && ["standby", "client"].iter().all(|label| state.label(label) == sample.label(label))
    };
    lags.contains(&sample.metric) && samples.iter().any(is_delayed)
}

/// `17.2 primary, 12 of 97 connections, replication: caught_up`.
pub fn headline(samples: &[Sample]) -> String {
    let of = |metric: &'static Metric| samples.iter().filter(move |sample| sample.metric == metric);
    let value = |metric| of(metric).map(|sample| sample.value).next();
    let mut parts = Vec::new();
    let version = of(&metrics::POSTGRES_SERVER).filter_map(|sample| sample.label("version")).next();
    let role = if value(&metrics::POSTGRES_IN_RECOVERY) == Some(1.0) { "standby" } else { "primary" };
    parts.extend(version.map(|version| format!("{version} {role}")));
    // A sum of nothing would be -0.
    let used = of(&metrics::POSTGRES_CONNECTIONS).fold(0.0, |sum, sample| sum + sample.value);
    let usable = value(&metrics::POSTGRES_CONNECTIONS_USABLE);
    parts.extend(usable.map(|usable| format!("{used} of {usable} connections")));
    let states = of(&metrics::POSTGRES_REPLICATION_STATE).filter(|sample| sample.value == 1.0);
    let mut states: Vec<&str> = states.filter_map(|sample| sample.label("state")).collect();
    states.dedup();
    if !states.is_empty() {
        parts.push(format!("replication {}", states.join(", ")));
    }
    parts.join(", ")
}
