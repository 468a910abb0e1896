//! This host: disks that hold what opsd needs and what is configured, load, memory.
//!
//! A disk may hang for ever (a network file system that is gone), and the thread that asks hangs with
//! it. So disks are asked by one thread at a time, and while that one hangs, there are no figures.
//! Deliberately absent: everything else that node_exporter tells.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::task::JoinHandle;

use super::{Collected, Concern, Failure, Monitor, Reason};
use crate::config::monitoring::{Bound, Host};
use crate::config::{Config, Location, Threshold};
use crate::error::{Context, Error, Result};
use crate::metrics::{self, Metric, Sample};

/// When a host is bad unless the configuration says otherwise; load depends on what it is for.
pub static THRESHOLDS: &[Threshold] = &[
    above(&metrics::HOST_DISK_USED, 0.85, 0.95),
    Threshold::of(&metrics::HOST_DISK_INODES_USED, Some(Bound::Above(0.85)), None),
    above(&metrics::HOST_MEMORY_USED, 0.9, 0.97),
];

const fn above(metric: &'static Metric, warning: f64, critical: f64) -> Threshold {
    let (warning, critical) = (Some(Bound::Above(warning)), Some(Bound::Above(critical)));
    Threshold::of(metric, warning, critical)
}

/// A monitor of this host.
pub struct Target {
    name: String,
    /// Paths that must be there, and those that may still have to be created.
    disks: Vec<(PathBuf, bool)>,
    asking: Option<JoinHandle<(Vec<Sample>, Option<Error>)>>,
}

/// A monitor that has read nothing yet.
pub fn open(name: &str, config: &Config, options: &Host) -> Target {
    let mut needed: BTreeSet<PathBuf> =
        config.backup.values().map(|job| job.verify.scratch_dir.clone()).collect();
    if let Location::File(path) = &config.repository.location {
        needed.insert(path.clone());
    }
    let own = options.disks.iter().map(|path| (path.clone(), true));
    let others = needed.into_iter().filter(|path| !options.disks.contains(path)).map(|path| (path, false));
    Target { name: name.to_owned(), disks: own.chain(others).collect(), asking: None }
}

#[async_trait]
impl Monitor for Target {
    fn name(&self) -> &str {
        &self.name
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let mut samples = Vec::new();
        let memory = memory().map(|found| samples.extend(found));
        let load = load().map(|found| samples.extend(found));
        let disks = self.disks().await.and_then(|(found, broken)| {
            samples.extend(found);
            broken.map_or(Ok(()), |error| Err(Failure::new(Reason::Refused, error)))
        });
        let refused = |error: Error| Failure::new(Reason::Refused, error);
        let concerns = vec![
            Concern { name: "memory", failure: memory.err().map(refused) },
            Concern { name: "load", failure: load.err().map(refused) },
            Concern { name: "disks", failure: disks.err() },
        ];
        Ok(Collected { samples, concerns })
    }
}

impl Target {
    async fn disks(&mut self) -> Result<(Vec<Sample>, Option<Error>), Failure> {
        if self.asking.as_ref().is_some_and(|asking| !asking.is_finished()) {
            return Err(Failure::new(
                Reason::Timeout,
                Error::new("a disk has not answered since the last time"),
            ));
        }
        let disks = self.disks.clone();
        let asking = self.asking.insert(tokio::task::spawn_blocking(move || ask(&disks)));
        let answer = asking.await.map_err(|e| Failure::new(Reason::Internal, Error::new(e)));
        self.asking = None;
        answer
    }
}

fn ask(disks: &[(PathBuf, bool)]) -> (Vec<Sample>, Option<Error>) {
    let mut samples = Vec::new();
    let mut broken = None;
    for (path, must_exist) in disks {
        match disk(path, *must_exist) {
            Ok(found) => samples.extend(found),
            Err(error) => {
                broken.get_or_insert(error);
            }
        }
    }
    (samples, broken)
}

fn disk(path: &Path, must_exist: bool) -> Result<Vec<Sample>> {
    // What opsd creates when it needs it will lie where its parent lies.
    let there = match must_exist {
        true => path,
        false => path.ancestors().find(|path| path.exists()).unwrap_or(path),
    };
    let found = rustix::fs::statvfs(there)
        .map_err(std::io::Error::from)
        .with_context(|| format!("cannot look at the disk of {}", path.display()))?;
    let name = path.display().to_string();
    let sample = |metric, value| Sample::new(metric, [&name], value);
    let block = found.f_frsize as f64;
    let (size, free) = (found.f_blocks as f64, found.f_bavail as f64);
    let used = found.f_blocks.saturating_sub(found.f_bfree) as f64;
    let mut samples =
        vec![sample(&metrics::HOST_DISK_SIZE, size * block), sample(&metrics::HOST_DISK_FREE, free * block)];
    // What is kept for root is neither used nor to be had.
    if used + free > 0.0 {
        samples.push(sample(&metrics::HOST_DISK_USED, used / (used + free)));
    }
    if found.f_files > 0 {
        let used = found.f_files.saturating_sub(found.f_ffree) as f64;
        samples.push(sample(&metrics::HOST_DISK_INODES_USED, used / found.f_files as f64));
    }
    Ok(samples)
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

fn memory() -> Result<Vec<Sample>> {
    let of = |text: &str, name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let number: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(number * 1024.0)
    };
    let text = read("/proc/meminfo")?;
    let (Some(total), Some(available)) = (of(&text, "MemTotal"), of(&text, "MemAvailable")) else {
        return Err(Error::new("/proc/meminfo tells neither MemTotal nor MemAvailable"));
    };
    let mut samples = vec![
        Sample::plain(&metrics::HOST_MEMORY, total),
        Sample::plain(&metrics::HOST_MEMORY_AVAILABLE, available),
    ];
    if total > 0.0 {
        samples.push(Sample::plain(&metrics::HOST_MEMORY_USED, 1.0 - available / total));
    }
    for (metric, name) in [(&metrics::HOST_SWAP, "SwapTotal"), (&metrics::HOST_SWAP_FREE, "SwapFree")] {
        samples.extend(of(&text, name).map(|value| Sample::plain(metric, value)));
    }
    Ok(samples)
}

fn load() -> Result<Vec<Sample>> {
    let text = read("/proc/loadavg")?;
    let numbers: Vec<f64> = text.split_whitespace().take(3).filter_map(|word| word.parse().ok()).collect();
    let [one, five, fifteen] = numbers[..] else {
        return Err(Error::new("/proc/loadavg does not begin with three numbers"));
    };
    let mut samples: Vec<Sample> = [("1", one), ("5", five), ("15", fifteen)]
        .map(|(minutes, load)| Sample::new(&metrics::HOST_LOAD, [minutes], load))
        .into();
    if let Ok(processors) = std::thread::available_parallelism() {
        samples.push(Sample::plain(&metrics::HOST_PROCESSORS, processors.get() as f64));
    }
    let stat = read("/proc/stat")?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    samples.extend(boot.map(|boot| Sample::plain(&metrics::HOST_BOOT_TIMESTAMP, boot)));
    Ok(samples)
}

/// `fullest disk 40 %, memory 62 %, load 0.5`.
pub fn headline(samples: &[Sample]) -> String {
    let of = |metric: &'static Metric| samples.iter().filter(move |s| s.metric == metric).map(|s| s.value);
    let mut parts = Vec::new();
    let per_cent = |ratio: f64| format!("{:.0} %", ratio * 100.0);
    parts.extend(
        of(&metrics::HOST_DISK_USED).reduce(f64::max).map(|r| format!("fullest disk {}", per_cent(r))),
    );
    parts.extend(of(&metrics::HOST_MEMORY_USED).next().map(|r| format!("memory {}", per_cent(r))));
    parts.extend(of(&metrics::HOST_LOAD).next().map(|load| format!("load {load}")));
    parts.join(", ")
}
