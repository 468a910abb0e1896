//! The least-privilege policies of `examples/policies`, as SeaweedFS enforces them: each lets its command do
//! all of its work and nothing of another's, and nothing in it is there for nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::{ByteStream, DateTime as SdkDateTime};
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};
use bytes::Bytes;
use opsd::store::{Store, open_s3};
use serde_json::Value;

use crate::object_lock::{small_site, two_days_ahead};
use crate::s3::large_site;
use crate::support::opsd::{Opsd, Run, quoted};
use crate::support::s3::{Keys, SeaweedFs, client, repository};
use crate::support::s3_proxy::{Fate, Proxy, Request};
use crate::support::sets::{complete, next_second, result};

const BUCKET: &str = "locking";

/// A policy as it is shipped, for the test's bucket, prefix and site.
fn shipped(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/policies/{name}.json"));
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.replace("BUCKET", BUCKET).replace("PREFIX", "p").replace("SITE", "test");
    serde_json::from_str(&text).unwrap()
}

/// What each statement allows: its `Sid` and one action.
fn allowed(policy: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for statement in policy["Statement"].as_array().unwrap().iter().filter(|s| s["Effect"] == "Allow") {
        let actions = match &statement["Action"] {
            Value::String(one) => vec![one.clone()],
            many => many.as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect(),
        };
        all.extend(actions.into_iter().map(|action| (statement["Sid"].as_str().unwrap().to_owned(), action)));
    }
    all
}

/// The policy without one action of one statement.
fn without(policy: &Value, sid: &str, action: &str) -> Value {
    let mut policy = policy.clone();
    let statements = policy["Statement"].as_array_mut().unwrap();
    let at = statements.iter().position(|s| s["Sid"] == sid).unwrap();
    match statements[at]["Action"].as_array_mut() {
        Some(actions) => actions.retain(|a| a != action),
        None => {
            statements.remove(at);
        }
    }
    policy
}

fn use_keys(opsd: &mut Opsd, endpoint: &str, keys: &Keys) {
    opsd.use_s3(&format!("s3://{BUCKET}/p"), endpoint, &keys.access_key, &keys.secret_key);
}

/// A server where each policy has an identity, and a site whose sets are locked there.
async fn site(policies: &[Value], mut opsd: Opsd) -> (SeaweedFs, Opsd) {
    let server = SeaweedFs::start_with(policies).await;
    server.locking_bucket(BUCKET).await;
    opsd.job.set("retention", "{ last = 1 }");
    opsd.env("OPSD_LOG", "opsd=debug");
    lock(&mut opsd);
    (server, opsd)
}

fn lock(opsd: &mut Opsd) {
    opsd.repository.set("lock", "{ mode = \"governance\", days = 1 }");
}

/// Whether anything was refused on the way, though the command may have gone on without it.
fn was_refused(run: &Run) -> bool {
    let said = run.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    run.code != Some(0) || said.contains("access denied") || said.contains("no lease is taken")
}

fn allowed_all(run: Run) -> Run {
    assert!(!was_refused(&run), "{run}");
    run
}

/// The store's word about one request.
fn denied<T, E: ProvideErrorMetadata>(what: &str, outcome: Result<T, E>) {
    let code = outcome.err().map(|error| error.code().unwrap_or_default().to_owned());
    assert_eq!(code.as_deref(), Some("AccessDenied"), "{what}");
}

/// Deletes, overwrites and unlocks objects with these keys, each of which must be refused.
async fn touches_nothing(
    client: &aws_sdk_s3::Client,
    admin: &aws_sdk_s3::Client,
    keys: &[String],
    put: bool,
) {
    for key in keys {
        let head = admin.head_object().bucket(BUCKET).key(key).send().await.unwrap();
        let version = head.version_id().unwrap();
        denied(
            key,
            client.delete_object().bucket(BUCKET).key(key).send().await.map_err(|e| e.into_service_error()),
        );
        let request = client.delete_object().bucket(BUCKET).key(key).version_id(version);
        denied(key, request.send().await.map_err(|e| e.into_service_error()));
        let request = client
            .delete_object()
            .bucket(BUCKET)
            .key(key)
            .version_id(version)
            .bypass_governance_retention(true);
        denied(key, request.send().await.map_err(|e| e.into_service_error()));
        // Who may write a retention may not write a shorter one.
        let soon = SdkDateTime::from_secs(chrono::Utc::now().timestamp() + 60);
        let retention = ObjectLockRetention::builder().mode(ObjectLockRetentionMode::Governance);
        let retention = retention.retain_until_date(soon).build();
        let request = client.put_object_retention().bucket(BUCKET).key(key).retention(retention);
        denied(key, request.send().await.map_err(|e| e.into_service_error()));
        if put {
            let request = client.put_object().bucket(BUCKET).key(key).body(ByteStream::from_static(b"x"));
            denied(key, request.send().await.map_err(|e| e.into_service_error()));
        }
    }
}

async fn keys_of(admin: &aws_sdk_s3::Client) -> Vec<String> {
    let listed = admin.list_objects_v2().bucket(BUCKET).prefix("p/test/").send().await.unwrap();
    listed.contents().iter().map(|object| object.key().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_policy_does_its_own_work_and_nothing_of_anothers() {
    let (server, mut opsd) = site(&["backup", "prune", "verify"].map(shipped), large_site().1).await;
    let admin = server.client();
    let [backup, prune, verify] = &server.limited[..] else { panic!("three identities") };
    let as_client = |keys: &Keys| client(&server.endpoint, keys);

    // Before there is a backup: who may not write sets makes none.
    for keys in [prune, verify] {
        use_keys(&mut opsd, &server.endpoint, keys);
        opsd.run(&["backup"]).expect_failure(1, &["access denied"]);
        assert!(keys_of(&admin).await.is_empty());
    }
    use_keys(&mut opsd, &server.endpoint, backup);
    let first = allowed_all(opsd.run(&["backup", "--json"])).json()["sets"][0]["id"].clone();
    use_keys(&mut opsd, &server.endpoint, verify);
    let run = allowed_all(opsd.run(&["restore", "--verify", "--json"]));
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    allowed_all(opsd.run(&["backups", "scrub"]));
    let of_first = keys_of(&admin).await;
    let (records, of_backup): (Vec<String>, Vec<String>) =
        of_first.iter().cloned().partition(|key| key.contains("/verified-"));
    assert!(records.len() == 2 && of_backup.len() > 5, "{of_first:?}");

    // A credential that makes backups removes none, and says nothing about rehearsals.
    touches_nothing(&as_client(backup), &admin, &of_backup, false).await;
    touches_nothing(&as_client(backup), &admin, &records, true).await;
    let put = |keys: &Keys, key: &str| {
        as_client(keys).put_object().bucket(BUCKET).key(key).body(ByteStream::from_static(b"x"))
    };
    for key in ["p/test/lease.json", "p/opsd-probe.json", "p/other/db/20261105T030000Z-aaaa/manifest.json"] {
        denied(key, put(backup, key).send().await.map_err(|e| e.into_service_error()));
    }
    // One that rehearses writes records alone.
    touches_nothing(&as_client(verify), &admin, &of_backup, true).await;
    touches_nothing(&as_client(verify), &admin, &records, false).await;
    denied("lease", put(verify, "p/test/lease.json").send().await.map_err(|e| e.into_service_error()));
    // One that prunes writes no set, reads no data, and deletes no version.
    for key in &of_first {
        denied(key, put(prune, key).send().await.map_err(|e| e.into_service_error()));
        let head = admin.head_object().bucket(BUCKET).key(key).send().await.unwrap();
        let request =
            as_client(prune).delete_object().bucket(BUCKET).key(key).version_id(head.version_id().unwrap());
        denied(key, request.send().await.map_err(|e| e.into_service_error()));
        if key.ends_with(".age") {
            let request = as_client(prune).get_object().bucket(BUCKET).key(key);
            denied(key, request.send().await.map_err(|e| e.into_service_error()));
        }
    }
    for keys in [backup, verify] {
        use_keys(&mut opsd, &server.endpoint, keys);
        opsd.repository.unset("lock");
        let run = opsd.run(&["backups", "prune"]);
        assert!(was_refused(&run), "{run}");
        assert_eq!(keys_of(&admin).await, of_first);
        lock(&mut opsd);
    }

    // Of three more sets the first is not locked, and goes; the second is, and stays.
    use_keys(&mut opsd, &server.endpoint, backup);
    opsd.repository.unset("lock");
    next_second();
    let free = allowed_all(opsd.run(&["backup", "--json"])).json()["sets"][0]["id"].clone();
    lock(&mut opsd);
    // Where no lock refuses it, the policies do: whoever deletes a version deletes for good.
    let key = format!("p/test/db/{}/manifest.json", free.as_str().unwrap());
    let head = admin.head_object().bucket(BUCKET).key(&key).send().await.unwrap();
    for keys in &server.limited {
        let request =
            as_client(keys).delete_object().bucket(BUCKET).key(&key).version_id(head.version_id().unwrap());
        denied(&key, request.send().await.map_err(|e| e.into_service_error()));
    }
    next_second();
    let locked = allowed_all(opsd.run(&["backup", "--json"])).json()["sets"][0]["id"].clone();
    next_second();
    let newest = allowed_all(opsd.run(&["backup", "--json"])).json()["sets"][0]["id"].clone();
    use_keys(&mut opsd, &server.endpoint, prune);
    let run = allowed_all(opsd.run(&["backups", "prune", "--json"]));
    let sets = run.json()["jobs"][0]["sets"].clone();
    let of = |id: &Value| sets.as_array().unwrap().iter().find(|set| &set["id"] == id).cloned().unwrap();
    assert_eq!(of(&free)["removed"], true, "{run}");
    assert!(of(&locked)["locked_until"].is_string() && of(&locked)["action"] == "keep", "{run}");
    assert_eq!((&of(&first)["action"], &of(&newest)["action"]), (&"keep".into(), &"keep".into()));
    allowed_all(opsd.run(&["backups", "sweep"]));
    use_keys(&mut opsd, &server.endpoint, verify);
    assert_eq!(complete(&opsd).len(), 3);
    let show = opsd.ok(&["backups", "show", newest.as_str().unwrap(), "--json"]).json();
    assert_eq!(show["manifest"]["previous"], locked, "a backup reads the set before it");
}

/// Whether an upload that is given up is gone.
async fn aborts(server: &SeaweedFs, keys: &Keys) -> bool {
    let store = open_s3(&repository(&server.endpoint, BUCKET, "p"), &keys.access()).await.unwrap();
    let mut upload =
        store.begin("test/db/20261105T030000Z-aaaa/app/data-1.pgdump.zst.age", false).await.unwrap();
    for _ in 0..2 {
        upload.put_part(Bytes::from(vec![0; 5 << 20])).await.unwrap();
    }
    upload.abort().await;
    let left = server.client().list_multipart_uploads().bucket(BUCKET).send().await.unwrap();
    left.uploads().is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_needs_each_permission_of_its_policy() {
    let policy = shipped("backup");
    let needed = allowed(&policy);
    let mut policies: Vec<Value> = needed.iter().map(|(sid, action)| without(&policy, sid, action)).collect();
    policies.push(policy);
    let (server, mut opsd) = site(&policies, small_site()).await;
    let (whole, limited) = server.limited.split_last().unwrap();
    use_keys(&mut opsd, &server.endpoint, whole);
    allowed_all(opsd.run(&["backup"]));
    allowed_all(opsd.run(&["backup"]));
    assert!(aborts(&server, whole).await);
    for ((sid, action), keys) in needed.iter().zip(limited) {
        let what = format!("{sid} without {action}");
        if action == "s3:AbortMultipartUpload" {
            // AWS wants this permission. SeaweedFS lets whoever may put abort as well, and cannot tell.
            assert!(aborts(&server, keys).await, "{what}");
            continue;
        }
        use_keys(&mut opsd, &server.endpoint, keys);
        let run = opsd.run(&["backup"]);
        assert!(was_refused(&run), "{what}: {run}");
        // What only asks is not in the way of a backup, what it lacks is said.
        let is_a_question = !action.starts_with("s3:Put");
        assert_eq!(run.code, Some(i32::from(!is_a_question)), "{what}: {run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_needs_each_permission_of_its_policy() {
    let policy = shipped("verify");
    let needed = allowed(&policy);
    let mut policies: Vec<Value> = needed.iter().map(|(sid, action)| without(&policy, sid, action)).collect();
    policies.push(policy);
    let (server, mut opsd) = site(&policies, small_site()).await;
    let (whole, limited) = server.limited.split_last().unwrap();
    use_keys(&mut opsd, &server.endpoint, &server.admin);
    opsd.ok(&["backup"]);
    use_keys(&mut opsd, &server.endpoint, whole);
    allowed_all(opsd.run(&["restore", "--verify"]));
    for ((sid, action), keys) in needed.iter().zip(limited) {
        use_keys(&mut opsd, &server.endpoint, keys);
        let run = opsd.run(&["restore", "--verify"]);
        assert!(was_refused(&run), "{sid} without {action}: {run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_and_sweeping_need_each_permission_of_their_policy() {
    let policy = shipped("prune");
    let needed = allowed(&policy);
    let mut policies: Vec<Value> = needed.iter().map(|(sid, action)| without(&policy, sid, action)).collect();
    policies.push(policy);
    let (server, mut opsd) = site(&policies, small_site()).await;
    let plan = |request: &Request<'_>, _: &mut _| two_days_ahead(request).unwrap_or(Fate::Forward);
    let proxy = Proxy::start(&server.endpoint, 1, Duration::ZERO, plan).await;
    let admin = server.client();
    let (whole, limited) = server.limited.split_last().unwrap();
    opsd.repository.unset("lock");
    let every = needed.iter().map(|(sid, action)| format!("{sid} without {action}")).zip(limited);
    for (what, keys) in std::iter::once(("all of it".to_owned(), whole)).chain(every) {
        use_keys(&mut opsd, &server.endpoint, &server.admin);
        opsd.ok(&["backup"]);
        opsd.ok(&["backup"]);
        let orphan = "p/test/db/20261105T030000Z-aaaa/app/schema.pgdump.zst.age";
        for key in [orphan, "p/probe-0123456789abcdef/plain"] {
            admin
                .put_object()
                .bucket(BUCKET)
                .key(key)
                .body(ByteStream::from_static(b"x"))
                .send()
                .await
                .unwrap();
            admin.create_multipart_upload().bucket(BUCKET).key(key).send().await.unwrap();
        }
        use_keys(&mut opsd, &server.endpoint, keys);
        let pruned = opsd.run(&["backups", "prune"]);
        opsd.repository.set("endpoint", quoted(&proxy.endpoint));
        let swept = opsd.run(&["backups", "sweep"]);
        let refused = was_refused(&pruned) || was_refused(&swept);
        assert_eq!(refused, what != "all of it", "{what}: {pruned}\n{swept}");
        if !refused {
            let left = keys_of(&admin).await;
            assert!(left.iter().all(|key| key != orphan), "{left:?}");
            let uploads = admin.list_multipart_uploads().bucket(BUCKET).send().await.unwrap();
            assert!(uploads.uploads().is_empty(), "{uploads:?}");
        }
        if what.contains("GetObjectRetention") {
            let told = pruned.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(
                told.matches("whether anything of this is locked is not known").count(),
                1,
                "{pruned}"
            );
            assert!(told.contains("s3:GetObjectRetention") && pruned.code == Some(0), "{pruned}");
        }
    }
}

/// The page says of each permission of each policy why it is needed, and of no other.
#[test]
fn the_page_explains_each_permission() {
    let page = include_str!("../../docs/bucket-policies.md");
    for name in ["backup", "verify", "prune"] {
        let (_, section) = page.split_once(&format!("\n**`{name}.json`**\n")).unwrap();
        let rows = section
            .lines()
            .skip_while(|line| !line.starts_with('|'))
            .take_while(|line| line.starts_with('|'));
        let permissions = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').map(str::to_owned));
        let explained: BTreeSet<String> = permissions.filter(|word| word.starts_with("s3:")).collect();
        let allowed: BTreeSet<String> =
            allowed(&shipped(name)).into_iter().map(|(_, action)| action).collect();
        assert_eq!(explained, allowed, "{name}");
    }
}
