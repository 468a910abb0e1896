//! What lies between opsd and what it watches: names with several addresses, certificates as people make them,
//! pages as servers send them, and servers that offer less than the usual ones.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::monitor_probes::{serve, tls_server};
use crate::support::certificates::{Authority, Pair, in_days};
use crate::support::exporter::{Exporter, Scrape, collected, request};
use crate::support::mosquitto::Mosquitto;
use crate::support::opsd::{Opsd, Run, behind, finish, write_private};
use crate::support::postgres::{self, free_port};
use crate::support::redis::{Redis, Software};

fn site(monitors: &str) -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.more = monitors.to_owned();
    opsd
}

fn check(opsd: &Opsd, monitor: &str, code: i32, words: &[&str]) {
    let run = opsd.run(&["check", monitor]).expect_code(code);
    for words in words {
        assert!(run.stdout.contains(words), "{words:?} is not in {run}");
    }
}

/// An address that hangs as one behind a firewall does: its queue of connections is full, and the system drops
/// whatever else comes. None where the port is taken.
struct Hanging {
    _listener: rustix::fd::OwnedFd,
    _held: Vec<TcpStream>,
    port: u16,
}

impl Hanging {
    fn at(port: u16) -> Hanging {
        let listener = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddr::from((Ipv6Addr::LOCALHOST, port))).unwrap();
        listen(&listener, 0).unwrap();
        let bound: SocketAddr = rustix::net::getsockname(&listener).unwrap().try_into().unwrap();
        let mut held = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&bound, Duration::from_millis(300)) {
            held.push(stream);
        }
        Hanging { _listener: listener, _held: held, port: bound.port() }
    }
}

/// Runs opsd where `fork.test` has an address that hangs and one that answers, and `hung.test` has only the first.
fn with_two_addresses(opsd: &Opsd, args: &[&str]) -> Run {
    let hosts = opsd.path("hosts");
    let text = "127.0.0.1 localhost\n::1 fork.test hung.test\n127.0.0.1 fork.test\n";
    std::fs::write(&hosts, text).unwrap();
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let namespace: &[&str] = if rustix::process::geteuid().is_root() {
        &["unshare", "--mount"]
    } else {
        &["unshare", "--user", "--map-root-user", "--mount"]
    };
    let wrapper: Vec<&str> = namespace.iter().copied().chain(["sh", "-c", &script, "sh"]).collect();
    finish(behind(&wrapper, &opsd.command(args)))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_falls_back_to_the_address_that_answers_and_names_the_one_that_hangs() {
    let ca = Authority::new("Authority", in_days(100));
    let pair = ca.sign(&["fork.test"], "fork.test", in_days(90));
    let redis = Redis::start(Software::Redis, &[]);
    let server = postgres::default_server();
    let (http, tls, mqtt) = (serve().await, tls_server(&[&pair]).await, free_port());
    let mut opsd = site("");
    ca.pair.write(&opsd.path("ca.pem"), &opsd.path("ca.key"), &[]);
    let _broker = Mosquitto::start(&opsd.path(""), mqtt, "allow_anonymous true");
    let ports = [http, tls, mqtt, redis.port, server.port];
    let _hanging: Vec<Hanging> = ports.into_iter().map(Hanging::at).collect();
    let nowhere = Hanging::at(0);
    let alone = nowhere.port;
    let role = postgres::unique("monitor");
    server.psql("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD 'secret' IN ROLE pg_monitor"));
    let kinds = |host: &str, [http, tls, mqtt, redis, postgres]: [u16; 5]| {
        let prefix = &host[..4];
        let url = format!("postgres://{role}:secret@{host}:{postgres}/postgres");
        let ca = opsd.path("ca.pem").display().to_string();
        [
            format!("[redis.{prefix}]\nurl = \"redis://{host}:{redis}/0\"\n"),
            format!("[postgres.{prefix}]\nurl = \"{url}\"\n"),
            format!("[monitor.{prefix}-tcp]\ntcp = {{ address = \"{host}:{http}\" }}\ntimeout = \"8s\"\n"),
            format!("[monitor.{prefix}-http]\nhttp = {{ url = \"http://{host}:{http}/health\", ca_file = \"{ca}\" }}\ntimeout = \"8s\"\n"),
            format!("[monitor.{prefix}-tls]\ntls = {{ address = \"{host}:{tls}\", ca_file = \"{ca}\" }}\ntimeout = \"8s\"\n"),
            format!("[monitor.{prefix}-mqtt]\nmqtt = {{ url = \"mqtt://{host}:{mqtt}\" }}\ntimeout = \"8s\"\n"),
            format!("[monitor.{prefix}-redis]\nredis = \"{prefix}\"\ntimeout = \"8s\"\n"),
            format!("[monitor.{prefix}-postgres]\npostgres = \"{prefix}\"\ntimeout = \"8s\"\n"),
        ]
        .concat()
    };
    opsd.more = kinds("fork.test", ports) + &kinds("hung.test", [alone; 5]);
    let file = opsd.path("collected.prom");
    with_two_addresses(&opsd, &["exporter", "--textfile", file.to_str().unwrap()]).expect_code(0);
    let scrape = Scrape::parse(&std::fs::read_to_string(&file).unwrap());
    let kinds = ["tcp", "http", "tls", "mqtt", "redis", "postgres"];
    let up = |host: &str| kinds.map(|kind| scrape.up(&format!("{host}-{kind}")).unwrap());
    assert_eq!((up("fork"), up("hung")), ([1.0; 6], [0.0; 6]), "{}", scrape.text);
    let run = with_two_addresses(&opsd, &["check", "--json"]).expect_code(2);
    for kind in kinds {
        let json = run.json();
        let mut monitors = json["monitors"].as_array().unwrap().iter();
        let monitor = monitors.find(|one| one["monitor"] == format!("hung-{kind}")).unwrap();
        let said = monitor["findings"][0]["text"].as_str().unwrap();
        let names =
            if kind == "http" { "s from ::1".to_owned() } else { format!("[::1]:{alone}: no answer") };
        assert!(said.contains(&names) && said.contains("no answer within "), "{kind}: {said}");
    }
}

/// What openssl makes in a directory.
fn openssl(directory: &std::path::Path, words: &str) {
    let output = Command::new("openssl").current_dir(directory).args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// One judgement for all protocols: a certificate that signs itself may be the one that is trusted, by its names
/// and its dates; one of version 1, which has no names, is told what it is.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_as_people_make_them_are_judged_alike_by_every_protocol() {
    let mut opsd = site("");
    let directory = opsd.path("");
    const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(
        &directory,
        &format!(
            "req -x509 {KEY} -days 90 -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout self.key -out self.pem"
        ),
    );
    openssl(&directory, &format!("req -x509 {KEY} -days 90 -subj /CN=ca -keyout ca.key -out ca.pem"));
    openssl(&directory, &format!("req {KEY} -subj /CN=localhost -keyout one.key -out one.csr"));
    openssl(
        &directory,
        "x509 -req -in one.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 90 -out one.pem",
    );
    let path = |name: &str| directory.join(name).display().to_string();
    let (redis, other) = (Redis::start(Software::Redis, &[]), Redis::start(Software::Redis, &[]));
    let mut brokers = Vec::new();
    let mut monitors = String::new();
    for (name, trusted, redis) in [("self", "self.pem", &redis), ("one", "ca.pem", &other)] {
        let (certificate, key, trusted) =
            (path(&format!("{name}.pem")), path(&format!("{name}.key")), path(trusted));
        let ports: [u16; 2] = std::array::from_fn(|_| free_port());
        brokers.push(Mosquitto::start(
            &directory,
            ports[0],
            &format!("allow_anonymous true\ncertfile {certificate}\nkeyfile {key}"),
        ));
        for (setting, value) in [
            ("tls-auth-clients", "no"),
            ("tls-cert-file", certificate.as_str()),
            ("tls-key-file", &key),
            ("tls-ca-cert-file", &trusted),
        ] {
            redis.cli(&["CONFIG", "SET", setting, value]);
        }
        redis.cli(&["CONFIG", "SET", "tls-port", &ports[1].to_string()]);
        let https = tls_server_of_files(&certificate, &key).await;
        let ca = format!("ca_file = {trusted:?}");
        monitors.push_str(&format!(
            "[monitor.{name}-http]\nhttp = {{ url = \"https://localhost:{https}/\", {ca} }}\n"
        ));
        monitors
            .push_str(&format!("[monitor.{name}-tls]\ntls = {{ address = \"localhost:{https}\", {ca} }}\n"));
        monitors.push_str(&format!(
            "[monitor.{name}-mqtt]\nmqtt = {{ url = \"mqtts://localhost:{}\", {ca} }}\n",
            ports[0]
        ));
        monitors.push_str(&format!("[redis.{name}]\nurl = \"rediss://localhost:{}/0\"\n{ca}\n[monitor.{name}-redis]\nredis = \"{name}\"\n", ports[1]));
    }
    opsd.more = monitors;
    for kind in ["http", "tls", "mqtt", "redis"] {
        check(&opsd, &format!("self-{kind}"), 0, &["OPSD OK"]);
    }
    for kind in ["http", "mqtt", "redis"] {
        check(&opsd, &format!("one-{kind}"), 2, &["down, tls", "X.509 version 1", "subjectAltName"]);
    }
    check(&opsd, "one-tls", 2, &["tls_verification_state is version_1"]);
    let state = collected(&opsd).state("opsd_tls_verification_state", &["monitor=\"one-tls\""]);
    assert_eq!(state.as_deref(), Some("version_1"));
}

async fn tls_server_of_files(certificate: &str, key: &str) -> u16 {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = CertificateDer::pem_file_iter(certificate).unwrap().collect::<Result<_, _>>().unwrap();
    crate::monitor_probes::tls_server_of(chain, PrivateKeyDer::from_pem_file(key).unwrap()).await
}

/// As some authorities did for years: the new root is there as itself, and once more as signed by an old one.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_cross_sign_beside_a_valid_chain_does_not_matter() {
    let root = Authority::new("New Root", in_days(400));
    let old = Authority::new("Old Root", in_days(-30));
    let cross = root.cross_signed(&old, in_days(-2));
    let server = root.sign(&["localhost"], "server", in_days(60));
    let short = Authority::new("Short Root", in_days(3));
    let under = short.sign(&["localhost"], "under", in_days(60));
    let gone = Authority::new("Gone Root", in_days(-1));
    let under_gone = gone.sign(&["localhost"], "under", in_days(60));
    let mut opsd = site("");
    let write = |pair: &Pair, name: &str, chain: &[&Pair]| {
        let file = opsd.path(&format!("{name}.pem"));
        pair.write(&file, &opsd.path(&format!("{name}.key")), chain);
        file.display().to_string()
    };
    let (ca, file) = (write(&root.pair, "ca", &[]), write(&server, "server", &[&cross]));
    let second = server_for_itself(&root, in_days(2));
    let two = write(&server, "two", &[&cross, &second]);
    let (short, gone) = (write(&short.pair, "short", &[]), write(&gone.pair, "gone", &[]));
    let port = tls_server(&[&server, &cross]).await;
    let soon = tls_server(&[&under]).await;
    let over = tls_server(&[&under_gone]).await;
    opsd.more = format!(
        "[monitor.net]\ntls = {{ address = \"localhost:{port}\", ca_file = {ca:?} }}\n\
         [monitor.file]\ntls = {{ files = [{file:?}], ca_file = {ca:?} }}\n\
         [monitor.two]\ntls = {{ files = [{two:?}], ca_file = {ca:?} }}\n\
         [monitor.soon]\ntls = {{ address = \"localhost:{soon}\", ca_file = {short:?} }}\n\
         [monitor.over]\ntls = {{ address = \"localhost:{over}\", ca_file = {gone:?} }}\n"
    );
    let scrape = collected(&opsd);
    let days = |metric: &str, labels: &[&str]| {
        ((scrape.one(metric, labels).unwrap() - in_days(0) as f64) / 86_400.0).round()
    };
    let first =
        |monitor: &str| days("opsd_tls_expiry_timestamp_seconds", &[&format!("monitor=\"{monitor}\"")]);
    let each = "opsd_tls_certificate_expiry_timestamp_seconds";
    assert_eq!(days(each, &["monitor=\"net\"", "position=\"1\""]), -2.0, "it is shown all the same");
    // The one that is not shown by the server ends the chain as well.
    let found = ["net", "file", "two", "soon", "over"].map(first);
    assert_eq!(found, [60.0, 60.0, 2.0, 3.0, -1.0], "{}", scrape.text);
    check(&opsd, "net", 0, &["OPSD OK"]);
    check(&opsd, "file", 0, &["OPSD OK"]);
    check(&opsd, "two", 2, &["tls_expiry_timestamp_seconds"]);
    // An authority that is over does not end the alarm.
    check(&opsd, "over", 2, &["tls_expiry_timestamp_seconds"]);
}

fn server_for_itself(authority: &Authority, not_after: u64) -> Pair {
    authority.sign(&["other.test"], "other", not_after)
}

/// A page that is compressed without being asked, one with a byte order mark, and one that never ends.
async fn pages() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let json = br#"{"status":"UP","queue":{"status":"DOWN"}}"#;
                let utf16: Vec<u8> = std::iter::once(0xfeff)
                    .chain(json.iter().map(|b| u16::from(*b)))
                    .flat_map(u16::to_le_bytes)
                    .collect();
                let (head, body) = match request.split(' ').nth(1).unwrap() {
                    "/gzip" => ("Content-Encoding: gzip\r\n", gzip(json)),
                    "/bomb" => ("Content-Encoding: gzip\r\n", gzip(&vec![b' '; 64 << 20])),
                    "/broken" => ("Content-Encoding: gzip\r\n", b"no gzip".to_vec()),
                    "/bom" => ("", [b"\xef\xbb\xbf", &json[..]].concat()),
                    "/utf16" => ("", utf16),
                    _ => {
                        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nwelcome\n";
                        let mut sent = stream.write_all(head.as_bytes()).await;
                        while sent.is_ok() {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            sent = stream.write_all(b": still here\n").await;
                        }
                        return;
                    }
                };
                let head = format!(
                    "HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
            });
        }
    });
    port
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip")
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(bytes).unwrap());
        let mut out = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
        assert!(child.wait().unwrap().success());
        out
    })
}

fn gunzip(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("page.gz");
    std::fs::write(&file, bytes).unwrap();
    let output = Command::new("gzip").arg("-dc").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_read_as_servers_send_them() {
    let port = pages().await;
    let mut opsd = site("");
    // The system's authorities take a while to read, which what is measured here has no time for.
    let ca = Authority::new("Authority", in_days(100)).pair;
    ca.write(&opsd.path("ca.pem"), &opsd.path("ca.key"), &[]);
    let ca_file = opsd.path("ca.pem").display().to_string();
    let within = |bound: &str, name: &str, more: &str| {
        let url = format!("http://127.0.0.1:{port}/{name}");
        format!(
            "[monitor.{name}]\ninterval = \"60s\"\ntimeout = \"{bound}\"\nhttp = {{ url = \"{url}\", ca_file = {ca_file:?}, {more} }}\n"
        )
    };
    let monitor = |name: &str, more: &str| within("60s", name, more);
    let health = "components = \"/\", expect_body = \"UP\", expect_json = { \"/status\" = \"UP\" }";
    let read = ["gzip", "bom", "utf16"];
    opsd.more = read.map(|name| monitor(name, health)).concat()
        + &monitor("bomb", health)
        + &monitor("broken", health)
        + &within("6s", "endless", "expect_body = \"welcome\"")
        + &within("6s", "events", "expect_json = { \"/status\" = \"UP\" }");
    let scrape = collected(&opsd);
    for name in read {
        let of = |metric: &str, more: &[&str]| {
            let monitor = format!("monitor=\"{name}\"");
            scrape.one(&format!("opsd_http_{metric}"), &[&[&*monitor], more].concat())
        };
        assert_eq!(of("component_up", &["component=\"queue\""]), Some(0.0), "{name}\n{}", scrape.text);
        assert_eq!((of("json_expected", &[]), of("body_expected", &[])), (Some(1.0), Some(1.0)), "{name}");
    }
    let of = |name: &str, metric: &str| {
        scrape.one(&format!("opsd_http_{metric}"), &[&format!("monitor=\"{name}\"")])
    };
    // What never ends was answered, and holds what has come of it.
    assert_eq!((of("endless", "status"), of("endless", "body_expected")), (Some(200.0), Some(1.0)));
    check(&opsd, "endless", 0, &["OPSD OK"]);
    check(&opsd, "events", 2, &["the body had not ended after ", "http_json_expected"]);
    check(&opsd, "bomb", 2, &["the body is longer than 1 MiB"]);
    check(&opsd, "broken", 2, &["the body is not what its Content-Encoding says"]);
}

/// Managed servers have some commands removed or renamed: that piece is not offered, and the rest is told.
#[test]
fn commands_that_a_server_does_not_offer_are_named_and_no_fault() {
    let redis =
        Redis::start(Software::Redis, &["--rename-command", "SLOWLOG", "", "--rename-command", "CLIENT", ""]);
    let mut opsd = site(&format!(
        "[redis.main]\nurl = \"{}\"\n[monitor.cache]\nredis = \"main\"\n\
         [monitor.jobs]\nqueue = {{ kind = \"list\", redis = \"main\", queues = [\"q\"] }}\n",
        redis.url(0)
    ));
    let scrape = collected(&opsd);
    for (monitor, concern) in [("cache", "slowlog"), ("jobs", "workers")] {
        let labels = [format!("monitor=\"{monitor}\""), format!("concern=\"{concern}\"")];
        let why = [&labels[0], &labels[1], "reason=\"not_offered\""];
        assert_eq!(scrape.one("opsd_monitor_concern_failure", &why), Some(1.0), "{}", scrape.text);
        check(&opsd, monitor, 0, &["OPSD OK", &format!("{monitor} is not offered {concern}")]);
    }
    let run = opsd.ok(&["check", "--json", "cache"]);
    assert!(run.stdout.contains("SLOWLOG is not offered"), "{run}");

    // No evictions, and half of the reads find nothing, as workers read a result backend: no cache.
    redis.cli(&["EVAL", "for i=1,300 do redis.call('GET', 'absent') end", "0"]);
    assert_eq!(scrape.one("opsd_redis_cache", &[]), Some(0.0));
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    assert_eq!(collected(&opsd).one("opsd_redis_cache", &[]), Some(1.0));
    opsd.more = opsd.more.replace("[monitor.cache]", "cache = false\n[monitor.cache]");
    assert_eq!(collected(&opsd).one("opsd_redis_cache", &[]), Some(0.0));
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    opsd.more = opsd.more.replace("cache = false", "cache = true");
    assert_eq!(collected(&opsd).one("opsd_redis_cache", &[]), Some(1.0));
}

/// A Sentinel answers `INFO` and is neither a primary nor a replica; a member of a cluster answers for others.
#[test]
fn what_is_no_ordinary_redis_says_what_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("sentinel.conf");
    std::fs::write(&configuration, "sentinel resolve-hostnames no\n").unwrap();
    // The server takes a file for its first argument.
    let sentinel = Redis::start_with(Software::Redis, &[configuration.to_str().unwrap()], &["--sentinel"]);
    let cluster: [Redis; 2] = std::array::from_fn(|_| {
        Redis::start(
            Software::Redis,
            &[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &free_port().to_string(),
                "--cluster-require-full-coverage",
                "no",
            ],
        )
    });
    let bus = cluster[1].cli(&["CONFIG", "GET", "cluster-port"]);
    let bus = bus.lines().last().unwrap();
    cluster[0].cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]);
    cluster[1].cli(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]);
    cluster[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &cluster[1].port.to_string(), bus]);
    // `foo` belongs to slot 12182, which the second one has.
    crate::support::processes::until("the members know each other", || {
        cluster[0].try_cli(&["GET", "foo"]).starts_with("MOVED")
    });
    let opsd = site(&format!(
        "[redis.sentinel]\nurl = \"{}\"\n[monitor.sentinel]\nredis = \"sentinel\"\n\
         [redis.member]\nurl = \"{}\"\n[monitor.jobs]\nqueue = {{ kind = \"list\", redis = \"member\", queues = [\"foo\"] }}\n",
        sentinel.url(0),
        cluster[0].url(0)
    ));
    let run = opsd.run(&["check", "--json", "sentinel"]);
    assert!(run.stdout.contains("the server tells no role, and is in mode \\\"sentinel\\\""), "{run}");
    check(
        &opsd,
        "jobs",
        3,
        &["queue foo", "clusters are not followed", &format!("127.0.0.1:{}", cluster[1].port)],
    );
}

#[test]
fn a_wrong_celery_prefix_is_no_empty_queue() {
    let redis = Redis::start(Software::Redis, &[]);
    let script = "import os\nfrom celery import Celery\n\
        app = Celery('tasks', broker=os.environ['REDIS_URL'])\n\
        app.conf.broker_transport_options = {'global_keyprefix': 'app:'}\n\
        @app.task\ndef work(): pass\nwork.delay()";
    redis.python(script, &[]);
    // A worker took it: what stays is that the queue was declared.
    redis.cli(&["DEL", "app:celery"]);
    let monitor = |name: &str, prefix: &str| {
        format!(
            "[monitor.{name}]\nqueue = {{ kind = \"celery\", redis = \"main\", queues = [\"celery\"]{prefix} }}\n"
        )
    };
    let opsd = site(&format!(
        "[redis.main]\nurl = \"{}\"\n{}{}",
        redis.url(0),
        monitor("right", ", key_prefix = \"app:\""),
        monitor("wrong", "")
    ));
    let scrape = collected(&opsd);
    let waiting = |monitor: &str| scrape.one("opsd_queue_waiting", &[&format!("monitor=\"{monitor}\"")]);
    assert_eq!((waiting("right"), waiting("wrong")), (Some(0.0), None), "{}", scrape.text);
    let run = opsd.run(&["check", "wrong"]);
    assert!(
        run.stdout.contains("no Celery has declared a queue in database 0 with the prefix \"\""),
        "{run}"
    );
    let run = opsd.run(&["check", "right"]);
    assert!(!run.stdout.contains("has declared"), "{run}");
}

/// The plugin that the distribution puts beside its other libraries, wherever those are.
fn dynamic_security() -> std::path::PathBuf {
    let found = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let found = found.map(|directory| directory.join("mosquitto_dynamic_security.so"));
    found.into_iter().find(|file| file.exists()).expect("Mosquitto's plugin")
}

#[test]
fn a_brokers_client_has_a_name_and_figures_that_are_off_are_not_forbidden() {
    let mut opsd = site("");
    let ports: [u16; 4] = std::array::from_fn(|_| free_port());
    std::fs::write(opsd.path("acl"), "topic readwrite opsd/#\ntopic deny $SYS/#\n").unwrap();
    let acl = format!("allow_anonymous true\nacl_file {}", opsd.path("acl").display());
    const ROLES: &str = r#"{"defaultACLAccess":{"publishClientSend":false,"publishClientReceive":true,"subscribe":false,
        "unsubscribe":true},"anonymousGroup":"all","groups":[{"groupname":"all","roles":[{"rolename":"probe"}]}],
        "roles":[{"rolename":"probe","acls":[{"acltype":"publishClientSend","topic":"opsd/#","allow":true},
        {"acltype":"subscribePattern","topic":"opsd/#","allow":true}]}]}"#;
    write_private(&opsd.path("roles.json"), ROLES);
    let dynamic = format!(
        "allow_anonymous true\nplugin {}\nplugin_opt_config_file {}",
        dynamic_security().display(),
        opsd.path("roles.json").display()
    );
    let _brokers = [
        Mosquitto::start(&opsd.path(""), ports[0], "allow_anonymous true\nclientid_prefixes player-"),
        Mosquitto::start(&opsd.path(""), ports[1], "allow_anonymous true\nsys_interval 0"),
        Mosquitto::start(&opsd.path(""), ports[2], &dynamic),
        Mosquitto::start(&opsd.path(""), ports[3], &acl),
    ];
    let monitor = |name: &str, port: u16, more: &str| {
        format!(
            "[monitor.{name}]\ninterval = \"60s\"\ntimeout = \"60s\"\nmqtt = {{ url = \"mqtt://127.0.0.1:{port}\"{more} }}\n"
        )
    };
    opsd.more = monitor("named", ports[0], ", client_id = \"player-7\"")
        + &monitor("nameless", ports[0], "")
        + &monitor("off", ports[1], "")
        + &monitor("forbidden", ports[2], "")
        + &monitor("silent", ports[3], "");
    check(&opsd, "named", 0, &["OPSD OK"]);
    check(&opsd, "nameless", 2, &["down, authentication", "client_id"]);
    check(&opsd, "off", 0, &["OPSD OK"]);
    let scrape = collected(&opsd);
    let why = |monitor: &str, reason: &str| {
        let labels =
            [format!("monitor=\"{monitor}\""), "concern=\"sys\"".to_owned(), format!("reason=\"{reason}\"")];
        scrape.one("opsd_monitor_concern_failure", &[&labels[0], &labels[1], &labels[2]])
    };
    assert_eq!(why("off", "not_offered"), Some(1.0), "{}", scrape.text);
    assert_eq!(why("forbidden", "permission"), Some(1.0), "{}", scrape.text);
    // As a client sees it, that is the same as off; both are said.
    assert_eq!(why("silent", "not_offered"), Some(1.0), "{}", scrape.text);
    let run = opsd.ok(&["check", "--json", "silent"]);
    assert!(run.stdout.contains("or kept from this user without a word"), "{run}");
}

/// A scraper that takes gzip gets it, one that does not gets text; a client that has said all it has to say, and
/// shows it, is answered.
#[test]
fn pages_are_compressed_where_the_scraper_takes_it_and_half_closed_clients_are_answered() {
    let mut opsd = site("[monitor.host]\nhost = {}\n");
    let exporter = Exporter::start(&mut opsd, "");
    exporter.scrape_until("the first collection", |scrape| scrape.up("host") == Some(1.0));
    let raw = |headers: &str, half_close: bool| {
        let mut stream = TcpStream::connect(&exporter.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n").unwrap();
        if half_close {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = memchr::memmem::find(&bytes, b"\r\n\r\n").expect("an answer") + 4;
        (String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase(), bytes[end..].to_vec())
    };
    let (head, plain) = raw("", false);
    assert!(!head.contains("content-encoding") && head.contains("vary: accept, accept-encoding"), "{head}");
    for accept in ["text/plain", "application/openmetrics-text"] {
        let (head, body) = raw(&format!("Accept: {accept}\r\nAccept-Encoding: gzip\r\n"), false);
        assert!(head.contains("content-encoding: gzip"), "{head}");
        assert!(body.len() * 2 < plain.len(), "{} of {}", body.len(), plain.len());
        assert!(gunzip(&body).contains("opsd_host_load{"));
    }
    for refused in ["identity", "gzip;q=0", "br"] {
        let (head, _) = raw(&format!("Accept-Encoding: {refused}\r\n"), false);
        assert!(!head.contains("content-encoding"), "{refused}: {head}");
    }
    let (status, _, _) = request(&exporter.address, "GET", "/metrics", &["Accept-Encoding: deflate, *;q=0"]);
    assert_eq!(status, 200);
    for _ in 0..20 {
        assert!(raw("", true).0.starts_with("http/1.1 200"));
    }
}
