//! The server that a job backs up: its session, its tools, its databases, and a first look at them.

use std::collections::HashMap;

use super::plan::Plan;
use super::{coordinator, lock, streams};
use crate::config::{BackupJob, Config, Connection, Databases, Postgres};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::{Session, connect, error};
use crate::postgres::tools::{self, Tools};
use crate::set::manifest::Server;

/// What a run needs to know about its server.
pub(super) struct Source<'a> {
    pub(super) postgres: &'a Postgres,
    pub(super) session: Session,
    pub(super) server: Server,
    /// Encoding of the session's database, which names of roles come in.
    pub(super) encoding: String,
    pub(super) tools: Tools,
    pub(super) databases: Vec<String>,
    /// Whether they are all that there are, with the OID of each.
    pub(super) all: Option<HashMap<String, u32>>,
    pub(super) application_name: String,
    /// What is worth saying of the way to it.
    pub(super) warning: Option<String>,
}

impl Source<'_> {
    /// A session with one of its databases, for the coordinator.
    pub(super) async fn open(&self, database: &str) -> Result<Session> {
        coordinator::open(&self.postgres.connection, database, &self.application_name).await
    }

    /// What a pg_dump of one of them is started with.
    pub(super) fn dump<'s>(&'s self, database: &'s str, encoding: &'s str) -> streams::Dump<'s> {
        let (connection, application_name) = (&self.postgres.connection, self.application_name.as_str());
        streams::Dump { tools: &self.tools, connection, database, encoding, application_name }
    }
}

/// Connects, and finds the tools and the databases.
pub(super) async fn open<'a>(config: &'a Config, job: &BackupJob) -> Result<Source<'a>> {
    let postgres = config
        .postgres
        .get(&job.postgres)
        .ok_or_else(|| Error::usage(format!("backup.{}: no [postgres.{}]", job.name, job.postgres)))?;
    let application_name = lock::application_name(&job.name);
    let session = connect(&postgres.connection, None, &application_name).await?;
    let row = session
        .client
        .query_one(
            "SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('server_encoding')",
            &[],
        )
        .await
        .map_err(error)?;
    let version_num = session.server_version_num;
    let server = Server { version_num, version: row.get(0), in_recovery: row.get(1) };
    let encoding = row.get(2);
    let tools = tools::find(session.major(), postgres.bin_dir.as_deref(), &postgres.tool_prefix).await?;
    let warning = tools.password_warning(&postgres.connection).await?;
    let (databases, all) = resolve_databases(&session, &postgres.connection, &job.databases).await?;
    Ok(Source { postgres, session, server, encoding, tools, databases, all, application_name, warning })
}

async fn resolve_databases(
    session: &Session,
    connection: &Connection,
    wanted: &Databases,
) -> Result<(Vec<String>, Option<HashMap<String, u32>>)> {
    let rows = session
        .client
        .query(
            "SELECT datname::text, oid FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list databases")?;
    let existing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if existing.is_empty() {
        return Err(Error::new(format!("no database on {} lets anybody in", connection.describe())));
    }
    match wanted {
        Databases::Url => Ok((vec![connection.dbname.clone()], None)),
        Databases::All => {
            let oids = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            Ok((existing, Some(oids)))
        }
        Databases::Named(names) => match names.iter().find(|n| !existing.contains(n)) {
            None => Ok((names.clone(), None)),
            Some(missing) => {
                Err(Error::new(format!("database {missing:?} does not exist on {}", connection.describe()))
                    .with_hint(format!("databases there: {}", existing.join(", "))))
            }
        },
    }
}

/// The plan, and the session that has looked.
pub(super) async fn preview(source: &Source<'_>, database: &str, job: &BackupJob) -> Result<(Plan, Session)> {
    let look = async {
        let session = source.open(database).await?;
        let plan = coordinator::preview(&session, database, source.server.in_recovery, job).await?;
        Ok::<_, Error>((plan, session))
    };
    look.await.with_context(|| format!("database {database:?}"))
}
