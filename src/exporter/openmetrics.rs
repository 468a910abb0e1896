//! OpenMetrics 1.0, written by the `prometheus-client` crate from a page.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::page::{Page, Series};
use crate::error::{Error, Result};
use crate::metrics::{Kind, Metric};

/// The `Content-Type` of it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The whole page.
pub fn encode(page: Page) -> Result<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Whole(page)));
    let mut out = String::new();
    text::encode(&mut out, &registry).map_err(|_| Error::new("the page could not be written"))?;
    Ok(out)
}

#[derive(Debug)]
struct Whole(Page);

impl Collector for Whole {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (metric, series) in self.0.families() {
            let (name, unit) = split(metric);
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Info => MetricType::Info,
            };
            let mut family = encoder.encode_descriptor(name, metric.help, unit.as_ref(), kind)?;
            for one in series {
                let value = one.sample.value;
                match metric.kind {
                    Kind::Counter => {
                        family.encode_family(&one)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
                    }
                    Kind::Gauge => family.encode_family(&one)?.encode_gauge(&value)?,
                    Kind::Info => family.encode_info(&one)?,
                }
            }
        }
        Ok(())
    }
}

/// The name without its unit, which the encoder appends.
fn split(metric: &'static Metric) -> (&'static str, Option<Unit>) {
    let without = |suffix: &'static str| {
        let name = metric.name.strip_suffix(suffix)?.strip_suffix('_')?;
        Some((name, Some(Unit::Other(suffix.to_owned()))))
    };
    metric.unit.suffix().and_then(without).unwrap_or((metric.name, None))
}

impl EncodeLabelSet for Series<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        for label in self.labels() {
            label.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}
