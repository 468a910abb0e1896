//! `opsd repository probe` as people and scripts meet it; what it finds out is the store tests' matter.

use crate::support::opsd::{Opsd, quoted};
use crate::support::s3::{Keys, SeaweedFs, s3s_fs};

fn fits_80_columns(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 80 && line == line.trim_end(), "{line:?}\n{text}");
    }
}

fn on_s3(bucket: &str, endpoint: &str, keys: &Keys) -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.use_s3(&format!("s3://{bucket}/site"), endpoint, &keys.access_key, &keys.secret_key);
    opsd
}

#[test]
fn a_directory_is_tried_and_needs_no_warnings() {
    let opsd = Opsd::without_server();
    let run = opsd.ok(&["repository", "probe"]);
    fits_80_columns(&run.stdout);
    for row in
        ["  write                 yes\n", "  conditional-put       yes\n", "  delete                yes\n"]
    {
        assert!(run.stdout.contains(row), "{run}");
    }
    assert!(!run.stdout.contains(" ! "), "{run}");
    assert_eq!(run.stderr, "", "{run}");
    assert_eq!(opsd.repository_files(), ["opsd-probe.json"]);

    let report = opsd.ok(&["repository", "probe", "--json"]).json();
    assert_eq!(report["warnings"], serde_json::json!([]));
    assert_eq!(report["capabilities"].as_array().unwrap().len(), 7, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_s3s_fs_lacks_is_said_with_what_opsd_does_without() {
    let server = s3s_fs().await;
    let opsd = on_s3(&server.bucket, &server.endpoint, &server.keys);
    let run = tokio::task::spawn_blocking(move || opsd.ok(&["repository", "probe"])).await.unwrap();
    fits_80_columns(&run.stdout);
    assert!(run.stdout.contains("  multipart-list        no"), "{run}");
    assert!(run.stdout.contains("  ! unfinished uploads of a killed run cannot be found"), "{run}");
    assert!(run.stdout.contains("opsd can back up to this store and restore from it"), "{run}");
    assert!(server.directory.join("site/opsd-probe.json").exists(), "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_credential_is_told_what_it_may_do() {
    let server = SeaweedFs::start().await;
    for (keys, verdict, words) in [
        (&server.admin, "can back up to this store and restore from it", "can delete every backup"),
        (&server.writer, "can back up, but not restore", "may not read: backups work"),
        (&server.reader, "can restore, but not back up", "may not write: it can list and restore"),
    ] {
        let opsd = on_s3(&server.bucket, &server.endpoint, keys);
        let (text, json) = tokio::task::spawn_blocking(move || {
            (opsd.ok(&["repository", "probe"]), opsd.ok(&["repository", "probe", "--json"]).json())
        })
        .await
        .unwrap();
        fits_80_columns(&text.stdout);
        let warnings = json["warnings"].as_array().unwrap();
        assert!(warnings.iter().any(|w| w.as_str().unwrap().contains(words)), "{words}: {json:#}");
        // Wrapped, so the words are looked for without their line ends.
        let flat = text.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(words) && flat.contains(verdict), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_cannot_be_used_is_an_error() {
    let server = SeaweedFs::start().await;
    let mut wrong = server.admin.clone();
    wrong.secret_key.push('x');
    for (bucket, keys) in [(&server.bucket, &wrong), (&"elsewhere".to_owned(), &server.admin)] {
        let opsd = on_s3(bucket, &server.endpoint, keys);
        let run = tokio::task::spawn_blocking(move || opsd.run(&["repository", "probe"])).await.unwrap();
        let run = run.expect_failure(1, &["error: "]);
        assert_eq!(run.stdout, "", "{run}");
        assert!(!run.stderr.contains(&keys.secret_key), "{run}");
    }
    let mut opsd = Opsd::without_server();
    std::fs::write(opsd.path("file"), "").unwrap();
    let below = format!("file://{}/below", opsd.path("file").display());
    opsd.repository.set("url", quoted(&below));
    opsd.run(&["repository", "probe"]).expect_failure(1, &["error: ", "file"]);
}
