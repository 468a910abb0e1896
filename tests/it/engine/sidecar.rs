//! opsd as a container beside the servers of a site, as `docs/docker.md` has it: its commands are run as they stand there,
//! with the files of `examples/docker` and the shipped Dockerfile. What differs: the builder's image holds the binary of
//! the tests, and `docker compose` is the Compose of old the first time.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::security::executable;
use crate::support::engine::{Compose, Engine, engine};
use crate::support::opsd::{Run, finish, finish_child, write_private};
use crate::support::processes::until;
use crate::support::s3::{Keys, weed_binary};

/// The major of the example.
const MAJOR: u32 = 17;

/// Says `docker compose` where that is another program, and builds on an image that holds the tests' binary.
const DOCKER: &str = r#"#!/bin/sh
case "$1" in
compose) shift; PATH=/usr/local/bin:/usr/bin:/bin; exec @COMPOSE@ "$@" ;;
build) shift; cd @ROOT@; set -- build --build-arg RUST=rust:prebuilt "$@" ;;
esac
PATH=/usr/local/bin:/usr/bin:/bin exec docker "$@"
"#;

/// What the Dockerfile runs to build opsd.
const CARGO: &str = r#"#!/bin/bash
set -e
[ "$*" = "build --release --locked --bin opsd" ]
[ -e src/main.rs ]
[ "$(ls -A | xargs)" = "Cargo.lock Cargo.toml src" ] || { echo "not the sources alone: $(ls -A)" >&2; exit 1; }
mkdir -p target/release
cp /opsd target/release/
"#;

/// The names of the page are there once.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A directory with the files of the example, and the bucket.
struct Site {
    engine: &'static Engine,
    compose: Compose,
    root: tempfile::TempDir,
    keys: Keys,
    _alone: MutexGuard<'static, ()>,
}

impl Site {
    fn new(compose: Compose) -> Site {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = engine();
        let image = engine.postgres_image(MAJOR);
        engine.redis_image();
        engine.program_image("weed:test", "weed", &weed_binary());
        let root = tempfile::tempdir_in("/var/tmp").unwrap();
        let site = Site { engine, compose, keys: Keys::new("docker"), root, _alone: alone };
        std::fs::create_dir(site.path("bin")).unwrap();
        let docker = DOCKER.replace("@ROOT@", env!("CARGO_MANIFEST_DIR"));
        executable(&site.path("bin/docker"), &docker.replace("@COMPOSE@", &compose.words().join(" ")));
        // Whoever runs this is root, with or without sudo.
        executable(&site.path("bin/sudo"), "#!/bin/sh\nexec \"$@\"\n");

        let builder = site.path("builder");
        std::fs::create_dir(&builder).unwrap();
        let mut strip = Command::new("strip");
        strip.args(["-o", builder.join("opsd").to_str().unwrap(), env!("CARGO_BIN_EXE_opsd")]);
        strip.stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(strip).expect_code(0);
        executable(&builder.join("cargo"), CARGO);
        let dockerfile = format!("FROM {image}\nCOPY opsd /opsd\nCOPY cargo /usr/local/bin/cargo\n");
        std::fs::write(builder.join("Dockerfile"), dockerfile).unwrap();
        engine.docker(&["build", "--tag", "rust:prebuilt", builder.to_str().unwrap()]);

        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/docker");
        std::fs::create_dir(site.path("site")).unwrap();
        for name in ["compose.yml", "stack.yml", "opsd.toml"] {
            std::fs::copy(example.join(name), site.path("site").join(name)).unwrap();
        }
        let identity = serde_json::json!({"identities": [{
            "name": "admin",
            "credentials": [{"accessKey": site.keys.access_key, "secretKey": site.keys.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        std::fs::write(site.path("s3.json"), identity.to_string()).unwrap();
        let config = format!("{}:/s3.json:ro", site.path("s3.json").display());
        engine.docker(&["network", "create", "store"]);
        engine.docker(&[
            "run",
            "-d",
            "--name",
            "store",
            "--network",
            "store",
            "-e",
            "WEED_S3_SSE_KEY=x",
            "-v",
            &config,
            "weed:test",
            "mini",
            "-dir=/tmp",
            "-s3.config=/s3.json",
            "-ip=store",
            "-ip.bind=0.0.0.0",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.port=8333",
        ]);
        let make = "echo s3.bucket.create -name backups | weed shell -master store:9333 2>&1; \
                    echo s3.bucket.list | weed shell -master store:9333 | grep -q backups";
        until("the bucket is made", || {
            engine.try_docker(&["exec", "store", "sh", "-c", make]).code == Some(0)
        });
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Runs the blocks of the page that are named so, in the directory of the Compose file.
    fn pasted(&self, name: &str) -> Run {
        let page = std::fs::read_to_string("docs/docker.md").unwrap();
        let block =
            page.split(&format!("```sh {name}\n")).nth(1).unwrap_or_else(|| panic!("no block {name}"));
        self.typed(block.split("```").next().unwrap())
    }

    /// What Compose calls the container of a service.
    fn container(&self, service: &str) -> String {
        self.compose.container("site", service)
    }

    /// Runs a script there; all of it must succeed.
    fn typed(&self, script: &str) -> Run {
        let run = finish(self.shell(script));
        if run.code != Some(0) {
            let services = ["db", "redis", "opsd"].map(|service| self.container(service));
            for container in services.iter().map(String::as_str).chain(["store"]) {
                let log = self.engine.try_docker(&["logs", "--tail", "20", container]);
                eprintln!("{container}:\n{}{}", log.stdout, log.stderr);
            }
        }
        run.expect_code(0)
    }

    /// A shell there, for those who start it themselves.
    fn shell(&self, script: &str) -> Command {
        let mut shell = self.engine.client("/bin/bash", &["-euo", "pipefail", "-c", script]);
        shell
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", self.path("bin").display()))
            .env("AWS_ACCESS_KEY_ID", &self.keys.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &self.keys.secret_key)
            .current_dir(self.path("site"));
        shell
    }

    /// Puts what is right here in the place of a text that stands in a file once.
    fn fill(&self, file: &str, from: &str, to: &str) {
        let path = self.path("site").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from} in {file}:\n{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Keys, passwords and the configuration, as the page has them made.
    fn prepare(&self) {
        self.pasted("build");
        self.pasted("identity");
        self.pasted("keys");
        let secret = |name: &str| std::fs::read_to_string(self.path("site/secrets").join(name)).unwrap();
        let identity = secret("identity.txt");
        let recipient = identity.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
        self.fill("opsd.toml", "s3://CHANGE-ME/opsd", "s3://backups/opsd");
        self.fill("opsd.toml", "#endpoint = \"https://s3.example.org\"", "endpoint = \"http://store:8333\"");
        self.fill("opsd.toml", "#region", "region");
        self.fill("opsd.toml", "#path_style", "path_style");
        self.fill("opsd.toml", "recipients = [\"CHANGE-ME\"]", &format!("recipients = [\"{recipient}\"]"));
        self.fill(
            "opsd.toml",
            "trusted_keys = [\"CHANGE-ME\"]",
            &format!("trusted_keys = [\"{}\"]", self.public_key()),
        );
        self.fill("compose.yml", "#CHANGE-ME", &format!("#{}", self.redis_sum()));
        self.pasted("owner");
    }

    fn public_key(&self) -> String {
        let text = std::fs::read_to_string(self.path("site/secrets/sign.key.pub")).unwrap();
        text.lines().last().unwrap().to_owned()
    }

    fn redis_sum(&self) -> String {
        let sum = self.typed("printf %s \"$(cat secrets/redis-password)\" | sha256sum").stdout;
        sum.split(' ').next().unwrap().to_owned()
    }

    /// SQL in the site's server.
    fn sql(&self, sql: &str) -> String {
        let script = format!("docker compose exec -T db psql -U postgres -d app -XAtqc \"{sql}\"");
        self.typed(&script).stdout.trim_end().to_owned()
    }

    /// Waits until the exporter shows whoever is on its network that a monitor is up.
    fn is_watched(&self, network: &str, monitor: &str) {
        let token = std::fs::read_to_string(self.path("site/secrets/metrics-token")).unwrap();
        let header = format!("Authorization: Bearer {}", token.trim());
        let monitor = format!("monitor=\"{monitor}\"");
        until(&format!("{monitor} is up"), || {
            let scrape = self.engine.try_docker(&[
                "run",
                "--rm",
                "--network",
                network,
                "--entrypoint",
                "wget",
                "redis:7",
                "-q",
                "-O",
                "-",
                "--header",
                &header,
                "http://opsd:9911/metrics",
            ]);
            let is_up = |line: &str| {
                line.starts_with("opsd_monitor_up{") && line.contains(&monitor) && line.ends_with(" 1")
            };
            let found = scrape.stdout.lines().any(is_up);
            if !found {
                eprintln!("{monitor}: {:?} {}", scrape.code, scrape.stderr);
            }
            found
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.engine.try_docker(&["swarm", "leave", "--force"]);
        let all = self.engine.docker(&["ps", "--all", "--quiet", "--filter", "network=site_default"]);
        for container in all.lines().chain(["store"]) {
            self.engine.try_docker(&["rm", "-f", "-v", container]);
        }
        self.engine.try_docker(&["network", "rm", "site_default"]);
        self.engine.try_docker(&["network", "rm", "store"]);
    }
}

#[test]
fn a_site_in_compose_is_backed_up_rehearsed_watched_and_comes_back_on_the_worst_day() {
    for compose in Compose::BOTH {
        comes_back(&Site::new(compose));
    }
}

fn comes_back(site: &Site) {
    site.prepare();
    let up = "docker compose up -d db && docker network connect site_default store";
    site.typed(up);
    until("the server answers", || {
        let ready = ["exec", &site.container("db"), "pg_isready", "-h", "127.0.0.1"];
        site.engine.try_docker(&ready).code == Some(0)
    });
    site.sql("CREATE ROLE rails LOGIN; CREATE TABLE accounts AS SELECT i AS id FROM generate_series(1, 1000) i; ALTER TABLE accounts OWNER TO rails");
    let run = site.pasted("first");
    assert!(run.stdout.contains("proven"), "{run}");
    let run = site.typed("docker compose run --rm opsd backups list --json");
    assert!(run.stdout.contains("\"verdict\": \"proven\""), "{run}");
    until("the exporter is healthy", || {
        site.engine.inspect(&site.container("opsd"), "{{.State.Health.Status}}") == "healthy"
    });
    for monitor in ["main", "cache", "backups"] {
        site.is_watched("site_default", monitor);
    }

    ends_without_its_client(site);

    // The worst day: what is left is the identity, the Compose file, and its configuration.
    let (old_key, old_sum) = (site.public_key(), site.redis_sum());
    site.typed(
        "docker network disconnect site_default store && docker compose down -v
         mkdir -m 700 rescue && cp secrets/identity.txt rescue/ && rm -r secrets && umask 077 && mkdir secrets",
    );
    let page = std::fs::read_to_string("docs/docker.md").unwrap();
    let shortest = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let store = "url = \"s3://backups/opsd\"\nendpoint = \"http://store:8333\"\nregion = \"us-east-1\"\npath_style = true";
    let shortest = shortest.replace("url = \"s3://BUCKET/opsd\"", store);
    write_private(&site.path("site/rescue/opsd.toml"), &shortest);
    site.pasted("keys");
    let keys = format!("{old_key}\", \"{}", site.public_key());
    site.fill("opsd.toml", &old_key, &keys);
    site.fill("compose.yml", &old_sum, &site.redis_sum());
    // The store is on the new network as soon as there is one.
    site.typed("docker compose up --no-start db && docker network connect site_default store");
    let run = site.pasted("worst");
    assert!(run.stdout.contains("site") && run.stdout.contains("db"), "{run}");
    let owner =
        "SELECT count(*), min(relowner::regrole::text) FROM accounts, pg_class WHERE relname = 'accounts'";
    assert_eq!(site.sql(owner), "1000|rails");
    site.pasted("after");
    let run = site.typed(
        "docker compose exec -T opsd opsd backup --json && docker compose exec -T opsd opsd backups list",
    );
    assert!(run.stdout.contains("proven"), "{run}");
    site.typed("docker network disconnect site_default store && docker compose down -v");
}

/// `docker compose exec` passes no signal on: what it started ends by itself, or by a Ctrl-C that a terminal takes there.
fn ends_without_its_client(site: &Site) {
    let opsd = site.container("opsd");
    let top = || site.engine.docker(&["top", &opsd, "-o", "pid,args"]);
    let runs = || top().contains("opsd backup");
    let sets = || {
        let list = site.engine.docker(&["exec", &opsd, "opsd", "backups", "list", "--json"]);
        list.matches("\"id\"").count()
    };
    // Somebody's lock keeps a backup waiting.
    let locked = "SELECT count(*) FROM pg_locks WHERE granted AND relation = 'accounts'::regclass
                  AND mode = 'AccessExclusiveLock'";
    let lock = || {
        let sql = "BEGIN; LOCK TABLE accounts; SELECT pg_sleep(600)";
        site.engine.docker(&[
            "exec",
            "-d",
            &site.container("db"),
            "psql",
            "-U",
            "postgres",
            "-c",
            sql,
            "app",
        ]);
        until("the table is locked", || site.sql(locked) == "1");
    };
    let unlock = || {
        site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK%'");
    };
    let spawn = |script: &str| {
        let mut client = site.shell(script);
        client.process_group(0).stdin(Stdio::null());
        client.spawn().unwrap()
    };

    let before = sets();
    // Whoever is killed, and Ctrl-C where no terminal is in the container.
    for (signal, expected) in [(Signal::KILL, before + 1), (Signal::INT, before + 2)] {
        lock();
        let mut client = spawn("exec docker compose exec -T opsd opsd backup");
        until("the backup waits in the container", &runs);
        kill_process_group(Pid::from_child(&client), signal).unwrap();
        client.wait().unwrap();
        assert!(runs());
        unlock();
        until("the backup ends by itself", || !runs());
        assert_eq!(sets(), expected);
    }
    // Nobody reads any more what is written there.
    let mut client = spawn(
        "exec docker compose exec -T opsd sh -c 'cd; until [ -e go ]; do sleep 0.1; done; yes | head -c 9999999; touch on'",
    );
    until("the writer waits", || top().contains("until "));
    kill_process_group(Pid::from_child(&client), Signal::KILL).unwrap();
    client.wait().unwrap();
    site.engine.docker(&["exec", &opsd, "sh", "-c", "cd; touch go"]);
    until("nothing keeps the writer", || {
        site.engine.try_docker(&["exec", &opsd, "sh", "-c", "cd; rm on"]).code == Some(0)
    });

    lock();
    let mut terminal =
        site.shell("exec script --quiet --return --command 'docker compose exec opsd opsd backup' /dev/null");
    let mut client = terminal.env("TERM", "xterm").stdin(Stdio::piped()).spawn().unwrap();
    until("the backup waits in the container", &runs);
    client.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    finish_child(client, "docker compose exec".to_owned()).expect_code(130);
    assert!(!runs());
    // A container of its own is told.
    let one = site.typed("docker compose run -d opsd backup | tail -n 1").stdout;
    let one = one.trim();
    until("the backup waits", || site.engine.docker(&["top", one]).contains("opsd backup"));
    site.engine.docker(&["stop", "--time", "60", one]);
    assert_eq!(site.engine.inspect(one, "{{.State.ExitCode}}"), "143");
    site.engine.docker(&["rm", one]);
    // Whatever hangs there ends with the service, and the next run is not kept by it.
    let mut client = spawn("exec docker compose exec -T opsd opsd backup");
    until("the backup waits in the container", &runs);
    site.typed("docker compose stop --timeout 60 opsd");
    client.wait().unwrap();
    // By itself, and not by the SIGKILL that follows.
    assert_eq!(site.engine.inspect(&opsd, "{{.State.ExitCode}}"), "0");
    unlock();
    site.typed("docker compose start opsd && docker compose exec -T opsd opsd backup");
    assert_eq!(sets(), before + 3);
    // opsd's own exit codes arrive: 2 is for what is wrong with the command line.
    site.typed("code=0; docker compose exec -T opsd opsd backup no-such-job || code=$?; [ $code = 2 ]");

    // The container's first process takes in what is left without a parent.
    site.engine.docker(&["exec", &opsd, "sh", "-c", "sleep 0.3 &"]);
    let stat = ["exec", &opsd, "sh", "-c", "cat /proc/[0-9]*/stat 2> /dev/null; true"];
    until("nothing is left of it", || !site.engine.docker(&stat).contains(") Z "));
}

#[test]
fn a_site_in_a_swarm_is_backed_up_rehearsed_and_watched() {
    let site = Site::new(Compose::V2);
    let engine = site.engine;
    site.prepare();
    engine.docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]);
    engine.docker(&["network", "create", "--driver", "overlay", "--attachable", "site_default"]);
    engine.docker(&["network", "connect", "site_default", "store"]);
    engine.docker(&[
        "run",
        "-d",
        "--name",
        "db",
        "--network",
        "site_default",
        "-e",
        "POSTGRES_DB=app",
        "-e",
        "POSTGRES_PASSWORD=first",
        "postgres:17",
    ]);
    let psql = ["exec", "db", "psql", "-h", "127.0.0.1", "-U", "postgres", "-d", "app", "-c"];
    until("the server answers", || engine.try_docker(&[&psql[..], &["SELECT 1"]].concat()).code == Some(0));
    let password = std::fs::read_to_string(site.path("site/secrets/opsd-password")).unwrap();
    let role = format!("CREATE ROLE opsd LOGIN BYPASSRLS PASSWORD '{}'", password.trim());
    engine.docker(&[&psql[..], &[&role, "-c", "GRANT pg_read_all_data, pg_monitor TO opsd"]].concat());
    engine.docker(&[&psql[..], &["CREATE TABLE accounts AS SELECT generate_series(1, 1000) AS id"]].concat());

    site.pasted("swarm");
    let of_service = "label=com.docker.swarm.service.name=opsd_opsd";
    until("the task runs", || !engine.docker(&["ps", "--quiet", "--filter", of_service]).is_empty());
    site.pasted("swarm-run");
    let task = engine.docker(&["ps", "--quiet", "--filter", of_service]);
    engine.docker(&["exec", &task, "opsd", "restore", "--verify"]);
    let list = engine.docker(&["exec", &task, "opsd", "backups", "list", "--json"]);
    assert!(list.contains("\"verdict\": \"proven\""), "{list}");
    site.is_watched("site_default", "main");
}
