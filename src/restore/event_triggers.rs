//! Event triggers of the databases that a restore connects to: off, as they are on a scratch server.
//!
//! One on logins would refuse the restore's own sessions or leave rows of theirs, and a guard against changes would
//! refuse what follows it. A replica's sessions are enough for most of them; those that always fire have a setting of
//! their own from 17 on. Before that they fire in a rehearsal and in a restore alike.

use super::to::{Options, connect_admin};
use crate::error::Result;
use crate::postgres::connect::error;

/// The setting, and the first major that has it.
const OFF: (u32, &str) = (17, "-c event_triggers=off");

/// The same options, with a connection for whose sessions no event trigger fires, where our role may have that.
pub async fn off(options: &Options) -> Result<Options> {
    let mut options = options.clone();
    let admin = connect_admin(&options.connection).await?;
    let is_superuser = "SELECT rolsuper FROM pg_roles WHERE rolname = session_user";
    let (since, setting) = OFF;
    if admin.major() >= since
        && admin.client.query_one(is_superuser, &[]).await.map_err(error)?.get::<_, bool>(0)
    {
        let own = options.connection.options.take();
        let all: Vec<&str> = own.as_deref().into_iter().chain([setting]).collect();
        options.connection.options = Some(all.join(" "));
    }
    admin.close().await;
    Ok(options)
}
