//! Queries of the operator's own that must come out true in a rehearsed database.

use crate::config::{BackupJob, Config};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{connect, connect_with, error};
use crate::postgres::ident::Name;
use crate::postgres::scratch::{self, Scratch};
use crate::postgres::sql::Sql;
use crate::set::manifest::Manifest;

/// Bound on one assertion.
const TIMEOUT: &str = "300s";

/// Assertions run in one database: the URL's if the set has it, else the first. They are not meant for any other
/// where the set lacks the URL's because it could not be dumped.
pub(super) fn database(config: &Config, job: &BackupJob, manifest: &Manifest) -> Option<usize> {
    if job.verify.assert.is_empty() {
        return None;
    }
    let of_url = config.postgres.get(&job.postgres).map(|p| p.connection.dbname.as_str());
    if manifest.lacking.iter().any(|l| Some(l.name.as_str()) == of_url) {
        return None;
    }
    let index = manifest.databases.iter().position(|d| Some(d.name.as_str()) == of_url);
    index.or((!manifest.databases.is_empty()).then_some(0))
}

/// Before PostgreSQL 14 there is no role that may read everything.
async fn grant_reading(scratch: &Scratch, name: &str) -> Result<()> {
    let session = connect(&scratch.connection(name), None, "opsd verify").await?;
    let rows = session
        .client
        .query("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'", &[])
        .await
        .map_err(error)?;
    for row in rows {
        let Name(schema) = row.get(0);
        let sql = Sql::new("GRANT USAGE ON SCHEMA ")
            .ident(&schema)
            .then(" TO ")
            .ident(scratch::READER)
            .then("; GRANT SELECT ON ALL TABLES IN SCHEMA ")
            .ident(&schema)
            .then(" TO ")
            .ident(scratch::READER);
        sql.run(&session.client).await.map_err(error).context("cannot let assertions read")?;
    }
    Ok(())
}

/// Runs assertions as a role that can only read; what is not true is a difference.
pub(super) async fn failed(scratch: &Scratch, name: &str, queries: &[String]) -> Result<Vec<String>> {
    if scratch.major < 14 {
        grant_reading(scratch, name).await?;
    }
    let pinned =
        [("search_path", "public"), ("default_transaction_read_only", "on"), ("statement_timeout", TIMEOUT)];
    let session = connect_with(&scratch.reader(name), None, "opsd assert", &pinned).await?;
    session.client.batch_execute("BEGIN READ ONLY").await.map_err(error)?;
    let mut failed = Vec::new();
    for query in queries {
        let result = Sql::configured(query).query(&session.client, &[]).await;
        let what = match result {
            // A mistake in the query, or a timeout, is no word about the set; and what the server says
            // of it may quote rows.
            Err(failure) => {
                let code = failure.code().map_or("no SQLSTATE", |code| code.code()).to_owned();
                return Err(Error::new(format!("assertion {query:?} could not run ({code})")).with_hint(
                    "try it in the source database; search_path is public, and the role only reads",
                ));
            }
            Ok(rows) => match rows.as_slice() {
                [row] if row.len() == 1 => match row.try_get::<_, Option<bool>>(0) {
                    Ok(Some(true)) => continue,
                    Ok(Some(false)) => "it is false".into(),
                    Ok(None) => "it is null".into(),
                    Err(_) => "its column is no boolean".into(),
                },
                rows => format!("it returned {} rows instead of one row with one column", rows.len()),
            },
        };
        failed.push(format!("assertion {query:?}: {what}"));
    }
    Ok(failed)
}
