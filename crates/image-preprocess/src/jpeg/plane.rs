//! Samples of one of Y, Cb and Cr, of the part of a picture that is looked at.

use std::ops::Range;

use crate::buffer::Buffer;

/// What is there of a plane on one of its sides.
pub struct Samples {
    blocks: Range<usize>,
    /// How many samples the whole plane has.
    pub count: usize,
}

impl Samples {
    /// What matters to pixels `range` of `length`, where a sample is for `ratio` of them: with a neighbour on each side.
    fn new(range: &Range<usize>, length: usize, ratio: usize) -> Self {
        let beside = usize::from(ratio > 1);
        let count = length.div_ceil(ratio);
        let wanted = (range.start / ratio).saturating_sub(beside)..(range.end.div_ceil(ratio) + beside).min(count);
        Self { blocks: wanted.start / 8..wanted.end.div_ceil(8), count }
    }

    /// The first that is there.
    #[inline(always)]
    pub fn first(&self) -> usize {
        8 * self.blocks.start
    }
}

/// The samples, column by column.
pub struct Plane {
    across: Samples,
    pub down: Samples,
    /// How many there are of a column.
    pub height: usize,
    samples: Buffer,
}

impl Plane {
    /// Of pixels `columns` and `rows` of a picture of width and height `size`, where a sample is for `ratio` of them.
    pub fn new((columns, rows): (Range<usize>, Range<usize>), size: (usize, usize), ratio: (usize, usize)) -> Self {
        let (across, down) = (Samples::new(&columns, size.0, ratio.0), Samples::new(&rows, size.1, ratio.1));
        let height = 8 * down.blocks.len();
        let samples = Buffer::new(8 * across.blocks.len() * height);
        Self { across, down, height, samples }
    }

    /// The columns that a block is to be written to, if it is there.
    #[inline(always)]
    pub fn block(&mut self, across: usize, down: usize) -> Option<impl Iterator<Item = &mut [u8; 8]>> {
        if !self.across.blocks.contains(&across) || !self.down.blocks.contains(&down) {
            return None;
        }
        let start = (8 * across - self.across.first()) * self.height + 8 * down - self.down.first();
        Some(self.samples[start..].chunks_mut(self.height).filter_map(|column| column.first_chunk_mut()))
    }

    /// Column `at`, or the last beyond it.
    #[inline(always)]
    pub fn column(&self, at: usize) -> &[u8] {
        let at = at.min(self.across.count - 1) - self.across.first();
        &self.samples[at * self.height..][..self.height]
    }
}
