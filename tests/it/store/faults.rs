//! What can happen between opsd and a real S3: a proxy that sees every request, and delivers,
//! loses or makes up the answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use opsd::store::probe::{Name, State, probe_with};
use opsd::store::s3::{Checksums, Options};
use opsd::store::{Store, StoreError, get, open_s3, put};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{PART, pattern, put_in_parts, s3s_store, weed_store};
use crate::support::s3::{SeaweedFs, repository, s3s_fs};

/// What becomes of a request.
enum Deal {
    /// The server answers.
    Forward,
    /// The server does it, but the connection is cut before its answer arrives.
    LoseAnswer,
    /// The server never sees it; this is the answer.
    Answer(&'static str),
}

/// A proxy before `endpoint`; ends when the tasks are dropped.
async fn proxy(
    endpoint: &str,
    deal: impl Fn(&str) -> Deal + Send + Sync + 'static,
) -> (String, tokio::task::JoinSet<()>) {
    let server = endpoint.trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let deal = Arc::new(deal);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let (server, deal) = (server.clone(), Arc::clone(&deal));
            connections.spawn(async move {
                let _ = forward(client, &server, deal.as_ref()).await;
            });
        }
    });
    (proxy, tasks)
}

/// A proxy that loses the first answer to a request whose head satisfies `pick`, and the number of
/// such requests.
async fn losing_proxy(
    endpoint: &str,
    pick: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>, tokio::task::JoinSet<()>) {
    let picked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&picked);
    let deal = move |head: &str| {
        if pick(head) && count.fetch_add(1, Ordering::SeqCst) == 0 { Deal::LoseAnswer } else { Deal::Forward }
    };
    let (endpoint, tasks) = proxy(endpoint, deal).await;
    (endpoint, picked, tasks)
}

async fn forward(
    mut client: TcpStream,
    server: &str,
    deal: &(impl Fn(&str) -> Deal + ?Sized),
) -> std::io::Result<()> {
    let mut upstream = TcpStream::connect(server).await?;
    loop {
        let Some((head, request)) = message(&mut client, true).await? else { return Ok(()) };
        let deal = deal(&head);
        if let Deal::Answer(answer) = deal {
            client.write_all(answer.as_bytes()).await?;
            continue;
        }
        upstream.write_all(&request).await?;
        let has_body = !head.starts_with("head ");
        let Some((_, answer)) = message(&mut upstream, has_body).await? else { return Ok(()) };
        if matches!(deal, Deal::LoseAnswer) {
            return Ok(());
        }
        client.write_all(&answer).await?;
    }
}

/// One HTTP message with a length or in chunks: its head as text, and all of its bytes. The answer
/// to a HEAD names a length, but has no body.
async fn message(stream: &mut TcpStream, has_body: bool) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut end = None;
    loop {
        if end.is_none()
            && let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
            let length = length.map(|l| l.trim().parse::<usize>().unwrap());
            let chunked = head.contains("transfer-encoding: chunked");
            end = Some((head, at + 4, length.filter(|_| has_body).unwrap_or(0), chunked && has_body));
        }
        if let Some((head, start, length, chunked)) = &end {
            let whole = if *chunked {
                bytes[*start..].ends_with(b"0\r\n\r\n")
            } else {
                bytes.len() >= start + length
            };
            if whole {
                return Ok(Some((head.clone(), bytes)));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

fn is_put(head: &str) -> bool {
    head.starts_with("put ") && head.contains("if-none-match: *") && !head.contains("partnumber=")
}

fn is_complete(head: &str) -> bool {
    head.starts_with("post ") && head.contains("uploadid=")
}

#[tokio::test]
async fn a_conditional_put_whose_answer_was_lost_is_recognised_as_our_own() {
    let server = s3s_fs().await;
    let (proxy, picked, _tasks) = losing_proxy(&server.endpoint, is_put).await;
    let through = repository(&proxy, &server.bucket, "p");
    let store = open_s3(&through, &server.keys.access()).await.unwrap();
    put(&store, "a", "ours", true).await.unwrap();
    assert_eq!(picked.load(Ordering::SeqCst), 2, "it was retried");
    assert_eq!(get(&store, "a", 10).await.unwrap(), "ours");
    // Without a retry the same content is somebody else's.
    assert!(matches!(put(&store, "a", "ours", true).await, Err(StoreError::Exists(_))));
}

#[tokio::test]
async fn a_conditional_put_that_was_retried_does_not_claim_what_others_wrote() {
    let server = s3s_fs().await;
    put(&s3s_store(&server, "p").await, "a", "theirs", false).await.unwrap();
    let (proxy, picked, _tasks) = losing_proxy(&server.endpoint, is_put).await;
    let store = open_s3(&repository(&proxy, &server.bucket, "p"), &server.keys.access()).await.unwrap();
    let result = put(&store, "a", "ours", true).await;
    assert!(matches!(result, Err(StoreError::Exists(_))), "{result:?}");
    assert_eq!(picked.load(Ordering::SeqCst), 2, "it was retried");
    assert_eq!(get(&store, "a", 10).await.unwrap(), "theirs");
}

#[tokio::test]
async fn a_completed_upload_whose_answer_was_lost_is_recognised_as_our_own() {
    let server = SeaweedFs::start().await;
    let body = pattern(PART + 5, 1);
    for (key, if_absent) in [("plain", false), ("conditional", true)] {
        let (proxy, picked, _tasks) = losing_proxy(&server.endpoint, is_complete).await;
        let through = repository(&proxy, &server.bucket, "p");
        let store = open_s3(&through, &server.admin.access()).await.unwrap();
        put_in_parts(&store, key, &body, if_absent).await.unwrap();
        assert_eq!(picked.load(Ordering::SeqCst), 2, "{key} was retried");
        let direct = weed_store(&server, &server.admin, "p").await;
        assert!(get(&direct, key, 1 << 30).await.unwrap() == body);
    }
}

#[tokio::test]
async fn a_download_that_breaks_off_is_read_again() {
    let server = s3s_fs().await;
    let direct = s3s_store(&server, "p").await;
    let body = pattern(100_000, 1);
    put(&direct, "a", body.clone(), false).await.unwrap();
    let is_get = |head: &str| head.starts_with("get /backups/p/a");
    let (proxy, picked, _tasks) = losing_proxy(&server.endpoint, is_get).await;
    let store = open_s3(&repository(&proxy, &server.bucket, "p"), &server.keys.access()).await.unwrap();
    assert!(store.read("a", 0..200_000).await.unwrap() == body);
    assert_eq!(picked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_store_without_conditions_is_written_to_without_them() {
    let server = s3s_fs().await;
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let deal = move |head: &str| {
        if !head.contains("if-none-match:") {
            return Deal::Forward;
        }
        count.fetch_add(1, Ordering::SeqCst);
        Deal::Answer(
            "HTTP/1.1 501 Not Implemented\r\ncontent-length: 97\r\n\r\n\
             <Error><Code>NotImplemented</Code><Message>A header you provided is not known.</Message></Error> ",
        )
    };
    let (proxy, _tasks) = proxy(&server.endpoint, deal).await;
    let through = repository(&proxy, &server.bucket, "p");
    let body = pattern(PART + 5, 1);
    for first in ["small", "large"] {
        let store = open_s3(&through, &server.keys.access()).await.unwrap();
        refused.store(0, Ordering::SeqCst);
        if first == "small" {
            put(&store, "small", "x", true).await.unwrap();
        }
        put_in_parts(&store, "large", &body, true).await.unwrap();
        put(&store, "small", "x", true).await.unwrap();
        assert_eq!(refused.load(Ordering::SeqCst), 1, "it is asked once");
        assert!(get(&store, "large", 1 << 30).await.unwrap() == body);
        let report = probe_with(&through, &server.keys.access()).await.unwrap();
        assert_eq!(report.state(Name::ConditionalPut), State::No);
        assert_eq!(report.state(Name::ConditionalComplete), State::No);
        assert!(report.warnings.iter().any(|w| w.contains("cannot refuse to overwrite")));
    }
}

/// Some stores refuse checksums, some the trailers that SDKs send them in.
#[tokio::test]
async fn checksums_travel_in_a_header_or_not_at_all_and_every_byte_is_signed() {
    let server = s3s_fs().await;
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let deal = move |head: &str| {
        seen.lock().unwrap().push(head.to_owned());
        Deal::Forward
    };
    let (proxy, _tasks) = proxy(&server.endpoint, deal).await;
    let store = open_s3(&repository(&proxy, &server.bucket, "p"), &server.keys.access()).await.unwrap();
    for (checksums, expected) in [(Checksums::Crc32, true), (Checksums::None, false)] {
        let store = store.clone().with_options(Options { checksums });
        heads.lock().unwrap().clear();
        put(&store, "small", "x", false).await.unwrap();
        put_in_parts(&store, "large", &pattern(PART + 5, 1), false).await.unwrap();
        let heads = heads.lock().unwrap();
        let puts: Vec<_> = heads.iter().filter(|h| h.starts_with("put ")).collect();
        assert_eq!(puts.len(), 3);
        for head in puts {
            assert_eq!(head.contains("x-amz-checksum-crc32:"), expected, "{head}");
            assert!(!head.contains("aws-chunked") && !head.contains("x-amz-trailer"), "{head}");
            let digest = head.lines().find_map(|l| l.strip_prefix("x-amz-content-sha256: ")).unwrap();
            assert!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "{head}");
        }
        let create = heads.iter().find(|h| h.starts_with("post ") && h.contains("?uploads")).unwrap();
        assert_eq!(create.contains("x-amz-checksum-algorithm: crc32"), expected, "{create}");
    }
}
