//! Roles out of a set's globals: stubs for a rehearsal, missing ones for a restore.
//!
//! The text is pg_dumpall's, a statement at a time. It is taken apart here rather than fed to psql,
//! because roles that exist must be left alone, and because a patched pg_dumpall begins it with a
//! `\restrict` that older clients refuse.

use crate::postgres::ident::quote_ident;

/// A role as the globals make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Event triggers and foreign-data wrappers can be owned by nobody else.
    pub is_superuser: bool,
    /// Row security does not hold it back: its materialized views may depend on that.
    pub bypasses_row_security: bool,
    /// Has its roles' privileges without asking for them.
    pub inherits: bool,
}

/// Who is a member of which role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The role.
    pub role: String,
    /// Who has it.
    pub member: String,
}

/// The statements of a script: quotes and comments understood, `\` commands left out.
pub fn statements(sql: &str) -> Vec<&str> {
    let bytes = sql.as_bytes();
    let mut statements = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < bytes.len() {
        // Bytes: `at` may be within a character. Where text is cut, there is an ASCII one.
        let at_line_start = bytes[start..at].trim_ascii().is_empty();
        match bytes[at] {
            b'\\' | b'-' if at_line_start && (bytes[at] == b'\\' || bytes.get(at + 1) == Some(&b'-')) => {
                at = sql[at..].find('\n').map_or(bytes.len(), |n| at + n + 1);
                start = at;
            }
            quote @ (b'\'' | b'"') => {
                let escapes = quote == b'\'' && at > 0 && bytes[at - 1].eq_ignore_ascii_case(&b'E');
                at += 1;
                while at < bytes.len() && (bytes[at] != quote || bytes.get(at + 1) == Some(&quote)) {
                    let is_pair = bytes[at] == quote || (escapes && bytes[at] == b'\\');
                    at += if is_pair { 2 } else { 1 };
                }
                at += 1;
            }
            b';' => {
                statements.push(sql[start..at].trim());
                at += 1;
                start = at;
            }
            _ => at += 1,
        }
    }
    statements
}

/// The identifier at the start of `text`, unquoted, and what follows it.
fn identifier(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut chars = rest.char_indices().peekable();
        while let Some((i, c)) = chars.next() {
            if c != '"' {
                name.push(c);
            } else if chars.peek().is_some_and(|(_, next)| *next == '"') {
                chars.next();
                name.push('"');
            } else {
                return Some((name, &rest[i + 1..]));
            }
        }
        return None;
    }
    let end = text.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(text.len());
    (end > 0).then(|| (text[..end].to_owned(), &text[end..]))
}

fn after<'s>(statement: &'s str, words: &str) -> Option<(String, &'s str)> {
    identifier(statement.strip_prefix(words)?)
}

/// Every role that the globals create.
pub fn roles(globals: &str) -> Vec<Role> {
    let mut found: Vec<Role> = Vec::new();
    for statement in statements(globals) {
        if let Some((name, _)) = after(statement, "CREATE ROLE ") {
            found.push(Role { name, is_superuser: false, bypasses_row_security: false, inherits: true });
        } else if let Some((name, rest)) = after(statement, "ALTER ROLE ")
            && let Some(role) = found.iter_mut().find(|r| r.name == name)
        {
            for word in rest.split_whitespace() {
                match word {
                    "SUPERUSER" => role.is_superuser = true,
                    "BYPASSRLS" => role.bypasses_row_security = true,
                    "NOINHERIT" => role.inherits = false,
                    _ => {}
                }
            }
        }
    }
    found
}

/// `GRANT role TO member`; grants on tablespaces and parameters are something else.
fn membership(statement: &str) -> Option<Membership> {
    let (role, rest) = after(statement, "GRANT ")?;
    let (member, _) = after(rest.trim_start(), "TO ")?;
    Some(Membership { role, member })
}

/// Every membership that the globals grant.
pub fn memberships(globals: &str) -> Vec<Membership> {
    statements(globals).into_iter().filter_map(membership).collect()
}

/// The statements that make the roles which are not among `existing`: their attributes, settings,
/// comments, and every membership that touches one of them.
pub fn missing<'s>(globals: &'s str, existing: &[String]) -> Vec<&'s str> {
    let created: Vec<String> =
        roles(globals).into_iter().map(|r| r.name).filter(|n| !existing.contains(n)).collect();
    let touches = |statement: &str| {
        let named = ["CREATE ROLE ", "ALTER ROLE ", "COMMENT ON ROLE "]
            .iter()
            .find_map(|words| after(statement, words))
            .map(|(name, _)| name);
        match (named, membership(statement)) {
            (Some(name), _) => created.contains(&name),
            (None, Some(grant)) => created.contains(&grant.role) || created.contains(&grant.member),
            (None, None) => false,
        }
    };
    statements(globals).into_iter().filter(|statement| touches(statement)).collect()
}

/// Whether SQL (or an access list) has a role's name in it, as a word or in double quotes. Another thing
/// of that name, or a word in a comment, is taken for it.
pub fn names(sql: &str, role: &str) -> bool {
    if role.is_empty() {
        return false;
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    sql.match_indices(role).any(|(at, _)| {
        let (before, after) = (sql[..at].chars().next_back(), sql[at + role.len()..].chars().next());
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    }) || sql.contains(&quote_ident(role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_named_as_a_word_or_in_quotes() {
        for (sql, role, is_named) in [
            ("GRANT SELECT ON TABLE public.t TO clerk;", "clerk", true),
            ("GRANT SELECT ON TABLE public.clerks TO PUBLIC;", "clerk", false),
            ("GRANT SELECT ON TABLE public.t TO \"b \"\"o;b\";", "b \"o;b", true),
            ("{clerk=CTc/owner}", "clerk", true),
            ("{=T/owner}", "clerk", false),
            ("CREATE POLICY p ON t TO ключ_1", "ключ", false),
            ("CREATE POLICY p ON t TO ключ", "ключ", true),
            ("anything", "", false),
        ] {
            assert_eq!(names(sql, role), is_named, "{sql}");
        }
    }

    const GLOBALS: &str = "--\n-- PostgreSQL database cluster dump\n--\n\n\\restrict x'y;\n\nSET default_transaction_read_only = off;\n\
        CREATE ROLE alice;\nALTER ROLE alice WITH NOSUPERUSER LOGIN PASSWORD 'SCRAM;x';\n\
        CREATE ROLE \"b \"\"o;b\";\nALTER ROLE \"b \"\"o;b\" WITH SUPERUSER LOGIN;\n\
        ALTER ROLE alice SET search_path TO 'a', 'b';\nCOMMENT ON ROLE alice IS E'it''s \\'; x';\n\
        GRANT alice TO \"b \"\"o;b\" GRANTED BY postgres;\n\\unrestrict x\n";

    #[test]
    fn statements_mind_quotes_and_commands() {
        let found = statements(GLOBALS);
        assert_eq!(found.len(), 8);
        assert_eq!(found[2], "ALTER ROLE alice WITH NOSUPERUSER LOGIN PASSWORD 'SCRAM;x'");
        assert_eq!(found[6], "COMMENT ON ROLE alice IS E'it''s \\'; x'");
    }

    /// Found by fuzzing: letters beyond ASCII outside of quotes, and after a backslash in them.
    #[test]
    fn letters_beyond_ascii_stand_anywhere() {
        let sql = "א;\nCREATE ROLE ключ;\nCOMMENT ON ROLE ключ IS E'\\ß\\';'; -- ü\nALTER ROLE ключ WITH SUPERUSER;\n'\\א";
        let found = statements(sql);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[2], "COMMENT ON ROLE ключ IS E'\\ß\\';'");
        assert_eq!((roles(sql)[0].name.as_str(), roles(sql)[0].is_superuser), ("ключ", true));
        for unfinished in ["E'\\", "'א", "\"א", "E'\\א", "\\א", "--א", "א"] {
            assert_eq!(statements(unfinished), [""; 0], "{unfinished}");
        }
    }

    #[test]
    fn characters_of_several_bytes_stand_anywhere() {
        assert_eq!(statements("é;\\é\n--é\n'é';E'\\é';"), ["é", "'é'", "E'\\é'"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_taken_apart(sql in r#"([\\\\'"é;\n -]|E'|.){0,60}"#) {
            for statement in statements(&sql) {
                proptest::prop_assert!(sql.contains(statement));
            }
            missing(&sql, &[]);
        }
    }

    #[test]
    fn roles_and_who_is_superuser() {
        let found = roles(GLOBALS);
        assert_eq!(
            (found[0].name.as_str(), found[0].is_superuser, found[0].inherits),
            ("alice", false, true)
        );
        assert_eq!((found[1].name.as_str(), found[1].is_superuser), ("b \"o;b", true));
    }

    #[test]
    fn existing_roles_are_left_alone() {
        let wanted = missing(GLOBALS, &["alice".into()]);
        assert_eq!(wanted.len(), 3, "{wanted:?}");
        assert!(wanted[2].starts_with("GRANT alice TO"));
        assert!(missing(GLOBALS, &["alice".into(), "b \"o;b".into()]).is_empty());
    }

    #[test]
    fn grants_on_tablespaces_and_parameters_are_no_memberships() {
        let sql = "CREATE ROLE bob;\nGRANT ALL ON TABLESPACE ts TO bob;\nGRANT SET ON PARAMETER work_mem TO bob;\n\
            GRANT pg_monitor TO bob WITH INHERIT TRUE GRANTED BY postgres;\n";
        assert_eq!(memberships(sql), [Membership { role: "pg_monitor".into(), member: "bob".into() }]);
        assert_eq!(missing(sql, &[]).len(), 2);
    }
}
