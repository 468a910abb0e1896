//! Restoring into a server that is there.
//!
//! A database that holds tables is never touched unless replacing was asked for. Replacing restores
//! into a new database beside the old one, and swaps their names only once everything is in; whatever
//! fails before that, a signal included, leaves the old database as it was, and the new one is dropped.
//! Owner, privileges and settings belong to the place: where there was a database they are its own,
//! else they come from the set.

use chrono::Utc;

use super::load::{self, Origin, Target};
use super::{read_globals, read_proof, roles};
use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, connect, error};
use crate::postgres::ident::{quote_ident, quote_literal};
use crate::postgres::scratch::{Locale, create_database};
use crate::postgres::settings;
use crate::postgres::tools::Tools;
use crate::progress::Event;
use crate::set::manifest::{Database, Manifest};
use crate::set::proof::Proof;
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

/// What belongs to a database as a whole, and no archive gives back under another name.
struct Place {
    owner: String,
    acl: Option<String>,
    comment: Option<String>,
    settings: Vec<settings::Setting>,
}

impl Place {
    fn of_set(proof: Proof) -> Self {
        let settings = proof.settings.into_iter();
        let settings = settings.map(|s| settings::Setting { role: s.role, setting: s.setting }).collect();
        Self { owner: proof.owner, acl: proof.acl, comment: None, settings }
    }

    async fn of_database(session: &Session) -> Result<Self> {
        let row = session
            .client
            .query_one(
                "SELECT pg_get_userbyid(datdba)::text, datacl::text, shobj_description(oid, 'pg_database')
                   FROM pg_database WHERE datname = current_database()",
                &[],
            )
            .await
            .map_err(error)
            .context("cannot read the database's owner and privileges")?;
        let settings = settings::read(&session.client).await?;
        Ok(Self { owner: row.get(0), acl: row.get(1), comment: row.get(2), settings })
    }
}

/// What was found out before anything is touched.
struct Ready {
    admin: Session,
    exists: bool,
    /// Tables, views, sequences and large objects in the database that is there.
    holds: i64,
    /// Absent where the set has no proof to read it from.
    place: Option<Place>,
}

/// Restores one database of a set. After a signal the target is as it was.
pub async fn restore(
    origin: &Origin,
    manifest: &Manifest,
    database: &Database,
    options: &Options,
    shutdown: &Shutdown,
) -> Result<Report> {
    let name = options.connection.dbname.clone();
    let mut report = Report { database: name.clone(), ..Report::default() };
    let ready = shutdown.guard(prepare(origin, manifest, database, options, &mut report)).await?;
    let Ready { admin, exists, holds, place } = ready;
    let place = place.as_ref();
    if exists && holds > 0 {
        let beside = other_name(&name, "restoring");
        let restoring = restore_into(origin, database, options, &admin, &beside, true, place, &mut report);
        if let Err(failure) = shutdown.guard(restoring).await {
            let dropped = drop_database(&admin, &beside).await;
            let said = match dropped {
                Ok(()) => format!("database {name:?} is as it was"),
                Err(e) => format!("database {name:?} is as it was; {beside:?} could not be dropped: {e}"),
            };
            return Err(failure.context(said));
        }
        (origin.progress)(Event::Phase("swapping names".into()));
        report.old_database = Some(swap(&admin, &name, &beside).await?);
    } else {
        let made = !exists;
        let restoring = restore_into(origin, database, options, &admin, &name, made, place, &mut report);
        if let Err(failure) = shutdown.guard(restoring).await {
            if !made {
                return Err(
                    failure.context(format!("database {name:?} was empty and may hold part of the set now"))
                );
            }
            if let Err(e) = drop_database(&admin, &name).await {
                return Err(failure.context(format!("and database {name:?} could not be dropped: {e}")));
            }
            return Err(failure);
        }
    }
    admin.close().await;
    Ok(report)
}

/// Everything that can be refused before anything is touched. Roles are made last.
async fn prepare(
    origin: &Origin,
    manifest: &Manifest,
    database: &Database,
    options: &Options,
    report: &mut Report,
) -> Result<Ready> {
    let name = &options.connection.dbname;
    (origin.progress)(Event::Phase("checking the target".into()));
    let admin = connect_admin(&options.connection).await?;
    let exists =
        admin.client.query_opt("SELECT FROM pg_database WHERE datname = $1", &[name]).await.map_err(error)?;
    let exists = exists.is_some();
    if !exists && !options.create {
        return Err(Error::new(format!(
            "database {name:?} does not exist on {}",
            options.connection.describe()
        ))
        .with_hint("say --create to make it"));
    }
    let mut holds = 0;
    let mut place = None;
    if exists {
        let session = connect(&options.connection, None, "opsd restore").await?;
        holds = count_objects(&session).await?;
        place = Some(Place::of_database(&session).await?);
        session.close().await;
    }
    if holds > 0 && !options.replace {
        return Err(Error::new(format!(
            "database {name:?} is not empty: it holds {holds} tables, views or sequences"
        ))
        .with_hint(
            "restore into a new database (--create), or say --replace to put it in this one's place",
        ));
    }
    let missing = check_extensions(&admin, database).await?;
    if !missing.is_empty() {
        return Err(Error::new(format!("extension {} is not available on the server", missing.join(", ")))
            .with_hint("install it there first"));
    }
    let proof = read_proof(origin, database).await?;
    check_roles(&admin, origin, manifest, options, report).await?;
    Ok(Ready { admin, exists, holds, place: place.or(proof.map(Place::of_set)) })
}

#[expect(clippy::too_many_arguments, reason = "one step of restore(), called from its two branches")]
async fn restore_into(
    origin: &Origin,
    database: &Database,
    options: &Options,
    admin: &Session,
    name: &str,
    make: bool,
    place: Option<&Place>,
    report: &mut Report,
) -> Result<()> {
    if make {
        let l = &database.locale;
        let wanted = Locale {
            encoding: &l.encoding,
            collate: &l.collate,
            ctype: &l.ctype,
            provider: &l.provider,
            locale: l.locale.as_deref(),
            icu_rules: l.icu_rules.as_deref(),
        };
        report.warnings.extend(create_database(admin, name, &wanted).await?);
    }
    let connection = Connection { dbname: name.to_owned(), ..options.connection.clone() };
    let session = connect(&connection, None, "opsd restore").await?;
    let row = session
        .client
        .query_one(
            "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
                    pg_encoding_to_char(encoding)::text FROM pg_database WHERE datname = current_database()",
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
    let spaces = session.client.query("SELECT spcname::text FROM pg_tablespace", &[]).await.map_err(error)?;
    let only_default = spaces.len() <= 2; // pg_default and pg_global
    let target = Target {
        tools: options.tools.clone(),
        connection: connection.clone(),
        dbname: name.to_owned(),
        jobs: options.jobs,
        is_superuser: row.get(0),
        no_tablespaces: only_default,
    };
    let loaded = load::load(origin, database, &target).await?;
    report.warnings.extend(loaded.warnings);
    report.seconds.extend(loaded.seconds.iter().map(|(p, s)| ((*p).to_owned(), *s)));

    (origin.progress)(Event::Phase("analyzing".into()));
    let begun = std::time::Instant::now();
    report.warnings.extend(analyze(&session).await?);
    report.seconds.push(("analyze".into(), begun.elapsed().as_secs_f64()));
    if make && let Some(place) = place {
        report.warnings.extend(finish_database(&session, name, place).await?);
    }
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

/// Settings, owner, privileges and comment, which belong to the database rather than to what is in it.
async fn finish_database(session: &Session, name: &str, place: &Place) -> Result<Vec<String>> {
    let mut warnings = settings::apply(&session.client, name, &place.settings).await?;
    let owner = format!("ALTER DATABASE {} OWNER TO {}", quote_ident(name), quote_ident(&place.owner));
    if let Err(failure) = session.client.batch_execute(&owner).await {
        warnings.push(format!("owner {:?} was not set: {}", place.owner, error(failure)));
    }
    warnings.extend(apply_acl(session, name, place.acl.as_deref()).await?);
    if let Some(comment) = &place.comment {
        let comment = format!("COMMENT ON DATABASE {} IS {}", quote_ident(name), quote_literal(comment));
        if let Err(failure) = session.client.batch_execute(&comment).await {
            warnings.push(format!("the database's comment was not set: {}", error(failure)));
        }
    }
    Ok(warnings)
}

/// Privileges on the database, from `datacl` as text. The server takes the text apart.
async fn apply_acl(session: &Session, name: &str, acl: Option<&str>) -> Result<Vec<String>> {
    let Some(acl) = acl else { return Ok(Vec::new()) };
    let mut warnings = Vec::new();
    // A role that is missing here makes the whole text unreadable; it is taken apart item by item.
    let items = session
        .client
        .query("SELECT unnest($1::text::text[])", &[&acl])
        .await
        .map_err(error)
        .context("cannot read the database's privileges")?;
    let database = quote_ident(name);
    let revoke = format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC");
    session.client.batch_execute(&revoke).await.map_err(error)?;
    for item in items {
        let item: String = item.get(0);
        let sql = format!(
            "SELECT coalesce(quote_ident(r.rolname), 'PUBLIC'), a.privilege_type, a.is_grantable
               FROM aclexplode(ARRAY[{}::aclitem]) a LEFT JOIN pg_roles r ON r.oid = a.grantee",
            quote_literal(&item)
        );
        let granted = match session.client.query(&sql, &[]).await {
            Ok(rows) => rows,
            Err(failure) => {
                warnings.push(format!("privilege {item:?} was not granted: {}", error(failure)));
                continue;
            }
        };
        for row in granted {
            let (grantee, privilege, option): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
            let option = if option { " WITH GRANT OPTION" } else { "" };
            let sql = format!("GRANT {privilege} ON DATABASE {database} TO {grantee}{option}");
            session
                .client
                .batch_execute(&sql)
                .await
                .map_err(error)
                .with_context(|| format!("privilege {item:?}"))?;
        }
    }
    Ok(warnings)
}

/// A session in another database of the same server: a database cannot be renamed or made from
/// within.
async fn connect_admin(connection: &Connection) -> Result<Session> {
    let mut failure = None;
    for database in ["postgres", "template1"] {
        match connect(connection, Some(database), "opsd restore").await {
            Ok(session) => return Ok(session),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new("no database to connect to")))
}

async fn count_objects(session: &Session) -> Result<i64> {
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
    Ok(row.get(0))
}

async fn check_extensions(admin: &Session, database: &Database) -> Result<Vec<String>> {
    let rows =
        admin.client.query("SELECT name::text FROM pg_available_extensions", &[]).await.map_err(error)?;
    let available: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(database.extensions.iter().map(|e| e.name.clone()).filter(|n| !available.contains(n)).collect())
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
    let rows = admin.client.query("SELECT rolname::text FROM pg_roles", &[]).await.map_err(error)?;
    let existing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let missing: Vec<String> =
        roles::roles(&globals).into_iter().map(|r| r.name).filter(|n| !existing.contains(n)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !options.globals {
        return Err(Error::new(format!("the server lacks roles of the set: {}", missing.join(", ")))
            .with_hint("say --globals to make them, or make them yourself"));
    }
    for statement in roles::missing(&globals, &existing)? {
        // The statement may hold a password hash; it is not repeated.
        admin.client.batch_execute(statement).await.map_err(error).context("cannot make the set's roles")?;
    }
    report.roles_created = missing;
    Ok(())
}

/// Ends the sessions of `name`, gives its name to `beside`, and keeps it under another.
async fn swap(admin: &Session, name: &str, beside: &str) -> Result<String> {
    let old = other_name(name, "before");
    let (name_sql, beside_sql, old_sql) = (quote_ident(name), quote_ident(beside), quote_ident(&old));
    let client = &admin.client;
    let limit: i32 = client
        .query_one("SELECT datconnlimit FROM pg_database WHERE datname = $1", &[&name])
        .await
        .map_err(error)?
        .get(0);
    let swapped = async {
        // Nobody new comes in, everybody who is in goes; then one transaction renames both.
        client
            .batch_execute(&format!("ALTER DATABASE {name_sql} ALLOW_CONNECTIONS false"))
            .await
            .map_err(error)?;
        client
            .query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", &[&name])
            .await
            .map_err(error)?;
        let rename = format!(
            "BEGIN; ALTER DATABASE {name_sql} RENAME TO {old_sql}; ALTER DATABASE {beside_sql} RENAME TO {name_sql}; COMMIT"
        );
        let mut last = None;
        for _ in 0..RENAME_ATTEMPTS {
            match client.batch_execute(&rename).await {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    last = Some(error(failure));
                    client.batch_execute("ROLLBACK").await.map_err(error)?;
                    // A terminated session takes a moment to be gone.
                    tokio::time::sleep(RENAME_WAIT).await;
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::new("cannot rename")))
    };
    let result: Result<()> = swapped.await;
    let reopened = if result.is_ok() { &old_sql } else { &name_sql };
    client
        .batch_execute(&format!("ALTER DATABASE {reopened} ALLOW_CONNECTIONS true"))
        .await
        .map_err(error)?;
    result.with_context(|| {
        format!("the restored database is complete as {beside:?}, but could not take the place of {name:?}")
    })?;
    if limit >= 0 {
        client
            .batch_execute(&format!("ALTER DATABASE {name_sql} CONNECTION LIMIT {limit}"))
            .await
            .map_err(error)?;
    }
    Ok(old)
}

/// Sessions that are being ended are gone within milliseconds; a second in all is generous.
const RENAME_ATTEMPTS: u32 = 20;
const RENAME_WAIT: std::time::Duration = std::time::Duration::from_millis(100);

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
