//! The catalog and pruning, over stores with hand-made manifests; what they share is here.

mod catalog_of_sets;
mod commands;
mod pruning;
mod reliance;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use opsd::backup::prune::{self, JobPlan};
use opsd::config::{Retention, Trusted};
use opsd::set;
use opsd::set::catalog::{self, Selector};
use opsd::set::manifest::{self, Document, Header, Manifest, Object, ProofState, Stream};
use opsd::set::verification::{self, Phases, Verdict, Verification};
use opsd::store::memory::MemoryStore;
use opsd::store::{self, Store};

use crate::support::sets::sign;

const SITE: &str = "example";
const JOB: &str = "db";

fn time(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

fn now() -> DateTime<Utc> {
    time("2026-11-21T12:00:00Z")
}

/// A signing key in a file, and its public half.
struct Keys {
    _dir: tempfile::TempDir,
    secret: std::path::PathBuf,
    public: String,
}

impl Keys {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let secret = dir.path().join("sign.key");
        let pair = minisign::KeyPair::generate_unencrypted_keypair().expect("a key pair");
        let file = pair.sk.to_box(None).expect("a secret key").into_string();
        std::fs::write(&secret, file).expect("the key's file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&secret, mode).expect("the key's mode");
        Self { _dir: dir, secret, public: pair.pk.to_base64() }
    }

    fn trusted(&self) -> Trusted {
        Trusted::with_keys(vec![self.public.clone()])
    }
}

/// A repository that sets are put into by hand.
struct Repository<'k> {
    store: Arc<dyn Store>,
    keys: Option<&'k Keys>,
}

impl<'k> Repository<'k> {
    fn memory() -> Self {
        Self { store: Arc::new(MemoryStore::new()), keys: None }
    }

    fn signed(keys: &'k Keys) -> Self {
        Self { keys: Some(keys), ..Self::memory() }
    }

    async fn put(&self, key: &str, bytes: impl Into<bytes::Bytes>) {
        store::put(&*self.store, key, bytes, false).await.expect("stored");
    }

    async fn put_signed(&self, key: &str, bytes: Vec<u8>) {
        if let Some(keys) = self.keys {
            let signature = sign(&keys.secret, key, &bytes);
            self.put(&format!("{key}.minisig"), signature).await;
        }
        self.put(key, bytes).await;
    }

    /// A whole set that started at `started`; its id.
    async fn set(&self, started: &str) -> String {
        let id = format!("{}-0000", time(started).format("%Y%m%dT%H%M%SZ"));
        self.set_as(&id, &manifest(started, &id)).await;
        id
    }

    async fn set_as(&self, id: &str, manifest: &Manifest) {
        let prefix = set::set_prefix(SITE, JOB, id);
        for object in manifest.stored() {
            self.put(&format!("{prefix}{}", object.key), vec![7; object.size as usize]).await;
        }
        self.put_signed(&format!("{prefix}manifest.json"), manifest.to_bytes().expect("bytes")).await;
    }

    /// A rehearsal of a set that is there.
    async fn verify(&self, id: &str, finished: &str, verdict: Verdict) -> String {
        self.verify_saying(id, finished, verdict, &[]).await
    }

    /// The same, with what it found to differ.
    async fn verify_saying(&self, id: &str, finished: &str, verdict: Verdict, differs: &[&str]) -> String {
        let set = catalog::load(&*self.store, &Trusted::default(), SITE, JOB, id).await.expect("the set");
        let finished = time(finished);
        let record = Verification {
            format: verification::FORMAT,
            site: SITE.into(),
            job: JOB.into(),
            id: id.into(),
            manifest_sha256: set.manifest_sha256,
            verdict,
            started: finished - TimeDelta::seconds(90),
            finished,
            seconds: Phases(vec![("fetch".into(), 10.0), ("restore".into(), 80.0)]),
            databases: vec![verification::Database {
                name: "app".into(),
                tables_total: 2,
                tables_proven: 2,
                rows: 100,
                differences: differs.iter().map(ToString::to_string).collect(),
            }],
            differences: vec![],
            scope: vec![],
            reason: None,
            warnings: vec![],
            server_version: Some("17.11".into()),
            place: None,
            contained: None,
            opsd_version: "0.1.0".into(),
        };
        let key = set::set_prefix(SITE, JOB, id) + &verification::name(finished);
        self.put_signed(&key, record.to_bytes().expect("bytes")).await;
        key
    }

    async fn keys(&self) -> Vec<String> {
        self.store.list("").await.expect("a listing").into_iter().map(|o| o.key).collect()
    }
}

fn object(key: &str) -> Object {
    let header = Header { size: 32, sha256: "00".repeat(32) };
    Object { key: key.into(), size: 64, sha256: "00".repeat(32), header }
}

fn stream(name: &str, key: &str) -> Stream {
    Stream { name: name.into(), plain_size: 1000, objects: vec![object(key)], seconds: 0.5, locks: Some(1) }
}

fn manifest(started: &str, id: &str) -> Manifest {
    let started = time(started);
    Manifest {
        format: manifest::FORMAT,
        site: SITE.into(),
        job: JOB.into(),
        id: id.into(),
        started,
        finished: started + TimeDelta::seconds(60),
        previous: None,
        opsd_version: "0.1.0".into(),
        server: manifest::Server {
            version_num: 170011,
            version: "17.11".into(),
            in_recovery: false,
            preloaded: None,
        },
        pg_dump_version: "17.11".into(),
        recipients: vec!["age1example".into()],
        globals: Some(stream("globals", set::GLOBALS)),
        lacking: Vec::new(),
        left_out: Vec::new(),
        databases: vec![manifest::Database {
            name: "app".into(),
            locale: manifest::Locale {
                encoding: "UTF8".into(),
                collate: "C".into(),
                ctype: "C".into(),
                provider: "libc".into(),
                locale: None,
                icu_rules: None,
                monetary: "C".into(),
            },
            snapshot_lsn: "0/1".into(),
            snapshot_time: started + TimeDelta::seconds(2),
            collations: vec![],
            extensions: vec![],
            excluded: vec![],
            streams: vec![
                stream("schema", "app/schema.pgdump.zst.age"),
                stream("data-rest", "app/data-rest.pgdump.zst.age"),
            ],
            proof_object: Some(stream("proof", "app/proof.json.zst.age")),
            proof: ProofState::Complete,
            tables: 2,
            rows: 100,
            bytes: 900,
        }],
        restore_md: Document { key: set::RESTORE_MD.into(), size: 64, sha256: "00".repeat(32) },
        warnings: vec![],
    }
}

fn last(n: u32) -> Retention {
    Retention { last: n, ..Retention::default() }
}

async fn find(repository: &Repository<'_>, trusted: &Trusted, selector: &str) -> opsd::error::Result<String> {
    let selector = Selector::from_options(Some(selector), None).expect("a selector");
    let found = catalog::find(&*repository.store, trusted, SITE, JOB, &selector, catalog::Use::Restore).await;
    found.map(|set| set.entry.id)
}

async fn plan(repository: &Repository<'_>, trusted: &Trusted, rules: Retention) -> JobPlan {
    planned(&*repository.store, trusted, rules).await.expect("a plan")
}

async fn planned(store: &dyn Store, trusted: &Trusted, rules: Retention) -> opsd::error::Result<JobPlan> {
    let entries = catalog::sets(store, SITE, JOB).await?;
    prune::plan(store, trusted, JOB, entries, &rules, now(), false).await
}
