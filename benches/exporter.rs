//! `opsd exporter` beside the exporters that people use today, on the same servers: scrapes while
//! targets are well and while half of them hang, memory, connections, and what one collection costs
//! a large queue and a large cluster.
//!
//! The others are measured where they are installed (Debian's `prometheus-postgres-exporter` and
//! `prometheus-redis-exporter`). They collect when they are scraped, so their scrapes are their
//! collections; opsd's are compared with them all the same, because Prometheus waits for both alike.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::measure::{cpu, median, peak};
use crate::report::Report;
use crate::support::exporter::{Exporter, Scrape};
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{Options, SUPERUSER, Server, default_major, free_port};
use crate::support::redis::{Redis, Software};

/// Shorter than anybody's, so that collections get in the way of scrapes as often as they can.
const INTERVAL: f64 = 1.0;
/// Scrapes of opsd, and of those that collect meanwhile.
const SCRAPES: usize = 3_000;
const OTHERS_SCRAPES: usize = 300;
const PAUSE: Duration = Duration::from_millis(10);
/// What Prometheus waits for an exporter unless told otherwise.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

const JOBS: u32 = 1_000_000;
const TABLES: u32 = 3_000;
const DATABASES: u32 = 200;

/// All of it.
pub fn measure(report: &mut Report) {
    let servers = [postgres(&[]), postgres(&[])];
    let stores = [Redis::start(Software::Redis, &[]), Redis::start(Software::Valkey, &[])];
    eprintln!("exporter: 20 targets");
    scrapes(&servers, &stores, false, report);
    eprintln!("exporter: 20 targets, half of them hang");
    scrapes(&servers, &stores, true, report);
    eprintln!("exporter: what others take");
    others(&servers, &stores, report);
    eprintln!("exporter: memory and connections");
    footprint(&servers, &stores, report);
    eprintln!("exporter: a queue of {JOBS} jobs");
    queues(&stores[0], report);
    eprintln!("exporter: {TABLES} tables and {DATABASES} databases");
    cluster(report);
}

fn postgres(settings: &[(&str, &str)]) -> Server {
    // postgres_exporter comes over TCP.
    let hba = &["host all all 127.0.0.1/32 trust"];
    Server::start(default_major(), &Options { settings, hba, ..Options::default() })
}

/// Tables of a configuration: servers by name, and what watches them.
#[derive(Default)]
struct Targets(String);

impl Targets {
    fn postgres(&mut self, name: &str, url: &str, more: &str) {
        let url = quoted(url);
        self.add("postgres", name, &url, &format!("postgres = \"{name}\"\n{more}"));
    }

    fn redis(&mut self, name: &str, url: &str) {
        let url = quoted(url);
        self.add("redis", name, &url, &format!("redis = \"{name}\""));
    }

    fn add(&mut self, kind: &str, name: &str, url: &str, monitor: &str) {
        let _ = write!(self.0, "[{kind}.{name}]\nurl = {url}\n");
        self.monitor(name, monitor);
    }

    fn monitor(&mut self, name: &str, what: &str) {
        let _ = write!(self.0, "[monitor.{name}]\n{what}\ninterval = \"{INTERVAL}s\"\n");
    }

    /// An exporter that watches them, once each has been tried.
    fn start(self) -> (Opsd, Exporter) {
        let mut opsd = Opsd::without_server();
        opsd.more = self.0;
        let exporter = Exporter::start(&mut opsd, "");
        let monitors = opsd.more.matches("[monitor.").count();
        exporter.scrape_until("each target has been tried", |scrape| {
            scrape.of("opsd_monitor_up", &[]).len() == monitors
        });
        (opsd, exporter)
    }
}

/// Four PostgreSQL targets, six Redis targets, ten queues. Every other one may hang.
fn scrapes(servers: &[Server; 2], stores: &[Redis; 2], half_hangs: bool, report: &mut Report) {
    let hanging = hanging();
    let is_well = |i: usize| !half_hangs || i.is_multiple_of(2);
    let mut targets = Targets::default();
    for i in 0..4 {
        let gone = format!("postgres://nobody@127.0.0.1:{hanging}/postgres");
        let url = if is_well(i) { servers[i / 2].socket_url(SUPERUSER, "postgres") } else { gone };
        targets.postgres(&format!("database{i}"), &url, "");
    }
    for i in 0..6 {
        let gone = format!("redis://127.0.0.1:{hanging}/0");
        let url = if is_well(i) { stores[i / 2 % 2].url(0) } else { gone };
        targets.redis(&format!("cache{i}"), &url);
    }
    for i in 0..10 {
        // The first two servers of each sort: one that is well, and one that may not be.
        let server = format!("cache{}", i % 2);
        let queue = format!("queue = {{ kind = \"sidekiq\", redis = \"{server}\", queues = [\"q{i}\"] }}");
        targets.monitor(&format!("jobs{i}"), &queue);
    }
    let (_opsd, exporter) = targets.start();
    let up = exporter.scrape().of("opsd_monitor_up", &[]).iter().filter(|(_, up)| *up == 1.0).count();
    assert_eq!(up, if half_hangs { 10 } else { 20 }, "{}", exporter.scrape().text);

    let mut taken = Vec::with_capacity(SCRAPES);
    let mut oldest: f64 = 0.0;
    for _ in 0..SCRAPES {
        let (took, page) = scrape(&exporter.address, "/metrics").expect("opsd answers");
        taken.push(took);
        // Only those that are well have figures.
        let collected = Scrape::parse(&page);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64();
        for (_, at) in collected.of("opsd_monitor_collected_timestamp_seconds", &[]) {
            oldest = oldest.max(now - at);
        }
        std::thread::sleep(PAUSE);
    }
    let contender = if half_hangs { "opsd, half of 20 hang" } else { "opsd, 20 targets" };
    report.scrapes("exporter", contender, &taken, peak(id(&exporter)), 0.005);
    // Two, because a snapshot is replaced when the next one is whole.
    report.value(&format!("oldest figure ÷ interval: {contender}"), "exporter", oldest / INTERVAL, 2.0, "");
}

/// The other exporters on the same servers, and on one that hangs.
fn others(servers: &[Server; 2], stores: &[Redis; 2], report: &mut Report) {
    let dsn = |url: &str| format!("{url}?sslmode=disable");
    let well = dsn(&servers[0].url(SUPERUSER, "postgres"));
    let gone = dsn(&format!("postgresql://nobody@127.0.0.1:{}/postgres", hanging()));
    for (contender, dsn) in [("postgres_exporter, 1 server", well), ("postgres_exporter, it hangs", gone)] {
        let mut command = Command::new("prometheus-postgres-exporter");
        command.env("DATA_SOURCE_NAME", dsn);
        other(contender, &mut command, "--web.listen-address", "/metrics", report);
    }
    let mut command = Command::new("prometheus-redis-exporter");
    command.args(["--redis.addr", &format!("redis://127.0.0.1:{}", stores[0].port)]);
    other("redis_exporter, 1 server", &mut command, "--web.listen-address", "/metrics", report);
    let mut command = Command::new("prometheus-redis-exporter");
    command.args(["--redis.addr", ""]);
    let path = format!("/scrape?target=redis://127.0.0.1:{}", hanging());
    other("redis_exporter, it hangs", &mut command, "--web.listen-address", &path, report);
}

/// One of them, if it is installed; a scrape ends after what Prometheus waits.
fn other(contender: &str, command: &mut Command, listen: &str, path: &str, report: &mut Report) {
    let address = format!("127.0.0.1:{}", free_port());
    command.arg(format!("{listen}={address}"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(child) = child else {
        eprintln!("  {contender}: it is not installed");
        return;
    };
    let child = Ended(child);
    crate::support::processes::until("it listens", || TcpStream::connect(&address).is_ok());
    let mut taken = Vec::new();
    let mut late = 0;
    while taken.len() < OTHERS_SCRAPES && late < 3 {
        let begun = Instant::now();
        let answered = scrape(&address, path).is_some();
        taken.push(begun.elapsed().as_secs_f64());
        late += usize::from(begun.elapsed() >= SCRAPE_TIMEOUT);
        assert!(answered || late > 0, "{contender} answers with an error");
        std::thread::sleep(PAUSE);
    }
    report.scrapes("exporter", contender, &taken, peak(child.0.id()), f64::INFINITY);
}

/// A process that ends with this value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two PostgreSQL, two Redis, ten queues, scraped once a second for half a minute.
fn footprint(servers: &[Server; 2], stores: &[Redis; 2], report: &mut Report) {
    let mut targets = Targets::default();
    targets.postgres("one", &servers[0].socket_url(SUPERUSER, "postgres"), "");
    let all = "databases = [\"*\"]";
    servers[1].create_database("another");
    targets.postgres("all", &servers[1].socket_url(SUPERUSER, "postgres"), all);
    for (i, store) in stores.iter().enumerate() {
        targets.redis(&format!("cache{i}"), &store.url(0));
    }
    for i in 0..10 {
        stores[0].push(
            &format!("queue:q{i}"),
            100,
            r#"{"class":"Work","created_at":1790000000,"enqueued_at":1790000000,"args":["#,
            "]}",
        );
        let queue = format!("queue = {{ kind = \"sidekiq\", redis = \"cache0\", queues = [\"q{i}\"] }}");
        targets.monitor(&format!("jobs{i}"), &queue);
    }
    let (_opsd, exporter) = targets.start();
    let pid = id(&exporter);
    let before = cpu(pid).0;
    let begun = Instant::now();
    let (mut one, mut more, mut taken) = (0, 0, Vec::new());
    while begun.elapsed() < Duration::from_secs(30) {
        one = one.max(sessions(&servers[0]));
        more = more.max(sessions(&servers[1]));
        let (took, _) = scrape(&exporter.address, "/metrics").expect("opsd answers");
        taken.push(took);
        std::thread::sleep(PAUSE);
    }
    let cpu = (cpu(pid).0 - before) / begun.elapsed().as_secs_f64();
    report.scrapes("exporter", "opsd, 2 PostgreSQL, 2 Redis, 10 queues", &taken, peak(pid), 0.005);
    let resident = peak(pid) as f64 / 1_048_576.0;
    report.value("peak memory, 14 targets", "exporter", resident, 40.0, " MiB");
    report.value("CPU, collecting each second", "exporter", cpu * 100.0, f64::INFINITY, " %");
    report.value("connections, one database", "exporter", f64::from(one), 1.0, "");
    report.value("connections, all databases", "exporter", f64::from(more), 2.0, "");
}

fn id(exporter: &Exporter) -> u32 {
    exporter.pid().as_raw_pid().cast_unsigned()
}

fn sessions(server: &Server) -> u32 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'opsd monitor'";
    server.psql("postgres", sql).trim().parse().expect("a number")
}

/// Microseconds that a collection of one large queue of each kind takes on the server.
fn queues(redis: &Redis, report: &mut Report) {
    let sidekiq = r#"{"class":"Work","jid":"0123456789abcdef","created_at":1790000000.5,"enqueued_at":1790000000.5,"args":["#;
    let celery = r#"{"body":"W10=","content-type":"application/json","headers":{"task":"work","id":""#;
    redis.cli(&["FLUSHALL"]);
    redis.push("queue:million", JOBS, sidekiq, "]}");
    redis.cli(&["SADD", "queues", "million"]);
    redis.push("celery", JOBS, celery, r#""},"properties":{}}"#);
    redis.push("bull:million:wait", JOBS, "", "");
    redis.cli(&["HSET", "bull:million:meta", "opts.maxLenEvents", "10000"]);
    for (kind, name) in [("sidekiq", "million"), ("celery", "celery"), ("bullmq", "million")] {
        let mut targets = Targets::default();
        let _ = write!(targets.0, "[redis.main]\nurl = {}\n", quoted(&redis.url(0)));
        let queue = format!("queue = {{ kind = \"{kind}\", redis = \"main\", queues = [\"{name}\"] }}");
        targets.monitor("jobs", &queue);
        let (_opsd, exporter) = targets.start();
        let collections =
            |scrape: &Scrape| scrape.one("opsd_monitor_collections_total", &[]).expect("a count");
        let waiting = exporter.scrape().one("opsd_queue_waiting", &[]);
        assert_eq!(waiting, Some(f64::from(JOBS)), "{}", exporter.scrape().text);
        let first = collections(&exporter.scrape());
        redis.cli(&["CONFIG", "RESETSTAT"]);
        let after = exporter.scrape_until("twenty collections", |scrape| collections(scrape) >= first + 20.0);
        let microseconds: f64 = spent_on(redis) as f64;
        let each = microseconds / (collections(&after) - first) / 1e3;
        report.value(&format!("{kind}, 1,000,000 jobs, on Redis"), "exporter", each, 1.0, " ms");
    }
    redis.cli(&["FLUSHALL"]);
}

/// Microseconds that commands took since `CONFIG RESETSTAT`, but for those that ask for them.
fn spent_on(redis: &Redis) -> u64 {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let lines = stats.lines().filter(|line| !line.contains("config"));
    lines.filter_map(|line| line.split_once("usec=")?.1.split(',').next()?.parse::<u64>().ok()).sum()
}

/// One cluster with many tables and many databases.
fn cluster(report: &mut Report) {
    let server = postgres(&[("fsync", "off")]);
    server.create_database("tables");
    for schema in 0..TABLES / 100 {
        let create = format!(
            "CREATE SCHEMA s{schema}; DO $$ BEGIN FOR i IN 1..100 LOOP EXECUTE format(
             'CREATE TABLE s{schema}.t%s (id serial PRIMARY KEY, v int)', i); EXECUTE format(
             'INSERT INTO s{schema}.t%s (v) SELECT 1 FROM generate_series(1, 10)', i); EXECUTE format(
             'DELETE FROM s{schema}.t%s WHERE id > 5', i); END LOOP; END $$"
        );
        server.psql("tables", &create);
    }
    for i in 0..DATABASES {
        server.create_database(&format!("db{i}"));
    }
    let url = server.socket_url(SUPERUSER, "tables");
    for (what, more) in [("one database", ""), ("all databases", "databases = [\"*\"]\n")] {
        let mut opsd = Opsd::without_server();
        opsd.more = format!(
            "[postgres.main]\nurl = {}\n[monitor.main]\npostgres = \"main\"\n{more}interval = \"3s\"\n",
            quoted(&url)
        );
        // Where there are others to visit, the first collection visits them all.
        let exporter = Exporter::start(&mut opsd, "");
        let mut taken: Vec<f64> = Vec::new();
        let mut last = 0.0;
        let scrape = exporter.scrape_until("ten collections", |scrape| {
            let count = scrape.one("opsd_monitor_collections_total", &[]).unwrap_or(0.0);
            if count > last {
                last = count;
                taken.extend(scrape.one("opsd_monitor_collect_duration_seconds", &[]));
            }
            count >= 10.0
        });
        assert_eq!(scrape.up("main"), Some(1.0), "{}", scrape.text);
        assert_eq!(scrape.one("opsd_monitor_series_dropped_total", &[]), Some(0.0));
        let series = scrape.one("opsd_monitor_series", &[]).expect("a count");
        eprintln!("  {what}: {series} series; collections took {taken:?}");
        report.value(&format!("first collection, {what}"), "exporter", taken[0], f64::INFINITY, " s");
        report.value(&format!("collection, {what}"), "exporter", median(taken.iter().copied()), 1.0, " s");
        report.value(&format!("series, {what}"), "exporter", series, 5_000.0, "");
    }
}

/// A port that accepts and never answers, as long as this process lives.
fn hanging() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let held: Vec<_> = listener.incoming().collect();
        drop(held);
    });
    port
}

/// One scrape over a connection of its own: seconds, and the page; none within Prometheus's patience,
/// and none with an error.
fn scrape(address: &str, path: &str) -> Option<(f64, String)> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(SCRAPE_TIMEOUT)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let took = begun.elapsed().as_secs_f64();
    let (head, page) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| (took, page.to_owned()))
}
