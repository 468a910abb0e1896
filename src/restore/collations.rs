//! Whether a server has the collations that a set's definitions name.
//!
//! A database's own locale falls back (see `postgres::locale`), because nothing else refers to it by
//! name. A collation that a column or an index names cannot: a restore would stop at it with a syntax
//! of its own, and that would look like a fault of the set.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::error::{Error, Result};
use crate::postgres::connect::error;
use crate::postgres::ident::quote_literal;
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
    let options = match &collation.locale {
        Some(locale) => format!("provider = {}, locale = {}", collation.provider, quote_literal(locale)),
        None => format!(
            "provider = {}, lc_collate = {}, lc_ctype = {}",
            collation.provider,
            quote_literal(&collation.collate),
            quote_literal(&collation.ctype)
        ),
    };
    let sql = format!("BEGIN; CREATE COLLATION pg_temp.opsd_trial ({options})");
    let tried = client.batch_execute(&sql).await;
    client.batch_execute("ROLLBACK").await.map_err(error)?;
    match tried {
        Err(failure) => {
            let lacking = [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_PARAMETER_VALUE];
            Ok(!failure.code().is_some_and(|code| lacking.contains(code)))
        }
        Ok(()) => Ok(true),
    }
}
