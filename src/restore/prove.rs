//! Reading a restored database back, and comparing it with what was fingerprinted when it was dumped.
//!
//! The same columns are read in the same encoding under the same session settings, so that the same
//! rows give the same bytes. Deliberately absent: any trust in the order of rows, and any reading of
//! the dump itself; this looks at the restored server alone.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::large_objects;
use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{connect, error};
use crate::postgres::ident::Name;
use crate::postgres::sql::Sql;
use crate::set::archive::copy::parse_copy;
use crate::set::fingerprint::{RowHasher, RowSecret};
use crate::set::proof::{Fingerprint, Proof, Sequence, Table};

/// Bytes of a large object that are asked for at once.
const LARGE_OBJECT_CHUNK: i32 = 1 << 20;
/// Bytes of each large object that come with those of [`BATCH`] others: most objects are small, and all
/// of these are held at once.
const FIRST_PIECE: i32 = 64 << 10;
/// Bytes of a table that one session reads at a time: a large table is read by all of them.
const PIECE: u64 = 64 << 20;
/// The first server that finds pages without reading those before them.
const TID_RANGE_SCAN: u32 = 140_000;
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

/// Compares the restored database with its proof, `jobs` pieces of tables at a time.
pub async fn prove(connection: &Connection, proof: Arc<Proof>, jobs: usize) -> Result<Found> {
    let secret = RowSecret::from_base64(&proof.secret)?;
    let session = connect(connection, None, "opsd verify").await?.without_conversion().await?;
    let filters = extension_filters(&session.client).await?;
    let relations = relations(&session.client).await?;
    let is_divisible = session.server_version_num >= TID_RANGE_SCAN;
    let mut found = Found::default();
    let mut pieces = Vec::new();
    for (index, table) in proof.tables.iter().enumerate() {
        let key = (table.schema.clone(), table.name.clone());
        match relations.get(&key) {
            None => found.differences.push(format!("table {}.{} is missing", table.schema, table.name)),
            Some(relation) => {
                let filter = filters.get(&key).filter(|_| !table.is_whole);
                let plan = plan_table(relation, filter, is_divisible);
                pieces.extend(plan.into_iter().map(|piece| (index, piece)));
            }
        }
    }
    let mut read = read_all(connection, &proof, &secret, pieces, jobs).await?;
    read.sort_by_key(|(index, _)| *index);
    for of_table in read.chunk_by(|a, b| a.0 == b.0) {
        let table = &proof.tables[of_table[0].0];
        let what = format!("table {}.{}", table.schema, table.name);
        let mut sum = Fingerprint::default();
        let mut difference = None;
        for (_, piece) in of_table {
            match piece {
                Ok(fingerprint) => sum.add(*fingerprint),
                Err(why) => difference = Some(format!("{what}: {why}")),
            }
        }
        found.rows += sum.rows;
        match difference.or_else(|| compare(&what, "rows", table.fingerprint, sum)) {
            None => found.tables_proven += table.entries,
            Some(difference) => found.differences.push(difference),
        }
    }
    found.differences.sort();
    found.differences.extend(check_large_objects(&session.client, &proof, &secret).await?);
    found.differences.extend(large_objects::check_properties(&session.client, &proof, &secret).await?);
    found.differences.extend(check_sequences(&session.client, &proof.sequences).await?);
    session.close().await;
    Ok(found)
}

/// What a piece of the table with this index in the proof came to.
type Read = (usize, Result<Fingerprint, String>);

/// Reads pieces on `jobs` threads. A session and whoever hashes its rows share one: rows come in
/// messages of a few kilobytes, and waking another thread for each costs more than hashing it.
async fn read_all(
    connection: &Connection,
    proof: &Arc<Proof>,
    secret: &RowSecret,
    mut pieces: Vec<(usize, Piece)>,
    jobs: usize,
) -> Result<Vec<Read>> {
    // What takes longest is taken first, so that all threads end at about the same time.
    pieces.sort_by_key(|(_, piece)| piece.bytes);
    let threads = jobs.clamp(1, pieces.len().max(1));
    let pieces = Arc::new(Mutex::new(pieces));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..threads {
        let (connection, proof, secret, pieces) =
            (connection.clone(), proof.clone(), secret.clone(), pieces.clone());
        running.spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.context("cannot start a thread")?;
            runtime.block_on(read_some(&connection, &proof, &secret, &pieces))
        });
    }
    let mut read = Vec::new();
    while let Some(done) = running.join_next().await {
        read.extend(done.map_err(|e| Error::new(format!("reading back stopped: {e}")))??);
    }
    Ok(read)
}

/// Reads pieces until none is left.
async fn read_some(
    connection: &Connection,
    proof: &Proof,
    secret: &RowSecret,
    pieces: &Mutex<Vec<(usize, Piece)>>,
) -> Result<Vec<Read>> {
    let session = connect(connection, None, "opsd verify").await?.without_conversion().await?;
    let direct: HashSet<(&str, &str)> =
        proof.tables.iter().map(|t| (t.schema.as_str(), t.name.as_str())).collect();
    let mut read = Vec::new();
    loop {
        let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some((index, piece)) = next else { break };
        let table = &proof.tables[index];
        let result = read_piece(&session.client, table, &piece, &proof.encoding, &direct, secret).await;
        read.push((index, result.with_context(|| format!("table {}.{}", table.schema, table.name))?));
    }
    session.close().await;
    Ok(read)
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

/// A restored table, as the catalog has it.
struct Relation {
    is_partitioned: bool,
    /// With what is stored beside it (TOAST), in bytes.
    bytes: u64,
    pages: u32,
}

/// Tables and partitioned tables by schema and name.
async fn relations(client: &Client) -> Result<HashMap<(String, String), Relation>> {
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text, c.relkind = 'p', pg_table_size(c.oid),
                    pg_relation_size(c.oid) / current_setting('block_size')::int8
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p')",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list tables")?;
    let relation = |row: &tokio_postgres::Row| Relation {
        is_partitioned: row.get(2),
        bytes: u64::try_from(row.get::<_, i64>(3)).unwrap_or(0),
        // A table has at most 2^32 pages.
        pages: u32::try_from(row.get::<_, i64>(4)).unwrap_or(u32::MAX),
    };
    Ok(rows.iter().map(|row| (qualified(row), relation(row))).collect())
}

/// What one COPY reads.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// A table whole.
    Table,
    /// Its pages from the first to before the last; without a last to the end.
    Pages(u32, Option<u32>),
    /// The rows that a clause leaves.
    Filtered(String),
    /// A partitioned table through its root.
    Root,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    what: What,
    /// An estimate.
    bytes: u64,
}

/// One table in pieces of about [`PIECE`] bytes, where it can be divided.
fn plan_table(relation: &Relation, filter: Option<&String>, is_divisible: bool) -> Vec<Piece> {
    let whole = |what| vec![Piece { what, bytes: relation.bytes }];
    if relation.is_partitioned {
        return whole(What::Root);
    }
    if let Some(filter) = filter {
        return whole(What::Filtered(filter.clone()));
    }
    let count = u32::try_from(relation.bytes / PIECE).unwrap_or(u32::MAX).min(relation.pages);
    if count < 2 || !is_divisible {
        return whole(What::Table);
    }
    let at = |i: u32| u32::try_from(u64::from(relation.pages) * u64::from(i) / u64::from(count)).ok();
    (0..count)
        .map(|i| {
            // The last one has no end: it reads whatever is there.
            let end = if i + 1 == count { None } else { at(i + 1) };
            Piece { what: What::Pages(at(i).unwrap_or(0), end), bytes: relation.bytes / u64::from(count) }
        })
        .collect()
}

/// Reads rows back and hashes them; or says why they cannot be those of the proof.
async fn read_piece(
    client: &Client,
    table: &Table,
    piece: &Piece,
    encoding: &str,
    direct: &HashSet<(&str, &str)>,
    secret: &RowSecret,
) -> Result<Result<Fingerprint, String>> {
    let statement = parse_copy(&table.copy)?;
    let relation = Sql::new("").qualified(&statement.schema, &statement.table);
    let columns = Sql::new("").join(statement.columns.iter().map(|name| Sql::new("").ident(name)), ", ");
    let selected = |from: &'static str| Sql::new("(SELECT ").sql(&columns).then(from).sql(&relation);
    // COPY by itself reads neither a partitioned root nor some of the rows.
    let what = match &piece.what {
        What::Table if statement.columns.is_empty() => relation,
        What::Table => relation.then(" (").sql(&columns).then(")"),
        What::Pages(from, end) => {
            let pages = selected(" FROM ONLY ").then(" WHERE ctid >= '(").number(*from).then(",0)'");
            match end {
                None => pages.then(")"),
                Some(end) => pages.then(" AND ctid < '(").number(*end).then(",0)')"),
            }
        }
        What::Filtered(clause) => selected(" FROM ONLY ").then(" ").sql(&Sql::of_catalog(clause)).then(")"),
        What::Root => match loaded_beside(client, table, direct).await? {
            none if none.is_empty() => selected(" FROM ").then(")"),
            oids => {
                let oids = oids.into_iter().map(|oid| Sql::new("").number(oid));
                selected(" FROM ").then(" WHERE tableoid NOT IN (").join(oids, ", ").then("))")
            }
        },
    };
    let sql = Sql::new("COPY ").sql(&what).then(" TO STDOUT (ENCODING ").literal(encoding).then(")");
    let rows = match sql.copy_out(client).await {
        Ok(rows) => rows,
        Err(e) if e.code() == Some(&SqlState::UNDEFINED_COLUMN) => return Ok(Err(error(e).to_string())),
        Err(e) => return Err(error(e)),
    };
    let mut rows = pin!(rows);
    let mut hasher = RowHasher::new(secret);
    while let Some(message) = rows.next().await {
        hasher.copied(&message.map_err(error)?);
    }
    Ok(Ok(hasher.take()))
}

/// OIDs of partitions below a root that were dumped by themselves, not through it.
async fn loaded_beside(client: &Client, root: &Table, direct: &HashSet<(&str, &str)>) -> Result<Vec<u32>> {
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
    Ok(beside.map(|row| row.get(0)).collect())
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

/// A page of large objects with their beginnings: there may be millions.
const LARGE_OBJECTS: &str = "SELECT o, lo_get(o, 0, $2) FROM (SELECT oid AS o FROM pg_largeobject_metadata \
                             WHERE oid > $1 ORDER BY oid LIMIT $3) AS page";

async fn check_large_objects(client: &Client, proof: &Proof, secret: &RowSecret) -> Result<Option<String>> {
    let mut hasher = RowHasher::new(secret);
    let mut last = 0_u32;
    loop {
        let rows = client
            .query(LARGE_OBJECTS, &[&last, &FIRST_PIECE, &(BATCH as i64)])
            .await
            .map_err(error)
            .context("cannot read large objects")?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            let (oid, mut chunk): (u32, Vec<u8>) = (row.get(0), row.get(1));
            if oid <= last {
                return Err(Error::new("the server does not list large objects in their order"));
            }
            last = oid;
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
        let selects = (0_i64..).zip(batch).map(|(i, s)| {
            Sql::new("SELECT ")
                .number(i)
                .then("::int8, last_value, is_called FROM ")
                .qualified(&s.schema, &s.name)
        });
        let rows = Sql::new("").join(selects, " UNION ALL ").query(client, &[]).await.map_err(error);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_every_page_once(pages in any::<u32>(), bytes in 0..1u64 << 45) {
            let relation = Relation { is_partitioned: false, bytes, pages };
            let pieces = plan_table(&relation, None, true);
            let mut next = 0;
            for (i, piece) in pieces.iter().enumerate() {
                match &piece.what {
                    What::Table => prop_assert_eq!(pieces.len(), 1),
                    What::Pages(from, end) => {
                        prop_assert_eq!(*from, next);
                        prop_assert_eq!(end.is_none(), i + 1 == pieces.len());
                        next = end.unwrap_or(0);
                        prop_assert!(end.is_none_or(|end| end > *from));
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_divided_is_read_whole() {
        let relation = |is_partitioned| Relation { is_partitioned, bytes: 1 << 40, pages: 1 << 27 };
        assert_eq!(plan_table(&relation(false), None, false)[0].what, What::Table);
        assert_eq!(plan_table(&relation(true), None, true)[0].what, What::Root);
        let clause = "WHERE a".to_owned();
        let pieces = plan_table(&relation(false), Some(&clause), true);
        assert_eq!(pieces[0].what, What::Filtered(clause));
    }
}
