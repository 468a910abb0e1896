//! Replication as the sending server sees it: each standby, and each slot that a standby should be on.

use tokio_postgres::Row;

use super::{Concern, Facts, Found, Need, Scope, get, text, verdict};
use crate::error::Result;
use crate::metrics;
use crate::postgres::sql::Sql;

pub(super) const CONCERN: Concern =
    Concern { name: "replication", need: Need::Statistics, scope: Scope::Server, sql, pages: None, read };

/// Up to where this server has WAL to send, where it says so.
pub(super) fn written(facts: &Facts) -> &'static str {
    if facts.knows_positions { end_of_wal(facts.in_recovery) } else { "NULL::pg_lsn" }
}

/// Up to where a server has WAL to send: a standby may feed others.
pub(super) fn end_of_wal(in_recovery: bool) -> &'static str {
    if in_recovery {
        // What comes from an archive is replayed and was never received; NULL counts for nothing.
        "greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"
    } else {
        "pg_current_wal_lsn()"
    }
}

/// A standby is called by its slot, and where it has none by its application name: two that share
/// one (`walreceiver`) are told apart by their address. A physical slot without a reader is a standby
/// that is away, but on a server in recovery, where cluster managers keep slots for all members; a temporary one is that of a base backup, which comes and goes. A connection that has
/// not asked for WAL yet (`startup`) is nobody: a standby that connects again would be two, itself by the
/// name of its application and its slot without a reader.
fn sql(facts: &Facts) -> Option<Sql> {
    let sql = Sql::template(
        "SELECT coalesce(s.slot_name::text, r.application_name) AS standby,
                CASE WHEN r.pid IS NULL THEN '' ELSE coalesce(host(r.client_addr), 'local') END AS client,
                r.pid IS NOT NULL AS connected, r.state, s.slot_name IS NOT NULL AS has_slot,
                extract(epoch FROM r.backend_start)::float8 AS since,
                CASE WHEN r.pid IS NULL THEN pg_wal_lsn_diff(s.restart_lsn, '0/0')::float8 END AS kept,
                coalesce(s.slot_type, 'physical') = 'physical' AS is_standby,
                r.pid IS NOT NULL OR s.restart_lsn IS NOT NULL AS was_used,
                pg_wal_lsn_diff({now}, '0/0')::float8 AS position,
                pg_wal_lsn_diff(r.replay_lsn, '0/0')::float8 AS replayed,
                pg_wal_lsn_diff({now}, r.write_lsn)::float8 AS write_bytes,
                pg_wal_lsn_diff({now}, r.flush_lsn)::float8 AS flush_bytes,
                pg_wal_lsn_diff({now}, r.replay_lsn)::float8 AS replay_bytes,
                extract(epoch FROM r.write_lag)::float8 AS write_seconds,
                extract(epoch FROM r.flush_lag)::float8 AS flush_seconds,
                extract(epoch FROM r.replay_lag)::float8 AS replay_seconds
           FROM pg_stat_replication r
           FULL JOIN pg_replication_slots s ON s.active_pid = r.pid
          WHERE NOT coalesce(s.temporary, false)
            AND (r.pid IS NOT NULL OR (s.slot_type = 'physical' AND NOT s.active AND NOT {in_recovery}))
            AND NOT (r.state IS NOT DISTINCT FROM 'startup' AND s.slot_name IS NULL)
          ORDER BY 1, 2, r.backend_start",
        &[
            ("now", written(facts).into()),
            ("in_recovery", if facts.in_recovery { "true" } else { "false" }.into()),
        ],
    );
    Some(sql)
}

fn read(facts: &Facts, rows: &[Row], found: &mut Found) -> Result<()> {
    let mut seen: Vec<(String, String)> = Vec::new();
    for row in rows {
        let (standby, address) = (text(row, "standby")?, text(row, "client")?);
        let state: Option<&str> = get(row, "state")?;
        // A base backup comes and goes, and lags behind nothing.
        if state == Some("backup") {
            continue;
        }
        // Two of one name and address are two all the same: the one that connected later is `10.0.0.2#2`.
        let pair = (standby, address);
        let number = 1 + seen.iter().filter(|known| **known == pair).count();
        let client = if number > 1 { format!("{}#{number}", pair.1) } else { pair.1.clone() };
        seen.push(pair.clone());
        let standby = pair.0;
        let labels = [&*standby, &*client];
        if let Some(state) = state {
            found.samples.extend(metrics::states(&metrics::POSTGRES_STANDBY_STREAM_STATE, &labels, state));
        }
        let bytes = |column: &str| Ok::<_, crate::error::Error>(get(row, column)?.map(|n: f64| n.max(0.0)));
        found.add(&metrics::POSTGRES_STANDBY_WRITE_LAG_BYTES, labels, bytes("write_bytes")?);
        found.add(&metrics::POSTGRES_STANDBY_FLUSH_LAG_BYTES, labels, bytes("flush_bytes")?);
        found.add(&metrics::POSTGRES_STANDBY_REPLAY_LAG_BYTES, labels, bytes("replay_bytes")?);
        found.add(&metrics::POSTGRES_STANDBY_WRITE_LAG, labels, get(row, "write_seconds")?);
        found.add(&metrics::POSTGRES_STANDBY_FLUSH_LAG, labels, get(row, "flush_seconds")?);
        found.add(&metrics::POSTGRES_STANDBY_REPLAY_LAG, labels, get(row, "replay_seconds")?);
        let is = |column: &str| Ok::<_, crate::error::Error>(get(row, column)?.unwrap_or(false));
        let (connected, replayed): (bool, Option<f64>) = (is("connected")?, get(row, "replayed")?);
        // A base backup reads WAL, and so does `pg_receivewal`: neither replays any.
        let is_reader = connected && replayed.is_none() && !is("has_slot")?;
        // A slot that was never used waits for a standby that is still to be built.
        if is("is_standby")? && is("was_used")? && !is_reader {
            let sender = verdict::Sender {
                connected,
                since: get(row, "since")?.map(|since: f64| since - facts.ahead),
                kept: get(row, "kept")?,
                position: get(row, "position")?,
                replayed,
                moved: None,
                before: None,
            };
            found.senders.push((standby, client, sender));
        }
    }
    Ok(())
}
