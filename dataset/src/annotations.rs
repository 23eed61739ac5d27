//! What the annotation formats have in common: JSON files, captions, and image paths that must stay in their folder.

use std::fs::File;
use std::io::BufReader;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::Error;

/// Annotation files have hundreds of megabytes: read in pieces, straight into what is kept of them.
const BUFFER: usize = 1 << 20;

/// A JSON file.
///
/// # Errors
/// The file cannot be read, or is not of this form; then with line and column.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let failed = |source| Error::Read { place: path.display().to_string(), source };
    let reader = BufReader::with_capacity(BUFFER, File::open(path).map_err(failed)?);
    serde_json::from_reader(reader)
        .map_err(|error| if error.is_io() { failed(error.into()) } else { Error::format(path.display(), error) })
}

/// Captions without the white space around them and without blank ones.
pub fn tidy(captions: impl IntoIterator<Item = String>) -> Vec<String> {
    let trimmed = captions.into_iter().map(|caption| match caption.trim() {
        same if same.len() == caption.len() => caption,
        shorter => shorter.to_owned(),
    });
    trimmed.filter(|caption| !caption.is_empty()).collect()
}

/// `file` below `folder`; none if it would lead out of it.
pub fn below(folder: &Path, file: &Path) -> Option<PathBuf> {
    let inside = file.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    inside.then(|| folder.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_trimmed_and_blank_ones_dropped() {
        let captions = [" A dog. \n", "", "  ", "a cat"].map(str::to_owned);
        assert_eq!(tidy(captions), ["A dog.", "a cat"]);
    }

    #[test]
    fn paths_stay_in_their_folder() {
        let folder = Path::new("/images");
        assert_eq!(below(folder, Path::new("a/./b.jpg")), Some(PathBuf::from("/images/a/./b.jpg")));
        for outside in ["../a.jpg", "a/../../b.jpg", "/etc/passwd", "a/.."] {
            assert_eq!(below(folder, Path::new(outside)), None, "{outside}");
        }
    }
}
