//! Where a set is restored to, and whether a person agrees with that.

use std::path::Path;

use chrono::Utc;

use super::Args;
use crate::cli::progress::Bars;
use crate::cli::{Global, output};
use crate::config::libpq::Resolved;
use crate::config::{BackupJob, Config, Connection, Postgres};
use crate::error::{Context, Error, Result};
use crate::postgres::reach;
use crate::postgres::tools::{self, Tools};
use crate::printable;
use crate::restore::target::Replaced;
use crate::set::manifest::{Database, Manifest};

/// The database that people connect to in order to make others: a URL that names it means none.
const MAINTENANCE: &str = "postgres";

/// The database that is meant. The only one that a set holds is meant only if nothing else belongs into it.
pub fn choose_database<'m>(manifest: &'m Manifest, wanted: Option<&str>) -> Result<&'m Database> {
    let databases = manifest.databases.as_slice();
    let names = || databases.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(lacking) = manifest.lacking.iter().find(|l| Some(l.name.as_str()) == wanted) {
        return Err(Error::new(printable::line(&lacking.why).into_owned())
            .context(format!("the set lacks database {:?}, which could not be dumped", lacking.name))
            .with_hint("`opsd backups list` shows the sets before it"));
    }
    match (wanted, databases) {
        (None, [only]) if manifest.lacking.is_empty() => Ok(only),
        (None, [only]) => {
            Err(Error::usage(format!("the set holds {} alone, of several databases", only.name))
                .with_hint(format!("--database {}, if that is meant", only.name)))
        }
        (None, _) => Err(Error::usage(format!("the set holds several databases: {}", names()))
            .with_hint("choose one with --database")),
        (Some(name), all) => all.iter().find(|d| d.name == name).ok_or_else(|| {
            Error::usage(format!("the set holds no database {}", printable::word(name)))
                .with_hint(format!("it holds {}; --as NAME is the name that it is restored under", names()))
        }),
    }
}

/// The server that is meant, and the database there: the one of `--as`, else the one that the server's URL names, else
/// one called as in the set. libpq's own default, the role's name, would be a surprise. What contradicts itself is an
/// error: the wrong database might be replaced.
pub fn target<'c>(
    args: &Args,
    config: &'c Config,
    job: &BackupJob,
    database: &Database,
) -> Result<(Resolved, Option<&'c Postgres>)> {
    let to = match &args.to {
        Some(to) => to,
        None if config.postgres.contains_key(&job.postgres) => &job.postgres,
        None => {
            return Err(Error::usage(format!("job {} backs up no server of this configuration", job.name))
                .with_hint("--to NAME|URL says where it is restored to"));
        }
    };
    if let Some(server) = config.postgres.get(to) {
        let connection = Connection {
            dbname: name_at(args, to, server, database)?,
            names_dbname: true,
            ..server.connection.clone()
        };
        // Its warnings are those of the configuration.
        let resolved = Resolved { connection, warnings: Vec::new(), password_in_dsn: false };
        return Ok((resolved, Some(server)));
    }
    if Connection::looks_like_dsn(to) {
        let mut resolved = Connection::from_arg(to)?;
        let connection = &mut resolved.connection;
        let is_named = names(connection, database);
        if let Some(name) = args.as_name.as_ref().filter(|name| is_named && connection.dbname != **name) {
            return Err(conflict(&format!("--to names database {:?}", connection.dbname), "--as", name));
        }
        if !is_named {
            connection.dbname = args.as_name.clone().unwrap_or_else(|| database.name.clone());
        }
        return Ok((resolved, None));
    }
    let known: Vec<&str> = config.postgres.keys().map(String::as_str).collect();
    let hint = match known.as_slice() {
        [] => format!("{} has no [postgres.NAME]: give a URL, as in postgres://…", config.path.display()),
        known => format!("servers in {}: {}", config.path.display(), known.join(", ")),
    };
    let shown = printable::word(to);
    Err(Error::usage(format!("--to {shown} is neither a postgres:// URL nor a [postgres.NAME]"))
        .with_hint(hint))
}

/// A server that was found, and the programs for it.
pub struct At {
    pub connection: Connection,
    pub tools: Tools,
    /// The way to a server in a container.
    pub way: Option<String>,
}

/// Finds the server and the programs that restore into it.
pub async fn reach(
    connection: Connection,
    server: Option<&Postgres>,
    bin_dir: Option<&Path>,
    major: u32,
) -> Result<At> {
    let Some(server) = server else {
        return Ok(At { connection, tools: tools::find(major, bin_dir, &[]).await?, way: None });
    };
    let reached = reach::reach(server).await.with_context(|| format!("postgres.{}", server.name))?;
    let tools = reached.tools(major, bin_dir).await?;
    if let Some(way) = &reached.way {
        tracing::info!("postgres {}: {way}; pg_restore {}", server.name, tools.describe());
    }
    Ok(At { connection: reached.lead(&connection), tools, way: reached.way })
}

/// Whether a URL says which database is meant, and not only where to connect to.
fn names(connection: &Connection, database: &Database) -> bool {
    connection.names_dbname && (connection.dbname != MAINTENANCE || database.name == MAINTENANCE)
}

/// The database's name at a server of the configuration.
fn name_at(args: &Args, to: &str, server: &Postgres, database: &Database) -> Result<String> {
    if let Some(name) = &args.as_name {
        return Ok(name.clone());
    }
    let named = &server.connection.dbname;
    if !names(&server.connection, database) || *named == database.name {
        return Ok(database.name.clone());
    }
    match &args.database {
        Some(wanted) => Err(conflict(
            &format!("the URL of [postgres.{to}] names database {named:?}"),
            "--database",
            wanted,
        )),
        None => Ok(named.clone()),
    }
}

fn conflict(what: &str, option: &str, name: &str) -> Error {
    Error::usage(format!("{what}, and {option} says {}", printable::word(name)))
        .with_hint("--as NAME says which database is restored into")
}

/// Shows what would be replaced, and asks for its name, unless `--yes` was said.
pub async fn approve(
    args: &Args,
    global: &Global,
    bars: &Bars,
    (id, database): (&str, &Database),
    replaced: &Replaced,
) -> Result<()> {
    let is_asked = !args.yes;
    if is_asked && !output::can_ask() {
        return Err(Error::usage(format!(
            "database {:?} on {} would be replaced, and nobody is here to agree",
            replaced.name, replaced.url
        ))
        .with_hint("--yes agrees beforehand; without --replace nothing that is there is touched"));
    }
    bars.hide(true);
    if is_asked || global.is_watched() {
        show(id, database, replaced);
    }
    let agreed = match is_asked {
        true => output::ask("Type the name of that database to go on: ").await,
        false => Ok(replaced.name.clone()),
    };
    bars.hide(false);
    match agreed.context("cannot read the answer")?.trim() {
        name if name == replaced.name => Ok(()),
        _ => Err(Error::usage("that is not its name: nothing was changed")),
    }
}

fn show(id: &str, database: &Database, replaced: &Replaced) {
    output::say(format!("this replaces database {:?}", replaced.name));
    output::note("  where:  ", &replaced.url);
    let size = replaced.size.map(|size| format!("{} in ", output::size(size))).unwrap_or_default();
    let made =
        replaced.made.map(|made| format!(", made {}", made.format("%Y-%m-%d %H:%M UTC"))).unwrap_or_default();
    let objects = match replaced.objects {
        1 => "1 table, view or sequence".to_owned(),
        n => format!("{} tables, views and sequences", output::count(n)),
    };
    output::note("  what:   ", format!("{size}{objects}{made}"));
    let sessions = output::counted(replaced.sessions, "session");
    output::note("  in use: ", format!("{sessions} now; they are ended when the names are swapped"));
    let age = (Utc::now() - database.snapshot_time).to_std().unwrap_or_default();
    output::note("  by:     ", format!("set {}, whose data is {} old", id, output::duration(age)));
}
