use std::borrow::Cow;

/// The type of a tensor's elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Signed, 16 bits.
    I16,
    /// Signed, 32 bits.
    I32,
    /// Signed, 64 bits.
    I64,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `F32`.
    Bf16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
}

impl Dtype {
    /// The size of an element, in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }
}

/// A tensor, row-major and little-endian.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tensor<'a> {
    /// The type of the elements.
    pub dtype: Dtype,
    /// The length of each dimension; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, borrowed from the file if they are contiguous there.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// The same tensor, with a copy of borrowed elements.
    #[must_use]
    pub fn into_owned(self) -> Tensor<'static> {
        Tensor { dtype: self.dtype, shape: self.shape, bytes: Cow::Owned(self.bytes.into_owned()) }
    }

    /// The transposed matrix; none if it is not a matrix.
    pub(crate) fn transposed(&self) -> Option<Tensor<'static>> {
        let &[rows, columns] = self.shape.as_slice() else { return None };
        let row_bytes = columns.checked_mul(self.dtype.size())?;
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for start in (0..row_bytes).step_by(self.dtype.size()) {
            for row in self.bytes.chunks_exact(row_bytes) {
                bytes.extend_from_slice(row.get(start..start + self.dtype.size())?);
            }
        }
        Some(Tensor { dtype: self.dtype, shape: vec![columns, rows], bytes: Cow::Owned(bytes) })
    }

    /// The concatenation of three tensors along the first dimension; none if shapes or types
    /// differ.
    pub(crate) fn stacked(parts: &[Tensor<'_>; 3]) -> Option<Tensor<'static>> {
        let shape = stacked_shape(parts.each_ref().map(|part| part.shape.as_slice()))?;
        let dtype = parts[0].dtype;
        if parts.iter().any(|part| part.dtype != dtype) {
            return None;
        }
        let bytes = parts.each_ref().map(|part| part.bytes.as_ref()).concat();
        Some(Tensor { dtype, shape, bytes: Cow::Owned(bytes) })
    }

    /// Splits along the first dimension, the inverse of [`Tensor::stacked`]; none if that dimension
    /// is not a multiple of three, or if the number of bytes does not match the shape.
    pub(crate) fn split_stacked(&self) -> Option<[Tensor<'static>; 3]> {
        let (&rows, rest) = self.shape.split_first()?;
        if !rows.is_multiple_of(3) || Some(self.bytes.len()) != byte_length(self.dtype, &self.shape) {
            return None;
        }
        let shape: Vec<usize> = std::iter::once(rows / 3).chain(rest.iter().copied()).collect();
        let third = self.bytes.len() / 3;
        let part = |i: usize| {
            let bytes = self.bytes.iter().skip(i * third).take(third).copied().collect();
            Tensor { dtype: self.dtype, shape: shape.clone(), bytes: Cow::Owned(bytes) }
        };
        Some([part(0), part(1), part(2)])
    }
}

/// The shape of three tensors stacked along the first dimension; none if their shapes differ or are
/// those of scalars.
pub(crate) fn stacked_shape(parts: [&[usize]; 3]) -> Option<Vec<usize>> {
    let (first, rest) = parts[0].split_first()?;
    if parts.iter().any(|part| *part != parts[0]) {
        return None;
    }
    Some(std::iter::once(first.checked_mul(3)?).chain(rest.iter().copied()).collect())
}

/// The size of a tensor in bytes; none if it exceeds the address space.
pub(crate) fn byte_length(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    // If a dimension is zero, the product is zero, even if the product of the others overflows.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(dtype.size(), |bytes, &length| bytes.checked_mul(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(shape: &[usize], values: &[u8]) -> Tensor<'static> {
        Tensor { dtype: Dtype::U8, shape: shape.to_vec(), bytes: Cow::Owned(values.to_vec()) }
    }

    #[test]
    fn matrices_of_any_element_size_are_transposed() {
        assert_eq!(bytes(&[2, 3], &[1, 2, 3, 4, 5, 6]).transposed(), Some(bytes(&[3, 2], &[1, 4, 2, 5, 3, 6])));
        let two_byte = Tensor { dtype: Dtype::F16, ..bytes(&[2, 2], &[1, 10, 2, 20, 3, 30, 4, 40]) };
        assert_eq!(two_byte.transposed().unwrap().bytes.as_ref(), [1, 10, 3, 30, 2, 20, 4, 40]);
        assert_eq!(bytes(&[0, 3], &[]).transposed(), Some(bytes(&[3, 0], &[])));
        assert_eq!(bytes(&[3, 0], &[]).transposed(), Some(bytes(&[0, 3], &[])));
        assert_eq!(bytes(&[6], &[1, 2, 3, 4, 5, 6]).transposed(), None);
    }

    #[test]
    fn split_stacked_is_the_inverse_of_stacked() {
        let parts = [bytes(&[1, 2], &[1, 2]), bytes(&[1, 2], &[3, 4]), bytes(&[1, 2], &[5, 6])];
        let stacked = Tensor::stacked(&parts).unwrap();
        assert_eq!(stacked, bytes(&[3, 2], &[1, 2, 3, 4, 5, 6]));
        assert_eq!(stacked.split_stacked(), Some(parts.clone()));
        let [first, second, _] = parts;
        assert_eq!(Tensor::stacked(&[first, second, bytes(&[2], &[5, 6])]), None);
        assert_eq!(bytes(&[2, 3], &[0; 6]).split_stacked(), None);
        assert_eq!(bytes(&[], &[0]).split_stacked(), None);
    }

    #[test]
    fn a_length_beyond_the_address_space_is_none() {
        assert_eq!(byte_length(Dtype::F32, &[2, 3]), Some(24));
        assert_eq!(byte_length(Dtype::F32, &[]), Some(4));
        assert_eq!(byte_length(Dtype::F32, &[usize::MAX, 2]), None);
        assert_eq!(byte_length(Dtype::F32, &[usize::MAX, 2, 0]), Some(0));
    }
}
