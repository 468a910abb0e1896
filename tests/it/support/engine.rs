//! A Docker Engine of the tests' own, one a test binary, in namespaces of its own: its networks, firewall rules,
//! mounts and processes are not the machine's, and end with the test binary.
//!
//! No image can be pulled where tests run, so images are made out of the tests' servers; their entry points behave as
//! those of the official images do (`tests/fixtures/engine/`).
//!
//! What a container publishes is reached from within the Engine's network only: [`Engine::inside`].

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::geteuid;

use super::opsd::{Run, behind, finish};
use super::postgres::{bin_dir, run_with_input, servers_directory};

/// Compose: the program of old, and the plugin of Docker's client that took its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compose {
    V1,
    V2,
}

impl Compose {
    /// Both of them.
    pub const BOTH: [Compose; 2] = [Compose::V1, Compose::V2];

    /// What it calls the container of a service.
    pub fn container(self, project: &str, service: &str) -> String {
        match self {
            Compose::V1 => format!("{project}_{service}_1"),
            Compose::V2 => format!("{project}-{service}-1"),
        }
    }

    /// The words that it is started with.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Compose::V1 => &["docker-compose"],
            Compose::V2 => &["docker", "compose"],
        }
    }
}

/// Where Docker's client finds version 2.
fn docker_config() -> PathBuf {
    servers_directory().join("compose")
}

/// How long the Engine may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first process of the Engine's namespaces: starts dockerd, waits for the end of its input, and leaves nothing.
const KEEPER: &str = r#"
    cd / || exit 1
    busybox ip link set lo up
    mount -t tmpfs tmpfs /run
    export DOCKER_HOST="unix://$1/docker.sock"
    dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" --host "$DOCKER_HOST" \
        --cgroup-parent "$2" --default-address-pool base=10.213.0.0/16,size=24 >"$1/log" 2>&1 </dev/null &
    dockerd=$!
    read -r end
    docker swarm leave --force >/dev/null 2>&1
    containers=$(docker ps --quiet) && [ -n "$containers" ] && docker kill $containers >/dev/null
    kill "$dockerd"
    wait "$dockerd"
    # The innermost first.
    sed -nE "s,^([^ ]+ ){4}($1/[^ ]*) .*,\2,p" /proc/self/mountinfo | sort -r | while read -r mount; do umount -l "$mount"; done
    find /sys/fs/cgroup -depth -type d -path "*$2*" -exec rmdir {} + 2>/dev/null
    rm -rf "$1"
"#;

/// A running Engine.
pub struct Engine {
    directory: PathBuf,
    /// `unshare`, which is in the Engine's network itself; closing its stdin is the sign.
    keeper: Child,
    images: Mutex<BTreeMap<String, &'static OnceLock<()>>>,
}

/// The Engine that all tests share: containers, networks, volumes and projects have names of their own
/// ([`unique`](super::postgres::unique), with `-` for Compose).
pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(Engine::start)
}

impl Engine {
    fn start() -> Engine {
        assert!(geteuid().is_root(), "a Docker Engine is started by root only");
        for program in ["dockerd", "docker", "docker-compose", "busybox"] {
            let found = Command::new("which").arg(program).output().expect("run which");
            assert!(found.status.success(), "{program} is missing: run scripts/setup --engine");
        }
        let plugin = docker_config().join("cli-plugins/docker-compose");
        assert!(plugin.is_file(), "{} is missing: run scripts/setup --engine", plugin.display());
        let base = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let directory =
            tempfile::Builder::new().prefix("opsd-it-engine-").tempdir_in(base).expect("a directory").keep();
        let cgroup = format!("/opsd-test-{}", std::process::id());
        let keeper = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["/bin/sh", "-c", KEEPER, "opsd-test-engine-keeper"])
            .arg(&directory)
            .arg(cgroup)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start unshare");
        let engine = Engine { directory, keeper, images: Mutex::default() };
        let deadline = Instant::now() + PATIENCE;
        while engine.try_docker(&["version"]).code != Some(0) {
            let log = || std::fs::read_to_string(engine.directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "dockerd does not start:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        engine
    }

    /// What `DOCKER_HOST` is for whoever uses this Engine.
    pub fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.directory.display())
    }

    /// Runs `docker args…`, which must succeed; its stdout without the last line's end.
    pub fn docker<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        self.try_docker(args).expect_code(0).stdout.trim_end().to_owned()
    }

    /// The same for what may fail.
    pub fn try_docker<S: AsRef<OsStr>>(&self, args: &[S]) -> Run {
        finish(self.client("docker", args))
    }

    /// Runs Compose with these arguments in a directory; it must succeed.
    pub fn compose<S: AsRef<OsStr>>(&self, compose: Compose, directory: &Path, args: &[S]) -> Run {
        let words = compose.words().iter().map(OsStr::new).chain(args.iter().map(AsRef::as_ref));
        let words: Vec<&OsStr> = words.collect();
        let mut command = self.client(words[0].to_str().expect("UTF-8"), &words[1..]);
        command.current_dir(directory);
        finish(command).expect_code(0)
    }

    /// A program that talks to this Engine, with little else in its environment.
    pub fn client<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.directory)
            .env("LC_ALL", "C.UTF-8")
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", docker_config())
            // Only the builder of old knows images that are in no registry at every version.
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The same command on the Engine's host: where addresses of containers and published ports are reached.
    pub fn inside(&self, command: &Command) -> Command {
        let process = self.keeper.id().to_string();
        behind(&["nsenter", "--target", &process, "--net"], command)
    }

    /// The same command where the Engine's mounts and processes are.
    pub fn among_its_mounts(&self, command: &Command) -> Command {
        let unshare = self.keeper.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        let first = children.expect("children");
        behind(&["nsenter", "--target", first.trim(), "--mount", "--pid"], command)
    }

    /// An image that behaves as the official `postgres` image does; its name.
    pub fn postgres_image(&self, major: u32) -> String {
        let name = format!("postgres:{major}");
        let bin = bin_dir(major).canonicalize().expect("a directory");
        let tree = bin.parent().expect("a parent").to_str().expect("a UTF-8 path");
        let data = "/var/lib/postgresql/data";
        self.image(
            &name,
            &["postgres", &major.to_string(), tree],
            &[
                &format!("ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/lib/postgresql/{major}/bin"),
                &format!("ENV PGDATA={data}"),
                "ENV LANG=C.UTF-8",
                &format!("VOLUME {data}"),
                "EXPOSE 5432",
                "STOPSIGNAL SIGINT",
                r#"ENTRYPOINT ["docker-entrypoint.sh"]"#,
                r#"CMD ["postgres"]"#,
            ],
        );
        name
    }

    /// An image that behaves as the official `redis` image does; its name.
    pub fn redis_image(&self) -> String {
        let server = servers_directory().join("redis/redis-server").canonicalize().expect("make setup");
        self.image(
            "redis:7",
            &["redis", server.to_str().expect("a UTF-8 path")],
            &[
                "ENV PATH=/usr/local/bin:/usr/bin:/bin",
                "VOLUME /data",
                "WORKDIR /data",
                "EXPOSE 6379",
                r#"ENTRYPOINT ["docker-entrypoint.sh"]"#,
                r#"CMD ["redis-server"]"#,
            ],
        );
        "redis:7".to_owned()
    }

    /// An image of busybox and one program, which is its entry point.
    pub fn program_image(&self, image: &str, program: &str, path: &Path) {
        let path = path.to_str().expect("a UTF-8 path");
        let entry = format!("ENTRYPOINT [{program:?}]");
        self.image(image, &["program", program, path], &["ENV PATH=/usr/local/bin:/usr/bin:/bin", &entry]);
    }

    /// Makes an image once, out of what `tests/fixtures/engine/rootfs` says and changes as a Dockerfile has them.
    fn image(&self, name: &str, contents: &[&str], changes: &[&str]) {
        let slot = *self
            .images
            .lock()
            .expect("no panic")
            .entry(name.to_owned())
            .or_insert_with(|| Box::leak(Box::default()));
        slot.get_or_init(|| {
            let root = tempfile::tempdir_in(&self.directory).expect("a directory");
            let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/engine");
            let mut make = Command::new(fixtures.join("rootfs"));
            make.arg(root.path()).args(contents).stdout(Stdio::piped()).stderr(Stdio::piped());
            finish(make).expect_code(0);
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(root.path()).args(["--numeric-owner", "-c", "."]).stdout(Stdio::piped());
            let mut tar = tar.spawn().expect("start tar");
            let mut import = self.client("docker", &["import", "-", name]);
            import.stdin(tar.stdout.take().expect("stdout"));
            finish(import).expect_code(0);
            assert!(tar.wait().expect("wait").success(), "tar of {name}");
            let dockerfile = format!("FROM {name}\n{}\n", changes.join("\n"));
            let build = self.client("docker", &["build", "--tag", name, "-"]);
            let built = run_with_input(build, dockerfile.as_bytes());
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        });
    }

    /// What the Engine says of a container: one field, as `docker inspect --format` has it.
    pub fn inspect(&self, container: &str, format: &str) -> String {
        self.docker(&["inspect", "--format", format, container])
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
