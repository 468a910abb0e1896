//! `opsd scratch-init`, which people do not call: the first process inside a sandbox.

use crate::error::Result;
use crate::sandbox;

/// Runs to the end of the sandbox.
pub fn run() -> Result<u8> {
    sandbox::init()
}
