//! The few statements of an archive that a proof reads: COPY, setval, ENCODING.

use crate::error::{Error, Result};

/// `COPY public.t (a, b) FROM stdin;` split into its relation and its column list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStatement<'a> {
    /// As written: `public."T"`.
    pub relation: &'a str,
    /// As written, with parentheses; empty for a table without columns.
    pub columns: &'a str,
}

/// Takes a COPY statement apart, minding quoted names.
pub fn parse_copy(statement: &str) -> Result<CopyStatement<'_>> {
    let bad = || Error::new(format!("unexpected COPY statement {statement:?}"));
    let rest = statement.strip_prefix("COPY ").ok_or_else(bad)?;
    let rest = rest.trim_end().strip_suffix("FROM stdin;").ok_or_else(bad)?.trim_end();
    let mut quoted = false;
    let split = rest.char_indices().find_map(|(i, c)| {
        quoted ^= c == '"';
        (c == ' ' && !quoted).then_some(i)
    });
    let (relation, columns) = match split {
        Some(i) => (&rest[..i], rest[i..].trim()),
        None => (rest, ""),
    };
    if relation.is_empty() || !(columns.is_empty() || (columns.starts_with('(') && columns.ends_with(')'))) {
        return Err(bad());
    }
    Ok(CopyStatement { relation, columns })
}

/// Schema and name out of `public."T"`.
pub fn split_relation(relation: &str) -> Result<(String, String)> {
    let mut parts = vec![String::new()];
    let mut chars = relation.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                push(&mut parts, '"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c => push(&mut parts, c),
        }
    }
    match <[String; 2]>::try_from(parts) {
        Ok([schema, name]) if !quoted && !name.is_empty() => Ok((schema, name)),
        _ => Err(Error::new(format!("unexpected relation name {relation:?}"))),
    }
}

fn push(parts: &mut [String], c: char) {
    if let Some(last) = parts.last_mut() {
        last.push(c);
    }
}

/// `SELECT pg_catalog.setval('public.s', 42, true);` as value and whether it was called.
pub fn parse_setval(statement: &str) -> Result<(i64, bool)> {
    let bad = || Error::new(format!("unexpected SEQUENCE SET statement {statement:?}"));
    let body = statement.trim_end().strip_suffix(");").ok_or_else(bad)?;
    let mut parts = body.rsplitn(3, ", ");
    let called = match parts.next() {
        Some("true") => true,
        Some("false") => false,
        _ => return Err(bad()),
    };
    let value = parts.next().and_then(|v| v.trim_matches('\'').parse().ok()).ok_or_else(bad)?;
    Ok((value, called))
}

/// `SET client_encoding = 'UTF8';` as the encoding.
pub fn parse_encoding(statement: &str) -> Option<&str> {
    statement.trim_end().strip_prefix("SET client_encoding = '")?.strip_suffix("';")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_statements_come_apart() {
        let c = parse_copy("COPY public.t (a, \"b c\") FROM stdin;\n").unwrap();
        assert_eq!((c.relation, c.columns), ("public.t", "(a, \"b c\")"));
        let c = parse_copy("COPY \"we ird\".\"x (\"\" y\" (a) FROM stdin;\n").unwrap();
        assert_eq!((c.relation, c.columns), ("\"we ird\".\"x (\"\" y\"", "(a)"));
        let c = parse_copy("COPY public.empty  FROM stdin;\n").unwrap();
        assert_eq!((c.relation, c.columns), ("public.empty", ""));
        for bad in ["", "COPY x", "SELECT 1", "COPY  FROM stdin;", "COPY t x FROM stdin;"] {
            assert!(parse_copy(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn relations_come_apart() {
        assert_eq!(split_relation("public.t").unwrap(), ("public".into(), "t".into()));
        assert_eq!(split_relation("\"a.b\".\"c\"\"d\"").unwrap(), ("a.b".into(), "c\"d".into()));
        for bad in ["", "t", "a.b.c", "\"a.b", "a."] {
            assert!(split_relation(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn setval_statements_come_apart() {
        assert_eq!(parse_setval("SELECT pg_catalog.setval('public.s', 42, true);\n").unwrap(), (42, true));
        assert_eq!(
            parse_setval("SELECT pg_catalog.setval('\"a, b\".s', -7, false);\n").unwrap(),
            (-7, false)
        );
        assert!(parse_setval("SELECT pg_catalog.setval('s', x, true);").is_err());
    }
}
