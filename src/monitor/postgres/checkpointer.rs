//! Checkpoints. Version 17 moved them from `pg_stat_bgwriter` to a view of their own.

use super::{Concern, Need, Scope, number};
use crate::metrics;

const SINCE_17: &str = "
    SELECT num_timed::float8 AS timed, num_requested::float8 AS requested, write_time / 1000 AS write,
           sync_time / 1000 AS sync, buffers_written::float8 AS buffers
      FROM pg_stat_checkpointer";

const UNTIL_16: &str = "
    SELECT checkpoints_timed::float8 AS timed, checkpoints_req::float8 AS requested,
           checkpoint_write_time / 1000 AS write, checkpoint_sync_time / 1000 AS sync,
           buffers_checkpoint::float8 AS buffers
      FROM pg_stat_bgwriter";

pub(super) const CONCERN: Concern = Concern {
    name: "checkpointer",
    need: Need::Nothing,
    scope: Scope::Server,
    pages: None,
    sql: |facts| Some(if facts.version >= 170_000 { SINCE_17 } else { UNTIL_16 }.into()),
    read: |_, rows, found| {
        for row in rows {
            for cause in ["timed", "requested"] {
                found.add(&metrics::POSTGRES_CHECKPOINTS, [cause], Some(number(row, cause)?));
            }
            found.plain(&metrics::POSTGRES_CHECKPOINT_WRITE, Some(number(row, "write")?));
            found.plain(&metrics::POSTGRES_CHECKPOINT_SYNC, Some(number(row, "sync")?));
            found.plain(&metrics::POSTGRES_CHECKPOINT_BUFFERS, Some(number(row, "buffers")?));
        }
        Ok(())
    },
};
