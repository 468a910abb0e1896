//! `verified-<time>.json`: what one rehearsal of a set established, stored beside the set.
//!
//! A record counts only for the manifest whose SHA-256 it names, and, where keys are trusted, only
//! when it is signed. It decides which sets retention may remove, so it is read as strictly as a
//! manifest. It holds no row content: names of tables, numbers, and what differs.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::scope::Scope;
use crate::error::{Error, Result};

/// The format this opsd writes and reads.
pub const FORMAT: u32 = 1;

/// Largest record that is written, and read: a line for each of some thousand tables. A rehearsal of a set
/// in which more differs names the first of them.
pub const SIZE_MAX: usize = 256 << 10;

/// One rehearsal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// Always [`FORMAT`].
    pub format: u32,
    /// Site of the set; must match the key it is found under.
    pub site: String,
    /// Its job; the same.
    pub job: String,
    /// Its id; the same.
    pub id: String,
    /// SHA-256 of the manifest that was rehearsed, in hexadecimal.
    pub manifest_sha256: String,
    /// What came of it.
    pub verdict: Verdict,
    /// When the rehearsal started.
    pub started: DateTime<Utc>,
    /// When it ended, with the scratch server removed.
    pub finished: DateTime<Utc>,
    /// Seconds by phase, in the order in which they ran, from the first look at the set to the last comparison.
    pub seconds: Phases,
    /// One entry a database.
    pub databases: Vec<Database>,
    /// What disagrees of roles, their memberships and settings, one line each; nothing in a record of before they
    /// were compared.
    #[serde(default)]
    pub differences: Vec<String>,
    /// What was compared, and what was not; the same.
    #[serde(default)]
    pub scope: Vec<Scope>,
    /// Why the rehearsal failed, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// The scratch server's `server_version`; absent where none was started.
    pub server_version: Option<String>,
    /// Where its programs were: of which directory of the host, or in a container of which image; the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// How far the code of the dump was contained: `full`, `partly: …`, `no: …`; absent where no scratch
    /// server was started.
    pub contained: Option<String>,
    /// opsd that ran it.
    pub opsd_version: String,
}

/// What a rehearsal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every row came back.
    Proven,
    /// An object, a signature or restored content disagrees with manifest or proof.
    Differs,
    /// The rehearsal could not run; says nothing about the set.
    Failed,
    /// Restored, but without a complete proof.
    Unproven,
}

impl Verdict {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Proven => "proven",
            Verdict::Differs => "differs",
            Verdict::Failed => "failed",
            Verdict::Unproven => "unproven",
        }
    }

    /// Whether it says something about the set rather than about the rehearsal.
    pub fn is_conclusive(self) -> bool {
        match self {
            Verdict::Proven | Verdict::Differs => true,
            Verdict::Failed | Verdict::Unproven => false,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What was proven of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Tables that should have come back.
    pub tables_total: u64,
    /// Tables whose fingerprint was found again.
    pub tables_proven: u64,
    /// Rows counted in the scratch database.
    pub rows: u64,
    /// What disagrees, one line each.
    pub differences: Vec<String>,
}

/// Seconds by phase. A JSON object whose order is kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Phases(pub Vec<(String, f64)>);

impl Phases {
    /// Adds a phase that has ended.
    pub fn push(&mut self, phase: &str, seconds: f64) {
        self.0.push((phase.to_owned(), seconds));
    }
}

impl Serialize for Phases {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(phase, seconds)| (phase, seconds)))
    }
}

impl<'de> Deserialize<'de> for Phases {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Phases;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of phases and seconds")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Phases, A::Error> {
                let mut phases = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    phases.push(entry);
                }
                Ok(Phases(phases))
            }
        }
        d.deserialize_map(Visitor)
    }
}

impl Verification {
    /// Reads a record found beside the manifest with this SHA-256 under `site/job/id`, refusing
    /// unknown versions, records of other sets or of another manifest, and records that contradict
    /// themselves. The signature is the caller's to check first.
    pub fn parse(bytes: &[u8], site: &str, job: &str, id: &str, manifest_sha256: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let damaged = |e: serde_json::Error| Error::differs(e).context("verification record is damaged");
        let version: Versioned = serde_json::from_slice(bytes).map_err(damaged)?;
        if version.format != FORMAT {
            return Err(Error::new(format!(
                "verification record has format {}, this opsd reads format {FORMAT}",
                version.format
            )));
        }
        let record: Verification = serde_json::from_slice(bytes).map_err(damaged)?;
        let found = (record.site.as_str(), record.job.as_str(), record.id.as_str());
        if found != (site, job, id) {
            return Err(Error::differs(format!(
                "verification record says {}/{}/{} but was found under {site}/{job}/{id}",
                found.0, found.1, found.2
            )));
        }
        if !record.manifest_sha256.eq_ignore_ascii_case(manifest_sha256) {
            return Err(Error::differs("verification record is about another manifest than the one here"));
        }
        if record.verdict == Verdict::Proven && (record.databases.is_empty() || record.differs()) {
            return Err(Error::differs("verification record says proven, but its databases do not"));
        }
        Ok(record)
    }

    /// Whether anything disagrees.
    pub fn differs(&self) -> bool {
        !self.differences.is_empty() || self.databases.iter().any(|d| !d.differences.is_empty())
    }

    /// The record as stored: pretty JSON, so that a person can read it, with as many lines of what differs
    /// as there is room for.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut most = usize::MAX;
        loop {
            let mut bytes = serde_json::to_vec_pretty(&self.shortened(most))?;
            bytes.push(b'\n');
            if bytes.len() <= SIZE_MAX || most == 0 {
                return Ok(bytes);
            }
            most = most.min(2000) / 2;
        }
    }

    /// With so many lines in each list at the most, and how many more there are.
    fn shortened(&self, most: usize) -> Self {
        let shorten = |lines: &mut Vec<String>| {
            let more = lines.len().saturating_sub(most);
            if more > 0 {
                lines.truncate(most);
                lines.push(format!("and {more} more"));
            }
        };
        let mut record = self.clone();
        record.databases.iter_mut().for_each(|database| shorten(&mut database.differences));
        shorten(&mut record.differences);
        shorten(&mut record.warnings);
        if record.scope.len() > most {
            // What is not covered is what somebody must know.
            record.scope.sort_by_key(|scope| scope.covered);
            record.scope.truncate(most);
        }
        record
    }

    /// The measured recovery time: all phases together. To remove the scratch server is no part of it.
    pub fn total_seconds(&self) -> f64 {
        self.seconds.0.iter().map(|(_, seconds)| seconds).sum()
    }
}

/// Name of the record of a rehearsal that ended at `time`, relative to the set's folder. Two rehearsals of a set may end
/// in the same second, and neither record may take the other's place.
pub fn name(time: DateTime<Utc>) -> String {
    format!("verified-{}.json", time.format(NAME_TIME))
}

/// The time in a name. Names in their order are records in their order.
const NAME_TIME: &str = "%Y%m%dT%H%M%S%.6fZ";

/// Whether it is a name as [`name`] makes them.
pub fn is_written_name(relative: &str) -> bool {
    let time = relative.strip_prefix("verified-").and_then(|rest| rest.strip_suffix(".json"));
    let time = time.and_then(|time| chrono::NaiveDateTime::parse_from_str(time, NAME_TIME).ok());
    // The parser also takes fewer digits.
    time.is_some_and(|time| name(time.and_utc()) == relative)
}

/// Whether a key relative to a set's folder is a record's.
pub fn is_name(relative: &str) -> bool {
    relative.starts_with("verified-") && relative.ends_with(".json") && !relative.contains('/')
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(manifest_sha256: &str) -> Verification {
        let time = |t: &str| t.parse::<DateTime<Utc>>().unwrap();
        Verification {
            format: FORMAT,
            site: "example".into(),
            job: "db".into(),
            id: "20261121T030000Z-7f3a".into(),
            manifest_sha256: manifest_sha256.into(),
            verdict: Verdict::Proven,
            started: time("2026-11-21T04:00:00Z"),
            finished: time("2026-11-21T04:02:00.5Z"),
            seconds: Phases(vec![("fetch".into(), 20.5), ("restore".into(), 80.0), ("prove".into(), 20.0)]),
            databases: vec![Database {
                name: "app".into(),
                tables_total: 3,
                tables_proven: 3,
                rows: 12,
                differences: vec![],
            }],
            differences: vec![],
            scope: vec![],
            reason: None,
            warnings: vec![],
            server_version: Some("17.11".into()),
            place: Some("programs of this host, /usr/lib/postgresql/17/bin".into()),
            contained: Some("full".into()),
            opsd_version: "0.1.0".into(),
        }
    }

    fn parse(record: &Verification) -> Result<Verification> {
        let bytes = record.to_bytes().unwrap();
        Verification::parse(&bytes, "example", "db", "20261121T030000Z-7f3a", "aa")
    }

    #[test]
    fn comes_back_with_its_phases_in_order() {
        let record = record("aa");
        let back = parse(&record).unwrap();
        assert_eq!(back, record);
        assert_eq!(back.total_seconds(), 120.5);
        let text = String::from_utf8(record.to_bytes().unwrap()).unwrap();
        assert!(text.find("fetch").unwrap() < text.find("restore").unwrap());
        assert!(text.find("\"restore\"").unwrap() < text.find("\"prove\"").unwrap());
    }

    #[test]
    fn a_record_of_many_differences_names_as_many_as_are_read() {
        let mut record = record("aa");
        record.verdict = Verdict::Differs;
        record.databases[0].differences =
            (0..20_000).map(|n| format!("table public.t{n}: 1 rows instead of 2")).collect();
        let back = parse(&record).unwrap();
        assert!(record.to_bytes().unwrap().len() <= SIZE_MAX);
        let lines = &back.databases[0].differences;
        assert!(lines.len() > 900, "{}", lines.len());
        assert_eq!(lines.last().unwrap(), &format!("and {} more", 20_000 - (lines.len() - 1)));
    }

    #[test]
    fn refuses_what_does_not_belong_here() {
        let good = record("aa");
        type Edit = fn(&mut Verification);
        let edits: [(&str, Edit); 7] = [
            ("example/other/", |r| r.job = "other".into()),
            ("found under example/db/", |r| r.site = "elsewhere".into()),
            ("20000101T000000Z-0000", |r| r.id = "20000101T000000Z-0000".into()),
            ("another manifest", |r| r.manifest_sha256 = "bb".into()),
            ("says proven", |r| r.databases.clear()),
            ("says proven", |r| r.differences.push("role \"clerk\" is missing".into())),
            ("says proven", |r| r.databases[0].differences.push("public.t: 1 row missing".into())),
        ];
        for (expected, edit) in edits {
            let mut bad = good.clone();
            edit(&mut bad);
            let error = parse(&bad).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.kind(), crate::error::Kind::Differs);
        }
    }

    #[test]
    fn refuses_newer_formats_and_unknown_fields() {
        let mut newer = record("aa");
        newer.format = 2;
        assert!(parse(&newer).unwrap_err().to_string().contains("format 2"));
        let text = String::from_utf8(record("aa").to_bytes().unwrap()).unwrap();
        let text = text.replacen('{', "{\"trust_me\": true,", 1);
        let parsed = Verification::parse(text.as_bytes(), "example", "db", "20261121T030000Z-7f3a", "aa");
        assert!(parsed.unwrap_err().to_string().contains("trust_me"));
    }

    #[test]
    fn names() {
        let at = |time: &str| name(time.parse().unwrap());
        let name = at("2026-11-21T04:02:00.5Z");
        assert_eq!(name, "verified-20261121T040200.500000Z.json");
        assert!(is_name(&name) && is_written_name(&name));
        assert!(at("2026-11-21T04:02:00Z") < name && name < at("2026-11-21T04:02:00.500001Z"));
        for other in ["verified-x.json", "verified-20261121T040200Z.json", "verified-20261121T040200.5Z.json"]
        {
            assert!(!is_written_name(other), "{other}");
        }
        assert!(!is_name("verified-20261121T040200.500000Z.json.minisig"));
        assert!(!is_name("verified-x/schema.json"), "a database's folder is no record");
    }
}
