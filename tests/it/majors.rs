//! Every command, on S3, for servers of every other major (`roundtrip` has the ones between); of all of them in
//! `make torture`.

use std::process::Command;

use crate::support::compare::{assert_same, db, plain_restore};
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{self, SUPERUSER, Server, bin_dir, expect_success, unique};
use crate::support::s3::SeaweedFs;
use crate::support::sets::{back_up, complete, result};
use crate::support::torture::torture;

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_on_seaweedfs_for_every_major() {
    let s3 = SeaweedFs::start().await;
    let majors: &[u32] = if torture() { &postgres::MAJORS } else { &[13, 15, 17] };
    for &major in majors {
        if major == 13 && !postgres::is_installed(13) {
            continue;
        }
        eprintln!("PostgreSQL {major}");
        all_commands(&s3, postgres::shared(major)).await;
    }
}

/// Keys below a prefix, asked of the store itself.
async fn objects(s3: &SeaweedFs, prefix: &str) -> Vec<String> {
    let listed = s3.client().list_objects_v2().bucket(&s3.bucket).prefix(prefix).send().await.unwrap();
    assert_ne!(listed.is_truncated(), Some(true));
    listed.contents().iter().map(|object| object.key().unwrap().to_owned()).collect()
}

async fn all_commands(s3: &SeaweedFs, server: &Server) {
    let major = server.major;
    let database = server.fresh_database("shop");
    server.psql(
        &database,
        "CREATE TABLE orders (id serial PRIMARY KEY, note text NOT NULL);
         INSERT INTO orders (note) SELECT 'order ' || i FROM generate_series(1, 1000) i;
         CREATE TABLE items (id integer PRIMARY KEY, order_id integer REFERENCES orders);
         INSERT INTO items SELECT i, i % 1000 + 1 FROM generate_series(1, 3000) i;
         CREATE VIEW seen AS SELECT * FROM orders; SELECT lo_from_bytea(0, 'content')",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    let url = format!("s3://{}/pg{major}", s3.bucket);
    opsd.use_s3(&url, &s3.endpoint, &s3.admin.access_key, &s3.admin.secret_key);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(major).display()));
    opsd.job.set("retention", "{ last = 1 }");
    keys(&mut opsd);

    opsd.ok(&["config", "check"]);
    let probed = opsd.ok(&["repository", "probe", "--json"]).json();
    assert!(!probed["capabilities"].as_array().unwrap().is_empty(), "{probed}");
    let dry = opsd.ok(&["backup", "--dry-run", "--json"]).json();
    assert_eq!(dry["plans"][0]["databases"].as_array().unwrap().len(), 1, "{dry}");
    let (first, id) = (back_up(&opsd), back_up(&opsd));

    let mut ids = [first.clone(), id.clone()];
    ids.sort_unstable();
    let mut listed = complete(&opsd);
    listed.sort_unstable();
    assert_eq!(listed, ids);
    let show = opsd.ok(&["backups", "show", &id, "--json"]).json();
    assert_eq!(show["manifest"]["recipients"].as_array().unwrap().len(), 2, "{show}");
    let version = show["manifest"]["server"]["version_num"].as_u64().unwrap();
    assert_eq!(version / 10_000, u64::from(major), "{show}");
    // Either key reads it.
    for identity in ["made.txt", "ssh_key"] {
        opsd.encryption.set("identity_file", quoted(opsd.path(identity).to_str().unwrap()));
        let schema = opsd.ok(&["backups", "cat", &id, &database, "schema"]).stdout;
        assert!(schema.starts_with("PGDMP") && schema.contains("orders"), "{identity}");
    }

    let run = opsd.ok(&["restore", "--verify", "--backup", &id, "--json"]);
    let result = result(&run);
    assert_eq!((&result["verdict"], &result["id"]), (&"proven".into(), &id.as_str().into()), "{run}");
    assert_eq!(result["databases"][0]["rows"], 4000, "{run}");
    let restored = unique("restored");
    let to = server.socket_url(SUPERUSER, &restored);
    opsd.ok(&["restore", "db", "--to", &to, "--backup", &id, "--create"]);
    let plain = plain_restore(db(server, &database));
    assert_same(db(server, &plain), db(server, &restored));

    // In the place of one that holds something else, which is kept.
    server.psql(&restored, "DELETE FROM items; CREATE TABLE later ()");
    let run = opsd.ok(&["restore", "db", "--to", &to, "--backup", &id, "--replace", "--yes", "--json"]);
    let old = run.json()["old_database"].as_str().expect("the old database").to_owned();
    assert_same(db(server, &plain), db(server, &restored));
    assert_eq!(server.psql(&old, "SELECT count(*) FROM items, later"), "0", "{run}");
    assert_eq!(server.psql(&old, "SELECT count(*) FROM orders"), "1000");

    // What it says would go is there afterwards.
    let pruned = opsd.ok(&["backups", "prune", "--dry-run"]);
    assert!(pruned.stdout.contains(&first) && pruned.stdout.contains(&id), "{pruned}");
    assert_eq!(complete(&opsd).len(), 2);
    let objects = objects(s3, &format!("pg{major}/")).await;
    let run = opsd.ok(&["backups", "prune", "--json"]);
    let removed: Vec<_> = run.json()["jobs"][0]["sets"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|s| s["removed"] == true)
        .cloned()
        .collect();
    assert!(removed.len() == 1 && removed[0]["id"] == first.as_str(), "{run}");
    assert_eq!(complete(&opsd), std::slice::from_ref(&id));
    let left: Vec<String> = objects.into_iter().filter(|key| !key.contains(&format!("/{first}/"))).collect();
    let now = self::objects(s3, &format!("pg{major}/")).await;
    // The lease that pruning takes is given back; what is left of it is no set's.
    assert_eq!(now.into_iter().filter(|key| !key.ends_with("/lease.json")).collect::<Vec<_>>(), left);
    opsd.ok(&["backups", "scrub"]);
    for name in [&database, &restored, &plain, &old] {
        server.drop_database(name);
    }
}

/// Keys as an operator makes them: an identity and a signing key by `keygen`, and an SSH key beside.
fn keys(opsd: &mut Opsd) {
    let path = |name: &str| opsd.path(name).to_str().expect("a UTF-8 path").to_owned();
    let (identity, signing, ssh) = (path("made.txt"), path("made.key"), path("ssh_key"));
    let recipient = opsd.ok(&["keygen", "-o", &identity]).stdout.trim().to_owned();
    let public_key = opsd.ok(&["keygen", "--sign", "-o", &signing]).stdout.trim().to_owned();
    let mut keygen = Command::new("ssh-keygen");
    expect_success(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &ssh]));
    let ssh_public = std::fs::read_to_string(format!("{ssh}.pub")).expect("read the public key");
    opsd.encryption
        .set("recipients", quoted_list(&[recipient.as_str(), ssh_public.trim()]))
        .set("identity_file", quoted(&identity))
        .set("sign_key_file", quoted(&signing))
        .set("trusted_keys", quoted_list(&[public_key]));
}
