//! Pillow's 8-bit bicubic resampling (`src/libImaging/Resample.c`) followed by a centre crop, with
//! equal results to the bit.
//!
//! The horizontal pass comes before the vertical one, and its result is rounded to bytes, as in
//! Pillow before version 13, with which CLIP and its descendants were trained. Pillow 13 begins
//! with the vertical pass for tall images, to save time, and differs by some levels.
//!
//! Pillow scales the whole image: 1 x 100,000 pixels to 224 x 22,400,000. This module computes only
//! the crop. Beside the decoded image it needs memory for the result of the horizontal pass: `size`
//! columns of at most the image's height.
//!
//! The input is stored column by column, so that both passes are weighted sums of contiguous bytes,
//! which the compiler vectorizes.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::{CropOffset, DecodedImage, Error};

/// The support of the bicubic kernel, in pixels of the image with the lower resolution.
const KERNEL_SUPPORT: f64 = 2.0;
/// Weights are integers of this many fractional bits: as in Pillow.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Added before the fractional bits are dropped, to round to the nearest.
const ROUNDING: i32 = 1 << (PRECISION_BITS - 1);

/// The number of bytes that are summed in parallel.
const BLOCK_BYTES: usize = 32;

/// The filter weights of one output pixel, for the input pixels from `first` on.
struct FilterTaps {
    first: usize,
    weights: Vec<i32>,
}

impl FilterTaps {
    fn end(&self) -> usize {
        self.first + self.weights.len()
    }
}

/// The filter taps of a resize and crop, for each output column and row.
pub struct ResizePlan {
    size: usize,
    horizontal: Vec<FilterTaps>,
    vertical: Vec<FilterTaps>,
}

impl ResizePlan {
    /// Plans to scale an image of `width` x `height` pixels until its short side has `size` pixels,
    /// and to crop it to the centre.
    ///
    /// # Errors
    /// `width`, `height` or `size` is 0.
    pub fn new(width: usize, height: usize, size: usize, offset: CropOffset) -> Result<Self, Error> {
        let short = width.min(height);
        if size == 0 || short == 0 {
            return Err(Error::NoPixels);
        }
        Ok(Self {
            size,
            horizontal: cropped_taps(width, short, size, offset),
            vertical: cropped_taps(height, short, size, offset),
        })
    }

    /// The input columns that the plan reads.
    pub fn columns(&self) -> Range<usize> {
        covered_range(&self.horizontal)
    }

    /// The input rows that the plan reads.
    pub fn rows(&self) -> Range<usize> {
        covered_range(&self.vertical)
    }
}

fn covered_range(taps: &[FilterTaps]) -> Range<usize> {
    let first = taps.iter().map(|taps| taps.first).min().unwrap_or(0);
    first..taps.iter().map(FilterTaps::end).max().unwrap_or(first)
}

/// The part of an image that a plan reads. It is stored column by column; each column has all reds,
/// then all greens, then all blues.
pub struct SourceColumns {
    /// The number of bytes from one channel of a column to the next: the number of rows, rounded up
    /// to a multiple of [`BLOCK_BYTES`].
    channel_stride: usize,
    bytes: Buffer,
}

impl SourceColumns {
    /// Columns whose bytes the caller has to write: their initial content is arbitrary.
    pub fn new(plan: &ResizePlan) -> Self {
        let channel_stride = plan.rows().len().next_multiple_of(BLOCK_BYTES);
        Self { channel_stride, bytes: Buffer::new(plan.columns().len() * 3 * channel_stride) }
    }

    /// Copies the columns of a decoded image.
    pub fn from_image(image: &DecodedImage, plan: &ResizePlan) -> Self {
        let mut columns = Self::new(plan);
        let Range { start, end } = plan.columns();
        let rows = image.pixels.chunks_exact(3 * image.width).skip(plan.rows().start).take(plan.rows().len());
        for (y, row) in rows.enumerate() {
            let targets = columns.bytes[y..].iter_mut().step_by(columns.channel_stride);
            targets.zip(&row[3 * start..3 * end]).for_each(|(target, &value)| *target = value);
        }
        columns
    }

    /// The number of bytes from one channel of a column to the next.
    pub fn channel_stride(&self) -> usize {
        self.channel_stride
    }

    /// The columns, each with all three channels.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_exact_mut(3 * self.channel_stride)
    }
}

/// Resizes and crops: RGB interleaved, row by row.
#[inline(always)]
pub fn resize_and_crop(plan: &ResizePlan, columns: &SourceColumns) -> Vec<u8> {
    let ResizePlan { size, horizontal, vertical } = plan;
    let (first_column, rows) = (plan.columns().start, plan.rows());
    let channel_stride = columns.channel_stride;
    let row_stride = (3 * size).next_multiple_of(BLOCK_BYTES);
    let mut intermediate = Buffer::new(channel_stride * row_stride);
    for (x, taps) in horizontal.iter().enumerate() {
        for channel in 0..3 {
            let first = 3 * (taps.first - first_column) + channel;
            for y in (0..channel_stride).step_by(BLOCK_BYTES) {
                let sums =
                    weighted_sum(&columns.bytes[first * channel_stride + y..], 3 * channel_stride, &taps.weights);
                let targets = intermediate[y * row_stride + 3 * x + channel..].iter_mut().step_by(row_stride);
                targets.zip(sums).for_each(|(target, value)| *target = value);
            }
        }
    }
    let mut pixels = Vec::with_capacity(size * row_stride);
    for taps in vertical {
        let source_rows = &intermediate[(taps.first - rows.start) * row_stride..];
        for x in (0..row_stride).step_by(BLOCK_BYTES) {
            pixels.extend(weighted_sum(&source_rows[x..], row_stride, &taps.weights));
        }
        pixels.truncate(pixels.len() + 3 * size - row_stride);
    }
    pixels
}

/// The filter taps of the `size` pixels in the middle of a side of `length` pixels, if the short
/// side of `short` pixels is scaled to `size`.
fn cropped_taps(length: usize, short: usize, size: usize, offset: CropOffset) -> Vec<FilterTaps> {
    // torchvision: `int(size * long / short)`.
    let scaled = (size as u128 * length as u128 / short as u128) as usize;
    let start = match offset {
        CropOffset::HalfToEven => half_to_even(scaled - size),
        CropOffset::Floor => (scaled - size) / 2,
    };
    (start..start + size).map(|pixel| taps_of_pixel(length, scaled, pixel)).collect()
}

/// `int(round(excess / 2.0))` in Python, which rounds halves to even numbers.
fn half_to_even(excess: usize) -> usize {
    let half = excess / 2;
    if excess % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

/// The filter taps of output pixel `pixel`, if `length` pixels are scaled to `scaled`.
fn taps_of_pixel(length: usize, scaled: usize, pixel: usize) -> FilterTaps {
    let scale = length as f64 / scaled as f64;
    let filter_scale = scale.max(1.0);
    let centre = (pixel as f64 + 0.5) * scale;
    let support = KERNEL_SUPPORT * filter_scale;
    let first = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(length);
    let inverse = 1.0 / filter_scale;
    let weights: Vec<f64> = (first..end).map(|x| cubic((x as f64 - centre + 0.5) * inverse)).collect();
    let sum: f64 = weights.iter().sum();
    let to_fixed_point = |weight: f64| (weight / sum * f64::from(1 << PRECISION_BITS)).round() as i32;
    FilterTaps { first, weights: weights.into_iter().map(to_fixed_point).collect() }
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

/// The weighted sum of blocks of [`BLOCK_BYTES`] that begin `stride` bytes apart.
#[inline(always)]
fn weighted_sum(bytes: &[u8], stride: usize, weights: &[i32]) -> [u8; BLOCK_BYTES] {
    let mut sums = [ROUNDING; BLOCK_BYTES];
    for (chunk, &weight) in bytes.chunks(stride).zip(weights) {
        for (sum, &value) in sums.iter_mut().zip(&chunk[..BLOCK_BYTES]) {
            *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
        }
    }
    let mut bytes_out = [0; BLOCK_BYTES];
    for (byte, sum) in bytes_out.iter_mut().zip(sums) {
        *byte = to_byte(sum);
    }
    bytes_out
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preprocess(image: &DecodedImage, size: usize) -> Result<Vec<u8>, Error> {
        let plan = ResizePlan::new(image.width, image.height, size, CropOffset::default())?;
        Ok(super::resize_and_crop(&plan, &SourceColumns::from_image(image, &plan)))
    }

    fn image_of(width: usize, height: usize, colour: impl Fn(usize, usize) -> [u8; 3]) -> DecodedImage {
        let pixels =
            (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| colour(x, y)).collect();
        DecodedImage { width, height, pixels }
    }

    #[test]
    fn the_crop_is_centred() {
        // Left third red, middle third green, right third blue.
        let stripes = image_of(96, 32, |x, _| [[255, 0, 0], [0, 255, 0], [0, 0, 255]][x / 32]);
        let pixels = preprocess(&stripes, 16).unwrap();
        assert_eq!(pixels.len(), 16 * 16 * 3);
        let middle = 3 * (8 * 16 + 8);
        assert_eq!(pixels[middle..middle + 3], [0, 255, 0]);
    }

    #[test]
    fn images_of_extreme_shapes_are_resized() {
        for (width, height) in [(1, 1), (1, 500), (500, 1), (3, 2), (640, 480), (63, 65)] {
            let pixels = preprocess(&image_of(width, height, |_, _| [10, 200, 30]), 32).unwrap();
            assert_eq!(pixels.len(), 32 * 32 * 3);
            assert!(pixels.chunks(3).all(|pixel| pixel == [10, 200, 30]), "{width} x {height}");
        }
    }

    #[test]
    fn a_long_thin_image_is_resized_within_bounded_memory() {
        let pixels = preprocess(&image_of(1, 2_000_000, |_, y| [(y % 2 * 255) as u8; 3]), 224).unwrap();
        assert_eq!(pixels.len(), 224 * 224 * 3);
    }

    #[test]
    fn an_image_of_the_target_size_is_unchanged() {
        let noise = image_of(24, 24, |x, y| [(x * 37 + y * 91) as u8, (x * y) as u8, (x ^ y) as u8]);
        assert_eq!(preprocess(&noise, 24).unwrap(), noise.pixels);
    }

    #[test]
    fn half_pixels_are_rounded_to_even_offsets() {
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(half_to_even), [0, 0, 1, 2, 2, 2, 4]);
    }
}
