//! Whether a restored database is defined as the dumped one was: a fresh schema dump of it against the
//! archive's table of contents, entry by entry.
//!
//! Every object must be there, as often, with the same owner, table access method and SQL. PostgreSQL itself,
//! though, writes some definitions differently after one restore: casts move into an `IN` list,
//! inherited children get their columns in another order, what every database has belongs to the
//! server's own superuser. Text cannot be forgiven such changes without forgiving others, so where it
//! differs, the definitions are compared with those of a second database, into which the same archive
//! was restored without its rows: what a restore does to a definition, it does twice in the same way.
//! Deliberately absent: a SQL parser, and any normalisation.

use std::collections::BTreeMap;
use std::io::Read;

use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::ident::Name;
use crate::postgres::scratch::SUPERUSER;
use crate::postgres::tools::Tools;
use crate::process::{self, Input, Output};
use crate::set::archive::Entry;
use crate::set::archive::parser::Parser;
use crate::set::fingerprint::RowSecret;

/// Differences that are listed one by one; the rest is counted.
const LISTED: usize = 20;

/// A fresh dump's table of contents, with definitions; names and text in this encoding.
pub async fn dump_schema(
    tools: &Tools,
    connection: &Connection,
    dbname: &str,
    encoding: &str,
) -> Result<Vec<Entry>> {
    let mut command = tools.command("pg_dump", connection, dbname, "opsd verify")?;
    command.args(["--format=custom", "--compress=0", "--no-password"]);
    command.arg(format!("--encoding={encoding}"));
    command.args(["--section=pre-data", "--section=post-data"]);
    if tools.major >= 18 {
        command.arg("--no-statistics");
    }
    let mut child = process::spawn("pg_dump", command, Input::Null, Output::Pipe)?;
    let mut stdout = child.stdout.take().ok_or_else(|| Error::new("pg_dump has no stdout"))?;
    let parsed = tokio::task::spawn_blocking(move || {
        let mut parser = Parser::new(&RowSecret::generate(), true);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = stdout.read(&mut buffer)?;
            if n == 0 {
                return Ok::<_, Error>(parser);
            }
            parser.feed(&buffer[..n])?;
        }
    });
    let parsed = parsed.await.map_err(|e| Error::new(format!("reading the schema stopped: {e}")))?;
    child.wait().await?.check()?;
    Ok(parsed?.finish()?.entries)
}

/// Without the default privileges of the scratch server's own superuser, unless the set has such a role: a script of an
/// extension that says `ALTER DEFAULT PRIVILEGES` speaks of whoever creates the extension.
pub fn without_own_privileges(archived: &[Entry], mut found: Vec<Entry>) -> Vec<Entry> {
    let is_own = |entry: &Entry| entry.desc == "DEFAULT ACL" && entry.owner == SUPERUSER;
    if !archived.iter().any(is_own) {
        found.retain(|entry| !is_own(entry));
    }
    found
}

/// What differs between the archive's definitions and those found after the restore, a line each.
/// Definition and owner of an entry may also be those of `reference`, the same archive's restore
/// without rows.
pub fn compare(archived: &[Entry], found: &[Entry], reference: Option<&[Entry]>) -> Vec<String> {
    let (archived, found) = (by_name(archived), by_name(found));
    let reference = by_name(reference.unwrap_or_default());
    let mut differences = Vec::new();
    for (name, expected) in &archived {
        match found.get(name) {
            None => differences.push(format!("{name} is missing")),
            Some(actual) if actual.len() != expected.len() => {
                differences.push(format!(
                    "{name} is there {} times instead of {}",
                    actual.len(),
                    expected.len()
                ));
            }
            // No restore rewrites this.
            Some(actual) if methods(actual) != methods(expected) => {
                let (now, method) = (methods(actual).join(", "), methods(expected).join(", "));
                differences.push(format!("{name} has access method {now:?} instead of {method:?}"));
            }
            Some(actual) if actual == expected || reference.get(name) == Some(actual) => {}
            Some(actual) => {
                let pair = expected.iter().zip(actual).find(|(e, a)| e != a);
                if let Some(((_, owner, _), (_, now, _))) = pair
                    && owner != now
                {
                    differences.push(format!("{name} is owned by {now:?} instead of {owner:?}"));
                } else {
                    differences.push(format!("{name} is defined differently"));
                }
            }
        }
    }
    differences.extend(
        found.keys().filter(|n| !archived.contains_key(*n)).map(|n| format!("{n} is not in the set")),
    );
    let more = differences.len().saturating_sub(LISTED);
    if more > 0 {
        differences.truncate(LISTED);
        differences.push(format!("{more} more definitions differ"));
    }
    differences
}

/// How many of these entries are compared.
pub fn count(entries: &[Entry]) -> u64 {
    by_name(entries).values().map(|all| all.len() as u64).sum()
}

/// Table access methods of entries of one name, sorted.
fn methods<'a>(entries: &[(&str, &str, &'a str)]) -> Vec<&'a str> {
    let mut methods: Vec<&str> = entries.iter().map(|(_, _, method)| *method).collect();
    methods.sort_unstable();
    methods
}

/// Definition, owner and table access method of each entry under `desc schema.name`, sorted. (A scratch
/// server has no tablespaces to compare.)
fn by_name(entries: &[Entry]) -> BTreeMap<String, Vec<(&str, &str, &str)>> {
    let mut map: BTreeMap<String, Vec<(&str, &str, &str)>> = BTreeMap::new();
    for entry in entries {
        // Not definitions: the session's settings, the database itself, and data. From 17 on, large
        // objects' owners, privileges and comments travel with the data.
        let is_other = matches!(
            entry.desc.as_str(),
            "ENCODING"
                | "STDSTRINGS"
                | "SEARCHPATH"
                | "DATABASE"
                | "DATABASE PROPERTIES"
                | "TABLE DATA"
                | "SEQUENCE SET"
                | "BLOB"
                | "BLOBS"
                | "BLOB METADATA"
                | "STATISTICS DATA"
        );
        let is_about_other = matches!(entry.desc.as_str(), "ACL" | "COMMENT" | "SECURITY LABEL")
            && ["DATABASE ", "LARGE OBJECT"].iter().any(|kind| entry.tag.starts_with(kind));
        if is_other || is_about_other {
            continue;
        }
        let name = if entry.namespace.is_empty() {
            format!("{} {}", entry.desc.to_lowercase(), entry.tag)
        } else {
            format!("{} {}.{}", entry.desc.to_lowercase(), entry.namespace, entry.tag)
        };
        map.entry(name).or_default().push((&entry.defn, &entry.owner, &entry.table_am));
    }
    map.values_mut().for_each(|v| v.sort_unstable());
    map
}

/// Materialized views that the archive fills, and that are empty in the restored database.
pub async fn unpopulated(connection: &Connection, archived: &[Entry]) -> Result<Vec<String>> {
    let session = crate::postgres::connect::connect(connection, None, "opsd verify").await?;
    let session = session.without_conversion().await?;
    let rows = session
        .client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind = 'm' AND NOT c.relispopulated",
            &[],
        )
        .await
        .map_err(crate::postgres::connect::error)
        .context("cannot list materialized views")?;
    let empty: Vec<(String, String)> =
        rows.iter().map(|row| (row.get::<_, Name>(0).0, row.get::<_, Name>(1).0)).collect();
    Ok(archived
        .iter()
        .filter(|e| {
            e.desc == "MATERIALIZED VIEW DATA" && empty.contains(&(e.namespace.clone(), e.tag.clone()))
        })
        .map(|e| format!("materialized view {}.{} is not populated", e.namespace, e.tag))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(desc: &str, tag: &str, defn: &str, owner: &str) -> Entry {
        Entry {
            desc: desc.into(),
            tag: tag.into(),
            namespace: "public".into(),
            defn: defn.into(),
            owner: owner.into(),
            ..Entry::default()
        }
    }

    #[test]
    fn a_definition_that_a_restore_changes_is_judged_by_a_restore_without_rows() {
        let defined = |text: &str| [entry("TABLE", "t", text, "x")];
        let archived = defined("CHECK (((a)::text = ANY ((ARRAY['b'::character varying])::text[])))");
        let restored = defined("CHECK (((a)::text = ANY (ARRAY[('b'::character varying)::text])))");
        assert_eq!(compare(&archived, &restored, None), ["table public.t is defined differently"]);
        assert!(compare(&archived, &restored, Some(&restored)).is_empty());
        let changed = defined("CHECK (((a)::text = ANY (ARRAY[('b '::character varying)::text])))");
        assert_eq!(compare(&archived, &changed, Some(&restored)), ["table public.t is defined differently"]);
        // What neither has is missing, whatever the reference says.
        assert_eq!(compare(&archived, &[], Some(&[])), ["table public.t is missing"]);
        assert_eq!(compare(&[], &changed, Some(&changed)), ["table public.t is not in the set"]);
    }

    #[test]
    fn a_lost_access_method_is_not_forgiven() {
        let with = |method: &str| [Entry { table_am: method.into(), ..entry("TABLE", "t", "A", "x") }];
        let lost = ["table public.t has access method \"heap\" instead of \"second\""];
        assert_eq!(compare(&with("second"), &with("heap"), None), lost);
        assert_eq!(compare(&with("second"), &with("heap"), Some(&with("heap"))), lost);
        assert!(compare(&with("second"), &with("second"), None).is_empty());
    }

    #[test]
    fn tables_named_like_other_kinds_are_definitions_too() {
        for name in ["DATABASE x", "LARGE OBJECT 1"] {
            assert_eq!(compare(&[entry("TABLE", name, "A", "x")], &[], None).len(), 1, "{name}");
            assert!(compare(&[entry("COMMENT", name, "A", "x")], &[], None).is_empty(), "{name}");
        }
    }

    #[test]
    fn missing_added_changed_and_reowned_objects_are_named() {
        let archived = [
            entry("TABLE", "a", "A", "x"),
            entry("TABLE", "b", "B", "x"),
            entry("INDEX", "i", "I", "x"),
            entry("VIEW", "v", "V", "x"),
        ];
        let found = [
            entry("TABLE", "a", "A", "x"),
            entry("TABLE", "b", "C", "x"),
            entry("VIEW", "v", "V", "y"),
            entry("TABLE", "n", "N", "x"),
        ];
        assert_eq!(
            compare(&archived, &found, None),
            [
                "index public.i is missing",
                "table public.b is defined differently",
                "view public.v is owned by \"y\" instead of \"x\"",
                "table public.n is not in the set"
            ]
        );
        assert!(compare(&archived, &archived, None).is_empty());
    }
}
