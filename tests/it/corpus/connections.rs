//! Ways to a server that reports about other tools tell of: what `psql` and `pg_dump` get through with, opsd does.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::support::opsd::{Opsd, quoted, write_private};
use crate::support::postgres::{
    Options, PASSWORD, SUPERUSER, Server, bin_dir, default_major, expect_success, free_port, identifier,
    literal, server_directory, unprivileged_user,
};
use crate::support::processes::until;
use crate::support::torture::torture;

/// Passwords that a file, a URL, a variable or a shell would take apart.
const PASSWORDS: [&str; 7] =
    [r"a:b\c'd", "äöü 密码", " around ", "%41%%", "#first", r#"'"$HOME`id`\\:"#, "p@ss/w?rd#x&y=z+"];
/// A role and a database whose names each of these would take apart, too.
const ROLE: &str = r"ro:le\@ü %41/x";
const DATABASE: &str = r"data:base\@ü %41/x?y";

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A server on both loopback addresses, or on the one that this machine has; its socket asks for a password, too.
fn server() -> (Server, bool) {
    let has_ipv6 = std::net::TcpListener::bind(("::1", 0)).is_ok();
    let settings = [("listen_addresses", if has_ipv6 { "127.0.0.1, ::1" } else { "127.0.0.1" })];
    let hba = ["local all all scram-sha-256", "host all all ::1/128 scram-sha-256"];
    let options = Options { settings: &settings, hba: &hba, ..Options::default() };
    (Server::start(default_major(), &options), has_ipv6)
}

fn admin(server: &Server, database: &str, sql: &str) {
    let mut psql = server.client("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    expect_success(psql.env("PGPASSWORD", PASSWORD).env("PGDATABASE", database));
}

/// Backs up the way that this site connects.
fn backs_up(opsd: &Opsd, how: &str) {
    let run = opsd.run(&["backup", "--json"]);
    assert_eq!(run.code, Some(0), "{how}: {run}");
    assert_eq!(run.json()["sets"][0]["databases"][0]["tables"], 1, "{how}: {run}");
}

#[test]
fn odd_names_and_passwords_come_by_every_way() {
    let (server, has_ipv6) = &server();
    admin(server, "postgres", &format!("CREATE ROLE {} SUPERUSER LOGIN", identifier(ROLE)));
    admin(server, "postgres", &format!("CREATE DATABASE {}", identifier(DATABASE)));
    admin(server, DATABASE, "CREATE TABLE things AS SELECT generate_series(1, 10) AS id");
    let (socket, port) = (server.socket_dir().to_str().unwrap(), server.port);
    if !has_ipv6 {
        eprintln!("this machine has no ::1: the way over IPv6 is not tried");
    }
    let (host, in_url) = if *has_ipv6 { ("::1", "[::1]") } else { ("127.0.0.1", "127.0.0.1") };
    let url = format!("postgres://{}@{in_url}:{port}/{}", encoded(ROLE), encoded(DATABASE));
    for (n, password) in PASSWORDS.iter().enumerate() {
        let change = format!("ALTER ROLE {} PASSWORD {}", identifier(ROLE), literal(password));
        admin(server, "postgres", &change);
        let site = |url: &str| {
            let mut opsd = Opsd::new(server, &[DATABASE]);
            opsd.postgres.set("url", quoted(url));
            opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
            opsd
        };
        let use_passfile = |opsd: &mut Opsd, host: &str| {
            let escaped = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
            let fields = [host, &port.to_string(), DATABASE, ROLE, password].map(escaped);
            let text = format!("# said of it\nelsewhere:*:*:*:wrong\n{}\n*:*:*:*:wrong\n", fields.join(":"));
            write_private(&opsd.path("pgpass"), &text);
            opsd.env("PGPASSFILE", opsd.path("pgpass"));
        };
        // Every way with every password under torture; each way with one of them otherwise.
        let is_turn = |way: usize| torture() || n == way;
        if is_turn(0) {
            let mut opsd = site(&url);
            use_passfile(&mut opsd, host);
            backs_up(&opsd, &format!("a password file, {host}, {password:?}"));
        }
        if is_turn(1) {
            let mut opsd = site(&url);
            backs_up(opsd.env("PGPASSWORD", password), &format!("PGPASSWORD, {host}, {password:?}"));
            let restored = format!("{DATABASE} {n}");
            let url = url.replace(&encoded(DATABASE), &encoded(&restored));
            opsd.ok(&["restore", "db", "--to", &url, "--create"]);
            admin(server, &restored, "SELECT 1 / count(*) FROM things");
        }
        if is_turn(2) {
            let (role, socket, database) = (encoded(ROLE), encoded(socket), encoded(DATABASE));
            let mut opsd = site(&format!("postgres://{role}:${{SECRET}}@{socket}:{port}/{database}"));
            backs_up(opsd.env("SECRET", encoded(password)), &format!("the URL, a socket, {password:?}"));
        }
        if is_turn(3) {
            let mut opsd = site("service=odd");
            let keys = format!("host={host}\nport={port}\ndbname={DATABASE}\nuser={ROLE}\n");
            write_private(&opsd.path("services"), &format!("[other]\nhost=nowhere\n\n[odd]\n{keys}"));
            opsd.env("PGSERVICEFILE", opsd.path("services"));
            use_passfile(&mut opsd, host);
            backs_up(&opsd, &format!("a service, a password file, {password:?}"));
        }
        if is_turn(4) {
            let escaped = |text: &str| text.replace('\\', r"\\").replace('\'', r"\'");
            let (role, database) = (escaped(ROLE), escaped(DATABASE));
            let mut opsd = site(&format!("host='{socket}' port={port} user='{role}' dbname='{database}'"));
            use_passfile(&mut opsd, socket);
            backs_up(&opsd, &format!("keys and values, a password file, a socket, {password:?}"));
        }
    }
}

/// PgBouncer in front of a server.
struct Pooler {
    child: Child,
    directory: std::path::PathBuf,
    port: u16,
}

impl Pooler {
    fn start(server: &Server, mode: &str, more: &str) -> Pooler {
        let program = std::path::Path::new("/usr/sbin/pgbouncer");
        assert!(program.exists(), "PgBouncer is not installed: run scripts/setup --corpus");
        let directory = server_directory("pgbouncer");
        let (users, ini) = (directory.join("users"), directory.join("ini"));
        let port = free_port();
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = plain\nauth_file = {}\npool_mode = {mode}\n{more}\n",
            server.port,
            users.display(),
        );
        std::fs::write(&users, format!("\"{SUPERUSER}\" \"{PASSWORD}\"\n")).unwrap();
        std::fs::write(&ini, text).unwrap();
        let mut command = Command::new(program);
        command.arg(&ini).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((uid, gid)) = unprivileged_user() {
            command.uid(uid).gid(gid);
        }
        let child = command.spawn().unwrap();
        until("PgBouncer listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Pooler { child, directory, port }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A pooler that drops the settings of a session would have rows written otherwise, and one that hands a session to
/// others a job's lock: no mode is taken for the server itself.
#[test]
fn no_mode_of_a_pooler_passes_for_the_server() {
    if !torture() {
        return;
    }
    let server = &Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql("app", "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    for mode in ["session", "transaction", "statement"] {
        for more in ["", "ignore_startup_parameters = extra_float_digits, options"] {
            let pooler = Pooler::start(server, mode, more);
            let mut opsd = Opsd::new(server, &["app"]);
            opsd.postgres
                .set("url", quoted(&format!("postgres://{SUPERUSER}@127.0.0.1:{}/app", pooler.port)));
            opsd.env("PGPASSWORD", PASSWORD);
            let how = format!("PgBouncer, {mode} {more}");
            let run = opsd.run(&["backup", "--json"]);
            assert_eq!(run.code, Some(1), "{how}: {run}");
            assert!(run.stderr.contains("connect to the server itself"), "{how}: {run}");
            eprintln!("{how}: refused, and named");
        }
    }
}
