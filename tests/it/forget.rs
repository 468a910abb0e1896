//! Sets that nobody believes any more: adopted or forgotten, one by one, and what does not go.

use crate::support::opsd::{Opsd, quoted_list};
use crate::support::postgres::default_server;
use crate::support::sets::{back_up, complete, contents, directory, forge, next_second};

fn check(opsd: &Opsd) -> i32 {
    opsd.run(&["check"]).code.expect("an exit code")
}

/// They kept `check` critical for ever.
#[test]
fn sets_of_before_signing_began_are_adopted_or_forgotten() {
    let server = default_server();
    let database = server.fresh_database("adopted");
    server.psql(&database, "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.more = "[monitor.backups]\nbackups = {}\n".to_owned();
    let signing = opsd.encryption.clone();
    opsd.encryption.unset("sign_key_file").unset("trusted_keys");
    let (unsigned, manifests): (Vec<String>, Vec<String>) = (0..3)
        .map(|_| {
            next_second();
            let document = opsd.ok(&["backup", "db", "--json"]).json();
            let said = |key: &str| document["sets"][0][key].as_str().unwrap().to_owned();
            (said("id"), said("manifest_sha256"))
        })
        .unzip();
    opsd.encryption = signing;
    next_second();
    let signed = back_up(&opsd);
    assert_eq!(check(&opsd), 2);
    let run = opsd.run(&["backups", "show", &unsigned[0]]).expect_code(3);
    assert!(run.stderr.contains("opsd backups adopt") && run.stderr.contains("opsd backups forget"), "{run}");

    let before = contents(&opsd);
    // Unsigned is what anybody can make of a signed set: something from elsewhere has to vouch for it.
    let refused = opsd.run(&["backups", "adopt", &unsigned[0]]);
    refused.expect_failure(3, &["nothing shows that set", "--manifest-sha256"]);
    opsd.run(&["backups", "adopt", "--manifest-sha256", &"00".repeat(32), &unsigned[0]])
        .expect_failure(3, &["nothing shows that set"]);
    assert!(contents(&opsd) == before);
    let digest = ["--manifest-sha256", &manifests[0]];
    let run = opsd.ok(&[&["backups", "adopt", "--dry-run", &unsigned[0]], &digest[..]].concat());
    assert!(run.stdout.contains(&unsigned[0]) && run.stdout.contains(&database), "{run}");
    assert!(contents(&opsd) == before);
    let run = opsd.ok(&[&["backups", "adopt", "--json", &unsigned[0]], &digest[..]].concat());
    assert_eq!(run.json()["sets"][0]["adopted"], true, "{run}");
    opsd.ok(&["restore", "--verify", "--backup", &unsigned[0]]);
    // Whoever signed it is not asked twice, and nobody adopts what another key has signed.
    opsd.run(&["backups", "adopt", &unsigned[0]]).expect_failure(3, &["signed already"]);
    let key = opsd.encryption.clone();
    opsd.encryption.set("trusted_keys", quoted_list(&[&Opsd::without_server().public_key]));
    opsd.run(&["backups", "adopt", &unsigned[1]]).expect_failure(2, &["not among trusted_keys"]);
    opsd.encryption = key;
    // A rehearsal that somebody who is trusted signed vouches for the manifest that it was of.
    let [manifest, signature] =
        ["manifest.json", "manifest.json.minisig"].map(|name| directory(&opsd, &unsigned[0]).join(name));
    let as_written = std::fs::read(&manifest).unwrap();
    forge(&opsd, &unsigned[0], |manifest| manifest["warnings"] = serde_json::json!(["changed"]));
    std::fs::remove_file(&signature).unwrap();
    opsd.run(&["backups", "adopt", &unsigned[0]]).expect_failure(3, &["nothing shows that set"]);
    std::fs::write(&manifest, as_written).unwrap();
    opsd.ok(&["backups", "adopt", &unsigned[0]]);

    let run = opsd.ok(&["backups", "forget", "--dry-run", &unsigned[1], &unsigned[2]]);
    assert!(run.stdout.contains("dry run") && directory(&opsd, &unsigned[1]).exists(), "{run}");
    std::fs::write(directory(&opsd, &unsigned[2]).join("notes.txt"), "mine").unwrap();
    let run = opsd.ok(&["backups", "forget", &unsigned[1], &unsigned[2], "--json"]);
    assert_eq!(run.json()["sets"][1]["foreign"], serde_json::json!(["notes.txt"]), "{run}");
    let left: Vec<String> =
        opsd.repository_files().into_iter().filter(|f| f.contains(&unsigned[2])).collect();
    assert_eq!(left, [format!("test/db/{}/notes.txt", unsigned[2])], "what opsd did not write stays");
    assert!(!opsd.repository_files().iter().any(|file| file.contains(&unsigned[1])));
    assert_eq!(complete(&opsd), [unsigned[0].as_str(), signed.as_str()]);
    assert_eq!(check(&opsd), 0);

    let before = contents(&opsd);
    for (id, why) in [
        (&signed, "the newest set that may be relied on"),
        (&unsigned[0], "the newest set that a rehearsal proved"),
        (&unsigned[2], "sweep"),
    ] {
        opsd.run(&["backups", "forget", id]).expect_failure(3, &["stays", why]);
    }
    opsd.run(&["backups", "forget", "2000"]).expect_failure(1, &["no set"]);
    assert!(contents(&opsd) == before);
    server.drop_database(&database);
}

/// Whoever has the wrong keys believes nothing.
#[test]
fn the_newest_set_stays_where_nobody_believes_any() {
    let server = default_server();
    let database = server.fresh_database("unbelieved");
    server.psql(&database, "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    let mut opsd = Opsd::new(server, &[&database]);
    let first = back_up(&opsd);
    next_second();
    let newest = back_up(&opsd);
    opsd.encryption.set("trusted_keys", quoted_list(&[&Opsd::without_server().public_key]));
    let before = contents(&opsd);
    opsd.run(&["backups", "forget", &newest]).expect_failure(3, &["stays", "are the trusted keys right?"]);
    assert!(contents(&opsd) == before);
    opsd.ok(&["backups", "forget", &first]);
    server.drop_database(&database);
}

/// A set that only a newer opsd reads, or that the store does not hand out, may be the one that everything rests on.
#[test]
fn nothing_is_forgotten_beside_a_set_that_cannot_be_read() {
    let server = default_server();
    let database = server.fresh_database("unread");
    server.psql(&database, "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    let opsd = Opsd::new(server, &[&database]);
    let sets: Vec<String> = (0..3)
        .map(|_| {
            next_second();
            back_up(&opsd)
        })
        .collect();
    forge(&opsd, &sets[2], |manifest| manifest["format"] = 99.into());
    let before = contents(&opsd);
    for id in [&sets[0], &sets[2]] {
        opsd.run(&["backups", "forget", id])
            .expect_failure(3, &["stays", &format!("set {} cannot be read now", sets[2])]);
    }
    assert!(contents(&opsd) == before);
    server.drop_database(&database);
}
