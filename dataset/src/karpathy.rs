//! Karpathy's `dataset_coco.json` and its relatives for Flickr8k and Flickr30k
//! (<https://cs.stanford.edu/people/karpathy/deepimagesent/>).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::annotations::{below, read, tidy};
use crate::{Error, ImageRef, Item, Split, Splits, names};

/// Splits that are named when they are not used.
const MAX_NAMED: usize = 5;

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
    #[serde(default)]
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// Those of the splits of `annotations` which are `wanted`; the images lie below `images`. As is usual, `restval` belongs to
/// training.
///
/// # Errors
/// The file cannot be read or is not in its format, or some images of a split have sentences and others have none.
pub fn read_splits(annotations: &Path, images: &Path, wanted: &[Split]) -> Result<Splits, Error> {
    let format = |problem: String| Error::format(annotations.display(), problem);
    let parsed: Annotations = read(annotations)?;
    let mut splits = Splits::default();
    let mut unused: BTreeMap<String, u64> = BTreeMap::new();
    for Image { filepath, filename, cocoid, imgid, split, sentences } in parsed.images {
        let path = filepath.join(&filename);
        let file = below(images, &path)
            .ok_or_else(|| format(format!("{} leads out of the images' folder", path.display())))?;
        let split = match split.as_str() {
            "train" | "restval" => Split::Train,
            "val" => Split::Validation,
            "test" => Split::Test,
            _ => {
                *unused.entry(split).or_default() += 1;
                continue;
            }
        };
        if !wanted.contains(&split) {
            continue;
        }
        let captions = tidy(sentences.into_iter().map(|sentence| sentence.raw));
        let name = filename.to_string_lossy();
        let mut item = Item::new(&name, captions, ImageRef::File(file));
        item.id = cocoid.or_else(|| names::coco_id(&name)).or(imgid);
        item.path = Some(path.to_string_lossy().into_owned()).filter(|path| *path != *name);
        splits.get_mut(split).push(item);
    }
    for split in Split::ALL {
        let items = splits.get(split);
        let silent = items.iter().find(|item| item.captions.is_empty());
        if let Some(silent) = silent
            && items.iter().any(|item| !item.captions.is_empty())
        {
            return Err(format(format!("{} has no sentences, others of split `{split}` have some", silent.path())));
        }
    }
    if !unused.is_empty() {
        let named = unused.iter().take(MAX_NAMED).map(|(split, images)| format!("{images} images of split `{split}`"));
        let (named, others) = (named.collect::<Vec<_>>().join(", "), unused.len().saturating_sub(MAX_NAMED));
        let others = if others > 0 { format!(" and {others} other splits") } else { String::new() };
        splits.notes.push(format!(
            "{}: not used: {named}{others}; known are `train`, `restval`, `val` and `test`",
            annotations.display()
        ));
    }
    names::settle(&mut splits, &[&|item| item.path().to_owned()]);
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
            image("x", "unheard of"),
        ];
        let splits = read_text(&format!(r#"{{"images": [{}], "dataset": "coco"}}"#, images.join(","))).unwrap();
        assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (2, 1, 1));
        assert!(splits.notes[0].contains("not used: 1 images of split `unheard of`;"), "{:?}", splits.notes);
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
    fn images_of_one_file_name_go_by_their_paths() {
        let splits = items(&[
            r#""filepath": "a", "filename": "0.jpg", "imgid": 0"#,
            r#""filepath": "b", "filename": "0.jpg", "imgid": 1"#,
        ]);
        let names: Vec<_> = splits.test.iter().map(|item| (item.name.as_str(), item.id)).collect();
        assert_eq!(names, [("a/0.jpg", Some(0)), ("b/0.jpg", Some(1))]);
    }

    #[test]
    fn ids_are_cocos_where_they_are_known() {
        let splits = items(&[
            r#""filename": "a.jpg", "cocoid": 9, "imgid": 0"#,
            r#""filename": "COCO_val2014_000000379613.jpg", "imgid": 1"#,
            r#""filename": "1000092795.jpg", "imgid": 2"#,
        ]);
        let ids: Vec<_> = splits.test.iter().map(|item| item.id).collect();
        assert_eq!(ids, [Some(9), Some(379_613), Some(2)]);
    }

    #[test]
    fn a_split_may_have_no_sentences_at_all() {
        let splits = read_text(
            r#"{"images": [{"filename": "a.jpg", "split": "test", "sentences": []},
                           {"filename": "b.jpg", "split": "test"},
                           {"filename": "c.jpg", "split": "val", "sentences": [{"raw": "a"}]}]}"#,
        )
        .unwrap();
        assert!(splits.test.len() == 2 && splits.test.iter().all(|item| item.captions.is_empty()));
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
            let text = format!(
                r#"{{"images": [{{"filename": "b.jpg", "split": "val", "sentences": [{{"raw": "b"}}]}},
                           {{"filename": "a.jpg", "split": "val", "sentences": [{sentences}]}}]}}"#
            );
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
        let error =
            read_splits(Path::new("/nowhere/a.json"), Path::new("/images"), &Split::ALL).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/a.json: "), "{error}");
    }
}
