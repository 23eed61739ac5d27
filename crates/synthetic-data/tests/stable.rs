//! Worlds are the same everywhere and always: a dependency that changes what a seed means shows here.

use synthetic_data::{captions, compose, draw};

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn seeds_mean_what_they_always_meant() {
    let mut pixels = Vec::new();
    let mut text = String::new();
    for seed in 0..100 {
        let scene = compose(seed);
        pixels.extend(draw(&scene, seed).into_raw());
        text += &captions(&scene, seed).join("\n");
    }
    assert_eq!((digest(&pixels), digest(text.as_bytes())), (0xc5b1_115a_258c_17cb, 0x39b4_d7d6_ac83_e56b));
}
