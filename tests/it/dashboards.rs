//! The dashboards: what they are by Grafana's own types, and each query of theirs on a real Prometheus that
//! scrapes a real opsd.

mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use opsd::metrics;
use opsd::rules::promql;
use serde_json::{Value, json};

use crate::support::postgres::servers_directory;
use crate::support::prometheus;
use site::{OF_THE_PRIMARY, Site};

/// Rates that are 0 on the site of these tests, and why. No query of a dashboard finds nothing there.
const STILL: &[(&str, &str)] = &[
    ("opsd_postgres_checkpoints_total", "minutes pass between checkpoints"),
    ("opsd_redis_evicted_keys_total", "an eviction is no light load; tests/it/monitor_redis.rs has them"),
    ("opsd_redis_connections_rejected_total", "the server is not full"),
    ("opsd_mqtt_publish_dropped_total", "the broker is not full"),
];

/// Series that come and go on their own: of a queue that is empty most of the time, of an alert, of a
/// collection that took too long on a busy machine.
const FLEETING: &[&str] = &[
    "ALERTS",
    "opsd_monitor_failures_total",
    "opsd_queue_oldest_job_",
    "opsd_queue_head_since_",
    "opsd_queue_until_empty_",
    "opsd_queue_arrival_rate",
    "opsd_queue_drain_rate",
];

/// What says something of a server that is gone: opsd's own series, alerts, and the last hour.
const OUTLIVES: &[&str] = &["opsd_monitor_", "ALERTS", "[1h]"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn dashboards() -> Vec<(PathBuf, Value)> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(root().join("dashboards")).unwrap().map(|entry| entry.unwrap().path()).collect();
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
    query.replace("$site", ".+").replace("$monitor", ".+").replace("$__rate_interval", "5s")
}

/// One query of a dashboard.
struct Query {
    /// Which dashboard, and where on it.
    place: String,
    expr: String,
    /// How a series is named, where it is.
    legend: Option<String>,
}

/// Those of a dashboard: of its panels, its variables and its annotations.
fn queries(dashboard: &Value) -> Vec<Query> {
    let query = |place: &str, expr: String, legend: Option<String>| Query {
        place: format!("{}: {place}", text(dashboard, "uid")),
        expr: filled(&expr),
        legend,
    };
    let of_panel = |panel: &Value| -> Vec<Query> {
        let named = panel["type"] != "table";
        let legend = |target: &Value| named.then(|| text(target, "legendFormat").to_owned());
        items(panel, "targets")
            .iter()
            .map(|target| query(text(panel, "title"), text(target, "expr").to_owned(), legend(target)))
            .collect()
    };
    let of_variable = |variable: &Value| {
        let values = text(&variable["query"], "query").strip_prefix("label_values(").unwrap();
        let (selector, label) = values.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
        query(text(variable, "name"), format!("count by ({label}) ({selector})"), None)
    };
    let variables = items(&dashboard["templating"], "list").iter().filter(|v| v["type"] == "query");
    let annotations = items(&dashboard["annotations"], "list").iter();
    let panels = items(dashboard, "panels").iter().flat_map(of_panel);
    panels
        .chain(variables.map(of_variable))
        .chain(annotations.map(|note| query(text(note, "name"), text(note, "expr").to_owned(), None)))
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
            // Unless told otherwise Grafana paints everything below 80 green, and from there on red.
            let defaults = &panel["fieldConfig"]["defaults"];
            let has_colours = defaults["thresholds"].is_object() || defaults["color"].is_object();
            assert!(panel["type"] != "stat" || has_colours, "{title}: colours that mean nothing");
            let link = text(&panel["links"][0], "url").strip_prefix("${runbooks}/").unwrap_or("none");
            assert!(root().join("runbooks").join(link).is_file(), "{title}: {link}");
        }
        // Several values are a regular expression.
        let written = json.to_string();
        for variable in ["$site", "$monitor"] {
            assert_eq!(
                written.matches(variable).count(),
                written.matches(&format!("=~\\\"{variable}\\\"")).count()
            );
        }
        for Query { place, expr, .. } in queries(json) {
            let expr = promql::parse(&expr).unwrap_or_else(|e| panic!("{place}: {e}"));
            for selector in expr.selectors() {
                let series = selector.name.as_deref().unwrap();
                let known = metrics::find(series).is_some_and(|metric| metric.series() == series);
                assert!(known || series == "ALERTS", "{place}: opsd has no metric {series}");
                let has_site = selector.labels.iter().any(|label| label == "site");
                // What sites there are is asked without one.
                assert!(has_site || place.ends_with(": site"), "{place}: {}", selector.text);
            }
        }
    }
}

/// What Grafana's own types say of these dashboards.
fn against_the_types(files: &[PathBuf]) -> Vec<String> {
    let run = Command::new("python3")
        .arg("-B")
        .arg(root().join("tests/it/dashboards/grafana_types.py"))
        .args(files)
        .env("PYTHONPATH", servers_directory().join("grafana-types"))
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8_lossy(&run.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn dashboards_are_what_grafana_says_they_are() {
    let all = dashboards();
    let files: Vec<PathBuf> = all.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(against_the_types(&files), Vec::<String>::new());

    // And it would tell.
    let (_, whole) = all.iter().find(|(_, json)| text(json, "uid") == "opsd-postgres").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (mut files, mut expected) = (Vec::new(), Vec::new());
    let defaults = "/panels/0/fieldConfig/defaults";
    for (place, field, value, finding) in [
        ("", "titel", json!("x"), ".titel: Dashboard has no such field"),
        ("", "tags", json!("x"), ".tags: 'x' is no list"),
        ("", "graphTooltip", json!(3), ".graphTooltip: 3 is no DashboardCursorSync"),
        ("/templating/list/2", "multi", json!("yes"), ".templating.list[2].multi: 'yes' is no bool"),
        ("/panels/0", "descripton", json!("x"), ".panels[0].descripton: Panel has no such field"),
        ("/panels/0", "type", json!("statt"), ".panels[0].type: Grafana has no panel 'statt'"),
        ("/panels/3", "collapsed", json!(1), ".panels[3].collapsed: 1 is no bool"),
        ("/panels/0/gridPos", "h", json!("5"), ".panels[0].gridPos.h: '5' is no int"),
        (
            "/panels/0/links/0",
            "href",
            json!("x"),
            ".panels[0].links[0].href: DashboardLink has no such field",
        ),
        (
            "/panels/0/options",
            "colorMod",
            json!("x"),
            ".panels[0].options.colorMod: Options has no such field",
        ),
        (
            "/panels/0/options",
            "colorMode",
            json!("x"),
            ".panels[0].options.colorMode: 'x' is no BigValueColorMode",
        ),
        ("/panels/0/targets/0", "instant", json!(1), ".panels[0].targets[0].instant: 1 is no bool"),
        ("/panels/0/targets/0", "exp", json!("x"), ".panels[0].targets[0].exp: Dataquery has no such field"),
        (defaults, "unit", json!(5), ".panels[0].fieldConfig.defaults.unit: 5 is no str"),
        (
            defaults,
            "custom",
            json!({"fillOpacity": 1}),
            ".panels[0].fieldConfig.defaults.custom: a stat has no such field",
        ),
    ] {
        let mut changed = whole.clone();
        changed.pointer_mut(place).unwrap()[field] = value;
        files.push(directory.path().join(format!("{}.json", files.len())));
        std::fs::write(files.last().unwrap(), changed.to_string()).unwrap();
        expected.push(format!("opsd-postgres{finding}"));
    }
    assert_eq!(against_the_types(&files), expected);
}

/// What a query finds; one that fails fails the test.
fn answer(site: &Site, query: &Query) -> Vec<Value> {
    let found = site.prometheus.answer(&query.expr);
    found.unwrap_or_else(|e| panic!("{} fails: {}\n{e}", query.place, query.expr))
}

/// Asks until each query has once found what is wanted of it; returns what it found.
fn ask(site: &Site, queries: &[Query], is_right: impl Fn(usize, &[Value]) -> bool) -> Vec<Vec<Value>> {
    let mut right: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
    let deadline = Instant::now() + Duration::from_secs(90);
    while right.len() < queries.len() {
        let mut wrong = String::new();
        for (index, query) in queries.iter().enumerate() {
            if right.contains_key(&index) {
                continue;
            }
            let found = answer(site, query);
            if is_right(index, &found) {
                right.insert(index, found);
            } else {
                wrong.push_str(&format!("{}: {}\n    {found:?}\n", query.place, query.expr));
            }
        }
        assert!(wrong.is_empty() || Instant::now() < deadline, "wrong for ever:\n{wrong}");
        std::thread::sleep(Duration::from_millis(200));
    }
    right.into_values().collect()
}

/// The monitors that the series are of.
fn monitors(found: &[Value]) -> BTreeSet<&str> {
    found.iter().filter_map(|series| series["metric"]["monitor"].as_str()).collect()
}

fn value(series: &Value) -> f64 {
    series["value"][1].as_str().unwrap().parse().unwrap()
}

/// What a panel shows of a monitor.
fn shown(all: &[Query], found: &[Vec<Value>], place: &str, monitor: &str, wanted: f64) {
    let index = all.iter().position(|query| query.place == place).unwrap();
    let series = found[index].iter().find(|series| series["metric"]["monitor"] == monitor);
    assert_eq!(series.map(value), Some(wanted), "{place}: {:?}", found[index]);
}

/// A series by a legend's format: `{{label}}` is the label's value.
fn legend(format: &str, series: &Value) -> String {
    let mut named = String::new();
    for part in format.split("}}") {
        let (before, label) = part.split_once("{{").unwrap_or((part, ""));
        named.push_str(before);
        named.push_str(series["metric"][label].as_str().unwrap_or_default());
    }
    named
}

/// Legends tell the series of a panel apart, those of another site, too, and name only labels there are.
fn check_legends(all: &[Query], found: &[Vec<Value>]) {
    let mut taken = BTreeSet::new();
    for (query, found) in all.iter().zip(found) {
        let Some(format) = &query.legend else { continue };
        assert!(format.contains("{{site}}"), "{}: {format:?} is the same for two sites", query.place);
        for label in format.split("{{").skip(1).filter_map(|part| part.split("}}").next()) {
            let has = |series: &Value| series["metric"][label].is_string();
            assert!(found.iter().any(has), "{}: no series has {label:?}", query.place);
        }
        for series in found {
            let named = legend(format, series);
            assert!(
                taken.insert((query.place.clone(), named.clone())),
                "{}: two are named {named:?}",
                query.place
            );
        }
    }
}

/// Whether a series is of a server that the test has stopped.
fn of_dead(series: &Value) -> bool {
    series["metric"]["monitor"].as_str().is_some_and(|monitor| OF_THE_PRIMARY.contains(&monitor))
}

#[test]
fn every_query_finds_what_is_there_and_nothing_of_what_is_gone() {
    let mut site = Site::start();
    let all: Vec<Query> = dashboards().iter().flat_map(|(_, json)| queries(json)).collect();
    let is_right = |index: usize, found: &[Value]| {
        let expr = &all[index].expr;
        let moves = expr.contains("rate") && !STILL.iter().any(|(part, _)| expr.contains(part));
        found.iter().any(|series| if moves { value(series) > 0.0 } else { !value(series).is_nan() })
    };
    let before = ask(&site, &all, is_right);
    shown(&all, &before, "opsd-postgres: Up", "main-db", 1.0);
    // Every kind of monitor is on this page.
    assert_eq!(prometheus::complaints(&site.exporter.scrape().text), None);
    check_legends(&all, &before);
    // Seen on a panel once: a standby whose configuration says `archive_mode = on` has no backlog of 0.
    let archiving = |metric: &str| site.prometheus.query(&format!("{metric}{{monitor=\"replica-db\"}}"));
    assert!(archiving("opsd_postgres_archive_backlog").is_empty());
    let states = archiving("opsd_postgres_archiver_state");
    let is_on = |s: &&Value| value(s) == 1.0;
    assert!(states.iter().filter(is_on).all(|s| s["metric"]["state"] == "off"), "{states:?}");

    site.stop_the_primary();
    // Staleness is opsd's to see; every query is asked when it has.
    let fires = "ALERTS{alertname=\"PostgresDown\",alertstate=\"firing\",monitor=\"main-db\"}";
    site.prometheus.until_some(fires);
    let is_dead = |monitor: &&str| OF_THE_PRIMARY.contains(monitor);
    let is_right = |index: usize, found: &[Value]| {
        let Query { place, expr, .. } = &all[index];
        let contains = |parts: &[&str]| parts.iter().any(|part| expr.contains(part));
        let (now, then) = (monitors(found), monitors(&before[index]));
        let others_remain = then.iter().all(|monitor| is_dead(monitor) || now.contains(monitor));
        let dead_are_gone = !now.iter().any(is_dead);
        let cut = |series: &Value| series["metric"]["state"] == "link_cut";
        (others_remain || contains(FLEETING))
            && (dead_are_gone || contains(OUTLIVES))
            && (!expr.starts_with("opsd_monitor_up") || found.iter().all(|s| !of_dead(s) || value(s) == 0.0))
            && (place != "opsd-postgres: Replication" || found.iter().any(cut))
    };
    let after = ask(&site, &all, is_right);
    shown(&all, &after, "opsd-postgres: Up", "main-db", 0.0);
    shown(&all, &after, "opsd-fleet: Monitors up", "main-db", 0.0);
    shown(&all, &after, "opsd-fleet: Monitors up", "replica-db", 1.0);
}
