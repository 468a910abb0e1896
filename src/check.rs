//! From figures to a verdict, by thresholds. Pure: nothing is read, and the time is an argument.

use std::time::SystemTime;

use crate::config::monitoring::Bound;
use crate::config::{self, Threshold};
use crate::metrics::{Kind, Metric, Sample, Unit};
use crate::monitor::{self, Failure, Reason, View};

/// How bad it is; the greater the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Something could not be found out.
    Unknown,
    /// Somebody should look.
    Warning,
    /// Somebody must act.
    Critical,
}

impl Verdict {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Unknown => "unknown",
            Verdict::Warning => "warning",
            Verdict::Critical => "critical",
        }
    }

    /// The exit code that monitoring plugins use.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Ok => 0,
            Verdict::Warning => 1,
            Verdict::Critical => 2,
            Verdict::Unknown => 3,
        }
    }
}

/// What is found about one monitor.
#[derive(Debug, Clone)]
pub struct Report {
    /// The worst of its findings.
    pub verdict: Verdict,
    /// What is not ok, the worst first.
    pub findings: Vec<Finding>,
    /// Every figure that a threshold speaks of.
    pub figures: Vec<Figure>,
    /// Pieces that are not judged, because the role may not read them.
    pub forbidden: Vec<&'static str>,
    /// Pieces that are not judged, because the server does not have them.
    pub not_offered: Vec<&'static str>,
}

/// Something that is not ok.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What it is, in a few words.
    pub text: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

impl Finding {
    fn new(verdict: Verdict, text: impl Into<String>) -> Self {
        Self { verdict, text: text.into(), hint: None }
    }

    /// What could not be collected, and the hint of its error.
    fn failed(verdict: Verdict, what: &str, failure: &Failure) -> Self {
        let hint = failure.error.hint().map(str::to_owned);
        Self { verdict, text: format!("{what}, {failure}"), hint }
    }
}

/// A figure beside its thresholds.
#[derive(Debug, Clone)]
pub struct Figure {
    /// Its metric.
    pub metric: &'static Metric,
    /// The state that the threshold is about.
    pub state: Option<String>,
    /// The series without `site` and `monitor`: `opsd_x{database="app"}`.
    pub series: String,
    /// What is judged: the value, or the age of a timestamp.
    pub value: f64,
    /// Its unit; a timestamp has become seconds.
    pub unit: Unit,
    /// From where on it is a warning.
    pub warning: Option<Bound>,
    /// From where on it is critical.
    pub critical: Option<Bound>,
}

/// The thresholds that hold for a monitor: its own, and its kind's where it names none.
pub fn thresholds(config: &config::Monitor) -> Vec<&Threshold> {
    let usual = monitor::thresholds(&config.kind).iter();
    let usual = usual.filter(|threshold| !config.replaced.contains(&threshold.metric));
    config.thresholds.iter().chain(usual).collect()
}

/// Judges a monitor as it stands.
pub fn judge(config: &config::Monitor, view: &View, now: SystemTime) -> Report {
    let mut findings = Vec::new();
    let mut figures = Vec::new();
    let (mut forbidden, mut not_offered) = (Vec::new(), Vec::new());
    match &view.last {
        None => findings.push(Finding::new(Verdict::Unknown, "nothing was collected yet")),
        Some(last) => match (&last.failure, &view.snapshot) {
            (Some(failure), _) => findings.push(Finding::failed(Verdict::Critical, "down", failure)),
            (None, None) => findings.push(Finding::new(Verdict::Unknown, "its figures are stale")),
            (None, Some(_)) => {}
        },
    }
    if view.dropped > 0 {
        let text = format!("{} series beyond max_series were left out, and not judged", view.dropped);
        findings.push(Finding::new(Verdict::Warning, text));
    }
    if let Some(snapshot) = &view.snapshot {
        for concern in &snapshot.concerns {
            match &concern.failure {
                // What the role was not given, or the server does not have, is a decision.
                Some(failure) if failure.reason == Reason::Permission => forbidden.push(concern.name),
                Some(failure) if failure.reason == Reason::NotOffered => not_offered.push(concern.name),
                Some(failure) => {
                    let what = format!("no {}", concern.name);
                    findings.push(Finding::failed(Verdict::Unknown, &what, failure));
                }
                None => {}
            }
        }
        for threshold in thresholds(config) {
            let judged = |sample: &&Sample| {
                concerns(threshold, sample) && !monitor::is_meant(&config.kind, sample, &snapshot.samples)
            };
            for sample in snapshot.samples.iter().filter(judged) {
                let (verdict, figure) = compare(threshold, sample, now);
                if verdict != Verdict::Ok {
                    findings.push(Finding::new(verdict, words(&figure, sample)));
                }
                figures.push(figure);
            }
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
    let verdict = findings.first().map_or(Verdict::Ok, |finding| finding.verdict);
    Report { verdict, findings, figures, forbidden, not_offered }
}

fn concerns(threshold: &Threshold, sample: &Sample) -> bool {
    threshold.metric == sample.metric
        && threshold.state.as_deref().is_none_or(|state| sample.label("state") == Some(state))
}

fn compare(threshold: &Threshold, sample: &Sample, now: SystemTime) -> (Verdict, Figure) {
    let mut figure = Figure {
        metric: sample.metric,
        state: threshold.state.as_deref().map(str::to_owned),
        series: series(sample),
        value: sample.value,
        unit: sample.metric.unit,
        warning: threshold.warning,
        critical: threshold.critical,
    };
    if figure.unit == Unit::Timestamp {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // The target's clock may be ahead of this one.
        figure.value = (now - sample.value).max(0.0);
        figure.unit = Unit::Seconds;
    }
    if figure.unit == Unit::Deadline {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        figure.value = sample.value - now;
        figure.unit = Unit::Seconds;
    }
    let crossed = |bound: Option<Bound>| match bound {
        None => false,
        Some(Bound::Above(limit)) => figure.value > limit,
        Some(Bound::Below(limit)) => figure.value < limit,
    };
    let verdict = if !figure.value.is_finite() {
        Verdict::Unknown
    } else if crossed(figure.critical) {
        Verdict::Critical
    } else if crossed(figure.warning) {
        Verdict::Warning
    } else {
        Verdict::Ok
    };
    (verdict, figure)
}

fn words(figure: &Figure, sample: &Sample) -> String {
    if let Some(state) = sample.label("state") {
        let others: Vec<String> = pairs(sample).filter(|(name, _)| *name != "state").map(equation).collect();
        let on = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
        return format!("{} is {state}{on}", short(sample.metric.name));
    }
    let labels: Vec<String> = pairs(sample).map(equation).collect();
    let on = if labels.is_empty() { String::new() } else { format!(" ({})", labels.join(", ")) };
    let age = match sample.metric.unit {
        Unit::Timestamp => " ago",
        Unit::Deadline => " from now",
        _ => "",
    };
    let unit = match figure.unit {
        Unit::Bytes => " bytes",
        Unit::Seconds | Unit::Timestamp | Unit::Deadline => " s",
        Unit::None | Unit::Ratio => "",
    };
    format!("{}{on} is {}{unit}{age}", short(sample.metric.name), rounded(figure.value))
}

fn short(name: &str) -> &str {
    name.strip_prefix("opsd_").unwrap_or(name)
}

fn pairs(sample: &Sample) -> impl Iterator<Item = (&'static str, &str)> {
    sample.metric.labels.iter().copied().zip(sample.labels.iter().map(String::as_str))
}

fn equation((name, value): (&str, &str)) -> String {
    format!("{name} {value:?}")
}

fn series(sample: &Sample) -> String {
    let name = if sample.metric.kind == Kind::Gauge {
        sample.metric.name.to_owned()
    } else {
        sample.metric.series()
    };
    let labels: Vec<String> = pairs(sample).map(|(name, value)| format!("{name}={value:?}")).collect();
    if labels.is_empty() { name } else { format!("{name}{{{}}}", labels.join(",")) }
}

/// To three places; counts and bytes as they are.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// One line as monitoring plugins write it: the verdict, what is wrong, and after `|` the figures.
pub fn plugin_line(reports: &[(&str, &Report)]) -> String {
    let verdict = worst(reports.iter().map(|(_, report)| report.verdict));
    let mut said: Vec<String> = Vec::new();
    for (name, report) in reports {
        let findings: Vec<String> = report.findings.iter().map(with_hint).collect();
        if !findings.is_empty() {
            said.push(format!("{name}: {}", findings.join(", ")));
        }
    }
    if said.is_empty() {
        let names: Vec<&str> = reports.iter().map(|(name, _)| *name).collect();
        said.push(names.join(", "));
    }
    for (name, report) in reports.iter().filter(|(_, report)| !report.forbidden.is_empty()) {
        said.push(format!("{name} may not read {}", report.forbidden.join(", ")));
    }
    for (name, report) in reports.iter().filter(|(_, report)| !report.not_offered.is_empty()) {
        said.push(format!("{name} is not offered {}", report.not_offered.join(", ")));
    }
    let mut line = format!("OPSD {} - {}", verdict.as_str().to_uppercase(), said.join("; "));
    // A line break or a bar of an error's would end the text.
    line = line.replace(['\n', '\r'], " ").replace('|', "/");
    let perf: Vec<String> = reports
        .iter()
        .flat_map(|(name, report)| extremes(&report.figures).into_iter().map(|figure| perf(name, figure)))
        .collect();
    if !perf.is_empty() {
        line.push_str(" | ");
        line.push_str(&perf.join(" "));
    }
    line
}

fn with_hint(finding: &Finding) -> String {
    match &finding.hint {
        Some(hint) => format!("{} (hint: {hint})", finding.text),
        None => finding.text.clone(),
    }
}

/// The worst figure of each metric: a line that grew with every database would be cut off, and one
/// whose labels changed could not be drawn.
fn extremes(figures: &[Figure]) -> Vec<&Figure> {
    let mut kept: Vec<&Figure> = Vec::new();
    for figure in figures {
        let known = kept.iter_mut().find(|k| k.metric == figure.metric && k.state == figure.state);
        let falls = matches!(figure.critical.or(figure.warning), Some(Bound::Below(_)));
        match known {
            None => kept.push(figure),
            Some(known) if (figure.value < known.value) == falls => *known = figure,
            Some(_) => {}
        }
    }
    kept
}

/// `'label'=value[unit];warn;crit`. A range that is bad below a number is written `number:`.
fn perf(name: &str, figure: &Figure) -> String {
    let state = figure.state.as_ref().map_or_else(String::new, |state| format!(" {state}"));
    let label = format!("{name} {}{state}", short(figure.metric.name));
    let unit = match figure.unit {
        Unit::Bytes => "B",
        Unit::Seconds | Unit::Timestamp | Unit::Deadline => "s",
        Unit::None | Unit::Ratio => "",
    };
    let range = |bound: Option<Bound>| match bound {
        None => String::new(),
        Some(Bound::Above(limit)) => limit.to_string(),
        Some(Bound::Below(limit)) => format!("{limit}:"),
    };
    let (warning, critical) = (range(figure.warning), range(figure.critical));
    let all = format!("'{label}'={}{unit};{warning};{critical}", rounded(figure.value));
    all.trim_end_matches(';').to_owned()
}

/// The worst of several; nothing at all is unknown.
pub fn worst(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    verdicts.max().unwrap_or(Verdict::Unknown)
}

#[cfg(test)]
mod tests;
