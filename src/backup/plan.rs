//! Which pg_dumps a database takes, and which streams they become: a pure function of its inventory and
//! the job.
//!
//! Usually one pg_dump takes the schema, and as many as the job has streams take the rows, each about as
//! many bytes as the others. All of them are read at the same time, because a pg_dump that waits for its
//! turn blocks others on the server ([`super::streams`]). A large table's rows become a stream of their
//! own, so that a restore loads it beside others and builds its indexes early; the rest is one stream.
//! Where no table is large and there are very many, one archive holds everything. The same where a second
//! process that locks every table it looks at would take more of the lock table, which is shared with the
//! application, than [`limits`](crate::postgres::limits) allows beyond one pg_dump; or where our role may not
//! open the connections.

use std::collections::{HashMap, HashSet};

use super::inventory::{Inventory, Table, quoted};
use super::undumped::{self, Undumped};
use crate::config::BackupJob;
use crate::error::{Error, Result};
use crate::postgres::limits::Capacity;
use crate::postgres::pattern::matches_pattern;

/// Large tables that get a stream of their own at the most: each is an argument of its pg_dump, and a command
/// of `RESTORE.md`.
const MAX_LARGE_TABLES: usize = 64;
/// From this many tables on, two processes that each read the whole catalog cost more than they gain.
const MANY_TABLES: usize = 2_000;
/// The schema, the rest and the roles need a connection each, beside those that are open already.
const SPLIT_CONNECTIONS: u64 = 3;
/// A single archive and the roles need a connection each.
const SINGLE_CONNECTIONS: u64 = 2;

/// A stream of the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// `schema`, `data-rest`, `data-1`, `full`.
    pub name: String,
    /// Bytes to expect, roughly: table sizes on disk.
    pub estimate: u64,
    /// The table it is for, where it is for one: its schema and its name.
    pub table: Option<(String, String)>,
}

/// A pg_dump to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// What pg_dump is told beyond the arguments all share.
    pub args: Vec<String>,
    /// What everything in its archive becomes that has no stream of its own; absent where the large tables
    /// are all of it.
    pub rest: Option<Stream>,
    /// Its large tables.
    pub tables: Vec<Stream>,
}

impl Dump {
    /// What its archive becomes.
    pub fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.rest.iter().chain(&self.tables)
    }

    fn estimate(&self) -> u64 {
        self.streams().map(|s| s.estimate).sum()
    }
}

/// What will be done with one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Database name.
    pub database: String,
    /// The pg_dumps: the schema's, the rest's, those of large tables alone.
    pub dumps: Vec<Dump>,
    /// Whether the coordinator locks tables before the snapshot; without room in the lock table it
    /// relies on noticing rewritten tables afterwards.
    pub lock_first: bool,
    /// Tables that pg_dump leaves out and that are taken along.
    pub along: Vec<Undumped>,
    /// Those that are not.
    pub undumped: Vec<Undumped>,
    /// Tables whose rows are left out, `schema.name`.
    pub excluded: Vec<String>,
    /// Their OIDs, and those of tables and sequences that have nothing to dump.
    pub without_data: HashSet<u32>,
    /// Locks all processes together will hold.
    pub locks: u64,
    /// Tables with rows.
    pub tables: usize,
    /// What was looked at and found good, a line each.
    pub preflights: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Decides, or says why the database cannot be dumped.
pub fn plan(
    database: &str,
    inventory: &Inventory,
    capacity: Capacity,
    in_recovery: bool,
    job: &BackupJob,
) -> Result<Plan> {
    let excluded = excluded_tables(inventory, &job.exclude_table_data)?;
    check_privileges(inventory, &excluded)?;
    let is_whole = |t: &&Table| !inventory.undumped.iter().any(|u| u.oid == t.oid);
    let whole = inventory.tables.iter().filter(is_whole).map(|t| (t.schema.clone(), t.name.clone()));
    let (mut along, mut undumped) = undumped::divide(&inventory.undumped, whole, &excluded, job)?;
    if in_recovery {
        // A standby has no rows of theirs, and cannot be asked.
        along.retain(|t| !t.is_unlogged);
        undumped.retain(|t| !t.is_unlogged);
    }
    check_references(inventory, &excluded)?;
    // pg_dump says nothing about a pattern that matches nothing.
    if let Some(table) =
        inventory.tables.iter().find(|t| excluded.contains(&t.oid) && !inventory.has_exact(&t.quoted()))
    {
        return Err(Error::usage(format!(
            "exclude_table_data: table {} cannot be named to pg_dump in encoding {}",
            table.display(),
            inventory.encoding
        )));
    }
    let mut warnings = inventory.superusers_only.clone();
    let mut without_data: HashSet<u32> = excluded.iter().copied().collect();
    for table in &inventory.tables {
        if table.is_partitioned || (table.is_unlogged && in_recovery) {
            without_data.insert(table.oid);
        }
    }
    if in_recovery {
        let unlogged: Vec<&Table> = inventory.tables.iter().filter(|t| t.is_unlogged).collect();
        if !unlogged.is_empty() {
            let names = list(unlogged.iter().map(|t| t.display()));
            warnings
                .push(format!("unlogged tables are empty on a standby and are dumped without rows: {names}"));
        }
        // Those of unlogged tables, from PostgreSQL 15 on.
        without_data.extend(inventory.sequences.iter().filter(|s| s.is_unlogged).map(|s| s.oid));
    }
    let with_data = || inventory.tables.iter().filter(|t| !without_data.contains(&t.oid));

    let has_exact = |table: &Table| {
        let sequences = inventory.sequences.iter().filter(|s| s.owned_by == Some(table.oid));
        inventory.has_exact(&table.quoted())
            && sequences.into_iter().all(|s| inventory.has_exact(&s.quoted()))
    };
    let mut large: Vec<&Table> =
        with_data().filter(|t| !t.is_extension_member && t.size >= job.large_table && has_exact(t)).collect();
    large.sort_by(|a, b| b.size.cmp(&a.size).then(a.oid.cmp(&b.oid)));
    if large.len() > MAX_LARGE_TABLES {
        warnings.push(format!(
            "{MAX_LARGE_TABLES} of {} large tables get a stream of their own: set large_table higher",
            large.len()
        ));
        large.truncate(MAX_LARGE_TABLES);
    }
    if capacity.free_connections < SINGLE_CONNECTIONS {
        return Err(Error::new(format!(
            "database {database:?} needs {SINGLE_CONNECTIONS} more connections, and {} leaves {}",
            capacity.bound, capacity.free_connections
        ))
        .with_hint("raise it, or end sessions that nobody needs"));
    }
    let room = capacity.free_connections.saturating_sub(SPLIT_CONNECTIONS);
    let beside = job.streams.saturating_sub(1).min(large.len());
    let processes = beside.min(usize::try_from(room).unwrap_or(usize::MAX));
    if processes < beside {
        warnings.push(format!(
            "rows are read by {} of {} pg_dumps ({} free connections, by {})",
            processes + 1,
            job.streams,
            capacity.free_connections,
            capacity.bound
        ));
    }

    let tables = inventory.tables.len() as u64;
    let sequences = inventory.sequences.len() as u64;
    // What a plain pg_dump takes, and what a second one takes beyond it.
    let plain = tables + sequences;
    let second = tables + large.len() as u64;
    let has_room = capacity.has_room(second, plain + second);
    let single = (large.is_empty() && along.is_empty() && inventory.tables.len() >= MANY_TABLES)
        || !has_room
        || capacity.free_connections < SPLIT_CONNECTIONS;
    if !has_room && !large.is_empty() {
        warnings.push(format!(
            "no table gets a stream of its own: {second} locks beyond those of one pg_dump are more than a quarter \
             of the server's lock table ({} in all, {} free); raise max_locks_per_transaction",
            capacity.locks, capacity.free_locks
        ));
    }
    if single && has_room && !large.is_empty() {
        warnings.push(format!(
            "no table gets a stream of its own ({} free connections, by {})",
            capacity.free_connections, capacity.bound
        ));
    }
    if single {
        large.clear();
    }
    let extra = if single { 0 } else { second };
    // PostgreSQL allows somewhat more than it computes; pg_dump itself is the judge near the limit.
    if plain + extra > capacity.free_locks + capacity.free_locks / 4 {
        return Err(Error::new(format!(
            "database {database:?} needs {plain} locks ({tables} tables, {sequences} sequences), the server has room for {}",
            capacity.free_locks
        ))
        .with_hint("raise max_locks_per_transaction and restart PostgreSQL"));
    }
    let lock_first = capacity.has_room(extra + tables, plain + extra + tables);
    let locks = plain + extra + if lock_first { tables } else { 0 };

    let without = inventory.tables.iter().filter(|t| excluded.contains(&t.oid) && !t.is_partitioned);
    // Those that are taken along are whole.
    let doubled = along.iter().filter(|t| t.condition.is_some());
    let exclude_data: Vec<String> = without
        .map(Table::quoted)
        .chain(doubled.map(|t| quoted(&t.schema, &t.name)))
        .map(|name| format!("--exclude-table-data={name}"))
        .collect();
    let rest_size = with_data().map(|t| t.size).sum::<u64>() - large.iter().map(|t| t.size).sum::<u64>();
    let stream = |name: &str, estimate| Stream { name: name.to_owned(), estimate, table: None };
    let dumps = if single {
        vec![Dump { args: exclude_data, rest: Some(stream("full", rest_size)), tables: Vec::new() }]
    } else {
        let schema = Dump {
            args: vec!["--section=pre-data".into(), "--section=post-data".into()],
            rest: Some(stream("schema", 0)),
            tables: Vec::new(),
        };
        let mut rest = Dump {
            args: vec!["--section=data".into()],
            rest: Some(stream("data-rest", rest_size)),
            tables: vec![],
        };
        rest.args.extend(exclude_data);
        let others = alone(&large, &mut rest, processes, inventory);
        [schema, rest].into_iter().chain(others).collect()
    };
    let beside = inventory.undumped.iter().filter(|u| !inventory.tables.iter().any(|t| t.oid == u.oid));
    let all =
        inventory.tables.iter().map(|t| (t.oid, t.display())).chain(beside.map(|t| (t.oid, t.display())));
    let excluded_names = all.filter(|(oid, _)| excluded.contains(oid)).map(|(_, name)| name).collect();
    let preflights = vec![
        format!("role {:?} may read all tables ({tables}) and sequences ({sequences})", inventory.role),
        "row security hides no rows from it".to_owned(),
        format!("it may read all {} large objects", inventory.large_objects),
        format!("{locks} locks needed, {} free", capacity.free_locks),
        format!("{} connections needed, {} free", dumps.len() + 1, capacity.free_connections),
    ];
    Ok(Plan {
        preflights,
        database: database.into(),
        dumps,
        lock_first,
        along,
        undumped,
        excluded: excluded_names,
        tables: with_data().count(),
        without_data,
        locks,
        warnings,
    })
}

impl Plan {
    /// The streams in the order of a set: the schema, large tables by size, the rest.
    pub fn streams(&self) -> Vec<&Stream> {
        let mut streams: Vec<&Stream> = self.dumps.iter().flat_map(Dump::streams).collect();
        let rank = |s: &Stream| match s.name.strip_prefix("data-") {
            None => 0,
            Some(n) => n.parse().unwrap_or(usize::MAX),
        };
        streams.sort_by_key(|s| rank(s));
        streams
    }
}

/// Deals large tables out, the largest first, each to the pg_dump that has least to do: the rest's, or one
/// of `processes` that take nothing else. Those are returned.
fn alone(large: &[&Table], rest: &mut Dump, processes: usize, inventory: &Inventory) -> Vec<Dump> {
    let mut others: Vec<Dump> = (0..processes)
        .map(|_| Dump { args: vec!["--section=data".into()], rest: None, tables: Vec::new() })
        .collect();
    for (i, table) in large.iter().enumerate() {
        let stream = Stream {
            name: format!("data-{}", i + 1),
            estimate: table.size,
            table: Some((table.schema.clone(), table.name.clone())),
        };
        let least = others.iter_mut().min_by_key(|d| d.estimate());
        match least {
            Some(other) if other.estimate() <= rest.estimate() => {
                other.args.push(format!("--table={}", table.quoted()));
                // `--table` brings the table's own sequences along, with values that are not of the snapshot;
                // they belong to the rest.
                let sequences = inventory.sequences.iter().filter(|s| s.owned_by == Some(table.oid));
                other.args.extend(sequences.map(|s| format!("--exclude-table-data={}", s.quoted())));
                other.tables.push(stream);
                rest.args.push(format!("--exclude-table-data={}", table.quoted()));
            }
            _ => rest.tables.push(stream),
        }
    }
    others.retain(|d| !d.tables.is_empty());
    others
}

/// A foreign key from rows that are dumped into rows that are not could never be restored.
fn check_references(inventory: &Inventory, excluded: &HashSet<u32>) -> Result<()> {
    let name =
        |oid: u32| inventory.tables.iter().find(|t| t.oid == oid).map(Table::display).unwrap_or_default();
    let broken =
        inventory.foreign_keys.iter().find(|(from, to)| !excluded.contains(from) && excluded.contains(to));
    match broken {
        None => Ok(()),
        Some((from, to)) => Err(Error::usage(format!(
            "exclude_table_data leaves out {}, but {} refers to it by a foreign key: the set could not be restored",
            name(*to),
            name(*from)
        ))
        .with_hint("exclude the referring table too, or keep both")),
    }
}

/// The first ten names, and how many more there are.
pub(super) fn list(names: impl IntoIterator<Item = String>) -> String {
    let mut names = names.into_iter();
    let shown = names.by_ref().take(10).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn check_privileges(inventory: &Inventory, excluded: &HashSet<u32>) -> Result<()> {
    let hint =
        "grant pg_read_all_data to the role (PostgreSQL 14 or newer), or SELECT and USAGE on what is named";
    if !inventory.unusable_schemas.is_empty() {
        return Err(Error::new(format!(
            "no USAGE privilege on schema {}",
            list(inventory.unusable_schemas.clone())
        ))
        .with_hint(hint));
    }
    let unreadable: Vec<String> = inventory
        .tables
        .iter()
        .filter(|t| !t.is_readable && !t.is_extension_member)
        .map(Table::display)
        .collect();
    if !unreadable.is_empty() {
        return Err(Error::new(format!("no SELECT privilege on table {}", list(unreadable))).with_hint(hint));
    }
    let unreadable: Vec<String> = inventory
        .sequences
        .iter()
        .filter(|s| !s.is_readable && !s.is_extension_member)
        .map(|s| format!("{}.{}", s.schema, s.name))
        .collect();
    if !unreadable.is_empty() {
        return Err(
            Error::new(format!("no SELECT privilege on sequence {}", list(unreadable))).with_hint(hint)
        );
    }
    let hidden: Vec<String> = inventory
        .tables
        .iter()
        .filter(|t| t.has_active_row_security && !excluded.contains(&t.oid) && !t.is_extension_member)
        .map(Table::display)
        .collect();
    if !hidden.is_empty() {
        return Err(Error::new(format!("row security would hide rows of table {}", list(hidden)))
            .with_hint("ALTER ROLE … BYPASSRLS for the role that backs up"));
    }
    if inventory.unreadable_large_objects > 0 {
        return Err(Error::new(format!(
            "no SELECT privilege on {} of {} large objects",
            inventory.unreadable_large_objects, inventory.large_objects
        ))
        .with_hint("ALTER DATABASE … SET lo_compat_privileges = on, or GRANT SELECT ON LARGE OBJECT"));
    }
    Ok(())
}

/// The tables that patterns name, partitions of a named root included. A pattern that names nothing
/// is a mistake: what it was meant for would be dumped, or a rename went unnoticed.
fn excluded_tables(inventory: &Inventory, patterns: &[String]) -> Result<HashSet<u32>> {
    let mut excluded = HashSet::new();
    for pattern in patterns {
        let tables = inventory.tables.iter().map(|t| (t.oid, &t.schema, &t.name));
        let undumped = inventory.undumped.iter().map(|t| (t.oid, &t.schema, &t.name));
        let mut hits = tables
            .chain(undumped)
            .filter(|(_, schema, name)| matches_pattern(pattern, schema, name))
            .map(|(oid, ..)| oid)
            .peekable();
        if hits.peek().is_none() {
            return Err(Error::usage(format!("exclude_table_data {pattern:?} matches no table"))
                .with_hint("patterns are schema.table with * and ?"));
        }
        excluded.extend(hits);
    }
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for table in &inventory.tables {
        if let Some(parent) = table.partition_of {
            children.entry(parent).or_default().push(table.oid);
        }
    }
    let mut todo: Vec<u32> = excluded.iter().copied().collect();
    while let Some(oid) = todo.pop() {
        for child in children.get(&oid).into_iter().flatten() {
            if excluded.insert(*child) {
                todo.push(*child);
            }
        }
    }
    Ok(excluded)
}

#[cfg(test)]
pub(super) mod tests;
