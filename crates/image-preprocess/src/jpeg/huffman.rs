//! Huffman codes of JPEG, and the bits that they are read from.

/// So many bits are looked up at once.
const LOOK: u32 = 11;
/// A run that ends the block.
pub const END: u8 = 64;

/// A value (from bit 16 on), the zeros before it (8 bits), and how many bits said so (8 bits): one number, as it is looked up.
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

/// What a table's codes stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The size of the difference to the DC coefficient before.
    Dc,
    /// A run of zeros and the size of the AC coefficient after them.
    Ac,
}

impl Class {
    fn has(self, symbol: u8) -> bool {
        match self {
            Self::Dc => symbol <= 11,
            // Only baseline's end of block; longer ends are progressive.
            Self::Ac => (1..=10).contains(&(symbol & 15)) || symbol == 0 || symbol == 0xF0,
        }
    }
}

/// A code's meaning and length.
#[derive(Clone, Copy)]
struct Code {
    symbol: u8,
    length: u8,
}

impl Code {
    /// The coefficient whose bits begin with the code.
    #[inline(always)]
    fn coefficient(self, bits: u64) -> Coefficient {
        let (run, size) = (self.symbol >> 4, self.symbol & 15);
        if size == 0 {
            let run = if run == 0 { END } else { run };
            return Coefficient::new(0, run, self.length);
        }
        let magnitude = ((bits << self.length) >> (64 - size)) as i32;
        let is_negative = magnitude >> (size - 1) == 0;
        let value = if is_negative { magnitude - (1 << size) + 1 } else { magnitude };
        Coefficient::new(value, run, self.length + size)
    }
}

/// What is known from `LOOK` bits: a whole coefficient; or, if that has no bits, the code as its value; or nothing.
type Entry = Coefficient;

/// The codes of one table.
pub struct Table {
    short: [Entry; 1 << LOOK],
    /// By length: the first 16-bit number that begins with no code as short as that.
    limits: [u32; 17],
    /// By length: where in `symbols` its codes begin, less the number of the first of them.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl Table {
    /// From how many codes there are of each length from 1 to 16, and what they stand for, as in a file; if that is sound.
    pub fn new(class: Class, counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        if symbols.len() > 256 || !symbols.iter().all(|&symbol| class.has(symbol)) {
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
        let short = [Entry::default(); 1 << LOOK];
        let mut table = Self { short, limits, offsets, symbols: symbols.to_vec() };
        let mut start = 0;
        while start < 1 << LOOK {
            let bits = (start as u64) << (64 - LOOK);
            let (entry, known) = match table.code(bits).filter(|code| u32::from(code.length) <= LOOK) {
                None => (Entry::default(), LOOK),
                Some(code) => match code.coefficient(bits) {
                    whole if whole.bits() <= LOOK => (whole, whole.bits()),
                    _ => (Entry::new(i16::from_be_bytes([code.length, code.symbol]).into(), 0, 0), code.length.into()),
                },
            };
            let alike = 1 << (LOOK - known);
            table.short[start..start + alike].fill(entry);
            start += alike;
        }
        Some(table)
    }

    /// The coefficient that the bits begin with.
    #[inline(always)]
    fn coefficient(&self, bits: u64) -> Option<Coefficient> {
        let entry = self.short[(bits >> (64 - LOOK)) as usize];
        if entry.bits() > 0 {
            return Some(entry);
        }
        let code = match (entry.value() as i16).to_be_bytes() {
            [0, _] => self.code(bits)?,
            [length, symbol] => Code { symbol, length },
        };
        Some(code.coefficient(bits))
    }

    /// The code that the bits begin with, whatever its length.
    #[cold]
    fn code(&self, bits: u64) -> Option<Code> {
        let start = (bits >> 48) as u32;
        let length = (1..=16).find(|&length| start < self.limits[length])?;
        let symbol = self.symbols[((start >> (16 - length)) as i32 + self.offsets[length]) as usize];
        Some(Code { symbol, length: length as u8 })
    }
}

/// The bits of a scan, from which stuffed bytes were taken.
#[derive(Clone, Copy)]
pub struct Bits<'a> {
    /// With at least `PADDING` more at the end.
    bytes: &'a [u8],
    length: usize,
    at: usize,
    /// The next `count` bits, from the highest on.
    window: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    /// Bytes that have to follow, of any value.
    pub const PADDING: usize = 8;

    #[inline(always)]
    pub fn new(bytes: &'a [u8], length: usize) -> Self {
        Self { bytes, length, at: 0, window: 0, count: 0 }
    }

    /// Reads a coefficient; nothing if there is no such code.
    #[inline(always)]
    pub fn next(&mut self, table: &Table) -> Option<Coefficient> {
        if self.count < 32 {
            self.fill();
        }
        let found = table.coefficient(self.window)?;
        self.window = self.window.wrapping_shl(found.bits());
        self.count -= found.bits();
        Some(found)
    }

    #[inline(always)]
    fn fill(&mut self) {
        if let Some(bytes) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk()) {
            self.window |= u64::from_be_bytes(*bytes) >> self.count;
        }
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    /// Whether more was read than there is.
    #[inline(always)]
    pub fn is_past_end(&self) -> bool {
        8 * self.at > self.count as usize + 8 * self.length
    }

    /// Whether all was read but what fills the last byte.
    #[inline(always)]
    pub fn is_at_end(&self) -> bool {
        !self.is_past_end() && 8 * self.length < 8 + 8 * self.at - self.count as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes 0, 10, 110 and one of 12 bits, 111000000000.
    fn table(class: Class, symbols: [u8; 4]) -> Table {
        let mut counts = [0; 16];
        [1, 2, 3, 12].into_iter().for_each(|length: usize| counts[length - 1] = 1);
        Table::new(class, &counts, &symbols).unwrap()
    }

    fn read(table: &Table, bits: &str, times: usize) -> (Vec<Option<(i32, u8)>>, bool) {
        let mut bytes: Vec<u8> = bits
            .as_bytes()
            .chunks(8)
            .map(|byte| (0..8).fold(0, |sum, at| 2 * sum + u8::from(byte.get(at).is_none_or(|&bit| bit == b'1'))))
            .collect();
        bytes.extend([0; Bits::PADDING]);
        let mut reader = Bits::new(&bytes, bytes.len() - Bits::PADDING);
        let found = (0..times).map(|_| reader.next(table).map(|found| (found.value(), found.run()))).collect();
        (found, reader.is_at_end())
    }

    #[test]
    fn codes_and_what_follows_them_are_read() {
        let ac = table(Class::Ac, [0x00, 0x21, 0x3A, 0xF0]);
        let bits = ["100", "101", "1100000000001", "111000000000", "0"].concat();
        let expected = [(-1, 2), (1, 2), (-1022, 3), (0, 15), (0, END)].map(Some);
        assert_eq!(read(&ac, &bits, 5), (expected.to_vec(), true));
        let dc = table(Class::Dc, [0, 1, 2, 11]);
        let bits = ["0", "101", "11001", "11100000000010000000000"].concat();
        let (found, is_at_end) = read(&dc, &bits, 4);
        let values: Vec<_> = found.into_iter().map(|found| found.unwrap().0).collect();
        assert_eq!((values, is_at_end), (vec![0, 1, -2, 1024], true));
    }

    #[test]
    fn unsound_tables_and_codes_are_refused() {
        let mut counts = [0; 16];
        counts[0] = 3;
        assert!(Table::new(Class::Ac, &counts, &[1, 2, 3]).is_none());
        counts[0] = 2;
        assert!(Table::new(Class::Ac, &counts, &[1, 2]).is_none(), "a code of all ones");
        counts[0] = 1;
        assert!(Table::new(Class::Dc, &counts, &[12]).is_none());
        counts[14..].fill(128);
        assert!(Table::new(Class::Ac, &counts, &[1; 257]).is_none(), "more codes than symbols");
        assert_eq!(read(&table(Class::Dc, [0, 1, 2, 3]), "1111111111111111", 1).0, [None]);
    }

    #[test]
    fn the_end_is_known() {
        let table = table(Class::Dc, [0, 1, 2, 3]);
        let is_at_end = |times| read(&table, "0000000000000000", times).1;
        assert_eq!([8, 9, 16, 17].map(is_at_end), [false, true, true, false]);
    }
}
