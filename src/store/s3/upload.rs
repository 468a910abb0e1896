//! Writing one object: a single part as one PUT, more as a multipart upload.
//!
//! The first part is held back until it is known whether there is a second. Parts of a multipart
//! upload are sent in the background, a bounded number at a time; the object appears when the
//! upload is completed. A credential that may only put and abort is enough: what it may not read
//! back is then believed from the store's answer.

use async_trait::async_trait;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::attempt::{ANSWER, ANSWER_TO_COMPLETE, Attempt};
use super::failure::Failure;
use super::retry::Patience;
use super::{Checksums, Learned, S3Store};
use crate::store::{StoreError, Upload, size_mismatch};

/// Parts of one object on their way at the same time. Two keep the line busy while one waits for
/// its answer; each costs a part's memory for every stream.
const PARTS_IN_FLIGHT: usize = 2;

/// S3's limit; some providers have a lower one and say so themselves.
const MAX_PARTS: i32 = 10_000;

/// CRC32 as S3 writes it: big-endian, base64.
pub(super) fn crc32(bytes: &[u8]) -> String {
    BASE64.encode(crc32fast::hash(bytes).to_be_bytes())
}

/// What a store keeps as the CRC32 of a multipart object: of the parts' CRC32s, as `…-<parts>`, or, as newer
/// ones do, of the whole.
struct MultipartCrc32 {
    composite: String,
    whole: String,
}

impl MultipartCrc32 {
    /// From the parts in their order, and the bytes that each of them has.
    fn of(parts: &[CompletedPart], sizes: &[u64]) -> Option<Self> {
        let (mut composite, mut whole) = (crc32fast::Hasher::new(), crc32fast::Hasher::new());
        for (part, size) in parts.iter().zip(sizes) {
            let bytes: [u8; 4] = BASE64.decode(part.checksum_crc32()?).ok()?.try_into().ok()?;
            composite.update(&bytes);
            whole.combine(&crc32fast::Hasher::new_with_initial_len(u32::from_be_bytes(bytes), *size));
        }
        let text = |hasher: crc32fast::Hasher| BASE64.encode(hasher.finalize().to_be_bytes());
        Some(Self { composite: format!("{}-{}", text(composite), parts.len()), whole: text(whole) })
    }
}

/// What the store should hold after a commit.
struct Expected {
    size: u64,
    /// As the store's answer to the commit named it.
    etag: Option<String>,
    /// Each form in which the store may keep it.
    crc32: Vec<String>,
    /// Whether the store said of all bytes that they arrived with the checksum that they were sent with.
    is_verified: bool,
    /// Parts of a multipart object; S3's ETag of one ends in it.
    parts: Option<usize>,
}

/// How what a key holds compares with what was written.
enum Comparison {
    /// It is ours, as far as size, ETag and checksum tell.
    Same {
        /// Whether a checksum of the content was among what was compared.
        by_content: bool,
    },
    /// It is something else, or nothing.
    Different(String),
    /// The credential may not look.
    Unreadable,
}

pub(super) struct S3Upload {
    store: S3Store,
    key: String,
    if_absent: bool,
    /// Held back until there is a second part or the end.
    first: Option<Bytes>,
    multipart: Option<Multipart>,
    accepted: u64,
    runtime: Handle,
}

struct Multipart {
    id: String,
    next_number: i32,
    in_flight: JoinSet<Result<Sent, StoreError>>,
    done: Vec<Sent>,
    /// Bytes of each part, in the order of their numbers.
    sizes: Vec<u64>,
}

/// A part that the store has.
pub(super) struct Sent {
    pub(super) part: CompletedPart,
    /// Whether the store named the checksum that it was sent with.
    is_verified: bool,
}

impl S3Upload {
    /// Must be called on the runtime: an upload that is dropped aborts on it.
    pub(super) fn new(store: S3Store, key: &str, if_absent: bool) -> Self {
        Self {
            store,
            key: key.to_owned(),
            if_absent,
            first: None,
            multipart: None,
            accepted: 0,
            runtime: Handle::current(),
        }
    }

    /// Starts the multipart upload on first use.
    async fn multipart(&mut self) -> Result<&mut Multipart, StoreError> {
        match &mut self.multipart {
            Some(multipart) => Ok(multipart),
            none => {
                let id = self.store.create_multipart(&self.key).await?;
                let (in_flight, done, sizes) = (JoinSet::new(), Vec::new(), Vec::new());
                Ok(none.insert(Multipart { id, next_number: 1, in_flight, done, sizes }))
            }
        }
    }

    /// Hands a part to a task of its own, and returns once another could be sent: whoever waits for a turn
    /// then holds no part meanwhile.
    async fn send(&mut self, part: Bytes) -> Result<(), StoreError> {
        let (store, key) = (self.store.clone(), self.key.clone());
        let multipart = self.multipart().await?;
        let (id, number) = (multipart.id.clone(), multipart.next_number);
        if number > MAX_PARTS {
            return Err(StoreError::Other(format!(
                "cannot write {key}: more than {MAX_PARTS} parts: raise part_size"
            )));
        }
        multipart.next_number += 1;
        multipart.sizes.push(part.len() as u64);
        multipart.in_flight.spawn(async move { store.put_part(&key, &id, number, part).await });
        while multipart.in_flight.len() >= PARTS_IN_FLIGHT {
            multipart.collect_one().await?;
        }
        Ok(())
    }

    /// Takes the multipart upload out and aborts it in the background; nobody waits.
    fn abort_in_background(&mut self) {
        if let Some(multipart) = self.multipart.take() {
            let (store, key) = (self.store.clone(), self.key.clone());
            self.runtime.spawn(async move { multipart.abort(&store, &key).await });
        }
    }
}

impl Multipart {
    async fn collect_one(&mut self) -> Result<(), StoreError> {
        match self.in_flight.join_next().await {
            Some(Ok(part)) => self.done.push(part?),
            Some(Err(e)) => return Err(StoreError::Other(format!("sending a part did not finish: {e}"))),
            None => {}
        }
        Ok(())
    }

    /// Best effort. Parts still on their way are stopped first: one that arrives after the abort
    /// would stay.
    async fn abort(mut self, store: &S3Store, key: &str) {
        self.in_flight.shutdown().await;
        if let Err(error) = store.abort_multipart(key, &self.id).await {
            tracing::debug!(key, %error, "unfinished upload stays at the store");
        }
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        if part.is_empty() {
            return Ok(());
        }
        self.accepted += part.len() as u64;
        if self.multipart.is_none() && self.first.is_none() {
            self.first = Some(part);
            return Ok(());
        }
        if let Some(first) = self.first.take() {
            self.send(first).await?;
        }
        self.send(part).await
    }

    async fn commit(mut self: Box<Self>, size: u64) -> Result<(), StoreError> {
        if self.accepted != size {
            // Dropping aborts.
            return Err(size_mismatch(&self.key, size, self.accepted));
        }
        let Some(multipart) = &mut self.multipart else {
            let body = self.first.take().unwrap_or_default();
            if body.len() as u64 != size {
                return Err(StoreError::Other(format!("upload of {} failed before", self.key)));
            }
            return self.store.put_object(&self.key, body, self.if_absent).await;
        };
        while !multipart.in_flight.is_empty() {
            multipart.collect_one().await?;
        }
        let mut parts = std::mem::take(&mut multipart.done);
        parts.sort_by_key(|sent| sent.part.part_number());
        if parts.len() + 1 != usize::try_from(multipart.next_number).unwrap_or_default() {
            return Err(StoreError::Other(format!("upload of {} failed before", self.key)));
        }
        let (id, sizes) = (multipart.id.clone(), std::mem::take(&mut multipart.sizes));
        let is_verified = parts.iter().all(|sent| sent.is_verified);
        let parts: Vec<CompletedPart> = parts.into_iter().map(|sent| sent.part).collect();
        let crc32 = MultipartCrc32::of(&parts, &sizes);
        let crc32 = crc32.map(|crc32| vec![crc32.composite, crc32.whole]).unwrap_or_default();
        let expected = Expected { size, etag: None, crc32, is_verified, parts: Some(parts.len()) };
        self.store.complete_multipart(&self.key, &id, parts, self.if_absent, expected).await?;
        self.multipart = None;
        Ok(())
    }

    async fn abort(mut self: Box<Self>) {
        if let Some(multipart) = self.multipart.take() {
            multipart.abort(&self.store, &self.key).await;
        }
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        self.abort_in_background();
    }
}

impl S3Store {
    pub(super) fn checksum(&self, bytes: &[u8]) -> Option<String> {
        (self.checksums == Checksums::Crc32).then(|| crc32(bytes))
    }

    /// Whether to send the condition: where asked for, unless this store is known not to have it.
    fn condition(&self, if_absent: bool) -> Option<&'static str> {
        (if_absent && !Learned::get(&self.learned.no_conditions)).then_some("*")
    }

    async fn put_object(&self, key: &str, body: Bytes, if_absent: bool) -> Result<(), StoreError> {
        let size = body.len() as u64;
        let crc32 = self.checksum(&body);
        let doing = format!("write {key}");
        loop {
            let condition = self.condition(if_absent);
            let send = |attempt: Attempt| {
                let request = self
                    .client
                    .put_object()
                    .bucket(&self.bucket)
                    .key(self.full_key(key))
                    .set_checksum_crc32(crc32.clone())
                    .set_if_none_match(condition.map(str::to_owned))
                    .set_object_lock_mode(self.lock_mode())
                    .set_object_lock_retain_until_date(self.lock_until())
                    .body(ByteStream::from(body.clone()))
                    .customize();
                let (body, crc32) = (&body, crc32.as_deref());
                async move {
                    let answer =
                        attempt.send_body(body, |metered| request.interceptor(metered).send()).await?;
                    if other_checksum(crc32, answer.checksum_crc32()) {
                        return Err(Failure::damaged("another checksum than it was sent with"));
                    }
                    Ok(answer)
                }
            };
            let sent = self.retry(&doing, Patience::Full, send).await;
            let own = crc32.iter().cloned().collect();
            let mut expected = Expected { size, etag: None, crc32: own, is_verified: false, parts: None };
            match sent {
                Ok(answer) => {
                    expected.is_verified = answer.checksum_crc32().is_some();
                    expected.etag = answer.e_tag().map(str::to_owned);
                    return self.confirm(key, &expected).await;
                }
                Err(failure) if condition.is_some() && failure.not_implemented() => {
                    Learned::set(&self.learned.no_conditions);
                }
                Err(failure) if condition.is_some() && failure.condition_failed() => {
                    // Only a retry can have met an object of our own; the body is at hand to compare.
                    if !failure.was_retried() {
                        return Err(self.exists(key));
                    }
                    return match self.holds(key, &body).await {
                        Some(true) => Ok(()),
                        Some(false) => Err(self.exists(key)),
                        None => Err(self.taken_by_somebody(key)),
                    };
                }
                Err(failure) if failure.in_doubt => {
                    return match self.holds(key, &body).await {
                        Some(true) => self.confirm_lock(key, false).await,
                        Some(false) => Err(self.explain_write(failure, &doing)),
                        None => Err(self.unanswered(key, failure)),
                    };
                }
                Err(failure) => return Err(self.explain_write(failure, &doing)),
            }
        }
    }

    async fn complete_multipart(
        &self,
        key: &str,
        id: &str,
        parts: Vec<CompletedPart>,
        if_absent: bool,
        mut expected: Expected,
    ) -> Result<(), StoreError> {
        let upload = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let doing = format!("complete {key}");
        loop {
            let condition = self.condition(if_absent);
            let request = self
                .client
                .complete_multipart_upload()
                .bucket(&self.bucket)
                .key(self.full_key(key))
                .upload_id(id)
                .multipart_upload(upload.clone())
                .set_if_none_match(condition.map(str::to_owned));
            let send = |attempt: Attempt| attempt.send(ANSWER_TO_COMPLETE, request.clone().send());
            match self.retry(&doing, Patience::Full, send).await {
                Ok(answer) => {
                    expected.etag = answer.e_tag().map(str::to_owned);
                    return self.confirm(key, &expected).await;
                }
                Err(failure) if condition.is_some() && failure.not_implemented() => {
                    Learned::set(&self.learned.no_conditions);
                }
                Err(failure) if condition.is_some() && failure.condition_failed() => {
                    // Another writer's object can have the same size: only its content tells.
                    if !failure.was_retried() {
                        return Err(self.exists(key));
                    }
                    return match self.compare(key, &expected).await {
                        Ok(Comparison::Same { by_content: true }) => Ok(()),
                        Ok(Comparison::Different(_)) => Err(self.exists(key)),
                        Ok(Comparison::Same { by_content: false } | Comparison::Unreadable) | Err(_) => {
                            Err(self.taken_by_somebody(key))
                        }
                    };
                }
                // Where the upload is gone the first attempt completed it, or somebody aborted it.
                Err(failure)
                    if failure.in_doubt || (failure.code == "NoSuchUpload" && failure.was_retried()) =>
                {
                    return match self.compare(key, &expected).await {
                        // Without a condition nobody else writes here.
                        Ok(Comparison::Same { by_content }) if by_content || condition.is_none() => Ok(()),
                        Ok(Comparison::Different(_)) => Err(failure.explain(self, &doing)),
                        Ok(Comparison::Same { .. } | Comparison::Unreadable) | Err(_) => {
                            Err(self.unanswered(key, failure))
                        }
                    };
                }
                Err(failure) => return Err(failure.explain(self, &doing)),
            }
        }
    }

    fn exists(&self, key: &str) -> StoreError {
        StoreError::Exists(format!("{key} exists already in {}", self.place()))
    }

    /// A key is taken, and nobody here can tell by whom.
    fn taken_by_somebody(&self, key: &str) -> StoreError {
        StoreError::InDoubt(format!(
            "cannot tell whether {key} was written: the answer of {} was lost, there is an object now, and \
             whether it is this one cannot be read back",
            self.endpoint
        ))
    }

    /// The bytes may have arrived, their answer did not, and there is no looking after them.
    pub(super) fn unanswered(&self, key: &str, failure: Failure) -> StoreError {
        let endpoint = &self.endpoint;
        let why = failure.explain(self, "ask again");
        StoreError::InDoubt(format!(
            "cannot tell whether {key} was written: an answer of {endpoint} was lost, and what is there cannot be \
             read: {why}"
        ))
    }

    /// Whether a key holds exactly these bytes; unknown, where it cannot be read.
    pub(super) async fn holds(&self, key: &str, body: &Bytes) -> Option<bool> {
        use crate::store::Store as _;
        // One byte more than ours, so that a longer object is noticed.
        match self.read(key, 0..body.len() as u64 + 1).await {
            Ok(found) => Some(found == *body),
            Err(StoreError::NotFound(_)) => Some(false),
            Err(_) => None,
        }
    }

    /// After the store said yes: does it hold what was sent, as far as the credential may look?
    async fn confirm(&self, key: &str, expected: &Expected) -> Result<(), StoreError> {
        match self.compare(key, expected).await {
            Ok(Comparison::Same { .. } | Comparison::Unreadable) => {
                self.confirm_lock(key, expected.parts.is_some()).await
            }
            Ok(Comparison::Different(how)) => {
                Err(StoreError::Corrupt(format!("{} accepted {key}, but {how}", self.endpoint)))
            }
            Err(why) => Err(StoreError::InDoubt(format!(
                "cannot tell whether {key} was written as it was sent: {} took it, and it cannot be looked at: {why}",
                self.endpoint
            ))),
        }
    }

    async fn compare(&self, key: &str, expected: &Expected) -> Result<Comparison, StoreError> {
        if Learned::get(&self.learned.may_not_read) {
            return Ok(Comparison::Unreadable);
        }
        let mut request = self.client.head_object().bucket(&self.bucket).key(self.full_key(key));
        if !expected.crc32.is_empty() {
            request = request.checksum_mode(ChecksumMode::Enabled);
        }
        let doing = format!("look at {key}");
        let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
        let head = match self.retry(&doing, Patience::Full, send).await {
            Ok(head) => head,
            Err(failure) if failure.is_denied() => {
                Learned::set(&self.learned.may_not_read);
                return Ok(Comparison::Unreadable);
            }
            Err(failure) if failure.is_not_found() => {
                return Ok(Comparison::Different("there is no such object".to_owned()));
            }
            Err(failure) => return Err(failure.explain(self, &doing)),
        };
        let found = super::size(head.content_length());
        if found != expected.size {
            return Ok(Comparison::Different(format!("holds {found} bytes of it, not {}", expected.size)));
        }
        if let (false, Some(theirs)) = (expected.crc32.is_empty(), head.checksum_crc32()) {
            if expected.crc32.iter().any(|ours| ours == theirs) {
                return Ok(Comparison::Same { by_content: true });
            }
            // Of an object in parts a store may keep one of another kind: only like is compared with like.
            let is_whole = head.checksum_type() == Some(&ChecksumType::FullObject);
            if expected.parts.is_none() || is_whole || theirs.contains('-') {
                return Ok(Comparison::Different("the object has another checksum".to_owned()));
            }
        }
        if !expected.is_verified
            && let Some(how) = other_etag(head.e_tag().unwrap_or_default(), expected)
        {
            return Ok(Comparison::Different(how));
        }
        Ok(Comparison::Same { by_content: false })
    }

    pub(super) async fn create_multipart(&self, key: &str) -> Result<String, StoreError> {
        let algorithm = (self.checksums == Checksums::Crc32).then_some(ChecksumAlgorithm::Crc32);
        let request = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full_key(key))
            .set_object_lock_mode(self.lock_mode())
            .set_object_lock_retain_until_date(self.lock_until())
            .set_checksum_algorithm(algorithm);
        let doing = format!("write {key}");
        let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
        let answer = self
            .retry(&doing, Patience::Full, send)
            .await
            .map_err(|failure| self.explain_write(failure, &doing))?;
        answer
            .upload_id()
            .map(str::to_owned)
            .ok_or_else(|| StoreError::Other(format!("{} started an upload without an id", self.endpoint)))
    }

    pub(super) async fn put_part(
        &self,
        key: &str,
        id: &str,
        number: i32,
        part: Bytes,
    ) -> Result<Sent, StoreError> {
        let crc32 = self.checksum(&part);
        let doing = format!("write part {number} of {key}");
        let send = |attempt: Attempt| {
            let request = self
                .client
                .upload_part()
                .bucket(&self.bucket)
                .key(self.full_key(key))
                .upload_id(id)
                .part_number(number)
                .set_checksum_crc32(crc32.clone())
                .body(ByteStream::from(part.clone()))
                .customize();
            let (part, crc32) = (&part, crc32.as_deref());
            async move {
                let answer = attempt.send_body(part, |metered| request.interceptor(metered).send()).await?;
                if other_checksum(crc32, answer.checksum_crc32()) {
                    return Err(Failure::damaged("another checksum than it was sent with"));
                }
                Ok(answer)
            }
        };
        let answer = self
            .retry(&doing, Patience::Full, send)
            .await
            .map_err(|failure| failure.explain(self, &doing))?;
        let is_verified = crc32.is_some() && answer.checksum_crc32().is_some();
        let part = CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag().map(str::to_owned))
            .set_checksum_crc32(crc32)
            .build();
        Ok(Sent { part, is_verified })
    }

    pub(super) async fn abort_multipart(&self, key: &str, id: &str) -> Result<(), StoreError> {
        let request =
            self.client.abort_multipart_upload().bucket(&self.bucket).key(self.full_key(key)).upload_id(id);
        let doing = format!("abort the upload of {key}");
        let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
        match self.retry(&doing, Patience::Brief, send).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.code == "NoSuchUpload" => Ok(()),
            Err(failure) => Err(failure.explain(self, &doing)),
        }
    }
}

/// How an ETag tells that what is there is not what was written. What an ETag is made of is the store's affair:
/// where a checksum was compared, it has nothing to add.
fn other_etag(found: &str, expected: &Expected) -> Option<String> {
    let found = opaque(found);
    if found.is_empty() {
        return None;
    }
    if expected.etag.as_deref().is_some_and(|known| opaque(known) != found) {
        return Some("it has another ETag now: another writer replaced it".to_owned());
    }
    let (_, suffix) = found.rsplit_once('-')?;
    let (parts, found) = (expected.parts?, suffix.parse::<usize>().ok()?);
    (found != parts).then(|| format!("the object has {found} parts, not {parts}"))
}

/// What is in an ETag, strong or weak.
fn opaque(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"')
}

/// Bytes that the store says have another checksum than they were sent with.
fn other_checksum(ours: Option<&str>, theirs: Option<&str>) -> bool {
    matches!((ours, theirs), (Some(ours), Some(theirs)) if ours != theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_written_as_s3_does() {
        // The check value of CRC-32/ISO-HDLC, cbf43926, in base64.
        assert_eq!(crc32(b"123456789"), "y/Q5Jg==");
        let part = |bytes: &[u8]| CompletedPart::builder().checksum_crc32(crc32(bytes)).build();
        let both = MultipartCrc32::of(&[part(b"12345"), part(b"6789")], &[5, 4]).unwrap();
        assert!(both.composite.ends_with("-2"), "{}", both.composite);
        assert_eq!(both.whole, crc32(b"123456789"));
        assert!(MultipartCrc32::of(&[CompletedPart::builder().build()], &[1]).is_none());
    }

    #[test]
    fn an_etag_speaks_only_where_no_checksum_did() {
        let expected = |etag: Option<&str>, parts| Expected {
            size: 1,
            etag: etag.map(str::to_owned),
            crc32: Vec::new(),
            is_verified: false,
            parts,
        };
        let known = expected(Some("\"abc-2\""), Some(2));
        for same in ["\"abc-2\"", "abc-2", "W/\"abc-2\"", ""] {
            assert_eq!(other_etag(same, &known), None, "{same}");
        }
        assert!(other_etag("\"abd-2\"", &known).is_some_and(|how| how.contains("another writer")));
        let unknown = expected(None, Some(2));
        assert!(other_etag("\"abc-3\"", &unknown).is_some_and(|how| how.contains("3 parts, not 2")));
        for odd in ["\"abc\"", "\"550e8400-e29b-41d4-a716-44665544000f\""] {
            assert_eq!(other_etag(odd, &unknown), None, "{odd}");
        }
    }
}
