//! One conformance suite for every store, and what only real S3 servers can show.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use opsd::store::faulty::FaultyStore;
use opsd::store::fs::FsStore;
use opsd::store::memory::MemoryStore;
use opsd::store::s3::{Checksums, Options, S3Store};
use opsd::store::{Store, StoreError, get, open_s3, put};

use crate::support::s3::{Keys, S3sFs, SeaweedFs, repository, s3s_fs};

mod conformance;
mod faults;
mod probe;

/// The smallest part that S3 allows.
const PART: usize = 5 << 20;

/// Bytes that differ everywhere, so that a swapped or missing part shows.
fn pattern(length: usize, seed: u32) -> Bytes {
    let word = |i: u32| i.wrapping_add(seed).wrapping_mul(0x9e37_79b1).to_le_bytes();
    (0..).flat_map(word).take(length).collect::<Vec<u8>>().into()
}

async fn put_in_parts(store: &dyn Store, key: &str, body: &Bytes, if_absent: bool) -> Result<(), StoreError> {
    let mut upload = store.begin(key, if_absent).await?;
    for start in (0..body.len()).step_by(PART) {
        upload.put_part(body.slice(start..body.len().min(start + PART))).await?;
    }
    upload.commit(body.len() as u64).await
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list(prefix).await.unwrap().into_iter().map(|o| o.key).collect()
}

async fn s3s_store(server: &S3sFs, prefix: &str) -> S3Store {
    open_s3(&server.repository(prefix), &server.keys.access()).await.unwrap()
}

async fn weed_store(server: &SeaweedFs, keys: &Keys, prefix: &str) -> S3Store {
    open_s3(&server.repository(prefix), &keys.access()).await.unwrap()
}

#[tokio::test]
async fn memory_conforms() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    conformance::all(Arc::clone(&store)).await;
    conformance::a_folder_is_no_object(Arc::clone(&store)).await;
    conformance::exactly_one_replaces_a_version(Arc::clone(&store)).await;
    conformance::exactly_one_conditional_writer_wins(Arc::clone(&store)).await;
    assert_eq!(store.unfinished("").await.unwrap(), [], "nothing outlives its process");
}

#[tokio::test]
async fn a_directory_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(FsStore::open(directory.path()).unwrap());
    conformance::all(Arc::clone(&store)).await;
    conformance::a_folder_is_no_object(Arc::clone(&store)).await;
    conformance::exactly_one_conditional_writer_wins(Arc::clone(&store)).await;
    conformance::exactly_one_replaces_a_version(Arc::clone(&store)).await;
    conformance::unfinished_uploads_are_found_and_aborted(store).await;
}

#[tokio::test]
async fn the_fault_decorator_without_faults_conforms() {
    conformance::all(Arc::new(FaultyStore::new(Arc::new(MemoryStore::new()), Vec::new()))).await;
}

#[tokio::test]
async fn s3_on_s3s_fs_conforms() {
    let server = s3s_fs().await;
    conformance::all(Arc::new(s3s_store(&server, "some/prefix").await)).await;
    assert!(server.directory.join("some/prefix/whole/one").is_file());
    // It cannot list unfinished uploads, and says so.
    let store = s3s_store(&server, "some/prefix").await;
    let listed = store.unfinished("").await;
    assert!(matches!(listed, Err(StoreError::Unsupported(_))), "{listed:?}");
    // Another repository in the same bucket, at its root, sees the first one's objects as its own.
    let root = s3s_store(&server, "").await;
    put(&root, "at-the-root", "x", false).await.unwrap();
    assert!(keys(&root, "some/prefix/").await.len() > 5);
}

#[tokio::test]
async fn s3_on_seaweedfs_conforms() {
    let server = SeaweedFs::start().await;
    let store: Arc<dyn Store> = Arc::new(weed_store(&server, &server.admin, "some/prefix").await);
    conformance::all(Arc::clone(&store)).await;
    conformance::a_folder_is_no_object(Arc::clone(&store)).await;
    conformance::exactly_one_conditional_writer_wins(Arc::clone(&store)).await;
    conformance::exactly_one_replaces_a_version(Arc::clone(&store)).await;
    conformance::unfinished_uploads_are_found_and_aborted(store).await;
    // The same without checksums, as for stores that refuse them.
    let options = Options { checksums: Checksums::None };
    let plain = weed_store(&server, &server.admin, "plain").await.with_options(options);
    conformance::all(Arc::new(plain)).await;
    // Aborts run in the background: nothing of all this stays for ever.
    no_unfinished_uploads(&server).await;
}

async fn no_unfinished_uploads(server: &SeaweedFs) {
    let client = server.client();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = client.list_multipart_uploads().bucket(&server.bucket).send().await.unwrap();
        if answer.uploads().is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "unfinished uploads stay: {:?}", answer.uploads());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_credential_that_may_only_put_and_abort_is_enough_to_write() {
    let server = SeaweedFs::start().await;
    let store = weed_store(&server, &server.writer, "site").await;
    let large = pattern(PART + 100, 1);
    put(&store, "small", "abc", true).await.unwrap();
    put_in_parts(&store, "large", &large, true).await.unwrap();
    let mut upload = store.begin("aborted", false).await.unwrap();
    upload.put_part(large.clone()).await.unwrap();
    upload.put_part(large.clone()).await.unwrap();
    upload.abort().await;
    let mut upload = store.begin("dropped", false).await.unwrap();
    upload.put_part(large.clone()).await.unwrap();
    upload.put_part(large.clone()).await.unwrap();
    drop(upload);
    no_unfinished_uploads(&server).await;
    // What it wrote is there, and refused a second time; it may do nothing else.
    let denied =
        |result: Result<(), StoreError>| assert!(matches!(result, Err(StoreError::Denied(_))), "{result:?}");
    denied(get(&store, "small", 10).await.map(drop));
    denied(store.head("small").await.map(drop));
    denied(store.list("").await.map(drop));
    assert!(matches!(put(&store, "small", "abc", true).await, Err(StoreError::Exists(_))));
    let admin = weed_store(&server, &server.admin, "site").await;
    assert_eq!(keys(&admin, "").await, ["large", "small"]);
    assert_eq!(get(&admin, "large", u64::from(u32::MAX)).await.unwrap(), large);
}

#[tokio::test]
async fn a_credential_that_may_only_read_is_told_so() {
    let server = SeaweedFs::start().await;
    let admin = weed_store(&server, &server.admin, "site").await;
    put(&admin, "a", "abc", false).await.unwrap();
    let store = weed_store(&server, &server.reader, "site").await;
    assert_eq!(get(&store, "a", 10).await.unwrap(), "abc");
    assert_eq!(keys(&store, "").await, ["a"]);
    let error = put(&store, "b", "x", false).await.unwrap_err();
    assert!(matches!(&error, StoreError::Denied(text) if text.contains("access denied")), "{error}");
    assert!(matches!(store.delete("a").await, Err(StoreError::Denied(_))));
}

/// What an operator sees who got one thing wrong.
#[tokio::test]
async fn mistakes_get_a_sentence_each() {
    let server = SeaweedFs::start().await;
    let attempt = async |endpoint: &str, bucket: &str, keys: &Keys| {
        let result = open_s3(&repository(endpoint, bucket, "p"), &keys.access()).await;
        match result {
            Ok(store) => put(&store, "a", "x", false).await.unwrap_err(),
            Err(error) => StoreError::Other(error.to_string()),
        }
    };
    let says = |error: StoreError, what: &[&str]| {
        let text = error.to_string();
        for part in what {
            assert!(text.contains(part), "{text:?} should say {part:?}");
        }
        assert!(!text.contains("secret-") && !text.contains("Signature="), "{text}");
    };
    let (endpoint, bucket) = (server.endpoint.as_str(), server.bucket.as_str());

    let missing = attempt(endpoint, "no-such-bucket", &server.admin).await;
    assert!(matches!(missing, StoreError::NotFound(_)), "{missing:?}");
    says(missing, &["bucket \"no-such-bucket\" does not exist", endpoint]);

    let object = weed_store(&server, &server.admin, "p").await.head("nothing").await.unwrap_err();
    assert!(matches!(object, StoreError::NotFound(_)), "{object:?}");
    says(object, &["no such object in s3://backups/p"]);

    let mut wrong = server.admin.clone();
    wrong.secret_key.push('x');
    let error = attempt(endpoint, bucket, &wrong).await;
    assert!(matches!(error, StoreError::Denied(_)), "{error:?}");
    says(error, &["wrong credentials", "secret key"]);

    wrong.access_key.push('x');
    says(attempt(endpoint, bucket, &wrong).await, &["wrong credentials", "does not know the access key"]);

    // Nobody listens on a port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("http://{free}");
    says(attempt(&nobody, bucket, &server.admin).await, &["cannot reach", &nobody, "refused"]);
}
