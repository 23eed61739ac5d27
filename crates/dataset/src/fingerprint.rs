//! Hashes of a data set's texts, by which two workers compare their data.

use sha2::{Digest, Sha256};

/// The SHA-256 of texts in order. Each group is an optional name with captions and ends with a line
/// feed.
pub fn sha256_of_captions<'a>(groups: impl Iterator<Item = (Option<&'a String>, &'a [String])>) -> String {
    let mut hash = Sha256::new();
    for (name, captions) in groups {
        name.into_iter().chain(captions).for_each(|text| update(&mut hash, text));
        hash.update(b"\n");
    }
    format!("{:x}", hash.finalize())
}

/// The SHA-256 of names in order.
pub fn sha256_of_names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let mut hash = Sha256::new();
    names.for_each(|name| update(&mut hash, name));
    format!("{:x}", hash.finalize())
}

/// Adds a text, preceded by its length.
fn update(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}
