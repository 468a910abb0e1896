//! `manifest.json`: what a set holds, written last; without it the set does not exist.
//!
//! It carries a format version, and a version this opsd does not know is refused, never guessed.
//! It holds no secret and no row content. Everything in it that becomes a key is validated on
//! reading, because whoever can write to the bucket can write a manifest.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::store::check_key;

/// The format this opsd writes and reads.
pub const FORMAT: u32 = 1;

/// A whole set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: u32,
    /// Site it belongs to; must match the key it is found under.
    pub site: String,
    /// Job it belongs to; the same.
    pub job: String,
    /// Set id; the same.
    pub id: String,
    /// When the run started.
    pub started: DateTime<Utc>,
    /// When the last object was stored.
    pub finished: DateTime<Utc>,
    /// The complete set before this one, where the credential could see it.
    pub previous: Option<String>,
    /// opsd that wrote it.
    pub opsd_version: String,
    /// The server it was taken from.
    pub server: Server,
    /// pg_dump's own version, `17.11`.
    pub pg_dump_version: String,
    /// Public keys that can read it.
    pub recipients: Vec<String>,
    /// Cluster-wide objects; absent where the role may not read them (a warning says so).
    pub globals: Option<Stream>,
    /// One entry a database, in dump order.
    pub databases: Vec<Database>,
    /// How to restore without opsd.
    pub restore_md: Object,
    /// What the operator should know: pg_dump's warnings, missing privileges, exclusions.
    pub warnings: Vec<String>,
}

/// The server a set was taken from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `server_version_num`, 170011.
    pub version_num: u32,
    /// `server_version`.
    pub version: String,
    /// Whether it was a standby.
    pub in_recovery: bool,
}

/// One database of a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Its name, as PostgreSQL has it.
    pub name: String,
    /// Encoding and locale, needed to create it again.
    pub locale: Locale,
    /// WAL position when the snapshot was taken.
    pub snapshot_lsn: String,
    /// When the snapshot was taken, by the server's clock.
    pub snapshot_time: DateTime<Utc>,
    /// Extensions and their versions, for preflights.
    pub extensions: Vec<Extension>,
    /// The archives: `schema`, `data-rest`, `data-1`, …; or one that is called `full`.
    pub streams: Vec<Stream>,
    /// The sealed proof; absent where `proof` is `none`.
    pub proof_object: Option<Stream>,
    /// How much of the content has a fingerprint.
    pub proof: ProofState,
    /// Tables whose rows are in the set.
    pub tables: u64,
    /// Their rows.
    pub rows: u64,
    /// Bytes of COPY text and large objects.
    pub bytes: u64,
}

/// How a database orders and encodes text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locale {
    /// `UTF8`, `SQL_ASCII`, ….
    pub encoding: String,
    /// LC_COLLATE.
    pub collate: String,
    /// LC_CTYPE.
    pub ctype: String,
    /// `libc`, `icu` or `builtin`.
    pub provider: String,
    /// ICU or builtin locale.
    pub locale: Option<String>,
    /// ICU rules.
    pub icu_rules: Option<String>,
    /// `lc_monetary` of the dumping session: money is written in it.
    pub monetary: String,
}

/// An installed extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Installed version.
    pub version: String,
}

/// How much of a database's content is fingerprinted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofState {
    /// Every table's data and every large object.
    Complete,
    /// Some of it; the warnings say what is missing.
    Partial,
    /// The archive's version is unknown to this opsd.
    None,
}

/// One sealed stream, stored as one object or, past the store's part limit, as several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// What it is called on the command line: `globals`, `schema`, `data-rest`, `data-1`, `full`, `proof`.
    pub name: String,
    /// Bytes before compression.
    pub plain_size: u64,
    /// Its objects, in order. Decrypted one by one and concatenated they are one zstd frame.
    pub objects: Vec<Object>,
    /// Seconds from its first byte to its last.
    pub seconds: f64,
}

/// One stored object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Key relative to the set's folder.
    pub key: String,
    /// Bytes stored.
    pub size: u64,
    /// SHA-256 of the bytes stored, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// Reads a manifest found under `site/job/id`, refusing unknown versions, manifests that belong
    /// elsewhere, and keys that are not this set's.
    pub fn parse(bytes: &[u8], site: &str, job: &str, id: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let version: Versioned =
            serde_json::from_slice(bytes).map_err(|e| Error::differs(e).context("manifest is damaged"))?;
        if version.format != FORMAT {
            return Err(Error::new(format!(
                "manifest has format {}, this opsd reads format {FORMAT}",
                version.format
            ))
            .with_hint("use the opsd version that wrote the set, or a newer one"));
        }
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| Error::differs(e).context("manifest is damaged"))?;
        let found = (manifest.site.as_str(), manifest.job.as_str(), manifest.id.as_str());
        if found != (site, job, id) {
            return Err(Error::differs(format!(
                "manifest says {}/{}/{} but was found under {site}/{job}/{id}",
                found.0, found.1, found.2
            ))
            .with_hint("a set was copied or moved to where it does not belong"));
        }
        let mut seen = std::collections::HashSet::new();
        for object in manifest.objects() {
            check_key(&object.key).map_err(|e| Error::differs(e).context("manifest"))?;
            if super::is_set_object(&object.key)
                && ![super::GLOBALS, super::RESTORE_MD].contains(&object.key.as_str())
            {
                return Err(Error::differs(format!("manifest lists {:?} as content", object.key)));
            }
            if !seen.insert(object.key.as_str()) {
                return Err(Error::differs(format!("manifest lists {:?} twice", object.key)));
            }
        }
        Ok(manifest)
    }

    /// The manifest as stored: pretty JSON, so that a person can read it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Every object the set consists of, the manifest and its signature aside.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.globals
            .iter()
            .chain(self.databases.iter().flat_map(|d| d.streams.iter().chain(&d.proof_object)))
            .flat_map(|s| &s.objects)
            .chain(std::iter::once(&self.restore_md))
    }

    /// Bytes stored, the manifest aside.
    pub fn stored_bytes(&self) -> u64 {
        self.objects().fold(0, |sum, o| sum.saturating_add(o.size))
    }

    /// Bytes before compression. The sizes are somebody else's word: their sum does not wrap around.
    pub fn plain_bytes(&self) -> u64 {
        self.globals
            .iter()
            .chain(self.databases.iter().flat_map(|d| d.streams.iter().chain(&d.proof_object)))
            .fold(0, |sum, s| sum.saturating_add(s.plain_size))
    }

    /// The weakest proof of all databases.
    pub fn proof(&self) -> ProofState {
        let states = || self.databases.iter().map(|d| d.proof);
        if states().any(|s| s == ProofState::None) {
            ProofState::None
        } else if states().any(|s| s == ProofState::Partial) {
            ProofState::Partial
        } else {
            ProofState::Complete
        }
    }
}
