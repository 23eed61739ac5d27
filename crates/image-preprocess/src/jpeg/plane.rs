//! The samples of one of Y, Cb and Cr, for the part of an image that the resize plan reads.

use std::ops::Range;

use crate::buffer::Buffer;

/// The stored part of a plane in one direction.
pub struct SampleRange {
    /// The stored blocks, of eight samples each.
    blocks: Range<usize>,
    /// The number of samples of the whole plane.
    pub count: usize,
}

impl SampleRange {
    /// The samples for pixels `range` of `length`, with `subsampling` pixels per sample, and one
    /// more on each side if the plane is subsampled.
    fn new(range: &Range<usize>, length: usize, subsampling: usize) -> Self {
        let margin = usize::from(subsampling > 1);
        let count = length.div_ceil(subsampling);
        let needed =
            (range.start / subsampling).saturating_sub(margin)..(range.end.div_ceil(subsampling) + margin).min(count);
        Self { blocks: needed.start / 8..needed.end.div_ceil(8), count }
    }

    /// The index of the first stored sample.
    #[inline(always)]
    pub fn first(&self) -> usize {
        8 * self.blocks.start
    }
}

/// Samples, stored column by column.
pub struct Plane {
    horizontal: SampleRange,
    pub vertical: SampleRange,
    /// The number of stored samples of a column.
    pub height: usize,
    samples: Buffer,
}

impl Plane {
    /// A plane for pixels `columns` and `rows` of an image of width and height `size`, with
    /// `subsampling` pixels per sample in each direction. Its content is arbitrary.
    pub fn new(
        (columns, rows): (Range<usize>, Range<usize>),
        size: (usize, usize),
        subsampling: (usize, usize),
    ) -> Self {
        let (horizontal, vertical) =
            (SampleRange::new(&columns, size.0, subsampling.0), SampleRange::new(&rows, size.1, subsampling.1));
        let height = 8 * vertical.blocks.len();
        let samples = Buffer::new(8 * horizontal.blocks.len() * height);
        Self { horizontal, vertical, height, samples }
    }

    /// The columns of a block, to write its samples; none if the block is not stored.
    #[inline(always)]
    pub fn block_columns(
        &mut self,
        block_column: usize,
        block_row: usize,
    ) -> Option<impl Iterator<Item = &mut [u8; 8]>> {
        if !self.horizontal.blocks.contains(&block_column) || !self.vertical.blocks.contains(&block_row) {
            return None;
        }
        let start = (8 * block_column - self.horizontal.first()) * self.height + 8 * block_row - self.vertical.first();
        Some(self.samples[start..].chunks_mut(self.height).filter_map(|column| column.first_chunk_mut()))
    }

    /// The stored samples of column `index`, or of the last column of the plane if `index` is
    /// beyond.
    #[inline(always)]
    pub fn column(&self, index: usize) -> &[u8] {
        let index = index.min(self.horizontal.count - 1) - self.horizontal.first();
        &self.samples[index * self.height..][..self.height]
    }
}
