//! Replication as a standby sees it: its receiver, and how far replay has come.

use super::{Concern, Need, Scope, get, text, truth, verdict};
use crate::metrics;

/// Seconds beyond its delay after which a standby is no longer late on purpose.
const SLACK: f64 = 60.0;

/// A receiver gives up after `wal_receiver_timeout`; where that is off, its default.
const SQL: &str = "
    SELECT coalesce(r.slot_name::text, nullif(current_setting('primary_slot_name'), ''),
                    substring(r.conninfo FROM 'application_name=(\\S+)'),
                    -- While it is not connected there is no row of it.
                    (SELECT substring(setting FROM 'application_name=''?([^'' ]+)')
                       FROM pg_settings WHERE name = 'primary_conninfo'),
                    nullif(current_setting('cluster_name'), ''), 'walreceiver') AS standby,
           coalesce(r.status = 'streaming', false) AS streaming,
           extract(epoch FROM r.last_msg_receipt_time)::float8 AS heard,
           extract(epoch FROM clock_timestamp() - r.last_msg_receipt_time)::float8 AS silence,
           (SELECT coalesce(nullif(setting::float8, 0), 60000) / 1000
              FROM pg_settings WHERE name = 'wal_receiver_timeout') AS patience,
           (SELECT extract(epoch FROM a.backend_start)::float8 FROM pg_stat_activity a WHERE a.pid = r.pid) AS since,
           (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'recovery_min_apply_delay') AS delay,
           (SELECT setting <> '' FROM pg_settings WHERE name = 'primary_conninfo') AS configured,
           pg_wal_lsn_diff(r.latest_end_lsn, '0/0')::float8 AS latest_end,
           pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::float8 AS received,
           pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::float8 AS replayed,
           extract(epoch FROM pg_last_xact_replay_timestamp())::float8 AS committed,
           extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS age,
           pg_is_wal_replay_paused() AS paused
      FROM (SELECT) AS always LEFT JOIN pg_stat_wal_receiver r ON true";

pub(super) const CONCERN: Concern = Concern {
    name: "standby",
    need: Need::Statistics,
    scope: Scope::Server,
    pages: None,
    sql: |facts| facts.in_recovery.then_some(SQL.into()),
    read: |facts, rows, found| {
        for row in rows {
            let silence: Option<f64> = get(row, "silence")?;
            let patience: f64 = get(row, "patience")?.unwrap_or(60.0);
            let streaming = get(row, "streaming")?.unwrap_or(false);
            let connected = streaming && silence.is_some_and(|silence| silence <= patience);
            let (received, replayed): (Option<f64>, Option<f64>) =
                (get(row, "received")?, get(row, "replayed")?);
            let paused = get(row, "paused")?.unwrap_or(false);
            found.plain(&metrics::POSTGRES_RECEIVER_UP, Some(truth(connected)));
            found.plain(&metrics::POSTGRES_RECEIVER_MESSAGE_TIMESTAMP, get(row, "heard")?);
            found.plain(&metrics::POSTGRES_RECEIVED_POSITION, received);
            found.plain(&metrics::POSTGRES_REPLAYED_POSITION, replayed);
            found.plain(&metrics::POSTGRES_REPLAYED_TRANSACTION_TIMESTAMP, get(row, "committed")?);
            found.plain(&metrics::POSTGRES_REPLAY_PAUSED, Some(truth(paused)));
            let delay: Option<f64> = get(row, "delay")?;
            found.plain(&metrics::POSTGRES_REPLAY_DELAY, delay);
            let latest_end: Option<f64> = get(row, "latest_end")?;
            let receiver = verdict::Receiver {
                configured: get(row, "configured")?,
                connected,
                end: received.into_iter().chain(latest_end).reduce(f64::max),
                replayed,
                paused,
                moved: None,
                since: get(row, "since")?.map(|since: f64| since - facts.ahead),
                delayed: is_on_purpose(delay, get(row, "age")?),
                before: None,
                replays: false,
            };
            found.receiver = Some((text(row, "standby")?, receiver));
        }
        Ok(())
    },
};

/// Whether a standby that has rows left to replay waits for its `recovery_min_apply_delay`: then the last transaction
/// that it replayed is no older than that.
fn is_on_purpose(delay: Option<f64>, age: Option<f64>) -> bool {
    delay.is_some_and(|delay| delay > 0.0 && age.is_none_or(|age| age <= delay + SLACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_late_on_purpose_as_far_as_the_purpose_goes() {
        assert!(is_on_purpose(Some(5.0), Some(4.0)) && is_on_purpose(Some(5.0), None));
        assert!(is_on_purpose(Some(5.0), Some(5.0 + SLACK)));
        assert!(!is_on_purpose(Some(5.0), Some(3_600.0)), "hours behind a delay of seconds");
        assert!(!is_on_purpose(Some(0.0), Some(0.0)) && !is_on_purpose(None, Some(0.0)));
    }
}
