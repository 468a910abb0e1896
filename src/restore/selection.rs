//! A part of a set: some tables or schemas, all but some tables, or some sections, as pg_restore's options name them.
//!
//! pg_restore takes a named table alone and leaves out its indexes, its keys and what its columns are made of. Here a
//! table comes with everything that makes it one: what its definition needs (schemas, types, functions, extensions)
//! and what belongs to it (defaults, indexes, constraints, triggers, privileges, partitions). What refers to another
//! table that is not restored is left out and named. The archive's own dependencies decide, not the text of
//! definitions. Deliberately absent: taking a part while a backup is made, which is the job's.

use std::collections::{HashMap, HashSet};

use super::Origin;
use super::builds::TableName;
use super::pg_restore::{fetch_contents, fetch_schema};
use crate::error::{Error, Result};
use crate::postgres::pattern::matches_pattern;
use crate::printable;
use crate::set::archive::split::EVERYWHERE;
use crate::set::archive::{Entry, Section};
use crate::set::manifest::Database;

/// Kinds of entries that hold rows or show them.
const RELATIONS: [&str; 4] = ["TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE"];
/// What belongs to the relation that an entry depends on.
const PARTS: [&str; 14] = [
    "DEFAULT",
    "SEQUENCE",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
    "FK CONSTRAINT",
    "INDEX",
    "INDEX ATTACH",
    "TABLE ATTACH",
    "TRIGGER",
    "RULE",
    "POLICY",
    "ROW SECURITY",
    "STATISTICS",
    "TABLE DATA",
];
/// What goes with an object of any kind, and needs nothing else.
const LABELS: [&str; 6] =
    ["COMMENT", "ACL", "SECURITY LABEL", "SEQUENCE OWNED BY", "SEQUENCE SET", "STATISTICS DATA"];
/// Most names that a warning lists.
const NAMED: usize = 20;

/// What was asked for. Everything, where nothing was.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Sections; all where there is none.
    pub sections: Vec<Section>,
    /// Names of schemas that are restored with all that is in them.
    pub schemas: Vec<String>,
    /// Patterns of tables, views and sequences that are restored.
    pub tables: Vec<String>,
    /// Patterns of those that are left out, with what needs them.
    pub excluded: Vec<String>,
}

impl Selection {
    /// Whether that is the whole set.
    pub fn is_all(&self) -> bool {
        self.sections.is_empty() && !self.is_of_objects()
    }

    /// An error for rows and indexes without definitions: they would go among those of a database that is in use, whose
    /// rows, sequences, large objects and keys are not the set's to change.
    pub fn check(&self) -> Result<()> {
        if self.takes(Section::PreData) {
            return Ok(());
        }
        Err(Error::usage("without section pre-data there is no database that this restore made").with_hint(
            "say --section pre-data as well; RESTORE.md shows how pg_restore restores the others by itself",
        ))
    }

    /// Whether a section is restored.
    fn takes(&self, section: Section) -> bool {
        self.sections.is_empty() || self.sections.contains(&section)
    }

    fn is_of_objects(&self) -> bool {
        !self.schemas.is_empty() || !self.tables.is_empty() || !self.excluded.is_empty()
    }

    /// Whether only what is named comes.
    fn names_some(&self) -> bool {
        !self.schemas.is_empty() || !self.tables.is_empty()
    }
}

/// The part of a database's set that is restored.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Entries of the archive of definitions, or of the one archive that holds all, in its order. Each has the section
    /// in which it is restored.
    pub entries: Vec<Entry>,
    /// Tables whose rows come.
    tables: HashSet<TableName>,
    /// What is left out beside what was asked for, in sentences.
    pub warnings: Vec<String>,
    /// Whether any rows come.
    pub with_rows: bool,
    sequences: HashSet<TableName>,
    /// Where all comes but what is excluded: the tables and sequences that do not. An extension's tables have rows and no
    /// definition in an archive, and large objects belong to no table.
    all_but: Option<HashSet<TableName>>,
}

impl Wanted {
    /// Entries of the one archive that holds all that do not come.
    pub fn without(&self, entries: &[Entry]) -> HashSet<i32> {
        let ids: HashSet<i32> = self.entries.iter().map(|e| e.dump_id).collect();
        let is_unwanted = |e: &&Entry| !ids.contains(&e.dump_id) && !EVERYWHERE.contains(&e.desc.as_str());
        entries.iter().filter(is_unwanted).map(|e| e.dump_id).collect()
    }

    /// Entries of an archive of rows that do not come.
    pub fn unwanted_rows(&self, entries: &[Entry]) -> HashSet<i32> {
        entries.iter().filter(|e| !self.wants_rows(e)).map(|e| e.dump_id).collect()
    }

    fn wants_rows(&self, entry: &Entry) -> bool {
        let name = (entry.namespace.clone(), entry.tag.clone());
        // The definition of an extension's table comes with its rows.
        match (&self.all_but, entry.desc.as_str()) {
            (Some(gone), "TABLE DATA" | "TABLE" | "SEQUENCE SET") => !gone.contains(&name),
            (None, "TABLE DATA" | "TABLE") => self.tables.contains(&name),
            (None, "SEQUENCE SET") => self.sequences.contains(&name),
            (all_but, desc) => all_but.is_some() || EVERYWHERE.contains(&desc),
        }
    }
}

/// Finds out what of a database's set is wanted; `None` where all of it is. The second value is the database without
/// the extensions that nothing of that needs.
pub async fn select(
    origin: &Origin,
    database: &Database,
    selection: &Selection,
) -> Result<Option<(Wanted, Database)>> {
    if selection.is_all() {
        return Ok(None);
    }
    let stream = |name: &str| database.streams.iter().find(|s| s.name == name);
    let entries = match (stream("schema"), stream("full")) {
        (Some(schema), _) => fetch_schema(origin, schema).await?.1,
        (None, Some(full)) => fetch_contents(origin, full).await?,
        (None, None) => return Err(Error::differs("the set has no schema stream")),
    };
    if entries.is_empty() {
        return Err(Error::new("the set's archive is of a version that this opsd does not know")
            .with_hint("restore all of it, or give pg_restore's own options as its RESTORE.md shows"));
    }
    let wanted = wanted(&entries, selection)?;
    let mut database = database.clone();
    let has = |name: &str| wanted.entries.iter().any(|e| e.desc == "EXTENSION" && e.tag == name);
    database.extensions.retain(|extension| has(&extension.name));
    Ok(Some((wanted, database)))
}

/// Which of these entries are wanted. An entry's dependencies stand before it.
fn wanted(entries: &[Entry], selection: &Selection) -> Result<Wanted> {
    let toc = Toc { by_id: entries.iter().map(|e| (e.dump_id, e)).collect() };
    check_names(entries, selection)?;
    let mut warnings = Vec::new();
    let excluded: HashSet<i32> = toc.with_partitions(
        entries
            .iter()
            .filter(|e| is_relation(e) && selection.excluded.iter().any(|p| matches(p, e)))
            .map(|e| e.dump_id)
            .collect(),
    );
    let mut gone = excluded.clone();
    for entry in entries {
        if entry.dependencies.iter().any(|id| gone.contains(id)) {
            gone.insert(entry.dump_id);
        }
    }
    let also: Vec<String> = entries
        .iter()
        .filter(|e| gone.contains(&e.dump_id) && !excluded.contains(&e.dump_id) && !is_dull(e))
        .filter(|e| !toc.is_part_of(e, &excluded))
        .map(named)
        .collect();
    warnings.extend(listed("left out as well, because of what is excluded", &also));

    let left: Vec<&Entry> = entries.iter().filter(|e| !gone.contains(&e.dump_id)).collect();
    let (ids, with_rows) = if selection.names_some() {
        let selected = toc
            .with_partitions(left.iter().filter(|e| is_selected(e, selection)).map(|e| e.dump_id).collect());
        let heirs = toc.heirs(&selected);
        let heirs: Vec<String> =
            left.iter().filter(|e| heirs.contains(&e.dump_id)).map(|e| named(e)).collect();
        warnings.extend(listed("not restored, though it inherits from what is", &heirs));
        let (ids, left_out) = toc.complete(&left, &selected, &gone);
        warnings.extend(listed("left out, because what it needs is not restored", &left_out));
        let bare: Vec<String> = left
            .iter()
            .filter(|e| ["TABLE", "MATERIALIZED VIEW"].contains(&e.desc.as_str()))
            .filter(|e| ids.contains(&e.dump_id) && !selected.contains(&e.dump_id))
            .map(|e| named(e))
            .collect();
        warnings.extend(listed("restored without its rows, because others need its definition", &bare));
        (ids, selected)
    } else {
        let all: HashSet<i32> = left.iter().map(|e| e.dump_id).collect();
        (all.clone(), all)
    };
    let names = |kind: &str, ids: &HashSet<i32>| -> HashSet<TableName> {
        let of_kind = left.iter().filter(|e| e.desc == kind && ids.contains(&e.dump_id));
        of_kind.map(|e| (e.namespace.clone(), e.tag.clone())).collect()
    };
    Ok(Wanted {
        tables: names("TABLE", &with_rows),
        sequences: names("SEQUENCE", &ids),
        with_rows: selection.takes(Section::Data),
        all_but: (!selection.names_some()).then(|| {
            let of_kind = entries.iter().filter(|e| ["TABLE", "SEQUENCE"].contains(&e.desc.as_str()));
            let gone = of_kind.filter(|e| gone.contains(&e.dump_id));
            gone.map(|e| (e.namespace.clone(), e.tag.clone())).collect()
        }),
        entries: in_sections(entries)
            .filter(|e| ids.contains(&e.dump_id) && selection.takes(e.section))
            .collect(),
        warnings,
    })
}

/// Each name must mean something: what was misspelt would be missing.
fn check_names(entries: &[Entry], selection: &Selection) -> Result<()> {
    let nothing = |option: &str, name: &str| {
        Err(Error::usage(format!("{option} {}: the set holds nothing of that name", printable::word(name)))
            .with_hint(
                "a table is NAME or SCHEMA.NAME, where * and ? match anything; upper and lower case differ",
            ))
    };
    for (option, patterns) in [("--table", &selection.tables), ("--exclude", &selection.excluded)] {
        for pattern in patterns {
            if !entries.iter().any(|e| is_relation(e) && matches(pattern, e)) {
                return nothing(option, pattern);
            }
        }
    }
    for schema in &selection.schemas {
        if !entries.iter().any(|e| e.namespace == *schema || (e.desc == "SCHEMA" && e.tag == *schema)) {
            return nothing("--schema", schema);
        }
    }
    Ok(())
}

fn matches(pattern: &str, entry: &Entry) -> bool {
    matches_pattern(pattern, &entry.namespace, &entry.tag)
}

/// Whether an entry makes what a user may call a table.
fn is_relation(entry: &Entry) -> bool {
    RELATIONS.contains(&entry.desc.as_str()) || entry.desc == "SEQUENCE"
}

fn is_selected(entry: &Entry, selection: &Selection) -> bool {
    // A publication is the database's.
    let is_part = (PARTS.contains(&entry.desc.as_str()) && entry.desc != "SEQUENCE")
        || entry.desc.starts_with("PUBLICATION ");
    let in_schema = selection.schemas.contains(&entry.namespace)
        || (entry.desc == "SCHEMA" && selection.schemas.contains(&entry.tag));
    (in_schema
        && !is_part
        && !LABELS.contains(&entry.desc.as_str())
        && entry.desc != "MATERIALIZED VIEW DATA")
        || (is_relation(entry) && selection.tables.iter().any(|pattern| matches(pattern, entry)))
}

/// Whether an entry goes with its object, and needs no word of its own.
fn is_dull(entry: &Entry) -> bool {
    LABELS.contains(&entry.desc.as_str())
        || ["MATERIALIZED VIEW DATA", "INDEX", "INDEX ATTACH"].contains(&entry.desc.as_str())
}

/// Whether a relation has an entry whose tag begins with the name of what has it, as that of a key or a trigger.
fn has(relation: &Entry, entry: &Entry) -> bool {
    entry.namespace == relation.namespace
        && entry.tag.strip_prefix(&relation.tag).is_some_and(|rest| rest.starts_with(' '))
}

/// The archive's entries with the section that each is restored in: what has none belongs to what stands before it.
fn in_sections(entries: &[Entry]) -> impl Iterator<Item = Entry> {
    let mut section = Section::PreData;
    entries.iter().map(move |entry| {
        if entry.section != Section::None {
            section = entry.section;
        }
        // Up to pg_dump 16 a large object is made before the rows, and filled among them.
        let is_large_object = entry.desc.starts_with("BLOB") || entry.tag.starts_with("LARGE OBJECT ");
        Entry { section: if is_large_object { Section::Data } else { section }, ..entry.clone() }
    })
}

/// `table app.users`, from an entry.
fn named(entry: &Entry) -> String {
    let dot = if entry.namespace.is_empty() { "" } else { "." };
    format!("{} {}{dot}{}", entry.desc.to_lowercase(), entry.namespace, entry.tag)
}

fn listed(what: &str, names: &[String]) -> Option<String> {
    let shown = names.iter().take(NAMED).map(|name| printable::line(name)).collect::<Vec<_>>().join(", ");
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!names.is_empty()).then(|| format!("{what}: {shown}{more}"))
}

/// A table of contents by dump id.
struct Toc<'a> {
    by_id: HashMap<i32, &'a Entry>,
}

impl<'a> Toc<'a> {
    /// These entries with the partitions of those that are tables.
    fn with_partitions(&self, mut ids: HashSet<i32>) -> HashSet<i32> {
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        for attach in self.by_id.values().filter(|e| e.desc == "TABLE ATTACH") {
            let (child, parent): (Vec<&Entry>, Vec<&Entry>) = self
                .needs(attach)
                .filter(|e| e.desc == "TABLE")
                .partition(|e| (&e.namespace, &e.tag) == (&attach.namespace, &attach.tag));
            for parent in parent {
                children.entry(parent.dump_id).or_default().extend(child.iter().map(|e| e.dump_id));
            }
        }
        let mut todo: Vec<i32> = ids.iter().copied().collect();
        while let Some(id) = todo.pop() {
            todo.extend(children.get(&id).into_iter().flatten().filter(|child| ids.insert(**child)));
        }
        ids
    }

    /// What an entry depends on itself.
    fn needs(&self, entry: &'a Entry) -> impl Iterator<Item = &'a Entry> {
        entry.dependencies.iter().filter_map(|id| self.by_id.get(id).copied())
    }

    /// Whether an entry belongs to one of these relations: to the one that has it, not to another that it refers to.
    fn is_part_of(&self, entry: &'a Entry, relations: &HashSet<i32>) -> bool {
        let mut of = self.needs(entry).filter(|e| relations.contains(&e.dump_id));
        match entry.desc.as_str() {
            "DEFAULT" | "FK CONSTRAINT" | "TRIGGER" | "RULE" | "POLICY" => of.any(|e| has(e, entry)),
            desc => PARTS.contains(&desc) && of.next().is_some(),
        }
    }

    /// What an entry needs, directly or not, that is not in `there` yet, with itself.
    fn missing(&self, entry: &'a Entry, there: &HashSet<i32>) -> Vec<&'a Entry> {
        let mut found: Vec<&Entry> = Vec::new();
        let mut seen = HashSet::new();
        let mut todo = vec![entry];
        while let Some(entry) = todo.pop() {
            if !there.contains(&entry.dump_id) && seen.insert(entry.dump_id) {
                found.push(entry);
                todo.extend(self.needs(entry));
            }
        }
        found
    }

    /// The selected entries with what they need and what belongs to them. What would need a relation that is not
    /// restored, or one that is `gone`, is left out; those are named in the second value.
    fn complete(
        &self,
        entries: &[&'a Entry],
        selected: &HashSet<i32>,
        gone: &HashSet<i32>,
    ) -> (HashSet<i32>, Vec<String>) {
        let (mut ids, mut left_out) = (HashSet::new(), Vec::new());
        for entry in entries.iter().filter(|e| selected.contains(&e.dump_id)) {
            ids.extend(self.missing(entry, &ids).iter().map(|e| e.dump_id));
        }
        let schemas: HashSet<&str> =
            entries.iter().filter(|e| selected.contains(&e.dump_id)).map(|e| e.namespace.as_str()).collect();
        for entry in entries {
            let desc = entry.desc.as_str();
            // Of a schema that every database has, only its privileges are in an archive.
            let of_schema = (desc == "ACL" && self.needs(entry).next().is_none())
                .then(|| entry.tag.strip_prefix("SCHEMA "))
                .flatten()
                .is_some_and(|schema| schemas.contains(schema));
            let is_label =
                of_schema || (LABELS.contains(&desc) && entry.dependencies.iter().any(|id| ids.contains(id)));
            let is_part = self.is_part_of(entry, selected);
            let is_view =
                desc == "MATERIALIZED VIEW DATA" && self.needs(entry).any(|e| selected.contains(&e.dump_id));
            // What a partition has by way of the table above it.
            let is_above = ["FK CONSTRAINT", "TRIGGER"].contains(&desc)
                && self.needs(entry).any(|e| {
                    ids.contains(&e.dump_id)
                        && !selected.contains(&e.dump_id)
                        && e.desc == "TABLE"
                        && has(e, entry)
                });
            if is_above {
                left_out.push(named(entry));
            }
            if ids.contains(&entry.dump_id) || !(is_label || is_part || is_view) {
                continue;
            }
            let missing = self.missing(entry, &ids);
            let is_without = |e: &&Entry| RELATIONS.contains(&e.desc.as_str()) || gone.contains(&e.dump_id);
            // A table that only comes as a definition has no rows that a key could refer to.
            let is_dangling = desc == "FK CONSTRAINT"
                && self.needs(entry).any(|e| e.desc == "TABLE" && !selected.contains(&e.dump_id));
            let is_unfit = is_dangling || (is_view && !self.reads_selected(entry, selected));
            if is_unfit || missing.iter().any(is_without) {
                left_out.push(named(entry));
            } else {
                ids.extend(missing.iter().map(|e| e.dump_id));
            }
        }
        (ids, left_out)
    }

    /// Tables that are partitions of some of these, or inherit from them, at any depth.
    fn heirs(&self, of: &HashSet<i32>) -> HashSet<i32> {
        let tables: Vec<&Entry> = self.by_id.values().copied().filter(|e| e.desc == "TABLE").collect();
        let mut heirs: HashSet<i32> = HashSet::new();
        loop {
            let is_heir = |e: &&&Entry| {
                let above = |id: &i32| {
                    (of.contains(id) || heirs.contains(id))
                        && self.by_id.get(id).is_some_and(|e| e.desc == "TABLE")
                };
                !of.contains(&e.dump_id) && !heirs.contains(&e.dump_id) && e.dependencies.iter().any(above)
            };
            let more: Vec<i32> = tables.iter().filter(is_heir).map(|e| e.dump_id).collect();
            if more.is_empty() {
                return heirs;
            }
            heirs.extend(more);
        }
    }

    /// Whether all tables behind a materialized view come with their rows; else it would be filled wrongly.
    fn reads_selected(&self, entry: &'a Entry, selected: &HashSet<i32>) -> bool {
        let mut behind: HashSet<i32> =
            self.missing(entry, &HashSet::new()).iter().map(|e| e.dump_id).collect();
        behind.extend(self.heirs(&behind));
        let tables = behind.iter().filter_map(|id| self.by_id.get(id)).filter(|e| e.desc == "TABLE");
        tables.map(|e| e.dump_id).all(|id| selected.contains(&id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dump_id: i32, desc: &str, name: &str, section: Section, dependencies: &[i32]) -> Entry {
        let (namespace, tag) = name.split_once('.').unwrap_or(("", name));
        Entry {
            dump_id,
            desc: desc.into(),
            namespace: namespace.into(),
            tag: tag.into(),
            section,
            dependencies: dependencies.to_vec(),
            ..Entry::default()
        }
    }

    /// Dependencies as pg_dump 17 writes them.
    fn sample() -> Vec<Entry> {
        use Section::{Data, None, PostData, PreData};
        vec![
            entry(1, "ENCODING", "ENCODING", None, &[]),
            entry(2, "SCHEMA", "app", PreData, &[]),
            entry(3, "ACL", "SCHEMA app", None, &[2]),
            entry(4, "EXTENSION", "hstore", PreData, &[]),
            entry(5, "TYPE", "app.mood", PreData, &[2]),
            entry(6, "FUNCTION", "app.of_trigger()", PreData, &[2]),
            entry(7, "TABLE", "app.users", PreData, &[2, 5]),
            entry(8, "COMMENT", "app.TABLE users", None, &[7]),
            entry(9, "SEQUENCE", "app.users_id_seq", PreData, &[7, 2]),
            entry(10, "SEQUENCE OWNED BY", "app.users_id_seq", PreData, &[9]),
            entry(11, "TABLE", "app.posts", PreData, &[2, 4]),
            entry(12, "VIEW", "app.both", PreData, &[7, 11]),
            entry(13, "MATERIALIZED VIEW", "app.counts", PreData, &[12]),
            entry(14, "TABLE", "app.log", PreData, &[2]),
            entry(15, "TABLE", "app.log_1", PreData, &[14, 2]),
            entry(16, "TABLE ATTACH", "app.log_1", PreData, &[15, 14]),
            entry(17, "DEFAULT", "app.users id", PreData, &[7, 9]),
            entry(18, "TABLE DATA", "app.users", Data, &[7]),
            entry(19, "SEQUENCE SET", "app.users_id_seq", Data, &[9]),
            entry(20, "BLOBS", "BLOBS", Data, &[]),
            entry(21, "CONSTRAINT", "app.users users_pkey", PostData, &[7]),
            entry(22, "INDEX", "app.posts_at", PostData, &[11]),
            entry(23, "COMMENT", "app.INDEX posts_at", None, &[22]),
            entry(24, "FK CONSTRAINT", "app.posts posts_user", PostData, &[21, 11, 7]),
            entry(25, "TRIGGER", "app.users t", PostData, &[7, 6]),
            entry(26, "PUBLICATION", "pub", PostData, &[]),
            entry(27, "PUBLICATION TABLE", "app.pub users", PostData, &[26, 7]),
            entry(28, "MATERIALIZED VIEW DATA", "app.counts", PostData, &[13]),
        ]
    }

    fn ids(wanted: &Wanted) -> Vec<i32> {
        wanted.entries.iter().map(|e| e.dump_id).collect()
    }

    fn select(change: impl Fn(&mut Selection)) -> Wanted {
        let mut selection = Selection::default();
        change(&mut selection);
        wanted(&sample(), &selection).unwrap()
    }

    #[test]
    fn a_table_comes_with_what_it_is_made_of_and_what_belongs_to_it() {
        let users = select(|s| s.tables = vec!["app.users".into()]);
        assert_eq!(ids(&users), [2, 3, 5, 6, 7, 8, 9, 10, 17, 18, 19, 21, 25]);
        assert_eq!(users.tables, HashSet::from([("app".into(), "users".into())]));
        assert!(users.warnings.is_empty(), "{:?}", users.warnings);
        let rows = [sample()[17].clone(), sample()[18].clone(), sample()[19].clone(), sample()[0].clone()];
        assert_eq!(users.unwanted_rows(&rows), HashSet::from([20]));

        let posts = select(|s| s.tables = vec!["posts".into()]);
        assert_eq!(ids(&posts), [2, 3, 4, 11, 22, 23]);
        assert_eq!(
            posts.warnings,
            ["left out, because what it needs is not restored: fk constraint app.posts posts_user"]
        );
        let both = select(|s| s.tables = vec!["app.users".into(), "*.po?ts".into()]);
        assert!(ids(&both).contains(&24) && both.warnings.is_empty());
    }

    #[test]
    fn partitions_come_with_the_table_above_them_and_not_the_other_way() {
        let log = select(|s| s.tables = vec!["app.log".into()]);
        assert_eq!(ids(&log), [2, 3, 14, 15, 16]);
        assert_eq!(log.tables.len(), 2);
        let one = select(|s| s.tables = vec!["app.log_1".into()]);
        assert_eq!(ids(&one), [2, 3, 14, 15, 16]);
        assert_eq!(one.tables, HashSet::from([("app".into(), "log_1".into())]));
        assert_eq!(
            one.warnings,
            ["restored without its rows, because others need its definition: table app.log"]
        );
    }

    #[test]
    fn a_view_brings_what_it_shows_and_is_filled_only_where_that_has_its_rows() {
        let view = select(|s| s.tables = vec!["app.counts".into()]);
        assert_eq!(ids(&view), [2, 3, 4, 5, 7, 8, 11, 12, 13]);
        assert!(view.tables.is_empty());
        assert!(view.warnings[0].contains("materialized view data app.counts"), "{:?}", view.warnings);
        assert!(view.warnings[1].contains("table app.users, table app.posts"), "{:?}", view.warnings);
        let filled = select(|s| s.tables = ["counts", "users", "posts"].map(str::to_owned).to_vec());
        assert!(ids(&filled).contains(&28) && filled.warnings.is_empty(), "{:?}", filled.warnings);
    }

    #[test]
    fn a_schema_is_all_that_is_in_it() {
        let all = select(|s| s.schemas = vec!["app".into()]);
        let without = [1, 20, 26, 27];
        let expected: Vec<i32> = (1..=28).filter(|id| !without.contains(id)).collect();
        assert_eq!(ids(&all), expected);
    }

    #[test]
    fn what_is_excluded_takes_along_what_needs_it() {
        let rest = select(|s| s.excluded = vec!["app.users".into()]);
        let gone = [7, 8, 9, 10, 12, 13, 17, 18, 19, 21, 24, 25, 27, 28];
        assert_eq!(ids(&rest), (1..=28).filter(|id| !gone.contains(id)).collect::<Vec<_>>());
        let said = &rest.warnings[0];
        for name in ["view app.both", "materialized view app.counts", "fk constraint app.posts posts_user"] {
            assert!(said.contains(name), "{said}");
        }
        assert!(!said.contains("users_pkey") && !said.contains("users_id_seq"), "{said}");
        assert!(rest.unwanted_rows(&[sample()[17].clone()]).contains(&18));
        assert!(rest.unwanted_rows(&[sample()[19].clone()]).is_empty(), "large objects are no table's");
        let of_an_extension = entry(90, "TABLE DATA", "app.of_extension", Section::Data, &[]);
        assert!(
            rest.unwanted_rows(std::slice::from_ref(&of_an_extension)).is_empty(),
            "it has no definition"
        );
        let alone = select(|s| s.tables = vec!["posts".into()]);
        assert_eq!(alone.unwanted_rows(&[of_an_extension]), HashSet::from([90]));
        // Excluding and selecting at once.
        let some = select(|s| (s.schemas, s.excluded) = (vec!["app".into()], vec!["log".into()]));
        assert!(!ids(&some).iter().any(|id| [14, 15, 16].contains(id)));
    }

    #[test]
    fn sections_are_those_of_pg_restore_and_rows_want_their_definitions() {
        use Section::{Data, PostData, PreData};
        let pre = select(|s| (s.sections, s.tables) = (vec![PreData], vec!["users".into()]));
        assert_eq!(ids(&pre), [2, 3, 5, 6, 7, 8, 9, 10, 17]);
        assert!(!pre.with_rows);
        let shape = select(|s| s.sections = vec![PreData, PostData]);
        assert_eq!(ids(&shape), (1..=28).filter(|id| ![18, 19, 20].contains(id)).collect::<Vec<_>>());
        let check =
            |sections: &[Section]| Selection { sections: sections.to_vec(), ..Selection::default() }.check();
        assert!(check(&[]).is_ok() && check(&[PreData, Data]).is_ok());
        assert!(check(&[Data]).is_err() && check(&[Data, PostData]).is_err());
    }

    #[test]
    fn keys_views_and_heirs_of_tables_without_rows_are_named() {
        let bare = select(|s| s.tables = vec!["posts".into(), "both".into()]);
        assert!(ids(&bare).contains(&7) && !ids(&bare).contains(&24), "users have no rows");
        assert!(bare.warnings[0].contains("fk constraint app.posts posts_user"), "{:?}", bare.warnings);
        let mut entries = sample();
        entries.push(entry(40, "TABLE", "app.child", Section::PreData, &[7]));
        let users = Selection { tables: vec!["users".into()], ..Selection::default() };
        let users = wanted(&entries, &users).unwrap();
        assert_eq!(users.warnings, ["not restored, though it inherits from what is: table app.child"]);
        let all = ["counts", "users", "posts"].map(str::to_owned).to_vec();
        let view = wanted(&entries, &Selection { tables: all, ..Selection::default() }).unwrap();
        assert!(!view.entries.iter().any(|e| e.dump_id == 28), "it shows the rows of the child, too");
        entries.push(entry(41, "FK CONSTRAINT", "app.log of_all", Section::PostData, &[14, 7]));
        entries.push(entry(42, "ACL", "SCHEMA app", Section::None, &[]));
        let one = Selection { tables: vec!["log_1".into()], ..Selection::default() };
        let one = wanted(&entries, &one).unwrap();
        assert!(one.warnings[0].contains("fk constraint app.log of_all"), "{:?}", one.warnings);
        assert!(one.entries.iter().any(|e| e.dump_id == 42));
    }

    #[test]
    fn a_name_that_means_nothing_is_a_mistake() {
        let mistake = |selection: Selection| wanted(&sample(), &selection).unwrap_err().to_string();
        let table = |name: &str| Selection { tables: vec![name.into()], ..Selection::default() };
        assert_eq!(mistake(table("app.Users")), "--table \"app.Users\": the set holds nothing of that name");
        assert!(mistake(table("other.users")).contains("\"other.users\""));
        assert!(
            mistake(Selection { schemas: vec!["ap".into()], ..Selection::default() })
                .contains("--schema \"ap\"")
        );
        assert!(
            mistake(Selection { excluded: vec!["x*".into()], ..Selection::default() })
                .contains("--exclude \"x*\"")
        );
    }
}
