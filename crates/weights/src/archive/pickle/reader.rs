use super::PickleError;

/// The unread rest of a pickle.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn take(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(PickleError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(PickleError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn byte(&mut self) -> Result<u8, PickleError> {
        self.array().map(|[byte]| byte)
    }

    /// Reads a little-endian length of `N` bytes, and that number of bytes.
    pub fn counted<const N: usize>(&mut self) -> Result<&'a [u8], PickleError> {
        let mut length = [0; 8];
        let written: [u8; N] = self.array()?;
        for (place, byte) in length.iter_mut().zip(written) {
            *place = byte;
        }
        self.take(usize::try_from(u64::from_le_bytes(length)).map_err(|_| PickleError::Truncated)?)
    }

    /// Reads up to the next line break, and consumes it.
    pub fn line(&mut self) -> Result<&'a str, PickleError> {
        let length = self.rest.iter().position(|&byte| byte == b'\n').ok_or(PickleError::Truncated)?;
        let line = self.take(length)?;
        self.take(1)?;
        text(line)
    }
}

pub fn text(bytes: &[u8]) -> Result<&str, PickleError> {
    std::str::from_utf8(bytes).map_err(|_| PickleError::Malformed("a text is not UTF-8"))
}
