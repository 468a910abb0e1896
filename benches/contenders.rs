//! Who is measured, and how each is run.
//!
//! All of them read the same server over its Unix socket. What restores into a server restores into
//! that one, into a database that is dropped afterwards.

use std::path::PathBuf;
use std::process::Command;

use crate::data;
use crate::measure::{Cost, run};
use crate::support::opsd::Opsd;
use crate::support::postgres::{Options, SUPERUSER, Server, bin_dir, unprivileged_user};
use crate::support::s3::SeaweedFs;

/// A server that is set up as one of its size would be, and loses nothing worth keeping.
const SETTINGS: [(&str, &str); 6] = [
    ("shared_buffers", "1GB"),
    ("maintenance_work_mem", "256MB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1h"),
    // For the 10,000 tables, for plain pg_dump too.
    ("max_locks_per_transaction", "512"),
    ("autovacuum", "off"),
];

/// Large objects, each of which was one lock.
const LARGE_OBJECTS: u64 = 100_000;
/// Tables; what opsd restores and proves of them it does on a lock table of the usual size.
const TABLES: u64 = 50_000;

/// One database and everything that is done with it.
pub struct Site<'a> {
    /// `web`, `many`, `wide` or `big`; also the database's name.
    pub name: String,
    server: Server,
    /// Where opsd restores to, if not there.
    target: Option<Server>,
    weed: &'a SeaweedFs,
    opsd: Opsd,
    /// The same, with a directory for a repository.
    local: Opsd,
    work: PathBuf,
    stored_by_pipe: u64,
    stored_by_opsd: u64,
    plain_bytes: u64,
    pgbackrest_ready: bool,
    restored: u32,
}

impl<'a> Site<'a> {
    /// A server with the data in it, and opsd configured with defaults.
    pub fn new(name: &str, major: u32, weed: &'a SeaweedFs) -> Site<'a> {
        // Servers whose settings nobody changed, but for the source of 50,000 tables: dumping those takes a lock for
        // each, whoever does it.
        let own: &[(&str, &str)] = match name {
            "lobs" => &[],
            "tables" => &[("max_locks_per_transaction", "1024")],
            _ => &SETTINGS,
        };
        let server = Server::start(major, &Options { settings: own, ..Options::default() });
        server.create_database(name);
        let target = (name == "tables").then(|| Server::start(major, &Options::default()));
        match name {
            "web" => data::web(&server, name, 1),
            "many" => data::many(&server, name),
            "wide" => data::wide(&server, name),
            "lobs" => data::large_objects(&server, name, LARGE_OBJECTS),
            "tables" => data::tables(&server, name, TABLES),
            "indexed" => data::indexed(&server, name),
            _ => data::web(&server, name, 8),
        }
        let mut opsd = Opsd::new(&server, &[name]);
        let keys = &weed.admin;
        opsd.use_s3(
            &format!("s3://{}/{name}", weed.bucket),
            &weed.endpoint,
            &keys.access_key,
            &keys.secret_key,
        );
        let local = Opsd::new(&server, &[name]);
        let work = server.subdirectory("bench");
        Site {
            name: name.into(),
            server,
            target,
            weed,
            opsd,
            local,
            work,
            stored_by_pipe: 0,
            stored_by_opsd: 0,
            plain_bytes: 0,
            pgbackrest_ready: false,
            restored: 0,
        }
    }

    fn shell(&self, script: &str) -> Command {
        let bin = bin_dir(self.server.major);
        let mut command = Command::new("/bin/bash");
        command.env_clear();
        // What lets a client connect.
        let client = self.server.client("psql");
        command.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("HOME", &self.work)
            .env("DB", &self.name)
            .env("RECIPIENT", &self.opsd.recipient)
            .env("RCLONE_CONFIG_WEED_TYPE", "s3")
            .env("RCLONE_CONFIG_WEED_PROVIDER", "SeaweedFS")
            .env("RCLONE_CONFIG_WEED_ENDPOINT", &self.weed.endpoint)
            .env("RCLONE_CONFIG_WEED_ACCESS_KEY_ID", &self.weed.admin.access_key)
            .env("RCLONE_CONFIG_WEED_SECRET_ACCESS_KEY", &self.weed.admin.secret_key)
            .env("BUCKET", &self.weed.bucket)
            .env("WORK", &self.work)
            .args(["-e", "-o", "pipefail", "-c", script]);
        command
    }

    /// The data as an uncompressed archive, and nothing measured.
    pub fn dump_to(&self, file: &std::path::Path) {
        run(self.shell("exec pg_dump -Fc -Z0 \"$DB\" > \"$FILE\"").env("FILE", file));
    }

    /// What any logical backup has to wait for.
    pub fn floor(&mut self) -> Cost {
        if self.plain_bytes == 0 {
            let (bytes, _) = run(&mut self.shell("pg_dump -Fc -Z0 \"$DB\" | wc -c"));
            self.plain_bytes = bytes.trim().parse().expect("a number");
        }
        run(&mut self.shell("exec pg_dump -Fc -Z0 \"$DB\" > /dev/null")).1
    }

    /// What people write today.
    pub fn pipe(&mut self) -> Cost {
        let (_, cost) = run(&mut self.shell(
            "pg_dump -Fc -Z0 \"$DB\" | zstd -q -3 -T2 | age -r \"$RECIPIENT\" | rclone rcat \"WEED:$BUCKET/pipe/$DB\"",
        ));
        let (size, _) = run(&mut self.shell(
            "rclone size --json --include \"/$DB\" \"WEED:$BUCKET/pipe/\" | tr -dc '0-9,' | cut -d, -f2",
        ));
        self.stored_by_pipe = size.trim().parse().expect("a size");
        cost
    }

    /// What the store takes by itself: the pipe's object, made before, is copied there from local disk.
    pub fn store_alone(&mut self) -> Cost {
        run(&mut self.shell(
            "[ -e \"$WORK/pipe\" ] || pg_dump -Fc -Z0 \"$DB\" | zstd -q -3 -T2 | age -r \"$RECIPIENT\" > \"$WORK/pipe\"",
        ));
        run(&mut self.shell("rclone rcat \"WEED:$BUCKET/alone/$DB\" < \"$WORK/pipe\"")).1
    }

    /// `opsd backup` without S3: the repository is a directory, emptied each time.
    pub fn opsd_backup_to_directory(&mut self) -> Cost {
        let repository = self.local.path("repository");
        let (_, cost) = run(&mut self.local.command(&["backup", "--json"]));
        std::fs::remove_dir_all(&repository).expect("remove the repository");
        std::fs::create_dir(&repository).expect("make it again");
        cost
    }

    /// `opsd backup` as configured by default.
    pub fn opsd_backup(&mut self) -> Cost {
        let (json, cost) = run(&mut self.opsd.command(&["backup", "--json"]));
        let report: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        self.stored_by_opsd = report["sets"][0]["stored_bytes"].as_u64().expect("stored_bytes");
        self.plain_bytes = self.plain_bytes.max(report["sets"][0]["plain_bytes"].as_u64().unwrap_or(0));
        cost
    }

    /// A parallel dump to local disk: neither encrypted nor away from the host.
    pub fn dump_directory(&mut self) -> Cost {
        run(&mut self.shell("rm -rf \"$WORK/fd\" && exec pg_dump -Fd -j2 -f \"$WORK/fd\" \"$DB\"")).1
    }

    /// That one back again, on the same server.
    pub fn restore_directory(&mut self) -> Cost {
        let name = self.fresh();
        let cost = run(self.shell("exec pg_restore -j2 -d \"$TARGET\" \"$WORK/fd\"").env("TARGET", &name)).1;
        self.server.drop_database(&name);
        cost
    }

    /// `opsd restore --to` into a new database: whole, and without its ANALYZE, which pg_restore does
    /// not do.
    pub fn opsd_restore(&mut self) -> (Cost, Cost) {
        self.restored += 1;
        let name = format!("restored_{}", self.restored);
        let target = self.target.as_ref().unwrap_or(&self.server);
        target.create_database(&name);
        let url = target.socket_url(SUPERUSER, &name);
        let (json, cost) =
            run(&mut self.opsd.command(&["restore", "db", "--to", &url, "--jobs", "2", "--json"]));
        target.drop_database(&name);
        let report: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let analyze = report["seconds"]["analyze"].as_f64().expect("seconds of the ANALYZE");
        (cost, Cost { wall: cost.wall - analyze, ..cost })
    }

    /// `pg_restore -j2` of the directory, with the ANALYZE that opsd does by itself.
    pub fn restore_directory_and_analyze(&mut self) -> Cost {
        let name = self.fresh();
        let script = "pg_restore -j2 -d \"$TARGET\" \"$WORK/fd\" && vacuumdb -q -Z -j2 -d \"$TARGET\"";
        let cost = run(self.shell(script).env("TARGET", &name)).1;
        self.server.drop_database(&name);
        cost
    }

    /// `opsd restore --verify`: everything, scratch server and proof included.
    pub fn opsd_verify(&mut self) -> Cost {
        let (json, cost) = run(&mut self.opsd.command(&["restore", "--verify", "--json"]));
        let report: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(report["results"][0]["verdict"], "proven", "{json}");
        eprintln!("    {}", report["results"][0]["seconds"]);
        cost
    }

    /// pgBackRest's full backup to local disk, zst, encrypted, two processes; where it is installed.
    pub fn pgbackrest(&mut self) -> Option<Cost> {
        if !PathBuf::from("/usr/bin/pgbackrest").exists() {
            return None;
        }
        let configuration = format!(
            "[global]\nrepo1-path={0}/pgbackrest\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=benchmark\n\
             compress-type=zst\nprocess-max=2\nlog-path={0}\nlock-path={0}\nspool-path={0}\nstart-fast=y\n\
             archive-check=n\nrepo1-retention-full=1\nlog-level-console=error\n\
             [bench]\npg1-path={1}\npg1-port={2}\npg1-socket-path={3}\npg1-user={SUPERUSER}\n",
            self.work.display(),
            self.server.data_dir().display(),
            self.server.port,
            self.server.socket_dir().display(),
        );
        let as_server_user = |command: &mut Command| {
            use std::os::unix::process::CommandExt as _;
            if let Some((uid, gid)) = unprivileged_user() {
                command.uid(uid).gid(gid);
            }
        };
        if !self.pgbackrest_ready {
            std::fs::write(self.work.join("pgbackrest.conf"), configuration).expect("write pgbackrest.conf");
            let mut create = self.shell(
                "exec pgbackrest --config \"$WORK/pgbackrest.conf\" --stanza bench --no-online stanza-create",
            );
            as_server_user(&mut create);
            run(&mut create);
            self.pgbackrest_ready = true;
        }
        let mut backup = self
            .shell("exec pgbackrest --config \"$WORK/pgbackrest.conf\" --stanza bench --type full backup");
        as_server_user(&mut backup);
        Some(run(&mut backup).1)
    }

    fn fresh(&mut self) -> String {
        self.restored += 1;
        let name = format!("restored_{}", self.restored);
        self.server.create_database(&name);
        name
    }

    /// Bytes of the dump before compression.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Bytes of the pipe's object.
    pub fn stored_by_pipe(&self) -> u64 {
        self.stored_by_pipe
    }

    /// Bytes of the newest set.
    pub fn stored_by_opsd(&self) -> u64 {
        self.stored_by_opsd
    }
}
