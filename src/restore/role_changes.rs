//! What becomes of the set's roles on the server that it is restored to, and of settings there that the set has.
//!
//! A role that exists is left alone unless somebody asks for more: it may be another cluster's of the same name. What it
//! lacks is said, with the statement that gives it.

use std::collections::BTreeSet;

use super::databases::{Server, Waited};
use super::role_updates::Update;
use super::roles;
use crate::database::Setting;
use crate::error::Result;
use crate::postgres::connect::{Session, error};
use crate::postgres::properties;
use crate::postgres::sql::Sql;
use crate::set::globals::Globals;

/// Lines that say what existing roles lack, at most.
const MOST_LINES: usize = 20;

/// What may be done to roles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RoleChanges {
    /// Nothing: a role that the database needs and the server lacks is an error.
    #[default]
    Keep,
    /// Those that are missing are made.
    Make,
    /// The same, and those that exist get what the set has and they have not, where that takes nothing from them.
    Update,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Changed {
    /// Roles that were made.
    pub made: Vec<String>,
    /// What was not, and what the operator should know.
    pub warnings: Vec<String>,
}

/// Makes the roles that are `missing` and gives those that exist what they lack, as far as that is wanted.
pub async fn change(
    server: &Server<'_>,
    wanted: RoleChanges,
    globals: &Globals,
    existing: &BTreeSet<String>,
    missing: Vec<String>,
    updates: Vec<Update>,
) -> Result<Changed> {
    let mut changed = Changed::default();
    if wanted == RoleChanges::Keep {
        changed.warnings = lacking(&updates);
        return Ok(changed);
    }
    let admin = server.admin;
    changed.warnings.extend(left_out(globals));
    if !missing.is_empty() {
        let admins = server.shutdown.guard(roles::admins(admin)).await?;
        let (statements, lines) = roles::missing(globals, existing, &admins, admin.major());
        make_roles(server, statements, &missing).await?;
        let of_made: Vec<_> =
            globals.parameters.iter().filter(|grant| missing.contains(&grant.role)).collect();
        let (_, refused) = roles::grant_parameters(admin, &of_made).await;
        let refused = refused.into_iter().map(|what| format!("not granted: privileges on parameter {what}"));
        changed.warnings.extend(refused.chain(lines));
        changed.made = missing;
    }
    if wanted == RoleChanges::Make {
        changed.warnings.extend(lacking(&updates));
        return Ok(changed);
    }
    let (given, named): (Vec<Update>, Vec<Update>) = updates.into_iter().partition(|update| update.is_given);
    changed.warnings.extend(lacking(&named));
    for update in given {
        // The server's own words may repeat a value.
        let run = async { Ok(update.sql.run(&admin.client).await) };
        changed.warnings.push(match server.shutdown.guard(run).await? {
            Ok(_) => format!("given: {}", update.shown),
            Err(failure) => {
                let code = failure.code().map_or("no SQLSTATE", |code| code.code());
                format!("{}, and it could not be given (SQLSTATE {code})", update.lacks)
            }
        });
    }
    Ok(changed)
}

/// What would be done, for a dry run.
pub fn planned(wanted: RoleChanges, missing: &[String], updates: &[Update]) -> Vec<String> {
    let mut lines = Vec::new();
    if wanted != RoleChanges::Keep && !missing.is_empty() {
        lines.push(format!("these roles would be made: {}", missing.join(", ")));
    }
    match wanted {
        RoleChanges::Update => {
            lines.extend(updates.iter().map(|update| format!("would run: {}", update.shown)))
        }
        RoleChanges::Keep | RoleChanges::Make => lines.extend(lacking(updates)),
    }
    lines
}

/// A sentence for each thing that a role lacks, with the statement that gives it.
fn lacking(updates: &[Update]) -> Vec<String> {
    let line = |update: &Update| format!("{}: {}", update.lacks, update.shown);
    let mut lines: Vec<String> = updates.iter().take(MOST_LINES).map(line).collect();
    if let Some(more) = updates.len().checked_sub(MOST_LINES).filter(|more| *more > 0) {
        lines.push(format!("roles lack {more} more things of the set; --globals=update gives them all"));
    }
    lines
}

/// The settings that the set's database had, for one that was there already: gives them to it, or names the statements.
pub async fn of_database(
    admin: &Session,
    wanted: RoleChanges,
    name: &str,
    settings: &[Setting],
) -> Vec<String> {
    if settings.is_empty() {
        return Vec::new();
    }
    if wanted == RoleChanges::Update {
        return properties::apply_settings(&admin.client, name, settings).await;
    }
    let statements: Vec<String> = settings
        .iter()
        .filter_map(|setting| {
            // What is no parameter of PostgreSQL's own may be a secret.
            let is_own = |name: &str| !name.contains('.');
            let known = setting.setting.split('=').next().is_some_and(is_own);
            let masked =
                Setting { setting: format!("{}=…", setting.setting.split('=').next()?), ..setting.clone() };
            properties::statement(name, if known { setting } else { &masked }).map(|sql| sql.to_string())
        })
        .collect();
    vec![format!(
        "database {name:?} was there already and keeps its own settings; the set has others, which \
         --globals=update gives it: {}",
        statements.join("; ")
    )]
}

/// What the set's globals hold beside roles: by its kind, because nobody checked what it says.
fn left_out(globals: &Globals) -> Option<String> {
    let kinds: Vec<String> = globals.left_out.iter().map(|(kind, n)| format!("{kind} ({n})")).collect();
    (!kinds.is_empty()).then(|| {
        format!(
            "only roles are made; the set's globals also hold: {} (`opsd backups cat` shows them)",
            kinds.join(", ")
        )
    })
}

/// Makes the roles that the set knows and the server lacks.
async fn make_roles(server: &Server<'_>, statements: Vec<Sql>, missing: &[String]) -> Result<()> {
    // All or none. A statement may hold a password hash; it is not repeated.
    let script = Sql::new("BEGIN; ").join(statements, "; ").then("; COMMIT");
    let made = async { script.run(&server.admin.client).await.map_err(error) };
    match server.wait("CREATE ROLE", made).await {
        Waited::Ended(Ok(())) => Ok(()),
        // What was begun ends with the session.
        Waited::Ended(Err(failure)) => Err(failure.context("cannot make the set's roles")),
        Waited::Cancelled(why) => Err(why.context("nothing was restored, and no role was made")),
        Waited::Unknown(why) => Err(why.context(format!(
            "nothing was restored, and the server may or may not make these roles: {}",
            missing.join(", ")
        ))),
    }
}
