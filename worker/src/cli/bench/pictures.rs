//! JPEGs like those of COCO, made up: 640 x 480 pixels with subsampled colours, some 140 KB, in which large things are strong and small
//! ones are weak, as in photographs.

use std::path::{Path, PathBuf};

use mozjpeg::{ColorSpace, Compress};

use crate::seeds;

const WIDTH: usize = 640;
const HEIGHT: usize = 480;
const QUALITY: f32 = 95.0;
/// Pixels across the largest and the smallest things.
const MAX_IMAGES: usize = 256;
const SMALLEST: usize = 1;
/// Levels by which brightness varies, for each pixel across a thing to this power.
const STRENGTH: f32 = 8.0;
const POWER: f32 = 0.45;

/// Writes so many pictures into a folder.
///
/// # Errors
/// They cannot be written.
pub fn write(folder: &Path, count: usize) -> Result<Vec<PathBuf>, String> {
    let write = |number| {
        let path = folder.join(format!("{number:06}.jpg"));
        let written = jpeg(number as u64).and_then(|bytes| std::fs::write(&path, bytes));
        written.map(|()| path.clone()).map_err(|error| format!("{}: {error}", path.display()))
    };
    (0..count).map(write).collect()
}

fn jpeg(number: u64) -> std::io::Result<Vec<u8>> {
    // Those of libjpeg, where MozJPEG would take longer for smaller files.
    let mut encoder = Compress::new(ColorSpace::JCS_YCbCr);
    encoder.set_fastest_defaults();
    encoder.set_size(WIDTH, HEIGHT);
    encoder.set_color_space(ColorSpace::JCS_YCbCr);
    encoder.set_quality(QUALITY);
    let mut started = encoder.start_compress(Vec::new())?;
    let planes = [0, 1, 2].map(|channel| plane(seeds::combine(number, &[channel]), channel == 0));
    let pixels: Vec<u8> = (0..WIDTH * HEIGHT)
        .flat_map(|at| planes.each_ref().map(|plane| (128.0 + plane[at]).clamp(0.0, 255.0) as u8))
        .collect();
    started.write_scanlines(&pixels)?;
    started.finish()
}

/// Noise of all sizes, `[height, width]`; of colours only large ones.
fn plane(seed: u64, is_bright: bool) -> Vec<f32> {
    let mut plane = vec![0.0; WIDTH * HEIGHT];
    let smallest = if is_bright { SMALLEST } else { MAX_IMAGES / 8 };
    for cell in (0..).map(|times| MAX_IMAGES >> times).take_while(|&cell| cell >= smallest) {
        let strength = STRENGTH * (cell as f32).powf(POWER) * if is_bright { 1.0 } else { 0.3 };
        let across = WIDTH / cell + 2;
        let corner = |x: usize, y: usize| {
            let bits = seeds::combine(seed, &[cell as u64, x as u64, y as u64]) >> 40;
            strength * (bits as f32 / (1 << 23) as f32 - 1.0)
        };
        let corners: Vec<f32> =
            (0..HEIGHT / cell + 2).flat_map(|y| (0..across).map(move |x| (x, y))).map(|(x, y)| corner(x, y)).collect();
        let share = |at: usize| (at % cell) as f32 / cell as f32;
        for (y, row) in plane.chunks_exact_mut(WIDTH).enumerate() {
            let down = share(y);
            // The corners' rows above and below, blended.
            let (above, below) = corners[y / cell * across..].split_at(across);
            let blended: Vec<f32> =
                above.iter().zip(below).map(|(above, below)| above + (below - above) * down).collect();
            for (x, value) in row.iter_mut().enumerate() {
                let (left, right) = (blended[x / cell], blended[x / cell + 1]);
                *value += left + (right - left) * share(x);
            }
        }
    }
    plane
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_like_photographs() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), 2).unwrap();
        let sizes = paths.iter().map(|path| std::fs::metadata(path).unwrap().len());
        assert!(sizes.into_iter().all(|bytes| (120_000..180_000).contains(&bytes)), "COCO's have about 160 KB");
        let pixels: Vec<_> = paths
            .iter()
            .map(|path| image_preprocess::square(&dataset::read_file(path).unwrap(), 224).unwrap())
            .collect();
        assert_ne!(pixels[0], pixels[1]);
    }
}
