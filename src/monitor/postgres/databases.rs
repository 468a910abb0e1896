//! Counters of each database, and its size.

use super::{Concern, Need, Scope, get, text};
use crate::error::Error;
use crate::metrics;
use crate::postgres::sql::Sql;

/// The databases that `["*"]` means: templates aside, what can be connected to, but for those that hosters keep for
/// themselves, and let nobody into.
pub(super) const NAMES: &str = "SELECT datname::text AS name FROM pg_database
                      WHERE datallowconn AND NOT datistemplate
                        AND datname NOT IN ('rdsadmin', 'azure_maintenance', 'azure_sys', 'cloudsqladmin',
                                            'alloydbadmin', 'alloydbmetadata')
                      ORDER BY datname";

/// Instead of a database's name.
const SHARED: &str = "(shared)";

pub(super) const CONCERN: Concern = Concern {
    name: "databases",
    need: Need::Nothing,
    scope: Scope::Server,
    pages: None,
    sql: |_| {
        let sql = "SELECT coalesce(d.datname, '')::text AS name, s.xact_commit::float8 AS commits,
                          s.xact_rollback::float8 AS rollbacks, s.blks_hit::float8 AS hits,
                          s.blks_read::float8 AS reads, s.temp_bytes::float8 AS temporary,
                          s.deadlocks::float8 AS deadlocks, s.conflicts::float8 AS conflicts,
                          s.checksum_failures::float8 AS checksums
                     FROM pg_stat_database s LEFT JOIN pg_database d ON d.oid = s.datid
                    WHERE d.datistemplate IS NOT TRUE ORDER BY d.datname";
        Some(sql.into())
    },
    read: |_, rows, found| {
        for row in rows {
            let checksums = get(row, "checksums")?;
            let name = text(row, "name")?;
            // The catalogs that all databases share: nobody commits there, and a page may be damaged.
            if name.is_empty() {
                found.add(&metrics::POSTGRES_DATABASE_CHECKSUM_FAILURES, [SHARED], checksums);
                continue;
            }
            let name = [&*name];
            found.add(&metrics::POSTGRES_DATABASE_COMMITS, name, get(row, "commits")?);
            found.add(&metrics::POSTGRES_DATABASE_ROLLBACKS, name, get(row, "rollbacks")?);
            found.add(&metrics::POSTGRES_DATABASE_BLOCK_HITS, name, get(row, "hits")?);
            found.add(&metrics::POSTGRES_DATABASE_BLOCK_READS, name, get(row, "reads")?);
            found.add(&metrics::POSTGRES_DATABASE_TEMPORARY_BYTES, name, get(row, "temporary")?);
            found.add(&metrics::POSTGRES_DATABASE_DEADLOCKS, name, get(row, "deadlocks")?);
            found.add(&metrics::POSTGRES_DATABASE_CONFLICTS, name, get(row, "conflicts")?);
            found.add(&metrics::POSTGRES_DATABASE_CHECKSUM_FAILURES, name, checksums);
        }
        Ok(())
    },
};

/// A piece of its own: it reads directories, and takes as long as there are files. A database that is
/// dropped meanwhile has no size, nor has one that the role may neither enter nor see the figures of.
pub(super) const SIZE: Concern = Concern {
    name: "database_size",
    need: Need::Nothing,
    scope: Scope::Server,
    pages: None,
    sql: |facts| {
        let all = if facts.may.statistics { "true" } else { "false" };
        let sql = Sql::template(
            "SELECT datname::text AS name, may,
                    CASE WHEN may THEN pg_database_size(oid)::float8 END AS size
               FROM (SELECT oid, datname, {all} OR has_database_privilege(oid, 'CONNECT') AS may
                       FROM pg_database WHERE NOT datistemplate OFFSET 0) AS d ORDER BY datname",
            &[("all", all.into())],
        );
        Some(sql)
    },
    read: |_, rows, found| {
        let mut forbidden = 0;
        for row in rows {
            forbidden += usize::from(get(row, "may")? == Some(false));
            found.add(&metrics::POSTGRES_DATABASE_SIZE, [&*text(row, "name")?], get(row, "size")?);
        }
        if forbidden > 0 && forbidden == rows.len() {
            let error = Error::new("permission denied for all databases (SQLSTATE 42501)");
            return Err(error.with_hint("GRANT pg_read_all_stats, or CONNECT ON DATABASE, to opsd's role"));
        }
        Ok(())
    },
};
