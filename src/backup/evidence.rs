//! From what the archives held to a proof, and the check that the set is whole.
//!
//! pg_dump decides what a dump contains, but an option that matches nothing is silent, and `-t` can
//! bring along what another archive also holds. So the tables of contents are read back: over the
//! set, the data of each table and each sequence's value stands exactly once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::coordinator::Coordinator;
use super::inventory::{Inventory, is_replaced};
use super::undumped::Undumped;
use crate::error::{Error, Result};
use crate::set::EXTENSION_TABLES;
use crate::set::archive::copy::{parse_copy, parse_encoding, parse_setval};
use crate::set::archive::parser::Contents;
use crate::set::fingerprint::RowSecret;
use crate::set::manifest::ProofState;
use crate::set::proof::{Computed, Fingerprint, Proof, Sequence, Table};

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
    large_object_properties: Option<Fingerprint>,
    computed: Vec<Computed>,
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
    check_once(&coordinator.inventory, &coordinator.plan.without_data, archives)?;
    check_along(&coordinator.plan.along, archives)?;

    let mut warnings = Vec::new();
    let mut state = ProofState::Complete;
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    let mut sequences = Vec::new();
    let mut large_objects = Fingerprint::default();
    let mut encoding = String::new();
    let mut table_entries = 0;
    for (archive, contents) in archives {
        large_objects.add(contents.large_objects);
        for entry in &contents.entries {
            match entry.desc.as_str() {
                "ENCODING" => encoding = parse_encoding(&entry.defn).unwrap_or_default().to_owned(),
                "SEQUENCE SET" if is_replaced(&entry.namespace) || is_replaced(&entry.tag) => {
                    state = ProofState::Partial;
                    warnings.push(format!("the value of {}.{} has no proof", entry.namespace, entry.tag));
                }
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
                    let statement = parse_copy(&entry.copy);
                    match (found, statement) {
                        // A name that is not UTF-8 came out with replacement characters: it cannot be
                        // asked for again.
                        (Some(found), Ok(statement)) if !is_replaced(&entry.copy) => {
                            let copy = entry.copy.trim_end().to_owned();
                            let empty = Table {
                                schema: statement.schema,
                                name: statement.table,
                                copy: copy.clone(),
                                entries: 0,
                                is_whole: archive == EXTENSION_TABLES,
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
    let mut total = large_objects;
    tables.values().for_each(|t| total.add(t.fingerprint));
    for name in take_mixed(&mut tables) {
        state = ProofState::Partial;
        warnings.push(format!(
            "rows of {name} have no proof: they are loaded through it, and its partitions have their columns in \
             different orders"
        ));
    }
    if large_objects.rows != coordinator.inventory.large_objects {
        return Err(Error::new(format!(
            "the dump holds {} large objects, the snapshot {}",
            large_objects.rows, coordinator.inventory.large_objects
        )));
    }
    let own = &coordinator.properties.own;
    let proof = Proof {
        format: crate::set::manifest::FORMAT,
        secret: secret.to_base64(),
        encoding,
        tables: tables.into_values().collect(),
        large_objects,
        large_object_properties,
        sequences,
        settings: own.settings.clone(),
        owner: own.owner.clone(),
        acl: own.acl.clone(),
        comment: own.comment.clone(),
        connection_limit: own.connection_limit,
        is_template: own.is_template,
        tablespace: own.tablespace.clone(),
        labels: own.labels.clone(),
        excluded: coordinator.plan.excluded.clone(),
        computed,
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

/// Takes out what is named by several statements: partitions that are loaded through their root and have their columns
/// in different orders. A restore may put a row into another partition, and nobody can tell then in which order it was
/// hashed.
fn take_mixed(tables: &mut BTreeMap<String, Table>) -> BTreeSet<String> {
    let mut statements: HashMap<(String, String), usize> = HashMap::new();
    for table in tables.values() {
        *statements.entry((table.schema.clone(), table.name.clone())).or_default() += 1;
    }
    let is_mixed = |t: &Table| statements.get(&(t.schema.clone(), t.name.clone())).is_some_and(|n| *n > 1);
    let mixed = tables.values().filter(|t| is_mixed(t)).map(|t| format!("{}.{}", t.schema, t.name)).collect();
    tables.retain(|_, table| !is_mixed(table));
    mixed
}

/// Every table that has rows and every sequence: exactly once over all archives.
fn check_once(
    inventory: &Inventory,
    without_data: &HashSet<u32>,
    archives: &[(String, Contents)],
) -> Result<()> {
    let mut seen: HashMap<(&str, &str, &str), &str> = HashMap::new();
    for (archive, contents) in archives {
        for entry in &contents.entries {
            if !matches!(entry.desc.as_str(), "TABLE DATA" | "SEQUENCE SET") {
                continue;
            }
            let key = (entry.desc.as_str(), entry.namespace.as_str(), entry.tag.as_str());
            // Two names may look alike where bytes were replaced.
            let is_exact = !is_replaced(&entry.namespace) && !is_replaced(&entry.tag);
            if let Some(other) = seen.insert(key, archive)
                && is_exact
            {
                return Err(Error::new(format!(
                    "{} of {}.{} is in {other} and in {archive}",
                    entry.desc.to_lowercase(),
                    entry.namespace,
                    entry.tag
                )));
            }
        }
    }
    // Names in another encoding than UTF-8 were replaced on reading the archive.
    let is_there = |desc: &str, schema: &str, name: &str| {
        let comparable = inventory.has_exact(schema) && inventory.has_exact(name);
        !comparable || seen.contains_key(&(desc, schema, name))
    };
    let tables = inventory.tables.iter().filter(|t| !without_data.contains(&t.oid) && !t.is_extension_member);
    for t in tables {
        if !is_there("TABLE DATA", &t.schema, &t.name) {
            return Err(Error::new(format!("rows of {} are in no archive", t.display())));
        }
    }
    let sequences =
        inventory.sequences.iter().filter(|s| !without_data.contains(&s.oid) && !s.is_extension_member);
    for s in sequences {
        if !is_there("SEQUENCE SET", &s.schema, &s.name) {
            return Err(Error::new(format!(
                "the value of sequence {}.{} is in no archive",
                s.schema, s.name
            )));
        }
    }
    Ok(())
}

/// Every table that is taken along is in the archive that was made for it.
fn check_along(along: &[Undumped], archives: &[(String, Contents)]) -> Result<()> {
    let entries = archives.iter().filter(|(name, _)| name == EXTENSION_TABLES).flat_map(|(_, c)| &c.entries);
    let rows: HashSet<(&str, &str)> = entries
        .filter(|entry| entry.desc == "TABLE DATA")
        .map(|entry| (entry.namespace.as_str(), entry.tag.as_str()))
        .collect();
    let is_lost = |t: &&Undumped| !t.is_partitioned && !rows.contains(&(t.schema.as_str(), t.name.as_str()));
    match along.iter().find(is_lost) {
        None => Ok(()),
        Some(table) => Err(Error::new(format!("rows of {} are in no archive", table.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::inventory;
    use crate::set::archive::Entry;

    fn archive(name: &str, entries: &[(&str, &str)]) -> (String, Contents) {
        let entries = entries
            .iter()
            .map(|(desc, tag)| Entry {
                desc: (*desc).into(),
                tag: (*tag).into(),
                namespace: "public".into(),
                ..Entry::default()
            })
            .collect();
        (name.into(), Contents { entries, ..Contents::default() })
    }

    fn inventory(encoding: &str) -> Inventory {
        let table = |oid, name: &str| inventory::Table {
            oid,
            schema: "public".into(),
            name: name.into(),
            ..Default::default()
        };
        let sequence = inventory::Sequence {
            oid: 9,
            schema: "public".into(),
            name: "s".into(),
            owned_by: Some(1),
            ..Default::default()
        };
        Inventory {
            encoding: encoding.into(),
            tables: vec![table(1, "a"), table(2, "b")],
            sequences: vec![sequence],
            ..Inventory::default()
        }
    }

    #[test]
    fn what_is_twice_or_not_at_all_in_the_archives_fails_the_set() {
        const A: (&str, &str) = ("TABLE DATA", "a");
        const B: (&str, &str) = ("TABLE DATA", "b");
        const S: (&str, &str) = ("SEQUENCE SET", "s");
        let check = |rest: &[(&str, &str)], large: &[(&str, &str)]| {
            let archives = [archive("data-rest", rest), archive("data-1", large)];
            check_once(&inventory("UTF8"), &HashSet::new(), &archives).map_err(|e| e.to_string())
        };
        assert_eq!(check(&[B, S], &[A]), Ok(()));
        let twice = |what: &str| Err(format!("{what} is in data-rest and in data-1"));
        assert_eq!(check(&[A, B, S], &[A]), twice("table data of public.a"));
        assert_eq!(check(&[B, S], &[A, S]), twice("sequence set of public.s"));
        assert_eq!(check(&[S], &[A]), Err("rows of public.b are in no archive".into()));
        assert_eq!(check(&[B], &[A]), Err("the value of sequence public.s is in no archive".into()));
        // A sequence's value is no substitute for a table of its name.
        assert!(check(&[("SEQUENCE SET", "b"), S], &[A]).is_err());
    }

    #[test]
    fn tables_without_rows_of_their_own_and_extensions_may_be_absent() {
        let mut inventory = inventory("UTF8");
        inventory.tables[0].is_extension_member = true;
        inventory.sequences[0].is_extension_member = true;
        let without = HashSet::from([2]);
        assert!(check_once(&inventory, &without, &[archive("full", &[])]).is_ok());
        assert!(check_once(&inventory, &HashSet::new(), &[archive("full", &[])]).is_err());
    }

    #[test]
    fn names_that_are_not_utf8_are_not_held_against_the_set() {
        let mut inventory = inventory("LATIN1");
        inventory.tables[1].name = "t\u{e4}ble".into();
        let rows = ("TABLE DATA", "t\u{fffd}ble");
        let archives = [archive("full", &[("TABLE DATA", "a"), rows, rows, ("SEQUENCE SET", "s")])];
        assert_eq!(check_once(&inventory, &HashSet::new(), &archives).map_err(|e| e.to_string()), Ok(()));
        inventory.encoding = "UTF8".into();
        assert!(check_once(&inventory, &HashSet::new(), &archives).is_err());
    }
}
