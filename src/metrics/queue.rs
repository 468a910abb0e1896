//! What a queue monitor measures. `opsd_queue_…` is about one queue, `opsd_queues_…` about what a
//! library keeps for all of its queues together.

super::rows! {
    QUEUE_SOURCE = Info None "opsd_queue_source" ["kind", "address"]
        "What keeps the queues, and in which Redis: `host:port` or a socket.";
    QUEUE_WAITING = Gauge None "opsd_queue_waiting" ["queue"]
        "Jobs that wait to be taken, of all priorities; 0 for a configured queue that Redis has no key for. Absent for a group of a stream where Redis does not know (before 7, or after entries were deleted).";
    QUEUE_ACTIVE = Gauge None "opsd_queue_active" ["queue"]
        "Jobs that were taken and are not finished.";
    QUEUE_DELAYED = Gauge None "opsd_queue_delayed" ["queue"]
        "Jobs that wait for their time.";
    QUEUE_OVERDUE_TIMESTAMP = Gauge Timestamp "opsd_queue_overdue_timestamp_seconds" ["queue"]
        "When the first job whose time has come should have become ready; absent while none is overdue.";
    QUEUE_KEPT_FAILED = Gauge None "opsd_queue_kept_failed" ["queue"]
        "Failed jobs that are kept for somebody to look at.";
    QUEUE_OLDEST_TIMESTAMP = Gauge Timestamp "opsd_queue_oldest_job_timestamp_seconds" ["queue"]
        "When the job that is next to be taken was put in; absent when none waits, or the library does not record it.";
    QUEUE_HEAD_TIMESTAMP = Gauge Timestamp "opsd_queue_head_since_timestamp_seconds" ["queue"]
        "Since when the same job has been the next one, as far as this monitor has seen; absent when none waits, and at the first look.";
    QUEUE_OLDEST_ACTIVE_TIMESTAMP = Gauge Timestamp "opsd_queue_oldest_active_timestamp_seconds" ["queue"]
        "When the oldest unfinished job was put in; absent when there is none, or it is not known.";
    QUEUE_PAUSED = Gauge None "opsd_queue_paused" ["queue"]
        "Whether somebody paused the queue.";
    QUEUE_CONSUMERS = Gauge None "opsd_queue_consumers" ["queue"]
        "Live workers that take jobs from the queue; for BullMQ their connections. Absent where that cannot be known.";
    QUEUE_UNREAD = Gauge None "opsd_queue_unread" ["queue"]
        "Jobs that wait and that no live worker would take; 0 while somebody takes them, absent where that cannot be known.";
    QUEUE_ARRIVAL_RATE = Gauge None "opsd_queue_arrival_rate" ["queue"]
        "Jobs put in per second, over the last minutes; absent where they cannot be counted.";
    QUEUE_DRAIN_RATE = Gauge None "opsd_queue_drain_rate" ["queue"]
        "Jobs taken out per second, over the last minutes; absent where arrivals cannot be counted.";
    QUEUE_EMPTYING_STATE = Gauge None "opsd_queue_emptying_state" ["queue", "state"]
        of ["empty", "emptying", "never", "unknown"]
        "What becomes of the queue if the last minutes go on: empty, emptying, never (it stands or grows), or unknown yet.";
    QUEUE_UNTIL_EMPTY = Gauge Seconds "opsd_queue_until_empty_seconds" ["queue"]
        "How long until it is empty if the last minutes go on; absent for never and unknown.";
    QUEUE_PROCESSED = Counter None "opsd_queue_processed" ["queue"]
        "Jobs that were finished; absent where the library does not count them.";
    QUEUE_FAILED = Counter None "opsd_queue_failed" ["queue"]
        "Jobs that failed; absent where the library does not count them.";

    QUEUES_PROCESSED = Counter None "opsd_queues_processed" []
        "Jobs that were processed, well or not.";
    QUEUES_FAILED = Counter None "opsd_queues_failed" []
        "Jobs that failed, each attempt.";
    QUEUES_WORKERS = Gauge None "opsd_queues_workers" []
        "Live worker processes. Celery leaves no trace of its workers: there it is clients that wait for any list of the database. So it is for lists and sorted sets, and absent where none waits, because others may ask without waiting.";
    QUEUES_WORKERS_LOST = Gauge None "opsd_queues_workers_lost" []
        "Worker processes that ended without taking leave, and are still listed.";
    QUEUES_WORKERS_QUIET = Gauge None "opsd_queues_workers_quiet" []
        "Live worker processes that take no new jobs.";
    QUEUES_CONCURRENCY = Gauge None "opsd_queues_concurrency" []
        "Jobs that the live workers can do at the same time.";
    QUEUES_BUSY = Gauge None "opsd_queues_busy" []
        "Jobs that they are doing.";
    QUEUES_SCHEDULED = Gauge None "opsd_queues_scheduled" []
        "Jobs that wait for their time.";
    QUEUES_RETRYING = Gauge None "opsd_queues_retrying" []
        "Jobs that failed and wait for their next attempt.";
    QUEUES_DEAD = Gauge None "opsd_queues_dead" []
        "Jobs that were given up and are kept.";
    QUEUES_OVERDUE_TIMESTAMP = Gauge Timestamp "opsd_queues_overdue_timestamp_seconds" ["set"]
        "When the first job of the schedule (or of the retries) whose time has come should have been put into its queue; absent while none is overdue.";
    QUEUES_UNACKNOWLEDGED = Gauge None "opsd_queues_unacknowledged" []
        "Tasks that workers have taken and not acknowledged, those with a countdown among them.";
    QUEUES_OLDEST_UNACKNOWLEDGED_TIMESTAMP = Gauge Timestamp "opsd_queues_oldest_unacknowledged_timestamp_seconds" []
        "When the oldest of them was taken; past the visibility timeout (an hour) it is given to another worker, too.";
}
