//! What a restore has to know of the server that it goes to, before it asks for anything there.
//!
//! A standby takes nothing. An older server may not know what is in the set. And event triggers of the databases that
//! a restore connects to are off, as they are on a scratch server: one on logins would refuse the restore's own
//! sessions or leave rows of theirs, and a guard against changes would refuse what follows it. A replica's sessions are
//! enough for most of them; those that always fire have a setting of their own from 17 on. Before that they fire in a
//! rehearsal and in a restore alike.

use super::to::{Options, connect_admin};
use crate::error::{Error, Result};
use crate::postgres::connect::error;
use crate::set::manifest::Manifest;

/// What turns event triggers off, and the first major that has it.
const NO_EVENT_TRIGGERS: (u32, &str) = (17, "-c event_triggers=off");

/// The same options with a connection for whose sessions no event trigger fires, where our role may have that; and
/// what the operator should know.
pub async fn look(options: &Options, manifest: &Manifest) -> Result<(Options, Vec<String>)> {
    let mut options = options.clone();
    let admin = connect_admin(&options.connection).await?;
    let row = admin
        .client
        .query_one("SELECT rolsuper, pg_is_in_recovery() FROM pg_roles WHERE rolname = session_user", &[])
        .await
        .map_err(error)?;
    let (is_superuser, is_standby): (bool, bool) = (row.get(0), row.get(1));
    if is_standby {
        return Err(Error::new(format!("{} is a standby, and read-only", options.connection.describe()))
            .with_hint("restore into its primary, or into a server of its own"));
    }
    let (since, setting) = NO_EVENT_TRIGGERS;
    if is_superuser && admin.major() >= since {
        let own = options.connection.options.take();
        let all: Vec<&str> = own.as_deref().into_iter().chain([setting]).collect();
        options.connection.options = Some(all.join(" "));
    }
    let of_set = manifest.server.version_num / 10_000;
    let newer = (of_set > admin.major()).then(|| {
        format!(
            "the set is of PostgreSQL {of_set}, and the server is {}: what the older one does not know is not restored",
            admin.major()
        )
    });
    admin.close().await;
    Ok((options, newer.into_iter().collect()))
}
