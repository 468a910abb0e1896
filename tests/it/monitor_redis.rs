//! A Redis monitor on real servers: Redis of the distribution, and Valkey.

use std::process::Command;

use crate::support::alerting::watched;
use crate::support::exporter::{Exporter, Scrape};
use crate::support::opsd::{Opsd, quoted};
use crate::support::processes::until;
use crate::support::redis::{Redis, Software};

/// A monitor named `cache` of the server that `redis` says how to reach.
fn watching(redis: &str) -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.more = format!("\n[redis.main]\n{redis}\n[monitor.cache]\nredis = \"main\"\ninterval = \"1s\"\n");
    opsd
}

fn at(url: &str) -> Opsd {
    watching(&format!("url = {}", quoted(url)))
}

fn up(exporter: &Exporter, value: f64) -> Scrape {
    exporter.scrape_until("up or not", |scrape| scrape.up("cache") == Some(value))
}

#[test]
fn every_server_tells_what_it_is() {
    for (software, name) in
        [(Software::Redis62, "redis"), (Software::Redis, "redis"), (Software::Valkey, "valkey")]
    {
        if software == Software::Redis62 && cfg!(not(target_arch = "x86_64")) {
            continue;
        }
        let redis = Redis::start(software, &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
        redis.cli(&["-n", "3", "SET", "a", "b"]);
        let mut opsd = at(&format!("unix://{}", redis.path("socket").display()));
        let exporter = watched(&mut opsd, "");
        let scrape = up(&exporter, 1.0);
        let of = |metric: &str| scrape.one(metric, &[]);
        let software = format!("software=\"{name}\"");
        assert_eq!(scrape.of("opsd_redis_server_info", &[&software]).len(), 1, "{}", scrape.text);
        assert_eq!(scrape.state("opsd_redis_role_state", &[]).as_deref(), Some("primary"));
        assert_eq!(of("opsd_redis_memory_limit_bytes"), Some(104_857_600.0));
        assert!(of("opsd_redis_memory_used_ratio").is_some_and(|ratio| ratio > 0.0 && ratio < 1.0));
        assert_eq!(of("opsd_redis_memory_exhaustion_ratio"), None, "it evicts");
        assert_eq!(scrape.one("opsd_redis_database_keys", &["database=\"3\""]), Some(1.0));
        assert_eq!(of("opsd_redis_rdb_last_save_ok"), Some(1.0));
        assert_eq!(of("opsd_redis_aof_last_write_ok"), None, "it is off");
        assert_eq!(of("opsd_redis_hit_ratio"), None, "nobody reads");
        assert_eq!(scrape.one("opsd_monitor_concern_up", &["concern=\"slowlog\""]), Some(1.0));
        let clients = of("opsd_redis_clients").unwrap();
        let later = exporter.next_scrape("cache");
        assert_eq!(later.one("opsd_redis_clients", &[]), Some(clients), "one connection, kept");
        let connections = |scrape: &Scrape| scrape.one("opsd_redis_connections_total", &[]);
        assert_eq!(connections(&later), connections(&scrape));
        let run = opsd.ok(&["check"]);
        assert!(run.stdout.starts_with("OPSD OK"), "{run}");
        exporter.until_quiet();
        let run = opsd.ok(&["status"]);
        assert!(run.stdout.contains(name) && run.stdout.contains("of 100.0 MiB"), "{run}");
    }
}

#[test]
fn hits_evictions_and_slow_commands() {
    let redis = Redis::start(
        Software::Redis,
        &["--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru", "--slowlog-log-slower-than", "0"],
    );
    let mut opsd = at(&redis.url(0));
    // Where queues are, too, a key that is removed may be a job.
    opsd.more.push_str("[monitor.jobs]\nqueue = { kind = \"list\", redis = \"main\", queues = [\"q\"] }\n");
    let exporter = watched(&mut opsd, "");
    exporter.scrape_until("both are up", |scrape| ["cache", "jobs"].map(|m| scrape.up(m)) == [Some(1.0); 2]);
    exporter.until_seen();
    const FILL: &str = "for i=1,ARGV[1] do redis.call('SET', 'k'..i, string.rep('x', 1000)) end";
    redis.cli(&["EVAL", FILL, "0", "20000"]);
    // Any key from before may go at any time.
    const READ: &str = "redis.call('SET', 'there', 'x')
        for i=1,300 do redis.call('GET', 'there'); redis.call('GET', 'absent') end";
    redis.cli(&["EVAL", READ, "0"]);
    let scrape = exporter.scrape_until("reads are seen", |scrape| {
        scrape.one("opsd_redis_hit_ratio", &[]).is_some_and(|ratio| (ratio - 0.5).abs() < 0.01)
    });
    assert!(scrape.one("opsd_redis_evicted_keys_total", &[]).unwrap() > 1_000.0);
    assert!(scrape.one("opsd_redis_slow_commands_total", &[]).unwrap() > 2.0);
    assert!(scrape.one("opsd_redis_slow_command_timestamp_seconds", &[]).unwrap() > 1.7e9);
    let later = exporter.scrape_until("no reads", |scrape| scrape.one("opsd_redis_hit_ratio", &[]).is_none());
    assert!(later.one("opsd_redis_keyspace_hits_total", &[]).unwrap() >= 300.0);

    // That is what this policy is for, and one look does not know how fast it goes; the alerts do.
    opsd.ok(&["check"]);
    exporter.until_alerts(&["RedisEvicting", "RedisEvictsQueues"]);

    // The same memory, and nothing may be removed: writes will fail.
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("redis_memory_exhaustion_ratio"), "{run}");
    exporter.until_alerts(&["RedisMemoryExhausted", "RedisMemoryNearlyExhausted"]);
}

#[test]
fn a_background_save_that_fails_is_critical() {
    let redis = Redis::start(Software::Redis, &["--appendonly", "yes"]);
    redis.cli(&["SET", "a", "b"]);
    let mut opsd = at(&redis.url(0));
    opsd.ok(&["check"]);
    // Whoever may write anywhere cannot write into what is no directory any more.
    std::fs::rename(redis.path("data"), redis.path("moved")).unwrap();
    std::fs::remove_dir_all(redis.path("moved")).unwrap();
    redis.try_cli(&["BGSAVE"]);
    until("the save has failed", || {
        redis.cli(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err")
    });
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("redis_rdb_last_save_ok is 0"), "{run}");
    let exporter = watched(&mut opsd, "");
    assert_eq!(up(&exporter, 1.0).one("opsd_redis_rdb_last_save_ok", &[]), Some(0.0));
    exporter.until_alerts(&["RedisSaveFailing"]);
}

#[test]
fn a_replica_whose_primary_is_gone() {
    let mut primary = Redis::start(Software::Redis, &[]);
    let replica = Redis::start(Software::Redis, &["--repl-diskless-sync-delay", "0"]);
    primary.cli(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    replica.cli(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    until("the link is up", || replica.cli(&["INFO", "replication"]).contains("master_link_status:up"));
    let run = at(&primary.url(0)).ok(&["check", "--json"]);
    assert_eq!(run.json()["verdict"], "ok", "{run}");
    let mut of_primary = at(&primary.url(0));
    let exporter = Exporter::start(&mut of_primary, "");
    let name = format!("replica=\"127.0.0.1:{}\"", replica.port);
    let scrape = exporter.scrape_until("the replica is online", |scrape| {
        scrape.one("opsd_redis_replica_online", &[&name]) == Some(1.0)
    });
    assert!(scrape.one("opsd_redis_replica_lag_bytes", &[&name]).is_some(), "{}", scrape.text);
    drop(exporter);

    let mut opsd = at(&replica.url(0));
    opsd.ok(&["check"]);
    primary.stop();
    until("the link is down", || replica.cli(&["INFO", "replication"]).contains("master_link_status:down"));
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("redis_primary_link_up is 0"), "{run}");
    let exporter = watched(&mut opsd, "");
    let scrape = up(&exporter, 1.0);
    assert_eq!(scrape.state("opsd_redis_role_state", &[]).as_deref(), Some("replica"));
    assert!(scrape.one("opsd_redis_primary_link_down_since_timestamp_seconds", &[]).is_some());
    assert_eq!(scrape.one("opsd_redis_primary_heard_timestamp_seconds", &[]), None);
    exporter.until_alerts(&["RedisLinkDown"]);
}

#[test]
fn a_password_is_rotated_without_a_restart() {
    use std::os::unix::fs::PermissionsExt;
    let mut redis = Redis::start(Software::Redis, &["--requirepass", "admin"]);
    redis.password = "admin".into();
    redis.cli(&["ACL", "SETUSER", "watcher", "on", ">first-secret", "+info", "+ping", "+client", "+select"]);
    let file = redis.path("password");
    let write = |password: &str| {
        std::fs::write(&file, format!("{password}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("first-secret");
    let mut opsd = watching(&format!(
        "url = {}\nuser = \"watcher\"\npassword_file = {}",
        quoted(&redis.url(0)),
        quoted(file.to_str().unwrap())
    ));
    let exporter = watched(&mut opsd, "");
    let scrape = up(&exporter, 1.0);
    let refused = ["concern=\"slowlog\"", "reason=\"permission\""];
    assert_eq!(scrape.one("opsd_monitor_concern_failure", &refused), Some(1.0), "{}", scrape.text);
    assert_eq!(scrape.one("opsd_redis_slowlog_length", &[]), None);

    redis.cli(&["ACL", "SETUSER", "watcher", "resetpass", ">second-secret"]);
    redis.cli(&["CLIENT", "KILL", "USER", "watcher"]);
    let scrape = up(&exporter, 0.0);
    exporter.scrape_until("the new password is missing", |scrape| {
        scrape.one("opsd_monitor_failures_total", &["reason=\"authentication\""]).is_some_and(|n| n >= 1.0)
    });
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("authentication"), "{run}");
    for text in [&scrape.text, &run.stdout, &run.stderr] {
        assert!(!text.contains("-secret"), "{text}");
    }
    exporter.until_alerts(&["RedisDown"]);
    write("second-secret");
    up(&exporter, 1.0);
    exporter.until_over(&["RedisDown"]);
    let (_, said) = exporter.stop();
    assert!(!said.contains("-secret"), "{said}");
}

#[test]
fn a_server_that_goes_takes_its_figures_along_and_comes_back() {
    let mut redis = Redis::start(Software::Redis, &[]);
    let mut opsd = at(&redis.url(0));
    let exporter = watched(&mut opsd, "");
    up(&exporter, 1.0);
    redis.stop();
    up(&exporter, 0.0);
    exporter.scrape_until("the figures are gone", |scrape| scrape.of("opsd_redis_clients", &[]).is_empty());
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("cache: down, unreachable: cannot connect to 127.0.0.1:"), "{run}");
    exporter.until_alerts(&["RedisDown"]);
}

#[test]
fn a_server_without_a_connection_left_says_so() {
    let redis = Redis::start(Software::Redis, &[]);
    let opsd = at(&redis.url(0));
    redis.cli(&["CONFIG", "SET", "maxclients", "1"]);
    let mut held = None;
    until("the connection is taken", || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", redis.port)).unwrap();
        let mut answer = [0; 5];
        let _ = stream.write_all(b"PING\r\n");
        let taken = stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG";
        held = Some(stream);
        taken
    });
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("cache: down, too_many_connections"), "{run}");
    drop(held);
}

#[test]
fn tls_checks_the_certificate() {
    let plain = Redis::start(Software::Redis, &[]);
    let directory = plain.directory.path();
    let openssl = |words: &str| {
        let output = Command::new("openssl").current_dir(directory).args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt",
    );
    openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=s -keyout s.key -out s.csr");
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl("x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out s.crt");
    let path = |name: &str| directory.join(name).display().to_string();
    let port = crate::support::postgres::free_port();
    for (key, value) in [("tls-cert-file", path("s.crt")), ("tls-key-file", path("s.key"))] {
        plain.cli(&["CONFIG", "SET", key, &value]);
    }
    // Clients must show a certificate of the same authority.
    plain.cli(&["CONFIG", "SET", "tls-ca-cert-file", &path("ca.crt"), "tls-port", &port.to_string()]);
    let url = format!("url = \"rediss://127.0.0.1:{port}\"");
    let trusted = format!("{url}\nca_file = {}", quoted(&path("ca.crt")));
    let known =
        format!("{trusted}\ncert_file = {}\nkey_file = {}", quoted(&path("s.crt")), quoted(&path("s.key")));
    // Handshakes take their time where others work, too.
    let watching = |redis: &str| {
        let mut opsd = watching(redis);
        opsd.more = opsd.more.replace("interval = \"1s\"\n", "");
        opsd
    };
    watching(&known).ok(&["check"]);
    let run = watching(&url).run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("tls: no TLS with 127.0.0.1"), "{run}");
    watching(&trusted).run(&["check"]).expect_code(2);
}

#[test]
fn something_else_on_the_port_is_no_redis() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 100]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n");
        }
    });
    let run = at(&format!("redis://127.0.0.1:{port}")).run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("cache: down, protocol: the answer is not Redis' protocol"), "{run}");
}

#[test]
fn mistakes_are_told_with_their_place() {
    let mistake = |redis: &str, words: &[&str]| {
        let opsd = watching(redis);
        opsd.run(&["config", "check"]).expect_failure(2, words);
    };
    mistake("url = \"http://x\"", &["redis.main.url", "is no URL of a Redis server"]);
    mistake("url = \"redis://x\"\nca_file = \"/x\"", &["redis.main.ca_file", "has no meaning without TLS"]);
    mistake("url = \"redis://x\"\nuser = \"u\"", &["names a user without a password"]);
    mistake("url = \"rediss://x\"\ncert_file = \"/x\"", &["stands alone"]);
    let mut opsd = watching("url = \"redis://x\"");
    let check = |opsd: &Opsd, words: &[&str]| {
        opsd.run(&["config", "check"]).expect_failure(2, words);
    };
    opsd.more.push_str("[monitor.q]\nqueue = { kind = \"sidekick\", redis = \"main\" }\n");
    check(&opsd, &["monitor.q.queue.kind", "is no kind of queue", "did you mean sidekiq?"]);
    opsd.more =
        opsd.more.replace("kind = \"sidekick\", redis = \"main\"", "kind = \"celery\", redis = \"mian\"");
    check(&opsd, &["there is no such [redis.…]", "did you mean main?", "monitor.q.queue.queues", "missing"]);
}
