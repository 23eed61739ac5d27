//! A folder of images, which are found by any of their usual names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::names::{self, file_name};

/// The extensions of image files.
const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Maximal depth of folders that are searched.
const MAX_DEPTH: usize = 8;

/// The images of a folder and of its subfolders.
#[derive(Debug, Default)]
pub struct ImageFolder {
    paths: Vec<PathBuf>,
    /// Indices of images by relative path, file name, file name without extension, and COCO's
    /// number in it; none for a name of several images.
    numbers: HashMap<String, Option<usize>>,
}

impl ImageFolder {
    /// Lists the folder.
    ///
    /// # Errors
    /// It cannot be read, or contains no image.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let mut found = Self::default();
        found.list(folder, 0)?;
        if found.paths.is_empty() {
            let kinds = EXTENSIONS.join(", ");
            return Err(Error::format(folder.display().to_string(), format!("there are no images in it ({kinds})")));
        }
        found.paths.sort();
        for (number, path) in found.paths.iter().enumerate() {
            let below = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
            let id = names::coco_id(&below).map(|id| id.to_string());
            let mut own: Vec<String> = [Some(below.clone()), Some(file_name(&below).to_owned())]
                .into_iter()
                .flatten()
                .chain([stem(&below).to_owned()])
                .chain(id)
                .collect();
            own.sort();
            own.dedup();
            for name in own {
                found.numbers.entry(name).and_modify(|known| *known = None).or_insert(Some(number));
            }
        }
        Ok(found)
    }

    fn list(&mut self, folder: &Path, depth: usize) -> Result<(), Error> {
        let failed = |source| Error::Read { place: folder.display().to_string(), source };
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                if depth < MAX_DEPTH {
                    self.list(&path, depth + 1)?;
                }
                continue;
            }
            let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
            if extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
                self.paths.push(path);
            }
        }
        Ok(())
    }

    /// The image with one of these names: paths, file names with or without extension, or COCO's
    /// numbers. The first name that belongs to exactly one image counts.
    #[must_use]
    pub fn find<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<&Path> {
        let number = names.into_iter().find_map(|name| {
            let forms = [name, file_name(name), stem(name)];
            forms.into_iter().find_map(|form| self.numbers.get(form).copied().flatten())
        });
        number.and_then(|number| self.paths.get(number)).map(PathBuf::as_path)
    }
}

fn stem(path: &str) -> &str {
    let name = file_name(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_any_name_that_only_they_have() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("val2014")).unwrap();
        std::fs::create_dir_all(path("other")).unwrap();
        for name in ["val2014/COCO_val2014_000000379613.jpg", "val2014/a.jpg", "other/a.jpg", "b.PNG", "notes.txt"] {
            std::fs::write(path(name), "").unwrap();
        }
        let images = ImageFolder::open(folder.path()).unwrap();
        let found = |names: &[&str]| images.find(names.iter().copied()).map(Path::to_owned);
        let coco = Some(path("val2014/COCO_val2014_000000379613.jpg"));
        for name in
            ["379613", "COCO_val2014_000000379613", "COCO_val2014_000000379613.jpg", "x/COCO_val2014_000000379613.png"]
        {
            assert_eq!(found(&[name]), coco, "{name}");
        }
        assert_eq!(found(&["7", "val2014/a.jpg"]), Some(path("val2014/a.jpg")));
        assert_eq!((found(&["a"]), found(&["a.jpg"]), found(&["notes"])), (None, None, None));
        assert_eq!(found(&["b"]), Some(path("b.PNG")));
        std::fs::create_dir(path("empty")).unwrap();
        assert!(ImageFolder::open(&path("empty")).unwrap_err().to_string().contains("there are no images in it"));
        assert!(ImageFolder::open(&path("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }
}
