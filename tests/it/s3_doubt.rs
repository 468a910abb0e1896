//! Conditional writes over S3 whose answer is lost, or that collide: what is known is said, and what is not
//! known is not called a failure of somebody else's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use opsd::error::{Error, Kind};
use opsd::store::{Store, StoreError, open_s3, put};

use crate::support::opsd::Opsd;
use crate::support::postgres::default_server;
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

fn writes(request: &Request<'_>, key: &str) -> bool {
    let line = request.head.lines().next().unwrap_or_default();
    line.starts_with("put ") && line.contains(&key.to_lowercase()) && !line.contains("minisig")
}

fn looks(request: &Request<'_>, key: &str) -> bool {
    let line = request.head.lines().next().unwrap_or_default();
    line.starts_with("head ") && line.contains(&key.to_lowercase()) && !line.contains("minisig")
}

/// A store whose first answer about a written object is lost, and which then says `then` to everything.
async fn lost_then(
    server: &SeaweedFs,
    then: impl Fn() -> Fate + Send + Sync + 'static,
) -> (Proxy, Arc<dyn Store>) {
    let puts = AtomicUsize::new(0);
    let plan = move |request: &Request<'_>, _: &mut _| match request.head.starts_with("put ") {
        true if puts.fetch_add(1, Ordering::SeqCst) == 0 => Fate::CutAnswer(0),
        _ if puts.load(Ordering::SeqCst) > 0 => then(),
        _ => Fate::Forward,
    };
    let proxy = Proxy::start(&server.endpoint, 1, Duration::ZERO, plan).await;
    let store =
        open_s3(&repository(&proxy.endpoint, &server.bucket, "p"), &server.admin.access()).await.unwrap();
    (proxy, Arc::new(store))
}

/// The body arrived, and then the credentials expired: nobody can say that it was not written.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_arrived_before_the_last_attempt_failed_is_in_doubt() {
    let server = SeaweedFs::start().await;
    for if_absent in [true, false] {
        let (_proxy, store) = lost_then(&server, || error(403, "ExpiredToken")).await;
        let failure =
            put(store.as_ref(), &format!("site/db/{if_absent}"), "ours", if_absent).await.unwrap_err();
        assert!(matches!(failure, StoreError::InDoubt(_)), "{failure:?}");
        let said = failure.to_string();
        assert!(
            said.contains("whether") && said.contains("expired") && !said.contains("cannot write"),
            "{said}"
        );
        // And it is there.
        let direct = open_s3(&repository(&server.endpoint, &server.bucket, "p"), &server.admin.access())
            .await
            .unwrap();
        assert_eq!(direct.read(&format!("site/db/{if_absent}"), 0..9).await.unwrap(), "ours");
    }
    // Whoever may look knows that it was.
    let puts = AtomicUsize::new(0);
    let plan = move |request: &Request<'_>, _: &mut _| match request.head.starts_with("put ") {
        true if puts.fetch_add(1, Ordering::SeqCst) == 0 => Fate::CutAnswer(0),
        true => error(403, "AccessDenied"),
        false => Fate::Forward,
    };
    let proxy = Proxy::start(&server.endpoint, 1, Duration::ZERO, plan).await;
    let store =
        open_s3(&repository(&proxy.endpoint, &server.bucket, "p"), &server.admin.access()).await.unwrap();
    put(&store, "site/db/seen", "ours", true).await.unwrap();
    // What was refused at once, or never sent, is no doubt.
    let refused = put(&store, "site/db/refused", "ours", true).await.unwrap_err();
    assert!(matches!(refused, StoreError::Denied(_)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_was_taken_and_cannot_be_looked_at_is_in_doubt() {
    let server = SeaweedFs::start().await;
    let plan = |request: &Request<'_>, _: &mut _| match looks(request, "") {
        true => error(405, "MethodNotAllowed"),
        false => Fate::Forward,
    };
    let proxy = Proxy::start(&server.endpoint, 1, Duration::ZERO, plan).await;
    let store =
        open_s3(&repository(&proxy.endpoint, &server.bucket, "p"), &server.admin.access()).await.unwrap();
    let failure = put(&store, "site/db/one", "ours", true).await.unwrap_err();
    assert!(matches!(failure, StoreError::InDoubt(_)), "{failure:?}");
    let mut parts = store.begin("site/db/parts", false).await.unwrap();
    parts.put_part(Bytes::from(vec![1; 5 << 20])).await.unwrap();
    parts.put_part(Bytes::from_static(b"x")).await.unwrap();
    let failure = parts.commit((5 << 20) + 1).await.unwrap_err();
    assert!(matches!(failure, StoreError::InDoubt(_)), "{failure:?}");
}

/// The lease is replaced like this.
#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_whose_answer_is_lost_and_that_nobody_can_read_is_in_doubt() {
    let server = SeaweedFs::start().await;
    let puts = Arc::new(AtomicUsize::new(0));
    let seen = puts.clone();
    let plan = move |request: &Request<'_>, _: &mut _| {
        if request.head.contains("if-match") && seen.fetch_add(1, Ordering::SeqCst) == 0 {
            return Fate::CutAnswer(0);
        }
        let is_read = request.head.contains("x-id=getobject");
        if is_read && seen.load(Ordering::SeqCst) > 0 { error(403, "AccessDenied") } else { Fate::Forward }
    };
    let proxy = Proxy::start(&server.endpoint, 1, Duration::ZERO, plan).await;
    let store =
        open_s3(&repository(&proxy.endpoint, &server.bucket, "p"), &server.admin.access()).await.unwrap();
    put(&store, "site/lease.json", "first", false).await.unwrap();
    let version = store.version("site/lease.json").await.unwrap();
    let failure =
        store.replace("site/lease.json", Bytes::from_static(b"second"), &version).await.unwrap_err();
    assert!(matches!(failure, StoreError::InDoubt(_)), "{failure:?}");
}

/// What is in doubt is whether the set exists: the manifest alone decides that.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_manifest_may_have_arrived_ends_with_6_and_any_other_object_with_1() {
    let s3 = SeaweedFs::start().await;
    let server = default_server();
    let database = server.fresh_database("doubt");
    server.psql(&database, "CREATE TABLE t AS SELECT 1 AS n");
    // The answer of a write is lost and the credentials have expired since; or nobody can look at what was taken.
    for (object, lost, code) in [
        ("manifest.json", true, 6),
        ("manifest.json", false, 6),
        ("RESTORE.md", true, 1),
        ("RESTORE.md", false, 1),
    ] {
        let is_over = AtomicUsize::new(0);
        let plan = move |request: &Request<'_>, _: &mut _| {
            if lost && is_over.load(Ordering::SeqCst) > 0 {
                return error(403, "ExpiredToken");
            }
            if lost && writes(request, object) {
                is_over.fetch_add(1, Ordering::SeqCst);
                return Fate::CutAnswer(0);
            }
            if !lost && looks(request, object) { error(405, "MethodNotAllowed") } else { Fate::Forward }
        };
        let proxy = Proxy::start(&s3.endpoint, 1, Duration::ZERO, plan).await;
        let mut opsd = Opsd::new(server, &[&database]);
        let place = format!("s3://{}/{}-{lost}", s3.bucket, object.to_lowercase().replace('.', "-"));
        opsd.use_s3(&place, &proxy.endpoint, &s3.admin.access_key, &s3.admin.secret_key);
        let run =
            tokio::task::block_in_place(|| opsd.run(&["backup"])).expect_failure(code, &["whether", object]);
        assert!(!run.stderr.contains("cannot write"), "{run}");
        assert_eq!(run.stderr.contains("backups list"), code == 6, "{run}");
    }
    server.drop_database(&database);
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
