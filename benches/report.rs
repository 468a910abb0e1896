//! Figures as a table for people and as JSON for machines.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use crate::measure::{Cost, median, percentile};

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    runs: Vec<(String, String, Vec<Cost>)>,
    stored: BTreeMap<(String, String), u64>,
    plain: BTreeMap<String, u64>,
    measures: Vec<Measure>,
}

/// One line that has a target.
struct Measure {
    what: String,
    data: String,
    value: f64,
    target: f64,
    unit: &'static str,
}

impl Report {
    /// One run of one contender.
    pub fn add(&mut self, data: &str, contender: &str, cost: Cost) {
        eprintln!(
            "  {contender:<34}{:>8.2} s {:>8.2} CPU s {:>6.1} MiB",
            cost.wall,
            cost.own_cpu,
            cost.peak as f64 / 1_048_576.0
        );
        match self.runs.iter_mut().find(|(d, c, _)| d == data && c == contender) {
            Some((_, _, costs)) => costs.push(cost),
            None => self.runs.push((data.into(), contender.into(), vec![cost])),
        }
    }

    /// One contender's scrapes, in seconds each, and its peak memory; of a hundred scrapes, 99 are to end
    /// within `target` seconds.
    pub fn scrapes(&mut self, data: &str, contender: &str, taken: &[f64], peak: u64, target: f64) {
        let [half, most] = [0.5, 0.99].map(|part| percentile(taken, part));
        let memory = peak as f64 / 1_048_576.0;
        eprintln!("  {contender:<40}{:>9.2} ms {:>9.2} ms (p99) {memory:>6.1} MiB", half * 1e3, most * 1e3);
        let costs = taken.iter().map(|wall| Cost { wall: *wall, peak, ..Cost::default() }).collect();
        self.runs.push((data.into(), contender.into(), costs));
        self.measure(&format!("scrape, p99: {contender}"), data, most * 1e3, target * 1e3, " ms");
    }

    /// A figure against its limit; infinity where it has none.
    pub fn value(&mut self, what: &str, data: &str, value: f64, target: f64, unit: &'static str) {
        self.measure(what, data, value, target, unit);
    }

    /// Bytes that a contender's backup takes.
    pub fn stored(&mut self, data: &str, contender: &str, bytes: u64) {
        self.stored.insert((data.into(), contender.into()), bytes);
    }

    /// Bytes of the uncompressed dump.
    pub fn plain(&mut self, data: &str, bytes: u64) {
        self.plain.insert(data.into(), bytes);
    }

    fn costs(&self, data: &str, contender: &str) -> &[Cost] {
        self.runs.iter().find(|(d, c, _)| d == data && c == contender).map_or(&[], |(_, _, costs)| costs)
    }

    fn wall(&self, data: &str, contender: &str) -> f64 {
        median(self.costs(data, contender).iter().map(|c| c.wall))
    }

    fn peak_of(&self, data: &str, contender: &str) -> f64 {
        self.costs(data, contender).iter().map(|c| c.peak as f64).fold(f64::NAN, f64::max)
    }

    fn measure(&mut self, what: &str, data: &str, value: f64, target: f64, unit: &'static str) {
        self.measures.push(Measure { what: what.into(), data: data.into(), value, target, unit });
    }

    /// Wall time against wall time.
    pub fn ratio(&mut self, what: &str, data: &str, of: &str, to: &str, target: f64) {
        self.measure(what, data, self.wall(data, of) / self.wall(data, to), target, "");
    }

    /// Wall time against a limit in seconds.
    pub fn seconds(&mut self, what: &str, data: &str, of: &str, limit: f64) {
        self.measure(what, data, self.wall(data, of), limit, " s");
    }

    /// Stored bytes against stored bytes.
    pub fn stored_ratio(&mut self, what: &str, data: &str, of: &str, to: &str, target: f64) {
        let bytes =
            |c: &str| self.stored.get(&(data.to_owned(), c.to_owned())).map_or(f64::NAN, |b| *b as f64);
        self.measure(what, data, bytes(of) / bytes(to), target, "");
    }

    /// CPU seconds of the process itself for each 10⁹ bytes of dump.
    pub fn cpu_per_gb(&mut self, what: &str, data: &str, of: &str, target: f64) {
        let plain = self.plain.get(data).map_or(f64::NAN, |b| *b as f64 / 1e9);
        let cpu = median(self.costs(data, of).iter().map(|c| c.own_cpu));
        self.measure(what, data, cpu / plain, target, " s");
    }

    /// Peak memory against a limit in bytes.
    pub fn peak(&mut self, what: &str, data: &str, of: &str, limit: u64) {
        let mib = 1_048_576.0;
        self.measure(what, data, self.peak_of(data, of) / mib, limit as f64 / mib, " MiB");
    }

    /// Peak memory of `big` against that of `web`, where both were measured.
    pub fn peak_ratio(&mut self, what: &str, of: &str, target: f64) {
        let ratio = self.peak_of("big", of) / self.peak_of("web", of);
        if ratio.is_finite() {
            self.measure(what, "big", ratio, target, "");
        }
    }

    /// Everything, for machines.
    pub fn to_json(&self) -> String {
        let runs: Vec<Value> = self
            .runs
            .iter()
            .map(|(data, contender, costs)| {
                let all = |f: fn(&Cost) -> f64| costs.iter().map(f).collect::<Vec<f64>>();
                json!({
                    "data": data, "contender": contender,
                    "wall_seconds": all(|c| c.wall), "own_cpu_seconds": all(|c| c.own_cpu),
                    "all_cpu_seconds": all(|c| c.all_cpu), "peak_bytes": all(|c| c.peak as f64),
                    "stored_bytes": self.stored.get(&(data.clone(), contender.clone())),
                })
            })
            .collect();
        let measures: Vec<Value> = self
            .measures
            .iter()
            .map(|m| json!({"measure": m.what, "data": m.data, "value": m.value, "target": m.target, "met": m.value <= m.target}))
            .collect();
        format!("{:#}\n", json!({"runs": runs, "measures": measures, "plain_bytes": self.plain}))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<9}{:<40}{:>8}{:>9}{:>9}{:>11}", "data", "what", "wall", "CPU s", "MiB", "stored MB")?;
        for (data, contender, costs) in &self.runs {
            let stored = self.stored.get(&(data.clone(), contender.clone()));
            let wall = median(costs.iter().map(|c| c.wall));
            writeln!(
                f,
                "{data:<9}{contender:<40}{:>8}{:>9.2}{:>9.1}{:>11}",
                if wall < 0.1 { format!("{:.2} ms", wall * 1e3) } else { format!("{wall:.2} s") },
                median(costs.iter().map(|c| c.own_cpu)),
                self.peak_of(data, contender) / 1_048_576.0,
                stored.map_or(String::new(), |b| format!("{:.1}", *b as f64 / 1e6)),
            )?;
        }
        writeln!(f, "\n{:<9}{:<52}{:>12}{:>12}", "data", "measure", "seen", "target")?;
        for m in &self.measures {
            let (target, met) = match (m.target.is_finite(), m.value <= m.target) {
                (false, _) => (String::new(), ""),
                (true, true) => (format!("≤ {}{}", m.target, m.unit), "met"),
                (true, false) => (format!("≤ {}{}", m.target, m.unit), "MISSED"),
            };
            let seen = format!("{:.2}{}", m.value, m.unit);
            writeln!(f, "{:<9}{:<52}{seen:>12}{target:>12}  {met}", m.data, m.what)?;
        }
        Ok(())
    }
}
