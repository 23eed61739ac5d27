//! The inverse cosine transform of libjpeg, `jidctint.c`, in 32 bits and eight columns at a time.
//!
//! Loops over lanes are written for the compiler, which makes one instruction of the processor's vectors of each of their lines.

/// Rows, or columns, of eight numbers.
pub type Block = [[i32; 8]; 8];

/// Fractional bits of the constants.
const CONST_BITS: u32 = 13;
/// Fractional bits between the passes.
const PASS1_BITS: u32 = 2;
/// Of numbers of so many bits, sign aside, a pass stays within 32 bits: no factor is larger than 86,387. Those of pictures have less.
const MAX_BITS: u32 = 14;
/// Samples of so many bits, sign aside, are cut off where they are too bright or too dark. Larger ones, which pictures do not have,
/// are cut off only by libjpeg-turbo's vectors: its C code lets them wrap around.
const MAX_SAMPLE_BITS: u32 = 9;

/// The bits, sign aside, of all numbers that were transformed.
#[derive(Default)]
pub struct Reach([i32; 8]);

impl Reach {
    /// Whether all that was computed is right.
    pub fn is_within(&self) -> bool {
        self.0.iter().all(|&bits| bits >> MAX_BITS == 0)
    }
}

/// Dequantised coefficients, row by row, to samples, column by column.
#[inline(always)]
pub fn columns(coefficients: &Block, reach: &mut Reach) -> [[u8; 8]; 8] {
    let rows = pass::<{ CONST_BITS - PASS1_BITS }>(coefficients, reach);
    let mut columns = [[0; 8]; 8];
    for (at, column) in columns.iter_mut().enumerate() {
        for (value, row) in column.iter_mut().zip(&rows) {
            *value = row[at];
        }
    }
    let columns = pass::<{ CONST_BITS + PASS1_BITS + 3 }>(&columns, reach);
    for (lane, reach) in reach.0.iter_mut().enumerate() {
        let [c0, c1, c2, c3] = [columns[0][lane], columns[1][lane], columns[2][lane], columns[3][lane]];
        let [c4, c5, c6, c7] = [columns[4][lane], columns[5][lane], columns[6][lane], columns[7][lane]];
        let all = bits(c0) | bits(c1) | bits(c2) | bits(c3) | bits(c4) | bits(c5) | bits(c6) | bits(c7);
        *reach |= of_sample(all);
    }
    let mut samples = [[0; 8]; 8];
    for (samples, column) in samples.iter_mut().zip(&columns) {
        for (sample, &value) in samples.iter_mut().zip(column) {
            *sample = to_sample(value);
        }
    }
    samples
}

/// What [`columns`] makes of a block that has nothing but this DC coefficient.
#[inline(always)]
pub fn flat(dc: i32, reach: &mut Reach) -> [[u8; 8]; 8] {
    let value = plus(dc, 4) >> 3;
    reach.0[0] |= of_sample(bits(value));
    [[to_sample(value); 8]; 8]
}

#[inline(always)]
fn to_sample(value: i32) -> u8 {
    plus(value, 128).clamp(0, 255) as u8
}

/// Transforms each lane.
#[inline(always)]
fn pass<const SHIFT: u32>(input: &Block, reach: &mut Reach) -> Block {
    let mut output = [[0; 8]; 8];
    for lane in 0..8 {
        let [i0, i1, i2, i3] = [input[0][lane], input[1][lane], input[2][lane], input[3][lane]];
        let [i4, i5, i6, i7] = [input[4][lane], input[5][lane], input[6][lane], input[7][lane]];

        reach.0[lane] |= bits(i0) | bits(i1) | bits(i2) | bits(i3) | bits(i4) | bits(i5) | bits(i6) | bits(i7);

        let z1 = times(plus(i2, i6), 4433);
        let (even2, even3) = (plus(z1, times(i6, -15137)), plus(z1, times(i2, 6270)));
        let (even0, even1) = (plus(i0, i4) << CONST_BITS, minus(i0, i4) << CONST_BITS);
        let [e0, e1, e2, e3] = [plus(even0, even3), plus(even1, even2), minus(even1, even2), minus(even0, even3)];

        let (z3, z4) = (plus(i7, i3), plus(i5, i1));
        let z5 = times(plus(z3, z4), 9633);
        let (z1, z2) = (times(plus(i7, i1), -7373), times(plus(i5, i3), -20995));
        let (z3, z4) = (plus(times(z3, -16069), z5), plus(times(z4, -3196), z5));
        let o0 = plus(times(i1, 12299), plus(z1, z4));
        let o1 = plus(times(i3, 25172), plus(z2, z3));
        let o2 = plus(times(i5, 16819), plus(z2, z4));
        let o3 = plus(times(i7, 2446), plus(z1, z3));

        output[0][lane] = descaled::<SHIFT>(plus(e0, o0));
        output[1][lane] = descaled::<SHIFT>(plus(e1, o1));
        output[2][lane] = descaled::<SHIFT>(plus(e2, o2));
        output[3][lane] = descaled::<SHIFT>(plus(e3, o3));
        output[4][lane] = descaled::<SHIFT>(minus(e3, o3));
        output[5][lane] = descaled::<SHIFT>(minus(e2, o2));
        output[6][lane] = descaled::<SHIFT>(minus(e1, o1));
        output[7][lane] = descaled::<SHIFT>(minus(e0, o0));
    }
    output
}

#[inline(always)]
fn bits(value: i32) -> i32 {
    value ^ (value >> 31)
}

/// Makes more than `MAX_BITS` of more than `MAX_SAMPLE_BITS`.
#[inline(always)]
fn of_sample(bits: i32) -> i32 {
    bits << (MAX_BITS - MAX_SAMPLE_BITS)
}

#[inline(always)]
fn descaled<const SHIFT: u32>(value: i32) -> i32 {
    plus(value, 1 << (SHIFT - 1)) >> SHIFT
}

#[inline(always)]
fn plus(a: i32, b: i32) -> i32 {
    a.wrapping_add(b)
}

#[inline(always)]
fn minus(a: i32, b: i32) -> i32 {
    a.wrapping_sub(b)
}

#[inline(always)]
fn times(a: i32, b: i32) -> i32 {
    a.wrapping_mul(b)
}
