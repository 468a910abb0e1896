//! S3 end points: s3s-fs inside the test process, and SeaweedFS as a process.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use opsd::config::secret::Secret;
use opsd::config::{Location, Repository};
use opsd::store::s3::Access;
use tempfile::TempDir;

/// A key pair.
#[derive(Debug, Clone)]
pub struct Keys {
    pub access_key: String,
    pub secret_key: String,
}

impl Keys {
    /// Keys that nobody else has.
    pub fn new(name: &str) -> Self {
        Self {
            access_key: format!("{name}{:08x}", rand::random::<u32>()),
            secret_key: format!("secret-{name}-{:032x}", rand::random::<u128>()),
        }
    }

    /// For `open_s3` and `probe_with`.
    pub fn access(&self) -> Access {
        Access::Static {
            access_key: self.access_key.clone(),
            secret_key: Secret::new(self.secret_key.clone()),
        }
    }
}

/// A repository at an end point.
pub fn repository(endpoint: &str, bucket: &str, prefix: &str) -> Repository {
    Repository {
        location: Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() },
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        path_style: true,
        lock: None,
    }
}

/// The SDK's own client, to look at a store past opsd.
pub fn client(endpoint: &str, keys: &Keys) -> aws_sdk_s3::Client {
    // No TLS is needed on loopback, but the SDK has no plain client.
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
            aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
        ))
        .build_https();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(&keys.access_key, &keys.secret_key, None, None, "test"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .http_client(http)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// s3s-fs in this process; ends with it, or on drop.
pub struct S3sFs {
    pub endpoint: String,
    pub bucket: String,
    pub keys: Keys,
    /// The bucket's directory, to damage objects in.
    pub directory: PathBuf,
    server: tokio::task::JoinHandle<()>,
    _root: TempDir,
}

impl S3sFs {
    /// The repository under a prefix.
    pub fn repository(&self, prefix: &str) -> Repository {
        repository(&self.endpoint, &self.bucket, prefix)
    }
}

impl Drop for S3sFs {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Starts s3s-fs on a free port, on the runtime of the caller.
pub async fn s3s_fs() -> S3sFs {
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let root = tempfile::tempdir().expect("temporary directory");
    let (bucket, keys) = ("backups".to_owned(), Keys::new("s3s"));
    let directory = root.path().join(&bucket);
    std::fs::create_dir(&directory).expect("bucket directory");
    let mut builder =
        s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).expect("s3s-fs"));
    builder.set_auth(s3s::auth::SimpleAuth::from_single(keys.access_key.clone(), keys.secret_key.clone()));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    let server = tokio::spawn(async move {
        // Connections end with the server.
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            connections.spawn(async move {
                let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    S3sFs { endpoint, bucket, keys, directory, server, _root: root }
}

/// SeaweedFS with three identities; killed on drop.
pub struct SeaweedFs {
    pub endpoint: String,
    pub bucket: String,
    /// May do everything.
    pub admin: Keys,
    /// May only put objects and abort its own uploads.
    pub writer: Keys,
    /// May only read and list.
    pub reader: Keys,
    /// Those that were started with a policy each, in that order.
    pub limited: Vec<Keys>,
    process: Child,
    ports: Vec<u16>,
    root: TempDir,
}

/// A loaded machine takes seconds, a broken server for ever.
const START_TIMEOUT: Duration = Duration::from_secs(60);

impl SeaweedFs {
    /// Starts a server and creates a bucket.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same, with one more identity for each IAM policy: it may do what the policy says.
    pub async fn start_with(policies: &[serde_json::Value]) -> Self {
        let weed = weed_binary();
        // Ports are chosen before the server binds them, so somebody else may be faster.
        for _ in 0..5 {
            if let Some(server) = Self::try_start(&weed, policies).await {
                return server;
            }
        }
        panic!("SeaweedFS did not start in five attempts");
    }

    async fn try_start(weed: &Path, policies: &[serde_json::Value]) -> Option<Self> {
        let root = tempfile::tempdir().expect("temporary directory");
        let (admin, writer, reader) = (Keys::new("admin"), Keys::new("writer"), Keys::new("reader"));
        let identity = |name: &str, keys: &Keys, actions: &[&str]| {
            serde_json::json!({
                "name": name,
                "credentials": [{"accessKey": keys.access_key, "secretKey": keys.secret_key}],
                "actions": actions,
            })
        };
        let mut identities = vec![
            identity("admin", &admin, &["Admin", "Read", "Write", "List", "Tagging"]),
            identity("writer", &writer, &["Write"]),
            identity("reader", &reader, &["Read", "List"]),
        ];
        let (mut limited, mut documents) = (Vec::new(), Vec::new());
        for (number, policy) in policies.iter().enumerate() {
            let (name, keys) = (format!("limited{number}"), Keys::new("limited"));
            let mut one = identity(&name, &keys, &[]);
            one["policyNames"] = serde_json::json!([name]);
            identities.push(one);
            documents.push(serde_json::json!({"name": name, "content": policy.to_string()}));
            limited.push(keys);
        }
        let config = serde_json::json!({"identities": identities, "policies": documents});
        let config_path = root.path().join("s3.json");
        std::fs::write(&config_path, config.to_string()).expect("write configuration");
        let data = root.path().join("data");
        std::fs::create_dir(&data).expect("data directory");

        let names = ["master", "volume", "filer", "s3", "admin"];
        let ports = free_ports(names.len() * 2);
        let log = std::fs::File::create(root.path().join("log")).expect("log file");
        let mut command = Command::new(weed);
        command
            .arg(format!("-logdir={}", root.path().display()))
            .arg("mini")
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.config={}", config_path.display()))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"]);
        for (name, ports) in names.iter().zip(ports.chunks(2)) {
            command.arg(format!("-{name}.port={}", ports[0])).arg(format!("-{name}.port.grpc={}", ports[1]));
        }
        let process = command
            .env_clear()
            .env("HOME", root.path())
            .env("WEED_S3_SSE_KEY", "x")
            .current_dir(root.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}", weed.display()));
        let endpoint = format!("http://127.0.0.1:{}", ports[6]);
        let bucket = "backups".to_owned();
        let mut server = Self { endpoint, bucket, admin, writer, reader, limited, process, ports, root };
        // The keys are this server's own: who accepts them is no other server on the port.
        let client = client(&server.endpoint, &server.admin);
        let address = SocketAddr::from(([127, 0, 0, 1], server.ports[6]));
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline {
            if server.process.try_wait().expect("wait for SeaweedFS").is_some() {
                return None;
            }
            // The SDK would wait longer and longer between attempts.
            if TcpStream::connect(address).is_ok()
                && client.create_bucket().bucket(&server.bucket).send().await.is_ok()
            {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        eprintln!("{}", std::fs::read_to_string(server.root.path().join("log")).unwrap_or_default());
        None
    }

    /// The repository under a prefix.
    pub fn repository(&self, prefix: &str) -> Repository {
        repository(&self.endpoint, &self.bucket, prefix)
    }

    /// Creates another bucket, with Object Lock and without a default retention.
    pub async fn locking_bucket(&self, name: &str) {
        let create = self.client().create_bucket().bucket(name).object_lock_enabled_for_bucket(true);
        create.send().await.expect("create a bucket with Object Lock");
    }

    /// The SDK's own client, as the administrator.
    pub fn client(&self) -> aws_sdk_s3::Client {
        client(&self.endpoint, &self.admin)
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Its sockets are outside its directory, named after its ports.
        for port in &self.ports {
            for name in ["filer", "s3", "filer-grpc", "master-grpc", "s3-grpc", "volume-grpc", "admin-grpc"] {
                let _ = std::fs::remove_file(format!("/tmp/seaweedfs-{name}-{port}.sock"));
            }
        }
    }
}

/// Where `make setup` put SeaweedFS.
pub fn weed_binary() -> PathBuf {
    let path = std::env::var_os("OPSD_TEST_WEED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-servers/seaweedfs/weed"),
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "SeaweedFS is missing ({} does not exist): run `make setup`, or set OPSD_TEST_WEED",
        path.display()
    );
    path
}

/// Ports that nobody listens on at this moment.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("free port")).collect();
    listeners.iter().map(|l| l.local_addr().expect("address").port()).collect()
}
