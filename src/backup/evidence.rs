//! From what the archives held to a proof, and the check that the set is whole.
//!
//! pg_dump decides what a dump contains, but an option that matches nothing is silent, and `-t` can
//! bring along what another archive also holds. So the tables of contents are read back: over the
//! set, the data of each table and each sequence's value stands exactly once.

use std::collections::{BTreeMap, HashMap};

use super::coordinator::Coordinator;
use crate::error::{Error, Result};
use crate::postgres::properties;
use crate::set::archive::copy::{parse_copy, parse_encoding, parse_setval, split_relation};
use crate::set::archive::parser::Contents;
use crate::set::fingerprint::RowSecret;
use crate::set::manifest::ProofState;
use crate::set::proof::{Fingerprint, Proof, Sequence, Setting, Table};

/// What all archives of a database held together.
pub struct Evidence {
    /// To be sealed; absent where the archives' version is unknown.
    pub proof: Option<Proof>,
    /// How complete it is.
    pub state: ProofState,
    /// Tables with rows in the set.
    pub tables: u64,
    /// Their rows.
    pub rows: u64,
    /// Bytes of COPY text and large objects.
    pub bytes: u64,
    /// What is missing from the proof.
    pub warnings: Vec<String>,
}

/// Checks that everything is there exactly once, and sums it up.
pub fn evidence(
    coordinator: &Coordinator,
    secret: &RowSecret,
    archives: &[(String, Contents)],
) -> Result<Evidence> {
    if let Some((_, unknown)) = archives.iter().find(|(_, c)| c.header.is_none()) {
        let (major, minor) = unknown.version;
        return Ok(Evidence {
            proof: None,
            state: ProofState::None,
            tables: coordinator.plan.tables as u64,
            rows: 0,
            bytes: 0,
            warnings: vec![format!(
                "pg_dump writes archive version {major}.{minor}, which this opsd cannot prove; upgrade opsd"
            )],
        });
    }
    check_once(coordinator, archives)?;

    let mut warnings = Vec::new();
    let mut state = ProofState::Complete;
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    let mut sequences = Vec::new();
    let mut large_objects = Fingerprint::default();
    let mut encoding = String::new();
    let mut table_entries = 0;
    for (_, contents) in archives {
        large_objects.add(contents.large_objects);
        for entry in &contents.entries {
            match entry.desc.as_str() {
                "ENCODING" => encoding = parse_encoding(&entry.defn).unwrap_or_default().to_owned(),
                "SEQUENCE SET" => {
                    let (last_value, is_called) = parse_setval(&entry.defn)?;
                    sequences.push(Sequence {
                        schema: entry.namespace.clone(),
                        name: entry.tag.clone(),
                        last_value,
                        is_called,
                    });
                }
                "TABLE DATA" => {
                    table_entries += 1;
                    let found = contents.data.get(&entry.dump_id).copied();
                    let statement = parse_copy(&entry.copy).and_then(|c| split_relation(c.relation));
                    match (found, statement) {
                        // A name that is not UTF-8 came out with replacement characters: it cannot be
                        // asked for again.
                        (Some(found), Ok((schema, name))) if !entry.copy.contains('\u{fffd}') => {
                            let copy = entry.copy.trim_end().to_owned();
                            let empty = Table {
                                schema,
                                name,
                                copy: copy.clone(),
                                entries: 0,
                                fingerprint: Fingerprint::default(),
                            };
                            let table = tables.entry(copy).or_insert(empty);
                            table.entries += 1;
                            table.fingerprint.add(found);
                        }
                        _ => {
                            state = ProofState::Partial;
                            warnings.push(format!("rows of {}.{} have no proof", entry.namespace, entry.tag));
                        }
                    }
                }
                _ => {}
            }
        }
    }
    if large_objects.rows != coordinator.inventory.large_objects {
        return Err(Error::new(format!(
            "the dump holds {} large objects, the snapshot {}",
            large_objects.rows, coordinator.inventory.large_objects
        )));
    }
    let mut total = large_objects;
    tables.values().for_each(|t| total.add(t.fingerprint));
    let own = &coordinator.properties.own;
    let setting = |s: &properties::Setting| Setting { role: s.role.clone(), setting: s.setting.clone() };
    let proof = Proof {
        format: crate::set::manifest::FORMAT,
        secret: secret.to_base64(),
        encoding,
        tables: tables.into_values().collect(),
        large_objects,
        sequences,
        settings: own.settings.iter().map(setting).collect(),
        owner: own.owner.clone(),
        acl: own.acl.clone(),
        comment: own.comment.clone(),
        excluded: coordinator.plan.excluded.clone(),
    };
    Ok(Evidence {
        proof: Some(proof),
        state,
        tables: table_entries,
        rows: total.rows - large_objects.rows,
        bytes: total.bytes,
        warnings,
    })
}

/// Every table that has rows and every sequence: exactly once over all archives.
fn check_once(coordinator: &Coordinator, archives: &[(String, Contents)]) -> Result<()> {
    let mut seen: HashMap<(&str, &str, &str), &str> = HashMap::new();
    for (archive, contents) in archives {
        for entry in &contents.entries {
            if !matches!(entry.desc.as_str(), "TABLE DATA" | "SEQUENCE SET") {
                continue;
            }
            let key = (entry.desc.as_str(), entry.namespace.as_str(), entry.tag.as_str());
            if let Some(other) = seen.insert(key, archive) {
                return Err(Error::new(format!(
                    "{} of {}.{} is in {other} and in {archive}",
                    entry.desc.to_lowercase(),
                    entry.namespace,
                    entry.tag
                )));
            }
        }
    }
    // Names in another encoding than UTF-8 were replaced on reading; they are counted, not compared.
    let is_ascii = |schema: &str, name: &str| schema.is_ascii() && name.is_ascii();
    let utf8 = matches!(coordinator.properties.locale.encoding.as_str(), "UTF8" | "SQL_ASCII");
    let inventory = &coordinator.inventory;
    let without = &coordinator.plan.without_data;
    for t in inventory.tables.iter().filter(|t| !without.contains(&t.oid) && !t.is_extension_member) {
        let found = seen.contains_key(&("TABLE DATA", t.schema.as_str(), t.name.as_str()));
        if !found && (utf8 || is_ascii(&t.schema, &t.name)) {
            return Err(Error::new(format!("rows of {} are in no archive", t.display())));
        }
    }
    for s in inventory.sequences.iter().filter(|s| !s.is_extension_member) {
        let found = seen.contains_key(&("SEQUENCE SET", s.schema.as_str(), s.name.as_str()));
        if !found && (utf8 || is_ascii(&s.schema, &s.name)) {
            return Err(Error::new(format!(
                "the value of sequence {}.{} is in no archive",
                s.schema, s.name
            )));
        }
    }
    Ok(())
}
