//! Generated images and captions for training images: the additional positive pairs of PAC-S (Sarto
//! et al., CVPR 2023, "Positive-Augmented Contrastive Learning").

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::annotations::{clean_captions, join_below, read_json};
use crate::{Error, Item};

/// The generated images and captions of a training split.
#[derive(Debug, Default)]
pub struct Positives {
    /// The folder of generated images, if there is one.
    images: Option<PathBuf>,
    /// The generated captions of each training image; empty if there are none.
    captions: Vec<Vec<String>>,
}

impl Positives {
    /// Loads the positives that `settings` names, for the images of the training split.
    ///
    /// # Errors
    /// The file of captions cannot be read, has a wrong format, or lacks captions of an image.
    pub fn load(settings: &config::Positives, train: &[Item]) -> Result<Self, Error> {
        let captions = match &settings.captions {
            None => Vec::new(),
            Some(path) => {
                let by_name: HashMap<String, Vec<String>> = read_json(path)?;
                let captions_of = |item: &Item| {
                    let captions = item.aliases().find_map(|name| by_name.get(name));
                    let captions = clean_captions(captions.cloned().unwrap_or_default());
                    let missing = || {
                        Error::invalid(
                            path.display(),
                            format!("it has no captions of {}{}", item.name, ambiguous_name_hint(item)),
                        )
                    };
                    if captions.is_empty() { Err(missing()) } else { Ok(captions) }
                };
                train.iter().map(captions_of).collect::<Result<_, _>>()?
            }
        };
        Ok(Self { images: settings.images.clone(), captions })
    }

    /// Whether there are generated images.
    pub fn has_images(&self) -> bool {
        self.images.is_some()
    }

    /// The generated captions of the training image with this index; empty if there are none.
    pub fn captions(&self, image: usize) -> &[String] {
        self.captions.get(image).map_or(&[], |captions| captions)
    }

    /// The generated captions of all training images, in order.
    pub fn all_captions(&self) -> impl Iterator<Item = &[String]> {
        self.captions.iter().map(Vec::as_slice)
    }

    /// The path of the generated image for `item`. The file may be missing.
    ///
    /// # Errors
    /// The settings name no folder of generated images.
    pub fn image(&self, item: &Item) -> Result<PathBuf, Error> {
        let folder = self.images.as_deref();
        let folder = folder.ok_or_else(|| Error::invalid(&item.name, "there are no generated images"))?;
        Ok(image_path(folder, item))
    }
}

/// The path of the generated image for `item` in `folder`: that of the first of the item's aliases
/// for which the folder has a file. If it has none, the path below `folder` with the item's name.
pub fn image_path(folder: &Path, item: &Item) -> PathBuf {
    let mut paths = item.aliases().filter_map(|name| join_below(folder, Path::new(name)));
    paths.find(|path| path.is_file()).unwrap_or_else(|| folder.join(&item.name))
}

/// A hint that other images have the file name of `item`; empty if no other image has it.
pub fn ambiguous_name_hint(item: &Item) -> &'static str {
    if item.shares_file_name { " (other images have its file name, too: use its path)" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageRef;

    fn item(name: &str) -> Item {
        Item::new(name, vec!["a".into()], ImageRef::File(name.into()))
    }

    #[test]
    fn every_training_image_needs_the_configured_positives() {
        let folder = tempfile::tempdir().unwrap();
        let captions = folder.path().join("captions.json");
        std::fs::write(&captions, r#"{"a.jpg": [" A dog. ", " "], "b.jpg": []}"#).unwrap();
        let settings = config::Positives { images: None, captions: Some(captions) };
        let positives = Positives::load(&settings, &[item("train2014/a.jpg")]).unwrap();
        assert_eq!(positives.captions(0), ["A dog."]);
        assert_eq!(positives.captions(1), [""; 0]);
        let error = Positives::load(&settings, &[item("a.jpg"), item("b.jpg")]).unwrap_err().to_string();
        assert!(error.contains("captions.json") && error.contains("no captions of b.jpg"), "{error}");

        let settings = config::Positives { images: Some(folder.path().into()), captions: None };
        let positives = Positives::load(&settings, &[item("x/a.jpg")]).unwrap();
        let path = || positives.image(&item("x/a.jpg")).unwrap();
        assert_eq!(path(), folder.path().join("x/a.jpg"));
        std::fs::write(folder.path().join("a.jpg"), b"").unwrap();
        assert_eq!(path(), folder.path().join("a.jpg"));
    }

    #[test]
    fn positives_of_images_with_equal_file_names_are_looked_up_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let mut splits = crate::Splits { train: vec![item("a/0.jpg"), item("b/0.jpg")], ..Default::default() };
        crate::image_names::make_unique(&mut splits, &[]);
        let captions = folder.path().join("captions.json");
        let settings = config::Positives { images: None, captions: Some(captions.clone()) };
        std::fs::write(&captions, r#"{"0.jpg": ["whose?"]}"#).unwrap();
        let error = Positives::load(&settings, &splits.train).unwrap_err().to_string();
        assert!(
            error.contains("no captions of a/0.jpg (other images have its file name, too: use its path)"),
            "{error}"
        );
        std::fs::write(&captions, r#"{"a/0.jpg": ["a"], "b/0.jpg": ["b"], "0.jpg": ["whose?"]}"#).unwrap();
        let positives = Positives::load(&settings, &splits.train).unwrap();
        assert_eq!((positives.captions(0), positives.captions(1)), (&["a".to_owned()][..], &["b".to_owned()][..]));

        let settings = config::Positives { images: Some(folder.path().into()), captions: None };
        std::fs::write(folder.path().join("0.jpg"), b"").unwrap();
        let positives = Positives::load(&settings, &splits.train).unwrap();
        // `0.jpg` is not used: it may belong to the other image.
        assert_eq!(positives.image(&splits.train[1]).unwrap(), folder.path().join("b/0.jpg"));
    }
}
