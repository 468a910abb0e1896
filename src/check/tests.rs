//! Thresholds, and the line that plugins write.

use std::time::Duration;

use super::*;
use crate::config::{Databases, MonitorKind};
use crate::error::Error;
use crate::metrics;
use crate::monitor::{Collected, Concern, Failure, Monitor, Target, driver};

struct Once(Option<Result<Collected, Failure>>);

#[async_trait::async_trait]
impl Monitor for Once {
    fn name(&self) -> &str {
        "once"
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        self.0.take().expect("one collection")
    }
}

fn monitor(thresholds: Vec<Threshold>) -> config::Monitor {
    config::Monitor {
        name: "db".into(),
        kind: MonitorKind::Postgres {
            server: "main".into(),
            databases: Databases::Url,
            excluded: Vec::new(),
        },
        interval: Duration::from_secs(15),
        timeout: Duration::from_secs(1),
        max_series: 100,
        replaced: thresholds.iter().map(|threshold| threshold.metric).collect(),
        thresholds,
    }
}

async fn report(config: config::Monitor, outcome: Result<Collected, Failure>) -> Report {
    let mut targets = [Target::new(config.clone(), Box::new(Once(Some(outcome))))];
    let views = driver::collect_once(&mut targets).await;
    judge(&config, &views[0], SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000))
}

fn found(samples: Vec<Sample>) -> Result<Collected, Failure> {
    Ok(Collected { samples, concerns: Vec::new() })
}

#[tokio::test]
async fn the_usual_thresholds_hold_unless_they_are_replaced() {
    let used = |value| found(vec![Sample::plain(&metrics::POSTGRES_CONNECTIONS_USED, value)]);
    for (value, verdict) in [(0.8, Verdict::Ok), (0.81, Verdict::Warning), (0.96, Verdict::Critical)] {
        assert_eq!(report(monitor(Vec::new()), used(value)).await.verdict, verdict, "{value}");
    }
    let mut off = monitor(Vec::new());
    off.replaced = vec![&metrics::POSTGRES_CONNECTIONS_USED];
    let report = report(off, used(1.0)).await;
    assert_eq!((report.verdict, report.figures.len()), (Verdict::Ok, 0));
}

#[tokio::test]
async fn a_timestamp_is_judged_by_its_age_and_a_state_by_its_name() {
    let oldest = |at| Sample::plain(&metrics::POSTGRES_OLDEST_TRANSACTION_TIMESTAMP, at);
    let aged = report(monitor(Vec::new()), found(vec![oldest(1_000_000.0 - 3_601.0)])).await;
    assert_eq!(
        aged.findings,
        [Finding::new(Verdict::Warning, "postgres_oldest_transaction_timestamp_seconds is 3601 s ago")]
    );
    // A clock that is ahead is no age.
    assert_eq!(report(monitor(Vec::new()), found(vec![oldest(2_000_000.0)])).await.verdict, Verdict::Ok);
    let state = |now: &str| found(metrics::states(&metrics::POSTGRES_REPLICATION_STATE, &["s", ""], now));
    for (now, verdict) in
        [("caught_up", Verdict::Ok), ("paused", Verdict::Warning), ("link_cut", Verdict::Critical)]
    {
        assert_eq!(report(monitor(Vec::new()), state(now)).await.verdict, verdict, "{now}");
    }
}

#[tokio::test]
async fn below_is_bad_where_less_is_worse() {
    let threshold = Threshold {
        metric: &metrics::POSTGRES_SLOT_SAFE,
        state: None,
        warning: Some(Bound::Below(20.0)),
        critical: Some(Bound::Below(10.0)),
    };
    for (value, verdict) in [(20.0, Verdict::Ok), (19.0, Verdict::Warning), (9.0, Verdict::Critical)] {
        let samples = vec![Sample::new(&metrics::POSTGRES_SLOT_SAFE, ["s"], value)];
        let report = report(monitor(vec![threshold.clone()]), found(samples)).await;
        assert_eq!(report.verdict, verdict);
        let line = plugin_line(&[("db", &report)]);
        assert!(line.ends_with(&format!(" | 'db postgres_slot_safe_bytes'={value}B;20:;10:")), "{line}");
    }
}

#[tokio::test]
async fn what_could_not_be_read_is_unknown_and_what_is_down_is_critical() {
    let failure = |reason| Failure::new(reason, Error::new("why | not\nso"));
    let down = report(monitor(Vec::new()), Err(failure(Reason::Timeout))).await;
    assert_eq!(plugin_line(&[("db", &down)]), "OPSD CRITICAL - db: down, timeout: why / not so");
    let hinted = Failure::new(Reason::Unreachable, Error::new("nobody").with_hint("start\nit"));
    let down = report(monitor(Vec::new()), Err(hinted)).await;
    let said = "OPSD CRITICAL - db: down, unreachable: nobody (hint: start it)";
    assert_eq!(plugin_line(&[("db", &down)]), said);
    for (reason, verdict) in [
        (Reason::Locked, Verdict::Unknown),
        (Reason::Permission, Verdict::Ok),
        (Reason::NotOffered, Verdict::Ok),
    ] {
        let concerns = vec![Concern { name: "slots", failure: Some(failure(reason)) }];
        let report = report(monitor(Vec::new()), Ok(Collected { samples: Vec::new(), concerns })).await;
        assert_eq!(report.verdict, verdict, "{reason:?}");
    }
    assert_eq!(worst([].into_iter()), Verdict::Unknown);
    let order = [Verdict::Ok, Verdict::Unknown, Verdict::Warning, Verdict::Critical];
    assert!(order.is_sorted());
    assert_eq!(order.map(Verdict::exit_code), [0, 3, 1, 2]);
}

#[tokio::test]
async fn perf_data_names_the_worst_of_many_under_one_label() {
    let samples = ["a", "b", "c"].map(|database| {
        let value = if database == "b" { 0.5 } else { 0.1 };
        Sample::new(&metrics::POSTGRES_WRAPAROUND, [database, "transactions"], value)
    });
    let report = report(monitor(Vec::new()), found(samples.to_vec())).await;
    assert_eq!(report.figures.len(), 3);
    let line = plugin_line(&[("db", &report)]);
    assert_eq!(
        line,
        "OPSD WARNING - db: postgres_wraparound_ratio (database \"b\", kind \"transactions\") is 0.5 \
         | 'db postgres_wraparound_ratio'=0.5;0.4;0.7"
    );
}
