//! `[restore]`: how sets are loaded into a server that is there.

use std::collections::BTreeMap;
use std::time::Duration;

use super::walk::{Section, Walk};

/// How long filling materialized views that ask other servers may take: all else is restored by then, and somebody
/// waits for the end.
pub const REFRESH_TIMEOUT: Duration = Duration::from_hours(2);

/// What the operator wants set in each session of a restore, by name, and how long views may take.
pub(super) fn restore(walk: &mut Walk<'_>, root: &Section<'_>) -> (BTreeMap<String, String>, Duration) {
    let Some(section) = walk.section(root, "restore") else { return (BTreeMap::new(), REFRESH_TIMEOUT) };
    walk.only(&section, &["settings", "refresh_timeout"]);
    let found = walk.duration(&section, "refresh_timeout");
    if let Some((place, _)) = found.as_ref().filter(|(_, timeout)| timeout.is_zero()) {
        walk.mistake(place, "leaves no time for a materialized view", "as in \"2h\"");
    }
    (settings(walk, &section), found.map_or(REFRESH_TIMEOUT, |(_, timeout)| timeout))
}

fn settings(walk: &mut Walk<'_>, section: &Section<'_>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Some(wanted) = walk.section(section, "settings") else { return found };
    for name in wanted.names() {
        let place = walk.place(&wanted, &name);
        let is_name = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.".contains(c));
        if !is_name {
            walk.mistake(&place, "is not the name of a setting", "such as maintenance_work_mem = \"1GB\"");
        } else if let Some(text) = walk.string(&wanted, &name) {
            found.insert(name, text.value);
        }
    }
    found
}
