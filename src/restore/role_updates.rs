//! What roles of the set have and the roles of the same names on a server have not, with the statements that give it
//! to them.
//!
//! A restore leaves roles that exist alone. What they lack is lost in silence unless somebody says it: a role without
//! its `work_mem`, or without the membership that its application rests on. Nothing is taken away from a role here,
//! and no password is changed.

use std::collections::{BTreeMap, BTreeSet};

use super::role_proof::{self, Made};
use super::roles::{admins, grants};
use crate::error::{Context, Result};
use crate::postgres::connect::{Session, error};
use crate::postgres::ident::Name;
use crate::postgres::properties::assignment;
use crate::postgres::sql::Sql;
use crate::set::globals::{Flag, Globals, Membership, Role};

/// Something that a role lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// What it is, without a value: `role "mastodon" lacks its setting work_mem`.
    pub lacks: String,
    /// The statement that gives it to the role.
    pub sql: Sql,
    /// The statement as it may be shown. The value of a setting that is no parameter of PostgreSQL's own may be
    /// a secret, and is left out.
    pub shown: String,
    /// Whether an update gives it. What restricts a role, replaces a value that it has, or makes it as mighty as the
    /// server is for a person to decide: somebody may have changed that on purpose since.
    pub is_given: bool,
}

impl Update {
    fn new(lacks: String, sql: Sql) -> Self {
        Self { lacks, shown: sql.to_string(), sql, is_given: true }
    }

    fn only_named(lacks: String, sql: Sql) -> Self {
        Self { is_given: false, ..Self::new(lacks, sql) }
    }
}

/// Attributes that no update gives.
const ONLY_NAMED: [Flag; 4] = [Flag::Superuser, Flag::NoInherit, Flag::Replication, Flag::BypassRls];

/// What roles that a server has had before a restore (`existing`) lack of what the set says of them.
pub async fn lacking(admin: &Session, globals: &Globals, existing: &BTreeSet<String>) -> Result<Vec<Update>> {
    let made = role_proof::made(admin).await?;
    let mut times = BTreeMap::new();
    for text in globals.roles.iter().filter_map(|role| role.attributes.valid_until.as_ref()) {
        // A time that the server does not read is none that a role could have.
        let read = admin.client.query_one("SELECT $1::text::timestamptz::text", &[text]).await;
        times.extend(read.ok().map(|row| (text.clone(), row.get::<_, String>(0))));
    }
    let mut updates = Vec::new();
    for role in globals.roles.iter().filter(|role| existing.contains(&role.name)) {
        if let Some(made) = made.get(&role.name) {
            updates.extend(of_role(role, made, &times));
        }
    }
    let rows = admin
        .client
        .query(
            "SELECT r.rolname::text, m.rolname::text, a.admin_option FROM pg_auth_members a
               JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list memberships")?;
    let mut members: BTreeMap<(String, String), bool> = BTreeMap::new();
    for row in rows {
        let key = (row.get::<_, Name>(0).0, row.get::<_, Name>(1).0);
        *members.entry(key).or_default() |= row.get::<_, bool>(2);
    }
    let admins = admins(admin).await?;
    updates.extend(of_memberships(globals, existing, &members, &admins, admin.major()));
    Ok(updates)
}

/// What one role lacks. `times` are the texts of the set as the server writes the same times.
fn of_role(role: &Role, made: &Made, times: &BTreeMap<String, String>) -> Vec<Update> {
    let (name, wanted) = (&role.name, &role.attributes);
    let alter = || Sql::new("ALTER ROLE ").ident(name);
    let mut updates = Vec::new();
    for (flag, word, _) in Flag::ALL {
        if wanted.flags.contains(&flag) && !made.flags.contains(word) {
            let lacks = format!("role {name:?} lacks its attribute {word}");
            let sql = alter().then(" ").then(word);
            updates.push(match ONLY_NAMED.contains(&flag) {
                true => Update::only_named(lacks, sql),
                false => Update::new(lacks, sql),
            });
        }
    }
    if let Some(limit) = wanted.connection_limit
        && made.connection_limit != Some(limit)
    {
        let sql = alter().then(" CONNECTION LIMIT ").number(limit);
        updates.push(Update::only_named(format!("role {name:?} lacks its connection limit"), sql));
    }
    if let Some(time) = &wanted.valid_until
        && times.get(time) != made.valid_until.as_ref()
    {
        let sql = alter().then(" VALID UNTIL ").literal(time);
        updates.push(Update::only_named(format!("role {name:?} lacks the end of its password"), sql));
    }
    if let Some(comment) = &role.comment
        && made.comment.as_ref() != Some(comment)
    {
        let sql = Sql::new("COMMENT ON ROLE ").ident(name).then(" IS ").literal(comment);
        updates.push(Update::new(format!("role {name:?} lacks its comment"), sql));
    }
    for (setting, values) in role_proof::settings(role) {
        if made.settings.get(&setting).is_some_and(|made| role_proof::is_same(made, &values)) {
            continue;
        }
        let set = |values: &[String]| alter().then(" SET ").sql(&assignment(&setting, values));
        let mut update = Update::new(format!("role {name:?} lacks its setting {setting}"), set(&values));
        update.is_given = !made.settings.contains_key(&setting);
        if setting.contains('.') {
            update.shown = set(&["…".to_owned()]).to_string();
        }
        updates.push(update);
    }
    updates
}

/// Memberships between roles that exist, which are not there. Those that touch a role which a restore makes are made
/// with it.
fn of_memberships(
    globals: &Globals,
    existing: &BTreeSet<String>,
    members: &BTreeMap<(String, String), bool>,
    admins: &BTreeSet<(String, String)>,
    major: u32,
) -> Vec<Update> {
    let is_missing = |wanted: &&Membership| {
        let found = members.get(&(wanted.role.clone(), wanted.member.clone()));
        existing.contains(&wanted.role)
            && existing.contains(&wanted.member)
            && found.is_none_or(|may_give| wanted.admin && !may_give)
    };
    let missing = grants(globals.memberships.iter().filter(is_missing), admins, major);
    let update = |grant: &super::roles::Grant<'_>| {
        let Membership { role, member, .. } = grant.membership;
        let lacks = match members.contains_key(&(role.clone(), member.clone())) {
            true => format!("role {member:?} may not give role {role:?} to others"),
            false => format!("role {member:?} is no member of role {role:?}"),
        };
        Update::new(lacks, grant.sql(major))
    };
    missing.iter().map(update).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBALS: &str = "CREATE ROLE mastodon;\n\
        ALTER ROLE mastodon WITH NOSUPERUSER INHERIT NOCREATEROLE CREATEDB LOGIN NOREPLICATION NOBYPASSRLS \
            CONNECTION LIMIT 20 PASSWORD 'SCRAM;x' VALID UNTIL '2031-02-03 04:05:06+00';\n\
        ALTER ROLE mastodon SET work_mem TO '64MB';\nALTER ROLE mastodon SET search_path TO 'a', 'b';\n\
        ALTER ROLE mastodon SET app.token TO 's3cret';\nCOMMENT ON ROLE mastodon IS 'it''s';\n\
        CREATE ROLE reader;\nGRANT reader TO mastodon WITH ADMIN OPTION;\nGRANT pg_monitor TO reader;\n";

    fn times() -> BTreeMap<String, String> {
        BTreeMap::from([("2031-02-03 04:05:06+00".into(), "2031-02-03 05:05:06+01".into())])
    }

    fn has_all() -> Made {
        let list = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        Made {
            flags: BTreeSet::from(["CREATEDB", "LOGIN", "SUPERUSER"]),
            connection_limit: Some(20),
            valid_until: Some("2031-02-03 05:05:06+01".into()),
            comment: Some("it's".into()),
            settings: BTreeMap::from([
                ("work_mem".into(), list(&["64MB"])),
                ("search_path".into(), list(&["a", "b"])),
                ("app.token".into(), list(&["s3cret"])),
                ("lock_timeout".into(), list(&["1s"])),
            ]),
        }
    }

    #[test]
    fn a_role_that_has_it_all_and_more_lacks_nothing() {
        let globals = Globals::parse(GLOBALS).unwrap();
        assert_eq!(of_role(&globals.roles[0], &has_all(), &times()), []);
    }

    #[test]
    fn what_a_role_lost_is_named_with_the_statement_that_brings_it_back() {
        let globals = Globals::parse(GLOBALS).unwrap();
        let updates = of_role(&globals.roles[0], &Made::default(), &times());
        let shown: Vec<&str> = updates.iter().map(|update| update.shown.as_str()).collect();
        assert_eq!(
            shown,
            [
                "ALTER ROLE \"mastodon\" CREATEDB",
                "ALTER ROLE \"mastodon\" LOGIN",
                "ALTER ROLE \"mastodon\" CONNECTION LIMIT 20",
                "ALTER ROLE \"mastodon\" VALID UNTIL '2031-02-03 04:05:06+00'",
                "COMMENT ON ROLE \"mastodon\" IS 'it''s'",
                "ALTER ROLE \"mastodon\" SET \"app\".\"token\" TO '…'",
                "ALTER ROLE \"mastodon\" SET \"search_path\" TO 'a', 'b'",
                "ALTER ROLE \"mastodon\" SET \"work_mem\" TO '64MB'",
            ]
        );
        assert!(updates[5].sql.to_string().ends_with("TO 's3cret'"));
        assert_eq!(updates[7].lacks, "role \"mastodon\" lacks its setting work_mem");
        assert!(
            updates.iter().all(|update| !update.lacks.contains("s3cret") && !update.shown.contains("SCRAM"))
        );
        let mut other = has_all();
        other.settings.insert("work_mem".into(), vec!["4MB".into()]);
        let differs = of_role(&globals.roles[0], &other, &times());
        assert!(differs.len() == 1 && !differs[0].is_given, "the role has another value: {differs:?}");
        let given: Vec<bool> = updates.iter().map(|update| update.is_given).collect();
        assert_eq!(given, [true, true, false, false, true, true, true, true]);
    }

    #[test]
    fn memberships_between_roles_that_exist_are_named() {
        let globals = Globals::parse(GLOBALS).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let lacks = |existing: &[&str], members: &[(&str, &str, bool)]| {
            let members = members.iter().map(|(r, m, a)| (((*r).to_owned(), (*m).to_owned()), *a)).collect();
            let found = of_memberships(&globals, &names(existing), &members, &BTreeSet::new(), 16);
            found.into_iter().map(|update| update.shown).collect::<Vec<_>>()
        };
        let all = ["mastodon", "reader", "pg_monitor"];
        let (given, monitor) =
            ("GRANT \"reader\" TO \"mastodon\" WITH ADMIN OPTION", "GRANT \"pg_monitor\" TO \"reader\"");
        assert_eq!(lacks(&all, &[]), [given, monitor]);
        assert_eq!(lacks(&all, &[("reader", "mastodon", false), ("pg_monitor", "reader", false)]), [given]);
        assert_eq!(lacks(&all, &[("reader", "mastodon", true), ("pg_monitor", "reader", true)]), [""; 0]);
        assert_eq!(lacks(&["reader", "pg_monitor"], &[]), [monitor], "that of a new role is made with it");
    }
}
