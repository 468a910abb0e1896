//! What `opsd repository probe` finds out about servers whose abilities are known.

use opsd::config::{Location, Repository};
use opsd::store::probe::{Name, REPORT_KEY, Report, State, probe, probe_with, remembered};
use opsd::store::s3::{Checksums, S3Store};
use opsd::store::{get, open, open_s3, put};

use super::{keys, s3s_store, weed_store};
use crate::support::s3::{SeaweedFs, s3s_fs};
use crate::support::s3_proxy::{Fate, Proxy, Request, error};

fn all_are(report: &Report, state: State, names: &[Name]) {
    for name in names {
        assert_eq!(report.state(*name), state, "{name:?}: {:#?}", report.capabilities);
    }
}

async fn left_only_the_report(store: &S3Store) {
    assert_eq!(keys(store, "").await, [REPORT_KEY]);
}

#[tokio::test]
async fn a_capable_store_has_everything_and_its_report_is_remembered() {
    let server = SeaweedFs::start().await;
    let repository = server.repository("site");
    let report = probe_with(&repository, &server.admin.access()).await.unwrap();
    use Name::*;
    let works = [Addressing, Write, Read, RangedRead, List, Delete, Checksum, ChecksumEnforced];
    all_are(&report, State::Yes, &works);
    all_are(&report, State::Yes, &[ConditionalPut, ConditionalComplete, ConditionalReplace]);
    all_are(&report, State::Yes, &[Multipart, MultipartAbort, MultipartList]);
    all_are(&report, State::No, &[Versioning, ObjectLock]);
    assert_eq!(report.checksums, Checksums::Crc32);
    assert_eq!(report.rows().len(), 16);
    let store = weed_store(&server, &server.admin, "site").await;
    left_only_the_report(&store).await;
    super::no_unfinished_uploads(&server).await;
    assert_eq!(remembered(&store).await.unwrap(), Some(report));
}

#[tokio::test]
async fn versioning_and_object_lock_are_seen() {
    use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
    let server = SeaweedFs::start().await;
    let versioning = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    let client = server.client();
    let request = client.put_bucket_versioning().bucket(&server.bucket);
    request.versioning_configuration(versioning).send().await.unwrap();
    let report = probe_with(&server.repository("site"), &server.admin.access()).await.unwrap();
    assert_eq!(report.state(Name::Versioning), State::Yes);
    assert!(report.warnings.iter().any(|w| w.contains("old versions")), "{:?}", report.warnings);

    let locked = "locked";
    client.create_bucket().bucket(locked).object_lock_enabled_for_bucket(true).send().await.unwrap();
    let mut repository = server.repository("site");
    repository.location = Location::S3 { bucket: locked.to_owned(), prefix: "site".to_owned() };
    let report = probe_with(&repository, &server.admin.access()).await.unwrap();
    assert_eq!(report.state(Name::ObjectLock), State::Yes, "{:#?}", report.capabilities);
}

#[tokio::test]
async fn a_credential_that_may_only_put_is_described() {
    let server = SeaweedFs::start().await;
    let report = probe_with(&server.repository("site"), &server.writer.access()).await.unwrap();
    all_are(&report, State::Yes, &[Name::Write, Name::Checksum, Name::Multipart, Name::ConditionalPut]);
    all_are(&report, State::Yes, &[Name::MultipartAbort]);
    all_are(&report, State::Denied, &[Name::Read, Name::RangedRead, Name::List]);
    assert!(report.warnings.iter().any(|w| w.contains("may not read")), "{:?}", report.warnings);
    // It cannot read its own report back, and works without.
    let store = weed_store(&server, &server.writer, "site").await;
    assert_eq!(remembered(&store).await.unwrap(), None);
    put(&store, "a", "x", true).await.unwrap();
    // Who may read finds it.
    let store = weed_store(&server, &server.reader, "site").await;
    assert_eq!(remembered(&store).await.unwrap(), Some(report));
}

#[tokio::test]
async fn a_credential_that_may_only_read_is_described() {
    let server = SeaweedFs::start().await;
    let report = probe_with(&server.repository("site"), &server.reader.access()).await.unwrap();
    all_are(&report, State::Denied, &[Name::Write]);
    all_are(&report, State::Yes, &[Name::List]);
    assert!(report.warnings.iter().any(|w| w.contains("may not write")), "{:?}", report.warnings);
}

#[tokio::test]
async fn a_wrong_credential_or_bucket_is_an_error_and_no_report() {
    let server = SeaweedFs::start().await;
    let mut wrong = server.admin.clone();
    wrong.secret_key.push('x');
    let error = probe_with(&server.repository("site"), &wrong.access()).await.unwrap_err();
    assert!(error.to_string().contains("wrong credentials"), "{error}");
    let mut repository = server.repository("site");
    repository.location = Location::S3 { bucket: "elsewhere".to_owned(), prefix: String::new() };
    let error = probe_with(&repository, &server.admin.access()).await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[tokio::test]
async fn the_other_way_of_addressing_is_suggested() {
    let server = s3s_fs().await;
    // The SDK itself uses paths for an address; for a name it does as it is told, and this server
    // then takes the key for a bucket.
    let mut repository = server.repository("site");
    repository.endpoint = Some(server.endpoint.replace("127.0.0.1", "localhost"));
    repository.path_style = false;
    let error = probe_with(&repository, &server.keys.access()).await.unwrap_err();
    assert_eq!(error.hint(), Some("path style works here: set repository.path_style = true"), "{error:?}");
    let store = s3s_store(&server, "site").await;
    assert_eq!(keys(&store, "").await, [""; 0]);
}

#[tokio::test]
async fn s3s_fs_lacks_what_it_is_known_to_lack() {
    let server = s3s_fs().await;
    let report = probe_with(&server.repository("site"), &server.keys.access()).await.unwrap();
    all_are(&report, State::Yes, &[Name::Write, Name::Read, Name::RangedRead, Name::List, Name::Delete]);
    all_are(&report, State::Yes, &[Name::Multipart, Name::ConditionalPut, Name::ConditionalComplete]);
    all_are(&report, State::No, &[Name::MultipartList]);
    all_are(&report, State::Unknown, &[Name::Versioning, Name::ObjectLock]);
    left_only_the_report(&s3s_store(&server, "site").await).await;
}

/// MinIO lists an unfinished upload to who names its whole key, and to nobody else.
#[tokio::test]
async fn a_store_that_lists_uploads_by_their_whole_key_alone_is_said_to_list_none() {
    let server = SeaweedFs::start().await;
    let plan = |request: &Request<'_>, _: &mut rand::rngs::StdRng| {
        let line = request.head.lines().next().unwrap_or_default();
        let lists = line.starts_with("get ") && line.contains("uploads");
        let prefix = line.split(['?', '&', ' ']).find_map(|part| part.strip_prefix("prefix="));
        if !lists || prefix.is_some_and(|prefix| prefix.ends_with("%2faborted")) {
            return Fate::Forward;
        }
        let body = "<?xml version=\"1.0\"?><ListMultipartUploadsResult><IsTruncated>false</IsTruncated>\
                    </ListMultipartUploadsResult>";
        Fate::Answer(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let proxy = Proxy::start(&server.endpoint, 1, std::time::Duration::ZERO, plan).await;
    let mut repository = server.repository("site");
    repository.endpoint = Some(proxy.endpoint.clone());
    let report = probe_with(&repository, &server.admin.access()).await.unwrap();
    all_are(&report, State::Yes, &[Name::Multipart, Name::MultipartAbort]);
    all_are(&report, State::No, &[Name::MultipartList]);
    assert_eq!(
        report.lacks(Name::MultipartList),
        Some("shows an unfinished upload only to who knows its key")
    );
    assert!(report.warnings.iter().any(|w| w.contains("lifecycle rule")), "{:?}", report.warnings);
    super::no_unfinished_uploads(&server).await;
    // Nor does a sweep say that there are none.
    let store = open_s3(&repository, &server.admin.access()).await.unwrap();
    let found = opsd::backup::sweep::find(&store, "site").await.unwrap();
    assert!(found.uploads_unknown.is_some_and(|why| why.contains("only to who knows its key")));
}

/// A store that does not know a question answers another one, with 200.
#[tokio::test]
async fn a_wrong_answer_to_a_question_about_the_bucket_is_not_waited_for() {
    let server = SeaweedFs::start().await;
    let plan = |request: &Request<'_>, _: &mut rand::rngs::StdRng| {
        let line = request.head.lines().next().unwrap_or_default();
        if !line.contains("?versioning") && !line.contains("?object-lock") {
            return Fate::Forward;
        }
        let body = "<!doctype html><html><body>Welcome!</body></html>";
        Fate::Answer(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    };
    let proxy = Proxy::start(&server.endpoint, 1, std::time::Duration::ZERO, plan).await;
    let mut repository = server.repository("site");
    repository.endpoint = Some(proxy.endpoint.clone());
    let began = std::time::Instant::now();
    let report = probe_with(&repository, &server.admin.access()).await.unwrap();
    assert!(began.elapsed() < std::time::Duration::from_secs(40), "{:?}", began.elapsed());
    all_are(&report, State::Unknown, &[Name::Versioning, Name::ObjectLock]);
    all_are(&report, State::Yes, &[Name::Write, Name::Multipart, Name::Delete]);
}

/// Nobody signs the report; whoever writes to the bucket may have written it.
#[tokio::test]
async fn a_report_turns_no_checksums_off_where_the_store_takes_them() {
    let server = s3s_fs().await;
    let repository = server.repository("site");
    let access = server.keys.access();
    let mut report = probe_with(&repository, &access).await.unwrap();
    let store = open_s3(&repository, &access).await.unwrap();
    assert_eq!(store.options().checksums, Checksums::Crc32);
    report.checksums = Checksums::None;
    put(&store, REPORT_KEY, serde_json::to_vec(&report).unwrap(), false).await.unwrap();
    let store = open_s3(&repository, &access).await.unwrap();
    assert_eq!(store.options().checksums, Checksums::Crc32);
    left_only_the_report(&store).await;
    // Where it is true it is believed.
    let plan = |request: &Request<'_>, _: &mut rand::rngs::StdRng| {
        let has_checksum =
            request.head.contains("x-amz-checksum-") || request.head.contains("x-amz-sdk-checksum");
        if has_checksum { error(501, "NotImplemented") } else { Fate::Forward }
    };
    let proxy = Proxy::start(&server.endpoint, 1, std::time::Duration::ZERO, plan).await;
    let mut behind = server.repository("site");
    behind.endpoint = Some(proxy.endpoint.clone());
    let through = open_s3(&behind, &access).await.unwrap();
    assert_eq!(through.options().checksums, Checksums::None);
    // One that cannot be read is no reason to stop.
    for damaged in ["{", "[]", "{\"format\":2}"] {
        put(&store, REPORT_KEY, damaged, false).await.unwrap();
        let store = open_s3(&repository, &access).await.unwrap();
        assert_eq!(store.options().checksums, Checksums::Crc32);
    }
}

#[tokio::test]
async fn a_directory_can_do_what_directories_can() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository {
        location: Location::File(directory.path().join("repository")),
        endpoint: None,
        region: None,
        path_style: false,
        lock: None,
    };
    let report = probe(&repository).await.unwrap();
    let works = [Name::Write, Name::Read, Name::RangedRead, Name::List, Name::Delete, Name::ConditionalPut];
    all_are(&report, State::Yes, &works);
    all_are(&report, State::Yes, &[Name::ConditionalReplace]);
    assert_eq!((report.rows().len(), report.warnings.as_slice()), (7, [].as_slice()));
    let store = open(&repository).await.unwrap();
    let listed: Vec<_> = store.list("").await.unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(listed, [REPORT_KEY]);
    let json: Report =
        serde_json::from_slice(&get(store.as_ref(), REPORT_KEY, 1 << 20).await.unwrap()).unwrap();
    assert_eq!(json, report);
}
