//! One backup of a job at a time: an advisory lock held by a session for as long as it lives.
//!
//! The lock dies with its session, so nothing that opsd leaves behind can block the next run.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Kind, Result};
use crate::postgres::connect::{Session, error};

/// A run that was killed just now holds the lock until the server has noticed.
const GRACE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

/// What pg_stat_activity shows of us, so that a second run can name the first. PostgreSQL cuts it at
/// 63 bytes.
pub fn application_name(job: &str) -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    format!("opsd backup {job} {host}:{}", std::process::id())
}

/// Takes the job's lock, or says who holds it. Any session may take any advisory lock, so only one that
/// looks like a run of this job is called one: exit code 5 stands for "another run does it", and nobody
/// else may pass for that.
pub async fn acquire(session: &Session, site: &str, job: &str) -> Result<()> {
    let key = key(site, job);
    let client = &session.client;
    let begun = Instant::now();
    loop {
        let row = client.query_one("SELECT pg_try_advisory_lock($1)", &[&key]).await.map_err(error);
        if row.context("cannot take the job's lock")?.get(0) {
            return Ok(());
        }
        if begun.elapsed() > GRACE {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let (high, low) = ((key >> 32) as i32, key as i32);
    let holder = client
        .query_opt(
            "SELECT coalesce(nullif(a.application_name, ''), 'a session') || ', pid ' || l.pid
                    || coalesce(', role ' || a.usename, '') || coalesce(', from ' || host(a.client_addr), '')
                    || coalesce(', since ' || a.backend_start::text, ''),
                    starts_with(a.application_name, $3) AND a.usename = current_user, l.pid
               FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
              WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                AND l.classid::int8::bit(32)::int4 = $1 AND l.objid::int8::bit(32)::int4 = $2
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            &[&high, &low, &cut(&format!("opsd backup {job} "))],
        )
        .await
        .map_err(error)?;
    let Some(row) = holder else {
        // It let go in between.
        return Err(Error::new(format!("a backup of job {job:?} was running just now"))
            .with_kind(Kind::LockHeld)
            .with_hint("try again"));
    };
    let (holder, pid): (String, i32) = (row.get(0), row.get(2));
    if row.get::<_, Option<bool>>(1).unwrap_or(false) {
        let running = format!("a backup of job {job:?} is running already: {holder}");
        return Err(Error::new(running).with_kind(Kind::LockHeld));
    }
    Err(Error::new(format!("the lock of job {job:?} is held by a session that is no run of it: {holder}"))
        .with_hint(format!(
            "find out what it is: a run of this job by another role looks like this, too; if it is none, \
             SELECT pg_terminate_backend({pid})"
        )))
}

/// Asks whether the session that holds the lock is still there.
pub async fn check(session: &Session) -> Result<()> {
    let asked = tokio::time::timeout(CHECK_BOUND, session.client.batch_execute("SELECT")).await;
    let answer = match asked {
        Ok(answer) => answer.map_err(error),
        Err(_) => Err(Error::new(format!("no answer within {} s", CHECK_BOUND.as_secs()))),
    };
    answer.map_err(lost)
}

/// What a run fails with when its lock is gone: another one may be under way by now.
pub fn lost(why: Error) -> Error {
    why.context("the session that held the job's lock is gone")
        .with_hint("see the server's log; run it again")
}

/// A server that is only slow answers within this.
const CHECK_BOUND: Duration = Duration::from_secs(60);

/// As PostgreSQL keeps an application's name: at most 63 bytes, whole characters.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(63);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// The lock's 64-bit key.
fn key(site: &str, job: &str) -> i64 {
    let digest = Sha256::digest(format!("opsd/{site}/{job}"));
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(bytes)
}
