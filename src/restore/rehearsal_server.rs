//! The scratch server that a set is rehearsed on: where it is, how large, and what it loads.

use super::verify::{Uncontained, jobs, scratch_name};
use std::path::Path;

use crate::config::{BackupJob, Client, Config};
use crate::container;
use crate::error::{Error, Result};
use crate::postgres::libraries;
use crate::postgres::scratch::{self, Programs, Scratch, ScratchOptions, image};
use crate::postgres::tools::{self, ServerBinaries, Tools};
use crate::set::manifest::Manifest;

/// Bytes that a scratch server needs before it holds anything: its system catalogs and WAL.
const SCRATCH_OVERHEAD: u64 = 256 << 20;
/// This program again, which makes and keeps the sandbox; `cli::keep_scratch` is the other side.
const KEEPER: [&str; 2] = ["/proc/self/exe", "keep-scratch"];

/// A server for a set, and what goes with it.
pub(super) struct Found {
    pub(super) scratch: Scratch,
    /// Client tools that fit it.
    pub(super) tools: Tools,
    /// Where its programs are, for people.
    pub(super) place: String,
    /// What the operator should know.
    pub(super) warnings: Vec<String>,
}

/// A server for a set, and tools that fit it: of the newer of the source's and pg_dump's
/// major, because an older pg_restore refuses the archive and an older server some of its settings.
///
/// An image that is named, or that the source runs in, goes before this host's programs: it has the extensions and the
/// locales that the set needs. Where no container of the source's can be had, this host's programs are taken; one that
/// somebody named is meant.
pub(super) async fn find(
    config: &Config,
    job: &BackupJob,
    manifest: &Manifest,
    uncontained: Uncontained,
) -> Result<Found> {
    let major = manifest.dump_major().max(manifest.server.version_num / 10_000);
    let in_container = match wanted_image(config, job).await {
        None => None,
        Some(Ok((client, name))) => Some(in_image(job, manifest, major, client, &name, uncontained).await),
        Some(Err(error)) => Some(Err(error)),
    };
    let no_container = match in_container {
        Some(Ok(found)) => return Ok(found),
        Some(Err(error)) if job.verify.image.is_some() => {
            return Err(error.context("no throw-away container").with_hint(format!(
                "backup.{}.verify.image names an image that this host has, and scratch_dir a directory that the engine sees",
                job.name
            )));
        }
        Some(Err(error)) => Some(error.context("no throw-away container")),
        None => None,
    };
    let configured = config.postgres.get(&job.postgres).and_then(|p| p.bin_dir.as_deref());
    let binaries = match (binaries(configured, major).await, no_container) {
        (Ok(binaries), None) => (binaries, Vec::new()),
        (Ok(binaries), Some(why)) => {
            let said = format!("{why}; the server's programs of this host are used");
            (binaries, vec![said])
        }
        (Err(error), None) => return Err(error),
        // The first says what somebody wanted, the second what else would do.
        (Err(error), Some(why)) => {
            let hint = format!(
                "name an image of this host in backup.{}.verify.image, or install: {}",
                job.name,
                error.hint().unwrap_or_default()
            );
            return Err(Error::new(error).context(why).with_hint(hint));
        }
    };
    let (binaries, mut warnings) = binaries;
    let tools = binaries.tools();
    let place = format!("programs of this host, {}", binaries.bin_dir.display());
    let (scratch, without) = start(job, manifest, &Programs::Host(binaries), uncontained).await?;
    warnings.extend(without);
    Ok(Found { scratch, tools, place, warnings })
}

/// The image that a rehearsal is to run in: the one that is named, else the one of the container that the source is in,
/// or was until somebody stopped it.
async fn wanted_image(config: &Config, job: &BackupJob) -> Option<Result<(Client, String)>> {
    let server = config.postgres.get(&job.postgres).and_then(|server| server.container.as_ref());
    if let Some(name) = &job.verify.image {
        let client = container::client(server.and_then(|wanted| wanted.client));
        return Some(client.map(|client| (client, name.clone())));
    }
    Some(container::image_of(server?).await)
}

async fn in_image(
    job: &BackupJob,
    manifest: &Manifest,
    major: u32,
    client: Client,
    name: &str,
    uncontained: Uncontained,
) -> Result<Found> {
    if !container::is_here(client).await {
        return Err(Error::new(format!(
            "{} leads to another host, and a rehearsal's directory is on this one",
            client.program()
        )));
    }
    if let Err(error) = image::sweep(client, &job.verify.scratch_dir).await {
        tracing::warn!("cannot look for containers that earlier rehearsals left: {error}");
    }
    let image = image::look(client, name).await?;
    if image.major < major {
        return Err(Error::new(format!(
            "image {name} holds PostgreSQL {}, and the set needs {major} or newer",
            image.version
        )));
    }
    let programs = Programs::Image(image.clone());
    let (scratch, without) = start(job, manifest, &programs, uncontained).await?;
    let tools = match tools::find(image.major, None, &[]).await {
        Ok(tools) => tools,
        // The server's socket is where it is here.
        Err(_) => tools::find(image.major, None, &scratch.exec(&image)).await?,
    };
    let place = format!("a throw-away container of image {}, {}", image.name, client.program());
    Ok(Found { scratch, tools, place, warnings: without.into_iter().collect() })
}

async fn binaries(configured: Option<&Path>, major: u32) -> Result<ServerBinaries> {
    if let Some(dir) = configured
        && let Ok(found) = tools::find_server(major, Some(dir)).await
    {
        return Ok(found);
    }
    tools::find_server(major, None).await
}

/// Starts it, with the libraries that extensions of the set need. Where it does not start with them, it is started
/// without, and why is said.
pub(super) async fn start(
    job: &BackupJob,
    manifest: &Manifest,
    programs: &Programs,
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
    let libraries = libraries::wanted(manifest.server.preloaded.as_deref(), &extensions, programs)?;
    let cron = manifest.databases.iter().find(|d| d.extensions.iter().any(|e| e.name == libraries::CRON.0));
    let cron = cron.map(|database| scratch_name(&database.name));
    let options = ScratchOptions {
        scratch_dir: dir.clone(),
        user: job.verify.scratch_user.clone(),
        programs: programs.clone(),
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
