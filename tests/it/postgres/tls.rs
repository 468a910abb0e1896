//! `sslmode` against servers with certificates of their own; libpq must agree each time.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::process::geteuid;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use opsd::config::{Connection, SslMode};
use opsd::postgres::connect::connect;
use opsd::postgres::tools;

use super::connection;
use crate::support::certificates::{Authority, Pair, in_days};
use crate::support::hostile::server;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{
    self, Options, Server, bin_dir, default_major, expect_success, server_directory, unique,
    unprivileged_user,
};
use crate::support::postgres_proxy::PostgresProxy;

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
    let tools = tools::find(major, Some(&bin_dir(major)), &[]).await.unwrap().for_server(default_major());
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

/// What an SSLRequest is answered with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    /// A byte that is no word for TLS.
    Plain(u8),
    /// TLS, with the certificate that the server has.
    Tls,
}

/// Whoever stands between: answers a request for TLS like this, asks for the password in clear, and hands on
/// everything that it is sent for it.
async fn asks_in_clear(
    answer: Answer,
    certificate: &Pair,
) -> (u16, tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, received) = tokio::sync::mpsc::unbounded_channel();
    let acceptor = acceptor(certificate);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut startup = vec![0; 4096];
            let n = stream.read(&mut startup).await.unwrap();
            let sent = if !startup[..n].ends_with(&80_877_103_u32.to_be_bytes()) {
                ask(&mut stream).await
            } else if let Answer::Plain(byte) = answer {
                stream.write_all(&[byte]).await.unwrap();
                // A client that thinks better of it hangs up.
                if stream.read(&mut startup).await.unwrap_or(0) > 0 {
                    ask(&mut stream).await
                } else {
                    Vec::new()
                }
            } else {
                stream.write_all(b"S").await.unwrap();
                let mut sent = Vec::new();
                if let Ok(mut stream) = acceptor.accept(stream).await
                    && stream.read(&mut startup).await.unwrap_or(0) > 0
                {
                    sent = ask(&mut stream).await;
                }
                sent
            };
            let _ = sender.send(sent);
        }
    });
    (port, received)
}

fn acceptor(pair: &Pair) -> tokio_rustls::TlsAcceptor {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.certificate.der().clone()], key)
        .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

/// AuthenticationCleartextPassword, and what comes back.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Vec<u8> {
    let mut sent = vec![0; 4096];
    let _ = stream.write_all(&crate::postgres::fake::message(b'R', &3_u32.to_be_bytes())).await;
    let _ = stream.flush().await;
    let n = stream.read(&mut sent).await.unwrap_or(0);
    sent.truncate(n);
    sent
}

/// A host that opsd and libpq do not take for this one: only a lookup finds out where it leads.
const ELSEWHERE: &str = "0x7f000001";

/// Who asks for the password gets it only where that was allowed; this one writes down what it was sent.
#[tokio::test]
async fn a_password_that_may_not_be_asked_for_is_not_sent() {
    use Answer::{Plain, Tls};
    let place = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new("ca", in_days(30)), Authority::new("other", in_days(30)));
    let certificate = authority.sign(&["localhost"], "server", in_days(30));
    let (ca, others) = (place.path().join("ca.crt"), place.path().join("other.crt"));
    authority.pair.write(&ca, &place.path().join("ca.key"), &[]);
    other.pair.write(&others, &place.path().join("other.key"), &[]);
    let with = |parameters: &str, root: &Path| format!("{parameters}&sslrootcert={}", root.display());
    let (here, only) = ("127.0.0.1", str::to_owned);
    let mut wrong = Vec::new();
    for (host, answer, parameters, is_sent) in [
        (here, Plain(b'N'), only("sslmode=prefer&require_auth=scram-sha-256"), false),
        (here, Plain(b'N'), only("sslmode=disable&require_auth=!password"), false),
        (here, Plain(b'N'), only("channel_binding=require"), false),
        (here, Plain(b'X'), only("require_auth=scram-sha-256"), false),
        (here, Plain(b'E'), only("require_auth=scram-sha-256"), false),
        (here, Plain(b'N'), only("sslmode=disable&require_auth=password"), true),
        (here, Plain(b'N'), only("sslmode=prefer"), true),
        (here, Tls, only("sslmode=require"), true),
        // Another host, as far as anybody can tell.
        (ELSEWHERE, Plain(b'N'), only("sslmode=disable"), false),
        (ELSEWHERE, Plain(b'N'), only("sslmode=prefer"), false),
        (ELSEWHERE, Plain(b'X'), only("sslmode=prefer"), false),
        (ELSEWHERE, Plain(b'E'), only("sslmode=allow"), false),
        (ELSEWHERE, Plain(b'X'), only("sslmode=require"), false),
        (ELSEWHERE, Plain(b'N'), only("require_auth=password"), false),
        (ELSEWHERE, Plain(b'N'), only("sslmode=disable&require_auth=password"), true),
        (ELSEWHERE, Tls, only("sslmode=prefer"), false),
        (ELSEWHERE, Tls, only("sslmode=require"), false),
        (ELSEWHERE, Tls, only("sslmode=require&require_auth=!md5"), false),
        (ELSEWHERE, Tls, with("sslmode=prefer", &others), false),
        (ELSEWHERE, Tls, with("sslmode=prefer", &ca), false),
        (ELSEWHERE, Tls, with("sslmode=verify-ca", &others), false),
        (ELSEWHERE, Tls, with("sslmode=require", &ca), true),
        (ELSEWHERE, Tls, with("sslmode=verify-ca", &ca), true),
        (ELSEWHERE, Tls, only("sslmode=require&require_auth=password"), true),
        ("localhost", Tls, with("sslmode=verify-full", &ca), true),
    ] {
        let (port, mut received) = asks_in_clear(answer, &certificate).await;
        let dsn = format!("postgres://u:c4nary@{host}:{port}/d?connect_timeout=5&{parameters}");
        let env = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
        let connection = opsd::config::libpq::resolve(&dsn, &env).unwrap().connection;
        let error = connect(&connection, None, "opsd").await.unwrap_err();
        let sent = received.recv().await.unwrap();
        // Where TLS fails, another attempt follows.
        let more = tokio::time::timeout(std::time::Duration::from_millis(100), received.recv()).await;
        let sent = [sent, more.ok().flatten().unwrap_or_default()].concat();
        if memchr::memmem::find(&sent, b"c4nary").is_some() != is_sent {
            wrong.push(format!("{host} {answer:?} {parameters} (to be sent: {is_sent}): {error:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Passes opsd's own sessions through to a server, without TLS, and asks everybody else for the password in
/// clear. What it was sent for that, it hands on.
fn lets_opsd_through(target: u16) -> (u16, std::sync::mpsc::Receiver<Vec<u8>>) {
    use std::io::{Read as _, Write as _};
    let (sender, received) = std::sync::mpsc::channel();
    let port = server(move |mut client| {
        let packet = |client: &mut std::net::TcpStream| {
            let mut length = [0; 4];
            client.read_exact(&mut length)?;
            let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
            client.read_exact(&mut body)?;
            Ok::<_, std::io::Error>([length.to_vec(), body].concat())
        };
        let mut startup = packet(&mut client)?;
        while startup.len() == 8 {
            client.write_all(b"N")?;
            startup = packet(&mut client)?;
        }
        // What opsd pins, and pg_dump sets itself.
        if memchr::memmem::find(&startup, b"search_path").is_none() {
            client.write_all(&crate::postgres::fake::message(b'R', &3_u32.to_be_bytes()))?;
            let mut sent = vec![0; 4096];
            let n = client.read(&mut sent).unwrap_or(0);
            sent.truncate(n);
            let _ = sender.send(sent);
            return Ok(());
        }
        let mut server = std::net::TcpStream::connect(("127.0.0.1", target))?;
        server.write_all(&startup)?;
        let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
        let _ = std::io::copy(&mut client, &mut server);
        server.shutdown(std::net::Shutdown::Both)
    });
    (port, received)
}

/// A site whose server is behind a port, at a host that is taken for another one.
fn site_behind(server: &Server, port: u16, parameters: &str) -> Opsd {
    let database = server.fresh_database("between");
    let role = unique("between");
    server.psql("postgres", &format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'c4nary'"));
    let mut opsd = Opsd::new(server, &[&database]);
    let url = format!("postgres://{role}@{ELSEWHERE}:{port}/{database}?{parameters}");
    opsd.postgres.set("url", quoted(&url));
    opsd.env("PGPASSWORD", "c4nary");
    opsd
}

/// Whoever stands between may let opsd's own sessions pass, and take the password from pg_dump.
#[test]
fn pg_dump_sends_no_password_in_clear_either() {
    let server = postgres::shared(KNOWS);
    let (port, received) = lets_opsd_through(server.port);
    // Whether any of those that were asked sent it; none where nobody was.
    let asked = || {
        let first = received.recv_timeout(std::time::Duration::from_secs(30)).ok()?;
        let all: Vec<Vec<u8>> = std::iter::once(first).chain(received.try_iter()).collect();
        Some(all.iter().any(|sent| memchr::memmem::find(sent, b"c4nary").is_some()))
    };
    for parameters in ["sslmode=prefer", "sslmode=disable", "sslmode=disable&require_auth=!md5"] {
        let opsd = site_behind(server, port, parameters);
        let run = opsd.run(&["backup", "db"]);
        assert_eq!(asked(), Some(false), "{parameters}: it was sent; {run}");
        run.expect_failure(1, &["authentication method requirement", "hint: ", "require_auth=password"]);
    }
    let opsd = site_behind(server, port, "sslmode=disable&require_auth=password,scram-sha-256");
    let run = opsd.run(&["backup", "db"]);
    assert_eq!(asked(), Some(true), "it was allowed: {run}");
}

/// libpq before 16 answers whatever it is asked. Nobody is kept from backing up by it, and everybody is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_pg_dump_that_would_send_the_password_in_clear_is_told_of() {
    for (major, is_told) in [(14, true), (KNOWS, false)] {
        let server = postgres::shared(major);
        let proxy = PostgresProxy::start(server.port).await;
        let opsd = site_behind(server, proxy.port, "sslmode=prefer");
        let told = "does not know require_auth";
        let run = opsd.ok(&["backup", "db"]);
        assert_eq!(run.stderr.contains(told), is_told, "{run}");
        let document = opsd.ok(&["backup", "db", "--json"]).json();
        assert_eq!(document["sets"][0]["warnings"].to_string().contains(told), is_told, "{document}");
        let plan = opsd.ok(&["backup", "db", "--dry-run"]);
        assert_eq!(plan.stdout.contains(told), is_told, "{plan}");
        let restored = opsd.ok(&["restore", "db", "--to", "main", "--replace", "--yes"]);
        assert_eq!(restored.stderr.contains(told), is_told, "{restored}");
        // Who says that it may be sent is told nothing, and neither is who is sure of the server.
        let opsd = site_behind(server, proxy.port, "sslmode=disable&require_auth=password,scram-sha-256");
        let run = opsd.ok(&["backup", "db"]);
        assert!(!run.stderr.contains(told), "{run}");
    }
}
