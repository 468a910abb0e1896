//! `opsd completions`: from the same definitions as the command line itself.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, output};
use crate::error::Result;

/// Arguments of `opsd completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  opsd completions bash > /etc/bash_completion.d/opsd")]
pub struct Args {
    /// Which shell
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "opsd", &mut script);
    output::text(String::from_utf8_lossy(&script))
}
