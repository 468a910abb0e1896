//! `opsd restore --dry-run`: what a restore would do.

use serde::Serialize;

use super::Args;
use crate::cli::output::{self, entry};
use crate::error::Result;
use crate::restore::to::{Options, Preview};

#[derive(Serialize)]
struct Plan<'a> {
    job: &'a str,
    id: &'a str,
    /// The server and the database, as a URL without a password.
    to: String,
    /// The way to a server in a container.
    way: Option<String>,
    pg_restore: String,
    database: String,
    /// Whether that database would be made, or filled as it is.
    made: bool,
    replaces: Option<Replaces>,
    preflights: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Replaces {
    bytes: Option<u64>,
    objects: u64,
    sessions: u64,
}

/// Prints the plan.
pub fn print(
    args: &Args,
    job: &str,
    id: &str,
    options: &Options,
    way: Option<String>,
    preview: Preview,
) -> Result<()> {
    let Preview { database, is_made, replaced, preflights, warnings } = preview;
    let replaces = replaced.map(|of| Replaces { bytes: of.size, objects: of.objects, sessions: of.sessions });
    let (to, pg_restore) = (options.connection.describe(), options.tools.describe());
    let made = is_made;
    let plan = Plan { job, id, to, way, pg_restore, database, made, replaces, preflights, warnings };
    if args.json {
        return output::json(&plan);
    }
    let how = match (&plan.replaces, plan.made) {
        (Some(_), _) => "made beside the one that is there, and put in its place",
        (None, true) => "made",
        (None, false) => "filled: it holds nothing",
    };
    let mut lines = vec![
        format!("job {job}, set {id}"),
        entry("  to          ", &plan.to),
        entry("  pg_restore  ", &plan.pg_restore),
        entry("  database    ", format!("{:?} would be {how}", plan.database)),
    ];
    if let Some(way) = &plan.way {
        lines.insert(2, entry("  reached as  ", way));
    }
    if let Some(Replaces { bytes, objects, sessions }) = &plan.replaces {
        let size = bytes.map(output::size).unwrap_or_else(|| "of unknown size".into());
        let what = format!("{size}, {objects} tables, views and sequences, {sessions} sessions");
        lines.push(entry("  replaces    ", what));
    }
    lines.extend(plan.preflights.iter().map(|line| entry("  ok: ", line)));
    lines.extend(plan.warnings.iter().map(|line| entry("  warning: ", line)));
    lines.push("  nothing was restored".into());
    output::text(lines.join("\n"))
}
