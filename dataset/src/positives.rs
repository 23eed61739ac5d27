//! Generated images and captions of training images: the extra positive pairs that PAC-S is trained with (Sarto et al., CVPR
//! 2023, "Positive-Augmented Contrastive Learning").

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::annotations::{read, tidy};
use crate::{Error, Item};

/// What there is of them.
#[derive(Debug, Default)]
pub struct Positives {
    images: Option<PathBuf>,
    /// Of each training image.
    captions: Vec<Vec<String>>,
}

impl Positives {
    /// Those that `settings` names, for the images of the training split.
    ///
    /// # Errors
    /// The file of captions cannot be read or is not in its format, or has none of an image.
    pub fn load(settings: &runfile::Positives, train: &[Item]) -> Result<Self, Error> {
        let captions = match &settings.captions {
            None => Vec::new(),
            Some(path) => {
                let by_name: HashMap<String, Vec<String>> = read(path)?;
                let of = |item: &Item| {
                    let captions = tidy(by_name.get(file_name(item)).cloned().unwrap_or_default());
                    let missing = || Error::format(path.display(), format!("it has no captions of {}", item.name));
                    if captions.is_empty() { Err(missing()) } else { Ok(captions) }
                };
                train.iter().map(of).collect::<Result<_, _>>()?
            }
        };
        Ok(Self { images: settings.images.clone(), captions })
    }

    /// Whether there are generated images.
    pub fn has_images(&self) -> bool {
        self.images.is_some()
    }

    /// Generated captions of a training image.
    pub fn captions(&self, image: usize) -> &[String] {
        self.captions.get(image).map_or(&[], |captions| captions)
    }

    /// Those of all training images, in order.
    pub fn all_captions(&self) -> impl Iterator<Item = &[String]> {
        self.captions.iter().map(Vec::as_slice)
    }

    /// The generated picture of what `item` shows.
    pub fn image(&self, item: &Item) -> Result<PathBuf, Error> {
        let folder = self.images.as_deref();
        let folder = folder.ok_or_else(|| Error::format(&item.name, "there are no generated images"))?;
        Ok(image(folder, item))
    }
}

/// Where the generated image of what `item` shows lies in a folder of them.
pub fn image(folder: &Path, item: &Item) -> PathBuf {
    folder.join(file_name(item))
}

/// The last part of an item's name.
fn file_name(item: &Item) -> &str {
    Path::new(&item.name).file_name().and_then(|name| name.to_str()).unwrap_or(&item.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageRef;

    fn item(name: &str) -> Item {
        Item { name: name.into(), id: None, captions: vec!["a".into()], image: ImageRef::File(name.into()) }
    }

    #[test]
    fn every_training_image_needs_what_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let captions = folder.path().join("captions.json");
        std::fs::write(&captions, r#"{"a.jpg": [" A dog. ", " "], "b.jpg": []}"#).unwrap();
        let settings = runfile::Positives { images: None, captions: Some(captions) };
        let positives = Positives::load(&settings, &[item("train2014/a.jpg")]).unwrap();
        assert_eq!(positives.captions(0), ["A dog."]);
        assert_eq!(positives.captions(1), [""; 0]);
        let error = Positives::load(&settings, &[item("a.jpg"), item("b.jpg")]).unwrap_err().to_string();
        assert!(error.contains("captions.json") && error.contains("no captions of b.jpg"), "{error}");

        let settings = runfile::Positives { images: Some(folder.path().into()), captions: None };
        let positives = Positives::load(&settings, &[item("x/a.jpg")]).unwrap();
        assert_eq!(positives.image(&item("x/a.jpg")).unwrap(), folder.path().join("a.jpg"));
    }
}
