//! Which server this is: the first question of every collection, and the one it cannot do without.

use std::time::SystemTime;

use super::{get, number, text, truth};
use crate::error::Result;
use crate::metrics::{self, Sample};
use crate::postgres::connect::{self, Session};

/// What queries depend on, and who the server is.
#[derive(Debug, Clone)]
pub struct Facts {
    /// 170011.
    pub version: u32,
    /// As the server words it.
    pub version_text: String,
    /// Of the cluster; a primary and its standbys share it. Absent where the role may not ask.
    pub system_identifier: Option<String>,
    /// Whether this is a standby.
    pub in_recovery: bool,
    /// Whether the role has what `pg_monitor` grants.
    pub monitor_role: bool,
    /// Seconds since 1970.
    pub started: f64,
    /// Where a primary writes.
    pub position: Option<f64>,
    /// The database that is asked.
    pub database: String,
    /// Seconds that its clock is ahead of this host's; 0 where that may be the way of the answer.
    pub ahead: f64,
}

/// Clocks that are this close, in seconds, are as good as the same.
const CLOSE: f64 = 2.0;

const SQL: &str = "
    SELECT current_setting('server_version') AS version,
           extract(epoch FROM clock_timestamp())::float8 AS now,
           pg_is_in_recovery() AS in_recovery,
           pg_has_role(current_user, 'pg_monitor', 'USAGE') AS monitor_role,
           extract(epoch FROM pg_postmaster_start_time())::float8 AS started,
           CASE WHEN has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
                THEN (SELECT system_identifier::text FROM pg_control_system()) END AS system_identifier,
           CASE WHEN NOT pg_is_in_recovery()
                THEN pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8 END AS position";

/// Asks the server who it is.
pub async fn facts(session: &Session, database: String) -> Result<Facts> {
    let asked = metrics::timestamp(SystemTime::now());
    let rows = session.client.query_typed(SQL, &[]).await.map_err(connect::error)?;
    let answered = metrics::timestamp(SystemTime::now());
    let row = rows.first().ok_or_else(|| crate::error::Error::new("no answer to who it is"))?;
    Ok(Facts {
        version: session.server_version_num,
        version_text: text(row, "version")?.to_owned(),
        system_identifier: get(row, "system_identifier")?,
        in_recovery: get(row, "in_recovery")?.unwrap_or(false),
        monitor_role: get(row, "monitor_role")?.unwrap_or(false),
        started: number(row, "started")?,
        position: get(row, "position")?,
        database,
        ahead: ahead(number(row, "now")?, asked, answered),
    })
}

/// How far a clock is ahead that said `now` between two moments of ours.
fn ahead(now: f64, asked: f64, answered: f64) -> f64 {
    if now < asked - CLOSE || now > answered + CLOSE { now - (asked + answered) / 2.0 } else { 0.0 }
}

/// Turns what the server's clock says into what this host's says: ages are told by comparing with now, and
/// with a clock that is off, every transaction would be old, or none.
pub fn set_clock(samples: &mut [Sample], ahead: f64) {
    for sample in samples.iter_mut().filter(|sample| sample.metric.unit == metrics::Unit::Timestamp) {
        sample.value -= ahead;
    }
}

/// The same as figures.
pub fn samples(facts: &Facts) -> Vec<Sample> {
    // Distributions append what they are: `17.2 (Debian 17.2-1)`.
    let version = facts.version_text.split(' ').next().unwrap_or_default();
    let identifier = facts.system_identifier.as_deref().unwrap_or_default();
    let mut samples = vec![
        Sample::new(&metrics::POSTGRES_SERVER, [version, identifier], 1.0),
        Sample::plain(&metrics::POSTGRES_IN_RECOVERY, truth(facts.in_recovery)),
        Sample::plain(&metrics::POSTGRES_MONITOR_ROLE, truth(facts.monitor_role)),
        Sample::plain(&metrics::POSTGRES_START_TIMESTAMP, facts.started),
    ];
    samples.extend(facts.position.map(|at| Sample::plain(&metrics::POSTGRES_WAL_POSITION, at)));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_makes_nothing_old_or_young() {
        // Half a second to ask is no difference of clocks, nor is what clocks usually differ by.
        for now in [98.5, 100.0, 100.3, 102.4] {
            assert_eq!(ahead(now, 100.0, 100.5), 0.0, "{now}");
        }
        assert_eq!((ahead(700.0, 100.0, 100.0), ahead(40.0, 99.0, 101.0)), (600.0, -60.0));
        let mut samples = [
            Sample::plain(&metrics::POSTGRES_OLDEST_TRANSACTION_TIMESTAMP, 690.0),
            Sample::plain(&metrics::POSTGRES_BLOCKED_SESSIONS, 3.0),
        ];
        set_clock(&mut samples, 600.0);
        assert_eq!(samples.each_ref().map(|sample| sample.value), [90.0, 3.0]);
    }
}
