//! What a monitor of backups measures; `backup` is the job, the NAME of `[backup.NAME]`.

super::rows! {
    BACKUP_RECOVERY_POINT_TIMESTAMP = Gauge Timestamp "opsd_backup_recovery_point_timestamp_seconds" ["backup"]
        "When the newest usable set was started: what is younger would be lost. Usable is a complete set that is believed, has all of its objects, is not dated in the future, and that the last conclusive rehearsal did not find to differ.";
    BACKUP_RPO = Gauge Seconds "opsd_backup_rpo_seconds" ["backup"]
        "How old the recovery point may be; absent where nobody said it.";
    BACKUP_RECOVERY_POINT_STATE = Gauge None "opsd_backup_recovery_point_state" ["backup", "state"]
        of ["fresh", "overdue", "missing", "unbounded", "unknown"]
        "The recovery point against the objective: fresh, overdue, missing (there is no usable set), unbounded (there is no objective), or unknown (manifests cannot be read).";
    BACKUP_LISTED_TIMESTAMP = Gauge Timestamp "opsd_backup_listed_timestamp_seconds" ["backup"]
        "When the newest complete set was started, by its name alone and believed by nobody; for credentials that may list and not read.";
    BACKUP_LAST_SUCCESS_TIMESTAMP = Gauge Timestamp "opsd_backup_last_success_timestamp_seconds" ["backup"]
        "When the newest usable set was finished.";
    BACKUP_LAST_DURATION = Gauge Seconds "opsd_backup_last_duration_seconds" ["backup"]
        "How long the newest usable set took.";
    BACKUP_LAST_STORED = Gauge Bytes "opsd_backup_last_stored_bytes" ["backup"]
        "Bytes stored of the newest usable set.";
    BACKUP_LAST_PLAIN = Gauge Bytes "opsd_backup_last_plain_bytes" ["backup"]
        "Bytes of the newest usable set before compression.";
    BACKUP_LAST_ROWS = Gauge None "opsd_backup_last_rows" ["backup"]
        "Rows in the newest usable set; absent where nobody counted them.";
    BACKUP_DATABASE_ROWS = Gauge None "opsd_backup_database_rows" ["backup", "database"]
        "Rows of a database in the newest usable set; absent where nobody counted them.";
    BACKUP_DATABASE_BYTES = Gauge Bytes "opsd_backup_database_bytes" ["backup", "database"]
        "Bytes of a database in the newest usable set before compression.";
    BACKUP_DATABASE_ROWS_RATIO = Gauge Ratio "opsd_backup_database_rows_ratio" ["backup", "database"]
        "Rows of a database in the newest usable set against the median of up to seven usable sets before it.";
    BACKUP_DATABASE_BYTES_RATIO = Gauge Ratio "opsd_backup_database_bytes_ratio" ["backup", "database"]
        "Bytes of a database in the newest usable set against the median of up to seven usable sets before it.";
    BACKUP_DATABASE_PRESENT = Gauge None "opsd_backup_database_present" ["backup", "database"]
        "Whether the newest usable set holds a database that most of up to seven usable sets before it hold.";
    BACKUP_PROVEN_TIMESTAMP = Gauge Timestamp "opsd_backup_proven_timestamp_seconds" ["backup"]
        "When a restore last proved a set, row by row; absent when none ever did.";
    BACKUP_PROVEN_POINT_TIMESTAMP = Gauge Timestamp "opsd_backup_proven_point_timestamp_seconds" ["backup"]
        "When the newest proven set was started: what is certain to come back.";
    BACKUP_REHEARSAL_STATE = Gauge None "opsd_backup_rehearsal_state" ["backup", "state"]
        of ["proven", "differs", "failed", "unproven", "none"]
        "What the last rehearsal of any set came to: failed is one that could not run, and says nothing about the set; none where there was none.";
    BACKUP_REHEARSAL_TIMESTAMP = Gauge Timestamp "opsd_backup_rehearsal_timestamp_seconds" ["backup"]
        "When the last rehearsal of any set ended, whatever it came to.";
    BACKUP_RECOVERY = Gauge Seconds "opsd_backup_recovery_seconds" ["backup"]
        "How long the last restore that proved a set took, all phases together: the measured recovery time.";
    BACKUP_RECOVERY_PHASE = Gauge Seconds "opsd_backup_recovery_phase_seconds" ["backup", "phase"]
        "The measured recovery time by phase; to remove the scratch server is none of them.";
    BACKUP_SETS = Gauge None "opsd_backup_sets" ["backup", "state"]
        of ["complete", "refused", "incomplete", "failed"]
        "Sets in the repository: complete, refused (complete, but damaged or not trusted), incomplete (under way, or left by a run that was killed), or failed.";
    BACKUP_SETS_AHEAD = Gauge None "opsd_backup_sets_ahead" ["backup"]
        "Sets dated in the future: a clock was ahead, or this one is behind.";
    BACKUP_STORED = Gauge Bytes "opsd_backup_stored_bytes" ["backup"]
        "Bytes stored, all sets together.";
    BACKUP_OBJECTS_MISSING = Gauge None "opsd_backup_objects_missing" ["backup"]
        "Objects that the newest believed set names and the repository lacks, or has with another size.";
    BACKUP_RECIPIENTS = Gauge None "opsd_backup_recipients" ["backup"]
        "Keys that can read the newest believed set.";
    BACKUP_RECIPIENTS_CHANGED = Gauge None "opsd_backup_recipients_changed" ["backup"]
        "Whether other keys can read the newest believed set than the one before it.";
    BACKUP_RECIPIENTS_EXPECTED = Gauge None "opsd_backup_recipients_expected" ["backup"]
        "Whether the keys that can read the newest believed set are those of the configuration here; absent where that has none.";
    BACKUP_SIGNATURE_STATE = Gauge None "opsd_backup_signature_state" ["backup", "state"]
        of ["trusted", "unsigned", "unchecked", "refused"]
        "Who vouches for the newest complete set: trusted, unsigned or unchecked (no key is trusted here), or refused.";
}
