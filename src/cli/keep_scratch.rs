//! `opsd keep-scratch`, which people do not call: a rehearsal starts it beside its scratch server, so that
//! the server and its rows go at once even if the rehearsal is killed.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::postgres::scratch;

/// Arguments of `opsd keep-scratch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The scratch server's directory
    directory: PathBuf,
}

/// Waits until the rehearsal is gone.
pub async fn run(args: Args) -> Result<()> {
    let kept = tokio::task::spawn_blocking(move || scratch::keep(std::io::stdin(), &args.directory));
    kept.await.map_err(Error::new)?
}
