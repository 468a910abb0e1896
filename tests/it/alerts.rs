//! The rules in `alerts/`, their tests and pages, and `opsd alerts doctor` on a real Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use opsd::metrics;
use opsd::rules::promql;
use yaml_rust2::{Yaml, YamlLoader};

use crate::support::exporter::{Exporter, site};
use crate::support::opsd::Opsd;
use crate::support::postgres;
use crate::support::prometheus::{Prometheus, program};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files of a directory whose names end like this, in order.
fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    files.sort();
    assert!(!files.is_empty(), "no {ending} in {directory}");
    files
}

fn yaml(path: &Path) -> Yaml {
    YamlLoader::load_from_str(&std::fs::read_to_string(path).unwrap()).unwrap().remove(0)
}

fn items(yaml: &Yaml) -> &[Yaml] {
    yaml.as_vec().map_or(&[], Vec::as_slice)
}

/// Every rule as it stands in its file: name, whether it is an alert, and the rest.
fn rules() -> Vec<(String, bool, Yaml)> {
    let mut rules = Vec::new();
    for file in files("alerts", ".rules.yml") {
        for group in items(&yaml(&file)["groups"]) {
            for rule in items(&group["rules"]) {
                let alert = rule["alert"].as_str();
                let name = alert.or(rule["record"].as_str()).unwrap();
                rules.push((name.to_owned(), alert.is_some(), rule.clone()));
            }
        }
    }
    rules
}

fn promtool(arguments: &[&str], files: &[PathBuf]) {
    let run = Command::new(program("promtool")).args(arguments).args(files).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "promtool {arguments:?}\n{said}");
}

#[test]
fn promtool_accepts_the_rules_and_their_tests() {
    promtool(&["check", "rules"], &files("alerts", ".rules.yml"));
    promtool(&["test", "rules"], &files("alerts/tests", ".yml"));
}

#[test]
fn every_alert_says_what_a_tired_person_needs() {
    let mut names = BTreeSet::new();
    let mut linked = BTreeSet::new();
    for (name, is_alert, rule) in rules() {
        assert!(names.insert(name.clone()), "{name} stands there twice");
        if !is_alert {
            continue;
        }
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["info", "warning", "critical"].contains(&severity), "{name} is {severity:?}");
        let annotation = |key: &str| rule["annotations"][key].as_str().unwrap_or_default().to_owned();
        let has_site = !rule["expr"].as_str().unwrap_or_default().starts_with("absent(");
        assert!(
            annotation("summary").contains("{{ $labels.site }}") || !has_site,
            "{name}: {}",
            annotation("summary")
        );
        assert!(annotation("description").contains("{{ $value"), "{name}: {}", annotation("description"));
        let page = annotation("runbook_url");
        assert!(page.starts_with("runbooks/") && root().join(&page).is_file(), "{name}: {page}");
        linked.insert(root().join(page));
    }
    assert!(linked.len() > 10, "{linked:?}");
    for page in files("runbooks", ".md") {
        assert!(linked.contains(&page) || page.ends_with("README.md"), "no alert links {}", page.display());
        let text = std::fs::read_to_string(&page).unwrap();
        for heading in [
            "# ",
            "\n## What it means\n",
            "\n## How bad it is\n",
            "\n## How to look\n",
            "\n## What to do\n",
            "\n## It is over when\n",
        ] {
            assert!(text.contains(heading), "{} lacks {heading:?}", page.display());
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = page.with_file_name(link);
            assert!(link.contains("://") || target.is_file(), "{}: {link} is not there", page.display());
        }
    }
}

#[test]
fn rules_speak_of_what_opsd_exports() {
    let rules = rules();
    let recorded: BTreeSet<&str> =
        rules.iter().filter(|(_, is_alert, _)| !is_alert).map(|(name, _, _)| name.as_str()).collect();
    for (name, _, rule) in &rules {
        let text = rule["expr"].as_str().unwrap();
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        assert!(words.all(|word| !["job", "instance"].contains(&word)), "{name}: {text}");
        let expr = promql::parse(text).unwrap();
        let selectors = expr.selectors();
        assert!(!selectors.is_empty(), "{name}: {text}");
        for selector in selectors {
            let metric = selector.name.as_deref().unwrap();
            if recorded.contains(metric) {
                continue;
            }
            let known = metrics::find(metric).filter(|row| row.series() == metric);
            let known = known.unwrap_or_else(|| panic!("{name}: opsd has no metric {metric}"));
            for label in &selector.labels {
                let own = known.labels.contains(&label.as_str());
                assert!(own || ["site", "monitor"].contains(&label.as_str()), "{name}: {}", selector.text);
            }
            // A state that no row has is one that never comes.
            let matchers = selector.text.split("state").filter(|rest| rest.starts_with(['=', '!']));
            let matchers = matchers.filter_map(|rest| rest.split('"').nth(1));
            for state in matchers.flat_map(|values| values.split('|')) {
                assert!(known.states.contains(&state), "{name}: {state:?} in {}", selector.text);
            }
        }
    }
}

/// The metrics that an expression needs, those of recording rules followed.
fn needs(text: &str, recorded: &BTreeMap<String, String>) -> BTreeSet<String> {
    let expr = promql::parse(text).unwrap();
    let names = expr.selectors().into_iter().filter_map(|selector| selector.name.clone());
    names.flat_map(|name| recorded.get(&name).map_or([name].into(), |text| needs(text, recorded))).collect()
}

#[test]
fn every_alert_has_tests_in_which_it_fires_and_stays_quiet() {
    let mut groups = BTreeMap::new();
    for file in files("alerts/tests", ".yml") {
        for group in items(&yaml(&file)["tests"]) {
            let name = group["name"].as_str().unwrap_or_default().to_owned();
            assert!(groups.insert(name.clone(), group.clone()).is_none(), "{name} stands there twice");
        }
    }
    let rules = rules();
    let recorded: BTreeMap<String, String> = rules
        .iter()
        .filter(|(_, is_alert, _)| !is_alert)
        .map(|(name, _, rule)| (name.clone(), rule["expr"].as_str().unwrap().to_owned()))
        .collect();
    for (alert, _, rule) in rules.iter().filter(|(_, is_alert, _)| *is_alert) {
        // `ALERT fires`, and `ALERT fires where …`.
        let mut take = |what: &str| -> Vec<Yaml> {
            let name = format!("{alert} {what}");
            let is_of = |known: &String| {
                known.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
            };
            groups.extract_if(.., |known, _| is_of(known)).map(|(_, group)| group).collect()
        };
        let (fires, quiet) = (take("fires"), take("stays quiet"));
        assert!(!fires.is_empty() && !quiet.is_empty(), "{alert} lacks a test");
        for test in fires.iter().map(|group| &group["promql_expr_test"][0]) {
            let expr = test["expr"].as_str().unwrap_or_default();
            assert!(
                expr.contains(&format!("alertname=\"{alert}\",alertstate=\"firing\"")),
                "{alert}: {expr:?}"
            );
            assert_eq!(test["exp_samples"][0]["value"].as_i64(), Some(1), "{alert}");
        }
        // Quiet because of what is there, not because nothing is.
        let wanted = needs(rule["expr"].as_str().unwrap(), &recorded);
        for group in quiet {
            for test in items(&group["alert_rule_test"]) {
                assert_eq!(test["alertname"].as_str(), Some(alert.as_str()));
                assert!(items(&test["exp_alerts"]).is_empty(), "{alert}");
            }
            let given = items(&group["input_series"]).iter().filter_map(|series| series["series"].as_str());
            let given: BTreeSet<&str> = given.map(|series| series.split('{').next().unwrap()).collect();
            assert!(
                wanted.iter().any(|name| given.contains(name.as_str())),
                "{alert}: {given:?}, not {wanted:?}"
            );
        }
    }
    assert!(groups.is_empty(), "tests of no alert: {:?}", groups.keys());
}

#[test]
fn the_doctor_finds_rules_that_can_never_fire() {
    let exporter = Exporter::start(&mut site(postgres::default_server()), "");
    exporter.scrape_until("the first collection", |scrape| scrape.up("main") == Some(1.0));
    let prometheus = Prometheus::start(&exporter.address);
    prometheus.until_some("opsd_postgres_connections_used_ratio");
    let url = prometheus.url();
    let opsd = Opsd::without_server();
    let rules = opsd.path("rules.yml");
    let write = |alerts: &[(&str, &str)]| {
        let mut text = "groups:\n- name: g\n  rules:\n".to_owned();
        for (name, expr) in alerts {
            text.push_str(&format!("  - {name}\n    expr: '{expr}'\n"));
        }
        std::fs::write(&rules, text).unwrap();
        rules.to_str().unwrap().to_owned()
    };

    let good = write(&[
        ("record: a:recorded", "sum(opsd_postgres_connections)"),
        ("alert: Fires", "opsd_postgres_connections_used_ratio{site=\"test\"} > 0.9 and on (site) up == 1"),
        ("alert: Recorded", "a:recorded > 1"),
        ("alert: Absent", "absent(up{job=\"opsd\"})"),
        ("alert: Waits", "time() - opsd_postgres_oldest_prepared_timestamp_seconds > 1"),
    ]);
    let run = opsd.ok(&["-v", "alerts", "doctor", "--prometheus", &url, &good]);
    assert!(
        run.stdout.contains("quiet  Waits: opsd_postgres_oldest_prepared_timestamp_seconds is not"),
        "{run}"
    );
    assert!(run.stdout.ends_with("5 rules, 0 can never fire, 2 quiet\n"), "{run}");
    let run = opsd.ok(&["alerts", "doctor", "--prometheus", &url, &good]);
    let said = format!("quiet  {good}: Recorded, Waits\n5 rules, 0 can never fire, 2 quiet (-v says why)\n");
    assert_eq!(
        run.stdout.split_whitespace().collect::<Vec<_>>(),
        said.split_whitespace().collect::<Vec<_>>()
    );

    let bad = write(&[
        ("alert: Fine", "up == 0"),
        ("alert: Name", "pg_up == 0"),
        ("alert: Own", "opsd_postgres_up == 0 or opsd_monitor_gone"),
        ("alert: State", "opsd_postgres_connections{state=\"asleep\"} > 1"),
        ("alert: Label", "opsd_monitor_up{target=\"main\"} == 0"),
        ("alert: Half", "up == 0 or pg_up == 0"),
        ("record: a:b", "rate(pg_up[5m])"),
        ("alert: Follows", "a:b > 1"),
    ]);
    let run = opsd.run(&["alerts", "doctor", "--prometheus", &url, &bad]).expect_code(1);
    for line in [
        "NEVER  Name: pg_up is not there",
        "NEVER  Own: opsd_postgres_up is no metric of opsd's",
        "NEVER  State: opsd_postgres_connections{state=\"asleep\"} is there, and never with these labels",
        "NEVER  Label: opsd_monitor_up{target=\"main\"} is there, and has no such label",
        "part   Half: pg_up is not there",
        "NEVER  a:b: pg_up is not there",
        "NEVER  Follows: a:b is not there",
        "8 rules, 6 can never fire, 0 quiet",
    ] {
        assert!(run.stdout.lines().any(|found| found == line), "{line}\n{run}");
    }
    assert!(!run.stdout.contains("Fine"), "{run}");
    let run = opsd.run(&["alerts", "doctor", "--json", "--prometheus", &url, &bad]).expect_code(1);
    assert_eq!(
        (&run.json()["never"], &run.json()["findings"][1]["state"]),
        (&6.into(), &"never".into()),
        "{run}"
    );

    // opsd's own rules for PostgreSQL: all that can be quiet is, and none is dead.
    let own = root().join("alerts/postgres.rules.yml");
    opsd.ok(&["alerts", "doctor", "--prometheus", &url, own.to_str().unwrap()]);

    let gone = format!("http://user:s3cret@127.0.0.1:{}", postgres::free_port());
    let run = opsd.run(&["alerts", "doctor", "--prometheus", &gone, &bad]);
    run.expect_failure(1, &["cannot ask Prometheus", "--prometheus URL"]);
    opsd.run(&["alerts", "doctor", "--prometheus", "ftp://x", &bad])
        .expect_failure(2, &["neither http nor https"]);
    std::fs::write(&rules, "groups:\n- name: g\n  rules: [{alert: A, expr: 'sum('}]\n").unwrap();
    opsd.run(&["alerts", "doctor", &bad]).expect_failure(1, &["is no rule file", "expression of A"]);
}
