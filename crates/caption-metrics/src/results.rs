//! Captions in COCO's result format (<https://cocodataset.org/#format-results>, captions):
//! `[{"image_id": 42, "caption": "..."}]`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

/// A caption of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptionResult {
    image_id: ImageId,
    caption: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum ImageId {
    Number(u64),
    Name(String),
}

impl CaptionResult {
    /// A caption of an image; the image's id is its number or, without a number, its name.
    #[must_use]
    pub fn new(number: Option<u64>, name: &str, caption: &str) -> Self {
        let image_id = number.map_or_else(|| ImageId::Name(name.to_owned()), ImageId::Number);
        Self { image_id, caption: caption.to_owned() }
    }
}

/// Writes a file of captions atomically.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, captions: &[CaptionResult]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let mut file = File::create(&partial)?;
    file.write_all(&serde_json::to_vec(captions)?)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_coco_result_format() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.json");
        write(&path, &[CaptionResult::new(Some(42), "a.jpg", "a \"dog\""), CaptionResult::new(None, "b", "")]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, r#"[{"image_id":42,"caption":"a \"dog\""},{"image_id":"b","caption":""}]"#);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write(&folder.path().join("nowhere/captions.json"), &[]).is_err());
    }
}
