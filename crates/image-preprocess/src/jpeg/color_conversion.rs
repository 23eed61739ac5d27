//! Chroma upsampling and conversion from YCbCr to RGB, as in libjpeg.

use std::ops::Range;

use super::header::Subsampling;
use super::plane::Plane;
use crate::resize::{ResizePlan, SourceColumns};

/// Converts planes to RGB columns, with libjpeg's "fancy" chroma upsampling.
#[inline(always)]
pub fn upsample_and_convert(plan: &ResizePlan, planes: &[Plane; 3], subsampling: Subsampling) -> SourceColumns {
    let mut columns = SourceColumns::new(plan);
    let rows = plan.rows();
    let [luma, cb, cr] = planes;
    let channel_stride = columns.channel_stride();
    let mut interpolated = Vec::new();
    let mut chroma = [vec![0; channel_stride + 2], vec![0; channel_stride + 2]];
    for (x, pixels) in plan.columns().zip(columns.iter_mut()) {
        for (plane, chroma) in [cb, cr].into_iter().zip(&mut chroma) {
            upsample_column(plane, subsampling, x, &rows, &mut interpolated, chroma);
        }
        let luma = &luma.column(x)[rows.start - luma.vertical.first()..];
        let (red, rest) = pixels.split_at_mut(channel_stride);
        let (green, blue) = rest.split_at_mut(channel_stride);
        let [cb, cr] = &chroma;
        let samples = luma.iter().zip(cb).zip(cr);
        for (((&y, &cb), &cr), ((red, green), blue)) in samples.zip(red.iter_mut().zip(green).zip(blue)) {
            (*red, *green, *blue) = ycbcr_to_rgb(y, cb, cr);
        }
    }
    columns
}

/// Converts one pixel, as in `jdcolor.c`.
#[inline(always)]
fn ycbcr_to_rgb(y: u8, cb: u8, cr: u8) -> (u8, u8, u8) {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let clamp = |value: i32| value.clamp(0, 255) as u8;
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    (clamp(red), clamp(green), clamp(blue))
}

/// Upsamples pixels `rows` of column `x` into `column`, as in `jdsample.c`: three quarters of the
/// nearer sample plus one quarter of the farther, in each subsampled direction.
#[inline(always)]
fn upsample_column(
    plane: &Plane,
    subsampling: Subsampling,
    x: usize,
    rows: &Range<usize>,
    interpolated: &mut Vec<u16>,
    column: &mut [u8],
) {
    let first = plane.vertical.first();
    let (near, is_right) = (x / subsampling.horizontal, x % 2 == 1);
    if subsampling.horizontal == 1 {
        let samples = &plane.column(near)[rows.start - first..];
        column.iter_mut().zip(samples).for_each(|(value, &sample)| *value = sample);
        return;
    }
    let far = if is_right { near + 1 } else { near.saturating_sub(1) };
    let neighbours = plane.column(near).iter().zip(plane.column(far));
    interpolated.clear();
    // One more sample on each side; outside the plane the outermost sample is repeated.
    interpolated.push(0);
    interpolated.extend(neighbours.map(|(&near, &far)| 3 * u16::from(near) + u16::from(far)));
    let bias = u16::from(is_right);
    if subsampling.vertical == 1 {
        let samples = &interpolated[1 + rows.start - first..];
        column.iter_mut().zip(samples).for_each(|(value, &sample)| *value = ((sample + 1 + bias) >> 2) as u8);
        return;
    }
    interpolated.push(0);
    if first == 0 {
        interpolated[0] = interpolated[1];
    }
    let end = plane.vertical.count - first;
    if end <= plane.height {
        interpolated[end + 1] = interpolated[end];
    }
    // Pairs of pixels begin at even rows.
    let offset = rows.start / 2 - first;
    let (above, own, below) = (&interpolated[offset..], &interpolated[offset + 1..], &interpolated[offset + 2..]);
    let (pairs, _) = column.as_chunks_mut::<2>();
    let skip = rows.start % 2;
    for (pair, ((&above, &own), &below)) in pairs.iter_mut().zip(above.iter().zip(own).zip(below)) {
        *pair = [above, below].map(|far| ((3 * own + far + 8 - bias) >> 4) as u8);
    }
    column.copy_within(skip.., 0);
}
