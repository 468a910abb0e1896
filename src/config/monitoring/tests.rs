//! What is read, and what is refused, each with its line, key and hint.

use std::path::Path;

use super::*;
use crate::config::raw::{Parsed, parse};

/// Ten lines: what is tested begins on line 11.
const BASE: &str = r#"site = "example"
[repository]
url = "s3://bucket/prefix"
[encryption]
recipients = ["KEY"]
[postgres.main]
url = "postgres://opsd@db.internal/app"
[postgres.other]
url = "postgres://opsd@other.internal/app"

"#;

fn parsed(text: &str) -> Parsed {
    static KEY: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let key = KEY.get_or_init(|| keys::generate_identity(chrono::DateTime::UNIX_EPOCH).1);
    let env = |name: &str| match name {
        "HOME" => Some("/nonexistent".to_owned()),
        "TOKEN" => Some("t0ken".to_owned()),
        _ => None,
    };
    parse(&format!("{}{text}", BASE.replace("KEY", key)), Path::new("opsd.toml"), &env)
}

fn config(text: &str) -> crate::config::Config {
    let parsed = parsed(text);
    assert_eq!(parsed.mistakes, [], "{text}");
    parsed.config.expect("no mistakes, so a configuration")
}

#[test]
fn defaults() {
    let config = config("[monitor.main-db]\npostgres = \"main\"\n");
    let monitor = &config.monitor["main-db"];
    assert_eq!((monitor.interval, monitor.timeout), (INTERVAL, TIMEOUT));
    assert_eq!((monitor.max_series, monitor.thresholds.len()), (5_000, 0));
    let MonitorKind::Postgres { server, databases, .. } = &monitor.kind else {
        panic!("{monitor:?}");
    };
    assert_eq!((server.as_str(), databases), ("main", &Databases::Url));
    assert_eq!(config.exporter.listen.to_string(), "127.0.0.1:9911");
    assert!(matches!(config.exporter.auth, Auth::None));
}

#[test]
fn everything_that_can_be_said() {
    let config = config(
        r#"[exporter]
listen = "0.0.0.0:9911"
bearer_token = "${TOKEN}"
max_connections = 5
header_timeout = "2s"
[redis.tcp]
url = "rediss://user:${TOKEN}@[::1]:6380/3"
[redis.socket]
url = "unix:///run/redis.sock?db=2"
password_file = "/etc/opsd/redis"
[redis.plain]
url = "redis://localhost"
[monitor.db]
postgres = "main"
databases = ["*"]
interval = "1m"
timeout = "20s"
max_series = 100
[monitor.db.thresholds]
opsd_postgres_connections_used_ratio = { warning = 0.5, critical = 1 }
opsd_postgres_oldest_transaction_timestamp_seconds = { critical = "10m" }
opsd_postgres_slot_safe_bytes = { warning_below = "2GiB", critical_below = "1GiB" }
opsd_postgres_replication_state = { warning = ["replaying"], critical = ["link_cut", "paused"] }
opsd_postgres_sequence_used_ratio = {}
"#,
    );
    assert!(matches!(&config.exporter.auth, Auth::Bearer(SecretSource::Value(t)) if t.expose() == "t0ken"));
    assert!(!format!("{config:?}").contains("t0ken"));
    let redis = &config.redis["tcp"];
    assert_eq!(redis.address, RedisAddress::Tcp { host: "::1".into(), port: 6380, tls: true });
    assert_eq!((redis.database, redis.user.as_deref()), (3, Some("user")));
    assert_eq!(config.redis["socket"].address, RedisAddress::Unix("/run/redis.sock".into()));
    assert_eq!(config.redis["socket"].database, 2);
    assert!(matches!(config.redis["socket"].password, Some(SecretSource::File(_))));
    let plain = RedisAddress::Tcp { host: "localhost".into(), port: 6379, tls: false };
    assert_eq!(config.redis["plain"].address, plain);
    let monitor = &config.monitor["db"];
    assert_eq!((monitor.interval.as_secs(), monitor.timeout.as_secs(), monitor.max_series), (60, 20, 100));
    let bounds: Vec<_> =
        monitor.thresholds.iter().map(|t| (t.state.as_deref(), t.warning, t.critical)).collect();
    let on = Some(Bound::Above(0.5));
    assert_eq!(
        bounds,
        [
            (None, Some(Bound::Above(0.5)), Some(Bound::Above(1.0))),
            (None, None, Some(Bound::Above(600.0))),
            (None, Some(Bound::Below(2147483648.0)), Some(Bound::Below(1073741824.0))),
            (Some("replaying"), on, None),
            (Some("link_cut"), None, on),
            (Some("paused"), None, on),
        ]
    );
    assert_eq!(monitor.replaced.len(), 5);
}

#[test]
fn mistakes_have_their_line_key_and_hint() {
    let cases = [
        ("[monitor.a]\n", "11 monitor.a: watches nothing"),
        (
            "[monitor.a]\npostgres = \"mian\"\n",
            "12 monitor.a.postgres: there is no such [postgres.…] (did you mean main?)",
        ),
        ("[monitor.a]\npostgre = \"main\"\n", "12 monitor.a.postgre: unknown key (did you mean postgres?)"),
        (
            "[monitor.a]\npostgres = \"main\"\ninterval = \"0s\"\n",
            "13 monitor.a.interval: must be more than nothing",
        ),
        (
            "[monitor.a]\npostgres = \"main\"\ntimeout = \"1m\"\n",
            "13 monitor.a.timeout: is longer than the interval",
        ),
        (
            "[monitor.a]\npostgres = \"main\"\n\
             thresholds = { opsd_postgres_replication_state = { critical = [\"linkcut\"] } }\n",
            "13 monitor.a.thresholds.opsd_postgres_replication_state.critical[0]: there is no such state (did you mean link_cut?)",
        ),
        (
            "[monitor.a]\npostgres = \"main\"\n\
             thresholds = { opsd_postgres_archiver_state = { critical = [\"broken\"] } }\n",
            "13 monitor.a.thresholds.opsd_postgres_archiver_state.critical[0]: there is no such state (known are: off, working, failing)",
        ),
        (
            "[redis.r]\nurl = \"redis://h\"\n[monitor.a]\nqueue = { kind = \"list\", redis = \"r\", queues = [\"q\"], take_from = \"front\" }\n",
            "14 monitor.a.queue.take_from: is not known (known are: left, right)",
        ),
        ("[monitor.a]\npostgres = \"main\"\ninterval = 15\n", "13 monitor.a.interval: must be a duration"),
        (
            "[monitor.a]\npostgres = \"main\"\nthresholds = { opsd_postgres_conections = {} }\n",
            "13 monitor.a.thresholds.opsd_postgres_conections: there is no such metric (did you mean opsd_postgres_connections?)",
        ),
        (
            "[monitor.a]\npostgres = \"main\"\nthresholds = { opsd_postgres_blocked_sessions = { warning = 2, critical = 1 } }\n",
            "13 monitor.a.thresholds.opsd_postgres_blocked_sessions: is critical before it is a warning",
        ),
        (
            "[monitor.a]\npostgres = \"main\"\nthresholds = { opsd_postgres_blocked_sessions = { warning = \"1h\" } }\n",
            "13 monitor.a.thresholds.opsd_postgres_blocked_sessions.warning: must be a number",
        ),
        (
            "[monitor.a]\npostgres = \"main\"\nthresholds = { opsd_redis_clients = { warning = 1 } }\n",
            "13 monitor.a.thresholds.opsd_redis_clients: a postgres monitor has no such figure (its own begin with opsd_postgres_)",
        ),
        ("[exporter]\nlisten = \"0.0.0.0:9911\"\n", "12 exporter.listen: listens beyond this host"),
        ("[exporter]\nlisten = \"localhost:9911\"\n", "12 exporter.listen: is no address and port"),
        ("[exporter]\nbasic_auth = { user = \"a:b\" }\n", "12 exporter.basic_auth.password: missing"),
        (
            "[exporter]\nbasic_auth = { user = \"a:b\", password = \"${TOKEN}\" }\n",
            "12 exporter.basic_auth.user: has a colon",
        ),
        (
            "[exporter]\nbearer_token = \"${TOKEN}\"\nbearer_token_file = \"/t\"\n",
            "13 exporter.bearer_token_file: stands beside bearer_token",
        ),
        ("[redis.a]\nurl = \"http://x\"\n", "12 redis.a.url: is no URL of a Redis server"),
        ("[redis.a]\nurl = \"redis://:p@h:99999\"\n", "12 redis.a.url: is no URL of a Redis server"),
        ("[redis.a]\n", "11 redis.a.url: missing"),
    ];
    for (text, wanted) in cases {
        let found: Vec<String> = parsed(text)
            .mistakes
            .iter()
            .map(|f| {
                let hint = f.hint.as_deref().unwrap_or_default();
                assert!(!hint.is_empty(), "{text} has no hint");
                format!("{} {}: {} ({hint})", f.line.unwrap_or(0), f.key, f.message)
            })
            .collect();
        assert!(found.iter().any(|line| line.starts_with(wanted)), "{text}\n{found:#?}\nlacks {wanted}");
        assert!(found.iter().all(|line| !line.contains("t0ken")), "{found:?}");
    }
}

#[test]
fn a_secret_that_stands_in_the_file_is_a_warning() {
    for text in ["[exporter]\nbearer_token = \"literal\"\n", "[redis.a]\nurl = \"redis://:literal@h\"\n"] {
        let parsed = parsed(text);
        assert_eq!(parsed.mistakes, []);
        let warnings: Vec<_> = parsed.warnings.iter().map(|w| w.message.as_str()).collect();
        assert!(warnings.contains(&raw::PASSWORD_STANDS_HERE), "{warnings:?}");
    }
}

#[test]
fn a_file_with_a_secret_is_read_when_it_is_needed() {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "t0ken\n").unwrap();
    let source = SecretSource::File(file.path().into());
    assert_eq!(source.read().unwrap().expose(), "t0ken");
    std::fs::write(file.path(), "\n").unwrap();
    assert!(source.read().is_err());
    std::fs::write(file.path(), "t0ken\n").unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(source.read().is_err());
}
