//! The dashboards: each query of theirs is run on a real Prometheus that scrapes a real opsd.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use opsd::metrics;
use opsd::rules::promql;
use serde_json::Value;

use crate::support::exporter::{Exporter, postgres_monitor, site};
use crate::support::postgres;
use crate::support::prometheus::Prometheus;

/// Metrics of which the server under test has no series, and why.
const ABSENT: &[(&str, &str)] = &[
    ("ALERTS", "no rules are loaded"),
    ("opsd_backup_", "no repository is watched here; tests/it/monitor_backups.rs does"),
    ("opsd_host_", "no host is watched here"),
    ("opsd_http_", "nothing is probed here"),
    ("opsd_tcp_", "nothing is probed here"),
    ("opsd_tls_", "nothing is probed here"),
    ("opsd_mqtt_", "no broker is watched here"),
    ("opsd_queue", "no queues are watched here; tests/it/monitor_queues.rs does"),
    ("opsd_redis_", "no Redis is watched here; tests/it/monitor_redis.rs does"),
    ("kind=~\"http", "nothing is probed here"),
    ("kind=\"redis\"", "no Redis is watched here"),
    ("opsd_monitor_concern_failure", "a superuser may see everything"),
    ("opsd_postgres_standby_", "the server has no standby"),
    ("opsd_postgres_replication_state", "the server has no standby"),
    ("opsd_postgres_slot_", "the server has no slot"),
    ("opsd_postgres_archive_", "the server archives nothing"),
    ("opsd_postgres_oldest_", "nobody has a transaction open for longer than a moment"),
    ("opsd_postgres_table_", "no table has dead rows"),
    ("opsd_postgres_sequence_", "there may be no sequence"),
    ("opsd_postgres_database_checksum_", "checksums may be off"),
];

fn dashboards() -> Vec<(PathBuf, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, json)
    };
    paths.into_iter().map(read).collect()
}

fn items<'a>(json: &'a Value, key: &str) -> &'a [Value] {
    json[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(json: &'a Value, key: &str) -> &'a str {
    json[key].as_str().unwrap_or_default()
}

/// What Grafana would ask: variables take all values.
fn filled(query: &str) -> String {
    query.replace("$site", ".+").replace("$monitor", ".+").replace("$__rate_interval", "1m")
}

/// The expressions of all panels, with where they stand.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let panels = items(dashboard, "panels").iter();
    panels
        .flat_map(|panel| {
            items(panel, "targets").iter().map(|target| {
                let place = format!("{}: {}", text(dashboard, "uid"), text(panel, "title"));
                (place, filled(text(target, "expr")))
            })
        })
        .collect()
}

#[test]
fn dashboards_are_whole() {
    let all = dashboards();
    let uids: BTreeSet<&str> = all.iter().map(|(_, json)| text(json, "uid")).collect();
    assert_eq!(uids.len(), all.len());
    assert_eq!(all.len(), 6);
    for (path, json) in &all {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(text(json, "uid"), format!("opsd-{name}"));
        for residue in ["__inputs", "__requires", "__elements", "id", "iteration", "gnetId"] {
            assert!(json.get(residue).is_none(), "{name} has {residue}");
        }
        let variables = items(&json["templating"], "list");
        assert_eq!(variables.iter().filter(|v| v["type"] == "datasource").count(), 1, "{name}");
        for variable in ["site", "monitor"] {
            let found = variables.iter().find(|v| v["name"] == variable).unwrap();
            assert!(found["multi"] == true && found["includeAll"] == true, "{name}: {found}");
        }
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in items(json, "panels") {
            let title = format!("{name}: {}", text(panel, "title"));
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is taken");
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            for (x, y) in
                (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
            {
                assert!(x < 24 && taken.insert((x, y)), "{title}: lies over another one");
            }
            if panel["type"] == "row" {
                continue;
            }
            assert!(!text(panel, "description").is_empty(), "{title}: no description");
            assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{title}: no unit");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            assert!(!items(panel, "targets").is_empty(), "{title}: no query");
            let link = text(&panel["links"][0], "url").strip_prefix("${runbooks}/").unwrap_or("none");
            assert!(
                Path::new(env!("CARGO_MANIFEST_DIR")).join("runbooks").join(link).is_file(),
                "{title}: {link}"
            );
        }
        for (place, query) in queries(json) {
            let expr = promql::parse(&query).unwrap_or_else(|e| panic!("{place}: {e}"));
            for selector in expr.selectors() {
                let series = selector.name.as_deref().unwrap();
                let known = metrics::find(series).is_some_and(|metric| metric.series() == series);
                assert!(known || series == "ALERTS", "{place}: opsd has no metric {series}");
                assert!(selector.labels.iter().any(|label| label == "site"), "{place}: {}", selector.text);
            }
        }
    }
}

#[test]
fn every_query_succeeds_and_finds_what_is_there() {
    let server = postgres::default_server();
    let mut opsd = site(server);
    // Down, so that there are failures to show.
    let gone = format!("postgres://u@127.0.0.1:{}/x", postgres::free_port());
    opsd.more.push_str(&postgres_monitor("gone", &gone, ""));
    let exporter = Exporter::start(&mut opsd, "");
    let prometheus = Prometheus::start(&exporter.address);
    prometheus.until_some("rate(opsd_monitor_failures_total{monitor=\"gone\"}[1m]) > 0");
    prometheus.until_some("rate(opsd_postgres_wal_position_bytes[1m])");
    // Blocks are read and hit from the first catalog query on.
    prometheus.until_some("rate(opsd_postgres_database_block_hits_total[1m]) > 0");
    let absent = |query: &str| ABSENT.iter().any(|(prefix, _)| query.contains(prefix));
    let mut asked = 0;
    for (_, json) in dashboards() {
        for (place, query) in queries(&json) {
            let found = prometheus.answer(&query).unwrap_or_else(|e| panic!("{place}: {e}\n{query}"));
            assert!(!found.is_empty() || absent(&query), "{place} shows nothing: {query}");
            asked += usize::from(!found.is_empty());
        }
        for variable in items(&json["templating"], "list").iter().filter(|v| v["type"] == "query") {
            let query = filled(text(variable, "definition"));
            let inner = query.strip_prefix("label_values(").and_then(|q| q.strip_suffix(')')).unwrap();
            let (selector, label) = inner.rsplit_once(", ").unwrap();
            let found = prometheus.answer(&format!("count by ({label}) ({selector})"));
            let found = found.unwrap_or_else(|e| panic!("{}: {e}\n{query}", text(variable, "name")));
            let watched = !selector.contains("kind=") || selector.contains("postgres");
            assert_eq!(!found.is_empty(), watched, "{query}");
        }
    }
    assert!(asked >= 15, "only {asked} queries found anything");
}
