//! Pillow's 8-bit bicubic resampling (`src/libImaging/Resample.c`) to the bit, of a centre crop alone.
//!
//! Columns come before rows, and what lies between is rounded to bytes, as in all Pillows below 13: by those, CLIP's weights
//! and their descendants were made. Pillow 13 takes the rows of tall images first, to save time, and differs by some levels.
//!
//! Pillow scales the whole image: 1 x 100,000 pixels to 224 x 22,400,000. Here only what the crop shows is computed, so
//! memory stays within the decoded image and `size` columns of it.

use super::Picture;

/// Reach of the bicubic kernel, in pixels of the coarser of the two images.
const REACH: f64 = 2.0;
/// Weights are integers of this many fractional bits: Pillow's `PRECISION_BITS`.
const FRACTION: u32 = 32 - 8 - 2;
/// What is added before the fraction is cut off, to round.
const HALF: i32 = 1 << (FRACTION - 1);

/// The weights of one output pixel, on `first` and the input pixels after it.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    fn end(&self) -> usize {
        self.first + self.weights.len()
    }
}

/// The image scaled until its short side has `size` pixels, cropped to the centre.
pub fn square(picture: &Picture, size: usize) -> Result<Vec<u8>, String> {
    let short = picture.width.min(picture.height);
    if size == 0 || short == 0 {
        return Err("image without pixels".to_owned());
    }
    let across = crop(picture.width, short, size);
    let down = crop(picture.height, short, size);
    let first = down.iter().map(|taps| taps.first).min().unwrap_or(0);
    let end = down.iter().map(Taps::end).max().unwrap_or(0);
    let rows = picture.pixels.chunks_exact(3 * picture.width).take(end).skip(first);
    let mut narrow = Vec::with_capacity((end - first) * 3 * size);
    for row in rows {
        narrow.extend(across.iter().flat_map(|taps| mix_pixels(row, taps)));
    }
    let mut pixels = Vec::with_capacity(3 * size * size);
    for taps in &down {
        pixels.extend(mix_rows(&narrow, 3 * size, taps, first).into_iter().map(to_byte));
    }
    Ok(pixels)
}

/// The weights of the middle `size` pixels of a side of `length`, when the side of `short` pixels is scaled to `size`.
fn crop(length: usize, short: usize, size: usize) -> Vec<Taps> {
    // torchvision: `int(size * long / short)`.
    let scaled = (size as u128 * length as u128 / short as u128) as usize;
    let start = half_to_even(scaled - size);
    (start..start + size).map(|at| taps(length, scaled, at)).collect()
}

/// `int(round(excess / 2.0))` in Python, which rounds halves to even numbers.
fn half_to_even(excess: usize) -> usize {
    let half = excess / 2;
    if excess % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

/// The weights of pixel `at`, when `length` pixels become `scaled`.
fn taps(length: usize, scaled: usize, at: usize) -> Taps {
    let scale = length as f64 / scaled as f64;
    let coarser = scale.max(1.0);
    let centre = (at as f64 + 0.5) * scale;
    let reach = REACH * coarser;
    let first = (centre - reach + 0.5).max(0.0) as usize;
    let end = ((centre + reach + 0.5) as usize).min(length);
    let inverse = 1.0 / coarser;
    let weights: Vec<f64> = (first..end).map(|x| cubic((x as f64 - centre + 0.5) * inverse)).collect();
    let sum: f64 = weights.iter().sum();
    let fixed = |weight: f64| (weight / sum * f64::from(1 << FRACTION)).round() as i32;
    Taps { first, weights: weights.into_iter().map(fixed).collect() }
}

/// Keys' cubic convolution with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

fn mix_pixels(row: &[u8], taps: &Taps) -> [u8; 3] {
    let (pixels, _) = row.as_chunks::<3>();
    let [mut red, mut green, mut blue] = [HALF; 3];
    for (&[r, g, b], &weight) in pixels[taps.first..taps.end()].iter().zip(&taps.weights) {
        red += i32::from(r) * weight;
        green += i32::from(g) * weight;
        blue += i32::from(b) * weight;
    }
    [red, green, blue].map(to_byte)
}

/// One output row from rows of `stride` bytes, of which the first is the image's row `first`.
fn mix_rows(rows: &[u8], stride: usize, taps: &Taps, first: usize) -> Vec<i32> {
    let mut sums = vec![HALF; stride];
    for (row, &weight) in rows.chunks_exact(stride).skip(taps.first - first).zip(&taps.weights) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += i32::from(value) * weight;
        }
    }
    sums
}

fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize, colour: impl Fn(usize, usize) -> [u8; 3]) -> Picture {
        let pixels =
            (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| colour(x, y)).collect();
        Picture { width, height, pixels }
    }

    #[test]
    fn the_centre_is_kept() {
        // Left third red, middle third green, right third blue.
        let stripes = picture(96, 32, |x, _| [[255, 0, 0], [0, 255, 0], [0, 0, 255]][x / 32]);
        let pixels = square(&stripes, 16).unwrap();
        assert_eq!(pixels.len(), 16 * 16 * 3);
        let middle = 3 * (8 * 16 + 8);
        assert_eq!(pixels[middle..middle + 3], [0, 255, 0]);
    }

    #[test]
    fn odd_shapes_are_fitted() {
        for (width, height) in [(1, 1), (1, 500), (500, 1), (3, 2), (640, 480), (63, 65)] {
            let pixels = square(&picture(width, height, |_, _| [10, 200, 30]), 32).unwrap();
            assert_eq!(pixels.len(), 32 * 32 * 3);
            assert!(pixels.chunks(3).all(|pixel| pixel == [10, 200, 30]), "{width} x {height}");
        }
    }

    #[test]
    fn a_long_thin_image_costs_only_its_crop() {
        let pixels = square(&picture(1, 2_000_000, |_, y| [(y % 2 * 255) as u8; 3]), 224).unwrap();
        assert_eq!(pixels.len(), 224 * 224 * 3);
    }

    #[test]
    fn an_image_of_the_right_size_stays_as_it_is() {
        let noise = picture(24, 24, |x, y| [(x * 37 + y * 91) as u8, (x * y) as u8, (x ^ y) as u8]);
        assert_eq!(square(&noise, 24).unwrap(), noise.pixels);
    }

    #[test]
    fn halves_are_rounded_to_even_offsets() {
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(half_to_even), [0, 0, 1, 2, 2, 2, 4]);
    }
}
