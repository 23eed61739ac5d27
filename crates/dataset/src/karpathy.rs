//! Karpathy's `dataset_coco.json` and the same format for Flickr8k and Flickr30k
//! (<https://cs.stanford.edu/people/karpathy/deepimagesent/>).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::annotations::{clean_captions, join_below, read_json};
use crate::{BadImage, Error, ImageRef, Item, Split, Splits, image_names};

/// Karpathy's name of the split of those COCO validation images that are in none of his validation
/// and test splits. They are used for training.
const RESTVAL: &str = "restval";
/// Maximal number of unused splits that a note names.
const MAX_NAMED_SPLITS: usize = 5;

#[derive(Deserialize)]
#[serde(expecting = "an object with `images`, as Karpathy's dataset_*.json are")]
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
    #[serde(default)]
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// Reads the `requested` splits of `annotations`; the images are below `images`. `restval` belongs
/// to the training split, as in the captioning literature. Images without sentences are unusable if
/// others of their split have some.
///
/// # Errors
/// The file cannot be read or has a wrong format, or a path leads out of the folder of images.
pub fn read_splits(annotations: &Path, images: &Path, requested: &[Split]) -> Result<Splits, Error> {
    let format_error = |problem: String| Error::invalid(annotations.display(), problem);
    let Annotations { images: entries } = read_json(annotations)?;
    let mut splits = Splits::default();
    let mut unused: BTreeMap<String, u64> = BTreeMap::new();
    for Image { filepath, filename, cocoid, imgid, split, sentences } in entries {
        let path = filepath.join(&filename);
        let file = join_below(images, &path)
            .ok_or_else(|| format_error(format!("{} leads out of the images' folder", path.display())))?;
        let parsed = if split == RESTVAL { Ok(Split::Train) } else { split.parse() };
        let Ok(split) = parsed else {
            *unused.entry(split).or_default() += 1;
            continue;
        };
        if !requested.contains(&split) {
            continue;
        }
        let captions = clean_captions(sentences.into_iter().map(|sentence| sentence.raw));
        let name = filename.to_string_lossy();
        let mut item = Item::new(&name, captions, ImageRef::File(file));
        item.id = cocoid.or_else(|| image_names::coco_id(&name)).or(imgid);
        item.path = Some(path.to_string_lossy().into_owned()).filter(|path| *path != *name);
        splits.get_mut(split).push(item);
    }
    for split in Split::ALL {
        let items = splits.get_mut(split);
        if items.iter().all(|item| item.captions.is_empty()) {
            continue;
        }
        let without_captions: Vec<Item> = items.extract_if(.., |item| item.captions.is_empty()).collect();
        let bad = without_captions.iter().map(|item| BadImage {
            split,
            location: item.file().map_or_else(String::new, |file| file.display().to_string()),
            problem: format!("no sentences, others of split `{split}` have some"),
        });
        splits.unusable.extend(bad);
    }
    if !unused.is_empty() {
        let named =
            unused.iter().take(MAX_NAMED_SPLITS).map(|(split, images)| format!("{images} images of split `{split}`"));
        let (named, others) = (named.collect::<Vec<_>>().join(", "), unused.len().saturating_sub(MAX_NAMED_SPLITS));
        let others = if others > 0 { format!(" and {others} other splits") } else { String::new() };
        splits.notes.push(format!(
            "{}: not used: {named}{others}; known are `train`, `{RESTVAL}`, `val` (or `validation`, `dev`) and `test`",
            annotations.display()
        ));
    }
    image_names::make_unique(&mut splits, &[&|item| item.path().to_owned()]);
    Ok(splits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Splits, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dataset.json");
        std::fs::write(&path, text).unwrap();
        read_splits(&path, Path::new("/images"), &Split::ALL)
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
            image("x", "unknown split"),
        ];
        let splits = read_text(&format!(r#"{{"images": [{}], "dataset": "coco"}}"#, images.join(","))).unwrap();
        assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (2, 1, 1));
        assert!(splits.notes[0].contains("not used: 1 images of split `unknown split`;"), "{:?}", splits.notes);
        assert_eq!(splits.train[1].image, ImageRef::File("/images/val2014/a.jpg".into()));
        assert_eq!(
            (splits.train[1].name.as_str(), &splits.train[1].captions[..]),
            ("val2014/a.jpg", &["A dog.".to_owned()][..])
        );
        assert_eq!(splits.validation[0].name, "a.jpg");
    }

    fn items(images: &[&str]) -> Splits {
        let image = |fields: &&str| format!(r#"{{{fields}, "split": "test", "sentences": [{{"raw": "a"}}]}}"#);
        read_text(&format!(r#"{{"images": [{}]}}"#, images.iter().map(image).collect::<Vec<_>>().join(","))).unwrap()
    }

    #[test]
    fn images_with_equal_file_names_are_named_by_path() {
        let splits = items(&[
            r#""filepath": "a", "filename": "0.jpg", "imgid": 0"#,
            r#""filepath": "b", "filename": "0.jpg", "imgid": 1"#,
        ]);
        let names: Vec<_> = splits.test.iter().map(|item| (item.name.as_str(), item.id)).collect();
        assert_eq!(names, [("a/0.jpg", Some(0)), ("b/0.jpg", Some(1))]);
    }

    #[test]
    fn ids_are_coco_ids_if_known() {
        let splits = items(&[
            r#""filename": "a.jpg", "cocoid": 9, "imgid": 0"#,
            r#""filename": "COCO_val2014_000000379613.jpg", "imgid": 1"#,
            r#""filename": "1000092795.jpg", "imgid": 2"#,
        ]);
        let ids: Vec<_> = splits.test.iter().map(|item| item.id).collect();
        assert_eq!(ids, [Some(9), Some(379_613), Some(2)]);
    }

    #[test]
    fn a_split_without_any_sentences_is_accepted() {
        let splits = read_text(
            r#"{"images": [{"filename": "a.jpg", "split": "test", "sentences": []},
                           {"filename": "b.jpg", "split": "test"},
                           {"filename": "c.jpg", "split": "val", "sentences": [{"raw": "a"}]}]}"#,
        )
        .unwrap();
        assert!(splits.test.len() == 2 && splits.test.iter().all(|item| item.captions.is_empty()));
    }

    #[test]
    fn a_path_that_leads_out_of_the_folder_is_refused() {
        for name in ["../secret.jpg", "/etc/passwd"] {
            let text =
                format!(r#"{{"images": [{{"filename": "{name}", "split": "train", "sentences": [{{"raw": "a"}}]}}]}}"#);
            assert!(read_text(&text).unwrap_err().to_string().contains("leads out of"));
        }
    }

    #[test]
    fn images_without_sentences_are_unusable() {
        for sentences in ["", r#"{"raw": " "}"#] {
            let without_captions =
                |name: &str| format!(r#"{{"filename": "{name}", "split": "val", "sentences": [{sentences}]}}"#);
            let good = r#"{"filename": "b.jpg", "split": "val", "sentences": [{"raw": "b"}]}"#;
            let text =
                format!(r#"{{"images": [{}, {good}, {}]}}"#, without_captions("a.jpg"), without_captions("c.jpg"));
            let splits = read_text(&text).unwrap();
            let unusable: Vec<String> = splits.unusable.iter().map(ToString::to_string).collect();
            let problem = "no sentences, others of split `val` have some";
            assert_eq!(unusable, ["a", "c"].map(|name| format!("/images/{name}.jpg: {problem}")));
            assert_eq!((splits.validation.len(), splits.validation[0].name.as_str()), (1, "b.jpg"));
        }
    }

    #[test]
    fn split_names_have_synonyms() {
        let names = ["train", "Training", "restval", "val", "valid", "validation", "dev", "test", "Test", "unknown"];
        let image = |split: &&str| {
            format!(r#"{{"filename": "{split}.jpg", "split": "{split}", "sentences": [{{"raw": "a"}}]}}"#)
        };
        let images: Vec<String> = names.iter().map(image).collect();
        let splits = read_text(&format!(r#"{{"images": [{}]}}"#, images.join(","))).unwrap();
        assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (3, 4, 2));
        assert!(splits.notes[0].contains("1 images of split `unknown`; known are `train`"), "{:?}", splits.notes);
    }

    #[test]
    fn an_error_names_the_keys_of_another_format() {
        let problem = |text: &str| read_text(text).unwrap_err().to_string();
        let list = problem("[]");
        assert!(list.contains("expected an object with `images`, as Karpathy's dataset_*.json are"), "{list}");
        assert!(problem(r#"{"photos": [], "captions": []}"#).ends_with("its keys are `captions`, `photos`"));
    }

    #[test]
    fn a_json_error_names_file_line_and_column() {
        let error = read_text(r#"{"images": [{"filename": 3}]}"#).unwrap_err().to_string();
        assert!(error.contains("dataset.json") && error.contains("line 1 column"), "{error}");
        for deep in ["[".repeat(1_000_000), format!(r#"{{"x": {}"#, "[".repeat(1_000_000))] {
            let error = read_text(&deep).unwrap_err().to_string();
            assert!(error.contains("dataset.json") && error.len() < 300, "{error}");
        }
    }

    #[test]
    fn an_error_names_a_missing_file() {
        let error =
            read_splits(Path::new("/nowhere/a.json"), Path::new("/images"), &Split::ALL).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/a.json: "), "{error}");
    }
}
