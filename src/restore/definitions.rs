//! Whether a restored database is defined as the dumped one was: a fresh schema dump of it against the
//! archive's table of contents, entry by entry.
//!
//! Every object must be there once with the same owner. Its SQL must be the same, but for the ways in
//! which PostgreSQL itself writes an expression differently after one restore (`('a'::varchar)::text`
//! for `'a'::varchar::text` and the like): parentheses, casts and white space do not count. Deliberately
//! absent: a SQL parser.

use std::collections::BTreeMap;
use std::io::Read;

use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::tools::Tools;
use crate::process::{self, Input, Output};
use crate::set::archive::Entry;
use crate::set::archive::parser::Parser;
use crate::set::fingerprint::RowSecret;

/// Differences that are listed one by one; the rest is counted.
const LISTED: usize = 20;

/// A fresh dump's table of contents, with definitions.
pub async fn dump_schema(tools: &Tools, connection: &Connection, dbname: &str) -> Result<Vec<Entry>> {
    let mut command = tools.command("pg_dump", connection, dbname, "opsd verify")?;
    command.args(["--format=custom", "--compress=0", "--no-password"]);
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

/// What differs between the archive's definitions and those found after the restore, a line each.
pub fn compare(archived: &[Entry], found: &[Entry]) -> Vec<String> {
    let (archived, found) = (by_name(archived), by_name(found));
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
            Some(actual) if actual == expected => {}
            Some(actual) => {
                let pair = expected.iter().zip(actual).find(|(e, a)| e != a);
                if let Some(((_, owner), (_, now))) = pair
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

/// Definition and owner of each entry under `desc schema.name`, sorted.
fn by_name(entries: &[Entry]) -> BTreeMap<String, Vec<(String, String)>> {
    let mut map: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for entry in entries {
        // Not definitions: the session's settings, the database itself, and data.
        let is_other = matches!(
            entry.desc.as_str(),
            "ENCODING"
                | "STDSTRINGS"
                | "SEARCHPATH"
                | "DATABASE"
                | "DATABASE PROPERTIES"
                | "TABLE DATA"
                | "SEQUENCE SET"
                | "BLOBS"
                | "BLOB METADATA"
                | "STATISTICS DATA"
        ) || entry.tag.starts_with("DATABASE ");
        // From 17 on, large objects' privileges and comments travel with the data.
        let is_large_object = entry.tag.starts_with("LARGE OBJECT") || entry.desc == "BLOB";
        if is_other || is_large_object {
            continue;
        }
        let name = if entry.namespace.is_empty() {
            format!("{} {}", entry.desc.to_lowercase(), entry.tag)
        } else {
            format!("{} {}.{}", entry.desc.to_lowercase(), entry.namespace, entry.tag)
        };
        map.entry(name).or_default().push((normalize(&entry.defn), entry.owner.clone()));
    }
    map.values_mut().for_each(|v| v.sort());
    map
}

/// A definition without what PostgreSQL writes differently after a restore. Quoted text is kept as it
/// is.
fn normalize(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        match c {
            '\'' | '"' => {
                let end = quoted_end(rest, c);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            ':' if rest.starts_with("::") => rest = skip_type(&rest[2..]),
            '(' | ')' => rest = &rest[1..],
            c if c.is_whitespace() => rest = &rest[c.len_utf8()..],
            c => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

fn quoted_end(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((i, c)) = chars.next() {
        if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return i + 1;
            }
        }
    }
    text.len()
}

/// Skips the type after `::`: a name (perhaps qualified, quoted, or of several words), a modifier in
/// parentheses, array brackets.
fn skip_type(text: &str) -> &str {
    const WORDS: [&str; 9] = [
        "character varying",
        "double precision",
        "timestamp with time zone",
        "timestamp without time zone",
        "time with time zone",
        "time without time zone",
        "bit varying",
        "character",
        "interval",
    ];
    let mut rest = text;
    if let Some(word) = WORDS.iter().find(|w| text.starts_with(**w)) {
        rest = &rest[word.len()..];
    } else {
        loop {
            if rest.starts_with('"') {
                rest = &rest[quoted_end(rest, '"')..];
            } else {
                let end =
                    rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
                rest = &rest[end..];
            }
            match rest.strip_prefix('.') {
                Some(more) => rest = more,
                None => break,
            }
        }
    }
    if rest.starts_with('(')
        && let Some(end) = rest.find(')')
        && rest[1..end].chars().all(|c| c.is_ascii_digit() || c == ',' || c == ' ')
    {
        rest = &rest[end + 1..];
    }
    while let Some(more) = rest.strip_prefix("[]") {
        rest = more;
    }
    rest
}

/// Materialized views that the archive fills, and that are empty in the restored database.
pub async fn unpopulated(connection: &Connection, archived: &[Entry]) -> Result<Vec<String>> {
    let session = crate::postgres::connect::connect(connection, None, "opsd verify").await?;
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
    let empty: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
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
    fn the_text_of_a_varchar_check_after_a_restore_is_the_same_definition() {
        let before = "CHECK (((status)::text = ANY ((ARRAY['a'::character varying, 'b::x'::character varying])::text[])))";
        let after = "CHECK (((status)::text = ANY (ARRAY[('a'::character varying)::text, ('b::x'::character varying)::text])))";
        assert_eq!(normalize(before), normalize(after));
    }

    #[test]
    fn changed_literals_columns_and_names_are_differences() {
        for (a, b) in [
            ("CHECK (x = 'a'::text)", "CHECK (x = 'a '::text)"),
            ("CREATE TABLE t (a integer)", "CREATE TABLE t (a bigint)"),
            ("CREATE TABLE t (a numeric(10,2))", "CREATE TABLE t (a numeric(10,3))"),
            ("CREATE TABLE t (\"a b\" integer)", "CREATE TABLE t (\"ab\" integer)"),
        ] {
            assert_ne!(normalize(a), normalize(b), "{a}");
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
            compare(&archived, &found),
            [
                "index public.i is missing",
                "table public.b is defined differently",
                "view public.v is owned by \"y\" instead of \"x\"",
                "table public.n is not in the set"
            ]
        );
        assert!(compare(&archived, &archived).is_empty());
    }
}
