//! pg_dumpall's roles, memberships and role settings, taken apart statement by statement.
//!
//! Nobody runs the script itself on behalf of opsd: what is made of it is made of these parts. A statement
//! that is not exactly one of those that pg_dumpall writes for roles is counted by its kind, and left out.

use std::collections::{BTreeMap, HashMap};

use super::lexer::{Token, statements};
use crate::config::secret::Secret;
use crate::error::{Context, Result};

/// What a script of globals says of roles.
#[derive(Debug, Default)]
pub struct Globals {
    /// The roles, in the script's order.
    pub roles: Vec<Role>,
    /// Who is a member of which role.
    pub memberships: Vec<Membership>,
    /// Who may set which parameter.
    pub parameters: Vec<ParameterGrant>,
    /// How many statements of which kind are not about roles, or not understood. The settings of the
    /// script's own session are not counted.
    pub left_out: BTreeMap<&'static str, usize>,
}

/// A role as the script makes it.
#[derive(Debug, Default)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub attributes: Attributes,
    /// `ALTER ROLE … SET`: name and values, of which a list has several.
    pub settings: Vec<(String, Vec<String>)>,
    /// Its comment.
    pub comment: Option<String>,
}

/// A role's attributes. The default is what `CREATE ROLE` alone gives.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Those that are either there or not, and are there.
    pub flags: Vec<Flag>,
    /// How many sessions it may have, where that is bounded.
    pub connection_limit: Option<i32>,
    /// Its password, or the server's hash of it.
    pub password: Option<Secret>,
    /// When the password ends to be valid.
    pub valid_until: Option<String>,
}

/// An attribute other than the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// May do everything. Event triggers and foreign-data wrappers can be owned by nobody else.
    Superuser,
    /// Does not have its roles' privileges without asking for them.
    NoInherit,
    /// May make roles.
    CreateRole,
    /// May make databases.
    CreateDb,
    /// May connect.
    Login,
    /// May replicate.
    Replication,
    /// Row security does not hold it back: its materialized views may depend on that.
    BypassRls,
}

impl Flag {
    /// All of them, each with its keyword and that of its opposite.
    pub const ALL: [(Flag, &'static str, &'static str); 7] = [
        (Flag::Superuser, "SUPERUSER", "NOSUPERUSER"),
        (Flag::NoInherit, "NOINHERIT", "INHERIT"),
        (Flag::CreateRole, "CREATEROLE", "NOCREATEROLE"),
        (Flag::CreateDb, "CREATEDB", "NOCREATEDB"),
        (Flag::Login, "LOGIN", "NOLOGIN"),
        (Flag::Replication, "REPLICATION", "NOREPLICATION"),
        (Flag::BypassRls, "BYPASSRLS", "NOBYPASSRLS"),
    ];
}

/// `GRANT role TO member`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The role.
    pub role: String,
    /// Who has it.
    pub member: String,
    /// Whether the member may give it to others.
    pub admin: bool,
    /// Whether the member has its privileges without asking; PostgreSQL 16 says so for each membership.
    pub inherit: Option<bool>,
    /// Whether the member may become it, likewise.
    pub set: Option<bool>,
    /// Who gave it.
    pub granted_by: Option<String>,
}

/// `GRANT SET, ALTER SYSTEM ON PARAMETER parameter TO role`, of PostgreSQL 15 and newer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterGrant {
    /// The parameter.
    pub parameter: String,
    /// What may be done with it: one of [`PARAMETER_PRIVILEGES`], or several.
    pub privileges: Vec<&'static str>,
    /// Who may.
    pub role: String,
    /// Whether the role may let others.
    pub grantable: bool,
}

/// Privileges on a parameter.
pub const PARAMETER_PRIVILEGES: [&str; 2] = ["SET", "ALTER SYSTEM"];

impl Globals {
    /// Takes a script apart. An error: a quote, a comment or a statement does not end.
    pub fn parse(sql: &str) -> Result<Self> {
        let mut globals = Globals::default();
        let mut known = HashMap::new();
        for statement in statements(sql) {
            let tokens = statement.context("the set's roles are damaged")?.tokens;
            if globals.understand(&mut known, &tokens).is_none()
                && let Some(kind) = kind(&tokens)
            {
                *globals.left_out.entry(kind).or_default() += 1;
            }
        }
        Ok(globals)
    }

    /// Takes in one statement; `None` where it is none of a role's.
    fn understand(&mut self, known: &mut HashMap<String, usize>, tokens: &[Token<'_>]) -> Option<()> {
        let mut rest = Rest(tokens);
        match rest.word()? {
            "CREATE" => {
                rest.keyword("ROLE")?;
                let name = rest.name()?;
                rest.end()?;
                if let std::collections::hash_map::Entry::Vacant(new) = known.entry(name.clone()) {
                    new.insert(self.roles.len());
                    self.roles.push(Role { name, ..Role::default() });
                }
            }
            "ALTER" => {
                rest.keyword("ROLE")?;
                let name = rest.name()?;
                let role = self.roles.get_mut(*known.get(&name)?)?;
                match rest.word()? {
                    "WITH" => role.attributes = attributes(rest)?,
                    "SET" => role.settings.push(setting(rest)?),
                    _ => return None,
                }
            }
            "COMMENT" => {
                rest.keyword("ON")?;
                rest.keyword("ROLE")?;
                let name = rest.name()?;
                rest.keyword("IS")?;
                let comment = rest.text()?;
                rest.end()?;
                self.roles.get_mut(*known.get(&name)?)?.comment = Some(comment);
            }
            "GRANT" => match membership(Rest(rest.0)) {
                Some(membership) => self.memberships.push(membership),
                None => self.parameters.push(parameter_grant(rest)?),
            },
            _ => return None,
        }
        Some(())
    }
}

/// What is left of a statement.
struct Rest<'t, 's>(&'t [Token<'s>]);

impl<'t, 's> Rest<'t, 's> {
    fn next(&mut self) -> Option<&'t Token<'s>> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// A keyword, which pg_dumpall writes in capitals.
    fn word(&mut self) -> Option<&'s str> {
        match self.next()? {
            Token::Word(word) => Some(word),
            _ => None,
        }
    }

    fn keyword(&mut self, keyword: &str) -> Option<()> {
        (self.word()? == keyword).then_some(())
    }

    fn name(&mut self) -> Option<String> {
        self.next()?.name()
    }

    fn text(&mut self) -> Option<String> {
        match self.next()? {
            Token::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// Whether a symbol is next, which is then passed over.
    fn passes(&mut self, symbol: char) -> bool {
        let is_next = self.0.first() == Some(&Token::Symbol(symbol));
        if is_next {
            self.0 = &self.0[1..];
        }
        is_next
    }
}

/// `SUPERUSER NOINHERIT … CONNECTION LIMIT 3 PASSWORD '…' VALID UNTIL '…'`.
fn attributes(mut rest: Rest<'_, '_>) -> Option<Attributes> {
    let mut found = Attributes::default();
    while rest.end().is_none() {
        let word = rest.word()?;
        match word {
            "CONNECTION" => {
                rest.keyword("LIMIT")?;
                let is_negative = rest.passes('-');
                let Token::Number(number) = rest.next()? else { return None };
                let limit: i32 = number.parse().ok()?;
                found.connection_limit = (!is_negative).then_some(limit);
            }
            "PASSWORD" => found.password = Some(Secret::new(rest.text()?)),
            "VALID" => {
                rest.keyword("UNTIL")?;
                found.valid_until = Some(rest.text()?);
            }
            word => {
                let (flag, yes, _) =
                    Flag::ALL.into_iter().find(|(_, yes, no)| [*yes, *no].contains(&word))?;
                found.flags.retain(|other| *other != flag);
                if word == yes {
                    found.flags.push(flag);
                }
            }
        }
    }
    Some(found)
}

/// `name TO 'value'`, or `name TO 'one', 'two'`.
fn setting(mut rest: Rest<'_, '_>) -> Option<(String, Vec<String>)> {
    let mut name = rest.name()?;
    while rest.passes('.') {
        name = format!("{name}.{}", rest.name()?);
    }
    rest.keyword("TO")?;
    let mut values = vec![rest.text()?];
    while rest.passes(',') {
        values.push(rest.text()?);
    }
    rest.end()?;
    Some((name, values))
}

/// `SET, ALTER SYSTEM ON PARAMETER name TO role WITH GRANT OPTION`.
fn parameter_grant(mut rest: Rest<'_, '_>) -> Option<ParameterGrant> {
    let mut privileges = Vec::new();
    loop {
        match rest.word()? {
            "ALL" => privileges.extend(PARAMETER_PRIVILEGES),
            "SET" => privileges.push(PARAMETER_PRIVILEGES[0]),
            "ALTER" => {
                rest.keyword("SYSTEM")?;
                privileges.push(PARAMETER_PRIVILEGES[1]);
            }
            _ => return None,
        }
        if !rest.passes(',') {
            break;
        }
    }
    rest.keyword("ON")?;
    rest.keyword("PARAMETER")?;
    let mut parameter = rest.name()?;
    while rest.passes('.') {
        parameter = format!("{parameter}.{}", rest.name()?);
    }
    rest.keyword("TO")?;
    let role = rest.name()?;
    let grantable = rest.end().is_none();
    if grantable {
        for keyword in ["WITH", "GRANT", "OPTION"] {
            rest.keyword(keyword)?;
        }
        rest.end()?;
    }
    Some(ParameterGrant { parameter, privileges, role, grantable })
}

/// `role TO member WITH ADMIN OPTION, INHERIT TRUE, SET FALSE GRANTED BY grantor`. Privileges on tablespaces
/// and parameters are something else.
fn membership(mut rest: Rest<'_, '_>) -> Option<Membership> {
    let role = rest.name()?;
    rest.keyword("TO")?;
    let member = rest.name()?;
    let mut found = Membership { role, member, admin: false, inherit: None, set: None, granted_by: None };
    let mut next = rest.next();
    if next == Some(&Token::Word("WITH")) {
        loop {
            let option = rest.word()?;
            let value = match rest.word()? {
                "OPTION" | "TRUE" => true,
                "FALSE" => false,
                _ => return None,
            };
            match option {
                "ADMIN" => found.admin = value,
                "INHERIT" => found.inherit = Some(value),
                "SET" => found.set = Some(value),
                _ => return None,
            }
            if !rest.passes(',') {
                break;
            }
        }
        next = rest.next();
    }
    if next == Some(&Token::Word("GRANTED")) {
        rest.keyword("BY")?;
        found.granted_by = Some(rest.name()?);
        next = rest.next();
    }
    next.is_none().then_some(found)
}

/// Kind of a statement that is left out: in words of this program, whatever the statement says. `None`: a
/// setting of the script's own session.
fn kind(tokens: &[Token<'_>]) -> Option<&'static str> {
    let is = |at: usize, keyword| tokens.get(at).is_some_and(|token: &Token<'_>| token.is(keyword));
    // Names may be like keywords, but not where these stand.
    let on = tokens.iter().position(|token| token.is("ON")).unwrap_or(0);
    let verb = tokens.first()?;
    Some(match () {
        () if verb.is("SET") || verb.is("RESET") => return None,
        () if verb.is("ALTER") && is(1, "ROLE") => "ALTER ROLE that is not understood",
        () if verb.is("CREATE") && is(1, "TABLESPACE") => "CREATE TABLESPACE",
        () if verb.is("ALTER") && is(1, "TABLESPACE") => "ALTER TABLESPACE",
        () if verb.is("COMMENT") && is(2, "TABLESPACE") => "COMMENT ON TABLESPACE",
        () if verb.is("SECURITY") => "SECURITY LABEL",
        () if is(on + 1, "TABLESPACE") => "privileges on a tablespace",
        () if is(on + 1, "PARAMETER") => "privileges on a parameter",
        () => "statements that are not known",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GLOBALS: &str = "--\n-- PostgreSQL database cluster dump\n--\n\n\\restrict x'y;\n\n\
        SET default_transaction_read_only = off;\n\
        CREATE ROLE alice;\nALTER ROLE alice WITH NOSUPERUSER INHERIT NOLOGIN PASSWORD 'SCRAM;x' VALID UNTIL 'infinity';\n\
        CREATE ROLE \"b \"\"o;b\";\nALTER ROLE \"b \"\"o;b\" WITH SUPERUSER NOINHERIT LOGIN CONNECTION LIMIT 7;\n\
        ALTER ROLE alice SET search_path TO 'a', 'b';\nALTER ROLE alice SET \"my.x\" TO E'\\\\';\n\
        COMMENT ON ROLE alice IS E'it''s \\'; x';\n\
        CREATE TABLESPACE ts OWNER alice LOCATION '/x';\nGRANT ALL ON TABLESPACE ts TO alice;\n\
        GRANT SET ON PARAMETER work_mem TO alice;\nGRANT ALL ON PARAMETER \"my.x\" TO alice WITH GRANT OPTION;\n\
        GRANT SET,ALTER SYSTEM ON PARAMETER log_statement TO alice;\nGRANT SET ON PARAMETER work_mem TO PUBLIC;\n\
        GRANT alice TO \"b \"\"o;b\" WITH ADMIN OPTION, INHERIT TRUE, SET FALSE GRANTED BY postgres;\n\
        GRANT pg_monitor TO alice WITH INHERIT TRUE;\n\
        DROP DATABASE x;\n\\unrestrict x\n";

    #[test]
    fn roles_come_apart_into_their_parts() {
        let found = Globals::parse(GLOBALS).unwrap();
        let [alice, bob] = &found.roles[..] else { panic!("{found:?}") };
        assert_eq!((alice.name.as_str(), &alice.attributes.flags[..]), ("alice", &[][..]));
        assert_eq!(alice.attributes.password.as_ref().map(Secret::expose), Some("SCRAM;x"));
        assert_eq!(alice.attributes.valid_until.as_deref(), Some("infinity"));
        assert_eq!(alice.comment.as_deref(), Some("it's '; x"));
        let setting =
            |name: &str, values: &[&str]| (name.to_owned(), values.iter().map(|v| (*v).to_owned()).collect());
        assert_eq!(alice.settings, [setting("search_path", &["a", "b"]), setting("my.x", &["\\"])]);
        assert_eq!(bob.name, "b \"o;b");
        assert_eq!(bob.attributes.flags, [Flag::Superuser, Flag::NoInherit, Flag::Login]);
        assert_eq!(bob.attributes.connection_limit, Some(7));
        let membership = |role: &str, member: &str| Membership {
            role: role.into(),
            member: member.into(),
            admin: false,
            inherit: Some(true),
            set: None,
            granted_by: None,
        };
        let full = Membership {
            admin: true,
            set: Some(false),
            granted_by: Some("postgres".into()),
            ..membership("alice", "b \"o;b")
        };
        assert_eq!(found.memberships, [full, membership("pg_monitor", "alice")]);
        let parameter = |parameter: &str, privileges: &[&'static str], grantable| ParameterGrant {
            parameter: parameter.into(),
            privileges: privileges.to_vec(),
            role: "alice".into(),
            grantable,
        };
        assert_eq!(
            found.parameters,
            [
                parameter("work_mem", &["SET"], false),
                parameter("my.x", &["SET", "ALTER SYSTEM"], true),
                parameter("log_statement", &["SET", "ALTER SYSTEM"], false),
            ]
        );
        let left: Vec<_> = found.left_out.into_iter().collect();
        assert_eq!(
            left,
            [
                ("CREATE TABLESPACE", 1),
                ("privileges on a parameter", 1),
                ("privileges on a tablespace", 1),
                ("statements that are not known", 1)
            ]
        );
    }

    #[test]
    fn a_value_is_no_attribute() {
        for rest in [
            "SET application_name TO 'x SUPERUSER y'",
            "SET application_name TO 'x', 'SUPERUSER'",
            "SET \"a SUPERUSER\" TO 'x'",
            "WITH PASSWORD 'x'' SUPERUSER '",
            "WITH VALID UNTIL ' SUPERUSER '",
            "IN DATABASE \"SUPERUSER\" SET a TO 'b'",
            "SUPERUSER",
            "WITH NOLOGIN FUTURE SUPERUSER",
            "WITH \"SUPERUSER\"",
            "RENAME TO y",
        ] {
            let found = Globals::parse(&format!("CREATE ROLE x;\nALTER ROLE x {rest};\n")).unwrap();
            assert_eq!(found.roles[0].attributes.flags, [], "{rest}");
        }
        // The last word of all is what holds.
        let sql = "CREATE ROLE x; ALTER ROLE x WITH SUPERUSER; CREATE ROLE x; ALTER ROLE x WITH NOSUPERUSER;";
        let found = Globals::parse(sql).unwrap();
        assert!(found.roles.len() == 1 && found.roles[0].attributes.flags.is_empty());
    }

    #[test]
    fn what_is_not_exactly_a_statement_about_roles_is_left_out() {
        for sql in [
            "CREATE ROLE a SUPERUSER;",
            "CREATE ROLE a, b;",
            "CREATE USER a;",
            "create role a;",
            "CREATE ROLE Alice;",
            "ALTER ROLE nobody WITH SUPERUSER;",
            "COMMENT ON ROLE nobody IS 'x';",
            "GRANT a, b TO c;",
            "GRANT a TO b WITH SUPERUSER TRUE;",
            "GRANT a TO b WITH ADMIN;",
            "GRANT a TO b GRANTED BY c CASCADE;",
            "GRANT SELECT ON TABLE t TO x;",
            "GRANT SELECT ON PARAMETER t TO x;",
            "GRANT SET ON PARAMETER t TO x WITH GRANT;",
            "GRANT SET ON PARAMETER t TO x, y;",
            "COPY t TO PROGRAM 'x';",
            "U&\"x\" 1;",
        ] {
            let found = Globals::parse(sql).unwrap();
            assert!(found.roles.is_empty() && found.memberships.is_empty(), "{sql}");
            assert_eq!(found.left_out.values().sum::<usize>(), 1, "{sql}");
        }
        assert!(Globals::parse("CREATE ROLE a").is_err());
    }

    /// More than a megabyte of each kind of what may take more than linear time; with work that grows as the
    /// square of the text, this takes hours.
    #[test]
    fn a_large_script_is_work_in_proportion() {
        const BYTES: usize = 3 << 20;
        let repeated = |text: &str| text.repeat(BYTES / text.len());
        for (begin, middle, end) in [
            ("", " ", ";"),
            ("CREATE ROLE a", " ", ";"),
            ("", "\n;", ""),
            ("", "--\n", ""),
            ("", "\\x\n", ""),
            ("", "/*", ""),
            ("COMMENT ON ROLE a IS '", "''", "';"),
            ("CREATE ROLE a; ALTER ROLE a WITH", " LOGIN", ";"),
            ("CREATE ROLE a; ALTER ROLE a SET b TO 'c'", ",'d'", ";"),
            ("GRANT a TO b WITH ADMIN TRUE", ",SET TRUE", ";"),
            ("", "$a", ";"),
            ("", "CREATE ROLE x;", ""),
        ] {
            let _ = Globals::parse(&format!("{begin}{}{end}", repeated(middle)));
        }
        let names = (0..BYTES / 60)
            .map(|i| format!("CREATE ROLE r{i};\nALTER ROLE r{i} WITH LOGIN;\nGRANT r0 TO r{i};\n"));
        let found = Globals::parse(&names.collect::<String>()).unwrap();
        assert_eq!((found.roles.len(), found.memberships.len()), (BYTES / 60, BYTES / 60));
    }

    proptest! {
        /// Whatever names, values and comments there are, the roles are those that were made.
        #[test]
        fn names_and_values_change_nothing(name in any::<String>(), value in any::<String>()) {
            let (quoted, text) = (name.replace('"', "\"\""), value.replace('\'', "''"));
            let sql = format!(
                "CREATE ROLE \"{quoted}\";ALTER ROLE \"{quoted}\" WITH NOSUPERUSER PASSWORD '{text}';\
                 ALTER ROLE \"{quoted}\" SET \"{quoted}\" TO '{text}';COMMENT ON ROLE \"{quoted}\" IS '{text}';\
                 GRANT \"{quoted}\" TO \"{quoted}\";"
            );
            let found = Globals::parse(&sql).unwrap();
            prop_assert_eq!(found.left_out.len(), 0);
            prop_assert_eq!(found.roles.len(), 1);
            let role = &found.roles[0];
            prop_assert_eq!(&role.name, &name);
            prop_assert!(role.attributes.flags.is_empty());
            prop_assert_eq!(role.attributes.password.as_ref().map(Secret::expose), Some(value.as_str()));
            prop_assert_eq!(&role.settings, &[(name.clone(), vec![value.clone()])]);
            prop_assert_eq!(role.comment.as_deref(), Some(value.as_str()));
            prop_assert_eq!((&found.memberships[0].role, &found.memberships[0].member), (&name, &name));
        }

        #[test]
        fn any_text_is_taken_apart(sql in r#"(CREATE ROLE |ALTER ROLE |WITH |SET |TO |[\\\\'"é;\n $,.-]|E'|a|.){0,60}"#) {
            let _ = Globals::parse(&sql);
        }
    }
}
