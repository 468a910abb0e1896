//! An MQTT broker, as a client sees it: one connection that is kept, the broker's own figures
//! (`$SYS`), and how long a message takes to come back.
//!
//! A ping follows each message: where the answer comes and the message does not, the broker lives and
//! this user may not publish or read there. A connection that broke meanwhile is made anew at once,
//! so that a broker that was restarted is up, and one that is gone is down.
//! Deliberately absent: qualities of service above 0, version 5, websockets, wills, and any topic but
//! `$SYS` and the probe's own.

pub mod packet;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::{Collected, Concern, Failure, Monitor, Reason, tcp, trust};
use crate::config::Threshold;
use crate::config::monitoring::{Bound, Mqtt};
use crate::error::{Error, Result};
use crate::metrics::{self, Metric, Sample};
use packet::Packet;

/// When a broker is bad unless the configuration says otherwise.
pub static THRESHOLDS: &[Threshold] =
    &[Threshold::of(&metrics::MQTT_ROUND_TRIP, Some(Bound::Above(1.0)), None)];

const SYS: &str = "$SYS/broker/";
const VERSION: &str = "version";
const UPTIME: &str = "uptime";
/// The broker's figures, below [`SYS`].
const FIGURES: &[(&str, &Metric, Option<&str>)] = &[
    ("clients/connected", &metrics::MQTT_CLIENTS, Some("connected")),
    ("clients/disconnected", &metrics::MQTT_CLIENTS, Some("disconnected")),
    ("clients/expired", &metrics::MQTT_CLIENTS, Some("expired")),
    ("clients/maximum", &metrics::MQTT_CLIENTS_MAX, None),
    ("messages/received", &metrics::MQTT_MESSAGES_RECEIVED, None),
    ("messages/sent", &metrics::MQTT_MESSAGES_SENT, None),
    ("publish/messages/received", &metrics::MQTT_PUBLISH_RECEIVED, None),
    ("publish/messages/sent", &metrics::MQTT_PUBLISH_SENT, None),
    ("publish/messages/dropped", &metrics::MQTT_PUBLISH_DROPPED, None),
    ("bytes/received", &metrics::MQTT_RECEIVED, None),
    ("bytes/sent", &metrics::MQTT_SENT, None),
    ("subscriptions/count", &metrics::MQTT_SUBSCRIPTIONS, None),
    ("retained messages/count", &metrics::MQTT_RETAINED, None),
    ("store/messages/count", &metrics::MQTT_STORED, None),
];

/// A message that has not come back after this part of a collection's time will not.
const PATIENCE_PART: u32 = 2;

/// A monitor of one broker.
pub struct Target {
    name: String,
    mqtt: Mqtt,
    timeout: Duration,
    /// Absent while a collection has it, and after one that failed or was dropped.
    connection: Option<Connection>,
}

/// A monitor that is not connected yet.
pub fn open(name: &str, mqtt: &Mqtt, timeout: Duration) -> Target {
    Target { name: name.to_owned(), mqtt: mqtt.clone(), timeout, connection: None }
}

#[async_trait]
impl Monitor for Target {
    fn name(&self) -> &str {
        &self.name
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let kept = match self.connection.take() {
            None => None,
            Some(mut connection) => {
                let outcome = self.ask(&mut connection).await;
                outcome.ok().map(|found| (connection, found))
            }
        };
        let (connection, found) = match kept {
            Some(kept) => kept,
            None => {
                let mut connection = self.connect().await?;
                let found = self.ask(&mut connection).await?;
                (connection, found)
            }
        };
        self.connection = Some(connection);
        Ok(found)
    }
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Wire for T {}

/// A session with a broker.
struct Connection {
    wire: Box<dyn Wire>,
    unread: BytesMut,
    since: SystemTime,
    /// What the broker last said of itself, by topic below [`SYS`], and when.
    said: BTreeMap<String, (String, SystemTime)>,
    /// Whether the broker refused the subscription to its figures, and to the probe's topic.
    refused: (bool, bool),
}

impl Target {
    fn on(&self, error: impl Into<Error>) -> Error {
        error.into().context(format!("MQTT broker {}", self.mqtt.address))
    }

    fn failure(&self, reason: Reason, error: impl Into<Error>) -> Failure {
        Failure::new(reason, self.on(error))
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let stream = tcp::connect(&self.mqtt.address, self.timeout).await?;
        // A round trip is no measure of Nagle's algorithm.
        stream.set_nodelay(true).map_err(|error| self.failure(Reason::Unreachable, error))?;
        let wire: Box<dyn Wire> = if self.mqtt.tls {
            let config = trust::client(self.mqtt.ca_file.as_deref(), self.mqtt.client.as_ref())
                .map_err(|error| self.failure(Reason::Internal, error))?;
            let name = self.mqtt.server_name.clone().unwrap_or_else(|| self.mqtt.address.host.clone());
            let name = ServerName::try_from(name)
                .map_err(|error| self.failure(Reason::Internal, Error::new(error)))?;
            let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
            Box::new(shaken.map_err(|error| self.failure(Reason::Tls, error))?)
        } else {
            Box::new(stream)
        };
        let said = BTreeMap::new();
        let mut connection = Connection {
            wire,
            unread: BytesMut::new(),
            since: SystemTime::now(),
            said,
            refused: (false, false),
        };
        let password = self.mqtt.password.as_ref().map(|source| source.read());
        let password = password.transpose().map_err(|error| self.failure(Reason::Internal, error))?;
        let id = self.mqtt.client_id.clone();
        let id = id.unwrap_or_else(|| format!("opsd-{:08x}", rand::random::<u32>()));
        let user = self.mqtt.user.as_deref();
        self.send(&mut connection, &packet::connect(&id, user, password.as_ref())).await?;
        match self.receive(&mut connection).await? {
            Packet::Connected(0) => {}
            Packet::Connected(code) => {
                let (reason, why) = match code {
                    4 => (Reason::Authentication, "user or password is wrong"),
                    5 => {
                        (Reason::Authentication, "the client is not authorised, or not under this client_id")
                    }
                    2 => (Reason::Refused, "the broker does not admit a client of this name: set client_id"),
                    3 => (Reason::NotReady, "the broker is not available"),
                    1 => (Reason::Protocol, "the broker does not speak MQTT 3.1.1"),
                    _ => (Reason::Refused, "the broker refused the connection"),
                };
                return Err(self.failure(reason, Error::new(why)));
            }
            _ => return Err(self.failure(Reason::Protocol, Error::new("it does not answer as a broker"))),
        }
        let figures = FIGURES.iter().map(|(topic, ..)| *topic).chain([VERSION, UPTIME]);
        let figures: Vec<String> = figures.map(|topic| format!("{SYS}{topic}")).collect();
        if self.mqtt.sys {
            connection.refused.0 = self.subscribe(&mut connection, 1, &figures).await?;
        }
        if let Some(topic) = &self.mqtt.topic {
            connection.refused.1 = self.subscribe(&mut connection, 2, std::slice::from_ref(topic)).await?;
        }
        Ok(connection)
    }

    /// Whether all of the subscriptions were refused.
    async fn subscribe(
        &self,
        connection: &mut Connection,
        id: u16,
        topics: &[String],
    ) -> Result<bool, Failure> {
        self.send(connection, &packet::subscribe(id, topics)).await?;
        loop {
            match self.receive(connection).await? {
                Packet::Subscribed(given, codes) if given == id => {
                    return Ok(codes.iter().all(|code| *code == packet::REFUSED));
                }
                other => connection.note(other),
            }
        }
    }

    /// One message and one ping, and whatever the broker has said meanwhile.
    async fn ask(&self, connection: &mut Connection) -> Result<Collected, Failure> {
        let mark = format!("opsd {:016x}", rand::random::<u64>());
        let topic = self.mqtt.topic.as_ref().filter(|_| !connection.refused.1);
        let mut bytes = topic.map(|topic| packet::publish(topic, mark.as_bytes())).unwrap_or_default();
        bytes.extend(packet::PING);
        let started = Instant::now();
        self.send(connection, &bytes).await?;
        let (mut pong, mut round_trip) = (false, None);
        while !(pong && (round_trip.is_some() || topic.is_none())) {
            let left = (self.timeout / PATIENCE_PART).saturating_sub(started.elapsed());
            let received = if pong {
                match tokio::time::timeout(left, self.receive(connection)).await {
                    Ok(received) => received?,
                    Err(_) => break,
                }
            } else {
                // Without the ping's answer there is no broker, and the driver's deadline says so.
                self.receive(connection).await?
            };
            match received {
                Packet::Pong => pong = true,
                Packet::Message(on, text) if Some(&on) == topic && text == mark.as_bytes() => {
                    round_trip = Some(started.elapsed().as_secs_f64());
                }
                other => connection.note(other),
            }
        }
        let mut samples =
            vec![Sample::plain(&metrics::MQTT_CONNECTED_TIMESTAMP, metrics::timestamp(connection.since))];
        samples.extend(round_trip.map(|took| Sample::plain(&metrics::MQTT_ROUND_TRIP, took)));
        let mut concerns = Vec::new();
        if self.mqtt.topic.is_some() {
            let failure = round_trip.is_none().then(|| {
                let error = Error::new("a message that was published did not come back").with_hint(
                    "may this user publish to topic, and read it? round_trip = false leaves it out",
                );
                let reason = if connection.refused.1 { Reason::Permission } else { Reason::Timeout };
                self.failure(reason, error)
            });
            concerns.push(Concern { name: "round_trip", failure });
        }
        if self.mqtt.sys {
            let figures = figures(&connection.said);
            let failure = figures.is_empty().then(|| {
                if connection.refused.0 {
                    let error = Error::new("the broker refuses its own figures to this user")
                        .with_hint("let the user read $SYS/#, or leave them out by sys = false");
                    return self.failure(Reason::Permission, error);
                }
                // Mosquitto's acl_file takes every subscription, and keeps back what it does not allow.
                let why = "the broker takes the subscription and tells nothing of itself: $SYS is switched off \
                           there, or kept from this user without a word";
                let error = Error::new(why)
                    .with_hint("see sys_interval and the ACL of the broker; sys = false leaves it out");
                self.failure(Reason::NotOffered, error)
            });
            concerns.push(Concern { name: "sys", failure });
            samples.extend(figures);
        }
        Ok(Collected { samples, concerns })
    }

    async fn send(&self, connection: &mut Connection, bytes: &[u8]) -> Result<(), Failure> {
        let sent = async {
            connection.wire.write_all(bytes).await?;
            connection.wire.flush().await
        };
        sent.await.map_err(|error| self.broken(error))
    }

    async fn receive(&self, connection: &mut Connection) -> Result<Packet, Failure> {
        loop {
            match packet::take(&mut connection.unread) {
                Ok(Some(packet)) => return Ok(packet),
                Ok(None) => {}
                Err(why) => return Err(self.failure(Reason::Protocol, Error::new(why))),
            }
            match connection.wire.read_buf(&mut connection.unread).await {
                Ok(0) => {
                    let error = Error::new("it closed the connection");
                    return Err(self.failure(Reason::Unreachable, error));
                }
                Ok(_) => {}
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    /// A broker that wants a client's certificate says so after the handshake, as TLS 1.3 has it.
    fn broken(&self, error: std::io::Error) -> Failure {
        let is_tls = error.get_ref().is_some_and(|e| e.is::<rustls::Error>());
        self.failure(if is_tls { Reason::Tls } else { Reason::Unreachable }, error)
    }
}

impl Connection {
    fn note(&mut self, packet: Packet) {
        if let Packet::Message(topic, text) = packet
            && let Some(topic) = topic.strip_prefix(SYS)
            && (FIGURES.iter().any(|(known, ..)| *known == topic) || [VERSION, UPTIME].contains(&topic))
        {
            let text = String::from_utf8_lossy(&text).chars().take(100).collect();
            self.said.insert(topic.to_owned(), (text, SystemTime::now()));
        }
    }
}

fn figures(said: &BTreeMap<String, (String, SystemTime)>) -> Vec<Sample> {
    let mut samples = Vec::new();
    if let Some((version, _)) = said.get(VERSION) {
        samples.push(Sample::new(&metrics::MQTT_BROKER, [version], 1.0));
    }
    for (topic, metric, state) in FIGURES {
        let value = said.get(*topic).and_then(|(text, _)| text.trim().parse::<f64>().ok());
        let labels = state.iter().map(|state| (*state).to_owned()).collect();
        samples.extend(value.map(|value| Sample { metric, labels, value }));
    }
    if let Some((text, at)) = said.get(UPTIME)
        && let Some(uptime) = text.split(' ').next().and_then(|word| word.parse::<f64>().ok())
    {
        samples.push(Sample::plain(&metrics::MQTT_START_TIMESTAMP, metrics::timestamp(*at) - uptime));
    }
    samples
}

/// `mosquitto version 2.0.11, 12 clients, round trip 3 ms`.
pub fn headline(samples: &[Sample]) -> String {
    let of = |metric: &'static Metric| samples.iter().filter(move |sample| sample.metric == metric);
    let mut parts: Vec<Cow<'_, str>> = Vec::new();
    parts.extend(of(&metrics::MQTT_BROKER).filter_map(|s| s.label("version")).map(Cow::from));
    let clients = of(&metrics::MQTT_CLIENTS).find(|s| s.label("state") == Some("connected"));
    parts.extend(clients.map(|clients| Cow::from(format!("{} clients", clients.value))));
    let took = of(&metrics::MQTT_ROUND_TRIP).next();
    parts.extend(took.map(|took| Cow::from(format!("round trip {:.0} ms", took.value * 1000.0))));
    parts.join(", ")
}
