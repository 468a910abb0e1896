//! Each state of the catalogue is one that a test has made. A state that no code comes to is an alert that never
//! fires: a failed rehearsal was one, and a revoked certificate, for which nobody asked a list of revocations.
//!
//! The table below names the test that makes each state that opsd itself decides on, and the test must speak of
//! that state. What a server or a broker calls itself is handed on in its own words, and listed by its row.

use std::collections::BTreeSet;
use std::path::Path;

use opsd::metrics;

/// Metric, state, file, and the test there that makes it.
const MADE: &[(&str, &str, &str, &str)] = &[
    ("opsd_backup_recovery_point_state", "fresh", BACKUPS, "missing_fresh_and_proven"),
    ("opsd_backup_recovery_point_state", "missing", BACKUPS, "missing_fresh_and_proven"),
    ("opsd_backup_recovery_point_state", "overdue", BACKUPS, "stale_shrunk_and_gone"),
    ("opsd_backup_recovery_point_state", "unbounded", BACKUPS, "a_host_without_jobs_watches_those_of_others"),
    (
        "opsd_backup_recovery_point_state",
        "unknown",
        "src/monitor/backups/tests.rs",
        "a_listing_alone_tells_what_it_tells",
    ),
    ("opsd_backup_rehearsal_state", "none", BACKUPS, "missing_fresh_and_proven"),
    ("opsd_backup_rehearsal_state", "proven", BACKUPS, "missing_fresh_and_proven"),
    ("opsd_backup_rehearsal_state", "differs", BACKUPS, ALL_OF_BACKUPS),
    ("opsd_backup_rehearsal_state", "unproven", BACKUPS, ALL_OF_BACKUPS),
    (
        "opsd_backup_rehearsal_state",
        "failed",
        BACKUPS,
        "a_rehearsal_that_cannot_run_is_recorded_and_raises_its_alert",
    ),
    ("opsd_backup_sets", "complete", BACKUPS, "missing_fresh_and_proven"),
    ("opsd_backup_sets", "incomplete", BACKUPS, "missing_fresh_and_proven"),
    ("opsd_backup_sets", "failed", BACKUPS, ALL_OF_BACKUPS),
    ("opsd_backup_sets", "refused", BACKUPS, ALL_OF_BACKUPS),
    ("opsd_backup_signature_state", "trusted", BACKUPS, "missing_fresh_and_proven"),
    ("opsd_backup_signature_state", "unchecked", BACKUPS, ALL_OF_BACKUPS),
    ("opsd_backup_signature_state", "refused", BACKUPS, "other_keys_and_no_signature"),
    ("opsd_backup_signature_state", "unsigned", BACKUPS, "other_keys_and_no_signature"),
    (
        "opsd_postgres_archiver_state",
        "off",
        "tests/it/dashboards.rs",
        "every_query_finds_what_is_there_and_nothing_of_what_is_gone",
    ),
    (
        "opsd_postgres_archiver_state",
        "working",
        POSTGRES,
        "an_archive_that_takes_nothing_is_failing_until_it_does",
    ),
    (
        "opsd_postgres_archiver_state",
        "failing",
        POSTGRES,
        "an_archive_that_takes_nothing_is_failing_until_it_does",
    ),
    ("opsd_postgres_replication_state", "source_idle", POSTGRES, PAIR),
    ("opsd_postgres_replication_state", "paused", POSTGRES, PAIR),
    ("opsd_postgres_replication_state", "link_cut", POSTGRES, PAIR),
    (
        "opsd_postgres_replication_state",
        "replaying",
        STANDBYS,
        "a_standby_that_reads_the_archive_is_replaying_until_it_streams",
    ),
    ("opsd_postgres_replication_state", "caught_up", VERDICT, "a_healthy_pair"),
    (
        "opsd_postgres_replication_state",
        "delayed",
        VERDICT,
        "a_standby_that_is_late_on_purpose_is_not_behind",
    ),
    ("opsd_postgres_replication_state", "unknown", VERDICT, "what_the_pieces_do_not_tell_is_unknown"),
    ("opsd_postgres_logical_slot_state", "active", CASCADES, LOGICAL),
    ("opsd_postgres_logical_slot_state", "inactive", CASCADES, LOGICAL),
    ("opsd_postgres_subscription_state", "running", CASCADES, LOGICAL),
    ("opsd_postgres_subscription_state", "not_running", CASCADES, LOGICAL),
    ("opsd_postgres_subscription_state", "disabled", CASCADES, LOGICAL),
    ("opsd_queue_emptying_state", "empty", QUEUES, "sidekiq_from_the_first_job_to_a_killed_worker"),
    ("opsd_queue_emptying_state", "never", QUEUES, "sidekiq_from_the_first_job_to_a_killed_worker"),
    ("opsd_queue_emptying_state", "emptying", QUEUES, "lists_sorted_sets_and_streams"),
    (
        "opsd_queue_emptying_state",
        "unknown",
        "src/monitor/queue/flow.rs",
        "one_that_stands_or_grows_never_is",
    ),
    ("opsd_redis_role_state", "primary", "tests/it/monitor_redis.rs", "every_server_tells_what_it_is"),
    ("opsd_redis_role_state", "replica", "tests/it/monitor_redis.rs", "a_replica_whose_primary_is_gone"),
    ("opsd_tls_verification_state", "verified", PROBES, TLS),
    ("opsd_tls_verification_state", "expired", PROBES, TLS),
    ("opsd_tls_verification_state", "not_yet_valid", PROBES, TLS),
    ("opsd_tls_verification_state", "unknown_issuer", PROBES, TLS),
    ("opsd_tls_verification_state", "wrong_name", PROBES, TLS),
    ("opsd_tls_verification_state", "version_1", "tests/it/monitor_networks.rs", CERTIFICATES),
    ("opsd_tls_verification_state", "invalid", PROBES, TLS),
];
const BACKUPS: &str = "tests/it/monitor_backups.rs";
const ALL_OF_BACKUPS: &str = "rehearsals_and_sets_come_to_whatever_the_catalogue_names";
const POSTGRES: &str = "tests/it/monitor_postgres.rs";
const PAIR: &str = "a_pair_of_servers_is_judged_from_both_ends";
const CASCADES: &str = "tests/it/monitor_cascades.rs";
const LOGICAL: &str = "a_logical_slot_and_a_subscription_that_stand_still_are_seen_at_both_ends";
const STANDBYS: &str = "tests/it/monitor_standbys.rs";
const VERDICT: &str = "src/monitor/postgres/verdict.rs";
const QUEUES: &str = "tests/it/monitor_queues.rs";
const PROBES: &str = "tests/it/monitor_probes.rs";
const CERTIFICATES: &str = "certificates_as_people_make_them_are_judged_alike_by_every_protocol";
const TLS: &str = "tls_sees_the_whole_chain_whatever_is_wrong_with_it";

/// Rows whose states are somebody else's words.
const HANDED_ON: &[&str] = &[
    "opsd_mqtt_clients",
    "opsd_postgres_connections",
    "opsd_postgres_slot_wal_state",
    "opsd_postgres_standby_stream_state",
];

/// What stands in a test.
fn body(file: &str, test: &str) -> String {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let at = text.find(&format!("fn {test}(")).unwrap_or_else(|| panic!("{file} has no {test}"));
    let before = text[..at].rsplit("\n\n").next().unwrap();
    assert!(before.contains("test") && !before.contains("ignore"), "{test} of {file} is no test that runs");
    let indent = text[..at].rsplit('\n').next().unwrap().len()
        - text[..at].rsplit('\n').next().unwrap().trim_start().len();
    let end = format!("\n{}}}", " ".repeat(indent));
    text[at..].split(&end).next().unwrap().to_owned()
}

/// `link_cut` in quotes, or as `State::LinkCut`.
fn speaks_of(body: &str, state: &str) -> bool {
    let variant: String = state.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    body.contains(&format!("\"{state}\"")) || body.contains(&format!("::{variant}"))
}

#[test]
fn every_state_of_the_catalogue_is_made_by_a_test() {
    let mut wanted = BTreeSet::new();
    for row in metrics::all().filter(|row| !HANDED_ON.contains(&row.name)) {
        wanted.extend(row.states.iter().map(|state| (row.name, *state)));
    }
    let made: BTreeSet<_> = MADE.iter().map(|(metric, state, ..)| (*metric, *state)).collect();
    assert_eq!(made, wanted, "states of the catalogue, and those that this table has");
    assert!(wanted.len() > 30 && HANDED_ON.iter().all(|name| metrics::find(name).is_some()));
    for (metric, state, file, test) in MADE {
        assert!(speaks_of(&body(file, test), state), "{test} of {file} says nothing of {state} ({metric})");
    }
}
