//! `opsd backups list`.

use std::fmt::Write;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde::Serialize;

use super::{Summary, age, ago, entries, short_count};
use crate::cli::config::exact_duration;
use crate::cli::output::{self, wrapped};
use crate::config::Config;
use crate::error::Result;
use crate::printable;
use crate::set::catalog;
use crate::store::Store;

/// Arguments of `opsd backups list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these jobs [default: every job, also those that only the repository has]
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    site: String,
    /// Configured jobs that promise how old their newest set may be.
    jobs: Vec<Freshness>,
    sets: Vec<Summary>,
}

/// Whether a job keeps what its `rpo` promises.
#[derive(Debug, Serialize)]
struct Freshness {
    job: String,
    rpo_seconds: u64,
    /// When its newest set was started that may be relied on.
    newest: Option<DateTime<Utc>>,
    /// There is no such set, or it is older than that.
    overdue: bool,
}

impl Freshness {
    fn new(job: &str, rpo: Duration, sets: &[Summary], now: DateTime<Utc>) -> Self {
        let newest = sets.iter().filter(|s| s.reliance == "sound").map(|s| s.started).max();
        let overdue = newest.is_none_or(|time| (now - time).to_std().is_ok_and(|age| age > rpo));
        Self { job: job.to_owned(), rpo_seconds: rpo.as_secs(), newest, overdue }
    }

    fn warning(&self, now: DateTime<Utc>) -> Option<String> {
        let rpo = exact_duration(self.rpo_seconds);
        match self.newest {
            _ if !self.overdue => None,
            None => Some(format!("its rpo is {rpo}, and it has no set that may be relied on")),
            Some(newest) => Some(format!(
                "its newest set that may be relied on is {} old; its rpo is {rpo}",
                age(newest, now)
            )),
        }
    }
}

/// Lists sets by job, oldest first: the newest is where the eye is, above the prompt.
pub async fn run(args: &Args, config: &Config, store: &dyn Store, now: DateTime<Utc>) -> Result<()> {
    let mut document = Document { site: config.site.clone(), jobs: Vec::new(), sets: Vec::new() };
    let mut text = String::new();
    for (job, entries) in entries(config, store, &args.jobs).await? {
        let loaded = catalog::load_each(store, &config.encryption.trusted, entries);
        let mut sets: Vec<Summary> = loaded.map(|(e, l)| Summary::new(&e, &l, now)).collect().await;
        sets.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
        if !text.is_empty() {
            text.push('\n');
        }
        table(&mut text, &job, &sets, now, output::columns());
        if let Some(rpo) = config.backup.get(&job).and_then(|j| j.rpo) {
            let freshness = Freshness::new(&job, rpo, &sets, now);
            if let Some(warning) = freshness.warning(now) {
                text.push_str(&wrapped("  ! ", &warning));
            }
            document.jobs.push(freshness);
        }
        document.sets.extend(sets);
    }
    if args.json {
        return output::json(&document);
    }
    output::text(if text.is_empty() {
        "no job is configured, and the repository holds no set"
    } else {
        &text
    })
}

/// The table of one job, and under it what needs more words.
fn table(out: &mut String, job: &str, sets: &[Summary], now: DateTime<Utc>, columns: Option<usize>) {
    if sets.is_empty() {
        out.push_str(&wrapped(&format!("job {}: ", printable::line(job)), "no sets yet"));
        return;
    }
    out.push_str(&wrapped(&format!("job {}: ", printable::line(job)), &counted(sets)));
    // At 80 columns the names have 12 of them; elsewhere what there is room for.
    let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(output::WIDTH) + NAMES);
    let names: Vec<String> = sets.iter().map(|set| databases(set, room)).collect();
    let width = names.iter().map(|name| name.chars().count()).fold(NAMES, usize::max);
    row(out, width, ["ID", "AGE", "DATABASES", "ROWS", "SIZE", "STATE"]);
    for (set, names) in sets.iter().zip(&names) {
        row(
            out,
            width,
            [
                &set.id,
                &age(set.started, now),
                names,
                &set.rows.map_or("-".to_owned(), short_count),
                &output::size(set.occupied_bytes),
                &state(set, now),
            ],
        );
    }
    for set in sets {
        if let Some(error) = &set.error {
            out.push_str(&wrapped("  ! ", &format!("{} is refused: {error}", set.id)));
        }
        if let ("differs" | "lacking" | "partial" | "unknown", Some(doubt)) = (set.reliance, &set.doubt) {
            out.push_str(&wrapped("  ! ", &format!("{} may not be relied on: {doubt}", set.id)));
        }
    }
    // Only the newest of them tells whether rehearsals work now.
    let failed = sets.iter().filter_map(|set| Some((set, set.failed_rehearsal.as_ref()?)));
    if let Some((set, failed)) = failed.max_by_key(|(_, failed)| failed.time)
        && sets.iter().filter_map(|set| set.verified.as_ref()).all(|verified| verified.time <= failed.time)
    {
        let reason = failed.reason.as_deref().unwrap_or("nobody knows why");
        let text = format!("the rehearsal of {} {} failed: {reason}", set.id, ago(failed.time, now));
        out.push_str(&wrapped("  ! ", &text));
    }
    let is_ahead = |s: &&Summary| catalog::is_from_future(s.started, now);
    let ahead: Vec<String> = sets.iter().filter(is_ahead).map(|s| s.id.clone()).collect();
    if let Some(warning) = catalog::ahead_warning(&ahead) {
        out.push_str(&wrapped("  ! ", &warning));
    }
    // Warnings of old sets are old news.
    if let Some(newest) = sets.iter().rev().find(|s| s.state == "complete" && !is_ahead(s)) {
        for warning in &newest.warnings {
            out.push_str(&wrapped("  ! ", &format!("{}: {warning}", newest.id)));
        }
    }
}

fn row(out: &mut String, width: usize, [id, age, databases, rows, stored, state]: [&str; 6]) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{id:<21}  {age:>4}  {databases:<width$}  {rows:>6}  {stored:>10}  {state}");
}

fn counted(sets: &[Summary]) -> String {
    let mut parts = vec![output::counted(sets.len() as u64, "set")];
    for state in ["incomplete", "failed", "refused"] {
        match sets.iter().filter(|s| s.state == state).count() {
            0 => {}
            n => parts.push(format!("{n} {state}")),
        }
    }
    parts.join(", ")
}

/// What a tired person wants to know of a set first.
fn state(set: &Summary, now: DateTime<Utc>) -> String {
    match &set.verified {
        _ if set.state != "complete" => set.state.to_owned(),
        _ if set.reliance == "lacking" => "objects lacking".to_owned(),
        _ if set.reliance == "partial" => "a database lacking".to_owned(),
        None => "not verified".to_owned(),
        Some(v) => match v.verdict {
            "failed" => format!("tried {}", ago(v.time, now)),
            verdict => format!("{verdict} {}", ago(v.time, now)),
        },
    }
}

/// Columns for the names of a set's databases on a terminal of the usual size.
const NAMES: usize = 12;

/// Names as far as they fit in so many columns, then how many more.
fn databases(set: &Summary, columns: usize) -> String {
    let names: Vec<String> = set.databases.iter().map(|d| printable::line(&d.name).into_owned()).collect();
    for shown in (1..=names.len()).rev() {
        let more = names.len() - shown;
        let more = if more == 0 { String::new() } else { format!(" +{more}") };
        let text = names[..shown].join(",") + &more;
        if text.chars().count() <= columns {
            return text;
        }
    }
    match &names[..] {
        [] => "-".to_owned(),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" +{}", rest.len()) };
            let room = columns.saturating_sub(more.chars().count() + 1);
            first.chars().take(room).collect::<String>() + "…" + &more
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SummaryDatabase, SummaryVerified};
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn summary(names: &[&str]) -> Summary {
        let database = |name: &&str| SummaryDatabase { name: (*name).into(), tables: 3, rows: 9, bytes: 99 };
        Summary {
            job: "db".into(),
            id: "20261121T030000Z-7f3a".into(),
            state: "complete",
            error: None,
            reliance: "sound",
            doubt: None,
            started: "2026-11-21T03:00:00Z".parse().unwrap(),
            finished: None,
            databases: names.iter().map(database).collect(),
            tables: Some(3),
            rows: Some(1_234_567_890),
            plain_bytes: Some(1),
            stored_bytes: Some(999 << 20),
            occupied_bytes: 1000 << 20,
            proof: Some(crate::set::manifest::ProofState::Complete),
            verified: Some(SummaryVerified {
                verdict: "unproven",
                time: "2024-11-21T03:00:00Z".parse().unwrap(),
                seconds: 1.0,
            }),
            failed_rehearsal: None,
            signature: Some("trusted"),
            warnings: vec!["pg_dump: warning: ".repeat(12)],
        }
    }

    #[test]
    fn the_widest_row_fits_80_columns() {
        let mut refused = summary(&[]);
        (refused.state, refused.rows) = ("refused", None);
        refused.error = Some("manifest.json is not signed ".repeat(7));
        let mut out = String::new();
        table(&mut out, "db", &[summary(&["a-very-long-database-name", "b"]), refused], now(), Some(80));
        for line in out.lines() {
            assert!(line.chars().count() <= 80, "{}: {line}", line.chars().count());
        }
        assert!(out.starts_with("job db: 2 sets, 1 refused\n"), "{out}");
        assert!(out.contains("1000.0 MiB  unproven 730d ago\n"), "{out}");
    }

    /// A configured promise that nobody compares with what is there is none.
    #[test]
    fn a_job_whose_newest_set_is_older_than_its_rpo_is_marked() {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let says = |sets: &[Summary], rpo| Freshness::new("db", rpo, sets, now()).warning(now());
        // Nine hours old.
        assert_eq!(says(&[summary(&[])], hours(10)), None);
        assert_eq!(
            says(&[summary(&[])], hours(8)).as_deref(),
            Some("its newest set that may be relied on is 9h old; its rpo is 8h")
        );
        assert_eq!(
            says(&[], hours(8)).as_deref(),
            Some("its rpo is 8h, and it has no set that may be relied on")
        );
        // A run that failed and a clock that was ahead make no backup young.
        // A set of which an object is gone, or that differs, is not counted either.
        for reliance in ["failed", "ahead", "partial", "lacking", "differs", "unknown"] {
            let mut other = summary(&[]);
            (other.reliance, other.started) = (reliance, now());
            assert!(says(&[summary(&[]), other], hours(8)).is_some(), "{reliance}");
        }
    }

    #[test]
    fn database_names_are_cut_and_counted() {
        assert_eq!(databases(&summary(&[]), 12), "-");
        assert_eq!(databases(&summary(&["app"]), 12), "app");
        assert_eq!(databases(&summary(&["app", "shop"]), 12), "app,shop");
        assert_eq!(databases(&summary(&["app", "shop", "warehouse", "x"]), 12), "app,shop +2");
        assert_eq!(databases(&summary(&["a-very-long-name"]), 12), "a-very-long…");
        assert_eq!(databases(&summary(&["a-very-long-name", "b"]), 12), "a-very-l… +1");
        assert_eq!(databases(&summary(&["\u{1b}[2J"]), 12), "\\u{1b}[2J");
        assert_eq!(databases(&summary(&["a-very-long-name", "b"]), usize::MAX), "a-very-long-name,b");
    }
}
