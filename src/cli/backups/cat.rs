//! `opsd backups cat`: one stream, decrypted and decompressed.

use std::sync::Arc;

use chrono::Utc;

use crate::cli::output;
use crate::config::Config;
use crate::error::{Context, Error, Result};
use crate::printable;
use crate::set::manifest::{Manifest, Stream};
use crate::set::{catalog, seal, set_prefix};
use crate::store::Store;

/// Arguments of `opsd backups cat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, one table to rescue:\n  \
    opsd backups cat 20261121T030000Z-7f3a app data-1 > data-1.pgdump\n  \
    pg_restore --data-only --table=accounts -f accounts.sql data-1.pgdump")]
pub struct Args {
    /// Set, by its id, the beginning of it, or JOB/ID
    id: String,
    /// Database (with the stream `globals`: any)
    database: String,
    /// Stream: schema, data-rest, data-1, …, full, proof or globals (`show` lists them)
    stream: String,
}

/// Writes the stream's plaintext to stdout. It fails after the fact where the end does not agree
/// with the manifest: what was written by then is not to be trusted.
pub async fn run(args: &Args, config: &Config, store: Arc<dyn Store>) -> Result<()> {
    let identities = crate::restore::identities(config)?;
    let entry = super::show::entry(config, &*store, &args.id).await?;
    let set = catalog::load_entry(&*store, &config.encryption.trusted, entry).await?;
    if let Some(doubt) = set.reliance(Utc::now()).doubt(&set.manifest.id) {
        output::note("warning: ", doubt);
    }
    let stream = stream(&set.manifest, &args.database, &args.stream)?;
    refuse_at_terminal(stream)?;
    let prefix = set_prefix(&set.entry.site, &set.entry.job, &set.entry.id);
    let mut plaintext = seal::read_stream(store, &prefix, stream, identities, |_| ())?;
    let copied = tokio::task::spawn_blocking(move || output::copy(&mut plaintext)).await;
    copied
        .map_err(|e| Error::new(format!("reading stopped: {e}")))?
        .with_context(|| format!("stream {}", stream.name))
}

/// An archive would garble a terminal, and nobody reads it there; roles and proofs are text.
fn refuse_at_terminal(stream: &Stream) -> Result<()> {
    if !output::is_stdout_terminal() || ["globals", "proof"].contains(&stream.name.as_str()) {
        return Ok(());
    }
    Err(Error::usage(format!("stream {} is binary, and stdout is a terminal", stream.name))
        .with_hint("write it to a file (> FILE), or look into it (| pg_restore -l)"))
}

/// The stream that is meant, or what there is instead.
fn stream<'m>(manifest: &'m Manifest, database: &str, name: &str) -> Result<&'m Stream> {
    if name == "globals" {
        return manifest.globals.as_ref().ok_or_else(|| {
            Error::new("the set holds no globals").with_hint("its warnings tell why: `opsd backups show`")
        });
    }
    let Some(found) = manifest.databases.iter().find(|d| d.name == database) else {
        let names: Vec<String> = manifest.databases.iter().map(|d| format!("{:?}", d.name)).collect();
        return Err(Error::usage(format!("the set holds no database {}", printable::word(database)))
            .with_hint(format!("it holds {}", names.join(", "))));
    };
    let streams = || found.streams.iter().chain(&found.proof_object);
    streams().find(|s| s.name == name).ok_or_else(|| {
        let names: Vec<&str> = streams().map(|s| s.name.as_str()).collect();
        Error::usage(format!("database {database:?} has no stream {name:?} in this set"))
            .with_hint(format!("it has {}", names.join(", ")))
    })
}
