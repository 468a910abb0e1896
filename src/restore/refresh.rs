//! Materialized views of a database that asks other servers: filled last, and within a bound.
//!
//! A server that takes a connection and never answers keeps a REFRESH waiting for ever. Up to PostgreSQL 15 nothing
//! ends the session that waits: neither a timeout of its server nor pg_terminate_backend. So the bound is kept here,
//! when everything else is there, and what does not end in time is left behind. Deliberately absent: a bound where no
//! other server is named; such a view takes as long as it takes.

use std::collections::HashSet;
use std::fs::File;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Target;
use super::complaints::{Complaint, Fault};
use super::pg_restore::{Part, run_after_rows};
use crate::error::{Context, Result};
use crate::postgres::connect::error;
use crate::postgres::ident::Name;
use crate::set::archive::Entry;

/// How long a session that was told to end is waited for.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked for meanwhile.
const END_INTERVAL: Duration = Duration::from_millis(100);

/// Ends our sessions that still fill a view, and says which there are.
const END: &str = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE datname = current_database() AND usename = current_user AND application_name = 'opsd restore'
        AND pid <> pg_backend_pid() AND state = 'active' AND query LIKE 'REFRESH MATERIALIZED VIEW %'";

/// Views that nobody filled.
const EMPTY: &str =
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind = 'm' AND NOT c.relispopulated";

/// Whether the target names other servers, or can be asked for any.
const NAMES_OTHERS: &str = "SELECT EXISTS (SELECT FROM pg_foreign_server)
        OR EXISTS (SELECT FROM pg_extension WHERE extname = 'dblink')";

/// Those of these entries that fill views, by dump id, where the database names other servers, or may do so. Where a part
/// of a set is restored, the target may name them, too.
pub async fn asking_others(target: &Target, entries: &[Entry]) -> Result<HashSet<i32>> {
    let names = |e: &Entry| e.desc == "SERVER" || (e.desc == "EXTENSION" && e.tag == "dblink");
    let views = entries.iter().filter(|e| e.desc == "MATERIALIZED VIEW DATA").map(|e| e.dump_id);
    let views: HashSet<i32> = views.collect();
    if views.is_empty() || entries.iter().any(names) {
        return Ok(views);
    }
    if target.wanted.is_none() {
        return Ok(HashSet::new());
    }
    let session = target.connect(&[]).await?;
    let found = session.client.query_one(NAMES_OTHERS, &[]).await.map_err(error);
    session.close().await;
    let found: bool = found.context("cannot see whether the database names other servers")?.get(0);
    Ok(if found { views } else { HashSet::new() })
}

/// Fills these views, in several turns where one reads another through a function. What fails to the last, or is not
/// filled in time, is told, and gets no other turn.
pub async fn fill(
    target: &Target,
    archive: &File,
    entries: &[Entry],
    mut left: HashSet<i32>,
    arguments: &[&str],
) -> Result<(Vec<String>, Vec<Complaint>)> {
    let deadline = Instant::now() + target.refresh_timeout;
    let mut warnings = Vec::new();
    loop {
        let filling = run_after_rows(target, archive, entries, Part::Entries(&left), target.jobs, arguments);
        // A pg_restore that nobody waits for any longer is ended, with all of its workers.
        let Ok(done) = timeout_at(deadline, filling).await else {
            let (said, failed) = given_up(target, entries, &left).await?;
            warnings.extend(said);
            return Ok((warnings, failed));
        };
        let (said, mut failed) = done?;
        warnings.extend(said);
        let again: HashSet<i32> = failed.iter().filter_map(|complaint| complaint.id).collect();
        if again.len() < failed.len() || again.len() == left.len() || again.is_empty() {
            failed.iter_mut().for_each(|complaint| complaint.id = None);
            return Ok((warnings, failed));
        }
        left = again;
    }
}

/// Which of these views were not filled in time, and which sessions nobody can end.
async fn given_up(
    target: &Target,
    entries: &[Entry],
    left: &HashSet<i32>,
) -> Result<(Vec<String>, Vec<Complaint>)> {
    let session = target.connect(&[]).await?;
    let give_up = Instant::now() + END_PATIENCE;
    let stuck = loop {
        let rows = session.client.query(END, &[]).await.map_err(error).context("cannot end a REFRESH")?;
        let pids: Vec<String> = rows.iter().map(|row| row.get::<_, i32>(0).to_string()).collect();
        if pids.is_empty() || Instant::now() > give_up {
            break pids;
        }
        tokio::time::sleep(END_INTERVAL).await;
    };
    let rows = session.client.query(EMPTY, &[]).await.map_err(error);
    session.close().await;
    let rows = rows.context("cannot see which materialized views are filled")?;
    let empty: HashSet<(String, String)> =
        rows.iter().map(|row| (row.get::<_, Name>(0).0, row.get::<_, Name>(1).0)).collect();
    let is_empty =
        |e: &&Entry| left.contains(&e.dump_id) && empty.contains(&(e.namespace.clone(), e.tag.clone()));
    let failed = entries.iter().filter(is_empty).map(|entry| Complaint {
        id: None,
        object: format!("{} {}", entry.desc, entry.tag),
        message: format!(
            "not filled within {} s: a server that it reads may not answer; REFRESH MATERIALIZED VIEW fills it \
             (restore.refresh_timeout gives it more time)",
            target.refresh_timeout.as_secs()
        ),
        fault: Fault::Elsewhere,
    });
    let warnings = (!stuck.is_empty()).then(|| {
        format!(
            "session {} still waits for another server, and its own does not end it: it ends when that server closes \
             the connection, or with a restart",
            stuck.join(", ")
        )
    });
    Ok((warnings.into_iter().collect(), failed.collect()))
}
