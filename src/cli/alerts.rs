//! `opsd alerts`: what can be known of rule files.

use std::path::PathBuf;

use serde_json::json;

use super::{Global, output};
use crate::error::Result;
use crate::rules::doctor::{Finding, Prometheus, State, examine};
use crate::rules::{self, Rule};
use crate::shutdown::Shutdown;

/// Arguments of `opsd alerts`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Find rules that can never fire, by asking a live Prometheus
    #[command(after_help = "Exit codes: 0 every rule can fire, 1 one cannot, or Prometheus does not\n\
                            answer.\n\nExample:\n  opsd alerts doctor /etc/prometheus/rules/*.yml")]
    Doctor(Doctor),
}

#[derive(Debug, clap::Args)]
struct Doctor {
    /// Rule files, opsd's or any others
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Where Prometheus is
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090")]
    prometheus: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Runs it; the number is the exit code.
pub async fn run(args: Args, global: &Global, shutdown: &Shutdown) -> Result<u8> {
    let Command::Doctor(args) = args.command;
    let mut rules: Vec<Rule> = Vec::new();
    for file in &args.files {
        rules.extend(rules::read(file)?);
    }
    let prometheus = Prometheus::new(&args.prometheus)?;
    let findings = shutdown.guard(examine(&prometheus, &rules)).await?;
    let never = findings.iter().filter(|finding| finding.state == State::Never).count();
    if args.json {
        let shown: Vec<_> = findings.iter().map(as_json).collect();
        output::json(&json!({ "rules": rules.len(), "never": never, "findings": shown }))?;
    } else {
        output::text(text(&findings, never, global.verbose > 0))?;
    }
    Ok(u8::from(never > 0))
}

/// What is quiet is many rules where little is watched, and seldom why somebody asks.
fn text(findings: &[Finding<'_>], never: usize, verbose: bool) -> String {
    let (quiet, others): (Vec<_>, Vec<_>) =
        findings.iter().partition(|finding| finding.state == State::Quiet);
    let mut text = String::new();
    if verbose {
        text.extend(quiet.iter().map(|finding| line(finding)));
    } else {
        for of_file in quiet.chunk_by(|one, other| one.rule.file == other.rule.file) {
            let names: Vec<&str> = of_file.iter().map(|finding| finding.rule.name.as_str()).collect();
            let file = of_file[0].rule.file.display();
            text.push_str(&output::wrapped("quiet  ", &format!("{file}: {}", names.join(", "))));
        }
    }
    text.extend(others.into_iter().map(line));
    let why = if quiet.is_empty() || verbose { "" } else { " (-v says why)" };
    let rules = output::counted(findings.len() as u64, "rule");
    text.push_str(&format!("{rules}, {never} can never fire, {} quiet{why}\n", quiet.len()));
    text
}

/// A line for each selector that matches nothing.
fn line(finding: &Finding<'_>) -> String {
    let word = match finding.state {
        State::Never => "NEVER",
        State::Quiet => "quiet",
        State::Matches => "part ",
    };
    let name = &finding.rule.name;
    let missing = finding.missing.iter().filter(|missing| match finding.state {
        // What it never can be is the reason; what is merely quiet is not.
        State::Never => missing.state == State::Never,
        State::Quiet => true,
        State::Matches => missing.state == State::Never,
    });
    missing.map(|missing| format!("{word}  {name}: {} {}\n", missing.selector.text, missing.why)).collect()
}

fn as_json(finding: &Finding<'_>) -> serde_json::Value {
    let missing: Vec<_> = finding
        .missing
        .iter()
        .map(|m| json!({ "selector": m.selector.text, "state": m.state.as_str(), "why": m.why }))
        .collect();
    json!({
        "file": finding.rule.file,
        "group": finding.rule.group,
        "rule": finding.rule.name,
        "alert": finding.rule.is_alert,
        "state": finding.state.as_str(),
        "missing": missing,
    })
}
