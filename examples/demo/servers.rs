//! The demo's two servers: a PostgreSQL from the distribution's binaries, and s3s-fs in this process.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use super::Step;

/// Where Debian and Ubuntu put PostgreSQL's programs, one directory a major version.
const DISTRIBUTION: &str = "/usr/lib/postgresql";
/// A slow machine needs seconds; a server that cannot start says so in its log.
const START: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A PostgreSQL server that exists for this demo only, on a Unix socket in its own directory.
pub struct Postgres {
    /// `15.18`.
    pub version: String,
    major: u32,
    bin: PathBuf,
    directory: PathBuf,
    /// A shell that is the server's parent and ends it when its stdin closes, so that the server does
    /// not outlive this process whatever becomes of it.
    keeper: Child,
}

impl Postgres {
    /// Creates a cluster below `parent` and starts it, as an ordinary user: PostgreSQL refuses root.
    pub async fn start(parent: &Path) -> Step<Postgres> {
        let (major, bin) = newest_binaries()?;
        let directory = parent.join("postgres");
        std::fs::create_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let user = server_user()?;
        if let Some((uid, gid)) = user {
            chown(&directory, Some(uid), Some(gid)).map_err(|e| format!("chown: {e}"))?;
        }
        let command = |program: &Path| {
            let mut command = Command::new(program);
            command
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .env("LC_ALL", "C.UTF-8")
                .current_dir("/")
                .stdin(Stdio::null())
                .kill_on_drop(true);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let mut initdb = command(&bin.join("initdb"));
        initdb.args(["--no-sync", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--pgdata"]);
        finish(initdb.arg(directory.join("data")), "initdb").await?;

        // Ended by SIGQUIT: nothing here is worth a checkpoint.
        let script = r#"
            "$1" -D "$2/data" -c listen_addresses= -c unix_socket_directories="$2" \
                -c fsync=off -c full_page_writes=off -c synchronous_commit=off -c max_wal_size=4GB \
                >"$2/log" 2>&1 </dev/null &
            cat >/dev/null
            kill -QUIT $! 2>/dev/null
            wait $!
        "#;
        let mut keeper = command(Path::new("/bin/sh"));
        keeper
            .args(["-c", script, "opsd-demo-keeper"])
            .args([&bin.join("postgres"), &directory])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(false)
            // Ctrl-C at the terminal is for the demo, which ends the server last.
            .process_group(0);
        let keeper = keeper.spawn().map_err(|e| format!("/bin/sh: {e}"))?;
        let mut server = Postgres { version: String::new(), major, bin, directory, keeper };
        server.wait_until_ready().await?;
        let version = server.psql("postgres", "SHOW server_version").await?;
        server.version = version.split_whitespace().next().unwrap_or_default().to_owned();
        Ok(server)
    }

    async fn wait_until_ready(&self) -> Step {
        let deadline = Instant::now() + START;
        loop {
            let pid_file = std::fs::read_to_string(self.directory.join("data/postmaster.pid"));
            if pid_file.is_ok_and(|text| text.lines().last().is_some_and(|line| line.trim() == "ready")) {
                return Ok(());
            }
            let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            if log.contains("FATAL") || Instant::now() > deadline {
                return Err(format!("PostgreSQL did not start:\n{log}"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Where its socket is.
    pub fn socket_dir(&self) -> &Path {
        &self.directory
    }

    /// Runs SQL as the superuser; what it printed.
    pub async fn psql(&self, database: &str, sql: &str) -> Step<String> {
        let mut command = Command::new(self.bin.join("psql"));
        command
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("PGHOST", &self.directory)
            .env("PGUSER", "postgres")
            .env("PGCLIENTENCODING", "UTF8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| format!("psql: {e}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A psql that stops reading says why itself.
            let _ = stdin.write_all(sql.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(|e| format!("psql: {e}"))?;
        if !output.status.success() {
            return Err(format!("psql failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A role that may read everything and change nothing, where the server knows such roles (14).
    pub async fn create_backup_role(&self, database: &str) -> Step {
        if self.major < 14 {
            return Ok(());
        }
        let sql = format!(
            "CREATE ROLE opsd LOGIN BYPASSRLS; GRANT pg_read_all_data TO opsd; \
             ALTER DATABASE {database} SET lo_compat_privileges = on"
        );
        self.psql("postgres", &sql).await.map(|_| ())
    }

    /// The role that backs up.
    pub fn backup_role(&self) -> &'static str {
        if self.major < 14 { "postgres" } else { "opsd" }
    }

    /// Ends the server and waits for it. Dropping it ends it as well.
    pub async fn stop(mut self) -> Step {
        drop(self.keeper.stdin.take());
        self.keeper.wait().await.map(|_| ()).map_err(|e| format!("stopping PostgreSQL: {e}"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // The directory is removed next: the server must be gone by then. It has five seconds to
        // obey before it kills its own children.
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.keeper.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }
}

/// The newest major version with server programs.
fn newest_binaries() -> Step<(u32, PathBuf)> {
    let entries = std::fs::read_dir(DISTRIBUTION).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let major = entry.file_name().to_str()?.parse().ok()?;
        let bin = entry.path().join("bin");
        bin.join("initdb").exists().then_some((major, bin))
    });
    found.max().ok_or_else(|| format!("no PostgreSQL server in {DISTRIBUTION}; `make demo` installs one"))
}

/// Whom the server runs as when the demo runs as root.
fn server_user() -> Step<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
    let find = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let user = find("postgres").or_else(|| find("nobody"));
    user.map(Some).ok_or_else(|| "neither postgres nor nobody is in /etc/passwd".to_owned())
}

async fn finish(command: &mut Command, what: &str) -> Step {
    let output = command.output().await.map_err(|e| format!("{what}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{what} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// s3s-fs on a free port of the loopback interface; ends with this process, or on drop.
pub struct S3 {
    /// `http://127.0.0.1:1234`.
    pub endpoint: String,
    /// The one bucket.
    pub bucket: &'static str,
    /// Who may use it.
    pub access_key: String,
    /// And with which secret.
    pub secret_key: String,
    directory: PathBuf,
    server: tokio::task::JoinHandle<()>,
}

impl S3 {
    /// Serves a new directory below `parent`.
    pub async fn start(parent: &Path) -> Step<S3> {
        use hyper_util::rt::{TokioExecutor, TokioIo};

        let root = parent.join("s3");
        let bucket = "backups";
        std::fs::create_dir_all(root.join(bucket)).map_err(|e| format!("{}: {e}", root.display()))?;
        let (access_key, secret_key) = ("demo".to_owned(), format!("{:032x}", rand::random::<u128>()));
        let files = s3s_fs::FileSystem::new(&root).map_err(|e| format!("s3s-fs: {e:?}"))?;
        let mut builder = s3s::service::S3ServiceBuilder::new(files);
        builder.set_auth(s3s::auth::SimpleAuth::from_single(access_key.clone(), secret_key.clone()));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
        let endpoint = format!("http://{}", listener.local_addr().map_err(|e| e.to_string())?);
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                connections.spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // What goes wrong on a connection, opsd sees and says.
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        let directory = root.join(bucket);
        Ok(S3 { endpoint, bucket, access_key, secret_key, directory, server })
    }

    /// Changes one byte in the middle of a set's largest object; says which.
    pub fn flip_a_byte(&self, id: &str) -> Step<String> {
        let folder = self.directory.join("demo/demo/db").join(id).join("shop");
        let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let largest = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(".age"))
            .max_by_key(|entry| entry.metadata().map_or(0, |m| m.len()))
            .ok_or("the set has no objects")?;
        let mut bytes = std::fs::read(largest.path()).map_err(|e| e.to_string())?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(largest.path(), &bytes).map_err(|e| e.to_string())?;
        Ok(format!("the {} in shop/{}", super::thousands(bytes.len() as u64), largest.file_name().display()))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.abort();
    }
}
