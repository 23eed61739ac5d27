//! Random numbers from the operating system's generator, which cannot be guessed and practically
//! never repeat: keys of join requests (they become part of session tokens), and terms of
//! coordinator processes.

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
