//! Random seeds: everything random in a run is derived from the run's seed, with a different seed
//! for each purpose.

/// SplitMix64's finaliser (Steele, Lea and Flood 2014): every input bit reaches every output bit.
#[must_use]
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A seed for the purpose `name`.
#[must_use]
pub fn derive(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)))
}

/// A seed for the purpose with these numbers, such as stage and step.
#[must_use]
pub fn combine(seed: u64, numbers: &[u64]) -> u64 {
    numbers.iter().fold(mix(seed), |state, number| mix(state ^ number))
}
