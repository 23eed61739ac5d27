//! Pillow's 8-bit bicubic resampling (`src/libImaging/Resample.c`) to the bit, of a centre crop alone.
//!
//! Columns come before rows, and what lies between is rounded to bytes, as in all Pillows below 13: by those, CLIP's weights
//! and their descendants were made. Pillow 13 takes the rows of tall images first, to save time, and differs by some levels.
//!
//! Pillow scales the whole image: 1 x 100,000 pixels to 224 x 22,400,000. Here only what the crop shows is computed, so
//! memory stays within the decoded image and `size` columns of it.
//!
//! Pixels come column by column, so that both passes are sums of whole stretches of bytes, which the processor's vectors do.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::{CropOffset, Error, Picture};

/// Reach of the bicubic kernel, in pixels of the coarser of the two images.
const REACH: f64 = 2.0;
/// Weights are integers of this many fractional bits: Pillow's `PRECISION_BITS`.
const FRACTION: u32 = 32 - 8 - 2;
/// What is added before the fraction is cut off, to round.
const HALF: i32 = 1 << (FRACTION - 1);

/// Bytes that are summed side by side.
const STRETCH: usize = 32;

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

/// Which pixels make which.
pub struct Plan {
    size: usize,
    across: Vec<Taps>,
    down: Vec<Taps>,
}

impl Plan {
    /// To scale an image until its short side has `size` pixels, and to crop it to the centre.
    pub fn new(width: usize, height: usize, size: usize, offset: CropOffset) -> Result<Self, Error> {
        let short = width.min(height);
        if size == 0 || short == 0 {
            return Err(Error::NoPixels);
        }
        Ok(Self { size, across: crop(width, short, size, offset), down: crop(height, short, size, offset) })
    }

    /// The columns that are looked at.
    pub fn columns(&self) -> Range<usize> {
        reach(&self.across)
    }

    /// The rows that are looked at.
    pub fn rows(&self) -> Range<usize> {
        reach(&self.down)
    }
}

fn reach(taps: &[Taps]) -> Range<usize> {
    let first = taps.iter().map(|taps| taps.first).min().unwrap_or(0);
    first..taps.iter().map(Taps::end).max().unwrap_or(first)
}

/// What a plan looks at of a picture: column by column, of each first all reds, then greens, then blues.
pub struct Columns {
    /// Of a channel of a column; whole stretches, of which the last may have some bytes too many.
    height: usize,
    bytes: Buffer,
}

impl Columns {
    /// Of any colours.
    pub fn new(plan: &Plan) -> Self {
        let height = plan.rows().len().next_multiple_of(STRETCH);
        Self { height, bytes: Buffer::new(plan.columns().len() * 3 * height) }
    }

    /// Those of a picture.
    pub fn of(picture: &Picture, plan: &Plan) -> Self {
        let mut columns = Self::new(plan);
        let Range { start, end } = plan.columns();
        let rows = picture.pixels.chunks_exact(3 * picture.width).skip(plan.rows().start).take(plan.rows().len());
        for (y, row) in rows.enumerate() {
            let places = columns.bytes[y..].iter_mut().step_by(columns.height);
            places.zip(&row[3 * start..3 * end]).for_each(|(place, &value)| *place = value);
        }
        columns
    }

    /// Bytes from one channel of a column to the next.
    pub fn height(&self) -> usize {
        self.height
    }

    /// All three channels of each column.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_exact_mut(3 * self.height)
    }
}

/// The pixels that the plan makes: red, green and blue interleaved, row by row.
#[inline(always)]
pub fn square(plan: &Plan, columns: &Columns) -> Vec<u8> {
    let Plan { size, across, down } = plan;
    let (first_column, rows) = (plan.columns().start, plan.rows());
    let width = (3 * size).next_multiple_of(STRETCH);
    let mut narrow = Buffer::new(rows.len().next_multiple_of(STRETCH) * width);
    for (x, taps) in across.iter().enumerate() {
        for channel in 0..3 {
            let first = 3 * (taps.first - first_column) + channel;
            for y in (0..columns.height).step_by(STRETCH) {
                let mixed = mix(&columns.bytes[first * columns.height + y..], 3 * columns.height, &taps.weights);
                let places = narrow[y * width + 3 * x + channel..].iter_mut().step_by(width);
                places.zip(mixed).for_each(|(place, value)| *place = value);
            }
        }
    }
    let mut pixels = Vec::with_capacity(size * width);
    for taps in down {
        let above = &narrow[(taps.first - rows.start) * width..];
        for x in (0..width).step_by(STRETCH) {
            pixels.extend(mix(&above[x..], width, &taps.weights));
        }
        pixels.truncate(pixels.len() + 3 * size - width);
    }
    pixels
}

/// The weights of the middle `size` pixels of a side of `length`, when the side of `short` pixels is scaled to `size`.
fn crop(length: usize, short: usize, size: usize, offset: CropOffset) -> Vec<Taps> {
    // torchvision: `int(size * long / short)`.
    let scaled = (size as u128 * length as u128 / short as u128) as usize;
    let start = match offset {
        CropOffset::HalfToEven => half_to_even(scaled - size),
        CropOffset::Floor => (scaled - size) / 2,
    };
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

/// The weighted sum of stretches that begin `stride` bytes apart.
#[inline(always)]
fn mix(bytes: &[u8], stride: usize, weights: &[i32]) -> [u8; STRETCH] {
    let mut sums = [HALF; STRETCH];
    for (row, &weight) in bytes.chunks(stride).zip(weights) {
        for (sum, &value) in sums.iter_mut().zip(&row[..STRETCH]) {
            *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
        }
    }
    let mut mixed = [0; STRETCH];
    for (byte, sum) in mixed.iter_mut().zip(sums) {
        *byte = to_byte(sum);
    }
    mixed
}

fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(picture: &Picture, size: usize) -> Result<Vec<u8>, Error> {
        let plan = Plan::new(picture.width, picture.height, size, CropOffset::default())?;
        Ok(super::square(&plan, &Columns::of(picture, &plan)))
    }

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
