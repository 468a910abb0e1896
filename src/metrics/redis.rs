//! What a Redis monitor measures.

super::rows! {
    REDIS_SERVER = Info None "opsd_redis_server" ["software", "version", "mode", "address"]
        "Which server it is (redis or valkey), and how it was reached: `host:port` or a socket.";
    REDIS_START_TIMESTAMP = Gauge Timestamp "opsd_redis_start_timestamp_seconds" []
        "When the server was started.";
    REDIS_LOADING = Gauge None "opsd_redis_loading" []
        "Whether the server is still loading its data, and answers nothing else.";
    REDIS_ROLE_STATE = Gauge None "opsd_redis_role_state" ["state"]
        of ["primary", "replica"]
        "What the server is: primary or replica.";

    REDIS_MEMORY_USED = Gauge Bytes "opsd_redis_memory_used_bytes" []
        "Memory that the server has allocated.";
    REDIS_MEMORY_PEAK = Gauge Bytes "opsd_redis_memory_peak_bytes" []
        "The most that it ever had allocated.";
    REDIS_MEMORY_RESIDENT = Gauge Bytes "opsd_redis_memory_resident_bytes" []
        "Memory as the operating system counts it.";
    REDIS_MEMORY_FRAGMENTATION = Gauge Ratio "opsd_redis_memory_fragmentation_ratio" []
        "Resident against allocated memory; large on nearly empty servers, below 1 where memory was swapped out.";
    REDIS_MEMORY_LIMIT = Gauge Bytes "opsd_redis_memory_limit_bytes" []
        "maxmemory; absent when there is no limit.";
    REDIS_MEMORY_USED_RATIO = Gauge Ratio "opsd_redis_memory_used_ratio" []
        "Memory that counts against maxmemory, by maxmemory; absent when there is no limit.";
    REDIS_MEMORY_EXHAUSTION = Gauge Ratio "opsd_redis_memory_exhaustion_ratio" []
        "The same where the policy is noeviction: at 1, writes fail. Absent with other policies.";
    REDIS_EVICTION_POLICY = Info None "opsd_redis_eviction_policy" ["policy"]
        "What the server removes when it is full (maxmemory-policy).";

    REDIS_KEYSPACE_HITS = Counter None "opsd_redis_keyspace_hits" []
        "Reads that found their key.";
    REDIS_KEYSPACE_MISSES = Counter None "opsd_redis_keyspace_misses" []
        "Reads that did not.";
    REDIS_CACHE = Gauge None "opsd_redis_cache" []
        "Whether the server is judged as a cache: its policy evicts, or the configuration says `cache = true`.";
    REDIS_HIT_RATIO = Gauge Ratio "opsd_redis_hit_ratio" []
        "Hits against reads since the collection before; absent below 100 reads, which say nothing.";
    REDIS_EVICTED_KEYS = Counter None "opsd_redis_evicted_keys" []
        "Keys that were removed because memory was full.";
    REDIS_EXPIRED_KEYS = Counter None "opsd_redis_expired_keys" []
        "Keys whose time was over.";
    REDIS_DATABASE_KEYS = Gauge None "opsd_redis_database_keys" ["database"]
        "Keys in a database; a database without keys is absent.";
    REDIS_DATABASE_EXPIRING_KEYS = Gauge None "opsd_redis_database_expiring_keys" ["database"]
        "Keys in a database that expire some day.";

    REDIS_CLIENTS = Gauge None "opsd_redis_clients" []
        "Client connections, without those of replicas.";
    REDIS_CLIENTS_LIMIT = Gauge None "opsd_redis_clients_limit" []
        "maxclients; absent on versions that do not tell.";
    REDIS_CLIENTS_USED = Gauge Ratio "opsd_redis_clients_used_ratio" []
        "Client connections against maxclients.";
    REDIS_CLIENTS_BLOCKED = Gauge None "opsd_redis_clients_blocked" []
        "Clients that wait in a blocking command, as workers do.";
    REDIS_CONNECTIONS = Counter None "opsd_redis_connections" []
        "Connections that were accepted.";
    REDIS_CONNECTIONS_REJECTED = Counter None "opsd_redis_connections_rejected" []
        "Connections that were refused because maxclients was reached.";
    REDIS_COMMANDS = Counter None "opsd_redis_commands" []
        "Commands that were processed.";
    REDIS_ERROR_REPLIES = Counter None "opsd_redis_error_replies" []
        "Commands that were answered with an error.";
    REDIS_RECEIVED = Counter Bytes "opsd_redis_received_bytes" []
        "Bytes read from the network.";
    REDIS_SENT = Counter Bytes "opsd_redis_sent_bytes" []
        "Bytes written to the network.";
    REDIS_SLOW_COMMANDS = Counter None "opsd_redis_slow_commands" []
        "Commands that entered the slow log; absent while it is empty.";
    REDIS_SLOWLOG_LENGTH = Gauge None "opsd_redis_slowlog_length" []
        "Entries that the slow log holds now; it has a bound.";
    REDIS_SLOW_TIMESTAMP = Gauge Timestamp "opsd_redis_slow_command_timestamp_seconds" []
        "When the last command entered the slow log.";

    REDIS_RDB_SAVED_TIMESTAMP = Gauge Timestamp "opsd_redis_rdb_saved_timestamp_seconds" []
        "When the last snapshot was written well, or the server started.";
    REDIS_RDB_OK = Gauge None "opsd_redis_rdb_last_save_ok" []
        "Whether the last background save worked; where it did not, the server may refuse writes.";
    REDIS_RDB_CHANGES = Gauge None "opsd_redis_rdb_unsaved_changes" []
        "Changes since the last snapshot.";
    REDIS_RDB_SAVING = Gauge None "opsd_redis_rdb_saving" []
        "Whether a background save runs.";
    REDIS_RDB_DURATION = Gauge Seconds "opsd_redis_rdb_last_save_duration_seconds" []
        "How long the last background save took; absent before the first.";
    REDIS_FORK_DURATION = Gauge Seconds "opsd_redis_last_fork_duration_seconds" []
        "How long the last fork stopped the server; absent before the first.";
    REDIS_AOF_ENABLED = Gauge None "opsd_redis_aof_enabled" []
        "Whether the append-only file is on.";
    REDIS_AOF_WRITE_OK = Gauge None "opsd_redis_aof_last_write_ok" []
        "Whether the last write to the append-only file worked; absent where it is off.";
    REDIS_AOF_REWRITE_OK = Gauge None "opsd_redis_aof_last_rewrite_ok" []
        "Whether its last rewrite worked; absent where it is off.";
    REDIS_AOF_SIZE = Gauge Bytes "opsd_redis_aof_size_bytes" []
        "Size of the append-only file; absent where it is off.";

    REDIS_REPLICAS = Gauge None "opsd_redis_replicas" []
        "Replicas that are connected to this server.";
    REDIS_REPLICATION_OFFSET = Gauge Bytes "opsd_redis_replication_offset_bytes" []
        "On a primary, what it has sent; on a replica, what it has received.";
    REDIS_REPLICA_LAG = Gauge Bytes "opsd_redis_replica_lag_bytes" ["replica"]
        "On the sending server: bytes that a replica has not confirmed.";
    REDIS_REPLICA_SEEN_TIMESTAMP = Gauge Timestamp "opsd_redis_replica_seen_timestamp_seconds" ["replica"]
        "On the sending server: when a replica last confirmed something.";
    REDIS_REPLICA_ONLINE = Gauge None "opsd_redis_replica_online" ["replica"]
        "On the sending server: whether a replica is past its first copy.";
    REDIS_LINK_UP = Gauge None "opsd_redis_primary_link_up" []
        "On a replica: whether it is connected to its primary.";
    REDIS_LINK_DOWN_TIMESTAMP = Gauge Timestamp "opsd_redis_primary_link_down_since_timestamp_seconds" []
        "On a replica: since when it is not; absent while it is, or if it never was.";
    REDIS_LINK_HEARD_TIMESTAMP = Gauge Timestamp "opsd_redis_primary_heard_timestamp_seconds" []
        "On a replica: when it last heard from its primary; absent while the link is down.";
    REDIS_SYNCING = Gauge None "opsd_redis_sync_in_progress" []
        "On a replica: whether it is copying all of its primary's data.";
}
