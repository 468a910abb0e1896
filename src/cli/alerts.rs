//! `opsd alerts`: what can be known of rule files.

use std::path::PathBuf;

use serde_json::json;

use super::output;
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
pub async fn run(args: Args, shutdown: &Shutdown) -> Result<u8> {
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
        let mut text: String = findings.iter().map(line).collect();
        let quiet = findings.iter().filter(|finding| finding.state == State::Quiet).count();
        text.push_str(&format!(
            "{}, {never} can never fire, {quiet} quiet\n",
            output::counted(rules.len() as u64, "rule")
        ));
        output::text(text)?;
    }
    Ok(u8::from(never > 0))
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
