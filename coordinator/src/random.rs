//! Random names and numbers that are unique and cannot be guessed.

/// 128 random bits as hex.
///
/// # Errors
/// The system has no random numbers.
pub fn name() -> Result<String, getrandom::Error> {
    Ok(format!("{:016x}{:016x}", number()?, number()?))
}

/// 64 random bits.
///
/// # Errors
/// The system has no random numbers.
pub fn number() -> Result<u64, getrandom::Error> {
    getrandom::u64()
}
