//! Whether a server has the collations that a set's definitions name.
//!
//! A database's own locale falls back (see `postgres::locale`), because nothing else refers to it by
//! name. A collation that a column or an index names cannot: a restore would stop at it with a syntax
//! of its own, and that would look like a fault of the set.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::error::{Error, Result};
use crate::postgres::connect::error;
use crate::postgres::sql::Sql;
use crate::set::manifest::{Collation, Database};

/// Refuses a database on whose server a collation of the set cannot be. `client` is connected to the
/// database that was made for it.
pub async fn check(client: &Client, database: &Database) -> Result<()> {
    let mut missing = Vec::new();
    for collation in &database.collations {
        if !is_available(client, collation).await? {
            let name = collation.name.as_ref().or(collation.locale.as_ref()).unwrap_or(&collation.collate);
            missing.push(format!("{name:?} ({})", collation.provider));
        }
    }
    missing.sort();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let icu = "a PostgreSQL built with ICU (the distribution's packages are; name its bin_dir)";
    let hint = if missing.iter().any(|name| name.ends_with("(icu)")) {
        format!("restore with {icu}; the set itself is not in question")
    } else {
        "install the locale on this host (locale-gen); the set itself is not in question".to_owned()
    };
    Err(Error::new(format!(
        "database {:?} needs collation {}, which this server does not have",
        database.name,
        missing.join(", ")
    ))
    .with_hint(hint))
}

async fn is_available(client: &Client, collation: &Collation) -> Result<bool> {
    if let Some(name) = &collation.name {
        let found = client
            .query_opt(
                "SELECT FROM pg_collation WHERE collname = $1 AND collnamespace = 'pg_catalog'::regnamespace
                    AND collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database()))
                  LIMIT 1",
                &[name],
            )
            .await
            .map_err(error)?;
        return Ok(found.is_some());
    }
    // The database's own: whether it can be made, its server says by making one.
    let trial = Sql::new("BEGIN; CREATE COLLATION pg_temp.opsd_trial (provider = ");
    let trial = match collation.provider.as_str() {
        "libc" => trial.then("libc"),
        "icu" => trial.then("icu"),
        other => return Err(Error::differs(format!("a collation has the unknown provider {other:?}"))),
    };
    let trial = match &collation.locale {
        Some(locale) => trial.then(", locale = ").literal(locale),
        None => {
            let trial = trial.then(", lc_collate = ").literal(&collation.collate);
            trial.then(", lc_ctype = ").literal(&collation.ctype)
        }
    };
    let tried = trial.then(")").run(client).await;
    client.batch_execute("ROLLBACK").await.map_err(error)?;
    match tried {
        Err(failure) => {
            let lacking = [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_PARAMETER_VALUE];
            Ok(!failure.code().is_some_and(|code| lacking.contains(code)))
        }
        Ok(()) => Ok(true),
    }
}
