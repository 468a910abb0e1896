//! Object Lock: what a run writes cannot be deleted before its time.

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_sdk_s3::primitives::DateTime as SdkDateTime;
use aws_sdk_s3::types::ObjectLockMode;
use chrono::{TimeDelta, Utc};
use opsd::config::{LockMode, ObjectLock};
use opsd::store::object_lock::{self, Protection};
use opsd::store::{Store, StoreError, open_s3, put};

use crate::s3::large_site;
use crate::support::opsd::{Opsd, Run, quoted};
use crate::support::postgres::default_server;
use crate::support::s3::{SeaweedFs, repository, s3s_fs};
use crate::support::sets::{back_up, complete, result};

const DAYS: i64 = 3;

fn use_bucket(opsd: &mut Opsd, server: &SeaweedFs, bucket: &str) {
    let keys = &server.admin;
    opsd.use_s3(&format!("s3://{bucket}/p"), &server.endpoint, &keys.access_key, &keys.secret_key);
}

fn lock(opsd: &mut Opsd, mode: &str) {
    opsd.repository.set("lock", format!("{{ mode = \"{mode}\", days = {DAYS} }}"));
}

/// A site with a small database.
fn small_site() -> Opsd {
    let server = default_server();
    let database = server.fresh_database("locked");
    server.psql(&database, "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)");
    Opsd::new(server, &[&database])
}

/// One object, as the client of somebody else sees it.
#[derive(Debug, PartialEq)]
struct Seen {
    key: String,
    version: String,
    lock: Option<(ObjectLockMode, i64)>,
}

async fn seen(client: &aws_sdk_s3::Client, bucket: &str) -> Vec<Seen> {
    let mut all = Vec::new();
    for object in client.list_objects_v2().bucket(bucket).send().await.unwrap().contents() {
        let key = object.key().unwrap().to_owned();
        let head = client.head_object().bucket(bucket).key(&key).send().await.unwrap();
        let until = head.object_lock_retain_until_date().map(SdkDateTime::secs);
        all.push(Seen {
            key,
            version: head.version_id().unwrap_or_default().to_owned(),
            lock: head.object_lock_mode().cloned().zip(until),
        });
    }
    all
}

async fn keys(client: &aws_sdk_s3::Client, bucket: &str) -> BTreeSet<String> {
    seen(client, bucket).await.into_iter().map(|object| object.key).collect()
}

fn words(run: &Run) -> String {
    run.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_of_a_set_is_locked_and_nothing_else() {
    let server = SeaweedFs::start().await;
    server.locking_bucket("locking").await;
    let client = server.client();
    for mode in ["governance", "compliance"] {
        let (_, mut opsd, _) = large_site();
        use_bucket(&mut opsd, &server, "locking");
        opsd.repository.set("url", quoted(&format!("s3://locking/{mode}")));
        lock(&mut opsd, mode);
        opsd.job.set("retention", "{ last = 1 }");
        let (begun, report) = (Utc::now(), opsd.ok(&["repository", "probe", "--json"]).json());
        let row = report["capabilities"].as_array().unwrap().iter().find(|c| c["name"] == "object-lock");
        assert_eq!(row.unwrap()["state"], "yes");
        assert!(!report["warnings"].to_string().contains("`lock`"), "{report}");
        let id = back_up(&opsd);
        let rehearsal = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(result(&rehearsal)["verdict"], "proven", "{rehearsal}");
        assert_eq!(result(&rehearsal)["warnings"].to_string().matches("not recorded").count(), 0);
        opsd.ok(&["backups", "prune"]);

        let all = seen(&client, "locking").await;
        let all: Vec<Seen> = all.into_iter().filter(|o| o.key.starts_with(mode)).collect();
        let (of_set, others): (Vec<&Seen>, Vec<&Seen>) = all.iter().partition(|o| o.key.contains(&id));
        let (records, backup): (Vec<&Seen>, Vec<&Seen>) =
            of_set.iter().partition(|o| o.key.contains("/verified-"));
        let name = |o: &Seen| o.key.rsplit('/').next().unwrap().to_owned();
        let names: BTreeSet<String> = backup.iter().map(|o| name(o)).collect();
        for wanted in ["manifest.json", "manifest.json.minisig", "RESTORE.md", "proof.json.zst.age"] {
            assert!(names.contains(wanted), "{names:?}");
        }
        assert!(names.iter().any(|name| name.starts_with("data-")) && backup.len() > 5, "{names:?}");
        assert_eq!(records.len(), 2, "the record and its signature: {records:?}");
        let sdk_mode =
            if mode == "governance" { ObjectLockMode::Governance } else { ObjectLockMode::Compliance };
        let first = backup[0].lock.as_ref().expect("a lock").1;
        let least = (begun + TimeDelta::days(DAYS)).timestamp();
        let most = (Utc::now() + TimeDelta::days(DAYS)).timestamp();
        for object in &of_set {
            let (found, until) = object.lock.clone().unwrap_or_else(|| panic!("{object:?} is not locked"));
            assert_eq!(found, sdk_mode);
            assert!((least..=most).contains(&until), "{object:?}");
            let version =
                client.delete_object().bucket("locking").key(&object.key).version_id(&object.version);
            let refused = version.send().await.unwrap_err().into_service_error();
            assert_eq!(refused.meta().code(), Some("AccessDenied"), "{object:?}");
        }
        assert!(backup.iter().all(|o| o.lock.as_ref().unwrap().1 == first), "one time for all of a run");
        // A lease and the probe's objects were there, and are gone again.
        assert_eq!(
            others.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(),
            [format!("{mode}/opsd-probe.json")]
        );
        assert_eq!(others[0].lock, None);
        // Nothing of all this is in the way of the next one.
        assert_ne!(back_up(&opsd), id);
        assert_eq!(complete(&opsd).len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_cannot_lock_is_refused_before_anything_is_written() {
    let server = SeaweedFs::start().await;
    let client = server.client();
    let mut opsd = small_site();
    use_bucket(&mut opsd, &server, &server.bucket);
    lock(&mut opsd, "governance");
    let no_lock = "lock is configured, and s3://backups/p has no Object Lock";
    opsd.run(&["backup", "--dry-run"]).expect_failure(2, &[no_lock]);
    let run = opsd.run(&["backup"]).expect_failure(2, &[no_lock, "says the store", "remove `lock`"]);
    assert!(keys(&client, &server.bucket).await.is_empty(), "{run}");
    let probe = opsd.ok(&["repository", "probe"]);
    assert!(
        words(&probe).contains("`lock` is set in [repository], and the bucket has no object lock"),
        "{probe}"
    );
    opsd.run(&["backup"]).expect_failure(2, &[no_lock, "says the last probe", "repository probe"]);
    assert_eq!(keys(&client, &server.bucket).await, ["p/opsd-probe.json".to_owned()].into());
}

/// Whoever may write to a bucket may write a report. It makes no backup that is not locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_report_makes_no_backup_that_is_not_locked() {
    let server = SeaweedFs::start().await;
    server.locking_bucket("locking").await;
    let client = server.client();
    let mut opsd = small_site();
    lock(&mut opsd, "governance");
    for (bucket, forged, code, fragments) in [
        ("locking", "no", 2, ["has no Object Lock", "says the last probe"]),
        (server.bucket.as_str(), "yes", 1, ["answered InvalidRequest", "have Object Lock?"]),
    ] {
        use_bucket(&mut opsd, &server, bucket);
        opsd.ok(&["repository", "probe"]);
        let place = repository(&server.endpoint, bucket, "p");
        let store = open_s3(&place, &server.admin.access()).await.unwrap();
        let report = opsd::store::get(&store, "opsd-probe.json", 1 << 20).await.unwrap();
        let mut report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        for row in report["capabilities"].as_array_mut().unwrap() {
            if row["name"] == "object-lock" {
                row["state"] = forged.into();
            }
        }
        put(&store, "opsd-probe.json", report.to_string(), false).await.unwrap();
        let run = opsd.run(&["backup"]).expect_failure(code, &fragments);
        // That a run failed is no object of a set, and is recorded where it can be.
        let mut left = keys(&client, bucket).await;
        left.retain(|key| !key.ends_with("opsd-probe.json") && !key.ends_with("/failed.json"));
        assert!(left.is_empty(), "{left:?} {run}");
    }
}

/// Some stores take the headers of a lock and do nothing about them.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_a_lock_and_does_not_lock_is_found_out() {
    let server = s3s_fs().await;
    let mut place = server.repository("p");
    place.lock = Some(ObjectLock { mode: LockMode::Governance, days: 1 });
    let store: Arc<dyn Store> = Arc::new(open_s3(&place, &server.keys.access()).await.unwrap());
    let refused = object_lock::locking(&store, &place).await.unwrap_err();
    assert!(refused.to_string().contains("has no Object Lock, says the store"), "{refused}");
    let retention =
        object_lock::Retention { mode: LockMode::Governance, until: Utc::now() + TimeDelta::days(1) };
    let locking = store.with_retention(retention).unwrap();
    let failure = put(locking.as_ref(), "test/db/x", "x", false).await.unwrap_err();
    assert!(
        matches!(&failure, StoreError::Unsupported(why) if why.contains("locked it not at all")),
        "{failure:?}"
    );
}

/// Days are whole, so a lock that is over is one of a set in memory.
#[tokio::test]
async fn a_lock_that_is_over_protects_nothing_and_the_last_one_counts() {
    let store = opsd::store::memory::MemoryStore::new();
    let now = Utc::now();
    let keys = ["a", "b", "c"].map(str::to_owned);
    let protection = async || object_lock::protection(&store, &keys).await.unwrap();
    assert_eq!(protection().await, Protection::None);
    store.set_locked("a", now - TimeDelta::seconds(2));
    assert_eq!(protection().await, Protection::None);
    for (key, hours) in [("b", 9), ("c", 5)] {
        store.set_locked(key, now + TimeDelta::hours(hours));
    }
    assert_eq!(protection().await, Protection::Until(now + TimeDelta::hours(9)));
    // Nothing that is not asked about counts.
    let one = object_lock::protection(&store, &keys[..1]).await.unwrap();
    assert_eq!(one, Protection::None);
}
