//! What the operator wants, resolved: one file is one site.
//!
//! `raw` reads TOML into spans and reports every mistake at once; this module holds what comes out,
//! with defaults applied, `${VAR}` expanded and connection settings resolved the way libpq does
//! (`libpq`); `load` finds the file. Nothing else in the crate reads the environment (the AWS
//! credential chain in `store::s3` aside).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub mod container;
mod encryption;
pub mod finding;
pub mod keys;
pub mod libpq;
pub mod load;
pub mod monitoring;
pub mod path;
mod postgres;
pub mod raw;
pub mod require_auth;
mod restore;
pub mod secret;
pub mod units;
mod verify;
mod walk;

pub use container::{Client, Place, Route, Wanted};
pub use finding::{Finding, Mistake, Warning};
pub use load::{environment, load};
pub use monitoring::{Exporter, Monitor, MonitorKind, Queue, QueueKind, Redis, RedisAddress, Threshold};
pub use restore::REFRESH_TIMEOUT;

use require_auth::{ChannelBinding, RequireAuth};
use secret::Secret;

/// What stands at the top of a configuration file.
const SECTIONS: [&str; 9] =
    ["site", "repository", "encryption", "postgres", "backup", "restore", "redis", "exporter", "monitor"];

/// One site.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// Name of the site: first component of every key in the repository, label of every metric.
    pub site: String,
    /// Where sets are kept.
    pub repository: Repository,
    /// Who can read sets, and who vouches for them.
    pub encryption: Encryption,
    /// PostgreSQL servers by name.
    pub postgres: BTreeMap<String, Postgres>,
    /// Backup jobs by name.
    pub backup: BTreeMap<String, BackupJob>,
    /// What is set in each session of a restore into a server that is there.
    pub restore_settings: BTreeMap<String, String>,
    /// How long a restore into a server that is there fills materialized views that ask other servers.
    pub refresh_timeout: Duration,
    /// Redis servers by name.
    pub redis: BTreeMap<String, Redis>,
    /// How figures are served.
    pub exporter: Exporter,
    /// What is watched, by name.
    pub monitor: BTreeMap<String, Monitor>,
}

/// A store and a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repository {
    /// What kind, and where.
    pub location: Location,
    /// Endpoint of an S3-compatible store; absent means AWS.
    pub endpoint: Option<String>,
    /// Region to sign for; absent means what the AWS chain says.
    pub region: Option<String>,
    /// Bucket in the path instead of in the host name.
    pub path_style: bool,
    /// How long what a set consists of cannot be deleted; absent means that the bucket's default applies.
    pub lock: Option<ObjectLock>,
}

/// S3's Object Lock, as it is asked for with each object of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    /// Who may end it before its time.
    pub mode: LockMode,
    /// Days from the start of the run that writes.
    pub days: u32,
}

/// Who may end an Object Lock before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// A credential with `s3:BypassGovernanceRetention`.
    Governance,
    /// Nobody.
    Compliance,
}

impl LockMode {
    /// As the configuration spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            LockMode::Governance => "governance",
            LockMode::Compliance => "compliance",
        }
    }
}

/// Where a repository's bytes are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Location {
    /// The host only watches, and its configuration names none.
    #[default]
    Nowhere,
    /// `s3://bucket/prefix`; the prefix has no slash at either end and may be empty.
    S3 {
        /// Bucket name.
        bucket: String,
        /// Key prefix.
        prefix: String,
    },
    /// `file:///path`.
    File(PathBuf),
}

impl Location {
    /// As written in the configuration.
    pub fn describe(&self) -> String {
        match self {
            Location::S3 { bucket, prefix } if prefix.is_empty() => format!("s3://{bucket}"),
            Location::S3 { bucket, prefix } => format!("s3://{bucket}/{prefix}"),
            Location::File(path) => format!("file://{}", path.display()),
            Location::Nowhere => "nowhere".to_owned(),
        }
    }
}

/// Keys. Recipients are public; the files hold secrets and are read only when needed.
#[derive(Debug, Clone, Default)]
pub struct Encryption {
    /// age X25519 (`age1…`) or SSH public keys, checked to parse.
    pub recipients: Vec<String>,
    /// age identities; only where restores run.
    pub identity_file: Option<PathBuf>,
    /// minisign secret key; where backups are made.
    pub sign_key_file: Option<PathBuf>,
    /// Whose signatures are believed; where backups are read.
    pub trusted: Trusted,
}

/// minisign public keys (`RW…`), by what they may sign. A host that rehearses signs what it proved, and need
/// not be one that may sign backups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Keys that may sign manifests. None: any manifest is believed.
    pub backups: Vec<String>,
    /// Keys that may sign the records of rehearsals.
    pub verifications: Vec<String>,
}

impl Trusted {
    /// Keys that may sign both.
    pub fn with_keys(keys: Vec<String>) -> Self {
        Self { backups: keys.clone(), verifications: keys }
    }

    /// Whether nothing is authenticated.
    pub fn is_nobody(&self) -> bool {
        self.backups.is_empty()
    }
}

/// What to do where a repository is missing.
pub const ADD_REPOSITORY: &str = "add [repository] with url = \"s3://bucket/prefix\" or \"file:///path\"";

/// A PostgreSQL server: how to connect, and which client tools to use.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Name in the configuration.
    pub name: String,
    /// Resolved connection settings.
    pub connection: Connection,
    /// Directory with pg_dump and friends; absent means search.
    pub bin_dir: Option<PathBuf>,
    /// Words put before every tool, for a server in a container; empty means none.
    pub tool_prefix: Vec<String>,
    /// The container that the server runs in. Its address is looked up whenever it is needed.
    pub container: Option<Wanted>,
}

/// libpq connection settings, resolved once for tokio-postgres and the client tools alike.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Host names, addresses, or (starting with `/`) socket directories, each with its port. A server in a
    /// container has one, which is the container's name: `route` says where it is.
    pub hosts: Vec<(String, u16)>,
    /// The way to these hosts.
    pub route: Route,
    /// Role.
    pub user: String,
    /// Password, from the URL, PGPASSWORD, or the password file.
    pub password: Option<Secret>,
    /// The password file, where only that may have one.
    pub passfile: Option<PathBuf>,
    /// Database.
    pub dbname: String,
    /// Whether the URL or string itself says which database; the environment and services do not count.
    pub names_dbname: bool,
    /// How TLS is negotiated.
    pub sslmode: SslMode,
    /// Whether somebody wrote the mode, so that it is no default.
    pub names_sslmode: bool,
    /// By which methods a server may ask for a password; absent means any that does not show it.
    pub require_auth: Option<RequireAuth>,
    /// Whether SCRAM must be bound to the TLS connection.
    pub channel_binding: ChannelBinding,
    /// Certificate authorities to trust: a file, or `system`.
    pub sslrootcert: Option<PathBuf>,
    /// Client certificate.
    pub sslcert: Option<PathBuf>,
    /// Its key.
    pub sslkey: Option<PathBuf>,
    /// Bound on connecting to one host.
    pub connect_timeout: Duration,
    /// Server settings sent at the start (`-c name=value`).
    pub options: Option<String>,
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// Without TLS first; treated as `Prefer`'s mirror by libpq, and as `Prefer` here.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// TLS, any certificate (checked where a root certificate is named).
    Require,
    /// TLS, certificate signed by a trusted authority.
    VerifyCa,
    /// TLS, and the certificate names the host.
    VerifyFull,
}

impl SslMode {
    /// libpq's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

/// One `[backup.NAME]`.
#[derive(Debug, Clone)]
pub struct BackupJob {
    /// Name in the configuration; second component of its sets' keys.
    pub name: String,
    /// Which `[postgres.NAME]`.
    pub postgres: String,
    /// Which databases of it.
    pub databases: Databases,
    /// Streams that are drained at the same time.
    pub streams: usize,
    /// zstd level.
    pub compression: i32,
    /// Bytes in a multipart part.
    pub part_size: u64,
    /// Tables from this many bytes get a stream of their own.
    pub large_table: u64,
    /// `schema.table` patterns (`*` and `?`) whose rows are left out.
    pub exclude_table_data: Vec<String>,
    /// `schema.table` patterns of tables that pg_dump takes into no dump, and that are taken along.
    pub include_extension_tables: Vec<String>,
    /// How long a backup may take.
    pub timeout: Duration,
    /// Recovery point objective.
    pub rpo: Option<Duration>,
    /// What prune keeps; absent means that prune refuses.
    pub retention: Option<Retention>,
    /// How rehearsals run.
    pub verify: Verify,
    /// Whom a backup tells how it goes.
    pub ping: Ping,
}

/// Whom a run tells how it goes, with a GET each. The URLs are secrets: whoever has them can say that all is well.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ping {
    /// Asked as the run begins.
    pub start: Option<Secret>,
    /// Asked once it went well.
    pub success: Option<Secret>,
    /// Asked once it did not.
    pub fail: Option<Secret>,
}

impl BackupJob {
    /// A job that nothing is said of beside its name, as on a host that only restores.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            postgres: String::new(),
            databases: Databases::Url,
            streams: 2,
            // What level 1 saves in CPU time, and stores more than level 3, is in `benches/README.md`.
            compression: 1,
            part_size: 8 << 20,
            large_table: 64 << 20,
            exclude_table_data: Vec::new(),
            include_extension_tables: Vec::new(),
            // A backup of terabytes over a slow line takes days. One that takes a week does not end, and holds locks.
            timeout: Duration::from_hours(7 * 24),
            rpo: None,
            retention: None,
            verify: verify::default_verify(),
            ping: Ping::default(),
        }
    }
}

/// Which databases a job dumps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Databases {
    /// The one in the server's URL.
    Url,
    /// Every connectable one but template0, and template1 only where it holds anything (`["*"]`).
    All,
    /// These.
    Named(Vec<String>),
}

/// How many sets to keep; 0 means that the rule does not apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// The newest sets.
    pub last: u32,
    /// The newest set of each of the last N UTC days that have one.
    pub daily: u32,
    /// The same for ISO weeks.
    pub weekly: u32,
    /// The same for months.
    pub monthly: u32,
    /// The same for years.
    pub yearly: u32,
}

/// One `[backup.NAME.verify]`.
#[derive(Debug, Clone)]
pub struct Verify {
    /// Where scratch servers live; created where missing, closed to all but the user they run as.
    pub scratch_dir: PathBuf,
    /// Whom they run as when opsd is root; absent means `opsd-scratch` if it exists, else `nobody`.
    pub scratch_user: Option<String>,
    /// The image that they run in, in a throw-away container; absent means that of the server's container, where it has
    /// one, else this host's programs.
    pub image: Option<String>,
    /// Queries that must return one row with one true column.
    pub assert: Vec<String>,
    /// How long a rehearsal may take.
    pub timeout: Duration,
    /// Whom a rehearsal tells how it goes.
    pub ping: Ping,
}
