//! Sets that somebody or something has changed: lost, cut, flipped, edited, moved.

use std::path::Path;

use serde_json::Value;

use super::site;
use crate::support::opsd::{Opsd, Run, quoted_list};
use crate::support::postgres::unique;
use crate::support::sets::{self, back_up, complete, contents, directory, forge, result};

/// A rehearsal that must find a difference and name `what`.
fn differs(opsd: &Opsd, what: &str) -> Run {
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(3, &[what]);
    assert_eq!(result(&run)["verdict"], "differs", "{run}");
    run
}

/// A set that says nothing false, and that nobody vouches for whom this host trusts.
fn refused(opsd: &Opsd, id: &str, what: &str) {
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(3, &[what, "hint: "]);
    assert_eq!(result(&run)["verdict"], "refused", "{run}");
    assert!(run.stderr.contains("trusted_backup_keys") && !run.stderr.contains("differ"), "{run}");
    let run = opsd.run(&["backups", "scrub", "--json"]).expect_failure(3, &[what, "hint: "]);
    let result = &run.json()["results"][0];
    assert_eq!((&result["differences"], &result["error"]), (&serde_json::json!([]), &Value::Null), "{run}");
    assert!(result["refused"].as_str().unwrap().contains(what) && !run.stderr.contains("differ"), "{run}");
    let text = opsd.run(&["backups", "scrub"]).expect_code(3);
    assert!(text.stdout.starts_with(&format!("db/{id}  refused\n")), "{text}");
    // A list of what there is does not call it good.
    let none = opsd.run(&["restore", "--verify", "--backup", "19990101T000000Z-0000"]).expect_code(1);
    assert!(none.stderr.contains(id) && !none.stderr.contains("complete"), "{none}");
}

fn proven(opsd: &Opsd) {
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
}

/// Objects of a set by their keys, as the manifest names them.
fn objects(manifest: &Value) -> Vec<String> {
    let mut keys = vec!["RESTORE.md".to_owned()];
    let streams = |database: &Value| {
        let mut all = database["streams"].as_array().unwrap().clone();
        all.push(database["proof_object"].clone());
        all
    };
    let mut all: Vec<Value> = manifest["databases"].as_array().unwrap().iter().flat_map(streams).collect();
    all.push(manifest["globals"].clone());
    for stream in all {
        for object in stream["objects"].as_array().unwrap() {
            keys.push(object["key"].as_str().unwrap().to_owned());
        }
    }
    keys
}

/// Changes one byte while `check` runs.
fn with_byte_changed(file: &Path, at: usize, check: impl FnOnce()) {
    let good = std::fs::read(file).unwrap();
    let mut bad = good.clone();
    // 0x55 turns neither white space into white space nor a letter into its other case.
    bad[at] ^= 0x55;
    std::fs::write(file, &bad).unwrap();
    check();
    std::fs::write(file, &good).unwrap();
}

/// First, middle and last byte, and `random` more.
fn positions(size: usize, random: usize) -> Vec<usize> {
    let mut all = vec![0, size / 2, size - 1];
    all.extend((0..random).map(|_| rand::random_range(0..size)));
    all
}

#[test]
fn a_missing_object_is_named() {
    let (server, opsd, _) = site();
    let id = back_up(&opsd);
    let lost = directory(&opsd, &id).join("globals.sql.zst.age");
    let database = sets::manifest(&opsd, &id)["databases"][0]["name"].as_str().unwrap().to_owned();
    let stream = directory(&opsd, &id).join(&database).join("data-1.pgdump.zst.age");
    for (file, name) in [(&lost, "globals.sql.zst.age"), (&stream, "data-1.pgdump.zst.age")] {
        let aside = opsd.path("aside");
        std::fs::rename(file, &aside).unwrap();
        differs(&opsd, name);
        // Nor is it restored, or begun to be.
        let target = unique("nowhere");
        let to = server.socket_url("postgres", &target);
        opsd.run(&["restore", "db", "--to", &to, "--create"]).expect_failure(3, &[name]);
        assert!(!server.databases().contains(&target), "a half-restored database was left");
        std::fs::rename(&aside, file).unwrap();
    }
    proven(&opsd);
}

#[test]
fn a_truncated_object_is_named() {
    let (server, opsd, database) = site();
    let id = back_up(&opsd);
    let file = directory(&opsd, &id).join(&database).join("data-1.pgdump.zst.age");
    let good = std::fs::read(&file).unwrap();
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        std::fs::write(&file, &good[..cut]).unwrap();
        differs(&opsd, "data-1.pgdump.zst.age");
    }
    // A longer one is as wrong.
    std::fs::write(&file, [good.as_slice(), b"x"].concat()).unwrap();
    differs(&opsd, "data-1.pgdump.zst.age");
    // To a server that is there: nothing of it stays.
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    let target = unique("nowhere");
    let to = server.socket_url("postgres", &target);
    opsd.run(&["restore", "db", "--to", &to, "--create"]).expect_failure(3, &["data-1.pgdump.zst.age"]);
    assert!(!server.databases().contains(&target));
    std::fs::write(&file, &good).unwrap();
    // The rehearsals said that it differs, so it is named.
    opsd.ok(&["restore", "db", "--to", &to, "--create", "--backup", &id]);
    server.drop_database(&target);
}

/// What is read before a scratch server starts: documents, their signature, the roles.
#[test]
fn any_changed_byte_of_a_document_is_caught() {
    let (_, opsd, _) = site();
    let id = back_up(&opsd);
    let set = directory(&opsd, &id);
    for name in ["manifest.json", "RESTORE.md", "globals.sql.zst.age"] {
        let size = std::fs::metadata(set.join(name)).unwrap().len() as usize;
        for at in positions(size, 4) {
            with_byte_changed(&set.join(name), at, || {
                differs(&opsd, name);
            });
        }
    }
    // The first line of a signature is by its name and format not signed, and never shown or used.
    let signature = std::fs::read_to_string(set.join("manifest.json.minisig")).unwrap();
    let comment = signature.find('\n').unwrap() + 1;
    for at in positions(signature.len() - comment, 6) {
        with_byte_changed(&set.join("manifest.json.minisig"), comment + at, || {
            let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(3, &["manifest.json"]);
            // Where the changed byte is of the key's id, somebody else seems to have signed.
            let verdict = &result(&run)["verdict"];
            assert!(verdict == "differs" || verdict == "refused", "{run}");
        });
    }
    proven(&opsd);
}

/// What is read while the scratch server runs: every stream and the proof.
#[test]
fn any_changed_byte_of_a_stream_is_caught() {
    let (_, opsd, database) = site();
    let id = back_up(&opsd);
    let set = directory(&opsd, &id);
    let objects = objects(&sets::manifest(&opsd, &id));
    let streams: Vec<&String> = objects.iter().filter(|key| key.contains('/')).collect();
    assert_eq!(streams.len(), 4, "schema, one large table, the rest, the proof: {objects:?}");
    for key in streams {
        let file = set.join(key);
        let size = std::fs::metadata(&file).unwrap().len() as usize;
        for at in [0, size / 2, size - 1] {
            with_byte_changed(&file, at, || {
                let run = differs(&opsd, key);
                // The stream is named, once.
                assert_eq!(run.stderr.matches("stream ").count(), 1, "{run}");
            });
        }
        // The same reader without a server: many more bytes in the same time.
        let name = key.split('/').next_back().unwrap().split('.').next().unwrap();
        for at in positions(size, 12) {
            with_byte_changed(&file, at, || {
                opsd.run(&["backups", "cat", &id, &database, name]).expect_failure(3, &[key]);
            });
        }
    }
    let scratch = opsd.path("scratch");
    assert!(scratch.read_dir().unwrap().next().is_none(), "a scratch server was left behind");
    proven(&opsd);
    assert_eq!(complete(&opsd), [id]);
}

#[test]
fn a_manifest_of_a_newer_version_is_refused_everywhere_but_does_not_block() {
    let (server, opsd, _) = site();
    let older = back_up(&opsd);
    sets::next_second();
    let id = back_up(&opsd);
    forge(&opsd, &id, |m| m["format"] = 3.into());
    let before = contents(&opsd);
    let expected = ["manifest has format 3, this opsd reads format 2", "use the opsd version that wrote"];
    opsd.run(&["restore", "--verify"]).expect_failure(1, &expected);
    let to = server.socket_url("postgres", &unique("nowhere"));
    opsd.run(&["restore", "db", "--to", &to, "--create", "--backup", &id]).expect_failure(1, &expected);
    assert!(contents(&opsd) == before);
    // The older set is as good as before, and so is the next backup.
    opsd.ok(&["restore", "--verify", "--backup", &older]);
    sets::next_second();
    back_up(&opsd);
    proven(&opsd);
}

#[test]
fn a_manifest_edited_by_hand_is_refused_and_told() {
    let (server, opsd, _) = site();
    let id = back_up(&opsd);
    let file = directory(&opsd, &id).join("manifest.json");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replacen("\"rows\": ", "\"rows\": 1", 1)).unwrap();
    let run = differs(&opsd, &id);
    assert!(run.stderr.contains("does not fit the content") && run.stderr.contains("hint: "), "{run}");
    let target = unique("nowhere");
    let to = server.socket_url("postgres", &target);
    opsd.run(&["restore", "db", "--to", &to, "--create"]).expect_failure(3, &["manifest.json"]);
    assert!(!server.databases().contains(&target));
    // White space alone is a change too: the signature is over bytes.
    std::fs::write(&file, format!("{good} ")).unwrap();
    differs(&opsd, "manifest.json");
    std::fs::write(&file, &good).unwrap();
    proven(&opsd);
}

#[test]
fn a_verification_record_edited_by_hand_does_not_count() {
    let (_, opsd, _) = site();
    let id = back_up(&opsd);
    proven(&opsd);
    let verdict = || sets::listed(&opsd)[0].verdict.clone();
    assert_eq!(verdict().as_deref(), Some("proven"));
    let set = directory(&opsd, &id);
    let record = opsd.repository_files().into_iter().find(|f| {
        f.contains("/verified-") && std::path::Path::new(f).extension().is_some_and(|e| e == "json")
    });
    let record = opsd.path("repository").join(record.unwrap());
    let good = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, good.replacen("\"rows\": ", "\"rows\": 9", 1)).unwrap();
    assert_eq!(verdict(), None, "an edited proof is none");
    let name = record.file_name().unwrap().to_str().unwrap();
    let show = opsd.ok(&["backups", "show", &id]);
    assert!(show.stdout.contains(&format!("{name} does not count")), "{show}");
    // Nor does one that is made up, or one of another set of the same job.
    std::fs::remove_file(set.join(format!("{name}.minisig"))).unwrap();
    assert_eq!(verdict(), None);
    std::fs::write(&record, &good).unwrap();
    assert_eq!(verdict(), None, "without its signature");
    // The set itself is not in question, and is proven anew.
    proven(&opsd);
    assert_eq!(verdict().as_deref(), Some("proven"));
}

#[test]
fn a_set_of_another_job_moved_here_is_refused() {
    let (server, mut opsd, database) = site();
    let own = back_up(&opsd);
    opsd.more = format!(
        "\n[backup.other]\nsource = {{ postgres = \"main\", databases = {} }}\n",
        quoted_list(&[&database])
    );
    let moved = opsd.ok(&["backup", "other", "--json"]).json()["sets"][0]["id"].as_str().unwrap().to_owned();
    let jobs = opsd.path("repository").join("test");
    // Signed by the right key and complete: only the place is wrong.
    std::fs::rename(jobs.join("other").join(&moved), jobs.join("db").join(&moved)).unwrap();
    let run = opsd.run(&["restore", "db", "--verify", "--backup", &moved, "--json"]);
    let run = run.expect_failure(
        3,
        &["made for \"opsd manifest test/other/", "not for \"opsd manifest test/db/", "moved"],
    );
    assert_eq!(result(&run)["verdict"], "differs");
    let target = unique("nowhere");
    let to = server.socket_url("postgres", &target);
    opsd.run(&["restore", "db", "--to", &to, "--create", "--backup", &moved]).expect_code(3);
    assert!(!server.databases().contains(&target));
    assert_eq!(complete(&opsd), [own.as_str()]);
    opsd.ok(&["restore", "db", "--verify", "--backup", &own]);
    // A set under another id is as misplaced: an old one must not pass for the newest.
    let renamed = "20991231T235959Z-ffff";
    std::fs::rename(jobs.join("db").join(&own), jobs.join("db").join(renamed)).unwrap();
    opsd.run(&["restore", "db", "--verify", "--backup", renamed]).expect_failure(3, &[&own, renamed]);
}

#[test]
fn a_signed_set_that_lost_its_signature_is_refused() {
    let (server, mut opsd, _) = site();
    let id = back_up(&opsd);
    std::fs::remove_file(directory(&opsd, &id).join("manifest.json.minisig")).unwrap();
    refused(&opsd, &id, "not signed");
    let target = unique("nowhere");
    let to = server.socket_url("postgres", &target);
    let restore = ["restore", "db", "--to", &to, "--create"];
    opsd.run(&restore).expect_failure(
        3,
        &["manifest.json is not signed", "hint: trusted_keys (or trusted_backup_keys) is set"],
    );
    assert!(!server.databases().contains(&target));
    opsd.run(&["backups", "cat", &id, "x", "schema"]).expect_code(3);
    // A signature by somebody else's key is no better.
    let stranger = Opsd::without_server();
    let manifest = std::fs::read(directory(&opsd, &id).join("manifest.json")).unwrap();
    let theirs = opsd::set::signature::sign(&stranger.path("sign.key"), &manifest, "c").unwrap();
    std::fs::write(directory(&opsd, &id).join("manifest.json.minisig"), theirs).unwrap();
    refused(&opsd, &id, "not among the trusted keys");
    // Only who trusts nobody in particular takes it.
    opsd.encryption.unset("trusted_keys");
    opsd.ok(&restore);
    server.drop_database(&target);
}
