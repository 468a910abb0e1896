//! Progress bars on a terminal; silence elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Global, output};
use crate::printable;
use crate::progress::{Event, Progress, silent};

/// How often a bar that does not move shows that the work goes on.
const TICK: Duration = Duration::from_millis(200);

/// Columns for the name of a stream on a terminal of the usual size.
const NAME: usize = 24;

/// Bars for whoever watches: a line for the phase and one a stream. Dropping them clears the screen
/// of them, and keeps threads that are still ending from drawing new ones under what is said next.
pub struct Bars(Option<Arc<Mutex<Lines>>>);

struct Lines {
    all: MultiProgress,
    phase: ProgressBar,
    phase_text: String,
    streams: HashMap<String, ProgressBar>,
    is_over: bool,
}

/// Bars on a terminal, unless silence was asked for; `first` is what is done until work says more.
pub fn bars(global: &Global, first: &str) -> Bars {
    if global.quiet || !output::is_terminal() {
        return Bars(None);
    }
    let all = global.screen.clone();
    let phase = all.add(ProgressBar::new_spinner());
    phase.set_style(style("{spinner} {msg} {elapsed}"));
    phase.set_message(first.to_owned());
    phase.enable_steady_tick(TICK);
    Bars(Some(Arc::new(Mutex::new(Lines {
        all,
        phase,
        phase_text: first.to_owned(),
        streams: HashMap::new(),
        is_over: false,
    }))))
}

impl Bars {
    /// Where work sends its events.
    pub fn progress(&self) -> Progress {
        let Some(lines) = self.0.clone() else { return silent() };
        Arc::new(move |event| {
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            if !lines.is_over {
                lines.show(event);
            }
        })
    }

    /// Clears the screen of them while somebody is asked something, or draws them again.
    pub fn hide(&self, is_hidden: bool) {
        let Some(lines) = &self.0 else { return };
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if is_hidden {
            lines.phase.disable_steady_tick();
            // A terminal that is gone shows nothing anyway.
            let _ = lines.all.clear();
            lines.all.set_draw_target(ProgressDrawTarget::hidden());
        } else {
            lines.all.set_draw_target(ProgressDrawTarget::stderr());
            lines.phase.enable_steady_tick(TICK);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let Some(lines) = &self.0 else { return };
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.is_over = true;
        lines.streams.drain().for_each(|(_, bar)| bar.finish_and_clear());
        lines.phase.finish_and_clear();
    }
}

impl Lines {
    fn show(&mut self, event: Event) {
        match event {
            Event::Phase(text) => {
                self.phase_text = printable::line(&text).into_owned();
                self.phase.set_message(self.phase_text.clone());
                self.phase.reset_elapsed();
            }
            Event::Done { done, of } => {
                self.phase.set_message(format!("{}, {done} of {of}", self.phase_text))
            }
            Event::StreamStarted { name, estimate } => {
                let bar = if estimate == 0 {
                    let bar = self.all.add(ProgressBar::no_length());
                    bar.set_style(style("  {msg} {bytes:>11} {bytes_per_sec:>13}"));
                    bar
                } else {
                    let bar = self.all.add(ProgressBar::new(estimate));
                    // Two columns are left for the ^C that a terminal prints: past the edge it would
                    // move the lines that are to be cleared.
                    bar.set_style(style("  {msg} {bar:14} {bytes:>11} {bytes_per_sec:>13} {eta:>4} left"));
                    bar
                };
                let room = output::progress_columns().saturating_sub(output::WIDTH) + NAME;
                bar.set_message(label(&printable::line(&name), room));
                self.streams.insert(name, bar);
            }
            Event::StreamBytes { name, bytes } => {
                if let Some(bar) = self.streams.get(&name) {
                    bar.inc(bytes);
                    // The estimate is a size on disk; COPY text can be longer.
                    if bar.length().is_some_and(|length| bar.position() > length) {
                        bar.set_length(bar.position());
                    }
                }
            }
            Event::StreamFinished { name } => {
                if let Some(bar) = self.streams.remove(&name) {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

/// A name in so many columns. What is cut is its beginning: streams of one database differ at the end.
fn label(name: &str, columns: usize) -> String {
    let length = name.chars().count();
    if length <= columns {
        return format!("{name:<width$}", width = columns.min(NAME));
    }
    let end: String = name.chars().skip(length + 1 - columns).collect();
    format!("…{end}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_streams_of_a_database_with_a_long_name_are_told_apart() {
        assert_eq!(label("app/data-1", NAME), format!("{:<24}", "app/data-1"));
        let name = |stream: &str| format!("a_database_with_a_long_name/{stream}");
        assert_eq!(label(&name("data-1"), NAME), "…with_a_long_name/data-1");
        assert_eq!(label(&name("data-1"), NAME).chars().count(), NAME);
        assert_ne!(label(&name("data-1"), NAME), label(&name("data-2"), NAME));
        assert_eq!(label(&name("data-1"), 104), name("data-1"));
    }
}
