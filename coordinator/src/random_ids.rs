//! Random ids from the operating system's generator: of runs, of sessions (their tokens), and of
//! coordinator processes (their terms).
//! They are unique and cannot be guessed.

/// An id of 128 random bits, as 32 hex digits.
///
/// # Errors
/// The operating system provides no random numbers.
pub fn random_hex_id() -> Result<String, getrandom::Error> {
    Ok(format!("{:016x}{:016x}", random_u64()?, random_u64()?))
}

/// 64 random bits.
///
/// # Errors
/// The operating system provides no random numbers.
pub fn random_u64() -> Result<u64, getrandom::Error> {
    getrandom::u64()
}
