//! The server that a job backs up: its session, its tools, its databases, and a first look at them.

use std::collections::HashMap;

use super::plan::Plan;
use super::{coordinator, lock, streams};
use crate::config::{BackupJob, Config, Connection, Databases};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, connect, error};
use crate::postgres::libraries;
use crate::postgres::reach::{Reached, reach};
use crate::postgres::tools::Tools;
use crate::set::manifest::{Lacking, Server};

/// What a run needs to know about its server.
pub(super) struct Source {
    pub(super) connection: Connection,
    /// The way to a server in a container, for people.
    pub(super) way: Option<String>,
    pub(super) session: Session,
    pub(super) server: Server,
    /// Encoding of the session's database, which names of roles come in.
    pub(super) encoding: String,
    pub(super) tools: Tools,
    pub(super) databases: Vec<String>,
    /// Whether they are all that there are, with the OID of each.
    pub(super) all: Option<HashMap<String, u32>>,
    pub(super) application_name: String,
    /// Those of them that nobody can connect to, and why.
    pub(super) closed: HashMap<String, &'static str>,
    /// Those that are passed over where all are wanted, and why.
    pub(super) left_out: Vec<Lacking>,
    /// What is worth saying of the way to it, and of databases that are left out.
    pub(super) warnings: Vec<String>,
}

impl Source {
    /// A session with one of its databases, for the coordinator.
    pub(super) async fn open(&self, database: &str) -> Result<Session> {
        coordinator::open(&self.connection, database, &self.application_name).await
    }

    /// What a pg_dump of one of them is started with.
    pub(super) fn dump<'s>(&'s self, database: &'s str, encoding: &'s str) -> streams::Dump<'s> {
        let (connection, application_name) = (&self.connection, self.application_name.as_str());
        streams::Dump { tools: &self.tools, connection, database, encoding, application_name }
    }
}

/// Connects, and finds the tools and the databases.
pub(super) async fn open(config: &Config, job: &BackupJob) -> Result<Source> {
    let postgres = config
        .postgres
        .get(&job.postgres)
        .ok_or_else(|| Error::usage(format!("backup.{}: no [postgres.{}]", job.name, job.postgres)))?;
    let application_name = lock::application_name(&job.name);
    let reached = reach(postgres).await.with_context(|| format!("postgres.{}", postgres.name))?;
    let session = connect(&reached.connection, None, &application_name).await?;
    let row = session
        .client
        .query_one(
            "SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('server_encoding')",
            &[],
        )
        .await
        .map_err(error)?;
    let version_num = session.server_version_num;
    let server = Server {
        version_num,
        version: row.get(0),
        in_recovery: row.get(1),
        preloaded: preloaded(&session).await?,
    };
    let encoding = row.get(2);
    let tools = reached.tools(session.major(), postgres.bin_dir.as_deref()).await?;
    let warning = tools.password_warning(&reached.connection).await?;
    let Reached { connection, way, .. } = reached;
    if let Some(way) = &way {
        tracing::info!("postgres {}: {way}; pg_dump {}", postgres.name, tools.describe());
    }
    let resolved = resolve_databases(&session, &connection, &job.databases, &application_name).await?;
    let Resolved { databases, all, closed, left_out } = resolved;
    let told = |l: &Lacking| format!("database {:?} is not in this set: {}", l.name, l.why);
    let warnings = warning.into_iter().chain(left_out.iter().map(told)).collect();
    Ok(Source {
        connection,
        way,
        session,
        server,
        encoding,
        tools,
        databases,
        all,
        closed,
        application_name,
        left_out,
        warnings,
    })
}

/// Libraries that the server loads when it starts, as far as our role may know.
async fn preloaded(session: &Session) -> Result<Option<Vec<String>>> {
    let row = session
        .client
        .query_opt("SELECT setting FROM pg_settings WHERE name = 'shared_preload_libraries'", &[])
        .await
        .map_err(error)
        .context("cannot see which libraries the server loads")?;
    Ok(row.map(|row| libraries::listed(&row.get::<_, String>(0))))
}

/// A database as pg_database has it.
struct Listed {
    name: String,
    oid: u32,
    /// Why nobody can connect to it.
    closed: Option<&'static str>,
}

/// What a job dumps.
struct Resolved {
    databases: Vec<String>,
    all: Option<HashMap<String, u32>>,
    closed: HashMap<String, &'static str>,
    left_out: Vec<Lacking>,
}

async fn resolve_databases(
    session: &Session,
    connection: &Connection,
    wanted: &Databases,
    application_name: &str,
) -> Result<Resolved> {
    let mut resolved =
        Resolved { databases: Vec::new(), all: None, closed: HashMap::new(), left_out: Vec::new() };
    if matches!(wanted, Databases::Url) {
        resolved.databases.push(connection.dbname.clone());
        return Ok(resolved);
    }
    let rows = session
        .client
        .query(
            "SELECT datname::text, oid, datconnlimit = -2, datallowconn FROM pg_database
              WHERE datname <> 'template0' ORDER BY datname",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list databases")?;
    let listed = |row: &tokio_postgres::Row| Listed {
        name: row.get(0),
        oid: row.get(1),
        closed: match (row.get(2), row.get(3)) {
            (true, _) => Some(
                "a DROP DATABASE of it was interrupted, and nobody can connect to it: DROP DATABASE ends it",
            ),
            (false, false) => Some("it lets nobody in: ALTER DATABASE … ALLOW_CONNECTIONS true"),
            (false, true) => None,
        },
    };
    let existing: Vec<Listed> = rows.iter().map(listed).collect();
    match wanted {
        Databases::Url => {}
        Databases::All => {
            let mut all = HashMap::new();
            for Listed { name, oid, closed } in existing {
                let why = match closed {
                    Some(why) => why.to_owned(),
                    None if name != "template1" => {
                        resolved.databases.push(name.clone());
                        all.insert(name, oid);
                        continue;
                    }
                    None => match holds_anything(connection, &name, application_name).await {
                        Ok(false) => continue,
                        Ok(true) => {
                            resolved.databases.push(name.clone());
                            all.insert(name, oid);
                            continue;
                        }
                        Err(failure) => format!("whether it holds anything cannot be seen: {failure}"),
                    },
                };
                resolved.left_out.push(Lacking { name, why });
            }
            if resolved.databases.is_empty() {
                return Err(Error::new(format!("no database on {} lets anybody in", connection.describe())));
            }
            resolved.all = Some(all);
        }
        Databases::Named(names) => {
            for name in names {
                let Some(found) = existing.iter().find(|listed| listed.name == *name) else {
                    let there: Vec<&str> = existing.iter().map(|listed| listed.name.as_str()).collect();
                    return Err(Error::new(format!(
                        "database {name:?} does not exist on {}",
                        connection.describe()
                    ))
                    .with_hint(format!("databases there: {}", there.join(", "))));
                };
                resolved.closed.extend(found.closed.map(|why| (name.clone(), why)));
            }
            resolved.databases.clone_from(names);
        }
    }
    Ok(resolved)
}

/// Whether a database holds anything that initdb did not put there: whoever makes a database gets a copy of it.
async fn holds_anything(connection: &Connection, database: &str, application_name: &str) -> Result<bool> {
    let session = coordinator::open(connection, database, application_name).await?;
    let row = session
        .client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_class WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_proc WHERE oid >= 16384)
                 OR EXISTS (SELECT FROM pg_type WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_namespace WHERE oid >= 16384)
                 OR EXISTS (SELECT FROM pg_extension WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_language WHERE oid >= 16384)
                 OR EXISTS (SELECT FROM pg_collation WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_operator WHERE oid >= 16384)
                 OR EXISTS (SELECT FROM pg_cast WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_conversion WHERE oid >= 16384)
                 OR EXISTS (SELECT FROM pg_foreign_data_wrapper) OR EXISTS (SELECT FROM pg_event_trigger)
                 OR EXISTS (SELECT FROM pg_publication) OR EXISTS (SELECT FROM pg_default_acl)
                 OR EXISTS (SELECT FROM pg_ts_config WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_ts_dict WHERE oid >= 16384)
                 OR EXISTS (SELECT FROM pg_largeobject_metadata)",
            &[],
        )
        .await
        .map_err(error);
    session.close().await;
    Ok(row?.get(0))
}

/// The plan, and the session that has looked.
pub(super) async fn preview(source: &Source, database: &str, job: &BackupJob) -> Result<(Plan, Session)> {
    let look = async {
        if let Some(why) = source.closed.get(database) {
            return Err(Error::new(*why));
        }
        let session = source.open(database).await?;
        let plan = coordinator::preview(&session, database, source.server.in_recovery, job).await?;
        Ok::<_, Error>((plan, session))
    };
    look.await.with_context(|| format!("database {database:?}"))
}
