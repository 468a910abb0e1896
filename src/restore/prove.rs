//! Reading a restored database back, and comparing it with what was fingerprinted when it was dumped.
//!
//! The same columns are read in the same encoding under the same session settings, so that the same
//! rows give the same bytes. Deliberately absent: any trust in the order of rows, and any reading of
//! the dump itself; this looks at the restored server alone.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::large_objects;
use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, connect, error};
use crate::postgres::ident::{Name, quote_ident, quote_literal};
use crate::set::archive::copy::parse_copy;
use crate::set::fingerprint::{RowHasher, RowSecret};
use crate::set::proof::{Fingerprint, Proof, Sequence, Table};

/// Bytes of a large object that are asked for at once.
const LARGE_OBJECT_CHUNK: i32 = 1 << 20;
/// Bytes of each large object that come with those of [`BATCH`] others: most objects are small, and all
/// of these are held at once.
const FIRST_PIECE: i32 = 64 << 10;
/// Large objects or sequences asked for in one query.
const BATCH: usize = 200;

/// What was found again.
#[derive(Debug, Default)]
pub struct Found {
    /// Tables whose fingerprint agrees.
    pub tables_proven: u64,
    /// Rows counted.
    pub rows: u64,
    /// One line each.
    pub differences: Vec<String>,
}

/// Compares the restored database with its proof, `jobs` tables at a time.
pub async fn prove(connection: &Connection, proof: &Proof, jobs: usize) -> Result<Found> {
    let secret = RowSecret::from_base64(&proof.secret)?;
    let mut sessions = Vec::new();
    for _ in 0..jobs.max(1) {
        sessions.push(connect(connection, None, "opsd verify").await?.without_conversion().await?);
    }
    let filters = Arc::new(extension_filters(&sessions[0].client).await?);
    let direct: HashSet<(&str, &str)> =
        proof.tables.iter().map(|t| (t.schema.as_str(), t.name.as_str())).collect();
    let pool = Pool::new(sessions);
    let checked: Vec<(u64, Fingerprint, Option<String>)> = stream::iter(&proof.tables)
        .map(|table| {
            let (pool, filters, direct, secret) = (&pool, filters.clone(), &direct, &secret);
            async move {
                let session = pool.take().await?;
                let result =
                    check_table(&session.client, table, &proof.encoding, &filters, direct, secret).await;
                pool.give(session).await;
                let (found, difference) =
                    result.with_context(|| format!("table {}.{}", table.schema, table.name))?;
                Ok::<_, Error>((table.entries, found, difference))
            }
        })
        .buffer_unordered(jobs.max(1))
        .try_collect()
        .await?;
    let mut found = Found::default();
    for (entries, fingerprint, difference) in checked {
        found.rows += fingerprint.rows;
        match difference {
            None => found.tables_proven += entries,
            Some(difference) => found.differences.push(difference),
        }
    }
    found.differences.sort();
    let session = pool.take().await?;
    found.differences.extend(check_large_objects(&session.client, proof, &secret).await?);
    found.differences.extend(large_objects::check_properties(&session.client, proof, &secret).await?);
    found.differences.extend(check_sequences(&session.client, &proof.sequences).await?);
    Ok(found)
}

/// Sessions that wait for work.
struct Pool {
    give: tokio::sync::mpsc::Sender<Session>,
    take: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Session>>,
}

impl Pool {
    fn new(sessions: Vec<Session>) -> Self {
        let (give, take) = tokio::sync::mpsc::channel(sessions.len());
        for session in sessions {
            // The channel is as long as there are sessions.
            let _ = give.try_send(session);
        }
        Self { give, take: tokio::sync::Mutex::new(take) }
    }

    async fn take(&self) -> Result<Session> {
        self.take.lock().await.recv().await.ok_or_else(|| Error::new("no session is left"))
    }

    async fn give(&self, session: Session) {
        let _ = self.give.send(session).await;
    }
}

/// `WHERE` clauses of extensions' configuration tables, by table: pg_dump leaves out the rows that
/// the extension brings itself.
async fn extension_filters(client: &Client) -> Result<HashMap<(String, String), String>> {
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text, x.condition
               FROM pg_extension e
              CROSS JOIN LATERAL unnest(e.extconfig, e.extcondition) AS x (relation, condition)
               JOIN pg_class c ON c.oid = x.relation JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE x.condition <> ''",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot read the extensions' configuration tables")?;
    Ok(rows.iter().map(|row| (qualified(row), row.get::<_, Name>(2).0)).collect())
}

/// Schema and name, a row's first two columns.
fn qualified(row: &tokio_postgres::Row) -> (String, String) {
    (row.get::<_, Name>(0).0, row.get::<_, Name>(1).0)
}

async fn check_table(
    client: &Client,
    table: &Table,
    encoding: &str,
    filters: &HashMap<(String, String), String>,
    direct: &HashSet<(&str, &str)>,
    secret: &RowSecret,
) -> Result<(Fingerprint, Option<String>)> {
    let name = format!("{}.{}", table.schema, table.name);
    let kind = client
        .query_opt(
            "SELECT c.relkind = 'p' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')",
            &[&table.schema, &table.name],
        )
        .await
        .map_err(error)?;
    let Some(kind) = kind else {
        return Ok((Fingerprint::default(), Some(format!("table {name} is missing"))));
    };
    let is_partitioned: bool = kind.get(0);
    let statement = parse_copy(&table.copy)?;
    let filter = filters.get(&(table.schema.clone(), table.name.clone()));
    let beside = if is_partitioned { loaded_beside(client, table, direct).await? } else { Vec::new() };
    let what = if is_partitioned || filter.is_some() {
        // COPY reads neither a partitioned root nor some of the rows by itself.
        let columns = statement.columns.trim_start_matches('(').trim_end_matches(')');
        let only = if is_partitioned { "" } else { "ONLY " };
        let filter = match beside.as_slice() {
            [] => filter.cloned().unwrap_or_default(),
            oids => format!("WHERE tableoid NOT IN ({})", oids.join(", ")),
        };
        format!("(SELECT {columns} FROM {only}{} {filter})", statement.relation)
    } else {
        format!("{} {}", statement.relation, statement.columns)
    };
    let sql = format!("COPY {what} TO STDOUT (ENCODING {})", quote_literal(encoding));
    let rows = match client.copy_out(&sql).await {
        Ok(rows) => rows,
        Err(e) if e.code() == Some(&SqlState::UNDEFINED_COLUMN) => {
            return Ok((Fingerprint::default(), Some(format!("table {name}: {}", error(e)))));
        }
        Err(e) => return Err(error(e)),
    };
    let mut rows = pin!(rows);
    let mut hasher = RowHasher::new(secret);
    while let Some(row) = rows.next().await {
        hasher.row(&row.map_err(error)?);
    }
    let found = hasher.take();
    Ok((found, compare(&format!("table {name}"), "rows", table.fingerprint, found)))
}

/// OIDs of partitions below a root that were dumped by themselves, not through it.
async fn loaded_beside(client: &Client, root: &Table, direct: &HashSet<(&str, &str)>) -> Result<Vec<String>> {
    let rows = client
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text
               FROM pg_partition_tree(format('%I.%I', $1::text, $2::text)::regclass) t
               JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE t.isleaf",
            &[&root.schema, &root.name],
        )
        .await
        .map_err(error)
        .context("cannot list partitions")?;
    let beside = rows.iter().filter(|row| direct.contains(&(row.get(1), row.get(2))));
    Ok(beside.map(|row| row.get::<_, u32>(0).to_string()).collect())
}

fn compare(what: &str, unit: &str, expected: Fingerprint, found: Fingerprint) -> Option<String> {
    if found.rows != expected.rows {
        Some(format!("{what}: {} {unit} instead of {}", found.rows, expected.rows))
    } else if found != expected {
        Some(format!("{what}: same number of {unit}, other content"))
    } else {
        None
    }
}

async fn check_large_objects(client: &Client, proof: &Proof, secret: &RowSecret) -> Result<Option<String>> {
    let rows = client
        .query("SELECT oid FROM pg_largeobject_metadata ORDER BY oid", &[])
        .await
        .map_err(error)
        .context("cannot list large objects")?;
    let oids: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let mut hasher = RowHasher::new(secret);
    for batch in oids.chunks(BATCH) {
        let rows = client
            .query("SELECT o, lo_get(o, 0, $2) FROM unnest($1::oid[]) AS o", &[&batch, &FIRST_PIECE])
            .await
            .map_err(error)
            .context("cannot read large objects")?;
        for row in rows {
            let (oid, mut chunk): (u32, Vec<u8>) = (row.get(0), row.get(1));
            hasher.piece(&oid.to_le_bytes());
            let (mut at, mut asked): (i64, i32) = (0, FIRST_PIECE);
            loop {
                hasher.piece(&chunk);
                at += chunk.len() as i64;
                if chunk.len() < asked as usize {
                    break;
                }
                asked = LARGE_OBJECT_CHUNK;
                let next =
                    client.query_one("SELECT lo_get($1, $2, $3)", &[&oid, &at, &LARGE_OBJECT_CHUNK]).await;
                chunk =
                    next.map_err(error).with_context(|| format!("cannot read large object {oid}"))?.get(0);
            }
            hasher.end_row();
        }
    }
    Ok(compare("large objects", "objects", proof.large_objects, hasher.take()))
}

async fn check_sequences(client: &Client, sequences: &[Sequence]) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind = 'S'",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list sequences")?;
    let there: std::collections::HashSet<(String, String)> = rows.iter().map(qualified).collect();
    let (present, missing): (Vec<&Sequence>, Vec<&Sequence>) =
        sequences.iter().partition(|s| there.contains(&(s.schema.clone(), s.name.clone())));
    differences.extend(missing.iter().map(|s| format!("sequence {}.{} is missing", s.schema, s.name)));
    for batch in present.chunks(BATCH) {
        let selects: Vec<String> = batch
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let name = format!("{}.{}", quote_ident(&s.schema), quote_ident(&s.name));
                format!("SELECT {i}::int8, last_value, is_called FROM {name}")
            })
            .collect();
        let rows = client.query(&selects.join(" UNION ALL "), &[]).await.map_err(error);
        for row in rows.context("cannot read sequences")? {
            let index = usize::try_from(row.get::<_, i64>(0)).unwrap_or(usize::MAX);
            let Some(expected) = batch.get(index) else { continue };
            let found: (i64, bool) = (row.get(1), row.get(2));
            if found != (expected.last_value, expected.is_called) {
                differences.push(format!(
                    "sequence {}.{} stands at {} instead of {}",
                    expected.schema, expected.name, found.0, expected.last_value
                ));
            }
        }
    }
    Ok(differences)
}
