//! Synthetic JPEG files like those of COCO: 640 x 480 pixels with subsampled chroma, about 140 KB.
//! As in photographs, low spatial frequencies have large amplitudes and high ones have small
//! amplitudes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mozjpeg::{ColorSpace, Compress};

use crate::seeds;

const WIDTH: usize = 640;
const HEIGHT: usize = 480;
const QUALITY: f32 = 95.0;
/// The cell sizes of the coarsest and the finest noise, in pixels.
const MAX_CELL_PIXELS: usize = 256;
const MIN_CELL_PIXELS: usize = 1;
/// The amplitude of noise, in levels of 8-bit channels:
/// `AMPLITUDE * cell size ^ AMPLITUDE_EXPONENT`.
const AMPLITUDE: f32 = 8.0;
const AMPLITUDE_EXPONENT: f32 = 0.45;
/// The factor of the amplitude for the chroma planes.
const CHROMA_AMPLITUDE: f32 = 0.3;

/// Writes `count` images into a folder. Returns their paths.
///
/// # Errors
/// An image cannot be written.
pub fn write(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let write_image = |number| {
        let path = folder.join(format!("{number:06}.jpg"));
        let written = encode_jpeg(number as u64).and_then(|bytes| std::fs::write(&path, bytes));
        written.with_context(|| path.display().to_string())?;
        Ok(path)
    };
    (0..count).map(write_image).collect()
}

/// Image `number` as a JPEG file.
fn encode_jpeg(number: u64) -> std::io::Result<Vec<u8>> {
    // libjpeg's defaults: MozJPEG's own take longer and make smaller files.
    let mut encoder = Compress::new(ColorSpace::JCS_YCbCr);
    encoder.set_fastest_defaults();
    encoder.set_size(WIDTH, HEIGHT);
    encoder.set_color_space(ColorSpace::JCS_YCbCr);
    encoder.set_quality(QUALITY);
    let mut compressor = encoder.start_compress(Vec::new())?;
    let planes = [0, 1, 2].map(|channel| noise_plane(seeds::combine(number, &[channel]), channel == 0));
    let pixels: Vec<u8> = (0..WIDTH * HEIGHT)
        .flat_map(|pixel| planes.each_ref().map(|plane| (128.0 + plane[pixel]).clamp(0.0, 255.0) as u8))
        .collect();
    compressor.write_scanlines(&pixels)?;
    compressor.finish()
}

/// A plane of value noise, `[height, width]`: the sum of noise with all cell sizes. Chroma planes
/// have only coarse noise.
fn noise_plane(seed: u64, is_luma: bool) -> Vec<f32> {
    let mut plane = vec![0.0; WIDTH * HEIGHT];
    let min_cell = if is_luma { MIN_CELL_PIXELS } else { MAX_CELL_PIXELS / 8 };
    for cell in (0..).map(|octave| MAX_CELL_PIXELS >> octave).take_while(|&cell| cell >= min_cell) {
        let amplitude =
            AMPLITUDE * (cell as f32).powf(AMPLITUDE_EXPONENT) * if is_luma { 1.0 } else { CHROMA_AMPLITUDE };
        let columns = WIDTH / cell + 2;
        let corner = |x: usize, y: usize| {
            let bits = seeds::combine(seed, &[cell as u64, x as u64, y as u64]) >> 40;
            amplitude * (bits as f32 / (1 << 23) as f32 - 1.0)
        };
        let corners: Vec<f32> =
            (0..HEIGHT / cell + 2).flat_map(|y| (0..columns).map(move |x| (x, y))).map(|(x, y)| corner(x, y)).collect();
        // The position within a cell, 0 to 1.
        let fraction = |pixel: usize| (pixel % cell) as f32 / cell as f32;
        for (y, row) in plane.chunks_exact_mut(WIDTH).enumerate() {
            // The rows of corners above and below, interpolated.
            let (above, below) = corners[y / cell * columns..].split_at(columns);
            let weight = fraction(y);
            let interpolated: Vec<f32> =
                above.iter().zip(below).map(|(above, below)| above + (below - above) * weight).collect();
            for (x, value) in row.iter_mut().enumerate() {
                let (left, right) = (interpolated[x / cell], interpolated[x / cell + 1]);
                *value += left + (right - left) * fraction(x);
            }
        }
    }
    plane
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synthetic_images_have_the_size_of_cocos_files_and_differ() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), 2).unwrap();
        let sizes = paths.iter().map(|path| std::fs::metadata(path).unwrap().len());
        assert!(sizes.into_iter().all(|bytes| (120_000..180_000).contains(&bytes)), "COCO's files have about 160 KB");
        let pixels: Vec<_> = paths
            .iter()
            .map(|path| image_preprocess::preprocess(&dataset::read_file(path).unwrap(), 224).unwrap())
            .collect();
        assert_ne!(pixels[0], pixels[1]);
    }
}
