//! Preprocesses an encoded image of 640 x 480 pixels to CLIP's 224 x 224.

use divan::{Bencher, counter::ItemsCount};
use image_preprocess::preprocess;
use mozjpeg::{ColorSpace, Compress};

const WIDTH: usize = 640;
const HEIGHT: usize = 480;
const SIZE: u32 = 224;

fn main() {
    divan::main();
}

/// A JPEG as cameras write it, with much detail to decode.
#[divan::bench]
fn baseline_jpeg(bencher: Bencher<'_, '_>) {
    bench_preprocess(bencher, &jpeg(textured, false));
}

/// The same image as a progressive JPEG, which libjpeg decodes.
#[divan::bench]
fn progressive_jpeg(bencher: Bencher<'_, '_>) {
    bench_preprocess(bencher, &jpeg(textured, true));
}

/// A flat image, which takes hardly any time to decode: measures resampling.
#[divan::bench]
fn resampling(bencher: Bencher<'_, '_>) {
    bench_preprocess(bencher, &jpeg(|_| [200, 40, 90], false));
}

fn bench_preprocess(bencher: Bencher<'_, '_>, encoded: &[u8]) {
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| preprocess(encoded, SIZE));
}

/// Waves of many lengths.
fn textured(pixel: usize) -> [u8; 3] {
    let (x, y) = ((pixel % WIDTH) as f32, (pixel / WIDTH) as f32);
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
    let mut compress = encoder.start_compress(Vec::new()).expect("the image fits into memory");
    let pixels: Vec<u8> = (0..WIDTH * HEIGHT).flat_map(colour).collect();
    compress.write_scanlines(&pixels).expect("the image fits into memory");
    compress.finish().expect("the image fits into memory")
}
