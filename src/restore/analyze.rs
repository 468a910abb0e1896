//! Statistics for the planner, several tables at a time. Missing ones lose nothing, so whatever fails is a warning.

use std::sync::{Arc, Mutex, PoisonError};

use super::Target;
use super::complaints::masked_in;
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, error};
use crate::postgres::ident::Name;
use crate::postgres::sql::Sql;

/// Tables by size, and why some of them are not analyzed: a part of them is on another server, which would be asked for
/// rows and may never answer, or a session that waits for such a server has them locked. Even the size of what is locked
/// would be waited for. A partitioned table brings its partitions along, unless it is such a one.
const TABLES: &str = "WITH RECURSIVE beneath AS (
         SELECT inhrelid AS part, inhparent AS above FROM pg_inherits
         UNION
         SELECT beneath.part, i.inhparent FROM beneath JOIN pg_inherits i ON i.inhrelid = beneath.above
     ), far AS (SELECT above AS oid FROM beneath JOIN pg_class f ON f.oid = part WHERE f.relkind = 'f'),
     locked AS (SELECT relation AS oid FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
     SELECT n.nspname, c.relname,
            CASE WHEN c.oid IN (SELECT oid FROM far) THEN 'a part of it is on another server'
                 WHEN c.oid IN (SELECT oid FROM locked) THEN 'a session has it locked' END
       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'm', 'p') AND c.relpersistence <> 't' AND n.nspname <> 'information_schema'
        AND (NOT c.relispartition OR c.relkind = 'r' AND EXISTS (
                 SELECT FROM beneath JOIN far ON far.oid = above WHERE part = c.oid))
      ORDER BY CASE WHEN c.oid IN (SELECT oid FROM locked) THEN 0 ELSE pg_table_size(c.oid) END";

/// The partitions of one that could not be analyzed as a whole.
const PARTITIONS: &str = "SELECT n.nspname, c.relname FROM pg_partition_tree($1::text::regclass) t
       JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind = 'r' AND t.isleaf";

/// Analyzes every table, as many at a time as there are jobs, and returns what could not be analyzed. One table
/// that cannot be read, such as one on a foreign server, does not keep the others from it.
pub async fn analyze(target: &Target) -> Result<Vec<String>> {
    let session = target.connect(&[]).await?;
    let tables = session.client.query(TABLES, &[]).await.map_err(error);
    session.close().await;
    let tables = tables.context("cannot list the tables to analyze")?;
    let (mut warnings, mut left) = (Vec::new(), Vec::new());
    for row in &tables {
        match row.get::<_, Option<&str>>(2) {
            None => left.push(named(row)),
            Some(why) => warnings.push(format!("table {} was not analyzed: {why}", named(row))),
        }
    }
    let tables = Arc::new(Mutex::new(left));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..target.jobs.max(1) {
        let (target, tables) = (target.clone(), tables.clone());
        running.spawn(async move {
            let session = target.connect(&[]).await?;
            let warnings = analyze_some(&session, &tables).await;
            session.close().await;
            warnings
        });
    }
    while let Some(done) = running.join_next().await {
        warnings.extend(done.map_err(|e| Error::new(format!("ANALYZE stopped: {e}")))??);
    }
    warnings.sort();
    Ok(warnings)
}

async fn analyze_some(session: &Session, tables: &Mutex<Vec<Sql>>) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    loop {
        let next = tables.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(table) = next else { return Ok(warnings) };
        if let Err(failure) = Sql::new("ANALYZE ").sql(&table).run(&session.client).await {
            if session.client.is_closed() {
                return Err(error(failure).context("cannot analyze"));
            }
            warnings.push(format!("table {table} was not analyzed: {}", without_values(&failure)));
            let partitions = session.client.query(PARTITIONS, &[&table.to_string()]).await.map_err(error)?;
            let partitions = partitions.iter().map(named).filter(|p| p.to_string() != table.to_string());
            tables.lock().unwrap_or_else(PoisonError::into_inner).extend(partitions);
        }
    }
}

fn named(row: &tokio_postgres::Row) -> Sql {
    let (Name(schema), Name(name)) = (row.get(0), row.get(1));
    Sql::new("").qualified(&schema, &name)
}

/// What an index' expression stumbled over may be a row.
fn without_values(failure: &tokio_postgres::Error) -> String {
    match failure.as_db_error() {
        Some(db) => masked_in(db.message(), db.where_().unwrap_or_default()),
        None => failure.to_string(),
    }
}
