//! How much of a server there is to use: room in its lock table, and connections that our role may open; and how
//! large a server of our own is made.
//!
//! All sessions of a server share one lock table, and who finds it full fails: a production server's application
//! as well as a backup. Its size is `max_locks_per_transaction × (max_connections + max_prepared_transactions)`;
//! there is somewhat more, which belongs to nobody.

use tokio_postgres::Client;

use super::connect::error;
use super::sql::Sql;
use crate::error::{Context, Result};

/// The part of a server's lock table (one lock in so many) that may be taken beyond what a plain pg_dump takes.
const EXTRA_LOCKS: u64 = 4;
/// So many tenths of what is free may be taken together.
const FREE_TENTHS: u64 = 8;
/// Connections of the server that are left for others.
const SPARE_CONNECTIONS: u64 = 5;

/// What bounds how many more connections our role may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bound {
    /// `max_connections`, less what is reserved for others.
    #[default]
    Server,
    /// The role's own limit.
    Role,
    /// The database's.
    Database,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Bound::Server => "max_connections of the server",
            Bound::Role => "CONNECTION LIMIT of the role",
            Bound::Database => "CONNECTION LIMIT of the database",
        })
    }
}

/// The server's figures that bound a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// Locks that the server's lock table is made for.
    pub locks: u64,
    /// The same, less those that are held now.
    pub free_locks: u64,
    /// Connections that our role may open beside those it has, to the session's database; a few of the
    /// server's are left for others.
    pub free_connections: u64,
    /// What bounds them.
    pub bound: Bound,
}

impl Capacity {
    /// Whether `extra` locks may be taken beyond those of one plain pg_dump, so that there are `all` together: they
    /// are a quarter of the lock table at the most, and no more than four fifths of it are in use then.
    pub fn has_room(&self, extra: u64, all: u64) -> bool {
        extra.saturating_mul(EXTRA_LOCKS) <= self.locks
            && all.saturating_mul(10) <= self.free_locks.saturating_mul(FREE_TENTHS)
    }
}

/// Room in the lock table, and connections.
///
/// A superuser is held to the server's own number alone. Others find some of it reserved, and may have a number
/// of their own, or of the database's; what counts is the role that logs in, whatever role its sessions go on as.
///
/// A role sees others' sessions as rows that tell whose they are and no more, and on some hosts not at all. But
/// everybody may see how many there are (`numbackends`), workers of the server's own among them, which take nobody's
/// connection: those that are seen to be such are not counted.
pub async fn capacity(client: &Client, major: u32) -> Result<Capacity> {
    let reserved = match major {
        ..16 => "0",
        _ => {
            "CASE WHEN pg_has_role('pg_use_reserved_connections', 'USAGE') THEN 0
                  ELSE current_setting('reserved_connections')::int8 END"
        }
    };
    let sql = Sql::template(
        "WITH me AS (SELECT oid, rolsuper, rolconnlimit::int8 FROM pg_roles WHERE rolname = session_user),
              here AS (SELECT oid, datconnlimit::int8 FROM pg_database WHERE datname = current_database()),
              size AS (SELECT current_setting('max_locks_per_transaction')::int8
                              * (current_setting('max_connections')::int8
                                 + current_setting('max_prepared_transactions')::int8) AS locks),
              seen AS (SELECT datid, usesysid,
                              usesysid IS NULL OR coalesce(backend_type, 'client backend') <> 'client backend' AS is_worker
                         FROM pg_stat_activity WHERE datid IS NOT NULL),
              counted AS (SELECT d.datid, greatest(d.numbackends - (SELECT count(*) FROM seen s WHERE s.datid = d.datid AND is_worker),
                                                   (SELECT count(*) FROM seen s WHERE s.datid = d.datid AND NOT is_worker)) AS sessions
                            FROM pg_stat_database d WHERE d.datid <> 0),
              sessions AS (SELECT coalesce(sum(sessions), 0)::int8 AS all,
                                  (SELECT count(*) FROM seen WHERE usesysid = (SELECT oid FROM me) AND NOT is_worker) AS mine,
                                  coalesce(sum(sessions) FILTER (WHERE datid = (SELECT oid FROM here)), 0)::int8 AS here
                             FROM counted)
         SELECT size.locks,
                size.locks - (SELECT count(*) FROM pg_locks WHERE NOT fastpath AND mode <> 'SIReadLock'),
                current_setting('max_connections')::int8 - sessions.all - CASE WHEN me.rolsuper THEN 0
                  ELSE current_setting('superuser_reserved_connections')::int8 + {reserved} END,
                CASE WHEN NOT me.rolsuper AND me.rolconnlimit >= 0 THEN me.rolconnlimit - sessions.mine END,
                CASE WHEN NOT me.rolsuper AND here.datconnlimit >= 0 THEN here.datconnlimit - sessions.here END
           FROM size, sessions, me, here",
        &[("reserved", reserved.into())],
    );
    let row = sql.query_one(client).await.map_err(error).context("cannot read the server's limits")?;
    let positive = |n: i64| u64::try_from(n).unwrap_or(0);
    let of_server = positive(row.get(2)).saturating_sub(SPARE_CONNECTIONS);
    let (mut free_connections, mut bound) = (of_server, Bound::Server);
    for (limit, what) in [(row.get::<_, Option<i64>>(3), Bound::Role), (row.get(4), Bound::Database)] {
        if let Some(limit) = limit.map(positive).filter(|limit| *limit < free_connections) {
            (free_connections, bound) = (limit, what);
        }
    }
    Ok(Capacity { locks: positive(row.get(0)), free_locks: positive(row.get(1)), free_connections, bound })
}

/// Connections of a scratch server on which this many restore at a time: each has its own, and one that looks.
pub fn scratch_connections(jobs: usize) -> u64 {
    jobs as u64 * 2 + 20
}

/// Locks for each of its connections: the lock table has room for twice as many objects as there will be, because a
/// dump locks all of them while what restored them may still be there. (How many a transaction that restores may
/// lock is bounded by itself.)
pub fn scratch_locks(objects: u64, connections: u64) -> u64 {
    (objects.saturating_mul(2) / connections.max(1) + 64).clamp(256, 50_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_the_lock_table_is_taken_beyond_a_plain_dump() {
        let idle = Capacity { locks: 6_400, free_locks: 6_400, ..Capacity::default() };
        assert!(idle.has_room(1_600, 3_200) && !idle.has_room(1_601, 3_200));
        // What others hold is not to be had.
        let busy = Capacity { free_locks: 2_000, ..idle };
        assert!(busy.has_room(800, 1_600) && !busy.has_room(801, 1_602));
        assert!(!Capacity { free_locks: 0, ..idle }.has_room(1, 2));
    }

    #[test]
    fn a_scratch_server_holds_every_object_twice() {
        let connections = scratch_connections(2);
        assert!(scratch_locks(30_000, connections) * connections >= 60_000);
        assert_eq!(scratch_locks(0, connections), 256);
        assert_eq!(scratch_locks(u64::MAX, connections), 50_000);
    }
}
