//! Whether WAL gets into the archive.

use super::{Concern, Need, Scope, get, number};
use crate::metrics;
use crate::postgres::sql::Sql;

/// On a standby, `on` means that it does not archive, and `always` that it does.
const ENABLED: &str = "current_setting('archive_mode') IN \
     ('always', CASE WHEN pg_is_in_recovery() THEN 'always' ELSE 'on' END)";

pub(super) const CONCERN: Concern = Concern {
    name: "archiver",
    need: Need::Nothing,
    scope: Scope::Server,
    pages: None,
    sql: |_| {
        let sql = Sql::template(
            "SELECT {ENABLED} AS enabled, archived_count::float8 AS archived, failed_count::float8 AS failed,
                    extract(epoch FROM last_archived_time)::float8 AS last_archived,
                    extract(epoch FROM last_failed_time)::float8 AS last_failed
               FROM pg_stat_archiver",
            &[("ENABLED", ENABLED.into())],
        );
        Some(sql)
    },
    read: |_, rows, found| {
        for row in rows {
            let enabled = get(row, "enabled")?.unwrap_or(false);
            let (archived, failed): (Option<f64>, Option<f64>) =
                (get(row, "last_archived")?, get(row, "last_failed")?);
            // A failure that a success followed is over; one that follows no success is not.
            let state = match (enabled, failed > archived) {
                (false, _) => "off",
                (true, false) => "working",
                (true, true) => "failing",
            };
            found.samples.extend(metrics::states(&metrics::POSTGRES_ARCHIVER_STATE, &[], state));
            if enabled {
                found.plain(&metrics::POSTGRES_ARCHIVED_SEGMENTS, Some(number(row, "archived")?));
                found.plain(&metrics::POSTGRES_ARCHIVE_FAILURES, Some(number(row, "failed")?));
                found.plain(&metrics::POSTGRES_ARCHIVED_TIMESTAMP, archived);
                found.plain(&metrics::POSTGRES_ARCHIVE_FAILED_TIMESTAMP, failed);
            }
        }
        Ok(())
    },
};

pub(super) const BACKLOG: Concern = Concern {
    name: "archive_backlog",
    need: Need::ArchiveStatus,
    scope: Scope::Server,
    pages: None,
    sql: |_| {
        let sql = Sql::template(
            "SELECT CASE WHEN {ENABLED}
                         THEN (SELECT count(*)::float8 FROM pg_ls_archive_statusdir()
                                WHERE name LIKE '%.ready') END AS backlog",
            &[("ENABLED", ENABLED.into())],
        );
        Some(sql)
    },
    read: |_, rows, found| {
        for row in rows {
            found.plain(&metrics::POSTGRES_ARCHIVE_BACKLOG, get(row, "backlog")?);
        }
        Ok(())
    },
};
