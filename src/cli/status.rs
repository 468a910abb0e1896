//! `opsd status`: one screen for a person: each target, its verdict, the figure that matters.

use super::check::{Judged, collect, document};
use super::output;
use crate::check::{self, Verdict};
use crate::config::Config;
use crate::error::Result;
use crate::monitor;
use crate::shutdown::Shutdown;

/// Findings that are shown of one target; `opsd check NAME` shows all.
const FINDINGS: usize = 3;

/// Arguments of `opsd status`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0 whatever the verdict; `opsd check` exits with it.\n\nExample:\n  opsd status"
)]
pub struct Args {
    /// Print one JSON document, as `opsd check` does
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub async fn run(args: Args, config: &Config, shutdown: &Shutdown) -> Result<()> {
    let judged = collect(config, &[], shutdown).await?;
    if args.json {
        return output::json(&document(config, &judged));
    }
    let worst = check::worst(judged.iter().map(|one| one.report.verdict));
    let width = judged.iter().map(|one| one.config.name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{}: {}\n\n", config.site, worst.as_str());
    for one in &judged {
        text.push_str(&line(one, width));
    }
    output::text(text)
}

fn line(one: &Judged, width: usize) -> String {
    let samples = one.view.snapshot.as_ref().map(|snapshot| snapshot.samples.as_slice());
    let headline = samples.map_or_else(String::new, |samples| monitor::headline(&one.config.kind, samples));
    let head =
        format!("{:9}{:width$}  {:9}", mark(one.report.verdict), one.config.name, one.config.kind.as_str());
    let mut text = output::wrapped(&head, &headline);
    let findings = &one.report.findings;
    for finding in findings.iter().take(FINDINGS) {
        text.push_str(&output::wrapped(&format!("           {}: ", finding.verdict.as_str()), &finding.text));
        if let Some(hint) = &finding.hint {
            text.push_str(&output::wrapped("             hint: ", hint));
        }
    }
    if findings.len() > FINDINGS {
        text.push_str(&format!("           and {} more\n", findings.len() - FINDINGS));
    }
    let forbidden = &one.report.forbidden;
    if !forbidden.is_empty() {
        text.push_str(&output::wrapped("           not permitted: ", &forbidden.join(", ")));
    }
    let not_offered = &one.report.not_offered;
    if !not_offered.is_empty() {
        text.push_str(&output::wrapped("           not offered: ", &not_offered.join(", ")));
    }
    text
}

/// A word, not a colour; loud where it matters.
fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Unknown => "UNKNOWN",
        Verdict::Warning => "WARNING",
        Verdict::Critical => "CRITICAL",
    }
}
