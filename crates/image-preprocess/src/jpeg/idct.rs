//! The inverse cosine transform of libjpeg (`jidctint.c`), in 32 bits and for eight columns at a
//! time.
//!
//! Loops over lanes are written such that the compiler turns each of their lines into one vector
//! instruction.

/// Rows, or columns, of eight numbers.
pub type Block = [[i32; 8]; 8];

/// Fractional bits of the constants.
const CONST_BITS: u32 = 13;
/// Fractional bits between the passes.
const PASS1_BITS: u32 = 2;
/// The maximal number of bits, without the sign, of inputs for which a pass does not overflow 32
/// bits: no factor is larger than 86,387. Real images stay below.
const MAX_BITS: u32 = 14;
/// The maximal number of bits, without the sign, of samples that all versions of libjpeg-turbo
/// clamp. Its vector code clamps larger samples, its C code lets them wrap around. Real images stay
/// below.
const MAX_SAMPLE_BITS: u32 = 9;

/// Detects overflow: the bitwise or, by lane, of the magnitudes of all transformed numbers.
#[derive(Default)]
pub struct OverflowCheck([i32; 8]);

impl OverflowCheck {
    /// Whether no computation can have overflowed, and no sample has more than [`MAX_SAMPLE_BITS`].
    pub fn is_within_range(&self) -> bool {
        self.0.iter().all(|&bits| bits >> MAX_BITS == 0)
    }
}

/// Transforms dequantized coefficients, row by row, to samples, column by column.
#[inline(always)]
pub fn inverse_dct(coefficients: &Block, overflow: &mut OverflowCheck) -> [[u8; 8]; 8] {
    let rows = transform_lanes::<{ CONST_BITS - PASS1_BITS }>(coefficients, overflow);
    let mut columns = [[0; 8]; 8];
    for (index, column) in columns.iter_mut().enumerate() {
        for (value, row) in column.iter_mut().zip(&rows) {
            *value = row[index];
        }
    }
    let columns = transform_lanes::<{ CONST_BITS + PASS1_BITS + 3 }>(&columns, overflow);
    for (lane, overflow) in overflow.0.iter_mut().enumerate() {
        let [c0, c1, c2, c3] = [columns[0][lane], columns[1][lane], columns[2][lane], columns[3][lane]];
        let [c4, c5, c6, c7] = [columns[4][lane], columns[5][lane], columns[6][lane], columns[7][lane]];
        let all = magnitude(c0)
            | magnitude(c1)
            | magnitude(c2)
            | magnitude(c3)
            | magnitude(c4)
            | magnitude(c5)
            | magnitude(c6)
            | magnitude(c7);
        *overflow |= sample_magnitude(all);
    }
    let mut samples = [[0; 8]; 8];
    for (samples, column) in samples.iter_mut().zip(&columns) {
        for (sample, &value) in samples.iter_mut().zip(column) {
            *sample = to_sample(value);
        }
    }
    samples
}

/// [`inverse_dct`] for a block with only a DC coefficient.
#[inline(always)]
pub fn inverse_dct_dc_only(dc: i32, overflow: &mut OverflowCheck) -> [[u8; 8]; 8] {
    let value = add(dc, 4) >> 3;
    overflow.0[0] |= sample_magnitude(magnitude(value));
    [[to_sample(value); 8]; 8]
}

#[inline(always)]
fn to_sample(value: i32) -> u8 {
    add(value, 128).clamp(0, 255) as u8
}

/// Transforms the eight numbers of each lane.
#[inline(always)]
fn transform_lanes<const SHIFT: u32>(input: &Block, overflow: &mut OverflowCheck) -> Block {
    let mut output = [[0; 8]; 8];
    for lane in 0..8 {
        let [i0, i1, i2, i3] = [input[0][lane], input[1][lane], input[2][lane], input[3][lane]];
        let [i4, i5, i6, i7] = [input[4][lane], input[5][lane], input[6][lane], input[7][lane]];

        overflow.0[lane] |= magnitude(i0)
            | magnitude(i1)
            | magnitude(i2)
            | magnitude(i3)
            | magnitude(i4)
            | magnitude(i5)
            | magnitude(i6)
            | magnitude(i7);

        let z1 = multiply(add(i2, i6), 4433);
        let (even2, even3) = (add(z1, multiply(i6, -15137)), add(z1, multiply(i2, 6270)));
        let (even0, even1) = (add(i0, i4) << CONST_BITS, subtract(i0, i4) << CONST_BITS);
        let [e0, e1, e2, e3] = [add(even0, even3), add(even1, even2), subtract(even1, even2), subtract(even0, even3)];

        let (z3, z4) = (add(i7, i3), add(i5, i1));
        let z5 = multiply(add(z3, z4), 9633);
        let (z1, z2) = (multiply(add(i7, i1), -7373), multiply(add(i5, i3), -20995));
        let (z3, z4) = (add(multiply(z3, -16069), z5), add(multiply(z4, -3196), z5));
        let o0 = add(multiply(i1, 12299), add(z1, z4));
        let o1 = add(multiply(i3, 25172), add(z2, z3));
        let o2 = add(multiply(i5, 16819), add(z2, z4));
        let o3 = add(multiply(i7, 2446), add(z1, z3));

        output[0][lane] = descale::<SHIFT>(add(e0, o0));
        output[1][lane] = descale::<SHIFT>(add(e1, o1));
        output[2][lane] = descale::<SHIFT>(add(e2, o2));
        output[3][lane] = descale::<SHIFT>(add(e3, o3));
        output[4][lane] = descale::<SHIFT>(subtract(e3, o3));
        output[5][lane] = descale::<SHIFT>(subtract(e2, o2));
        output[6][lane] = descale::<SHIFT>(subtract(e1, o1));
        output[7][lane] = descale::<SHIFT>(subtract(e0, o0));
    }
    output
}

/// The magnitude of `value`, less 1 if `value` is negative.
#[inline(always)]
fn magnitude(value: i32) -> i32 {
    value ^ (value >> 31)
}

/// Scales the magnitude of a sample such that more than `MAX_SAMPLE_BITS` become more than
/// `MAX_BITS`.
#[inline(always)]
fn sample_magnitude(magnitude: i32) -> i32 {
    magnitude << (MAX_BITS - MAX_SAMPLE_BITS)
}

#[inline(always)]
fn descale<const SHIFT: u32>(value: i32) -> i32 {
    add(value, 1 << (SHIFT - 1)) >> SHIFT
}

#[inline(always)]
fn add(a: i32, b: i32) -> i32 {
    a.wrapping_add(b)
}

#[inline(always)]
fn subtract(a: i32, b: i32) -> i32 {
    a.wrapping_sub(b)
}

#[inline(always)]
fn multiply(a: i32, b: i32) -> i32 {
    a.wrapping_mul(b)
}
