//! `opsd metrics`: the catalogue of what is exported.

use serde_json::json;

use super::output;
use crate::error::Result;
use crate::metrics;

/// Arguments of `opsd metrics`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  opsd metrics --markdown > docs/metrics.md")]
pub struct Args {
    /// Print the page that docs/metrics.md is
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    if args.markdown {
        return output::text(metrics::markdown());
    }
    if args.json {
        let rows = metrics::all().map(|metric| {
            json!({
                "name": metric.name,
                "series": metric.series(),
                "type": metric.kind.as_str(),
                "unit": metric.unit.suffix(),
                "labels": metric.labels,
                "states": metric.states,
                "help": metric.help,
            })
        });
        return output::json(&rows.collect::<Vec<_>>());
    }
    let lines: Vec<String> = metrics::all()
        .map(|metric| output::wrapped(&format!("{}  ", metric.series()), metric.help))
        .collect();
    output::text(lines.concat())
}
