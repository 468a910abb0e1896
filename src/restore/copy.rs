//! One large table's stream into a COPY of our own, without pg_restore.
//!
//! `BEGIN; TRUNCATE ONLY; COPY … FREEZE; COMMIT`: run again after a failure it doubles nothing, a server
//! with `wal_level = minimal` writes no WAL for it, and the rows need no second writing to become
//! visible to everybody. The transaction is committed only after the stream was read to its end and
//! every object's hash agreed. Deliberately absent: anything but rows, which is pg_restore's.

use std::io::{BufReader, Read};
use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::CopyInSink;
use tokio_postgres::error::SqlState;

use super::complaints::{Fault, HINT, masked_in};
use super::{Origin, Target};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::Session;
use crate::postgres::messages;
use crate::postgres::sql::Sql;
use crate::progress::Event;
use crate::set::archive::Entry;
use crate::set::archive::copy::CopyStatement;
use crate::set::archive::cut::Cut;
use crate::set::archive::rows;
use crate::set::manifest::{Database, Stream};
use crate::set::seal::{cause, read_stream};

/// Bytes of rows in one message. The server holds a message whole; larger ones gain nothing.
const MESSAGE: usize = 128 << 10;
/// The `search_path` of a server whose settings nobody changed.
const USUAL_SEARCH_PATH: &str = "\"$user\", public";
/// Bytes decompressed at a time.
const READ_SIZE: usize = 128 << 10;

/// What the reading thread learned before the first row.
struct Table {
    entry: Entry,
    statement: CopyStatement,
    encoding: String,
}

/// Loads the table that a stream holds, or one of several that it holds, and returns its entry. One of several is
/// loaded by itself because pg_restore could not, and so with the search_path that pg_restore does without.
/// `None`: what is to be read is not one table's, or may not be truncated (by this role, or because others refer
/// to it); nothing was changed, and pg_restore can try.
pub async fn copy_table(
    origin: &Origin,
    database: &Database,
    stream: &Stream,
    only: Option<(String, String)>,
    target: &Target,
) -> Result<Option<Entry>> {
    let name = format!("{}/{}", database.name, stream.name);
    let mut source =
        read_stream(origin.store.clone(), &origin.prefix, stream, origin.identities.clone(), |_| ())?;
    let is_one_of_several = only.is_some();
    let (opened, table) = oneshot::channel();
    // One message waits while one is being sent and one is being filled.
    let (sender, messages) = mpsc::channel(1);
    let (progress, shown) = (origin.progress.clone(), name.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let progress = |bytes| progress(Event::StreamBytes { name: shown.clone(), bytes });
        let read = match only {
            None => read_rows(&mut source, opened, &sender, progress),
            Some(table) => read_rows(Cut::new(&mut source, table), opened, &sender, progress),
        };
        (read, source)
    });
    let table: Option<Table> = table.await.unwrap_or(None);
    let loaded = match &table {
        None => Ok(None),
        Some(table) => {
            (origin.progress)(Event::StreamStarted { name: name.clone(), estimate: stream.plain_size });
            let loaded = load(table, messages, target, is_one_of_several).await;
            (origin.progress)(Event::StreamFinished { name: name.clone() });
            loaded
        }
    };
    let (read, source) = reading.await.map_err(|e| Error::new(format!("stream {name} stopped: {e}")))?;
    let what = || format!("stream {name}");
    // Rows that were cut off also fail at the server: the reader's news comes first.
    let loaded = match read.and(loaded) {
        Ok(loaded) => loaded,
        Err(error) => return Err(cause(source, error).await.context(what())),
    };
    let (Some(session), Some(table)) = (loaded, table) else { return Ok(None) };
    session.client.batch_execute("COMMIT").await.map_err(|e| refused(&table, &e)).with_context(what)?;
    session.close().await;
    Ok(Some(table.entry))
}

/// Says which table a stream holds, if it is a single one's, and then sends its rows until they end or
/// nobody wants more.
fn read_rows(
    source: impl Read,
    opened: oneshot::Sender<Option<Table>>,
    sender: &mpsc::Sender<Bytes>,
    progress: impl Fn(u64),
) -> Result<()> {
    let Some(mut rows) = rows::open(BufReader::with_capacity(READ_SIZE, source))? else {
        return Ok(());
    };
    let table = Table {
        entry: rows.entry.clone(),
        statement: rows.statement.clone(),
        encoding: rows.encoding.clone(),
    };
    let mut more = opened.send(Some(table)).is_ok();
    while more {
        let mut buffer = Vec::with_capacity(MESSAGE);
        more = rows.fill(&mut buffer, MESSAGE)?;
        progress(buffer.len() as u64);
        if sender.blocking_send(Bytes::from(buffer)).is_err() {
            break; // nobody listens: whoever stopped knows why
        }
    }
    Ok(())
}

/// Everything up to the commit. `None`: the table may not be truncated.
async fn load(
    table: &Table,
    mut messages: mpsc::Receiver<Bytes>,
    target: &Target,
    with_search_path: bool,
) -> Result<Option<Session>> {
    let mut settings =
        vec![("xmloption", "content"), ("lock_timeout", "0"), ("client_min_messages", "warning")];
    // The statements below find nothing by it; what they call may.
    settings.extend(with_search_path.then_some(("search_path", USUAL_SEARCH_PATH)));
    let session = target.connect(&settings).await?;
    let CopyStatement { schema, table: name, columns } = &table.statement;
    let begin = Sql::new("BEGIN; TRUNCATE ONLY ").qualified(schema, name);
    if let Err(failure) = begin.run(&session.client).await {
        let cannot = [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::FEATURE_NOT_SUPPORTED];
        if failure.code().is_some_and(|code| cannot.contains(code)) {
            return Ok(None);
        }
        return Err(refused(table, &failure));
    }
    let copy = Sql::new("COPY ")
        .qualified(schema, name)
        .sql(&listed(columns))
        .then(" FROM STDIN (FREEZE, ENCODING ")
        .literal(&table.encoding)
        .then(")");
    let sink: CopyInSink<Bytes> = copy.copy_in(&session.client).await.map_err(|e| refused(table, &e))?;
    let mut sink = pin!(sink);
    while let Some(message) = messages.recv().await {
        // A server that failed says why at the end.
        if sink.feed(message).await.is_err() {
            break;
        }
    }
    sink.finish().await.map_err(|e| refused(table, &e))?;
    Ok(Some(session))
}

/// ` ("a", "b")`; nothing for a table without columns.
fn listed(columns: &[String]) -> Sql {
    if columns.is_empty() {
        return Sql::new("");
    }
    Sql::new(" (").join(columns.iter().map(|name| Sql::new("").ident(name)), ", ").then(")")
}

/// In pg_restore's words, without values, and with its fault.
fn refused(table: &Table, failure: &tokio_postgres::Error) -> Error {
    let name = &table.entry.tag;
    match failure.as_db_error() {
        Some(db) => {
            let said = masked_in(db.message(), db.where_().unwrap_or_default());
            let error = match messages::of_rows(db.code()) {
                Fault::Trouble => {
                    Error::new(format!("cannot load table {name:?}: {said} (SQLSTATE {})", db.code().code()))
                }
                Fault::Refused | Fault::Elsewhere => {
                    Error::new(format!("COPY failed for table {name:?}: ERROR:  {said}"))
                        .with_fault(Fault::Refused)
                }
            };
            error.with_hint(HINT)
        }
        None => Error::new(format!("cannot load table {name:?}: {failure}")),
    }
}
