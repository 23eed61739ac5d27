//! A folder of images, with lookup by path, file name or COCO id.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::image_names::{coco_id, file_name};

/// The extensions of image files.
const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Maximal depth of folders that are searched.
const MAX_DEPTH: usize = 8;

/// The images of a folder and of its subfolders.
#[derive(Debug, Default)]
pub struct ImageFolder {
    paths: Vec<PathBuf>,
    /// The index in `paths` of each image, by relative path, file name, file name without
    /// extension, and COCO id; none for a name that several images have.
    indices: HashMap<String, Option<usize>>,
}

impl ImageFolder {
    /// Lists the folder.
    ///
    /// # Errors
    /// The folder cannot be read, or contains no image.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let mut images = Self::default();
        images.list(folder, 0)?;
        if images.paths.is_empty() {
            let kinds = EXTENSIONS.join(", ");
            return Err(Error::invalid(folder.display().to_string(), format!("there are no images in it ({kinds})")));
        }
        images.paths.sort();
        for (index, path) in images.paths.iter().enumerate() {
            let relative = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
            let id = coco_id(&relative).map(|id| id.to_string());
            let mut names: Vec<String> =
                [relative.clone(), file_name(&relative).to_owned(), stem(&relative).to_owned()]
                    .into_iter()
                    .chain(id)
                    .collect();
            names.sort();
            names.dedup();
            for name in names {
                images.indices.entry(name).and_modify(|index| *index = None).or_insert(Some(index));
            }
        }
        Ok(images)
    }

    /// Adds the images of `folder`, which is `depth` levels below the folder of images.
    fn list(&mut self, folder: &Path, depth: usize) -> Result<(), Error> {
        let read_error = |source| Error::Read { location: folder.display().to_string(), source };
        for entry in std::fs::read_dir(folder).map_err(read_error)? {
            let path = entry.map_err(read_error)?.path();
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

    /// The image with one of these names: paths, file names with or without extension, or COCO ids.
    /// The first name that exactly one image has is used.
    #[must_use]
    pub fn find<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<&Path> {
        let index = names.into_iter().find_map(|name| {
            let forms = [name, file_name(name), stem(name)];
            forms.into_iter().find_map(|form| self.indices.get(form).copied().flatten())
        });
        index.and_then(|index| self.paths.get(index)).map(PathBuf::as_path)
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
    fn an_image_is_found_by_any_name_that_no_other_image_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("val2014")).unwrap();
        std::fs::create_dir_all(path("other")).unwrap();
        for name in ["val2014/COCO_val2014_000000379613.jpg", "val2014/a.jpg", "other/a.jpg", "b.PNG", "notes.txt"] {
            std::fs::write(path(name), "").unwrap();
        }
        let images = ImageFolder::open(folder.path()).unwrap();
        let find = |names: &[&str]| images.find(names.iter().copied()).map(Path::to_owned);
        let coco = Some(path("val2014/COCO_val2014_000000379613.jpg"));
        for name in
            ["379613", "COCO_val2014_000000379613", "COCO_val2014_000000379613.jpg", "x/COCO_val2014_000000379613.png"]
        {
            assert_eq!(find(&[name]), coco, "{name}");
        }
        assert_eq!(find(&["7", "val2014/a.jpg"]), Some(path("val2014/a.jpg")));
        assert_eq!((find(&["a"]), find(&["a.jpg"]), find(&["notes"])), (None, None, None));
        assert_eq!(find(&["b"]), Some(path("b.PNG")));
        std::fs::create_dir(path("empty")).unwrap();
        assert!(ImageFolder::open(&path("empty")).unwrap_err().to_string().contains("there are no images in it"));
        assert!(ImageFolder::open(&path("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }
}
