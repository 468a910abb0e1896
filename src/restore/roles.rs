//! Roles out of a set's globals: stubs for a rehearsal, missing ones for a restore.
//!
//! Statements are built from the parts of each role rather than fed to psql from pg_dumpall's text, because
//! roles that exist must be left alone, and because text is not what it says it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::existing_roles;
use crate::error::{Context, Result};
use crate::postgres::connect::{Session, error};
use crate::postgres::properties::assignment;
use crate::postgres::sql::{Sql, quote_ident};
use crate::set::globals::{Flag, Globals, Membership, ParameterGrant, Role};

/// Every role of the set, unable to log in, so that owners and privileges can be restored.
pub async fn create_stubs(admin: &Session, globals: &Globals) -> Result<()> {
    let existing = existing_roles(admin).await?;
    for role in globals.roles.iter().filter(|role| !existing.contains(&role.name)) {
        let created = stub(role).run(&admin.client).await.map_err(error);
        created.with_context(|| format!("role {:?}", role.name))?;
    }
    let known = existing_roles(admin).await?;
    let is_known = |grant: &&Membership| known.contains(&grant.role) && known.contains(&grant.member);
    for grant in grants(globals.memberships.iter().filter(is_known), &BTreeSet::new(), admin.major()) {
        // What does not come into being is found when all of them are compared.
        if let Err(failure) = grant.sql(admin.major()).run(&admin.client).await {
            tracing::debug!(member = grant.membership.member, "membership was refused: {}", error(failure));
        }
    }
    Ok(())
}

/// Who may give which role to others on the session's server: role and member.
pub async fn admins(admin: &Session) -> Result<BTreeSet<(String, String)>> {
    let rows = admin
        .client
        .query(
            "SELECT r.rolname::text, m.rolname::text FROM pg_auth_members a
               JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member WHERE a.admin_option",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list memberships")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
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

/// A membership that is to be granted.
pub struct Grant<'g> {
    /// As the set has it.
    pub membership: &'g Membership,
    /// Who grants it; absent where that is the server's first superuser.
    pub by: Option<&'g str>,
}

impl Grant<'_> {
    /// The statement for a server of this major.
    pub fn sql(&self, major: u32) -> Sql {
        grant(self.membership, self.by, major)
    }
}

/// Memberships in an order in which each may be granted, and by whom.
///
/// From PostgreSQL 16 on a membership is granted by somebody who has the ADMIN OPTION on the role, or by the server's
/// first superuser, whom every cluster calls as it likes; pg_dumpall names either. So whoever does not have the option
/// by one of these memberships, or by `admins` of the server already, is taken for the source's first superuser, and
/// the server puts its own in his place. Older servers wrote down anybody.
pub fn grants<'g>(
    memberships: impl Iterator<Item = &'g Membership>,
    admins: &BTreeSet<(String, String)>,
    major: u32,
) -> Vec<Grant<'g>> {
    let memberships: Vec<&Membership> = memberships.collect();
    if major < 16 {
        let as_it_is = |membership| Grant { membership, by: membership.granted_by.as_deref() };
        return memberships.into_iter().map(as_it_is).collect();
    }
    let mut may: BTreeSet<(&str, &str)> =
        admins.iter().map(|(role, member)| (role.as_str(), member.as_str())).collect();
    let gives: BTreeSet<(&str, &str)> =
        memberships.iter().filter(|m| m.admin).map(|m| (m.role.as_str(), m.member.as_str())).collect();
    let mut waiting: BTreeMap<(&str, &str), Vec<&Membership>> = BTreeMap::new();
    let mut ready: VecDeque<(&Membership, Option<&str>)> = VecDeque::new();
    for membership in memberships {
        match membership.granted_by.as_deref().map(|by| (membership.role.as_str(), by)) {
            Some(key) if may.contains(&key) => ready.push_back((membership, Some(key.1))),
            Some(key) if gives.contains(&key) => waiting.entry(key).or_default().push(membership),
            _ => ready.push_back((membership, None)),
        }
    }
    let mut ordered = Vec::new();
    loop {
        while let Some((membership, by)) = ready.pop_front() {
            ordered.push(Grant { membership, by });
            let key = (membership.role.as_str(), membership.member.as_str());
            if membership.admin && may.insert(key) {
                ready.extend(waiting.remove(&key).into_iter().flatten().map(|next| (next, Some(key.1))));
            }
        }
        // Older servers let two give the option to each other.
        match waiting.pop_first() {
            Some((_, cycle)) => ready.extend(cycle.into_iter().map(|membership| (membership, None))),
            None => return ordered,
        }
    }
}

/// The statements that make the roles which are not among `existing`: their attributes, comments, settings,
/// and every membership that touches one of them. `admins` may grant on that server, whose major this is. With
/// them, a line for each membership that somebody else grants than at the source.
pub fn missing(
    globals: &Globals,
    existing: &BTreeSet<String>,
    admins: &BTreeSet<(String, String)>,
    major: u32,
) -> (Vec<Sql>, Vec<String>) {
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
    let granted: BTreeSet<(&str, &str)> = globals
        .memberships
        .iter()
        .filter(|grant| grant.admin)
        .map(|grant| (grant.role.as_str(), grant.member.as_str()))
        .collect();
    let mut lines = Vec::new();
    for grant in grants(globals.memberships.iter().filter(touches), admins, major) {
        let Membership { role, member, granted_by, .. } = grant.membership;
        if let (None, Some(by)) = (grant.by, granted_by)
            && granted.contains(&(role.as_str(), by.as_str()))
        {
            lines.push(format!(
                "{member:?} is made a member of {role:?} not by {by:?}, who may not do so here"
            ));
        }
        if major < 16 && (grant.membership.set == Some(false) || grant.membership.inherit == Some(false)) {
            lines.push(format!(
                "{member:?} has more of {role:?} than in the set: PostgreSQL {major} has no membership without \
                 INHERIT or SET"
            ));
        }
        statements.push(grant.sql(major));
    }
    (statements, lines)
}

/// Lets roles set the parameters that they may set in the set, each by itself: how many were granted and are there, and
/// which the server refuses, by role and parameter.
pub async fn grant_parameters(admin: &Session, grants: &[&ParameterGrant]) -> (u64, Vec<String>) {
    let (mut granted, mut refused) = (0, Vec::new());
    for grant in grants {
        let ParameterGrant { parameter, privileges, role, grantable } = grant;
        let option = if *grantable { " WITH GRANT OPTION" } else { "" };
        let privileges = privileges.iter().map(|privilege| Sql::new(privilege));
        let sql = Sql::new("GRANT ").join(privileges.clone(), ", ").then(" ON PARAMETER ").ident(parameter);
        let sql = sql.then(" TO ").ident(role).then(option);
        let asked = privileges.map(|p| Sql::new("").sql(&p).then(option).to_string()).collect::<Vec<_>>();
        let is_there = match sql.run(&admin.client).await {
            Ok(()) => has_privileges(admin, role, parameter, &asked).await,
            Err(failure) => Err(error(failure)),
        };
        match is_there {
            Ok(true) => granted += 1,
            Ok(false) => refused.push(format!("{parameter} to {role}")),
            Err(failure) => {
                tracing::debug!("a privilege on parameter {parameter:?} is refused: {failure}");
                refused.push(format!("{parameter} to {role}"));
            }
        }
    }
    (granted, refused)
}

async fn has_privileges(admin: &Session, role: &str, parameter: &str, asked: &[String]) -> Result<bool> {
    let row = admin
        .client
        .query_one(
            "SELECT bool_and(has_parameter_privilege($1::text::name, $2, privilege)) FROM unnest($3::text[]) privilege",
            &[&role, &parameter, &asked],
        )
        .await
        .map_err(error)?;
    Ok(row.get(0))
}

/// Gives a stub the attributes of its role, all of them and no password: code of the dump runs on its server.
pub fn complete(role: &Role) -> Sql {
    let mut sql = Sql::new("ALTER ROLE ").ident(&role.name).then(" WITH");
    let attributes = &role.attributes;
    for (flag, yes, no) in Flag::ALL {
        sql = sql.then(" ").then(if attributes.flags.contains(&flag) { yes } else { no });
    }
    sql = sql.then(" CONNECTION LIMIT ").number(attributes.connection_limit.unwrap_or(-1));
    match &attributes.valid_until {
        Some(time) => sql.then(" VALID UNTIL ").literal(time),
        None => sql,
    }
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

fn grant(membership: &Membership, by: Option<&str>, major: u32) -> Sql {
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
    match by {
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
        let admins = BTreeSet::new();
        let (statements, lines) = missing(&Globals::parse(GLOBALS).unwrap(), &existing, &admins, major);
        assert!(major < 16 || lines.is_empty(), "{lines:?}");
        statements.iter().map(Sql::to_string).collect()
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
                "GRANT \"alice\" TO \"b \"\"o;b\" WITH ADMIN OPTION, INHERIT TRUE, SET FALSE",
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
    fn memberships_are_granted_in_an_order_in_which_they_may_be() {
        let parse = |sql: &str| Globals::parse(sql).unwrap();
        let said = |globals: &Globals, admins: &[(&str, &str)], major| -> Vec<String> {
            let admins = admins.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            let grants = grants(globals.memberships.iter(), &admins, major);
            grants.iter().map(|g| g.sql(major).to_string().replace('"', "")).collect()
        };
        let globals = parse(
            "GRANT r TO c GRANTED BY b; GRANT r TO b WITH ADMIN OPTION GRANTED BY a;
             GRANT r TO a WITH ADMIN OPTION GRANTED BY boss;",
        );
        assert_eq!(
            said(&globals, &[], 16),
            [
                "GRANT r TO a WITH ADMIN OPTION",
                "GRANT r TO b WITH ADMIN OPTION GRANTED BY a",
                "GRANT r TO c GRANTED BY b"
            ]
        );
        assert!(said(&globals, &[], 15)[2].ends_with("GRANTED BY boss"));
        assert!(said(&globals, &[("r", "boss")], 16)[0].ends_with("GRANTED BY boss"));
        // Two that gave it to each other, and one who gave it to himself.
        let cycle = parse(
            "GRANT r TO a WITH ADMIN OPTION GRANTED BY b; GRANT r TO b WITH ADMIN OPTION GRANTED BY a;
             GRANT q TO a WITH ADMIN OPTION GRANTED BY a;",
        );
        assert_eq!(
            said(&cycle, &[], 17),
            [
                "GRANT q TO a WITH ADMIN OPTION",
                "GRANT r TO b WITH ADMIN OPTION",
                "GRANT r TO a WITH ADMIN OPTION GRANTED BY b"
            ]
        );
    }

    /// A chain of a hundred thousand, each granted by the one that comes after it.
    #[test]
    fn memberships_are_ordered_in_work_in_proportion() {
        let chain: String = (0..100_000)
            .map(|n| format!("GRANT r TO m{n} WITH ADMIN OPTION GRANTED BY m{};\n", n + 1))
            .collect();
        let globals = Globals::parse(&chain).unwrap();
        let ordered = grants(globals.memberships.iter(), &BTreeSet::new(), 16);
        assert_eq!(ordered.len(), 100_000);
        assert_eq!((ordered[0].membership.member.as_str(), ordered[0].by), ("m99999", None));
        assert_eq!(ordered[1].by, Some("m99999"));
    }

    #[test]
    fn existing_roles_are_left_alone() {
        let wanted = said(&["alice"], 16);
        assert_eq!(wanted.len(), 2, "{wanted:?}");
        assert!(wanted[1].starts_with("GRANT \"alice\" TO"));
        assert!(said(&["alice", "b \"o;b"], 16).is_empty());
    }
}
