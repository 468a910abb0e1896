//! `sslmode` against servers with certificates of their own; libpq must agree each time.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;

use opsd::config::{Connection, SslMode};
use opsd::postgres::connect::connect;
use opsd::postgres::tools;

use super::connection;
use crate::support::postgres::{
    self, Options, Server, bin_dir, default_major, expect_success, server_directory, unprivileged_user,
};

/// A directory of certificates that the server can read; removed at the end.
struct Certificates(PathBuf);

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Certificates {
    fn new() -> Self {
        let directory = server_directory("tls");
        // What root trusts is root's; only the servers' keys are theirs.
        if geteuid().is_root() {
            chown(&directory, Some(0), None).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn openssl(&self, words: &str) {
        let mut command = Command::new("openssl");
        command.current_dir(&self.0).args(words.split(' '));
        expect_success(&mut command);
    }

    /// A self-signed certificate, which OpenSSL makes an authority.
    fn authority(&self, name: &str, extra: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -keyout {name}.key -out {name}.crt{extra}"
        ));
        self.protect(&format!("{name}.key"));
    }

    fn signed(&self, name: &str, by: &str, extensions: &str) {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        std::fs::write(self.path("extensions"), extensions).unwrap();
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {by}.crt -CAkey {by}.key -CAcreateserial -days 2 \
             -extfile extensions -out {name}.crt"
        ));
        self.protect(&format!("{name}.key"));
    }

    fn protect(&self, name: &str) {
        let path = self.path(name);
        if let Some((uid, gid)) = unprivileged_user() {
            chown(&path, Some(uid), Some(gid)).unwrap();
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    }

    fn server(&self, certificate: &str, authority: &str, hba: &[&str]) -> Server {
        let text = |name: String| self.path(&name).display().to_string();
        let (cert, key) = (text(format!("{certificate}.crt")), text(format!("{certificate}.key")));
        let ca = text(format!("{authority}.crt"));
        let settings =
            [("ssl", "on"), ("ssl_cert_file", &cert), ("ssl_key_file", &key), ("ssl_ca_file", &ca)];
        Server::start(default_major(), &Options { settings: &settings, hba, ..Options::default() })
    }
}

fn with(server: &Server, host: &str, sslmode: SslMode, root: Option<&Path>) -> Connection {
    let mut connection = connection(server);
    connection.hosts[0].0 = host.to_owned();
    connection.sslmode = sslmode;
    connection.sslrootcert = root.map(Path::to_owned);
    connection
}

/// Whether a connection is made, and with TLS, or the error and its hint; libpq must see the same.
async fn outcome(connection: &Connection) -> Result<bool, String> {
    outcome_with(default_major(), connection).await
}

/// The same with the libpq of another version.
async fn outcome_with(major: u32, connection: &Connection) -> Result<bool, String> {
    let sql = "SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()";
    let own = match connect(connection, None, "opsd").await {
        Ok(session) => Ok(session.client.query_one(sql, &[]).await.unwrap().get(0)),
        Err(error) => Err(format!("{error:?}")),
    };
    let tools = tools::find(major, Some(&bin_dir(major)), &[]).await.unwrap();
    let mut psql = tools.command("psql", connection, "postgres", "opsd").unwrap();
    let output = psql.args(["-XAt", "-c", sql]).output().await.unwrap();
    let theirs = output.status.success().then(|| output.stdout == b"t\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(own.as_ref().ok().copied(), theirs, "psql: {said}; opsd: {own:?}");
    own
}

#[tokio::test]
async fn modes_check_what_they_promise() {
    let certificates = Certificates::new();
    certificates.authority("ca", "");
    certificates.authority("other", "");
    certificates.signed("server", "ca", "subjectAltName=DNS:localhost\n");
    let hba = [
        "hostssl all tls_only 127.0.0.1/32 trust",
        "hostnossl all plain_only 127.0.0.1/32 trust",
        "host all tls_only,plain_only 127.0.0.1/32 reject",
    ];
    let server = certificates.server("server", "ca", &hba);
    server.psql("postgres", "CREATE ROLE tls_only LOGIN; CREATE ROLE plain_only LOGIN");
    let (ca, other) = (certificates.path("ca.crt"), certificates.path("other.crt"));
    let (ip, name) = ("127.0.0.1", "localhost");
    let at = |host, mode, root: Option<&Path>| with(&server, host, mode, root);

    assert_eq!(outcome(&at(ip, SslMode::Disable, None)).await, Ok(false));
    assert_eq!(outcome(&at(ip, SslMode::Prefer, None)).await, Ok(true));
    assert_eq!(outcome(&at(ip, SslMode::Require, None)).await, Ok(true));
    assert_eq!(outcome(&at(ip, SslMode::Require, Some(&ca))).await, Ok(true));
    assert_eq!(outcome(&at(ip, SslMode::VerifyCa, Some(&ca))).await, Ok(true));
    assert_eq!(outcome(&at(name, SslMode::VerifyFull, Some(&ca))).await, Ok(true));

    let wrong_name = outcome(&at(ip, SslMode::VerifyFull, Some(&ca))).await.unwrap_err();
    assert!(wrong_name.contains("subjectAltName"), "{wrong_name}");
    for (mode, root) in [
        (SslMode::Require, other.as_path()),
        (SslMode::VerifyCa, &other),
        (SslMode::VerifyFull, &other),
        (SslMode::VerifyFull, Path::new("system")),
    ] {
        let stranger = outcome(&at(name, mode, Some(root))).await.unwrap_err();
        assert!(stranger.contains("UnknownIssuer") && stranger.contains("sslrootcert"), "{stranger}");
    }
    let missing = outcome(&at(ip, SslMode::VerifyCa, Some(Path::new("/nonexistent.crt")))).await.unwrap_err();
    assert!(missing.contains("cannot read root certificate /nonexistent.crt"), "{missing}");

    let as_role = |role: &str, mode| Connection { user: role.to_owned(), ..at(ip, mode, None) };
    assert_eq!(outcome(&as_role("plain_only", SslMode::Prefer)).await, Ok(false), "libpq falls back");
    let refused = outcome(&as_role("tls_only", SslMode::Disable)).await.unwrap_err();
    assert!(refused.contains("sslmode=require"), "{refused}");
    let refused = outcome(&as_role("plain_only", SslMode::Require)).await.unwrap_err();
    assert!(refused.contains("pg_hba.conf"), "{refused}");
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_root() {
    let certificates = Certificates::new();
    certificates.authority("self", " -addext subjectAltName=DNS:localhost");
    let server = certificates.server("self", "self", &[]);
    let root = certificates.path("self.crt");
    assert_eq!(outcome(&with(&server, "localhost", SslMode::VerifyFull, Some(&root))).await, Ok(true));
    assert_eq!(outcome(&with(&server, "127.0.0.1", SslMode::VerifyCa, Some(&root))).await, Ok(true));
    assert!(outcome(&with(&server, "127.0.0.1", SslMode::VerifyFull, Some(&root))).await.is_err());
    certificates.authority("impostor", " -addext subjectAltName=DNS:localhost");
    let impostor = certificates.path("impostor.crt");
    assert!(outcome(&with(&server, "localhost", SslMode::VerifyFull, Some(&impostor))).await.is_err());
}

#[tokio::test]
async fn client_certificates_are_shown() {
    let certificates = Certificates::new();
    certificates.authority("ca", "");
    certificates.signed("server", "ca", "subjectAltName=DNS:localhost\n");
    certificates.signed("alice", "ca", "extendedKeyUsage=clientAuth\n");
    let server = certificates.server("server", "ca", &["hostssl all alice 127.0.0.1/32 cert"]);
    server.psql("postgres", "CREATE ROLE alice LOGIN");
    let mut alice = with(&server, "127.0.0.1", SslMode::Require, None);
    alice.user = "alice".to_owned();
    alice.password = None;
    let without = outcome(&alice).await.unwrap_err();
    assert!(without.contains("certificate"), "{without}");
    // libpq wants the key to be the caller's own.
    if postgres::unprivileged_user().is_some() {
        chown(certificates.path("alice.key"), Some(0), Some(0)).unwrap();
    }
    alice.sslcert = Some(certificates.path("alice.crt"));
    alice.sslkey = Some(certificates.path("alice.key"));
    assert_eq!(outcome(&alice).await, Ok(true));
    alice.sslkey = Some(certificates.path("alice.crt"));
    let wrong = outcome(&alice).await.unwrap_err();
    assert!(wrong.contains("cannot read client key"), "{wrong}");
}

/// The first whose libpq has `require_auth` is 16.
const KNOWS: u32 = 17;

/// What a URL with these parameters resolves to, for a role on a server.
fn resolved(server: &Server, role: &str, parameters: &str) -> Connection {
    let dsn = format!("postgres://{role}:pw@127.0.0.1:{}/postgres?{parameters}", server.port);
    let env = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
    opsd::config::libpq::resolve(&dsn, &env).unwrap().connection
}

/// Every method of the server's, against every list that an operator might write: as libpq decides.
#[tokio::test]
async fn methods_and_channel_binding_are_required_as_libpq_requires_them() {
    let certificates = Certificates::new();
    certificates.authority("ca", "");
    certificates.signed("server", "ca", "subjectAltName=DNS:localhost\n");
    let roles = ["scram", "md5", "clear", "trusts"];
    let methods = ["scram-sha-256", "md5", "password", "trust"];
    let hba: Vec<String> = roles
        .iter()
        .zip(methods)
        .map(|(role, method)| format!("host all {role} 127.0.0.1/32 {method}"))
        .collect();
    let hba: Vec<&str> = hba.iter().map(String::as_str).collect();
    let server = certificates.server("server", "ca", &hba);
    server.psql(
        "postgres",
        "CREATE ROLE scram LOGIN PASSWORD 'pw'; CREATE ROLE clear LOGIN PASSWORD 'pw'; CREATE ROLE trusts LOGIN;
         SET password_encryption = 'md5'; CREATE ROLE md5 LOGIN PASSWORD 'pw'",
    );
    let asked = ["scram-sha-256", "md5", "password", "none"];
    for mode in ["disable", "require"] {
        for (role, method) in roles.iter().zip(asked) {
            for require in
                ["scram-sha-256", "md5,password", "none", "!password", "!none,!md5", "password,none"]
            {
                let connection = resolved(&server, role, &format!("sslmode={mode}&require_auth={require}"));
                let names = require.split(',').any(|word| word.trim_start_matches('!') == method);
                let is_allowed = names != require.starts_with('!');
                match outcome_with(KNOWS, &connection).await {
                    Ok(_) => assert!(is_allowed, "{role} got in by {method} against {require}"),
                    Err(error) => {
                        assert!(!is_allowed && error.contains("require_auth="), "{role}, {require}: {error}");
                    }
                }
            }
            let bound = outcome_with(
                KNOWS,
                &resolved(&server, role, &format!("sslmode={mode}&channel_binding=require")),
            )
            .await;
            assert_eq!(bound.is_ok(), *role == "scram" && mode == "require", "{role}: {bound:?}");
            outcome_with(KNOWS, &resolved(&server, role, &format!("sslmode={mode}&channel_binding=disable")))
                .await
                .unwrap();
        }
    }
}

/// Who asks for the password gets it only where that was allowed; this one writes down what it was sent.
#[tokio::test]
async fn a_password_that_may_not_be_asked_for_is_not_sent() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut startup = vec![0; 4096];
            let n = stream.read(&mut startup).await.unwrap();
            if startup[..n].ends_with(&80_877_103_u32.to_be_bytes()) {
                stream.write_all(b"N").await.unwrap();
                let _ = stream.read(&mut startup).await.unwrap();
            }
            stream.write_all(&crate::postgres::fake::message(b'R', &3_u32.to_be_bytes())).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            sender.send(answer).unwrap();
        }
    });
    for (parameters, is_sent) in [
        ("sslmode=prefer&require_auth=scram-sha-256", false),
        ("sslmode=disable&require_auth=!password", false),
        ("channel_binding=require", false),
        ("sslmode=disable&require_auth=password", true),
    ] {
        let dsn = format!("postgres://u:c4nary@127.0.0.1:{port}/d?connect_timeout=2&{parameters}");
        let env = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
        let connection = opsd::config::libpq::resolve(&dsn, &env).unwrap().connection;
        let error = connect(&connection, None, "opsd").await.unwrap_err();
        let sent = received.recv().await.unwrap();
        let has_password = memchr::memmem::find(&sent, b"c4nary").is_some();
        assert_eq!(has_password, is_sent, "{parameters}: {error:?}");
    }
}
