//! Reads files with tokens, certificates and keys, up to a maximal size. Warns about a file with a
//! secret (a token or a private key) on which users who neither own it nor are in its group have
//! any permission.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::Error;

/// The permission bits of users who neither own a file nor are in its group.
const OTHERS_PERMISSIONS: u32 = 0o007;

/// Reads a file of at most `max_bytes`.
///
/// # Errors
/// The file cannot be read, or has more than `max_bytes` bytes.
pub fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(read_error(path))?;
    read_to_end(&file, path, max_bytes)
}

/// As [`read`], for a secret. Logs a warning if users who neither own the file nor are in its group
/// have any permission on it: to read, write or execute.
///
/// # Errors
/// As for [`read`].
pub fn read_secret(path: &Path, max_bytes: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(read_error(path))?;
    let metadata = file.metadata().map_err(read_error(path))?;
    if is_accessible_to_others(metadata.mode()) {
        let path = path.display();
        tracing::warn!("{path} is a secret, but all users of this machine can access it: chmod 600 {path}");
    }
    read_to_end(&file, path, max_bytes)
}

fn read_to_end(file: &File, path: &Path, max_bytes: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    // One byte more than allowed, to detect files that are too long.
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(read_error(path))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::TooLong { path: path.to_owned(), max_bytes });
    }
    Ok(bytes)
}

fn is_accessible_to_others(mode: u32) -> bool {
    mode & OTHERS_PERMISSIONS != 0
}

fn read_error(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_above_the_limit_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345678").unwrap();
        assert_eq!(read(file.path(), 8).unwrap(), b"12345678");
        let error = read(file.path(), 7).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()) && error.contains("more than 7 bytes"), "{error}");
        // /dev/zero has no end.
        let error = read_secret(Path::new("/dev/zero"), 1 << 16).unwrap_err().to_string();
        assert!(error.starts_with("/dev/zero: ") && error.contains("more than 65536 bytes"), "{error}");
        assert!(read(Path::new("/"), 7).is_err() && read(Path::new("/nowhere/file"), 7).is_err());
    }

    #[test]
    fn a_secret_may_be_accessible_to_owner_and_group_only() {
        for mode in [0o100_600, 0o100_400, 0o100_440, 0o100_640, 0o100_660] {
            assert!(!is_accessible_to_others(mode), "{mode:o}");
        }
        for mode in [0o100_644, 0o100_604, 0o100_666, 0o100_602, 0o100_444] {
            assert!(is_accessible_to_others(mode), "{mode:o}");
        }
    }
}
