//! Credentials that may not do everything, and a store that does not answer.

use super::*;
use crate::metrics::{self, Metric};
use crate::store::faulty::{Fault, FaultyStore, Operation, Rule};
use crate::store::memory::MemoryStore;

const ID: &str = "20261121T030000Z-7f3a";

#[test]
fn every_freshness_and_verdict_is_a_label() {
    use super::history::Freshness;
    use crate::set::verification::Verdict;
    let all =
        [Freshness::Fresh, Freshness::Overdue, Freshness::Missing, Freshness::Unbounded, Freshness::Unknown];
    assert_eq!(all.map(Freshness::as_str), metrics::BACKUP_RECOVERY_POINT_STATE.states);
    let all = [Verdict::Proven, Verdict::Differs, Verdict::Failed, Verdict::Unproven];
    assert_eq!([&all.map(Verdict::as_str)[..], &["none"]].concat(), metrics::BACKUP_REHEARSAL_STATE.states);
}

fn target() -> Target {
    Target {
        name: "backups".into(),
        site: "test".into(),
        repository: Repository {
            location: crate::config::Location::File("/nowhere".into()),
            endpoint: None,
            region: None,
            path_style: false,
            lock: None,
        },
        trusted: Trusted::default(),
        recipients: Vec::new(),
        jobs: BTreeMap::from([("db".into(), Some(Duration::from_secs(3600)))]),
        all: true,
        rpo: None,
        store: None,
        known: BTreeMap::new(),
        is_awaited: false,
    }
}

async fn collect(operation: Operation, error: StoreError) -> Result<Collected, Failure> {
    let store = MemoryStore::new();
    store.overwrite(&format!("test/db/{ID}/manifest.json"), "{}");
    store.overwrite(&format!("test/db/{ID}/app/schema.pgdump.zst.age"), "12345");
    let store = FaultyStore::new(Arc::new(store), vec![Rule::new(operation, 0, Fault::Fail(error))]);
    target().read(&store).await
}

fn value(found: &Collected, metric: &'static Metric, state: Option<&str>) -> Option<f64> {
    let matches = |s: &&crate::metrics::Sample| {
        s.metric == metric && state.is_none_or(|state| s.label("state") == Some(state))
    };
    found.samples.iter().find(matches).map(|s| s.value)
}

#[tokio::test]
async fn a_listing_alone_tells_what_it_tells() {
    let found = collect(Operation::Read, StoreError::Denied("no".into())).await.unwrap();
    let failure = found.concerns[1].failure.as_ref().unwrap();
    assert_eq!((found.concerns[1].name, failure.reason), ("manifests", Reason::Permission));
    assert_eq!(value(&found, &metrics::BACKUP_STORED, None), Some(7.0));
    assert_eq!(value(&found, &metrics::BACKUP_SETS, Some("complete")), Some(1.0));
    assert_eq!(value(&found, &metrics::BACKUP_LISTED_TIMESTAMP, None), Some(1_795_230_000.0));
    assert_eq!(value(&found, &metrics::BACKUP_RECOVERY_POINT_STATE, Some("unknown")), Some(1.0));
    for absent in [
        &metrics::BACKUP_RECOVERY_POINT_TIMESTAMP,
        &metrics::BACKUP_SIGNATURE_STATE,
        &metrics::BACKUP_REHEARSAL_STATE,
    ] {
        assert_eq!(value(&found, absent, None), None, "{}", absent.name);
    }
}

#[tokio::test]
async fn without_a_listing_there_is_nothing_to_tell() {
    let failure = collect(Operation::List, StoreError::Denied("no".into())).await.unwrap_err();
    assert_eq!(failure.reason, Reason::Permission);
    assert!(failure.error.hint().unwrap().contains("may list"), "{failure}");
    let failure = collect(Operation::List, StoreError::Other("gone".into())).await.unwrap_err();
    assert_eq!(failure.reason, Reason::Unreachable);
}

#[tokio::test]
async fn a_store_that_does_not_answer_refuses_no_set() {
    let found = collect(Operation::Read, StoreError::Other("broken".into())).await.unwrap();
    assert_eq!(found.concerns[1].failure.as_ref().unwrap().reason, Reason::Unreachable);
    assert_eq!(value(&found, &metrics::BACKUP_SETS, Some("refused")), Some(0.0));
    // Something that is no manifest is one thing, a store that fails another.
    let found = collect(Operation::Delete, StoreError::Other("never asked".into())).await.unwrap();
    assert_eq!(value(&found, &metrics::BACKUP_SETS, Some("refused")), Some(1.0));
    assert_eq!(value(&found, &metrics::BACKUP_RECOVERY_POINT_STATE, Some("missing")), Some(1.0));
    assert!(found.concerns[1].failure.is_none());
}

#[tokio::test]
async fn a_read_that_fails_once_refuses_no_set_and_a_refused_one_is_looked_at_again() {
    let manifest = crate::set::manifest::tests::manifest();
    let prefix = format!("{}/{}/{}", manifest.site, manifest.job, manifest.id);
    let store = Arc::new(MemoryStore::new());
    let bytes = serde_json::to_string(&manifest).unwrap();
    store.overwrite(&format!("{prefix}/manifest.json"), bytes);
    for object in manifest.stored() {
        store.overwrite(&format!("{prefix}/{}", object.key), "x".repeat(object.size as usize));
    }
    let mut target = Target { site: manifest.site.clone(), ..target() };
    target.jobs = BTreeMap::from([(manifest.job.clone(), None)]);
    assert_eq!(target.looks_again_in(), None, "nobody has looked yet");
    target.read(&MemoryStore::new()).await.unwrap();
    assert_eq!(target.looks_again_in(), Some(AWAITED), "there is no set");
    target.read(&*store).await.unwrap();
    assert_eq!(target.looks_again_in(), None, "there is one");
    target.known.clear();
    let refused = |found: &Collected| value(found, &metrics::BACKUP_SETS, Some("refused"));
    // The first call asks whether anything may be read, the second reads the manifest.
    let fails = |nth| Rule::new(Operation::Read, nth, Fault::Fail(StoreError::Other("broken".into())));
    let stumbles = FaultyStore::new(store.clone(), vec![fails(2)]);
    assert_eq!(refused(&target.read(&stumbles).await.unwrap()), Some(0.0));
    target.known.clear();
    // Twice in a row, and the next collection believes it all the same.
    let stumbles = FaultyStore::new(store.clone(), vec![fails(2), fails(4)]);
    assert_eq!(refused(&target.read(&stumbles).await.unwrap()), Some(1.0));
    assert_eq!(refused(&target.read(&*store).await.unwrap()), Some(0.0));
    // What is known is not read again.
    let dead = FaultyStore::new(store, vec![fails(0)]);
    let found = target.read(&dead).await.unwrap();
    assert!(refused(&found) == Some(0.0) && found.concerns[1].failure.is_none());
}

/// A set that differs is no recovery point, and one whose record cannot be read may be one that does.
#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_taken_for_none() {
    let manifest = crate::set::manifest::tests::manifest();
    let prefix = format!("{}/{}/{}", manifest.site, manifest.job, manifest.id);
    let store = Arc::new(MemoryStore::new());
    let bytes = serde_json::to_string(&manifest).unwrap();
    let mut record = crate::set::verification::tests::record(&crate::set::seal::sha256_hex(bytes.as_bytes()));
    (record.site, record.job, record.id) = (manifest.site.clone(), manifest.job.clone(), manifest.id.clone());
    record.verdict = crate::set::verification::Verdict::Differs;
    record.databases[0].differences.push("table public.t: 1 row instead of 2".into());
    store.overwrite(&format!("{prefix}/manifest.json"), bytes);
    let name = crate::set::verification::name(record.finished);
    store.overwrite(&format!("{prefix}/{name}"), serde_json::to_string(&record).unwrap());
    for object in manifest.stored() {
        store.overwrite(&format!("{prefix}/{}", object.key), "x".repeat(object.size as usize));
    }
    let mut target = Target { site: manifest.site.clone(), ..target() };
    target.jobs = BTreeMap::from([(manifest.job.clone(), None)]);
    let state = |found: &Collected, state| {
        value(found, &metrics::BACKUP_RECOVERY_POINT_STATE, Some(state)) == Some(1.0)
    };
    let fails = Fault::Fail(StoreError::Other("the line is cut".into()));
    let cut =
        FaultyStore::new(store.clone(), vec![Rule::new(Operation::Read, 0, fails).on_keys_with("verified-")]);
    let found = target.read(&cut).await.unwrap();
    let failure = found.concerns[1].failure.as_ref().expect("a failure");
    assert!(failure.error.to_string().contains("the line is cut"), "{failure}");
    assert!(state(&found, "unknown"), "{:?}", found.samples);
    // The next collection reads it.
    let found = target.read(&*store).await.unwrap();
    assert!(state(&found, "missing") && found.concerns[1].failure.is_none(), "{:?}", found.samples);
}
