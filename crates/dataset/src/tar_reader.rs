//! Reads a tar's headers without unpacking it: POSIX pax and ustar, GNU and old formats.
//!
//! The crate `tar` parses headers. Its own iterator is not used: it reads names of any length into
//! memory, and accepts a file that ends between two members.

use std::io::{ErrorKind, Read};

use tar::{EntryType, Header};

/// The block size of tars, in bytes.
const BLOCK_BYTES: u64 = 512;
/// Maximal size of GNU long names and pax extended headers, in bytes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// A file that is not a complete tar, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// The file ends before the end-of-archive marker.
    #[error("ends at byte {size} without a tar's end-of-archive marker: truncated?")]
    Truncated {
        /// The size of the file.
        size: u64,
    },
    /// A member's content would end beyond the end of the file.
    #[error("the header of `{path}` claims {length} bytes, more than the file has: truncated?")]
    MemberTooLong {
        /// The path of the member.
        path: String,
        /// The size in its header.
        length: u64,
    },
    /// A GNU long name or pax extended header is too long.
    #[error("extended header of {length} bytes at byte {offset}: more than {limit}")]
    ExtensionTooLong {
        /// The size of the header.
        length: u64,
        /// The position of the header.
        offset: u64,
        /// The maximal size.
        limit: u64,
    },
    /// A block is not a tar header: its checksum is wrong.
    #[error("no tar header at byte {offset}{}", if *is_gzip { ": it is compressed; unpack it with gunzip" } else { "" })]
    NoHeader {
        /// The position of the block.
        offset: u64,
        /// Whether the file is compressed with gzip.
        is_gzip: bool,
    },
    /// The size in a header is not a valid number.
    #[error("tar header at byte {offset}: {source}")]
    Size {
        /// The position of the header.
        offset: u64,
        /// The error of the parser.
        source: std::io::Error,
    },
    /// A pax record is not of the form `length key=value\n`.
    #[error("malformed pax record")]
    PaxRecord,
    /// A pax record has a `size` that is not a number.
    #[error("malformed size in a pax record")]
    PaxSize,
}

/// A reader that only moves forward.
pub trait ForwardReader: Read {
    /// Skips this number of bytes. Beyond the end, further reads return nothing.
    fn skip(&mut self, bytes: u64) -> std::io::Result<()>;
}

/// The header of a tar member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberHeader {
    /// The path of the member, with invalid UTF-8 replaced.
    pub path: String,
    /// Whether the member is a regular file that is not sparse: its content is stored verbatim.
    pub is_plain_file: bool,
    /// The position of the member's content in the tar.
    pub offset: u64,
    /// The size of the member's content; never more than the tar has after `offset`.
    pub length: u64,
}

/// Reads a tar member by member.
pub struct TarReader<R> {
    reader: R,
    /// The size of the tar.
    size: u64,
    /// The number of bytes that were read or skipped so far.
    position: u64,
    /// The position of the next header.
    next_header: u64,
}

impl<R: ForwardReader> TarReader<R> {
    /// A reader of a tar of `size` bytes.
    pub fn new(reader: R, size: u64) -> Self {
        Self { reader, size, position: 0, next_header: 0 }
    }

    /// The next member; none at the tar's end.
    ///
    /// # Errors
    /// The data are not a tar, the tar is truncated, or it cannot be read.
    pub fn next_member(&mut self) -> Result<Option<MemberHeader>, TarError> {
        let mut overrides = HeaderOverrides::default();
        loop {
            let start = self.next_header;
            let Some(header) = self.read_header()? else { return Ok(None) };
            let length = content_length(&header, &overrides, start)?;
            self.skip_sparse_extensions(&header)?;
            let offset = self.position;
            let end = offset
                .checked_add(length)
                .filter(|&end| end <= self.size)
                .ok_or_else(|| TarError::MemberTooLong { path: overrides.path(&header), length })?;
            self.next_header = end.next_multiple_of(BLOCK_BYTES);
            match header.entry_type() {
                EntryType::GNULongName => {
                    overrides.long_name = Some(until_nul(self.read(length, MAX_EXTENSION_BYTES)?));
                }
                EntryType::XHeader => overrides.parse_pax_records(&self.read(length, MAX_EXTENSION_BYTES)?)?,
                EntryType::GNULongLink | EntryType::XGlobalHeader => {}
                entry_type => {
                    let is_regular = matches!(entry_type, EntryType::Regular | EntryType::Continuous);
                    let is_plain_file = is_regular && !overrides.is_sparse;
                    return Ok(Some(MemberHeader { path: overrides.path(&header), is_plain_file, offset, length }));
                }
            }
        }
    }

    /// The first bytes, `limit` at most, of the member that `next_member` returned last.
    pub fn read_content(&mut self, member: &MemberHeader, limit: u64) -> Result<Vec<u8>, TarError> {
        let length = member.length.min(limit);
        self.read(length, length)
    }

    /// Reads `length` bytes; an error if these are more than `limit`.
    fn read(&mut self, length: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        if length > limit {
            return Err(TarError::ExtensionTooLong { length, offset: self.position, limit });
        }
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(length).read_to_end(&mut bytes)?;
        self.position += read as u64;
        if read as u64 == length { Ok(bytes) } else { Err(self.truncated()) }
    }

    /// The header at `next_header`; none for the end-of-archive marker.
    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let start = self.next_header;
        if start.checked_add(BLOCK_BYTES).is_none_or(|end| end > self.size) {
            return Err(self.truncated());
        }
        self.reader.skip(start.saturating_sub(self.position))?;
        self.position = start;
        let mut header = Header::new_old();
        self.read_block(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        if !is_checksum_valid(&header) {
            let is_gzip = start == 0 && header.as_bytes().starts_with(&[0x1f, 0x8b]);
            return Err(TarError::NoHeader { offset: start, is_gzip });
        }
        Ok(Some(header))
    }

    fn read_block(&mut self, block: &mut [u8; BLOCK_BYTES as usize]) -> Result<(), TarError> {
        match self.reader.read_exact(block) {
            Ok(()) => {
                self.position += BLOCK_BYTES;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(self.truncated()),
            Err(error) => Err(error.into()),
        }
    }

    /// Skips the extension headers of a sparse file in GNU's old format.
    fn skip_sparse_extensions(&mut self, header: &Header) -> Result<(), TarError> {
        let mut is_extended =
            header.entry_type() == EntryType::GNUSparse && header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
        while is_extended {
            let mut extension = tar::GnuExtSparseHeader::new();
            self.read_block(extension.as_mut_bytes())?;
            is_extended = extension.is_extended();
        }
        Ok(())
    }

    fn truncated(&self) -> TarError {
        TarError::Truncated { size: self.size }
    }
}

/// The size of the content after the header at `start`. Only files and unknown types have content:
/// the sizes in other headers are ignored.
fn content_length(header: &Header, overrides: &HeaderOverrides, start: u64) -> Result<u64, TarError> {
    use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    if matches!(header.entry_type(), Link | Symlink | Char | Block | Directory | Fifo) {
        return Ok(0);
    }
    match overrides.size {
        Some(size) => Ok(size),
        None => header.entry_size().map_err(|source| TarError::Size { offset: start, source }),
    }
}

/// Whether a header's checksum is right. The checksum's own bytes count as spaces.
fn is_checksum_valid(header: &Header) -> bool {
    let mut recomputed = header.clone();
    recomputed.set_cksum();
    matches!((header.cksum(), recomputed.cksum()), (Ok(stored), Ok(computed)) if stored == computed)
}

/// Properties of the next member that preceding pax and GNU headers set.
#[derive(Default)]
struct HeaderOverrides {
    long_name: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    size: Option<u64>,
    is_sparse: bool,
}

impl HeaderOverrides {
    /// Parses records of the form `length key=value\n`, whose length includes itself.
    fn parse_pax_records(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        while !records.is_empty() {
            let (record, rest) = split_pax_record(records).ok_or(TarError::PaxRecord)?;
            records = rest;
            match record {
                (b"path", path) => self.path = Some(path.to_vec()),
                (b"size", size) => {
                    let size = str::from_utf8(size).ok().and_then(|size| size.parse().ok());
                    self.size = Some(size.ok_or(TarError::PaxSize)?);
                }
                (key, _) if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// The path of the member with this header.
    fn path(&self, header: &Header) -> String {
        let name = self.path.as_deref().or(self.long_name.as_deref());
        let path = name.map_or_else(|| header.path_bytes(), Into::into);
        String::from_utf8_lossy(&path).into_owned()
    }
}

/// The key and value of a pax record.
type PaxRecord<'a> = (&'a [u8], &'a [u8]);

/// The first record, and the rest.
fn split_pax_record(records: &[u8]) -> Option<(PaxRecord<'_>, &[u8])> {
    let space = records.iter().position(|&byte| byte == b' ')?;
    let length: usize = str::from_utf8(records.get(..space)?).ok()?.parse().ok()?;
    let content = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = content.iter().position(|&byte| byte == b'=')?;
    let (key, value) = content.split_at_checked(equals)?;
    Some(((key, value.get(1..)?), records.get(length..)?))
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

#[cfg(test)]
mod tests;
