//! Restoring into a server that is there.
//!
//! A database that holds tables is never touched unless replacing was asked for. Replacing restores
//! into a new database beside the old one, and swaps their names only once everything is in. Whatever fails
//! before that leaves the old database as it was, and the new one is dropped. Where the server merely refused
//! some statements, the new one is kept beside the old one, with everything else, for a person to decide. An
//! empty database that is there already is filled as it is; a failure there leaves what was loaded, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio_postgres::error::SqlState;

use super::complaints::Complaint;
use super::pg_restore::fetch_schema;
use super::role_changes::{self, RoleChanges};
use super::role_updates::{self, Update};
use super::selection::{Selection, Wanted};
use super::target::Replaced;
use super::{
    LeftOut, Origin, Target, analyze, check_extensions, check_settings, collations, databases,
    existing_roles, extensions, identity, load, own_properties, pg_restore, read_globals, read_proof, roles,
    selection, subscriptions, swap, target,
};
use crate::config::Connection;
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::connect::{Session, connect, error, sqlstate};
use crate::postgres::locale;
use crate::postgres::properties::{self, Applied, Properties};
use crate::postgres::sql::{Sql, quote_ident};
use crate::postgres::tools::Tools;
use crate::progress::Event;
use crate::set::archive::Entry;
use crate::set::globals::Globals;
use crate::set::manifest::{Database, Manifest};
use crate::set::proof::Proof;
use crate::shutdown::Shutdown;

/// What was asked for.
#[derive(Clone)]
pub struct Options {
    /// The server, and the database to restore into.
    pub connection: Connection,
    /// pg_restore and friends.
    pub tools: Tools,
    /// Make the database if it is missing.
    pub create: bool,
    /// Put the restored database in the place of the one that is there.
    pub replace: bool,
    /// What becomes of the set's roles.
    pub roles: RoleChanges,
    /// Streams and index builds at the same time.
    pub jobs: usize,
    /// What the operator wants set in each session.
    pub settings: BTreeMap<String, String>,
    /// What is not restored.
    pub left_out: LeftOut,
    /// The part of the set that is.
    pub selection: Selection,
    /// How long materialized views may take that ask other servers.
    pub refresh_timeout: Duration,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// Database that holds the restored content.
    pub database: String,
    /// What became of the one that was there, where there was one.
    pub old_database: Option<String>,
    /// Rows that the server refused, by stream. Not empty: it did not take the place of the one that was to be
    /// replaced.
    pub lost: Vec<String>,
    /// What could not be restored, or carried over, beside the rows; with the same consequence.
    pub failed: Vec<String>,
    /// Whether a new database stays closed to all but its owner and superusers, because it lacks rows.
    pub is_closed: bool,
    /// Roles that were made.
    pub roles_created: Vec<String>,
    /// Seconds by phase.
    pub seconds: Vec<(String, f64)>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Restores one database of a set. A signal ends it as a failure does: what it made is dropped. What the server
/// refuses does not cost the rest: see [`Report::lost`] and [`Report::failed`]. Before anything is made, `approve` is
/// asked whether the database that is there may be replaced; its error ends the restore.
pub async fn restore(
    origin: &Origin,
    manifest: &Manifest,
    database: &Database,
    options: &Options,
    approve: impl AsyncFnOnce(&Replaced) -> Result<()>,
    shutdown: &Shutdown,
) -> Result<Report> {
    let prepared = shutdown.guard(prepare(origin, manifest, database, options)).await?;
    let Prepared {
        options,
        admin,
        place,
        database,
        wanted,
        globals,
        proof,
        existing,
        missing,
        updates,
        warnings,
    } = prepared;
    let (options, database) = (&options, &database);
    let name = options.connection.dbname.clone();
    let mut report = Report { database: name.clone(), warnings, ..Report::default() };
    if let Place::Taken(taken) = &place {
        shutdown.guard(approve(&taken.replaced)).await?;
    }
    let server = databases::Server {
        admin: &admin,
        connection: &options.connection,
        shutdown,
        bound: databases::BOUND,
    };
    let changed = role_changes::change(&server, options.roles, &globals, &existing, missing, updates).await?;
    report.roles_created = changed.made;
    report.warnings.extend(changed.warnings);

    if let Place::Empty = place {
        let filled = shutdown.guard(fill(origin, database, options, wanted, &name, &mut report)).await;
        filled.with_context(|| format!("database {name:?} was empty and may hold part of the set now"))?;
        let settings = proof.map(|proof| proof.settings).unwrap_or_default();
        let given = role_changes::of_database(&admin, options.roles, &name, &settings);
        report.warnings.extend(shutdown.guard(async { Ok(given.await) }).await?);
        admin.close().await;
        return Ok(report);
    }
    // A new database takes its owner, privileges and settings from the set; one that takes another's
    // place takes them from that one.
    let (made, properties) = match place {
        Place::Taken(taken) => (other_name(&name, "restoring"), Some(taken.properties)),
        Place::Free | Place::Empty => {
            let own = proof.as_ref().map(own_properties);
            (name.clone(), own.map(|own| without(own, options)))
        }
    };
    let replaces = made != name;
    if replaces {
        let other = identity::other_locale(&options.connection, &database.locale);
        report.warnings.extend(shutdown.guard(other).await?);
    }
    let (tablespace, missing) = shutdown.guard(identity::tablespace(&admin, properties.as_ref())).await?;
    report.warnings.extend(missing);
    // What this did not make, it does not drop: until here somebody else's database is in the way.
    let created = server.create(&made, &database.locale, tablespace.as_deref()).await;
    created.map_err(who_may_restore)?;
    let filled = shutdown.guard(fill(origin, database, options, wanted, &made, &mut report)).await;
    if let Err(failure) = filled {
        return Err(match (replaces, drop_made(&server, &made).await) {
            (true, Ok(())) => failure.context(format!("database {name:?} is as it was")),
            (false, Ok(())) => failure,
            (_, Err(e)) => not_dropped(failure, &e, &made),
        });
    }
    let applied = async {
        match &properties {
            Some(_) if replaces => identity::take_over(&admin, &name, &made).await,
            Some(properties) => Ok(properties::apply(&admin.client, &made, &made, properties).await),
            None => Ok(Applied { refused: Vec::new(), opening: vec![properties::open(&made)] }),
        }
    };
    let applied = server.wait_or_leave(&format!("ALTER DATABASE {made:?}"), applied).await;
    let applied = applied.map_err(|why| without_properties(why, &name, &made))?;
    if !replaces && !report.lost.is_empty() {
        // Whoever looks for all rows should not find some.
        report.is_closed = true;
        report.warnings.extend(applied.refused);
        report.database = made;
    } else if !replaces {
        report.warnings.extend(applied.refused);
        let opening = Sql::new("").join(applied.opening, "; ");
        let opened = async { opening.run(&admin.client).await.map_err(error) };
        let opened = server.wait_or_leave("GRANT CONNECT", opened).await;
        opened.map_err(|why| without_properties(why, &name, &made))?;
        report.database = made;
    } else if report.lost.is_empty() && report.failed.is_empty() && applied.refused.is_empty() {
        (origin.progress)(Event::Phase("swapping names".into()));
        let (old, stayed) = identity::replace(&server, &name, &made, &applied).await?;
        report.old_database = Some(old);
        report.warnings.extend(stayed);
        let own = properties.map(|own| own.settings).unwrap_or_default();
        let mut settings = proof.map(|proof| proof.settings).unwrap_or_default();
        settings.retain(|setting| !own.contains(setting));
        let given = role_changes::of_database(&admin, options.roles, &name, &settings);
        report.warnings.extend(given.await);
    } else {
        // In another's place it must be what that one was: privileges, for instance, keep people out.
        report.failed.extend(applied.refused);
        report.database = made;
    }
    admin.close().await;
    Ok(report)
}

/// Drops what was made here, with its subscriptions, which keep a database from being dropped.
async fn drop_made(server: &databases::Server<'_>, made: &str) -> Result<()> {
    if let Err(failure) = subscriptions::forget(server, made).await {
        tracing::warn!("subscriptions of database {made:?} are in the way: {failure}");
    }
    server.drop(made).await
}

/// What is where the set is to go.
enum Place {
    /// Nothing.
    Free,
    /// A database that holds nothing.
    Empty,
    /// One that is to be replaced, and what belongs to it.
    Taken(Box<Taken>),
}

/// A database that is to be replaced.
struct Taken {
    properties: Properties,
    replaced: Replaced,
}

/// What a restore would do.
#[derive(Debug)]
pub struct Preview {
    /// The database.
    pub database: String,
    /// Whether it would be made.
    pub is_made: bool,
    /// The one whose place it would take.
    pub replaced: Option<Replaced>,
    /// What was looked at and is fine.
    pub preflights: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Everything that a restore does before it makes anything, and a connection of pg_restore's own. Nothing is changed.
pub async fn preview(
    origin: &Origin,
    manifest: &Manifest,
    database: &Database,
    options: &Options,
) -> Result<Preview> {
    let prepared = prepare(origin, manifest, database, options).await?;
    let Prepared { options, admin, place, database, mut warnings, missing, updates, .. } = prepared;
    let there = match place {
        // The database that is to be made cannot be connected to.
        Place::Free => admin.client.query_one("SELECT current_database()", &[]).await.map_err(error)?.get(0),
        Place::Empty | Place::Taken(_) => options.connection.dbname.clone(),
    };
    pg_restore::try_connection(&options.tools.clone().for_server(admin.major()), &options.connection, &there)
        .await?;
    admin.close().await;
    warnings.extend(role_changes::planned(options.roles, &missing, &updates));
    let rows: u64 = database.streams.iter().map(|stream| stream.plain_size).sum();
    Ok(Preview {
        is_made: !matches!(place, Place::Empty),
        replaced: match place {
            Place::Taken(taken) => Some(taken.replaced),
            Place::Free | Place::Empty => None,
        },
        preflights: vec![
            format!("the set can be read, {} MiB of it before compression", rows >> 20),
            format!("role {:?} may connect, and the place is as it should be", options.connection.user),
            "extensions and roles that the set needs are there".into(),
            "the lock table has room".into(),
            format!("pg_restore {} gets through", options.tools.version),
        ],
        database: options.connection.dbname,
        warnings,
    })
}

/// What is known before anything is made.
struct Prepared {
    /// With a connection for whose sessions no event trigger fires.
    options: Options,
    admin: Session,
    place: Place,
    /// Without what is not wanted.
    database: Database,
    wanted: Option<Arc<Wanted>>,
    /// The set's roles.
    globals: Globals,
    proof: Option<Proof>,
    /// Roles that the server has.
    existing: BTreeSet<String>,
    /// Roles of the set that it lacks.
    missing: Vec<String>,
    /// What those that it has lack.
    updates: Vec<Update>,
    warnings: Vec<String>,
}

/// Everything that only reads: whether the set, or the part that is wanted, can go there.
async fn prepare(
    origin: &Origin,
    manifest: &Manifest,
    database: &Database,
    options: &Options,
) -> Result<Prepared> {
    check_settings(&options.settings)?;
    options.selection.check()?;
    (origin.progress)(Event::Phase("checking the target".into()));
    let (options, mut warnings) = target::look(options, manifest, &origin.progress).await?;
    let part = selection::select(origin, database, &options.selection).await?;
    let (wanted, narrowed) = part.map(|(wanted, database)| (Arc::new(wanted), database)).unzip();
    let database = narrowed.unwrap_or_else(|| database.clone());
    warnings.extend(wanted.iter().flat_map(|wanted| wanted.warnings.clone()));
    let (admin, place) = look(&database, &options).await?;
    let globals = read_globals(origin, manifest).await?;
    let proof = read_proof(origin, &database).await?;
    target::room_for_locks(&admin, &database, options.jobs).await?;
    let existing = existing_roles(&admin).await?;
    let missing: Vec<String> =
        globals.roles.iter().map(|role| role.name.clone()).filter(|n| !existing.contains(n)).collect();
    if options.roles == RoleChanges::Keep && !missing.is_empty() {
        let own = matches!(place, Place::Free).then(|| proof.as_ref().map(own_properties)).flatten();
        let missing = missing.clone();
        do_without(origin, &database, wanted.as_deref(), own.as_ref(), missing, options.left_out).await?;
    }
    let updates = role_updates::lacking(&admin, &globals, &existing).await?;
    Ok(Prepared {
        options,
        admin,
        place,
        database,
        wanted,
        globals,
        proof,
        existing,
        missing,
        updates,
        warnings,
    })
}

/// A session beside the place where the set is to go, and what is there.
async fn look(database: &Database, options: &Options) -> Result<(Session, Place)> {
    let name = &options.connection.dbname;
    let admin = connect_admin(&options.connection).await?;
    let found =
        admin.client.query_opt("SELECT FROM pg_database WHERE datname = $1", &[name]).await.map_err(error)?;
    let place = match found {
        None if !options.create => {
            return Err(Error::new(format!(
                "database {name:?} does not exist on {}",
                options.connection.describe()
            ))
            .with_hint("say --create to make it"));
        }
        None => Place::Free,
        Some(_) => match target::count_objects(&options.connection).await? {
            0 => Place::Empty,
            holds if !options.replace => {
                return Err(Error::new(format!(
                    "database {name:?} is not empty: it holds {holds} tables, views or sequences"
                ))
                .with_hint(
                    "restore into a new database (--create), or say --replace to put it in this one's place",
                ));
            }
            holds => Place::Taken(Box::new(Taken {
                properties: properties::read(&admin.client, name).await?,
                replaced: target::describe(&admin, &options.connection, holds).await?,
            })),
        },
    };
    check_extensions(&admin, std::slice::from_ref(database)).await?;
    extensions::check_place(&admin, database, name, matches!(place, Place::Taken(_))).await?;
    Ok((admin, place))
}

/// The role that backs up may read; restoring needs one that may make.
fn who_may_restore(error: Error) -> Error {
    if sqlstate(&error) == Some(SqlState::INSUFFICIENT_PRIVILEGE.code()) {
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
    wanted: Option<Arc<Wanted>>,
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
    report.warnings.extend(target::check_encoding(&session, name, &encoding, database).await?);
    report.warnings.extend(locale::differences(&session, name, &database.locale).await?);
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
        tools: options.tools.clone().for_server(session.major()),
        connection,
        dbname: name.to_owned(),
        jobs: options.jobs,
        is_superuser: row.get(0),
        tablespaces: row.get(2),
        settings: options.settings.clone(),
        left_out: options.left_out,
        wanted,
        refresh_timeout: options.refresh_timeout,
    };
    collations::check(&session.client, database).await?;
    extensions::install(&session, database).await?;
    let loaded = load::load(origin, database, &target).await?;
    let other = extensions::other_versions(&session, database).await?;
    report.warnings.extend(other.into_iter().map(|line| format!("extension {line}")));
    report.warnings.extend(loaded.warnings);
    report.lost.extend(loaded.lost.iter().map(Error::to_string));
    report.failed.extend(loaded.failed.iter().map(Complaint::to_string));
    report.seconds.extend(loaded.seconds.iter().map(|(p, s)| ((*p).to_owned(), *s)));

    (origin.progress)(Event::Phase("analyzing".into()));
    let begun = std::time::Instant::now();
    let analyzed = analyze::analyze(&target).await;
    report.warnings.extend(analyzed.unwrap_or_else(|failure| vec![failure.to_string()]));
    report.seconds.push(("analyze".into(), begun.elapsed().as_secs_f64()));
    session.close().await;
    Ok(())
}

/// A session in another database of the same server: a database cannot be renamed or made from
/// within.
pub(super) async fn connect_admin(connection: &Connection) -> Result<Session> {
    let mut failure = None;
    for database in ["postgres", "template1"].into_iter().filter(|name| *name != connection.dbname) {
        match connect(connection, Some(database), "opsd restore").await {
            Ok(session) => return Ok(session),
            // A server that refuses one database may let us into the other; one that answers nonsense would again.
            Err(error) if sqlstate(&error).is_some() => failure = failure.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new("no database to connect to")))
}

/// An error if the database names one of these roles, which the server lacks. Others of the cluster that
/// it came from are none of its concern.
async fn do_without(
    origin: &Origin,
    database: &Database,
    wanted: Option<&Wanted>,
    own: Option<&Properties>,
    missing: Vec<String>,
    left_out: LeftOut,
) -> Result<()> {
    let schema = database.streams.iter().find(|s| s.name == "schema");
    let entries = match (wanted, schema) {
        (Some(wanted), _) => Some(wanted.entries.clone()),
        (None, Some(schema)) => Some(fetch_schema(origin, schema).await?.1),
        (None, None) => None,
    };
    let needed = match entries {
        Some(entries) => {
            let is_named = |role: &String| {
                let is_privilege = |e: &Entry| e.desc == "ACL" || e.desc == "DEFAULT ACL";
                entries
                    .iter()
                    .filter(|e| !(left_out.privileges && is_privilege(e)))
                    .any(|e| (e.owner == *role && !left_out.owner) || roles::names(&e.defn, role))
                    || own.is_some_and(|own| {
                        (own.owner == *role && !left_out.owner)
                            || (own.acl.as_ref().is_some_and(|acl| roles::names(acl, role))
                                && !left_out.privileges)
                            || own.settings.iter().any(|s| s.role.as_ref() == Some(role))
                    })
            };
            missing.into_iter().filter(is_named).collect()
        }
        // One archive with everything: what it names is only known when it has been read.
        None => missing,
    };
    if needed.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("the server lacks roles of the set: {}", needed.join(", ")))
        .with_hint("say --globals to make them, or make them yourself"))
}

/// A database's own properties without those that are not restored.
fn without(mut own: Properties, options: &Options) -> Properties {
    let LeftOut { owner, privileges, comments } = options.left_out;
    if owner {
        own.owner.clone_from(&options.connection.user);
    }
    if privileges {
        own.acl = None;
    }
    if comments {
        own.comment = None;
    }
    own
}

/// What a database is without the last thing that it gets.
fn without_properties(why: Error, name: &str, made: &str) -> Error {
    let what = format!(
        "database {made:?} holds all rows of the set, but not all of its owner, privileges and settings"
    );
    if made == name {
        return why.context(what);
    }
    why.context(what).context(format!("database {name:?} is as it was")).with_hint(swap::by_hand(name, made))
}

/// A failure, after which what was made could not be taken away either. A signal in the meantime is what
/// the process ends with.
fn not_dropped(failure: Error, why: &Error, made: &str) -> Error {
    let kind = match why.kind() {
        signal @ (Kind::Interrupted | Kind::Terminated) => signal,
        _ => failure.kind(),
    };
    let hint = match why.hint() {
        Some(hint) => hint.to_owned(),
        None => format!("DROP DATABASE IF EXISTS {}, once nothing is in its way", quote_ident(made)),
    };
    failure
        .context(format!("database {made:?} is incomplete and could not be dropped ({why})"))
        .with_kind(kind)
        .with_hint(hint)
}

/// `<name>_<what>_<time>`, to the millisecond, so that one restore after another finds it free, and
/// within the 63 bytes that PostgreSQL does not cut.
pub(super) fn other_name(name: &str, what: &str) -> String {
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
