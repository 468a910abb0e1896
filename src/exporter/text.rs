//! The text format 0.0.4, which everything reads.

use std::fmt::Write as _;

use super::page::Page;
use crate::metrics::Kind;

/// The `Content-Type` of it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole page. Text in it cannot break a line: values of labels are escaped, and help has
/// nothing to escape (a test of the catalogue's).
pub fn encode(page: &Page) -> String {
    let mut out = String::new();
    for (metric, series) in page.families() {
        let name = metric.series();
        let kind = match metric.kind {
            Kind::Counter => "counter",
            // This format knows no info.
            Kind::Gauge | Kind::Info => "gauge",
        };
        // Writing to a string cannot fail.
        let _ = write!(out, "# HELP {name} {}\n# TYPE {name} {kind}\n", metric.help);
        for one in series {
            out.push_str(&name);
            let mut separator = '{';
            for (label, value) in one.labels() {
                let _ = write!(out, "{separator}{label}=\"");
                escape(&mut out, value);
                out.push('"');
                separator = ',';
            }
            let _ = writeln!(out, "}} {}", one.sample.value);
        }
    }
    out
}

fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}
