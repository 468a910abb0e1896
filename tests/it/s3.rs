//! The main flow over S3, through the binary, with credentials from the environment alone.

use std::time::Instant;

use crate::security::endless_pg_dump;
use crate::support::compare::{assert_same, db};
use crate::support::opsd::{Opsd, Run, finish_child, quoted};
use crate::support::postgres::{Server, default_server, unique};
use crate::support::processes::until;
use crate::support::s3::{Keys, SeaweedFs, s3s_fs};
use crate::support::sets::{back_up, complete, result};

/// A database with a table that stays larger than two parts of the least size, however it is
/// compressed.
pub fn large_site() -> (&'static Server, Opsd, String) {
    let server = default_server();
    let database = server.fresh_database("s3");
    server.psql(
        &database,
        "CREATE TABLE noise (id integer PRIMARY KEY, noise bytea);
         INSERT INTO noise SELECT i, (SELECT string_agg(sha512((i * 1000 + j)::text::bytea), '') FROM generate_series(1, 400) j)
           FROM generate_series(1, 450) i;
         CREATE TABLE small (id integer PRIMARY KEY, note text); INSERT INTO small VALUES (1, 'one')",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("part_size", quoted("5MiB")).set("large_table", quoted("1MiB"));
    (server, opsd, database)
}

fn use_s3(opsd: &mut Opsd, endpoint: &str, bucket: &str, keys: &Keys) {
    opsd.use_s3(&format!("s3://{bucket}/some/prefix"), endpoint, &keys.access_key, &keys.secret_key);
}

fn main_flow(opsd: &Opsd, server: &Server, database: &str) {
    let id = back_up(opsd);
    let list = opsd.ok(&["backups", "list", "--json"]).json();
    let set = &list["sets"][0];
    assert_eq!((&set["id"], &set["state"]), (&id.as_str().into(), &"complete".into()));
    let show = opsd.ok(&["backups", "show", &id, "--json"]).json();
    let streams = show["manifest"]["databases"][0]["streams"].as_array().unwrap();
    let largest = streams.iter().map(|s| s["objects"][0]["size"].as_u64().unwrap()).max().unwrap();
    assert!(largest > 8 << 20, "an object of several parts: {largest}");
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    assert_eq!(opsd.ok(&["backups", "list", "--json"]).json()["sets"][0]["verified"]["verdict"], "proven");
    let target = unique("from_s3");
    let to = server.socket_url("postgres", &target);
    opsd.ok(&["restore", "db", "--to", &to, "--create"]);
    assert_same(db(server, database), db(server, &target));
    server.drop_database(&target);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_flow_works_on_s3s_fs() {
    let s3 = s3s_fs().await;
    let (server, mut opsd, database) = large_site();
    use_s3(&mut opsd, &s3.endpoint, &s3.bucket, &s3.keys);
    main_flow(&opsd, server, &database);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_flow_works_on_seaweedfs() {
    let s3 = SeaweedFs::start().await;
    let (server, mut opsd, database) = large_site();
    use_s3(&mut opsd, &s3.endpoint, &s3.bucket, &s3.admin);
    main_flow(&opsd, server, &database);
}

/// A thief of the credential that makes backups can read nothing, and whoever checks them cannot
/// change them.
#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_may_only_write_makes_a_backup_that_another_proves() {
    let s3 = SeaweedFs::start().await;
    let (_, mut opsd, _) = large_site();
    use_s3(&mut opsd, &s3.endpoint, &s3.bucket, &s3.writer);
    let denied = |run: Run| {
        run.expect_failure(1, &["access denied"]);
    };
    denied(opsd.run(&["backups", "list"]));
    let first = back_up(&opsd);
    let second = back_up(&opsd);
    denied(opsd.run(&["restore", "--verify"]));

    use_s3(&mut opsd, &s3.endpoint, &s3.bucket, &s3.reader);
    let ids = complete(&opsd);
    assert!(ids.len() == 2 && ids.contains(&first) && ids.contains(&second), "{ids:?}");
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let result = result(&run);
    assert_eq!(result["verdict"], "proven", "{run}");
    // It cannot write the record, and says so instead of failing.
    let warnings = result["warnings"].to_string();
    assert!(warnings.contains("not recorded in the repository"), "{run}");
    denied(opsd.run(&["backup"]));
}

/// SIGTERM in the middle of an upload of several parts: the store is told to forget them, because
/// they would cost money for ever, and nothing is listed.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_backup_leaves_no_upload_behind() {
    let s3 = SeaweedFs::start().await;
    let (_, mut opsd, _) = large_site();
    use_s3(&mut opsd, &s3.endpoint, &s3.bucket, &s3.admin);
    opsd.postgres.set("bin_dir", quoted(endless_pg_dump(&opsd).to_str().unwrap()));
    let client = s3.client();
    let uploads = async || {
        let listed = client.list_multipart_uploads().bucket(&s3.bucket).send().await.unwrap();
        listed.uploads().to_vec()
    };
    // An upload that has a part is one whose id opsd has been told.
    let parts = async || {
        let mut count = 0;
        for upload in uploads().await {
            let (key, id) = (upload.key().unwrap(), upload.upload_id().unwrap());
            let listed = client.list_parts().bucket(&s3.bucket).key(key).upload_id(id).send().await.unwrap();
            count += listed.parts().len();
        }
        count
    };
    let child = opsd.command(&["backup"]).spawn().unwrap();
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    while parts().await == 0 {
        assert!(Instant::now() < deadline, "no upload of several parts began");
    }
    until("pg_dump has dumped", || opsd.path("reached").exists());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    finish_child(child, "backup".into()).expect_code(143);
    assert_eq!(uploads().await.len(), 0, "an unfinished upload stays in the store");
    assert_eq!(complete(&opsd), Vec::<String>::new());
}
