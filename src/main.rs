//! Thin: parse, tracing, runtime, exit code.

use std::process::ExitCode;
use std::time::Duration;

use opsd::cli::{self, Cli, output};
use opsd::config;
use opsd::error::{Context, Error, Kind, Result};
use opsd::process;
use opsd::shutdown::Shutdown;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// A child has five seconds to end politely, a request to the store retries for some.
const SETTLE_BOUND: Duration = Duration::from_secs(8);
const SETTLE_POLL: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return ExitCode::from(code),
    };
    match start(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::error(&error);
            ExitCode::from(exit_code(error.kind()))
        }
    }
}

fn start(cli: Cli) -> Result<u8> {
    tracing_to_stderr(&cli)?;
    if let Some(done) = cli::run_alone(&cli) {
        return done;
    }
    if cli.holds_secrets() {
        process::keep_memory_private().context("cannot keep memory out of core dumps")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::listen(exit_now)?;
        let result = cli::run(cli, &shutdown).await;
        if result.is_err() {
            settle().await;
        }
        result
    });
    // Work has ended by itself; a blocking thread that has not must not keep the process.
    runtime.shutdown_background();
    result
}

/// Waits, within a bound, for what work that was given up does in the background when it is dropped:
/// unfinished uploads are aborted in the store, children are ended politely. The tasks of idle
/// connections end with their clients, so that in the end the one that listens for signals is left.
async fn settle() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let settled = async {
        while metrics.num_alive_tasks() > 1 {
            tokio::time::sleep(SETTLE_POLL).await;
        }
    };
    if tokio::time::timeout(SETTLE_BOUND, settled).await.is_err() {
        tracing::debug!("{} tasks did not end", metrics.num_alive_tasks());
    }
}

#[expect(clippy::disallowed_methods, reason = "the second signal ends the process at once")]
fn exit_now(kind: Kind) {
    std::process::exit(i32::from(exit_code(kind)));
}

fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Failed => 1,
        Kind::Usage => 2,
        Kind::Differs | Kind::Refused => 3,
        Kind::LockHeld => 5,
        Kind::InDoubt => 6,
        Kind::Interrupted => 130,
        Kind::Terminated => 143,
    }
}

/// `OPSD_LOG` takes tracing's filter syntax (`opsd=debug`). Without it warnings show on a terminal
/// only: under cron a run that succeeds is silent, and its warnings are in its result. A service has no
/// other place for them.
fn tracing_to_stderr(cli: &Cli) -> Result<()> {
    let global = &cli.global;
    let terminal = output::is_terminal();
    let filter = match config::environment("OPSD_LOG") {
        Some(filter) => EnvFilter::try_new(filter)
            .map_err(|e| Error::usage(e).context("OPSD_LOG").with_hint("write it like info or opsd=debug"))?,
        None => EnvFilter::new(match (global.quiet, global.verbose) {
            (true, _) => "error",
            (false, 0) if terminal || cli.is_service() => "warn",
            (false, 0) => "error",
            (false, 1) => "warn,opsd=info",
            (false, 2) => "warn,opsd=debug",
            (false, _) => "debug,opsd=trace",
        }),
    };
    let builder = tracing_subscriber::fmt()
        .compact()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer({
            let screen = global.screen.clone();
            move || output::Log(screen.clone())
        })
        // Colours are escape sequences, which nobody could tell from those in a server's message.
        .with_ansi(false);
    if terminal {
        builder.without_time().init()
    } else {
        builder.with_timer(SystemTime).init()
    }
    Ok(())
}
