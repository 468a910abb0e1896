//! Real PostgreSQL servers for tests: a temporary directory, a free port, one process.
//!
//! Every server is the child of a small shell that waits on a pipe from the test binary. When the
//! pipe closes, because the [`Server`] was dropped, the binary ended, or somebody killed it, the
//! shell stops the server and removes the directory. So nothing outlives a test run, and servers
//! that are shared through a static (which Rust never drops) need no end of their own.
//!
//! Deliberately absent: any use of opsd's own code. What judges opsd must not be opsd.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::geteuid;

/// The superuser of every test server.
pub const SUPERUSER: &str = "postgres";
/// Their password over TCP (the Unix socket trusts everybody); odd enough to need quoting.
pub const PASSWORD: &str = "s3cr=t p@ss'wörd/%";
/// The majors that opsd supports.
pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];

/// How long a server may take to start or stop before the test fails. Generous: CI machines are
/// slow, and a healthy server answers within a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running PostgreSQL server.
pub struct Server {
    /// Major version.
    pub major: u32,
    /// TCP port on 127.0.0.1, and the number in the socket's name.
    pub port: u16,
    /// Where its programs are.
    bin: PathBuf,
    /// Holds the data directory, the socket and the log.
    directory: PathBuf,
    /// The shell that ends the server; closing its stdin is the sign.
    keeper: Child,
}

/// What a test wants to be different from the usual server.
#[derive(Default)]
pub struct Options<'a> {
    /// Lines for postgresql.conf, after (and so instead of) the usual ones.
    pub settings: &'a [(&'a str, &'a str)],
    /// Arguments for initdb, after the usual ones: `--encoding=…`, `--locale=…`.
    pub initdb: &'a [&'a str],
    /// Lines for pg_hba.conf, before the usual ones.
    pub hba: &'a [&'a str],
    /// Programs that `make setup` did not put there; absent means those of the major that it did.
    pub bin_dir: Option<PathBuf>,
    /// Variables for initdb and the server.
    pub env: &'a [(&'a str, &'a str)],
    /// Whether the server speaks German; then its programs are the distribution's, which have translations.
    pub german: bool,
}

/// The server of a major that tests share. They must use databases of their own
/// ([`Server::fresh_database`]) and leave roles and settings of the cluster to names that are theirs.
pub fn shared(major: u32) -> &'static Server {
    static SERVERS: Mutex<BTreeMap<u32, &'static OnceLock<Server>>> = Mutex::new(BTreeMap::new());
    let slot = *SERVERS.lock().unwrap().entry(major).or_insert_with(|| Box::leak(Box::default()));
    slot.get_or_init(|| Server::start(major, &Options::default()))
}

/// The major for tests that one server is enough for: `OPSD_TEST_PG`, or 15.
pub fn default_major() -> u32 {
    match std::env::var("OPSD_TEST_PG") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("OPSD_TEST_PG={text} is no major version")),
        Err(_) if is_german() => distribution().0,
        Err(_) => 15,
    }
}

/// The shared server of [`default_major`].
pub fn default_server() -> &'static Server {
    shared(default_major())
}

/// The newest PostgreSQL of the distribution.
pub fn distribution() -> (u32, PathBuf) {
    let entries = std::fs::read_dir("/usr/lib/postgresql").expect("a server package: run make setup");
    let majors = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let bin = |major: u32| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let newest = majors.filter(|major| bin(*major).join("postgres").exists()).max();
    let newest = newest.expect("no server in /usr/lib/postgresql: run make setup");
    (newest, bin(newest))
}

/// A server that speaks German, shared as those of [`shared`] are.
pub fn german_server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::start(distribution().0, &Options { german: true, ..Options::default() });
        let said = server.try_psql("postgres", "SELECT 1 / 0").expect_err("an error");
        assert!(said.contains("Division durch Null"), "no German is installed, run make setup: {said}");
        server
    })
}

/// Whether all servers speak German that can: `OPSD_TEST_LANGUAGE=de`, as one part of `make torture` has it.
pub fn is_german() -> bool {
    std::env::var_os("OPSD_TEST_LANGUAGE").is_some_and(|language| language == "de")
}

/// Runs a test on every major there is, or on the one that `OPSD_TEST_PG` names. 13 may be absent
/// (it can be had for x86_64 only); the others may not. Every major is tried before it fails.
pub fn for_each_major(test: impl Fn(&'static Server)) {
    for_majors(&MAJORS, test);
}

/// Runs a test that takes long on the oldest major in support, the newest, and one between; on every major under
/// torture.
pub fn for_some_majors(test: impl Fn(&'static Server)) {
    for_majors(if super::torture::torture() { &MAJORS } else { &[14, 16, 18] }, test);
}

fn for_majors(majors: &[u32], test: impl Fn(&'static Server)) {
    let only = std::env::var_os("OPSD_TEST_PG").map(|_| default_major());
    let mut failed = Vec::new();
    for &major in majors {
        if only.is_some_and(|only| only != major) || (major == 13 && !is_installed(13)) {
            continue;
        }
        let run = std::panic::AssertUnwindSafe(|| test(shared(major)));
        if std::panic::catch_unwind(run).is_err() {
            failed.push(major);
        }
    }
    assert!(failed.is_empty(), "failed on PostgreSQL {failed:?}; the reasons stand above");
}

/// Where `make setup` put the servers. Links are followed: the usual place may be one, below a
/// directory that the servers' user cannot pass.
pub fn servers_directory() -> PathBuf {
    let directory = match std::env::var_os("OPSD_TEST_SERVERS") {
        Some(directory) => directory.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-servers"),
    };
    directory.canonicalize().unwrap_or(directory)
}

/// Directory with the programs of a major.
pub fn bin_dir(major: u32) -> PathBuf {
    assert!(
        is_installed(major),
        "PostgreSQL {major} is not in {}: run make setup",
        servers_directory().display()
    );
    servers_directory().join(format!("postgresql/{major}/bin"))
}

/// Whether `make setup` put a major there: 13 exists for x86_64 only.
pub fn is_installed(major: u32) -> bool {
    servers_directory().join(format!("postgresql/{major}/bin/postgres")).exists()
}

/// The user that servers run as when the tests run as root: PostgreSQL refuses root.
pub fn unprivileged_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        if !geteuid().is_root() {
            return None;
        }
        let passwd = std::fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        let find = |name: &str| {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        Some(find("postgres").or_else(|| find("nobody")).expect("neither postgres nor nobody in /etc/passwd"))
    })
}

/// A new directory that the servers' user owns and can reach. The caller removes it.
///
/// Not below `/tmp` by default: that may be too little memory, and the names of sockets must stay short. `make test` puts
/// all of it into memory where that is enough (`scripts/tmpdir`).
pub fn server_directory(label: &str) -> PathBuf {
    let base = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let directory = tempfile::Builder::new()
        .prefix(&format!("opsd-it-{label}-"))
        .tempdir_in(&base)
        .unwrap_or_else(|e| panic!("cannot create a directory in {}: {e}", base.display()))
        .keep();
    if let Some((uid, gid)) = unprivileged_user() {
        chown(&directory, Some(uid), Some(gid)).expect("chown");
    }
    directory
}

impl Server {
    /// Starts a server of its own for a test; it ends when the value is dropped.
    pub fn start(major: u32, options: &Options) -> Server {
        let directory = server_directory(&format!("pg{major}"));
        let german = options.german
            || (is_german()
                && options.bin_dir.is_none()
                && options.env.is_empty()
                && major == distribution().0);
        let locales = directory.join("locales");
        let mut env = options.env.to_vec();
        if german {
            env.push(("LOCPATH", locales.to_str().expect("a UTF-8 path")));
        }
        let bin = match &options.bin_dir {
            Some(bin) => bin.clone(),
            None if german => distribution().1,
            None => bin_dir(major),
        };
        // From here on the directory has a keeper, whatever fails.
        let mut keeper = spawn_keeper(&directory, &env);
        if german {
            std::fs::create_dir(&locales).expect("create a directory");
            std::fs::set_permissions(&locales, PermissionsExt::from_mode(0o755)).expect("chmod");
            let mut make = Command::new("localedef");
            make.args(["--no-archive", "-i", "de_DE", "-f", "UTF-8"]);
            expect_success(make.arg(locales.join("de_DE.UTF-8")));
        }
        let is_usual = env.is_empty() && options.initdb.is_empty() && options.bin_dir.is_none();
        if is_usual {
            copy_cluster(major, &bin, &directory);
        } else {
            initdb(&bin, &directory, &env, options.initdb);
        }
        configure(&directory, options);
        if german {
            append_settings(&directory.join("data"), &[("lc_messages", "de_DE.UTF-8")]);
        }
        let port = launch(&mut keeper, &bin, &directory);
        Server { major, port, bin, directory, keeper }
    }

    /// Starts a streaming replica of this server, which should be the test's own: the replica's slot
    /// keeps WAL, and goes with it. `settings` come after (and so instead of) those of the primary.
    pub fn standby(&self, settings: &[(&str, &str)]) -> Server {
        let directory = server_directory(&format!("pg{}standby", self.major));
        // The replica's receiver is a library, which would find the system's older libpq.
        let lib = self.bin.with_file_name("lib");
        let env = [("LD_LIBRARY_PATH", lib.to_str().expect("a UTF-8 path"))];
        let mut keeper = spawn_keeper(&directory, &env);
        let data = directory.join("data");
        let mut copy = as_server_user(Command::new(self.bin.join("pg_basebackup")));
        copy.args(["-R", "-C", "-S", &unique("standby"), "-X", "stream", "-c", "fast", "--no-sync"]);
        copy.arg("-h").arg(&self.directory).args(["-p", &self.port.to_string(), "-U", SUPERUSER]);
        expect_success(copy.arg("-D").arg(&data));
        let socket_dir = directory.to_str().expect("a UTF-8 path");
        append_settings(&data, &[("unix_socket_directories", socket_dir)]);
        append_settings(&data, settings);
        let port = launch(&mut keeper, &self.bin, &directory);
        Server { major: self.major, port, bin: self.bin.clone(), directory, keeper }
    }

    /// Waits until this replica has replayed all that its primary has written.
    pub fn catch_up(&self, primary: &Server) {
        let lsn = primary.psql("postgres", "SELECT pg_current_wal_flush_lsn()");
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        super::processes::until("the replica catches up", || self.psql("postgres", &sql) == "t");
    }

    /// The postmaster's process id.
    pub fn postmaster(&self) -> rustix::process::Pid {
        let text = std::fs::read_to_string(self.data_dir().join("postmaster.pid")).expect("postmaster.pid");
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
        rustix::process::Pid::from_raw(pid.expect("a process id")).expect("a process id")
    }

    /// Ends the postmaster by a signal: QUIT for an immediate shutdown, KILL for a crash. Returns when its
    /// children are gone, too.
    pub fn crash(&mut self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.postmaster(), signal).expect("kill");
        let data = self.data_dir();
        let works_there = |entry: std::fs::DirEntry| {
            std::fs::read_link(entry.path().join("cwd")).is_ok_and(|directory| directory == data)
        };
        let deadline = Instant::now() + PATIENCE;
        while std::fs::read_dir("/proc").expect("read /proc").flatten().any(works_there) {
            assert!(Instant::now() < deadline, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        // A killed one leaves it, and it says `ready`.
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
    }

    /// Starts it again on its port.
    pub fn restart(&mut self) {
        let postgres = self.bin.join("postgres");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let _ = std::fs::remove_file(self.directory.join("log"));
            let stdin = self.keeper.stdin.as_mut().expect("the keeper's stdin");
            writeln!(stdin, "{} {}", postgres.display(), self.port).expect("write to the keeper");
            match wait_until_ready(&self.directory, self.port) {
                Ok(()) => return,
                // Backends of the one before hold its shared memory for a moment.
                Err(log) => assert!(Instant::now() < deadline, "does not start again:\n{log}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.directory
    }

    /// The data directory, for tests that look behind the server's back.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// A new directory beside the data directory that the server may write.
    pub fn subdirectory(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::create_dir(&path).expect("create a directory");
        if let Some((uid, gid)) = unprivileged_user() {
            chown(&path, Some(uid), Some(gid)).expect("chown");
        }
        path
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        read_log(&self.directory)
    }

    /// URL over TCP for a role without a password of its own: `postgres://role@127.0.0.1:port/db`.
    pub fn url(&self, role: &str, database: &str) -> String {
        let encode = |s: &str| {
            percent_encoding::utf8_percent_encode(s, percent_encoding::NON_ALPHANUMERIC).to_string()
        };
        format!("postgres://{}@127.0.0.1:{}/{}", encode(role), self.port, encode(database))
    }

    /// URL over the Unix socket, where nobody needs a password.
    pub fn socket_url(&self, role: &str, database: &str) -> String {
        let encode = |s: &str| {
            percent_encoding::utf8_percent_encode(s, percent_encoding::NON_ALPHANUMERIC).to_string()
        };
        format!(
            "postgres://{}@{}:{}/{}",
            encode(role),
            encode(self.directory.to_str().expect("a UTF-8 path")),
            self.port,
            encode(database)
        )
    }

    /// A client program of this server's major, set up to connect as the superuser.
    pub fn client(&self, program: &str) -> Command {
        self.client_in(&self.bin, program)
    }

    /// The same, with the program of another major.
    pub fn client_of(&self, major: u32, program: &str) -> Command {
        if major == self.major { self.client(program) } else { self.client_in(&bin_dir(major), program) }
    }

    fn client_in(&self, bin: &Path, program: &str) -> Command {
        let mut command = Command::new(bin.join(program));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("PGHOST", &self.directory)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", SUPERUSER)
            .env("PGCLIENTENCODING", "UTF8")
            .stdin(Stdio::null());
        command
    }

    /// Runs SQL as the superuser and returns what it printed: rows a line, columns between `|`.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.try_psql(database, sql).unwrap_or_else(|error| {
            panic!("psql on PostgreSQL {} failed: {error}\n{}", self.major, excerpt(sql))
        })
    }

    /// The same for SQL that may fail; the error is what psql wrote to stderr.
    pub fn try_psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut command = self.client("psql");
        command
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .env("PGDATABASE", database);
        let output = run_with_input(command, sql.as_bytes());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(stderr);
        }
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(text)
    }

    /// Creates a database with a name of its own (from template0, so that nothing leaks in).
    pub fn fresh_database(&self, prefix: &str) -> String {
        let name = unique(prefix);
        self.create_database(&name);
        name
    }

    /// Creates a database with exactly this name.
    pub fn create_database(&self, name: &str) {
        self.psql("postgres", &format!("CREATE DATABASE {} TEMPLATE template0", identifier(name)));
    }

    /// Creates a database of an encoding with the C locale, which suits them all.
    pub fn create_database_in(&self, name: &str, encoding: &str) {
        let name = identifier(name);
        self.psql(
            "postgres",
            &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"),
        );
    }

    /// Drops a database if it is there, whoever is connected.
    pub fn drop_database(&self, name: &str) {
        self.psql("postgres", &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(name)));
    }

    /// Names of the databases that are no templates.
    pub fn databases(&self) -> Vec<String> {
        let names = self.psql(
            "postgres",
            "SELECT encode(convert_to(datname, 'UTF8'), 'hex') FROM pg_database WHERE NOT datistemplate ORDER BY 1",
        );
        names.lines().map(|hex| String::from_utf8(unhex(hex)).expect("UTF-8")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The keeper ends the server, removes the directory and exits.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// The shell that a server is a child of. It starts the server when it reads a line (the port),
/// and ends it at the end of its input. In a process group of its own, so that Ctrl-C in a terminal
/// ends the tests and not the one who cleans up after them.
fn spawn_keeper(directory: &Path, env: &[(&str, &str)]) -> Child {
    const SCRIPT: &str = r#"
        cd / || exit 1
        pid=
        while read -r postgres port; do
            "$postgres" -D "$1/data" -p "$port" >>"$1/log" 2>&1 </dev/null &
            pid=$!
        done
        # Immediate shutdown: nothing here is worth a checkpoint, and shared memory is freed.
        if [ -n "$pid" ]; then kill -QUIT "$pid" 2>/dev/null; wait "$pid"; fi
        rm -rf "$1"
    "#;
    let mut command = as_server_user(Command::new("/bin/sh"));
    command
        .envs(env.iter().copied())
        .args(["-c", SCRIPT, "opsd-test-server-keeper"])
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command.spawn().expect("start /bin/sh")
}

fn as_server_user(mut command: Command) -> Command {
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8").current_dir("/");
    if let Some((uid, gid)) = unprivileged_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// A cluster of this major as initdb makes it, copied: that takes a third of the time. Only its system identifier is that
/// of others, too.
fn copy_cluster(major: u32, bin: &Path, directory: &Path) {
    static MADE: Mutex<BTreeMap<u32, &'static OnceLock<(PathBuf, Child)>>> = Mutex::new(BTreeMap::new());
    let slot = *MADE.lock().unwrap().entry(major).or_insert_with(|| Box::leak(Box::default()));
    let (made, _keeper) = slot.get_or_init(|| {
        let directory = server_directory(&format!("pg{major}made"));
        let keeper = spawn_keeper(&directory, &[]);
        initdb(bin, &directory, &[], &[]);
        (directory, keeper)
    });
    let mut copy = as_server_user(Command::new("cp"));
    expect_success(copy.arg("-a").arg(made.join("data")).arg(directory.join("data")));
}

fn initdb(bin: &Path, directory: &Path, env: &[(&str, &str)], more: &[&str]) {
    let password_file = directory.join("password");
    std::fs::write(&password_file, PASSWORD).expect("write the password file");
    std::fs::set_permissions(&password_file, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let mut command = as_server_user(Command::new(bin.join("initdb")));
    command
        .envs(env.iter().copied())
        .args(["--no-sync", "--username", SUPERUSER, "--encoding=UTF8", "--locale=C.UTF-8"])
        .args(["--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile"])
        .arg(&password_file)
        .args(more)
        .arg(directory.join("data"));
    expect_success(&mut command);
}

fn configure(directory: &Path, options: &Options) {
    let data = directory.join("data");
    let socket_dir = directory.to_str().expect("a UTF-8 path");
    let usual = [
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", socket_dir),
        // A test's data is worth nothing after the test.
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("synchronous_commit", "off"),
        ("shared_buffers", "64MB"),
        // What is kept for the next checkpoint may be kept in memory.
        ("max_wal_size", "256MB"),
        ("max_connections", "100"),
        // A dump of the database with 3,000 tables locks them all, and several run at once.
        ("max_locks_per_transaction", "256"),
        // Publications are fixtures.
        ("wal_level", "logical"),
        ("password_encryption", "scram-sha-256"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
        ("log_line_prefix", "%m [%p] %q%u@%d "),
    ];
    append_settings(&data, &usual);
    append_settings(&data, options.settings);
    if !options.hba.is_empty() {
        let path = data.join("pg_hba.conf");
        let usual = std::fs::read_to_string(&path).expect("read pg_hba.conf");
        std::fs::write(&path, format!("{}\n{usual}", options.hba.join("\n"))).expect("write pg_hba.conf");
    }
}

/// Starts the server on a free port. Between finding the port and using it somebody else may take
/// it, so a server that died of that is started again on another.
fn launch(keeper: &mut Child, bin: &Path, directory: &Path) -> u16 {
    let postgres = bin.join("postgres");
    let mut attempts = 0;
    loop {
        attempts += 1;
        let port = free_port();
        let stdin = keeper.stdin.as_mut().expect("the keeper's stdin");
        writeln!(stdin, "{} {port}", postgres.display()).expect("write to the keeper");
        match wait_until_ready(directory, port) {
            Ok(()) => return port,
            Err(log) if attempts < 5 && log.contains("Address already in use") => {
                std::fs::remove_file(directory.join("log")).expect("remove the log");
            }
            Err(log) => {
                drop(keeper.stdin.take());
                let _ = keeper.wait();
                panic!("{} did not start:\n{log}", postgres.display());
            }
        }
    }
}

/// A TCP port of 127.0.0.1 that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).expect("find a free port").port()
}

/// Polls for what the server writes: `ready` in its lock file, or its last words in the log.
fn wait_until_ready(directory: &Path, port: u16) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    let pid_file = directory.join("data/postmaster.pid");
    loop {
        let lock = std::fs::read_to_string(&pid_file).unwrap_or_default();
        let mut lines = lock.lines();
        if lines.nth(3) == Some(&port.to_string()) && lines.nth(3).is_some_and(|s| s.trim() == "ready") {
            return Ok(());
        }
        let log = read_log(directory);
        if log.contains("database system is shut down") || log.contains("FATAL:") || Instant::now() > deadline
        {
            return Err(log);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn read_log(directory: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(directory.join("log")).unwrap_or_default()).into_owned()
}

fn append_settings(data: &Path, settings: &[(&str, &str)]) {
    let mut conf = String::new();
    for (name, value) in settings {
        writeln!(conf, "{name} = '{}'", value.replace('\'', "''")).expect("write to a string");
    }
    let path = data.join("postgresql.conf");
    let mut file = std::fs::OpenOptions::new().append(true).open(path).expect("open for appending");
    file.write_all(conf.as_bytes()).expect("append");
}

/// A name that nothing else in this run, or in another run at the same time, has.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Quotes an SQL identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes an SQL string.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Decodes hexadecimal, the form in which bytes survive psql's output.
pub fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hexadecimal")).collect()
}

/// Runs a command to its end while feeding its stdin.
pub fn run_with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {}: {e}", command.get_program().display()));
    let mut stdin = child.stdin.take().expect("stdin");
    std::thread::scope(|scope| {
        // A command that stops reading early says why on stderr.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("wait")
    })
}

/// Runs a command that must succeed; its stdout.
pub fn expect_success(command: &mut Command) -> Vec<u8> {
    let output =
        command.output().unwrap_or_else(|e| panic!("cannot start {}: {e}", command.get_program().display()));
    let arguments: Vec<&OsStr> = command.get_args().collect();
    assert!(
        output.status.success(),
        "{} {arguments:?} failed with {}:\n{}",
        command.get_program().display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn excerpt(sql: &str) -> String {
    sql.chars().take(2000).collect()
}
