//! `opsd repository`: what the store of the backups can do, and what opsd does without the rest.

use super::output;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::shutdown::Shutdown;
use crate::store::probe::{self, Name, Report, State};

/// Arguments of `opsd repository`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Find out what the store can do, by trying, and remember it there
    Probe(ProbeArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Small objects are written under a random prefix and removed again.")]
struct ProbeArgs {
    /// Print the report as one JSON document
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: Args, config: &Config, shutdown: &Shutdown) -> Result<()> {
    let Command::Probe(args) = args.command;
    let report = shutdown.guard(probe::probe(&config.repository)).await?;
    if args.json {
        output::json(&report)?;
    } else {
        output::text(render(&report))?;
    }
    match unusable(&report) {
        Some(why) => Err(Error::new(why).context(format!("{} cannot be used", report.repository))),
        None => Ok(()),
    }
}

/// Why nothing at all can be done with a repository. A credential that may only write, or only
/// read, is not a reason: there are hosts that do no more.
fn unusable(report: &Report) -> Option<&'static str> {
    let is = |name| report.state(name);
    if is(Name::Write) != State::Yes && is(Name::List) != State::Yes {
        Some("it can neither be written to nor listed")
    } else if is(Name::Read) == State::No {
        Some("what is written does not come back")
    } else if is(Name::RangedRead) == State::No {
        Some("parts of an object cannot be read, so nothing could be restored")
    } else {
        None
    }
}

/// What the credential at hand is good for.
fn verdict(report: &Report) -> &'static str {
    let can_write = report.state(Name::Write) == State::Yes;
    // A credential that may not write finds nothing to read back; listing is what it shows.
    let can_read = report.state(if can_write { Name::Read } else { Name::List }) == State::Yes;
    match (can_write, can_read) {
        _ if unusable(report).is_some() => "opsd cannot work with this store",
        (true, true) => "opsd can back up to this store and restore from it",
        (true, false) => "with this credential opsd can back up, but not restore",
        (false, _) => "with this credential opsd can restore, but not back up",
    }
}

fn render(report: &Report) -> String {
    let mut out = output::wrapped("", &report.repository);
    out.push_str(&format!("  {}\n\n", verdict(report)));
    for [name, state, detail] in report.rows() {
        out.push_str(output::wrapped(&format!("  {name:<22}{state:<9}"), detail).trim_end());
        out.push('\n');
    }
    if !report.warnings.is_empty() {
        out.push_str("\nWhat opsd does about what is missing:\n");
    }
    for warning in &report.warnings {
        out.push_str(&output::wrapped("  ! ", warning));
    }
    if report.state(Name::Write) == State::Yes {
        let remembered = format!("Remembered in the repository as {}.", probe::REPORT_KEY);
        out.push_str(&format!("\n{remembered}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::probe::Capability;
    use crate::store::s3::Checksums;

    fn report(states: &[(Name, State)]) -> Report {
        let capability = |(name, state): &(Name, State)| Capability {
            name: *name,
            state: *state,
            detail: "the service said something long about it ".repeat(4),
        };
        Report {
            format: 1,
            probed: "2026-11-21T03:00:00Z".parse().unwrap(),
            opsd_version: "0.1.0".into(),
            repository: "s3://bucket/a-prefix".into(),
            checksums: Checksums::None,
            capabilities: states.iter().map(capability).collect(),
            warnings: vec!["this credential may not do what would be needed ".repeat(3)],
        }
    }

    #[test]
    fn the_table_fits_80_columns() {
        let text = render(&report(&[(Name::ConditionalComplete, State::Unknown), (Name::Write, State::Yes)]));
        for line in text.lines() {
            assert!(line.chars().count() <= 80 && line == line.trim_end(), "{line:?}");
        }
        assert!(text.contains("  conditional-complete  unknown  the service"), "{text}");
        assert!(text.contains("opsd-probe.json"), "{text}");
    }

    #[test]
    fn only_what_helps_nobody_is_unusable() {
        use Name::*;
        use State::*;
        assert_eq!(unusable(&report(&[(Write, Yes), (Read, Denied), (List, Denied)])), None);
        assert_eq!(unusable(&report(&[(Write, Denied), (List, Yes)])), None);
        for bad in [
            [(Write, Denied), (List, Denied), (Read, Unknown)],
            [(Write, Yes), (List, Yes), (Read, No)],
            [(Write, Yes), (List, Yes), (RangedRead, No)],
        ] {
            assert!(unusable(&report(&bad)).is_some(), "{bad:?}");
        }
    }
}
