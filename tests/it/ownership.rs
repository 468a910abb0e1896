//! What decides what root does belongs to root: a configuration that somebody else may change names the
//! programs that root runs.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::process::geteuid;

use crate::support::certificates::{Authority, in_days};
use crate::support::opsd::{Opsd, Run, quoted, write_private};

/// Another user than root, who need not exist.
const SOMEBODY: u32 = 4711;

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A site whose configuration has no mistake and names no server.
fn site() -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.postgres.set("url", quoted("postgres://u@127.0.0.1/d?sslmode=require"));
    opsd
}

/// Checks a configuration that the test wrote, changed and named itself.
fn check(opsd: &Opsd, config: &Path) -> Run {
    let mut command = opsd.command(&["config", "check"]);
    command.env("OPSD_CONFIG", config);
    crate::support::opsd::finish(command)
}

#[test]
fn root_follows_no_configuration_that_somebody_else_may_change() {
    if !geteuid().is_root() {
        return;
    }
    let opsd = site();
    let place = opsd.path("place");
    std::fs::create_dir(&place).unwrap();
    let config = place.join("named.toml");
    write_private(&config, &opsd.config());
    check(&opsd, &config).expect_code(0);
    let refused = |why: &str| {
        let run = check(&opsd, &config).expect_failure(2, &["named.toml", why, "hint: "]);
        assert_eq!(run.stdout, "", "nothing of it was followed: {run}");
    };

    for mode in [0o666, 0o660, 0o602] {
        chmod(&config, mode);
        refused(&format!("has mode {mode:04o}, which lets others write it"));
    }
    chmod(&config, 0o600);
    chown(&config, Some(SOMEBODY), None).unwrap();
    refused("belongs to user 4711");
    chown(&config, Some(0), None).unwrap();

    // Whoever may write the directory puts another file in its place.
    chmod(&place, 0o777);
    refused("has mode 0777, which lets others write it");
    chmod(&place, 0o755);
    chown(&place, Some(SOMEBODY), None).unwrap();
    refused("belongs to user 4711");
    chown(&place, Some(0), None).unwrap();

    // Whoever made the link chose the file.
    let target = place.join("target.toml");
    std::fs::rename(&config, &target).unwrap();
    symlink("target.toml", &config).unwrap();
    check(&opsd, &config).expect_code(0);
    std::os::unix::fs::lchown(&config, Some(SOMEBODY), None).unwrap();
    refused("belongs to user 4711");
}

#[test]
fn root_reads_no_named_file_that_somebody_else_may_change() {
    if !geteuid().is_root() {
        return;
    }
    let mut opsd = site();
    let authority = Authority::new("authority", in_days(30));
    let own = |name: &str| opsd.path(name);
    authority.sign(&[], "client", in_days(30)).write(&own("client.crt"), &own("client.key"), &[]);
    authority.pair.write(&own("ca.crt"), &own("ca.key"), &[]);
    write_private(&own("recipients.txt"), &opsd.recipient);
    write_private(&own("redis.password"), "word");
    write_private(&own("services.conf"), "[here]\nhost=127.0.0.1\n");
    std::fs::create_dir(own("bin")).unwrap();
    write_private(&own("bin/pg_dump"), "#!/bin/sh\necho 'pg_dump (PostgreSQL) 17.1'\n");
    chmod(&own("bin/pg_dump"), 0o755);
    let at = |name: &str| opsd.path(name).display().to_string();
    let url = format!(
        "postgres://u@/d?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}&service=here&servicefile={}",
        at("ca.crt"),
        at("client.crt"),
        at("client.key"),
        at("services.conf"),
    );
    let (bin, recipients) = (at("bin"), at("recipients.txt"));
    let more = format!(
        "\n[redis.r]\nurl = \"rediss://127.0.0.1:1/0\"\npassword_file = {}\nca_file = {}\ncert_file = {}\nkey_file = {}\n",
        quoted(&at("redis.password")),
        quoted(&at("ca.crt")),
        quoted(&at("client.crt")),
        quoted(&at("client.key")),
    );
    opsd.postgres.set("url", quoted(&url)).set("bin_dir", quoted(&bin));
    opsd.encryption.unset("recipients").set("recipients_file", quoted(&recipients));
    opsd.more = more;
    opsd.ok(&["config", "check"]);

    let named = [
        "recipients.txt",
        "identity.txt",
        "sign.key",
        "ca.crt",
        "client.crt",
        "client.key",
        "redis.password",
        "services.conf",
        "bin",
        "bin/pg_dump",
    ];
    for name in named {
        let path = opsd.path(name);
        chown(&path, Some(SOMEBODY), None).unwrap();
        let run = opsd.run(&["config", "check"]);
        chown(&path, Some(0), None).unwrap();
        run.expect_failure(2, &["belongs to user 4711", "chown root"]);
    }
    opsd.ok(&["config", "check"]);
}

#[test]
fn a_clients_key_that_others_may_read_is_refused_like_every_other_key() {
    let mut opsd = site();
    let authority = Authority::new("authority", in_days(30));
    let client = authority.sign(&[], "client", in_days(30));
    client.write(&opsd.path("client.crt"), &opsd.path("client.key"), &[]);
    let (cert, key) = (opsd.path("client.crt"), opsd.path("client.key"));
    let redis = format!(
        "\n[redis.r]\nurl = \"rediss://127.0.0.1:1/0\"\ncert_file = {}\nkey_file = {}\n",
        quoted(cert.to_str().unwrap()),
        quoted(key.to_str().unwrap()),
    );
    let url = format!(
        "postgres://u@127.0.0.1/d?sslmode=require&sslcert={}&sslkey={}",
        cert.display(),
        key.display()
    );
    for of_redis in [true, false] {
        if of_redis {
            opsd.more.clone_from(&redis);
        } else {
            opsd.more.clear();
            opsd.postgres.set("url", quoted(&url));
        }
        chmod(&key, 0o600);
        opsd.ok(&["config", "check"]);
        for mode in [0o644, 0o640, 0o604] {
            chmod(&key, mode);
            let why = format!("mode {mode:04o} lets others read it");
            opsd.run(&["config", "check"]).expect_failure(2, &["client.key", &why, "chmod 600"]);
        }
    }
}
