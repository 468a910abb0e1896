//! `[restore]`: how sets are loaded into a server that is there.

use std::collections::BTreeMap;

use super::walk::{Section, Walk};

/// What the operator wants set in each session of a restore, by name.
pub(super) fn settings(walk: &mut Walk<'_>, root: &Section<'_>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Some(section) = walk.section(root, "restore") else { return found };
    walk.only(&section, &["settings"]);
    let Some(wanted) = walk.section(&section, "settings") else { return found };
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
