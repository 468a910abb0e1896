//! Connections, pinned settings, and an error with a next step for everything that can be wrong.

use std::time::Duration;

use opsd::config::secret::Secret;
use opsd::config::{Connection, SslMode};
use opsd::error::Error;
use opsd::postgres::connect::{connect, connect_with, error};

use super::{connection, connection_to, fake};
use crate::support::postgres::{self, Options, PASSWORD, Server, free_port, identifier, unique};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The error's text and hint, after a check that it holds no password.
async fn refused(connection: &Connection) -> (String, String) {
    let error: Error = connect(connection, None, "opsd").await.unwrap_err();
    let (text, hint) = (error.to_string(), error.hint().unwrap_or_default().to_owned());
    for secret in [PASSWORD, "wr0ng-secret"] {
        assert!(!text.contains(secret) && !hint.contains(secret), "{error:?}");
    }
    (text, hint)
}

#[test]
fn settings_are_pinned_on_every_major() {
    postgres::for_each_major(|server| {
        let name = unique("pin \"../x y");
        server.create_database(&name);
        let quoted = identifier(&name);
        server.psql("postgres", &format!("ALTER DATABASE {quoted} SET search_path = public; ALTER DATABASE {quoted} SET timezone = 'Asia/Tokyo'; ALTER DATABASE {quoted} SET bytea_output = 'escape'"));
        block_on(async {
            let mut connection = connection(server);
            connection.options = Some("-c search_path=public -c work_mem=7MB".to_owned());
            let session = connect_with(&connection, Some(&name), "opsd test", &[("lock_timeout", "1234ms")])
                .await
                .unwrap();
            assert_eq!(session.major(), server.major);
            let expected = [
                ("search_path", ""),
                ("timezone", "UTC"),
                ("bytea_output", "hex"),
                ("extra_float_digits", "3"),
                ("row_security", "off"),
                ("client_encoding", "UTF8"),
                ("lock_timeout", "1234ms"),
                ("work_mem", "7MB"),
                ("application_name", "opsd test"),
            ];
            for (setting, value) in expected {
                let row = session.client.query_one("SELECT current_setting($1)", &[&setting]).await.unwrap();
                assert_eq!(row.get::<_, String>(0), value, "{setting}");
            }
            let row = session.client.query_one("SELECT current_database()::text", &[]).await.unwrap();
            assert_eq!(row.get::<_, String>(0), name);
            session.close().await;
        });
        server.drop_database(&name);
    });
}

#[tokio::test]
async fn sockets_and_the_second_of_two_hosts() {
    let server = postgres::default_server();
    let mut socket = connection(server);
    socket.hosts = vec![(server.socket_dir().display().to_string(), server.port)];
    socket.password = None;
    // libpq ignores it on a socket.
    socket.sslmode = SslMode::VerifyFull;
    connect(&socket, None, "opsd").await.unwrap();

    let mut two = connection(server);
    two.hosts.insert(0, ("127.0.0.1".to_owned(), free_port()));
    let session = connect(&two, None, "opsd").await.unwrap();
    assert_eq!(session.host, format!("127.0.0.1:{}", server.port));

    two.hosts = vec![("127.0.0.1".to_owned(), free_port()), ("/nonexistent".to_owned(), 5432)];
    let (text, hint) = refused(&two).await;
    assert!(text.contains(&format!("127.0.0.1:{}", two.hosts[0].1)), "{text}");
    assert!(text.contains("/nonexistent/.s.PGSQL.5432"), "{text}");
    assert!(hint.contains("start the server"), "{hint}");
}

#[tokio::test]
async fn every_refusal_has_a_next_step() {
    let hba = ["host all hba_rejected 127.0.0.1/32 reject"];
    let server = Server::start(postgres::default_major(), &Options { hba: &hba, ..Options::default() });
    server.psql("postgres", "CREATE ROLE hba_rejected LOGIN; CREATE ROLE full LOGIN CONNECTION LIMIT 0 PASSWORD 'x'; CREATE DATABASE closed; REVOKE CONNECT ON DATABASE closed FROM public; CREATE ROLE alice LOGIN PASSWORD 'x'");
    let good = connection(&server);
    let with = |change: &dyn Fn(&mut Connection)| {
        let mut connection = good.clone();
        change(&mut connection);
        connection
    };
    let port = free_port();
    let cases = [
        (with(&|c| c.hosts = vec![("127.0.0.1".into(), port)]), "Connection refused", "start the server"),
        (
            with(&|c| c.hosts = vec![("no-such-host.invalid".into(), 1)]),
            "no-such-host.invalid:1",
            "name resolves",
        ),
        (with(&|c| c.hosts = vec![("/nonexistent".into(), 1)]), "No such file", "unix_socket_directories"),
        (with(&|c| c.password = Some(Secret::new("wr0ng-secret"))), "SQLSTATE 28P01", "check the password"),
        (with(&|c| c.password = None), "asks for a password, and none is configured", "PGPASSWORD"),
        (with(&|c| c.user = "nobody_here".into()), "SQLSTATE 28P01", "check the password"),
        (with(&|c| c.dbname = "no such".into()), "SQLSTATE 3D000", "create database \"no such\""),
        (with(&|c| c.user = "hba_rejected".into()), "SQLSTATE 28000", "pg_hba.conf"),
        (
            with(&|c| (c.user, c.password) = ("full".into(), Some(Secret::new("x")))),
            "SQLSTATE 53300",
            "max_connections",
        ),
        (
            with(&|c| {
                (c.user, c.password, c.dbname) = ("alice".into(), Some(Secret::new("x")), "closed".into())
            }),
            "SQLSTATE 42501",
            "GRANT CONNECT",
        ),
        (with(&|c| c.sslmode = SslMode::Require), "server does not support TLS", "turn on ssl"),
    ];
    for (connection, text, hint) in cases {
        let (got_text, got_hint) = refused(&connection).await;
        assert!(got_text.contains(text), "{got_text} lacks {text:?}");
        assert!(got_hint.contains(hint), "{got_text}: {got_hint} lacks {hint:?}");
    }
    let mut role = good.clone();
    role.hosts = vec![(server.socket_dir().display().to_string(), server.port)];
    role.user = "nobody_here".into();
    let (text, hint) = refused(&role).await;
    assert!(text.contains("role \"nobody_here\" does not exist"), "{text}");
    assert!(hint.contains("create role \"nobody_here\""), "{hint}");
}

#[tokio::test]
async fn a_server_that_is_starting_and_a_pooler_are_named() {
    let starting = fake::server(fake::fatal("57P03", "the database system is starting up"), vec![]).await;
    let (text, hint) = refused(&connection_to("127.0.0.1", starting)).await;
    assert!(text.contains("starting up (SQLSTATE 57P03)") && hint.contains("try again"), "{text}: {hint}");

    let pooler = fake::fatal("08P01", "unsupported startup parameter in options: search_path");
    let pooler = fake::server(pooler, vec![]).await;
    let (text, hint) = refused(&connection_to("127.0.0.1", pooler)).await;
    assert!(text.contains("unsupported startup parameter") && hint.contains("PgBouncer"), "{text}: {hint}");

    let answer = fake::row(&["170011", "17.11", "\"$user\", public", "1", "4711"]);
    let forgetful = fake::server(fake::welcome(), answer).await;
    let (text, hint) = refused(&connection_to("127.0.0.1", forgetful)).await;
    assert!(text.contains("asked for search_path=\"\"") && hint.contains("pooler"), "{text}: {hint}");

    // A server that is only not ready does not stop the search, as with libpq.
    let server = postgres::default_server();
    let mut two = connection(server);
    two.hosts.insert(0, ("127.0.0.1".to_owned(), starting));
    connect(&two, None, "opsd").await.unwrap();
    // One that answered does.
    two.hosts[0].1 = pooler;
    assert!(refused(&two).await.0.contains("unsupported startup parameter"));
}

#[tokio::test]
async fn silence_is_bounded() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut silent = connection_to("127.0.0.1", listener.local_addr().unwrap().port());
    silent.connect_timeout = Duration::from_millis(200);
    let (text, hint) = refused(&silent).await;
    assert!(text.ends_with("no answer within 0.2 s") && hint.contains("firewall"), "{text}");
}

#[tokio::test]
async fn errors_keep_the_state_and_leave_rows_out() {
    let server = postgres::default_server();
    let session = connect(&connection(server), None, "opsd").await.unwrap();
    let fails = async |sql: &str| error(session.client.batch_execute(sql).await.unwrap_err()).to_string();
    session.client.batch_execute("CREATE TEMP TABLE t (secret text UNIQUE)").await.unwrap();
    session.client.batch_execute("INSERT INTO t VALUES ('row content')").await.unwrap();
    let duplicate = fails("INSERT INTO t VALUES ('row content')").await;
    assert!(duplicate.contains("t_secret_key") && duplicate.contains("SQLSTATE 23505"), "{duplicate}");
    assert!(!duplicate.contains("row content"), "{duplicate}");
    let depends = fails("CREATE TEMP VIEW v AS SELECT * FROM t; DROP TABLE t").await;
    assert!(depends.contains("; detail: view v depends on table t"), "{depends}");
}

#[tokio::test]
async fn a_lost_connection_is_noticed() {
    let server = postgres::default_server();
    let (victim, killer) = (connection(server), connection(server));
    let victim = connect(&victim, None, "opsd").await.unwrap();
    let killer = connect(&killer, None, "opsd").await.unwrap();
    // A prepared statement is closed in the background, and would get the server's last words.
    let rows = victim.client.simple_query("SELECT pg_backend_pid()").await.unwrap();
    let pid = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let kill = format!("SELECT pg_terminate_backend({})", pid.unwrap());
    killer.client.batch_execute(&kill).await.unwrap();
    let lost = tokio::time::timeout(Duration::from_secs(10), victim.lost()).await.unwrap();
    assert!(lost.to_string().starts_with("lost the connection to 127.0.0.1"), "{lost}");
    assert!(lost.to_string().contains("57P01"), "{lost}");
}
