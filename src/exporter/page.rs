//! All series of one scrape, by metric: what both formats are written from.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::metrics::{self, Metric, Sample};
use crate::monitor::{Reason, View, Watch};

/// Every sample that is served, grouped by its metric. Nothing is copied out of the snapshots.
#[derive(Debug)]
pub struct Page {
    site: String,
    sources: Vec<Source>,
    families: BTreeMap<&'static str, Vec<(usize, usize)>>,
}

/// Samples that come from one monitor, or from the exporter itself.
#[derive(Debug)]
struct Source {
    monitor: Option<String>,
    samples: Arc<Vec<Sample>>,
}

/// One series of a page.
pub struct Series<'a> {
    /// The site.
    pub site: &'a str,
    /// The monitor; absent where the figure is the exporter's.
    pub monitor: Option<&'a str>,
    /// The figure.
    pub sample: &'a Sample,
}

impl Series<'_> {
    /// All labels, in the order in which they are written.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let scope = [("site", Some(self.site)), ("monitor", self.monitor)];
        let scope = scope.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let own = self.sample.metric.labels.iter().copied();
        scope.chain(own.zip(self.sample.labels.iter().map(String::as_str)))
    }
}

impl Page {
    /// Gathers what is known of the monitors, and figures of the exporter's own.
    pub fn new(site: &str, watches: &[Arc<Watch>], own: Vec<Sample>) -> Self {
        Self::gather(site, watches.iter().map(|watch| (&**watch, watch.view())), own, true)
    }

    /// The same after one collection: when the next one is, cron decides.
    pub fn of_one_collection<'w>(site: &str, found: impl Iterator<Item = (&'w Watch, View)>) -> Self {
        Self::gather(site, found, Vec::new(), false)
    }

    fn gather<'w>(
        site: &str,
        found: impl Iterator<Item = (&'w Watch, View)>,
        mut own: Vec<Sample>,
        repeats: bool,
    ) -> Self {
        own.push(Sample::new(&metrics::BUILD, [env!("CARGO_PKG_VERSION")], 1.0));
        let mut sources = vec![Source { monitor: None, samples: Arc::new(own) }];
        for (watch, view) in found {
            let monitor = Some(watch.config.name.clone());
            let about = Arc::new(about(watch, &view, repeats));
            sources.push(Source { monitor: monitor.clone(), samples: about });
            if let Some(snapshot) = &view.snapshot {
                sources.push(Source { monitor, samples: snapshot.samples.clone() });
            }
        }
        let mut families: BTreeMap<&'static str, Vec<(usize, usize)>> = BTreeMap::new();
        for (source, Source { samples, .. }) in sources.iter().enumerate() {
            for (index, sample) in samples.iter().enumerate() {
                families.entry(sample.metric.name).or_default().push((source, index));
            }
        }
        Self { site: site.to_owned(), sources, families }
    }

    /// The metrics that have a series, by name, each with its series.
    pub fn families(&self) -> impl Iterator<Item = (&'static Metric, impl Iterator<Item = Series<'_>>)> {
        self.families.values().filter_map(|places| {
            let series = places.iter().map(|(source, index)| {
                let source = &self.sources[*source];
                let monitor = source.monitor.as_deref();
                Series { site: &self.site, monitor, sample: &source.samples[*index] }
            });
            let (source, index) = places.first()?;
            Some((self.sources[*source].samples[*index].metric, series))
        })
    }
}

/// What the exporter says about a monitor.
fn about(watch: &Watch, view: &View, repeats: bool) -> Vec<Sample> {
    let config = &watch.config;
    let mut samples = vec![
        Sample::new(&metrics::MONITOR, [config.kind.as_str()], 1.0),
        Sample::plain(&metrics::MONITOR_COLLECTIONS, view.collections as f64),
        Sample::plain(&metrics::MONITOR_SERIES_LIMIT, config.max_series as f64),
        Sample::plain(&metrics::MONITOR_SERIES_DROPPED, view.dropped as f64),
    ];
    if repeats {
        samples.push(Sample::plain(&metrics::MONITOR_INTERVAL, config.interval.as_secs_f64()));
    }
    for reason in Reason::ALL {
        let count = view.failures[reason as usize] as f64;
        samples.push(Sample::new(&metrics::MONITOR_FAILURES, [reason.as_str()], count));
    }
    if let Some(last) = &view.last {
        let up = f64::from(u8::from(last.failure.is_none()));
        samples.push(Sample::plain(&metrics::MONITOR_UP, up));
        samples.push(Sample::plain(&metrics::MONITOR_COLLECT_DURATION, last.took.as_secs_f64()));
        samples.push(Sample::plain(&metrics::MONITOR_ATTEMPTED_TIMESTAMP, metrics::timestamp(last.at)));
    }
    if let Some(snapshot) = &view.snapshot {
        samples.push(Sample::plain(&metrics::MONITOR_COLLECTED_TIMESTAMP, metrics::timestamp(snapshot.at)));
        samples.push(Sample::plain(&metrics::MONITOR_SERIES, snapshot.samples.len() as f64));
        for concern in &snapshot.concerns {
            let up = f64::from(u8::from(concern.failure.is_none()));
            samples.push(Sample::new(&metrics::MONITOR_CONCERN_UP, [concern.name], up));
            if let Some(failure) = &concern.failure {
                let labels = [concern.name, failure.reason.as_str()];
                samples.push(Sample::new(&metrics::MONITOR_CONCERN_FAILURE, labels, 1.0));
            }
        }
    }
    samples
}
