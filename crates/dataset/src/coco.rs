//! COCO's caption annotations, one file per split (<https://cocodataset.org/#format-data>, section
//! 4).
//!
//! VizWiz and nocaps use the same format. In VizWiz, captions that are marked as rejected or
//! precanned ("quality issues are too severe ...") describe no image and are skipped. In nocaps,
//! images have a `domain`. Files of images whose captions are secret, on an evaluation server, have
//! no `annotations`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

use config::{Coco, CocoSplit};
use metric_catalogue::names::NOCAPS_DOMAINS;
use serde::Deserialize;

use crate::annotations::{LenientValue, clean_captions, join_below, read_json};
use crate::image_names::LongerName;
use crate::{Error, ImageRef, Item, Split, Splits, image_names};

#[derive(Deserialize)]
#[serde(expecting = "an object with `images` and `annotations`, as COCO's captions_*.json are")]
struct Annotations {
    images: Vec<Image>,
    #[serde(default)]
    annotations: Option<Vec<Annotation>>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
    file_name: PathBuf,
    #[serde(default)]
    domain: Option<LenientValue>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: i64,
    caption: String,
    #[serde(default)]
    is_rejected: Option<LenientValue>,
    #[serde(default)]
    is_precanned: Option<LenientValue>,
}

impl Annotation {
    /// Whether VizWiz marks the caption as rejected or precanned.
    fn is_rejected_or_precanned(&self) -> bool {
        [&self.is_rejected, &self.is_precanned].into_iter().flatten().any(LenientValue::is_set)
    }
}

/// Reads the `requested` splits for which `settings` has a file.
///
/// # Errors
/// A file cannot be read or has a wrong format: two images have one id, a caption is of an image
/// that is not listed, or a path leads out of the folder of images.
pub fn read_splits(settings: &Coco, requested: &[Split]) -> Result<Splits, Error> {
    let mut splits = Splits::default();
    for &split in requested {
        let settings = match split {
            Split::Train => Some(&settings.train),
            Split::Validation => Some(&settings.validation),
            Split::Test => settings.test.as_ref(),
        };
        let Some(settings) = settings else { continue };
        let (items, notes) = read_split(settings)?;
        *splits.get_mut(split) = items;
        splits.notes.extend(notes);
    }
    // Names are the whole paths already.
    let longer_names: [LongerName<'_>; 0] = [];
    image_names::make_unique(&mut splits, &longer_names);
    Ok(splits)
}

/// The images of one file in the order of its `images`: those with captions, or all if the file has
/// no annotations. Also returns notes on skipped images and captions.
fn read_split(settings: &CocoSplit) -> Result<(Vec<Item>, Vec<String>), Error> {
    let file = settings.annotations.display();
    let format_error = |problem: String| Error::invalid(&file, problem);
    let Annotations { images, annotations } = read_json(&settings.annotations)?;
    let annotations = annotations.unwrap_or_default();
    let has_no_annotations = annotations.is_empty();
    let mut captions: HashMap<i64, Vec<String>> = HashMap::with_capacity(images.len());
    for Image { id, .. } in &images {
        match captions.entry(*id) {
            Entry::Occupied(_) => return Err(format_error(format!("two images have the id {id}"))),
            Entry::Vacant(vacant) => vacant.insert(Vec::new()),
        };
    }
    let mut rejected = 0_u64;
    for annotation in annotations {
        let image_id = annotation.image_id;
        let image_captions = captions.get_mut(&image_id);
        let image_captions = image_captions
            .ok_or_else(|| format_error(format!("a caption is of the image {image_id}, which is not listed")))?;
        if annotation.is_rejected_or_precanned() {
            rejected += 1;
        } else {
            image_captions.extend(clean_captions([annotation.caption]));
        }
    }
    let mut notes = Vec::new();
    if rejected > 0 {
        notes.push(format!("{file}: left out {rejected} captions that are marked as rejected or precanned"));
    }
    let image_count = images.len();
    let mut items = Vec::with_capacity(image_count);
    let mut first_without_captions = None;
    for Image { id, file_name, domain } in images {
        let path = join_below(&settings.images, &file_name);
        let path =
            path.ok_or_else(|| format_error(format!("{} leads out of the images' folder", file_name.display())))?;
        let captions = captions.remove(&id).unwrap_or_default();
        let name = file_name.to_string_lossy();
        if captions.is_empty() && !has_no_annotations {
            first_without_captions.get_or_insert_with(|| name.into_owned());
            continue;
        }
        let domain = domain.as_ref().and_then(LenientValue::text);
        let domain = domain.and_then(|domain| NOCAPS_DOMAINS.into_iter().find(|name| *name == domain));
        let item = Item::new(&name, captions, ImageRef::File(path));
        items.push(Item { id: u64::try_from(id).ok(), domain, ..item });
    }
    if let Some(name) = first_without_captions {
        notes.push(format!("{file}: left out {} images without captions, {name} for one", image_count - items.len()));
    }
    Ok((items, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Item>, Error> {
        read_with_notes(text).map(|(items, _)| items)
    }

    fn read_with_notes(text: &str) -> Result<(Vec<Item>, Vec<String>), Error> {
        let folder = tempfile::tempdir().unwrap();
        let annotations = folder.path().join("captions.json");
        std::fs::write(&annotations, text).unwrap();
        read_split(&CocoSplit { annotations, images: "/images".into() })
    }

    #[test]
    fn captions_are_assigned_to_their_images() {
        let items = read_text(
            r#"{"info": {"year": 2014}, "licenses": [],
                "annotations": [{"image_id": 7, "id": 1, "caption": "A cat.\n"}, {"image_id": 3, "id": 2, "caption": "A dog"},
                                {"image_id": 7, "id": 3, "caption": "One cat"}, {"image_id": 5, "id": 4, "caption": " "}],
                "images": [{"id": 3, "file_name": "b.jpg", "height": 2}, {"id": 7, "file_name": "a/c.jpg"},
                           {"id": 4, "file_name": "captionless.jpg"}, {"id": 5, "file_name": "blank.jpg"}]}"#,
        )
        .unwrap();
        let names: Vec<_> = items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["b.jpg", "a/c.jpg"]);
        assert_eq!(items[1].captions, ["A cat.", "One cat"]);
        assert_eq!(items[1].image, ImageRef::File("/images/a/c.jpg".into()));
    }

    #[test]
    fn rejected_and_precanned_captions_of_vizwiz_are_left_out_and_counted() {
        let caption = |image: u64, text: &str, precanned: &str, rejected: &str| {
            format!(
                r#"{{"caption": "{text}", "image_id": {image}, "is_precanned": {precanned}, "is_rejected": {rejected},
                     "id": 1, "text_detected": true}}"#
            )
        };
        let severe = "Quality issues are too severe to recognize visual content.";
        let annotations = [
            caption(0, "a can", "false", "false"),
            caption(0, severe, "true", "false"),
            caption(0, "spam", "false", "true"),
            caption(0, "one can", "0", "null"),
            caption(1, severe, "1", "0"),
        ];
        let (items, notes) = read_with_notes(&format!(
            r#"{{"info": {{}}, "images": [
                {{"file_name": "VizWiz_train_00000000.jpg", "vizwiz_url": "x", "id": 0, "text_detected": true}},
                {{"file_name": "VizWiz_train_00000001.jpg", "vizwiz_url": "x", "id": 1, "text_detected": false}}],
                "annotations": [{}]}}"#,
            annotations.join(",")
        ))
        .unwrap();
        assert_eq!(items.len(), 1);
        assert_eq!((items[0].id, &items[0].captions[..]), (Some(0), &["a can".to_owned(), "one can".to_owned()][..]));
        assert!(notes[0].ends_with("left out 3 captions that are marked as rejected or precanned"), "{notes:?}");
        assert!(notes[1].ends_with("left out 1 images without captions, VizWiz_train_00000001.jpg for one"));
    }

    #[test]
    fn images_of_nocaps_have_domains_and_no_captions() {
        let image = |id: u64, domain: &str| {
            format!(
                r#"{{"id": {id}, "open_images_id": "0013ea", "file_name": "{id}.jpg", "coco_url": "https://x/{id}.jpg",
                     "date_captured": "2018-11-06", "domain": {domain}}}"#
            )
        };
        let images = ["\"in-domain\"", "\"near-domain\"", "\"out-domain\"", "\"flickr.com\"", "7", "null"];
        let images: Vec<String> = (0..).zip(images).map(|(id, domain)| image(id, domain)).collect();
        for annotations in ["", r#", "annotations": []"#, r#", "annotations": null"#] {
            let text = format!(r#"{{"licenses": [], "images": [{}]{annotations}}}"#, images.join(","));
            let (items, notes) = read_with_notes(&text).unwrap();
            let domains: Vec<_> = items.iter().map(|item| item.domain).collect();
            assert_eq!(domains, [Some("in-domain"), Some("near-domain"), Some("out-domain"), None, None, None]);
            assert!(items.iter().all(|item| item.captions.is_empty()) && notes.is_empty());
        }
    }

    #[test]
    fn a_caption_of_an_unknown_image_is_an_error() {
        let text =
            r#"{"images": [{"id": 3, "file_name": "b.jpg"}], "annotations": [{"image_id": -8, "caption": "A cat"}]}"#;
        let error = read_text(text).unwrap_err().to_string();
        assert!(error.contains("captions.json: ") && error.contains("image -8"), "{error}");
    }

    #[test]
    fn a_duplicate_image_id_is_an_error() {
        let text =
            r#"{"images": [{"id": 3, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}], "annotations": []}"#;
        assert!(read_text(text).unwrap_err().to_string().contains("two images have the id 3"));
    }

    #[test]
    fn a_path_that_leads_out_of_the_folder_is_refused() {
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
