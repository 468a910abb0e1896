//! What a role or a database may set for its sessions decides nothing of a backup, of a rehearsal or of a
//! restore.

use crate::support::compare::{assert_same_content, db};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{
    MAJORS, PASSWORD, Server, bin_dir, default_server, for_each_major, identifier, is_installed, literal,
    shared, unique,
};
use crate::support::sets::result;
use crate::support::torture::torture;
use crate::traps::{paused, wait_for};

/// Settings that end, stall or change a session, each with a value that does so, and the major that brought it.
/// The server must hear of the newer ones from us, and a busy machine takes a moment until it does.
pub const HOSTILE: &[(u32, &str, &str)] = &[
    (13, "statement_timeout", "1"),
    (13, "lock_timeout", "1"),
    (13, "idle_in_transaction_session_timeout", "1"),
    (14, "idle_session_timeout", "2000"),
    (17, "transaction_timeout", "2000"),
    (14, "client_connection_check_interval", "1"),
    (13, "tcp_user_timeout", "1"),
    (13, "tcp_keepalives_idle", "1"),
    (13, "tcp_keepalives_interval", "1"),
    (13, "tcp_keepalives_count", "1"),
    (13, "default_transaction_isolation", "serializable"),
    (13, "default_transaction_read_only", "on"),
    (13, "default_transaction_deferrable", "on"),
    (13, "exit_on_error", "on"),
    (13, "array_nulls", "off"),
    (13, "standard_conforming_strings", "off"),
    (13, "backslash_quote", "off"),
    (13, "transform_null_equals", "on"),
    (13, "gin_fuzzy_search_limit", "1"),
    (13, "client_min_messages", "debug5"),
    (13, "client_encoding", "LATIN1"),
    (13, "vacuum_cost_delay", "100"),
    (16, "icu_validation_level", "error"),
    (17, "restrict_nonsystem_relation_kind", "view, foreign-table"),
    (13, "search_path", "evil"),
    (13, "row_security", "on"),
    (13, "datestyle", "German"),
    (13, "intervalstyle", "sql_standard"),
    (13, "timezone", "Asia/Kathmandu"),
    (13, "bytea_output", "escape"),
    (13, "extra_float_digits", "-15"),
    (13, "quote_all_identifiers", "on"),
    (13, "xmloption", "document"),
    (13, "check_function_bodies", "on"),
    (16, "createrole_self_grant", "set, inherit"),
];

/// What they would change: NULLs in arrays, backslashes, names that no other encoding has, rows found by an
/// index, a view that is filled again.
const CONTENT: &str = r#"
    CREATE TABLE odd (id integer PRIMARY KEY, list text[], path text DEFAULT 'C:\new' CHECK (path <> '\'));
    INSERT INTO odd SELECT i, ARRAY[NULL, 'NULL', '\' || i], CASE WHEN i % 3 > 0 THEN '\t' || i ELSE 'ключ 鍵' END
      FROM generate_series(1, 3000) i;
    CREATE INDEX listed ON odd USING gin (list);
    CREATE VIEW seen AS SELECT * FROM odd WHERE path <> '\n';
    CREATE MATERIALIZED VIEW filled AS SELECT id, list FROM seen WHERE list @> ARRAY['NULL'];
    CREATE TABLE "ключ" (an integer);
    INSERT INTO "ключ" VALUES (1), (2);
    COMMENT ON TABLE "ключ" IS 'a \ and 鍵';
    SELECT lo_from_bytea(0, 'large');
"#;

/// A role, which owns a database of its own and may make others, as far as `attributes` lets it.
fn owner(server: &Server, attributes: &str) -> (String, String) {
    let role = unique("set_upon");
    server.psql(
        "postgres",
        &format!(
            "CREATE ROLE {role} LOGIN CREATEDB BYPASSRLS {attributes} PASSWORD {}; GRANT pg_read_all_data TO {role}",
            literal(PASSWORD)
        ),
    );
    let database = server.fresh_database("set_upon");
    server.psql("postgres", &format!("ALTER DATABASE {database} OWNER TO {role}"));
    server.psql(&database, &format!("SET ROLE {role}; {CONTENT}"));
    fixtures::rows(server, &database, "big", 40_000);
    // Takes its pg_dump so long that it can be stopped in the middle, and hardly any room.
    let wide = "ALTER TABLE big ADD wide text; INSERT INTO big (id, at, wide)
                SELECT -i, now(), repeat('x', 100000) FROM generate_series(1, 400) i";
    server.psql(&database, &format!("{wide}; ALTER TABLE big OWNER TO {role}"));
    (role, database)
}

/// A site that comes over TCP, where the settings of TCP mean something.
fn site(server: &Server, role: &str, database: &str) -> Opsd {
    let mut opsd = Opsd::new(server, &[database]);
    opsd.postgres.set("url", quoted(&server.url(role, database)));
    opsd.env("PGPASSWORD", PASSWORD)
        .env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd
}

/// Backs up with a pause in which every timeout passes, rehearses, and restores beside it.
fn assert_untouched(server: &Server, role: &str, database: &str, settings: &[(&str, &str)]) {
    let mut opsd = site(server, role, database);
    let apply = |what: &str, verb: &str| {
        for (name, value) in settings {
            let value = if verb == "SET" { format!(" = {}", literal(value)) } else { String::new() };
            server.psql("postgres", &format!("SET exit_on_error = off; ALTER {what} {verb} {name}{value}"));
        }
    };
    apply(&format!("ROLE {}", identifier(role)), "SET");
    apply(&format!("DATABASE {}", identifier(database)), "SET");
    let mut run = paused(server, database, &mut opsd);
    // Those that hold something: the lock's, the snapshot's, and the large table's.
    let sessions = format!(
        "SELECT count(*), bool_and(state_change < now() - interval '2500 ms') FROM pg_stat_activity
          WHERE usename = {} AND application_name LIKE 'opsd%'",
        literal(role)
    );
    wait_for("all timeouts to have passed", || {
        server.psql("postgres", &sessions) == "3|t" || run.has_ended()
    });
    run.signal(rustix::process::Signal::CONT);
    let run = run.finish().expect_code(0);
    assert_eq!(run.json()["sets"][0]["warnings"], serde_json::json!([]), "{settings:?}: {run}");
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{settings:?}: {run}");
    let restored = unique("restored");
    let run = opsd.ok(&["restore", "db", "--to", &server.url(role, &restored), "--create", "--json"]);
    assert_eq!(run.json()["failed"], serde_json::json!([]), "{settings:?}: {run}");
    // So that nothing of it changes what is compared.
    apply(&format!("DATABASE {}", identifier(database)), "RESET");
    apply(&format!("DATABASE {}", identifier(&restored)), "RESET");
    apply(&format!("ROLE {}", identifier(role)), "RESET");
    assert_same_content(db(server, database), db(server, &restored));
    server.drop_database(&restored);
}

#[test]
fn what_a_role_or_a_database_sets_neither_ends_nor_changes_a_session_of_ours() {
    for (major, usual) in [(14, ""), (18, "SUPERUSER")] {
        let server = shared(major);
        let known: Vec<(&str, &str)> = HOSTILE
            .iter()
            .filter(|(since, ..)| *since <= major)
            .map(|(_, name, value)| (*name, *value))
            .collect();
        for attributes in ["", "SUPERUSER"].into_iter().filter(|attributes| torture() || *attributes == usual)
        {
            let (role, database) = owner(server, attributes);
            let mut settings = known.clone();
            if attributes == "SUPERUSER" {
                settings.push(("session_replication_role", "local"));
                settings.push(("lc_messages", "C.UTF-8"));
            }
            if torture() {
                for setting in &settings {
                    assert_untouched(server, &role, &database, &[*setting]);
                }
            }
            assert_untouched(server, &role, &database, &settings);
            server.drop_database(&database);
            server.psql("postgres", &format!("DROP ROLE {role}"));
        }
    }
}

/// What a session may be given beyond what is pinned, and why that does no harm. Names are separated by spaces.
const HARMLESS: &[(&str, &str)] = &[
    (
        "bounds what only the server's own processes or a replication wait for",
        "archive_timeout authentication_timeout checkpoint_timeout idle_replication_slot_timeout wal_receiver_timeout
         wal_sender_timeout",
    ),
    ("opsd and the tools name themselves", "application_name"),
    ("opsd speaks UTF-8, and tells each pg_dump and pg_dumpall which encoding to speak", "client_encoding"),
    ("pg_dump and pg_restore set it, and so do the sessions of opsd that need it",
     "DateStyle IntervalStyle check_function_bodies default_table_access_method default_tablespace extra_float_digits
      lc_monetary row_security search_path session_replication_role synchronize_seqscans xmloption"),
    (
        "a plan refuses to read while it is on",
        "ignore_checksum_failure zero_damaged_pages",
    ),
    (
        "privileges of large objects are for the operator to relax, and a plan looks at what they are",
        "lo_compat_privileges",
    ),
    ("only warnings come of it, or lines of the server's log",
     "backtrace_functions debug_pretty_print debug_print_parse debug_print_plan debug_print_rewritten
      escape_string_warning log_duration log_error_verbosity log_executor_stats log_lock_failures log_lock_waits
      log_min_duration_sample log_min_duration_statement log_min_error_statement log_min_messages
      log_parameter_max_length log_parameter_max_length_on_error log_parser_stats log_planner_stats
      log_replication_commands log_statement log_statement_sample_rate log_statement_stats log_temp_files
      log_transaction_sample_rate md5_password_warnings operator_precedence_warning trace_notify trace_sort"),
    ("statistics that somebody else reads",
     "compute_query_id stats_fetch_consistency track_activities track_cost_delay_timing track_counts track_functions
      track_io_timing track_wal_io_timing update_process_title"),
    ("a statement takes longer or shorter by it, and comes to the same",
     "backend_flush_after commit_delay commit_siblings constraint_exclusion cpu_index_tuple_cost cpu_operator_cost
      cpu_tuple_cost cursor_tuple_fraction debug_discard_caches debug_logical_replication_streaming
      debug_parallel_query default_statistics_target effective_cache_size effective_io_concurrency
      enable_async_append enable_bitmapscan enable_distinct_reordering enable_gathermerge
      enable_group_by_reordering enable_hashagg enable_hashjoin enable_incremental_sort enable_indexonlyscan
      enable_indexscan enable_material enable_memoize enable_mergejoin enable_nestloop enable_parallel_append
      enable_parallel_hash enable_partition_pruning enable_partitionwise_aggregate enable_partitionwise_join
      enable_presorted_aggregate enable_self_join_elimination enable_seqscan enable_sort enable_tidscan
      file_copy_method force_parallel_mode from_collapse_limit geqo geqo_effort geqo_generations geqo_pool_size
      geqo_seed geqo_selection_bias geqo_threshold gin_pending_list_limit hash_mem_multiplier io_combine_limit jit
      jit_above_cost jit_dump_bitcode jit_expressions jit_inline_above_cost jit_optimize_above_cost
      jit_tuple_deforming join_collapse_limit logical_decoding_work_mem maintenance_io_concurrency
      maintenance_work_mem max_parallel_maintenance_workers max_parallel_workers max_parallel_workers_per_gather
      min_parallel_index_scan_size min_parallel_table_scan_size parallel_leader_participation parallel_setup_cost
      parallel_tuple_cost plan_cache_mode random_page_cost recursive_worktable_factor seq_page_cost
      synchronous_commit temp_buffers vacuum_buffer_usage_limit vacuum_cost_limit vacuum_cost_page_dirty
      vacuum_cost_page_hit vacuum_cost_page_miss wal_compression wal_consistency_checking wal_init_zero wal_recycle
      wal_skip_threshold work_mem"),
    ("decides about VACUUM, which opsd does not run, or how a table is kept on disk",
     "default_toast_compression vacuum_cleanup_index_scale_factor vacuum_failsafe_age vacuum_freeze_min_age
      vacuum_freeze_table_age vacuum_max_eager_freeze_failure_rate vacuum_multixact_failsafe_age
      vacuum_multixact_freeze_min_age vacuum_multixact_freeze_table_age vacuum_truncate"),
    ("a bound or a place of the operator's: a statement that meets it fails and says so",
     "dynamic_library_path extension_control_path local_preload_libraries max_stack_depth
      session_preload_libraries temp_file_limit temp_tablespaces"),
    ("who waits for a lock looks sooner or later whether others wait for him: losing is waiting once more",
     "deadlock_timeout"),
    ("nothing is decided by the words of it", "lc_messages"),
    ("only a value that a function makes of it differs, as after any other restore with this setting",
     "default_text_search_config lc_numeric lc_time timezone_abbreviations xmlbinary"),
    ("is about string constants that standard_conforming_strings makes unambiguous", "backslash_quote"),
    ("is about statements that opsd does not send",
     "allow_in_place_tablespaces allow_system_table_mods event_triggers output_plugin_libraries password_encryption
      scram_iterations"),
    ("whoever may make roles has said what he wants to be of those that he makes", "createrole_self_grant"),
    ("of a transaction, set anew by each", "transaction_deferrable transaction_isolation transaction_read_only"),
];

/// A new major brings new settings, and each is to be judged before anybody relies on opsd with it.
#[test]
fn every_setting_that_a_role_may_have_is_pinned_or_judged() {
    use opsd::postgres::settings::{OWN, PINNED};
    let pinned: Vec<&str> = PINNED.iter().map(|pin| pin.name).collect();
    let own: Vec<&str> = OWN.iter().map(|pin| pin.name).collect();
    let harmless: Vec<&str> = HARMLESS.iter().flat_map(|(_, names)| names.split_whitespace()).collect();
    let mut known = std::collections::BTreeSet::new();
    for_each_major(|server| {
        let sql = "SELECT name FROM pg_settings WHERE context IN ('user', 'superuser') OR name ~ 'timeout' ORDER BY 1";
        let names = server.psql("postgres", sql);
        let is_judged =
            |name: &&str| pinned.iter().chain(&harmless).any(|judged| judged.eq_ignore_ascii_case(name));
        let unjudged: Vec<&str> = names.lines().filter(|name| !is_judged(name)).collect();
        assert!(
            unjudged.is_empty(),
            "PostgreSQL {} has settings that nobody has judged: {unjudged:?}",
            server.major
        );
    });
    for major in MAJORS.into_iter().filter(|major| is_installed(*major)) {
        known.extend(
            shared(major).psql("postgres", "SELECT lower(name) FROM pg_settings").lines().map(str::to_owned),
        );
    }
    for name in pinned.iter().chain(&own).chain(&harmless) {
        assert!(known.contains(&name.to_lowercase()), "no server knows {name}");
    }
    for name in &pinned {
        assert!(!harmless.contains(name), "{name} is pinned, and judged as well");
    }
}

/// Damaged pages are read as empty ones, or as they are: only a superuser may set that, so only he can end it.
#[test]
fn a_server_that_hides_damage_is_not_backed_up() {
    let server = default_server();
    for name in ["zero_damaged_pages", "ignore_checksum_failure"] {
        let (role, database) = owner(server, "");
        let opsd = site(server, &role, &database);
        server.psql("postgres", &format!("ALTER DATABASE {database} SET {name} = on"));
        for args in [&["backup", "--dry-run"][..], &["backup"]] {
            let run = opsd.run(args);
            run.expect_failure(1, &[&format!("{name} is on"), "ALTER DATABASE", "RESET"]);
        }
        assert!(!opsd.repository_files().iter().any(|file| file.ends_with("manifest.json")));
        server.psql("postgres", &format!("ALTER DATABASE {database} RESET {name}"));
        opsd.ok(&["backup"]);
        server.drop_database(&database);
        server.psql("postgres", &format!("DROP ROLE {role}"));
    }
}
