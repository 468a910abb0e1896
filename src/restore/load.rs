//! The order of a restore: definitions, then every stream (as many at once as there are jobs), then
//! what is built on the rows.
//!
//! A large table has a stream of its own. What is built on one table alone is built as soon as its rows are in,
//! while others still load ([`super::builds`]); everything else that comes after the rows waits for all of them. A stream is one transaction,
//! so that running it again cannot double its rows; but one that would lock more objects than servers have
//! room for is several, and so is each where the server does not let pg_restore have one.
//!
//! What the server refuses costs as little as it can: whatever pg_restore by itself brings back comes back. A
//! definition that fails is told, and the rows come all the same. Streams in which a statement failed are run
//! again alone, table by table ([`rest`]), as long as that brings something: a CHECK whose function reads another
//! table only holds once that table is loaded. Rows that still fail get a last turn when everything else is
//! there, because a row may name an index. What failed after the rows gets another turn as well: a
//! materialized view may read a later one through a function.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use super::builds::{Build, Builds, TableName};
use super::complaints::{Complaint, Fault, HARMLESS_TIMEOUT, is_lacking, is_sql_error, lacking, of_rows};
use super::copy::copy_table;
use super::pg_restore::{
    Part, Restored, after_rows, fetch_contents, fetch_schema, later_in_memory, run_after_rows,
    run_before_rows, run_schema, run_stream,
};
use super::rest::{self, Attempt};
use super::{Origin, Target, foreign_keys, refresh};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::error;
use crate::progress::Event;
use crate::set::EXTENSION_TABLES;
use crate::set::archive::{Entry, Section};
use crate::set::manifest::{Database, Stream, TRANSACTION_SIZE};

/// The sizes of these tables, with what is stored beside them. Of no others: a table that is being loaded is locked,
/// and asking for its size would wait for its rows.
const SIZES: &str = "SELECT held.schema, held.name, pg_table_size(c.oid)
       FROM unnest($1::text[], $2::text[]) AS held (schema, name)
       JOIN pg_namespace n ON n.nspname = held.schema
       JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = held.name AND c.relkind = 'r'";
/// For pg_restore, where the target lacks a tablespace of the set.
const NO_TABLESPACES: &str = "--no-tablespaces";

/// What a load came to.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The schema's table of contents, with definitions.
    pub schema: Vec<Entry>,
    /// Seconds by phase.
    pub seconds: Vec<(&'static str, f64)>,
    /// What pg_restore complained of and is harmless.
    pub warnings: Vec<String>,
    /// What could not be restored beside the rows.
    pub failed: Vec<Complaint>,
    /// Rows that the server refused to the last, an error for each stream that they are in.
    pub lost: Vec<Error>,
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
        let mut without = target.wanted.as_ref().map(|wanted| wanted.without(&entries)).unwrap_or_default();
        // A server that never answers keeps nothing else waiting.
        let mut far = refresh::asking_others(target, &entries).await?;
        far.retain(|id| !without.contains(id));
        without.extend(&far);
        let mut later = |is_wanted: &dyn Fn(&Entry) -> bool| -> HashSet<i32> {
            let wanted = entries.iter().filter(|e| is_wanted(e)).map(|e| e.dump_id);
            wanted.filter(|id| without.insert(*id)).collect()
        };
        // A guard against changes must not meet the restore that brings it.
        let guards = later(&is_guard);
        // What reads an extension's tables wants their rows, which come afterwards.
        let extra = stream(EXTENSION_TABLES);
        let late = later(&|e| extra.is_some() && e.desc == "MATERIALIZED VIEW DATA");
        let restored = run_stream(origin, database, full, target, arguments, without, true).await?;
        loaded.schema = restored.entries;
        loaded.warnings.extend(restored.warnings);
        let is_of_rows = |c: &Complaint| {
            let entry = loaded.schema.iter().find(|e| Some(e.dump_id) == c.id);
            entry.map_or(["", "COPY"].contains(&c.object.as_str()), |e| e.section == Section::Data)
        };
        let (lost, failed): (Vec<_>, Vec<_>) = restored.failed.into_iter().partition(is_of_rows);
        loaded.lost = lost.iter().map(|c| lacking(of_rows(c), &failed)).collect();
        loaded.failed = failed;
        if let Some(extra) = extra {
            let may_bundle = !loaded.warnings.iter().any(|warning| warning == HARMLESS_TIMEOUT);
            if let Some(without) = unwanted(origin, extra, target).await? {
                let (_, said) = load_stream(origin, database, extra, target, may_bundle, without).await?;
                loaded.add_warnings(said);
            }
        }
        let entries = std::mem::take(&mut loaded.schema);
        let archive = later_in_memory(&entries)?;
        if !late.is_empty() {
            let part = Part::Entries(&late);
            loaded.finish(run_after_rows(target, &archive, &entries, part, target.jobs, arguments).await?);
        }
        if !far.is_empty() {
            loaded.finish(refresh::fill(target, &archive, &entries, far, arguments).await?);
        }
        retry(target, &archive, &entries, arguments, &mut loaded).await?;
        if !guards.is_empty() {
            let part = Part::Entries(&guards);
            loaded.finish(run_after_rows(target, &archive, &entries, part, 1, arguments).await?);
        }
        loaded.schema = entries;
        loaded.seconds.push(("data", begun.elapsed().as_secs_f64()));
        return Ok(loaded);
    }
    let schema = stream("schema").ok_or_else(|| Error::differs("the set has no schema stream"))?;
    let mut clock = Instant::now();
    (origin.progress)(Event::Phase(format!("{}: schema", database.name)));
    let (archive, mut entries) = fetch_schema(origin, schema).await?;
    if let Some(wanted) = &target.wanted {
        entries.clone_from(&wanted.entries);
    }
    let entries = Arc::new(entries);
    loaded.warnings.extend(no_tablespaces(&entries, target));
    let schema_args: &'static [&'static str] =
        if loaded.warnings.is_empty() { &[] } else { &[NO_TABLESPACES] };
    let later: HashSet<i32> = after_rows(&entries).map(|e| e.dump_id).collect();
    let before: HashSet<i32> = entries.iter().map(|e| e.dump_id).filter(|id| !later.contains(id)).collect();
    let part = match &target.wanted {
        None => Part::Section("pre-data"),
        Some(_) => Part::Entries(&before),
    };
    if !before.is_empty() {
        let (said, failed) = run_before_rows(target, &archive, &entries, part, schema_args).await?;
        loaded.add_warnings(said);
        loaded.failed = failed;
    }
    loaded.seconds.push(("schema", clock.elapsed().as_secs_f64()));
    clock = Instant::now();

    (origin.progress)(Event::Phase(format!("{}: rows", database.name)));
    // --single-transaction and --transaction-size also end at the first error, and on an older server
    // pg_restore 17 begins with one.
    let may_bundle = !loaded.warnings.iter().any(|warning| warning == HARMLESS_TIMEOUT);
    let mut without = HashMap::new();
    for stream in database.streams.iter().filter(|s| s.name != "schema") {
        let unwanted = unwanted(origin, stream, target).await?;
        without.extend(unwanted.map(|entries| (stream.name.clone(), entries)));
    }
    let mut rows = Rows {
        origin,
        database,
        target,
        archive: Arc::new(archive),
        entries: entries.clone(),
        schema_args,
        may_bundle,
        without,
        builds: Builds::new(&entries),
        built: HashSet::new(),
        again: Vec::new(),
    };
    let rows_in = rows.load(&mut loaded).await?;
    loaded.seconds.push(("data", rows_in.duration_since(clock).as_secs_f64()));
    clock = rows_in;

    let mut left: HashSet<i32> = later.into_iter().filter(|id| !rows.built.contains(id)).collect();
    let take = |left: &mut HashSet<i32>, is_wanted: &dyn Fn(&Entry) -> bool| -> HashSet<i32> {
        entries.iter().filter(|e| is_wanted(e)).map(|e| e.dump_id).filter(|id| left.remove(id)).collect()
    };
    // A guard against changes must not meet the restore that brings it: up to 16 nothing turns it off.
    let guards = take(&mut left, &is_guard);
    // A server that never answers keeps nothing else waiting.
    let asking = refresh::asking_others(target, &entries).await?;
    let far = take(&mut left, &|e| asking.contains(&e.dump_id));
    if !rows.again.is_empty() {
        // A row may name an index. But keys, triggers and materialized views want all rows before them.
        let ready = take(&mut left, &|e| !wants_all_rows(e));
        let part = Part::Entries(&ready);
        let (said, failed) =
            run_after_rows(target, &rows.archive, &entries, part, target.jobs, schema_args).await?;
        loaded.add_warnings(said);
        let done = built(ready.clone(), &failed);
        left.extend(ready.into_iter().filter(|id| !done.contains(id)));
        rows.run_again(&mut loaded).await?;
    }
    let lost = std::mem::take(&mut rows.again).into_iter().map(|(_, error)| error);
    loaded.lost = lost.map(|error| lacking(error, &loaded.failed)).collect();
    let (made, said) = foreign_keys::build(target, &rows.archive, &entries, &left, schema_args).await?;
    loaded.add_warnings(said);
    left.retain(|id| !made.contains(id));
    if !left.is_empty() {
        let part = Part::Entries(&left);
        let done = run_after_rows(target, &rows.archive, &entries, part, target.jobs, schema_args).await?;
        loaded.finish(done);
    }
    if !far.is_empty() {
        loaded.finish(refresh::fill(target, &rows.archive, &entries, far, schema_args).await?);
    }
    retry(target, &rows.archive, &entries, schema_args, &mut loaded).await?;
    if !guards.is_empty() {
        let part = Part::Entries(&guards);
        loaded.finish(run_after_rows(target, &rows.archive, &entries, part, 1, schema_args).await?);
    }
    drop(rows);
    loaded.schema = Arc::unwrap_or_clone(entries);
    loaded.seconds.push(("post-data", clock.elapsed().as_secs_f64()));
    Ok(loaded)
}

/// Whether an entry is an event trigger, or about one.
fn is_guard(entry: &Entry) -> bool {
    entry.desc == "EVENT TRIGGER" || entry.tag.starts_with("EVENT TRIGGER ")
}

/// Whether an entry, or what it is about, wants the rows of all tables before it.
fn wants_all_rows(entry: &Entry) -> bool {
    ["FK CONSTRAINT", "TRIGGER", "MATERIALIZED VIEW DATA"].contains(&entry.desc.as_str())
        || ["TRIGGER ", "CONSTRAINT "].iter().any(|kind| entry.tag.starts_with(kind))
}

/// Restores one database of a set, where rows that the server refuses are an error: there is nothing to prove then.
/// Those that need what this host cannot have are told.
pub async fn load_whole(origin: &Origin, database: &Database, target: &Target) -> Result<Loaded> {
    let mut loaded = load(origin, database, target).await?;
    match loaded.lost.iter().rposition(|error| !is_lacking(error)) {
        None => Ok(loaded),
        Some(index) => Err(loaded.lost.swap_remove(index)),
    }
}

/// Gives what failed after the rows another turn, in the archive's order, as long as that helps.
async fn retry(
    target: &Target,
    archive: &File,
    entries: &[Entry],
    arguments: &[&str],
    loaded: &mut Loaded,
) -> Result<()> {
    let later: HashSet<i32> = after_rows(entries).map(|e| e.dump_id).collect();
    loop {
        let refused = loaded.failed.iter().filter(|c| c.fault != Fault::Trouble);
        let ids: HashSet<i32> = refused.filter_map(|c| c.id).filter(|id| later.contains(id)).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let part = Part::Entries(&ids);
        let (said, failed) = run_after_rows(target, archive, entries, part, 1, arguments).await?;
        let done = built(ids, &failed);
        if done.is_empty() {
            return Ok(());
        }
        loaded.add_warnings(said);
        loaded.failed.retain(|c| c.id.is_none_or(|id| !done.contains(&id)));
    }
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
        run_stream(origin, database, full, target, &sections, HashSet::new(), false).await?;
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
        if self.failed.iter().any(|c| c.fault == Fault::Elsewhere) {
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

/// The rows of one database on their way, and what is built on them meanwhile.
struct Rows<'a> {
    origin: &'a Origin,
    database: &'a Database,
    target: &'a Target,
    /// The schema's.
    archive: Arc<File>,
    entries: Arc<Vec<Entry>>,
    schema_args: &'static [&'static str],
    /// Whether pg_restore may put several statements into a transaction.
    may_bundle: bool,
    /// The streams that are loaded, by name, and which entries of their archives are not.
    without: HashMap<String, HashSet<i32>>,
    /// What can be built before all rows are in.
    builds: Builds,
    /// Entries after the rows that are restored already.
    built: HashSet<i32>,
    /// Streams in which a statement failed.
    again: Vec<(Stream, Error)>,
}

/// What occupies a job.
enum Work {
    Stream(Stream),
    /// Entries of the schema archive that need one table each.
    Build(Build),
}

/// What came of a job's work.
enum Done {
    /// The table, where the stream was a single one's.
    Stream(Stream, Result<(Option<Entry>, Vec<String>)>),
    Build(Build, Result<(Vec<String>, Vec<Complaint>)>),
}

impl Rows<'_> {
    /// Loads the rows, and builds meanwhile what can be. Says when the last rows were in.
    async fn load(&mut self, loaded: &mut Loaded) -> Result<Instant> {
        let is_wanted = |s: &&Stream| self.without.contains_key(&s.name);
        let mut streams: Vec<&Stream> = self.database.streams.iter().filter(is_wanted).collect();
        streams.sort_by_key(|s| std::cmp::Reverse(s.plain_size));
        let mut streams: VecDeque<Stream> = streams.into_iter().cloned().collect();
        let mut left = streams.len();
        let mut rows_in = Instant::now();
        let total = after_rows(&self.entries).count();
        let build_alone = || {
            let phase = format!("{}: indexes and constraints", self.database.name);
            (self.origin.progress)(Event::Phase(phase));
        };
        if left == 0 {
            build_alone();
        }
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.len() < self.target.jobs.max(1) {
                // Rows first: they are what everything else waits for.
                let work = match streams.pop_front() {
                    Some(stream) => Work::Stream(stream),
                    None => match self.builds.take() {
                        Some(build) => Work::Build(build),
                        None => break,
                    },
                };
                running.spawn(self.run(work));
            }
            let Some(done) = running.join_next().await else { break };
            let done = done.map_err(|e| Error::new(format!("a stream stopped: {e}")))?;
            if matches!(done, Done::Stream(..)) {
                left -= 1;
                rows_in = Instant::now();
                if left == 0 {
                    build_alone();
                }
            }
            match done {
                Done::Stream(stream, Ok((table, said))) => {
                    loaded.add_warnings(said);
                    match table {
                        Some(table) => {
                            let name = (table.namespace, table.tag);
                            self.builds.loaded([(name, stream.plain_size)]);
                        }
                        None if self.builds.waits() => match self.tables_of(&stream).await {
                            Ok(tables) => self.builds.loaded(tables),
                            Err(error) => tracing::info!("{error}; they are built after all rows"),
                        },
                        None => {}
                    }
                }
                // A statement that failed was certainly rolled back, and may succeed later.
                Done::Stream(stream, Err(error)) if is_sql_error(&error) => {
                    self.again.push((stream, error));
                }
                Done::Stream(_, Err(error)) => return Err(error),
                Done::Build(build, result) => {
                    self.builds.ended(&build);
                    let (said, failed) = result?;
                    loaded.add_warnings(said);
                    self.built.extend(built(build.ids, &failed));
                    if left == 0 {
                        (self.origin.progress)(Event::Done { done: self.built.len(), of: total });
                    }
                    // Who is in trouble is told whatever comes of the next turn, which may meet what is there.
                    loaded.failed.extend(failed.into_iter().filter(|c| c.fault == Fault::Trouble));
                }
            }
        }
        if !self.again.is_empty() {
            self.run_again(loaded).await?;
            rows_in = Instant::now();
        }
        Ok(rows_in)
    }

    /// The tables that a stream holds, and their sizes in the target.
    async fn tables_of(&self, stream: &Stream) -> Result<Vec<(TableName, u64)>> {
        let entries = fetch_contents(self.origin, stream).await?;
        let held = entries.iter().filter(|e| e.desc == "TABLE DATA");
        let (schemas, names): (Vec<&str>, Vec<&str>) =
            held.map(|e| (e.namespace.as_str(), e.tag.as_str())).unzip();
        let session = self.target.connect(&[]).await?;
        let rows = session.client.query(SIZES, &[&schemas, &names]).await.map_err(error);
        session.close().await;
        let rows = rows.context("cannot read the sizes of tables")?;
        let size = |row: &tokio_postgres::Row| {
            ((row.get(0), row.get(1)), u64::try_from(row.get::<_, i64>(2)).unwrap_or(0))
        };
        Ok(rows.iter().map(size).collect())
    }

    /// Runs streams again in which a statement failed. A stream may wait for another one's rows, so all get another
    /// turn as long as any gets further.
    async fn run_again(&mut self, loaded: &mut Loaded) -> Result<()> {
        // Tables that were missing before the last attempt, by stream.
        let mut missing: HashMap<String, usize> = HashMap::new();
        let mut gets_further = true;
        while gets_further && !self.again.is_empty() {
            gets_further = false;
            for (stream, error) in std::mem::take(&mut self.again) {
                tracing::info!("{error}; trying once more, after the others");
                let Attempt { left, result } = self.try_again(&stream, error).await;
                match result {
                    Ok(said) => {
                        loaded.add_warnings(said);
                        gets_further = true;
                    }
                    Err(error) if is_sql_error(&error) => {
                        gets_further |= missing.insert(stream.name.clone(), left).is_none_or(|n| left < n);
                        self.again.push((stream, error));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn try_again(&self, stream: &Stream, error: Error) -> Attempt {
        let (origin, database, target) = (self.origin, self.database, self.target);
        let without = self.without.get(&stream.name).cloned().unwrap_or_default();
        if stream.name == "data-rest" {
            match rest::entries(origin, stream, target).await {
                Ok(Some(entries)) => {
                    return rest::load_rest(origin, database, stream, (entries, without), target, error)
                        .await;
                }
                Ok(None) if self.may_bundle && stream.is_one_transaction() => {}
                // Some of its transactions may have been committed.
                Ok(None) => return Attempt { left: 1, result: Err(error) },
                Err(why) => return Attempt { left: 1, result: Err(rest::unless_refused(why, error)) },
            }
        }
        let loaded = load_stream(origin, database, stream, target, self.may_bundle, without).await;
        Attempt { left: 1, result: loaded.map(|(_, said)| said) }
    }

    /// One job's work, on its own.
    fn run(&self, work: Work) -> impl Future<Output = Done> + Send + 'static {
        let (origin, database, target) = (self.origin.clone(), self.database.clone(), self.target.clone());
        let (archive, entries) = (self.archive.clone(), self.entries.clone());
        let (schema_args, may_bundle) = (self.schema_args, self.may_bundle);
        let without = match &work {
            Work::Stream(stream) => self.without.get(&stream.name).cloned().unwrap_or_default(),
            Work::Build(_) => HashSet::new(),
        };
        async move {
            match work {
                Work::Stream(stream) => {
                    let result = load_stream(&origin, &database, &stream, &target, may_bundle, without).await;
                    Done::Stream(stream, result)
                }
                Work::Build(build) => {
                    let part = Part::Entries(&build.ids);
                    let result = run_after_rows(&target, &archive, &entries, part, 1, schema_args).await;
                    Done::Build(build, result)
                }
            }
        }
    }
}

/// What of these entries is there, after pg_restore complained of some. What is not may need rows of another table, and
/// gets another turn with the rest. Where a complaint does not tell what it is about, or something else ended
/// pg_restore, nobody knows how far it came: then all of them get that turn.
fn built(mut ids: HashSet<i32>, failed: &[Complaint]) -> HashSet<i32> {
    for complaint in failed {
        tracing::info!("{complaint}; trying once more, after all rows");
        match complaint.id {
            Some(id) if complaint.fault != Fault::Trouble => drop(ids.remove(&id)),
            _ => return HashSet::new(),
        }
    }
    ids
}

/// Which entries of a stream are not restored; `None` where none of its rows is.
async fn unwanted(origin: &Origin, stream: &Stream, target: &Target) -> Result<Option<HashSet<i32>>> {
    match &target.wanted {
        None => Ok(Some(HashSet::new())),
        Some(wanted) if !wanted.with_rows => Ok(None),
        Some(wanted) => {
            let entries = fetch_contents(origin, stream).await?;
            let unwanted = wanted.unwanted_rows(&entries);
            let holds_any =
                entries.iter().any(|e| e.section == Section::Data && !unwanted.contains(&e.dump_id));
            Ok(holds_any.then_some(unwanted))
        }
    }
}

/// Loads a stream, but for the entries `without`: a large table by ourselves, everything else with pg_restore.
async fn load_stream(
    origin: &Origin,
    database: &Database,
    stream: &Stream,
    target: &Target,
    may_bundle: bool,
    without: HashSet<i32>,
) -> Result<(Option<Entry>, Vec<String>)> {
    if stream.name != "data-rest"
        && stream.name != EXTENSION_TABLES
        && let Some(table) = copy_table(origin, database, stream, None, target).await?
    {
        return Ok((Some(table), Vec::new()));
    }
    let arguments = data_arguments(stream, target, may_bundle);
    let Restored { warnings, .. } =
        run_stream(origin, database, stream, target, &arguments, without, false).await?;
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

    #[test]
    fn what_nobody_knows_to_be_built_gets_another_turn() {
        let complaint = |id, fault| Complaint { id, object: String::new(), message: "x".into(), fault };
        let ids = || HashSet::from([1, 2, 3]);
        assert_eq!(built(ids(), &[]), ids());
        assert_eq!(built(ids(), &[complaint(Some(2), Fault::Refused)]), HashSet::from([1, 3]));
        assert_eq!(built(ids(), &[complaint(Some(2), Fault::Trouble)]), HashSet::new());
        assert_eq!(built(ids(), &[complaint(None, Fault::Refused)]), HashSet::new());
    }
}
