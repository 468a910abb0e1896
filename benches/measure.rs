//! One process (or pipeline) measured: wall time, CPU time, peak memory; and one that goes on.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// What one run cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Seconds from start to end.
    pub wall: f64,
    /// CPU seconds of the process itself, without its children.
    pub own_cpu: f64,
    /// CPU seconds of the process and of the children it waited for.
    pub all_cpu: f64,
    /// Peak resident memory of the process itself, in bytes.
    pub peak: u64,
}

/// How often the peak is looked at; the kernel keeps it, so that only what grows in the last moment
/// of a process can be missed.
const LOOK: Duration = Duration::from_millis(5);

/// Runs a command, which must succeed, and returns its stdout and what it cost.
pub fn run(command: &mut Command) -> (String, Cost) {
    let out = tempfile::tempfile().expect("a temporary file");
    let err = tempfile::tempfile().expect("a temporary file");
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("duplicate"))
        .stderr(err.try_clone().expect("duplicate"));
    let begun = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let pid = Pid::from_child(&child);
    let mut cost = Cost::default();
    // The process stays a zombie until it is waited for, and its times can still be read.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while waitid(WaitId::Pid(pid), options).expect("waitid").is_none() {
        cost.peak = cost.peak.max(peak(child.id()));
        std::thread::sleep(LOOK);
    }
    cost.wall = begun.elapsed().as_secs_f64();
    (cost.own_cpu, cost.all_cpu) = cpu(child.id());
    let status = child.wait().expect("wait");
    let text = |mut file: std::fs::File| {
        use std::io::{Read, Seek};
        let mut text = String::new();
        file.rewind().expect("rewind");
        file.read_to_string(&mut text).expect("read");
        text
    };
    assert!(status.success(), "{command:?} ended with {status}:\n{}", text(err));
    (text(out), cost)
}

/// Peak resident memory of a process so far, in bytes.
pub fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// CPU seconds of a process so far, and with the children it waited for.
pub fn cpu(pid: u32) -> (f64, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; utime is the 12th field after it.
    let fields: Vec<f64> = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' ').map(|field| field.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let at = |i: usize| fields.get(i).copied().unwrap_or(0.0);
    ((at(11) + at(12)) / ticks, (at(11) + at(12) + at(13) + at(14)) / ticks)
}

/// The value below which this part of the values lies.
pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((part * last as f64).ceil() as usize).copied().unwrap_or(f64::NAN)
}

/// The middle one.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}
