//! Looking at processes by /proc: who is whose child, what shows in a process list, who is still there.

use std::path::Path;
use std::time::{Duration, Instant};

/// A loaded machine takes seconds; what takes longer never happens.
const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until something is true, and fails with `what` when it never is.
pub fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "waited for ever: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One process, told from a later one with the same number by its start time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    started: u64,
}

impl Process {
    fn read(pid: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if fields.first() == Some(&"Z") {
            return None;
        }
        Some(Process { pid, parent: fields.get(1)?.parse().ok()?, started: fields.get(19)?.parse().ok()? })
    }

    /// Whether it still runs.
    pub fn lives(&self) -> bool {
        Process::read(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Its arguments, separated by spaces.
    pub fn command_line(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    }
}

/// Every process there is, zombies aside.
pub fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").expect("read /proc");
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).filter_map(Process::read).collect()
}

/// Children, grandchildren and so on of a process.
pub fn descendants(of: u32) -> Vec<Process> {
    let all = all();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|p| p.parent == parent) {
            parents.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}

/// Processes that were started by a scratch server below `scratch_dir`, whoever is their parent now.
pub fn of_scratch(scratch_dir: &Path) -> Vec<Process> {
    with_environment(&format!("OPSD_SCRATCH={}", scratch_dir.display()))
}

/// Processes whose environment holds this text.
pub fn with_environment(mark: &str) -> Vec<Process> {
    let is_marked = |process: &Process| {
        let environment = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        environment.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    all().into_iter().filter(is_marked).collect()
}
