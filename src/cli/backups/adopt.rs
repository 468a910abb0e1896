//! `opsd backups adopt`: sign sets of before signing began.

use std::sync::Arc;

use serde::Serialize;

use super::{entries, named, time};
use crate::backup::adopt;
use crate::cli::Global;
use crate::cli::output::{self, wrapped};
use crate::config::Config;
use crate::error::{Context, Result};
use crate::store::Store;

/// Arguments of `opsd backups adopt`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sets that you know, by their ids, the beginnings of them, or JOB/ID
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// A manifest that you vouch for, by its SHA-256 as the backup told it; not needed for a set that a trusted rehearsal
    /// proved
    #[arg(long, value_name = "HEX")]
    manifest_sha256: Vec<String>,
    /// Print what would be signed and sign nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    dry_run: bool,
    sets: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    job: String,
    id: String,
    databases: Vec<String>,
    manifest_sha256: String,
    adopted: bool,
}

/// Looks at all of them, prints, and signs them.
pub async fn run(args: &Args, config: &Config, store: Arc<dyn Store>, global: &Global) -> Result<()> {
    let jobs = entries(config, store.as_ref(), &[]).await?;
    let mut sets = Vec::new();
    for id in &args.ids {
        let entry = named(&jobs, id)?.clone();
        let on = format!("set {}/{} cannot be adopted", entry.job, entry.id);
        sets.push(adopt::look(store.as_ref(), config, entry, &args.manifest_sha256).await.context(on)?);
    }
    let mut document = Document { dry_run: args.dry_run, sets: Vec::new() };
    for set in &sets {
        let (job, id) = (set.entry.job.clone(), set.entry.id.clone());
        let databases: Vec<String> = set.manifest.databases.iter().map(|d| d.name.clone()).collect();
        if !args.dry_run {
            adopt::adopt(&store, config, set).await?;
        }
        if !args.json && !global.quiet {
            let done = if args.dry_run { "would adopt" } else { "adopted" };
            let what = format!(
                "of {}, database {}, manifest {}",
                time(set.manifest.started),
                databases.join(", "),
                set.manifest_sha256
            );
            output::text(wrapped(&format!("  {done}  {job}/{id}  "), &what))?;
        }
        let manifest_sha256 = set.manifest_sha256.clone();
        document.sets.push(Line { job, id, databases, manifest_sha256, adopted: !args.dry_run });
    }
    if args.json { output::json(&document) } else { Ok(()) }
}
