//! The few packets of MQTT 3.1.1 that a probe needs. Pure: bytes in, packets out.
//!
//! Written here because the client crates bring a second, older TLS stack for what is a hundred lines.

use bytes::BytesMut;

use crate::config::secret::Secret;

/// Larger ones are not of this conversation.
const PACKET_MAX: usize = 64 * 1024;
/// What stands for a subscription that was refused.
pub(super) const REFUSED: u8 = 0x80;
/// A ping.
pub(super) const PING: [u8; 2] = [0xc0, 0];
/// The broker need not watch over this client: each collection does.
const KEEP_ALIVE: [u8; 2] = [0, 0];

/// What a broker sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The answer to a connect, and its code.
    Connected(u8),
    /// The answer to a subscribe: its number, and a code for each topic.
    Subscribed(u16, Vec<u8>),
    /// A message: topic and content.
    Message(String, Vec<u8>),
    /// The answer to a ping.
    Pong,
    /// Something else.
    Other,
}

/// Takes the first packet off the bytes that have arrived, without moving the others; none where it is not
/// whole yet.
pub fn take(bytes: &mut BytesMut) -> Result<Option<Packet>, &'static str> {
    let mut length = 0usize;
    let mut head = 1;
    loop {
        let Some(byte) = bytes.get(head) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * (head - 1));
        head += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if head > 4 {
            return Err("it sends what is no MQTT");
        }
    }
    if length > PACKET_MAX {
        return Err("it sends a packet of more than 64 KiB");
    }
    if bytes.len() < head + length {
        return Ok(None);
    }
    let whole = bytes.split_to(head + length);
    parse(whole[0], &whole[head..]).map(Some).ok_or("it sends a damaged packet")
}

fn parse(first: u8, body: &[u8]) -> Option<Packet> {
    Some(match first >> 4 {
        2 => Packet::Connected(*body.get(1)?),
        9 => Packet::Subscribed(number(body)?, body.get(2..)?.to_vec()),
        3 => {
            let length = usize::from(number(body)?);
            let topic = std::str::from_utf8(body.get(2..2 + length)?).ok()?;
            // Above quality 0 a number follows.
            let start = 2 + length + if first & 0x06 == 0 { 0 } else { 2 };
            Packet::Message(topic.to_owned(), body.get(start..)?.to_vec())
        }
        13 => Packet::Pong,
        _ => Packet::Other,
    })
}

fn number(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]))
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        bytes.push(if length == 0 { low } else { low | 0x80 });
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

fn text(body: &mut Vec<u8>, text: &[u8]) {
    // Longer ones are cut: the configuration allows none.
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    body.extend(length.to_be_bytes());
    body.extend_from_slice(&text[..usize::from(length)]);
}

/// A connect with a clean session.
pub(super) fn connect(id: &str, user: Option<&str>, password: Option<&Secret>) -> Vec<u8> {
    let mut flags = 0x02;
    flags |= if user.is_some() { 0x80 } else { 0 };
    flags |= if password.is_some() { 0x40 } else { 0 };
    let mut body = Vec::new();
    text(&mut body, b"MQTT");
    body.extend([4, flags]);
    body.extend(KEEP_ALIVE);
    text(&mut body, id.as_bytes());
    for part in user.into_iter().chain(password.map(Secret::expose)) {
        text(&mut body, part.as_bytes());
    }
    packet(0x10, &body)
}

/// A subscription at quality 0.
pub(super) fn subscribe(id: u16, topics: &[String]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    for topic in topics {
        text(&mut body, topic.as_bytes());
        body.push(0);
    }
    packet(0x82, &body)
}

/// A message at quality 0 that is not kept.
pub(super) fn publish(topic: &str, content: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic.as_bytes());
    body.extend_from_slice(content);
    packet(0x30, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_broker_answers() {
        let bytes =
            [0x20, 2, 0, 5, 0x90, 4, 0, 1, 0, 0x80, 0xd0, 0, 0x33, 7, 0, 1, b't', 0, 9, b'h', b'i', 0x20];
        let mut bytes = BytesMut::from(&bytes[..]);
        let mut found = Vec::new();
        while let Some(packet) = take(&mut bytes).unwrap() {
            found.push(packet);
        }
        let message = Packet::Message("t".into(), b"hi".to_vec());
        assert_eq!(
            found,
            [Packet::Connected(5), Packet::Subscribed(1, vec![0, 0x80]), Packet::Pong, message]
        );
        assert_eq!(bytes, [0x20][..]);
    }

    #[test]
    fn what_is_no_mqtt_is_told() {
        assert!(take(&mut BytesMut::from(&b"\x30\xff\xff\xff\xff\xff"[..])).is_err());
        assert!(take(&mut BytesMut::from(&b"\x30\xff\xff\x7f"[..])).is_err());
        assert!(take(&mut BytesMut::from(&[0x30, 3, 0, 9, b't'][..])).is_err());
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut bytes) {}
        }

        #[test]
        fn messages_come_back_however_they_are_cut(topic in "[a-z/]{1,20}", content in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..320) {
            let whole = publish(&topic, &content);
            let mut bytes = BytesMut::from(&whole[..cut.min(whole.len())]);
            if cut < whole.len() {
                prop_assert_eq!(take(&mut bytes), Ok(None));
                bytes.extend_from_slice(&whole[cut..]);
            }
            prop_assert_eq!(take(&mut bytes), Ok(Some(Packet::Message(topic, content))));
            prop_assert!(bytes.is_empty());
        }
    }
}
