//! Planes to red, green and blue, as libjpeg makes them.

use std::ops::Range;

use super::header::Ratio;
use super::plane::Plane;
use crate::resize::{Columns, Plan};

/// The pixels of the planes in red, green and blue, with colours interpolated as libjpeg does ("fancy").
#[inline(always)]
pub fn coloured(plan: &Plan, planes: &[Plane; 3], ratio: Ratio) -> Columns {
    let mut columns = Columns::new(plan);
    let rows = plan.rows();
    let [brightness, blueness, redness] = planes;
    let height = columns.height();
    let mut mixed = Vec::new();
    let mut chroma = [vec![0; height + 2], vec![0; height + 2]];
    for (x, pixels) in plan.columns().zip(columns.iter_mut()) {
        for (plane, chroma) in [blueness, redness].into_iter().zip(&mut chroma) {
            interpolate(plane, ratio, x, &rows, &mut mixed, chroma);
        }
        let own = &brightness.column(x)[rows.start - brightness.down.first()..];
        let (red, rest) = pixels.split_at_mut(height);
        let (green, blue) = rest.split_at_mut(height);
        let [blueness, redness] = &chroma;
        let colours = own.iter().zip(blueness).zip(redness);
        for (((&y, &cb), &cr), ((red, green), blue)) in colours.zip(red.iter_mut().zip(green).zip(blue)) {
            (*red, *green, *blue) = colour(y, cb, cr);
        }
    }
    columns
}

/// `jdcolor.c`
#[inline(always)]
fn colour(y: u8, cb: u8, cr: u8) -> (u8, u8, u8) {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let clamped = |value: i32| value.clamp(0, 255) as u8;
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    (clamped(red), clamped(green), clamped(blue))
}

/// `jdsample.c`: three quarters of the nearer sample and one of the farther, on each side that is subsampled. `column` is of pixels
/// `rows` of column `x`.
#[inline(always)]
fn interpolate(plane: &Plane, ratio: Ratio, x: usize, rows: &Range<usize>, mixed: &mut Vec<u16>, column: &mut [u8]) {
    let first = plane.down.first();
    let (near, is_right) = (x / ratio.across, x % 2 == 1);
    if ratio.across == 1 {
        let samples = &plane.column(near)[rows.start - first..];
        column.iter_mut().zip(samples).for_each(|(value, &sample)| *value = sample);
        return;
    }
    let far = if is_right { near + 1 } else { near.saturating_sub(1) };
    let sides = plane.column(near).iter().zip(plane.column(far));
    mixed.clear();
    // One more on each side, where there is none the outermost again.
    mixed.push(0);
    mixed.extend(sides.map(|(&near, &far)| 3 * u16::from(near) + u16::from(far)));
    let bias = u16::from(is_right);
    if ratio.down == 1 {
        let samples = &mixed[1 + rows.start - first..];
        column.iter_mut().zip(samples).for_each(|(value, &sample)| *value = ((sample + 1 + bias) >> 2) as u8);
        return;
    }
    mixed.push(0);
    if first == 0 {
        mixed[0] = mixed[1];
    }
    let end = plane.down.count - first;
    if end <= plane.height {
        mixed[end + 1] = mixed[end];
    }
    let at = rows.start / 2 - first;
    let (above, own, below) = (&mixed[at..], &mixed[at + 1..], &mixed[at + 2..]);
    let (pairs, _) = column.as_chunks_mut::<2>();
    let skip = rows.start % 2;
    for (pair, ((&above, &own), &below)) in pairs.iter_mut().zip(above.iter().zip(own).zip(below)) {
        *pair = [above, below].map(|far| ((3 * own + far + 8 - bias) >> 4) as u8);
    }
    column.copy_within(skip.., 0);
}
