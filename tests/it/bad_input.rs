//! Bad input gets a clear error and loses nothing: through the built binary, one mistake a test.
//!
//! Every refused backup leaves the repository as it was (a `failed.json` aside), every refused or
//! failed restore leaves its target as it was, and every damage to a set ends a rehearsal with exit
//! code 3 and the name of what is damaged.

mod damage;
mod restoring;

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, quoted, quoted_list, write_private};
use crate::support::postgres::{Server, bin_dir, default_major, default_server, free_port, shared, unique};
use crate::support::s3::{SeaweedFs, repository};
use crate::support::sets::{self, back_up, complete, contents, forge};

/// A site with one small database that has a table of its own stream, `accounts`, and others.
fn site() -> (&'static Server, Opsd, String) {
    let server = default_server();
    let (opsd, database) = site_on(server);
    (server, opsd, database)
}

/// The same on a server of the test's own, for tests that drop roles: on the shared one, sets of other
/// tests may name them.
fn site_on(server: &Server) -> (Opsd, String) {
    let database = server.fresh_database("bad");
    fixtures::rows(server, &database, "accounts", 400);
    server.psql(
        &database,
        "CREATE TABLE notes (id integer PRIMARY KEY, note text); INSERT INTO notes VALUES (1, 'one');
         CREATE SEQUENCE numbers; SELECT nextval('numbers')",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("large_table", quoted("64KiB"));
    (opsd, database)
}

/// Runs a backup that must be refused: nothing of what was there changed, and nothing is there that
/// looks like a backup.
fn refused(opsd: &Opsd, code: i32, fragments: &[&str]) -> Run {
    let before = contents(opsd);
    let run = opsd.run(&["backup", "db"]).expect_failure(code, fragments);
    assert_eq!(run.stdout, "", "{run}");
    let mut after = contents(opsd);
    after.retain(|name, _| !name.ends_with("/failed.json"));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{run}");
    assert!(before == after, "a stored object changed: {run}");
    run
}

/// A role that may read everything in the database but what a test takes from it again, and may use
/// the job's lock.
fn reader(server: &Server, opsd: &mut Opsd, database: &str) -> String {
    let role = unique("reader");
    server.psql(
        database,
        &format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
             GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}"
        ),
    );
    opsd.postgres.set("url", quoted(&server.socket_url(&role, database)));
    role
}

#[test]
fn an_unreachable_server_is_named() {
    let (_, mut opsd, database) = site();
    back_up(&opsd);
    let port = free_port();
    opsd.postgres.set("url", quoted(&format!("postgres://opsd@127.0.0.1:{port}/{database}")));
    refused(
        &opsd,
        1,
        &["backup of job db: cannot connect to", &format!("127.0.0.1:{port}"), "refused", "hint: "],
    );
    assert_eq!(complete(&opsd).len(), 1);
}

#[test]
fn a_wrong_password_is_told_and_not_shown() {
    let (server, mut opsd, database) = site();
    back_up(&opsd);
    let url = format!("postgres://postgres:wr0ng-canary@127.0.0.1:{}/{database}", server.port);
    opsd.postgres.set("url", quoted(&url));
    let run = refused(&opsd, 1, &["cannot connect to", "password authentication failed", "hint: "]);
    assert!(!run.stderr.contains("wr0ng-canary"), "{run}");
    assert_eq!(complete(&opsd).len(), 1);
}

#[test]
fn a_missing_privilege_on_one_table_names_it() {
    let (server, mut opsd, database) = site();
    back_up(&opsd);
    let role = reader(server, &mut opsd, &database);
    server.psql(&database, &format!("REVOKE SELECT ON notes FROM {role}"));
    let run = refused(&opsd, 1, &["no SELECT privilege on table public.notes", "pg_read_all_data"]);
    assert!(!run.stderr.contains("accounts"), "only the one: {run}");
    // The dry run finds it too, before anything is done.
    opsd.run(&["backup", "--dry-run"]).expect_failure(1, &["no SELECT privilege on table public.notes"]);
    // Granted, the same role makes a backup.
    server.psql(&database, &format!("GRANT SELECT ON notes TO {role}"));
    back_up(&opsd);
}

#[test]
fn row_security_without_bypassrls_names_the_table() {
    let (server, mut opsd, database) = site();
    let role = reader(server, &mut opsd, &database);
    server.psql(
        &database,
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON notes USING (id > 100)",
    );
    refused(&opsd, 1, &["row security would hide rows of table public.notes", "BYPASSRLS"]);
    server.psql("postgres", &format!("ALTER ROLE {role} BYPASSRLS"));
    let id = back_up(&opsd);
    assert_eq!(sets::manifest(&opsd, &id)["databases"][0]["rows"], 401);
}

#[test]
fn an_unreadable_large_object_is_told() {
    let (server, mut opsd, database) = site();
    reader(server, &mut opsd, &database);
    server.psql(&database, "SELECT lo_from_bytea(0, 'one'), lo_from_bytea(0, 'two')");
    refused(&opsd, 1, &["no SELECT privilege on 2 of 2 large objects", "lo_compat_privileges"]);
}

#[test]
fn an_unreadable_sequence_is_named() {
    let (server, mut opsd, database) = site();
    let role = reader(server, &mut opsd, &database);
    server.psql(&database, &format!("REVOKE SELECT ON SEQUENCE numbers FROM {role}"));
    refused(&opsd, 1, &["no SELECT privilege on sequence public.numbers"]);
}

#[test]
fn an_unusable_schema_is_named() {
    let (server, mut opsd, database) = site();
    let role = reader(server, &mut opsd, &database);
    server.psql(
        &database,
        &format!(
            "CREATE SCHEMA closed; CREATE TABLE closed.t (i integer); GRANT SELECT ON closed.t TO {role}"
        ),
    );
    refused(&opsd, 1, &["no USAGE privilege on schema closed"]);
}

#[test]
fn a_database_that_does_not_exist_is_named() {
    let (server, mut opsd, database) = site();
    back_up(&opsd);
    let both = quoted_list(&[database.as_str(), "no_such_db"]);
    opsd.job.set("source", format!("{{ postgres = \"main\", databases = {both} }}"));
    refused(&opsd, 1, &["database \"no_such_db\" does not exist", "databases there: "]);
    opsd.job.set("source", "{ postgres = \"main\" }");
    opsd.postgres.set("url", quoted(&server.socket_url("postgres", "no_such_db")));
    refused(&opsd, 1, &["database \"no_such_db\"", "does not exist"]);
    assert_eq!(complete(&opsd).len(), 1);
}

#[test]
fn an_unknown_job_is_a_usage_error_for_every_command() {
    let (server, opsd, database) = site();
    let to = server.socket_url("postgres", &database);
    let commands: [&[&str]; 4] = [
        &["backup", "nosuch"],
        &["backup", "db", "nosuch"],
        &["restore", "--verify", "nosuch"],
        &["restore", "nosuch", "--to", &to],
    ];
    for command in commands {
        opsd.run(command).expect_failure(2, &["unknown job \"nosuch\"", "jobs in ", ": db"]);
    }
    assert!(opsd.repository_files().is_empty(), "no job is run when another is unknown");
}

/// A host that only restores needs no recipient, but must not make a backup that nobody can read.
#[test]
fn a_backup_without_recipients_is_refused() {
    let (_, mut opsd, _) = site();
    back_up(&opsd);
    opsd.encryption.set("recipients", "[]");
    refused(&opsd, 2, &["no recipient", "hint: "]);
    opsd.encryption.unset("recipients");
    refused(&opsd, 2, &["no recipient", "hint: "]);
    opsd.run(&["backup", "--dry-run"]).expect_failure(2, &["no recipient"]);
    assert_eq!(complete(&opsd).len(), 1, "what is there can be read without");
    opsd.encryption.unset("identity_file");
    refused(&opsd, 2, &["no recipient"]);
}

/// Nothing of the repository is another than before, and what is new says nothing about the set.
fn only_failures_were_recorded(opsd: &Opsd, before: &BTreeMap<String, Vec<u8>>) {
    let after = contents(opsd);
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)));
    let new = after.iter().filter(|(name, _)| !before.contains_key(*name));
    let records: Vec<_> = new.filter(|(name, _)| !name.ends_with(".minisig")).collect();
    assert!(!records.is_empty());
    for (name, bytes) in records {
        let record: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        assert!(name.contains("/verified-") && record["verdict"] == "failed", "{name}: {record}");
    }
}

#[test]
fn a_recipient_that_is_no_key_is_refused_before_anything_is_done() {
    let (_, mut opsd, _) = site();
    let good = opsd.recipient.clone();
    let mut damaged = good.clone();
    damaged.replace_range(10..11, if &good[10..11] == "q" { "p" } else { "q" });
    for (bad, expected) in [("me@example.org", "not an age or SSH public key"), (&damaged, "checksum")] {
        opsd.encryption.set("recipients", quoted_list(&[good.as_str(), bad]));
        refused(&opsd, 2, &["encryption.recipients", expected]);
    }
    assert!(opsd.repository_files().is_empty());
}

#[test]
fn an_identity_that_does_not_fit_fails_and_accuses_nobody() {
    let (server, opsd, database) = site();
    back_up(&opsd);
    let before = contents(&opsd);
    let other = Opsd::without_server();
    std::fs::copy(other.path("identity.txt"), opsd.path("identity.txt")).unwrap();
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(1, &["no identity fits", "hint: "]);
    assert_eq!(sets::result(&run)["verdict"], "failed", "{run}");
    let to = server.socket_url("postgres", &unique("nowhere"));
    opsd.run(&["restore", "db", "--to", &to, "--create"]).expect_failure(1, &["no identity fits"]);
    only_failures_were_recorded(&opsd, &before);
    assert_eq!(complete(&opsd).len(), 1);
    assert!(server.databases().contains(&database));
}

#[test]
fn an_identity_that_others_can_read_is_refused() {
    let (_, mut opsd, _) = site();
    back_up(&opsd);
    let before = contents(&opsd);
    let identity = opsd.path("identity.txt");
    std::fs::set_permissions(&identity, PermissionsExt::from_mode(0o644)).unwrap();
    let chmod = format!("chmod 600 {}", identity.display());
    opsd.run(&["restore", "--verify"]).expect_failure(2, &["mode 0644 lets others read it", &chmod]);
    opsd.run(&["backups", "cat", "latest", "x", "schema"]).expect_code(2);
    // Nor is one that is absent, empty or not a key taken for another.
    write_private(&identity, "# nothing\n");
    opsd.run(&["restore", "--verify"]).expect_failure(2, &["identity.txt", "no identity in it"]);
    write_private(&identity, "AGE-SECRET-KEY-1NOTREALLY\n");
    let run = opsd.run(&["restore", "--verify"]).expect_failure(2, &["identity.txt", "line 1"]);
    assert!(!run.stderr.contains("NOTREALLY"), "{run}");
    opsd.encryption.unset("identity_file");
    opsd.run(&["restore", "--verify"]).expect_failure(2, &["identity_file is not set", "hint: "]);
    only_failures_were_recorded(&opsd, &before);
}

/// The signing key is looked at before the dump, not after it.
#[test]
fn a_signing_key_that_is_none_is_refused_before_the_dump() {
    let (_, opsd, _) = site();
    std::fs::set_permissions(opsd.path("sign.key"), PermissionsExt::from_mode(0o640)).unwrap();
    refused(&opsd, 2, &["sign.key", "mode 0640 lets others read it", "chmod 600"]);
    std::fs::set_permissions(opsd.path("sign.key"), PermissionsExt::from_mode(0o600)).unwrap();
    write_private(&opsd.path("sign.key"), "no key\n");
    refused(&opsd, 2, &["sign.key", "not a minisign secret key"]);
    std::fs::remove_file(opsd.path("sign.key")).unwrap();
    refused(&opsd, 1, &["sign.key", "No such file"]);
    assert!(opsd.repository_files().is_empty(), "not even a failed.json");
}

/// Bucket, key, secret and permission are four different mistakes, and each is told as what it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_says_why() {
    let server = SeaweedFs::start().await;
    let (_, mut opsd, _) = site();
    let url = |bucket: &str| format!("s3://{bucket}/p");
    let (endpoint, bucket) = (server.endpoint.clone(), server.bucket.clone());
    let admin = server.admin.clone();

    opsd.use_s3(&url(&bucket), &endpoint, &admin.access_key, &admin.secret_key);
    let id = back_up(&opsd);

    opsd.use_s3(&url("no-such-bucket"), &endpoint, &admin.access_key, &admin.secret_key);
    opsd.run(&["backup"]).expect_failure(1, &["bucket \"no-such-bucket\" does not exist"]);
    opsd.run(&["restore", "--verify"]).expect_failure(1, &["bucket \"no-such-bucket\" does not exist"]);

    opsd.use_s3(&url(&bucket), &endpoint, "nobody", &admin.secret_key);
    let run = opsd.run(&["backup"]).expect_failure(1, &["wrong credentials", "access key"]);
    assert!(!run.stderr.contains(&admin.secret_key), "{run}");

    opsd.use_s3(&url(&bucket), &endpoint, &admin.access_key, "wrong-secret-canary");
    let run = opsd.run(&["backup"]).expect_failure(1, &["wrong credentials", "secret key"]);
    assert!(!run.stderr.contains("wrong-secret-canary"), "{run}");

    // Somebody who may read and list, and not write.
    opsd.use_s3(&url(&bucket), &endpoint, &server.reader.access_key, &server.reader.secret_key);
    opsd.run(&["backup"]).expect_failure(1, &["cannot write", "access denied"]);
    assert_eq!(complete(&opsd), [id.as_str()]);

    opsd.env.remove(std::ffi::OsStr::new("AWS_ACCESS_KEY_ID"));
    opsd.env.remove(std::ffi::OsStr::new("AWS_SECRET_ACCESS_KEY"));
    opsd.env("AWS_EC2_METADATA_DISABLED", "true");
    opsd.run(&["backup"]).expect_failure(1, &["credentials"]);

    // Nothing but the first backup is in the bucket, whatever was tried.
    let repository = repository(&endpoint, &bucket, "p");
    let store = opsd::store::open_s3(&repository, &admin.access()).await.unwrap();
    let store: &dyn opsd::store::Store = &store;
    let keys: Vec<String> = store.list("").await.unwrap().into_iter().map(|o| o.key).collect();
    assert!(keys.iter().all(|key| key.contains(&id) || key.ends_with("failed.json")), "{keys:?}");
}

#[test]
fn no_space_for_the_scratch_server_is_told_before_it_starts() {
    let (_, opsd, _) = site();
    let id = back_up(&opsd);
    forge(&opsd, &id, |m| m["databases"][0]["streams"][0]["plain_size"] = (1u64 << 60).into());
    let before = contents(&opsd);
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(
        1,
        &["no space for a scratch server in ", "MiB free, about ", "MiB needed", "verify.scratch_dir"],
    );
    assert_eq!(sets::result(&run)["verdict"], "failed");
    only_failures_were_recorded(&opsd, &before);
    assert!(!opsd.path("scratch").exists() || opsd.path("scratch").read_dir().unwrap().next().is_none());
}

/// Sizes in a manifest are somebody else's numbers: their sum must not wrap around to little.
#[test]
fn sizes_that_overflow_are_not_taken_for_small() {
    let (_, opsd, _) = site();
    let id = back_up(&opsd);
    for size in [u64::MAX, u64::MAX / 2 + 1] {
        forge(&opsd, &id, |m| {
            m["databases"][0]["streams"][0]["plain_size"] = size.into();
            m["databases"][0]["streams"][1]["plain_size"] = size.into();
        });
        let run = opsd.run(&["restore", "--verify"]);
        assert!(matches!(run.code, Some(1 | 3)), "{run}");
        assert!(!run.stderr.contains("panicked"), "{run}");
        opsd.run(&["backups", "list"]).expect_code(0);
    }
}

#[test]
fn a_host_without_server_programs_is_told_what_to_install() {
    let (_, opsd, _) = site();
    let id = back_up(&opsd);
    // Of a major that no host has, whatever else it has.
    forge(&opsd, &id, |m| {
        m["server"]["version_num"] = 990_001.into();
        m["pg_dump_version"] = "99.1".into();
    });
    let before = contents(&opsd);
    let fragments = ["cannot start a scratch server", "PostgreSQL 99", "postgresql-99"];
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(1, &fragments[1..]);
    assert_eq!(sets::result(&run)["verdict"], "failed", "{run}");
    only_failures_were_recorded(&opsd, &before);
}

#[test]
fn a_bin_dir_without_pg_dump_is_told() {
    let (_, mut opsd, _) = site();
    std::fs::create_dir(opsd.path("empty")).unwrap();
    opsd.postgres.set("bin_dir", quoted(opsd.path("empty").to_str().unwrap()));
    refused(&opsd, 2, &["bin_dir ", "has no pg_dump", "hint: "]);
}

#[test]
fn only_an_older_pg_dump_at_hand_says_what_to_install() {
    let server = shared(18);
    let database = server.fresh_database("newer");
    fixtures::rows(server, &database, "t", 3);
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.postgres.set("bin_dir", quoted(bin_dir(17).to_str().unwrap()));
    refused(
        &opsd,
        1,
        &[
            "every pg_dump found is older than the server, which is PostgreSQL 18: 17.",
            "postgresql-client-18",
            "bin_dir",
        ],
    );
    assert!(opsd.repository_files().is_empty());
}

/// A pg_dump that fails says why, and what it wrote until then never looks like a backup.
#[test]
fn a_pg_dump_that_fails_fails_the_set_in_its_own_words() {
    let (_, mut opsd, _) = site();
    let first = back_up(&opsd);
    let real = bin_dir(default_major());
    let fake = opsd.path("bin");
    std::fs::create_dir(&fake).unwrap();
    symlink(real.join("pg_dumpall"), fake.join("pg_dumpall")).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--version*|*section=pre-data*) exec {0}/pg_dump \"$@\";; esac\n\
         {0}/pg_dump \"$@\"; echo 'pg_dump: error: the disk is on fire' >&2; exit 1\n",
        real.display()
    );
    std::fs::write(fake.join("pg_dump"), script).unwrap();
    std::fs::set_permissions(fake.join("pg_dump"), PermissionsExt::from_mode(0o755)).unwrap();
    opsd.postgres.set("bin_dir", quoted(fake.to_str().unwrap()));
    let before = contents(&opsd);
    opsd.run(&["backup", "db"]).expect_failure(1, &["the disk is on fire", "exited with status 1"]);
    assert_eq!(complete(&opsd), [first.as_str()]);
    let failed: Vec<_> = sets::listed(&opsd).into_iter().filter(|s| s.state == "failed").collect();
    assert_eq!(failed.len(), 1, "failed.json says that there was a run");
    let show = opsd.ok(&["backups", "show", &failed[0].id]);
    assert!(show.stdout.contains("the disk is on fire"), "{show}");
    let after = contents(&opsd);
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)));
}
