//! Restoring into a server that is there.
//!
//! A database that holds tables is never touched unless replacing was asked for. Replacing restores
//! into a new database beside the old one, and swaps their names only once everything is in; whatever
//! fails before that leaves the old database as it was, and the new one is dropped. An empty database
//! that is there already is filled as it is; a failure there leaves what was loaded, and says so.

use chrono::Utc;
use tokio_postgres::error::SqlState;

use super::{
    Origin, Target, check_extensions, collations, create_database, existing_roles, load, own_properties,
    read_globals, read_proof, roles,
};
use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, connect, error};
use crate::postgres::ident::{quote_ident, quote_literal};
use crate::postgres::properties;
use crate::postgres::tools::Tools;
use crate::progress::Event;
use crate::set::manifest::{Database, Manifest};
use crate::shutdown::Shutdown;

/// What was asked for.
pub struct Options {
    /// The server, and the database to restore into.
    pub connection: Connection,
    /// pg_restore and friends.
    pub tools: Tools,
    /// Make the database if it is missing.
    pub create: bool,
    /// Put the restored database in the place of the one that is there.
    pub replace: bool,
    /// Make the set's roles that are missing.
    pub globals: bool,
    /// Streams and index builds at the same time.
    pub jobs: usize,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// Database that holds the restored content.
    pub database: String,
    /// What became of the one that was there, where there was one.
    pub old_database: Option<String>,
    /// Roles that were made.
    pub roles_created: Vec<String>,
    /// Seconds by phase.
    pub seconds: Vec<(String, f64)>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Restores one database of a set. A signal ends it as a failure does: what it made is dropped.
pub async fn restore(
    origin: &Origin,
    manifest: &Manifest,
    database: &Database,
    options: &Options,
    shutdown: &Shutdown,
) -> Result<Report> {
    let name = options.connection.dbname.clone();
    let mut report = Report { database: name.clone(), ..Report::default() };
    (origin.progress)(Event::Phase("checking the target".into()));
    let admin = connect_admin(&options.connection).await?;
    let exists = admin
        .client
        .query_opt("SELECT FROM pg_database WHERE datname = $1", &[&name])
        .await
        .map_err(error)?;
    let exists = exists.is_some();
    if !exists && !options.create {
        return Err(Error::new(format!(
            "database {name:?} does not exist on {}",
            options.connection.describe()
        ))
        .with_hint("say --create to make it"));
    }
    let holds = if exists { count_objects(&options.connection).await? } else { 0 };
    if holds > 0 && !options.replace {
        return Err(Error::new(format!(
            "database {name:?} is not empty: it holds {holds} tables, views or sequences"
        ))
        .with_hint(
            "restore into a new database (--create), or say --replace to put it in this one's place",
        ));
    }
    check_extensions(&admin, std::slice::from_ref(database)).await?;
    check_roles(&admin, origin, manifest, options, &mut report).await?;

    if exists && holds == 0 {
        let filled = shutdown.guard(fill(origin, database, options, &name, &mut report)).await;
        filled.with_context(|| format!("database {name:?} was empty and may hold part of the set now"))?;
        if let Some(proof) = read_proof(origin, database).await?
            && !proof.settings.is_empty()
        {
            report.warnings.push(format!(
                "database {name:?} was there already and keeps its own settings; the set's are: {}",
                proof.settings.iter().map(|s| s.setting.as_str()).collect::<Vec<_>>().join(", ")
            ));
        }
        admin.close().await;
        return Ok(report);
    }
    // A new database takes its owner, privileges and settings from the set; one that takes another's
    // place takes them from that one.
    let (made, properties) = if exists {
        let beside = other_name(&name, "restoring");
        (beside, Some(properties::read(&admin.client, &name).await?))
    } else {
        (name.clone(), read_proof(origin, database).await?.as_ref().map(own_properties))
    };
    // What this did not make, it does not drop: until here somebody else's database is in the way.
    report.warnings.extend(create_database(&admin, &made, database).await.map_err(who_may_restore)?);
    let filled = shutdown.guard(fill(origin, database, options, &made, &mut report)).await;
    if let Err(failure) = filled {
        return Err(match (exists, drop_database(&admin, &made).await) {
            (true, Ok(())) => failure.context(format!("database {name:?} is as it was")),
            (false, Ok(())) => failure,
            (_, Err(e)) => {
                failure.context(format!("database {made:?} is incomplete and could not be dropped ({e})"))
            }
        });
    }
    if let Some(properties) = properties {
        let applied = properties::apply(&admin.client, &made, &properties).await;
        report.warnings.extend(applied.unwrap_or_else(|e| vec![e.to_string()]));
    }
    if exists {
        (origin.progress)(Event::Phase("swapping names".into()));
        report.old_database = Some(swap(&admin, &name, &made).await?);
    }
    admin.close().await;
    Ok(report)
}

/// The role that backs up may read; restoring needs one that may make.
fn who_may_restore(error: Error) -> Error {
    if error.to_string().contains("permission denied to create database") {
        return error.with_hint(
            "restore as a role with CREATEDB and the owners' roles, in practice a superuser: \
             --to postgres://admin@host/app, or a [postgres.NAME] of its own",
        );
    }
    error
}

/// The set's content into an empty database.
async fn fill(
    origin: &Origin,
    database: &Database,
    options: &Options,
    name: &str,
    report: &mut Report,
) -> Result<()> {
    let connection = Connection { dbname: name.to_owned(), ..options.connection.clone() };
    let session = connect(&connection, None, "opsd restore").await?;
    let row = session
        .client
        .query_one(
            "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
                    pg_encoding_to_char(encoding)::text, ARRAY(SELECT spcname::text FROM pg_tablespace)
               FROM pg_database WHERE datname = current_database()",
            &[],
        )
        .await
        .map_err(error)?;
    let encoding: String = row.get(1);
    if encoding != database.locale.encoding {
        report
            .warnings
            .push(format!("the set is in {}, the database in {encoding}", database.locale.encoding));
    }
    let monetary = &database.locale.monetary;
    let has_monetary =
        session.client.execute("SELECT set_config('lc_monetary', $1, false)", &[monetary]).await;
    if let Err(failure) = &has_monetary {
        report.warnings.push(format!(
            "lc_monetary {monetary:?} is not available here; check columns of type money: {failure}"
        ));
    }
    let target = Target {
        monetary: has_monetary.is_ok().then(|| monetary.clone()),
        tools: options.tools.clone(),
        connection,
        dbname: name.to_owned(),
        jobs: options.jobs,
        is_superuser: row.get(0),
        tablespaces: row.get(2),
    };
    collations::check(&session.client, database).await?;
    let loaded = load::load(origin, database, &target, &|_, _| ()).await?;
    report.warnings.extend(loaded.warnings);
    report.seconds.extend(loaded.seconds.iter().map(|(p, s)| ((*p).to_owned(), *s)));

    (origin.progress)(Event::Phase("analyzing".into()));
    let begun = std::time::Instant::now();
    report.warnings.extend(analyze(&session).await?);
    report.seconds.push(("analyze".into(), begun.elapsed().as_secs_f64()));
    session.close().await;
    Ok(())
}

/// Statistics for the planner. All at once stops at the first table that it cannot read, such as one
/// on a foreign server; then each table by itself. Missing statistics lose nothing, so they are a
/// warning.
async fn analyze(session: &Session) -> Result<Vec<String>> {
    let Err(failure) = session.client.batch_execute("ANALYZE").await else { return Ok(Vec::new()) };
    let failure = error(failure);
    if session.client.is_closed() {
        return Err(failure.context("cannot analyze"));
    }
    let mut warnings = vec![format!("ANALYZE of the whole database failed: {failure}")];
    let tables = session
        .client
        .query(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND n.nspname <> 'information_schema'",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list the tables to analyze")?;
    for row in tables {
        let table: String = row.get(0);
        if let Err(failure) = session.client.batch_execute(&format!("ANALYZE {table}")).await {
            warnings.push(format!("table {table} was not analyzed: {}", error(failure)));
        }
    }
    Ok(warnings)
}

/// A session in another database of the same server: a database cannot be renamed or made from
/// within.
async fn connect_admin(connection: &Connection) -> Result<Session> {
    let mut failure = None;
    for database in ["postgres", "template1"].into_iter().filter(|name| *name != connection.dbname) {
        match connect(connection, Some(database), "opsd restore").await {
            Ok(session) => return Ok(session),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new("no database to connect to")))
}

async fn count_objects(connection: &Connection) -> Result<i64> {
    let session = connect(connection, None, "opsd restore").await?;
    let row = session
        .client
        .query_one(
            "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                      WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
                  + (SELECT count(*) FROM pg_largeobject_metadata)",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot see what the database holds")?;
    session.close().await;
    Ok(row.get(0))
}

/// Roles that the set knows and the server lacks: made where that was asked for, else named.
async fn check_roles(
    admin: &Session,
    origin: &Origin,
    manifest: &Manifest,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let globals = read_globals(origin, manifest).await?;
    let existing = existing_roles(admin).await?;
    let missing: Vec<String> =
        roles::roles(&globals).into_iter().map(|r| r.name).filter(|n| !existing.contains(n)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !options.globals {
        return Err(Error::new(format!("the server lacks roles of the set: {}", missing.join(", ")))
            .with_hint("say --globals to make them, or make them yourself"));
    }
    // All or none. A statement may hold a password hash; it is not repeated.
    let script = format!("BEGIN; {}; COMMIT", roles::missing(&globals, &existing).join("; "));
    if let Err(failure) = admin.client.batch_execute(&script).await {
        admin.client.batch_execute("ROLLBACK").await.map_err(error)?;
        return Err(error(failure).context("cannot make the set's roles"));
    }
    report.roles_created = missing;
    Ok(())
}

/// Ends the sessions of `name`, gives its name to `beside`, and keeps it under another. Both renames are
/// one transaction, and while it waits for the last session to go, PostgreSQL lets nobody new in: there
/// is no state in between that could be left.
async fn swap(admin: &Session, name: &str, beside: &str) -> Result<String> {
    let old = other_name(name, "before");
    let (name_sql, beside_sql, old_sql) = (quote_ident(name), quote_ident(beside), quote_ident(&old));
    let client = &admin.client;
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {} AND pid <> pg_backend_pid();
         BEGIN; ALTER DATABASE {name_sql} RENAME TO {old_sql};
         ALTER DATABASE {beside_sql} RENAME TO {name_sql}; COMMIT",
        quote_literal(name)
    );
    let mut attempt = 1;
    while let Err(failure) = client.batch_execute(&sql).await {
        let in_use = failure.code() == Some(&SqlState::OBJECT_IN_USE);
        if client.is_closed() || !in_use || attempt == RENAME_ATTEMPTS {
            return Err(error(failure)).with_context(|| {
                format!("the restored database is complete as {beside:?}, but could not take the place of {name:?}")
            });
        }
        client.batch_execute("ROLLBACK").await.map_err(error)?;
        attempt += 1;
    }
    Ok(old)
}

/// A rename waits five seconds for sessions to go; a pool that comes back faster each time will not be
/// beaten by more attempts.
const RENAME_ATTEMPTS: u32 = 6;

async fn drop_database(admin: &Session, name: &str) -> Result<()> {
    let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_ident(name));
    admin.client.batch_execute(&sql).await.map_err(error)
}

/// `<name>_<what>_<time>`, to the millisecond, so that one restore after another finds it free, and
/// within the 63 bytes that PostgreSQL does not cut.
fn other_name(name: &str, what: &str) -> String {
    let tail = format!("_{what}_{}", Utc::now().format("%Y%m%d%H%M%S%3f"));
    format!("{}{tail}", truncate(name, NAME_MAX.saturating_sub(tail.len())))
}

/// The longest name that PostgreSQL keeps whole.
const NAME_MAX: usize = 63;

/// At most `limit` bytes, whole characters.
fn truncate(name: &str, limit: usize) -> &str {
    let mut end = name.len().min(limit);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_fit_whatever_the_name() {
        for name in ["app", &"x".repeat(63), &"é".repeat(31)] {
            let other = other_name(name, "restoring");
            assert!(other.len() <= NAME_MAX && other.contains("_restoring_2"), "{other}");
            assert_ne!(other, name);
        }
        assert!(other_name("app", "before").starts_with("app_before_2"));
    }
}
