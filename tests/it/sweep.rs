//! `opsd backups sweep`: exactly what killed runs left goes, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use opsd::backup::heartbeat::Heartbeat;
use opsd::backup::sweep;
use opsd::progress::silent;
use opsd::shutdown::Shutdown;
use opsd::store::{Store, get, open_s3, put};

use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::default_server;
use crate::support::postgres_proxy::PostgresProxy;
use crate::support::s3::{SeaweedFs, s3s_fs};
use crate::support::sets::complete;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn write(opsd: &Opsd, key: &str, age: Duration) {
    let path = opsd.path("repository").join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "x").unwrap();
    set_age(&path, age);
}

fn set_age(path: &Path, age: Duration) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

fn files(opsd: &Opsd) -> BTreeSet<String> {
    opsd.repository_files().into_iter().collect()
}

/// A temporary file as an upload to `key` leaves it behind, for the store's own naming.
async fn unfinished(opsd: &Opsd, key: &str) -> String {
    let store = opsd::store::fs::FsStore::open(&opsd.path("repository")).unwrap();
    let before = files(opsd);
    let mut upload = store.begin(key, false).await.unwrap();
    upload.put_part(Bytes::from_static(b"half")).await.unwrap();
    let made: Vec<String> = files(opsd).difference(&before).cloned().collect();
    assert_eq!(made.len(), 1, "{made:?}");
    // Its writer lives: however old it looks, nobody takes it.
    let path = opsd.path("repository").join(&made[0]);
    let listed = store.unfinished("").await.unwrap();
    let found = listed.iter().find(|upload| made[0].ends_with(&upload.id)).unwrap();
    assert!(chrono::Utc::now() - found.started < chrono::TimeDelta::hours(1), "{listed:?}");
    // A killed writer's has no lock any more.
    drop(upload);
    std::fs::write(&path, "half").unwrap();
    made[0].clone()
}

#[tokio::test]
async fn exactly_the_orphans_go() {
    let opsd = Opsd::without_server();
    let old = DAY * 3;
    let stay = [
        // A complete set, with whatever lies in it; and one whose manifest nobody believes.
        ("test/db/20261101T030000Z-aaaa/manifest.json", old),
        ("test/db/20261101T030000Z-aaaa/app/schema.pgdump.zst.age", old),
        ("test/db/20261101T030000Z-aaaa/app/data-7.pgdump.zst.age", old),
        // In progress: the first objects are old, the last is not.
        ("test/db/20261110T030000Z-aaaa/app/schema.pgdump.zst.age", old),
        ("test/db/20261110T030000Z-aaaa/app/data-1.pgdump.zst.age", Duration::from_secs(60)),
        // In progress, and waiting for PostgreSQL: only its heartbeat is young.
        ("test/db/20261112T030000Z-aaaa/app/schema.pgdump.zst.age", old),
        ("test/db/20261112T030000Z-aaaa/heartbeat.json", Duration::from_secs(1800)),
        // The newest run failed: this freezes pruning.
        ("test/db/20261115T030000Z-aaaa/failed.json", old),
        ("test/web/20261102T030000Z-aaaa/failed.json", old),
        // Somebody else's, here and there.
        ("test/db/20261103T030000Z-aaaa/notes.txt", old),
        ("test/db/20261103T030000Z-aaaa/app/data.csv", old),
        ("test/db/20261104T030000Z-aaaa/sub/app/schema.pgdump.zst.age", old),
        ("test/db/notes/app/schema.pgdump.zst.age", old),
        ("test/db/RESTORE.md", old),
        ("test/notes.txt", old),
        ("other/db/20261103T030000Z-aaaa/app/schema.pgdump.zst.age", old),
        ("test-two/db/20261103T030000Z-aaaa/app/schema.pgdump.zst.age", old),
        ("opsd-probe.json", old),
        ("probe-0123456789abcdef/notes.txt", old),
        ("probe-0123456789abcdeg/plain", old),
        ("probe-fedcba9876543210/plain", Duration::from_secs(60)),
        ("readme.txt", old),
    ];
    let go = [
        // Killed: some of it, or all but the manifest.
        ("test/db/20261103T030000Z-aaaa/app/schema.pgdump.zst.age", old),
        ("test/db/20261105T030000Z-bbbb/globals.sql.zst.age", old),
        ("test/db/20261105T030000Z-bbbb/..%2Fx/data-rest.pgdump.zst.age.001", old),
        ("test/db/20261105T030000Z-bbbb/app/proof.json.zst.age", old),
        ("test/db/20261105T030000Z-bbbb/RESTORE.md", old),
        ("test/db/20261105T030000Z-bbbb/manifest.json.minisig", old),
        ("test/db/20261105T030000Z-bbbb/heartbeat.json", old),
        // Half removed by a prune that was killed.
        ("test/gone/20261101T030000Z-cccc/verified-20261102T030000.000000Z.json", old),
        ("test/gone/20261101T030000Z-cccc/verified-20261102T030000.000000Z.json.minisig", old),
        // A failed run that is not the newest; the newest one's data.
        ("test/db/20261106T030000Z-dddd/failed.json", old),
        ("test/db/20261106T030000Z-dddd/app/full.pgdump.zst.age", old),
        ("test/db/20261115T030000Z-aaaa/app/data-1.pgdump.zst.age", old),
        // Probes that were interrupted.
        ("probe-0123456789abcdef/plain", old),
        ("probe-0123456789abcdef/multipart", old),
    ];
    for (key, age) in stay.iter().chain(&go) {
        write(&opsd, key, *age);
    }
    let mut staying: BTreeSet<String> = stay.iter().map(|(key, _)| (*key).to_owned()).collect();
    let mut uploads = Vec::new();
    for (key, age, stays) in [
        ("test/db/20261105T030000Z-bbbb/app/data-2.pgdump.zst.age", old, false),
        ("test/db/20261101T030000Z-aaaa/app/data-2.pgdump.zst.age", old, false),
        ("test/db/20261107T030000Z-eeee/app/data-rest.pgdump.zst.age", old, false),
        ("test/db/20261108T030000Z-eeee/app/data-rest.pgdump.zst.age", Duration::from_secs(60), true),
        ("test/db/20261109T030000Z-eeee/app/data.csv", Duration::from_secs(60), true),
        ("other/db/20261105T030000Z-bbbb/app/data-2.pgdump.zst.age", Duration::from_secs(3600), true),
    ] {
        uploads.push((unfinished(&opsd, key).await, age, stays));
    }
    // Every upload that begins removes what is a day old, so they age together.
    for (file, age, stays) in uploads {
        set_age(&opsd.path("repository").join(&file), age);
        if stays {
            staying.insert(file);
        }
    }

    let before = files(&opsd);
    let plan = opsd.ok(&["backups", "sweep", "--dry-run"]);
    assert_eq!(files(&opsd), before, "a plan removes nothing");
    for line in [
        "site test: 14 objects (14 B) and 3 unfinished uploads to sweep\n",
        "nothing was removed (dry run)\n",
        "remove  db/20261105T030000Z-bbbb  no manifest, and nothing written for 3d: its",
        "keep    db/20261110T030000Z-aaaa  written to 1m ago: may be in progress",
        "remove  db/20261106T030000Z-dddd  its run failed 3d ago",
        "failed.json of the newest run",
        "remove  probe-0123456789abcdef",
        "notes.txt",
    ] {
        assert!(plan.stdout.contains(line), "{line:?} in {plan}");
    }
    assert!(plan.stdout.lines().all(|line| line.chars().count() <= 80), "{plan}");

    // Only one job's, where that is asked for; a name that is nowhere is an error.
    let run = opsd.ok(&["backups", "sweep", "gone"]);
    assert!(run.stdout.ends_with("removed 2 objects (2 B) and 0 unfinished uploads\n"), "{run}");
    let after = files(&opsd);
    let gone: Vec<&String> = before.difference(&after).filter(|key| !key.starts_with(".opsd-tmp/")).collect();
    assert!(gone.len() == 2 && gone.iter().all(|key| key.starts_with("test/gone/")), "{gone:?}");
    opsd.run(&["backups", "sweep", "nosuch"]).expect_failure(2, &["no job \"nosuch\""]);
    opsd.run(&["backups", "sweep", "--older-than", "soon"]).expect_failure(2, &["--older-than"]);
    // A longer limit spares all of it.
    let document = opsd.ok(&["backups", "sweep", "--older-than", "4d", "--json"]).json();
    assert!(document["items"].as_array().unwrap().iter().all(|i| i["action"] == "keep"), "{document}");

    let document = opsd.ok(&["backups", "sweep", "--json"]).json();
    let items = document["items"].as_array().unwrap();
    assert!(items.iter().all(|i| (i["action"] == "remove") == (i["removed"] == true)), "{document}");
    assert!(items.iter().filter(|i| i["removed"] == true).count() >= 5, "{document}");
    assert_eq!(files(&opsd), staying);
    // Once more: nothing is left to do.
    let again = opsd.ok(&["backups", "sweep"]);
    assert!(again.stdout.contains("nothing to sweep"), "{again}");
    assert!(again.stdout.ends_with("nothing was removed\n") && again.stderr.is_empty(), "{again}");
    assert_eq!(files(&opsd), staying);
}

/// Of several runs that failed one after another the newest one's word is enough, and it stays.
#[tokio::test]
async fn the_newest_failed_run_goes_on_freezing() {
    let mut opsd = Opsd::without_server();
    opsd.postgres.set("url", "\"postgres://opsd@127.0.0.1:1/app\"");
    opsd.job.set("source", "{ postgres = \"main\" }").set("retention", "{ last = 1 }");
    write(&opsd, "test/db/20261101T030000Z-aaaa/manifest.json", DAY * 5);
    write(&opsd, "test/db/20261102T030000Z-aaaa/failed.json", DAY * 4);
    write(&opsd, "test/db/20261103T030000Z-aaaa/failed.json", DAY * 3);
    // Killed after that, or still under way: the failed one is the newest that ended.
    write(&opsd, "test/db/20261104T030000Z-aaaa/app/schema.pgdump.zst.age", DAY * 2);
    let frozen = || {
        let run = opsd.ok(&["backups", "prune"]);
        let newest = "20261103T030000Z-aaaa, does not count: failed";
        assert!(run.stdout.contains("nothing is removed") && run.stdout.contains(newest), "{run}");
    };
    frozen();
    opsd.ok(&["backups", "sweep"]);
    let left: Vec<String> = files(&opsd).into_iter().collect();
    assert_eq!(
        left,
        ["test/db/20261101T030000Z-aaaa/manifest.json", "test/db/20261103T030000Z-aaaa/failed.json"]
    );
    frozen();
}

/// A set that becomes complete, or goes on being written, after the plan was made.
#[tokio::test]
async fn what_changed_since_the_plan_is_left_alone() {
    let store = opsd::store::memory::MemoryStore::new();
    let long_ago = chrono::Utc::now() - chrono::TimeDelta::days(3);
    let ids = ["20261101T030000Z-aaaa", "20261102T030000Z-aaaa", "20261103T030000Z-aaaa"];
    let key = |id: &str, name: &str| format!("test/db/{id}/{name}");
    for id in ids {
        let first = key(id, "app/schema.pgdump.zst.age");
        put(&store, &first, "x", false).await.unwrap();
        store.set_modified(&first, long_ago);
    }
    let found = opsd::backup::sweep::find(&store, "test").await.unwrap();
    let plan = opsd::backup::sweep::plan(&found, "test", &[], DAY);
    assert!(plan.len() == 3 && plan.iter().all(|item| item.goes()), "{plan:?}");
    put(&store, &key(ids[0], "manifest.json"), "{}", true).await.unwrap();
    put(&store, &key(ids[1], "app/data-1.pgdump.zst.age"), "x", true).await.unwrap();
    for (item, says) in plan.iter().zip(["became complete", "written to meanwhile", ""]) {
        let removed = opsd::backup::sweep::remove(&store, item).await;
        match removed {
            Ok(()) => assert_eq!(says, ""),
            Err(error) => assert!(!says.is_empty() && error.to_string().contains(says), "{error}"),
        }
    }
    let left: Vec<String> = store.list("").await.unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(left.iter().all(|k| !k.contains(ids[2])));
    // A run of which there is nothing but an upload shows a sign of life after the plan.
    let upload = opsd::store::Unfinished {
        key: key(ids[2], "app/full.pgdump.zst.age"),
        id: "1".to_owned(),
        started: long_ago,
    };
    let found = sweep::Found { objects: Vec::new(), uploads: vec![upload], ..found };
    let plan = sweep::plan(&found, "test", &[], DAY);
    assert!(plan.len() == 1 && plan[0].keys.is_empty() && plan[0].goes(), "{plan:?}");
    put(&store, &key(ids[2], "heartbeat.json"), "{}", false).await.unwrap();
    let error = sweep::remove(&store, &plan[0]).await.unwrap_err();
    assert!(error.to_string().contains("written to meanwhile"), "{error}");
}

/// S3 says of an upload when it began, and nothing of when its last part came.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_run_is_alive_is_never_swept_however_slow() {
    let server = SeaweedFs::start().await;
    let store = std::sync::Arc::new(open_s3(&server.repository("p"), &server.admin.access()).await.unwrap());
    let prefix = "test/db/20261105T030000Z-bbbb/";
    put(store.as_ref(), &format!("{prefix}app/schema.pgdump.zst.age"), "x", false).await.unwrap();
    let mut upload = store.begin(&format!("{prefix}app/data-1.pgdump.zst.age"), false).await.unwrap();
    for _ in 0..2 {
        upload.put_part(Bytes::from(vec![7u8; 5 << 20])).await.unwrap();
    }
    let heartbeat = Heartbeat::new(store.clone(), prefix);
    let has_beaten = async {
        while store.head(&format!("{prefix}heartbeat.json")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while store.unfinished("test/").await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        never = heartbeat.keep(Duration::from_millis(20)) => match never {},
        () = has_beaten => {}
    }
    // What the store would say nine days into the run: nobody can make what a bucket holds look older.
    let mut found = sweep::find(store.as_ref(), "test").await.unwrap();
    assert_eq!((found.objects.len(), found.uploads.len()), (2, 1), "{found:?}");
    let so_long = chrono::TimeDelta::days(9);
    found.uploads.iter_mut().for_each(|upload| upload.started -= so_long);
    found.objects.iter_mut().filter(|o| !o.key.contains("heartbeat")).for_each(|o| o.modified -= so_long);
    let items = sweep::plan(&found, "test", &[], sweep::LEAST_AGE);
    assert!(items.len() == 1 && !items[0].goes(), "{items:?}");
    // Without its sign of life it is what a killed run left.
    found.objects.retain(|o| !o.key.contains("heartbeat"));
    let items = sweep::plan(&found, "test", &[], sweep::LEAST_AGE);
    assert!(items.len() == 1 && items[0].keys.len() == 1 && items[0].uploads.len() == 1, "{items:?}");
    upload.commit(10 << 20).await.unwrap();
    heartbeat.end().await;
    assert_eq!(store.list("test/").await.unwrap().len(), 2);
}

/// A backup renews its heartbeat for as long as it takes, and leaves none beside its set.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_takes_long_renews_its_heartbeat_and_removes_it() {
    let server = default_server();
    let database = server.fresh_database("slow");
    server
        .psql(&database, "CREATE TABLE t AS SELECT i AS id, md5(i::text) FROM generate_series(1, 200000) i");
    server.psql(&database, &format!("CREATE ROLE {database} SUPERUSER LOGIN PASSWORD 'slow'"));
    let mut opsd = Opsd::new(server, &[&database]);
    let proxy = PostgresProxy::start(server.port).await;
    let url = format!("postgres://{database}:slow@127.0.0.1:{}/{database}?sslmode=disable", proxy.port);
    opsd.postgres.set("url", quoted(&format!("{url}&require_auth=scram-sha-256")));
    // Writes the file.
    opsd.command(&["config", "check"]);
    let (config, _) = opsd::config::load(Some(&opsd.path("opsd.toml"))).unwrap();
    let store = opsd::store::open(&config.repository).await.unwrap();
    let (watched, shutdown) = (store.clone(), Shutdown::default());
    let beats = async || {
        let listed = watched.list("test/").await.unwrap();
        let key = listed.into_iter().map(|o| o.key).find(|key| key.ends_with("/heartbeat.json"))?;
        let text = get(watched.as_ref(), &key, 4096).await.ok()?;
        serde_json::from_slice::<serde_json::Value>(&text).ok()?["renewed"].as_u64()
    };
    proxy.delay(Duration::from_millis(50));
    let every = Duration::from_millis(50);
    let run = opsd::backup::create(&config, &config.backup["db"], store, silent(), every, &shutdown);
    let watch = async {
        let deadline = Instant::now() + Duration::from_secs(120);
        while beats().await.is_none_or(|renewed| renewed < 3) {
            assert!(Instant::now() < deadline, "no heartbeat: {:?}", files(&opsd));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        proxy.delay(Duration::ZERO);
    };
    let (created, ()) = tokio::join!(run, watch);
    created.unwrap();
    assert!(!files(&opsd).iter().any(|key| key.contains("heartbeat")), "{:?}", files(&opsd));
    assert_eq!(complete(&opsd).len(), 1);
    server.drop_database(&database);
    server.psql("postgres", &format!("DROP ROLE {database}"));
}

/// Multipart uploads of a run that was killed, on a server that keeps them.
#[tokio::test(flavor = "multi_thread")]
async fn stale_multipart_uploads_go_on_s3() {
    let server = SeaweedFs::start().await;
    let mut opsd = Opsd::without_server();
    opsd.use_s3(
        "s3://backups/some/prefix",
        &server.endpoint,
        &server.admin.access_key,
        &server.admin.secret_key,
    );
    let store = open_s3(&server.repository("some/prefix"), &server.admin.access()).await.unwrap();
    let part = Bytes::from(vec![7u8; 5 << 20]);
    let ours = ["test/db/20261105T030000Z-bbbb/app/data-1.pgdump.zst.age", "probe-0123456789abcdef/aborted"];
    for key in ours {
        let mut upload = store.begin(key, false).await.unwrap();
        upload.put_part(part.clone()).await.unwrap();
        upload.put_part(part.clone()).await.unwrap();
        std::mem::forget(upload);
    }
    put(&store, "test/db/20261105T030000Z-bbbb/globals.sql.zst.age", "x", false).await.unwrap();
    // Another site's, another tool's in our place, another prefix in the bucket.
    let client = server.client();
    let foreign = [
        "some/prefix/other/db/20261105T030000Z-bbbb/app/data-1.pgdump.zst.age",
        "some/prefix/test/db/20261105T030000Z-bbbb/video.mp4",
        "elsewhere/test/db/20261105T030000Z-bbbb/app/data-1.pgdump.zst.age",
    ];
    for key in foreign {
        client.create_multipart_upload().bucket(&server.bucket).key(key).send().await.unwrap();
    }
    let list = async || {
        let answer = client.list_multipart_uploads().bucket(&server.bucket).send().await.unwrap();
        answer.uploads().iter().map(|u| u.key().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while list().await.len() < 5 {
        assert!(Instant::now() < deadline, "{:?}", list().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let swept = |older: &str, more: &[&str]| {
        opsd.ok(&[&["backups", "sweep", "--older-than", older, "--json"], more].concat()).json()
    };
    // Young, all of it stays.
    let document = swept("1h", &[]);
    assert!(document["items"].as_array().unwrap().iter().all(|i| i["action"] == "keep"), "{document}");
    assert_eq!(list().await.len(), 5);
    opsd.run(&["backups", "sweep", "--older-than", "59m"]).expect_failure(2, &["at least 1h"]);
    assert_eq!(swept("1h", &["--dry-run"])["warnings"].as_array().unwrap().len(), 0);
    // Nobody can make a bucket's uploads look older: the clock that is looked at goes on instead.
    let mut found = sweep::find(&store, "test").await.unwrap();
    found.now += chrono::TimeDelta::hours(2);
    let items = sweep::plan(&found, "test", &[], Duration::from_secs(3600));
    assert!(items.len() == 2 && items.iter().all(sweep::Item::goes), "{items:?}");
    for item in &items {
        sweep::remove(&store, item).await.unwrap();
    }
    assert_eq!(list().await, foreign.map(str::to_owned).into());
    let left: Vec<String> = store.list("").await.unwrap().into_iter().map(|o| o.key).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A store that cannot list unfinished uploads: said, and the rest is swept.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_list_uploads_is_swept_of_the_rest() {
    let server = s3s_fs().await;
    let mut opsd = Opsd::without_server();
    opsd.use_s3("s3://backups/p", &server.endpoint, &server.keys.access_key, &server.keys.secret_key);
    let store = open_s3(&server.repository("p"), &server.keys.access()).await.unwrap();
    let key = "test/db/20261105T030000Z-bbbb/globals.sql.zst.age";
    put(&store, key, "x", false).await.unwrap();
    let path = server.directory.join("p").join(key);
    set_age(&path, DAY * 2);
    let run = opsd.ok(&["backups", "sweep"]);
    assert_eq!(run.stderr.matches("cannot be listed").count(), 1, "{run}");
    assert!(!path.exists(), "{run}");
    let document = opsd.ok(&["backups", "sweep", "--json"]).json();
    assert_eq!(document["warnings"].as_array().unwrap().len(), 1, "{document}");
}

/// A user who may write in the repository swaps a folder of it for a link to files of the same names, and back,
/// as fast as the kernel does it.
#[test]
fn a_folder_that_is_swapped_for_a_link_costs_no_file_elsewhere() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    const FILES: usize = 200;
    let opsd = Opsd::without_server();
    let keys: Vec<String> =
        (0..FILES).map(|n| format!("db/20261103T030000Z-aaaa/app/data-{n}.pgdump.zst.age")).collect();
    let elsewhere = opsd.path("elsewhere");
    let orphan = |root: &Path, key: &str| {
        let path = root.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "x").unwrap();
        set_age(&path, DAY * 3);
    };
    for key in &keys {
        orphan(&elsewhere, key);
    }
    let (folder, link) = (opsd.path("repository/test"), opsd.path("link"));
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    // What sweep does not know keeps the folder in place when the rest of it is gone.
    orphan(&folder, "notes.txt");
    for _ in 0..10 {
        for key in &keys {
            orphan(&folder, key);
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                let mut swaps = 0_u64;
                // An even number: the folder is back at the end.
                while !stop.load(Ordering::Relaxed) || swaps % 2 == 1 {
                    renameat_with(CWD, &folder, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                    swaps += 1;
                }
                swaps
            });
            // What it finds depends on the moment, and so does whether it succeeds.
            opsd.run(&["backups", "sweep"]);
            stop.store(true, Ordering::Relaxed);
            let swaps = swapping.join().unwrap();
            assert!(swaps > 100, "{swaps}");
        });
        let left = keys.iter().filter(|key| elsewhere.join(key).exists()).count();
        assert_eq!(left, FILES, "files elsewhere were removed");
    }
}
