//! Generated images and captions of training images: the extra positive pairs that PAC-S is trained with (Sarto et al., CVPR
//! 2023, "Positive-Augmented Contrastive Learning").

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::annotations::{below, read, tidy};
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
    /// A file cannot be read or is not in its format, or an image has none.
    pub fn load(settings: &runfile::Positives, train: &[Item]) -> Result<Self, Error> {
        let captions = match &settings.captions {
            None => Vec::new(),
            Some(path) => {
                let by_name: HashMap<String, Vec<String>> = read(path)?;
                let of = |item: &Item| {
                    let captions = item.known_as().find_map(|name| by_name.get(name));
                    let captions = tidy(captions.cloned().unwrap_or_default());
                    let missing = || {
                        Error::format(path.display(), format!("it has no captions of {}{}", item.name, ambiguous(item)))
                    };
                    if captions.is_empty() { Err(missing()) } else { Ok(captions) }
                };
                train.iter().map(of).collect::<Result<_, _>>()?
            }
        };
        let positives = Self { images: settings.images.clone(), captions };
        if positives.images.is_some() {
            train.iter().try_for_each(|item| positives.image(item).map(|_| ()))?;
        }
        Ok(positives)
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
        let folder = self.images.as_deref().ok_or_else(|| Error::image(&item.name, "has no generated picture"))?;
        let paths = item.known_as().filter_map(|name| below(folder, Path::new(name)));
        let missing = || {
            let problem = format!("there is no such generated picture{}", ambiguous(item));
            Error::image(folder.join(&item.name).display(), problem)
        };
        paths.into_iter().find(|path| path.is_file()).ok_or_else(missing)
    }
}

/// Why a file name is not enough to find what belongs to `item`, if it is not.
fn ambiguous(item: &Item) -> &'static str {
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
        let error = Positives::load(&settings, &[item("x/a.jpg")]).unwrap_err().to_string();
        assert!(error.contains("a.jpg") && error.contains("no such generated picture"), "{error}");
        std::fs::write(folder.path().join("a.jpg"), b"").unwrap();
        let positives = Positives::load(&settings, &[item("x/a.jpg")]).unwrap();
        assert_eq!(positives.image(&item("x/a.jpg")).unwrap(), folder.path().join("a.jpg"));
    }
    #[test]
    fn images_of_one_file_name_have_positives_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let mut splits = crate::Splits { train: vec![item("a/0.jpg"), item("b/0.jpg")], ..Default::default() };
        crate::names::settle(&mut splits, &[]);
        let captions = folder.path().join("captions.json");
        let settings = runfile::Positives { images: None, captions: Some(captions.clone()) };
        std::fs::write(&captions, r#"{"0.jpg": ["whose?"]}"#).unwrap();
        let error = Positives::load(&settings, &splits.train).unwrap_err().to_string();
        assert!(
            error.contains("no captions of a/0.jpg (other images have its file name, too: use its path)"),
            "{error}"
        );
        std::fs::write(&captions, r#"{"a/0.jpg": ["a"], "b/0.jpg": ["b"], "0.jpg": ["whose?"]}"#).unwrap();
        let positives = Positives::load(&settings, &splits.train).unwrap();
        assert_eq!((positives.captions(0), positives.captions(1)), (&["a".to_owned()][..], &["b".to_owned()][..]));

        let settings = runfile::Positives { images: Some(folder.path().into()), captions: None };
        std::fs::write(folder.path().join("0.jpg"), b"").unwrap();
        let error = Positives::load(&settings, &splits.train).unwrap_err().to_string();
        assert!(error.contains("a/0.jpg: there is no such generated picture (other images"), "{error}");
        for name in ["a", "b"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("0.jpg"), b"").unwrap();
        }
        let positives = Positives::load(&settings, &splits.train).unwrap();
        assert_eq!(positives.image(&splits.train[1]).unwrap(), folder.path().join("b/0.jpg"));
    }
}
