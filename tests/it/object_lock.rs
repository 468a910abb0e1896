//! Object Lock: what a run writes cannot be deleted before its time, and whoever removes things says what
//! is locked until when.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, DateTime as SdkDateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, ObjectLockMode};
use chrono::{DateTime, TimeDelta, Utc};
use opsd::config::{LockMode, ObjectLock, Retention, Trusted};
use opsd::store::object_lock::{self, Protection};
use opsd::store::{Store, StoreError, open_s3, put};

use crate::s3::large_site;
use crate::support::opsd::{Opsd, Run, quoted};
use crate::support::postgres::default_server;
use crate::support::s3::{SeaweedFs, repository, s3s_fs};
use crate::support::s3_proxy::{Fate, Proxy, Request};
use crate::support::sets::{back_up, complete, next_second, result};

const DAYS: i64 = 3;

fn use_bucket(opsd: &mut Opsd, server: &SeaweedFs, bucket: &str) {
    let keys = &server.admin;
    opsd.use_s3(&format!("s3://{bucket}/p"), &server.endpoint, &keys.access_key, &keys.secret_key);
}

fn lock(opsd: &mut Opsd, mode: &str) {
    opsd.repository.set("lock", format!("{{ mode = \"{mode}\", days = {DAYS} }}"));
}

/// A site with a small database.
pub fn small_site() -> Opsd {
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

/// Keys that a DELETE has hidden.
async fn hidden(client: &aws_sdk_s3::Client, bucket: &str) -> BTreeSet<String> {
    let versions = client.list_object_versions().bucket(bucket).send().await.unwrap();
    let markers = versions.delete_markers().iter().filter(|m| m.is_latest() == Some(true));
    markers.map(|marker| marker.key().unwrap().to_owned()).collect()
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
async fn prune_says_until_when_a_set_is_locked_and_leaves_it_whole() {
    let server = SeaweedFs::start().await;
    server.locking_bucket("locking").await;
    let client = server.client();
    let mut opsd = small_site();
    use_bucket(&mut opsd, &server, "locking");
    opsd.job.set("retention", "{ last = 1 }");
    let unlocked = back_up(&opsd);
    lock(&mut opsd, "governance");
    next_second();
    let locked = back_up(&opsd);
    next_second();
    let newest = back_up(&opsd);
    let before = keys(&client, "locking").await;
    let until = Utc::now() + TimeDelta::days(DAYS);

    for dry in [true, false] {
        let more: &[&str] = if dry { &["--dry-run"] } else { &[] };
        let run = opsd.ok(&[&["backups", "prune"], more].concat());
        let said = format!("keep {locked} no rule keeps it, locked until {}", until.format("%Y-%m-"));
        assert!(words(&run).contains(&said), "{run}");
        assert_eq!(run.stderr, "", "{run}");
        let gone = hidden(&client, "locking").await;
        assert!(gone.iter().all(|key| !key.contains(&locked)), "{gone:?}");
    }
    let left = keys(&client, "locking").await;
    assert_eq!(left, before.into_iter().filter(|key| !key.contains(&unlocked)).collect());
    let document = opsd.ok(&["backups", "prune", "--json"]).json();
    let sets = document["jobs"][0]["sets"].as_array().unwrap();
    let of = |id: &str| sets.iter().find(|set| set["id"] == id).unwrap();
    assert_eq!((&of(&locked)["action"], &of(&locked)["removed"]), (&"keep".into(), &serde_json::Value::Null));
    let told: DateTime<Utc> = of(&locked)["locked_until"].as_str().unwrap().parse().unwrap();
    assert!((until - told).abs() < TimeDelta::minutes(5), "{told}");
    assert_eq!(of(&newest)["locked_until"], serde_json::Value::Null);
    assert_eq!(document["warnings"], serde_json::json!([]));
    let mut left = complete(&opsd);
    left.sort();
    assert_eq!(left, [locked, newest]);
}

/// The store's clock, by which things are old, as the proxy tells it: two days ahead.
pub fn two_days_ahead(request: &Request<'_>) -> Option<Fate> {
    if !request.head.contains("max-keys=1") {
        return None;
    }
    let date = (Utc::now() + TimeDelta::days(2)).format("%a, %d %b %Y %H:%M:%S GMT");
    let body = "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
    Some(Fate::Answer(format!(
        "HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )))
}

#[tokio::test(flavor = "multi_thread")]
async fn sweep_says_until_when_an_orphan_is_locked_and_aborts_its_uploads() {
    let server = SeaweedFs::start().await;
    server.locking_bucket("locking").await;
    let client = server.client();
    let plan = |request: &Request<'_>, _: &mut _| two_days_ahead(request).unwrap_or(Fate::Forward);
    let proxy = Proxy::start(&server.endpoint, 1, Duration::ZERO, plan).await;
    let (locked, free) = ("test/db/20261105T030000Z-aaaa", "test/db/20261106T030000Z-bbbb");
    let until = Utc::now() + TimeDelta::days(30);
    for (folder, until) in [(locked, Some(until)), (free, None)] {
        client
            .put_object()
            .bucket("locking")
            .key(format!("p/{folder}/app/schema.pgdump.zst.age"))
            .body(ByteStream::from_static(b"x"))
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .set_object_lock_mode(until.map(|_| ObjectLockMode::Compliance))
            .set_object_lock_retain_until_date(until.map(|t| SdkDateTime::from_secs(t.timestamp())))
            .send()
            .await
            .unwrap();
    }
    // Beside a locked object, one that is not; and what is no object yet.
    let beside = format!("p/{locked}/globals.sql.zst.age");
    client
        .put_object()
        .bucket("locking")
        .key(&beside)
        .body(ByteStream::from_static(b"x"))
        .send()
        .await
        .unwrap();
    let upload = format!("p/{locked}/app/data-rest.pgdump.zst.age");
    client.create_multipart_upload().bucket("locking").key(&upload).send().await.unwrap();
    let mut opsd = Opsd::without_server();
    use_bucket(&mut opsd, &server, "locking");
    opsd.repository.set("endpoint", quoted(&proxy.endpoint));

    let run = opsd.ok(&["backups", "sweep", "--dry-run"]);
    let said = format!("and it is locked until {}", until.format("%Y-%m-%d"));
    assert!(words(&run).contains(&said), "{run}");
    let document = opsd.ok(&["backups", "sweep", "--json"]).json();
    let items = document["items"].as_array().unwrap();
    let of =
        |folder: &str| items.iter().find(|item| folder.ends_with(item["place"].as_str().unwrap())).unwrap();
    assert_eq!(of(free)["removed"], true, "{document}");
    assert_eq!(of(free)["locked_until"], serde_json::Value::Null);
    let told: DateTime<Utc> = of(locked)["locked_until"].as_str().unwrap().parse().unwrap();
    assert_eq!(told.timestamp(), until.timestamp());
    assert_eq!(of(locked)["objects"], serde_json::json!([]));
    assert_eq!(of(locked)["removed"], true, "its upload is gone: {document}");
    let left = keys(&client, "locking").await;
    assert_eq!(left, [format!("p/{locked}/app/schema.pgdump.zst.age"), beside].into());
    let uploads = client.list_multipart_uploads().bucket("locking").send().await.unwrap();
    assert!(uploads.uploads().is_empty(), "{uploads:?}");
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
    let rules = Retention { last: 1, ..Retention::default() };
    let entries = opsd::set::catalog::sets(&store, "s", "j").await.unwrap();
    let plan = opsd::backup::prune::plan(&store, &Trusted::default(), "j", entries, &rules, now, false)
        .await
        .unwrap();
    assert!(plan.locked.is_empty() && plan.locks_unknown.is_none());
}
