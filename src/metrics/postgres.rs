//! What a PostgreSQL monitor measures.

super::rows! {
    POSTGRES_SERVER = Info None "opsd_postgres_server" ["version", "system_identifier"]
        "Which server it is; the identifier is the same on a primary and its standbys.";
    POSTGRES_IN_RECOVERY = Gauge None "opsd_postgres_in_recovery" []
        "Whether the server is a standby.";
    POSTGRES_START_TIMESTAMP = Gauge Timestamp "opsd_postgres_start_timestamp_seconds" []
        "When the server was started.";
    POSTGRES_MONITOR_ROLE = Gauge None "opsd_postgres_monitor_role" []
        "Whether opsd's role has the privileges of pg_monitor; without them some pieces are absent.";
    POSTGRES_WAL_POSITION = Gauge Bytes "opsd_postgres_wal_position_bytes" []
        "Where a primary writes its WAL, counted from the beginning of time.";

    POSTGRES_CONNECTIONS = Gauge None "opsd_postgres_connections" ["state"]
        of ["active", "idle", "idle_in_transaction", "idle_in_transaction_aborted", "fastpath", "disabled", "unknown"]
        "Client connections by state; all of them under unknown where the role may not see it.";
    POSTGRES_CONNECTIONS_USABLE = Gauge None "opsd_postgres_connections_usable" []
        "Connections that ordinary roles may have: max_connections less the reserved ones.";
    POSTGRES_CONNECTIONS_USED = Gauge Ratio "opsd_postgres_connections_used_ratio" []
        "Client connections against those that are usable.";

    POSTGRES_OLDEST_TRANSACTION_TIMESTAMP = Gauge Timestamp "opsd_postgres_oldest_transaction_timestamp_seconds" []
        "When the oldest transaction of a client began; absent when there is none.";
    POSTGRES_OLDEST_IDLE_TRANSACTION_TIMESTAMP = Gauge Timestamp "opsd_postgres_oldest_idle_transaction_timestamp_seconds" []
        "Since when the session that is idle in transaction for longest has been so; absent when there is none.";
    POSTGRES_BLOCKED_SESSIONS = Gauge None "opsd_postgres_blocked_sessions" []
        "Sessions that wait for a lock.";
    POSTGRES_LONGEST_WAIT_TIMESTAMP = Gauge Timestamp "opsd_postgres_longest_wait_timestamp_seconds" []
        "Since when the session that waits longest for a lock has waited; absent when there is none, and before version 14.";
    POSTGRES_PREPARED_TRANSACTIONS = Gauge None "opsd_postgres_prepared_transactions" []
        "Prepared transactions (two-phase commit) that nobody has finished.";
    POSTGRES_OLDEST_PREPARED_TIMESTAMP = Gauge Timestamp "opsd_postgres_oldest_prepared_timestamp_seconds" []
        "When the oldest prepared transaction was prepared; absent when there is none.";

    POSTGRES_DATABASE_SIZE = Gauge Bytes "opsd_postgres_database_size_bytes" ["database"]
        "Size on disk; absent of a database that opsd's role may neither enter nor see the figures of.";
    POSTGRES_DATABASE_COMMITS = Counter None "opsd_postgres_database_commits" ["database"]
        "Transactions committed.";
    POSTGRES_DATABASE_ROLLBACKS = Counter None "opsd_postgres_database_rollbacks" ["database"]
        "Transactions rolled back.";
    POSTGRES_DATABASE_BLOCK_HITS = Counter None "opsd_postgres_database_block_hits" ["database"]
        "Blocks found in the buffer cache.";
    POSTGRES_DATABASE_BLOCK_READS = Counter None "opsd_postgres_database_block_reads" ["database"]
        "Blocks that were not in the buffer cache.";
    POSTGRES_DATABASE_TEMPORARY_BYTES = Counter Bytes "opsd_postgres_database_temporary_bytes" ["database"]
        "Bytes that queries spilled to temporary files.";
    POSTGRES_DATABASE_DEADLOCKS = Counter None "opsd_postgres_database_deadlocks" ["database"]
        "Deadlocks.";
    POSTGRES_DATABASE_CONFLICTS = Counter None "opsd_postgres_database_conflicts" ["database"]
        "Queries that recovery cancelled on a standby.";
    POSTGRES_DATABASE_CHECKSUM_FAILURES = Counter None "opsd_postgres_database_checksum_failures" ["database"]
        "Pages whose checksum was wrong; absent where checksums are off.";

    POSTGRES_WRAPAROUND = Gauge Ratio "opsd_postgres_wraparound_ratio" ["database", "kind"]
        "Age of the oldest unfrozen transactions or multixacts, against the age at which the server stops writing.";

    POSTGRES_SLOT = Info None "opsd_postgres_slot" ["slot", "type", "database"]
        "A replication slot.";
    POSTGRES_SLOT_ACTIVE = Gauge None "opsd_postgres_slot_active" ["slot"]
        "Whether somebody reads from the slot.";
    POSTGRES_SLOT_RETAINED = Gauge Bytes "opsd_postgres_slot_retained_bytes" ["slot"]
        "WAL that is kept for the slot; absent for a slot that was never used.";
    POSTGRES_SLOT_SAFE = Gauge Bytes "opsd_postgres_slot_safe_bytes" ["slot"]
        "WAL that may still be written before the slot is in danger; absent without max_slot_wal_keep_size.";
    POSTGRES_SLOT_WAL_STATE = Gauge None "opsd_postgres_slot_wal_state" ["slot", "state"]
        of ["reserved", "extended", "unreserved", "lost"]
        "Whether the WAL that the slot needs is there (wal_status); lost cannot be repaired.";

    POSTGRES_LOGICAL_SLOT_STATE = Gauge None "opsd_postgres_logical_slot_state" ["slot", "database", "state"]
        of ["active", "inactive"]
        "Whether somebody reads from a logical slot; without a reader it keeps WAL and old rows.";
    POSTGRES_SUBSCRIPTION_STATE = Gauge None "opsd_postgres_subscription_state" ["database", "subscription", "state"]
        of ["running", "not_running", "disabled"]
        "On a subscriber: whether a subscription is on, and its worker there.";
    POSTGRES_SUBSCRIPTION_ERRORS = Counter None "opsd_postgres_subscription_errors" ["database", "subscription"]
        "On a subscriber: changes that could not be applied and tables that could not be copied; absent before version 15.";
    POSTGRES_SUBSCRIPTION_MESSAGE_TIMESTAMP = Gauge Timestamp "opsd_postgres_subscription_message_timestamp_seconds" ["database", "subscription"]
        "On a subscriber: when the publisher was last heard; absent without a worker.";

    POSTGRES_STANDBY_STREAM_STATE = Gauge None "opsd_postgres_standby_stream_state" ["standby", "client", "state"]
        of ["startup", "catchup", "streaming", "stopping"]
        "On the sending server: what the connection of a standby is doing.";
    POSTGRES_STANDBY_WRITE_LAG_BYTES = Gauge Bytes "opsd_postgres_standby_write_lag_bytes" ["standby", "client"]
        "On the sending server: WAL that the standby has not written.";
    POSTGRES_STANDBY_FLUSH_LAG_BYTES = Gauge Bytes "opsd_postgres_standby_flush_lag_bytes" ["standby", "client"]
        "On the sending server: WAL that the standby has not flushed.";
    POSTGRES_STANDBY_REPLAY_LAG_BYTES = Gauge Bytes "opsd_postgres_standby_replay_lag_bytes" ["standby", "client"]
        "On the sending server: WAL that the standby has not replayed.";
    POSTGRES_STANDBY_WRITE_LAG = Gauge Seconds "opsd_postgres_standby_write_lag_seconds" ["standby", "client"]
        "On the sending server: time until recent WAL was written; absent on an idle server.";
    POSTGRES_STANDBY_FLUSH_LAG = Gauge Seconds "opsd_postgres_standby_flush_lag_seconds" ["standby", "client"]
        "On the sending server: time until recent WAL was flushed; absent on an idle server.";
    POSTGRES_STANDBY_REPLAY_LAG = Gauge Seconds "opsd_postgres_standby_replay_lag_seconds" ["standby", "client"]
        "On the sending server: time until recent WAL was replayed; absent on an idle server, small while replay is paused.";

    POSTGRES_RECEIVER_UP = Gauge None "opsd_postgres_receiver_up" []
        "On a standby: whether its receiver is there and streams.";
    POSTGRES_RECEIVER_MESSAGE_TIMESTAMP = Gauge Timestamp "opsd_postgres_receiver_message_timestamp_seconds" []
        "On a standby: when the sending server was last heard.";
    POSTGRES_RECEIVED_POSITION = Gauge Bytes "opsd_postgres_received_position_bytes" []
        "On a standby: up to where WAL was received.";
    POSTGRES_REPLAYED_POSITION = Gauge Bytes "opsd_postgres_replayed_position_bytes" []
        "On a standby: up to where WAL was replayed.";
    POSTGRES_REPLAYED_TRANSACTION_TIMESTAMP = Gauge Timestamp "opsd_postgres_replayed_transaction_timestamp_seconds" []
        "On a standby: when the last replayed transaction was committed; old on an idle primary.";
    POSTGRES_REPLAY_PAUSED = Gauge None "opsd_postgres_replay_paused" []
        "On a standby: whether replay is paused.";
    POSTGRES_REPLAY_DELAY = Gauge Seconds "opsd_postgres_replay_delay_seconds" []
        "On a standby: how late it replays on purpose (recovery_min_apply_delay).";
    POSTGRES_REPLICATION_STATE = Gauge None "opsd_postgres_replication_state" ["standby", "client", "state"]
        of ["caught_up", "replaying", "link_cut", "source_idle", "paused", "delayed", "unknown"]
        "The verdict on a pair of servers, from the pieces of both ends as far as they are watched; delayed: the standby is late on purpose.";

    POSTGRES_ARCHIVER_STATE = Gauge None "opsd_postgres_archiver_state" ["state"]
        of ["off", "working", "failing"]
        "Whether this server archives its WAL: off, working, or failing (nothing was archived since the last failure).";
    POSTGRES_ARCHIVED_SEGMENTS = Counter None "opsd_postgres_archived_segments" []
        "WAL segments archived.";
    POSTGRES_ARCHIVE_FAILURES = Counter None "opsd_postgres_archive_failures" []
        "Attempts to archive a WAL segment that failed.";
    POSTGRES_ARCHIVED_TIMESTAMP = Gauge Timestamp "opsd_postgres_archived_timestamp_seconds" []
        "When a segment was last archived; absent when none ever was.";
    POSTGRES_ARCHIVE_FAILED_TIMESTAMP = Gauge Timestamp "opsd_postgres_archive_failed_timestamp_seconds" []
        "When archiving last failed; absent when it never did.";
    POSTGRES_ARCHIVE_BACKLOG = Gauge None "opsd_postgres_archive_backlog" []
        "WAL segments that wait to be archived.";

    POSTGRES_CHECKPOINTS = Counter None "opsd_postgres_checkpoints" ["cause"]
        "Checkpoints, by what caused them: timed or requested.";
    POSTGRES_CHECKPOINT_WRITE = Counter Seconds "opsd_postgres_checkpoint_write_seconds" []
        "Time that checkpoints spent writing.";
    POSTGRES_CHECKPOINT_SYNC = Counter Seconds "opsd_postgres_checkpoint_sync_seconds" []
        "Time that checkpoints spent syncing.";
    POSTGRES_CHECKPOINT_BUFFERS = Counter None "opsd_postgres_checkpoint_buffers" []
        "Buffers written by checkpoints.";

    POSTGRES_DEAD_ROWS = Gauge None "opsd_postgres_dead_rows" ["database"]
        "Dead rows in all tables of a database.";
    POSTGRES_TABLE_DEAD_ROWS = Gauge None "opsd_postgres_table_dead_rows" ["database", "schema", "table"]
        "Dead rows of the tables with the greatest vacuum debt.";
    POSTGRES_TABLE_VACUUM_DEBT = Gauge Ratio "opsd_postgres_table_vacuum_debt_ratio" ["database", "schema", "table"]
        "Dead rows against the number at which autovacuum comes, of the tables with the greatest ratio.";
    POSTGRES_TABLE_VACUUMED_TIMESTAMP = Gauge Timestamp "opsd_postgres_table_vacuumed_timestamp_seconds" ["database", "schema", "table"]
        "When such a table was last vacuumed, by hand or not; absent when it never was.";

    POSTGRES_SEQUENCE_USED = Gauge Ratio "opsd_postgres_sequence_used_ratio" ["database", "schema", "sequence"]
        "How much of a sequence, or of the column that it feeds, is used up; the fullest ones.";
    POSTGRES_SEQUENCES_UNREADABLE = Gauge None "opsd_postgres_sequences_unreadable" ["database"]
        "Sequences that opsd's role may not read; pg_monitor does not include them.";
}
