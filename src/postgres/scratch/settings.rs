//! A scratch server's configuration: fast for one restore, reachable by nobody else.

use std::fmt::Write as _;
use std::path::Path;

use super::{READER, SUPERUSER};
use crate::postgres::limits;

const MIB: u64 = 1024 * 1024;
/// Least and most MiB of `shared_buffers`. Each page that is used for the first time costs a page fault, and a rehearsal
/// reads each row once: with 2 GiB, reading 1 GB back took 4.4 to 4.9 s, with 32 to 512 MiB 3.0 to 3.8 s, and the
/// restore before it the same. What does not fit is in the kernel's cache.
const SHARED_BUFFERS: (u64, u64) = (64, 256);

/// What the configuration depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizing {
    pub major: u32,
    /// Restore connections at a time.
    pub jobs: usize,
    /// Tables, indexes and sequences that there will be.
    pub objects: u64,
    /// Bytes that this host can spare.
    pub memory: u64,
    pub cores: usize,
}

/// `postgresql.conf`; complete, the one that initdb wrote is not read.
pub(super) fn postgresql_conf(root: &Path, sizing: Sizing, more: &[(&'static str, String)]) -> String {
    let connections = limits::scratch_connections(sizing.jobs);
    let locks = limits::scratch_locks(sizing.objects, connections);
    let shared = (sizing.memory / 8 / MIB).clamp(SHARED_BUFFERS.0, SHARED_BUFFERS.1);
    let maintenance = (sizing.memory / 8 / sizing.jobs.max(1) as u64).clamp(64 * MIB, 1024 * MIB) / MIB;
    let workers = sizing.cores.clamp(1, 64);
    let path = |name: &str| root.join(name).display().to_string();
    let mut settings = vec![
        ("listen_addresses", String::new()),
        ("unix_socket_directories", path("s")),
        ("hba_file", path("pg_hba.conf")),
        ("ident_file", path("pg_ident.conf")),
        ("port", super::PORT.to_string()),
        // Its data is worth nothing after a crash.
        ("fsync", "off".into()),
        ("full_page_writes", "off".into()),
        ("synchronous_commit", "off".into()),
        ("wal_level", "minimal".into()),
        ("max_wal_senders", "0".into()),
        ("archive_mode", "off".into()),
        ("max_wal_size", "4GB".into()),
        ("checkpoint_timeout", "1h".into()),
        ("autovacuum", "off".into()),
        ("restart_after_crash", "off".into()),
        ("shared_buffers", format!("{shared}MB")),
        ("maintenance_work_mem", format!("{maintenance}MB")),
        ("max_connections", connections.to_string()),
        ("max_locks_per_transaction", locks.to_string()),
        ("max_worker_processes", (workers + 4).to_string()),
        ("max_parallel_workers", workers.to_string()),
        ("max_parallel_maintenance_workers", (workers / 2).min(4).to_string()),
        ("jit", "off".into()),
        // Segments in the data directory go with it, /dev/shm is small in containers.
        ("dynamic_shared_memory_type", "mmap".into()),
        // A restored subscription must never start to replicate.
        ("max_logical_replication_workers", "0".into()),
        ("log_destination", "stderr".into()),
        ("logging_collector", "off".into()),
        // No rows in the log: errors of statements are their client's business.
        ("log_min_messages", "log".into()),
        ("log_min_error_statement", "panic".into()),
        ("log_checkpoints", "off".into()),
        ("lc_messages", "C".into()),
        ("timezone", "UTC".into()),
        ("log_timezone", "UTC".into()),
    ];
    if sizing.major >= 17 {
        // They would fire, and write, while they are being restored.
        settings.push(("event_triggers", "off".into()));
    }
    settings.extend(more.iter().cloned());
    let mut conf = String::new();
    for (name, value) in settings {
        // Writing to a String cannot fail.
        let _ = writeln!(conf, "{name} = '{}'", value.replace('\'', "''"));
    }
    conf
}

/// `pg_hba.conf`: the kernel says who is at the other end of the socket, nobody else gets in.
pub(super) fn pg_hba_conf() -> String {
    format!("local all {SUPERUSER},{READER} peer map=opsd\nlocal all all reject\n")
}

/// `pg_ident.conf`: the users that opsd and its tools run as may be either role.
pub(super) fn pg_ident_conf(os_users: &[&str]) -> String {
    let lines = os_users.iter().map(|os_user| {
        let os_user = os_user.replace('"', "\"\"");
        format!("opsd \"{os_user}\" {SUPERUSER}\nopsd \"{os_user}\" {READER}\n")
    });
    lines.collect()
}

/// Bytes that a scratch server may count on: what is available, within the control group's limit.
pub(super) fn available_memory() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| {
        let kilobytes = line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?;
        kilobytes.trim().parse::<u64>().ok()
    });
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|s| s.trim().parse().ok());
    // Unknown: what any server has.
    available.map_or(1024 * MIB, |kilobytes| kilobytes * 1024).min(limit.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(sizing: Sizing) -> String {
        postgresql_conf(Path::new("/x's"), sizing, &[])
    }

    #[test]
    fn sizes_stay_within_bounds() {
        let small = Sizing { major: 15, jobs: 1, objects: 0, memory: 0, cores: 0 };
        let text = conf(small);
        assert!(text.contains("shared_buffers = '64MB'"));
        assert!(text.contains("max_locks_per_transaction = '256'"));
        assert!(text.contains("unix_socket_directories = '/x''s/s'"));
        assert!(!text.contains("event_triggers"));
        let large = Sizing { major: 17, jobs: 4, objects: 10_000_000, memory: u64::MAX / 16, cores: 1000 };
        let text = conf(large);
        assert!(text.contains("shared_buffers = '256MB'"));
        assert!(text.contains("max_locks_per_transaction = '50000'"));
        assert!(text.contains("max_parallel_maintenance_workers = '4'"));
        assert!(text.contains("event_triggers = 'off'"));
    }

    #[test]
    fn nobody_else_gets_in() {
        assert!(pg_hba_conf().ends_with("local all all reject\n"));
        assert!(!pg_hba_conf().contains("trust"));
        assert!(pg_ident_conf(&["ro\"ot"]).starts_with("opsd \"ro\"\"ot\" opsd_scratch\n"));
    }
}
