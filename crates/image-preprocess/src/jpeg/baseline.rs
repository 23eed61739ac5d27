//! What libjpeg-turbo makes of the JPEGs that most pictures are (baseline, one scan, YCbCr with or without subsampled colours), to the
//! bit, but only of the part that is looked at, with the processor's vectors, and without its assembler.
//!
//! Samples lie column by column, as resampling wants them. Whatever is unusual or damaged is refused here, and left to libjpeg.

use super::colours::coloured;
use super::header::{Component, Header};
use super::huffman::{Bits, END, Table};
use super::idct::{self, Reach};
use super::plane::Plane;
use crate::buffer::Buffer;
use crate::resize::{Columns, Plan};

/// Where the coefficients of a block lie, row by row, in the order of the file.
#[rustfmt::skip]
const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// What the plan looks at.
#[inline(always)]
pub fn decode(header: &Header<'_>, plan: &Plan) -> Option<Columns> {
    let (scan, length) = unstuffed(header.scan)?;
    let mut bits = Bits::new(&scan, length);
    let ratio = header.ratio;
    let size = (header.width, header.height);
    let mut planes = [(1, 1), (ratio.across, ratio.down), (ratio.across, ratio.down)]
        .map(|ratio| Plane::new((plan.columns(), plan.rows()), size, ratio));
    let [first, second, third] = header.components;
    let mut channels = [Channel::new(header, first)?, Channel::new(header, second)?, Channel::new(header, third)?];
    for unit_down in 0..header.height.div_ceil(8 * ratio.down) {
        for unit_across in 0..header.width.div_ceil(8 * ratio.across) {
            let [brightness, blueness, redness] = &mut channels;
            for y in unit_down * ratio.down..(unit_down + 1) * ratio.down {
                for x in unit_across * ratio.across..(unit_across + 1) * ratio.across {
                    brightness.block(&mut bits, &mut planes[0], x, y)?;
                }
            }
            blueness.block(&mut bits, &mut planes[1], unit_across, unit_down)?;
            redness.block(&mut bits, &mut planes[2], unit_across, unit_down)?;
        }
        if bits.is_past_end() {
            return None;
        }
    }
    let is_sound = bits.is_at_end() && channels.iter().all(|channel| channel.reach.is_within());
    if is_sound { Some(coloured(plan, &planes, ratio)) } else { None }
}

/// The coded bytes without the zeros that are stuffed behind each 255, and how many they are, if the image ends behind them.
fn unstuffed(scan: &[u8]) -> Option<(Buffer, usize)> {
    let mut bytes = Buffer::new(scan.len() + Bits::PADDING);
    let (mut rest, mut length) = (scan, 0);
    loop {
        let at = memchr::memchr(0xFF, rest)?;
        let kept = match rest.get(at + 1)? {
            0 => at + 1,
            0xD9 => at,
            _ => return None,
        };
        bytes[length..length + kept].copy_from_slice(&rest[..kept]);
        length += kept;
        if kept == at {
            return Some((bytes, length));
        }
        rest = &rest[at + 2..];
    }
}

/// A component under way.
struct Channel<'a> {
    /// Where each coefficient of the file goes in a block, and its quantisation step.
    places: [(u8, u8); 64],
    dc: &'a Table,
    ac: &'a Table,
    /// The quantised DC coefficient of the block before.
    last: i16,
    reach: Reach,
}

impl<'a> Channel<'a> {
    fn new(header: &'a Header<'_>, component: Component) -> Option<Self> {
        let codes = |class: usize, slot: usize| header.tables[class].get(slot)?.as_deref();
        let steps = header.steps.get(component.steps)?.as_ref()?;
        let places = std::array::from_fn(|at| (ZIGZAG[at], steps[at]));
        let (dc, ac) = (codes(0, component.dc)?, codes(1, component.ac)?);
        Some(Self { places, dc, ac, last: 0, reach: Reach::default() })
    }

    /// Reads a block, and transforms it where it is wanted.
    #[inline(always)]
    fn block(&mut self, bits: &mut Bits<'_>, plane: &mut Plane, across: usize, down: usize) -> Option<()> {
        let mut block = [[0; 8]; 8];
        let is_flat = self.read(bits, block.as_flattened_mut().as_mut_array().expect("8 x 8"))?;
        if let Some(places) = plane.block(across, down) {
            let reach = &mut self.reach;
            let columns = if is_flat { idct::flat(block[0][0], reach) } else { idct::columns(&block, reach) };
            places.zip(&columns).for_each(|(place, column)| *place = *column);
        }
        Some(())
    }

    /// Reads a block into zeros; whether there is nothing but a DC coefficient. By itself, so that all it needs stays in registers.
    #[inline(never)]
    fn read(&mut self, bits: &mut Bits<'_>, block: &mut [i32; 64]) -> Option<bool> {
        let mut own = *bits;
        self.last = i16::try_from(i32::from(self.last) + own.next(self.dc)?.value()).ok()?;
        block[0] = i32::from(self.last) * i32::from(self.places[0].1);
        let mut at = 1;
        while at < 64 {
            let found = own.next(self.ac)?;
            let Some(&(place, step)) = self.places.get(at + usize::from(found.run())) else {
                if found.run() == END { break } else { return None }
            };
            block[usize::from(place)] = found.value() * i32::from(step);
            at += usize::from(found.run()) + 1;
        }
        *bits = own;
        Some(at == 1)
    }
}
