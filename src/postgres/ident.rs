//! Quoting for SQL text, where a parameter cannot be bound.

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
