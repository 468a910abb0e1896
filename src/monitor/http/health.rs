//! Health pages: which member of a JSON object is well. Pure.
//!
//! There is no standard that all follow. A member is a truth, a word, or an object (or a list of them)
//! with a `status`. A word that nobody knows is not well where it stands as a status, and no statement
//! at all where it stands alone: it may be a version.

use serde_json::{Map, Value};

/// Components that become series; a page with more is no health page.
const MOST: usize = 100;

/// Words of pages in the wild, in lower case.
const WELL: &[&str] = &[
    "ok",
    "up",
    "pass",
    "passed",
    "passing",
    "healthy",
    "good",
    "green",
    "alive",
    "available",
    "connected",
    "online",
    "ready",
    "running",
    "operational",
    "success",
    "true",
];
const UNWELL: &[&str] = &[
    "down",
    "fail",
    "failed",
    "failing",
    "failure",
    "error",
    "critical",
    "unhealthy",
    "bad",
    "red",
    "dead",
    "unavailable",
    "disconnected",
    "offline",
    "degraded",
    "warn",
    "warning",
    "timeout",
    "out_of_service",
    "false",
];
/// Members of a component that tell how it is, the first that is there counts.
const KEYS: &[&str] = &["status", "state", "healthy", "health", "ok", "up"];

/// The members that say how they are.
pub(super) fn components(members: &Map<String, Value>) -> impl Iterator<Item = (&str, bool)> {
    members.iter().filter_map(|(name, value)| Some((name.as_str(), is_well(value)?))).take(MOST)
}

fn is_well(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(is_so) => Some(*is_so),
        Value::String(word) => of_word(word),
        Value::Object(members) => KEYS.iter().find_map(|key| members.get(*key)).map(status),
        // As in application/health+json: all of them must be well.
        Value::Array(items) => {
            let known: Vec<bool> = items.iter().filter(|item| item.is_object()).filter_map(is_well).collect();
            (!known.is_empty()).then(|| known.iter().all(|is_so| *is_so))
        }
        Value::Null | Value::Number(_) => None,
    }
}

fn status(value: &Value) -> bool {
    match value {
        Value::Bool(is_so) => *is_so,
        Value::String(word) => of_word(word).unwrap_or(false),
        _ => false,
    }
}

fn of_word(word: &str) -> Option<bool> {
    let word = word.trim().to_ascii_lowercase();
    if WELL.contains(&word.as_str()) {
        Some(true)
    } else if UNWELL.contains(&word.as_str()) {
        Some(false)
    } else {
        None
    }
}

/// A value as the configuration writes it: a string without its quotes, anything else as JSON.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(page: Value) -> Vec<(String, bool)> {
        let members = page.as_object().unwrap();
        components(members).map(|(name, is_up)| (name.to_owned(), is_up)).collect()
    }

    #[test]
    fn pages_in_the_wild() {
        let page = json!({
            "status": "UP", "version": "1.2.3", "uptime": 12, "note": null,
            "db": { "status": "UP", "details": { "status": "DOWN" } },
            "disk": { "status": "SOMETHING ELSE" }, "queue": { "healthy": false }, "cache": true,
            "mail": [{ "status": "pass" }, { "status": "warn" }], "empty": [], "plain": { "latency": 3 },
        });
        let down = ["disk", "mail", "queue"];
        for (name, is_up) in found(page.clone()) {
            assert_eq!(is_up, !down.contains(&name.as_str()), "{name}");
        }
        assert_eq!(found(page).len(), 6);
    }

    #[test]
    fn what_is_no_health_page_is_bounded() {
        let page: Map<String, Value> = (0..500).map(|n| (n.to_string(), json!(true))).collect();
        assert_eq!(components(&page).count(), MOST);
        assert_eq!(
            (text(&json!("ok")), text(&json!(true)), text(&json!(3))),
            ("ok".into(), "true".into(), "3".into())
        );
    }
}
