//! Scratch servers: what they are, who gets in, and that nothing of them stays.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use opsd::error::Result;
use opsd::postgres::connect::{Session, connect};
use opsd::postgres::locale::{Fallback, Locale, create_database};
use opsd::postgres::scratch::{self, Programs, Scratch, ScratchOptions};
use opsd::postgres::tools;
use rustix::process::geteuid;

use crate::support::postgres::{bin_dir, default_major, servers_directory};

/// Tells the child of a test that it is one, and where to start its server.
const OWNER: &str = "OPSD_TEST_SCRATCH_OWNER";

/// A directory for scratch servers with a short name; whatever is left in it is ended and removed.
struct Ground(PathBuf);

impl Ground {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("opsd-it-s-").tempdir_in("/var/tmp").unwrap().keep();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o711)).unwrap();
        Self(dir)
    }

    async fn start(&self, major: u32) -> Result<Scratch> {
        scratch::start(self.options(major).await).await
    }

    async fn options(&self, major: u32) -> ScratchOptions {
        ScratchOptions {
            settings: Vec::new(),
            scratch_dir: self.0.clone(),
            user: None,
            programs: Programs::Host(tools::find_server(major, Some(&bin_dir(major))).await.unwrap()),
            jobs: 2,
            objects: 1000,
            memory: Some(512 << 20),
            keeper: vec![env!("CARGO_BIN_EXE_opsd").to_owned(), "keep-scratch".to_owned()],
            uncontained: false,
        }
    }

    fn entries(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().path()).collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Servers of tests that failed are gone by their own drop, those of children are not.
        let dir = self.0.clone();
        let sweep = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(scratch::sweep(&dir));
            std::fs::remove_dir_all(&dir)
        });
        let _ = sweep.join();
    }
}

/// Processes whose command line, directory or environment names this path.
fn processes_of(path: &Path) -> Vec<String> {
    let text = path.display().to_string();
    let proc = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
    proc.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| *pid != std::process::id().to_string())
        .filter(|pid| {
            let dir = PathBuf::from(format!("/proc/{pid}"));
            let zombie = std::fs::read_to_string(dir.join("stat")).unwrap_or_default().contains(") Z ");
            let cwd = std::fs::read_link(dir.join("cwd")).unwrap_or_default();
            let environ = std::fs::read(dir.join("environ")).unwrap_or_default();
            let environ = String::from_utf8_lossy(&environ).into_owned();
            !zombie && (cwd.starts_with(path) || environ.contains(&text) && !environ.contains(OWNER))
        })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "a test's child is told by its environment")]
fn owner_directory() -> Option<PathBuf> {
    std::env::var_os(OWNER).map(PathBuf::from)
}

async fn superuser(scratch: &Scratch) -> Session {
    connect(&scratch.connection("postgres"), None, "test").await.unwrap()
}

async fn text(session: &Session, sql: &str) -> String {
    session.client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_major_starts_stops_and_leaves_nothing() {
    // With the variable this test is the child of `the_keeper_of_a_killed_owner_removes_everything`.
    if let Some(dir) = owner_directory() {
        let ground = Ground(dir);
        let scratch = ground.start(default_major()).await.unwrap();
        std::fs::write(ground.0.join("started"), scratch.directory().display().to_string()).unwrap();
        std::future::pending::<()>().await;
    }
    let ground = Ground::new();
    for major in [13, 14, 15, 16, 17, 18] {
        if major == 13 && !servers_directory().join("postgresql/13/bin/pg_dump").exists() {
            continue;
        }
        let scratch = ground.start(major).await.unwrap();
        let session = superuser(&scratch).await;
        assert_eq!(session.major(), major);
        assert_eq!(text(&session, "SHOW listen_addresses").await, "");
        assert_eq!(text(&session, "SHOW fsync").await, "off");
        assert_eq!(text(&session, "SHOW wal_level").await, "minimal");
        assert_eq!(
            text(&session, "SHOW config_file").await,
            scratch.directory().join("postgresql.conf").display().to_string()
        );
        let reader = connect(&scratch.reader("postgres"), None, "test").await.unwrap();
        session.client.batch_execute("CREATE TABLE public.t AS SELECT 1 AS x").await.unwrap();
        if major >= 14 {
            assert_eq!(text(&reader, "SELECT x::text FROM public.t").await, "1");
        }
        assert!(reader.client.execute("DELETE FROM public.t", &[]).await.is_err());
        assert!(reader.client.execute("SET ROLE opsd_scratch", &[]).await.is_err());
        let directory = scratch.directory().to_owned();
        scratch.stop().await.unwrap();
        assert_eq!(ground.entries(), Vec::<PathBuf>::new());
        assert_eq!(processes_of(&directory), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_leaves_nothing_either() {
    let ground = Ground::new();
    let scratch = ground.start(default_major()).await.unwrap();
    let directory = scratch.directory().to_owned();
    drop(scratch);
    assert_eq!(ground.entries(), Vec::<PathBuf>::new());
    assert_eq!(processes_of(&directory), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_restored_code_starts_has_nothing_and_goes_too() {
    let ground = Ground::new();
    let scratch = ground.start(default_major()).await.unwrap();
    let session = superuser(&scratch).await;
    let program = "COPY o FROM PROGRAM 'id -u; id -G; tr ''\\0'' ''\\n'' < /proc/self/environ; umask'";
    session
        .client
        .batch_execute(&format!("SET search_path = public; CREATE TABLE o (line text); {program}"))
        .await
        .unwrap();
    let lines = text(&session, "SELECT string_agg(line, E'\\n') FROM o").await;
    let mut lines = lines.lines();
    let (uid, groups) = (lines.next().unwrap(), lines.next().unwrap());
    if geteuid().is_root() {
        assert_ne!(uid, "0", "the scratch server runs as root");
        assert_eq!(groups.split(' ').count(), 1, "supplementary groups: {groups}");
    }
    let known =
        ["PATH=", "LC_", "HOME=", "TZ=", "OPSD_SCRATCH=", "LD_LIBRARY_PATH=", "PG", "OLDPWD=", "PWD="];
    for line in lines {
        let expected = known.iter().any(|start| line.starts_with(start)) || line == "0077";
        assert!(expected, "in the environment of restored code: {line}");
    }
    // It goes into the background and closes everything.
    let hide =
        "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; setsid sleep 600 > /dev/null 2>&1 < /dev/null &'";
    session.client.batch_execute(hide).await.unwrap();
    let directory = scratch.directory().to_owned();
    assert!(processes_of(&directory).len() > 1);
    scratch.stop().await.unwrap();
    assert_eq!(processes_of(&directory), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_in() {
    let ground = Ground::new();
    let scratch = ground.start(default_major()).await.unwrap();
    let connection = scratch.connection("postgres");
    let psql = |uid: Option<u32>| {
        let mut psql = Command::new(bin_dir(default_major()).join("psql"));
        psql.env_clear().env("PGHOST", &connection.hosts[0].0).env("PGUSER", &connection.user);
        psql.args(["-XAt", "-d", "postgres", "-c", "SELECT 1"]).current_dir("/");
        if let Some(uid) = uid {
            psql.uid(uid).gid(uid);
        }
        let output = psql.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(psql(None).0, "opsd's own user gets in");
    let mut other = connection.clone();
    other.user = "postgres".to_owned();
    assert!(connect(&other, None, "test").await.is_err(), "in no other role");
    if geteuid().is_root() {
        let stranger = psql(Some(12_345));
        assert!(!stranger.0 && stranger.1.contains("Permission denied"), "{}", stranger.1);
        let data = scratch.directory().join("data");
        let own = psql(Some(data.metadata().unwrap().uid()));
        assert!(!own.0 && own.1.contains("Peer authentication failed"), "{}", own.1);
        assert_eq!(data.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(scratch.directory().metadata().unwrap().uid(), 0);
        assert_eq!(scratch.directory().metadata().unwrap().mode() & 0o777, 0o710);
    }
    scratch.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_of_a_killed_owner_removes_everything() {
    let ground = Ground::new();
    let name = "postgres::scratch::every_major_starts_stops_and_leaves_nothing";
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(OWNER, &ground.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = ground.0.join("started");
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read_to_string(&started).unwrap_or_default().is_empty() {
        assert!(Instant::now() < deadline && owner.try_wait().unwrap().is_none(), "it does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::remove_file(&started).unwrap();
    let [directory] = ground.entries().try_into().unwrap();
    assert_eq!(scratch::sweep(&ground.0).await.unwrap().removed, Vec::<PathBuf>::new(), "in use");
    assert!(!processes_of(&directory).is_empty());

    owner.kill().unwrap();
    owner.wait().unwrap();
    while !ground.entries().is_empty() || !processes_of(&directory).is_empty() {
        assert!(Instant::now() < deadline, "the keeper does not notice that the owner is gone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_says_so() {
    let ground = Ground::new();
    let mut scratch = ground.start(default_major()).await.unwrap();
    let session = superuser(&scratch).await;
    // Its process ids are its own.
    let killed =
        session.client.batch_execute("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; kill -9 $PPID'").await;
    assert!(killed.is_err());
    let error = tokio::time::timeout(Duration::from_secs(30), scratch.ended()).await.unwrap();
    assert!(error.to_string().contains("was terminated by signal 9"), "{error}");
    scratch.stop().await.unwrap();
    assert_eq!(ground.entries(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn places_and_users_that_will_not_do() {
    let ground = Ground::new();
    let mut options = ground.options(default_major()).await;
    options.scratch_dir = ground.0.join("x".repeat(90));
    let long = scratch::start(options.clone()).await.unwrap_err();
    assert!(long.to_string().contains("too long for a Unix socket"), "{long}");
    if geteuid().is_root() {
        let closed = ground.0.join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
        options.scratch_dir = closed.clone();
        let error = scratch::start(options.clone()).await.unwrap_err();
        assert!(error.to_string().contains(&format!("cannot enter {}", closed.display())), "{error}");
        assert!(error.hint().unwrap().contains("chmod o+x"));
        assert_eq!(std::fs::read_dir(&closed).unwrap().count(), 0);
        options.user = Some("root".to_owned());
        let root = scratch::start(options.clone()).await.unwrap_err();
        assert!(root.to_string().contains("scratch_user \"root\" is root"), "{root}");
        options.user = Some("no-such-user-here".to_owned());
        let missing = scratch::start(options).await.unwrap_err();
        assert!(missing.hint().unwrap().contains("useradd"), "{missing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn encodings_stay_and_locales_fall_back() {
    let ground = Ground::new();
    for major in [14, 15, 17, 18] {
        let scratch = ground.start(major).await.unwrap();
        let session = superuser(&scratch).await;
        let plain = Locale {
            encoding: "UTF8".into(),
            collate: "C.UTF-8".into(),
            ctype: "C.UTF-8".into(),
            provider: "libc".into(),
            locale: None,
            icu_rules: None,
            monetary: "C".into(),
        };
        let of = |encoding: &str, collate: &str, ctype: &str| Locale {
            encoding: encoding.into(),
            collate: collate.into(),
            ctype: ctype.into(),
            ..plain.clone()
        };
        let by = |provider: &str, locale: &str| Locale {
            provider: provider.into(),
            locale: Some(locale.into()),
            ..plain.clone()
        };
        let create = async |name: &str, locale: Locale| {
            let lines =
                create_database(&session, name, &locale, &"".into(), Fallback::Nearest).await.unwrap();
            let row = session
                .client
                .query_one(
                    "SELECT pg_encoding_to_char(encoding) || ' ' || datcollate FROM pg_database WHERE datname = $1",
                    &[&name],
                )
                .await
                .unwrap();
            (lines, row.get::<_, String>(0))
        };
        assert_eq!(create("exact", plain.clone()).await, (vec![], "UTF8 C.UTF-8".to_owned()));
        let latin = of("LATIN1", "C", "C");
        assert_eq!(create("latin", latin).await, (vec![], "LATIN1 C".to_owned()));
        let ascii = of("SQL_ASCII", "xx_XX", "C");
        let (lines, got) = create("../x \"y\"", ascii).await;
        assert_eq!((lines.len(), got.as_str()), (1, "SQL_ASCII C"), "{lines:?}");
        let missing = of("UTF8", "xx_XX.UTF-8", "xx_XX.UTF-8");
        let (lines, got) = create("missing", missing).await;
        assert_eq!((lines.len(), got.as_str()), (2, "UTF8 C.UTF-8"), "{lines:?}");
        assert!(lines[0].contains("\"xx_XX.UTF-8\" is not installed"), "{lines:?}");
        if major >= 15 {
            let icu = by("icu", "de-DE");
            let (lines, got) = create("icu", icu).await;
            assert_eq!(got, "UTF8 C.UTF-8");
            let provider =
                text(&session, "SELECT datlocprovider::text FROM pg_database WHERE datname = 'icu'").await;
            assert_eq!(lines.is_empty(), provider == "i", "{lines:?}");
        }
        if major >= 17 {
            let builtin = by("builtin", "C.UTF-8");
            assert_eq!(create("builtin", builtin).await.0, Vec::<String>::new());
        }
        let again =
            create_database(&session, "exact", &plain, &"".into(), Fallback::Nearest).await.unwrap_err();
        assert!(again.to_string().contains("42P04"), "{again}");
        scratch.stop().await.unwrap();
    }
}
