//! A store that goes wrong while the built `opsd` backs up to it and restores from it.
//!
//! What passes, opsd outlasts: the backup is whole, the rehearsal proves it, and the log says that
//! requests were repeated. What stays, it says soon, and no set is listed. The bounded form meets every
//! fault once; `make torture` has more seeds, longer outages, and restores into a server too.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opsd::store::{Store, open_s3};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::compare::{assert_same_content, db};
use crate::support::opsd::{Opsd, Run, finish, quoted};
use crate::support::postgres::{Server, unique};
use crate::support::s3::{SeaweedFs, repository};
use crate::support::s3_proxy::{Fate, Proxy, Request, error};
use crate::support::torture::{rounds, seed, torture};

/// What goes wrong for a while, or with some requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// A third of all requests is answered with 500.
    Errors,
    /// A third is answered with 503 SlowDown.
    SlowDown,
    /// A third of all connections is reset at a random byte, of the request or the answer.
    Resets,
    /// Some requests or answers stop at a random byte, and the connection stays open.
    Stalls,
    /// A third of all answers ends too early.
    Truncation,
    /// 30 % of all requests fail, each in a way of its own.
    ThirtyPercent,
    /// Every request takes half a second longer.
    Latency,
    /// Connections are reset and refused for a while.
    Outage,
}

/// The ones that wait longest first.
const TROUBLES: [Trouble; 8] = [
    Trouble::Stalls,
    Trouble::Latency,
    Trouble::Outage,
    Trouble::Resets,
    Trouble::ThirtyPercent,
    Trouble::Errors,
    Trouble::SlowDown,
    Trouble::Truncation,
];

impl Trouble {
    fn delay(self) -> Duration {
        if self == Trouble::Latency { Duration::from_millis(500) } else { Duration::ZERO }
    }

    /// What becomes of a request; a `certain` one does not go well. `stalls` counts those that stalled.
    fn fate(self, request: &Request<'_>, random: &mut StdRng, stalls: &AtomicUsize, certain: bool) -> Fate {
        let third = certain || random.random_ratio(1, 3);
        match self {
            Trouble::Errors if third => error(500, "InternalError"),
            Trouble::SlowDown if third => error(503, "SlowDown"),
            Trouble::Resets if third => reset(request, random),
            Trouble::Truncation if third => truncation(random),
            // Every stall takes twenty seconds or more, so there are few of them.
            Trouble::Stalls
                if (request.body > 1 << 20 || request.reads("data-1"))
                    && stalls.fetch_add(1, Ordering::SeqCst) < rounds(1, 5) =>
            {
                if request.body > 0 {
                    // Early enough that the rest does not fit into the kernel's buffers.
                    Fate::StallRequest(random.random_range(0..request.size / 8))
                } else {
                    Fate::StallAnswer(random.random_range(0..1 << 20))
                }
            }
            Trouble::ThirtyPercent if random.random_ratio(3, 10) => match random.random_range(0..4) {
                0 => error(500, "InternalError"),
                1 => error(503, "SlowDown"),
                2 => reset(request, random),
                _ => truncation(random),
            },
            _ => Fate::Forward,
        }
    }
}

fn reset(request: &Request<'_>, random: &mut StdRng) -> Fate {
    match random.random() {
        true => Fate::CutRequest(random.random_range(0..request.size)),
        false => Fate::CutAnswer(random.random_range(0..1_000)),
    }
}

fn truncation(random: &mut StdRng) -> Fate {
    // Many answers are short, and some are parts of several megabytes.
    let bits = random.random_range(0..21);
    Fate::TruncateAnswer(random.random_range(0..1_usize << bits))
}

/// A proxy that makes this trouble.
async fn troubled(server: &SeaweedFs, trouble: Trouble, seed: u64) -> Proxy {
    let (stalls, certain) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let outage = Arc::new(tokio::sync::Notify::new());
    let begins = Arc::clone(&outage);
    let objects = AtomicUsize::new(0);
    let plan = move |request: &Request<'_>, random: &mut StdRng| {
        // In the middle of the second object, or of its parts.
        if (request.reads("") || request.writes()) && objects.fetch_add(1, Ordering::SeqCst) == 3 {
            begins.notify_one();
        }
        let answered = request.head.starts_with("post ") || request.reads("data-1");
        let certain = answered && certain.fetch_add(1, Ordering::SeqCst) == 0;
        trouble.fate(request, random, &stalls, certain)
    };
    let proxy = Proxy::start(&server.endpoint, seed, trouble.delay(), plan).await;
    if trouble == Trouble::Outage {
        let alive = proxy.alive();
        tokio::spawn(async move {
            outage.notified().await;
            alive.send_replace(false);
            tokio::time::sleep(Duration::from_secs(rounds(8, 110) as u64)).await;
            alive.send_replace(true);
        });
    }
    proxy
}

/// A site over S3, whose database makes objects of several parts.
struct Site {
    opsd: Opsd,
    postgres: &'static Server,
    database: String,
    s3: SeaweedFs,
}

impl Site {
    async fn new() -> Site {
        let s3 = SeaweedFs::start().await;
        let (postgres, mut opsd, database) = crate::s3::large_site();
        opsd.use_s3(
            &format!("s3://{}/site", s3.bucket),
            &s3.endpoint,
            &s3.admin.access_key,
            &s3.admin.secret_key,
        );
        Site { opsd, postgres, database, s3 }
    }

    /// The configuration for one use of the site: the repository that `name` stands for, behind an
    /// end point.
    fn place(&self, name: &str, endpoint: &str) -> Place<'_> {
        let port = endpoint.rsplit(':').next().unwrap();
        let path = self.opsd.path(&format!("{name}-{port}.toml"));
        let scratch = self.opsd.path("scratch");
        let config = self
            .opsd
            .config()
            // The lock is the site's.
            .replace("site = \"test\"", &format!("site = {}", quoted(name)))
            .replace(&format!("s3://{}/site", self.s3.bucket), &format!("s3://{}/{name}", self.s3.bucket))
            .replace(&self.s3.endpoint, endpoint)
            .replace(scratch.to_str().unwrap(), &format!("{}-{port}", scratch.display()));
        std::fs::write(&path, config).unwrap();
        Place { site: self, name: name.to_owned(), config: path }
    }
}

/// A way to run `opsd` at a site.
struct Place<'a> {
    site: &'a Site,
    name: String,
    config: PathBuf,
}

impl Place<'_> {
    fn run(&self, args: &[&str]) -> Run {
        let mut command = self.site.opsd.command(args);
        command.env("OPSD_CONFIG", &self.config);
        finish(command)
    }

    fn ok(&self, args: &[&str]) -> Run {
        self.run(args).expect_code(0)
    }

    /// Rehearses the newest set, which must be proven.
    fn verify(&self, args: &[&str]) -> Run {
        let run = self.ok(&[args, &["restore", "--verify", "--json"]].concat());
        assert_eq!(crate::support::sets::result(&run)["verdict"], "proven", "{run}");
        run
    }

    fn complete(&self) -> Vec<String> {
        let list = self.ok(&["backups", "list", "--json"]).json();
        let sets = list["sets"].as_array().unwrap();
        let ids = sets.iter().filter(|set| set["state"] == "complete").map(|set| set["id"].as_str().unwrap());
        ids.map(str::to_owned).collect()
    }

    /// Every object of the one set, read past opsd, is what the manifest says.
    async fn assert_intact(&self) {
        let s3 = &self.site.s3;
        let store =
            open_s3(&repository(&s3.endpoint, &s3.bucket, &self.name), &s3.admin.access()).await.unwrap();
        let stored = store.list("").await.unwrap();
        let manifest = stored.iter().find(|o| o.key.ends_with("/manifest.json")).expect("a manifest");
        let folder = manifest.key.trim_end_matches("manifest.json");
        let bytes = store.read(&manifest.key, 0..manifest.size).await.unwrap();
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        let streams = manifest["databases"][0]["streams"].as_array().unwrap();
        assert!(streams.len() >= 3, "{manifest}");
        for object in streams.iter().flat_map(|stream| stream["objects"].as_array().unwrap()) {
            let key = format!("{folder}{}", object["key"].as_str().unwrap());
            let size = object["size"].as_u64().unwrap();
            let bytes = store.read(&key, 0..size + 1).await.unwrap();
            let sha256: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(
                (bytes.len() as u64, sha256.as_str()),
                (size, object["sha256"].as_str().unwrap()),
                "{key}"
            );
        }
    }
}

/// Does things at the same time, as many as the machine has use for, in the order given; fails with
/// the names of those that failed.
fn all_of<'a>(work: Vec<(String, Box<dyn FnOnce() + Send + 'a>)>) {
    let queue = Mutex::new(work.into_iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let Some((name, work)) = queue.lock().unwrap().next() else { return };
                    let begun = Instant::now();
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                        failed.lock().unwrap().push(name.clone());
                    }
                    eprintln!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed: {failed:?}; the reasons stand above");
}

/// Whether the log tells of a repeated request.
fn tells_of_retries(run: &Run) -> bool {
    run.stderr.contains(": attempt 1, next in")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_outlasted() {
    let site = Site::new().await;
    let site = &site;
    let runtime = tokio::runtime::Handle::current();
    let original = site.place("original", &site.s3.endpoint);
    original.ok(&["backup"]);
    let mut work: Vec<(String, Box<dyn FnOnce() + Send + '_>)> = Vec::new();
    let mut seeds = StdRng::seed_from_u64(seed("s3_faults"));
    for round in 0..rounds(1, 3) {
        for trouble in TROUBLES {
            let (seed, name) = (seeds.random::<u64>(), format!("{trouble:?}-{round}").to_lowercase());
            let runtime = runtime.clone();
            let handle = runtime.clone();
            work.push((
                format!("backup through {name}, seed {seed}"),
                Box::new({
                    let name = name.clone();
                    move || {
                        let proxy = handle.block_on(troubled(&site.s3, trouble, seed));
                        let run = site.place(&name, &proxy.endpoint).ok(&["-v", "backup", "--json"]);

                        let direct = site.place(&name, &site.s3.endpoint);
                        assert_eq!(direct.complete().len(), 1, "{run}");
                        handle.block_on(direct.assert_intact());
                        if trouble != Trouble::Latency {
                            assert!(tells_of_retries(&run), "{run}");
                        }
                        if torture() {
                            direct.verify(&[]);
                        }
                    }
                }),
            ));
            let handle = runtime.clone();
            work.push((
                format!("rehearsal through {name}, seed {seed}"),
                Box::new(move || {
                    let proxy = handle.block_on(troubled(&site.s3, trouble, seed));
                    let run = site.place("original", &proxy.endpoint).verify(&["-v"]);
                    if trouble != Trouble::Latency {
                        assert!(tells_of_retries(&run), "{run}");
                    }
                    if trouble == Trouble::Truncation {
                        // Under cron nobody is told: every store does this now and then.
                        let place = site.place("original", &proxy.endpoint);
                        let (before, run) = (proxy.faults(), place.verify(&[]));
                        assert!(proxy.faults() > before && run.stderr.is_empty(), "{run}");
                    }
                    if torture() {
                        let proxy = handle.block_on(troubled(&site.s3, trouble, seed.wrapping_add(1)));
                        let target = unique("faults");
                        let to = site.postgres.socket_url("postgres", &target);
                        site.place("original", &proxy.endpoint)
                            .ok(&["restore", "db", "--to", &to, "--create"]);
                        assert_same_content(db(site.postgres, &site.database), db(site.postgres, &target));
                        site.postgres.drop_database(&target);
                    }
                }),
            ));
        }
    }
    all_of(work);
}

/// A third of all connections is reset, and by bad luck a run's first six are.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cuts_off_the_first_connections_is_waited_for() {
    let site = Site::new().await;
    let requests = AtomicUsize::new(0);
    let plan = move |_: &Request<'_>, random: &mut StdRng| match requests.fetch_add(1, Ordering::SeqCst) {
        number @ 0..6 if number % 2 == 0 => Fate::CutRequest(random.random_range(0..100)),
        0..6 => Fate::CutAnswer(random.random_range(0..100)),
        _ => Fate::Forward,
    };
    let proxy = Proxy::start(&site.s3.endpoint, 1, Duration::ZERO, plan).await;
    let place = site.place("first", &proxy.endpoint);
    let run = tokio::task::block_in_place(|| place.ok(&["-v", "backups", "list", "--json"]));
    assert!(proxy.faults() == 6 && run.stderr.contains(": attempt 6, next in"), "{run}");
}

/// Every request is answered, and all together take for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_never_ends_is_ended() {
    let mut site = Site::new().await;
    site.opsd.job.set("timeout", "\"1s\"");
    let slow = Proxy::start(&site.s3.endpoint, 1, Duration::from_millis(700), |_, _| Fate::Forward).await;
    let place = site.place("slow", &slow.endpoint);
    let run = tokio::task::block_in_place(|| place.run(&["backup"]));
    run.expect_failure(1, &["the backup did not end within 1 s", "hint: set backup.db.timeout"]);
}

/// A proxy that forwards the first few requests that `hits` picks, and does `fate` to all others of
/// them.
async fn turning(
    server: &str,
    good: usize,
    hits: impl Fn(&Request<'_>) -> bool + Send + Sync + 'static,
    fate: impl Fn(&mut StdRng) -> Fate + Send + Sync + 'static,
) -> Proxy {
    let count = AtomicUsize::new(0);
    let plan = move |request: &Request<'_>, random: &mut StdRng| {
        if hits(request) && count.fetch_add(1, Ordering::SeqCst) >= good {
            fate(random)
        } else {
            Fate::Forward
        }
    };
    Proxy::start(server, 1, Duration::ZERO, plan).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_is_said_soon_and_nothing_is_listed() {
    let site = Site::new().await;
    let site = &site;
    let original = site.place("original", &site.s3.endpoint);
    original.ok(&["backup"]);
    let any = |_: &Request<'_>| true;
    let writes = |request: &Request<'_>| request.writes();
    let server = &site.s3.endpoint;
    // Three parts or objects arrive before.
    let backups = [
        (
            "expired",
            turning(server, 12, any, |_| error(403, "ExpiredToken")).await,
            "session token has expired",
        ),
        (
            "revoked",
            turning(server, 12, any, |_| error(403, "InvalidAccessKeyId")).await,
            "wrong credentials",
        ),
        (
            "damaged",
            turning(server, 3, writes, |random| Fate::DamageRequest(random.random_range(0..1 << 20))).await,
            "is not what was sent",
        ),
        (
            "full",
            turning(server, 3, writes, |_| error(507, "XMinioStorageFull")).await,
            "no room left in bucket",
        ),
        (
            "quota",
            turning(server, 3, writes, |_| error(403, "QuotaExceeded")).await,
            "no room left in bucket",
        ),
    ];
    let mut work: Vec<(String, Box<dyn FnOnce() + Send + '_>)> = Vec::new();
    for (name, proxy, says) in backups {
        work.push((
            format!("backup, {name}"),
            Box::new(move || {
                let begun = Instant::now();
                let run = site.place(name, &proxy.endpoint).run(&["backup"]).expect_failure(1, &[says]);
                assert!(begun.elapsed() < Duration::from_secs(60), "{:?} for {run}", begun.elapsed());
                assert!(proxy.faults() > 0 && !run.stderr.contains("secret-"), "{run}");
                assert_eq!(site.place(name, &site.s3.endpoint).complete(), Vec::<String>::new(), "{run}");
            }),
        ));
    }
    // An end point that never answered is probably mistyped.
    let absent = Proxy::start(server, 1, Duration::ZERO, |_, _| Fate::Forward).await;
    absent.alive().send_replace(false);
    work.push((
        "backup, no store".to_owned(),
        Box::new(move || {
            let begun = Instant::now();
            site.place("absent", &absent.endpoint).run(&["backup"]).expect_failure(1, &["cannot reach"]);
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        }),
    ));
    if torture() {
        let gone = turning(server, 12, any, |_| Fate::CutRequest(0)).await;
        work.push((
            "backup, the store does not come back".to_owned(),
            Box::new(move || {
                let begun = Instant::now();
                let run =
                    site.place("gone", &gone.endpoint).run(&["backup"]).expect_failure(1, &["cannot reach"]);
                assert!(begun.elapsed() < Duration::from_secs(300), "{:?} for {run}", begun.elapsed());
                assert_eq!(site.place("gone", &site.s3.endpoint).complete(), Vec::<String>::new(), "{run}");
            }),
        ));
    }
    let reads = |request: &Request<'_>| request.reads("");
    let rehearsals = [
        (
            "expired",
            1,
            turning(server, 10, any, |_| error(403, "ExpiredToken")).await,
            "session token has expired",
        ),
        (
            "damaged",
            3,
            turning(server, 5, reads, |random| Fate::DamageAnswer(random.random_range(0..1 << 20))).await,
            "was changed since the backup wrote it",
        ),
    ];
    for (name, code, proxy, says) in rehearsals {
        work.push((
            format!("rehearsal, {name}"),
            Box::new(move || {
                let begun = Instant::now();
                let place = site.place("original", &proxy.endpoint);
                let run = place.run(&["restore", "--verify"]).expect_failure(code, &[says]);
                assert!(begun.elapsed() < Duration::from_secs(60), "{:?} for {run}", begun.elapsed());
                assert!(proxy.faults() > 0, "{run}");
            }),
        ));
    }
    all_of(work);
    // The set itself is as good as it was.
    original.verify(&[]);
}
