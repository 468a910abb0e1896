//! `opsd config`: a starter file, every mistake at once, the resolved settings.

use std::path::PathBuf;

use super::{Global, output};
use crate::config::finding::mistakes_error;
use crate::config::load;
use crate::error::Result;

/// Arguments of `opsd config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Report every mistake in the configuration
    Check,
}

/// Runs it.
pub fn run(args: Args, global: &Global) -> Result<()> {
    match args.action {
        Action::Check => check(global.config.clone()),
    }
}

fn check(explicit: Option<PathBuf>) -> Result<()> {
    let (path, parsed) = load::read(explicit.as_deref())?;
    for warning in &parsed.warnings {
        output::say(format!("warning: {warning}"));
    }
    if !parsed.mistakes.is_empty() {
        return Err(mistakes_error(&path, &parsed.mistakes));
    }
    output::text(format!("{}: ok", path.display()))
}
