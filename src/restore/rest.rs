//! Another attempt at a stream in which statements failed: what is not there yet, each table on its own.
//!
//! The target says by itself what is there: it was empty when the restore began, and the rows of a table come
//! within one transaction, so a table that has any row has them all. Large objects that are made among the rows
//! do not tell how far they came. They are removed, a bounded number in a transaction, and all of them are
//! restored again. Whatever else is among the rows (values of sequences, statistics) may be restored twice.
//!
//! Some partitions are loaded by way of the table above them, whose rows tell nobody which entry they came with, and
//! some tables have rows that an extension's script put there. A stream with such entries is not taken apart: rows
//! could come twice, or not at all.
//!
//! What pg_restore does not get in is copied by ourselves: with the usual search_path, where pg_restore has none, a
//! CHECK finds the function's tables as it did at the source.

use std::collections::HashSet;

use tokio_postgres::error::SqlState;

use super::builds::TableName;
use super::complaints::is_sql_error;
use super::copy::copy_table;
use super::pg_restore::{Restored, fetch_contents, run_stream};
use super::{Origin, Target};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, error, sqlstate};
use crate::postgres::ident::Name;
use crate::postgres::sql::Sql;
use crate::set::archive::Entry;
use crate::set::archive::copy::parse_copy;
use crate::set::manifest::{Database, Stream};

/// Each that is removed is locked.
const REMOVE_LARGE_OBJECTS: &str =
    "SELECT count(lo_unlink(oid)) FROM (SELECT oid FROM pg_largeobject_metadata LIMIT 1000) AS bounded";

/// Most bytes of a stream that are read again for the sake of single tables: each takes the whole stream.
const MAX_READ_AGAIN: u64 = 16 << 30;

/// What an attempt came to.
pub struct Attempt {
    /// Tables that were not there before.
    pub left: usize,
    /// pg_restore's warnings, or why something is still not there.
    pub result: Result<Vec<String>>,
}

/// Tables that an extension made, and may have filled.
const OF_EXTENSIONS: &str = "SELECT n.nspname, c.relname FROM pg_depend d
       JOIN pg_class c ON c.oid = d.objid JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
        AND c.relkind IN ('r', 'p')";

/// The stream's entries, if it can be taken apart.
pub async fn entries(origin: &Origin, stream: &Stream, target: &Target) -> Result<Option<Vec<Entry>>> {
    let entries = fetch_contents(origin, stream).await?;
    let session = target.connect(&[]).await?;
    let of_extensions = session.client.query(OF_EXTENSIONS, &[]).await.map_err(error);
    session.close().await;
    let of_extensions: HashSet<TableName> =
        of_extensions?.iter().map(|row| (row.get::<_, Name>(0).0, row.get::<_, Name>(1).0)).collect();
    for entry in entries.iter().filter(|e| e.desc == "TABLE DATA") {
        let copied = parse_copy(&entry.copy)?;
        let name = (entry.namespace.clone(), entry.tag.clone());
        if (&copied.schema, &copied.table) != (&name.0, &name.1) || of_extensions.contains(&name) {
            return Ok(None);
        }
    }
    // None at all: an archive version that the parser does not know.
    Ok((!entries.is_empty()).then_some(entries))
}

/// Restores what is not there yet of these entries, but for those of the second value, after this error. A table whose
/// rows are refused does not keep the others out.
pub async fn load_rest(
    origin: &Origin,
    database: &Database,
    stream: &Stream,
    (mut entries, without): (Vec<Entry>, HashSet<i32>),
    target: &Target,
    before: Error,
) -> Attempt {
    entries.retain(|entry| !without.contains(&entry.dump_id));
    let entries = entries.as_slice();
    let prepared = async {
        remove_large_objects(target, entries).await?;
        look(target, entries).await
    };
    let Found { mut there, left } = match prepared.await {
        Ok(prepared) => prepared,
        Err(why) => return Attempt { left: usize::MAX, result: Err(unless_refused(why, before)) },
    };
    there.extend(without);
    let arguments = ["--section=data"];
    let mut result = run_stream(origin, database, stream, target, &arguments, there, false)
        .await
        .map(|Restored { warnings, .. }| warnings);
    if result.as_ref().is_err_and(is_sql_error)
        && stream.plain_size.saturating_mul(left.len() as u64) <= MAX_READ_AGAIN
        && let Err(error) = copy_each(origin, database, stream, target, entries).await
    {
        result = Err(error);
    }
    Attempt { left: left.len(), result }
}

/// Why a look failed; where the server merely refused that, why the stream did.
pub fn unless_refused(why: Error, before: Error) -> Error {
    if sqlstate(&why).is_none() {
        return why;
    }
    tracing::info!("{why}; not tried once more");
    before
}

/// Copies each table that still has no rows; whose rows are refused once more is left to the next attempt.
async fn copy_each(
    origin: &Origin,
    database: &Database,
    stream: &Stream,
    target: &Target,
    entries: &[Entry],
) -> Result<()> {
    for table in look(target, entries).await?.left {
        match copy_table(origin, database, stream, Some(table), target).await {
            Err(error) if !is_sql_error(&error) => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// A stream's tables.
struct Found {
    /// Entries of those that have rows.
    there: HashSet<i32>,
    /// Those that have none.
    left: Vec<TableName>,
}

/// Which of these tables have rows.
async fn look(target: &Target, entries: &[Entry]) -> Result<Found> {
    let session = target.connect(&[]).await?;
    let found = what_is_there(&session, entries).await;
    session.close().await;
    found.context("cannot find out what was restored")
}

/// Removes all large objects, where the stream makes them. Up to pg_dump 16 they are made with the definitions, and
/// their content may be written twice.
async fn remove_large_objects(target: &Target, entries: &[Entry]) -> Result<()> {
    if !entries.iter().any(|entry| entry.desc == "BLOB METADATA") {
        return Ok(());
    }
    let session = target.connect(&[]).await?;
    loop {
        let removed = session.client.query_one(REMOVE_LARGE_OBJECTS, &[]).await.map_err(error);
        if removed.context("cannot remove large objects")?.get::<_, i64>(0) == 0 {
            session.close().await;
            return Ok(());
        }
    }
}

async fn what_is_there(session: &Session, entries: &[Entry]) -> Result<Found> {
    let mut found = Found { there: HashSet::new(), left: Vec::new() };
    for entry in entries.iter().filter(|e| e.desc == "TABLE DATA") {
        if has_rows(session, entry).await? {
            found.there.insert(entry.dump_id);
        } else {
            found.left.push((entry.namespace.clone(), entry.tag.clone()));
        }
    }
    Ok(found)
}

/// Whether the table has a row; one that could not be made has none.
async fn has_rows(session: &Session, entry: &Entry) -> Result<bool> {
    let statement = parse_copy(&entry.copy)?;
    let any = Sql::new("SELECT EXISTS (SELECT FROM ONLY ")
        .ident(&statement.schema)
        .then(".")
        .ident(&statement.table)
        .then(")");
    match any.query_one(&session.client).await {
        Ok(row) => Ok(row.get(0)),
        Err(failure) if failure.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(false),
        Err(failure) => Err(error(failure)),
    }
}
