//! `opsd check` and the alerts judge alike: each usual threshold is the bound of an alert, and each alert
//! that says whether a figure is bad now has its threshold.

use std::path::Path;

use yaml_rust2::{Yaml, YamlLoader};

use super::{backups, host, http, mqtt, postgres, queue, redis, tcp, tls};
use crate::config::Threshold;
use crate::config::monitoring::Bound;
use crate::metrics::Unit;

/// Alerts that no threshold can be the same as, and why.
const ALERTS_ALONE: &[(&str, &str)] = &[
    ("PostgresReplicationBehind", "replaying is what a standby does; for a quarter of an hour it is not"),
    ("PostgresReplayPaused", "check judges the verdict on the pair"),
    ("PostgresSlotAbandoned", "two figures"),
    ("PostgresVacuumBehind", "two figures"),
    ("BackupNeverProven", "a first backup is not proven at once"),
    ("BackupOld", "two figures"),
    ("BackupUnproven", "two figures"),
    ("BackupRecoverySlow", "two figures"),
    ("QueueStuck", "one look cannot tell since when the same job is next"),
    ("QueueNeverEmpty", "two figures"),
    ("QueueDrainSlow", "an estimate, which one look is too few for"),
    ("MqttNoRoundTrip", "check calls a piece that cannot be read unknown"),
    ("QueuePaused", "somebody does it on purpose, and not for an hour"),
];
/// Thresholds that no alert can be the same as, and why.
const THRESHOLDS_ALONE: &[(&str, &str)] =
    &[("opsd_postgres_replication_state Some(\"paused\")", "PostgresReplayPaused says it of the standby")];

/// One comparison of an alert's expression.
#[derive(Debug)]
struct Condition {
    metric: String,
    labels: String,
    /// `time() - metric`, or `metric - time()`.
    since: bool,
    until: bool,
    operator: String,
    value: f64,
}

struct Alert {
    name: String,
    severity: String,
    expr: String,
    conditions: Vec<Condition>,
}

fn number(text: &str) -> Option<f64> {
    let factor = |factor: &str| match factor.split_once('^') {
        Some((base, power)) => Some(base.trim().parse::<f64>().ok()?.powf(power.trim().parse().ok()?)),
        None => factor.trim().parse::<f64>().ok(),
    };
    text.split('*').map(factor).try_fold(1.0, |product, factor| Some(product * factor?))
}

/// The comparisons of a metric with a number.
fn conditions(expr: &str) -> Vec<Condition> {
    // What an alert leaves out is no condition of it.
    let parts = expr.split(" or ").flat_map(|part| part.split(" and "));
    let parts = parts.map(|part| part.split(" unless ").next().unwrap_or_default());
    let condition = |part: &str| {
        let start = part.find("opsd_")?;
        let rest = &part[start..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (metric, rest) = rest.split_at(end);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(labels) => labels.split_once('}')?,
            None => ("", rest),
        };
        let rest = rest.trim_start_matches([')', ' ']);
        let until = rest.starts_with("- time()");
        let rest = rest.trim_start_matches("- time()").trim();
        let (operator, value) = rest.split_once(' ')?;
        let is_plain = ["==", ">", "<"].contains(&operator);
        let value = number(value).filter(|_| is_plain)?;
        Some(Condition {
            metric: metric.to_owned(),
            labels: labels.to_owned(),
            since: part[..start].contains("time() -"),
            until,
            operator: operator.to_owned(),
            value,
        })
    };
    parts.filter_map(condition).collect()
}

fn alerts() -> Vec<Alert> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts");
    let mut alerts = Vec::new();
    for file in ["backups", "postgres", "probes", "queues", "redis"] {
        let text = std::fs::read_to_string(directory.join(format!("{file}.rules.yml"))).unwrap();
        let document = YamlLoader::load_from_str(&text).unwrap().remove(0);
        let items = |yaml: &Yaml| yaml.as_vec().cloned().unwrap_or_default();
        for rule in items(&document["groups"]).iter().flat_map(|group| items(&group["rules"])) {
            let Some(name) = rule["alert"].as_str() else { continue };
            let expr = rule["expr"].as_str().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
            let severity = rule["labels"]["severity"].as_str().unwrap().to_owned();
            alerts.push(Alert { name: name.to_owned(), severity, conditions: conditions(&expr), expr });
        }
    }
    alerts
}

fn thresholds() -> Vec<&'static Threshold> {
    [
        postgres::THRESHOLDS,
        backups::THRESHOLDS,
        http::THRESHOLDS,
        tcp::THRESHOLDS,
        tls::THRESHOLDS,
        host::THRESHOLDS,
        mqtt::THRESHOLDS,
        redis::THRESHOLDS,
        queue::THRESHOLDS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether an alert's comparison is true where the bound is crossed, and not at the bound.
fn agrees(condition: &Condition, threshold: &Threshold, bound: Bound) -> bool {
    let (limit, is_above) = match bound {
        Bound::Above(limit) => (limit, true),
        Bound::Below(limit) => (limit, false),
    };
    let holds = |value: f64| match condition.operator.as_str() {
        "==" => value == condition.value,
        ">" => value > condition.value,
        _ => value < condition.value,
    };
    // A truth is 0 or 1.
    let (good, bad) = match (limit == 0.5, is_above) {
        (true, true) => (0.0, 1.0),
        (true, false) => (1.0, 0.0),
        (false, true) => (limit, limit * 1.001 + 0.001),
        (false, false) => (limit, limit * 0.999),
    };
    let state_is_meant = threshold.state.as_ref().is_none_or(|state| {
        let quoted = condition.labels.split('"').nth(1).unwrap_or_default();
        let named = quoted.split('|').any(|word| word == state);
        named != condition.labels.starts_with("state!=")
    });
    let ratio_of_half = threshold.metric.unit == Unit::Ratio && limit == 0.5;
    let (good, bad) = if ratio_of_half { (0.5, 0.49) } else { (good, bad) };
    condition.metric == threshold.metric.series()
        && state_is_meant
        && condition.since == (threshold.metric.unit == Unit::Timestamp)
        && condition.until == (threshold.metric.unit == Unit::Deadline)
        && holds(bad)
        && !holds(good)
}

fn bounds(threshold: &Threshold) -> impl Iterator<Item = (&'static str, Bound)> {
    [("warning", threshold.warning), ("critical", threshold.critical)]
        .into_iter()
        .filter_map(|(severity, bound)| Some((severity, bound?)))
}

#[test]
fn each_usual_threshold_is_the_bound_of_an_alert() {
    let alerts = alerts();
    let missing: Vec<String> = thresholds()
        .into_iter()
        .flat_map(|threshold| bounds(threshold).map(move |bound| (threshold, bound)))
        .filter(|(threshold, (severity, bound))| {
            let mut of_severity = alerts.iter().filter(|alert| alert.severity == *severity);
            !of_severity.any(|alert| alert.conditions.iter().any(|c| agrees(c, threshold, *bound)))
        })
        .map(|(threshold, (severity, bound))| {
            format!("{} {:?} {severity} {bound:?}", threshold.metric.series(), threshold.state)
        })
        .filter(|missing| !THRESHOLDS_ALONE.iter().any(|(known, _)| missing.starts_with(known)))
        .collect();
    assert!(missing.is_empty(), "no alert is the same as\n{}", missing.join("\n"));
}

#[test]
fn each_alert_on_a_figure_has_its_threshold() {
    let moves = ["rate(", "increase(", "delta(", "predict_linear(", "over_time(", ":rate5m"];
    let is_judged = |alert: &Alert| {
        let of_a_figure = !moves.iter().any(|word| alert.expr.contains(word));
        of_a_figure && alert.severity != "info" && !alert.expr.contains("opsd_monitor_up == 0")
    };
    let thresholds = thresholds();
    let has_threshold = |alert: &Alert| {
        let judged = |c: &Condition| {
            thresholds
                .iter()
                .any(|t| bounds(t).any(|(severity, bound)| severity == alert.severity && agrees(c, t, bound)))
        };
        alert.conditions.iter().any(judged)
    };
    let (mut missing, mut alone) = (Vec::new(), Vec::new());
    for alert in alerts().iter().filter(|alert| is_judged(alert) && !has_threshold(alert)) {
        match ALERTS_ALONE.iter().find(|(name, _)| *name == alert.name) {
            Some((name, _)) => alone.push(*name),
            None => missing.push(format!("{}: {}", alert.name, alert.expr)),
        }
    }
    assert!(missing.is_empty(), "no threshold is the same as\n{}", missing.join("\n"));
    let needless: Vec<_> = ALERTS_ALONE.iter().filter(|(name, _)| !alone.contains(name)).collect();
    assert!(needless.is_empty(), "excused for nothing: {needless:?}");
}
