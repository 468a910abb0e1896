//! Which server this is: the first question of every collection, and the one it cannot do without; and three pieces
//! about the server itself, which hosters withhold.

use std::time::SystemTime;

use super::{Concern, Need, Scope, alone, get, number, text, truth};
use crate::error::Result;
use crate::metrics::{self, Sample};
use crate::postgres::connect::{self, Session};
use crate::postgres::sql::Sql;

/// What queries depend on, and who the server is.
#[derive(Debug, Clone)]
pub struct Facts {
    /// 170011.
    pub version: u32,
    /// As the server words it.
    pub version_text: String,
    /// Of the cluster; a primary and its standbys share it. Absent where the role may not ask.
    pub system_identifier: Option<String>,
    /// Seconds since 1970, by its clock.
    pub started: Option<f64>,
    /// Whether this is a standby.
    pub in_recovery: bool,
    /// What the role may.
    pub may: Privileges,
    /// Where a primary writes.
    pub position: Option<f64>,
    /// Whether the server says where its WAL ends.
    pub knows_positions: bool,
    /// The database that is asked.
    pub database: String,
    /// Seconds that its clock is ahead of this host's, and by how many that may be wrong.
    pub ahead: f64,
    /// Half of the time that the answer took.
    pub slack: f64,
}

/// What the role may that not every role may.
#[derive(Debug, Clone, Copy)]
pub struct Privileges {
    /// What `pg_monitor` grants altogether; absent where nobody says.
    pub monitor_role: Option<bool>,
    /// Other sessions' figures.
    pub statistics: bool,
    /// `pg_control_system()`.
    pub control_system: bool,
    /// `pg_ls_archive_statusdir()`.
    pub archive_status: bool,
}

impl Default for Privileges {
    /// Who is not known to lack something is to ask, and hears it.
    fn default() -> Self {
        Self { monitor_role: None, statistics: true, control_system: true, archive_status: true }
    }
}

/// Clocks that are this close, in seconds, are as good as the same.
const CLOSE: f64 = 2.0;

const SQL: &str = "
    SELECT current_setting('server_version') AS version,
           extract(epoch FROM clock_timestamp())::float8 AS now,
           pg_is_in_recovery() AS in_recovery";

/// A function that a hoster removed is nobody's.
const PRIVILEGES: &str = "
    SELECT pg_has_role(current_user, 'pg_monitor', 'USAGE') AS monitor_role,
           pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS statistics,
           has_function_privilege(to_regprocedure('pg_catalog.pg_control_system()')::oid, 'EXECUTE')
               AS control_system,
           has_function_privilege(to_regprocedure('pg_catalog.pg_ls_archive_statusdir()')::oid, 'EXECUTE')
               AS archive_status";

/// What does not change as long as a session lasts.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    pub(super) identifier: Option<String>,
    pub(super) started: Option<f64>,
}

pub(super) static IDENTITY: Concern = Concern {
    name: "identity",
    need: Need::ControlSystem,
    scope: Scope::Server,
    pages: None,
    sql: |_| Some("SELECT system_identifier::text AS identifier FROM pg_control_system()".into()),
    read: |_, rows, found| {
        for row in rows {
            found.kept.identifier = Some(text(row, "identifier")?);
        }
        Ok(())
    },
};

pub(super) static START: Concern = Concern {
    name: "start",
    need: Need::Nothing,
    scope: Scope::Server,
    pages: None,
    sql: |_| Some("SELECT extract(epoch FROM pg_postmaster_start_time())::float8 AS started".into()),
    read: |_, rows, found| {
        for row in rows {
            found.kept.started = get(row, "started")?;
        }
        Ok(())
    },
};

pub(super) static WAL_POSITION: Concern = Concern {
    name: "wal_position",
    need: Need::Nothing,
    scope: Scope::Server,
    pages: None,
    sql: |facts| {
        let end = super::replication::end_of_wal(facts.in_recovery);
        Some(Sql::template(
            "SELECT pg_wal_lsn_diff({end}, '0/0')::float8 AS position",
            &[("end", end.into())],
        ))
    },
    read: |facts, rows, found| {
        for row in rows {
            found.knows_positions = true;
            if !facts.in_recovery {
                found.position = get(row, "position")?;
                found.plain(&metrics::POSTGRES_WAL_POSITION, found.position);
            }
        }
        Ok(())
    },
};

/// Asks the server who it is.
pub async fn facts(session: &Session, database: String) -> Result<Facts> {
    let asked = metrics::timestamp(SystemTime::now());
    let rows = session.client.query_typed(SQL, &[]).await.map_err(connect::error)?;
    let answered = metrics::timestamp(SystemTime::now());
    let row = rows.first().ok_or_else(|| crate::error::Error::new("no answer to who it is"))?;
    Ok(Facts {
        version: session.server_version_num,
        version_text: text(row, "version")?,
        system_identifier: None,
        started: None,
        in_recovery: get(row, "in_recovery")?.unwrap_or(false),
        may: Privileges::default(),
        position: None,
        knows_positions: false,
        database,
        ahead: number(row, "now")? - (asked + answered) / 2.0,
        slack: (answered - asked) / 2.0,
    })
}

/// Asks what the role may. A server that does not tell is asked for everything.
pub async fn privileges(session: &Session) -> Result<Privileges> {
    let rows = match session.client.query_typed(PRIVILEGES, &[]).await {
        Ok(rows) => rows,
        Err(error) if alone(&error).is_some() => return Ok(Privileges::default()),
        Err(error) => return Err(connect::error(error)),
    };
    let Some(row) = rows.first() else { return Ok(Privileges::default()) };
    Ok(Privileges {
        monitor_role: get(row, "monitor_role")?,
        statistics: get(row, "statistics")?.unwrap_or(true),
        control_system: get(row, "control_system")?.unwrap_or(true),
        archive_status: get(row, "archive_status")?.unwrap_or(true),
    })
}

impl Facts {
    /// How far the server's clock is ahead, where that cannot be the way of the answer or what clocks usually differ
    /// by; else 0.
    fn clearly_ahead(&self) -> f64 {
        if self.ahead.abs() > CLOSE + self.slack { self.ahead } else { 0.0 }
    }
}

/// Turns what the server's clock says into what this host's says: ages are told by comparing with now, and
/// with a clock that is off, every transaction would be old, or none.
pub fn set_clock(samples: &mut [Sample], facts: &Facts) {
    let ahead = facts.clearly_ahead();
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
    ];
    samples.extend(facts.started.map(|at| Sample::plain(&metrics::POSTGRES_START_TIMESTAMP, at)));
    let role = facts.may.monitor_role.map(truth);
    samples.extend(role.map(|has| Sample::plain(&metrics::POSTGRES_MONITOR_ROLE, has)));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(now: f64, asked: f64, answered: f64) -> Facts {
        Facts {
            version: 170_000,
            version_text: "17.0".into(),
            system_identifier: None,
            started: None,
            in_recovery: false,
            may: Privileges::default(),
            position: None,
            knows_positions: true,
            database: "postgres".into(),
            ahead: now - (asked + answered) / 2.0,
            slack: (answered - asked) / 2.0,
        }
    }

    #[test]
    fn a_clock_that_is_off_makes_nothing_old_or_young() {
        // Half a second to ask is no difference of clocks, nor is what clocks usually differ by.
        for now in [98.5, 100.0, 100.3, 102.4] {
            assert_eq!(facts(now, 100.0, 100.5).clearly_ahead(), 0.0, "{now}");
        }
        assert_eq!(facts(40.0, 99.0, 101.0).clearly_ahead(), -60.0);
        let mut samples = [
            Sample::plain(&metrics::POSTGRES_OLDEST_TRANSACTION_TIMESTAMP, 690.0),
            Sample::plain(&metrics::POSTGRES_BLOCKED_SESSIONS, 3.0),
        ];
        set_clock(&mut samples, &facts(700.0, 100.0, 100.0));
        assert_eq!(samples.each_ref().map(|sample| sample.value), [90.0, 3.0]);
    }
}
