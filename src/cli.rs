//! The command line: one file a command, its arguments and its `run`.
//!
//! The only module that knows clap. A new command is one file under `cli/`, one variant of
//! [`Command`] and one arm in [`run`].

pub mod alerts;
pub mod backup;
pub mod backups;
pub mod check;
pub mod completions;
pub mod config;
pub mod exporter;
pub mod keep_scratch;
pub mod keygen;
pub mod metrics;
pub mod output;
mod ping;
mod progress;
pub mod repository;
pub mod restore;
pub mod scratch_init;
pub mod status;

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use indicatif::MultiProgress;

use crate::config::Config;
use crate::config::finding::Warning;
use crate::error::{Error, Kind, Result};
use crate::printable;
use crate::shutdown::Shutdown;

/// PostgreSQL backups that prove themselves by restoring.
///
/// opsd streams pg_dump, compressed and encrypted, to S3 or a directory, and
/// rehearses restores until every row has come back.
#[derive(Debug, Parser)]
#[command(
    name = "opsd",
    version,
    max_term_width = 80,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Start here:\n  opsd keygen -o identity.txt\n  opsd config init opsd.toml\n\n\
                  Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 a verification\n\
                  found a difference, 5 another run holds the lock. `opsd check` has its own."
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Whether it may come to hold keys and passwords. The others need processes like any.
    pub fn holds_secrets(&self) -> bool {
        match self.command {
            Command::Backup(_)
            | Command::Config(_)
            | Command::Backups(_)
            | Command::Keygen(_)
            | Command::Restore(_)
            | Command::Repository(_)
            | Command::Exporter(_)
            | Command::Check(_)
            | Command::Status(_) => true,
            Command::Alerts(_)
            | Command::Metrics(_)
            | Command::Completions(_)
            | Command::KeepScratch
            | Command::ScratchInit => false,
        }
    }

    /// Whether it runs until it is stopped, so that its log is all that it says.
    pub fn is_service(&self) -> bool {
        matches!(self.command, Command::Exporter(_))
    }
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Configuration file [default: $OPSD_CONFIG, /etc/opsd/opsd.toml, ./opsd.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Say more on stderr; twice for details
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub quiet: bool,
    /// Where bars are drawn, and lines of the log between them.
    #[arg(skip)]
    pub screen: MultiProgress,
}

impl Global {
    /// Whether somebody wants to hear how it went, and not only that it went wrong.
    pub fn is_watched(&self) -> bool {
        !self.quiet && (output::is_terminal() || self.verbose > 0)
    }

    /// Reads the configuration and does the work with it. `opsd config check` says all warnings, to
    /// everybody; a backup and an exporter say what is advice, too.
    async fn with_config<T>(
        &self,
        advice: Advice,
        shutdown: &Shutdown,
        work: impl AsyncFnOnce(Config) -> Result<T>,
    ) -> Result<T> {
        let (config, mut warnings, said) = self.load_config(shutdown).await?;
        if advice == Advice::Said {
            warnings.extend(said);
        }
        // Boxed, because a command's future is large, and deep for the compiler.
        let work: Pin<Box<dyn Future<Output = Result<T>>>> = Box::pin(work(config));
        self.with_warnings(warnings, work).await
    }

    /// The configuration, what is odd about it, and what is advice.
    async fn load_config(&self, shutdown: &Shutdown) -> Result<(Config, Vec<String>, Vec<String>)> {
        let (config, warnings) = self.read_config(shutdown, crate::config::load).await?;
        let (advice, warnings): (Vec<_>, Vec<_>) = warnings.iter().partition(|warning| warning.is_advice);
        let texts = |all: Vec<&Warning>| all.into_iter().map(ToString::to_string).collect();
        Ok((config, texts(warnings), texts(advice)))
    }

    /// Reads the configuration in a thread of its own. It may be a pipe that nobody ever feeds, and then a signal
    /// ends the wait, not the thread.
    async fn read_config<T: Send + 'static>(
        &self,
        shutdown: &Shutdown,
        read: impl FnOnce(Option<&Path>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.config.clone();
        let reading = tokio::task::spawn_blocking(move || read(path.as_deref()));
        shutdown.guard(async { reading.await.map_err(Error::new)? }).await
    }

    /// Does work about which there are warnings. Whoever watches hears them at once. Nobody else does,
    /// unless it fails: then they may be why.
    async fn with_warnings<T>(
        &self,
        warnings: Vec<String>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let say = || warnings.iter().for_each(|warning| output::note("warning: ", warning));
        if self.is_watched() {
            say();
            return work.await;
        }
        let result = work.await;
        if result.is_err() {
            say();
        }
        result
    }
}

/// Whether a command is the place for advice about the configuration, as that one key is easily lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Advice {
    Said,
    LeftOut,
}

/// What opsd can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Dump databases, compressed and encrypted, to the repository
    Backup(backup::Args),
    /// Write, check or show the configuration
    Config(config::Args),
    /// List, show, read, check and prune the sets in the repository
    Backups(backups::Args),
    /// Make an age identity or a signing key
    Keygen(keygen::Args),
    /// Restore a set, or rehearse it and prove every row
    Restore(restore::Args),
    /// Find out what the repository's store can do
    Repository(repository::Args),
    /// Watch everything and serve the figures to Prometheus
    Exporter(exporter::Args),
    /// Collect once and judge, with the exit codes of monitoring plugins
    Check(check::Args),
    /// Show each target, its verdict and the figure that matters
    Status(status::Args),
    /// Find alerting rules that can never fire
    Alerts(alerts::Args),
    /// List every metric that is exported
    Metrics(metrics::Args),
    /// Print completions for a shell
    Completions(completions::Args),
    /// Run, watch and remove a rehearsal's scratch server
    #[command(hide = true)]
    KeepScratch,
    /// Be the first process inside a scratch server's sandbox
    #[command(hide = true)]
    ScratchInit,
}

/// Reads the command line. Help and mistakes are printed here; the number is the exit code then.
pub fn parse() -> Result<Cli, u8> {
    Cli::try_parse().map_err(|help_or_usage| {
        if help_or_usage.use_stderr() {
            output::usage(&without_urls(help_or_usage.render().to_string(), std::env::args_os()));
        } else {
            // Nobody is left to tell if the terminal is gone.
            let _ = help_or_usage.print();
        }
        match help_or_usage.use_stderr() {
            true if is_check() => check::USAGE,
            true => 2,
            false => 0,
        }
    })
}

/// A message about a command line, in which no word stands that could be a URL with a password.
fn without_urls(mut message: String, words: impl Iterator<Item = OsString>) -> String {
    for word in words.skip(1) {
        let word = word.to_string_lossy();
        let (before, after) = word.split_once('=').unwrap_or((&word, ""));
        for piece in [&*word, before, after] {
            let shown = printable::word(piece);
            if matches!(shown, Cow::Borrowed(_)) {
                message = message.replace(piece, &shown);
            }
        }
    }
    message
}

/// Whether a command line with mistakes was for `opsd check`, whose exit codes are other programs'.
fn is_check() -> bool {
    let matches = Cli::command().ignore_errors(true).try_get_matches();
    matches.is_ok_and(|matches| matches.subcommand_name() == Some("check"))
}

/// Runs a command that needs a process with one thread, and so no runtime; `None` where it is another one.
pub fn run_alone(cli: &Cli) -> Option<Result<u8>> {
    match cli.command {
        Command::KeepScratch => Some(keep_scratch::run()),
        Command::ScratchInit => Some(scratch_init::run()),
        _ => None,
    }
}

/// Runs the command; the number is the exit code of one that was done.
pub async fn run(cli: Cli, shutdown: &Shutdown) -> Result<u8> {
    let global = &cli.global;
    // Each command's future is boxed: one within the other, they are deeper than the compiler goes.
    let done = match cli.command {
        Command::Check(args) => return check::run(args, global, shutdown).await,
        Command::Alerts(args) => return alerts::run(args, global, shutdown).await,
        Command::Backup(args) => {
            let (config, warnings, advice) = global.load_config(shutdown).await?;
            let work = Box::pin(backup::run(args, &config, &advice, global, shutdown));
            global.with_warnings(warnings, work).await
        }
        Command::Config(args) => config::run(args, global, shutdown).await,
        Command::Backups(args) => {
            let work = async |config| Box::pin(backups::run(args, &config, global, shutdown)).await;
            global.with_config(Advice::LeftOut, shutdown, work).await
        }
        Command::Keygen(args) => keygen::run(args, global),
        Command::Restore(args) => {
            let work = async |config| Box::pin(restore::run(args, &config, global, shutdown)).await;
            global.with_config(Advice::LeftOut, shutdown, work).await
        }
        Command::Repository(args) => {
            let work = async |config| Box::pin(repository::run(args, &config, shutdown)).await;
            global.with_config(Advice::Said, shutdown, work).await
        }
        Command::Completions(args) => completions::run(&args),
        Command::KeepScratch | Command::ScratchInit => {
            return Err(Error::usage("needs a process of its own"));
        }
        Command::Exporter(args) => exporter::run(args, global, shutdown).await,
        Command::Status(args) => {
            let work = async |config| Box::pin(status::run(args, &config, shutdown)).await;
            global.with_config(Advice::LeftOut, shutdown, work).await
        }
        Command::Metrics(args) => metrics::run(&args),
    };
    done.map(|()| 0)
}

/// What several jobs end with: all failures but the last are reported here, the last by `main`, and
/// the gravest kind decides the exit code.
fn worst(failures: Vec<(&str, Error)>, what: &str) -> Result<()> {
    let gravity = |kind: Kind| match kind {
        Kind::LockHeld => 0,
        Kind::Failed => 1,
        Kind::Usage => 2,
        Kind::InDoubt => 3,
        Kind::Refused => 4,
        Kind::Differs => 5,
        Kind::Interrupted | Kind::Terminated => 6,
    };
    let Some(kind) = failures.iter().map(|(_, e)| e.kind()).max_by_key(|k| gravity(*k)) else {
        return Ok(());
    };
    let mut failures = failures.into_iter().map(|(job, error)| error.context(format!("{what} of job {job}")));
    let last = failures.next_back();
    failures.for_each(|error| output::error(&error));
    last.map_or(Ok(()), |error| Err(error.with_kind(kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_is_readable_at_80_columns() {
        fn check(command: &mut clap::Command) {
            for text in [command.render_help().to_string(), command.render_long_help().to_string()] {
                for line in text.lines() {
                    assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
                }
            }
            for sub in command.get_subcommands_mut() {
                check(sub);
            }
        }
        let mut command = Cli::command();
        command.build();
        check(&mut command);
    }
}
