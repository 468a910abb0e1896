//! Conditional writes over S3 whose answer is lost, or that collide: what is known is said, and what is not
//! known is not called a failure of somebody else's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use opsd::error::{Error, Kind};
use opsd::store::{Store, StoreError, open_s3, put};

use crate::support::s3::{SeaweedFs, repository};
use crate::support::s3_proxy::{Fate, Proxy, Request, error};

/// A store behind a proxy that does `fate` to the first conditional PUT, and refuses reads if `is_blind`.
async fn behind(server: &SeaweedFs, fate: Fate, is_blind: bool) -> (Proxy, Arc<dyn Store>, Arc<AtomicUsize>) {
    let puts = Arc::new(AtomicUsize::new(0));
    let seen = puts.clone();
    let plan = move |request: &Request<'_>, _: &mut _| {
        let reads = request.head.starts_with("head ") || request.head.contains("x-id=getobject");
        if request.head.contains("if-none-match") && seen.fetch_add(1, Ordering::SeqCst) == 0 {
            return fate.clone();
        }
        if is_blind && reads { error(403, "AccessDenied") } else { Fate::Forward }
    };
    let proxy = Proxy::start(&server.endpoint, 1, Duration::ZERO, plan).await;
    let store = open_s3(&repository(&proxy.endpoint, &server.bucket, "p"), &server.admin.access()).await;
    // A probe's report cannot be read by the blind, and need not be there.
    let store = match store {
        Ok(store) => store,
        Err(_) => opsd::store::s3::open_with(
            &repository(&proxy.endpoint, &server.bucket, "p"),
            &server.admin.access(),
            opsd::store::s3::Options::default(),
        )
        .await
        .unwrap(),
    };
    (proxy, Arc::new(store), puts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_that_nobody_can_look_up_is_in_doubt() {
    let server = SeaweedFs::start().await;
    let (_proxy, store, puts) = behind(&server, Fate::CutAnswer(0), true).await;
    let failure = put(store.as_ref(), "site/db/manifest.json", "ours", true).await.unwrap_err();
    assert!(matches!(failure, StoreError::InDoubt(_)), "{failure:?}");
    assert!(puts.load(Ordering::SeqCst) > 1, "it was sent again");
    let error = Error::from(failure);
    assert!(error.kind() == Kind::InDoubt && error.to_string().contains("whether"), "{error}");
    // Whoever may look knows.
    let (_proxy, store, _) = behind(&server, Fate::CutAnswer(0), false).await;
    put(store.as_ref(), "site/db/other.json", "ours", true).await.unwrap();
    let taken = put(store.as_ref(), "site/db/manifest.json", "theirs", true).await.unwrap_err();
    assert!(matches!(taken, StoreError::Exists(_)), "{taken:?}");
}

/// AWS answers so while another write of the key is under way: nothing was decided.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_tried_again() {
    let server = SeaweedFs::start().await;
    let conflict = error(409, "ConditionalRequestConflict");
    let (_proxy, store, puts) = behind(&server, conflict, false).await;
    put(store.as_ref(), "site/db/manifest.json", "ours", true).await.unwrap();
    assert_eq!(puts.load(Ordering::SeqCst), 2);
    assert_eq!(store.read("site/db/manifest.json", 0..9).await.unwrap(), "ours");
}

fn looks(request: &Request<'_>, key: &str) -> bool {
    let line = request.head.lines().next().unwrap_or_default();
    line.starts_with("head ") && line.contains(key) && !line.contains("minisig")
}

/// Stores encrypt, hash otherwise, or number parts in a way of their own; what was sent with a checksum that the
/// store compared did arrive.
#[tokio::test(flavor = "multi_thread")]
async fn an_etag_of_any_form_is_no_error_where_a_checksum_was_verified() {
    let server = SeaweedFs::start().await;
    let forms = [
        "W/\"0123456789abcdef\"",
        "0123",
        "\"550e8400-e29b-41d4-a716-446655440000\"",
        "\"0123-7\"",
        "\"\"",
        "\"a-b-77\"",
    ];
    let mut failed = Vec::new();
    for etag in forms {
        let plan = move |request: &Request<'_>, _: &mut _| match looks(request, "") {
            true => Fate::AnswerEtag(etag),
            false => Fate::Forward,
        };
        let proxy = Proxy::start(&server.endpoint, 1, Duration::ZERO, plan).await;
        let store =
            open_s3(&repository(&proxy.endpoint, &server.bucket, "p"), &server.admin.access()).await.unwrap();
        failed.extend(put(&store, "site/db/one", "ours", false).await.err().map(|e| format!("{etag}: {e}")));
        let mut parts = store.begin("site/db/parts", false).await.unwrap();
        parts.put_part(Bytes::from(vec![1; 5 << 20])).await.unwrap();
        parts.put_part(Bytes::from_static(b"x")).await.unwrap();
        failed.extend(parts.commit((5 << 20) + 1).await.err().map(|e| format!("{etag}, parts: {e}")));
    }
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), 2 * forms.len());
}
