//! What can be built while rows still load, and what of it comes first.
//!
//! Indexes, and the constraints that are indexes, need the rows of one table alone. A table's constraints come
//! first, one after the other, because each locks readers out; then its indexes, side by side. Among all that can
//! be built, what takes longest begins first, so that all jobs end at about the same time. Small tables' builds
//! are batches: starting a pg_restore for each would take longer than the builds. Deliberately absent: how
//! anything is built (`pg_restore`), and what needs more than one table, which comes after all rows.

use std::collections::{HashMap, HashSet};

use super::pg_restore::after_rows;
use crate::set::archive::{Entry, Section};

/// Bytes of a table from which on each of its builds is one of its own.
const LARGE: u64 = 16 << 20;
/// Entries in a batch of small tables' builds.
const BATCH: usize = 500;

/// A table's schema and name.
pub type TableName = (String, String);

/// Entries that one pg_restore builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The entries' dump ids.
    pub ids: HashSet<i32>,
    /// About how long the build takes, in no unit.
    pub cost: u64,
    /// The table that the build locks, where the table's indexes wait for that.
    locks: Option<TableName>,
}

/// What can be built on one table alone: dump ids, and about what a byte of the table costs each.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct OnTable {
    constraints: Vec<(i32, u64)>,
    indexes: Vec<(i32, u64)>,
}

/// The builds of one database.
#[derive(Debug, Default)]
pub struct Builds {
    /// Tables whose rows are not in yet.
    tables: HashMap<TableName, OnTable>,
    /// Indexes that wait for constraints.
    locked: HashMap<TableName, Vec<Build>>,
    ready: Vec<Build>,
}

impl Builds {
    /// The builds that need one table, and nothing else that comes after the rows.
    pub fn new(entries: &[Entry]) -> Self {
        let tables: HashMap<i32, &Entry> =
            entries.iter().filter(|e| e.desc == "TABLE").map(|e| (e.dump_id, e)).collect();
        let later: HashSet<i32> = after_rows(entries).map(|e| e.dump_id).collect();
        let functions: HashSet<i32> =
            entries.iter().filter(|e| e.desc == "FUNCTION").map(|e| e.dump_id).collect();
        let mut found: HashMap<TableName, OnTable> = HashMap::new();
        for entry in entries.iter().filter(|e| e.section == Section::PostData) {
            let is_index = entry.desc == "INDEX";
            // pg_dump writes one dependency a column.
            let of: HashSet<i32> =
                entry.dependencies.iter().copied().filter(|id| tables.contains_key(id)).collect();
            let mut of = of.iter().filter_map(|id| tables.get(id));
            let (Some(table), None) = (of.next(), of.next()) else { continue };
            // A function may read another table, whatever it says of itself.
            let needs_more = |id: &i32| later.contains(id) || functions.contains(id);
            if !(is_index || entry.desc == "CONSTRAINT") || entry.dependencies.iter().any(needs_more) {
                continue;
            }
            let on_table = found.entry((table.namespace.clone(), table.tag.clone())).or_default();
            let build = (entry.dump_id, weight(entry));
            if is_index { on_table.indexes.push(build) } else { on_table.constraints.push(build) }
        }
        Self { tables: found, ..Self::default() }
    }

    /// Whether any table's rows are waited for.
    pub fn waits(&self) -> bool {
        !self.tables.is_empty()
    }

    /// Says that tables have their rows, of about so many bytes each.
    pub fn loaded(&mut self, tables: impl IntoIterator<Item = (TableName, u64)>) {
        let mut batch = Build { ids: HashSet::new(), cost: 0, locks: None };
        for (name, bytes) in tables {
            let Some(OnTable { constraints, indexes }) = self.tables.remove(&name) else { continue };
            if bytes < LARGE {
                for (id, weight) in constraints.into_iter().chain(indexes) {
                    batch.ids.insert(id);
                    batch.cost = batch.cost.saturating_add(bytes.saturating_mul(weight));
                }
                if batch.ids.len() >= BATCH {
                    let next = Build { ids: HashSet::new(), cost: 0, locks: None };
                    self.ready.push(std::mem::replace(&mut batch, next));
                }
                continue;
            }
            let one = |(id, weight): (i32, u64)| Build {
                ids: HashSet::from([id]),
                cost: bytes.saturating_mul(weight),
                locks: None,
            };
            let indexes: Vec<Build> = indexes.into_iter().map(one).collect();
            if constraints.is_empty() {
                self.ready.extend(indexes);
                continue;
            }
            // All that waits for the constraints is work that cannot begin.
            let all = constraints.iter().map(|(_, weight)| weight).sum::<u64>();
            let waiting = indexes.iter().map(|b| b.cost).fold(0, u64::saturating_add);
            self.ready.push(Build {
                ids: constraints.iter().map(|(id, _)| *id).collect(),
                cost: bytes.saturating_mul(all).saturating_add(waiting),
                locks: Some(name.clone()),
            });
            self.locked.insert(name, indexes);
        }
        if !batch.ids.is_empty() {
            self.ready.push(batch);
        }
    }

    /// What to build next.
    pub fn take(&mut self) -> Option<Build> {
        let (at, _) = self.ready.iter().enumerate().max_by_key(|(_, build)| build.cost)?;
        Some(self.ready.swap_remove(at))
    }

    /// A build succeeded or failed: what waited for it does not any more.
    pub fn ended(&mut self, build: &Build) {
        let waiting = build.locks.as_ref().and_then(|table| self.locked.remove(table));
        self.ready.extend(waiting.unwrap_or_default());
    }
}

/// How long an entry takes, compared with others on the same table. Text in quotes may pass for SQL here, which
/// changes nothing but the order.
fn weight(entry: &Entry) -> u64 {
    let has = |word: &str| entry.defn.contains(word);
    if has(" USING brin ") || has(" WHERE ") {
        1
    } else if entry.desc == "CONSTRAINT" || has(" USING btree ") || has(" USING hash ") {
        2
    } else {
        3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(
        dump_id: i32,
        section: Section,
        desc: &str,
        tag: &str,
        dependencies: &[i32],
        defn: &str,
    ) -> Entry {
        Entry {
            dump_id,
            section,
            desc: desc.into(),
            tag: tag.into(),
            namespace: "public".into(),
            dependencies: dependencies.to_vec(),
            defn: defn.into(),
            ..Entry::default()
        }
    }

    fn name(name: &str) -> TableName {
        ("public".into(), name.into())
    }

    fn entries() -> Vec<Entry> {
        use Section::{PostData, PreData};
        vec![
            entry(1, PreData, "TABLE", "a", &[], ""),
            entry(2, PreData, "TABLE", "b", &[], ""),
            entry(3, PostData, "CONSTRAINT", "a_pkey", &[1], "PRIMARY KEY"),
            // As pg_dump writes it: a dependency for each column.
            entry(4, PostData, "INDEX", "a_x_y", &[1, 1], "ON a USING btree (x, y)"),
            entry(5, PostData, "FK CONSTRAINT", "a_b", &[1, 2], ""),
            entry(6, PostData, "INDEX", "odd", &[1, 2], ""),
            entry(7, PostData, "INDEX", "after_a_constraint", &[1, 3], ""),
            entry(8, PostData, "INDEX", "b_x", &[2], "ON b USING btree (x) WHERE x > 1"),
            entry(9, PostData, "INDEX", "a_words", &[1], "ON a USING gin (words)"),
            entry(10, PostData, "CONSTRAINT", "a_unique", &[1], "UNIQUE"),
            entry(11, PreData, "FUNCTION", "f", &[], ""),
            entry(12, PostData, "INDEX", "a_f", &[1, 11], "ON a USING btree (f(x))"),
        ]
    }

    fn ids(build: &Build) -> Vec<i32> {
        let mut ids: Vec<i32> = build.ids.iter().copied().collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn a_large_tables_constraints_come_first_and_then_what_takes_longest() {
        let mut builds = Builds::new(&entries());
        assert!(builds.waits() && builds.take().is_none(), "no table has its rows");
        builds.loaded([(name("b"), LARGE)]);
        builds.loaded([(name("a"), LARGE), (name("unknown"), LARGE)]);
        assert!(!builds.waits());
        let constraints = builds.take().unwrap();
        assert_eq!(ids(&constraints), [3, 10]);
        assert_eq!(ids(&builds.take().unwrap()), [8], "the other indexes wait for the table's constraints");
        assert!(builds.take().is_none());
        builds.ended(&constraints);
        assert_eq!(ids(&builds.take().unwrap()), [9]);
        assert_eq!(ids(&builds.take().unwrap()), [4]);
        assert!(builds.take().is_none());
    }

    #[test]
    fn small_tables_are_built_together() {
        let mut builds = Builds::new(&entries());
        builds.loaded([(name("a"), 10), (name("b"), LARGE - 1)]);
        assert_eq!(ids(&builds.take().unwrap()), [3, 4, 8, 9, 10]);
        assert!(builds.take().is_none());

        let many: Vec<Entry> = (1..=1_000)
            .flat_map(|i| {
                let table = entry(i, Section::PreData, "TABLE", &format!("t{i}"), &[], "");
                [table, entry(i + 10_000, Section::PostData, "INDEX", &format!("i{i}"), &[i], "")]
            })
            .collect();
        let mut builds = Builds::new(&many);
        builds.loaded((1..=1_000).map(|i| (name(&format!("t{i}")), 1)));
        let batches = std::iter::from_fn(|| builds.take()).map(|b| b.ids.len()).collect::<Vec<_>>();
        assert_eq!(batches, [BATCH, BATCH]);
    }
}
