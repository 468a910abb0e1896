//! `opsd check`: collect once and judge, the way monitoring plugins do: one line with perf data, and
//! 0 ok, 1 warning, 2 critical, 3 unknown. Whatever keeps it from judging is unknown, too.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::{Advice, Global, output};
use crate::check::{self, Finding, Report, Verdict};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::monitor::{self, View, driver};
use crate::shutdown::Shutdown;

/// The exit code of mistakes on the command line: 2 would be an alarm.
pub(super) const USAGE: u8 = 3;

/// Arguments of `opsd check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 ok, 1 warning, 2 critical, 3 unknown or a mistake in the\n\
                        configuration.\n\nExample:\n  opsd check main-db")]
pub struct Args {
    /// Which monitors [default: all]
    #[arg(value_name = "MONITOR")]
    monitors: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Runs it; the number is the exit code.
pub async fn run(args: Args, global: &Global, shutdown: &Shutdown) -> Result<u8> {
    let work = async |config| judge(&args, &config, shutdown).await;
    match global.with_config(Advice::LeftOut, shutdown, work).await {
        Ok(verdict) => Ok(verdict.exit_code()),
        Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::Terminated) => Err(error),
        Err(error) => {
            // Plugins are read on stdout, and by their first line.
            let lines: Vec<String> = error.to_string().lines().map(|line| line.trim().to_owned()).collect();
            let first = lines.join("; ").replace('|', "/");
            if args.json {
                output::json(&json!({
                    "verdict": Verdict::Unknown.as_str(),
                    "error": error.to_string(),
                    "hint": error.hint(),
                }))?;
            } else {
                output::text(format!("OPSD UNKNOWN - {first}"))?;
            }
            if let Some(hint) = error.hint() {
                output::note("hint: ", hint);
            }
            Ok(Verdict::Unknown.exit_code())
        }
    }
}

async fn judge(args: &Args, config: &config::Config, shutdown: &Shutdown) -> Result<Verdict> {
    let judged = collect(config, &args.monitors, shutdown).await?;
    let verdict = check::worst(judged.iter().map(|one| one.report.verdict));
    if args.json {
        output::json(&document(config, &judged))?;
    } else {
        let reports: Vec<(&str, &Report)> =
            judged.iter().map(|one| (one.config.name.as_str(), &one.report)).collect();
        output::text(check::plugin_line(&reports))?;
    }
    Ok(verdict)
}

/// All of it for programs.
pub(super) fn document(config: &config::Config, judged: &[Judged]) -> Value {
    let verdict = check::worst(judged.iter().map(|one| one.report.verdict));
    let monitors: Vec<Value> = judged.iter().map(Judged::json).collect();
    json!({ "site": config.site, "verdict": verdict.as_str(), "monitors": monitors })
}

/// A monitor, what it found, and what that means.
pub(super) struct Judged {
    pub(super) config: config::Monitor,
    pub(super) view: View,
    pub(super) report: Report,
}

/// Collects from the named monitors (or all) at once, and judges them.
pub(super) async fn collect(
    config: &config::Config,
    names: &[String],
    shutdown: &Shutdown,
) -> Result<Vec<Judged>> {
    let mut targets = monitor::open(config, names)?;
    let collected = async { Ok::<_, Error>(driver::collect_once(&mut targets).await) };
    let views = shutdown.guard(collected).await?;
    let now = SystemTime::now();
    let judge = |(target, view): (&monitor::Target, View)| {
        let config = target.watch.config.clone();
        let report = check::judge(&config, &view, now);
        Judged { config, view, report }
    };
    Ok(targets.iter().zip(views).map(judge).collect())
}

impl Judged {
    fn json(&self) -> Value {
        let findings: Vec<Value> = self
            .report
            .findings
            .iter()
            .map(|Finding { verdict, text, hint }| {
                json!({ "verdict": verdict.as_str(), "text": text, "hint": hint })
            })
            .collect();
        let figures: Vec<Value> = self
            .report
            .figures
            .iter()
            .map(|figure| json!({ "series": figure.series, "value": figure.value }))
            .collect();
        let failure = self.view.last.as_ref().and_then(|last| last.failure.as_ref());
        let lacks: Vec<Value> = self
            .view
            .snapshot
            .iter()
            .flat_map(|snapshot| &snapshot.concerns)
            .filter_map(|concern| Some((concern.name, concern.failure.as_ref()?)))
            .map(|(name, failure)| {
                json!({
                    "concern": name,
                    "reason": failure.reason.as_str(),
                    "error": failure.error.to_string(),
                    "hint": failure.error.hint(),
                })
            })
            .collect();
        json!({
            "monitor": self.config.name,
            "kind": self.config.kind.as_str(),
            "verdict": self.report.verdict.as_str(),
            "reason": failure.map(|failure| failure.reason.as_str()),
            "findings": findings,
            "figures": figures,
            "lacks": lacks,
        })
    }
}
