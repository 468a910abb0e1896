//! Extensions at the version that they had.
//!
//! A dump says `CREATE EXTENSION` without a version, which makes the newest that the server has. Where another one was
//! installed at the source, and this server has that, too, it is made before the definitions, which then find it there.
//! Only in a schema that an empty database has: others are made with the definitions. What has another version in
//! the end is named, and nothing is refused for it.

use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, error};
use crate::postgres::libraries;
use crate::postgres::sql::Sql;
use crate::set::manifest::Database;

/// Makes in an empty database the extensions that would otherwise get another version. `session` is in it.
pub async fn install(session: &Session, database: &Database) -> Result<()> {
    for extension in &database.extensions {
        let Some(schema) = &extension.schema else { continue };
        let is_wanted = session
            .client
            .query_opt(
                "SELECT FROM pg_available_extension_versions v JOIN pg_available_extensions e USING (name)
                  WHERE name = $1 AND version = $2 AND default_version <> $2 AND e.installed_version IS NULL
                    AND EXISTS (SELECT FROM pg_namespace WHERE nspname = $3)",
                &[&extension.name, &extension.version, schema],
            )
            .await
            .map_err(error)
            .context("cannot list the extensions that are available")?;
        if is_wanted.is_none() {
            continue;
        }
        let sql = Sql::new("CREATE EXTENSION ").ident(&extension.name).then(" SCHEMA ").ident(schema);
        // One that needs another comes with the definitions, in their order.
        if let Err(failure) = sql.then(" VERSION ").ident(&extension.version).run(&session.client).await {
            tracing::info!("extension {:?} is left to the definitions: {}", extension.name, error(failure));
        }
    }
    Ok(())
}

/// Refuses a place where an extension of the set cannot be made: pg_cron is made in the database of one name alone, and
/// what replaces that one is restored beside it. `replaces` says so.
pub async fn check_place(admin: &Session, database: &Database, name: &str, replaces: bool) -> Result<()> {
    let (extension, setting) = libraries::CRON;
    if !database.extensions.iter().any(|e| e.name == extension) {
        return Ok(());
    }
    let row = admin
        .client
        .query_opt("SELECT setting FROM pg_settings WHERE name = $1", &[&setting])
        .await
        .map_err(error)?;
    let Some(only) = row.map(|row| row.get::<_, String>(0)) else { return Ok(()) };
    if only == name && !replaces {
        return Ok(());
    }
    let refused = Error::new(format!(
        "extension {extension} can be made in database {only:?} alone, as {setting} says, and the set would be restored \
         into {}",
        if replaces { "another one beside it".to_owned() } else { format!("{name:?}") }
    ));
    Err(match only == name {
        true => refused.with_hint(format!(
            "ALTER DATABASE {only:?} RENAME TO another name, once its sessions have ended, and restore with --create"
        )),
        false => refused.with_hint(format!("restore into {only:?}, or change {setting} and restart that server")),
    })
}

/// Extensions of a restored database that have another version than in the set, `name 2.0 instead of 1.0`.
pub async fn other_versions(session: &Session, database: &Database) -> Result<Vec<String>> {
    let rows = session
        .client
        .query("SELECT extname::text, extversion FROM pg_extension", &[])
        .await
        .map_err(error)
        .context("cannot list extensions")?;
    let installed: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let differs = |extension: &&crate::set::manifest::Extension| {
        let found = installed.iter().find(|(name, _)| *name == extension.name);
        found.is_none_or(|(_, version)| *version != extension.version)
    };
    let line = |extension: &crate::set::manifest::Extension| {
        let found = installed.iter().find(|(name, _)| *name == extension.name);
        let found = found.map_or("absent", |(_, version)| version.as_str());
        format!("{} {found} instead of {}", extension.name, extension.version)
    };
    Ok(database.extensions.iter().filter(differs).map(line).collect())
}
