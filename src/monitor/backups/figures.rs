//! From what is known of a job to series, thresholds, and a line for a person.

use std::borrow::Cow;

use chrono::{DateTime, Utc};

use super::history::{Freshness, Job};
use crate::config::Threshold;
use crate::config::monitoring::Bound::{Above, Below};
use crate::metrics::{self, Metric, Sample, states};

/// When backups are bad unless the configuration says otherwise.
pub static THRESHOLDS: &[Threshold] = &[
    is(&metrics::BACKUP_RECOVERY_POINT_STATE, "overdue", true),
    is(&metrics::BACKUP_RECOVERY_POINT_STATE, "missing", true),
    is(&metrics::BACKUP_RECOVERY_POINT_STATE, "unknown", false),
    is(&metrics::BACKUP_SIGNATURE_STATE, "refused", true),
    is(&metrics::BACKUP_REHEARSAL_STATE, "differs", true),
    is(&metrics::BACKUP_REHEARSAL_STATE, "failed", false),
    is(&metrics::BACKUP_REHEARSAL_STATE, "unproven", false),
    is(&metrics::BACKUP_SETS, "refused", true),
    // As retention freezes.
    below(&metrics::BACKUP_DATABASE_ROWS_RATIO, 0.5, true),
    below(&metrics::BACKUP_DATABASE_BYTES_RATIO, 0.5, true),
    below(&metrics::BACKUP_DATABASE_PRESENT, 0.5, true),
    below(&metrics::BACKUP_RECIPIENTS_EXPECTED, 0.5, true),
    Threshold::of(&metrics::BACKUP_RECIPIENTS_CHANGED, Some(Above(0.5)), None),
    above(&metrics::BACKUP_OBJECTS_MISSING, true),
    above(&metrics::BACKUP_SETS_AHEAD, false),
];

const fn is(metric: &'static Metric, state: &'static str, critical: bool) -> Threshold {
    let bound = Some(Above(0.5));
    let (warning, critical) = if critical { (None, bound) } else { (bound, None) };
    Threshold { metric, state: Some(Cow::Borrowed(state)), warning, critical }
}

const fn below(metric: &'static Metric, limit: f64, critical: bool) -> Threshold {
    let bound = Some(Below(limit));
    let (warning, critical) = if critical { (None, bound) } else { (bound, None) };
    Threshold::of(metric, warning, critical)
}

/// Anything above nothing.
const fn above(metric: &'static Metric, critical: bool) -> Threshold {
    let bound = Some(Above(0.0));
    let (warning, critical) = if critical { (None, bound) } else { (bound, None) };
    Threshold::of(metric, warning, critical)
}

fn seconds(time: DateTime<Utc>) -> f64 {
    time.timestamp_millis() as f64 / 1000.0
}

/// The series of a job. `recipients` are those of the configuration.
pub(super) fn samples(name: &str, job: &Job<'_>, recipients: &[String]) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut add = |metric: &'static Metric, value: Option<f64>| {
        samples.extend(value.map(|value| Sample::new(metric, [name], value)));
    };
    add(&metrics::BACKUP_RPO, job.rpo.map(|rpo| rpo.as_secs_f64()));
    add(&metrics::BACKUP_LISTED_TIMESTAMP, job.listed.map(seconds));
    add(&metrics::BACKUP_STORED, Some(job.stored_bytes as f64));
    add(&metrics::BACKUP_SETS_AHEAD, Some(job.ahead as f64));
    if let Some((entry, set)) = job.newest() {
        add(&metrics::BACKUP_RECOVERY_POINT_TIMESTAMP, Some(seconds(set.started)));
        add(&metrics::BACKUP_LAST_SUCCESS_TIMESTAMP, Some(seconds(set.finished)));
        let took = (set.finished - set.started).as_seconds_f64();
        add(&metrics::BACKUP_LAST_DURATION, Some(took.max(0.0)));
        add(&metrics::BACKUP_LAST_STORED, Some(entry.occupied_bytes() as f64));
        add(&metrics::BACKUP_LAST_PLAIN, Some(set.plain_bytes as f64));
        let rows: Option<u64> = set.databases.values().map(|amount| amount.rows).sum();
        add(&metrics::BACKUP_LAST_ROWS, rows.map(|rows| rows as f64));
    }
    if let Some((_, set)) = job.believed.first() {
        add(&metrics::BACKUP_OBJECTS_MISSING, Some(set.missing as f64));
        add(&metrics::BACKUP_RECIPIENTS, Some(set.recipients.len() as f64));
        let expected = (!recipients.is_empty()).then_some(set.recipients == recipients);
        add(&metrics::BACKUP_RECIPIENTS_EXPECTED, expected.map(truth));
        add(&metrics::BACKUP_RECIPIENTS_CHANGED, job.recipients_changed().map(truth));
    }
    let (last, proven) = job.rehearsals();
    add(&metrics::BACKUP_REHEARSAL_TIMESTAMP, last.map(|r| seconds(r.finished)));
    add(&metrics::BACKUP_PROVEN_TIMESTAMP, proven.map(|r| seconds(r.finished)));
    add(&metrics::BACKUP_PROVEN_POINT_TIMESTAMP, job.proven_point().map(seconds));
    add(&metrics::BACKUP_RECOVERY, proven.map(|r| r.total));
    for (phase, took) in proven.into_iter().flat_map(|r| &r.phases) {
        samples.push(Sample::new(&metrics::BACKUP_RECOVERY_PHASE, [name, phase], *took));
    }
    samples.extend(states(&metrics::BACKUP_RECOVERY_POINT_STATE, &[name], job.freshness.as_str()));
    for (state, count) in metrics::BACKUP_SETS.states.iter().zip(job.counts) {
        samples.push(Sample::new(&metrics::BACKUP_SETS, [name, state], count as f64));
    }
    if let Some(signature) = job.signature {
        samples.extend(states(&metrics::BACKUP_SIGNATURE_STATE, &[name], signature));
    }
    // Where nothing could be read, there may well have been one.
    if last.is_some() || job.freshness != Freshness::Unknown {
        let now = last.map_or("none", |r| r.verdict.as_str());
        samples.extend(states(&metrics::BACKUP_REHEARSAL_STATE, &[name], now));
    }
    for database in job.databases() {
        let mut add = |metric: &'static Metric, value: Option<f64>| {
            samples.extend(value.map(|value| Sample::new(metric, [name, database.name], value)));
        };
        add(&metrics::BACKUP_DATABASE_PRESENT, Some(truth(database.now.is_some())));
        add(&metrics::BACKUP_DATABASE_ROWS, database.now.and_then(|a| a.rows).map(|rows| rows as f64));
        add(&metrics::BACKUP_DATABASE_BYTES, database.now.map(|a| a.bytes as f64));
        add(&metrics::BACKUP_DATABASE_ROWS_RATIO, database.rows_ratio);
        add(&metrics::BACKUP_DATABASE_BYTES_RATIO, database.bytes_ratio);
    }
    samples
}

fn truth(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// `db fresh, 30 sets, proven 2026-11-21; files missing`.
pub fn headline(samples: &[Sample]) -> String {
    let of = |metric: &'static Metric| samples.iter().filter(move |sample| sample.metric == metric);
    let state = of(&metrics::BACKUP_RECOVERY_POINT_STATE).filter(|sample| sample.value == 1.0);
    let job = |sample: &Sample| {
        let backup = sample.label("backup")?;
        let value = |metric: &'static Metric, state: Option<&str>| {
            let found = of(metric).find(|s| {
                s.label("backup") == Some(backup) && state.is_none_or(|state| s.label("state") == Some(state))
            });
            found.map(|s| s.value)
        };
        let mut text = format!("{backup} {}", sample.label("state")?);
        match value(&metrics::BACKUP_SETS, Some("complete")) {
            Some(1.0) => text.push_str(", 1 set"),
            Some(sets) => text.push_str(&format!(", {sets} sets")),
            None => {}
        }
        let proven = value(&metrics::BACKUP_PROVEN_TIMESTAMP, None);
        match proven.and_then(|time| DateTime::from_timestamp(time as i64, 0)) {
            Some(time) => text.push_str(&format!(", proven {}", time.format("%Y-%m-%d"))),
            None => text.push_str(", never proven"),
        }
        Some(text)
    };
    state.filter_map(job).collect::<Vec<_>>().join("; ")
}
