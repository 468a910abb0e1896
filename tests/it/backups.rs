//! The catalog and pruning, over stores with hand-made manifests.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use opsd::backup::prune;
use opsd::backup::retention::Reason;
use opsd::config::Retention;
use opsd::error::Kind;
use opsd::set::catalog::{self, Selector, Signature, State};
use opsd::set::manifest::{self, Manifest, Object, ProofState, Stream};
use opsd::set::verification::{self, Phases, Verdict, Verification};
use opsd::set::{self, seal, signature};
use opsd::store::faulty::{Fault, FaultyStore, Operation, Rule};
use opsd::store::fs::FsStore;
use opsd::store::memory::MemoryStore;
use opsd::store::{self, Store, StoreError};

const SITE: &str = "example";
const JOB: &str = "db";

fn time(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

fn now() -> DateTime<Utc> {
    time("2026-11-21T12:00:00Z")
}

/// A signing key in a file, and its public half.
struct Keys {
    _dir: tempfile::TempDir,
    secret: std::path::PathBuf,
    public: String,
}

impl Keys {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let secret = dir.path().join("sign.key");
        let pair = minisign::KeyPair::generate_unencrypted_keypair().expect("a key pair");
        let file = pair.sk.to_box(None).expect("a secret key").into_string();
        std::fs::write(&secret, file).expect("the key's file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&secret, mode).expect("the key's mode");
        Self { _dir: dir, secret, public: pair.pk.to_base64() }
    }

    fn trusted(&self) -> Vec<String> {
        vec![self.public.clone()]
    }
}

/// A repository that sets are put into by hand.
struct Repository<'k> {
    store: Arc<dyn Store>,
    keys: Option<&'k Keys>,
}

impl<'k> Repository<'k> {
    fn memory() -> Self {
        Self { store: Arc::new(MemoryStore::new()), keys: None }
    }

    fn signed(keys: &'k Keys) -> Self {
        Self { keys: Some(keys), ..Self::memory() }
    }

    async fn put(&self, key: &str, bytes: impl Into<bytes::Bytes>) {
        store::put(&*self.store, key, bytes, false).await.expect("stored");
    }

    async fn put_signed(&self, key: &str, bytes: Vec<u8>) {
        if let Some(keys) = self.keys {
            let signature = signature::sign(&keys.secret, &bytes, "test").expect("signed");
            self.put(&format!("{key}.minisig"), signature).await;
        }
        self.put(key, bytes).await;
    }

    /// A whole set that started at `started`; its id.
    async fn set(&self, started: &str) -> String {
        let id = format!("{}-0000", time(started).format("%Y%m%dT%H%M%SZ"));
        self.set_as(&id, &manifest(started, &id)).await;
        id
    }

    async fn set_as(&self, id: &str, manifest: &Manifest) {
        let prefix = set::set_prefix(SITE, JOB, id);
        for object in manifest.objects() {
            self.put(&format!("{prefix}{}", object.key), vec![7; object.size as usize]).await;
        }
        self.put_signed(&format!("{prefix}manifest.json"), manifest.to_bytes().expect("bytes")).await;
    }

    /// A rehearsal of a set that is there.
    async fn verify(&self, id: &str, finished: &str, verdict: Verdict) -> String {
        let set = catalog::load(&*self.store, &[], SITE, JOB, id).await.expect("the set");
        let finished = time(finished);
        let record = Verification {
            format: verification::FORMAT,
            site: SITE.into(),
            job: JOB.into(),
            id: id.into(),
            manifest_sha256: set.manifest_sha256,
            verdict,
            started: finished - TimeDelta::seconds(90),
            finished,
            seconds: Phases(vec![("fetch".into(), 10.0), ("restore".into(), 80.0)]),
            databases: vec![verification::Database {
                name: "app".into(),
                tables_total: 2,
                tables_proven: 2,
                rows: 100,
                differences: vec![],
            }],
            warnings: vec![],
            server_version: Some("17.11".into()),
            opsd_version: "0.1.0".into(),
        };
        let key = set::set_prefix(SITE, JOB, id) + &verification::name(finished);
        self.put_signed(&key, record.to_bytes().expect("bytes")).await;
        key
    }

    async fn keys(&self) -> Vec<String> {
        self.store.list("").await.expect("a listing").into_iter().map(|o| o.key).collect()
    }
}

fn object(key: &str) -> Object {
    Object { key: key.into(), size: 64, sha256: "00".repeat(32) }
}

fn stream(name: &str, key: &str) -> Stream {
    Stream { name: name.into(), plain_size: 1000, objects: vec![object(key)], seconds: 0.5 }
}

fn manifest(started: &str, id: &str) -> Manifest {
    let started = time(started);
    Manifest {
        format: manifest::FORMAT,
        site: SITE.into(),
        job: JOB.into(),
        id: id.into(),
        started,
        finished: started + TimeDelta::seconds(60),
        previous: None,
        opsd_version: "0.1.0".into(),
        server: manifest::Server { version_num: 170011, version: "17.11".into(), in_recovery: false },
        pg_dump_version: "17.11".into(),
        recipients: vec!["age1example".into()],
        globals: Some(stream("globals", set::GLOBALS)),
        databases: vec![manifest::Database {
            name: "app".into(),
            locale: manifest::Locale {
                encoding: "UTF8".into(),
                collate: "C".into(),
                ctype: "C".into(),
                provider: "libc".into(),
                locale: None,
                icu_rules: None,
                monetary: "C".into(),
            },
            snapshot_lsn: "0/1".into(),
            snapshot_time: started + TimeDelta::seconds(2),
            collations: vec![],
            extensions: vec![],
            excluded: vec![],
            streams: vec![
                stream("schema", "app/schema.pgdump.zst.age"),
                stream("data-rest", "app/data-rest.pgdump.zst.age"),
            ],
            proof_object: Some(stream("proof", "app/proof.json.zst.age")),
            proof: ProofState::Complete,
            tables: 2,
            rows: 100,
            bytes: 900,
        }],
        restore_md: object(set::RESTORE_MD),
        warnings: vec![],
    }
}

fn last(n: u32) -> Retention {
    Retention { last: n, ..Retention::default() }
}

async fn find(
    repository: &Repository<'_>,
    trusted: &[String],
    selector: &str,
) -> opsd::error::Result<String> {
    let selector = Selector::from_options(Some(selector), None).expect("a selector");
    let found = catalog::find(&*repository.store, trusted, SITE, JOB, &selector).await;
    found.map(|set| set.entry.id)
}

async fn plan(repository: &Repository<'_>, trusted: &[String], rules: Retention) -> prune::JobPlan {
    prune::plan(&*repository.store, trusted, SITE, JOB, &rules, now(), false).await.expect("a plan")
}

/// Plans, removes, and tells which ids went.
async fn prune(repository: &Repository<'_>, trusted: &[String], rules: Retention) -> Vec<String> {
    let plan = plan(repository, trusted, rules).await;
    for removal in plan.removals.values() {
        prune::remove(&*repository.store, removal).await.expect("removed");
    }
    plan.removals.into_keys().collect()
}

#[tokio::test]
async fn the_catalog_is_what_the_repository_holds() {
    let repository = Repository::memory();
    let complete = repository.set("2026-11-01T03:00:00Z").await;
    repository.put("example/db/20261102T030000Z-0000/app/schema.pgdump.zst.age", "x").await;
    repository.put("example/db/20261103T030000Z-0000/failed.json", "{}").await;
    // None of these is a set of this job.
    repository.put("example/db/lease.json", "{}").await;
    repository.put("example/db/notes/manifest.json", "{}").await;
    repository.put("example/db-two/20261104T030000Z-0000/manifest.json", "{}").await;
    repository.put("other/db/20261104T030000Z-0000/manifest.json", "{}").await;

    let sets = catalog::sets(&*repository.store, SITE, JOB).await.unwrap();
    let states: Vec<_> = sets.iter().map(|s| (s.id.as_str(), s.state)).collect();
    assert_eq!(
        states,
        [
            (complete.as_str(), State::Complete),
            ("20261102T030000Z-0000", State::Incomplete),
            ("20261103T030000Z-0000", State::Failed),
        ]
    );
    assert_eq!(sets[0].objects.len(), 6);
    assert_eq!(sets[1].stored_bytes(), 1);
    let jobs = catalog::jobs(&*repository.store, SITE).await.unwrap();
    assert_eq!(jobs.keys().collect::<Vec<_>>(), ["db", "db-two"]);
    assert_eq!(jobs["db"], sets);

    for (id, expected) in [("20261102", "is incomplete"), ("20261103", "run that failed")] {
        let error = find(&repository, &[], id).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_set_is_found_by_id_by_its_beginning_or_as_the_latest() {
    let repository = Repository::memory();
    let error = find(&repository, &[], "latest").await.unwrap_err();
    assert!(error.to_string().contains("no set of job \"db\""), "{error}");
    let first = repository.set("2026-11-01T03:00:00Z").await;
    let second = repository.set("2026-11-02T03:00:00Z").await;
    // A newer id without a manifest is not the latest backup.
    repository.put("example/db/20261105T030000Z-0000/app/x", "x").await;

    assert_eq!(find(&repository, &[], "latest").await.unwrap(), second);
    assert_eq!(find(&repository, &[], &first).await.unwrap(), first);
    assert_eq!(find(&repository, &[], "20261101").await.unwrap(), first);
    let ambiguous = find(&repository, &[], "202611").await.unwrap_err().to_string();
    assert!(ambiguous.contains("more than one set") && ambiguous.contains(&first), "{ambiguous}");
    let missing = find(&repository, &[], "1999").await.unwrap_err().to_string();
    assert!(missing.contains("no set \"1999\"") && missing.contains(&second), "{missing}");
}

#[tokio::test]
async fn the_latest_is_by_the_manifests_time_not_by_name() {
    let repository = Repository::memory();
    repository.set("2026-11-02T03:00:00Z").await;
    // The clock was wrong when this id was made, and its manifest says when it really was.
    let old = "20291231T000000Z-0000";
    repository.set_as(old, &manifest("2026-11-01T03:00:00Z", old)).await;
    assert_eq!(find(&repository, &[], "latest").await.unwrap(), "20261102T030000Z-0000");
}

/// The clock of the host was once ahead: that set was the latest for ever.
#[tokio::test]
async fn a_set_from_the_future_is_the_latest_only_where_there_is_no_other() {
    let repository = Repository::memory();
    let started = |time: DateTime<Utc>| time.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let later = repository.set(&started(Utc::now() + TimeDelta::days(90))).await;
    assert_eq!(find(&repository, &[], "latest").await.unwrap(), later);
    let real = repository.set(&started(Utc::now() - TimeDelta::hours(3))).await;
    assert_eq!(find(&repository, &[], "latest").await.unwrap(), real);
    assert_eq!(find(&repository, &[], &later).await.unwrap(), later);
    let newest = catalog::newest_complete(&*repository.store, SITE, JOB, Utc::now()).await.unwrap();
    assert_eq!((newest.id, newest.ahead), (Some(real.clone()), vec![later]));
    // Refused, and dated like that: it does not stand in the way of the others either.
    let id = format!("{}-0000", (Utc::now() + TimeDelta::days(91)).format("%Y%m%dT%H%M%SZ"));
    repository.put(&format!("{SITE}/{JOB}/{id}/manifest.json"), "{}").await;
    assert_eq!(find(&repository, &[], "latest").await.unwrap(), real);
    // Clocks differ by a little: that is no future.
    let young = repository.set(&started(Utc::now() + TimeDelta::minutes(2))).await;
    assert_eq!(find(&repository, &[], "latest").await.unwrap(), young);
}

#[tokio::test]
async fn at_a_time_only_older_data_is_found() {
    let repository = Repository::memory();
    let first = repository.set("2026-11-01T03:00:00Z").await;
    let second = repository.set("2026-11-02T03:00:00Z").await;
    let at = async |time: &str| {
        let selector = Selector::from_options(None, Some(time)).unwrap();
        let found = catalog::find(&*repository.store, &[], SITE, JOB, &selector).await;
        found.map(|set| set.entry.id)
    };
    assert_eq!(at("2026-11-01T04:00:00+01:00").await.unwrap_err().kind(), Kind::Failed);
    // Its snapshot was taken two seconds after it started.
    assert!(at("2026-11-01T03:00:01Z").await.unwrap_err().to_string().contains("from 2026-11-01"));
    assert_eq!(at("2026-11-01 03:00:02").await.unwrap(), first);
    assert_eq!(at("2026-11-02T03:00:01Z").await.unwrap(), first);
    assert_eq!(at("2026-11-02T03:00").await.unwrap(), first);
    assert_eq!(at("2030-01-01T00:00:00Z").await.unwrap(), second);
    for bad in ["yesterday", "2026-11-02", "2026-11-31 00:00"] {
        let error = Selector::from_options(None, Some(bad)).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
    }
    assert_eq!(
        Selector::from_options(Some(&first), Some("2026-11-02T03:00Z")).unwrap_err().kind(),
        Kind::Usage
    );
}

#[tokio::test]
async fn a_manifest_edited_by_hand_is_refused_and_not_passed_over() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let trusted = keys.trusted();
    let older = repository.set("2026-11-01T03:00:00Z").await;
    let edited = repository.set("2026-11-02T03:00:00Z").await;
    assert_eq!(find(&repository, &trusted, "latest").await.unwrap(), edited);
    let set = catalog::load(&*repository.store, &trusted, SITE, JOB, &edited).await.unwrap();
    assert_eq!(set.signature, Signature::Trusted(keys.public.clone()));

    let key = format!("example/db/{edited}/manifest.json");
    let bytes = store::get(&*repository.store, &key, 1 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap().replace("\"rows\": 100", "\"rows\": 101");
    repository.put(&key, text).await;
    for selector in ["latest", edited.as_str()] {
        let error = find(&repository, &trusted, selector).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Differs, "{error}");
        assert!(error.to_string().contains(&edited), "{error}");
    }
    // What is older stays usable, by name and by time, and the error says so.
    let error = find(&repository, &trusted, "latest").await.unwrap_err().to_string();
    assert!(error.contains(&older), "{error}");
    assert_eq!(find(&repository, &trusted, &older).await.unwrap(), older);
    let before = Selector::At(time("2026-11-01T12:00:00Z"));
    catalog::find(&*repository.store, &trusted, SITE, JOB, &before).await.unwrap();
    // Without trusted keys nobody can tell.
    assert_eq!(find(&repository, &[], "latest").await.unwrap(), edited);
}

#[tokio::test]
async fn unsigned_and_foreign_signatures_are_refused_where_keys_are_trusted() {
    let keys = Keys::new();
    let other = Keys::new();
    let unsigned = Repository::memory();
    let id = unsigned.set("2026-11-01T03:00:00Z").await;
    let error = find(&unsigned, &keys.trusted(), &id).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Differs);
    assert!(error.to_string().contains("not signed"), "{error}");
    let set = catalog::load(&*unsigned.store, &[], SITE, JOB, &id).await.unwrap();
    assert_eq!(set.signature, Signature::Unsigned);

    let signed = Repository::signed(&other);
    let id = signed.set("2026-11-01T03:00:00Z").await;
    assert_eq!(find(&signed, &keys.trusted(), &id).await.unwrap_err().kind(), Kind::Differs);
    let set = catalog::load(&*signed.store, &[], SITE, JOB, &id).await.unwrap();
    assert_eq!(set.signature, Signature::Unchecked);
    // One of several trusted keys is enough, and is named.
    let both = vec![keys.public.clone(), other.public.clone()];
    let set = catalog::load(&*signed.store, &both, SITE, JOB, &id).await.unwrap();
    assert_eq!(set.signature, Signature::Trusted(other.public.clone()));
}

#[tokio::test]
async fn a_manifest_of_a_newer_version_is_refused() {
    let repository = Repository::memory();
    repository.set("2026-11-01T03:00:00Z").await;
    let id = "20261102T030000Z-0000";
    let mut newer = manifest("2026-11-02T03:00:00Z", id);
    newer.format = 2;
    repository.set_as(id, &newer).await;
    let error = find(&repository, &[], "latest").await.unwrap_err();
    assert!(error.to_string().contains("format 2"), "{error}");
    assert!(error.hint().unwrap().contains("opsd version"));

    // It is the newest: nothing is removed until somebody has looked.
    let plan = plan(&repository, &[], last(1)).await;
    assert!(plan.plan.frozen.unwrap().contains("format 2"));
    assert!(plan.removals.is_empty());
}

#[tokio::test]
async fn a_set_of_another_job_moved_here_is_refused() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let id = "20261102T030000Z-0000";
    let mut moved = manifest("2026-11-02T03:00:00Z", id);
    moved.job = "shop".into();
    repository.set_as(id, &moved).await;
    let error = find(&repository, &keys.trusted(), "latest").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Differs);
    assert!(error.to_string().contains("example/shop/"), "{error}");
}

#[tokio::test]
async fn only_records_of_this_manifest_count() {
    let repository = Repository::memory();
    let id = repository.set("2026-11-01T03:00:00Z").await;
    let proven = repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    let load = async || catalog::load(&*repository.store, &[], SITE, JOB, &id).await.unwrap();
    assert!(load().await.is_proven());

    // A rehearsal that could not run takes no proof away; a difference does; a new proof restores it.
    repository.verify(&id, "2026-11-02T05:00:00Z", Verdict::Failed).await;
    assert!(load().await.is_proven());
    repository.verify(&id, "2026-11-03T05:00:00Z", Verdict::Differs).await;
    assert!(!load().await.is_proven());
    assert_eq!(load().await.verified().unwrap().verdict, Verdict::Differs);
    repository.verify(&id, "2026-11-04T05:00:00Z", Verdict::Proven).await;
    assert!(load().await.is_proven());
    assert_eq!(load().await.verifications.len(), 4);

    // The manifest changes: what was proven was another one.
    let mut manifest = manifest("2026-11-01T03:00:00Z", &id);
    manifest.warnings.push("edited".into());
    let key = format!("example/db/{id}/manifest.json");
    repository.put(&key, manifest.to_bytes().unwrap()).await;
    let set = load().await;
    assert!(!set.is_proven() && set.verifications.is_empty());
    assert_eq!(set.ignored.len(), 4);
    let (name, why) = &set.ignored[0];
    assert!(proven.ends_with(name.as_str()) && why.to_string().contains("another manifest"), "{why}");
}

#[tokio::test]
async fn a_record_edited_by_hand_does_not_count() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let trusted = keys.trusted();
    let id = repository.set("2026-11-01T03:00:00Z").await;
    let key = repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Unproven).await;
    let load = async || catalog::load(&*repository.store, &trusted, SITE, JOB, &id).await.unwrap();
    assert_eq!(load().await.verified().unwrap().verdict, Verdict::Unproven);

    let bytes = store::get(&*repository.store, &key, 1 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap().replace("unproven", "proven");
    repository.put(&key, text.clone()).await;
    let set = load().await;
    assert!(!set.is_proven() && set.verifications.is_empty());
    assert_eq!(set.ignored[0].1.kind(), Kind::Differs);

    // The same without a signature: planted.
    repository.store.delete(&format!("{key}.minisig")).await.unwrap();
    let set = load().await;
    assert!(!set.is_proven() && set.ignored[0].1.to_string().contains("not signed"));
}

#[tokio::test]
async fn a_proof_of_some_databases_only_does_not_count() {
    let repository = Repository::memory();
    let id = "20261101T030000Z-0000";
    let mut manifest = manifest("2026-11-01T03:00:00Z", id);
    let mut second = manifest.databases[0].clone();
    second.name = "shop".into();
    (second.streams, second.proof_object) = (vec![stream("schema", "shop/schema.pgdump.zst.age")], None);
    manifest.databases.push(second);
    repository.set_as(id, &manifest).await;
    repository.verify(id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    let set = catalog::load(&*repository.store, &[], SITE, JOB, id).await.unwrap();
    assert!(!set.is_proven());
    assert!(set.ignored[0].1.to_string().contains("\"shop\""));
}

#[tokio::test]
async fn missing_and_foreign_objects_are_told_from_the_listing() {
    let repository = Repository::memory();
    let id = repository.set("2026-11-01T03:00:00Z").await;
    repository.store.delete(&format!("example/db/{id}/app/schema.pgdump.zst.age")).await.unwrap();
    repository.put(&format!("example/db/{id}/app/data-rest.pgdump.zst.age"), "short").await;
    repository.put(&format!("example/db/{id}/notes.txt"), "mine").await;
    let set = catalog::load(&*repository.store, &[], SITE, JOB, &id).await.unwrap();
    assert_eq!(set.missing(), ["app/schema.pgdump.zst.age", "app/data-rest.pgdump.zst.age"]);
    assert_eq!(set.foreign(), ["notes.txt"]);
    // Such a set restores nothing, so it must not push good ones out.
    let older = repository.set("2026-10-01T03:00:00Z").await;
    let plan = plan(&repository, &[], last(1)).await;
    assert!(plan.plan.frozen.unwrap().contains("app/schema.pgdump.zst.age"));
    assert!(plan.plan.decisions.iter().any(|d| d.id == older && d.keep));
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
        repository.verify(&old, "2026-11-01T05:00:00Z", Verdict::Differs).await;
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

        assert_eq!(prune(&repository, &[], last(1)).await, std::slice::from_ref(&old));
        assert_eq!(repository.keys().await, untouched);
        // Again: nothing left to do.
        assert!(prune(&repository, &[], last(1)).await.is_empty());
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
    assert!(removal.keys.contains(&format!("{prefix}verified-20261101T050000Z.json.minisig")));
    assert_eq!(removal.keys.len(), 9);
    assert!(removal.foreign.is_empty());
}

#[tokio::test]
async fn a_deletion_that_fails_leaves_a_whole_set_or_none() {
    let denied = || Fault::Fail(StoreError::Denied("no".into()));
    let repository = Repository::memory();
    let old = repository.set("2026-11-01T03:00:00Z").await;
    repository.set("2026-11-20T03:00:00Z").await;
    let plan = plan(&repository, &[], last(1)).await;

    let rule = Rule::new(Operation::Delete, 0, denied()).on_keys_with("manifest.json");
    let faulty = FaultyStore::new(repository.store.clone(), vec![rule]);
    let error = prune::remove(&faulty, &plan.removals[&old]).await.unwrap_err().to_string();
    assert!(error.contains("manifest.json"), "{error}");
    let set = catalog::load(&*repository.store, &[], SITE, JOB, &old).await.unwrap();
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
    let newest = repository.set("2026-11-20T03:00:00Z").await;
    repository.verify(&proven, "2026-01-01T05:00:00Z", Verdict::Proven).await;
    repository.verify(&differs, "2026-01-02T05:00:00Z", Verdict::Proven).await;
    repository.verify(&differs, "2026-02-02T05:00:00Z", Verdict::Differs).await;
    let plan = plan(&repository, &[], last(1)).await;
    let reasons: Vec<_> = plan.plan.decisions.iter().map(|d| (d.id.as_str(), &d.reasons[0])).collect();
    assert_eq!(
        reasons,
        [
            (newest.as_str(), &Reason::NewestComplete),
            (differs.as_str(), &Reason::Unneeded),
            (proven.as_str(), &Reason::NewestProven),
        ]
    );
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
    let plan = prune::plan(&*repository.store, &trusted, SITE, JOB, &last(1), now(), false).await.unwrap();
    assert!(plan.plan.frozen.unwrap().contains("not signed"));
    assert!(plan.removals.is_empty());
}

#[tokio::test]
async fn a_thousand_sets_list_within_two_seconds() {
    let repository = Repository::memory();
    for n in 0..1000 {
        let started = time("2024-01-01T03:00:00Z") + TimeDelta::hours(n * 24);
        let id = repository.set(&started.to_rfc3339()).await;
        repository.verify(&id, &(started + TimeDelta::hours(1)).to_rfc3339(), Verdict::Proven).await;
    }
    let clock = std::time::Instant::now();
    let entries = catalog::sets(&*repository.store, SITE, JOB).await.unwrap();
    let sets: Vec<_> = catalog::load_each(&*repository.store, &[], entries).collect().await;
    let took = clock.elapsed();
    assert_eq!(sets.len(), 1000);
    assert!(sets.iter().all(|(_, set)| set.as_ref().is_ok_and(|s| s.is_proven())));
    assert!(took < std::time::Duration::from_secs(2), "{took:?}");
}

/// A repository in a directory, its configuration, and the built `opsd`.
struct Site {
    dir: tempfile::TempDir,
    recipient: String,
    repository: Repository<'static>,
}

impl Site {
    fn new(retention: &str, trusted_keys: &[String]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("repository");
        std::fs::create_dir(&path).expect("the repository's directory");
        let store = Arc::new(FsStore::open(&path).expect("a repository"));
        let identity = age::x25519::Identity::generate();
        let recipient = identity.to_public();
        let identity_file = dir.path().join("identity.txt");
        let secret = age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned();
        std::fs::write(&identity_file, secret).expect("an identity");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&identity_file, mode).expect("the identity's mode");
        let config = format!(
            "site = \"{SITE}\"\n[repository]\nurl = \"file://{}\"\n[encryption]\nrecipients = [\"{recipient}\"]\n\
             identity_file = {identity_file:?}\n\
             trusted_keys = {trusted_keys:?}\n[postgres.main]\nurl = \"postgres://opsd@127.0.0.1/app\"\n\
             [backup.db]\nsource = {{ postgres = \"main\" }}\n{retention}\n\
             [backup.shop]\nsource = {{ postgres = \"main\" }}\n",
            path.display()
        );
        std::fs::write(dir.path().join("opsd.toml"), config).expect("a configuration");
        Self { dir, recipient: recipient.to_string(), repository: Repository { store, keys: None } }
    }

    /// Runs `opsd backups …`: exit code, stdout, stderr.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_opsd"))
            .arg("--config")
            .arg(self.dir.path().join("opsd.toml"))
            .arg("backups")
            .args(args)
            .output()
            .expect("opsd");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        let (code, stdout, stderr) = self.run(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).expect("one document")
    }
}

#[tokio::test]
async fn list_tells_of_every_set() {
    let site = Site::new("", &[]);
    let id = site.repository.set("2026-11-01T03:00:00Z").await;
    site.repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    site.repository.set("2026-11-02T03:00:00Z").await;
    site.repository.put("example/db/20261103T030000Z-0000/failed.json", "{}").await;
    site.repository.put("example/gone/20261104T030000Z-0000/app/x", "x").await;
    site.repository.put("example/db/20261105T030000Z-0000/manifest.json", "{\"format\": 2}").await;

    let document = site.json(&["list"]);
    let sets = document["sets"].as_array().unwrap();
    let states: Vec<_> =
        sets.iter().map(|s| (s["job"].as_str().unwrap(), s["state"].as_str().unwrap())).collect();
    assert_eq!(
        states,
        [("db", "complete"), ("db", "complete"), ("db", "failed"), ("db", "refused"), ("gone", "incomplete")]
    );
    let first = &sets[0];
    assert_eq!(first["id"], *id);
    assert_eq!(first["started"], "2026-11-01T03:00:00Z");
    assert_eq!(first["finished"], "2026-11-01T03:01:00Z");
    assert_eq!(first["databases"][0]["name"], "app");
    assert_eq!((&first["tables"], &first["rows"]), (&2.into(), &100.into()));
    assert_eq!(first["plain_bytes"], 4000);
    assert_eq!(first["proof"], "complete");
    assert_eq!(first["signature"], "unsigned");
    assert_eq!(first["verified"]["verdict"], "proven");
    assert_eq!(first["verified"]["time"], "2026-11-01T05:00:00Z");
    assert_eq!(first["verified"]["seconds"], 90.0);
    assert!(sets[1]["verified"].is_null());
    assert!(sets[2]["rows"].is_null(), "nobody knows: {}", sets[2]);
    assert!(sets[3]["error"].as_str().unwrap().contains("format 2"));

    let (code, stdout, stderr) = site.run(&["list"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("job db: 4 sets, 1 failed, 1 refused\n"), "{stdout}");
    assert!(stdout.contains("job shop: no sets yet\n"), "{stdout}");
    assert!(stdout.lines().all(|line| line.chars().count() <= 80), "{stdout}");
    assert_eq!(site.json(&["list", "shop"])["sets"].as_array().unwrap().len(), 0);
    let (code, _, stderr) = site.run(&["list", "nosuch"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("\"nosuch\"") && stderr.contains("db, gone, shop"), "{stderr}");
}

#[tokio::test]
async fn show_tells_everything_about_one_set() {
    let site = Site::new("", &[]);
    let id = site.repository.set("2026-11-01T03:00:00Z").await;
    site.repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    site.repository.put(&format!("example/db/{id}/verified-x.json"), "{}").await;
    site.repository.put(&format!("example/db/{id}/notes.txt"), "mine").await;
    site.repository
        .put("example/db/20261103T030000Z-0000/failed.json", "{\"error\": \"disk \u{1b}[2J full\"}")
        .await;
    site.repository.put("example/db/20261105T030000Z-0000/manifest.json", "{\"format\": 2}").await;

    let (code, stdout, stderr) = site.run(&["show", "20261101"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    for expected in [
        "complete, not signed",
        "proven in 1m 30s",
        "fetch 10s, restore 1m 20s",
        "app: 2 of 2 tables proven, 100 rows",
        "app/data-rest.pgdump.zst.age",
        "PostgreSQL 17.11",
        "verified-x.json does not count",
        "notes.txt",
    ] {
        assert!(stdout.contains(expected), "{expected:?} in\n{stdout}");
    }
    let document = site.json(&["show", &id]);
    assert_eq!(document["manifest"]["id"], *id);
    assert_eq!(document["verifications"][0]["seconds"]["restore"], 80.0);
    assert_eq!(document["foreign"][0], "notes.txt");

    let (code, stdout, _) = site.run(&["show", "20261103"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("disk \\u{1b}[2J full"), "{stdout}");
    // What is not believed is shown as far as the listing goes, and is an error.
    let (code, stdout, stderr) = site.run(&["show", "20261105"]);
    assert_eq!(code, 1);
    assert!(stdout.contains("refused") && stderr.contains("format 2"), "{stdout}{stderr}");
    assert_eq!(site.run(&["show", "2026"]).0, 1);

    // Two jobs may have started in the same second.
    site.repository.put(&format!("example/shop/{id}/failed.json"), "{}").await;
    let (code, _, stderr) = site.run(&["show", &id]);
    assert!(code == 1 && stderr.contains("more than one set") && stderr.contains("JOB/ID"), "{stderr}");
    let document = site.json(&["show", &format!("shop/{id}")]);
    assert_eq!((&document["set"]["job"], &document["set"]["state"]), (&"shop".into(), &"failed".into()));
}

#[tokio::test]
async fn prune_prints_a_reason_for_each_set_and_only_then_removes() {
    let site = Site::new("retention = { last = 1 }", &[]);
    let old = site.repository.set("2026-11-01T03:00:00Z").await;
    let kept = site.repository.set("2026-11-02T03:00:00Z").await;
    let before = site.repository.keys().await;

    let (code, stdout, stderr) = site.run(&["prune", "--dry-run"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("job db: 2 sets, 1 would go"), "{stdout}");
    assert!(stdout.contains(&format!("remove  {old}  no rule keeps it\n")), "{stdout}");
    assert!(stdout.contains(&format!("keep    {kept}  newest complete set, one of the last\n")), "{stdout}");
    assert_eq!(site.repository.keys().await, before);

    let document = site.json(&["prune"]);
    let sets = document["jobs"][0]["sets"].as_array().unwrap();
    assert_eq!((&sets[0]["action"], &sets[0]["removed"]), (&"keep".into(), &serde_json::Value::Null));
    assert_eq!((&sets[1]["action"], &sets[1]["removed"]), (&"remove".into(), &true.into()));
    assert!(site.repository.keys().await.iter().all(|key| key.contains(&kept)));

    for (job, expected) in [("shop", "no retention"), ("nosuch", "no job")] {
        let (code, _, stderr) = site.run(&["prune", job]);
        assert_eq!(code, 2);
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[tokio::test]
async fn a_frozen_prune_says_why_and_succeeds() {
    let site = Site::new("retention = { last = 1 }", &[]);
    site.repository.set("2026-11-01T03:00:00Z").await;
    site.repository.set("2026-11-02T03:00:00Z").await;
    site.repository.put("example/db/20261103T030000Z-0000/app/x", "x").await;
    let before = site.repository.keys().await;
    let (code, stdout, _) = site.run(&["prune"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("nothing is removed") && stdout.contains("incomplete"), "{stdout}");
    let (code, stdout, stderr) = site.run(&["prune", "--quiet"]);
    assert!(code == 0 && stdout.is_empty() && stderr.contains("nothing is removed"), "{stdout}{stderr}");
    assert_eq!(site.repository.keys().await, before);
}

/// A set with one stream that is really sealed; its plaintext.
async fn sealed_set(site: &Site, id: &str) -> String {
    let plaintext = "COPY public.accounts (id) FROM stdin;\n".repeat(100_000);
    let recipients = opsd::config::keys::recipients(std::slice::from_ref(&site.recipient));
    let options = seal::SealOptions {
        recipients: Arc::new(recipients.expect("recipients")),
        level: 1,
        part_size: 64 << 10,
        segment_limit: 1 << 30,
    };
    let prefix = set::set_prefix(SITE, JOB, id);
    let mut manifest = manifest("2026-11-01T03:00:00Z", id);
    let key = manifest.databases[0].streams[0].objects[0].key.clone();
    site.repository.set_as(id, &manifest).await;
    let store = &*site.repository.store;
    let bytes = plaintext.clone().into_bytes();
    manifest.databases[0].streams[0] =
        seal::seal_bytes(store, &prefix, &key, "schema", bytes, &options).await.expect("sealed");
    site.repository.put(&format!("{prefix}manifest.json"), manifest.to_bytes().expect("bytes")).await;
    plaintext
}

#[tokio::test]
async fn cat_writes_the_plaintext_of_one_stream() {
    let site = Site::new("", &[]);
    let id = "20261101T030000Z-0000";
    let plaintext = sealed_set(&site, id).await;
    let (code, stdout, stderr) = site.run(&["cat", id, "app", "schema"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout == plaintext);

    for (args, expected) in [
        (["cat", id, "app", "data-9"], "it has schema, data-rest, proof"),
        (["cat", id, "shop", "schema"], "it holds \"app\""),
        (["cat", "1999", "app", "schema"], "no set \"1999\""),
    ] {
        let (code, stdout, stderr) = site.run(&args);
        assert!(code != 0 && stdout.is_empty() && stderr.contains(expected), "{stderr}");
    }

    // Not this identity's.
    let other = Site::new("", &[]);
    let file = site.dir.path().join("identity.txt");
    std::fs::copy(other.dir.path().join("identity.txt"), &file).unwrap();
    let (code, stdout, stderr) = site.run(&["cat", id, "app", "schema"]);
    assert!(code != 0 && stdout.is_empty() && stderr.contains("schema"), "{stderr}");
}

#[tokio::test]
async fn cat_of_a_damaged_stream_is_an_error() {
    let site = Site::new("", &[]);
    let id = "20261101T030000Z-0000";
    sealed_set(&site, id).await;
    let path = site.dir.path().join(format!("repository/{SITE}/{JOB}/{id}/app/schema.pgdump.zst.age"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (code, _, stderr) = site.run(&["cat", id, "app", "schema"]);
    assert_eq!(code, 3, "{stderr}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(site.run(&["cat", id, "app", "schema"]).0, 3);
}
