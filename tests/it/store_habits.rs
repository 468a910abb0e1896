//! Habits of stores that people have: an end point below a path, buckets that demand a checksum and stores that
//! refuse one, and a proxy on the way.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use opsd::store::probe::{Name, REPORT_KEY, State, probe_with};
use opsd::store::s3::Checksums;
use opsd::store::{get, open_s3, put};

use crate::object_lock::small_site;
use crate::support::opsd::Opsd;
use crate::support::s3::{S3sFs, repository, s3s_fs};
use crate::support::s3_proxy::{Fate, Proxy, Request};
use crate::support::sets::result;

/// What a store answers to a request that it refuses.
fn refusal(status: u16, code: &str, message: &str) -> Fate {
    let body =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    Fate::Answer(format!(
        "HTTP/1.1 {status} {code}\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// Supabase's end point is `https://host/storage/v1/s3`.
#[tokio::test]
async fn every_request_goes_below_the_path_of_an_endpoint() {
    let server = s3s_fs().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let plan = move |request: &Request<'_>, _: &mut _| {
        heard.lock().unwrap().push(request.head.lines().next().unwrap_or_default().to_owned());
        refusal(403, "AccessDenied", "the test has seen enough")
    };
    let proxy = Proxy::start(&server.endpoint, 1, std::time::Duration::ZERO, plan).await;
    for path in ["/storage/v1/s3", "/storage/v1/s3/", "", "/"] {
        let mut there = repository(&format!("{}{path}", proxy.endpoint), "backups", "p");
        // As the configuration has it.
        there.endpoint = there.endpoint.map(|endpoint| endpoint.trim_end_matches('/').to_owned());
        let store = open_s3(&there, &server.keys.access()).await.unwrap();
        let _ = get(&store, "a", 10).await;
        let _ = put(&store, "a", "x", false).await;
        let _ = opsd::store::Store::list(&store, "").await;
        let lines = std::mem::take(&mut *asked.lock().unwrap());
        let below = format!("{}/backups", path.trim_end_matches('/'));
        assert!(lines.len() >= 3, "{lines:?}");
        for line in lines {
            let uri = line.split(' ').nth(1).unwrap();
            let rest = uri.strip_prefix(&below).unwrap_or_else(|| panic!("{line} is not below {below}"));
            assert!(rest.starts_with(['/', '?']), "{line}");
        }
    }
}

/// A bucket with a default retention, as AWS answers: every object that is written needs a checksum.
#[tokio::test]
async fn a_bucket_that_demands_a_checksum_is_probed_and_written_to() {
    let server = s3s_fs().await;
    let plan = |request: &Request<'_>, _: &mut _| {
        let is_write = request.head.starts_with("put ") || request.head.contains("?uploads");
        if is_write && !request.head.contains("checksum") {
            let message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with \
                           Object Lock parameters";
            return refusal(400, "InvalidRequest", message);
        }
        Fate::Forward
    };
    let proxy = Proxy::start(&server.endpoint, 1, std::time::Duration::ZERO, plan).await;
    let there = repository(&proxy.endpoint, &server.bucket, "p");
    let report = probe_with(&there, &server.keys.access()).await.unwrap();
    assert_eq!(report.checksums, Checksums::Crc32, "{:#?}", report.capabilities);
    for name in [Name::Write, Name::Read, Name::Checksum, Name::Multipart] {
        assert_eq!(report.state(name), State::Yes, "{name:?}: {:#?}", report.capabilities);
    }
    let store = open_s3(&there, &server.keys.access()).await.unwrap();
    put(&store, "a", "x", false).await.unwrap();
}

/// A store that takes no checksum, as Backblaze B2 said it, or as S3 says it of what it does not know; counts how often
/// it said so.
async fn without_checksums(server: &S3sFs, names_the_header: bool) -> (Proxy, Arc<AtomicUsize>) {
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let plan = move |request: &Request<'_>, _: &mut _| {
        for header in ["x-amz-checksum-crc32", "x-amz-checksum-algorithm", "x-amz-sdk-checksum-algorithm"] {
            if request.head.contains(header) {
                count.fetch_add(1, Ordering::SeqCst);
                if !names_the_header {
                    let message = "A header you provided implies functionality that is not implemented.";
                    return refusal(501, "NotImplemented", message);
                }
                let message = format!("Unsupported header '{header}' received for this API call.");
                return refusal(400, "InvalidArgument", &message);
            }
        }
        Fate::Forward
    };
    (Proxy::start(&server.endpoint, 1, std::time::Duration::ZERO, plan).await, refused)
}

fn use_store(opsd: &mut Opsd, server: &S3sFs, endpoint: &str) {
    let keys = &server.keys;
    opsd.use_s3(&format!("s3://{}/p", server.bucket), endpoint, &keys.access_key, &keys.secret_key);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_backup_finds_out_by_itself_that_a_store_takes_no_checksums() {
    for names_the_header in [true, false] {
        let server = s3s_fs().await;
        let (proxy, refused) = without_checksums(&server, names_the_header).await;
        let mut opsd = small_site();
        use_store(&mut opsd, &server, &proxy.endpoint);
        // What only looks writes nothing.
        opsd.ok(&["backup", "--dry-run"]);
        opsd.ok(&["backups", "list"]);
        let report = server.directory.join("p").join(REPORT_KEY);
        assert!(!report.exists());
        opsd.ok(&["backup"]);
        assert!(report.exists() && refused.load(Ordering::SeqCst) > 0);
        let run = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(result(&run)["verdict"], "proven", "{run}");
        // It is remembered, and not found out again.
        let before = std::fs::read(&report).unwrap();
        opsd.ok(&["backup"]);
        assert!(std::fs::read(&report).unwrap() == before);
    }
}

/// A credential that may only write cannot learn what a probe found.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_checksums_is_told_apart_where_nothing_may_be_read() {
    let server = s3s_fs().await;
    let plan = |request: &Request<'_>, _: &mut _| {
        if request.head.starts_with("get ") || request.head.starts_with("head ") {
            return refusal(403, "AccessDenied", "no");
        }
        if request.head.contains("checksum-") {
            let message = "Unsupported header 'x-amz-sdk-checksum-algorithm' received for this API call.";
            return refusal(400, "InvalidArgument", message);
        }
        Fate::Forward
    };
    let proxy = Proxy::start(&server.endpoint, 1, std::time::Duration::ZERO, plan).await;
    let mut opsd = small_site();
    use_store(&mut opsd, &server, &proxy.endpoint);
    opsd.run(&["backup"]).expect_failure(1, &["InvalidArgument", "opsd repository probe", "checksums"]);
}

/// An HTTP proxy that does what it is asked: forwards a request, or makes a tunnel. It counts both.
struct Forwarder {
    url: String,
    requests: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

fn forwarder() -> Forwarder {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://user:s3cret@{}", listener.local_addr().unwrap());
    let (requests, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (count, heard) = (Arc::clone(&requests), Arc::clone(&heads));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (count, heard) = (Arc::clone(&count), Arc::clone(&heard));
            std::thread::spawn(move || forward(client, &count, &heard));
        }
    });
    Forwarder { url, requests, heads }
}

/// One connection: its first request says where it goes; what follows goes there as it is.
fn forward(mut client: TcpStream, count: &AtomicUsize, heard: &Mutex<Vec<String>>) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    count.fetch_add(1, Ordering::SeqCst);
    let text = String::from_utf8(head.clone()).ok()?;
    heard.lock().ok()?.push(text.clone());
    let target = text.split(' ').nth(1)?.trim_start_matches("http://");
    let host = target.split('/').next()?;
    let Ok(mut server) = TcpStream::connect(host) else {
        client.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").ok()?;
        return None;
    };
    if text.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    } else {
        server.write_all(&head).ok()?;
    }
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    std::io::copy(&mut server, &mut client).ok()?;
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_the_environment_is_used_and_no_proxy_keeps_away_from_it() {
    let server = s3s_fs().await;
    let proxy = forwarder();
    let seen = || proxy.requests.load(Ordering::SeqCst);
    for name in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        let mut opsd = small_site();
        use_store(&mut opsd, &server, &server.endpoint);
        opsd.env(name, &proxy.url);
        let before = seen();
        opsd.ok(&["backups", "list"]);
        assert!(seen() > before, "{name} is not honoured");
        let before = seen();
        opsd.env("NO_PROXY", "example.org,127.0.0.1");
        opsd.ok(&["backups", "list"]);
        assert_eq!(seen(), before, "NO_PROXY is not honoured");
    }
    let heads = proxy.heads.lock().unwrap().join("\n").to_lowercase();
    assert!(heads.contains("proxy-authorization: basic dxnlcjpzm2nyzxq="), "{heads}");
    // TLS goes through a tunnel, to whom the end point names.
    let mut opsd = small_site();
    use_store(&mut opsd, &server, "https://127.0.0.1:1");
    opsd.env("HTTPS_PROXY", &proxy.url);
    let run = opsd.run(&["backups", "list"]);
    assert!(proxy.heads.lock().unwrap().join("\n").contains("CONNECT 127.0.0.1:1 "));
    assert!(!run.stderr.contains("s3cret"), "{run}");
    let named = proxy.url.replace("user:s3cret@", "");
    run.expect_failure(1, &["https://127.0.0.1:1", &format!("through the proxy {named}")]);
}

#[test]
fn a_proxy_of_another_kind_is_refused_by_name() {
    for url in ["socks5://user:s3cret@127.0.0.1:1080", "https://user:s3cret@127.0.0.1:3128", "http://"] {
        let mut opsd = small_site();
        opsd.use_s3("s3://backups/p", "https://127.0.0.1:1", "key", "secret");
        opsd.env("HTTPS_PROXY", url);
        let run = opsd.run(&["backups", "list"]);
        assert!(!run.stderr.contains("s3cret"), "{run}");
        run.expect_failure(1, &["HTTPS_PROXY", "http://host:port"]);
    }
}
