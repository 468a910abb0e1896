//! One Prometheus for all tests of this binary, which has the rules of `alerts/` as they are and says
//! which alerts the exporter of a test raises.
//!
//! Every exporter that is watched has a slot: an address that Prometheus knows from the beginning, and a
//! site's name that no other one has. (Prometheus passes targets from files on in ticks of five seconds,
//! which every test would wait for.) The name replaces the one that the exporter gives, as a fleet's
//! Prometheus may; rules that join or aggregate by `site` therefore never see two tests as one.
//! Deliberately absent: other values for `for`. An alert that is pending has an expression that holds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::exporter::Exporter;
use super::opsd::Opsd;
use super::prometheus::Prometheus;

/// More than there are tests that ask for one.
const SLOTS: u16 = 64;
/// Below the ports that the kernel gives away.
const FIRST_PORT: u16 = 21_000;
/// As that of `until`.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
/// How often a site is looked at until it is quiet.
const LOOKS: u32 = 10;

/// An address of loopback that no other process of this machine uses: its number is part of it.
fn address(slot: u16) -> String {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    format!("127.{a}.{b}.{c}:{}", FIRST_PORT + slot)
}

fn site(slot: u16) -> String {
    format!("slot-{slot}")
}

/// It is never dropped; it ends with the binary.
fn prometheus() -> &'static Prometheus {
    static SHARED: OnceLock<Prometheus> = OnceLock::new();
    SHARED.get_or_init(|| {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts/*.rules.yml");
        let mut config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [\"{}\"]\nscrape_configs:\n- job_name: opsd\n  \
             metric_relabel_configs: [{{regex: exported_site, action: labeldrop}}]\n  static_configs:\n",
            rules.display()
        );
        for slot in 0..SLOTS {
            let (address, site) = (address(slot), site(slot));
            writeln!(config, "  - {{targets: [\"{address}\"], labels: {{site: {site}}}}}").expect("write");
        }
        Prometheus::with_config(&config)
    })
}

/// Starts an exporter whose alerts can be asked for; `settings` are further keys of `[exporter]`.
pub fn watched(opsd: &mut Opsd, settings: &str) -> Exporter {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let slot = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(slot < SLOTS, "more exporters are watched than there are slots");
    prometheus();
    let mut exporter = Exporter::start_at(opsd, &address(slot), settings);
    exporter.site = Some(site(slot));
    // It has read them. Commands that look at the same site once may take longer than a second.
    opsd.more = opsd.more.replace("\"1s\"", "\"15s\"");
    exporter
}

/// The labels of an alert that is pending or firing.
type Alert = BTreeMap<String, String>;

/// An alert as a test names it: `RedisDown`, or `QueueUnread{queue="mail"}`.
fn is(alert: &Alert, wanted: &str) -> bool {
    let (name, labels) = wanted.split_once('{').unwrap_or((wanted, "}"));
    let mut labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
    let has = |label: &str| {
        let (key, value) = label.split_once('=').expect("a label and its value");
        alert.get(key).is_some_and(|found| found == value.trim_matches('"'))
    };
    alert["alertname"] == name && labels.all(has)
}

fn wait(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited for ever: {what}");
        std::thread::sleep(PAUSE);
    }
}

impl Exporter {
    /// The name of its site in Prometheus.
    fn site(&self) -> &str {
        self.site.as_deref().expect("an exporter that is watched")
    }

    /// The alerts of its site that are pending or firing now.
    fn alerts(&self) -> Vec<Alert> {
        let found = prometheus().query(&format!("ALERTS{{site=\"{}\"}}", self.site()));
        let labels = |series: &serde_json::Value| {
            let labels = series["metric"].as_object().expect("labels").iter();
            labels.map(|(key, value)| (key.clone(), value.as_str().expect("a text").to_owned())).collect()
        };
        found.iter().map(labels).collect()
    }

    /// Waits until all of these alerts are pending or firing.
    pub fn until_alerts(&self, wanted: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let alerts = self.alerts();
            let missing: Vec<_> =
                wanted.iter().filter(|name| !alerts.iter().any(|alert| is(alert, name))).collect();
            if missing.is_empty() {
                return;
            }
            let late = Instant::now() > deadline;
            assert!(!late, "no alert {missing:?}, but {alerts:#?} of\n{}", self.scrape().text);
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until none of these alerts, which a test has seen, is active any more.
    pub fn until_over(&self, ended: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let alerts = self.alerts();
            let left: Vec<_> =
                alerts.iter().filter(|alert| ended.iter().any(|name| is(alert, name))).collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still there: {left:#?} of\n{}", self.scrape().text);
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until Prometheus has what is so now: what counts changes needs a figure from before.
    pub fn until_seen(&self) {
        let since = Utc::now().timestamp_millis() as f64 / 1000.0;
        let seen = format!("timestamp(opsd_start_timestamp_seconds{{site=\"{}\"}}) > {since}", self.site());
        wait("a scrape", || !prometheus().query(&seen).is_empty());
    }

    /// Waits until no critical alert and no warning stands, once Prometheus has judged what is so now by every
    /// rule. What a moment's load raises is over at another look; a false alarm stays.
    pub fn until_quiet(&self) {
        let mut troubles = Vec::new();
        for _ in 0..LOOKS {
            troubles = self.troubles();
            if troubles.is_empty() {
                return;
            }
        }
        panic!("not quiet: {troubles:#?} of\n{}", self.scrape().text);
    }

    fn troubles(&self) -> Vec<Alert> {
        self.until_seen();
        // Once more for rules that need others.
        for _ in 0..2 {
            let since = Utc::now();
            wait("an evaluation of all rules", || {
                let rules = prometheus().get("/api/v1/rules");
                let groups = rules["data"]["groups"].as_array().expect("groups");
                let at = |group: &serde_json::Value| group["lastEvaluation"].as_str()?.parse().ok();
                !groups.is_empty() && groups.iter().all(|g| at(g).is_some_and(|at: DateTime<Utc>| at > since))
            });
        }
        let is_trouble = |alert: &Alert| alert.get("severity").is_none_or(|severity| severity != "info");
        self.alerts().into_iter().filter(is_trouble).collect()
    }

    /// Waits until the expression of an alert returns something once its threshold is another: for ages that
    /// no test reaches. What stands in the rule must be there exactly once.
    pub fn until_alert_with(&self, alert: &str, threshold: &str, instead: &str) {
        let rules = prometheus().get("/api/v1/rules?type=alert");
        let groups = rules["data"]["groups"].as_array().expect("groups").iter();
        let mut all = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
        let rule = all.find(|rule| rule["name"] == alert).unwrap_or_else(|| panic!("there is no {alert}"));
        let expression = rule["query"].as_str().expect("an expression");
        assert_eq!(expression.matches(threshold).count(), 1, "{threshold} in {expression}");
        let expression = expression.replace(threshold, instead);
        let deadline = Instant::now() + PATIENCE;
        let is_ours = |series: &serde_json::Value| series["metric"]["site"] == self.site();
        while !prometheus().query(&expression).iter().any(is_ours) {
            assert!(Instant::now() < deadline, "nothing: {expression} of\n{}", self.scrape().text);
            std::thread::sleep(PAUSE);
        }
    }
}
