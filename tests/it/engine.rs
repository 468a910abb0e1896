//! What is said of Docker, against a real Engine: `make engine`.

mod images;
mod podman;
mod rehearsal;
mod servers;
mod sidecar;
