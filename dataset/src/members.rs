//! Walks through a tar from header to header without unpacking it: POSIX pax and ustar, GNU and old formats.
//!
//! Headers are read by the crate `tar`. Its own iterator is not used: it takes names of any length into memory, and a file
//! that ends between two members for a whole one.

use std::io::{ErrorKind, Read};

use tar::{EntryType, Header};

/// Tars consist of blocks of this many bytes.
const BLOCK: u64 = 512;
/// Long names and pax records above this many bytes are refused.
const LONGEST_RECORD: u64 = 1 << 20;

/// Something that is read forwards only.
pub trait Forward: Read {
    /// Goes on by so many bytes; past the end nothing can be read any more.
    fn skip(&mut self, bytes: u64) -> std::io::Result<()>;
}

/// A member of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its path; what is not UTF-8 in it is replaced.
    pub path: String,
    /// Whether its bytes lie in the tar as they are.
    pub plain: bool,
    /// Where they start.
    pub offset: u64,
    /// How many there are; never more than the tar has after `offset`.
    pub length: u64,
}

/// A tar that is being walked through.
pub struct Members<R> {
    reader: R,
    size: u64,
    at: u64,
    /// Where the next header starts.
    next: u64,
}

impl<R: Forward> Members<R> {
    /// Of a tar of `size` bytes.
    pub fn new(reader: R, size: u64) -> Self {
        Self { reader, size, at: 0, next: 0 }
    }

    /// The next member, with none at the tar's end.
    ///
    /// # Errors
    /// The bytes are no tar's, the tar is truncated, or it cannot be read.
    pub fn advance(&mut self) -> Result<Option<Found>, String> {
        let mut told = Told::default();
        loop {
            let start = self.next;
            let Some(header) = self.header()? else { return Ok(None) };
            let length = self.length(&header, &told, start)?;
            self.extensions(&header)?;
            let offset = self.at;
            let end = offset.checked_add(length).filter(|&end| end <= self.size).ok_or_else(|| {
                format!("`{}` claims {length} bytes, more than there are: truncated?", told.path(&header))
            })?;
            self.next = end.next_multiple_of(BLOCK);
            match header.entry_type() {
                EntryType::GNULongName => told.long_name = Some(until_zero(self.read(length, LONGEST_RECORD)?)),
                EntryType::XHeader => told.read(&self.read(length, LONGEST_RECORD)?)?,
                EntryType::GNULongLink | EntryType::XGlobalHeader => {}
                kind => {
                    let plain = matches!(kind, EntryType::Regular | EntryType::Continuous) && !told.sparse;
                    let path = String::from_utf8_lossy(&told.path_bytes(&header)).into_owned();
                    return Ok(Some(Found { path, plain, offset, length }));
                }
            }
        }
    }

    /// The first bytes of the member that `advance` found last.
    pub fn start(&mut self, found: &Found, most: u64) -> Result<Vec<u8>, String> {
        let length = found.length.min(most);
        self.read(length, length)
    }

    fn read(&mut self, length: u64, limit: u64) -> Result<Vec<u8>, String> {
        if length > limit {
            return Err(format!("record of {length} bytes at byte {}: more than {limit}", self.at));
        }
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(length).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        self.at += read as u64;
        if read as u64 == length { Ok(bytes) } else { Err(self.truncated()) }
    }

    /// The header at `next`; none if the mark of the end is there instead.
    fn header(&mut self) -> Result<Option<Header>, String> {
        let start = self.next;
        if start.checked_add(BLOCK).is_none_or(|end| end > self.size) {
            return Err(self.truncated());
        }
        self.reader.skip(start.saturating_sub(self.at)).map_err(|error| error.to_string())?;
        self.at = start;
        let mut header = Header::new_old();
        self.block(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        if !sound(&header) {
            let is_gzip = start == 0 && header.as_bytes().starts_with(&[0x1f, 0x8b]);
            let remedy = if is_gzip { ": it is compressed; unpack it with gunzip" } else { "" };
            return Err(format!("no tar header at byte {start}{remedy}"));
        }
        Ok(Some(header))
    }

    fn block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<(), String> {
        match self.reader.read_exact(block) {
            Ok(()) => {
                self.at += BLOCK;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(self.truncated()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Bytes that follow a header. Only files and kinds unknown have any, whatever their headers say.
    fn length(&self, header: &Header, told: &Told, start: u64) -> Result<u64, String> {
        use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
        if matches!(header.entry_type(), Link | Symlink | Char | Block | Directory | Fifo) {
            return Ok(0);
        }
        match told.size {
            Some(size) => Ok(size),
            None => header.entry_size().map_err(|error| format!("tar header at byte {start}: {error}")),
        }
    }

    /// Goes over the further maps of a sparse file in GNU's old format.
    fn extensions(&mut self, header: &Header) -> Result<(), String> {
        let mut more =
            header.entry_type() == EntryType::GNUSparse && header.as_gnu().is_some_and(|gnu| gnu.is_extended());
        while more {
            let mut extension = tar::GnuExtSparseHeader::new();
            self.block(extension.as_mut_bytes())?;
            more = extension.is_extended();
        }
        Ok(())
    }

    fn truncated(&self) -> String {
        format!("ends at byte {} without the mark of a tar's end: truncated?", self.size)
    }
}

/// The sum of a header's bytes, those of the sum itself taken for spaces, is what the header says.
fn sound(header: &Header) -> bool {
    let mut summed = header.clone();
    summed.set_cksum();
    matches!((header.cksum(), summed.cksum()), (Ok(said), Ok(found)) if said == found)
}

/// What earlier headers say of the next member.
#[derive(Default)]
struct Told {
    long_name: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Told {
    /// Records of the form `length key=value\n`, in which the length counts itself.
    fn read(&mut self, mut records: &[u8]) -> Result<(), String> {
        while !records.is_empty() {
            let (record, rest) = split_record(records).ok_or("malformed pax record")?;
            records = rest;
            match record {
                (b"path", path) => self.path = Some(path.to_vec()),
                (b"size", size) => {
                    let size = str::from_utf8(size).ok().and_then(|size| size.parse().ok());
                    self.size = Some(size.ok_or("malformed size in a pax record")?);
                }
                (key, _) if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn path_bytes(&self, header: &Header) -> Vec<u8> {
        self.path.clone().or_else(|| self.long_name.clone()).unwrap_or_else(|| header.path_bytes().into_owned())
    }

    fn path(&self, header: &Header) -> String {
        String::from_utf8_lossy(&self.path_bytes(header)).into_owned()
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

fn split_record(records: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = records.iter().position(|&byte| byte == b' ')?;
    let length: usize = str::from_utf8(records.get(..space)?).ok()?.parse().ok()?;
    let content = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = content.iter().position(|&byte| byte == b'=')?;
    let (key, value) = content.split_at_checked(equals)?;
    Some(((key, value.get(1..)?), records.get(length..)?))
}

fn until_zero(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

#[cfg(test)]
mod tests;
