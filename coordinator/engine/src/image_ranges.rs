//! The ranges of images of an evaluation.
//!
//! The validation split is divided into ranges of images. A range counts only if the captions of
//! all its images are reported. When a generation ends in between, other members caption the ranges
//! that are not complete. So each image that can be decoded has one caption in the end. The
//! captions themselves do not reach the state machine.

use std::collections::BTreeSet;

use proto::{IMAGES_PER_EVALUATION_RANGE, v1};

use crate::{shares, types::Rank};

/// Images `begin..end` of the validation split: indices in the order of the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageRange {
    /// The first image.
    pub begin: u64,
    /// The image after the last.
    pub end: u64,
}

impl From<v1::ImageRange> for ImageRange {
    fn from(v1::ImageRange { begin, end }: v1::ImageRange) -> Self {
        Self { begin, end }
    }
}

impl From<ImageRange> for v1::ImageRange {
    fn from(ImageRange { begin, end }: ImageRange) -> Self {
        Self { begin, end }
    }
}

/// The share of these ranges that a rank captions.
#[must_use]
pub fn share_of_rank(ranges: &[ImageRange], world_size: u32, rank: Rank) -> &[ImageRange] {
    let share = shares::equal_share(ranges.len() as u32, world_size, rank);
    &ranges[share.start as usize..share.end as usize]
}

/// The ranges of a split, and which of them are captioned.
#[derive(Debug)]
pub struct CaptionedRanges {
    /// The ranges that are not complete. Each has [`IMAGES_PER_EVALUATION_RANGE`] images; the last
    /// one of the split may have fewer.
    missing: BTreeSet<ImageRange>,
}

impl CaptionedRanges {
    /// The ranges of a split with this number of images, none of them captioned yet.
    #[must_use]
    pub fn new(image_count: u64) -> Self {
        let range = |index| {
            let begin = index * IMAGES_PER_EVALUATION_RANGE;
            ImageRange { begin, end: image_count.min(begin + IMAGES_PER_EVALUATION_RANGE) }
        };
        Self { missing: (0..image_count.div_ceil(IMAGES_PER_EVALUATION_RANGE)).map(range).collect() }
    }

    /// The ranges that are not complete, in order.
    #[must_use]
    pub fn missing(&self) -> Vec<ImageRange> {
        self.missing.iter().copied().collect()
    }

    /// Whether all ranges are complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// Marks a range as complete.
    pub fn complete(&mut self, range: ImageRange) {
        self.missing.remove(&range);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_completed_in_any_order() {
        let mut captioned = CaptionedRanges::new(IMAGES_PER_EVALUATION_RANGE + 2);
        let [first, second] = captioned.missing()[..] else { panic!("two ranges") };
        assert_eq!(second, ImageRange { begin: IMAGES_PER_EVALUATION_RANGE, end: IMAGES_PER_EVALUATION_RANGE + 2 });
        captioned.complete(second);
        assert_eq!((captioned.missing(), captioned.is_complete()), (vec![first], false));
        captioned.complete(first);
        assert_eq!((captioned.missing(), captioned.is_complete()), (vec![], true));
        // Only the ranges of the split count.
        let mut captioned = CaptionedRanges::new(1);
        captioned.complete(ImageRange { begin: 7, end: 8 });
        assert!(!captioned.is_complete());
        assert!(CaptionedRanges::new(0).is_complete());
    }

    proptest! {
        #[test]
        fn each_range_is_in_the_share_of_one_rank(images in 0..5_000_u64, world_size in 1..40_u32) {
            let all_ranges = CaptionedRanges::new(images).missing();
            let shares: Vec<&[ImageRange]> =
                (0..world_size).map(|rank| share_of_rank(&all_ranges, world_size, Rank(rank))).collect();
            prop_assert_eq!(shares.concat(), all_ranges.clone());
            prop_assert!(shares.iter().all(|share| share.len() - all_ranges.len() / world_size as usize <= 1));
            let covered: Vec<u64> = all_ranges.iter().flat_map(|range| range.begin..range.end).collect();
            prop_assert_eq!(covered, (0..images).collect::<Vec<_>>());
        }
    }
}
