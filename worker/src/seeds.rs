//! Random seeds: each use of random numbers has its own seed, which is derived from the run's seed.

/// The output function of SplitMix64 (Steele, Lea and Flood 2014): every output bit depends on
/// every input bit.
#[must_use]
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The seed for the use of random numbers that is called `name`.
#[must_use]
pub fn derive(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)))
}

/// The seed for the use of random numbers that `numbers` identify, for example stage and step.
#[must_use]
pub fn combine(seed: u64, numbers: &[u64]) -> u64 {
    numbers.iter().fold(mix(seed), |state, number| mix(state ^ number))
}
