//! `opsd restore` without a place: what there is to restore.

use serde::Serialize;

use super::Args;
use crate::cli::output;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::printable;
use crate::set::catalog::{self, Entry, State};
use crate::shutdown::Shutdown;
use crate::store;

#[derive(Serialize)]
struct Contents {
    repository: String,
    jobs: Vec<Job>,
}

/// A job of a site.
#[derive(Serialize)]
struct Job {
    site: String,
    job: String,
    /// Complete sets.
    sets: usize,
    /// The newest of them.
    latest: Option<String>,
}

/// Lists the sites and jobs that the repository holds sets of.
pub async fn show(args: &Args, config: &Config, shutdown: &Shutdown) -> Result<()> {
    if !args.jobs.is_empty() || args.backup.is_some() || args.at.is_some() {
        return Err(Error::usage("nothing says where to restore to")
            .with_hint("--to NAME|URL restores into a server, --verify into one that is removed again"));
    }
    let store = shutdown.guard(store::open(&config.repository)).await?;
    let sites = shutdown.guard(catalog::sites(store.as_ref())).await?;
    let jobs: Vec<Job> = sites
        .into_iter()
        .flat_map(|(site, jobs)| jobs.into_iter().map(move |(job, sets)| of(site.clone(), job, &sets)))
        .collect();
    let contents = Contents { repository: store.describe(), jobs };
    if args.json {
        return output::json(&contents);
    }
    if contents.jobs.is_empty() {
        return output::text(format!("{} holds no sets", contents.repository));
    }
    let mut text = String::new();
    for Job { site, job, sets, latest } in &contents.jobs {
        let latest =
            latest.as_deref().map(|id| format!(", the newest {}", printable::line(id))).unwrap_or_default();
        let (site, job) = (printable::line(site), printable::line(job));
        let sets = output::counted(*sets as u64, "complete set");
        text.push_str(&output::wrapped(&format!("site {site}, job {job}: "), &format!("{sets}{latest}")));
    }
    output::text(text)?;
    output::note("", format!("site here: {}; opsd restore JOB --to NAME|URL, or --verify", config.site));
    Ok(())
}

fn of(site: String, job: String, sets: &[Entry]) -> Job {
    let complete: Vec<&Entry> = sets.iter().filter(|set| set.state == State::Complete).collect();
    Job { site, job, sets: complete.len(), latest: complete.last().map(|set| set.id.clone()) }
}
