//! What a broker sends: it must not panic, and what has arrived at once is what arrives piece by piece.
//! The first byte of the input decides how long the pieces are.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use opsd::monitor::mqtt::packet::{Packet, take};

/// The packets, and whether all of it was MQTT.
fn packets(bytes: &[u8], piece: usize) -> (Vec<Packet>, bool) {
    let (mut unread, mut found) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        unread.extend_from_slice(piece);
        loop {
            match take(&mut unread) {
                Ok(Some(packet)) => found.push(packet),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
    }
    (found, true)
}

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    assert_eq!(packets(bytes, usize::from(*first).max(1)), packets(bytes, usize::MAX));
});
