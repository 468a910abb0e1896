//! Probes on real servers: HTTP, TCP, TLS, this host, and an MQTT broker that goes and comes back.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::alerting::watched;
use crate::support::certificates::{Authority, Pair, in_days};
use crate::support::exporter::{Scrape, collected};
use crate::support::mosquitto::Mosquitto;
use crate::support::opsd::{Opsd, behind, finish, quoted, write_private};
use crate::support::postgres::free_port;

fn site(monitors: &str) -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.more = monitors.to_owned();
    opsd
}

fn check(opsd: &Opsd, monitor: &str, code: i32, words: &str) {
    let run = opsd.run(&["check", monitor]).expect_code(code);
    assert!(run.stdout.contains(words), "{words:?} is not in {run}");
}

/// What a server answers to a path: status line with headers, and body.
fn answer(request: &str) -> (&'static str, &'static str) {
    let path = request.split(' ').nth(1).unwrap_or_default();
    match path {
        "/health" => (
            "200 OK",
            r#"{"status":"UP","checks":{"db":{"status":"UP"},"queue":{"status":"DOWN"},"n":3},"ready":true}"#,
        ),
        "/one" => ("302 Found\r\nLocation: /two", ""),
        "/two" => ("302 Found\r\nLocation: /health", ""),
        "/metadata" => ("302 Found\r\nLocation: http://169.254.169.254/latest/meta-data/iam/", ""),
        "/mapped" => ("302 Found\r\nLocation: http://[::ffff:169.254.169.254]/latest/", ""),
        "/inside" => ("302 Found\r\nLocation: http://127.0.0.1:9/", ""),
        "/loop" => ("302 Found\r\nLocation: /loop", ""),
        "/secret?token=hunter2" if request.contains("uthorization: Bearer s3cret") => ("200 OK", "welcome"),
        "/broken" => ("500 Internal Server Error", "no"),
        _ => ("401 Unauthorized", "no"),
    }
}

pub(crate) async fn serve() -> u16 {
    serve_at("127.0.0.1").await
}

async fn serve_at(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
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
                let (head, body) = answer(&String::from_utf8_lossy(&request));
                let length = body.len();
                let text =
                    format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
    port
}

fn http(scrape: &Scrape, monitor: &str, metric: &str) -> Option<f64> {
    scrape.one(&format!("opsd_http_{metric}"), &[&format!("monitor=\"{monitor}\"")])
}

#[tokio::test(flavor = "multi_thread")]
async fn http_tells_status_body_components_and_redirects() {
    let port = serve().await;
    let monitor = |name: &str, path: &str, more: &str| {
        format!("[monitor.{name}]\nhttp = {{ url = \"http://127.0.0.1:{port}{path}\"{more} }}\n")
    };
    let opsd = site(
        &[
            monitor("health", "/health", ", expect_body = \"UP\", components = \"/checks\", expect_json = { \"/ready\" = \"true\", \"/status\" = \"down\" }"),
            monitor("moved", "/one", ""),
            monitor("loop", "/loop", ", max_redirects = 3"),
            monitor("secret", "/secret?token=hunter2", ", bearer_token = \"s3cret\", expect_body = \"nothing\""),
            monitor("broken", "/broken", ""),
            monitor("fine", "/broken", ", expect_status = [\"500\", \"503\"]"),
            format!("[monitor.gone]\nhttp = {{ url = \"http://127.0.0.1:{}/x?token=hunter2\" }}\n", free_port()),
        ]
        .concat(),
    );
    let scrape = collected(&opsd);
    let all = |monitor: &str| {
        ["status", "status_expected", "redirects"].map(|metric| http(&scrape, monitor, metric).unwrap())
    };
    assert_eq!(all("health"), [200.0, 1.0, 0.0], "{}", scrape.text);
    assert_eq!(all("moved"), [200.0, 1.0, 2.0]);
    assert_eq!(all("loop"), [302.0, 0.0, 3.0]);
    assert_eq!(all("secret"), [200.0, 1.0, 0.0]);
    assert_eq!((all("broken"), all("fine")), ([500.0, 0.0, 0.0], [500.0, 1.0, 0.0]));
    assert_eq!(http(&scrape, "health", "body_expected"), Some(1.0));
    assert_eq!(http(&scrape, "secret", "body_expected"), Some(0.0));
    assert_eq!(http(&scrape, "moved", "body_expected"), None);
    let component = |name: &str| scrape.one("opsd_http_component_up", &[&format!("component=\"{name}\"")]);
    assert_eq!(["db", "queue", "n"].map(component), [Some(1.0), Some(0.0), None]);
    let json = |pointer: &str| scrape.one("opsd_http_json_expected", &[&format!("pointer=\"{pointer}\"")]);
    assert_eq!(["/ready", "/status"].map(json), [Some(1.0), Some(0.0)]);
    let first = http(&scrape, "health", "first_byte_seconds").unwrap();
    assert!(first > 0.0 && http(&scrape, "health", "duration_seconds").unwrap() >= first);
    assert_eq!((scrape.up("gone"), http(&scrape, "gone", "status")), (Some(0.0), None));

    check(&opsd, "health", 2, "http_component_up (component \"queue\") is 0");
    check(&opsd, "moved", 0, "OPSD OK");
    check(&opsd, "broken", 2, "http_status_expected is 0");
    check(&opsd, "gone", 2, "down, unreachable: GET http://127.0.0.1");
    let run = opsd.run(&["check", "--json"]).expect_code(2);
    assert!(!run.stdout.contains("hunter2") && !run.stdout.contains("s3cret"), "{run}");
    let run = opsd.ok(&["status"]);
    assert!(run.stdout.contains("200 in ") && run.stdout.contains("down: queue"), "{run}");
}

/// What the server answers to redirects is seen by it alone; what opsd asked for then is in what it says.
#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_leads_to_where_a_cloud_hands_out_credentials() {
    let port = serve().await;
    let monitor = |name: &str| {
        format!("[monitor.{name}]\nhttp = {{ url = \"http://127.0.0.1:{port}/{name}\" }}\ntimeout = \"2s\"\n")
    };
    let opsd = site(&[monitor("metadata"), monitor("mapped"), monitor("one")].concat());
    for name in ["metadata", "mapped"] {
        check(
            &opsd,
            name,
            2,
            "a redirect to 169.254.169.254, where a cloud hands out credentials, is not followed",
        );
    }
    check(&opsd, "one", 0, "OPSD OK");
}

/// A network of its own, in which one address is outside: the target there must not send opsd to loopback.
#[test]
fn no_redirect_leads_inside_from_outside() {
    let mut opsd = site("[monitor.out]\nhttp = { url = \"http://198.51.100.7:8080/\" }\ntimeout = \"5s\"\n");
    opsd.env("PYTHONDONTWRITEBYTECODE", "1");
    let server = "import http.server as h\nclass A(h.BaseHTTPRequestHandler):\n def do_GET(s):\n  inside = s.server.server_address[0] == '127.0.0.1'\n  s.send_response(200 if inside else 302)\n  s.send_header('Location', 'http://127.0.0.1:8080/')\n  s.end_headers()\nimport sys, threading\nfor a in ('127.0.0.1', '198.51.100.7'):\n threading.Thread(target=h.HTTPServer((a, 8080), A).serve_forever).start()\nprint('ready', flush=True)\n";
    let script = format!(
        "ip link set lo up && ip address add 198.51.100.7/32 dev lo && mkfifo ready && \
         {{ python3 -c \"$SERVER\" >ready 2>/dev/null & }} && read word <ready && {}; code=$?; kill $!; exit $code",
        "\"$@\""
    );
    opsd.env("SERVER", server);
    let namespace: &[&str] = if rustix::process::geteuid().is_root() {
        &["unshare", "--net"]
    } else {
        &["unshare", "--user", "--map-root-user", "--net"]
    };
    let wrapper: Vec<&str> = namespace.iter().copied().chain(["sh", "-c", &script, "sh"]).collect();
    let run = finish(behind(&wrapper, &opsd.command(&["check", "out"]))).expect_code(2);
    let why = "a redirect to 127.0.0.1, which is inside this network, is not followed from outside of it";
    assert!(run.stdout.contains(why), "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_connects() {
    let port = serve().await;
    let opsd = site(&format!(
        "[monitor.open]\ntcp = {{ address = \"localhost:{port}\" }}\n[monitor.closed]\ntcp = {{ address = \"127.0.0.1:{}\" }}\n",
        free_port()
    ));
    let scrape = collected(&opsd);
    assert_eq!((scrape.up("open"), scrape.up("closed")), (Some(1.0), Some(0.0)));
    assert_eq!(scrape.of("opsd_tcp_connect_seconds", &[]).len(), 1);
    check(&opsd, "closed", 2, "down, unreachable: cannot connect to 127.0.0.1");
}

/// A TLS server that shows these certificates.
pub(crate) async fn tls_server(chain: &[&Pair]) -> u16 {
    let certificates = chain.iter().map(|pair| pair.certificate.der().clone()).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(chain[0].key.serialize_der()));
    tls_server_of(certificates, key).await
}

/// The same with what was made elsewhere.
pub(crate) async fn tls_server_of(
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let signing = provider.key_provider.load_private_key(key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        // Whatever is wrong with the certificate is shown all the same.
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(certificates, signing))));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 1000];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_sees_the_whole_chain_whatever_is_wrong_with_it() {
    let ca = Authority::new("Test Authority", in_days(15));
    let good = ca.sign(&["localhost"], "localhost", in_days(60));
    let soon = ca.sign(&["localhost"], "soon.example", in_days(3));
    let late = ca.sign(&["localhost"], "late.example", in_days(-2));
    let other = ca.sign(&["other.example"], "other.example", in_days(60));
    let early = ca.sign_from(&["localhost"], "early.example", in_days(2));
    let authority = Authority::new("Another", in_days(60)).cross_signed(&ca, in_days(60));
    let mut opsd = site("");
    ca.pair.write(&opsd.path("ca.pem"), &opsd.path("ca.key"), &[]);
    soon.write(&opsd.path("soon.pem"), &opsd.path("soon.key"), &[&ca.pair]);
    std::fs::write(opsd.path("none.pem"), "nothing").unwrap();
    let trusted = format!(", ca_file = {:?}", opsd.path("ca.pem"));
    let mut monitors = String::new();
    for (name, pair, more) in [
        ("good", &good, trusted.as_str()),
        ("soon", &soon, trusted.as_str()),
        ("late", &late, trusted.as_str()),
        ("other", &other, trusted.as_str()),
        ("unknown", &good, ""),
        ("early", &early, trusted.as_str()),
        // An authority's is none for a server, unless it is the very one that is trusted.
        ("authority", &authority, trusted.as_str()),
    ] {
        let port = tls_server(&[pair, &ca.pair]).await;
        monitors.push_str(&format!("[monitor.{name}]\ntls = {{ address = \"localhost:{port}\"{more} }}\n"));
        monitors.push_str(&format!(
            "[monitor.http-{name}]\nhttp = {{ url = \"https://localhost:{port}/\"{more} }}\n"
        ));
    }
    let files = [opsd.path("soon.pem"), opsd.path("none.pem")];
    monitors.push_str(&format!("[monitor.files]\ntls = {{ files = {files:?} }}\n"));
    let plain = serve().await;
    monitors.push_str(&format!(
        "[monitor.plain]\ntls = {{ address = \"127.0.0.1:{plain}\" }}\ntimeout = \"2s\"\n"
    ));
    opsd.more = monitors;
    let scrape = collected(&opsd);
    let state = |monitor: &str| {
        scrape.state("opsd_tls_verification_state", &[&format!("monitor=\"{monitor}\"")]).unwrap_or_default()
    };
    assert_eq!(
        ["good", "soon", "late", "other", "unknown", "early", "authority"].map(state),
        ["verified", "verified", "expired", "wrong_name", "unknown_issuer", "not_yet_valid", "invalid"],
        "{}",
        scrape.text
    );
    let expiry = |monitor: &str, label: &str| {
        let labels = [format!("monitor=\"{monitor}\""), label.to_owned()];
        let found =
            scrape.one("opsd_tls_certificate_expiry_timestamp_seconds", &[&labels[0], &labels[1]]).unwrap();
        ((found - in_days(0) as f64) / 86_400.0).round()
    };
    assert_eq!(
        (expiry("good", "position=\"0\""), expiry("good", "subject=\"Test Authority\"")),
        (60.0, 15.0)
    );
    assert_eq!((expiry("late", "subject=\"late.example\""), expiry("files", "position=\"0\"")), (-2.0, 3.0));
    assert_eq!(expiry("files", "position=\"1\""), 15.0);
    let file = |name: &str| scrape.one("opsd_tls_file_up", &[&format!("/{name}\"")]);
    assert_eq!([file("soon.pem"), file("none.pem")], [Some(1.0), Some(0.0)]);
    assert_eq!(scrape.one("opsd_tls_protocol_info", &["monitor=\"good\"", "version=\"1.3\""]), Some(1.0));
    assert_eq!(scrape.up("plain"), Some(0.0));
    // The authority expires before the certificate, and in two weeks.
    check(&opsd, "good", 1, "tls_expiry_timestamp_seconds (source \"handshake\") is 12");
    check(&opsd, "soon", 2, "s from now");
    check(&opsd, "late", 2, "tls_verification_state is expired");
    check(&opsd, "other", 2, "tls_verification_state is wrong_name");
    assert_eq!((scrape.up("http-good"), http(&scrape, "http-good", "status")), (Some(1.0), Some(200.0)));
    let exporter = watched(&mut opsd, "");
    exporter.until_alerts(&[
        "TlsCertificateExpiring{monitor=good}",
        "TlsCertificateExpiryCritical{monitor=soon,source=handshake}",
        "TlsNotVerified{monitor=late,state=expired}",
        "TlsNotVerified{monitor=other,state=wrong_name}",
        "TlsFileUnreadable{monitor=files}",
        "HttpDown{monitor=http-late}",
    ]);
    for name in ["late", "other", "unknown"] {
        check(&opsd, &format!("http-{name}"), 2, "down, tls: GET https://localhost");
    }
}

#[test]
fn the_host_shows_disks_load_and_memory() {
    let mut opsd = site("");
    opsd.more = format!(
        "[monitor.host]\nhost = {{ disks = [{}, \"/absent/disk\"] }}\n",
        quoted(opsd.path("").to_str().unwrap())
    );
    let scrape = collected(&opsd);
    let one = |metric: &str| scrape.one(&format!("opsd_host_{metric}"), &[]).unwrap();
    assert!(one("memory_bytes") > one("memory_available_bytes") && one("memory_available_bytes") > 0.0);
    assert!(one("processors") >= 1.0 && one("boot_timestamp_seconds") > 1e9);
    assert_eq!(scrape.of("opsd_host_load", &[]).len(), 3);
    let ratios = scrape.of("opsd_host_disk_used_ratio", &[]);
    // The one that is configured, and the repository's; not the one that is absent.
    assert_eq!(ratios.len(), 2, "{ratios:?}");
    assert!(ratios.iter().all(|(_, ratio)| (0.0..=1.0).contains(ratio)), "{ratios:?}");
    let free = rustix::fs::statvfs(opsd.path("").as_path()).unwrap();
    let size = scrape.of("opsd_host_disk_size_bytes", &[])[0].1;
    assert_eq!(size, free.f_blocks as f64 * free.f_frsize as f64);
    assert_eq!(scrape.one("opsd_monitor_concern_up", &["concern=\"disks\""]), Some(0.0));
    let run = opsd.run(&["check"]);
    assert!(run.stdout.contains("no disks, refused: cannot look at the disk of /absent/disk"), "{run}");
}

#[test]
fn a_broker_goes_and_comes_back() {
    let mut opsd = site("");
    let port = free_port();
    let passwords = opsd.path("passwords");
    write_private(&passwords, "opsd:t0psecret\n");
    let hashed = std::process::Command::new("mosquitto_passwd").arg("-U").arg(&passwords).status().unwrap();
    assert!(hashed.success());
    let settings = format!("password_file {}", passwords.display());
    let monitor = |name: &str, password: &str| {
        let file = opsd.path(&format!("password-{name}"));
        write_private(&file, &format!("{password}\n"));
        format!(
            "[monitor.{name}]\ninterval = \"1s\"\nmqtt = {{ url = \"mqtt://127.0.0.1:{port}\", user = \"opsd\", password_file = {file:?} }}\n"
        )
    };
    let monitors = monitor("broker", "t0psecret") + &monitor("wrong", "guess");
    opsd.more = monitors;
    let broker = Mosquitto::start(&opsd.path(""), port, &settings);
    let exporter = watched(&mut opsd, "");
    let of = |scrape: &Scrape, metric: &str| scrape.one(&format!("opsd_mqtt_{metric}"), &[]);
    let scrape = exporter.scrape_until("figures", |scrape| {
        of(scrape, "messages_received_total").is_some() && scrape.up("wrong").is_some()
    });
    assert_eq!((scrape.up("broker"), scrape.up("wrong")), (Some(1.0), Some(0.0)));
    assert!(of(&scrape, "round_trip_seconds").unwrap() > 0.0);
    assert_eq!(scrape.of("opsd_mqtt_broker_info", &["version=\"mosquitto version 2"]).len(), 1);
    assert!(scrape.one("opsd_mqtt_clients", &["state=\"connected\""]).is_some());
    let refused =
        scrape.one("opsd_monitor_failures_total", &["monitor=\"wrong\"", "reason=\"authentication\""]);
    assert!(refused.unwrap() >= 1.0, "{}", scrape.text);
    // One connection is kept.
    let since = of(&scrape, "connected_timestamp_seconds");
    assert_eq!(of(&exporter.next_scrape("broker"), "connected_timestamp_seconds"), since);

    drop(broker);
    let scrape = exporter.scrape_until("the broker is gone", |scrape| scrape.up("broker") == Some(0.0));
    let failed = scrape.one("opsd_monitor_failures_total", &["monitor=\"broker\"", "reason=\"unreachable\""]);
    assert!(failed.unwrap() >= 1.0, "{}", scrape.text);
    check(&opsd, "broker", 2, "down, unreachable");
    exporter.until_alerts(&["MqttDown{monitor=broker}"]);
    exporter.scrape_until("its figures are gone", |scrape| of(scrape, "messages_received_total").is_none());
    let broker = Mosquitto::start(&opsd.path(""), port, &settings);
    exporter.scrape_until("the broker is back", |scrape| {
        scrape.up("broker") == Some(1.0) && of(scrape, "connected_timestamp_seconds") > since
    });
    exporter.until_over(&["MqttDown{monitor=broker}"]);
    let (_, said) = exporter.stop();
    assert!(!said.contains("t0psecret") && !said.contains("guess"), "{said}");
    drop(broker);
}

#[test]
fn mutual_tls_and_topics_that_are_closed() {
    let mut opsd = site("");
    let ca = Authority::new("Players", in_days(100));
    let server = ca.sign(&["localhost"], "localhost", in_days(100));
    let client = ca.sign(&[], "player-1", in_days(100));
    let path = |name: &str| opsd.path(name).display().to_string();
    ca.pair.write(&opsd.path("ca.pem"), &opsd.path("ca.key"), &[]);
    server.write(&opsd.path("server.pem"), &opsd.path("server.key"), &[]);
    client.write(&opsd.path("client.pem"), &opsd.path("client.key"), &[]);
    std::fs::write(opsd.path("acl"), "pattern read $SYS/#\n").unwrap();
    let settings = format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuse_identity_as_username true\nacl_file {}",
        path("ca.pem"),
        path("server.pem"),
        path("server.key"),
        path("acl"),
    );
    let port = free_port();
    let _broker = Mosquitto::start(&opsd.path(""), port, &settings);
    let own = format!(", cert_file = \"{}\", key_file = \"{}\"", path("client.pem"), path("client.key"));
    let monitor = |name: &str, more: &str| {
        format!(
            "[monitor.{name}]\ntimeout = \"2s\"\nmqtt = {{ url = \"mqtts://localhost:{port}\", ca_file = \"{}\"{more} }}\n",
            path("ca.pem")
        )
    };
    opsd.more = monitor("player", &own)
        + &monitor("silent", &format!("{own}, round_trip = false"))
        + &monitor("stranger", "");
    let scrape = collected(&opsd);
    assert_eq!(
        ["player", "silent", "stranger"].map(|name| scrape.up(name)),
        [Some(1.0), Some(1.0), Some(0.0)],
        "{}",
        scrape.text
    );
    assert_eq!(scrape.of("opsd_mqtt_broker_info", &[]).len(), 2);
    assert_eq!(scrape.of("opsd_mqtt_round_trip_seconds", &[]).len(), 0);
    let concern = |monitor: &str| {
        scrape.one("opsd_monitor_concern_up", &[&format!("monitor=\"{monitor}\""), "concern=\"round_trip\""])
    };
    assert_eq!((concern("player"), concern("silent")), (Some(0.0), None));
    check(&opsd, "silent", 0, "OPSD OK");
}

#[test]
fn mistakes_are_all_told_at_once() {
    let opsd = site(
        "[monitor.a]\nhttp = { url = \"https://user:hunter2@example.org/\", expect_status = 9, user = \"x\", components = \"checks\", ca_file = \"ca.pem\", expct = 1 }\n\
         [monitor.b]\nhttp = { url = \"ftp://example.org\", expect_status = [\"abc\"] }\n\
         [monitor.c]\ntcp = { address = \"example.org\" }\n\
         [monitor.d]\ntls = { server_name = \"example.org\" }\n\
         [monitor.e]\nmqtt = { url = \"http://broker\", cert_file = \"/c.pem\", topic = \"a/#\" }\n\
         [monitor.f]\nhost = { disks = [\"relative\"] }\n\
         [monitor.g]\nhttp = { expect_body = \"x\" }\ntcp = { address = \"a:1\" }\n",
    );
    let run = opsd.run(&["config", "check"]);
    let run = run.expect_failure(
        2,
        &[
            "monitor.a.http.url: credentials do not belong into the URL",
            "monitor.a.http.expect_status: must be from 100 to 599",
            "monitor.a.http.password_file: missing",
            "monitor.a.http.components: is no JSON pointer",
            "monitor.a.http.ca_file: must be an absolute path",
            "monitor.a.http.expct: unknown key",
            "monitor.b.http.url: is neither http:// nor https://",
            "monitor.b.http.expect_status[0]: is no HTTP status",
            "monitor.c.tcp.address: is no host and port",
            "monitor.d.tls.address: missing",
            "monitor.d.tls.server_name: has no meaning without an address",
            "monitor.e.mqtt.url: is no URL of a broker",
            "monitor.e.mqtt.key_file: missing",
            "monitor.e.mqtt.topic: is no topic",
            "monitor.f.host.disks[0]: must be an absolute path",
            "monitor.g: watches several things",
        ],
    );
    assert!(!run.stderr.contains("hunter2"), "{run}");
}
