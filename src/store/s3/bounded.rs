//! Bounds on what a store may answer, below the SDK: that reads the body of a listing or of an error to
//! its end, however long it is, before anybody looks at it.
//!
//! A range of an object has as many bytes as were asked for. Everything else is XML, of which the number
//! of tags counts as well: an element of eleven bytes becomes hundreds in memory. Heads of answers are
//! bounded by the HTTP client (100 headers, 400 KiB).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::config::{ConfigBag, RuntimeComponents, SharedHttpClient};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use memchr::memchr_iter;

/// Bytes of a page of a listing: a thousand keys of a kilobyte, each with what is said of it, take half.
const DOCUMENT_MAX: u64 = 4 << 20;

/// Beginnings and ends of elements in such a page, which has a thousand entries of some twenty.
const TAGS_MAX: u64 = 40_000;

/// Bytes of an error: a few hundred of XML, or the page of some proxy.
const ERROR_MAX: u64 = 256 << 10;

/// Pages of a listing in a row that hold nothing: some stores answer so while they look for more.
pub(super) const EMPTY_PAGES_MAX: u32 = 100;

/// What is kept of a listing, in bytes: some 250,000 objects of a job, or of a site where all jobs are listed.
const LISTED_MAX: usize = 32 << 20;

/// What an entry of a listing takes beside its key.
const LISTED_COST: usize = 64;

/// How long a listing may take from its first page to its last: a store that lists a thousand objects a
/// second has ten minutes' worth at most.
pub(super) const LISTING_TIME: std::time::Duration = std::time::Duration::from_secs(900);

/// What is said of an answer that is too large, by which it is told from one that broke off.
pub(super) const TOO_MUCH: &str = "sent more than";

/// How much of a listing was taken in.
#[derive(Debug, Default)]
pub(super) struct Listed {
    bytes: usize,
    empty_pages: u32,
}

impl Listed {
    /// Counts a page by the keys on it, ours or not.
    pub(super) fn page<'k>(&mut self, keys: impl Iterator<Item = &'k str>) -> Result<(), String> {
        let before = self.bytes;
        self.bytes += keys.map(|key| key.len() + LISTED_COST).sum::<usize>();
        self.empty_pages = if self.bytes == before { self.empty_pages + 1 } else { 0 };
        if self.bytes > LISTED_MAX {
            return Err(format!(
                "{TOO_MUCH} {} MiB of keys (name one job, or give jobs sites of their own)",
                LISTED_MAX >> 20
            ));
        }
        if self.empty_pages > EMPTY_PAGES_MAX {
            return Err(format!("{TOO_MUCH} {EMPTY_PAGES_MAX} empty pages in a row"));
        }
        Ok(())
    }
}

/// The same client, whose answers are bounded.
pub(super) fn bounded(client: SharedHttpClient) -> SharedHttpClient {
    SharedHttpClient::new(Bounded(client))
}

#[derive(Debug)]
struct Bounded<T>(T);

impl HttpClient for Bounded<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Bounded(self.0.http_connector(settings, components)))
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.validate_base_client_config(components, config)
    }

    fn validate_final_config(
        &self,
        components: &RuntimeComponents,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        HttpClient::validate_final_config(&self.0, components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.0.connector_metadata()
    }
}

impl HttpConnector for Bounded<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let range = request.headers().get("range").and_then(range_size);
        let answering = self.0.call(request);
        HttpConnectorFuture::new(async move {
            let mut answer = answering.await?;
            let is_success = answer.status().is_success();
            let (left, tags) = match range {
                _ if !is_success => (ERROR_MAX, TAGS_MAX),
                Some(size) => (size, u64::MAX),
                None => (DOCUMENT_MAX, TAGS_MAX),
            };
            let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
            *answer.body_mut() = SdkBody::from_body_1_x(Bytewise { body, most: left, left, tags });
            Ok(answer)
        })
    }
}

/// How many bytes `bytes=5-9` asks for.
fn range_size(header: &str) -> Option<u64> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
}

/// A body that ends with an error where it goes on for too long.
struct Bytewise {
    body: SdkBody,
    most: u64,
    left: u64,
    tags: u64,
}

impl Body for Bytewise {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        let data = frame.data_ref().map_or(&[][..], |data| data);
        let tags = if self.tags == u64::MAX { 0 } else { memchr_iter(b'<', data).count() as u64 };
        let (left, tags) = (self.left.checked_sub(data.len() as u64), self.tags.checked_sub(tags));
        let why = match (left, tags) {
            (Some(left), Some(tags)) => {
                (self.left, self.tags) = (left, tags);
                return Poll::Ready(Some(Ok(frame)));
            }
            (None, _) => format!("{TOO_MUCH} {} bytes", self.most),
            (_, None) => format!("{TOO_MUCH} {TAGS_MAX} tags"),
        };
        Poll::Ready(Some(Err(why.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn read(text: String, left: u64, tags: u64) -> Result<usize, String> {
        let body = Bytewise { body: SdkBody::from(text), most: left, left, tags };
        body.collect().await.map(|body| body.to_bytes().len()).map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn bytes_and_tags_are_counted() {
        assert_eq!(read("x".repeat(10), 10, 0).await, Ok(10));
        assert_eq!(read("x".repeat(11), 10, 0).await, Err("sent more than 10 bytes".into()));
        assert_eq!(read("<a/>".repeat(3), 100, 3).await, Ok(12));
        assert_eq!(read("<a/>".repeat(4), 100, 3).await, Err("sent more than 40000 tags".into()));
        assert_eq!(read("<".repeat(50), 100, u64::MAX).await, Ok(50), "an object may hold what it likes");
    }

    #[test]
    fn ranges_tell_what_is_asked_for() {
        assert_eq!(range_size("bytes=0-0"), Some(1));
        assert_eq!(range_size("bytes=5-9"), Some(5));
        for odd in ["bytes=9-5", "bytes=5-", "bytes=0-18446744073709551615", "5-9"] {
            assert_eq!(range_size(odd), None, "{odd}");
        }
    }

    #[test]
    fn listings_end() {
        let mut listed = Listed::default();
        for _ in 0..EMPTY_PAGES_MAX {
            listed.page([].into_iter()).unwrap();
        }
        listed.page(["key"].into_iter()).unwrap();
        let endless = (0..=EMPTY_PAGES_MAX).find_map(|_| listed.page([].into_iter()).err());
        assert_eq!(endless.unwrap(), "sent more than 100 empty pages in a row");
        let mut listed = Listed::default();
        let page = vec![""; 1000];
        let pages = (0..).take_while(|_| listed.page(page.iter().copied()).is_ok()).count();
        assert!((400..700).contains(&pages), "{pages}");
    }
}
