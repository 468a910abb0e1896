//! Credentials the way AWS tools find them: a profile, a program that a profile names, a container's
//! endpoint, a web identity, an instance's metadata service. The services are the tests' own; the stores
//! refuse whoever has no key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::s3::large_site;
use crate::security::executable;
use crate::support::opsd::{Opsd, write_private};
use crate::support::postgres::default_server;
use crate::support::s3::{Keys, SeaweedFs, s3s_fs};
use crate::support::s3_proxy::{Fate, Proxy, error};
use crate::support::sets::{back_up, complete};

/// What hands out a key pair: metadata service (version 2), container endpoint and STS in one.
struct Services {
    endpoint: String,
    /// Request lines, in order.
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Services {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Services {
    async fn start(keys: &Keys) -> Services {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (keys, log) = (keys.clone(), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (keys, log) = (keys.clone(), Arc::clone(&log));
                connections.spawn(async move {
                    let _ = answer(socket, &keys, &log).await;
                });
            }
        });
        Services { endpoint, asked, task }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// One request, one answer.
async fn answer(mut socket: TcpStream, keys: &Keys, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let (mut bytes, mut whole) = (Vec::new(), None);
    while whole.is_none_or(|size| bytes.len() < size) {
        if socket.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
            whole = Some(head.len() + 4 + length.map_or(0, |l| l.trim().parse().expect("a length")));
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let line = text.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    log.lock().unwrap().push(line.clone());
    let has = |header: &str| text.to_lowercase().contains(header);
    let expires = (chrono::Utc::now() + chrono::TimeDelta::hours(1)).format("%Y-%m-%dT%H:%M:%SZ");
    let Keys { access_key, secret_key } = keys;
    let json = format!(
        "{{\"Code\": \"Success\", \"Type\": \"AWS-HMAC\", \"AccessKeyId\": \"{access_key}\", \"LastUpdated\": \"{expires}\",
          \"SecretAccessKey\": \"{secret_key}\", \"Token\": \"session\", \"Expiration\": \"{expires}\"}}"
    );
    let with_token = has("x-aws-ec2-metadata-token: imds-token");
    let (status, kind, body) = match line.as_str() {
        "PUT /latest/api/token" if has("x-aws-ec2-metadata-token-ttl-seconds:") => {
            ("200 OK\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600", "text/plain", "imds-token".into())
        }
        "GET /latest/meta-data/iam/security-credentials/" if with_token => {
            ("200 OK", "text/plain", "role".into())
        }
        "GET /latest/meta-data/iam/security-credentials/role" if with_token => {
            ("200 OK", "application/json", json)
        }
        "GET /container" if has("authorization: let-me-in") => ("200 OK", "application/json", json),
        "POST /" if has("action=assumerolewithwebidentity") && has("webidentitytoken=who-i-am") => (
            "200 OK",
            "text/xml",
            format!(
                "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                 <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{access_key}</AccessKeyId>\
                 <SecretAccessKey>{secret_key}</SecretAccessKey><SessionToken>session</SessionToken>\
                 <Expiration>{expires}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
                 </AssumeRoleWithWebIdentityResponse>"
            ),
        ),
        _ => ("404 Not Found", "text/plain", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await?;
    socket.shutdown().await
}

/// A site on a store, for which it has no credentials yet.
fn without_keys(opsd: &mut Opsd, endpoint: &str, bucket: &str) {
    opsd.use_s3(&format!("s3://{bucket}/chain"), endpoint, "", "");
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        opsd.env.remove(std::ffi::OsStr::new(name));
    }
    // No test asks the machine that it runs on who it is.
    opsd.env("AWS_EC2_METADATA_DISABLED", "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_the_shared_files_is_enough() {
    let s3 = SeaweedFs::start().await;
    let server = default_server();
    let database = server.fresh_database("profile");
    server.psql(&database, "CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
    let mut opsd = Opsd::new(server, &[&database]);
    without_keys(&mut opsd, &s3.endpoint, &s3.bucket);
    opsd.repository.unset("region");
    std::fs::create_dir(opsd.path(".aws")).unwrap();
    let Keys { access_key, secret_key } = &s3.admin;
    let files = format!(
        "[default]\naws_access_key_id = {0}\naws_secret_access_key = wrong\n\
         [backup]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n",
        s3.reader.access_key
    );
    write_private(&opsd.path(".aws/credentials"), &files);
    executable(
        &opsd.path("keys"),
        &format!(
            "#!/bin/sh\nprintf '{{\"Version\": 1, \"AccessKeyId\": \"%s\", \"SecretAccessKey\": \"%s\"}}' {access_key} {secret_key}\n"
        ),
    );
    let config = format!(
        "[profile backup]\nregion = eu-central-1\n[profile program]\ncredential_process = {}\n",
        opsd.path("keys").display()
    );
    write_private(&opsd.path(".aws/config"), &config);

    // The profile without a name has the wrong secret.
    opsd.run(&["backups", "list"]).expect_code(1);
    opsd.env("AWS_PROFILE", "backup");
    let id = back_up(&opsd);
    opsd.env("AWS_PROFILE", "program");
    assert_eq!(complete(&opsd), [id]);
    opsd.env("AWS_PROFILE", "nosuch")
        .run_list()
        .expect_failure(1, &["the AWS profile", "AWS_PROFILE", "profile `nosuch` was not defined"]);
    // A file that cannot be read is why there is nothing; the SDK passes over it.
    let (here, gone) = (opsd.path(""), opsd.path("gone"));
    opsd.env("AWS_PROFILE", "backup").env("AWS_CONFIG_FILE", here).env("AWS_SHARED_CREDENTIALS_FILE", &gone);
    let unreadable = format!("cannot read {}: No such file or directory", gone.display());
    let run = opsd.run_list().expect_failure(1, &[": Is a directory", &unreadable]);
    assert!(!run.stderr.contains(secret_key), "{run}");
    server.drop_database(&database);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_a_service_hands_out_are_found() {
    // SeaweedFS takes no session token but its own, and keys that are handed out come with one.
    let s3 = s3s_fs().await;
    let services = Services::start(&s3.keys).await;
    let mut opsd = Opsd::without_server();
    without_keys(&mut opsd, &s3.endpoint, &s3.bucket);
    opsd.run_list()
        .expect_failure(1, &["no AWS credentials found (environment, profile, container, instance)"]);

    let plain = opsd.env.clone();
    let token = opsd.path("token");
    opsd.env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backup")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token);
    let unreadable = format!("cannot read {}: No such file or directory", token.display());
    opsd.run_list().expect_failure(1, &["cannot load AWS credentials", &unreadable]);
    write_private(&token, "who-i-am");
    let cases = [
        (
            "an instance",
            vec![
                ("AWS_EC2_METADATA_DISABLED", "false".into()),
                ("AWS_EC2_METADATA_SERVICE_ENDPOINT", services.endpoint.clone()),
            ],
            vec![
                "PUT /latest/api/token",
                "GET /latest/meta-data/iam/security-credentials/",
                "GET /latest/meta-data/iam/security-credentials/role",
            ],
        ),
        (
            "a container",
            vec![
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/container", services.endpoint)),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let-me-in".into()),
            ],
            vec!["GET /container"],
        ),
        (
            "a web identity",
            vec![
                ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap().into()),
                ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backup".into()),
                ("AWS_ENDPOINT_URL_STS", services.endpoint.clone()),
            ],
            vec!["POST /"],
        ),
    ];
    for (who, variables, asked) in cases {
        opsd.env.clone_from(&plain);
        for (name, value) in variables {
            opsd.env(name, value);
        }
        opsd.run_list().expect_code(0);
        let found = services.asked();
        assert_eq!(found, asked, "{who}");
    }
}

/// What an endpoint hands out credentials of a second by, and a store believes them.
#[derive(Default)]
struct Ledger {
    /// Until when each session token is valid.
    valid: BTreeMap<String, Instant>,
    /// Requests of the store that came with each of them.
    used: BTreeMap<String, usize>,
    /// Requests for credentials that are refused from now on.
    refuses: usize,
    /// Requests for credentials that were refused.
    refused: usize,
    /// Requests that came with a token that had expired.
    expired: usize,
}

/// As long as that of which a night of 24 hours has one an hour.
const LIFE: Duration = Duration::from_millis(1500);

/// What a container's endpoint is, which has new credentials for everyone who asks.
async fn rotating(keys: Keys, ledger: Arc<Mutex<Ledger>>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
    let endpoint = format!("http://{}/container", listener.local_addr().expect("address"));
    let task = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") && socket.read_buf(&mut bytes).await.is_ok_and(|n| n > 0) {}
            let (status, body) = {
                let mut ledger = ledger.lock().unwrap();
                if ledger.refuses > 0 {
                    (ledger.refuses, ledger.refused) = (ledger.refuses - 1, ledger.refused + 1);
                    ("503 Service Unavailable", String::new())
                } else {
                    let token = format!("session-{}", ledger.valid.len());
                    ledger.valid.insert(token.clone(), Instant::now() + LIFE);
                    let expires = (chrono::Utc::now() + LIFE).format("%Y-%m-%dT%H:%M:%S%.3fZ");
                    let Keys { access_key, secret_key } = &keys;
                    let body = format!(
                        "{{\"AccessKeyId\": \"{access_key}\", \"SecretAccessKey\": \"{secret_key}\",
                          \"Token\": \"{token}\", \"Expiration\": \"{expires}\"}}"
                    );
                    ("200 OK", body)
                }
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = socket.shutdown().await;
        }
    });
    (endpoint, task)
}

/// A store that refuses who comes with a token that has expired; `seen` looks at each of the others first.
async fn refusing_expired(
    store: &str,
    ledger: Arc<Mutex<Ledger>>,
    seen: impl Fn(&str, &mut Ledger) -> bool + Send + Sync + 'static,
) -> Proxy {
    Proxy::start(store, 1, Duration::from_millis(20), move |request, _| {
        let mut ledger = ledger.lock().unwrap();
        let token = request.head.lines().find_map(|line| line.strip_prefix("x-amz-security-token:"));
        let token = token.unwrap_or_default().trim().to_owned();
        let is_valid = ledger.valid.get(&token).is_some_and(|until| Instant::now() < *until);
        if is_valid && seen(request.head, &mut ledger) {
            *ledger.used.entry(token).or_default() += 1;
            return Fate::Forward;
        }
        ledger.expired += 1;
        error(400, "ExpiredToken")
    })
    .await
}

/// A site on a store that believes none but a container's credentials.
fn with_container(opsd: &mut Opsd, store: &str, bucket: &str, endpoint: &str) {
    without_keys(opsd, store, bucket);
    opsd.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", endpoint);
}

/// 24 hours with credentials of one hour, a few thousand times as fast; and whoever hands them out is down in
/// the middle for longer than they last.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_outlives_its_credentials_and_a_while_without_whoever_hands_them_out() {
    let s3 = s3s_fs().await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let (endpoint, task) = rotating(s3.keys.clone(), ledger.clone()).await;
    let proxy = refusing_expired(&s3.endpoint, ledger.clone(), |head, ledger| {
        // The data are on their way: each refresh asks the endpoint three times.
        if head.contains("partnumber=2") && ledger.refused == 0 && ledger.refuses == 0 {
            ledger.refuses = 18;
        }
        true
    })
    .await;
    let (server, mut opsd, database) = large_site();
    with_container(&mut opsd, &proxy.endpoint, &s3.bucket, &endpoint);
    let began = Instant::now();
    let id = back_up(&opsd);
    assert!(began.elapsed() > LIFE * 5, "{:?}", began.elapsed());
    {
        let ledger = ledger.lock().unwrap();
        assert_eq!((ledger.refuses, ledger.refused), (0, 18));
        assert!(ledger.used.len() > 5, "{:?}", ledger.used);
    }
    assert_eq!(complete(&opsd), [id]);
    task.abort();
    server.drop_database(&database);
}

/// The store's clock is ahead: it takes credentials for expired that this machine takes for good.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_the_store_finds_expired_are_handed_out_again() {
    let s3 = s3s_fs().await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let (endpoint, task) = rotating(s3.keys.clone(), ledger.clone()).await;
    let proxy = refusing_expired(&s3.endpoint, ledger.clone(), |head, ledger| {
        !head.contains("partnumber=2") || ledger.expired >= 6
    })
    .await;
    let (server, mut opsd, database) = large_site();
    with_container(&mut opsd, &proxy.endpoint, &s3.bucket, &endpoint);
    let id = back_up(&opsd);
    assert_eq!(complete(&opsd), [id]);
    assert!(ledger.lock().unwrap().expired >= 6);
    task.abort();
    server.drop_database(&database);
}

impl Opsd {
    fn run_list(&self) -> crate::support::opsd::Run {
        self.run(&["backups", "list"])
    }
}
