//! Names as the server sends them.

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
