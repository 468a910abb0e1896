//! Whether rules can fire: asks a live Prometheus for the series of every selector.
//!
//! A selector that matches nothing is one of two things. Opsd's own catalogue may know the metric: then
//! it is quiet, as the time of a prepared transaction is while there is none. Else nobody exports it.
//! Deliberately absent: repairing rules, and any word on whether their thresholds are sensible.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::Rule;
use super::promql::Selector;
use crate::error::{Context, Error, Result};
use crate::metrics;

/// How far back series are looked for: what happens once a day counts.
const SINCE: Duration = Duration::from_secs(24 * 3600);
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an answer: where `limit` is not heeded, a thousand series of a kilobyte each, four times over.
const ANSWER_MAX: usize = 4 << 20;
/// JSON values in it, each of which takes several times its two bytes.
const VALUES_MAX: usize = 400_000;
/// Letters of an error of Prometheus's that are repeated.
const SAID_MAX: usize = 300;

/// Whether something has series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing exports them.
    Never,
    /// There are none now, and there may be.
    Quiet,
    /// There are some.
    Matches,
}

impl State {
    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Never => "never",
            State::Quiet => "quiet",
            State::Matches => "matches",
        }
    }
}

/// What is found about one rule.
#[derive(Debug)]
pub struct Finding<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Whether it can have a result.
    pub state: State,
    /// Its selectors that match nothing, and why.
    pub missing: Vec<Missing<'a>>,
}

/// A selector that matches nothing.
#[derive(Debug, Clone)]
pub struct Missing<'a> {
    /// As it stands in the rule.
    pub selector: &'a Selector,
    /// Whether it may come.
    pub state: State,
    /// In a few words.
    pub why: &'static str,
}

/// Judges every rule. What one of the rules records counts as far as that rule can have a result.
pub async fn examine<'a>(prometheus: &Prometheus, rules: &'a [Rule]) -> Result<Vec<Finding<'a>>> {
    let mut known: BTreeMap<&Selector, (State, &'static str)> = BTreeMap::new();
    for selector in rules.iter().flat_map(|rule| rule.expr.selectors()) {
        if !known.contains_key(selector) {
            known.insert(selector, judge(prometheus, selector).await?);
        }
    }
    // A recorded series that is not there now: its rule says whether it can be. Chains are followed by
    // repeating, as often as there may be links.
    for _ in 0..=rules.len() {
        let mut changed = false;
        for rule in rules.iter().filter(|rule| !rule.is_alert) {
            let state = state_of(rule, &known);
            let names = |selector: &Selector| selector.name.as_deref() == Some(rule.name.as_str());
            for (_, now) in known.iter_mut().filter(|(selector, _)| names(selector)) {
                if now.0 == State::Never && state != State::Never {
                    *now = (State::Quiet, "is recorded by a rule, and not there now");
                    changed = true;
                }
            }
        }
        if !changed {
            break;
        }
    }
    let finding = |rule: &'a Rule| {
        let missing = rule.expr.selectors().into_iter().filter_map(|selector| {
            let (state, why) = known.get(selector).copied()?;
            (state != State::Matches).then_some(Missing { selector, state, why })
        });
        Finding { rule, state: state_of(rule, &known), missing: missing.collect() }
    };
    Ok(rules.iter().map(finding).collect())
}

fn state_of(rule: &Rule, known: &BTreeMap<&Selector, (State, &'static str)>) -> State {
    let at_least = |least: State| {
        rule.expr.can_return(&|selector| known.get(selector).is_some_and(|(state, _)| *state >= least))
    };
    match (at_least(State::Matches), at_least(State::Quiet)) {
        (true, _) => State::Matches,
        (false, true) => State::Quiet,
        (false, false) => State::Never,
    }
}

async fn judge(prometheus: &Prometheus, selector: &Selector) -> Result<(State, &'static str)> {
    if prometheus.has(&selector.text).await? {
        return Ok((State::Matches, ""));
    }
    let Some(name) = selector.name.as_deref() else {
        return Ok((State::Never, "matches nothing"));
    };
    // Prometheus makes these of alerts that are pending or firing.
    if matches!(name, "ALERTS" | "ALERTS_FOR_STATE") {
        return Ok((State::Quiet, "is there while something fires"));
    }
    let others = prometheus.has(name).await?;
    // The labels of the scrape configuration are not opsd's to know.
    let is_own = |label: &str, metric: &metrics::Metric| metric.labels.contains(&label);
    Ok(match (metrics::find(name).filter(|metric| metric.series() == name), others) {
        // Every state has a series; what is not among them is none.
        (Some(metric), true) if selector.labels.iter().any(|l| l == "state" && is_own(l, metric)) => {
            (State::Never, "is there, and never with these labels")
        }
        (Some(metric), true) if selector.labels.iter().any(|l| !is_own(l, metric) && !is_usual(l)) => {
            (State::Never, "is there, and has no such label")
        }
        (Some(_), true) => (State::Quiet, "is there, and not with these labels now"),
        (Some(_), false) => (State::Quiet, "is not there now"),
        (None, true) => (State::Never, "is there, and not with these labels"),
        (None, false) if name.starts_with("opsd_") => (State::Never, "is no metric of opsd's"),
        (None, false) => (State::Never, "is not there"),
    })
}

/// Labels that every series of a monitor has.
fn is_usual(label: &str) -> bool {
    matches!(label, "site" | "monitor")
}

/// A Prometheus to ask.
pub struct Prometheus {
    client: reqwest::Client,
    url: reqwest::Url,
}

impl Prometheus {
    /// One at a URL, which may have a path in front of `/api`.
    pub fn new(url: &str) -> Result<Self> {
        let hint = "for example http://127.0.0.1:9090";
        // A URL may hold a password: it is not repeated.
        let parsed = reqwest::Url::parse(url)
            .map_err(|e| Error::usage(e).context("the URL of Prometheus").with_hint(hint))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(Error::usage("the URL of Prometheus is neither http nor https").with_hint(hint));
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::new(e).context("cannot set up TLS"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .timeout(TIMEOUT)
            .user_agent(concat!("opsd/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::new(e.without_url()).context("cannot set up HTTP"))?;
        Ok(Self { client, url: parsed })
    }

    /// Whether a selector matches series of the last day.
    async fn has(&self, selector: &str) -> Result<bool> {
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut url = self.url.clone();
        url.set_path(&format!("{}/api/v1/series", self.url.path().trim_end_matches('/')));
        let start = now.saturating_sub(SINCE).as_secs().to_string();
        // Before version 2.50 `limit` is not heeded.
        url.query_pairs_mut()
            .append_pair("match[]", selector)
            .append_pair("start", &start)
            .append_pair("limit", "1");
        let failed = |e: reqwest::Error| {
            let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), innermost);
            Error::new(why)
                .context("cannot ask Prometheus")
                .with_hint("give its address with --prometheus URL")
        };
        let mut response = self.client.get(url).send().await.map_err(|e| failed(e.without_url()))?;
        let status = response.status();
        let mut body = Vec::new();
        let mut values = 0;
        while let Some(piece) = response.chunk().await.map_err(|e| failed(e.without_url()))? {
            body.extend_from_slice(&piece);
            values += piece.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
            if body.len() > ANSWER_MAX || values > VALUES_MAX {
                return Err(Error::new(format!("it answers more than {} MiB", ANSWER_MAX >> 20))
                    .context("what answers is no Prometheus"));
            }
        }
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|_| Error::new(format!("status {status}, and no JSON")))
            .context("what answers is no Prometheus")?;
        match (answer["data"].as_array(), answer["error"].as_str()) {
            (Some(series), _) => Ok(!series.is_empty()),
            (None, Some(error)) => {
                let said: String = error.chars().take(SAID_MAX).collect();
                Err(Error::new(said).context(format!("Prometheus refuses {selector}")))
            }
            (None, None) => {
                Err(Error::new(format!("status {status}")).context("what answers is no Prometheus"))
            }
        }
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(inner) = error.source() {
        error = inner;
    }
    error.to_string()
}
