//! Writes the captions of evaluations as files in COCO's results format: a JSON list of
//! `{image_id, caption}`.

use std::{fs::File, path::Path};

use caption_metrics::results::{self, CaptionResult};

use crate::captions::EvaluationItem;

/// Writes the captions to `path` atomically. Replaces the file of an earlier evaluation of the same
/// step.
///
/// # Errors
/// The file cannot be written.
pub fn write_captions(path: &Path, items: &[EvaluationItem]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            std::io::Error::new(error.kind(), format!("{} is not a folder", folder.display()))
        }
        _ => error,
    })?;
    let captions: Vec<CaptionResult> =
        items.iter().map(|item| CaptionResult::new(item.image_id, &item.image, &item.caption)).collect();
    results::write(path, &captions)?;
    File::open(folder)?.sync_all()
}
