//! What libjpeg-turbo makes of the JPEGs that most pictures are (baseline, one scan, YCbCr with or without subsampled colours), to the
//! bit, but only of the part that is looked at, with the processor's vectors, and without its assembler.
//!
//! Samples lie column by column, as resampling wants them. Whatever is unusual or damaged is refused here, and left to libjpeg.

use std::ops::Range;

use super::super::buffer::Buffer;
use super::super::resize::{Columns, Plan};
use super::huffman::{Bits, Class, END, Table};
use super::idct::{self, Reach};

/// Where the coefficients of a block lie, row by row, in the order of the file.
#[rustfmt::skip]
const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// What comes before the scan.
#[derive(Default)]
pub struct Header<'a> {
    pub width: usize,
    pub height: usize,
    /// Quantisation steps by slot, in the order of the file.
    steps: [Option<[u8; 64]>; 4],
    /// Codes by class and slot.
    tables: [[Option<Box<Table>>; 2]; 2],
    is_jfif: bool,
    /// What Adobe's marker says of the colours.
    transform: Option<u8>,
    components: Option<[Component; 3]>,
    /// The coded scan and what follows it.
    scan: &'a [u8],
}

/// One of Y, Cb, Cr.
#[derive(Clone, Copy, Default)]
struct Component {
    id: u8,
    across: usize,
    down: usize,
    steps: usize,
    dc: usize,
    ac: usize,
}

/// Reads up to the scan.
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
        let &[8, h1, h0, w1, w0, 3, ref components @ ..] = segment else { return None };
        let components: &[u8; 9] = components.try_into().ok()?;
        if self.components.is_some() {
            return None;
        }
        self.height = u16::from_be_bytes([h1, h0]).into();
        self.width = u16::from_be_bytes([w1, w0]).into();
        let (components, _) = components.as_chunks();
        let component = |&[id, sampling, steps]: &[u8; 3]| Component {
            id,
            across: (sampling >> 4).into(),
            down: (sampling & 15).into(),
            steps: steps.into(),
            ..Component::default()
        };
        let components = [&components[0], &components[1], &components[2]].map(component);
        let sampling = components.map(|Component { across, down, .. }| (across, down));
        let is_usual = matches!(sampling, [(1, 1) | (2, 1) | (2, 2), (1, 1), (1, 1)]);
        // Narrow pictures are upsampled in another way.
        let is_wide = sampling[0].0 == 1 || self.width > 4;
        self.components = (is_usual && is_wide && self.height > 0 && self.width > 0).then_some(components);
        self.components.map(drop)
    }

    fn codes(&mut self, mut segment: &[u8]) -> Option<()> {
        while !segment.is_empty() {
            let (&[place], rest) = segment.split_first_chunk()?;
            let (counts, rest) = rest.split_first_chunk()?;
            let (symbols, rest) = rest.split_at_checked(counts.iter().map(|&count| usize::from(count)).sum())?;
            let class = if place >> 4 == 0 { Class::Dc } else { Class::Ac };
            let table = self.tables.get_mut(usize::from(place >> 4))?.get_mut(usize::from(place & 15))?;
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
        let components = self.components.as_mut()?;
        let &[3, id0, codes0, id1, codes1, id2, codes2, 0, 63, 0] = segment else { return None };
        for (component, (id, codes)) in components.iter_mut().zip([(id0, codes0), (id1, codes1), (id2, codes2)]) {
            (component.dc, component.ac) = ((codes >> 4).into(), (codes & 15).into());
            if component.id != id || component.dc > 1 || component.ac > 1 {
                return None;
            }
        }
        // They may be red, green and blue otherwise.
        let is_ycc = match self.transform {
            _ if self.is_jfif => true,
            Some(transform) => transform == 1,
            None => components.map(|component| component.id) == [1, 2, 3],
        };
        is_ycc.then_some(())
    }

    /// The part of the picture that the plan looks at.
    #[inline(always)]
    pub fn decode(&self, plan: &Plan) -> Option<Columns> {
        let components = self.components.as_ref()?;
        let (scan, length) = unstuffed(self.scan)?;
        let mut bits = Bits::new(&scan, length);
        let [sampling_across, sampling_down] = [components[0].across, components[0].down];
        let units_across = self.width.div_ceil(8 * sampling_across);
        let units_down = self.height.div_ceil(8 * sampling_down);
        let mut planes = [0, 1, 2].map(|at| {
            let (across, down) = if at == 0 { (1, 1) } else { (sampling_across, sampling_down) };
            Plane::new(shrunk(plan.columns(), across, self.width), shrunk(plan.rows(), down, self.height))
        });
        let mut channels = Vec::with_capacity(3);
        for component in components {
            let codes = |class: usize, slot: usize| self.tables[class][slot].as_deref();
            let steps = self.steps.get(component.steps)?.as_ref()?;
            let dc = codes(0, component.dc)?;
            let places = std::array::from_fn(|at| (ZIGZAG[at], steps[at]));
            channels.push(Channel {
                component,
                places,
                dc,
                ac: codes(1, component.ac)?,
                last: 0,
                reach: Reach::default(),
            });
        }
        for unit_down in 0..units_down {
            for unit_across in 0..units_across {
                for (channel, plane) in channels.iter_mut().zip(&mut planes) {
                    let Component { across, down, .. } = *channel.component;
                    for y in unit_down * down..(unit_down + 1) * down {
                        for x in unit_across * across..(unit_across + 1) * across {
                            channel.block(&mut bits, plane, x, y)?;
                        }
                    }
                }
            }
            if bits.is_past_end() {
                return None;
            }
        }
        let is_sound = bits.is_at_end() && channels.iter().all(|channel| channel.reach.is_within());
        if is_sound { Some(coloured(plan, &planes, sampling_across, sampling_down)) } else { None }
    }
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

/// The places of a plane with a sample for each `ratio` pixels that matter to pixels `range` of `length`: with a neighbour on each side.
fn shrunk(range: Range<usize>, ratio: usize, length: usize) -> Samples {
    let beside = usize::from(ratio > 1);
    let count = length.div_ceil(ratio);
    let wanted = (range.start / ratio).saturating_sub(beside)..(range.end.div_ceil(ratio) + beside).min(count);
    Samples { blocks: wanted.start / 8..wanted.end.div_ceil(8), count }
}

/// What is there of a plane on one of its sides.
struct Samples {
    blocks: Range<usize>,
    /// How many samples the whole plane has.
    count: usize,
}

/// The samples of one of Y, Cb and Cr, column by column.
struct Plane {
    across: Samples,
    down: Samples,
    /// Of what is there of a column.
    height: usize,
    samples: Buffer,
}

impl Plane {
    fn new(across: Samples, down: Samples) -> Self {
        let height = 8 * down.blocks.len();
        let samples = Buffer::new(8 * across.blocks.len() * height);
        Self { across, down, height, samples }
    }

    /// The columns of height `height` that a block is to be written to, if it is there.
    #[inline(always)]
    fn block(&mut self, across: usize, down: usize) -> Option<impl Iterator<Item = &mut [u8; 8]>> {
        if !self.across.blocks.contains(&across) || !self.down.blocks.contains(&down) {
            return None;
        }
        let start = 8 * (across - self.across.blocks.start) * self.height + 8 * (down - self.down.blocks.start);
        Some(self.samples[start..].chunks_mut(self.height).filter_map(|column| column.first_chunk_mut()))
    }

    /// Column `at`, or the last beyond it.
    #[inline(always)]
    fn column(&self, at: usize) -> &[u8] {
        let at = at.min(self.across.count - 1) - 8 * self.across.blocks.start;
        &self.samples[at * self.height..][..self.height]
    }
}

/// A component under way.
struct Channel<'a> {
    component: &'a Component,
    /// Where each coefficient of the file goes in a block, and its quantisation step.
    places: [(u8, u8); 64],
    dc: &'a Table,
    ac: &'a Table,
    /// The quantised DC coefficient of the block before.
    last: i32,
    reach: Reach,
}

impl Channel<'_> {
    /// Reads a block, and transforms it where it is wanted.
    #[inline(always)]
    fn block(&mut self, bits: &mut Bits<'_>, plane: &mut Plane, across: usize, down: usize) -> Option<()> {
        let mut block = [[0; 8]; 8];
        let is_flat = self.read(bits, block.as_flattened_mut().as_mut_array().expect("8 x 8"))?;
        if let Some(places) = plane.block(across, down) {
            let columns =
                if is_flat { [[idct::flat(block[0][0]); 8]; 8] } else { idct::columns(&block, &mut self.reach) };
            places.zip(&columns).for_each(|(place, column)| *place = *column);
        }
        Some(())
    }

    /// Reads a block into zeros; whether there is nothing but a DC coefficient. By itself, so that all it needs stays in registers.
    #[inline(never)]
    fn read(&mut self, bits: &mut Bits<'_>, block: &mut [i32; 64]) -> Option<bool> {
        let mut own = *bits;
        self.last += own.next(self.dc)?.value();
        block[0] = self.last * i32::from(self.places[0].1);
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

/// The pixels of the planes in red, green and blue, with colours interpolated as libjpeg does ("fancy").
#[inline(always)]
fn coloured(plan: &Plan, planes: &[Plane; 3], across: usize, down: usize) -> Columns {
    let mut columns = Columns::new(plan);
    let rows = plan.rows();
    let [brightness, blueness, redness] = planes;
    let height = columns.height();
    let mut mixed = Vec::new();
    let mut chroma = [vec![0; height + 2], vec![0; height + 2]];
    for (x, pixels) in plan.columns().zip(columns.iter_mut()) {
        for (plane, chroma) in [blueness, redness].into_iter().zip(&mut chroma) {
            interpolate(plane, x, across, down, &rows, &mut mixed, chroma);
        }
        let own = &brightness.column(x)[rows.start - 8 * brightness.down.blocks.start..];
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
fn interpolate(
    plane: &Plane,
    x: usize,
    across: usize,
    down: usize,
    rows: &Range<usize>,
    mixed: &mut Vec<u16>,
    column: &mut [u8],
) {
    let first = 8 * plane.down.blocks.start;
    let (near, is_right) = (x / across, x % 2 == 1);
    if across == 1 {
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
    if down == 1 {
        let samples = &mixed[1 + rows.start - first..];
        column.iter_mut().zip(samples).for_each(|(value, &sample)| *value = ((sample + 1 + bias) >> 2) as u8);
        return;
    }
    mixed.push(0);
    if plane.down.blocks.start == 0 {
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
