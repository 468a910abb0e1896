//! Credentials the way AWS tools find them: a profile, a program that a profile names, a container's
//! endpoint, a web identity, an instance's metadata service. The services are the tests' own; the stores
//! refuse whoever has no key.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::security::executable;
use crate::support::opsd::{Opsd, write_private};
use crate::support::postgres::default_server;
use crate::support::s3::{Keys, SeaweedFs, s3s_fs};
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

impl Opsd {
    fn run_list(&self) -> crate::support::opsd::Run {
        self.run(&["backups", "list"])
    }
}
