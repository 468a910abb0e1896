//! `opsd exporter`: watch, and serve what is found to Prometheus.

use std::path::PathBuf;

use super::{Global, KeyAdvice, output};
use crate::error::Result;
use crate::exporter;
use crate::shutdown::Shutdown;

/// Arguments of `opsd exporter`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  opsd exporter\n  \
                        opsd exporter --textfile /var/lib/prometheus/node-exporter/opsd.prom")]
pub struct Args {
    /// Collect once and replace FILE, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    textfile: Option<PathBuf>,
}

/// Runs it.
pub async fn run(args: Args, global: &Global, shutdown: &Shutdown) -> Result<()> {
    let (config, warnings) = global.load_config(KeyAdvice::LeftOut, shutdown).await?;
    if let Some(file) = args.textfile {
        return global.with_warnings(warnings, exporter::textfile(&config, &file, shutdown)).await;
    }
    // Somebody reads a daemon's log, and not only when it fails.
    warnings.iter().for_each(|warning| output::note("warning: ", warning));
    let say = |address: &str| {
        if !global.quiet {
            output::say(format!("serving http://{address}/metrics"));
        }
    };
    exporter::run(&config, shutdown, say).await
}
