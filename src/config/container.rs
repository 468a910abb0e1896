//! Which container a server runs in, as the configuration says it, and the way that was found to it.

use std::fmt;
use std::net::SocketAddr;

/// A program that knows the containers of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Docker's.
    Docker,
    /// Podman.
    Podman,
}

impl Client {
    /// By the name of its program.
    pub fn parse(name: &str) -> Option<Client> {
        [Client::Docker, Client::Podman].into_iter().find(|client| client.program() == name)
    }

    /// The name of its program, which PATH finds.
    pub fn program(self) -> &'static str {
        match self {
            Client::Docker => "docker",
            Client::Podman => "podman",
        }
    }
}

/// The container that a configuration wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which one it is.
    pub place: Place,
    /// Whom to ask; absent means docker where there is one, else podman.
    pub client: Option<Client>,
}

/// What a container is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Its name, or its id.
    Named(String),
    /// The labels that Compose gives it, whatever it calls it.
    Compose {
        /// The project, which is the directory's name unless somebody chose another.
        project: String,
        /// The service in `compose.yaml`.
        service: String,
    },
}

impl Place {
    /// What stands where other servers have a host: what the container is called on its own network.
    pub fn host(&self) -> &str {
        match self {
            Place::Named(name) => name,
            Place::Compose { service, .. } => service,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Named(name) => write!(f, "container {name}"),
            Place::Compose { project, service } => {
                write!(f, "service {service} of Compose project {project}")
            }
        }
    }
}

/// The way to the hosts of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Their names and addresses lead there.
    Direct,
    /// To a container that nobody has looked for yet: there is no way there.
    Unfound,
    /// To this address, whatever the host is called.
    At(SocketAddr),
    /// Into a container, to its own loopback address: what these words start is a shell there.
    Through {
        /// The client and its arguments, up to the container.
        words: Vec<String>,
    },
}
