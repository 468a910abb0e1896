//! The one place that builds SQL, and that hands SQL which was built to a server.
//!
//! A statement is made of literals of this program's own text, and of names and values, which are quoted
//! as they are added. No other text becomes part of one: whatever an archive, a manifest or a server says
//! is a name or a value. `tests/architecture.rs` holds everybody else to literals.

use std::fmt;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, CopyInSink, CopyOutStream, Error, Row};

/// SQL text that holds nothing foreign but quoted names and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sql(String);

impl Sql {
    /// Begins with text of this program.
    pub fn new(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// Text of this program in which each `{name}` is replaced by the part of that name.
    pub fn template(text: &'static str, parts: &[(&str, Sql)]) -> Self {
        let mut pieces = text.split('{');
        let mut sql = Self(pieces.next().unwrap_or_default().to_owned());
        for piece in pieces {
            let (name, after) = piece.split_once('}').unwrap_or((piece, ""));
            if let Some((_, part)) = parts.iter().find(|(known, _)| *known == name) {
                sql.0.push_str(&part.0);
            }
            sql.0.push_str(after);
        }
        sql
    }

    /// A query that the operator wrote into the configuration, who may as well run it himself.
    pub fn configured(query: &str) -> Self {
        Self(query.to_owned())
    }

    /// A clause out of a system catalog, which the server itself made of an expression that it had parsed,
    /// or which only a superuser's own script can put there.
    pub fn of_catalog(clause: &str) -> Self {
        Self(clause.to_owned())
    }

    /// Adds text of this program.
    #[must_use]
    pub fn then(mut self, text: &'static str) -> Self {
        self.0.push_str(text);
        self
    }

    /// Adds a name.
    #[must_use]
    pub fn ident(mut self, name: &str) -> Self {
        self.0.push_str(&quote_ident(name));
        self
    }

    /// Adds the name of something in a schema.
    #[must_use]
    pub fn qualified(self, schema: &str, name: &str) -> Self {
        self.ident(schema).then(".").ident(name)
    }

    /// Adds a value.
    #[must_use]
    pub fn literal(mut self, value: &str) -> Self {
        self.0.push_str(&quote_literal(value));
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, number: impl Into<i64>) -> Self {
        self.0.push_str(&number.into().to_string());
        self
    }

    /// Adds what was built elsewhere.
    #[must_use]
    pub fn sql(mut self, other: &Sql) -> Self {
        self.0.push_str(&other.0);
        self
    }

    /// Adds several, with text of this program between each two.
    #[must_use]
    pub fn join(mut self, parts: impl IntoIterator<Item = Sql>, between: &'static str) -> Self {
        for (index, part) in parts.into_iter().enumerate() {
            if index > 0 {
                self.0.push_str(between);
            }
            self.0.push_str(&part.0);
        }
        self
    }

    /// Runs it, or several with `;` between them, for their effect.
    pub async fn run(&self, client: &Client) -> Result<(), Error> {
        client.batch_execute(&self.0).await
    }

    /// The rows of one statement.
    pub async fn query(&self, client: &Client, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        client.query(&self.0, values).await
    }

    /// The one row of a statement without values; an error if there is another number of rows.
    pub async fn query_one(&self, client: &Client) -> Result<Row, Error> {
        client.query_one(&self.0, &[]).await
    }

    /// The rows of one statement whose values have these types; one round trip instead of two.
    pub async fn query_typed(
        &self,
        client: &Client,
        values: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Error> {
        client.query_typed(&self.0, values).await
    }

    /// Rows into a `COPY … FROM STDIN`.
    pub async fn copy_in<T: bytes::Buf + Send + 'static>(
        &self,
        client: &Client,
    ) -> Result<CopyInSink<T>, Error> {
        client.copy_in(&self.0).await
    }

    /// Rows out of a `COPY … TO STDOUT`.
    pub async fn copy_out(&self, client: &Client) -> Result<CopyOutStream, Error> {
        client.copy_out(&self.0).await
    }
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `"name"`, with quotes doubled; always quoted, so that no keyword list is needed.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'value'`, or `E'value'` where a backslash would depend on `standard_conforming_strings`.
fn quote_literal(value: &str) -> String {
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

    #[test]
    fn templates_are_filled_once() {
        let parts = [("a", Sql::new("").ident("{b}")), ("b", "2".into())];
        assert_eq!(Sql::template("{a}, {b} {a}{c};", &parts).to_string(), "\"{b}\", 2 \"{b}\";");
    }

    #[test]
    fn statements_are_put_together_in_order() {
        let columns = ["a", "b\"c"].map(|name| Sql::new("").ident(name));
        let sql = Sql::new("SELECT ")
            .join(columns, ", ")
            .then(" FROM ")
            .qualified("s", "t;")
            .then(" WHERE x = ")
            .literal("'")
            .then(" LIMIT ")
            .number(-1)
            .sql(&Sql::new("; END"));
        assert_eq!(
            sql.to_string(),
            "SELECT \"a\", \"b\"\"c\" FROM \"s\".\"t;\" WHERE x = '''' LIMIT -1; END"
        );
    }
}
