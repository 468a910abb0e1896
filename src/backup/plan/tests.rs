//! Plans: which archives, which locks, what is refused.

use proptest::prelude::*;

use std::time::Duration;

use super::super::inventory::Sequence;
use super::*;
use crate::config::{Databases, Ping, Verify};
use crate::error::Kind;
use crate::postgres::limits::Bound;

const MB: u64 = 1 << 20;
const ROOMY: Capacity =
    Capacity { locks: 1_000_000, free_locks: 1_000_000, free_connections: 90, bound: Bound::Server };

pub(in crate::backup) fn job(exclude: &[&str]) -> BackupJob {
    BackupJob {
        name: "main".into(),
        postgres: "main".into(),
        databases: Databases::Url,
        streams: 2,
        compression: 3,
        part_size: 16 * MB,
        timeout: std::time::Duration::from_secs(60),
        large_table: 100 * MB,
        exclude_table_data: exclude.iter().map(|s| (*s).to_owned()).collect(),
        include_extension_tables: Vec::new(),
        rpo: None,
        retention: None,
        verify: Verify {
            scratch_dir: "/nonexistent".into(),
            scratch_user: None,
            image: None,
            assert: Vec::new(),
            timeout: Duration::from_secs(60),
            ping: Ping::default(),
        },
        ping: Ping::default(),
    }
}

fn table(oid: u32, name: &str, size: u64) -> Table {
    Table { oid, schema: "public".into(), name: name.into(), size, is_readable: true, ..Table::default() }
}

fn sequence(oid: u32, name: &str, owned_by: Option<u32>) -> Sequence {
    Sequence {
        oid,
        schema: "public".into(),
        name: name.into(),
        owned_by,
        is_readable: true,
        ..Sequence::default()
    }
}

fn inventory(tables: Vec<Table>) -> Inventory {
    Inventory { tables, ..Inventory::default() }
}

fn small(count: u32) -> Inventory {
    inventory((1..=count).map(|i| table(i, &format!("t{i}"), 8192)).collect())
}

fn plan_of(inventory: &Inventory, capacity: Capacity) -> Result<Plan> {
    plan("shop", inventory, capacity, false, &job(&[]))
}

fn planned(inventory: &Inventory, capacity: Capacity, exclude: &[&str]) -> Plan {
    plan("shop", inventory, capacity, false, &job(exclude)).unwrap()
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.streams().iter().map(|s| s.name.as_str()).collect()
}

/// The streams of each pg_dump.
fn dealt(plan: &Plan) -> Vec<Vec<&str>> {
    plan.dumps.iter().map(|d| d.streams().map(|s| s.name.as_str()).collect()).collect()
}

#[test]
fn large_tables_get_streams_of_their_own_and_each_pg_dump_as_much() {
    let mut inventory = inventory(vec![
        table(1, "small", MB),
        table(2, "big", 100 * MB),
        table(3, "bigger", 300 * MB),
        Table { is_extension_member: true, ..table(4, "extension's", 150 * MB) },
        Table { is_partitioned: true, ..table(5, "root", 0) },
        table(6, "od\"d", 200 * MB),
    ]);
    inventory.sequences =
        vec![sequence(11, "od_id", Some(6)), sequence(12, "free", None), sequence(13, "small_id", Some(1))];
    let plan = planned(&inventory, ROOMY, &[]);
    assert_eq!(names(&plan), ["schema", "data-1", "data-2", "data-3", "data-rest"]);
    assert_eq!(dealt(&plan), [vec!["schema"], vec!["data-rest", "data-2"], vec!["data-1", "data-3"]]);
    let args = |i: usize| plan.dumps[i].args.clone();
    assert_eq!(args(0), ["--section=pre-data", "--section=post-data"]);
    assert_eq!(
        args(1),
        [
            "--section=data",
            r#"--exclude-table-data="public"."bigger""#,
            r#"--exclude-table-data="public"."big""#,
        ],
        "what another takes"
    );
    assert_eq!(args(2), ["--section=data", r#"--table="public"."bigger""#, r#"--table="public"."big""#]);
    let streams = plan.streams();
    assert_eq!(streams[1].table, Some(("public".to_owned(), "bigger".to_owned())));
    assert_eq!(streams[4].estimate, 151 * MB, "what has no stream of its own");
    assert_eq!(plan.tables, 5, "a root has no rows");
    assert!(plan.without_data.contains(&5) && plan.warnings.is_empty() && plan.lock_first);

    let of = |streams| BackupJob { streams, ..job(&[]) };
    let plan = super::plan("shop", &inventory, ROOMY, false, &of(1)).unwrap();
    assert_eq!(dealt(&plan), [vec!["schema"], vec!["data-rest", "data-1", "data-2", "data-3"]]);
    assert_eq!(plan.dumps[1].args, ["--section=data"]);
    let plan = super::plan("shop", &inventory, ROOMY, false, &of(9)).unwrap();
    assert_eq!(
        dealt(&plan),
        [vec!["schema"], vec!["data-rest"], vec!["data-1"], vec!["data-2"], vec!["data-3"]]
    );
    assert_eq!(
        plan.dumps[3].args,
        ["--section=data", r#"--table="public"."od""d""#, r#"--exclude-table-data="public"."od_id""#],
        "the sequence's value stands in the rest alone"
    );
}

#[test]
fn no_more_processes_than_connections_and_no_more_streams_than_reason_allow() {
    let many = inventory((1..=80).map(|i| table(i, &format!("t{i}"), u64::from(i) * 100 * MB)).collect());
    let plan = planned(&many, ROOMY, &[]);
    assert_eq!((plan.dumps.len(), names(&plan).len()), (3, 2 + MAX_LARGE_TABLES));
    assert!(plan.warnings[0].contains("64 of 80 large tables"), "{:?}", plan.warnings);
    let streams = plan.streams();
    assert_eq!(streams[1].table.as_ref().unwrap().1, "t80", "the largest one");
    assert_eq!(streams.last().unwrap().estimate, (1..=16).map(|i| i * 100 * MB).sum::<u64>());

    let few = inventory((1..=5).map(|i| table(i, &format!("t{i}"), 100 * MB)).collect());
    let processes = |free_connections| {
        let capacity = Capacity { free_connections, ..ROOMY };
        let plan = super::plan("shop", &few, capacity, false, &BackupJob { streams: 4, ..job(&[]) }).unwrap();
        assert_eq!(names(&plan).len(), 7);
        (plan.dumps.len() - 1, plan.warnings.join("; "))
    };
    assert_eq!(processes(6), (4, String::new()));
    let (count, warning) = processes(5);
    assert_eq!(count, 3);
    assert!(warning.contains("3 of 4 pg_dumps (5 free connections, by max_connections"), "{warning}");
    assert_eq!(processes(3).0, 1);
    let plan = planned(&few, Capacity { free_connections: 2, ..ROOMY }, &[]);
    assert_eq!(names(&plan), ["full"], "one pg_dump, and the roles");
    let refused = Capacity { free_connections: 1, bound: Bound::Role, ..ROOMY };
    let refused = plan_of(&few, refused).unwrap_err().to_string();
    assert!(
        refused.contains("needs 2 more connections, and CONNECTION LIMIT of the role leaves 1"),
        "{refused}"
    );
}

#[test]
fn many_small_tables_are_dumped_by_one_process() {
    assert_eq!(names(&planned(&small(1_999), ROOMY, &[])), ["schema", "data-rest"]);
    let plan = planned(&small(2_000), ROOMY, &["t7"]);
    assert_eq!(names(&plan), ["full"]);
    assert_eq!(plan.dumps[0].args, [r#"--exclude-table-data="public"."t7""#]);
    assert_eq!(plan.streams()[0].estimate, 1_999 * 8192);
    let mut one_large = small(2_000);
    one_large.tables[0].size = 200 * MB;
    assert_eq!(names(&planned(&one_large, ROOMY, &[])), ["schema", "data-1", "data-rest"]);
}

#[test]
fn locks_decide_how_many_processes_there_are_and_whether_we_lock_too() {
    let of = |locks, free_locks| plan_of(&small(1_000), Capacity { locks, free_locks, ..ROOMY });
    let decided = |locks, free_locks| {
        let plan = of(locks, free_locks).unwrap();
        (plan.dumps.len(), plan.lock_first, plan.locks)
    };
    // Beyond one pg_dump's, a quarter of the lock table at the most: a second process, and the coordinator.
    assert_eq!(decided(8_000, 8_000), (2, true, 3_000));
    assert_eq!(decided(7_999, 7_999), (2, false, 2_000));
    assert_eq!(decided(4_000, 4_000), (2, false, 2_000));
    assert_eq!(decided(3_999, 3_999), (1, false, 1_000), "one process, and no room for the coordinator's");
    // And all together four fifths of what is free.
    assert_eq!(decided(100_000, 3_750), (2, true, 3_000));
    assert_eq!(decided(100_000, 3_749), (2, false, 2_000));
    assert_eq!(decided(100_000, 2_499), (1, false, 1_000));
    assert_eq!(decided(800, 800), (1, false, 1_000), "PostgreSQL allows more than it computes");
    let error = of(799, 799).unwrap_err();
    assert!(error.to_string().contains("1000 locks (1000 tables, 0 sequences)"), "{error}");
    assert!(error.hint().unwrap().contains("max_locks_per_transaction"));

    let mut large = small(1_000);
    large.tables[0].size = 200 * MB;
    let plan = planned(&large, Capacity { locks: 2_000, ..ROOMY }, &[]);
    assert_eq!(names(&plan), ["full"]);
    assert!(
        plan.warnings[0].contains("a quarter of the server's lock table (2000 in all"),
        "{:?}",
        plan.warnings
    );
    assert_eq!(plan.streams()[0].estimate, 999 * 8192 + 200 * MB);
}

#[test]
fn a_database_without_tables_is_dumped_too() {
    let plan = planned(&inventory(Vec::new()), Capacity { free_connections: 3, ..Capacity::default() }, &[]);
    assert_eq!((names(&plan), plan.tables, plan.locks), (vec!["schema", "data-rest"], 0, 0));
}

#[test]
fn excluded_tables_are_named_with_their_partitions() {
    let mut inventory = inventory(vec![
        table(1, "users", MB),
        table(2, "user_log", 500 * MB),
        Table { is_partitioned: true, ..table(3, "events", 0) },
        Table { is_partitioned: true, partition_of: Some(3), ..table(4, "events_2026", 0) },
        Table { partition_of: Some(4), ..table(5, "e_jan", MB) },
        Table { schema: "log".into(), ..table(6, "users", MB) },
        Table { schema: "a.b".into(), ..table(7, "c.d", MB) },
    ]);
    inventory.sequences = vec![sequence(11, "user_log_id", Some(2))];
    let excluded = |patterns: &[&str]| planned(&inventory, ROOMY, patterns).excluded;
    assert!(excluded(&[]).is_empty());
    assert_eq!(excluded(&["users"]), ["public.users", "log.users"]);
    assert_eq!(excluded(&["public.users"]), ["public.users"]);
    assert_eq!(excluded(&["*.user*"]), ["public.users", "public.user_log", "log.users"]);
    assert_eq!(excluded(&["log.*", "?ser_log"]), ["public.user_log", "log.users"]);
    assert_eq!(excluded(&["a.b.c.d"]), ["a.b.c.d"]);
    assert_eq!(excluded(&["public.events"]), ["public.events", "public.events_2026", "public.e_jan"]);

    let plan = planned(&inventory, ROOMY, &["public.events", "user_log"]);
    assert_eq!(names(&plan), ["schema", "data-rest"], "an excluded table is not large");
    assert_eq!(
        plan.dumps[1].args,
        [
            "--section=data",
            r#"--exclude-table-data="public"."user_log""#,
            r#"--exclude-table-data="public"."e_jan""#
        ],
        "roots have no rows; the excluded table's sequence stays"
    );
    assert_eq!(plan.without_data, HashSet::from([2, 3, 4, 5]));
    assert_eq!((plan.tables, plan.streams()[1].estimate), (3, 3 * MB));

    for nothing in ["user", "public.nothing", "log.user_log", "", ".", "Users", "users."] {
        let error = super::plan("shop", &inventory, ROOMY, false, &job(&["users", nothing])).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{nothing}");
        assert!(error.to_string().contains(&format!("{nothing:?} matches no table")), "{error}");
    }
}

#[test]
fn unlogged_tables_have_no_rows_on_a_standby() {
    let mut inventory = inventory(vec![
        table(1, "logged", MB),
        Table { is_unlogged: true, ..table(2, "unlogged", 900 * MB) },
    ]);
    inventory.sequences = vec![
        sequence(3, "logged_id_seq", Some(1)),
        Sequence { is_unlogged: true, ..sequence(4, "unlogged_id_seq", Some(2)) },
    ];
    let standby = plan("shop", &inventory, ROOMY, true, &job(&[])).unwrap();
    assert_eq!((names(&standby), standby.tables), (vec!["schema", "data-rest"], 1));
    assert_eq!(standby.without_data, HashSet::from([2, 4]));
    assert!(standby.warnings[0].ends_with("without rows: public.unlogged"), "{:?}", standby.warnings);
    let primary = plan("shop", &inventory, ROOMY, false, &job(&[])).unwrap();
    assert_eq!((names(&primary), primary.tables), (vec!["schema", "data-1", "data-rest"], 2));
    assert!(primary.warnings.is_empty());
}

#[test]
fn what_our_role_may_not_read_is_named() {
    let refused = |inventory: &Inventory, exclude: &[&str]| {
        let error = plan("shop", inventory, ROOMY, false, &job(exclude)).unwrap_err();
        assert!(error.hint().is_some());
        error.to_string()
    };
    let mut unreadable = small(12);
    unreadable.tables.iter_mut().for_each(|t| t.is_readable = false);
    let said = refused(&unreadable, &[]);
    assert!(said.contains("public.t1, public.t2") && said.ends_with("public.t10 and 2 more"), "{said}");
    unreadable.tables.truncate(10);
    assert!(refused(&unreadable, &[]).ends_with("public.t10"));
    // pg_dump locks what it does not dump, for which it must be readable.
    unreadable.tables.truncate(1);
    assert!(refused(&unreadable, &["t1"]).contains("no SELECT privilege on table public.t1"));
    unreadable.tables[0].is_extension_member = true;
    planned(&unreadable, ROOMY, &[]);

    let mut sequences = small(1);
    sequences.sequences = vec![Sequence { is_readable: false, ..sequence(11, "s", None) }];
    assert!(refused(&sequences, &[]).contains("on sequence public.s"));

    let mut schema = small(1);
    schema.unusable_schemas = vec!["hidden".into()];
    assert!(refused(&schema, &[]).contains("no USAGE privilege on schema hidden"));

    let mut policies = small(2);
    policies.tables[1].has_active_row_security = true;
    assert!(refused(&policies, &[]).contains("row security would hide rows of table public.t2"));
    planned(&policies, ROOMY, &["t2"]);

    let mut objects = small(1);
    (objects.large_objects, objects.unreadable_large_objects) = (9, 3);
    assert!(refused(&objects, &[]).contains("3 of 9 large objects"));
    objects.unreadable_large_objects = 0;
    planned(&objects, ROOMY, &[]);
}

proptest! {
    #[test]
    fn every_table_with_rows_is_in_exactly_one_stream(
        sizes in proptest::collection::vec(0u64..400, 0..40), free_connections in 2u64..60, free_locks in 60u64..400,
    ) {
        let tables = sizes.iter().zip(1..).map(|(size, i)| table(i, &format!("t{i}"), size * MB)).collect();
        let inventory = inventory(tables);
        let capacity = Capacity { locks: free_locks, free_locks, free_connections, ..ROOMY };
        let plan = planned(&inventory, capacity, &[]);
        let streams = plan.streams();
        let own: Vec<&(String, String)> = streams.iter().filter_map(|s| s.table.as_ref()).collect();
        prop_assert!(own.iter().all(|t| own.iter().filter(|o| o == &t).count() == 1));
        if plan.dumps.len() > 1 {
            // A table that one of the others takes is left out of the rest's, and of nobody else's.
            let named: Vec<&str> =
                plan.dumps[2..].iter().flat_map(|d| &d.args).filter_map(|a| a.strip_prefix("--table=")).collect();
            let left_out: Vec<&str> =
                plan.dumps[1].args.iter().filter_map(|a| a.strip_prefix("--exclude-table-data=")).collect();
            let sorted = |mut names: Vec<String>| { names.sort(); names };
            let owned = |names: &[&str]| sorted(names.iter().map(|n| (*n).to_owned()).collect());
            prop_assert_eq!(owned(&named), owned(&left_out));
            prop_assert_eq!(named.len(), plan.dumps[2..].iter().map(|d| d.tables.len()).sum::<usize>());
        }
        prop_assert_eq!(streams.iter().map(|s| s.estimate).sum::<u64>(), sizes.iter().sum::<u64>() * MB);
        prop_assert!((plan.dumps.len() as u64) < free_connections);
    }
}
