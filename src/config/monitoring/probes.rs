//! The keys of monitors that need no server of the configuration: `backups`, and the probes.

use std::time::Duration;

use crate::config::raw;
use crate::config::walk::{Section, Walk};

/// `backups = { … }`.
#[derive(Debug, Clone, Default)]
pub struct Backups {
    /// Which jobs; empty means every job of the configuration and of the repository.
    pub jobs: Vec<String>,
    /// How old the newest set of a job may be whose own configuration does not say it.
    pub rpo: Option<Duration>,
}

pub(super) fn backups(walk: &mut Walk<'_>, monitor: &Section<'_>) -> Option<Backups> {
    let section = walk.section(monitor, "backups")?;
    walk.only(&section, &["jobs", "rpo"]);
    let mut backups = Backups::default();
    if let Some((place, jobs)) = walk.strings(&section, "jobs") {
        if jobs.is_empty() {
            walk.mistake(&place, "is an empty list", "leave it out for every job");
        }
        for job in jobs {
            if backups.jobs.contains(&job.value) {
                walk.mistake(&job.place, "this job is listed twice", "leave one of them out");
            } else if raw::name(walk, &job.place, &job.value) {
                backups.jobs.push(job.value);
            }
        }
    }
    if let Some((place, rpo)) = walk.duration(&section, "rpo") {
        super::positive(walk, &place, rpo);
        backups.rpo = Some(rpo);
    }
    Some(backups)
}
