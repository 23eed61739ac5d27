//! Decodes the most common JPEGs (baseline, one scan, YCbCr with or without chroma subsampling),
//! with the same result as libjpeg-turbo to the bit. Only the part that the resize plan reads is
//! transformed. Loops are written so that the compiler vectorizes them; there is no assembly code.
//!
//! Samples are stored column by column, as resizing reads them. Unusual and damaged images are
//! refused here; libjpeg decodes them.

use super::color_conversion::upsample_and_convert;
use super::header::{Component, Header};
use super::huffman::{BitReader, END_OF_BLOCK, HuffmanTable};
use super::idct::{self, OverflowCheck};
use super::plane::Plane;
use crate::buffer::Buffer;
use crate::resize::{ResizePlan, SourceColumns};

/// The position in a block, counted row by row, of each coefficient in the order of the file.
#[rustfmt::skip]
const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Decodes the columns that the plan reads; none if the image needs libjpeg.
#[inline(always)]
pub fn decode(header: &Header<'_>, plan: &ResizePlan) -> Option<SourceColumns> {
    let (scan, length) = remove_byte_stuffing(header.scan)?;
    let mut bits = BitReader::new(&scan, length);
    let subsampling = header.subsampling;
    let size = (header.width, header.height);
    let mut planes =
        [(1, 1), (subsampling.horizontal, subsampling.vertical), (subsampling.horizontal, subsampling.vertical)]
            .map(|subsampling| Plane::new((plan.columns(), plan.rows()), size, subsampling));
    let [first, second, third] = header.components;
    let mut decoders = [
        ComponentDecoder::new(header, first)?,
        ComponentDecoder::new(header, second)?,
        ComponentDecoder::new(header, third)?,
    ];
    for mcu_row in 0..header.height.div_ceil(8 * subsampling.vertical) {
        for mcu_column in 0..header.width.div_ceil(8 * subsampling.horizontal) {
            let [luma, cb, cr] = &mut decoders;
            for block_row in mcu_row * subsampling.vertical..(mcu_row + 1) * subsampling.vertical {
                for block_column in mcu_column * subsampling.horizontal..(mcu_column + 1) * subsampling.horizontal {
                    luma.decode_block(&mut bits, &mut planes[0], block_column, block_row)?;
                }
            }
            cb.decode_block(&mut bits, &mut planes[1], mcu_column, mcu_row)?;
            cr.decode_block(&mut bits, &mut planes[2], mcu_column, mcu_row)?;
        }
        if bits.is_past_end() {
            return None;
        }
    }
    let is_valid = bits.is_at_end() && decoders.iter().all(|decoder| decoder.overflow.is_within_range());
    if is_valid { Some(upsample_and_convert(plan, &planes, subsampling)) } else { None }
}

/// The entropy-coded bytes without the zero that follows each 0xFF, and their number; none if the
/// image does not end after them.
fn remove_byte_stuffing(scan: &[u8]) -> Option<(Buffer, usize)> {
    let mut bytes = Buffer::new(scan.len() + BitReader::PADDING);
    let (mut rest, mut length) = (scan, 0);
    loop {
        let marker = memchr::memchr(0xFF, rest)?;
        let copied = match rest.get(marker + 1)? {
            0 => marker + 1,
            0xD9 => marker,
            _ => return None,
        };
        bytes[length..length + copied].copy_from_slice(&rest[..copied]);
        length += copied;
        if copied == marker {
            return Some((bytes, length));
        }
        rest = &rest[marker + 2..];
    }
}

/// The state of decoding one component.
struct ComponentDecoder<'a> {
    /// The position in a block of each coefficient of the file, and its quantization step.
    zigzag_steps: [(u8, u8); 64],
    dc_table: &'a HuffmanTable,
    ac_table: &'a HuffmanTable,
    /// The quantized DC coefficient of the previous block.
    previous_dc: i16,
    overflow: OverflowCheck,
}

impl<'a> ComponentDecoder<'a> {
    fn new(header: &'a Header<'_>, component: Component) -> Option<Self> {
        let table = |class: usize, slot: usize| header.huffman_tables[class].get(slot)?.as_deref();
        let steps = header.quantization_tables.get(component.quantization_table)?.as_ref()?;
        let zigzag_steps = std::array::from_fn(|index| (ZIGZAG[index], steps[index]));
        let (dc_table, ac_table) = (table(0, component.dc_table)?, table(1, component.ac_table)?);
        Some(Self { zigzag_steps, dc_table, ac_table, previous_dc: 0, overflow: OverflowCheck::default() })
    }

    /// Reads a block, and transforms it if the plan reads its samples.
    #[inline(always)]
    fn decode_block(
        &mut self,
        bits: &mut BitReader<'_>,
        plane: &mut Plane,
        block_column: usize,
        block_row: usize,
    ) -> Option<()> {
        let mut block = [[0; 8]; 8];
        let is_dc_only = self.read_block(bits, block.as_flattened_mut().as_mut_array().expect("8 x 8"))?;
        if let Some(targets) = plane.block_columns(block_column, block_row) {
            let overflow = &mut self.overflow;
            let columns = if is_dc_only {
                idct::inverse_dct_dc_only(block[0][0], overflow)
            } else {
                idct::inverse_dct(&block, overflow)
            };
            targets.zip(&columns).for_each(|(target, column)| *target = *column);
        }
        Some(())
    }

    /// Reads a block into `block`, which is all zeros. Returns whether it has only a DC
    /// coefficient. Not inlined, so that its state stays in registers.
    #[inline(never)]
    fn read_block(&mut self, bits: &mut BitReader<'_>, block: &mut [i32; 64]) -> Option<bool> {
        let mut reader = *bits;
        self.previous_dc = i16::try_from(i32::from(self.previous_dc) + reader.next(self.dc_table)?.value()).ok()?;
        block[0] = i32::from(self.previous_dc) * i32::from(self.zigzag_steps[0].1);
        let mut index = 1;
        while index < 64 {
            let coefficient = reader.next(self.ac_table)?;
            let Some(&(position, step)) = self.zigzag_steps.get(index + usize::from(coefficient.run())) else {
                if coefficient.run() == END_OF_BLOCK {
                    break;
                }
                return None;
            };
            block[usize::from(position)] = coefficient.value() * i32::from(step);
            index += usize::from(coefficient.run()) + 1;
        }
        *bits = reader;
        Some(index == 1)
    }
}
