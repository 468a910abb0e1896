//! Progress bars on a terminal; silence elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Global, output};
use crate::progress::{Event, Progress, silent};

/// How often a bar that does not move shows that the work goes on.
const TICK: Duration = Duration::from_millis(200);

/// Bars for whoever watches: a line for the phase and one a stream, gone when the work is done.
pub fn bars(global: &Global) -> Progress {
    if global.quiet || !output::is_terminal() {
        return silent();
    }
    let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let phase = all.add(ProgressBar::new_spinner());
    phase.set_style(style("{spinner} {msg}"));
    phase.enable_steady_tick(TICK);
    let streams: Mutex<HashMap<String, ProgressBar>> = Mutex::default();
    Arc::new(move |event| {
        let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Phase(text) => phase.set_message(text),
            Event::StreamStarted { name, estimate } => {
                let bar = if estimate == 0 {
                    let bar = all.add(ProgressBar::no_length());
                    bar.set_style(style("  {msg:26!} {bytes:>11} {bytes_per_sec:>13}"));
                    bar
                } else {
                    let bar = all.add(ProgressBar::new(estimate));
                    bar.set_style(style(
                        "  {msg:26!} {bar:14} {bytes:>11} {bytes_per_sec:>13} {eta:>4} left",
                    ));
                    bar
                };
                bar.set_message(name.clone());
                streams.insert(name, bar);
            }
            Event::StreamBytes { name, bytes } => {
                if let Some(bar) = streams.get(&name) {
                    bar.inc(bytes);
                    // The estimate is a size on disk; COPY text can be longer.
                    if bar.length().is_some_and(|length| bar.position() > length) {
                        bar.set_length(bar.position());
                    }
                }
            }
            Event::StreamFinished { name } => {
                if let Some(bar) = streams.remove(&name) {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
