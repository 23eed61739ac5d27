//! What a JPEG says before its scan, where it is of the usual kind.

use super::huffman::{Class, Table};

/// libjpeg's `JPEG_MAX_DIMENSION`.
const MAX_SIDE: usize = 65_500;

/// What comes before the scan.
#[derive(Default)]
pub struct Header<'a> {
    pub width: usize,
    pub height: usize,
    /// Quantisation steps by slot, in the order of the file.
    pub steps: [Option<[u8; 64]>; 4],
    /// Codes by class and slot.
    pub tables: [[Option<Box<Table>>; 2]; 2],
    is_jfif: bool,
    /// What Adobe's marker says of the colours.
    transform: Option<u8>,
    pub ratio: Ratio,
    /// Y, Cb and Cr.
    pub components: [Component; 3],
    /// The coded scan and what follows it.
    pub scan: &'a [u8],
}

/// How many pixels there are for a sample of a colour, on either side.
#[derive(Clone, Copy, Default)]
pub struct Ratio {
    pub across: usize,
    pub down: usize,
}

/// One of Y, Cb and Cr, and the slots of what it is coded with.
#[derive(Clone, Copy, Default)]
pub struct Component {
    id: u8,
    pub steps: usize,
    pub dc: usize,
    pub ac: usize,
}

/// Reads up to the scan; nothing if the rest of it is for libjpeg.
pub fn header(encoded: &[u8]) -> Option<Header<'_>> {
    let mut header = Header::default();
    let mut rest = encoded.strip_prefix(&[0xFF, 0xD8])?;
    loop {
        let (&[0xFF, marker], after) = rest.split_first_chunk()? else { return None };
        let (length, after) = after.split_first_chunk()?;
        let (segment, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)).checked_sub(2)?)?;
        match marker {
            0xC0 => header.frame(segment)?,
            0xC4 => header.codes(segment)?,
            0xDB => header.quantisation(segment)?,
            0xDA => {
                header.start(segment)?;
                return Some(Header { scan: after, ..header });
            }
            0xE0 => header.is_jfif |= segment.starts_with(b"JFIF\0") && segment.len() >= 14,
            0xEE if segment.starts_with(b"Adobe") => header.transform = Some(*segment.get(11)?),
            0xE1..=0xEF | 0xFE => {}
            _ => return None,
        }
        rest = after;
    }
}

impl Header<'_> {
    fn frame(&mut self, segment: &[u8]) -> Option<()> {
        let &[8, h1, h0, w1, w0, 3, id0, sampling0, steps0, id1, 0x11, steps1, id2, 0x11, steps2] = segment else {
            return None;
        };
        // A second frame is an error.
        if self.width > 0 {
            return None;
        }
        (self.height, self.width) = (u16::from_be_bytes([h1, h0]).into(), u16::from_be_bytes([w1, w0]).into());
        self.ratio = match sampling0 {
            0x11 => Ratio { across: 1, down: 1 },
            0x21 => Ratio { across: 2, down: 1 },
            0x22 => Ratio { across: 2, down: 2 },
            _ => return None,
        };
        let component = |(id, steps): (u8, u8)| Component { id, steps: steps.into(), ..Component::default() };
        self.components = [(id0, steps0), (id1, steps1), (id2, steps2)].map(component);
        // Colours of narrow pictures are interpolated in another way.
        let is_wide = self.ratio.across == 1 || self.width > 4;
        let is_side = |length| (1..=MAX_SIDE).contains(&length);
        (is_wide && is_side(self.width) && is_side(self.height)).then_some(())
    }

    fn codes(&mut self, mut segment: &[u8]) -> Option<()> {
        while !segment.is_empty() {
            let (&[place], rest) = segment.split_first_chunk()?;
            let (counts, rest) = rest.split_first_chunk()?;
            let (symbols, rest) = rest.split_at_checked(counts.iter().map(|&count| usize::from(count)).sum())?;
            let class = if place >> 4 == 0 { Class::Dc } else { Class::Ac };
            let table = self.tables.get_mut(usize::from(place >> 4))?.get_mut(usize::from(place & 15))?;
            // To make a table takes long for its few bytes, so that there may be only one for each place.
            if table.is_some() {
                return None;
            }
            *table = Some(Box::new(Table::new(class, counts, symbols)?));
            segment = rest;
        }
        Some(())
    }

    fn quantisation(&mut self, mut segment: &[u8]) -> Option<()> {
        while !segment.is_empty() {
            // Steps of 16 bits are refused.
            let (&[place], rest) = segment.split_first_chunk()?;
            let (steps, rest) = rest.split_first_chunk()?;
            *self.steps.get_mut(usize::from(place))? = Some(*steps);
            segment = rest;
        }
        Some(())
    }

    fn start(&mut self, segment: &[u8]) -> Option<()> {
        let &[3, id0, codes0, id1, codes1, id2, codes2, 0, 63, 0] = segment else { return None };
        for (component, (id, codes)) in self.components.iter_mut().zip([(id0, codes0), (id1, codes1), (id2, codes2)]) {
            (component.dc, component.ac) = ((codes >> 4).into(), (codes & 15).into());
            if component.id != id {
                return None;
            }
        }
        // They may be red, green and blue otherwise.
        let is_ycc = match self.transform {
            _ if self.is_jfif => true,
            Some(transform) => transform == 1,
            None => self.components.map(|component| component.id) == [1, 2, 3],
        };
        // Without a frame there is no width.
        (is_ycc && self.width > 0).then_some(())
    }
}
