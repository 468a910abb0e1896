//! What pruning removes, in which order, and what it leaves alone.

use std::sync::Arc;

use chrono::Utc;
use opsd::backup::prune;
use opsd::backup::retention::Reason;
use opsd::config::{Retention, Trusted};
use opsd::set::catalog::{self, State};
use opsd::set::verification::Verdict;
use opsd::store::StoreError;
use opsd::store::faulty::{Fault, FaultyStore, Operation, Rule};
use opsd::store::fs::FsStore;
use opsd::store::memory::MemoryStore;

use super::{JOB, Keys, Repository, SITE, last, plan};

/// Plans, removes, and tells which ids went.
async fn prune(repository: &Repository<'_>, trusted: &Trusted, rules: Retention) -> Vec<String> {
    let plan = plan(repository, trusted, rules).await;
    for removal in plan.removals.values() {
        prune::remove(&*repository.store, removal).await.expect("removed");
    }
    plan.removals.into_keys().collect()
}

#[tokio::test]
async fn prune_removes_what_the_plan_says_and_nothing_that_opsd_did_not_write() {
    for fs in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut repository = Repository::memory();
        if fs {
            repository.store = Arc::new(FsStore::open(dir.path()).unwrap());
        }
        let old = repository.set("2026-11-01T03:00:00Z").await;
        let kept = repository.set("2026-11-20T03:00:00Z").await;
        repository.verify(&old, "2026-11-01T05:00:00Z", Verdict::Unproven).await;
        let others = [
            format!("example/db/{old}/notes.txt"),
            format!("example/db/{old}/app/data-1.pgdump.zst.age"),
            format!("example/db/{old}/app/verified-1.json"),
            "example/db/lease.json".to_owned(),
            "example/db/20261005T030000Z-0000/app/schema.pgdump.zst.age".to_owned(),
            "example/db/20261006T030000Z-0000/failed.json".to_owned(),
            format!("example/shop/{old}/manifest.json"),
            format!("other/db/{old}/manifest.json"),
        ];
        for key in &others {
            repository.put(key, "not yours").await;
        }
        let untouched: Vec<String> =
            repository.keys().await.into_iter().filter(|k| k.contains(&kept) || others.contains(k)).collect();

        assert_eq!(prune(&repository, &Trusted::default(), last(1)).await, std::slice::from_ref(&old));
        assert_eq!(repository.keys().await, untouched);
        // Again: nothing left to do.
        assert!(prune(&repository, &Trusted::default(), last(1)).await.is_empty());
        assert_eq!(repository.keys().await, untouched);
    }
}

#[tokio::test]
async fn prune_deletes_the_manifest_first_then_its_signature() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let old = repository.set("2026-11-01T03:00:00Z").await;
    repository.set("2026-11-20T03:00:00Z").await;
    repository.verify(&old, "2026-11-01T05:00:00Z", Verdict::Unproven).await;
    let plan = plan(&repository, &keys.trusted(), last(1)).await;
    let removal = &plan.removals[&old];
    let prefix = format!("example/db/{old}/");
    assert_eq!(removal.keys[0], format!("{prefix}manifest.json"));
    assert_eq!(removal.keys[1], format!("{prefix}manifest.json.minisig"));
    assert!(removal.keys.contains(&format!("{prefix}verified-20261101T050000.000000Z.json.minisig")));
    assert_eq!(removal.keys.len(), 9);
    assert!(removal.foreign.is_empty());
}

#[tokio::test]
async fn a_deletion_that_fails_leaves_a_whole_set_or_none() {
    let denied = || Fault::Fail(StoreError::Denied("no".into()));
    let repository = Repository::memory();
    let old = repository.set("2026-11-01T03:00:00Z").await;
    repository.set("2026-11-20T03:00:00Z").await;
    let plan = plan(&repository, &Trusted::default(), last(1)).await;

    let rule = Rule::new(Operation::Delete, 0, denied()).on_keys_with("manifest.json");
    let faulty = FaultyStore::new(repository.store.clone(), vec![rule]);
    let error = prune::remove(&faulty, &plan.removals[&old]).await.unwrap_err().to_string();
    assert!(error.contains("manifest.json"), "{error}");
    let set = catalog::load(&*repository.store, &Trusted::default(), SITE, JOB, &old).await.unwrap();
    assert!(set.missing().is_empty(), "nothing else was touched");

    // Later on the rest is tried to the end, and the failure is told.
    let rule = Rule::new(Operation::Delete, 0, denied()).on_keys_with("schema");
    let faulty = FaultyStore::new(repository.store.clone(), vec![rule]);
    let error = prune::remove(&faulty, &plan.removals[&old]).await.unwrap_err().to_string();
    assert!(error.contains("schema"), "{error}");
    let left = catalog::sets(&*repository.store, SITE, JOB).await.unwrap();
    assert_eq!((left[0].state, left[0].objects.len()), (State::Incomplete, 1));
}

#[tokio::test]
async fn the_proven_set_outlives_the_rules() {
    let repository = Repository::memory();
    let proven = repository.set("2026-01-01T03:00:00Z").await;
    let differs = repository.set("2026-01-02T03:00:00Z").await;
    let never = repository.set("2026-01-03T03:00:00Z").await;
    let newest = repository.set("2026-11-20T03:00:00Z").await;
    repository.verify(&proven, "2026-01-01T05:00:00Z", Verdict::Proven).await;
    repository.verify(&differs, "2026-01-02T05:00:00Z", Verdict::Proven).await;
    let reasons = async || {
        let plan = plan(&repository, &Trusted::default(), last(1)).await.plan;
        plan.decisions.into_iter().map(|d| (d.id, d.reasons.last().cloned().unwrap())).collect::<Vec<_>>()
    };
    let expected = |reasons: [Reason; 4]| {
        [&newest, &never, &differs, &proven].map(String::clone).into_iter().zip(reasons).collect::<Vec<_>>()
    };
    let found = [Reason::Last, Reason::Unneeded, Reason::NewestProven, Reason::Unneeded];
    assert_eq!(reasons().await, expected(found));
    // A later rehearsal may have been wrong, or right: neither costs a set.
    repository.verify(&differs, "2026-02-02T05:00:00Z", Verdict::Differs).await;
    let found = [Reason::Last, Reason::Frozen, Reason::Frozen, Reason::NewestProven];
    assert_eq!(reasons().await, expected(found));
}

#[tokio::test]
async fn sets_that_nobody_vouches_for_are_neither_counted_nor_removed() {
    let keys = Keys::new();
    let mut repository = Repository::signed(&keys);
    let trusted = keys.trusted();
    let old = repository.set("2026-11-01T03:00:00Z").await;
    let good = repository.set("2026-11-20T03:00:00Z").await;
    repository.keys = None;
    let planted = repository.set("2026-11-10T03:00:00Z").await;
    let plan = plan(&repository, &trusted, last(1)).await;
    assert_eq!(plan.removals.keys().collect::<Vec<_>>(), [&old]);
    assert_eq!(plan.refused.len(), 1);
    assert!(plan.refused[0].0 == planted && plan.refused[0].1.contains("not signed"));
    assert!(plan.plan.decisions.iter().any(|d| d.id == good && d.keep));

    // Planted as the newest, it stops pruning rather than pushing the good set out.
    repository.set("2026-11-21T03:00:00Z").await;
    let plan = super::planned(&*repository.store, &trusted, last(1)).await.unwrap();
    assert!(plan.plan.frozen.unwrap().contains("not signed"));
    assert!(plan.removals.is_empty());
}

/// Days are whole, so what is locked here is locked in memory. A record that a rehearsal wrote later is
/// locked longer than the rest of its set.
#[tokio::test]
async fn a_set_of_which_anything_is_locked_stays_whole() {
    let memory = MemoryStore::new();
    let mut repository = Repository::memory();
    repository.store = Arc::new(memory.clone());
    let ids = [
        repository.set("2026-11-01T03:00:00Z").await,
        repository.set("2026-11-02T03:00:00Z").await,
        repository.set("2026-11-03T03:00:00Z").await,
        repository.set("2026-11-20T03:00:00Z").await,
    ];
    let key = |id: &str, name: &str| format!("{SITE}/{JOB}/{id}/{name}");
    let hour = |hours| Utc::now() + chrono::TimeDelta::hours(hours);
    memory.set_locked(&key(&ids[0], "manifest.json"), hour(-1));
    memory.set_locked(&key(&ids[1], "RESTORE.md"), hour(2));
    memory.set_locked(&key(&ids[2], "manifest.json"), hour(2));
    memory.set_locked(&key(&ids[2], "RESTORE.md"), hour(5));
    // Of what stays anyway nobody asks.
    memory.set_locked(&key(&ids[3], "manifest.json"), hour(9));
    let plan = plan(&repository, &Trusted::default(), last(1)).await;
    assert_eq!(plan.removals.keys().collect::<Vec<_>>(), [&ids[0]]);
    assert_eq!(plan.locked.keys().collect::<Vec<_>>(), [&ids[1], &ids[2]]);
    assert!((plan.locked[&ids[2]] - hour(5)).abs() < chrono::TimeDelta::minutes(1), "the last one counts");
    assert_eq!(plan.locks_unknown, None);
    assert_eq!(prune(&repository, &Trusted::default(), last(1)).await, std::slice::from_ref(&ids[0]));
    assert!(repository.keys().await.iter().any(|key| key.contains(&ids[1])));

    // Whoever may not ask removes what the rules say, and says so; a store that fails is an error.
    let failing = |error| {
        let rules = vec![Rule::new(Operation::LockedUntil, 0, Fault::Fail(error))];
        FaultyStore::new(Arc::new(memory.clone()), rules)
    };
    let denied = failing(StoreError::Denied("no".into()));
    let planned = super::planned(&denied, &Trusted::default(), last(1)).await.unwrap();
    assert_eq!((planned.removals.len(), planned.locks_unknown.as_deref()), (2, Some("no")));
    let broken = failing(StoreError::Other("broken".into()));
    let failure = super::planned(&broken, &Trusted::default(), last(1)).await.unwrap_err();
    assert!(failure.to_string().contains("cannot learn what is locked"), "{failure}");
}

/// A set that is named goes only as a whole.
#[tokio::test]
async fn a_locked_set_is_not_forgotten() {
    let memory = MemoryStore::new();
    let mut repository = Repository::memory();
    repository.store = Arc::new(memory.clone());
    let locked = repository.set("2026-11-01T03:00:00Z").await;
    let free = repository.set("2026-11-02T03:00:00Z").await;
    repository.set("2026-11-20T03:00:00Z").await;
    memory.set_locked(&format!("{SITE}/{JOB}/{locked}/RESTORE.md"), Utc::now() + chrono::TimeDelta::hours(2));
    let entries = catalog::sets(&*repository.store, SITE, JOB).await.unwrap();
    let ids = [locked.clone(), free.clone()].into();
    let trusted = Trusted::default();
    let planned = opsd::backup::forget::plan(&*repository.store, &trusted, entries, &ids, Utc::now()).await;
    let (items, unknown) = planned.unwrap();
    assert_eq!((items.len(), unknown), (2, None));
    assert!(items[0].id == locked && items[0].stays.as_ref().unwrap().contains("locked until"));
    assert!(items[1].id == free && items[1].stays.is_none(), "{items:?}");
}
