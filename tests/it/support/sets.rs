//! What a test needs to know of the sets in a site's repository of files, and ways to tamper with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use opsd::set::signature::{self, Purpose};
use serde_json::Value;

use super::opsd::Opsd;

/// One set as `backups list` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub job: String,
    pub id: String,
    pub state: String,
    /// The verdict of its last rehearsal that counts.
    pub verdict: Option<String>,
}

/// Every set that `backups list` shows.
pub fn listed(opsd: &Opsd) -> Vec<Listed> {
    let document = opsd.ok(&["backups", "list", "--json"]).json();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    document["sets"]
        .as_array()
        .expect("sets")
        .iter()
        .map(|set| Listed {
            job: text(&set["job"]).expect("job"),
            id: text(&set["id"]).expect("id"),
            state: text(&set["state"]).expect("state"),
            verdict: text(&set["verified"]["verdict"]),
        })
        .collect()
}

/// Ids of the complete sets of the job `db`.
pub fn complete(opsd: &Opsd) -> Vec<String> {
    let complete = |set: &Listed| set.state == "complete" && set.job == "db";
    listed(opsd).into_iter().filter(complete).map(|set| set.id).collect()
}

/// Backs up the job `db` and returns the set's id.
pub fn back_up(opsd: &Opsd) -> String {
    let document = opsd.ok(&["backup", "db", "--json"]).json();
    document["sets"][0]["id"].as_str().expect("id").to_owned()
}

/// Where a set of the job `db` is.
pub fn directory(opsd: &Opsd, id: &str) -> PathBuf {
    opsd.path("repository").join("test/db").join(id)
}

/// Content of every file of the repository, for comparing before and after.
pub fn contents(opsd: &Opsd) -> BTreeMap<String, Vec<u8>> {
    let root = opsd.path("repository");
    opsd.repository_files()
        .into_iter()
        .map(|name| {
            let bytes = std::fs::read(root.join(&name)).expect("read an object");
            (name, bytes)
        })
        .collect()
}

/// The manifest of a set of the job `db`.
pub fn manifest(opsd: &Opsd, id: &str) -> Value {
    let bytes = std::fs::read(directory(opsd, id).join("manifest.json")).expect("read the manifest");
    serde_json::from_slice(&bytes).expect("a manifest")
}

/// A signature as opsd makes it for the document under this key.
pub fn sign(key_file: &Path, key: &str, bytes: &[u8]) -> String {
    let parts: Vec<&str> = key.split('/').collect();
    let [.., site, job, id, name] = parts[..] else { panic!("{key} is no key of a set's") };
    let purpose = if name == "manifest.json" { Purpose::Manifest } else { Purpose::Verification };
    signature::sign(key_file, bytes, &purpose.comment(site, job, id)).expect("sign")
}

/// Changes a set's manifest and signs it anew: what only the holder of the signing key can do.
pub fn forge(opsd: &Opsd, id: &str, change: impl FnOnce(&mut Value)) {
    let mut document = manifest(opsd, id);
    change(&mut document);
    let bytes = serde_json::to_vec_pretty(&document).expect("JSON");
    let signature = sign(&opsd.path("sign.key"), &format!("test/db/{id}/manifest.json"), &bytes);
    let set = directory(opsd, id);
    std::fs::write(set.join("manifest.json.minisig"), signature).expect("write the signature");
    std::fs::write(set.join("manifest.json"), bytes).expect("write the manifest");
}

/// Writes the signed record of a rehearsal that found `differences` in the first database of a set, just now.
pub fn record_differences(opsd: &Opsd, id: &str, differences: &[&str]) {
    record(opsd, id, "differs", chrono::Utc::now(), differences);
}

/// The same of a rehearsal that could not run, and ended then.
pub fn record_failure(opsd: &Opsd, id: &str, finished: chrono::DateTime<chrono::Utc>) {
    record(opsd, id, "failed", finished, &[]);
}

fn record(
    opsd: &Opsd,
    id: &str,
    verdict: &str,
    finished: chrono::DateTime<chrono::Utc>,
    differences: &[&str],
) {
    let bytes = std::fs::read(directory(opsd, id).join("manifest.json")).expect("read the manifest");
    let manifest: Value = serde_json::from_slice(&bytes).expect("a manifest");
    let record = serde_json::json!({
        "format": 1, "site": "test", "job": "db", "id": id,
        "manifest_sha256": opsd::set::seal::sha256_hex(&bytes), "verdict": verdict,
        "started": finished, "finished": finished, "seconds": {},
        "databases": [{
            "name": manifest["databases"][0]["name"], "tables_total": 1, "tables_proven": 0, "rows": 1,
            "differences": differences,
        }],
        "warnings": [], "server_version": null, "contained": null, "opsd_version": "0.1.0",
    });
    let record = serde_json::to_vec_pretty(&record).expect("JSON");
    let name = opsd::set::verification::name(finished);
    let signature = sign(&opsd.path("sign.key"), &format!("test/db/{id}/{name}"), &record);
    std::fs::write(directory(opsd, id).join(format!("{name}.minisig")), signature)
        .expect("write the signature");
    std::fs::write(directory(opsd, id).join(name), record).expect("write the record");
}

/// Puts this archive in the place of a stream's one object, sealed to the set's recipient, and signs the
/// manifest that says so.
pub fn replace(opsd: &Opsd, id: &str, key: &str, archive: &[u8]) {
    let recipient: age::x25519::Recipient = opsd.recipient.parse().expect("a recipient");
    let compressed = zstd::encode_all(archive, 1).expect("compress");
    let sealed = age::encrypt(&recipient, &compressed).expect("encrypt");
    std::fs::write(directory(opsd, id).join(key), &sealed).expect("write an object");
    forge(opsd, id, |manifest| {
        let databases = manifest["databases"].as_array_mut().expect("databases").iter_mut();
        let streams = databases.flat_map(|d| d["streams"].as_array_mut().expect("streams").iter_mut());
        let stream = streams.into_iter().find(|s| s["objects"][0]["key"] == key).expect("a stream");
        stream["plain_size"] = archive.len().into();
        let end = opsd::set::seal::header::end(&sealed).expect("a header").expect("a whole header");
        let pin = opsd::set::seal::header::pin(&sealed[..end]);
        stream["objects"][0]["header"] = serde_json::to_value(pin).expect("JSON");
        stream["objects"][0]["size"] = sealed.len().into();
        stream["objects"][0]["sha256"] = opsd::set::seal::sha256_hex(&sealed).into();
    });
}

/// The result of the one rehearsal in a `--json` document.
pub fn result(run: &super::opsd::Run) -> Value {
    let document = run.json();
    let results = document["results"].as_array().expect("results");
    assert_eq!(results.len(), 1, "{run}");
    results[0].clone()
}

/// Returns in the next second of the clock: ids count seconds, and order by them is all that is known
/// of a set whose manifest is refused.
pub fn next_second() {
    let second = || chrono::Utc::now().timestamp();
    let now = second();
    super::processes::until("the next second", || second() > now);
}
