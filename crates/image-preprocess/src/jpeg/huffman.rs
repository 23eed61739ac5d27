//! Huffman tables of JPEG, and the reader of entropy-coded bits.

/// The number of bits that are looked up at once.
const LOOKUP_BITS: u32 = 11;
/// The run of a coefficient that ends the block.
pub const END_OF_BLOCK: u8 = 64;

/// A decoded coefficient, packed into one number for the lookup table: the value (bits 16 to 31),
/// the number of zeros before it (bits 8 to 15), and the number of bits that encode it (bits 0 to
/// 7).
#[derive(Clone, Copy, Default)]
pub struct Coefficient(u32);

impl Coefficient {
    #[inline(always)]
    fn new(value: i32, run: u8, bits: u8) -> Self {
        Self((value << 16) as u32 | u32::from(run) << 8 | u32::from(bits))
    }

    #[inline(always)]
    pub fn value(self) -> i32 {
        self.0 as i32 >> 16
    }

    #[inline(always)]
    pub fn run(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.0 & 0xFF
    }
}

/// The class of a Huffman table: the meaning of its codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TableClass {
    /// The size of the difference to the previous DC coefficient.
    Dc,
    /// A run of zeros and the size of the AC coefficient after them.
    Ac,
}

impl TableClass {
    fn allows(self, symbol: u8) -> bool {
        match self {
            Self::Dc => symbol <= 11,
            // Only the end of block of baseline JPEG; longer end-of-band runs are progressive.
            Self::Ac => (1..=10).contains(&(symbol & 15)) || symbol == 0 || symbol == 0xF0,
        }
    }
}

/// A Huffman code: its symbol, and its length in bits.
#[derive(Clone, Copy)]
struct Code {
    symbol: u8,
    length: u8,
}

impl Code {
    /// Decodes the coefficient whose bits begin with this code.
    #[inline(always)]
    fn decode_coefficient(self, bits: u64) -> Coefficient {
        let (run, size) = (self.symbol >> 4, self.symbol & 15);
        if size == 0 {
            let run = if run == 0 { END_OF_BLOCK } else { run };
            return Coefficient::new(0, run, self.length);
        }
        let magnitude = ((bits << self.length) >> (64 - size)) as i32;
        let is_negative = magnitude >> (size - 1) == 0;
        let value = if is_negative { magnitude - (1 << size) + 1 } else { magnitude };
        Coefficient::new(value, run, self.length + size)
    }
}

/// What [`LOOKUP_BITS`] bits determine: a complete coefficient; or, with a bit count of 0, the
/// length and symbol of the code as its value; or nothing, with value 0.
type LookupEntry = Coefficient;

/// A Huffman table.
pub struct HuffmanTable {
    lookup: [LookupEntry; 1 << LOOKUP_BITS],
    /// By code length: the smallest 16-bit number that begins with no code of at most that length.
    limits: [u32; 17],
    /// By code length: the index in `symbols` of the first code of this length, minus that code.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl HuffmanTable {
    /// Builds a table from the number of codes of each length from 1 to 16 and their symbols, as in
    /// a file; none if these are invalid.
    pub fn new(class: TableClass, counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        if symbols.len() > 256 || !symbols.iter().all(|&symbol| class.allows(symbol)) {
            return None;
        }
        let (mut limits, mut offsets, mut code, mut index) = ([0; 17], [0; 17], 0, 0);
        for (length, &count) in (1..).zip(counts) {
            offsets[length] = index - code;
            code += i32::from(count);
            index += i32::from(count);
            // No code is all ones.
            if code >= 1 << length {
                return None;
            }
            limits[length] = (code as u32) << (16 - length);
            code <<= 1;
        }
        let lookup = [LookupEntry::default(); 1 << LOOKUP_BITS];
        let mut table = Self { lookup, limits, offsets, symbols: symbols.to_vec() };
        let mut start = 0;
        while start < 1 << LOOKUP_BITS {
            let bits = (start as u64) << (64 - LOOKUP_BITS);
            let (entry, used_bits) = match table.find_code(bits).filter(|code| u32::from(code.length) <= LOOKUP_BITS) {
                None => (LookupEntry::default(), LOOKUP_BITS),
                Some(code) => match code.decode_coefficient(bits) {
                    complete if complete.bits() <= LOOKUP_BITS => (complete, complete.bits()),
                    _ => (
                        LookupEntry::new(i16::from_be_bytes([code.length, code.symbol]).into(), 0, 0),
                        code.length.into(),
                    ),
                },
            };
            let repetitions = 1 << (LOOKUP_BITS - used_bits);
            table.lookup[start..start + repetitions].fill(entry);
            start += repetitions;
        }
        Some(table)
    }

    /// Decodes the coefficient at the start of `bits`.
    #[inline(always)]
    fn decode_coefficient(&self, bits: u64) -> Option<Coefficient> {
        let entry = self.lookup[(bits >> (64 - LOOKUP_BITS)) as usize];
        if entry.bits() > 0 {
            return Some(entry);
        }
        let code = match (entry.value() as i16).to_be_bytes() {
            [0, _] => self.find_code(bits)?,
            [length, symbol] => Code { symbol, length },
        };
        Some(code.decode_coefficient(bits))
    }

    /// Finds the code at the start of `bits` without the lookup table.
    #[cold]
    fn find_code(&self, bits: u64) -> Option<Code> {
        let start = (bits >> 48) as u32;
        let length = (1..=16).find(|&length| start < self.limits[length])?;
        let symbol = self.symbols[((start >> (16 - length)) as i32 + self.offsets[length]) as usize];
        Some(Code { symbol, length: length as u8 })
    }
}

/// Reads the bits of a scan without byte stuffing.
#[derive(Clone, Copy)]
pub struct BitReader<'a> {
    /// The data, with at least [`Self::PADDING`] more bytes at the end.
    bytes: &'a [u8],
    /// The number of bytes of data.
    length: usize,
    /// The index of the first byte after the next `count` bits.
    next_byte: usize,
    /// The next `count` bits, from the highest on.
    window: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    /// The number of bytes, of any value, that must follow the data.
    pub const PADDING: usize = 8;

    #[inline(always)]
    pub fn new(bytes: &'a [u8], length: usize) -> Self {
        Self { bytes, length, next_byte: 0, window: 0, count: 0 }
    }

    /// Reads a coefficient; none for an invalid code.
    #[inline(always)]
    pub fn next(&mut self, table: &HuffmanTable) -> Option<Coefficient> {
        if self.count < 32 {
            self.fill();
        }
        let coefficient = table.decode_coefficient(self.window)?;
        self.window = self.window.wrapping_shl(coefficient.bits());
        self.count -= coefficient.bits();
        Some(coefficient)
    }

    #[inline(always)]
    fn fill(&mut self) {
        if let Some(bytes) = self.bytes.get(self.next_byte..).and_then(|rest| rest.first_chunk()) {
            self.window |= u64::from_be_bytes(*bytes) >> self.count;
        }
        self.next_byte += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    /// Whether more bits were read than there are.
    #[inline(always)]
    pub fn is_past_end(&self) -> bool {
        8 * self.next_byte > self.count as usize + 8 * self.length
    }

    /// Whether all bits were read except padding in the last byte.
    #[inline(always)]
    pub fn is_at_end(&self) -> bool {
        !self.is_past_end() && 8 * self.length < 8 + 8 * self.next_byte - self.count as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes 0, 10, 110 and one of 12 bits, 111000000000.
    fn table(class: TableClass, symbols: [u8; 4]) -> HuffmanTable {
        let mut counts = [0; 16];
        [1, 2, 3, 12].into_iter().for_each(|length: usize| counts[length - 1] = 1);
        HuffmanTable::new(class, &counts, &symbols).unwrap()
    }

    fn read_values(table: &HuffmanTable, bits: &str, times: usize) -> (Vec<Option<(i32, u8)>>, bool) {
        let mut bytes: Vec<u8> = bits
            .as_bytes()
            .chunks(8)
            .map(|byte| (0..8).fold(0, |sum, at| 2 * sum + u8::from(byte.get(at).is_none_or(|&bit| bit == b'1'))))
            .collect();
        bytes.extend([0; BitReader::PADDING]);
        let mut reader = BitReader::new(&bytes, bytes.len() - BitReader::PADDING);
        let coefficients = (0..times)
            .map(|_| reader.next(table).map(|coefficient| (coefficient.value(), coefficient.run())))
            .collect();
        (coefficients, reader.is_at_end())
    }

    #[test]
    fn codes_and_their_extra_bits_are_read() {
        let ac = table(TableClass::Ac, [0x00, 0x21, 0x3A, 0xF0]);
        let bits = ["100", "101", "1100000000001", "111000000000", "0"].concat();
        let expected = [(-1, 2), (1, 2), (-1022, 3), (0, 15), (0, END_OF_BLOCK)].map(Some);
        assert_eq!(read_values(&ac, &bits, 5), (expected.to_vec(), true));
        let dc = table(TableClass::Dc, [0, 1, 2, 11]);
        let bits = ["0", "101", "11001", "11100000000010000000000"].concat();
        let (coefficients, is_at_end) = read_values(&dc, &bits, 4);
        let values: Vec<_> = coefficients.into_iter().map(|coefficient| coefficient.unwrap().0).collect();
        assert_eq!((values, is_at_end), (vec![0, 1, -2, 1024], true));
    }

    #[test]
    fn invalid_tables_and_codes_are_refused() {
        let mut counts = [0; 16];
        counts[0] = 3;
        assert!(HuffmanTable::new(TableClass::Ac, &counts, &[1, 2, 3]).is_none());
        counts[0] = 2;
        assert!(HuffmanTable::new(TableClass::Ac, &counts, &[1, 2]).is_none(), "a code of all ones");
        counts[0] = 1;
        assert!(HuffmanTable::new(TableClass::Dc, &counts, &[12]).is_none());
        counts[14..].fill(128);
        assert!(HuffmanTable::new(TableClass::Ac, &counts, &[1; 257]).is_none(), "more than 256 codes");
        assert_eq!(read_values(&table(TableClass::Dc, [0, 1, 2, 3]), "1111111111111111", 1).0, [None]);
    }

    #[test]
    fn the_end_of_the_data_is_detected() {
        let table = table(TableClass::Dc, [0, 1, 2, 3]);
        let is_at_end = |times| read_values(&table, "0000000000000000", times).1;
        assert_eq!([8, 9, 16, 17].map(is_at_end), [false, true, true, false]);
    }
}
