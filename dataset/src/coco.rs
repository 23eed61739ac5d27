//! COCO's caption annotations, one file a split (<https://cocodataset.org/#format-data>, section 4).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

use runfile::{Coco, CocoSplit};
use serde::Deserialize;

use crate::annotations::{below, read, tidy};
use crate::{Error, ImageRef, Item, Splits};

#[derive(Deserialize)]
struct Annotations {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
    file_name: PathBuf,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: i64,
    caption: String,
}

/// All splits that `settings` names.
pub fn read_splits(settings: &Coco) -> Result<Splits, Error> {
    Ok(Splits {
        train: read_split(&settings.train)?,
        validation: read_split(&settings.validation)?,
        test: settings.test.as_ref().map_or_else(|| Ok(Vec::new()), read_split)?,
    })
}

/// The images of one file that have captions, in the order of its `images`.
fn read_split(settings: &CocoSplit) -> Result<Vec<Item>, Error> {
    let format = |problem: String| Error::format(settings.annotations.display(), problem);
    let Annotations { images, annotations } = read(&settings.annotations)?;
    let mut captions: HashMap<i64, Vec<String>> = HashMap::with_capacity(images.len());
    for Image { id, .. } in &images {
        match captions.entry(*id) {
            Entry::Occupied(_) => return Err(format(format!("two images have the id {id}"))),
            Entry::Vacant(vacant) => vacant.insert(Vec::new()),
        };
    }
    for Annotation { image_id, caption } in annotations {
        let known = captions.get_mut(&image_id);
        let known =
            known.ok_or_else(|| format(format!("a caption is of the image {image_id}, which is not listed")))?;
        known.extend(tidy([caption]));
    }
    let listed = images.len();
    let mut items = Vec::with_capacity(listed);
    for Image { id, file_name } in images {
        let file = below(&settings.images, &file_name);
        let file = file.ok_or_else(|| format(format!("{} leads out of the images' folder", file_name.display())))?;
        let captions = captions.remove(&id).unwrap_or_default();
        if !captions.is_empty() {
            let name = file_name.to_string_lossy().into_owned();
            items.push(Item { name, id: u64::try_from(id).ok(), captions, image: ImageRef::File(file) });
        }
    }
    if items.len() < listed {
        tracing::warn!(
            "{}: leaving out {} images without captions",
            settings.annotations.display(),
            listed - items.len()
        );
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Item>, Error> {
        let folder = tempfile::tempdir().unwrap();
        let annotations = folder.path().join("captions.json");
        std::fs::write(&annotations, text).unwrap();
        read_split(&CocoSplit { annotations, images: "/images".into() })
    }

    #[test]
    fn captions_find_their_images() {
        let items = read_text(
            r#"{"info": {"year": 2014}, "licenses": [],
                "annotations": [{"image_id": 7, "id": 1, "caption": "A cat.\n"}, {"image_id": 3, "id": 2, "caption": "A dog"},
                                {"image_id": 7, "id": 3, "caption": "One cat"}, {"image_id": 5, "id": 4, "caption": " "}],
                "images": [{"id": 3, "file_name": "b.jpg", "height": 2}, {"id": 7, "file_name": "a/c.jpg"},
                           {"id": 4, "file_name": "silent.jpg"}, {"id": 5, "file_name": "blank.jpg"}]}"#,
        )
        .unwrap();
        let names: Vec<_> = items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["b.jpg", "a/c.jpg"]);
        assert_eq!(items[1].captions, ["A cat.", "One cat"]);
        assert_eq!(items[1].image, ImageRef::File("/images/a/c.jpg".into()));
    }

    #[test]
    fn a_caption_of_an_unknown_image_is_named() {
        let text =
            r#"{"images": [{"id": 3, "file_name": "b.jpg"}], "annotations": [{"image_id": -8, "caption": "A cat"}]}"#;
        let error = read_text(text).unwrap_err().to_string();
        assert!(error.contains("captions.json: ") && error.contains("image -8"), "{error}");
    }

    #[test]
    fn an_id_given_twice_is_named() {
        let text =
            r#"{"images": [{"id": 3, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}], "annotations": []}"#;
        assert!(read_text(text).unwrap_err().to_string().contains("two images have the id 3"));
    }

    #[test]
    fn a_path_out_of_the_folder_is_refused() {
        for name in ["../secret.jpg", "/etc/passwd"] {
            let text = format!(r#"{{"images": [{{"id": 3, "file_name": "{name}"}}], "annotations": []}}"#);
            assert!(read_text(&text).unwrap_err().to_string().contains("leads out of"));
        }
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = format!(r#"{{"images": [], "licenses": {}"#, "[".repeat(1_000_000));
        assert!(read_text(&deep).unwrap_err().to_string().contains("captions.json: "));
    }
}
