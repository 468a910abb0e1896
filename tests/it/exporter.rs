//! How figures are served: both formats, authentication, bounds, shutdown, the textfile, `opsd check`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::exporter::{Exporter, Scrape, postgres_monitor, request, site};
use crate::support::opsd::{Opsd, quoted, write_private};
use crate::support::postgres::{self, Options, Server, free_port};
use crate::support::prometheus::{self, Prometheus};

#[test]
fn a_scrape_shows_a_server_and_the_exporter_itself() {
    let server = postgres::default_server();
    let exporter = Exporter::start(&mut site(server), "");
    let scrape = exporter.scrape_until("the first collection", |scrape| scrape.up("main").is_some());
    assert_eq!(scrape.up("main"), Some(1.0), "{}", scrape.text);
    for metric in [
        "opsd_build_info",
        "opsd_start_timestamp_seconds",
        "opsd_monitor_info",
        "opsd_monitor_collected_timestamp_seconds",
        "opsd_monitor_collect_duration_seconds",
        "opsd_monitor_series",
        "opsd_postgres_server_info",
    ] {
        assert_eq!(scrape.of(metric, &["site=\"test\""]).len(), 1, "{metric}\n{}", scrape.text);
    }
    assert_eq!(scrape.of("opsd_monitor_failures_total", &[]).len(), 12);
    assert_eq!(scrape.one("opsd_monitor_series_dropped_total", &[]), Some(0.0));
    let collected = scrape.one("opsd_monitor_collected_timestamp_seconds", &[]).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - collected).abs() < 60.0, "{collected} is not about {now}");
    let series =
        scrape.text.lines().filter(|l| l.contains("monitor=\"main\"") && l.starts_with("opsd_postgres"));
    assert_eq!(Some(series.count() as f64), scrape.one("opsd_monitor_series", &[]));

    assert_eq!(exporter.get("/live", &[]).0, 200);
    assert_eq!(exporter.get("/ready", &[]).0, 200);
    let (status, head, body) = exporter.get("/", &[]);
    assert!(status == 200 && head.contains("text/html") && body.contains("/metrics"), "{head}");
    assert_eq!(exporter.get("/other", &[]).0, 404);
    assert_eq!(request(&exporter.address, "POST", "/metrics", &["Content-Length: 0"]).0, 405);
    assert_eq!(request(&exporter.address, "HEAD", "/metrics", &[]).2, "");
    let (code, said) = exporter.stop();
    assert_eq!((code, said.as_str()), (Some(0), ""));
}

#[test]
fn both_formats_say_the_same() {
    let exporter = Exporter::start(&mut site(postgres::default_server()), "");
    exporter.scrape_until("the first collection", |scrape| scrape.up("main").is_some());
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2";
    let (_, head, open) = exporter.get("/metrics", &[accept]);
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(
        open.ends_with("# EOF\n") && open.contains("# UNIT opsd_monitor_interval_seconds seconds\n"),
        "{open}"
    );
    assert!(open.contains("# TYPE opsd_postgres_server info\n"), "{open}");
    assert!(open.contains("# TYPE opsd_postgres_database_temporary_bytes counter\n"), "{open}");
    let (_, head, text) = exporter.get("/metrics", &[]);
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let names = |page: &str| {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let mut names: Vec<String> = lines.map(|l| l.rsplit_once(' ').unwrap().0.to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&open), names(&text));
}

#[test]
fn nobody_reads_without_the_secret() {
    let mut opsd = site(postgres::default_server());
    write_private(&opsd.path("token"), "t0ken\n");
    let file = format!("bearer_token_file = {:?}", opsd.path("token"));
    let exporter = Exporter::start(&mut opsd, &file);
    let (status, head, body) = exporter.get("/metrics", &[]);
    assert!(status == 401 && head.contains("Bearer") && !body.contains("opsd_"), "{head}\n{body}");
    assert_eq!(exporter.get("/metrics", &["Authorization: Bearer wrong"]).0, 401);
    assert_eq!(exporter.get("/", &[]).0, 401);
    assert_eq!(exporter.get("/live", &[]).0, 200);
    assert_eq!(exporter.get("/metrics", &["Authorization: Bearer t0ken"]).0, 200);
    drop(exporter);

    opsd.env("METRICS_PASSWORD", "pass");
    let basic = "basic_auth = { user = \"prometheus\", password = \"${METRICS_PASSWORD}\" }";
    let exporter = Exporter::start(&mut opsd, basic);
    let header = |text: &str| {
        format!("Authorization: Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
    };
    assert_eq!(exporter.get("/metrics", &[&header("prometheus:pas")]).0, 401);
    assert_eq!(exporter.get("/metrics", &[&header("prometheus:pass")]).0, 200);
}

#[test]
fn beyond_loopback_it_wants_authentication() {
    let mut opsd = site(postgres::default_server());
    opsd.more.push_str("[exporter]\nlisten = \"0.0.0.0:0\"\n");
    opsd.run(&["exporter"])
        .expect_failure(2, &["exporter.listen", "anybody could read it", "bearer_token_file"]);
}

#[test]
fn slow_and_many_clients_are_bounded() {
    let mut opsd = site(postgres::default_server());
    let exporter = Exporter::start(&mut opsd, "max_connections = 4\nheader_timeout = \"1s\"");
    let connect = || {
        let stream = TcpStream::connect(&exporter.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    };
    let (mut one, mut two, mut three) = (connect(), connect(), connect());
    // The third is closed without an answer: one peer gets half of all.
    let mut answer = Vec::new();
    let _ = three.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    // One says nothing, the other half of something; both are ended.
    two.write_all(b"GET /metrics HTTP/1.1\r\nHost:").unwrap();
    for stream in [&mut one, &mut two] {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    }
    let scrape = Scrape::parse(&exporter.get("/metrics", &[]).2);
    assert_eq!(scrape.one("opsd_exporter_connections_refused_total", &[]), Some(1.0));
}

/// Connects from another address of this host.
async fn connect_from(source: &str, to: &str) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(to.parse().unwrap()).await.unwrap()
}

/// Sends one request over a connection that is to be kept, and reads what comes until it is closed, or for
/// as long as an answer may take.
async fn ask(stream: &mut tokio::net::TcpStream, request: &str) -> (String, bool) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let whole = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut answer)).await;
    (String::from_utf8_lossy(&answer).into_owned(), whole.is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_clients_without_the_secret_shut_nobody_out() {
    let mut opsd = site(postgres::default_server());
    write_private(&opsd.path("token"), "t0ken\n");
    let file = format!("bearer_token_file = {:?}\nmax_connections = 8", opsd.path("token"));
    let exporter = Exporter::start(&mut opsd, &file);
    // Whoever brings no secret is answered, and closed.
    for path in ["/live", "/ready", "/metrics", "/other"] {
        let mut stream = connect_from("127.0.0.2", &exporter.address).await;
        let (answer, is_closed) = ask(&mut stream, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 ") && is_closed, "{path}: {answer}");
    }
    // Whoever brings it may ask again.
    let mut known = connect_from("127.0.0.2", &exporter.address).await;
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t0ken\r\n\r\n";
    let (answer, is_closed) = ask(&mut known, request).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !is_closed, "{answer}");
    drop(known);
    // All that one peer can open, and says nothing on.
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(connect_from("127.0.0.2", &exporter.address).await);
    }
    assert_eq!(exporter.get("/metrics", &["Authorization: Bearer t0ken"]).0, 200);
}

#[test]
fn a_target_that_hangs_costs_only_itself() {
    // Accepts and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut opsd = site(postgres::default_server());
    opsd.more.push_str(&postgres_monitor("hangs", &format!("postgres://u@127.0.0.1:{port}/x"), ""));
    let gone = format!("postgres://u@127.0.0.1:{}/x", free_port());
    opsd.more.push_str(&postgres_monitor("gone", &gone, ""));
    let exporter = Exporter::start(&mut opsd, "");
    let scrape = exporter.scrape_until("all have been tried", |scrape| {
        ["main", "hangs", "gone"].iter().all(|name| scrape.up(name).is_some())
    });
    assert_eq!(["main", "hangs", "gone"].map(|name| scrape.up(name)), [Some(1.0), Some(0.0), Some(0.0)]);
    let failed = |monitor: &str, reason: &str| {
        let labels = [format!("monitor=\"{monitor}\""), format!("reason=\"{reason}\"")];
        scrape.one("opsd_monitor_failures_total", &[&labels[0], &labels[1]]).unwrap() >= 1.0
    };
    assert!(failed("hangs", "timeout") && failed("gone", "unreachable"), "{}", scrape.text);
    assert_eq!(scrape.of("opsd_postgres_server_info", &[]).len(), 1);
}

#[test]
fn a_textfile_is_written_whole() {
    let server = postgres::default_server();
    let mut opsd = site(server);
    opsd.more.push_str(&postgres_monitor("gone", &format!("postgres://u@127.0.0.1:{}/x", free_port()), ""));
    let file = opsd.path("opsd.prom");
    std::fs::write(&file, "old").unwrap();
    opsd.ok(&["exporter", "--textfile", file.to_str().unwrap()]);
    let scrape = Scrape::parse(&std::fs::read_to_string(&file).unwrap());
    assert_eq!((scrape.up("main"), scrape.up("gone")), (Some(1.0), Some(0.0)));
    let others = std::fs::read_dir(opsd.path(""))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".tmp"));
    assert_eq!(others.count(), 0);
    let nowhere = opsd.path("absent/opsd.prom");
    opsd.run(&["exporter", "--textfile", nowhere.to_str().unwrap()]).expect_failure(1, &["cannot write"]);
}

/// On a server that other tests use, too, something may well be the matter.
fn server_of_ones_own() -> Server {
    Server::start(postgres::default_major(), &Options::default())
}

#[test]
fn check_speaks_as_plugins_do() {
    let server = server_of_ones_own();
    let mut opsd = site(&server);
    let run = opsd.ok(&["check", "main"]);
    assert!(run.stdout.starts_with("OPSD OK - main | '") && run.stdout.lines().count() == 1, "{run}");
    assert!(run.stdout.contains("'main postgres_connections_used_ratio'=0."), "{run}");
    assert!(run.stdout.contains(";0.8;0.95"), "{run}");

    opsd.more
        .push_str("[monitor.main.thresholds]\nopsd_postgres_connections_used_ratio = { warning = 0.0 }\n");
    let run = opsd.run(&["check"]).expect_code(1);
    assert!(run.stdout.starts_with("OPSD WARNING - main: postgres_connections_used_ratio is 0."), "{run}");
    opsd.more.push_str("opsd_postgres_start_timestamp_seconds = { critical = \"0s\" }\n");
    let run = opsd.run(&["check", "--json"]).expect_code(2);
    assert_eq!(run.json()["verdict"], "critical", "{run}");
    assert_eq!(run.json()["monitors"][0]["findings"][0]["verdict"], "critical", "{run}");

    opsd.more = postgres_monitor("gone", &format!("postgres://u@127.0.0.1:{}/x", free_port()), "");
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.starts_with("OPSD CRITICAL - gone: down, unreachable: cannot connect"), "{run}");
    let run = opsd.ok(&["status"]);
    assert!(run.stdout.contains("CRITICAL gone"), "{run}");

    // Whatever keeps it from judging is unknown, never an alarm.
    let run = opsd.run(&["check", "absent"]).expect_code(3);
    assert!(run.stdout.starts_with("OPSD UNKNOWN - there is no monitor \"absent\""), "{run}");
    opsd.run(&["check", "--bogus"]).expect_failure(3, &["--bogus"]);
    opsd.run(&["config", "check", "--bogus"]).expect_failure(2, &["--bogus"]);
    opsd.more.push_str("[monitor.bad]\npostgres = \"nobody\"\n");
    let run = opsd.run(&["check"]).expect_code(3);
    assert!(
        run.stdout.starts_with("OPSD UNKNOWN - ") && run.stdout.contains("monitor.bad.postgres"),
        "{run}"
    );
    let without = Opsd::without_server().run(&["check"]).expect_code(3);
    assert!(without.stdout.contains("has no [monitor.NAME]"), "{without}");
}

#[test]
fn status_fits_a_screen_and_says_what_is_missing() {
    let server = postgres::default_server();
    let role = postgres::unique("plain_role");
    server.psql("postgres", &format!("CREATE ROLE {role} LOGIN"));
    let mut opsd = site(server);
    opsd.more.push_str(&postgres_monitor("plain", &server.socket_url(&role, "postgres"), ""));
    let run = opsd.ok(&["status"]);
    server.psql("postgres", &format!("DROP ROLE {role}"));
    assert!(run.stdout.starts_with("test: "), "{run}");
    assert!(run.stdout.contains(" primary, ") && run.stdout.contains(" connections"), "{run}");
    assert!(run.stdout.contains("not permitted: replication, activity"), "{run}");
    assert!(run.stdout.lines().all(|line| line.chars().count() <= 80), "{run}");
}

#[test]
fn a_host_that_only_watches_needs_no_repository_and_no_keys() {
    let server = server_of_ones_own();
    let opsd = Opsd::without_server();
    let file = opsd.path("watch.toml");
    let url = server.socket_url(postgres::SUPERUSER, "postgres");
    let monitor = format!("[postgres.main]\nurl = {}\n[monitor.main]\npostgres = \"main\"\n", quoted(&url));
    let write = |more: &str| write_private(&file, &format!("site = \"home\"\n{monitor}{more}"));
    let run = |args: &[&str]| opsd.run(&[&["--config", file.to_str().unwrap()], args].concat());
    write("");
    let checked = run(&["config", "check"]).expect_code(0);
    assert!(checked.stdout.contains("no backup, monitor main"), "{checked}");
    assert!(checked.stdout.contains("next: opsd status") && checked.stderr.is_empty(), "{checked}");
    let shown = run(&["config", "show"]).expect_code(0);
    assert!(!shown.stdout.contains("[repository]") && !shown.stdout.contains("[encryption]"), "{shown}");
    run(&["check"]).expect_code(0);
    let status = run(&["status", "--json"]).expect_code(0).json();
    assert_eq!((&status["verdict"], &status["monitors"][0]["monitor"]), (&"ok".into(), &"main".into()));
    for command in [["backups", "list"], ["repository", "probe"]] {
        run(&command).expect_failure(2, &["the configuration has no [repository]"]);
    }
    run(&["backup"]).expect_code(2);
    // Whoever wants more than to watch needs them as ever.
    write("[monitor.backups]\nbackups = {}\n");
    run(&["config", "check"]).expect_failure(2, &["monitor.backups.backups: there is no repository to read"]);
    write("[backup.db]\npostgres = \"main\"\n");
    run(&["config", "check"]).expect_failure(2, &["repository: missing", "encryption: missing"]);
}

/// Prometheus' own opinion of a page; that of a whole site is asked for where there is one (`dashboards`).
#[test]
fn promtool_has_nothing_to_complain_about() {
    let opsd = site(postgres::default_server());
    let file = opsd.path("opsd.prom");
    opsd.ok(&["exporter", "--textfile", file.to_str().unwrap()]);
    let page = std::fs::read_to_string(file).unwrap();
    assert_eq!(prometheus::complaints(&page), None);
    // When cron runs it the next time, nobody knows.
    assert!(!page.contains("opsd_monitor_interval_seconds"), "{page}");
    // It does complain when there is something.
    assert!(prometheus::complaints("# TYPE a_total gauge\na_total 1\n").is_some());
}

/// Its figures were left out, and that was called well.
#[test]
fn a_monitor_that_takes_long_takes_no_figures_of_others_along() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = server_of_ones_own();
    let mut opsd = site(&server);
    // It connects, and waits for an answer longer than the other one's figures are good for.
    opsd.more.push_str(&format!(
        "[monitor.slow]\nhttp = {{ url = \"http://{}/\" }}\ninterval = \"10s\"\ntimeout = \"5s\"\n",
        listener.local_addr().unwrap()
    ));
    let document = opsd.run(&["check", "--json"]).expect_code(2).json();
    let monitors = document["monitors"].as_array().unwrap();
    assert_eq!(monitors[0]["verdict"], "ok", "{document}");
    assert!(!monitors[0]["figures"].as_array().unwrap().is_empty(), "{document}");
    assert_eq!((&monitors[1]["verdict"], &monitors[1]["reason"]), (&"critical".into(), &"timeout".into()));
    let file = opsd.path("opsd.prom");
    opsd.ok(&["exporter", "--textfile", file.to_str().unwrap()]);
    let scrape = Scrape::parse(&std::fs::read_to_string(file).unwrap());
    assert!(scrape.one("opsd_postgres_connections_usable", &[]).is_some(), "{}", scrape.text);
}

#[test]
fn a_real_prometheus_takes_the_page() {
    let exporter = Exporter::start(&mut site(postgres::default_server()), "");
    exporter.scrape_until("the first collection", |scrape| scrape.up("main").is_some());
    let prometheus = Prometheus::start(&exporter.address);
    let found = prometheus.until_some("opsd_postgres_database_commits_total{database=\"postgres\"} > 0");
    assert_eq!(found[0]["metric"]["monitor"], "main", "{found:?}");
    assert_eq!(prometheus.query("up == 1").len(), 1);
    assert_eq!(prometheus.query("opsd_monitor_up{site=\"test\",monitor=\"main\"} == 1").len(), 1);
    // It asked for OpenMetrics; here it gets the text format, whatever it asks for.
    let (_, _, text) = exporter.get("/metrics", &[]);
    assert!(!text.contains("# EOF"), "{text}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Ends with the tests.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (kind, size) = ("text/plain; version=0.0.4", text.len());
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all((head + &text).as_bytes());
        }
    });
    let other = Prometheus::start(&address);
    let found = other.until_some("opsd_postgres_database_commits_total{database=\"postgres\"} > 0");
    assert_eq!(found[0]["metric"]["monitor"], "main", "{found:?}");
    // An age, as an alert would reckon it.
    assert_eq!(prometheus.query("time() - opsd_monitor_collected_timestamp_seconds < 60").len(), 1);
}
