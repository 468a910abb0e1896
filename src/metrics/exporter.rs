//! What opsd says about its own watching.

super::rows! {
    BUILD = Info None "opsd_build" ["version"]
        "Which opsd this is.";
    START_TIMESTAMP = Gauge Timestamp "opsd_start_timestamp_seconds" []
        "When the exporter was started.";
    EXPORTER_SCRAPES = Counter None "opsd_exporter_scrapes" []
        "Times that /metrics was answered.";
    EXPORTER_CONNECTIONS_REFUSED = Counter None "opsd_exporter_connections_refused" []
        "Connections that were closed because too many were open.";
    MONITOR_UP = Gauge None "opsd_monitor_up" []
        "Whether the last collection reached its target; absent until the first one has ended.";
    MONITOR = Info None "opsd_monitor" ["kind"]
        "What the monitor watches.";
    MONITOR_COLLECTED_TIMESTAMP = Gauge Timestamp "opsd_monitor_collected_timestamp_seconds" []
        "When the figures that are served were collected.";
    MONITOR_ATTEMPTED_TIMESTAMP = Gauge Timestamp "opsd_monitor_attempted_timestamp_seconds" []
        "When the last collection ended, well or not.";
    MONITOR_INTERVAL = Gauge Seconds "opsd_monitor_interval_seconds" []
        "How often the monitor collects; not in a textfile, which cron decides about.";
    MONITOR_COLLECT_DURATION = Gauge Seconds "opsd_monitor_collect_duration_seconds" []
        "How long the last collection took.";
    MONITOR_COLLECTIONS = Counter None "opsd_monitor_collections" []
        "Collections that have ended, well or not.";
    MONITOR_FAILURES = Counter None "opsd_monitor_failures" ["reason"]
        "Collections that failed, by reason.";
    MONITOR_CONCERN_UP = Gauge None "opsd_monitor_concern_up" ["concern"]
        "Whether the last collection could read this piece; one that fails takes only itself down.";
    MONITOR_CONCERN_FAILURE = Gauge None "opsd_monitor_concern_failure" ["concern", "reason"]
        "1 for the reason why a piece could not be read; absent for pieces that could.";
    MONITOR_SERIES = Gauge None "opsd_monitor_series" []
        "Series in the figures that are served.";
    MONITOR_SERIES_LIMIT = Gauge None "opsd_monitor_series_limit" []
        "Series that the monitor may have.";
    MONITOR_SERIES_DROPPED = Counter None "opsd_monitor_series_dropped" []
        "Series that were left out: above the limit, doubled or malformed.";
}
