//! The few statements of an archive that opsd reads: COPY, setval, ENCODING.

use crate::error::{Error, Result};
use crate::set::lexer::{Token, statements};

/// `COPY public.t (a, b) FROM stdin;` in its parts. Whoever makes a statement of them quotes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStatement {
    /// Schema.
    pub schema: String,
    /// Name of the table.
    pub table: String,
    /// Its columns, in the rows' order; a table may have none.
    pub columns: Vec<String>,
}

/// Takes a COPY statement apart; anything but what pg_dump writes is refused.
pub fn parse_copy(statement: &str) -> Result<CopyStatement> {
    let bad = || Error::differs(format!("unexpected COPY statement {statement:?}"));
    let mut found = statements(statement);
    let (Some(Ok(copy)), None) = (found.next(), found.next()) else { return Err(bad()) };
    parts(&copy.tokens).ok_or_else(bad)
}

fn parts(tokens: &[Token<'_>]) -> Option<CopyStatement> {
    let [copy, schema, Token::Symbol('.'), table, listed @ .., from, stdin] = tokens else { return None };
    if !(copy.is("COPY") && from.is("FROM") && stdin.is("STDIN")) {
        return None;
    }
    let columns = match listed {
        [] => Vec::new(),
        [Token::Symbol('('), names @ .., Token::Symbol(')')] => {
            names.split(|token| *token == Token::Symbol(',')).map(only_name).collect::<Option<_>>()?
        }
        _ => return None,
    };
    Some(CopyStatement { schema: schema.name()?, table: table.name()?, columns })
}

fn only_name(tokens: &[Token<'_>]) -> Option<String> {
    match tokens {
        [only] => only.name(),
        _ => None,
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
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn copy_statements_come_apart() {
        let copy = |schema: &str, table: &str, columns: &[&str]| CopyStatement {
            schema: schema.into(),
            table: table.into(),
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
        };
        for (statement, expected) in [
            ("COPY public.t (a, \"b c\") FROM stdin;\n", copy("public", "t", &["a", "b c"])),
            ("COPY \"we ird\".\"x (\"\" y\" (a) FROM stdin;\n", copy("we ird", "x (\" y", &["a"])),
            ("COPY \"a.b\".\"c\"\"d\" (\")\", \",\") FROM stdin;\n", copy("a.b", "c\"d", &[")", ","])),
            ("COPY public.empty  FROM stdin;\n", copy("public", "empty", &[])),
        ] {
            assert_eq!(parse_copy(statement).unwrap(), expected);
        }
    }

    #[test]
    fn what_pg_dump_would_not_write_is_refused() {
        for bad in [
            "",
            "COPY x",
            "SELECT 1",
            "COPY  FROM stdin;",
            "COPY t FROM stdin;",
            "COPY a.b.t FROM stdin;",
            "COPY a.t x FROM stdin;",
            "COPY a.t () FROM stdin;",
            "COPY a.t (x y) FROM stdin;",
            "COPY a.t (x,) FROM stdin;",
            "COPY a.t (x) FROM stdin",
            "COPY a.t (x) FROM stdin; SELECT 1;",
            "COPY a.t (x) FROM stdin WITH BINARY;",
            "COPY a.t (x) FROM PROGRAM 'x';",
            "COPY a.T (x) FROM stdin;",
            "COPY a.'t' (x) FROM stdin;",
            "COPY a.\"t (x) FROM stdin;",
            "COPY public.t;COPY(SELECT/**/1)TO/**/PROGRAM'x';-- (a) FROM stdin;",
            "COPY public.t (a);COPY(SELECT 1)TO PROGRAM'x';COPY public.t (a) FROM stdin;",
            "COPY public.t (a, (SELECT b)) FROM stdin;",
        ] {
            assert_eq!(parse_copy(bad).expect_err(bad).kind(), Kind::Differs, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_names_come_back(schema in any::<String>(), table in any::<String>(), columns in prop::collection::vec(any::<String>(), 0..4)) {
            let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
            let list = if columns.is_empty() {
                " ".to_owned()
            } else {
                format!("({})", columns.iter().map(quoted).collect::<Vec<_>>().join(", "))
            };
            let statement = format!("COPY {}.{} {list} FROM stdin;\n", quoted(&schema), quoted(&table));
            prop_assert_eq!(parse_copy(&statement).unwrap(), CopyStatement { schema, table, columns });
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
