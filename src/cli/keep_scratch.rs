//! `opsd keep-scratch`, which people do not call: a rehearsal starts it, and it runs, watches and removes the
//! rehearsal's scratch server.

use crate::error::Result;
use crate::sandbox;

/// Runs to the end of the scratch server.
pub fn run() -> Result<u8> {
    sandbox::keep()
}
