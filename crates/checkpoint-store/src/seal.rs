//! The seal of a checkpoint: the list of its files. The seal has its own checksum, so that a
//! damaged seal is not mistaken for another format version.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::names;

/// The name of the seal's file in a checkpoint.
pub const SEAL_FILE: &str = "checkpoint.json";
/// Maximal size of a seal, in bytes; real seals have a few hundred.
pub const MAX_SEAL_BYTES: u64 = 1 << 20;
/// The version of the seal's format; incremented when older programs cannot read newer seals.
pub const SEAL_FORMAT: u64 = 1;
/// The key of the seal's own checksum, the SHA-256 of the content of all other keys.
const CHECKSUM_KEY: &str = "sha256";

/// A file of a checkpoint, as the seal lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedFile {
    /// The name of the file.
    pub name: String,
    /// The size, in bytes.
    pub size: u64,
    /// The SHA-256 of the content, in hex.
    pub sha256: String,
}

/// Why a seal cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum SealError {
    /// The seal does not match its checksum, or is invalid.
    Damaged(String),
    /// The seal has this unknown format version.
    Version(u64),
}

/// The content of the seal for these files.
pub fn to_json(files: &[SealedFile]) -> serde_json::Result<Vec<u8>> {
    let mut seal = BTreeMap::from([
        ("format".to_owned(), Value::from(SEAL_FORMAT)),
        ("files".to_owned(), serde_json::to_value(files)?),
    ]);
    seal.insert(CHECKSUM_KEY.to_owned(), checksum(&seal)?.into());
    serde_json::to_vec_pretty(&seal)
}

/// Parses the content of a seal. Returns the files that it lists.
pub fn parse(bytes: &[u8]) -> Result<Vec<SealedFile>, SealError> {
    let damaged = |problem: String| SealError::Damaged(format!("{SEAL_FILE}: {problem}"));
    let json_error = |error: serde_json::Error| damaged(error.to_string());
    let mut seal: BTreeMap<String, Value> = serde_json::from_slice(bytes).map_err(json_error)?;
    let stored = seal.remove(CHECKSUM_KEY);
    if stored != Some(checksum(&seal).map_err(json_error)?.into()) {
        return Err(damaged("its content is not what was written".to_owned()));
    }
    match seal.get("format").and_then(Value::as_u64) {
        Some(SEAL_FORMAT) => {}
        Some(other) => return Err(SealError::Version(other)),
        None => return Err(damaged("it has no format".to_owned())),
    }
    let files: Vec<SealedFile> =
        serde_json::from_value(seal.remove("files").unwrap_or_default()).map_err(json_error)?;
    // The checksum detects accidents, not attacks, so the names are checked as well.
    for file in &files {
        names::check(&file.name).map_err(|error| damaged(error.to_string()))?;
    }
    Ok(files)
}

fn checksum(seal: &BTreeMap<String, Value>) -> serde_json::Result<String> {
    Ok(format!("{:x}", Sha256::digest(serde_json::to_vec(seal)?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str) -> SealedFile {
        SealedFile { name: name.to_owned(), size: 7, sha256: "00ff".to_owned() }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_detected() {
        let files = [entry("a"), entry("b.json")];
        let seal = to_json(&files).unwrap();
        assert_eq!(parse(&seal).unwrap(), files);
        for length in 0..seal.len() {
            assert!(matches!(parse(&seal[..length]), Err(SealError::Damaged(_))), "{length} bytes");
        }
        for bit in 0..seal.len() * 8 {
            let mut flipped = seal.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(parse(&flipped), Err(SealError::Damaged(_))), "bit {bit}");
        }
    }

    #[test]
    fn another_format_version_is_not_damage() {
        let mut seal = BTreeMap::from([("format".to_owned(), Value::from(2)), ("news".to_owned(), Value::from("x"))]);
        seal.insert(CHECKSUM_KEY.to_owned(), checksum(&seal).unwrap().into());
        assert_eq!(parse(&serde_json::to_vec(&seal).unwrap()), Err(SealError::Version(2)));
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        for name in ["../a", "/etc/passwd", "a/b", ""] {
            let Err(SealError::Damaged(problem)) = parse(&to_json(&[entry(name)]).unwrap()) else { panic!("{name}") };
            assert!(problem.contains(&format!("{name:?}")), "{problem}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, text in "\\{.*\\}") {
            prop_assert!(parse(&bytes).is_err() && parse(text.as_bytes()).is_err());
        }
    }
}
