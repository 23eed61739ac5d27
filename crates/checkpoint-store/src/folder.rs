//! Seals and verifies local model folders: imported models, and checkpoints in local folders.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::seal::{self, SealError, SealedFile};
use crate::{Error, names};

/// Writes the seal of a folder that has none yet. The seal lists all files in the folder.
///
/// # Errors
/// A file cannot be read, or has a name that a seal cannot list; or the seal cannot be written.
pub fn seal_folder(folder: &Path) -> Result<(), Error> {
    let system_error = |path: &Path, error: std::io::Error| Error::system(path.display().to_string(), &error);
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut files = Vec::new();
    for entry in entries.map_err(|error| system_error(folder, error))? {
        let name = entry.file_name().to_string_lossy().into_owned();
        names::check(&name)?;
        let (size, sha256) = size_and_sha256(&entry.path()).map_err(|error| system_error(&entry.path(), error))?;
        files.push(SealedFile { name, size, sha256 });
    }
    files.sort_by(|first, second| first.name.cmp(&second.name));
    let path = folder.join(seal::SEAL_FILE);
    let sealed = seal::to_json(&files).map_err(|error| system_error(&path, error.into()))?;
    std::fs::write(&path, sealed).map_err(|error| system_error(&path, error))
}

/// Verifies the sizes and checksums of all files that the seal of a folder lists.
///
/// # Errors
/// The folder does not match its seal, or has no seal.
pub fn verify_folder(folder: &Path) -> Result<(), Error> {
    let location = folder.display().to_string();
    let damaged = |problem: String| Error::Damaged { location: location.clone(), problem };
    let path = folder.join(seal::SEAL_FILE);
    let mut sealed = Vec::new();
    match File::open(&path).and_then(|file| file.take(seal::MAX_SEAL_BYTES + 1).read_to_end(&mut sealed)) {
        Ok(length) if length as u64 > seal::MAX_SEAL_BYTES => {
            return Err(damaged(format!("{} is longer than {} bytes", seal::SEAL_FILE, seal::MAX_SEAL_BYTES)));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::Unsealed { location }),
        Err(error) => return Err(Error::system(path.display().to_string(), &error)),
    }
    let files = seal::parse(&sealed).map_err(|error| match error {
        SealError::Damaged(problem) => damaged(problem),
        SealError::Version(found) => Error::Version { location: location.clone(), found, known: seal::SEAL_FORMAT },
    })?;
    for SealedFile { name, size, sha256 } in &files {
        let path = folder.join(name);
        match size_and_sha256(&path) {
            Ok((found, _)) if found != *size => {
                return Err(damaged(format!("{name} has {found} bytes, {size} were written")));
            }
            Ok((_, found)) if found != *sha256 => {
                return Err(damaged(format!("{name} is not what was written: its SHA-256 differs")));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged(format!("{name} is missing")));
            }
            Err(error) => return Err(Error::system(path.display().to_string(), &error)),
        }
    }
    Ok(())
}

/// The size and the SHA-256 of a file.
fn size_and_sha256(path: &Path) -> std::io::Result<(u64, String)> {
    let (mut hash, mut file) = (Sha256::new(), File::open(path)?);
    let size = std::io::copy(&mut file, &mut hash)?;
    Ok((size, format!("{:x}", hash.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_a_sealed_folder_is_an_error_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("model.json"), b"{}").unwrap();
        std::fs::write(file("captioner.safetensors"), vec![7; 10_000]).unwrap();
        let error = || verify_folder(folder.path()).unwrap_err().to_string();
        assert!(matches!(verify_folder(folder.path()), Err(Error::Unsealed { .. })));
        seal_folder(folder.path()).unwrap();
        verify_folder(folder.path()).unwrap();

        for name in ["model.json", "captioner.safetensors", seal::SEAL_FILE] {
            let original = std::fs::read(file(name)).unwrap();
            let mut flipped = original.clone();
            flipped[original.len() / 2] ^= 1;
            for changed in [&flipped, &original[..original.len() - 1]] {
                std::fs::write(file(name), changed).unwrap();
                assert!(error().contains(name), "{}", error());
            }
            std::fs::remove_file(file(name)).unwrap();
            assert!(verify_folder(folder.path()).unwrap_err().is_damage());
            std::fs::write(file(name), original).unwrap();
        }
        verify_folder(folder.path()).unwrap();
    }
}
