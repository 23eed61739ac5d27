use super::PickleError;

/// Reads the bytes of a pickle in order.
pub struct PickleReader<'a> {
    unread: &'a [u8],
}

impl<'a> PickleReader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { unread: bytes }
    }

    pub fn take(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let (taken, unread) = self.unread.split_at_checked(length).ok_or(PickleError::Truncated)?;
        self.unread = unread;
        Ok(taken)
    }

    pub fn byte_array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let (taken, unread) = self.unread.split_first_chunk().ok_or(PickleError::Truncated)?;
        self.unread = unread;
        Ok(*taken)
    }

    pub fn byte(&mut self) -> Result<u8, PickleError> {
        self.byte_array().map(|[byte]| byte)
    }

    /// Reads a little-endian length of `N` bytes, then that number of bytes.
    pub fn length_prefixed<const N: usize>(&mut self) -> Result<&'a [u8], PickleError> {
        let mut length = [0; 8];
        let prefix: [u8; N] = self.byte_array()?;
        for (target, byte) in length.iter_mut().zip(prefix) {
            *target = byte;
        }
        self.take(usize::try_from(u64::from_le_bytes(length)).map_err(|_| PickleError::Truncated)?)
    }

    /// Reads up to the next line break, and consumes it.
    pub fn line(&mut self) -> Result<&'a str, PickleError> {
        let length = self.unread.iter().position(|&byte| byte == b'\n').ok_or(PickleError::Truncated)?;
        let line = self.take(length)?;
        self.take(1)?;
        parse_utf8(line)
    }
}

pub fn parse_utf8(bytes: &[u8]) -> Result<&str, PickleError> {
    std::str::from_utf8(bytes).map_err(|_| PickleError::Malformed("a text is not UTF-8"))
}
