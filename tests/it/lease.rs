//! The lease that keeps two runs from removing things at the same time: on every kind of store, and
//! as prune and sweep take it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opsd::error::Kind;
use opsd::store::fs::FsStore;
use opsd::store::lease::{Acquired, DURATION, Lease, acquire};
use opsd::store::memory::MemoryStore;
use opsd::store::{Store, get, open_s3, put};

use crate::support::opsd::{Opsd, finish, quoted};
use crate::support::s3::{SeaweedFs, s3s_fs};
use crate::support::s3_proxy::{Fate, Proxy, Request};

const KEY: &str = "test/lease.json";

async fn held<'s>(store: &'s dyn Store, command: &str, duration: Duration) -> Lease<'s> {
    match acquire(store, KEY, command, duration).await.unwrap() {
        Acquired::Held(lease) => lease,
        Acquired::Impossible(why) => panic!("{why}"),
    }
}

/// What a lease does on every store that honours conditions.
async fn works(store: &dyn Store) {
    let first = held(store, "backups prune", DURATION).await;
    assert_eq!(first.document().generation, 1);
    let error = acquire(store, KEY, "backups sweep", DURATION).await.unwrap_err();
    assert_eq!(error.kind(), Kind::LockHeld);
    assert!(error.to_string().contains("held by backups prune on"), "{error}");
    first.release().await;
    assert!(store.list("").await.unwrap().iter().all(|o| o.key != KEY));

    // Left to run out, as by a killed process.
    drop(held(store, "backups prune", Duration::from_secs(2)).await);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut refused = 0;
    let second = loop {
        match acquire(store, KEY, "backups sweep", DURATION).await {
            Ok(Acquired::Held(lease)) => break lease,
            Ok(Acquired::Impossible(why)) => panic!("{why}"),
            Err(error) => assert_eq!(error.kind(), Kind::LockHeld, "{error}"),
        }
        refused += 1;
        assert!(Instant::now() < deadline, "never expires");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(refused > 0, "it held for a while");
    assert_eq!(second.document().generation, 2);
    second.release().await;
    let left = store.list("").await.unwrap();
    assert!(left.iter().all(|o| !o.key.starts_with("probe-") && o.key != KEY), "{left:?}");
}

/// Of several at the same instant one gets it.
async fn one_wins(store: &dyn Store) {
    let tries = (0..8).map(|_| acquire(store, KEY, "backups prune", DURATION));
    let results = futures_util::future::join_all(tries).await;
    let (mut won, mut lost) = (Vec::new(), 0);
    for result in results {
        match result {
            Ok(Acquired::Held(lease)) => won.push(lease),
            Ok(Acquired::Impossible(why)) => panic!("{why}"),
            Err(error) => {
                assert_eq!(error.kind(), Kind::LockHeld, "{error}");
                lost += 1;
            }
        }
    }
    assert_eq!((won.len(), lost), (1, 7));
    for lease in won {
        lease.release().await;
    }
}

#[tokio::test]
async fn in_memory_and_in_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let stores: [Arc<dyn Store>; 2] =
        [Arc::new(MemoryStore::new()), Arc::new(FsStore::open(directory.path()).unwrap())];
    for store in stores {
        works(store.as_ref()).await;
        one_wins(store.as_ref()).await;
    }
}

#[tokio::test]
async fn on_seaweedfs() {
    let server = SeaweedFs::start().await;
    let store = open_s3(&server.repository("p"), &server.admin.access()).await.unwrap();
    works(&store).await;
    one_wins(&store).await;
    // A credential that may only write cannot know whose lease it is, and has none.
    let writer = open_s3(&server.repository("p"), &server.writer.access()).await.unwrap();
    let acquired = acquire(&writer, KEY, "backups prune", DURATION).await;
    assert!(!matches!(acquired, Ok(Acquired::Held(_))), "{acquired:?}");
}

#[tokio::test]
async fn on_s3s_fs() {
    let server = s3s_fs().await;
    works(&open_s3(&server.repository("p"), &server.keys.access()).await.unwrap()).await;
}

/// A site that can prune, without any server.
fn site() -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.postgres.set("url", quoted("postgres://opsd@127.0.0.1:1/app"));
    opsd.job.set("source", "{ postgres = \"main\" }").set("retention", "{ last = 1 }");
    opsd
}

const COMMANDS: [&[&str]; 2] = [&["backups", "prune"], &["backups", "sweep"]];

#[tokio::test]
async fn prune_and_sweep_keep_off_while_one_is_at_work() {
    let opsd = site();
    let store = FsStore::open(&opsd.path("repository")).unwrap();
    let lease = held(&store, "backups prune", DURATION).await;
    let pid = format!("process {}", std::process::id());
    for args in COMMANDS {
        opsd.run(args).expect_failure(5, &["test/lease.json", "held by backups prune on ", &pid, "hint: "]);
        // A plan takes nothing away and needs no lease.
        opsd.ok(&[args, &["--dry-run"]].concat());
        // What this machine's clock says does not matter.
        for shift in ["+2d", "-2d"] {
            let inner = opsd.command(args);
            let mut command = std::process::Command::new("faketime");
            command.args(["-f", shift]).arg(inner.get_program()).args(inner.get_args());
            command.env_clear().current_dir(opsd.path("")).stdin(std::process::Stdio::null());
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            for (name, value) in inner.get_envs() {
                command.env(name, value.unwrap_or_default());
            }
            finish(command).expect_failure(5, &["held by backups prune on "]);
        }
    }
    lease.release().await;
    for args in COMMANDS {
        let run = opsd.ok(args);
        assert_eq!(run.stderr, "", "{run}");
        assert!(opsd.repository_files().is_empty(), "{run}");
    }
}

fn age(file: &Path, by: Duration) {
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

#[tokio::test]
async fn the_lease_of_a_killed_run_is_taken_over() {
    let opsd = site();
    let store = FsStore::open(&opsd.path("repository")).unwrap();
    // Its holder is another machine's process, of which nobody here can tell whether it lives.
    let lease = held(&store, "backups prune", DURATION).await;
    let mut document = lease.document().clone();
    (document.process, document.host) = ("elsewhere 1 1".to_owned(), "db2".to_owned());
    let bytes = serde_json::to_vec(&document).unwrap();
    put(&store, KEY, bytes.clone(), false).await.unwrap();
    opsd.run(&["backups", "sweep"]).expect_failure(5, &["on db2"]);
    let file = opsd.path("repository").join(KEY);
    age(&file, DURATION + Duration::from_secs(1));
    opsd.ok(&["backups", "sweep"]);
    assert!(!file.exists(), "and released");

    // One of this machine that is gone blocks nobody.
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let machine = lease.document().process.rsplitn(3, ' ').last().unwrap().to_owned();
    document.process = format!("{machine} {pid} 1");
    put(&store, KEY, serde_json::to_vec(&document).unwrap(), false).await.unwrap();
    opsd.ok(&["backups", "prune"]);
    assert!(!file.exists());
    // What is no lease is nobody's to remove before it is as old as one could be.
    put(&store, KEY, "hello", false).await.unwrap();
    opsd.run(&["backups", "prune"]).expect_failure(5, &["somebody unknown"]);
    assert_eq!(get(&store, KEY, 100).await.unwrap(), "hello");
}

/// A store that does not honour conditions: said once, and the work is done. What the probe's report says of
/// it changes nothing: nobody signs it.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_conditions_has_no_lease_and_that_is_said() {
    let mut opsd = site();
    let server = SeaweedFs::start().await;
    opsd.use_s3("s3://backups/p", &server.endpoint, &server.admin.access_key, &server.admin.secret_key);
    let report = opsd.ok(&["repository", "probe", "--json"]).json();
    let mut changed = report.clone();
    for capability in changed["capabilities"].as_array_mut().unwrap() {
        if capability["name"].as_str().unwrap().starts_with("conditional-") {
            capability["state"] = "no".into();
        }
    }
    let store = open_s3(&server.repository("p"), &server.admin.access()).await.unwrap();
    put(&store, "opsd-probe.json", changed.to_string(), false).await.unwrap();
    for args in COMMANDS {
        assert_eq!(opsd.ok(args).stderr, "", "a report turned the lease off");
    }
    // Behind this one every conditional write succeeds.
    put(&store, "opsd-probe.json", report.to_string(), false).await.unwrap();
    let plan = |request: &Request<'_>, _: &mut rand::rngs::StdRng| {
        let is_conditional = request.head.contains("if-none-match") || request.head.contains("if-match");
        let done =
            "HTTP/1.1 200 OK\r\netag: \"00000000000000000000000000000000\"\r\ncontent-length: 0\r\n\r\n";
        if is_conditional { Fate::Answer(done.into()) } else { Fate::Forward }
    };
    let proxy = Proxy::start(&server.endpoint, 1, Duration::ZERO, plan).await;
    opsd.repository.set("endpoint", quoted(&proxy.endpoint));
    for args in COMMANDS {
        let run = opsd.ok(args);
        assert_eq!(run.stderr.matches("no lease is taken").count(), 1, "{run}");
        let quiet = opsd.ok(&[&["--quiet"], args].concat());
        assert_eq!(quiet.stderr, "", "{quiet}");
    }
}
