//! Who signs what: a host that backs up, one that rehearses, and one that trusts nobody.

use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{default_server, unique};
use crate::support::sets::{self, back_up, directory, listed};

/// A site that backs up one database.
fn site() -> (Opsd, String) {
    let server = default_server();
    let database = server.fresh_database("trusted");
    fixtures::rows(server, &database, "t", 20);
    (Opsd::new(server, &[&database]), database)
}

/// A key of another host's in this site: its file and its public half.
fn another_key(opsd: &Opsd, name: &str) -> (std::path::PathBuf, String) {
    let file = opsd.path(name);
    let made = opsd.ok(&["keygen", "--sign", "-o", file.to_str().unwrap(), "--json"]).json();
    (file, made["public_key"].as_str().unwrap().to_owned())
}

/// The host that rehearses holds the identity and a key of its own. It can say that a set is proven, and it
/// cannot make one.
#[test]
fn a_host_that_rehearses_signs_records_and_no_backups() {
    let (mut opsd, _) = site();
    let backup_key = opsd.path("sign.key");
    let (verify_key, verify_public) = another_key(&opsd, "verify.key");
    let backup_public = opsd.public_key.clone();
    let trust = |opsd: &mut Opsd| {
        opsd.encryption.unset("trusted_keys");
        opsd.encryption.set("trusted_backup_keys", quoted_list(&[&backup_public]));
        opsd.encryption.set("trusted_verify_keys", quoted_list(&[&verify_public]));
    };
    trust(&mut opsd);
    let id = back_up(&opsd);
    // A rehearsal with the key for backups says that its record counts for nothing.
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert!(sets::result(&run)["warnings"].to_string().contains("not among trusted_verify_keys"), "{run}");
    assert_eq!(listed(&opsd)[0].verdict, None);
    // With a key of its own it counts.
    opsd.encryption.set("sign_key_file", quoted(verify_key.to_str().unwrap()));
    opsd.ok(&["config", "check"]);
    sets::next_second();
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(sets::result(&run)["warnings"], serde_json::json!([]), "{run}");
    assert_eq!(listed(&opsd)[0].verdict.as_deref(), Some("proven"));
    // A set that it makes, or signs anew, is refused by everybody.
    sets::next_second();
    let planted = back_up(&opsd);
    opsd.encryption.set("sign_key_file", quoted(backup_key.to_str().unwrap()));
    let target = unique("planted");
    let to = default_server().socket_url("postgres", &target);
    let restore = ["restore", "db", "--to", &to, "--create"];
    opsd.run(&restore)
        .expect_failure(3, &["manifest.json", "not among the trusted keys", "trusted_backup_keys"]);
    opsd.run(&["restore", "--verify", "--backup", &planted])
        .expect_failure(3, &["not among the trusted keys"]);
    let state = |id: &str| listed(&opsd).into_iter().find(|set| set.id == id).unwrap().state;
    assert_eq!((state(&planted).as_str(), state(&id).as_str()), ("refused", "complete"));
    assert!(!default_server().databases().contains(&target));
}

#[test]
fn a_key_for_records_alone_is_a_mistake() {
    let (mut opsd, _) = site();
    let key = opsd.public_key.clone();
    opsd.encryption.unset("trusted_keys").set("trusted_verify_keys", quoted_list(&[&key]));
    opsd.run(&["config", "check"]).expect_failure(
        2,
        &["encryption.trusted_verify_keys: no key is trusted for backups", "trusted_backup_keys"],
    );
}

/// Rehearsals go on and are signed, and nobody believes what they found.
#[test]
fn who_trusts_nobody_for_records_is_told_that_none_counts() {
    let (mut opsd, _) = site();
    let key = opsd.public_key.clone();
    opsd.encryption.unset("trusted_keys").set("trusted_backup_keys", quoted_list(&[&key]));
    let check = opsd.ok(&["config", "check"]);
    let warning = "encryption.trusted_backup_keys: no key is trusted for records of rehearsals";
    assert!(check.stderr.contains(warning) && check.stderr.contains("trusted_verify_keys"), "{check}");
    let id = back_up(&opsd);
    opsd.ok(&["restore", "--verify"]);
    assert_eq!(listed(&opsd)[0].verdict, None);
    // The same key may stand in both lists.
    opsd.encryption.set("trusted_verify_keys", quoted_list(&[&key]));
    assert!(!opsd.ok(&["config", "check"]).stderr.contains("records of rehearsals"));
    let set = listed(&opsd).remove(0);
    assert_eq!((set.id, set.verdict.as_deref()), (id, Some("proven")));
}

/// Each time, whoever watches: the set's code runs on a server of the operator's.
#[test]
fn who_trusts_nobody_is_told_with_every_restore() {
    let (mut opsd, _) = site();
    let server = default_server();
    let signed = back_up(&opsd);
    opsd.encryption.unset("trusted_keys");
    let comment = std::fs::read_to_string(directory(&opsd, &signed).join("manifest.json.minisig")).unwrap();
    let key = opsd::set::signature::claimed_key(&comment).unwrap();
    // What a configuration can be compared with.
    assert!(key.len() > 12 && opsd.public_key.starts_with(key.trim_end_matches('…')), "{key}");
    let to = server.socket_url("postgres", &unique("untrusted"));
    let restore = ["restore", "db", "--to", &to, "--create"];
    let run = opsd.ok(&restore);
    for words in
        ["warning: nobody is authenticated", &format!("key {key} signed it"), "trusted_keys = [\"RW...\"]"]
    {
        assert!(run.stderr.contains(words), "{words}: {run}");
    }
    // Before anything else, and with an error, too.
    opsd.run(&restore).expect_failure(1, &["warning: nobody is authenticated", "is not empty"]);
    let to = server.socket_url("postgres", &unique("untrusted"));
    let run = opsd.ok(&["restore", "db", "--to", &to, "--create", "--json"]);
    assert!(run.json()["warnings"].to_string().contains("nobody is authenticated"), "{run}");
    let check = opsd.ok(&["config", "check"]);
    assert!(check.stderr.contains("encryption.trusted_keys: nobody is trusted"), "{check}");
    let shown = opsd.ok(&["backups", "show", &signed]);
    assert!(shown.stderr.contains(&key), "{shown}");
    // A set without a signature.
    opsd.encryption.unset("sign_key_file");
    sets::next_second();
    back_up(&opsd);
    let to = server.socket_url("postgres", &unique("untrusted"));
    let run = opsd.ok(&["restore", "db", "--to", &to, "--create"]);
    assert!(run.stderr.contains("the set is not signed; set encryption.sign_key_file"), "{run}");
    // Where somebody is trusted, nothing is said.
    let (opsd, _) = site();
    back_up(&opsd);
    let to = server.socket_url("postgres", &unique("trusted"));
    let run = opsd.ok(&["restore", "db", "--to", &to, "--create"]);
    assert!(!run.stderr.contains("authenticated"), "{run}");
    assert!(!opsd.ok(&["config", "check"]).stderr.contains("nobody is trusted"));
}
