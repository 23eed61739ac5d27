//! Parses the header of a JPEG if it is of the common kind that [`super::baseline`] decodes.

use super::huffman::{HuffmanTable, TableClass};

/// libjpeg's `JPEG_MAX_DIMENSION`.
const MAX_SIDE: usize = 65_500;

/// The header: all segments before the entropy-coded scan.
#[derive(Default)]
pub struct Header<'a> {
    pub width: usize,
    pub height: usize,
    /// Quantization tables by slot, with steps in the order of the file.
    pub quantization_tables: [Option<[u8; 64]>; 4],
    /// Huffman tables by class (DC, AC) and slot.
    pub huffman_tables: [[Option<Box<HuffmanTable>>; 2]; 2],
    /// Whether the file has the segment of the JFIF format.
    is_jfif: bool,
    /// The colour transform in the segment that Adobe's programs write.
    adobe_transform: Option<u8>,
    pub subsampling: Subsampling,
    /// Y, Cb and Cr.
    pub components: [Component; 3],
    /// The entropy-coded scan and all bytes after it.
    pub scan: &'a [u8],
}

/// Chroma subsampling: the number of pixels for one chroma sample in each direction.
#[derive(Clone, Copy, Default)]
pub struct Subsampling {
    pub horizontal: usize,
    pub vertical: usize,
}

/// One of Y, Cb and Cr, with the slots of its tables.
#[derive(Clone, Copy, Default)]
pub struct Component {
    id: u8,
    /// The slot of the quantization table.
    pub quantization_table: usize,
    /// The slot of the Huffman table of the DC coefficients.
    pub dc_table: usize,
    /// The slot of the Huffman table of the AC coefficients.
    pub ac_table: usize,
}

/// Parses the header up to the scan; none if the image needs libjpeg.
pub fn parse_header(encoded: &[u8]) -> Option<Header<'_>> {
    let mut header = Header::default();
    let mut rest = encoded.strip_prefix(&[0xFF, 0xD8])?;
    loop {
        let (&[0xFF, marker], after) = rest.split_first_chunk()? else { return None };
        let (length, after) = after.split_first_chunk()?;
        let (segment, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)).checked_sub(2)?)?;
        match marker {
            0xC0 => header.parse_frame(segment)?,
            0xC4 => header.parse_huffman_tables(segment)?,
            0xDB => header.parse_quantization_tables(segment)?,
            0xDA => {
                header.parse_scan_header(segment)?;
                return Some(Header { scan: after, ..header });
            }
            0xE0 => header.is_jfif |= segment.starts_with(b"JFIF\0") && segment.len() >= 14,
            0xEE if segment.starts_with(b"Adobe") => header.adobe_transform = Some(*segment.get(11)?),
            0xE1..=0xEF | 0xFE => {}
            _ => return None,
        }
        rest = after;
    }
}

impl Header<'_> {
    fn parse_frame(&mut self, segment: &[u8]) -> Option<()> {
        let &[8, h1, h0, w1, w0, 3, id0, sampling0, steps0, id1, 0x11, steps1, id2, 0x11, steps2] = segment else {
            return None;
        };
        // A second frame is an error.
        if self.width > 0 {
            return None;
        }
        (self.height, self.width) = (u16::from_be_bytes([h1, h0]).into(), u16::from_be_bytes([w1, w0]).into());
        self.subsampling = match sampling0 {
            0x11 => Subsampling { horizontal: 1, vertical: 1 },
            0x21 => Subsampling { horizontal: 2, vertical: 1 },
            0x22 => Subsampling { horizontal: 2, vertical: 2 },
            _ => return None,
        };
        let component =
            |(id, steps): (u8, u8)| Component { id, quantization_table: steps.into(), ..Component::default() };
        self.components = [(id0, steps0), (id1, steps1), (id2, steps2)].map(component);
        // libjpeg upsamples the chroma of narrow images in another way.
        let is_supported_width = self.subsampling.horizontal == 1 || self.width > 4;
        let is_valid_side = |length| (1..=MAX_SIDE).contains(&length);
        (is_supported_width && is_valid_side(self.width) && is_valid_side(self.height)).then_some(())
    }

    fn parse_huffman_tables(&mut self, mut segment: &[u8]) -> Option<()> {
        while !segment.is_empty() {
            let (&[destination], rest) = segment.split_first_chunk()?;
            let (counts, rest) = rest.split_first_chunk()?;
            let (symbols, rest) = rest.split_at_checked(counts.iter().map(|&count| usize::from(count)).sum())?;
            let class = if destination >> 4 == 0 { TableClass::Dc } else { TableClass::Ac };
            let table =
                self.huffman_tables.get_mut(usize::from(destination >> 4))?.get_mut(usize::from(destination & 15))?;
            // Building a table is expensive, so a file may define each slot only once.
            if table.is_some() {
                return None;
            }
            *table = Some(Box::new(HuffmanTable::new(class, counts, symbols)?));
            segment = rest;
        }
        Some(())
    }

    fn parse_quantization_tables(&mut self, mut segment: &[u8]) -> Option<()> {
        while !segment.is_empty() {
            // Steps of 16 bits are refused.
            let (&[destination], rest) = segment.split_first_chunk()?;
            let (steps, rest) = rest.split_first_chunk()?;
            *self.quantization_tables.get_mut(usize::from(destination))? = Some(*steps);
            segment = rest;
        }
        Some(())
    }

    fn parse_scan_header(&mut self, segment: &[u8]) -> Option<()> {
        let &[3, id0, codes0, id1, codes1, id2, codes2, 0, 63, 0] = segment else { return None };
        for (component, (id, codes)) in self.components.iter_mut().zip([(id0, codes0), (id1, codes1), (id2, codes2)]) {
            (component.dc_table, component.ac_table) = ((codes >> 4).into(), (codes & 15).into());
            if component.id != id {
                return None;
            }
        }
        // Otherwise the components may be red, green and blue.
        let is_ycbcr = match self.adobe_transform {
            _ if self.is_jfif => true,
            Some(transform) => transform == 1,
            None => self.components.map(|component| component.id) == [1, 2, 3],
        };
        // Without a frame there is no width.
        (is_ycbcr && self.width > 0).then_some(())
    }
}
