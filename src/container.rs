//! Containers of this host: which one a configuration means, and where it is now.
//!
//! An address changes whenever a container is made anew, so nothing of this is kept for longer than a command or a
//! collection takes. Whom to ask is Docker's own client or Podman's, which know how to reach their daemon. Deliberately
//! absent: an API of a daemon's, and anything that makes or changes a container of the operator's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use crate::config::{Client, Place, Wanted, path};
use crate::error::{Context, Error, Result};
use crate::{printable, process};

/// How long a daemon may take to answer. One that starts many containers is slow.
const ANSWER_BOUND: Duration = Duration::from_secs(30);

/// Bytes of what is said of containers; one takes about ten thousand.
const ANSWER_MAX: u64 = 4 << 20;

/// Bytes of an error that are shown.
const COMPLAINT_MAX: usize = 400;

/// Containers that are named where the one that is wanted is not there.
const NAMED_MAX: usize = 20;

/// Addresses of one container that are tried.
const ADDRESSES_MAX: usize = 16;

/// A container that runs.
#[derive(Debug, Clone)]
pub struct Container {
    /// Who knows it.
    pub client: Client,
    /// Its id, which no other container ever has.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its addresses, one a network or two.
    pub addresses: Vec<Address>,
    /// Its TCP ports that have one on this host.
    pub published: Vec<(u16, SocketAddr)>,
}

/// An address of a container's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// How many of its bits are the network's.
    pub prefix: u8,
    /// The network's name.
    pub network: String,
    /// The address that the Engine's host has on that network.
    pub gateway: Option<IpAddr>,
}

impl Address {
    /// Whether this process is on the network, too: on the Engine's host, or in a container beside. The same numbers
    /// elsewhere are somebody else's, and whoever answers there may be a server of PostgreSQL, too.
    pub fn is_on_link(&self) -> bool {
        own_address_towards(self.ip).is_some_and(|own| is_same_network(own, self.ip, self.prefix))
    }

    /// Whether this process is where the Engine publishes ports.
    pub fn is_on_host(&self) -> bool {
        self.gateway.is_some_and(|gateway| own_address_towards(gateway) == Some(gateway))
    }
}

/// The address that packets to another one would come from. None are sent.
fn own_address_towards(other: IpAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if other.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((other, DISCARD_PORT)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Any port does.
const DISCARD_PORT: u16 = 9;

fn is_same_network(one: IpAddr, other: IpAddr, prefix: u8) -> bool {
    let (differing, bits) = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (u128::from(one.to_bits() ^ other.to_bits()), 32),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits(), 128),
        _ => return false,
    };
    prefix > 0 && prefix <= bits && differing.checked_shr(u32::from(bits - prefix)).unwrap_or(0) == 0
}

impl Container {
    /// The words that start a program in it, which reads what this one is given on stdin.
    pub fn exec(&self) -> Vec<String> {
        [self.client.program(), "exec", "-i", &self.id].map(str::to_owned).to_vec()
    }
}

/// The client to ask: the one that is wanted, else the first that PATH has.
pub fn client(wanted: Option<Client>) -> Result<Client> {
    let is_here = |client: &Client| {
        path::search_path().iter().any(|directory| directory.join(client.program()).is_file())
    };
    match wanted {
        Some(client) if is_here(&client) => Ok(client),
        Some(client) => Err(Error::new(format!("{} is not on PATH", client.program()))
            .with_hint("install it, or name the other one in container_client")),
        None => [Client::Docker, Client::Podman].into_iter().find(is_here).ok_or_else(|| {
            Error::new("neither docker nor podman is on PATH").with_hint(
                "opsd asks them for the container's address; a server that is reached by an address needs \
                 no `container`",
            )
        }),
    }
}

/// A client with what it needs to find its daemon, and nothing else of opsd's environment. The first of the words is
/// the program.
pub fn command(words: &[String]) -> Command {
    let (program, arguments) =
        words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let mut command = Command::new(program);
    let directories: Vec<String> = path::search_path().iter().map(|dir| dir.display().to_string()).collect();
    command.env_clear().env("PATH", directories.join(":")).env("LC_ALL", "C").envs(path::container_client());
    command.args(arguments);
    command
}

fn of_client(client: Client) -> Command {
    command(&[client.program().to_owned()])
}

/// Looks for a container, which must run.
pub async fn find(wanted: &Wanted) -> Result<Container> {
    let client = client(wanted.client)?;
    let look = async {
        let client_name = client.program();
        match chosen(candidates(client, wanted).await?) {
            Choice::One(one) => one.into_container(client),
            Choice::None => Err(missing(client).await),
            Choice::NotRunning(name, state) => Err(Error::new(format!("{name} does not run: it is {state}"))
                .with_hint(match state.as_str() {
                    "paused" => format!("{client_name} unpause {name}"),
                    _ => format!(
                        "{client_name} start {name}, and {client_name} logs {name} if it does not stay up"
                    ),
                })),
            Choice::Several(names) => Err(several(&names)),
        }
    };
    look.await.with_context(|| wanted.place.to_string())
}

/// The id of the image that a container was made of, whether it runs or not, and whom to ask for it. A container that
/// was stopped keeps its image, and one that runs says more about the site.
pub async fn image_of(wanted: &Wanted) -> Result<(Client, String)> {
    let client = client(wanted.client)?;
    let look = async {
        let candidates = candidates(client, wanted).await?;
        let running: Vec<&Inspected> = candidates.iter().filter(|one| one.runs()).collect();
        let meant = if running.is_empty() { candidates.iter().collect() } else { running };
        match meant.as_slice() {
            [] => Err(missing(client).await),
            [one, others @ ..] if others.iter().all(|other| other.image == one.image) => {
                Ok((client, one.image.clone()))
            }
            several_meant => {
                let names: Vec<String> = several_meant.iter().map(|one| one.shown_name()).collect();
                Err(several(&names).context("they were made of different images"))
            }
        }
    };
    look.await.with_context(|| wanted.place.to_string())
}

fn several(names: &[String]) -> Error {
    Error::new(format!("several fit: {}", names.join(", ")))
        .with_hint("container = \"NAME\" says which one is meant")
}

/// The containers that a configuration may mean, whether they run or not.
async fn candidates(client: Client, wanted: &Wanted) -> Result<Vec<Inspected>> {
    let ids = match &wanted.place {
        Place::Named(name) => vec![name.clone()],
        Place::Compose { project, service } => of_service(client, project, service).await?,
    };
    let found = inspect(client, &ids).await?;
    Ok(match &wanted.place {
        // Docker takes the beginning of an id for a name, too: a short one may be anybody's.
        Place::Named(name) => found.into_iter().filter(|one| one.is_called(name)).collect(),
        // A command that Compose ran once for a service is not the service.
        Place::Compose { .. } => found.into_iter().filter(|one| !one.is_one_off()).collect(),
    })
}

/// Whether the daemon is on this host, so that its containers' addresses mean the same here. A container's address on
/// another host may be somebody else's here.
pub async fn is_here(client: Client) -> bool {
    let mut command = of_client(client);
    let daemon = match client {
        Client::Docker => {
            command.args(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]);
            command
        }
        Client::Podman => {
            command.args(["info", "--format", "{{.Host.ServiceIsRemote}}"]);
            command
        }
    };
    let Ok((exit, said)) = process::run(client.program(), daemon, ANSWER_BOUND).await else { return false };
    match (client, said.trim()) {
        (Client::Docker, host) if exit.status.success() => {
            host.starts_with("unix:") || host.starts_with("fd:")
        }
        (Client::Podman, remote) if exit.status.success() => remote == "false",
        // A client without contexts knows no daemon but this host's, unless the environment says so.
        _ => path::container_client().iter().all(|(name, value)| {
            !matches!(name.as_str(), "DOCKER_HOST" | "CONTAINER_HOST") || value.starts_with("unix:")
        }),
    }
}

/// The ids of a service's containers, whether they run or not.
async fn of_service(client: Client, project: &str, service: &str) -> Result<Vec<String>> {
    let label = |key: &str, value: &str| format!("label=com.docker.compose.{key}={value}");
    let mut ps = of_client(client);
    ps.args(["ps", "--all", "--no-trunc", "--format", "{{.ID}}"]);
    ps.args(["--filter", &label("project", project), "--filter", &label("service", service)]);
    let said = ask(client, ps).await?;
    Ok(said.lines().map(str::to_owned).filter(|id| is_id(id)).collect())
}

/// Whether this may be an id: what a client prints as one becomes an argument of its own.
pub fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

async fn inspect(client: Client, ids: &[String]) -> Result<Vec<Inspected>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut inspect = of_client(client);
    inspect.args(["container", "inspect"]).args(ids);
    match ask(client, inspect).await {
        Ok(said) => serde_json::from_str(&said).map_err(|e| {
            Error::new(e).context(format!("cannot read what {} inspect says", client.program()))
        }),
        Err(error) if error.message().to_ascii_lowercase().contains("no such") => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What a client says, or why it does not.
async fn ask(client: Client, command: Command) -> Result<String> {
    let name = client.program();
    let (exit, said) = process::output(name, command, ANSWER_BOUND, ANSWER_MAX).await?;
    if exit.status.success() {
        return String::from_utf8(said).map_err(|_| Error::new(format!("{name} says what is not UTF-8")));
    }
    let complaint =
        printable::line(printable::bounded(exit.stderr.trim(), COMPLAINT_MAX).as_ref()).into_owned();
    let lower = complaint.to_ascii_lowercase();
    let error = Error::new(&complaint).context(format!("{name} {}", exit.describe()));
    Err(if lower.contains("permission denied") {
        error.with_hint(format!(
            "run opsd as root, or as a user who may use {name}: whoever may is as good as root"
        ))
    } else if lower.contains("cannot connect") || lower.contains("connection refused") {
        error.with_hint(match client {
            Client::Docker => {
                "start Docker's daemon, set DOCKER_HOST to where it listens, or container_client = \"podman\""
            }
            Client::Podman => "start Podman's service, or set CONTAINER_HOST to where it listens",
        })
    } else {
        error
    })
}

/// The error where there is no such container, with those that there are.
async fn missing(client: Client) -> Error {
    let mut ps = of_client(client);
    ps.args(["ps", "--all", "--format", "{{.Names}}"]);
    let error = Error::new("there is none");
    let Ok(said) = ask(client, ps).await else { return error };
    let names: Vec<String> = said.lines().map(|name| printable::line(name).into_owned()).collect();
    let shown = names.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => error.with_hint(format!("{} has no container at all", client.program())),
        n if n > NAMED_MAX => error.with_hint(format!("containers here: {shown} and {} more", n - NAMED_MAX)),
        _ => error.with_hint(format!("containers here: {shown}")),
    }
}

/// Which of the containers that fit is meant.
enum Choice {
    One(Inspected),
    None,
    /// The name and the state of one.
    NotRunning(String, String),
    Several(Vec<String>),
}

fn chosen(candidates: Vec<Inspected>) -> Choice {
    let (running, others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(Inspected::runs);
    let mut running = running.into_iter();
    match (running.next(), running.len()) {
        (Some(one), 0) => Choice::One(one),
        (Some(one), _) => Choice::Several(running.chain([one]).map(|one| one.shown_name()).collect()),
        (None, _) => match others.first() {
            Some(one) => {
                Choice::NotRunning(one.shown_name(), printable::line(&one.state.status).into_owned())
            }
            None => Choice::None,
        },
    }
}

/// What both clients say of a container, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Inspected {
    id: String,
    name: String,
    image: String,
    state: State,
    config: Config,
    network_settings: NetworkSettings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Network>>,
    ports: Option<BTreeMap<String, Option<Vec<Published>>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    #[serde(rename = "IPAddress")]
    v4: Option<String>,
    #[serde(rename = "IPPrefixLen")]
    v4_prefix: u8,
    #[serde(rename = "Gateway")]
    v4_gateway: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    v6: Option<String>,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    v6_prefix: u8,
    #[serde(rename = "IPv6Gateway")]
    v6_gateway: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Published {
    host_ip: String,
    host_port: String,
}

impl Inspected {
    fn runs(&self) -> bool {
        self.state.status == "running"
    }

    /// Docker's names begin with a slash.
    fn shown_name(&self) -> String {
        printable::line(self.name.trim_start_matches('/')).into_owned()
    }

    fn is_called(&self, name: &str) -> bool {
        const SHORT_ID: usize = 12;
        self.name.trim_start_matches('/') == name.trim_start_matches('/')
            || name.len() >= SHORT_ID && self.id.starts_with(name)
    }

    fn is_one_off(&self) -> bool {
        let labels = self.config.labels.as_ref();
        let one_off = labels.and_then(|labels| labels.get("com.docker.compose.oneoff"));
        one_off.is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    fn into_container(self, client: Client) -> Result<Container> {
        if !is_id(&self.id) {
            return Err(Error::new(format!("{} says that a container has no id", client.program())));
        }
        Ok(Container {
            client,
            name: self.shown_name(),
            addresses: self.addresses(),
            published: self.published(),
            id: self.id,
        })
    }

    fn addresses(&self) -> Vec<Address> {
        let parsed = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
        let of_network = |(name, network): (&String, &Network)| {
            let v4 = (parsed(&network.v4), network.v4_prefix, parsed(&network.v4_gateway));
            let v6 = (parsed(&network.v6), network.v6_prefix, parsed(&network.v6_gateway));
            let name = printable::line(name).into_owned();
            let found = [v4, v6].into_iter().filter_map(move |(ip, prefix, gateway)| {
                Some(Address { ip: ip?, prefix, gateway, network: name.clone() })
            });
            found.collect::<Vec<_>>()
        };
        let networks = self.network_settings.networks.iter().flatten();
        networks.flat_map(of_network).take(ADDRESSES_MAX).collect()
    }

    fn published(&self) -> Vec<(u16, SocketAddr)> {
        let mut found = Vec::new();
        for (port, places) in self.network_settings.ports.iter().flatten() {
            let Some(inside) = port.strip_suffix("/tcp").and_then(|port| port.parse().ok()) else { continue };
            for Published { host_ip, host_port } in places.iter().flatten().take(ADDRESSES_MAX) {
                let address = match host_ip.as_str() {
                    "" | "0.0.0.0" => Ok(Ipv4Addr::LOCALHOST.into()),
                    "::" => Ok(Ipv6Addr::LOCALHOST.into()),
                    other => other.parse::<IpAddr>(),
                };
                if let (Ok(address), Ok(port)) = (address, host_port.parse()) {
                    found.push((inside, SocketAddr::new(address, port)));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Vec<Inspected> {
        serde_json::from_str(json).unwrap()
    }

    const DOCKER: &str = r#"[{"Id":"ab12","Name":"/site_db_1","Image":"sha256:77","State":{"Status":"running","Pid":7},
        "Config":{"Image":"postgres:17","Labels":{"com.docker.compose.oneoff":"False"}},
        "NetworkSettings":{"Ports":{"5432/tcp":[{"HostIp":"0.0.0.0","HostPort":"15432"},{"HostIp":"::","HostPort":"15432"}],"8080/tcp":null,"53/udp":[{"HostIp":"","HostPort":"53"}]},
        "Networks":{"site_default":{"IPAddress":"172.18.0.2","IPPrefixLen":16,"Gateway":"172.18.0.1","GlobalIPv6Address":""},
        "six":{"IPAddress":"","Gateway":"","GlobalIPv6Address":"fd00::2","GlobalIPv6PrefixLen":64}}}}]"#;

    #[test]
    fn what_docker_says_is_understood() {
        let one = read(DOCKER).remove(0);
        assert_eq!(one.image, "sha256:77");
        let one = one.into_container(Client::Docker).unwrap();
        assert_eq!(one.name, "site_db_1");
        let addresses: Vec<String> = one
            .addresses
            .iter()
            .map(|a| format!("{}/{} {} {:?}", a.ip, a.prefix, a.network, a.gateway))
            .collect();
        assert_eq!(addresses, ["172.18.0.2/16 site_default Some(172.18.0.1)", "fd00::2/64 six None"]);
        let ports: Vec<String> = one.published.iter().map(|(inside, at)| format!("{inside} {at}")).collect();
        assert_eq!(ports, ["5432 127.0.0.1:15432", "5432 [::1]:15432"]);
        assert_eq!(one.exec(), ["docker", "exec", "-i", "ab12"]);
    }

    /// Podman's has other fields, and some of them null.
    #[test]
    fn what_podman_says_is_understood() {
        let json = r#"[{"Id":"cd34","Name":"db","Image":"77","ImageName":"localhost/pg:17","State":{"Status":"running"},
            "Config":{"Image":"localhost/pg:17","Labels":null},
            "NetworkSettings":{"Ports":{},"Networks":{"podman":{"IPAddress":"10.88.0.3","IPPrefixLen":16}}}}]"#;
        let one = read(json).remove(0).into_container(Client::Podman).unwrap();
        assert_eq!(
            (one.addresses[0].ip, one.addresses[0].network.as_str()),
            ("10.88.0.3".parse().unwrap(), "podman")
        );
        assert_eq!(one.exec()[0], "podman");
    }

    #[test]
    fn the_one_that_runs_is_meant_and_no_other() {
        let of = |states: &[&str]| {
            let all: Vec<String> = states
                .iter()
                .enumerate()
                .map(|(i, state)| format!(r#"{{"Id":"a{i}","Name":"/n{i}","State":{{"Status":"{state}"}}}}"#))
                .collect();
            match chosen(read(&format!("[{}]", all.join(",")))) {
                Choice::One(one) => one.shown_name(),
                Choice::None => "none".to_owned(),
                Choice::NotRunning(name, state) => format!("{name} {state}"),
                Choice::Several(names) => names.join(" "),
            }
        };
        assert_eq!(of(&["exited", "running"]), "n1");
        assert_eq!(of(&["exited"]), "n0 exited");
        assert_eq!(of(&[]), "none");
        assert_eq!(of(&["running", "running"]), "n1 n0");
    }

    #[test]
    fn an_address_counts_where_this_process_is_on_its_network() {
        let address = |ip: &str, prefix, gateway: &str| Address {
            ip: ip.parse().unwrap(),
            prefix,
            network: "n".into(),
            gateway: gateway.parse().ok(),
        };
        assert!(address("127.0.0.9", 8, "").is_on_link());
        assert!(!address("127.0.0.9", 0, "").is_on_link());
        // A route leads there, and the network is somebody else's.
        assert!(!address("198.51.100.1", 24, "").is_on_link());
        assert!(address("127.0.0.9", 8, "127.0.0.1").is_on_host());
        assert!(
            !address("127.0.0.9", 8, "198.51.100.9").is_on_host()
                && !address("127.0.0.9", 8, "").is_on_host()
        );
        let same = |one: &str, other: &str, prefix| {
            is_same_network(one.parse().unwrap(), other.parse().unwrap(), prefix)
        };
        assert!(same("10.1.2.3", "10.1.9.9", 16) && !same("10.1.2.3", "10.2.2.3", 16));
        assert!(same("fd00::1", "fd00::ffff", 64) && !same("fd00::1", "fd01::1", 64));
        assert!(
            same("10.1.2.3", "10.1.2.3", 32) && !same("10.1.2.3", "fd00::1", 8) && !same("::1", "::1", 129)
        );
    }

    /// `db` is hexadecimal.
    #[test]
    fn the_beginning_of_an_id_is_no_name() {
        let one = &read(&DOCKER.replace("ab12", "db1234567890abcdef"))[0];
        assert!(one.is_called("site_db_1") && one.is_called("db1234567890"));
        assert!(!one.is_called("db") && !one.is_called("site_db"));
    }

    #[test]
    fn an_id_that_is_none_becomes_no_argument() {
        assert!(is_id("ab12") && !is_id("--privileged") && !is_id(""));
        assert!(read(r#"[{"Id":"-v","Name":"/x"}]"#).remove(0).into_container(Client::Docker).is_err());
    }
}
