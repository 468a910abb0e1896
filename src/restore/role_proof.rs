//! Whether a set's roles come back: made on the scratch server of their parts, read back, and compared.
//!
//! This is the last that happens on the server, because a role's settings are for its sessions, and because nothing
//! else needs them. Passwords never get there: code of the dump runs on it as a superuser. What the server refuses is
//! named without its value, which may be a secret.

use std::collections::{BTreeMap, BTreeSet};

use super::roles::{self, Grant};
use crate::error::{Context, Result};
use crate::postgres::connect::{Session, error};
use crate::postgres::ident::Name;
use crate::postgres::properties::{self, assignment};
use crate::postgres::scratch::{READER, SUPERUSER};
use crate::postgres::sql::Sql;
use crate::set::globals::{Flag, Globals, Membership, Role};
use crate::set::scope::{Scope, What, named};

/// What came of it.
#[derive(Debug, Default)]
pub struct Found {
    /// What disagrees, a line each.
    pub differences: Vec<String>,
    /// What was compared, and what was not.
    pub scope: Vec<Scope>,
}

/// A role's settings as names and values, of which a list has several.
pub(super) type Settings = BTreeMap<String, Vec<String>>;

/// A role as the server has it.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) flags: BTreeSet<&'static str>,
    pub(super) connection_limit: Option<i32>,
    pub(super) valid_until: Option<String>,
    pub(super) comment: Option<String>,
    pub(super) settings: Settings,
}

/// Makes of the stubs what the set says of roles, and compares.
pub async fn prove(admin: &Session, globals: &Globals) -> Result<Found> {
    let mut found = Found::default();
    // The server's own; nobody else's role has such a name.
    let roles: Vec<&Role> =
        globals.roles.iter().filter(|role| ![SUPERUSER, READER].contains(&role.name.as_str())).collect();
    let mut refused = Vec::new();
    for role in &roles {
        refused.extend(complete(admin, role).await);
    }
    compare_roles(admin, &roles, &refused, &mut found).await?;
    compare_memberships(admin, globals, &mut found).await?;
    let with_password = roles.iter().filter(|role| role.attributes.password.is_some()).count();
    let other: Vec<String> = globals.left_out.iter().map(|(kind, n)| format!("{kind} ({n})")).collect();
    let parameters: Vec<_> = globals.parameters.iter().collect();
    let (may_set, refused_parameters) = roles::grant_parameters(admin, &parameters).await;
    found.scope.extend(Scope::covered(What::OtherGlobals, None, may_set));
    let of = "privileges on a parameter";
    found.scope.extend(Scope::uncovered(
        What::OtherGlobals,
        None,
        refused_parameters.len() as u64,
        format!("{of}: {}", named(&refused_parameters)),
    ));
    let settings = roles.iter().map(|role| settings(role).len()).sum::<usize>() - refused.len();
    let refused: Vec<String> = refused.iter().map(|(role, name)| format!("{name} of {role}")).collect();
    found.scope.extend(
        [
            Scope::covered(What::Roles, None, roles.len() as u64),
            Scope::covered(What::RoleSettings, None, settings as u64),
            Scope::uncovered(What::RoleSettings, None, refused.len() as u64, named(&refused)),
            Scope::uncovered(What::Passwords, None, with_password as u64, ""),
            Scope::uncovered(
                What::OtherGlobals,
                None,
                globals.left_out.values().sum::<usize>() as u64,
                named(&other),
            ),
        ]
        .into_iter()
        .flatten(),
    );
    Ok(found)
}

/// Gives a stub all that its role has; returns role and name of each setting that was refused.
async fn complete(admin: &Session, role: &Role) -> Vec<(String, String)> {
    let mut statements = vec![roles::complete(role)];
    if let Some(comment) = &role.comment {
        statements.push(Sql::new("COMMENT ON ROLE ").ident(&role.name).then(" IS ").literal(comment));
    }
    let set = |(name, values): (&String, &Vec<String>)| {
        Sql::new("ALTER ROLE ").ident(&role.name).then(" SET ").sql(&assignment(name, values))
    };
    let settings = settings(role);
    let all = statements.iter().cloned().chain(settings.iter().map(set));
    if Sql::new("").join(all, "; ").run(&admin.client).await.is_ok() {
        return Vec::new();
    }
    // One of them was refused, and took the others with it.
    for statement in &statements {
        if let Err(failure) = statement.run(&admin.client).await {
            let code = failure.code().map_or("no SQLSTATE", |code| code.code());
            tracing::debug!(role = role.name, "a statement was refused (SQLSTATE {code})");
        }
    }
    let mut refused = Vec::new();
    for (name, values) in &settings {
        if set((name, values)).run(&admin.client).await.is_err() {
            refused.push((role.name.clone(), name.clone()));
        }
    }
    refused
}

/// A role's settings; of one that is there twice, the last holds.
pub(super) fn settings(role: &Role) -> Settings {
    role.settings.iter().map(|(name, values)| (name.to_lowercase(), values.clone())).collect()
}

async fn compare_roles(
    admin: &Session,
    roles: &[&Role],
    refused: &[(String, String)],
    found: &mut Found,
) -> Result<()> {
    let made = made(admin).await?;
    let refused: BTreeSet<(&str, &str)> = refused.iter().map(|(r, n)| (r.as_str(), n.as_str())).collect();
    let mut times = BTreeMap::new();
    for role in roles {
        let Some(made) = made.get(&role.name) else {
            found.differences.push(format!("role {:?} is missing", role.name));
            continue;
        };
        let wanted = &role.attributes;
        let flags: BTreeSet<&str> = Flag::ALL
            .into_iter()
            .filter(|(flag, ..)| wanted.flags.contains(flag))
            .map(|(_, yes, _)| yes)
            .collect();
        let until = match &wanted.valid_until {
            None => None,
            Some(text) if times.contains_key(text) => times.get(text).cloned().flatten(),
            Some(text) => {
                // A time that the server does not read is none that a role could have.
                let read = admin.client.query_one("SELECT $1::text::timestamptz::text", &[text]).await;
                let read = Some(read.map_or_else(|_| "unreadable".to_owned(), |row| row.get(0)));
                times.insert(text.clone(), read.clone());
                read
            }
        };
        let pairs = [
            ("other attributes", flags == made.flags),
            ("another connection limit", wanted.connection_limit == made.connection_limit),
            ("a password that ends at another time", until == made.valid_until),
            ("another comment", role.comment == made.comment),
        ];
        let other = pairs.into_iter().filter(|(_, is_same)| !is_same);
        found.differences.extend(other.map(|(what, _)| format!("role {:?} has {what}", role.name)));
        for (name, values) in settings(role) {
            let is_refused = refused.contains(&(role.name.as_str(), name.as_str()));
            if !is_refused && !made.settings.get(&name).is_some_and(|made| is_same(made, &values)) {
                found.differences.push(format!("role {:?} has another value of {name:?}", role.name));
            }
        }
    }
    Ok(())
}

/// Whether two are the same value; an empty list is written as one name that is empty.
pub(super) fn is_same(one: &[String], other: &[String]) -> bool {
    let names =
        |values: &[String]| values.iter().filter(|name| !name.is_empty()).cloned().collect::<Vec<_>>();
    names(one) == names(other)
}

/// Roles of the server, by name.
pub(super) async fn made(admin: &Session) -> Result<BTreeMap<String, Made>> {
    let rows = admin
        .client
        .query(
            "SELECT rolname, rolsuper, NOT rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls,
                    nullif(rolconnlimit, -1), rolvaliduntil::text, shobj_description(oid, 'pg_authid'),
                    ARRAY(SELECT unnest(setconfig) FROM pg_db_role_setting WHERE setrole = r.oid AND setdatabase = 0)
               FROM pg_roles r",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list roles")?;
    let mut made = BTreeMap::new();
    for row in rows {
        let flags =
            Flag::ALL.into_iter().enumerate().filter(|(i, _)| row.get(i + 1)).map(|(_, (_, yes, _))| yes);
        let settings: Vec<Name> = row.get(11);
        let settings = settings.iter().filter_map(|Name(setting)| properties::values(setting));
        let role = Made {
            flags: flags.collect(),
            connection_limit: row.get(8),
            valid_until: row.get(9),
            comment: row.get::<_, Option<Name>>(10).map(|name| name.0),
            settings: settings.map(|(name, values)| (name.to_lowercase(), values)).collect(),
        };
        made.insert(row.get::<_, Name>(0).0, role);
    }
    Ok(made)
}

async fn compare_memberships(admin: &Session, globals: &Globals, found: &mut Found) -> Result<()> {
    let major = admin.major();
    let rows = admin
        .client
        .query(
            "SELECT r.rolname::text, m.rolname::text, a.admin_option, (to_jsonb(a) ->> 'inherit_option')::boolean,
                    (to_jsonb(a) ->> 'set_option')::boolean, g.rolname::text
               FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
               LEFT JOIN pg_roles g ON g.oid = a.grantor",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list memberships")?;
    let mut made: BTreeMap<(String, String), Vec<Membership>> = BTreeMap::new();
    for row in rows {
        let (role, member): (String, String) = (row.get(0), row.get(1));
        made.entry((role.clone(), member.clone())).or_default().push(Membership {
            role,
            member,
            admin: row.get(2),
            inherit: row.get(3),
            set: row.get(4),
            granted_by: row.get(5),
        });
    }
    let predefined = |role: &str| role.starts_with("pg_");
    let existing = super::existing_roles(admin).await?;
    let (mut compared, mut absent) = (0, BTreeSet::new());
    for grant in roles::grants(globals.memberships.iter(), &BTreeSet::new(), major) {
        let Membership { role, member, .. } = grant.membership;
        if predefined(role) && !existing.contains(role) {
            absent.insert(role.clone());
            continue;
        }
        compared += 1;
        let all = made.get(&(role.clone(), member.clone()));
        match all {
            None => found.differences.push(format!("membership of {member:?} in {role:?} is missing")),
            Some(all) if all.iter().any(|made| is_as(&grant, made)) => {}
            Some(_) => found
                .differences
                .push(format!("membership of {member:?} in {role:?} has other options, or another grantor")),
        }
    }
    let absent: Vec<String> = absent.into_iter().collect();
    found.scope.extend(Scope::covered(What::Memberships, None, compared));
    found.scope.extend(Scope::uncovered(What::Memberships, None, absent.len() as u64, named(&absent)));
    Ok(())
}

/// Whether a membership is the one that was to be granted. A set of before PostgreSQL 16 knows no options but one.
fn is_as(grant: &Grant<'_>, made: &Membership) -> bool {
    let wanted = grant.membership;
    let options = match (wanted.inherit, made.inherit) {
        (Some(inherit), Some(found)) => inherit == found && made.set == Some(wanted.set.unwrap_or(true)),
        _ => true,
    };
    options && wanted.admin == made.admin && grant.by.is_none_or(|by| made.granted_by.as_deref() == Some(by))
}
