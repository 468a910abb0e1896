//! What is left of a stream that was interrupted, where it was not one transaction.
//!
//! The target says by itself what is there: it was empty when the restore began, and the rows of a table come
//! within one transaction, so a table that has any row has them all. Large objects that are made among the rows
//! do not tell how far they came. They are removed, a bounded number in a transaction, and all of them are
//! restored again. Whatever else is among the rows (values of sequences, statistics) may be restored twice.

use super::pg_restore::{Restored, fetch_contents, run_stream};
use super::{Origin, Target};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{self, Session, error};
use crate::postgres::sql::Sql;
use crate::set::archive::Entry;
use crate::set::archive::copy::parse_copy;
use crate::set::manifest::{Database, Stream};

/// Each that is removed is locked.
const REMOVE_LARGE_OBJECTS: &str =
    "SELECT count(lo_unlink(oid)) FROM (SELECT oid FROM pg_largeobject_metadata LIMIT 1000) AS bounded";

/// Restores what is not there yet; pg_restore's warnings are returned.
pub async fn load_rest(
    origin: &Origin,
    database: &Database,
    stream: &Stream,
    target: &Target,
    arguments: &[String],
) -> Result<Vec<String>> {
    let entries = fetch_contents(origin, stream).await?;
    if entries.is_empty() {
        return Err(Error::new(format!("stream {} cannot be read by this opsd", stream.name)));
    }
    let session = connect::connect(&target.connection, Some(&target.dbname), "opsd restore").await?;
    let left = what_is_left(&session, &entries).await;
    session.close().await;
    let left = left.context("cannot find out what was restored")?;
    let Restored { warnings, .. } =
        run_stream(origin, database, stream, target, arguments, Some(&left), false).await?;
    Ok(warnings)
}

/// Dump ids of the entries that are not there, in the archive's order. Large objects are not, afterwards.
async fn what_is_left(session: &Session, entries: &[Entry]) -> Result<Vec<i32>> {
    let mut left = Vec::new();
    for entry in entries {
        if entry.desc != "TABLE DATA" || !has_rows(session, entry).await? {
            left.push(entry.dump_id);
        }
    }
    // Up to pg_dump 16 they are made with the definitions, and their content may be written twice.
    while entries.iter().any(|entry| entry.desc == "BLOB METADATA") {
        let row = session.client.query_one(REMOVE_LARGE_OBJECTS, &[]).await.map_err(error)?;
        if row.get::<_, i64>(0) == 0 {
            break;
        }
    }
    Ok(left)
}

async fn has_rows(session: &Session, entry: &Entry) -> Result<bool> {
    let statement = parse_copy(&entry.copy)?;
    let any = Sql::new("SELECT EXISTS (SELECT FROM ONLY ")
        .ident(&statement.schema)
        .then(".")
        .ident(&statement.table)
        .then(")");
    let row = any.query_one(&session.client).await.map_err(error)?;
    Ok(row.get(0))
}
