//! The formats that only references have: Karpathy's JSON, VizWiz's flags and nocaps' domains.

use std::collections::{HashMap, HashSet};

use metric_catalogue::names::{self, NOCAPS_DOMAINS};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::document::{
    CaptionDocument, CaptionsById, FormatError, ImageId, ListElement, MapValue, captions_of_map, group_annotations,
    take_annotations,
};
use super::name_matching::{ImageNames, NameKind, name_kinds};
use super::single_line;

/// The split of Karpathy's JSON that is scored by default.
const DEFAULT_SPLIT: &str = "test";
/// Karpathy's name of the split of those COCO validation images that are in none of his validation
/// and test splits. They are used for training.
const RESTVAL: &str = "restval";

/// A flag of VizWiz: set if it is `true` or a number other than 0.
#[derive(Default, Deserialize)]
#[serde(untagged)]
pub(super) enum VizWizFlag {
    Flag(bool),
    Number(i64),
    Other(IgnoredAny),
    #[default]
    Absent,
}

impl VizWizFlag {
    fn is_set(&self) -> bool {
        matches!(self, Self::Flag(true)) || matches!(self, Self::Number(number) if *number != 0)
    }
}

/// An image of COCO's or Karpathy's annotations. Fields that one format requires are absent in the
/// other.
#[derive(Default, Deserialize)]
pub(super) struct ImageEntry {
    #[serde(default)]
    id: Option<ImageId>,
    #[serde(default)]
    file_name: Option<String>,
    /// nocaps' domain, if it is a text; a number is ignored.
    #[serde(default)]
    domain: Option<ImageId>,
    #[serde(default)]
    filepath: Option<String>,
    #[serde(default)]
    filename: Option<String>,
    #[serde(default)]
    cocoid: Option<ImageId>,
    #[serde(default)]
    imgid: Option<ImageId>,
    #[serde(default)]
    split: Option<String>,
    #[serde(default)]
    sentences: Option<Vec<Sentence>>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// An image whose references were read elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceImage {
    /// The image's number, if all images have unique numbers.
    pub id: Option<u64>,
    /// The image's unique name, by which result files identify it if it has no number.
    pub name: String,
    /// The image's path, or its key in a tar file.
    pub path: String,
    /// The human captions.
    pub captions: Vec<String>,
    /// The image's domain, if it has one.
    pub domain: Option<&'static str>,
}

/// The references of all images, before they are matched with candidates.
pub(super) struct References {
    /// The names of each image.
    pub images: Vec<ImageNames>,
    /// The kinds of names that are unique; at least one.
    pub name_kinds: Vec<NameKind>,
    /// The captions of each image.
    pub captions: Vec<Vec<String>>,
    /// The domain of each image, if it has one.
    pub domains: Vec<Option<&'static str>>,
    /// The number of references that were left out because VizWiz marks them as rejected or
    /// precanned.
    pub excluded: usize,
}

impl References {
    /// The references in a file.
    pub fn from_document(document: CaptionDocument, split: Option<&str>) -> Result<Self, FormatError> {
        let without_split = |references: Result<Self, FormatError>| match split {
            Some(_) => Err(FormatError::NoSplits),
            None => references,
        };
        match document {
            CaptionDocument::List(elements) => without_split(Self::from_coco(elements, Vec::new())),
            CaptionDocument::Map(mut entries) => match (take_annotations(&mut entries), take_images(&mut entries)) {
                (Some(elements), images) => without_split(Self::from_coco(elements, images.unwrap_or_default())),
                (None, Some(images)) if images.iter().any(|image| image.sentences.is_some()) => {
                    Self::from_karpathy(images, split.unwrap_or(DEFAULT_SPLIT))
                }
                (None, Some(_)) => Err(FormatError::ImagesWithoutCaptions),
                (None, None) => without_split(captions_of_map(entries).and_then(|groups| {
                    // Keys are ids or paths, and the file does not say which, so they count as
                    // both.
                    Self::from_captions(groups, 0, &|id| Some(id.to_owned()))
                })),
            },
        }
    }

    /// References from captions by id; `path_of` returns the path of the image with an id, if it
    /// has a path.
    fn from_captions(
        groups: CaptionsById,
        excluded: usize,
        path_of: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, FormatError> {
        if groups.is_empty() {
            return Err(FormatError::NoCaptions);
        }
        let image_names = |id: &str| ImageNames { id: Some(id.to_owned()), name: None, path: path_of(id) };
        let images: Vec<ImageNames> = groups.iter().map(|(id, _)| image_names(id)).collect();
        let captions = groups.into_iter().map(|(_, captions)| captions).collect();
        let name_kinds = name_kinds(&images);
        Ok(Self { domains: vec![None; images.len()], images, name_kinds, captions, excluded })
    }

    fn from_coco(elements: Vec<ListElement>, images: Vec<ImageEntry>) -> Result<Self, FormatError> {
        let (mut excluded_ids, mut accepted) = (Vec::new(), Vec::with_capacity(elements.len()));
        for (index, element) in elements.into_iter().enumerate() {
            match element {
                ListElement::Annotation { image_id, is_rejected, is_precanned, .. }
                    if is_rejected.is_set() || is_precanned.is_set() =>
                {
                    excluded_ids.push(String::from(image_id));
                }
                element => accepted.push((index, element)),
            }
        }
        let mut groups = group_annotations(accepted)?;
        // Images whose captions are all excluded stay in the list, without captions.
        let mut ids_with_captions: HashSet<String> = groups.iter().map(|(id, _)| id.clone()).collect();
        let excluded = excluded_ids.len();
        groups.extend(
            excluded_ids.into_iter().filter(|id| ids_with_captions.insert(id.clone())).map(|id| (id, Vec::new())),
        );
        let listed: HashMap<String, ImageEntry> = images.into_iter().filter_map(ImageEntry::with_id).collect();
        let domains = groups.iter().map(|(id, _)| listed.get(id).and_then(ImageEntry::domain)).collect();
        let file_name = |id: &str| listed.get(id)?.file_name.clone();
        // Results have no list of images, but their ids may be file names.
        let own_id = |id: &str| Some(id.to_owned());
        let path_of: &dyn Fn(&str) -> Option<String> = if listed.is_empty() { &own_id } else { &file_name };
        Ok(Self { domains, ..Self::from_captions(groups, excluded, path_of)? })
    }

    fn from_karpathy(entries: Vec<ImageEntry>, split: &str) -> Result<Self, FormatError> {
        let Some(split) = names::canonical_split(split) else {
            return Err(FormatError::UnknownSplit(split.to_owned()));
        };
        let (mut images, mut captions) = (Vec::new(), Vec::new());
        for (index, image) in entries.into_iter().enumerate() {
            let ImageEntry { filepath, filename, cocoid, imgid, split: image_split, sentences, .. } = image;
            let (Some(filename), Some(image_split), Some(sentences)) = (filename, image_split, sentences) else {
                return Err(FormatError::IncompleteImage(index + 1));
            };
            let image_split = if image_split == RESTVAL { Some("train") } else { names::canonical_split(&image_split) };
            if image_split != Some(split) {
                continue;
            }
            let path = filepath.filter(|folder| !folder.is_empty()).map(|folder| format!("{folder}/{filename}"));
            let id = cocoid.or(imgid).map(String::from);
            images.push(ImageNames { id, name: None, path: Some(path.unwrap_or(filename)) });
            captions.push(sentences.iter().map(|sentence| single_line(&sentence.raw)).collect());
        }
        if captions.is_empty() {
            return Err(FormatError::EmptySplit(split));
        }
        let name_kinds = name_kinds(&images);
        if name_kinds.is_empty() {
            return Err(FormatError::DuplicateImages(split));
        }
        Ok(Self { domains: vec![None; captions.len()], images, name_kinds, captions, excluded: 0 })
    }

    /// References that were read elsewhere. The [`ReferenceImage::name`] of each image is unique.
    pub fn from_images(images: Vec<ReferenceImage>) -> Self {
        let image_names = |image: &ReferenceImage| ImageNames {
            id: image.id.map(|id| id.to_string()),
            name: Some(image.name.clone()),
            path: Some(image.path.clone()),
        };
        let names: Vec<ImageNames> = images.iter().map(image_names).collect();
        let name_kinds = name_kinds(&names);
        let domains = images.iter().map(|image| image.domain).collect();
        let captions_of = |image: ReferenceImage| image.captions.iter().map(|caption| single_line(caption)).collect();
        let captions = images.into_iter().map(captions_of).collect();
        Self { images: names, name_kinds, captions, domains, excluded: 0 }
    }
}

impl ImageEntry {
    /// The entry by its id, if it has one.
    fn with_id(mut self) -> Option<(String, Self)> {
        Some((self.id.take()?.into(), self))
    }

    /// The image's domain, if it is one of nocaps' domains.
    fn domain(&self) -> Option<&'static str> {
        let Some(ImageId::Text(domain)) = &self.domain else { return None };
        NOCAPS_DOMAINS.into_iter().find(|name| *name == domain)
    }
}

/// Takes the list of images out of a map that has one.
fn take_images(entries: &mut Vec<(String, MapValue)>) -> Option<Vec<ImageEntry>> {
    let is_image_list = |(name, value): &(String, MapValue)| {
        name == "images"
            && matches!(value, MapValue::List(elements) if matches!(elements[..], [ListElement::Image(_), ..]))
    };
    let MapValue::List(elements) = entries.swap_remove(entries.iter().position(is_image_list)?).1 else { return None };
    let image = |element| match element {
        ListElement::Image(image) => *image,
        _ => ImageEntry::default(),
    };
    Some(elements.into_iter().map(image).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::CaptionSet;
    use super::super::tests::message;
    use super::ReferenceImage;
    use crate::{Error, MetricFiles, Metrics};

    fn captions(references: &str, candidates: &str, split: Option<&str>) -> Result<CaptionSet, Error> {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["refs.json", "cands.json"].map(|name| folder.path().join(name));
        std::fs::write(&paths[0], references).unwrap();
        std::fs::write(&paths[1], candidates).unwrap();
        CaptionSet::read(&paths[0], &paths[1], split)
    }

    const KARPATHY: &str = r#"{"dataset": "coco", "images": [
        {"filepath": "val2014", "sentids": [1, 2], "filename": "a.jpg", "imgid": 0, "split": "test", "cocoid": 391895,
         "sentences": [{"tokens": ["a", "man"], "raw": "A man\nrides. ", "imgid": 0, "sentid": 1}, {"raw": "Two"}]},
        {"filepath": "train2014", "filename": "b.jpg", "imgid": 1, "split": "restval", "cocoid": 7, "sentences": [{"raw": "b"}]},
        {"filepath": "train2014", "filename": "c.jpg", "imgid": 2, "split": "train", "cocoid": 8, "sentences": [{"raw": "c"}]},
        {"filepath": "train2014", "filename": "a.jpg", "imgid": 3, "split": "train", "cocoid": 9, "sentences": [{"raw": "d"}]}]}"#;

    #[test]
    fn karpathy_json_is_read_by_split() {
        let set = captions(KARPATHY, r#"[{"image_id": 391895, "caption": "x"}]"#, None).unwrap();
        assert_eq!(
            (set.ids, set.items),
            (vec!["391895".to_owned()], vec![crate::item("x", &["A man rides. ", "Two"])])
        );
        let set = captions(KARPATHY, r#"{"7": "x", "8": "y"}"#, Some("train")).unwrap();
        assert_eq!((set.ids.join(" "), set.images_without_candidate), ("7 8".into(), 1));
        for (candidates, split, expected) in [
            (
                r#"{"7": "x"}"#,
                None,
                "has no references for 1 of the candidates' images, such as \"7\"; its images are named \"391895\", \"val2014/a.jpg\", ",
            ),
            (r#"{"7": "x"}"#, Some("dev"), "has no images of split `val`"),
            (r#"{"7": "x"}"#, Some("rest"), "unknown split `rest`"),
        ] {
            let problem = message(&captions(KARPATHY, candidates, split).unwrap_err());
            assert!(problem.starts_with("refs.json: ") && problem.contains(expected), "{problem}");
        }
        let problem = message(&captions(r#"{"7": ["x"]}"#, r#"{"7": "x"}"#, Some("test")).unwrap_err());
        assert!(problem.contains("a split can be selected only in Karpathy's JSON"), "{problem}");
        let broken = KARPATHY.replace(r#""filename": "b.jpg","#, "");
        let problem = message(&captions(&broken, r#"{"7": "x"}"#, Some("train")).unwrap_err());
        assert!(problem.contains("entry 2 of `images` lacks"), "{problem}");
        let problem = message(&captions(r#"{"7": ["x"]}"#, KARPATHY, None).unwrap_err());
        assert!(problem.starts_with("cands.json: "), "{problem}");
    }

    #[test]
    fn candidates_are_matched_by_unique_names_only() {
        let by_path = captions(KARPATHY, r#"{"train2014/a.jpg": "x", "train2014/c.jpg": "y"}"#, Some("train")).unwrap();
        assert_eq!(by_path.ids, ["train2014/c.jpg", "train2014/a.jpg"]);
        let by_name = captions(KARPATHY, r#"{"c.jpg": "y"}"#, Some("train")).unwrap();
        assert_eq!(
            (by_name.ids, by_name.notes),
            (vec!["c.jpg".into()], vec!["images are matched by file name".into()])
        );
    }

    #[test]
    fn coco_images_are_matched_by_file_names() {
        let references = r#"{"images": [{"id": 3, "file_name": "val/a.jpg"}, {"id": 4, "file_name": "val/b.jpg"}],
            "annotations": [{"image_id": 4, "caption": "b"}, {"image_id": 3, "caption": "a"}]}"#;
        let by_id = captions(references, r#"{"3": "x", "4": "y"}"#, None).unwrap();
        assert_eq!((by_id.ids.join(" "), by_id.notes.len()), ("4 3".into(), 0));
        for candidates in [
            r#"[{"image_id": "a.jpg", "caption": "x"}, {"image_id": "b.jpg", "caption": "y"}]"#,
            r#"{"val/a.jpg": "x", "val/b.jpg": "y"}"#,
            r#"{"a": "x", "b": "y"}"#,
            r#"{"/elsewhere/a.png": "x", "/elsewhere/b.png": "y"}"#,
        ] {
            let set = captions(references, candidates, None).unwrap();
            assert_eq!(set.items, by_id.items, "{candidates}");
            assert!(set.notes[0].starts_with("images are matched by "), "{:?}", set.notes);
        }
    }

    #[test]
    fn references_of_a_run_are_matched_with_a_file_of_candidates() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cands.json");
        let image = |id: Option<u64>, name: &str, captions: &[&str]| ReferenceImage {
            id,
            name: name.into(),
            path: format!("val/{name}"),
            captions: captions.iter().map(|&text| text.into()).collect(),
            domain: None,
        };
        let images = [image(Some(3), "a.jpg", &["a\nb"]), image(Some(4), "b.jpg", &["c"])];
        let compared = |candidates: &str, images: &[ReferenceImage]| {
            std::fs::write(&path, candidates).unwrap();
            CaptionSet::with_references(Path::new("run.yaml"), images.to_vec(), &path)
        };
        let set = compared(r#"[{"image_id": 4, "caption": "y"}]"#, &images).unwrap();
        assert_eq!(
            (set.ids, set.items, set.images_without_candidate),
            (vec!["4".into()], vec![crate::item("y", &["c"])], 1)
        );
        let set = compared(r#"{"a.jpg": "x", "b.jpg": "y"}"#, &images).unwrap();
        assert_eq!((set.ids.join(" "), set.items[0].references[0].as_str()), ("a.jpg b.jpg".into(), "a b"));
        let problem = compared(r#"{"q.jpg": "x"}"#, &images).unwrap_err().to_string();
        assert!(problem.contains("its images are named \"3\", \"a.jpg\", \"val/a.jpg\", "), "{problem}");
        let problem = compared(r#"{"3": "x"}"#, &[image(Some(3), "a.jpg", &[])]).unwrap_err().to_string();
        assert_eq!(problem, "run.yaml: image \"3\" has no references; add some or remove its candidate");
        let problem = compared(r#"{"3": "x"}"#, &[]).unwrap_err().to_string();
        assert_eq!(problem, "run.yaml: the split has no images");
    }

    #[test]
    fn rejected_and_precanned_references_of_vizwiz_are_left_out() {
        let references = r#"{"info": {}, "images": [{"file_name": "a.jpg", "id": 1, "text_detected": true}], "annotations": [
            {"caption": "Quality issues are too severe.", "image_id": 1, "is_precanned": true, "is_rejected": false, "id": 1},
            {"caption": "a can", "image_id": 1, "is_precanned": false, "is_rejected": false, "id": 2},
            {"caption": "spam", "image_id": 2, "is_precanned": false, "is_rejected": true, "id": 3},
            {"caption": "", "image_id": 3, "is_precanned": 0, "is_rejected": 0, "id": 4}]}"#;
        let set = captions(references, r#"{"1": "a can", "2": "x"}"#, None).unwrap();
        assert_eq!((set.ids, set.items), (vec!["1".to_owned()], vec![crate::item("a can", &["a can"])]));
        assert_eq!(
            set.notes,
            [
                "2 references that are marked as rejected or precanned are left out; 1 images have no others and are left out"
            ]
        );
    }

    #[test]
    fn nocaps_images_are_also_scored_by_domain() {
        let references = r#"{"images": [
            {"id": 0, "open_images_id": "0013ea", "file_name": "0013ea.jpg", "domain": "in-domain", "coco_url": "x"},
            {"id": 1, "file_name": "b.jpg", "domain": "out-domain"}, {"id": 2, "file_name": "c.jpg", "domain": 5}],
            "annotations": [{"image_id": 0, "caption": "a cat"}, {"image_id": 1, "caption": "a dog"},
                            {"image_id": 2, "caption": "a bus"}]}"#;
        let set = captions(references, r#"{"0": "a cat", "1": "a tram", "2": "a bus"}"#, None).unwrap();
        assert_eq!(set.domains, [Some("in-domain"), Some("out-domain"), None]);
        let report = set.score(&Metrics::open(&MetricFiles::default()).unwrap());
        assert!(report.domains["in-domain"]["bleu_1"] > 0.99 && report.domains["out-domain"]["bleu_1"] < 0.51);
        let text = references.replace("annotations", "other");
        let problem = message(&captions(&text, r#"{"0": "a cat"}"#, None).unwrap_err());
        assert_eq!(problem, "refs.json: its images have no captions: references are needed to score against");
    }

    #[test]
    fn deeply_nested_images_are_refused() {
        let deep = format!(r#"{{"images": [{{"sentences": {}"#, "[".repeat(1_000_000));
        let problem = message(&captions(&deep, r#"{"0": "a cat"}"#, None).unwrap_err());
        assert!(problem.contains("recursion limit exceeded"), "{problem}");
    }
}
