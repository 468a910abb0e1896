//! What child programs inherit from the environment; nothing else of it reaches them.

use std::path::PathBuf;

use super::environment;

/// What a container client needs to find its daemon.
const CONTAINER_CLIENT: &[&str] = &[
    "HOME",
    "XDG_RUNTIME_DIR",
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "CONTAINER_HOST",
];

/// The absolute directories of PATH; relative ones would depend on where opsd was started.
pub fn search_path() -> Vec<PathBuf> {
    let path = environment("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|p| p.is_absolute()).collect()
}

/// Variables that lead a container client to its daemon, where they are set.
pub fn container_client() -> Vec<(String, String)> {
    CONTAINER_CLIENT
        .iter()
        .filter_map(|name| environment(name).map(|value| ((*name).to_owned(), value)))
        .collect()
}
