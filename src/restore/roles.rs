//! Roles out of a set's globals: stubs for a rehearsal, missing ones for a restore.
//!
//! Statements are built from the parts of each role rather than fed to psql from pg_dumpall's text, because
//! roles that exist must be left alone, and because text is not what it says it is.

use std::collections::BTreeSet;

use super::existing_roles;
use crate::error::{Context, Result};
use crate::postgres::connect::{Session, error};
use crate::postgres::properties::assignment;
use crate::postgres::sql::{Sql, quote_ident};
use crate::set::globals::{Flag, Globals, Membership, Role};

/// Every role of the set, unable to log in, so that owners and privileges can be restored.
pub async fn create_stubs(admin: &Session, globals: &Globals) -> Result<()> {
    let existing = existing_roles(admin).await?;
    for role in globals.roles.iter().filter(|role| !existing.contains(&role.name)) {
        let created = stub(role).run(&admin.client).await.map_err(error);
        created.with_context(|| format!("role {:?}", role.name))?;
    }
    let known = existing_roles(admin).await?;
    for grant in &globals.memberships {
        // A newer major's predefined role, or the source's superuser.
        if !known.contains(&grant.role) || !known.contains(&grant.member) {
            continue;
        }
        let sql = Sql::new("GRANT ").ident(&grant.role).then(" TO ").ident(&grant.member);
        let granted = sql.run(&admin.client).await.map_err(error);
        granted.with_context(|| format!("membership of {:?}", grant.member))?;
    }
    Ok(())
}

/// A role that owns and has privileges, and that nobody can log in as. Materialized views are filled and
/// indexes are built as their owners.
pub fn stub(role: &Role) -> Sql {
    let mut sql = Sql::new("CREATE ROLE ").ident(&role.name).then(" NOLOGIN");
    for (flag, word, _) in Flag::ALL {
        let matters = matches!(flag, Flag::Superuser | Flag::BypassRls | Flag::NoInherit);
        if matters && role.attributes.flags.contains(&flag) {
            sql = sql.then(" ").then(word);
        }
    }
    sql
}

/// The statements that make the roles which are not among `existing`: their attributes, comments, settings,
/// and every membership that touches one of them. `major`: of the server that they are for.
pub fn missing(globals: &Globals, existing: &BTreeSet<String>, major: u32) -> Vec<Sql> {
    let made: Vec<&Role> = globals.roles.iter().filter(|role| !existing.contains(&role.name)).collect();
    let names: BTreeSet<&str> = made.iter().map(|role| role.name.as_str()).collect();
    let mut statements: Vec<Sql> = made.iter().map(|role| create(role)).collect();
    for role in made {
        if let Some(comment) = &role.comment {
            statements.push(Sql::new("COMMENT ON ROLE ").ident(&role.name).then(" IS ").literal(comment));
        }
        for (name, values) in &role.settings {
            let sql = Sql::new("ALTER ROLE ").ident(&role.name).then(" SET ");
            statements.push(sql.sql(&assignment(name, values)));
        }
    }
    let touches =
        |grant: &&Membership| names.contains(grant.role.as_str()) || names.contains(grant.member.as_str());
    statements.extend(globals.memberships.iter().filter(touches).map(|membership| grant(membership, major)));
    statements
}

/// Only what differs from the default is said: a role that is no superuser may make roles, but may not even
/// deny some attributes.
fn create(role: &Role) -> Sql {
    let mut sql = Sql::new("CREATE ROLE ").ident(&role.name);
    let attributes = &role.attributes;
    for (flag, word, _) in Flag::ALL {
        if attributes.flags.contains(&flag) {
            sql = sql.then(" ").then(word);
        }
    }
    if let Some(limit) = attributes.connection_limit {
        sql = sql.then(" CONNECTION LIMIT ").number(limit);
    }
    if let Some(password) = &attributes.password {
        sql = sql.then(" PASSWORD ").literal(password.expose());
    }
    match &attributes.valid_until {
        Some(time) => sql.then(" VALID UNTIL ").literal(time),
        None => sql,
    }
}

fn grant(membership: &Membership, major: u32) -> Sql {
    let mut sql = Sql::new("GRANT ").ident(&membership.role).then(" TO ").ident(&membership.member);
    let mut options = Vec::new();
    if membership.admin {
        options.push(Sql::new("ADMIN OPTION"));
    }
    // An older server has no word for them.
    if major >= 16 {
        for (option, value) in [("INHERIT ", membership.inherit), ("SET ", membership.set)] {
            let value = value.map(|value| if value { "TRUE" } else { "FALSE" });
            options.extend(value.map(|value| Sql::new(option).then(value)));
        }
    }
    if !options.is_empty() {
        sql = sql.then(" WITH ").join(options, ", ");
    }
    match &membership.granted_by {
        Some(role) => sql.then(" GRANTED BY ").ident(role),
        None => sql,
    }
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

    const GLOBALS: &str = "CREATE ROLE alice;\nALTER ROLE alice WITH NOSUPERUSER INHERIT NOLOGIN PASSWORD 'SCRAM;x';\n\
        CREATE ROLE \"b \"\"o;b\";\nALTER ROLE \"b \"\"o;b\" WITH SUPERUSER NOINHERIT LOGIN CONNECTION LIMIT 7 VALID UNTIL 'infinity';\n\
        ALTER ROLE alice SET search_path TO 'a', 'b';\nALTER ROLE alice SET application_name TO 'x SUPERUSER y';\n\
        COMMENT ON ROLE alice IS E'it''s \\\\';\n\
        GRANT alice TO \"b \"\"o;b\" WITH ADMIN OPTION, INHERIT TRUE, SET FALSE GRANTED BY postgres;\n\
        GRANT pg_monitor TO alice;\n";

    fn said(existing: &[&str], major: u32) -> Vec<String> {
        let existing = existing.iter().map(|name| (*name).to_owned()).collect();
        missing(&Globals::parse(GLOBALS).unwrap(), &existing, major).iter().map(Sql::to_string).collect()
    }

    #[test]
    fn roles_are_made_of_their_parts() {
        let all = said(&[], 16);
        assert_eq!(
            all,
            [
                "CREATE ROLE \"alice\" PASSWORD 'SCRAM;x'",
                "CREATE ROLE \"b \"\"o;b\" SUPERUSER NOINHERIT LOGIN CONNECTION LIMIT 7 VALID UNTIL 'infinity'",
                "COMMENT ON ROLE \"alice\" IS E'it''s \\\\'",
                "ALTER ROLE \"alice\" SET \"search_path\" TO 'a', 'b'",
                "ALTER ROLE \"alice\" SET \"application_name\" TO 'x SUPERUSER y'",
                "GRANT \"alice\" TO \"b \"\"o;b\" WITH ADMIN OPTION, INHERIT TRUE, SET FALSE GRANTED BY \"postgres\"",
                "GRANT \"pg_monitor\" TO \"alice\"",
            ]
        );
        assert!(said(&[], 15)[5].ends_with(" WITH ADMIN OPTION GRANTED BY \"postgres\""));
        let stubs: Vec<_> =
            Globals::parse(GLOBALS).unwrap().roles.iter().map(|role| stub(role).to_string()).collect();
        assert_eq!(
            stubs,
            ["CREATE ROLE \"alice\" NOLOGIN", "CREATE ROLE \"b \"\"o;b\" NOLOGIN SUPERUSER NOINHERIT"]
        );
    }

    #[test]
    fn existing_roles_are_left_alone() {
        let wanted = said(&["alice"], 16);
        assert_eq!(wanted.len(), 2, "{wanted:?}");
        assert!(wanted[1].starts_with("GRANT \"alice\" TO"));
        assert!(said(&["alice", "b \"o;b"], 16).is_empty());
    }
}
