//! What comes out of objects that somebody changed, and what of a header is read.

use super::*;

/// Reads a stream until it fails; what came out by then.
async fn released(store: &MemoryStore, stream: &Stream, identities: &Identities) -> (Vec<u8>, Error) {
    let reader = read_stream(Arc::new(store.clone()), "set/", stream, identities.clone(), |_| ());
    let mut reader = reader.unwrap();
    tokio::task::spawn_blocking(move || {
        let mut out = Vec::new();
        let error = reader.read_to_end(&mut out).expect_err("it is not what the manifest says");
        assert!(reader.read(&mut [0; 10]).is_err(), "after an error nothing comes");
        (out, error.into())
    })
    .await
    .unwrap()
}

fn is_named(error: &Error, key: &str) -> bool {
    error.kind() == Kind::Differs
        && error.to_string().contains(&format!("object {key} was changed since the backup wrote it"))
        && error.hint().is_some()
}

/// Anybody can encrypt to a public key, and make the file as long as he likes.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_object_of_a_strangers_comes_out() {
    // The last object has room for a header of any length: age puts a stanza of its own invention into each.
    const SIZE: usize = (3 << 20) + (1 << 19);
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public();
    let identities: Identities = Arc::new(vec![Box::new(identity)]);
    let store = MemoryStore::new();
    let options = options(Box::new(recipient.clone()), 1 << 16, 1 << 20);
    let stream = sealed(&store, &noise(SIZE), &options).await;
    assert!(stream.objects.len() > 2);
    for (at, object) in stream.objects.iter().enumerate() {
        let good = stored(&store, object).await;
        let theirs = zstd::bulk::compress(&vec![b'!'; 1 << 20], 3).unwrap();
        let mut file = age::encrypt(&recipient, &theirs).unwrap();
        // What lies behind it only a reader that went so far would see.
        file.resize(good.len(), 0);
        let end = header::end(&good).unwrap().unwrap();
        let their_end = header::end(&file).unwrap().unwrap();
        // With the header of the backup, a stranger's chunks do not decrypt; with his own it is another.
        let spliced = [&good[..end], &file[their_end..], &[0; 1000]].concat()[..good.len()].to_vec();
        for (what, bad) in [("whole", file), ("payload", spliced)] {
            store.overwrite(&format!("set/{}", object.key), bad);
            let (out, error) = released(&store, &stream, &identities).await;
            assert!(is_named(&error, &object.key), "{what} of {at}: {error}");
            assert!(noise(SIZE).starts_with(&out), "{what} of {at}");
            assert!(at > 0 || out.is_empty(), "{what}: {} bytes", out.len());
        }
        store.overwrite(&format!("set/{}", object.key), good);
    }
    assert!(unsealed(&store, &stream, &identities).await.is_ok());
}

/// age's chunks are of 64 KiB, zstd's blocks of 128 KiB.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_out_from_where_an_object_was_changed_on() {
    const CHUNK: usize = (64 << 10) + 16;
    let (recipient, identities) = key_pair();
    let store = MemoryStore::new();
    let bytes = noise(2 << 20);
    let stream = sealed(&store, &bytes, &options(recipient, 1 << 16, 1 << 30)).await;
    let object = &stream.objects[0];
    let good = stored(&store, object).await;
    let start = header::end(&good).unwrap().unwrap();
    let chunk = |n: usize| start + n * CHUNK..start + (n + 1) * CHUNK;
    let cut = |n: usize| {
        let mut bad = good[..chunk(n).start].to_vec();
        // As long as before: the listing tells nothing.
        bad.resize(good.len(), 0);
        bad
    };
    let mut swapped = good.clone();
    swapped[chunk(20)].copy_from_slice(&good[chunk(21)]);
    swapped[chunk(21)].copy_from_slice(&good[chunk(20)]);
    let mut flipped = good.clone();
    flipped[chunk(25).start + 7] ^= 1;
    let dropped = [&good[..chunk(10).start], &good[chunk(11).start..], &[0; CHUNK]].concat();
    for (what, bad, n) in
        [("cut", cut(9), 9), ("swapped", swapped, 20), ("flipped", flipped, 25), ("dropped", dropped, 10)]
    {
        store.overwrite(&format!("set/{KEY}"), bad);
        let (out, error) = released(&store, &stream, &identities).await;
        assert!(is_named(&error, KEY), "{what}: {error}");
        assert!(bytes.starts_with(&out) && out.len() <= n << 16, "{what}: {} bytes", out.len());
        assert!(out.len() >= (n - 2) << 16, "{what}: what comes before is the backup's own");
    }
    // Really shorter, as a store may have it: at the border of a chunk.
    let end = chunk(9).start;
    store.overwrite(&format!("set/{KEY}"), good[..end].to_vec());
    let claimed = Object { size: end as u64, ..object.clone() };
    let stream = Stream { objects: vec![claimed], ..stream.clone() };
    let (out, error) = released(&store, &stream, &identities).await;
    assert!(is_named(&error, KEY) && bytes.starts_with(&out), "{error}");
}

/// The parser of age reads a header anew with each of its lines: 66 KB of them took 17 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_is_held_to_bounds_before_it_is_parsed() {
    let (recipient, identities) = key_pair();
    let store = MemoryStore::new();
    let stream = sealed(&store, b"rows", &options(recipient, 64, 1 << 30)).await;
    let of = |body: &str| {
        let mut file = format!("age-encryption.org/v1\n{body}--- {}\n", "A".repeat(43)).into_bytes();
        file.extend([0; 100]);
        file
    };
    let stanzas = of(&"-> a\n\n".repeat(11_000));
    assert!(stanzas.len() > 66_000);
    // In the place of an object, for which the manifest pins another.
    let object = Object { size: stanzas.len() as u64, ..stream.objects[0].clone() };
    let replaced = Stream { objects: vec![object], ..stream.clone() };
    store.overwrite(&format!("set/{KEY}"), stanzas.clone());
    let error = unsealed(&store, &replaced, &identities).await.unwrap_err();
    assert!(is_named(&error, KEY) && error.to_string().contains("that the manifest pins"), "{error}");
    // And where an unsigned manifest pins it.
    for file in [
        stanzas,
        of(&"-> a\n\n".repeat(40)),
        of(&format!("-> a\n{}", "A\n".repeat(1000))),
        of(&format!("-> {}\n\n", "a".repeat(17_000))),
        b"age-encryption.org/v1\n-> ".repeat(1_000),
    ] {
        let end = file.iter().rposition(|byte| *byte == b'\n').unwrap() + 17;
        let header = header::pin(&file[..end.min(file.len())]);
        let (size, sha256) = (file.len() as u64, sha256_hex(&file));
        let object = Object { key: KEY.into(), size, sha256, header };
        store.overwrite(&format!("set/{KEY}"), file);
        let claimed = Stream { objects: vec![object], ..stream.clone() };
        let error = unsealed(&store, &claimed, &identities).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Differs, "{error}");
        let said = error.to_string();
        assert!(said.contains("header") && said.contains(KEY) && !said.contains("decrypt"), "{said}");
    }
}

/// What somebody can change who holds an identity, and so knows the file's key: what he wrote decrypts.
/// The hash of the whole object is the reason that is told, whatever was made of the content first.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_object_is_the_cause_whatever_its_content_led_to() {
    let (recipient, identities) = key_pair();
    let store = MemoryStore::new();
    let mut stream = sealed(&store, &noise(3 << 20), &options(recipient, 1 << 16, 1 << 20)).await;
    let count = stream.objects.len();
    assert!(count > 2);
    let stopped = async |stream: &Stream, read: usize| {
        let reader = read_stream(Arc::new(store.clone()), "set/", stream, identities.clone(), |_| ());
        let mut reader = reader.unwrap();
        tokio::task::spawn_blocking(move || {
            reader.read_exact(&mut vec![0; read]).unwrap();
            reader.cause(Error::new("division by zero"))
        })
        .await
        .unwrap()
    };
    assert_eq!(stopped(&stream, 1000).await.to_string(), "division by zero");
    for at in 0..count {
        let good = std::mem::replace(&mut stream.objects[at].sha256, "0".repeat(64));
        for read in [0, 1000] {
            let error = stopped(&stream, read).await;
            assert!(is_named(&error, &stream.objects[at].key), "{at}: {error}");
        }
        let (_, error) = released(&store, &stream, &identities).await;
        assert!(is_named(&error, &stream.objects[at].key), "{at}: {error}");
        stream.objects[at].sha256 = good;
    }
    // A store that fails is no reason to blame anybody.
    let rule = Rule::new(Operation::Read, 2, Fault::Fail(StoreError::Other("connection reset".into())));
    let faulty: Arc<dyn Store> = Arc::new(FaultyStore::new(Arc::new(store.clone()), vec![rule]));
    let mut reader = read_stream(faulty, "set/", &stream, identities.clone(), |_| ()).unwrap();
    let error = tokio::task::spawn_blocking(move || {
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        reader.cause(error.into())
    });
    let error = error.await.unwrap();
    assert!(error.kind() == Kind::Failed && error.to_string().contains("connection reset"), "{error}");
}

/// The largest header that a configuration can lead to is one that a reader takes.
#[test]
fn as_many_recipients_as_are_allowed_can_read_what_was_written() {
    const RSA_4096: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAACAQDAIqED4Wexpf0VoWhfuO0wKEDHp1JJ2ddrm+K3gZYH50sqXqptK0YMKFRDnMwkW3qlR43JBI8lCLhseAP2mrcA9ttupameGOXzxc3+Mfvbkdhxym1nO+Zm8q5PmUdvM1pi7p3d7cIN4as5wKP0TdoJgm7O0vMXeTcw7Lppso/j4p0rJNvTBpxnRc0MjvXOqRoCTQNGF24yiWvT3dLQaFOUp72Tz5rFRBeAwo+Yqz1z96CzCAvEISxpLtx7oOKsijaQgEHRIssZbhfSYyCm+5cQvwhyxZ1jHG1DEZw8OJbJeoCSX9RXwnhimMp5mDCa6icoWu93IBsc/TKdwXT0b/QxHo6OmyVv5g2i3nX/ab9EHvNbdWkpYE06HpbecRGt4WUAFyD1KYdmO8eQC2Rtux7u6LAo1TkW2qu74uKjLzE4bKZwTusD7BET45j/iCIQuejx6cSEW7VxvIbm/IJMqye6ichkEi2GpPd0Qt3ABzPvTiIIhsxLJIEVDW88o7TNqehCKhDIqurN9AncFM8ihlszGIzqKtlpZCzlvHJ6ApqhHK0npC6AP2iahGaHAfn76eykqkL/3tL4BNQ2ExCbDYzWHkiu6aMbr3Dz5WAfpEw7q9PH2g/hD5tZ4DTv2SmLD7IJeW0xQkFsxIjBtntTFIZsJaHxyHxKUqYtNEMY0Pyoow==";
    let of = |count: usize| -> Recipients {
        Arc::new(keys::recipients(&vec![RSA_4096.to_owned(); count]).unwrap())
    };
    let (recipient, _) = key_pair();
    let options = options(recipient, 1 << 16, 1 << 20);
    let most = SealOptions { recipients: of(keys::MAX_RECIPIENTS), ..options.clone() };
    let all = pieces(b"rows".to_vec(), &most);
    let [Piece::Part(part), Piece::End { header, .. }, Piece::Finished] = &all[..] else { panic!("a part") };
    // What age adds at random has up to 250 bytes.
    assert!((14_000..MAX_HEADER - 250).contains(&header.size), "{}", header.size);
    assert_eq!(header::end(part).unwrap(), Some(usize::try_from(header.size).unwrap()));
    assert!(age::Decryptor::new(&part[..]).is_ok());
    // More than that is not written.
    let many = SealOptions { recipients: of(keys::MAX_RECIPIENTS + 4), ..options };
    let (mut writer, _pieces) = seal(&many, many.buffers(0)).unwrap();
    writer.write_all(b"rows").unwrap();
    let error = writer.finish().unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().contains("the header has"), "{error}");
}
