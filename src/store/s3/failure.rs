//! What went wrong with a request, in words that say what to change.
//!
//! Only the error code, the store's own message (bounded, without control characters) and the
//! names of bucket, key and end point are ever shown: no URL, no header, no signature.

use std::sync::OnceLock;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::{S3Store, credentials};
use crate::store::StoreError;

/// What to do where a store refuses a checksum, or the lack of one.
pub const ABOUT_CHECKSUMS: &str =
    "`opsd repository probe`, with a credential that may read, finds out which checksums it takes";

/// The longest message of a store that is passed on.
const MESSAGE_LIMIT: usize = 300;

/// A request that failed, after retries.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure {
    /// HTTP status, where there was a response.
    pub status: Option<u16>,
    /// S3 error code; empty where the response had none (as to a HEAD).
    pub code: String,
    /// The store's words.
    message: String,
    /// Where the bucket is, if the store said so.
    region: Option<String>,
    /// What happened instead of a response.
    transport: Option<String>,
    /// Why credentials could not be loaded when that was said, where it is not said any more.
    cause: Option<String>,
    /// How a connection that was there ended: "sent 5 of 9 bytes".
    broke: Option<String>,
    /// How often the request was sent; the last attempt failed like this.
    pub attempts: u32,
    /// Whether one of the attempts may have done it all the same.
    pub in_doubt: bool,
}

impl Failure {
    /// A connection that was there, but did not do what it should have: "sent 5 of 9 bytes".
    pub(super) fn broke(how: &str) -> Self {
        Self { broke: Some(bounded(how)), ..Self::default() }
    }

    /// What arrived is not what was sent, as this side found out.
    pub(super) fn damaged(message: &str) -> Self {
        Self { code: "BadDigest".to_owned(), message: message.to_owned(), ..Self::default() }
    }

    #[cfg(test)]
    pub(super) fn answered(status: u16, code: &str) -> Self {
        Self { status: Some(status), code: code.to_owned(), ..Self::default() }
    }

    #[cfg(test)]
    pub(super) fn unreached(transport: &str) -> Self {
        Self { transport: Some(transport.to_owned()), ..Self::default() }
    }

    pub(super) fn of<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let mut failure = Self {
            status: error.raw_response().map(|r| r.status().as_u16()),
            code: error.code().unwrap_or_default().to_owned(),
            message: bounded(error.message().unwrap_or_default()),
            region: error.raw_response().and_then(|r| r.headers().get("x-amz-bucket-region")).map(bounded),
            ..Self::default()
        };
        match &error {
            SdkError::ServiceError(_) => {}
            SdkError::ResponseError(_) => {
                failure.broke = Some(bounded(&format!("answered what cannot be read: {}", chain(&error))));
            }
            _ => failure.transport = Some(bounded(&credentials::in_brief(&chain(&error)))),
        }
        failure
    }

    /// Whether the condition of a write was not met.
    pub(super) fn condition_failed(&self) -> bool {
        matches!((self.status, self.code.as_str()), (Some(412), "" | "PreconditionFailed"))
    }

    /// Whether another write of the same key was under way, so that the condition was not decided: it
    /// is to be tried again.
    pub(super) fn is_conflict(&self) -> bool {
        self.status == Some(409)
            && matches!(self.code.as_str(), "" | "ConditionalRequestConflict" | "OperationAborted")
    }

    /// Whether the store does not know what it was asked.
    pub(super) fn not_implemented(&self) -> bool {
        self.status == Some(501) || self.code == "NotImplemented"
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.status == Some(404)
    }

    pub(super) fn is_denied(&self) -> bool {
        matches!(self.status, Some(401 | 403))
    }

    /// Whether an earlier attempt may have done it already: its answer was lost.
    pub(super) fn was_retried(&self) -> bool {
        self.attempts > 1
    }

    /// Whether the store may have done what this attempt asked for: there was no answer, or none that says.
    pub(super) fn may_be_done(&self) -> bool {
        if self.transport.is_some() {
            // Whoever was not reached was sent nothing.
            let unreached = [
                "connect error",
                "connect timeout",
                "connection refused",
                "dns error",
                "failed to lookup",
                "handshake",
                "unreachable",
                "no route to host",
            ];
            let is_unsent = self.is_about_credentials()
                || self.is_about_certificates()
                || self.transport_says(&unreached);
            return !is_unsent;
        }
        // These say that nothing was begun.
        let refused = [
            "SlowDown",
            "SlowDownRead",
            "SlowDownWrite",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
            "RequestLimitExceeded",
            "BandwidthLimitExceeded",
        ];
        match self.status {
            _ if self.is_broken() => true,
            _ if self.is_full() || self.not_implemented() || refused.contains(&self.code.as_str()) => false,
            Some(505) => false,
            Some(200..300 | 408 | 500..) => true,
            Some(_) | None => false,
        }
    }

    /// Whether the store has no room left: 507, or one of the many codes for a quota.
    pub(super) fn is_full(&self) -> bool {
        let words = ["quota", "storagefull", "insufficientstorage", "storagelimit", "storagecap"];
        let code: String = self.code.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
        self.status == Some(507) || words.iter().any(|word| code.contains(word))
    }

    /// Whether the connection was there, but ended too early.
    pub(super) fn is_broken(&self) -> bool {
        self.broke.is_some()
    }

    /// Whether the store sent more than anybody asked for, which it would do again.
    pub(super) fn is_too_much(&self) -> bool {
        self.broke.as_deref().is_some_and(|how| how.contains(super::bounded::TOO_MUCH))
            || self.transport_says(&["message head is too large"])
    }

    /// Whether somebody took the connection, and ended it without an answer.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_broken()
            || self.transport_says(&[
                "connection reset",
                "before message completed",
                "broken pipe",
                "handshake eof",
            ])
    }

    fn transport_says(&self, words: &[&str]) -> bool {
        let said = self.transport.as_deref().unwrap_or_default().to_lowercase();
        words.iter().any(|word| said.contains(word))
    }

    pub(super) fn is_about_credentials(&self) -> bool {
        // The last is said of whoever takes too long to hand them out.
        self.transport_says(&["credential", "identity resolver"])
    }

    /// Whether the store found that the credentials have expired. To a HEAD it cannot say more than 400.
    pub(super) fn is_about_expiry(&self) -> bool {
        matches!(self.code.as_str(), "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired")
            || (self.status == Some(400) && self.code.is_empty())
    }

    /// Keeps the first word about credentials, and takes it up where the SDK only says that it was said.
    pub(super) fn remember_cause(&mut self, first: &OnceLock<String>) {
        if !self.is_about_credentials() {
            return;
        }
        if self.transport_says(&["already taken"]) {
            self.cause = first.get().cloned();
        } else if let Some(said) = &self.transport {
            first.get_or_init(|| said.clone());
        }
    }

    /// Whether the store refuses a checksum, or the lack of one. Some call it a header that they do not know; what
    /// they do not know of conditions has been left out by then.
    fn is_about_checksums(&self) -> bool {
        let said = self.message.to_lowercase();
        matches!(self.status, Some(400 | 501))
            && (said.contains("checksum") || said.contains("header you provided implies functionality"))
    }

    pub(super) fn is_about_certificates(&self) -> bool {
        self.transport_says(&["certificate", "unknownissuer"])
    }

    /// For the log: what the store did.
    pub(super) fn in_short(&self) -> String {
        match (&self.broke, &self.transport, self.status) {
            (Some(how), _, _) => how.clone(),
            (None, Some(transport), _) if self.is_about_credentials() => {
                format!("cannot be asked without credentials: {transport}")
            }
            (None, Some(transport), _) => format!("cannot be reached: {transport}"),
            (None, None, Some(status)) if self.code.is_empty() => format!("answered {status}"),
            (None, None, Some(status)) => format!("answered {status} {}", self.code),
            (None, None, None) => self.message.clone(),
        }
    }

    /// The error for the caller; `doing` is what was tried, `write site/job/…`.
    pub(super) fn explain(self, store: &S3Store, doing: &str) -> StoreError {
        let (bucket, endpoint) = (&store.bucket, &store.endpoint);
        let said = if self.message.is_empty() { String::new() } else { format!(" ({})", self.message) };
        if let Some(how) = self.broke {
            return StoreError::Other(format!("cannot {doing}: {endpoint} {how}"));
        }
        if self.transport.is_some() {
            return self.explain_transport(doing, endpoint);
        }
        if self.is_full() {
            let code = if self.code.is_empty() { "HTTP 507" } else { &self.code };
            return StoreError::Other(format!(
                "cannot {doing}: no room left in bucket {bucket:?}: {endpoint} answered {code}{said}"
            ));
        }
        let denied = |why: String| StoreError::Denied(format!("cannot {doing}: {why}"));
        match self.code.as_str() {
            "NoSuchBucket" => StoreError::NotFound(format!(
                "cannot {doing}: bucket {bucket:?} does not exist at {endpoint}"
            )),
            "NoSuchKey" | "NotFound" => {
                StoreError::NotFound(format!("cannot {doing}: no such object in {}", store.place()))
            }
            "InvalidAccessKeyId" => {
                denied(format!("wrong credentials: {endpoint} does not know the access key"))
            }
            "SignatureDoesNotMatch" => denied(format!(
                "wrong credentials: the secret key does not belong to the access key at {endpoint}"
            )),
            "ExpiredToken" | "TokenRefreshRequired" => {
                denied("the session token has expired: renew the credentials".to_owned())
            }
            "InvalidToken" => denied("the session token is not valid: check AWS_SESSION_TOKEN".to_owned()),
            "RequestTimeTooSkewed" => {
                denied(format!("this machine's clock and that of {endpoint} differ too much: set the clock"))
            }
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => {
                denied(format!("access denied by {endpoint}{said}"))
            }
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "TemporaryRedirect"
            | "IllegalLocationConstraintException" => {
                let right = self.region.map_or(String::new(), |r| format!(", it is in {r:?}"));
                StoreError::Other(format!(
                    "cannot {doing}: wrong region: bucket {bucket:?} is not in {:?}{right}: set repository.region{said}",
                    store.region
                ))
            }
            "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" | "InvalidDigest" => {
                StoreError::Corrupt(format!(
                    "cannot {doing}: what arrived at {endpoint} is not what was sent{said}"
                ))
            }
            "EntityTooSmall" => StoreError::Other(format!(
                "cannot {doing}: {endpoint} wants larger parts{said}: raise part_size"
            )),
            _ if self.is_about_checksums() => StoreError::Other(format!(
                "cannot {doing}: {endpoint} answered {}{said}: {ABOUT_CHECKSUMS}",
                self.code
            )),
            "NotImplemented" => {
                StoreError::Unsupported(format!("cannot {doing}: {endpoint} cannot do this{said}"))
            }
            "" => self.explain_status(store, doing),
            code => StoreError::Other(format!("cannot {doing}: {endpoint} answered {code}{said}")),
        }
    }

    /// For responses without a code: to HEAD, or of something that is no S3.
    fn explain_status(&self, store: &S3Store, doing: &str) -> StoreError {
        let endpoint = &store.endpoint;
        match self.status {
            Some(404) => StoreError::NotFound(format!("cannot {doing}: not found in {}", store.place())),
            Some(401 | 403) => StoreError::Denied(format!("cannot {doing}: access denied by {endpoint}")),
            Some(301 | 307) => StoreError::Other(format!(
                "cannot {doing}: wrong region or end point for bucket {:?}: set repository.region",
                store.bucket
            )),
            Some(501) => StoreError::Unsupported(format!("cannot {doing}: {endpoint} cannot do this")),
            status => StoreError::Other(format!(
                "cannot {doing}: {endpoint} answered HTTP {} without an S3 error code: is it an S3 end point?",
                status.map_or("nothing".to_owned(), |s| s.to_string())
            )),
        }
    }

    fn explain_transport(&self, doing: &str, endpoint: &str) -> StoreError {
        let transport = self.transport.as_deref().unwrap_or_default();
        if self.is_about_credentials() {
            let because = credentials::because(self.cause.as_deref().unwrap_or(transport));
            // The instance's metadata service is asked last: its failure means that nothing else had any.
            if self.transport_says(&[
                "no providers in chain",
                "not enabled",
                "not loaded",
                "no credentials",
                "imds",
            ]) {
                return StoreError::Denied(format!(
                    "cannot {doing}: no AWS credentials found (environment, profile, container, instance){because}: \
                     set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
                ));
            }
            if self.transport_says(&["profile file", "profile `", "profilefile"]) {
                return StoreError::Denied(format!(
                    "cannot {doing}: the AWS profile has no usable credentials{because}: AWS_PROFILE must name one of \
                     ~/.aws/config or ~/.aws/credentials, and both files must be valid"
                ));
            }
            return StoreError::Denied(format!("cannot {doing}: cannot load AWS credentials{because}"));
        }
        if self.is_about_certificates() {
            return StoreError::Other(format!(
                "cannot {doing}: {endpoint} has no certificate that this machine trusts: {transport}: \
                 set AWS_CA_BUNDLE to the authority's certificate"
            ));
        }
        StoreError::Other(format!("cannot {doing}: cannot reach {endpoint}: {transport}"))
    }
}

/// The messages of an error and its sources, without repetitions, and without the names that the SDK
/// and its HTTP client give to their layers.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let layer = |text: &str| {
        let names = [
            "dispatch failure",
            "response error",
            "io error",
            "streaming error",
            "connection error",
            "other",
        ];
        names.contains(&text) || text.starts_with("client error (")
    };
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let message = error.to_string();
        if text.contains(&message) || (layer(&message) && next.is_some()) {
            continue;
        }
        text = if text.is_empty() { message } else { format!("{text}: {message}") };
    }
    text
}

fn bounded(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.char_indices().nth(MESSAGE_LIMIT) {
        Some((at, _)) => format!("{}…", &clean[..at]),
        None => clean,
    }
}

/// The end point as it may be shown: scheme and host, no user-info, path or query.
pub(super) fn display_endpoint(endpoint: Option<&str>, region: &str) -> String {
    let Some(endpoint) = endpoint else { return format!("AWS S3 in {region}") };
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Location, Repository};
    use crate::store::s3::{self, Access, Options};

    #[test]
    fn a_connection_that_was_taken_is_told_from_one_that_was_refused() {
        for cut_off in [
            "connection error: Connection reset by peer (os error 104)",
            "connection closed before message completed",
            "error writing a body to connection: Broken pipe (os error 32)",
            "tls handshake eof",
        ] {
            assert!(Failure::unreached(cut_off).is_cut_off(), "{cut_off}");
        }
        assert!(Failure::broke("5 bytes of 9 arrived").is_cut_off());
        for nobody in ["tcp connect error: Connection refused", "dns error", "invalid HTTP version parsed"] {
            assert!(!Failure::unreached(nobody).is_cut_off(), "{nobody}");
        }
    }

    #[test]
    fn endpoints_are_shown_without_secrets() {
        let shown = |endpoint| display_endpoint(Some(endpoint), "r");
        assert_eq!(shown("https://user:pw@s3.example.org:9000/x?sig=1"), "https://s3.example.org:9000");
        assert_eq!(shown("http://127.0.0.1:1?x=y"), "http://127.0.0.1:1");
        assert_eq!(display_endpoint(None, "eu-west-1"), "AWS S3 in eu-west-1");
    }

    #[test]
    fn messages_are_bounded_and_clean() {
        assert_eq!(bounded("a\nb\u{1b}c"), "a b c");
        assert_eq!(bounded(&"é".repeat(400)).chars().count(), MESSAGE_LIMIT + 1);
    }

    #[tokio::test]
    async fn codes_become_sentences() {
        let repository = Repository {
            location: Location::S3 { bucket: "b".to_owned(), prefix: "p".to_owned() },
            endpoint: Some("http://h".to_owned()),
            region: Some("eu-west-1".to_owned()),
            path_style: true,
            lock: None,
        };
        let store = s3::open_with(&repository, &Access::Chain, Options::default()).await.unwrap();
        let explain = |status, code: &str, message: &str, region: Option<&str>| {
            let failure = Failure {
                status: Some(status),
                code: code.to_owned(),
                message: message.to_owned(),
                region: region.map(str::to_owned),
                ..Failure::default()
            };
            failure.explain(&store, "write a")
        };
        let says = |error: StoreError, part: &str| assert!(error.to_string().contains(part), "{error}");
        let moved = explain(301, "PermanentRedirect", "", Some("us-west-2"));
        says(moved, "bucket \"b\" is not in \"eu-west-1\", it is in \"us-west-2\": set repository.region");
        says(explain(400, "AuthorizationHeaderMalformed", "expecting 'x'", None), "(expecting 'x')");
        for (code, part) in [
            ("ExpiredToken", "session token has expired"),
            ("InvalidToken", "AWS_SESSION_TOKEN"),
            ("RequestTimeTooSkewed", "set the clock"),
            ("AccessDenied", "access denied by http://h (because)"),
        ] {
            let error = explain(403, code, "because", None);
            assert!(matches!(error, StoreError::Denied(_)), "{error:?}");
            says(error, part);
        }
        assert!(matches!(explain(400, "BadDigest", "", None), StoreError::Corrupt(_)));
        assert!(matches!(explain(501, "NotImplemented", "", None), StoreError::Unsupported(_)));
        assert!(matches!(explain(404, "", "", None), StoreError::NotFound(_)));
        for (status, code) in [(507, ""), (507, "XMinioStorageFull"), (403, "QuotaExceeded")] {
            says(explain(status, code, "", None), "no room left in bucket \"b\"");
        }
        says(
            Failure::broke("sent 5 of 9 bytes").explain(&store, "read a"),
            "read a: http://h sent 5 of 9 bytes",
        );
        says(explain(405, "", "", None), "HTTP 405 without an S3 error code: is it an S3 end point?");
        says(explain(400, "SomethingNew", "why", None), "http://h answered SomethingNew (why)");
    }

    #[test]
    fn transport_failures_say_what_to_do() {
        let text = |said| Failure::unreached(said).explain_transport("read a", "http://h").to_string();
        assert!(text("no providers in chain provided credentials").contains("AWS_ACCESS_KEY_ID"));
        let metadata = "an error occurred while loading credentials: failed to load IMDS session token";
        assert!(text(metadata).contains("no AWS credentials found"));
        let profile = "an error occurred while loading credentials: profile file credentials provider \
                       initialization error already taken";
        assert!(text(profile).contains("AWS_PROFILE must name"));
        let broken = "an error occurred while loading credentials: credential_process exited with 1";
        assert!(text(broken).contains("exited with 1"));
        assert!(text("invalid peer certificate: UnknownIssuer").contains("AWS_CA_BUNDLE"));
        assert!(text("tcp connect error: Connection refused").contains("cannot reach http://h"));
    }
}
