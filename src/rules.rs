//! Prometheus's rule files: which rules stand there, and which series they need.
//!
//! Any rule file, not only opsd's own. [`doctor`] asks a live Prometheus whether those series exist.
//! Whether a file is valid is promtool's to say; what is not understood here is an error all the same.

pub mod doctor;
pub mod promql;

use std::path::{Path, PathBuf};

use yaml_rust2::{Yaml, YamlLoader};

use crate::error::{Context, Error, Result};
use promql::Expr;

/// A rule of a file.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where it stands.
    pub file: PathBuf,
    /// The group that it is in.
    pub group: String,
    /// What it is called: the alert, or the series that it records.
    pub name: String,
    /// Whether it is an alert; else it records.
    pub is_alert: bool,
    /// What its expression needs.
    pub expr: Expr,
}

/// Reads a rule file.
pub fn read(path: &Path) -> Result<Vec<Rule>> {
    let text = std::fs::read_to_string(path)
        .map_err(Error::from)
        .with_context(|| format!("cannot read {}", path.display()))?;
    parse(path, &text).with_context(|| format!("{} is no rule file", path.display()))
}

fn parse(path: &Path, text: &str) -> Result<Vec<Rule>> {
    let documents = YamlLoader::load_from_str(text).map_err(Error::new)?;
    let mut rules = Vec::new();
    for document in &documents {
        for group in list(document, "groups")? {
            let name = string(group, "name").ok_or_else(|| Error::new("a group has no name"))?;
            for rule in list(group, "rules").with_context(|| format!("group {name}"))? {
                rules.push(read_rule(path, &name, rule).with_context(|| format!("group {name}"))?);
            }
        }
    }
    if rules.is_empty() {
        return Err(Error::new("it holds no groups with rules"));
    }
    Ok(rules)
}

fn read_rule(path: &Path, group: &str, rule: &Yaml) -> Result<Rule> {
    let (name, is_alert) = match (string(rule, "alert"), string(rule, "record")) {
        (Some(alert), None) => (alert, true),
        (None, Some(record)) => (record, false),
        _ => return Err(Error::new("a rule must have either alert or record")),
    };
    let expr = string(rule, "expr").ok_or_else(|| Error::new(format!("{name} has no expr")))?;
    let expr = promql::parse(&expr).with_context(|| format!("expression of {name}"))?;
    Ok(Rule { file: path.to_owned(), group: group.to_owned(), name, is_alert, expr })
}

fn list<'a>(yaml: &'a Yaml, key: &str) -> Result<&'a [Yaml]> {
    match &yaml[key] {
        Yaml::Array(items) => Ok(items),
        Yaml::BadValue | Yaml::Null => Ok(&[]),
        _ => Err(Error::new(format!("{key} is no list"))),
    }
}

/// A text, or a number: `expr: 1` is one, too.
fn string(yaml: &Yaml, key: &str) -> Option<String> {
    match &yaml[key] {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_what_is_none_is_refused() {
        let text = "groups:\n- name: g\n  rules:\n  - {alert: A, expr: up == 0, labels: {severity: x}}\n  \
                    - record: a:b\n    expr: |\n      sum(c)\n        / d\n  - {alert: B, expr: 1}\n- name: empty\n";
        let rules = parse(Path::new("f"), text).unwrap();
        let shown: Vec<_> =
            rules.iter().map(|r| (r.name.as_str(), r.is_alert, r.expr.selectors().len())).collect();
        assert_eq!(shown, [("A", true, 1), ("a:b", false, 2), ("B", true, 0)]);
        for text in [
            "",
            "groups: 1",
            "a: [",
            "groups:\n- rules: [{alert: a, expr: b}]",
            "groups:\n- {name: g, rules: [{alert: a}]}",
            "groups:\n- {name: g, rules: [{alert: a, record: b, expr: c}]}",
            "groups:\n- {name: g, rules: [{alert: a, expr: 'b c'}]}",
        ] {
            assert!(parse(Path::new("f"), text).is_err(), "{text}");
        }
    }
}
