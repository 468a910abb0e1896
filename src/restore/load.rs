//! The order of a restore: definitions, then every stream (as many at once as there are jobs), then
//! what is built on the rows.
//!
//! A large table has a stream of its own. Its indexes are built as soon as it is loaded, while others
//! still load; everything else that comes after the rows waits for all of them. A stream is one transaction,
//! so that running it again cannot double its rows; but one that would lock more objects than servers have
//! room for is several, and so is each where the server does not let pg_restore have one. Streams in which a
//! statement failed are run again alone at the end, as long as one of them gets through: a CHECK whose function
//! reads another table only holds once that table is loaded. Of a stream of several transactions what is not
//! there yet is run again ([`rest`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use super::complaints::{Complaint, Fault, HARMLESS_TIMEOUT, is_sql_error, lacking};
use super::copy::copy_table;
use super::pg_restore::{
    Part, Restored, after_rows, fetch_contents, fetch_schema, run_after_rows, run_before_rows, run_schema,
    run_stream,
};
use super::{Origin, Target, rest};
use crate::error::{Error, Result};
use crate::progress::Event;
use crate::set::EXTENSION_TABLES;
use crate::set::archive::{Entry, Section};
use crate::set::manifest::{Database, Stream, TRANSACTION_SIZE};

/// Where one that the set needs is not there.
const NO_TABLESPACES: &str = "--no-tablespaces";

/// What came of it.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The schema's table of contents, with definitions.
    pub schema: Vec<Entry>,
    /// Seconds by phase.
    pub seconds: Vec<(&'static str, f64)>,
    /// What pg_restore complained of and is harmless.
    pub warnings: Vec<String>,
    /// What could not be restored beside the rows; those are all in.
    pub failed: Vec<Complaint>,
}

/// Restores one database of a set.
pub async fn load(origin: &Origin, database: &Database, target: &Target) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    let stream = |name: &str| database.streams.iter().find(|s| s.name == name);
    if let Some(full) = stream("full") {
        let begun = Instant::now();
        let entries = fetch_contents(origin, full).await?;
        loaded.warnings.extend(no_tablespaces(&entries, target));
        // None at all: an archive version that the parser does not know.
        let is_known = loaded.warnings.is_empty() && !entries.is_empty();
        let arguments: &[&str] = if is_known { &[] } else { &[NO_TABLESPACES] };
        let restored = run_stream(origin, database, full, target, arguments, None, true).await?;
        loaded.schema = restored.entries;
        loaded.warnings.extend(restored.warnings);
        loaded.failed = restored.failed;
        if let Some(extra) = stream(EXTENSION_TABLES) {
            let (_, said) = load_stream(origin, database, extra, target, true).await?;
            loaded.add_warnings(said);
        }
        loaded.seconds.push(("data", begun.elapsed().as_secs_f64()));
        return Ok(loaded);
    }
    let schema = stream("schema").ok_or_else(|| Error::differs("the set has no schema stream"))?;
    let mut clock = Instant::now();
    let mut lap = |loaded: &mut Loaded, phase| {
        loaded.seconds.push((phase, clock.elapsed().as_secs_f64()));
        clock = Instant::now();
    };

    (origin.progress)(Event::Phase(format!("{}: schema", database.name)));
    let (archive, entries) = fetch_schema(origin, schema).await?;
    loaded.warnings.extend(no_tablespaces(&entries, target));
    let schema_args: &'static [&'static str] =
        if loaded.warnings.is_empty() { &[] } else { &[NO_TABLESPACES] };
    let (said, failed) = run_before_rows(target, &archive, &entries, schema_args).await?;
    loaded.add_warnings(said);
    loaded.failed = failed;
    lap(&mut loaded, "schema");

    (origin.progress)(Event::Phase(format!("{}: rows", database.name)));
    // --single-transaction and --transaction-size also end at the first error, and on an older server
    // pg_restore 17 begins with one.
    let may_bundle = !loaded.warnings.iter().any(|warning| warning == HARMLESS_TIMEOUT);
    let mut rows = Rows {
        origin,
        database,
        target,
        archive: Arc::new(archive),
        schema_args,
        may_bundle,
        // A list of entries is a file, which is not to be seen from a container.
        early: if target.tools.run_here() { early(&entries) } else { HashMap::new() },
        built: HashSet::new(),
        again: Vec::new(),
    };
    rows.load(&mut loaded).await.map_err(|error| lacking(error, &loaded.failed))?;
    let (archive, built) = (rows.archive, rows.built);
    lap(&mut loaded, "data");

    (origin.progress)(Event::Phase(format!("{}: indexes and constraints", database.name)));
    let rest: Vec<i32> =
        after_rows(&entries).filter(|e| !built.contains(&e.dump_id)).map(|e| e.dump_id).collect();
    if built.is_empty() {
        let part = Part::Section("post-data");
        loaded.finish(run_after_rows(target, &archive, &entries, part, schema_args).await?);
    } else if !rest.is_empty() {
        let part = Part::Entries(&rest);
        loaded.finish(run_after_rows(target, &archive, &entries, part, schema_args).await?);
    }
    loaded.schema = entries;
    lap(&mut loaded, "post-data");
    Ok(loaded)
}

/// What to say where the target lacks a tablespace: then none is used.
fn no_tablespaces(entries: &[Entry], target: &Target) -> Option<String> {
    let mut spaces: Vec<&str> =
        entries.iter().map(|e| e.tablespace.as_str()).filter(|t| !t.is_empty()).collect();
    spaces.retain(|space| !target.tablespaces.iter().any(|t| t == space));
    spaces.sort_unstable();
    spaces.dedup();
    let names = spaces.join(", ");
    (!spaces.is_empty()).then(|| format!("no tablespace {names} here: all is in the default one"))
}

/// Restores the definitions alone.
pub async fn load_schema(origin: &Origin, database: &Database, target: &Target) -> Result<()> {
    let stream = |name: &str| database.streams.iter().find(|s| s.name == name);
    if let Some(full) = stream("full") {
        let sections = ["--section=pre-data", "--section=post-data", NO_TABLESPACES];
        run_stream(origin, database, full, target, &sections, None, false).await?;
        return Ok(());
    }
    let schema = stream("schema").ok_or_else(|| Error::differs("the set has no schema stream"))?;
    let (archive, _) = fetch_schema(origin, schema).await?;
    run_schema(target, &archive, Part::Section("pre-data"), 1, &[NO_TABLESPACES]).await?;
    run_schema(target, &archive, Part::Section("post-data"), target.jobs, &[NO_TABLESPACES]).await?;
    Ok(())
}

impl Loaded {
    /// What came after the rows. Where definitions are missing because this host cannot have them, what
    /// needs them fails with them.
    fn finish(&mut self, (said, mut failed): (Vec<String>, Vec<Complaint>)) {
        self.add_warnings(said);
        if !self.failed.is_empty() {
            failed.iter_mut().filter(|c| c.fault == Fault::Refused).for_each(|c| c.fault = Fault::Elsewhere);
        }
        self.failed.extend(failed);
    }

    /// Every process of pg_restore may say the same.
    fn add_warnings(&mut self, said: Vec<String>) {
        for warning in said {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }
}

/// What can be built on one table alone, by dump id.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Early {
    /// They lock readers out.
    constraints: Vec<i32>,
    indexes: Vec<i32>,
}

impl Early {
    /// What can go on once nothing locks the table any more; until then nothing.
    fn when_unlocked(&mut self) -> Vec<Work> {
        if !self.constraints.is_empty() {
            return Vec::new();
        }
        self.indexes.drain(..).map(|id| Work::Build(id, None)).collect()
    }
}

/// Indexes and the constraints that are indexes, by schema and name of their table; those that need
/// something else that comes after the rows are left out.
fn early(entries: &[Entry]) -> HashMap<(String, String), Early> {
    let tables: HashMap<i32, &Entry> =
        entries.iter().filter(|e| e.desc == "TABLE").map(|e| (e.dump_id, e)).collect();
    let later: HashSet<i32> = after_rows(entries).map(|e| e.dump_id).collect();
    let mut found: HashMap<(String, String), Early> = HashMap::new();
    for entry in entries.iter().filter(|e| e.section == Section::PostData) {
        let is_index = entry.desc == "INDEX";
        // pg_dump writes one dependency a column.
        let of: HashSet<i32> =
            entry.dependencies.iter().copied().filter(|id| tables.contains_key(id)).collect();
        let mut of = of.iter().filter_map(|id| tables.get(id));
        let (Some(table), None) = (of.next(), of.next()) else { continue };
        if !(is_index || entry.desc == "CONSTRAINT") || entry.dependencies.iter().any(|id| later.contains(id))
        {
            continue;
        }
        let early = found.entry((table.namespace.clone(), table.tag.clone())).or_default();
        if is_index { early.indexes.push(entry.dump_id) } else { early.constraints.push(entry.dump_id) }
    }
    found
}

/// The rows of one database on their way, and what is built on them meanwhile.
struct Rows<'a> {
    origin: &'a Origin,
    database: &'a Database,
    target: &'a Target,
    archive: Arc<File>,
    schema_args: &'static [&'static str],
    /// Whether pg_restore may put several statements into a transaction.
    may_bundle: bool,
    early: HashMap<(String, String), Early>,
    /// Entries after the rows that are restored already.
    built: HashSet<i32>,
    /// Streams in which a statement failed.
    again: Vec<(Stream, Error)>,
}

/// What occupies a job.
enum Work {
    Stream(Stream),
    /// What is not there yet of a stream that was interrupted.
    Rest(Stream),
    /// An entry of the schema archive that needs one table alone; the table, if it locks readers out.
    Build(i32, Option<Entry>),
}

/// What came of it.
enum Done {
    /// The table, where the stream was a single one's.
    Stream(Stream, Result<(Option<Entry>, Vec<String>)>),
    Build(i32, Option<Entry>, Result<Vec<String>>),
}

impl Rows<'_> {
    async fn load(&mut self, loaded: &mut Loaded) -> Result<()> {
        let mut streams: Vec<&Stream> = self.database.streams.iter().filter(|s| s.name != "schema").collect();
        streams.sort_by_key(|s| std::cmp::Reverse(s.plain_size));
        let mut waiting: VecDeque<Work> = streams.into_iter().cloned().map(Work::Stream).collect();
        let mut running = tokio::task::JoinSet::new();
        // What is still to be built, by table. (Each archive has dump ids of its own.)
        let mut loaded_tables: HashMap<(String, String), Early> = HashMap::new();
        loop {
            while running.len() < self.target.jobs.max(1)
                && let Some(work) = waiting.pop_front()
            {
                running.spawn(self.run(work));
            }
            let Some(done) = running.join_next().await else { break };
            match done.map_err(|e| Error::new(format!("a stream stopped: {e}")))? {
                Done::Stream(_, Ok((None, said))) => loaded.add_warnings(said),
                Done::Stream(_, Ok((Some(table), said))) => {
                    loaded.add_warnings(said);
                    let name = (table.namespace.clone(), table.tag.clone());
                    let mut early = self.early.remove(&name).unwrap_or_default();
                    // Rows first: they are what everything else waits for. But what locks readers out
                    // is in the way of all that follows on this table.
                    for id in &early.constraints {
                        waiting.push_front(Work::Build(*id, Some(table.clone())));
                    }
                    waiting.extend(early.when_unlocked());
                    loaded_tables.insert(name, early);
                }
                // A statement that failed was certainly rolled back, and may succeed later.
                Done::Stream(stream, Err(error)) if self.may_run_again(&stream, &error) => {
                    self.again.push((stream, error));
                }
                Done::Stream(_, Err(error)) => return Err(error),
                Done::Build(id, table, result) => {
                    match result {
                        Ok(said) => {
                            loaded.add_warnings(said);
                            self.built.insert(id);
                        }
                        // It may need rows of another table, and gets another turn with the rest.
                        Err(error) => tracing::info!("{error}; trying once more, after all rows"),
                    }
                    if let Some(table) = table
                        && let Some(early) =
                            loaded_tables.get_mut(&(table.namespace.clone(), table.tag.clone()))
                    {
                        early.constraints.retain(|other| *other != id);
                        waiting.extend(early.when_unlocked());
                    }
                }
            }
        }
        self.run_again(loaded).await
    }

    /// A list of what is left of a stream is a file, which is not to be seen from a container.
    fn may_run_again(&self, stream: &Stream, error: &Error) -> bool {
        is_sql_error(error) && (self.is_one_transaction(stream) || self.target.tools.run_here())
    }

    fn is_one_transaction(&self, stream: &Stream) -> bool {
        self.may_bundle && stream.is_one_transaction()
    }

    /// One stream may wait for another of these: as long as one succeeds, the rest gets another turn.
    async fn run_again(&mut self, loaded: &mut Loaded) -> Result<()> {
        while !self.again.is_empty() {
            let waiting = std::mem::take(&mut self.again);
            let before = waiting.len();
            for (stream, error) in waiting {
                tracing::info!("{error}; trying once more, after the others");
                let again = if self.is_one_transaction(&stream) { Work::Stream } else { Work::Rest };
                match self.run(again(stream)).await {
                    Done::Stream(_, Ok((_, said))) => loaded.add_warnings(said),
                    Done::Stream(stream, Err(error)) if is_sql_error(&error) => {
                        self.again.push((stream, error))
                    }
                    Done::Stream(_, Err(error)) => return Err(error),
                    Done::Build(..) => {}
                }
            }
            if self.again.len() == before {
                let first = self.again.drain(..).next();
                return Err(first.map_or_else(|| Error::new("a stream failed"), |(_, error)| error));
            }
        }
        Ok(())
    }

    /// One job's work, on its own.
    fn run(&self, work: Work) -> impl Future<Output = Done> + Send + 'static {
        let (origin, database, target) = (self.origin.clone(), self.database.clone(), self.target.clone());
        let (archive, schema_args, may_bundle) = (self.archive.clone(), self.schema_args, self.may_bundle);
        async move {
            match work {
                Work::Stream(stream) => {
                    let result = load_stream(&origin, &database, &stream, &target, may_bundle).await;
                    Done::Stream(stream, result)
                }
                Work::Rest(stream) => {
                    let arguments = data_arguments(&stream, &target, may_bundle);
                    let result = rest::load_rest(&origin, &database, &stream, &target, &arguments).await;
                    Done::Stream(stream, result.map(|warnings| (None, warnings)))
                }
                Work::Build(id, table) => {
                    let part = Part::Entries(std::slice::from_ref(&id));
                    let result = run_schema(&target, &archive, part, 1, schema_args).await;
                    Done::Build(id, table, result)
                }
            }
        }
    }
}

/// One stream: a large table by ourselves, everything else with pg_restore.
async fn load_stream(
    origin: &Origin,
    database: &Database,
    stream: &Stream,
    target: &Target,
    may_bundle: bool,
) -> Result<(Option<Entry>, Vec<String>)> {
    if stream.name != "data-rest"
        && stream.name != EXTENSION_TABLES
        && let Some(table) = copy_table(origin, database, stream, target).await?
    {
        return Ok((Some(table), Vec::new()));
    }
    let arguments = data_arguments(stream, target, may_bundle);
    let Restored { warnings, .. } =
        run_stream(origin, database, stream, target, &arguments, None, false).await?;
    Ok((None, warnings))
}

/// How pg_restore takes a stream's rows: as one transaction, as several of a bounded size (from its major 17 on),
/// or each statement as its own.
fn data_arguments(stream: &Stream, target: &Target, may_bundle: bool) -> Vec<String> {
    // Those tables come with their definitions.
    let is_whole = stream.name == EXTENSION_TABLES;
    let mut arguments = if is_whole { Vec::new() } else { vec!["--section=data".to_owned()] };
    if may_bundle && stream.is_one_transaction() {
        arguments.push("--single-transaction".to_owned());
    } else if may_bundle && target.tools.major >= 17 {
        arguments.push(format!("--transaction-size={TRANSACTION_SIZE}"));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dump_id: i32, section: Section, desc: &str, tag: &str, dependencies: &[i32]) -> Entry {
        Entry {
            dump_id,
            section,
            desc: desc.into(),
            tag: tag.into(),
            namespace: "public".into(),
            dependencies: dependencies.to_vec(),
            ..Entry::default()
        }
    }

    #[test]
    fn what_needs_one_table_alone_is_built_early() {
        use Section::{PostData, PreData};
        let entries = [
            entry(1, PreData, "TABLE", "a", &[]),
            entry(2, PreData, "TABLE", "b", &[]),
            entry(3, PostData, "CONSTRAINT", "a_pkey", &[1]),
            // One dependency a column.
            entry(4, PostData, "INDEX", "a_x_y", &[1, 1]),
            entry(5, PostData, "FK CONSTRAINT", "a_b", &[1, 2]),
            entry(6, PostData, "INDEX", "odd", &[1, 2]),
            entry(7, PostData, "INDEX", "after_a_constraint", &[1, 3]),
            entry(8, PostData, "INDEX", "b_x", &[2]),
        ];
        let found = early(&entries);
        let of = |name: &str| found[&("public".to_owned(), name.to_owned())].clone();
        assert_eq!(of("a"), Early { constraints: vec![3], indexes: vec![4] });
        assert_eq!(of("b"), Early { constraints: Vec::new(), indexes: vec![8] });
    }
}
