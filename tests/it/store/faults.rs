//! What can happen between opsd and a real S3: a proxy that sees every request, and delivers,
//! loses or makes up the answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opsd::store::probe::{Name, State, probe_with};
use opsd::store::s3::{Checksums, Options};
use opsd::store::{Store, StoreError, get, open_s3, put};

use super::{PART, pattern, put_in_parts, s3s_store, weed_store};
use crate::support::s3::{SeaweedFs, repository, s3s_fs};
use crate::support::s3_proxy::{Fate, Proxy, error};

/// A proxy whose plan only looks at heads.
async fn proxy(endpoint: &str, plan: impl Fn(&str) -> Fate + Send + Sync + 'static) -> Proxy {
    Proxy::start(endpoint, 0, Duration::ZERO, move |request, _| plan(request.head)).await
}

/// A proxy that loses the first answer to a request whose head satisfies `pick`, and the number of
/// such requests.
async fn losing_proxy(
    endpoint: &str,
    pick: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> (Proxy, Arc<AtomicUsize>) {
    let picked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&picked);
    let plan = move |head: &str| {
        if pick(head) && count.fetch_add(1, Ordering::SeqCst) == 0 {
            Fate::CutAnswer(0)
        } else {
            Fate::Forward
        }
    };
    (proxy(endpoint, plan).await, picked)
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
    let (proxy, picked) = losing_proxy(&server.endpoint, is_put).await;
    let through = repository(&proxy.endpoint, &server.bucket, "p");
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
    let (proxy, picked) = losing_proxy(&server.endpoint, is_put).await;
    let store =
        open_s3(&repository(&proxy.endpoint, &server.bucket, "p"), &server.keys.access()).await.unwrap();
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
        let (proxy, picked) = losing_proxy(&server.endpoint, is_complete).await;
        let through = repository(&proxy.endpoint, &server.bucket, "p");
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
    let (proxy, picked) = losing_proxy(&server.endpoint, is_get).await;
    let store =
        open_s3(&repository(&proxy.endpoint, &server.bucket, "p"), &server.keys.access()).await.unwrap();
    assert!(store.read("a", 0..200_000).await.unwrap() == body);
    assert_eq!(picked.load(Ordering::SeqCst), 2);
}

/// The code in an error's body says what is the matter. A 404 without it was final, and ended the run
/// that looked for the report of a probe that nobody had made.
#[tokio::test]
async fn a_refusal_that_breaks_off_is_asked_for_again() {
    let server = s3s_fs().await;
    let heads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heads);
    let plan = move |head: &str| match count.fetch_add(1, Ordering::SeqCst) {
        0 if head.starts_with("get ") => Fate::TruncateAnswer(9),
        _ => Fate::Forward,
    };
    let proxy = proxy(&server.endpoint, plan).await;
    let through = repository(&proxy.endpoint, &server.bucket, "p");
    let store = open_s3(&through, &server.keys.access()).await.unwrap();
    assert_eq!(heads.load(Ordering::SeqCst), 2, "the report of the probe was looked for again");
    assert!(matches!(get(&store, "missing", 10).await, Err(StoreError::NotFound(_))));
}

#[tokio::test]
async fn a_store_without_conditions_is_written_to_without_them() {
    let server = s3s_fs().await;
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let plan = move |head: &str| {
        if !head.contains("if-none-match:") {
            return Fate::Forward;
        }
        count.fetch_add(1, Ordering::SeqCst);
        error(501, "NotImplemented")
    };
    let proxy = proxy(&server.endpoint, plan).await;
    let through = repository(&proxy.endpoint, &server.bucket, "p");
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
    let plan = move |head: &str| {
        seen.lock().unwrap().push(head.to_owned());
        Fate::Forward
    };
    let proxy = proxy(&server.endpoint, plan).await;
    let store =
        open_s3(&repository(&proxy.endpoint, &server.bucket, "p"), &server.keys.access()).await.unwrap();
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
