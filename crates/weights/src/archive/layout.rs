//! Where a tensor's elements are in a file.

use std::ops::Range;

use crate::tensor::{Dtype, byte_length};

/// Where a tensor's elements are, checked against the range of its storage on creation. The caller
/// checks that range against the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Layout {
    /// Contiguous in row-major order, in these bytes of the file.
    Contiguous(Range<usize>),
    /// With any other strides.
    Strided(StridedElements),
}

/// Elements with strides.
#[derive(Debug, PartialEq, Eq)]
pub struct StridedElements {
    /// The bytes of the storage in the file.
    storage: Range<usize>,
    /// The offset of the first element from the beginning of the storage, in elements.
    offset: usize,
    /// The stride of each dimension, in elements.
    strides: Vec<usize>,
}

impl Layout {
    /// The layout of elements of `element_bytes` bytes each; none if one of them would be outside
    /// the storage.
    pub fn new(
        storage: Range<usize>,
        element_bytes: usize,
        offset: usize,
        shape: &[usize],
        strides: Vec<usize>,
    ) -> Option<Self> {
        // With one byte per element, the length in bytes is the number of elements.
        let element_count = byte_length(Dtype::U8, shape)?;
        let start = storage.start.checked_add(offset.checked_mul(element_bytes)?)?;
        if element_count == 0 {
            return Some(Self::Contiguous(storage.start..storage.start));
        }
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |sum, (&length, &stride)| sum.checked_add(length.checked_sub(1)?.checked_mul(stride)?))?;
        let end = storage.start.checked_add(last.checked_add(1)?.checked_mul(element_bytes)?)?;
        if end > storage.end {
            return None;
        }
        Some(if is_contiguous(shape, &strides) {
            Self::Contiguous(start..end)
        } else {
            Self::Strided(StridedElements { storage, offset, strides })
        })
    }
}

/// Whether elements with these strides are contiguous; the stride of a dimension of length 1 is
/// ignored.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1_usize;
    shape.iter().zip(strides).rev().all(|(&length, &stride)| {
        let matches = length == 1 || stride == expected;
        expected = expected.saturating_mul(length);
        matches
    })
}

impl StridedElements {
    /// The elements in row-major order; none if `file` is shorter than the file that the layout was
    /// created for.
    pub fn gather(&self, file: &[u8], shape: &[usize], element_bytes: usize) -> Option<Vec<u8>> {
        let storage = file.get(self.storage.clone())?;
        let element_count: usize = shape.iter().product();
        let mut gathered = Vec::with_capacity(element_count.checked_mul(element_bytes)?);
        let mut index = vec![0; shape.len()];
        let mut position = self.offset;
        for _ in 0..element_count {
            gathered.extend_from_slice(storage.get(position * element_bytes..(position + 1) * element_bytes)?);
            // Increments the index: the last dimension first, with carries to the dimensions
            // before.
            for ((coordinate, &length), &stride) in index.iter_mut().zip(shape).zip(&self.strides).rev() {
                *coordinate += 1;
                position += stride;
                if *coordinate < length {
                    break;
                }
                position -= length * stride;
                *coordinate = 0;
            }
        }
        Some(gathered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gathers one-byte elements from a storage of twelve bytes. Each byte of the file is its own
    /// position.
    fn gather_elements(shape: &[usize], strides: &[usize], offset: usize) -> Option<Vec<u8>> {
        let file: Vec<u8> = (0..100).collect();
        let storage = 10..22;
        match Layout::new(storage, 1, offset, shape, strides.to_vec())? {
            Layout::Contiguous(range) => file.get(range).map(<[u8]>::to_vec),
            Layout::Strided(strided) => strided.gather(&file, shape, 1),
        }
    }

    #[test]
    fn elements_are_gathered_in_row_major_order() {
        assert_eq!(gather_elements(&[2, 3], &[3, 1], 1), Some(vec![11, 12, 13, 14, 15, 16]));
        assert_eq!(gather_elements(&[3, 2], &[1, 3], 0), Some(vec![10, 13, 11, 14, 12, 15]));
        assert_eq!(gather_elements(&[2, 2, 2], &[6, 1, 2], 3), None, "the last element would be beyond the storage");
        assert_eq!(gather_elements(&[2, 2, 2], &[6, 1, 2], 2), Some(vec![12, 14, 13, 15, 18, 20, 19, 21]));
        assert_eq!(gather_elements(&[2, 2], &[0, 1], 4), Some(vec![14, 15, 14, 15]));
        assert_eq!(gather_elements(&[], &[], 11), Some(vec![21]));
        assert_eq!(gather_elements(&[3, 0], &[usize::MAX, 1], 0), Some(vec![]));
    }

    #[test]
    fn elements_outside_the_storage_are_refused() {
        assert_eq!(gather_elements(&[13], &[1], 0), None);
        assert_eq!(gather_elements(&[2], &[12], 0), None);
        assert_eq!(gather_elements(&[], &[], 12), None);
        assert_eq!(gather_elements(&[2], &[usize::MAX], 1), None);
        assert_eq!(gather_elements(&[usize::MAX, 2], &[0, 0], 0), None);
        assert_eq!(gather_elements(&[2], &[1], usize::MAX), None);
    }

    #[test]
    fn the_stride_of_a_dimension_of_length_one_is_ignored() {
        let (storage, element_bytes, offset) = (0..12, 2, 1);
        let layout = Layout::new(storage, element_bytes, offset, &[1, 4], vec![77, 1]);
        assert_eq!(layout, Some(Layout::Contiguous(2..10)));
    }
}
