//! Karpathy's `dataset_coco.json` and its relatives for Flickr8k and Flickr30k.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{DataSet, Error, Item, read};

#[derive(Deserialize)]
struct Annotations {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    filepath: PathBuf,
    filename: PathBuf,
    split: String,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// The splits of `annotations`, whose images lie below `images`. As is usual, `restval` belongs to training.
pub fn read_splits(annotations: &Path, images: &Path) -> Result<DataSet, Error> {
    let format = |problem: String| Error::Format { path: annotations.to_owned(), problem };
    let parsed: Annotations = serde_json::from_slice(&read(annotations)?).map_err(|error| format(error.to_string()))?;
    let mut set = DataSet::default();
    for Image { filepath, filename, split, sentences } in parsed.images {
        let path = filepath.join(&filename);
        if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(format(format!("{} leads out of the images' folder", path.display())));
        }
        let captions: Vec<String> = sentences.into_iter().map(|sentence| sentence.raw.trim().to_owned()).collect();
        if captions.is_empty() {
            return Err(format(format!("{} has no sentences", path.display())));
        }
        let item = Item { name: filename.to_string_lossy().into_owned(), path: images.join(path), captions };
        match split.as_str() {
            "train" | "restval" => set.train.push(item),
            "val" => set.validation.push(item),
            _ => {}
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<DataSet, Error> {
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
        let images = [image("train2014", "train"), image("val2014", "restval"), image("x", "val"), image("x", "test")];
        let set = read_text(&format!(r#"{{"images": [{}], "dataset": "coco"}}"#, images.join(","))).unwrap();
        assert_eq!((set.train.len(), set.validation.len()), (2, 1));
        assert_eq!(set.train[1].path, Path::new("/images/val2014/a.jpg"));
        assert_eq!(set.train[1].captions, ["A dog."]);
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
    fn broken_json_is_named_with_its_place() {
        let error = read_text(r#"{"images": [{"filename": 3}]}"#).unwrap_err().to_string();
        assert!(error.contains("dataset.json") && error.contains("line 1 column"), "{error}");
        assert!(read_text(&"[".repeat(1_000_000)).is_err());
    }
}
