//! `opsd exporter`: watch, and serve what is found to Prometheus.

use std::path::PathBuf;

use super::{Global, output};
use crate::config::raw::ONE_RECIPIENT;
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
    let (config, mut warnings, advice) = global.load_config(shutdown).await?;
    if let Some(file) = args.textfile {
        return global.with_warnings(warnings, exporter::textfile(&config, &file, shutdown)).await;
    }
    // Somebody reads a daemon's log, and not only when it fails. Of keys it needs none.
    warnings.extend(advice.into_iter().filter(|advice| !advice.contains(ONE_RECIPIENT)));
    warnings.iter().for_each(|warning| output::note("warning: ", warning));
    let say = |address: &str| {
        if !global.quiet {
            output::say(format!("serving http://{address}/metrics"));
        }
    };
    exporter::run(&config, shutdown, say).await
}
