//! Round trips and damage, in memory.

mod release;

use proptest::prelude::*;

use super::*;
use crate::config::keys;
use crate::set::manifest::MAX_HEADER;
use crate::store::StoreError;
use crate::store::faulty::{Fault, FaultyStore, Operation, Rule};
use crate::store::memory::MemoryStore;

const KEY: &str = "shop/data-1.pgdump.zst.age";

fn key_pair() -> (Box<dyn age::Recipient + Send + Sync>, Identities) {
    let identity = age::x25519::Identity::generate();
    (Box::new(identity.to_public()), Arc::new(vec![Box::new(identity)]))
}

/// Options that cut objects after `segment` bytes of compressed data, up to 1 MiB: of limits that small
/// half is left for what age adds.
fn options(recipient: Box<dyn age::Recipient + Send + Sync>, part_size: usize, segment: u64) -> SealOptions {
    let segment_limit = 2 * segment;
    SealOptions {
        recipients: Arc::new(vec![recipient]),
        level: 3,
        part_size,
        segment_limit,
        pool: BufferPool::new(part_size),
    }
}

/// Bytes that do not compress, the same every time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn sealed(store: &dyn Store, bytes: &[u8], options: &SealOptions) -> Stream {
    seal_bytes(store, "set/", KEY, "data-1", bytes.to_vec(), options).await.unwrap()
}

async fn unsealed(store: &MemoryStore, stream: &Stream, identities: &Identities) -> Result<Vec<u8>> {
    read_bytes(Arc::new(store.clone()), "set/", stream, identities.clone(), 1 << 30).await
}

async fn stored(store: &MemoryStore, object: &Object) -> Vec<u8> {
    store.read(&format!("set/{}", object.key), 0..object.size).await.unwrap().to_vec()
}

/// An age file as a manifest describes it.
fn described(key: &str, file: &[u8]) -> Object {
    let end = header::end(file).unwrap().unwrap();
    let header = header::pin(&file[..end]);
    Object { key: key.into(), size: file.len() as u64, sha256: sha256_hex(file), header }
}

/// An age file of these bytes, stored and described as a manifest would.
async fn crafted(
    store: &MemoryStore,
    inside: &[u8],
    plain_size: u64,
    tail: &[u8],
    to: &dyn age::Recipient,
) -> Stream {
    let mut file = Vec::new();
    let mut age = age::Encryptor::with_recipients([to].into_iter()).unwrap().wrap_output(&mut file).unwrap();
    age.write_all(inside).unwrap();
    age.finish().unwrap();
    file.extend_from_slice(tail);
    let object = described(KEY, &file);
    store.overwrite(&format!("set/{KEY}"), file);
    Stream { name: "data-1".into(), plain_size, objects: vec![object], seconds: 0.0, locks: None }
}

/// All pieces of a stream of `bytes`.
fn pieces(bytes: Vec<u8>, options: &SealOptions) -> Vec<Piece> {
    let (mut writer, mut receiver) = seal(options, options.buffers(0)).unwrap();
    let thread = std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.finish().unwrap()
    });
    // Copied, because the memory of parts is wanted back.
    let pieces = std::iter::from_fn(|| receiver.blocking_recv())
        .map(|piece| match piece {
            Piece::Part(part) => Piece::Part(Bytes::copy_from_slice(&part)),
            other => other,
        })
        .collect();
    thread.join().unwrap();
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_is_sealed_comes_back(
        length in prop_oneof![Just(0usize), Just(1), 0usize..20_000], part in 1usize..3000, segment in 200u64..30_000,
    ) {
        let (recipient, identities) = key_pair();
        let bytes = noise(length);
        runtime().block_on(async {
            let store = MemoryStore::new();
            let stream = sealed(&store, &bytes, &options(recipient, part, segment)).await;
            assert_eq!(stream.plain_size, bytes.len() as u64);
            assert_eq!(unsealed(&store, &stream, &identities).await.unwrap(), bytes);
            let listed = store.list("").await.unwrap();
            assert_eq!(listed.len(), stream.objects.len());
            for object in &stream.objects {
                let content = stored(&store, object).await;
                assert_eq!(described(&object.key, &content), *object);
            }
        });
    }

    #[test]
    fn parts_are_of_one_size_but_for_the_last_of_an_object(
        length in 0usize..5000, part_size in 1usize..400, segment in 100u64..3000,
    ) {
        let (recipient, _) = key_pair();
        let mut parts: Vec<usize> = Vec::new();
        let mut finished = false;
        for piece in pieces(noise(length), &options(recipient, part_size, segment)) {
            prop_assert!(!finished);
            match piece {
                Piece::Part(part) => {
                    prop_assert!(parts.last().is_none_or(|last| *last == part_size));
                    prop_assert!(!part.is_empty());
                    parts.push(part.len());
                    // Neither reallocated while it filled nor larger than a part.
                    let buffer = part.try_into_mut().unwrap();
                    prop_assert!(buffer.capacity() <= part_size.max(8));
                }
                Piece::End { size, .. } => {
                    prop_assert_eq!(parts.iter().sum::<usize>() as u64, size);
                    prop_assert!(!parts.is_empty());
                    parts.clear();
                }
                Piece::Finished => finished = true,
            }
        }
        prop_assert!(finished && parts.is_empty());
    }
}

#[test]
fn an_object_that_fills_its_last_part_has_no_empty_part_behind_it() {
    // Sizes vary with age's random greasing, so that some of these end on a boundary.
    let mut full = 0;
    for _ in 0..20 {
        for part_size in 1..20 {
            let (recipient, _) = key_pair();
            let all = pieces(noise(10), &options(recipient, part_size, 1000));
            let Some([Piece::Part(last), Piece::End { .. }, Piece::Finished]) = all.last_chunk() else {
                panic!("a part, its end, the end")
            };
            assert!(!last.is_empty());
            full += usize::from(last.len() == part_size);
        }
    }
    assert!(full > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_age_files_and_together_zstd_frames() {
    let (recipient, identities) = key_pair();
    let bytes = noise(5_000);
    let store = MemoryStore::new();
    let stream = sealed(&store, &bytes, &options(recipient, 64, 1_000)).await;
    let keys: Vec<&str> = stream.objects.iter().map(|o| o.key.as_str()).collect();
    assert!(keys.len() >= 5);
    assert_eq!(keys[..3], [KEY.to_owned(), format!("{KEY}.001"), format!("{KEY}.002")]);
    let mut frame = Vec::new();
    for object in &stream.objects {
        let file = stored(&store, object).await;
        let decryptor = age::Decryptor::new(&file[..]).unwrap();
        let mut reader = decryptor.decrypt(identities.iter().map(|i| &**i as &dyn age::Identity)).unwrap();
        reader.read_to_end(&mut frame).unwrap();
    }
    assert_eq!(zstd::bulk::decompress(&frame, bytes.len()).unwrap(), bytes, "one frame");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_longer_than_a_block_comes_back_at_every_level() {
    for (level, blocks) in [(1, 1), (1, 3), (5, 1), (12, 1)] {
        for extra in [0, 1] {
            let (recipient, identities) = key_pair();
            let bytes = noise(blocks * block_size(level) + extra);
            let store = MemoryStore::new();
            let options = SealOptions { level, ..options(recipient, 1 << 20, 6 << 20) };
            let stream = sealed(&store, &bytes, &options).await;
            assert_eq!(unsealed(&store, &stream, &identities).await.unwrap(), bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recipient_can_read_and_nobody_else() {
    let (one, first) = key_pair();
    let (two, second) = key_pair();
    let (_, stranger) = key_pair();
    let mut options = options(one, 64, 10_000);
    options.recipients =
        Arc::new(Arc::into_inner(options.recipients).unwrap().into_iter().chain([two]).collect());
    let store = MemoryStore::new();
    let stream = sealed(&store, b"rows", &options).await;
    for identities in [&first, &second] {
        assert_eq!(unsealed(&store, &stream, identities).await.unwrap(), b"rows");
    }
    let error = unsealed(&store, &stream, &stranger).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().contains("no identity fits"), "{error}");
    assert!(error.hint().unwrap().contains("encryption.identity_file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_writer_leaves_nothing() {
    for written in [0, 10, 100_000] {
        let (recipient, _) = key_pair();
        let store = MemoryStore::new();
        let options = options(recipient, 1000, 1 << 30);
        let (mut writer, receiver) = seal(&options, options.buffers(0)).unwrap();
        let thread = tokio::task::spawn_blocking(move || {
            writer.write_all(&noise(written)).unwrap();
            writer.flush().unwrap();
        });
        let uploaded = upload(&store, "set/", KEY, receiver, |_| ()).await.unwrap();
        thread.await.unwrap();
        assert!(uploaded.is_none());
        assert!(store.list("").await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_says_is_the_error() {
    let full = || StoreError::Other("disk is full".into());
    let faults = [
        Rule::new(Operation::Begin, 1, Fault::Fail(full())),
        Rule::new(Operation::PutPart, 1, Fault::Fail(full())),
        Rule::new(Operation::PutPart, 7, Fault::Fail(full())),
        Rule::new(Operation::Commit, 1, Fault::Fail(full())),
    ];
    for rule in faults {
        let (recipient, _) = key_pair();
        let inner = MemoryStore::new();
        let store = FaultyStore::new(Arc::new(inner.clone()), vec![rule.clone()]);
        let result =
            seal_bytes(&store, "set/", KEY, "data-1", noise(10_000), &options(recipient, 1000, 1 << 30))
                .await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains("disk is full") && error.contains(KEY), "{rule:?}: {error}");
        assert!(inner.list("").await.unwrap().is_empty(), "{rule:?}");
    }
    // A store that loses bytes and says nothing is found out by whoever reads.
    let (recipient, identities) = key_pair();
    let inner = MemoryStore::new();
    let store =
        FaultyStore::new(Arc::new(inner.clone()), vec![Rule::new(Operation::PutPart, 2, Fault::Truncate(3))]);
    let stream = sealed(&store, &noise(10_000), &options(recipient, 1000, 1 << 30)).await;
    assert_eq!(unsealed(&inner, &stream, &identities).await.unwrap_err().kind(), Kind::Differs);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_changed_byte_is_a_difference_wherever_it_is() {
    let (recipient, identities) = key_pair();
    let store = MemoryStore::new();
    let stream = sealed(&store, &noise(600), &options(recipient, 64, 300)).await;
    assert!(stream.objects.len() > 1);
    for object in &stream.objects {
        let good = stored(&store, object).await;
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            store.overwrite(&format!("set/{}", object.key), bad);
            let error = unsealed(&store, &stream, &identities).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Differs, "byte {at} of {}: {error}", object.key);
        }
        for end in [0, 1, good.len() / 2, good.len() - 1] {
            store.overwrite(&format!("set/{}", object.key), good[..end].to_vec());
            let error = unsealed(&store, &stream, &identities).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Differs, "cut at {end}: {error}");
        }
        store.delete(&format!("set/{}", object.key)).await.unwrap();
        let error = unsealed(&store, &stream, &identities).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Differs, "{error}");
        store.overwrite(&format!("set/{}", object.key), good);
    }
    assert!(unsealed(&store, &stream, &identities).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_changed_places_are_a_difference() {
    let (recipient, identities) = key_pair();
    let options = options(recipient, 64, 500);
    let store = MemoryStore::new();
    let stream = sealed(&store, &noise(2_000), &options).await;
    let other = seal_bytes(&store, "set/", "shop/schema.age", "schema", noise(450), &options).await.unwrap();
    let all: Vec<&Object> = stream.objects.iter().chain(&other.objects).collect();
    for a in 0..all.len() {
        for b in 0..a {
            let (left, right) = (stored(&store, all[a]).await, stored(&store, all[b]).await);
            store.overwrite(&format!("set/{}", all[a].key), right.clone());
            store.overwrite(&format!("set/{}", all[b].key), left.clone());
            let error = unsealed(&store, &stream, &identities).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Differs, "{a} and {b}: {error}");
            store.overwrite(&format!("set/{}", all[a].key), left);
            store.overwrite(&format!("set/{}", all[b].key), right);
        }
    }
    // So it is when the manifest lists them in another order.
    let mut shuffled = stream.clone();
    shuffled.objects.swap(1, 2);
    assert_eq!(unsealed(&store, &shuffled, &identities).await.unwrap_err().kind(), Kind::Differs);
    shuffled.objects.pop();
    assert_eq!(unsealed(&store, &shuffled, &identities).await.unwrap_err().kind(), Kind::Differs);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_comes_out_than_the_manifest_states() {
    let (recipient, identities) = key_pair();
    let store = MemoryStore::new();
    let stream = sealed(&store, &vec![0; 50 << 20], &options(recipient, 1 << 16, 1 << 30)).await;
    assert!(stream.objects[0].size < 1 << 20, "a bomb");
    for plain_size in [0, 10, (50 << 20) - 1, (50 << 20) + 1, u64::MAX] {
        let claimed = Stream { plain_size, ..stream.clone() };
        let reader = read_stream(Arc::new(store.clone()), "set/", &claimed, identities.clone(), |_| ());
        let mut reader = reader.unwrap();
        let (error, came) = tokio::task::spawn_blocking(move || {
            let (mut buffer, mut came) = (vec![0; 4096], 0);
            loop {
                match reader.read(&mut buffer) {
                    Ok(0) => panic!("it ended well"),
                    Ok(n) => came += n as u64,
                    Err(error) => return (Error::from(error), came),
                }
            }
        })
        .await
        .unwrap();
        assert_eq!(error.kind(), Kind::Differs, "{plain_size}: {error}");
        assert!(came <= plain_size, "{came} of {plain_size}");
    }
    let claimed = Stream { plain_size: u64::MAX, ..stream };
    let error = read_bytes(Arc::new(store), "set/", &claimed, identities, 1 << 20).await.unwrap_err();
    assert!(error.to_string().contains("claims"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_that_nothing_can_have_cost_nothing() {
    let (recipient, identities) = key_pair();
    let store = MemoryStore::new();
    let mut stream = sealed(&store, b"rows", &options(recipient, 64, 1 << 30)).await;
    stream.objects[0].size = u64::MAX;
    assert_eq!(unsealed(&store, &stream, &identities).await.unwrap_err().kind(), Kind::Differs);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_decrypts_but_is_not_what_the_manifest_says_is_a_difference() {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public();
    let identities: Identities = Arc::new(vec![Box::new(identity)]);
    let store = MemoryStore::new();
    let frame = zstd::bulk::compress(b"rows", 3).unwrap();
    let good = crafted(&store, &frame, 4, b"", &recipient).await;
    assert_eq!(unsealed(&store, &good, &identities).await.unwrap(), b"rows");

    let second = [frame.clone(), frame.clone()].concat();
    let trailing = [frame.clone(), b"garbage".to_vec()].concat();
    let cut = frame[..frame.len() - 1].to_vec();
    // Empty, but a decoder would have to hold 2 GiB for it.
    let window = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    for (what, inside, size) in [
        ("a second frame", second, 4),
        ("garbage", trailing, 4),
        ("a frame that ends early", cut, 4),
        ("a huge window", window, 0),
        ("nothing", Vec::new(), 4),
        ("no frame at all", b"rows".to_vec(), 4),
    ] {
        let stream = crafted(&store, &inside, size, b"", &recipient).await;
        let error = unsealed(&store, &stream, &identities).await.expect_err(what);
        assert_eq!(error.kind(), Kind::Differs, "{what}: {error}");
    }
    // Behind the age file's last chunk, with a manifest that agrees.
    for tail in [&b"x"[..], &[0; 100]] {
        let stream = crafted(&store, &frame, 4, tail, &recipient).await;
        assert_eq!(unsealed(&store, &stream, &identities).await.unwrap_err().kind(), Kind::Differs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_window_that_we_write_can_be_read() {
    let identity = age::x25519::Identity::generate();
    let store = MemoryStore::new();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(WINDOW_LOG_MAX).unwrap();
    encoder.write_all(b"rows").unwrap();
    let stream = crafted(&store, &encoder.finish().unwrap(), 4, b"", &identity.to_public()).await;
    let identities: Identities = Arc::new(vec![Box::new(identity)]);
    assert_eq!(unsealed(&store, &stream, &identities).await.unwrap(), b"rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_is_not_called_a_difference() {
    let (recipient, identities) = key_pair();
    let inner = MemoryStore::new();
    let stream = sealed(&inner, b"rows", &options(recipient, 64, 1 << 30)).await;
    let rule = Rule::new(Operation::Read, 1, Fault::Fail(StoreError::Other("connection reset".into())));
    let store = FaultyStore::new(Arc::new(inner), vec![rule]);
    let error = read_bytes(Arc::new(store), "set/", &stream, identities, 100).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().contains("connection reset"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_ends_the_fetching() {
    let (recipient, identities) = key_pair();
    let inner = MemoryStore::new();
    let bytes = noise(40 << 20);
    let stream = sealed(&inner, &bytes, &options(recipient, 1 << 20, 1 << 30)).await;
    let ranges = stream.objects[0].size.div_ceil(READ_RANGE);
    let rule = Rule::new(Operation::Read, u64::MAX, Fault::LoseResponse);
    let faulty = FaultyStore::new(Arc::new(inner), vec![rule]);
    let store: Arc<dyn Store> = Arc::new(faulty.clone());
    let mut reader = read_stream(store.clone(), "set/", &stream, identities, |_| ()).unwrap();
    let reader = tokio::task::spawn_blocking(move || {
        reader.read_exact(&mut [0; 1000]).unwrap();
        reader
    });
    drop(reader.await.unwrap());
    // The task holds the only other handle.
    let ended = async {
        while Arc::strong_count(&store) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), ended).await.unwrap();
    assert!(faulty.calls()[0] < ranges, "{} of {ranges} ranges were read", faulty.calls()[0]);
}
