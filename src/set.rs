//! What a backup set is: keys, manifest, pg_dump's archive, seal (zstd and age), proof, catalog,
//! signature. Formats only: nothing here knows how a set is made or restored.

pub mod archive;
pub mod catalog;
pub mod fingerprint;
pub mod globals;
pub mod lexer;
pub mod manifest;
pub mod proof;
pub mod scope;
pub mod scrub;
pub mod seal;
pub mod signature;
pub mod verification;

use chrono::{DateTime, NaiveDateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Name of the object that makes a set exist.
pub const MANIFEST: &str = "manifest.json";
/// Its signature.
pub const MANIFEST_SIGNATURE: &str = "manifest.json.minisig";
/// What a failed run leaves instead.
pub const FAILED: &str = "failed.json";
/// What a run that takes long renews, so that nobody takes it for one that was killed.
pub const HEARTBEAT: &str = "heartbeat.json";
/// How to restore the set without opsd.
pub const RESTORE_MD: &str = "RESTORE.md";
/// Roles, memberships and settings of the cluster.
pub const GLOBALS: &str = "globals.sql.zst.age";
/// The stream of tables that pg_dump leaves out: definitions and rows.
pub const EXTENSION_TABLES: &str = "extension-tables";

const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A database's name as a key component: percent-encoded, and never `.` or `..` or empty.
pub fn database_component(name: &str) -> String {
    if name.is_empty() {
        return "%".into(); // what no other name becomes
    }
    let encoded = utf8_percent_encode(name, KEPT).to_string();
    // The folder of a database must not look like one of the set's own objects.
    if encoded.chars().all(|c| c == '.') || is_set_object(&encoded) {
        encoded.replace('.', "%2E")
    } else {
        encoded
    }
}

/// Whether opsd writes such a key, relative to a set's folder: by its pattern alone, for sets whose
/// manifest does not say it.
pub fn is_written_by_opsd(relative: &str) -> bool {
    let whole = without_segment(relative);
    let Some((folder, name)) = whole.split_once('/') else {
        return [MANIFEST, MANIFEST_SIGNATURE, FAILED, HEARTBEAT, RESTORE_MD].contains(&relative)
            || whole == GLOBALS
            || verification::is_written_name(relative.strip_suffix(".minisig").unwrap_or(relative));
    };
    let is_component = |c: char| c.is_ascii_alphanumeric() || "-_.~%".contains(c);
    let stream = name.strip_suffix(".pgdump.zst.age").unwrap_or_default();
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_stream = ["schema", "data-rest", "full", EXTENSION_TABLES].contains(&stream)
        || stream.strip_prefix("data-").is_some_and(is_number);
    !folder.is_empty() && folder.chars().all(is_component) && (is_stream || name == "proof.json.zst.age")
}

/// A key without the number of its segment: `….age.001` is of `….age`.
fn without_segment(key: &str) -> &str {
    match key.rsplit_once('.') {
        Some((whole, number))
            if whole.ends_with(".age") && number.len() >= 3 && number.bytes().all(|b| b.is_ascii_digit()) =>
        {
            whole
        }
        _ => key,
    }
}

/// Key of the lease that keeps two runs from removing things at the same time.
pub fn lease_key(site: &str) -> String {
    format!("{site}/lease.json")
}

/// Whether a key relative to a set's folder is one of the set's own documents. What lies in the
/// folder of a database called `verified-…` is content.
fn is_set_object(name: &str) -> bool {
    [MANIFEST, MANIFEST_SIGNATURE, FAILED, HEARTBEAT, RESTORE_MD, GLOBALS].contains(&name)
        || verification::is_name(name.strip_suffix(".minisig").unwrap_or(name))
}

/// A new set id: UTC start and a random tail, `20261121T030000Z-7f3a`.
pub fn new_id(start: DateTime<Utc>) -> String {
    format!("{}-{:04x}", start.format("%Y%m%dT%H%M%SZ"), rand::random::<u16>())
}

/// The start time in a set id; `None` where the text is no set id.
pub fn id_time(id: &str) -> Option<DateTime<Utc>> {
    let (time, tail) = id.split_once('-')?;
    let tail_is_hex =
        tail.len() == 4 && tail.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !tail_is_hex {
        return None;
    }
    NaiveDateTime::parse_from_str(time, "%Y%m%dT%H%M%SZ").ok().map(|t| t.and_utc())
}

/// Key prefix of a job's sets, with a slash at the end.
pub fn job_prefix(site: &str, job: &str) -> String {
    format!("{site}/{job}/")
}

/// Key prefix of one set, with a slash at the end.
pub fn set_prefix(site: &str, job: &str, id: &str) -> String {
    format!("{site}/{job}/{id}/")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::check_key;

    /// Names as PostgreSQL allows them (63 bytes at the most), often almost the same.
    fn any_name() -> impl Strategy<Value = String> {
        let odd = "[.%a/\\\\ \"é2E]{0,6}";
        prop_oneof![odd, any::<String>(), "(verified-|manifest|failed|RESTORE|globals)[.%a-zA-Z]{0,12}"]
            .prop_map(|name| {
                let mut name = name.replace('\0', "");
                while name.len() > 63 {
                    name.pop();
                }
                name
            })
    }

    proptest! {
        #[test]
        fn a_databases_folder_is_safe_and_its_own(one in any_name(), two in any_name()) {
            let folder = database_component(&one);
            prop_assert_eq!(one == two, folder == database_component(&two));
            prop_assert!(!folder.contains('/') && folder.is_ascii() && folder.len() <= 3 * 63);
            prop_assert!(check_key(&folder).is_ok(), "{:?}", folder);
            prop_assert!(!is_set_object(&folder));
        }

        #[test]
        fn any_second_has_an_id(seconds in 0i64..253_402_300_799) {
            let start = DateTime::from_timestamp(seconds, 0).unwrap();
            let id = new_id(start);
            prop_assert_eq!(id_time(&id), Some(start));
            prop_assert!(check_key(&id).is_ok());
        }

        #[test]
        fn noise_is_no_id(noise in "\\PC{0,30}") {
            prop_assert_eq!(id_time(&noise), None);
        }
    }

    #[test]
    fn even_the_empty_name_has_a_folder() {
        assert_eq!(database_component(""), "%");
        assert_eq!(database_component("%"), "%25");
        assert_eq!(database_component(&"é".repeat(31)).len(), 186);
    }

    #[test]
    fn a_databases_folder_never_looks_like_a_document_of_the_set() {
        for name in
            [MANIFEST, RESTORE_MD, FAILED, GLOBALS, "verified-1.json", ".", "..", "../x \"y\"", "é/\n"]
        {
            let folder = database_component(name);
            assert!(!is_set_object(&folder), "{folder}");
            assert!(!folder.contains(['/', '"', '\n']) && folder != "." && folder != "..", "{folder}");
            let decoded = percent_encoding::percent_decode_str(&folder).decode_utf8().unwrap();
            assert_eq!(decoded, name);
        }
        // No dot to encode: what lies in the folder is content all the same.
        let key = format!("{}/schema.pgdump.zst.age", database_component("verified-shop"));
        assert!(!is_set_object(&key));
    }

    #[test]
    fn what_opsd_writes_is_told_by_its_key() {
        for ours in [
            "manifest.json.minisig",
            "RESTORE.md",
            "failed.json",
            "heartbeat.json",
            "globals.sql.zst.age",
            "globals.sql.zst.age.001",
            "verified-20261121T040200.000000Z.json",
            "verified-20261121T040200.000000Z.json.minisig",
            "app/schema.pgdump.zst.age",
            "..%2Fx%20%22y%22/data-rest.pgdump.zst.age.017",
            "%/full.pgdump.zst.age",
            "app/data-12.pgdump.zst.age.1000",
            "app/extension-tables.pgdump.zst.age",
            "app/proof.json.zst.age",
        ] {
            assert!(is_written_by_opsd(ours), "{ours}");
        }
        for foreign in [
            "",
            "notes.txt",
            "verified-x.json",
            "verified-20261121T040200Z.json",
            "verified-20261121T040200.000000Z.json.bak",
            "globals.sql.zst.age.01",
            "globals.sql",
            "app/notes.txt",
            "app/data-.pgdump.zst.age",
            "app/data-x.pgdump.zst.age",
            "app/schema.pgdump.zst.age.bak",
            "app/x/schema.pgdump.zst.age",
            "a b/schema.pgdump.zst.age",
            "/schema.pgdump.zst.age",
            "app/manifest.json",
            "app/",
        ] {
            assert!(!is_written_by_opsd(foreign), "{foreign}");
        }
    }

    #[test]
    fn ids_carry_their_time() {
        let start = "2026-11-21T03:00:00Z".parse().unwrap();
        assert_eq!(id_time(&new_id(start)), Some(start));
        for bad in [
            "",
            "20261121T030000Z",
            "20261121T030000Z-7F3A",
            "20261121T030000Z-7f3a0",
            "20261321T030000Z-7f3a",
        ] {
            assert_eq!(id_time(bad), None, "{bad}");
        }
    }
}
