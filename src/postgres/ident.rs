//! Quoting for SQL text, where a parameter cannot be bound, and names as the server sends them.

use tokio_postgres::types::{FromSql, Type};

/// A name (or other text) whose bytes need not be UTF-8: those of a SQL_ASCII database come as they
/// are. What is no UTF-8 is replaced by U+FFFD, and can then be shown, but not asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(pub String);

impl<'a> FromSql<'a> for Name {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::NAME | Type::TEXT)
    }
}

/// `"name"`, with quotes doubled; always quoted, so that no keyword list is needed.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'value'`, or `E'value'` where a backslash would depend on `standard_conforming_strings`.
pub fn quote_literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_and_literals_cannot_break_out() {
        assert_eq!(quote_ident("a"), "\"a\"");
        assert_eq!(quote_ident("../x \"y\""), "\"../x \"\"y\"\"\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("\\' or 1"), "E'\\\\'' or 1'");
    }
}
