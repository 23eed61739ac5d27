//! Ids of runs.

use super::{Error, chain::hex};

/// An id of 128 random bits, as 32 hex digits. The numbers are from the operating system's
/// generator and practically never repeat.
pub(super) fn random_run_id() -> Result<String, Error> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(Error::Random)?;
    Ok(hex(&bits))
}
