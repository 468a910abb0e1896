//! `manifest.json`: what a set holds, written last; without it the set does not exist.
//!
//! It carries a format version, and a version this opsd does not know is refused, never guessed.
//! It holds no secret and no row content. Everything in it that becomes a key is validated on
//! reading, because whoever can write to the bucket can write a manifest.

mod bounds;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use self::bounds::SIZE_MAX;
pub use crate::database::Locale;
use crate::error::{Error, Result};
use crate::store::check_key;

/// The format this opsd writes and reads.
pub const FORMAT: u32 = 2;

/// Most bytes of an age header, with its nonce, that are read before anything is decrypted: twenty
/// recipients with the largest keys there are fit.
pub const MAX_HEADER: u64 = 16 << 10;

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
    /// Databases that belong into this set and could not be dumped. A set that has some is not relied on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<Lacking>,
    /// Databases that `["*"]` passed over, because nobody can connect to them. Nothing of them can be in a set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Lacking>,
    /// How to restore without opsd.
    pub restore_md: Document,
    /// What the operator should know: pg_dump's warnings, missing privileges, a sudden shrinking.
    pub warnings: Vec<String>,
}

/// A database that could not be dumped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lacking {
    /// Its name.
    pub name: String,
    /// The error.
    pub why: String,
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
    /// Libraries that it loads when it starts; absent where our role may not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preloaded: Option<Vec<String>>,
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
    /// Collations that definitions name, for preflights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collations: Vec<Collation>,
    /// Tables whose rows were left out because the configuration says so, `schema.name`.
    pub excluded: Vec<String>,
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

/// A collation that something in the database uses, C and POSIX aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collation {
    /// `libc` or `icu`.
    pub provider: String,
    /// Its name where it is the server's (`de-x-icu`); absent where the database defines it.
    pub name: Option<String>,
    /// ICU locale, where it has one.
    pub locale: Option<String>,
    /// LC_COLLATE, where it has no ICU locale.
    pub collate: String,
    /// LC_CTYPE, the same.
    pub ctype: String,
}

/// An installed extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Installed version.
    pub version: String,
    /// The schema that it was installed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
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
    /// Its objects, in order. Decrypted one by one and concatenated they are zstd frames.
    pub objects: Vec<Object>,
    /// Seconds from its first byte to its last.
    pub seconds: f64,
    /// Objects that a restore of it in one transaction locks; absent where nobody counted them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locks: Option<u64>,
}

impl Stream {
    /// Whether a restore of it is one transaction. One that locked more than [`TRANSACTION_SIZE`] objects
    /// would need a larger lock table than servers have.
    pub fn is_one_transaction(&self) -> bool {
        self.locks.is_some_and(|locks| locks <= TRANSACTION_SIZE)
    }
}

/// Objects that one transaction of a restore locks at most. A server whose settings nobody changed has room for
/// 6,400 locks of all transactions together (`max_locks_per_transaction` × `max_connections`), and several
/// streams are restored at the same time.
pub const TRANSACTION_SIZE: u64 = 1_000;

/// One stored age file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Key relative to the set's folder.
    pub key: String,
    /// Bytes stored.
    pub size: u64,
    /// SHA-256 of the bytes stored, in hexadecimal: the proof that all of it is as it was written.
    pub sha256: String,
    /// Its beginning, which is compared before anything is decrypted.
    pub header: Header,
}

/// The beginning of an age file: its header, and the nonce of its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Bytes, the nonce's 16 among them.
    pub size: u64,
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
}

/// One stored file in plain text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Key relative to the set's folder.
    pub key: String,
    /// Bytes stored.
    pub size: u64,
    /// SHA-256 of the bytes stored, in hexadecimal.
    pub sha256: String,
}

/// What is said of anything stored, be it encrypted or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// Key relative to the set's folder.
    pub key: &'a str,
    /// Bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: &'a str,
    /// The beginning of an age file; a document has none.
    pub header: Option<&'a Header>,
}

impl Manifest {
    /// Reads a manifest found under `site/job/id`, refusing unknown versions, manifests that belong
    /// elsewhere, and keys that are not this set's.
    pub fn parse(bytes: &[u8], site: &str, job: &str, id: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        bounds::check(bytes)?;
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
        // Sums of what it claims are shown and planned with.
        let databases = &manifest.databases;
        let sums = [
            bounds::total(manifest.stored().map(|o| o.size)),
            bounds::total(manifest.streams().map(|s| s.plain_size)),
            bounds::total(databases.iter().map(|d| d.tables)),
            bounds::total(databases.iter().map(|d| d.rows)),
            bounds::total(databases.iter().map(|d| d.bytes)),
        ];
        if sums.contains(&None) {
            return Err(Error::differs("manifest claims more than there can be"));
        }
        if let Some(stream) = manifest.streams().find(|s| s.objects.is_empty()) {
            return Err(Error::differs(format!("manifest lists no object for stream {:?}", stream.name)));
        }
        let mut seen = std::collections::HashSet::new();
        for object in manifest.stored() {
            check_key(object.key).map_err(|e| Error::differs(e).context("manifest"))?;
            if super::is_set_object(object.key) && ![super::GLOBALS, super::RESTORE_MD].contains(&object.key)
            {
                return Err(Error::differs(format!("manifest lists {:?} as content", object.key)));
            }
            if !seen.insert(object.key) {
                return Err(Error::differs(format!("manifest lists {:?} twice", object.key)));
            }
            if let Some(header) = object.header
                && !(1..=MAX_HEADER.min(object.size)).contains(&header.size)
            {
                return Err(Error::differs(format!(
                    "manifest says that {:?}, of {} bytes, has a header of {}, where at most {MAX_HEADER} are allowed",
                    object.key, object.size, header.size
                )));
            }
        }
        Ok(manifest)
    }

    /// The manifest as stored: pretty JSON, so that a person can read it.
    ///
    /// # Errors
    /// Where it is larger than what is read.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        bounds::check(&bytes).map_err(|e| e.with_hint("divide the databases among several jobs"))?;
        Ok(bytes)
    }

    /// The major of pg_dump, and of the pg_restore that reads its archives; 0 where it is not known.
    pub fn dump_major(&self) -> u32 {
        self.pg_dump_version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }

    /// Every sealed stream.
    fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.globals.iter().chain(self.databases.iter().flat_map(|d| d.streams.iter().chain(&d.proof_object)))
    }

    /// Every age file of the set.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.streams().flat_map(|s| &s.objects)
    }

    /// Everything that the set consists of, the manifest and its signature aside.
    pub fn stored(&self) -> impl Iterator<Item = Stored<'_>> {
        let Document { key, size, sha256 } = &self.restore_md;
        let document = Stored { key, size: *size, sha256, header: None };
        let objects = self.objects().map(|Object { key, size, sha256, header }| Stored {
            key,
            size: *size,
            sha256,
            header: Some(header),
        });
        objects.chain(std::iter::once(document))
    }

    /// Bytes stored, the manifest aside.
    pub fn stored_bytes(&self) -> u64 {
        self.stored().fold(0, |sum, o| sum.saturating_add(o.size))
    }

    /// Bytes before compression. The sizes are somebody else's word: their sum does not wrap around.
    pub fn plain_bytes(&self) -> u64 {
        self.streams().fold(0, |sum, s| sum.saturating_add(s.plain_size))
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

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;

    const ID: &str = "20261121T030000Z-7f3a";

    fn stream(name: &str, keys: &[&str], plain_size: u64) -> Stream {
        let header = Header { size: 4, sha256: "1".repeat(64) };
        let object = |key: &&str| Object {
            key: (*key).into(),
            size: 10,
            sha256: "0".repeat(64),
            header: header.clone(),
        };
        Stream {
            name: name.into(),
            plain_size,
            objects: keys.iter().map(object).collect(),
            seconds: 0.5,
            locks: Some(1),
        }
    }

    /// A small set of two databases, each of two streams and a proof.
    pub(crate) fn manifest() -> Manifest {
        let time = "2026-11-21T03:00:00Z".parse().unwrap();
        let database = |name: &str, folder: &str| Database {
            name: name.into(),
            locale: Locale {
                encoding: "UTF8".into(),
                collate: "C.UTF-8".into(),
                ctype: "C.UTF-8".into(),
                provider: "libc".into(),
                locale: None,
                icu_rules: None,
                monetary: "C".into(),
            },
            snapshot_lsn: "0/1".into(),
            snapshot_time: time,
            extensions: vec![Extension { name: "pgcrypto".into(), version: "1.3".into(), schema: None }],
            collations: vec![],
            excluded: vec![],
            streams: vec![
                stream("schema", &[&format!("{folder}/schema.pgdump.zst.age")], 100),
                stream(
                    "data-rest",
                    &[
                        &format!("{folder}/data-rest.pgdump.zst.age"),
                        &format!("{folder}/data-rest.pgdump.zst.age.001"),
                    ],
                    1000,
                ),
            ],
            proof_object: Some(stream("proof", &[&format!("{folder}/proof.json.zst.age")], 7)),
            proof: ProofState::Complete,
            tables: 3,
            rows: 30,
            bytes: 300,
        };
        Manifest {
            format: FORMAT,
            site: "example".into(),
            job: "main".into(),
            id: ID.into(),
            started: time,
            finished: time,
            previous: None,
            opsd_version: "0.1.0".into(),
            server: Server {
                version_num: 170_011,
                version: "17.11".into(),
                in_recovery: false,
                preloaded: None,
            },
            pg_dump_version: "17.11".into(),
            recipients: vec!["age1example".into()],
            globals: Some(stream("globals", &[super::super::GLOBALS], 20)),
            databases: vec![database("shop", "shop"), database("../x", "..%2Fx")],
            lacking: Vec::new(),
            left_out: Vec::new(),
            restore_md: Document { key: super::super::RESTORE_MD.into(), size: 5, sha256: "0".repeat(64) },
            warnings: vec!["one".into()],
        }
    }

    fn parse(bytes: &[u8]) -> Result<Manifest> {
        Manifest::parse(bytes, "example", "main", ID)
    }

    fn changed(change: impl FnOnce(&mut Manifest)) -> Error {
        let mut manifest = manifest();
        change(&mut manifest);
        parse(&manifest.to_bytes().unwrap()).unwrap_err()
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = manifest();
        assert_eq!(parse(&manifest.to_bytes().unwrap()).unwrap(), manifest);
        assert_eq!((manifest.objects().count(), manifest.stored().count()), (9, 10));
        assert_eq!(manifest.stored_bytes(), 95);
        assert_eq!(manifest.plain_bytes(), 20 + 2 * 1107);
    }

    #[test]
    fn the_weakest_proof_is_the_sets() {
        let proof = |one, two| {
            let mut manifest = manifest();
            (manifest.databases[0].proof, manifest.databases[1].proof) = (one, two);
            manifest.proof()
        };
        use ProofState::{Complete, None, Partial};
        assert_eq!(proof(Complete, Complete), Complete);
        assert_eq!(proof(Complete, Partial), Partial);
        assert_eq!(proof(Partial, None), None);
        assert_eq!(proof(None, Complete), None);
    }

    #[test]
    fn another_version_is_refused_with_the_next_step() {
        // Whatever else it may hold.
        for text in [r#"{"format": 1}"#, r#"{"format": 0, "site": 7}"#, r#"{"sets": [], "format": 3}"#] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("this opsd reads format 2"), "{error}");
            assert!(error.hint().is_some());
        }
        for text in ["", "{", "[]", "{}", r#"{"format": "2"}"#, r#"{"format": -1}"#, r#"{"format": 2}"#] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Differs, "{text}");
            assert!(error.to_string().contains("manifest is damaged"), "{error}");
        }
    }

    #[test]
    fn unknown_fields_are_refused_at_every_depth() {
        let text = String::from_utf8(manifest().to_bytes().unwrap()).unwrap();
        for field in ["format", "version_num", "plain_size", "encoding", "version", "key", "header"] {
            let at = format!("\"{field}\":");
            assert!(text.contains(&at), "{field}");
            let odd = text.replacen(&at, &format!("\"extra\": 1, {at}"), 1);
            let error = parse(odd.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("unknown field `extra`"), "{field}: {error}");
        }
    }

    #[test]
    fn a_manifest_of_another_set_is_refused() {
        for change in [
            (|m: &mut Manifest| m.site = "other".into()) as fn(&mut Manifest),
            |m| m.job = "other".into(),
            |m| m.id = "20261121T030000Z-0000".into(),
        ] {
            let error = changed(change);
            assert_eq!(error.kind(), Kind::Differs);
            assert!(error.to_string().contains("was found under example/main/"), "{error}");
        }
    }

    #[test]
    fn keys_that_lead_elsewhere_are_refused() {
        for key in [
            "",
            "/etc/passwd",
            "../other/manifest.json",
            "shop/../../x",
            "shop//x",
            "shop/.",
            "shop\\x",
            "a\nb",
            "manifest.json",
            "manifest.json.minisig",
            "failed.json",
            "verified-20261121T030000Z.json",
            "verified-20261121T030000Z.json.minisig",
            // Twice.
            "RESTORE.md",
            "globals.sql.zst.age",
            "shop/schema.pgdump.zst.age",
        ] {
            let error = changed(|m| m.databases[0].streams[1].objects[1].key = key.into());
            assert_eq!(error.kind(), Kind::Differs, "{key:?}");
            assert!(error.to_string().contains(&format!("{key:?}")), "{error}");
        }
    }

    #[test]
    fn claims_that_add_up_to_nonsense_are_refused() {
        for change in [
            (|m: &mut Manifest| m.restore_md.size = u64::MAX) as fn(&mut Manifest),
            |m| m.databases[0].streams[0].plain_size = u64::MAX,
            |m| m.databases[0].rows = u64::MAX,
            |m| m.databases[1].bytes = u64::MAX,
            |m| m.databases[1].tables = u64::MAX,
            |m| m.databases[1].streams[0].objects.clear(),
            |m| m.globals.as_mut().unwrap().objects.clear(),
            // Headers that are none, that are longer than what they begin, or longer than any.
            |m| m.globals.as_mut().unwrap().objects[0].header.size = 0,
            |m| m.databases[0].streams[1].objects[1].header.size = 11,
            |m| {
                let object = &mut m.databases[0].streams[1].objects[1];
                (object.size, object.header.size) = (1 << 30, MAX_HEADER + 1);
            },
        ] {
            let error = changed(change);
            assert_eq!(error.kind(), Kind::Differs);
            assert!(error.to_string().starts_with("manifest "), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            at in any::<prop::sample::Index>(), with in any::<u8>(), noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert!(parse(&noise).is_err());
            let mut bytes = manifest().to_bytes().unwrap();
            // The last byte is a newline, which JSON does not need.
            let at = at.index(bytes.len() - 1);
            prop_assert!(parse(&bytes[..at]).is_err());
            bytes[at] = with;
            if let Ok(manifest) = parse(&bytes) {
                let _ = (manifest.stored_bytes(), manifest.plain_bytes(), manifest.proof());
            }
        }
    }
}
