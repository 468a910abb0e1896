//! A control group of its own for a sandbox, where one can be had: limits for all of its processes
//! together, and one file that ends them all.
//!
//! Only version 2 is used (<https://docs.kernel.org/admin-guide/cgroup-v2.html>). A group can be made
//! where the hierarchy may be written: by root, or where systemd delegates (`Delegate=yes`). A group
//! that holds processes cannot pass controllers on to groups in it, so the place is beside opsd's own
//! group where it cannot be within it.

use std::path::{Path, PathBuf};

use rustix::process::Pid;

use super::Limits;

/// Where the hierarchy of version 2 is mounted, alone or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A control group. Dropping it removes it, once its processes have ended.
#[derive(Debug)]
pub(super) struct ControlGroup {
    path: PathBuf,
    /// Whether memory and tasks are bounded.
    pub is_limited: bool,
}

impl ControlGroup {
    /// Makes one with these limits; nothing where none can be had.
    pub(super) fn create(name: &str, limits: Limits) -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        let mount = MOUNTS.into_iter().find(|m| Path::new(m).join("cgroup.controllers").exists())?;
        let own = Path::new(mount).join(own);
        let beside = own.parent().filter(|parent| parent.starts_with(mount)).map(Path::to_owned);
        let mut unlimited = None;
        for parent in [Some(own), beside].into_iter().flatten() {
            // Refused where the parent holds processes, or has these controllers already.
            let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+memory +pids");
            let path = parent.join(name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let mut group = Self { path, is_limited: false };
            let set = |file: &str, value: u64| std::fs::write(group.path.join(file), value.to_string());
            group.is_limited =
                set("memory.max", limits.memory).is_ok() && set("pids.max", limits.tasks).is_ok();
            // Memory that is swapped out would be more memory.
            let _ = set("memory.swap.max", 0);
            if group.is_limited {
                return Some(group);
            }
            unlimited.get_or_insert(group);
        }
        unlimited
    }

    /// Puts a process into it; what that process starts is in it, too.
    pub(super) fn add(&self, pid: Pid) -> std::io::Result<()> {
        std::fs::write(self.path.join("cgroup.procs"), pid.as_raw_nonzero().to_string())
    }

    /// Ends every process in it, from Linux 5.14 on.
    pub(super) fn kill(&self) {
        let _ = std::fs::write(self.path.join("cgroup.kill"), "1");
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // A group with processes stays; it costs nothing, and its processes are reported elsewhere.
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Where this machine lets a group be made; with the limits that its controllers take.
    #[test]
    fn a_group_has_its_limits_and_ends_all_that_is_in_it() {
        let limits = Limits { memory: 64 << 20, tasks: 50, free_space: 0 };
        let Some(group) = ControlGroup::create(&format!("opsd-test-{}", std::process::id()), limits) else {
            return;
        };
        let path = group.path.clone();
        if group.is_limited {
            let set = |file: &str| std::fs::read_to_string(path.join(file)).unwrap();
            assert_eq!((set("memory.max").trim(), set("pids.max").trim()), ("67108864", "50"));
        }
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        group.add(Pid::from_child(&child)).unwrap();
        if path.join("cgroup.kill").exists() {
            group.kill();
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        drop(group);
        assert!(!path.exists(), "the group is left behind");
    }
}
