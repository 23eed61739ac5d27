//! Reads a tar's headers without unpacking it: POSIX pax and ustar, GNU and old formats.
//!
//! The crate `tar` parses headers. Its own iterator is not used: it reads names of any length into
//! memory, and accepts a file that ends between two members.

use std::io::{ErrorKind, Read};

use tar::{EntryType, Header};

/// The block size of tars, in bytes.
const BLOCK: u64 = 512;
/// Maximal size of long names and pax records, in bytes.
const MAX_RECORD_LENGTH: u64 = 1 << 20;

/// A reader that only moves forward.
pub trait Forward: Read {
    /// Skips this number of bytes. Beyond the end, further reads return nothing.
    fn skip(&mut self, bytes: u64) -> std::io::Result<()>;
}

/// A member of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The path of the member, with invalid UTF-8 replaced.
    pub path: String,
    /// Whether its content is stored as it is.
    pub plain: bool,
    /// The position of its content.
    pub offset: u64,
    /// The size of its content; never more than the tar has after `offset`.
    pub length: u64,
}

/// A tar that is being read.
pub struct Members<R> {
    reader: R,
    size: u64,
    at: u64,
    /// The position of the next header.
    next: u64,
}

impl<R: Forward> Members<R> {
    /// A tar of `size` bytes.
    pub fn new(reader: R, size: u64) -> Self {
        Self { reader, size, at: 0, next: 0 }
    }

    /// The next member; none at the tar's end.
    ///
    /// # Errors
    /// The data are not a tar, the tar is truncated, or it cannot be read.
    pub fn advance(&mut self) -> Result<Option<Found>, String> {
        let mut told = PaxOverrides::default();
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
                EntryType::GNULongName => told.long_name = Some(until_zero(self.read(length, MAX_RECORD_LENGTH)?)),
                EntryType::XHeader => told.read(&self.read(length, MAX_RECORD_LENGTH)?)?,
                EntryType::GNULongLink | EntryType::XGlobalHeader => {}
                kind => {
                    let plain = matches!(kind, EntryType::Regular | EntryType::Continuous) && !told.sparse;
                    let path = String::from_utf8_lossy(&told.path_bytes(&header)).into_owned();
                    return Ok(Some(Found { path, plain, offset, length }));
                }
            }
        }
    }

    /// The first bytes of the member that `advance` returned last.
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

    /// The header at `next`; none for the end-of-archive mark.
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

    /// The size of the data after a header. Only files and unknown types have any, whatever their
    /// headers say.
    fn length(&self, header: &Header, told: &PaxOverrides, start: u64) -> Result<u64, String> {
        use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
        if matches!(header.entry_type(), Link | Symlink | Char | Block | Directory | Fifo) {
            return Ok(0);
        }
        match told.size {
            Some(size) => Ok(size),
            None => header.entry_size().map_err(|error| format!("tar header at byte {start}: {error}")),
        }
    }

    /// Skips the further maps of a sparse file in GNU's old format.
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

/// Whether a header's checksum is right. The checksum's own bytes count as spaces.
fn sound(header: &Header) -> bool {
    let mut summed = header.clone();
    summed.set_cksum();
    matches!((header.cksum(), summed.cksum()), (Ok(said), Ok(found)) if said == found)
}

/// Properties of the next member from preceding headers.
#[derive(Default)]
struct PaxOverrides {
    long_name: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl PaxOverrides {
    /// Parses records of the form `length key=value\n`, whose length includes itself.
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
