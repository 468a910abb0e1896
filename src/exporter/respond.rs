//! From a request to its answer, without waiting for anything.

use std::io::Write as _;
use std::sync::atomic::Ordering;

use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE,
    HeaderName, HeaderValue, VARY, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};

use super::page::Page;
use super::{Exporter, openmetrics, text};
use crate::metrics::{self, Sample};

const PLAIN: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

const INDEX: &str = "<!doctype html>\n<html lang=\"en\"><title>opsd</title>\n<h1>opsd</h1>\n<ul>\n\
    <li><a href=\"/metrics\">metrics</a>\n<li><a href=\"/live\">live</a>: the exporter runs\n\
    <li><a href=\"/ready\">ready</a>: every monitor has collected once\n</ul>\n</html>\n";

/// Answers a request. Whoever brought no secret keeps no connection: an idle one takes the place of those who
/// would.
pub fn respond(exporter: &Exporter, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let is_known = exporter.gate.admits(request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes));
    let mut response = answer_to(exporter, request, is_known);
    if !is_known || is_public(request) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whoever restarts services has no credentials, and learns nothing here but that.
fn is_public(request: &Request<Incoming>) -> bool {
    matches!(request.uri().path(), "/live" | "/ready")
}

fn answer_to(exporter: &Exporter, request: &Request<Incoming>, is_known: bool) -> Response<Full<Bytes>> {
    let head = request.method() == Method::HEAD;
    if !head && request.method() != Method::GET {
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/live" => return answer(StatusCode::OK, PLAIN, "live\n"),
        "/ready" => return ready(exporter),
        _ => {}
    }
    if !is_known {
        let mut response = answer(StatusCode::UNAUTHORIZED, PLAIN, "who are you?\n");
        let challenge = HeaderValue::from_static(exporter.gate.challenge());
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        return response;
    }
    match request.uri().path() {
        "/" => answer(StatusCode::OK, HTML, INDEX),
        "/metrics" => metrics(exporter, request),
        _ => answer(StatusCode::NOT_FOUND, PLAIN, "nothing here; see /\n"),
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn ready(exporter: &Exporter) -> Response<Full<Bytes>> {
    let waiting = exporter.watches.iter().filter(|watch| watch.view().last.is_none()).count();
    match waiting {
        0 => answer(StatusCode::OK, PLAIN, "ready\n"),
        n => answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{n} monitors have not collected yet\n")),
    }
}

fn metrics(exporter: &Exporter, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let scrapes = 1 + exporter.scrapes.fetch_add(1, Ordering::Relaxed);
    let refused = exporter.refused.load(Ordering::Relaxed);
    let own = vec![
        Sample::plain(&metrics::START_TIMESTAMP, metrics::timestamp(exporter.started)),
        Sample::plain(&metrics::EXPORTER_SCRAPES, scrapes as f64),
        Sample::plain(&metrics::EXPORTER_CONNECTIONS_REFUSED, refused as f64),
    ];
    let page = Page::new(&exporter.site, &exporter.watches, own);
    let (content_type, body) = match wants_openmetrics(&all(request, ACCEPT)) {
        false => (text::CONTENT_TYPE, Ok(text::encode(&page))),
        true => (openmetrics::CONTENT_TYPE, openmetrics::encode(page)),
    };
    let body = match body {
        Ok(body) => body,
        Err(error) => {
            tracing::error!("{error}");
            return answer(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "the page could not be written\n");
        }
    };
    let zipped = takes_gzip(&all(request, ACCEPT_ENCODING)).then(|| gzip(body.as_bytes())).flatten();
    let is_zipped = zipped.is_some();
    let mut response = answer(StatusCode::OK, content_type, zipped.unwrap_or_else(|| body.into_bytes()));
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if is_zipped {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// All values of a header that may stand there several times.
fn all(request: &Request<Incoming>, name: HeaderName) -> String {
    let values = request.headers().get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

/// A page of half a megabyte is a tenth of it afterwards; the fastest level costs milliseconds.
fn gzip(page: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(page).ok()?;
    encoder.finish().ok()
}

/// Whether `Accept-Encoding` takes gzip. `*` is not asked about: whoever writes it may mean anything.
fn takes_gzip(accept: &str) -> bool {
    accept.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.trim().parse::<f64>().ok());
        is_gzip && quality.is_none_or(|quality| quality > 0.0)
    })
}

/// Whether `Accept` asks for OpenMetrics 1.0 at least as much as for plain text.
pub fn wants_openmetrics(accept: &str) -> bool {
    let (mut openmetrics, mut plain) = (0.0, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let (mut quality, mut version) = (1.0, None);
        for parameter in parts {
            match parameter.split_once('=') {
                Some(("q", text)) => quality = text.trim().parse().unwrap_or(0.0),
                Some(("version", text)) => version = Some(text.trim_matches('"')),
                _ => {}
            }
        }
        match kind {
            "application/openmetrics-text" if matches!(version, None | Some("1.0.0")) => {
                openmetrics = f64::max(openmetrics, quality);
            }
            "text/plain" | "text/*" => plain = f64::max(plain, quality),
            _ => {}
        }
    }
    openmetrics > 0.0 && openmetrics >= plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_decides_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        for yes in
            [prometheus, "application/openmetrics-text", "application/openmetrics-text; version=\"1.0.0\""]
        {
            assert!(wants_openmetrics(yes), "{yes}");
        }
        for no in [
            "",
            "*/*",
            "text/plain",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.2,text/plain;q=0.9",
            "application/json",
            ";;;,q=,=",
        ] {
            assert!(!wants_openmetrics(no), "{no}");
        }
    }
}
