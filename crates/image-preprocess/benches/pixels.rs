//! An encoded picture of 640 x 480 pixels to the 224 x 224 that CLIP sees.

use divan::{Bencher, counter::ItemsCount};
use image_preprocess::square;
use mozjpeg::{ColorSpace, Compress};

const WIDTH: usize = 640;
const HEIGHT: usize = 480;
const SIZE: u32 = 224;

fn main() {
    divan::main();
}

/// As cameras write it, with a lot to decode.
#[divan::bench]
fn usual_jpeg(bencher: Bencher<'_, '_>) {
    time(bencher, &jpeg(textured, false));
}

/// The same, which is left to libjpeg.
#[divan::bench]
fn progressive_jpeg(bencher: Bencher<'_, '_>) {
    time(bencher, &jpeg(textured, true));
}

/// Next to nothing to decode: what remains is resampling.
#[divan::bench]
fn resampling(bencher: Bencher<'_, '_>) {
    time(bencher, &jpeg(|_| [200, 40, 90], false));
}

fn time(bencher: Bencher<'_, '_>, encoded: &[u8]) {
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| square(encoded, SIZE));
}

/// Waves of all lengths.
fn textured(place: usize) -> [u8; 3] {
    let (x, y) = ((place % WIDTH) as f32, (place / WIDTH) as f32);
    let wave = |k: i32| (x * 0.9_f32.powi(k) + y * 0.8_f32.powi(k + 3)).sin() * 1.1_f32.powi(k);
    let brightness = 128.0 + (0..25).map(wave).sum::<f32>();
    [brightness, brightness + 20.0 * (x / 70.0).sin(), brightness + 20.0 * (y / 50.0).sin()].map(|level| level as u8)
}

fn jpeg(colour: impl Fn(usize) -> [u8; 3], is_progressive: bool) -> Vec<u8> {
    let mut encoder = Compress::new(ColorSpace::JCS_RGB);
    encoder.set_fastest_defaults();
    encoder.set_size(WIDTH, HEIGHT);
    encoder.set_quality(95.0);
    if is_progressive {
        encoder.set_progressive_mode();
    }
    let mut started = encoder.start_compress(Vec::new()).expect("it fits into memory");
    let pixels: Vec<u8> = (0..WIDTH * HEIGHT).flat_map(colour).collect();
    started.write_scanlines(&pixels).expect("it fits into memory");
    started.finish().expect("it fits into memory")
}
