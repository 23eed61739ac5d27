//! Karpathy's `dataset_coco.json` and its relatives for Flickr8k and Flickr30k
//! (<https://cs.stanford.edu/people/karpathy/deepimagesent/>).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::annotations::{below, read, tidy};
use crate::{Error, ImageRef, Item, Splits};

#[derive(Deserialize)]
struct Annotations {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    filepath: PathBuf,
    filename: PathBuf,
    #[serde(default)]
    cocoid: Option<u64>,
    #[serde(default)]
    imgid: Option<u64>,
    split: String,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// The splits of `annotations`, whose images lie below `images`. As is usual, `restval` belongs to training.
pub fn read_splits(annotations: &Path, images: &Path) -> Result<Splits, Error> {
    let format = |problem: String| Error::format(annotations.display(), problem);
    let parsed: Annotations = read(annotations)?;
    let mut splits = Splits::default();
    for Image { filepath, filename, cocoid, imgid, split, sentences } in parsed.images {
        let path = filepath.join(&filename);
        let file = below(images, &path)
            .ok_or_else(|| format(format!("{} leads out of the images' folder", path.display())))?;
        let captions = tidy(sentences.into_iter().map(|sentence| sentence.raw));
        if captions.is_empty() {
            return Err(format(format!("{} has no sentences", path.display())));
        }
        let name = filename.to_string_lossy().into_owned();
        let item = Item { name, id: cocoid.or(imgid), captions, image: ImageRef::File(file) };
        match split.as_str() {
            "train" | "restval" => splits.train.push(item),
            "val" => splits.validation.push(item),
            "test" => splits.test.push(item),
            _ => {}
        }
    }
    Ok(splits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Splits, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dataset.json");
        std::fs::write(&path, text).unwrap();
        read_splits(&path, Path::new("/images"))
    }

    #[test]
    fn splits_folders_and_captions_are_read() {
        let image = |folder: &str, split: &str| {
            format!(
                r#"{{"filepath": "{folder}", "filename": "a.jpg", "imgid": 0, "split": "{split}", "sentids": [0],
                    "sentences": [{{"tokens": ["a"], "raw": "A dog. ", "imgid": 0, "sentid": 0}}]}}"#
            )
        };
        let images = [
            image("train2014", "train"),
            image("val2014", "restval"),
            image("x", "val"),
            image("x", "test"),
            image("x", "unheard of"),
        ];
        let splits = read_text(&format!(r#"{{"images": [{}], "dataset": "coco"}}"#, images.join(","))).unwrap();
        assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (2, 1, 1));
        assert_eq!(splits.train[1].image, ImageRef::File("/images/val2014/a.jpg".into()));
        assert_eq!(
            (splits.train[1].name.as_str(), &splits.train[1].captions[..]),
            ("a.jpg", &["A dog.".to_owned()][..])
        );
    }

    #[test]
    fn a_path_out_of_the_folder_is_refused() {
        for name in ["../secret.jpg", "/etc/passwd"] {
            let text =
                format!(r#"{{"images": [{{"filename": "{name}", "split": "train", "sentences": [{{"raw": "a"}}]}}]}}"#);
            assert!(read_text(&text).unwrap_err().to_string().contains("leads out of"));
        }
    }

    #[test]
    fn an_image_without_sentences_is_named() {
        for sentences in ["", r#"{"raw": " "}"#] {
            let text =
                format!(r#"{{"images": [{{"filename": "a.jpg", "split": "val", "sentences": [{sentences}]}}]}}"#);
            assert!(read_text(&text).unwrap_err().to_string().contains("a.jpg has no sentences"));
        }
    }

    #[test]
    fn broken_json_is_named_with_its_place() {
        let error = read_text(r#"{"images": [{"filename": 3}]}"#).unwrap_err().to_string();
        assert!(error.contains("dataset.json") && error.contains("line 1 column"), "{error}");
        for deep in ["[".repeat(1_000_000), format!(r#"{{"x": {}"#, "[".repeat(1_000_000))] {
            let error = read_text(&deep).unwrap_err().to_string();
            assert!(error.contains("dataset.json") && error.len() < 300, "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_splits(Path::new("/nowhere/a.json"), Path::new("/images")).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/a.json: "), "{error}");
    }
}
