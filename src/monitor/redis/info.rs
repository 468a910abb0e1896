//! `INFO`, read: text in, figures out. Pure.
//!
//! A field that a version does not have leaves its figure out. What cannot be a number is left out,
//! too: one strange field is not worth the other fifty.

use std::collections::HashMap;

use crate::metrics::{self, Metric, Sample, states};

/// Fewer reads than this say nothing about a ratio: one more would change it by a per cent.
const READS_MIN: f64 = 100.0;

/// The fields of an answer.
pub struct Info<'a> {
    fields: HashMap<&'a str, &'a str>,
}

/// What the next collection compares with.
#[derive(Debug, Clone, PartialEq)]
pub struct Reads {
    run: String,
    hits: f64,
    misses: f64,
}

impl<'a> Info<'a> {
    /// Splits an answer; none if it is none.
    pub fn parse(text: &'a str) -> Option<Self> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let fields: HashMap<_, _> = lines.filter_map(|line| line.trim_end().split_once(':')).collect();
        fields.contains_key("redis_version").then_some(Self { fields })
    }

    /// A field's text.
    pub fn text(&self, field: &str) -> Option<&'a str> {
        self.fields.get(field).copied()
    }

    /// A field's number.
    pub fn number(&self, field: &str) -> Option<f64> {
        self.text(field)?.parse().ok().filter(|number: &f64| number.is_finite())
    }

    /// Whether keys are removed when memory is full, which is what caches are for; none where the server does not
    /// tell.
    pub fn evicts(&self) -> Option<bool> {
        self.text("maxmemory_policy").map(|policy| policy != "noeviction")
    }

    /// What is said of itself by a server that is neither a primary nor a replica.
    pub fn strange_role(&self) -> Option<String> {
        let known = "a primary's and a replica's figures are not judged";
        match self.text("role") {
            Some("master" | "slave") => None,
            Some(role) => {
                let role: String = role.chars().take(30).collect();
                Some(format!("the server's role {role:?} is not known; {known}"))
            }
            None => {
                let mode = self.text("server_mode").or(self.text("redis_mode")).unwrap_or("unknown");
                let mode: String = mode.chars().take(30).collect();
                Some(format!("the server tells no role, and is in mode {mode:?}; {known}"))
            }
        }
    }

    fn flag(&self, field: &str) -> Option<bool> {
        self.number(field).map(|number| number != 0.0)
    }

    /// The server's clock, where it says; else ours.
    fn now(&self, ours: f64) -> f64 {
        self.number("server_time_usec").map_or(ours, |micros| micros / 1e6)
    }

    /// Reads so far, to compare with later.
    pub fn reads(&self) -> Option<Reads> {
        Some(Reads {
            run: self.text("run_id")?.to_owned(),
            hits: self.number("keyspace_hits")?,
            misses: self.number("keyspace_misses")?,
        })
    }
}

/// Hits against reads in between; none where there were few, or the counters began anew.
pub fn hit_ratio(before: &Reads, after: &Reads) -> Option<f64> {
    let (hits, misses) = (after.hits - before.hits, after.misses - before.misses);
    let same = before.run == after.run && hits >= 0.0 && misses >= 0.0;
    (same && hits + misses >= READS_MIN).then(|| hits / (hits + misses))
}

/// Every figure that an answer holds; `ours` is this host's clock.
pub fn samples(info: &Info<'_>, ours: f64, address: &str) -> Vec<Sample> {
    let mut samples = Vec::new();
    server(info, ours, address, &mut samples);
    memory(info, &mut samples);
    for (metric, field) in PLAIN {
        samples.extend(info.number(field).map(|value| Sample::plain(metric, value)));
    }
    persistence(info, &mut samples);
    replication(info, ours, &mut samples);
    databases(info, &mut samples);
    samples
}

/// Fields that are figures as they stand.
static PLAIN: &[(&Metric, &str)] = &[
    (&metrics::REDIS_LOADING, "loading"),
    (&metrics::REDIS_MEMORY_USED, "used_memory"),
    (&metrics::REDIS_MEMORY_PEAK, "used_memory_peak"),
    (&metrics::REDIS_MEMORY_RESIDENT, "used_memory_rss"),
    (&metrics::REDIS_MEMORY_FRAGMENTATION, "mem_fragmentation_ratio"),
    (&metrics::REDIS_KEYSPACE_HITS, "keyspace_hits"),
    (&metrics::REDIS_KEYSPACE_MISSES, "keyspace_misses"),
    (&metrics::REDIS_EVICTED_KEYS, "evicted_keys"),
    (&metrics::REDIS_EXPIRED_KEYS, "expired_keys"),
    (&metrics::REDIS_CLIENTS, "connected_clients"),
    (&metrics::REDIS_CLIENTS_LIMIT, "maxclients"),
    (&metrics::REDIS_CLIENTS_BLOCKED, "blocked_clients"),
    (&metrics::REDIS_CONNECTIONS, "total_connections_received"),
    (&metrics::REDIS_CONNECTIONS_REJECTED, "rejected_connections"),
    (&metrics::REDIS_COMMANDS, "total_commands_processed"),
    (&metrics::REDIS_ERROR_REPLIES, "total_error_replies"),
    (&metrics::REDIS_RECEIVED, "total_net_input_bytes"),
    (&metrics::REDIS_SENT, "total_net_output_bytes"),
    (&metrics::REDIS_RDB_SAVED_TIMESTAMP, "rdb_last_save_time"),
    (&metrics::REDIS_RDB_CHANGES, "rdb_changes_since_last_save"),
    (&metrics::REDIS_RDB_SAVING, "rdb_bgsave_in_progress"),
    (&metrics::REDIS_AOF_ENABLED, "aof_enabled"),
    (&metrics::REDIS_REPLICAS, "connected_slaves"),
];

fn server(info: &Info<'_>, ours: f64, address: &str, samples: &mut Vec<Sample>) {
    let software = info.text("server_name").unwrap_or("redis");
    let version = match software {
        "valkey" => info.text("valkey_version"),
        _ => info.text("redis_version"),
    };
    let mode = info.text("server_mode").or(info.text("redis_mode")).unwrap_or("standalone");
    samples.extend(version.map(|v| Sample::new(&metrics::REDIS_SERVER, [software, v, mode, address], 1.0)));
    if let Some(uptime) = info.number("uptime_in_seconds") {
        // Whole seconds of one clock: the difference does not flicker.
        let start = info.now(ours).floor() - uptime;
        samples.push(Sample::plain(&metrics::REDIS_START_TIMESTAMP, start));
    }
    let role = match info.text("role") {
        Some("master") => Some("primary"),
        Some("slave") => Some("replica"),
        _ => None,
    };
    if let Some(role) = role {
        samples.extend(states(&metrics::REDIS_ROLE_STATE, &[], role));
    }
    if let (Some(used), Some(limit)) = (info.number("connected_clients"), info.number("maxclients")) {
        let ratio = Sample::plain(&metrics::REDIS_CLIENTS_USED, used / limit);
        samples.extend((limit > 0.0).then_some(ratio));
    }
}

fn memory(info: &Info<'_>, samples: &mut Vec<Sample>) {
    let policy = info.text("maxmemory_policy");
    samples.extend(policy.map(|policy| Sample::new(&metrics::REDIS_EVICTION_POLICY, [policy], 1.0)));
    let Some(limit) = info.number("maxmemory").filter(|limit| *limit > 0.0) else { return };
    samples.push(Sample::plain(&metrics::REDIS_MEMORY_LIMIT, limit));
    let Some(used) = info.number("used_memory") else { return };
    // Buffers of replicas and of the append-only file do not count.
    let counted = used - info.number("mem_not_counted_for_evict").unwrap_or(0.0);
    let ratio = counted.max(0.0) / limit;
    samples.push(Sample::plain(&metrics::REDIS_MEMORY_USED_RATIO, ratio));
    if policy == Some("noeviction") {
        samples.push(Sample::plain(&metrics::REDIS_MEMORY_EXHAUSTION, ratio));
    }
}

fn persistence(info: &Info<'_>, samples: &mut Vec<Sample>) {
    let mut ok = |metric, field: &str| {
        let value = info.text(field).map(|status| f64::from(u8::from(status == "ok")));
        samples.extend(value.map(|value| Sample::plain(metric, value)));
    };
    ok(&metrics::REDIS_RDB_OK, "rdb_last_bgsave_status");
    if info.flag("aof_enabled") == Some(true) {
        ok(&metrics::REDIS_AOF_WRITE_OK, "aof_last_write_status");
        ok(&metrics::REDIS_AOF_REWRITE_OK, "aof_last_bgrewrite_status");
        let size = info.number("aof_current_size");
        samples.extend(size.map(|size| Sample::plain(&metrics::REDIS_AOF_SIZE, size)));
    }
    // -1 and 0 mean that there was none.
    let saved = info.number("rdb_last_bgsave_time_sec").filter(|seconds| *seconds >= 0.0);
    samples.extend(saved.map(|seconds| Sample::plain(&metrics::REDIS_RDB_DURATION, seconds)));
    let fork = info.number("latest_fork_usec").filter(|micros| *micros > 0.0);
    samples.extend(fork.map(|micros| Sample::plain(&metrics::REDIS_FORK_DURATION, micros / 1e6)));
}

fn replication(info: &Info<'_>, ours: f64, samples: &mut Vec<Sample>) {
    let now = info.now(ours);
    let replica = info.text("role") == Some("slave");
    let offset = if replica {
        info.number("slave_read_repl_offset").or(info.number("slave_repl_offset"))
    } else {
        info.number("master_repl_offset")
    };
    samples.extend(offset.map(|offset| Sample::plain(&metrics::REDIS_REPLICATION_OFFSET, offset)));
    if replica {
        let up = info.text("master_link_status") == Some("up");
        samples.push(Sample::plain(&metrics::REDIS_LINK_UP, f64::from(u8::from(up))));
        let down = info.number("master_link_down_since_seconds").filter(|ago| !up && *ago >= 0.0);
        samples.extend(down.map(|ago| Sample::plain(&metrics::REDIS_LINK_DOWN_TIMESTAMP, now.floor() - ago)));
        let heard = info.number("master_last_io_seconds_ago").filter(|ago| up && *ago >= 0.0);
        samples
            .extend(heard.map(|ago| Sample::plain(&metrics::REDIS_LINK_HEARD_TIMESTAMP, now.floor() - ago)));
        let syncing = info.number("master_sync_in_progress");
        samples.extend(syncing.map(|syncing| Sample::plain(&metrics::REDIS_SYNCING, syncing)));
    }
    // Its numbers begin at 0 and have no gaps.
    for line in (0..).map_while(|number| info.text(&format!("slave{number}"))) {
        let of: HashMap<&str, &str> = line.split(',').filter_map(|pair| pair.split_once('=')).collect();
        let (Some(host), Some(port)) = (of.get("ip"), of.get("port")) else { continue };
        let name = format!("{host}:{port}");
        let number = |field: &str| of.get(field).and_then(|text| text.parse::<f64>().ok());
        let online = of.get("state") == Some(&"online");
        let flag = f64::from(u8::from(online));
        samples.push(Sample::new(&metrics::REDIS_REPLICA_ONLINE, [&name], flag));
        if !online {
            continue;
        }
        if let (Some(sent), Some(confirmed)) = (offset, number("offset")) {
            let lag = (sent - confirmed).max(0.0);
            samples.push(Sample::new(&metrics::REDIS_REPLICA_LAG, [&name], lag));
        }
        if let Some(ago) = number("lag").filter(|ago| *ago >= 0.0) {
            let seen = now.floor() - ago;
            samples.push(Sample::new(&metrics::REDIS_REPLICA_SEEN_TIMESTAMP, [&name], seen));
        }
    }
}

fn databases(info: &Info<'_>, samples: &mut Vec<Sample>) {
    let mut found: Vec<(u32, &str)> = info
        .fields
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("db")?.parse().ok()?, *value)))
        .collect();
    found.sort_unstable();
    for (number, line) in found {
        let name = number.to_string();
        for pair in line.split(',').filter_map(|pair| pair.split_once('=')) {
            let metric = match pair.0 {
                "keys" => &metrics::REDIS_DATABASE_KEYS,
                "expires" => &metrics::REDIS_DATABASE_EXPIRING_KEYS,
                _ => continue,
            };
            samples.extend(pair.1.parse().ok().map(|value| Sample::new(metric, [&name], value)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Sample;
    use proptest::prelude::*;

    const PRIMARY: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:aa\r\nuptime_in_seconds:100\r\n\
        server_time_usec:1700000000900000\r\n# Clients\r\nconnected_clients:5\r\nmaxclients:100\r\n\
        used_memory:1000\r\nmaxmemory:2000\r\nmaxmemory_policy:noeviction\r\nmem_not_counted_for_evict:100\r\n\
        rdb_last_bgsave_status:err\r\nrdb_last_bgsave_time_sec:-1\r\naof_enabled:0\r\naof_last_write_status:ok\r\n\
        role:master\r\nconnected_slaves:2\r\nslave0:ip=::1,port=6380,state=online,offset=90,lag=1\r\n\
        slave1:ip=10.0.0.1,port=6381,state=wait_bgsave,offset=0,lag=0\r\nmaster_repl_offset:100\r\n\
        keyspace_hits:50\r\nkeyspace_misses:50\r\ndb0:keys=10,expires=2,avg_ttl=0\r\ndb11:keys=1,expires=0,avg_ttl=0\r\n";

    fn value(samples: &[Sample], metric: &Metric, label: Option<&str>) -> Option<f64> {
        let matches =
            |s: &&Sample| s.metric == metric && label.is_none_or(|l| s.labels.iter().any(|x| x == l));
        samples.iter().find(matches).map(|sample| sample.value)
    }

    #[test]
    fn a_primary() {
        let samples = samples(&Info::parse(PRIMARY).unwrap(), 0.0, "");
        assert!(samples.iter().all(Sample::is_whole));
        let of = |metric| value(&samples, metric, None);
        assert_eq!(of(&metrics::REDIS_START_TIMESTAMP), Some(1_699_999_900.0));
        assert_eq!(of(&metrics::REDIS_MEMORY_USED_RATIO), Some(0.45));
        assert_eq!(of(&metrics::REDIS_MEMORY_EXHAUSTION), Some(0.45));
        assert_eq!(of(&metrics::REDIS_CLIENTS_USED), Some(0.05));
        assert_eq!(of(&metrics::REDIS_RDB_OK), Some(0.0));
        assert_eq!(of(&metrics::REDIS_RDB_DURATION), None, "there was none");
        assert_eq!(of(&metrics::REDIS_AOF_WRITE_OK), None, "it is off");
        assert_eq!(of(&metrics::REDIS_LINK_UP), None, "it is no replica");
        assert_eq!(value(&samples, &metrics::REDIS_ROLE_STATE, Some("primary")), Some(1.0));
        assert_eq!(value(&samples, &metrics::REDIS_REPLICA_LAG, Some("::1:6380")), Some(10.0));
        assert_eq!(value(&samples, &metrics::REDIS_REPLICA_LAG, Some("10.0.0.1:6381")), None);
        assert_eq!(value(&samples, &metrics::REDIS_REPLICA_ONLINE, Some("10.0.0.1:6381")), Some(0.0));
        assert_eq!(value(&samples, &metrics::REDIS_DATABASE_KEYS, Some("11")), Some(1.0));
    }

    #[test]
    fn a_replica_whose_link_is_cut() {
        let text = "redis_version:6.2.0\nserver_time_usec:1000000000\nrole:slave\nmaster_link_status:down\n\
            master_last_io_seconds_ago:-1\nmaster_link_down_since_seconds:40\nmaster_sync_in_progress:0\nslave_repl_offset:7\n";
        let samples = samples(&Info::parse(text).unwrap(), 0.0, "");
        let of = |metric| value(&samples, metric, None);
        assert_eq!(of(&metrics::REDIS_LINK_UP), Some(0.0));
        assert_eq!(of(&metrics::REDIS_LINK_DOWN_TIMESTAMP), Some(960.0));
        assert_eq!(of(&metrics::REDIS_LINK_HEARD_TIMESTAMP), None);
        assert_eq!(of(&metrics::REDIS_REPLICATION_OFFSET), Some(7.0));
    }

    #[test]
    fn a_ratio_needs_traffic_on_one_server() {
        let reads = |run: &str, hits, misses| Reads { run: run.into(), hits, misses };
        let before = reads("a", 1_000_000.0, 0.0);
        assert_eq!(hit_ratio(&before, &reads("a", 1_000_050.0, 150.0)), Some(0.25));
        assert_eq!(hit_ratio(&before, &reads("a", 1_000_050.0, 49.0)), None, "too few");
        assert_eq!(hit_ratio(&before, &reads("a", 10.0, 1000.0)), None, "reset");
        assert_eq!(hit_ratio(&before, &reads("b", 2_000_000.0, 10.0)), None, "restarted");
    }

    #[test]
    fn no_answer_is_none() {
        assert!(Info::parse("").is_none() && Info::parse("HTTP/1.1 400 Bad Request\nx: y").is_none());
    }

    /// As KeyDB says it of two primaries that copy each other.
    #[test]
    fn a_role_that_is_not_known_is_named() {
        let role = |text: &str| Info::parse(&format!("redis_version:6.3.4\n{text}")).unwrap().strange_role();
        assert!(role("role:active-replica\n").unwrap().contains("role \"active-replica\" is not known"));
        assert!(role("redis_mode:sentinel\n").unwrap().contains("no role, and is in mode \"sentinel\""));
        assert_eq!((role("role:master\n"), role("role:slave\n")), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_gives_whole_figures(text in "(redis_version:7\n)?([a-z_0-9]{1,8}:[-0-9a-z.,=]{0,12}\n){0,30}") {
            if let Some(info) = Info::parse(&text) {
                prop_assert!(samples(&info, 0.0, "").iter().all(Sample::is_whole));
            }
        }
    }
}
