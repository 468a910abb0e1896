//! A whole site for the dashboards: every kind of target that opsd watches, each under a light load, an
//! opsd that watches them, and a Prometheus that scrapes it and has the rules of `alerts/`.
//!
//! Servers and workers are real. What the light load does not bring about by itself (a sequence near its
//! end, a schedule that nobody keeps) is put there.

use std::ffi::OsStr;
use std::path::Path;

use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;

use crate::monitor_probes::{serve, tls_server};
use crate::monitor_queues::{CELERY, sidekiq, which};
use crate::support::certificates::{Authority, in_days};
use crate::support::exporter::{Exporter, postgres_monitor};
use crate::support::mosquitto::Mosquitto;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{self, Options, SUPERUSER, Server, free_port, literal, servers_directory};
use crate::support::prometheus::Prometheus;
use crate::support::redis::{Kept, Redis, Software};
use crate::support::sets::{back_up, next_second};

/// The database that is backed up and worked in.
const DATABASE: &str = "shop";
/// Monitors of the server that [`Site::stop_the_primary`] stops.
pub const OF_THE_PRIMARY: [&str; 2] = ["main-db", "app-db"];

/// All of it; it ends with this value, the watchers first.
pub struct Site {
    pub prometheus: Prometheus,
    pub exporter: Exporter,
    _load: Vec<Kept>,
    _redis: [Redis; 3],
    _broker: Mosquitto,
    _standby: Server,
    primary: Server,
    _runtime: Runtime,
    _opsd: Opsd,
}

impl Site {
    /// Starts it; Prometheus has scraped it when this returns.
    pub fn start() -> Site {
        let redis = caches();
        let mut load = workers(&redis[2]);
        load.push(readers(&redis[0]));
        load.push(mails(&redis[2]));
        let (primary, standby) = servers();
        let mut opsd = Opsd::new(&primary, &[DATABASE]);
        opsd.job.set("rpo", quoted("26h"));
        // The second has one to be compared with.
        back_up(&opsd);
        next_second();
        back_up(&opsd);
        opsd.ok(&["restore", "--verify"]);

        let broker_port = free_port();
        let broker = Mosquitto::start(&opsd.path(""), broker_port, "allow_anonymous true");
        // One thread is plenty, and the test has a load to measure.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let monitors = [
            postgres_monitors(&primary, &standby),
            redis_monitors(&redis),
            runtime.block_on(probes(&opsd, broker_port)),
            "[monitor.backups]\nbackups = {}\n[monitor.host]\nhost = {}\n".to_owned(),
        ]
        .concat();
        // Each collects as often as Prometheus scrapes.
        opsd.more = monitors
            .lines()
            .map(|line| match line.strip_prefix("[monitor.") {
                Some(_) => format!("{line}\ninterval = \"1s\"\ntimeout = \"1s\"\n"),
                None => format!("{line}\n"),
            })
            .collect();
        runtime.spawn(transactions(primary.socket_dir().to_owned(), primary.port));
        let exporter = Exporter::start(&mut opsd, "");
        let prometheus = Prometheus::with_config(&prometheus_config(&opsd, &exporter.address));
        prometheus.until_some("opsd_start_timestamp_seconds");
        Site {
            prometheus,
            exporter,
            _load: load,
            _redis: redis,
            _broker: broker,
            _standby: standby,
            primary,
            _runtime: runtime,
            _opsd: opsd,
        }
    }

    /// An immediate shutdown.
    pub fn stop_the_primary(&mut self) {
        self.primary.crash(Signal::QUIT);
    }
}

/// The rules fire at once here: what `for` waits out is time only.
fn prometheus_config(opsd: &Opsd, target: &str) -> String {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts");
    for file in std::fs::read_dir(rules).unwrap().map(|entry| entry.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".rules.yml") {
            let text = std::fs::read_to_string(&file).unwrap();
            let at_once: String = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("for: "))
                .map(|line| format!("{line}\n"))
                .collect();
            std::fs::write(opsd.path(name), at_once).unwrap();
        }
    }
    format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 2s}}\n\
         rule_files: [{}]\n\
         scrape_configs: [{{job_name: opsd, static_configs: [{{targets: [\"{target}\"]}}]}}]\n",
        quoted(opsd.path("*.rules.yml").to_str().unwrap())
    )
}

/// A primary that archives, with a standby and its slot, and a database with a history.
fn servers() -> (Server, Server) {
    let settings = [("archive_mode", "on"), ("archive_command", "true"), ("work_mem", "64kB")];
    let options = Options {
        settings: &settings,
        initdb: &["--data-checksums"],
        hba: &["host replication all 127.0.0.1/32 trust"],
        ..Options::default()
    };
    let primary = Server::start(postgres::default_major(), &options);
    primary.create_database(DATABASE);
    primary.psql(
        DATABASE,
        "CREATE TABLE orders (id bigserial PRIMARY KEY, text text);
         INSERT INTO orders (text) SELECT repeat('x', 100) FROM generate_series(1, 5000);
         CREATE ROLE app LOGIN; SELECT pg_switch_wal()",
    );
    // The same names in two databases.
    for database in [DATABASE, "postgres"] {
        primary.psql(
            database,
            "CREATE TABLE debt (id int) WITH (autovacuum_enabled = off);
             INSERT INTO debt SELECT generate_series(1, 1000); DELETE FROM debt;
             CREATE TABLE near (id serial); SELECT setval('near_id_seq', 2040109465)",
        );
    }
    let standby = primary.standby(&[]);
    // Over TCP, so that it has an address.
    let conninfo = format!("host=127.0.0.1 port={} user={SUPERUSER}", primary.port);
    standby.psql("postgres", &format!("ALTER SYSTEM SET primary_conninfo = {}", literal(&conninfo)));
    standby.psql("postgres", "SELECT pg_reload_conf()");
    (primary, standby)
}

fn postgres_monitors(primary: &Server, standby: &Server) -> String {
    let one = |name: &str, url: &str, more: &str| {
        postgres_monitor(name, url, more).replace("interval = \"1s\"\ntimeout = \"1s\"\n", "")
    };
    let both = format!("databases = [{}, \"postgres\"]", quoted(DATABASE));
    one("main-db", &primary.socket_url(SUPERUSER, DATABASE), &both)
        // A role that may not see everything.
        + &one("app-db", &primary.socket_url("app", DATABASE), "")
        + &one("replica-db", &standby.socket_url(SUPERUSER, "postgres"), "")
        // One that nobody starts.
        + &one("gone-db", &format!("postgres://u@127.0.0.1:{}/x", free_port()), "")
}

/// A few transactions, some of them rolled back, and sorts that do not fit into memory, for as long as the
/// server lives; beside a session that is idle in transaction.
async fn transactions(socket: std::path::PathBuf, port: u16) {
    const WORK: [&str; 2] = [
        "INSERT INTO orders (text) SELECT repeat('y', 100) FROM generate_series(1, 10);
         SELECT max(text) FROM (SELECT text FROM orders ORDER BY text, id OFFSET 100) AS sorted",
        "BEGIN; UPDATE orders SET text = 'z' WHERE id = 1; ROLLBACK",
    ];
    let mut config = tokio_postgres::Config::new();
    config.host_path(socket).port(port).user(SUPERUSER).dbname(DATABASE);
    let (idle, idle_connection) = config.connect(NoTls).await.unwrap();
    let (busy, busy_connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(idle_connection);
    tokio::spawn(busy_connection);
    idle.batch_execute("BEGIN; SELECT count(*) FROM orders").await.unwrap();
    while busy.batch_execute(WORK[0]).await.is_ok() && busy.batch_execute(WORK[1]).await.is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// A cache with a bound, its replica, and the one that holds the queues.
fn caches() -> [Redis; 3] {
    let bounded = ["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"];
    let slow = ["--slowlog-log-slower-than", "1000"];
    let cache = Redis::start(Software::Redis, &[&bounded[..], &slow].concat());
    let of = ["--replicaof", "127.0.0.1", &cache.port.to_string()];
    let replica = Redis::start(Software::Redis, &of);
    cache.cli(&["SET", "there", "value"]);
    let jobs = Redis::start(Software::Redis, &[]);
    // A schedule that its own workers, which have long been gone, would have to keep.
    jobs.cli(&["ZADD", "old:schedule", "1700000000.5", "{}"]);
    jobs.cli(&["SADD", "old:queues", "mail"]);
    jobs.cli(&["ZADD", "due", "1700000000", "job"]);
    [cache, replica, jobs]
}

fn redis_monitors(redis: &[Redis; 3]) -> String {
    let mut text = String::new();
    for (name, server) in ["cache", "cache-replica", "queues"].iter().zip(redis) {
        text.push_str(&format!("[redis.{name}]\nurl = {}\n", quoted(&server.url(0))));
        text.push_str(&format!("[monitor.{name}]\nredis = {}\n", quoted(name)));
    }
    for (name, queue) in [
        ("jobs", "kind = \"sidekiq\", queues = [\"default\", \"lonely\"]"),
        ("tasks", "kind = \"celery\", queues = [\"celery\"]"),
        ("old-jobs", "kind = \"sidekiq\", namespace = \"old\""),
        ("mails", "kind = \"list\", queues = [\"mails\"], take_from = \"left\""),
        ("due", "kind = \"zset\", queues = [\"due\"], scores = \"seconds\""),
    ] {
        text.push_str(&format!("[monitor.{name}]\nqueue = {{ redis = \"queues\", {queue} }}\n"));
    }
    text
}

/// The same script again and again.
fn repeat(redis: &Redis, script: &str) -> Kept {
    let socket = redis.path("socket").display().to_string();
    let args = ["-s", &socket, "-r", "-1", "-i", "0.2", "EVAL", script, "0"].map(str::to_owned);
    Kept::start(which("redis-cli").as_os_str(), &args, &[], redis.directory.path(), "repeat.log")
}

/// A list that becomes shorter, for a while. No job is there twice: of those no rate can be told.
fn mails(jobs: &Redis) -> Kept {
    jobs.push("mails", 5_000, "mail ", "");
    let work = "redis.call('RPUSH', 'mails', 'more ' .. redis.call('INCR', 'sent'))
        redis.call('LPOP', 'mails', 2)";
    repeat(jobs, work)
}

/// Hits, misses, keys that expire at once, and slow commands.
fn readers(cache: &Redis) -> Kept {
    let work = "redis.call('GET', 'there') redis.call('GET', 'absent')
        redis.call('SET', 'fleeting', 'x', 'PX', 20) for i = 1, 200000 do local x = i * i end";
    repeat(cache, work)
}

/// Sidekiq and Celery, with those that give them work.
fn workers(redis: &Redis) -> Vec<Kept> {
    const PUSH: &str = "require 'sidekiq'; require './jobs'\n\
        push = ->(queue, what) { Sidekiq::Client.push('class' => 'Work', 'queue' => queue, 'args' => [what]) }\n\
        push.('lonely', 'work'); push.('default', 'sleep')\n\
        loop { push.('default', 'work'); push.('default', 'fail'); sleep 0.5 }";
    // The worker holds a task with a countdown, unacknowledged.
    let send = format!(
        "{CELERY}\nwork.apply_async((0,), countdown=3600)\nwhile True:\n    work.apply_async((0,))\n    time.sleep(0.5)\n"
    );
    let directory = redis.directory.path();
    let url = redis.url(0);
    let python = servers_directory().join("python");
    let env = [
        ("REDIS_URL", OsStr::new(&url)),
        ("RUBYLIB", directory.as_os_str()),
        ("PYTHONPATH", python.as_os_str()),
        ("PYTHONDONTWRITEBYTECODE", OsStr::new("1")),
    ];
    let start = |program: &str, args: &[&str], log: &str| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Kept::start(which(program).as_os_str(), &args, &env, directory, log)
    };
    std::fs::write(redis.path("tasks.py"), CELERY).unwrap();
    let celery = ["-m", "celery", "-A", "tasks", "worker", "--pool=solo", "--without-mingle"];
    vec![
        sidekiq(redis, &["default"]),
        start("ruby", &["-e", PUSH], "push.log"),
        start("python3", &celery, "celery.log"),
        start("python3", &["-c", &send], "send.log"),
    ]
}

/// A page with components, a port, certificates on the wire and on the disk, and a broker.
async fn probes(opsd: &Opsd, broker: u16) -> String {
    let page = serve().await;
    let authority = Authority::new("Authority", in_days(300));
    let pair = authority.sign(&["localhost"], "localhost", in_days(60));
    pair.write(&opsd.path("site.pem"), &opsd.path("site.key"), &[]);
    authority.pair.write(&opsd.path("ca.pem"), &opsd.path("ca.key"), &[]);
    let secure = tls_server(&[&pair, &authority.pair]).await;
    let trusted = format!("ca_file = {:?}", opsd.path("ca.pem"));
    format!(
        "[monitor.page]\nhttp = {{ url = \"http://127.0.0.1:{page}/health\", components = \"/checks\" }}\n\
         [monitor.port]\ntcp = {{ address = \"127.0.0.1:{page}\" }}\n\
         [monitor.secure]\ntls = {{ address = \"localhost:{secure}\", {trusted} }}\n\
         [monitor.files]\ntls = {{ files = [{:?}] }}\n\
         [monitor.broker]\nmqtt = {{ url = \"mqtt://127.0.0.1:{broker}\" }}\n",
        opsd.path("site.pem")
    )
}
