//! One backup of a job at a time: an advisory lock held by a session for as long as it lives.
//!
//! The lock dies with its session, so nothing that opsd leaves behind can block the next run.

use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Kind, Result};
use crate::postgres::connect::{Session, error};

/// What pg_stat_activity shows of us, so that a second run can name the first. PostgreSQL cuts it at
/// 63 bytes.
pub fn application_name(job: &str) -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    format!("opsd backup {job} {host}:{}", std::process::id())
}

/// Takes the job's lock, or says who holds it.
pub async fn acquire(session: &Session, site: &str, job: &str) -> Result<()> {
    let key = key(site, job);
    let client = &session.client;
    let row = client.query_one("SELECT pg_try_advisory_lock($1)", &[&key]).await.map_err(error);
    if row.context("cannot take the job's lock")?.get(0) {
        return Ok(());
    }
    let (high, low) = ((key >> 32) as i32, key as i32);
    let holder = client
        .query_opt(
            "SELECT coalesce(nullif(a.application_name, ''), 'a session') || ', pid ' || l.pid
                    || coalesce(', role ' || a.usename, '') || coalesce(', since ' || a.backend_start::text, '')
               FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
              WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                AND l.classid::int8::bit(32)::int4 = $1 AND l.objid::int8::bit(32)::int4 = $2
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            &[&high, &low],
        )
        .await
        .map_err(error)?;
    let holder = holder.map_or_else(|| "another run".to_owned(), |row| row.get(0));
    Err(Error::new(format!("a backup of job {job:?} is running already: {holder}")).with_kind(Kind::LockHeld))
}

/// The lock's 64-bit key.
fn key(site: &str, job: &str) -> i64 {
    let digest = Sha256::digest(format!("opsd/{site}/{job}"));
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(bytes)
}
