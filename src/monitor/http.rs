//! An HTTP server: status, body, times, and the components of its health page.
//!
//! Each collection is one GET over a new connection, so that what it takes is what a visitor would
//! wait. Proxies of the environment are not used. The body is read up to a bound, of bytes and of time, and never
//! repeated anywhere; nor is the query of the URL, which may hold a token.
//! Deliberately absent: methods other than GET, cookies, HTTP/2, and every certificate but by `tls`.

mod body;
mod health;
mod redirect;

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::header::{ACCEPT_ENCODING, HeaderValue};
use serde_json::Value;

use body::{Body, Flaw};
use redirect::Hops;

use super::{Collected, Concern, Failure, Monitor, Reason, trust};
use crate::config::Threshold;
use crate::config::monitoring::{Auth, Bound, Http};
use crate::error::{Error, Result};
use crate::metrics::{self, Metric, Sample};

/// A body that has not ended after this part of a collection's time is judged by what has come of it: some never
/// end.
const BODY_PART: (u32, u32) = (3, 4);

/// When an answer is bad unless the configuration says otherwise.
pub static THRESHOLDS: &[Threshold] = &[
    must(&metrics::HTTP_STATUS_EXPECTED),
    must(&metrics::HTTP_BODY_EXPECTED),
    must(&metrics::HTTP_JSON_EXPECTED),
    must(&metrics::HTTP_COMPONENT_UP),
    Threshold::of(&metrics::HTTP_DURATION, Some(Bound::Above(5.0)), None),
];

const fn must(metric: &'static Metric) -> Threshold {
    Threshold { metric, state: None, warning: None, critical: Some(Bound::Below(0.5)) }
}

/// A monitor of one URL.
pub struct Target {
    name: String,
    http: Http,
    timeout: Duration,
}

/// A monitor that has asked nothing yet.
pub fn open(name: &str, http: &Http, timeout: Duration) -> Target {
    Target { name: name.to_owned(), http: http.clone(), timeout }
}

#[async_trait]
impl Monitor for Target {
    fn name(&self) -> &str {
        &self.name
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let hops = Hops::of(self.http.url.expose());
        let internal = |error: Error| Failure::new(Reason::Internal, error);
        let client = self.client(&hops).map_err(internal)?;
        let mut request = client.get(self.http.url.expose());
        match &self.http.auth {
            Auth::None => {}
            Auth::Basic { user, password } => {
                request = request.basic_auth(user, Some(password.read().map_err(internal)?.expose()));
            }
            Auth::Bearer(token) => {
                request = request.bearer_auth(token.read().map_err(internal)?.expose());
            }
        }
        let started = Instant::now();
        let mut response = request.send().await.map_err(|error| self.failure(error, &hops))?;
        let first_byte = started.elapsed().as_secs_f64();
        let bound = self.timeout * BODY_PART.0 / BODY_PART.1;
        let promised = response.content_length();
        let (mut bytes, mut flaw) = (Vec::new(), None);
        loop {
            let left = bound.saturating_sub(started.elapsed());
            let Ok(chunk) = tokio::time::timeout(left, response.chunk()).await else {
                // A body that told its length is not one that goes on and on.
                if let Some(promised) = promised {
                    let error = Error::new(format!(
                        "{} of {promised} bytes of the body came within {} s",
                        bytes.len(),
                        bound.as_secs_f64()
                    ));
                    return Err(Failure::new(Reason::Timeout, error));
                }
                flaw = Some(Flaw::Endless(bound));
                break;
            };
            let Some(chunk) = chunk.map_err(|error| self.failure(error, &hops))? else { break };
            let room = body::MAX - bytes.len();
            bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                flaw = Some(Flaw::TooLong);
                break;
            }
        }
        let duration = started.elapsed().as_secs_f64();
        let size = bytes.len();
        let encoding = response.headers().get(reqwest::header::CONTENT_ENCODING);
        let body = body::read(bytes, encoding.map(|encoding| encoding.as_bytes()), flaw);
        let status = response.status().as_u16();
        let expected = self.http.expect_status.contains(&status);
        let mut samples = vec![
            Sample::plain(&metrics::HTTP_STATUS, f64::from(status)),
            Sample::plain(&metrics::HTTP_STATUS_EXPECTED, truth(expected)),
            Sample::plain(&metrics::HTTP_FIRST_BYTE, first_byte),
            Sample::plain(&metrics::HTTP_DURATION, duration),
            Sample::plain(&metrics::HTTP_BODY, size as f64),
            Sample::plain(&metrics::HTTP_REDIRECTS, hops.followed() as f64),
        ];
        if let Some(text) = &self.http.expect_body {
            let holds = memchr::memmem::find(&body.text, text.as_bytes()).is_some();
            samples.push(Sample::plain(&metrics::HTTP_BODY_EXPECTED, truth(holds)));
        }
        let mut concerns = Vec::new();
        if self.http.components.is_some() || !self.http.expect_json.is_empty() {
            let failure = self.json(&body, &mut samples).err();
            concerns.push(Concern { name: "json", failure });
        }
        Ok(Collected { samples, concerns })
    }
}

impl Target {
    fn client(&self, hops: &Hops) -> Result<reqwest::Client> {
        reqwest::Client::builder()
            .tls_backend_preconfigured(trust::client(self.http.ca_file.as_deref(), None)?)
            .redirect(hops.policy(self.http.max_redirects))
            .dns_resolver(Arc::new(hops.clone()))
            .no_proxy()
            .connect_timeout(self.connect_bound())
            .default_headers([(ACCEPT_ENCODING, HeaderValue::from_static("gzip"))].into_iter().collect())
            .referer(false)
            .pool_max_idle_per_host(0)
            .user_agent(concat!("opsd/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::new(error.without_url()).context("cannot set up HTTP"))
    }

    /// For all addresses of a name, which hyper tries as RFC 8305 has it.
    fn connect_bound(&self) -> Duration {
        self.timeout * 2 / 3
    }

    fn failure(&self, error: reqwest::Error, hops: &Hops) -> Failure {
        // A redirect's URL may hold a token, too.
        let error = error.without_url();
        let mut text = String::new();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text = inner.to_string();
            cause = inner.source();
        }
        let text = if text.is_empty() { error.to_string() } else { text };
        let text = match error.is_connect() && error.is_timeout() {
            true => {
                let tried =
                    hops.addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
                let from = if tried.is_empty() { String::new() } else { format!(" from {tried}") };
                format!("no answer within {:.1} s{from}", self.connect_bound().as_secs_f64())
            }
            false => text,
        };
        let reason = match () {
            () if is_tls(&error) => Reason::Tls,
            () if error.is_timeout() => Reason::Timeout,
            () if error.is_connect() => Reason::Unreachable,
            () if error.is_builder() => Reason::Internal,
            () => Reason::Protocol,
        };
        Failure::new(reason, Error::new(text).context(format!("GET {}", self.http.shown)))
    }

    /// What the body says as JSON. What must stand there and does not is a figure; a body that is no
    /// JSON has none of it.
    fn json(&self, body: &Body, samples: &mut Vec<Sample>) -> Result<(), Failure> {
        let document: Option<Value> = match body.flaw {
            None => serde_json::from_slice(&body.text).ok(),
            Some(_) => None,
        };
        for (pointer, wanted) in &self.http.expect_json {
            let found = document.as_ref().and_then(|document| document.pointer(pointer));
            let is_so = found.is_some_and(|found| health::text(found) == *wanted);
            samples.push(Sample::new(&metrics::HTTP_JSON_EXPECTED, [pointer], truth(is_so)));
        }
        let Some(document) = document else {
            let why = body.flaw.map_or_else(|| "the body is no JSON".to_owned(), |flaw| flaw.to_string());
            return Err(Failure::new(
                Reason::Protocol,
                Error::new(why).context(format!("GET {}", self.http.shown)),
            ));
        };
        let Some(pointer) = &self.http.components else { return Ok(()) };
        let Some(Value::Object(members)) = document.pointer(pointer) else {
            let error = Error::new(format!("there is no JSON object at {pointer:?}"));
            return Err(Failure::new(Reason::Protocol, error.context(format!("GET {}", self.http.shown))));
        };
        for (name, is_up) in health::components(members) {
            samples.push(Sample::new(&metrics::HTTP_COMPONENT_UP, [name], truth(is_up)));
        }
        Ok(())
    }
}

/// Whether TLS is why, however deep: an I/O error hides what it wraps from `source`.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|inner| is_tls(inner))
        || error.source().is_some_and(is_tls)
}

fn truth(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// `200 in 34 ms`.
pub fn headline(samples: &[Sample]) -> String {
    let value = |metric: &'static Metric| samples.iter().find(|s| s.metric == metric).map(|s| s.value);
    let Some((status, took)) = value(&metrics::HTTP_STATUS).zip(value(&metrics::HTTP_DURATION)) else {
        return String::new();
    };
    let down = samples.iter().filter(|s| *s.metric == metrics::HTTP_COMPONENT_UP && s.value == 0.0);
    let down: Vec<&str> = down.filter_map(|s| s.label("component")).collect();
    let down = if down.is_empty() { String::new() } else { format!(", down: {}", down.join(", ")) };
    format!("{status} in {:.0} ms{down}", took * 1000.0)
}
