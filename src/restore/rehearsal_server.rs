//! The scratch server that a set is rehearsed on: where it is, how large, and what it loads.

use super::verify::{Uncontained, jobs, scratch_name};
use crate::config::BackupJob;
use crate::error::{Error, Result};
use crate::postgres::libraries;
use crate::postgres::scratch::{self, Scratch, ScratchOptions};
use crate::postgres::tools::ServerBinaries;
use crate::set::manifest::Manifest;

/// Bytes that a scratch server needs before it holds anything: its system catalogs and WAL.
const SCRATCH_OVERHEAD: u64 = 256 << 20;
/// This program again, which makes and keeps the sandbox; `cli::keep_scratch` is the other side.
const KEEPER: [&str; 2] = ["/proc/self/exe", "keep-scratch"];

/// Starts it, with the libraries that extensions of the set need. Where it does not start with them, it is started
/// without, and why is said.
pub(super) async fn start(
    job: &BackupJob,
    manifest: &Manifest,
    binaries: &ServerBinaries,
    uncontained: Uncontained,
) -> Result<(Scratch, Option<String>)> {
    let dir = &job.verify.scratch_dir;
    let needed = manifest.plain_bytes().saturating_mul(2).saturating_add(SCRATCH_OVERHEAD);
    let free = scratch::free_space(dir)?;
    if free < needed {
        return Err(Error::new(format!(
            "no space for a scratch server in {}: {} MiB free, about {} MiB needed",
            dir.display(),
            free >> 20,
            needed >> 20
        ))
        .with_hint(format!("set backup.{}.verify.scratch_dir to a larger disk", job.name)));
    }
    let tables = manifest.databases.iter().fold(0, |sum: u64, d| sum.saturating_add(d.tables));
    let extensions: Vec<&str> =
        manifest.databases.iter().flat_map(|d| &d.extensions).map(|e| e.name.as_str()).collect();
    let libraries = libraries::wanted(manifest.server.preloaded.as_deref(), &extensions, binaries)?;
    let cron = manifest.databases.iter().find(|d| d.extensions.iter().any(|e| e.name == libraries::CRON.0));
    let cron = cron.map(|database| scratch_name(&database.name));
    let options = ScratchOptions {
        scratch_dir: dir.clone(),
        user: job.verify.scratch_user.clone(),
        binaries: binaries.clone(),
        jobs: jobs(job),
        // A table comes with indexes, sequences and a TOAST table.
        objects: tables.saturating_mul(5).saturating_add(1_000),
        memory: None,
        settings: libraries::settings(&libraries, cron.as_deref()),
        keeper: KEEPER.map(str::to_owned).to_vec(),
        uncontained: uncontained == Uncontained::Allowed,
    };
    if libraries.is_empty() {
        return Ok((scratch::start(options).await?, None));
    }
    match scratch::start(options.clone()).await {
        Ok(scratch) => Ok((scratch, None)),
        Err(failure) => {
            let why = format!("the scratch server does not start with {}: {failure}", libraries.join(", "));
            Ok((scratch::start(ScratchOptions { settings: Vec::new(), ..options }).await?, Some(why)))
        }
    }
}
