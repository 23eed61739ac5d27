//! Names that nobody can guess and that nothing else has.

/// 128 random bits as hex.
///
/// # Errors
/// The system has none.
pub fn name() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}
