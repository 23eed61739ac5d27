//! References in the forms that only they have: Karpathy's JSON, VizWiz's marks and nocaps' domains.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use statistics::names::{self, DOMAINS};

use super::matching::{Names, Naming, namings};
use super::{Document, Element, Groups, Id, Value, by_image, by_key, one_line, take_annotations};

/// The split of Karpathy's JSON that is scored by default.
const DEFAULT_SPLIT: &str = "test";
/// Karpathy's name of validation images that are trained on.
const RESTVAL: &str = "restval";

/// A mark of VizWiz: `true`, or a number other than 0.
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

/// An image of COCO's or Karpathy's annotations. What the one form requires is absent in the other.
#[derive(Default, Deserialize)]
pub(super) struct Image {
    #[serde(default)]
    id: Option<Id>,
    #[serde(default)]
    file_name: Option<String>,
    #[serde(default)]
    domain: Option<Id>,
    #[serde(default)]
    filepath: Option<String>,
    #[serde(default)]
    filename: Option<String>,
    #[serde(default)]
    cocoid: Option<Id>,
    #[serde(default)]
    imgid: Option<Id>,
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
    /// Its number, where all images have one of their own.
    pub id: Option<u64>,
    /// Its name in result files, where it has no number. No other image has this name.
    pub name: String,
    /// Its path, or its key in a tar.
    pub path: String,
    /// The human captions.
    pub captions: Vec<String>,
    /// The domain that it belongs to, where it has one.
    pub domain: Option<&'static str>,
}

/// What candidates are compared with.
pub(super) struct References {
    /// What the images are called.
    pub images: Vec<Names>,
    /// Names of the images; at least one kind.
    pub namings: Vec<Naming>,
    /// Captions of each image.
    pub captions: Vec<Vec<String>>,
    /// The domain of each image, where it has one.
    pub domains: Vec<Option<&'static str>>,
    /// References that are marked as rejected or precanned, and left out.
    pub marked: usize,
}

impl References {
    /// Of a file's content. Says what is wrong with it.
    pub fn new(document: Document, split: Option<&str>) -> Result<Self, String> {
        let no_split = |references: Result<Self, String>| match split {
            Some(_) => Err("a split can be chosen of Karpathy's JSON only; this file has another form".to_owned()),
            None => references,
        };
        match document {
            Document::List(elements) => no_split(Self::of_coco(elements, Vec::new())),
            Document::Map(mut entries) => match (take_annotations(&mut entries), take_images(&mut entries)) {
                (Some(elements), images) => no_split(Self::of_coco(elements, images.unwrap_or_default())),
                (None, Some(images)) if images.iter().any(|image| image.sentences.is_some()) => {
                    Self::of_karpathy(images, split.unwrap_or(DEFAULT_SPLIT))
                }
                (None, Some(_)) => Err("its images have no captions: references are needed to score against".into()),
                (None, None) => no_split(by_key(entries).and_then(|groups| {
                    // Keys are ids or paths: the file does not say which.
                    Self::of_groups(groups, 0, &|id| Some(id.to_owned()))
                })),
            },
        }
    }

    /// Of images that have other names than ids in `names`, by id.
    fn of_groups(groups: Groups, marked: usize, names: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        if groups.is_empty() {
            return Err("the file has no captions".into());
        }
        let called = |id: &str| Names { id: Some(id.to_owned()), name: None, path: names(id) };
        let images: Vec<Names> = groups.iter().map(|(id, _)| called(id)).collect();
        let captions = groups.into_iter().map(|(_, captions)| captions).collect();
        let namings = namings(&images);
        Ok(Self { domains: vec![None; images.len()], images, namings, captions, marked })
    }

    fn of_coco(elements: Vec<Element>, images: Vec<Image>) -> Result<Self, String> {
        let (mut marked, mut kept) = (Vec::new(), Vec::with_capacity(elements.len()));
        for (index, element) in elements.into_iter().enumerate() {
            match element {
                Element::Annotation { image_id, is_rejected, is_precanned, .. }
                    if is_rejected.is_set() || is_precanned.is_set() =>
                {
                    marked.push(String::from(image_id));
                }
                element => kept.push((index, element)),
            }
        }
        let mut groups = by_image(kept)?;
        // Images that have no other captions are known all the same.
        let mut known: HashSet<String> = groups.iter().map(|(id, _)| id.clone()).collect();
        let count = marked.len();
        groups.extend(marked.into_iter().filter(|id| known.insert(id.clone())).map(|id| (id, Vec::new())));
        let listed: HashMap<String, Image> = images.into_iter().filter_map(Image::with_id).collect();
        let domains = groups.iter().map(|(id, _)| listed.get(id).and_then(Image::domain)).collect();
        let file_name = |id: &str| listed.get(id)?.file_name.clone();
        // Results list no images, but may have names for ids.
        let own = |id: &str| Some(id.to_owned());
        let names: &dyn Fn(&str) -> Option<String> = if listed.is_empty() { &own } else { &file_name };
        Ok(Self { domains, ..Self::of_groups(groups, count, names)? })
    }

    fn of_karpathy(images: Vec<Image>, split: &str) -> Result<Self, String> {
        let Some(split) = names::split(split) else {
            return Err(format!("unknown split `{split}`: expected one of `train`, `val`, `test`"));
        };
        let (mut called, mut captions) = (Vec::new(), Vec::new());
        for (index, image) in images.into_iter().enumerate() {
            let Image { filepath, filename, cocoid, imgid, split: own, sentences, .. } = image;
            let (Some(filename), Some(own), Some(sentences)) = (filename, own, sentences) else {
                return Err(format!("entry {} of `images` lacks `filename`, `split` or `sentences`", index + 1));
            };
            let own = if own == RESTVAL { Some("train") } else { names::split(&own) };
            if own != Some(split) {
                continue;
            }
            let path = filepath.filter(|folder| !folder.is_empty()).map(|folder| format!("{folder}/{filename}"));
            let id = cocoid.or(imgid).map(String::from);
            called.push(Names { id, name: None, path: Some(path.unwrap_or(filename)) });
            captions.push(sentences.iter().map(|sentence| one_line(&sentence.raw)).collect());
        }
        if captions.is_empty() {
            return Err(format!("has no images of split `{split}`"));
        }
        let namings = namings(&called);
        if namings.is_empty() {
            return Err(format!("lists images of split `{split}` more than once; keep one of each"));
        }
        Ok(Self { domains: vec![None; captions.len()], images: called, namings, captions, marked: 0 })
    }

    /// Of images that were read elsewhere, none of which has the name of another.
    pub fn of_images(images: Vec<ReferenceImage>) -> Self {
        let called = |image: &ReferenceImage| Names {
            id: image.id.map(|id| id.to_string()),
            name: Some(image.name.clone()),
            path: Some(image.path.clone()),
        };
        let called: Vec<Names> = images.iter().map(called).collect();
        let namings = namings(&called);
        let domains = images.iter().map(|image| image.domain).collect();
        let one_lines = |image: ReferenceImage| image.captions.iter().map(|caption| one_line(caption)).collect();
        let captions = images.into_iter().map(one_lines).collect();
        Self { images: called, namings, captions, domains, marked: 0 }
    }
}

impl Image {
    /// Its id and the rest of it, if it has one.
    fn with_id(mut self) -> Option<(String, Self)> {
        Some((self.id.take()?.into(), self))
    }

    /// Its domain, if it has a known one.
    fn domain(&self) -> Option<&'static str> {
        let Some(Id::Text(domain)) = &self.domain else { return None };
        DOMAINS.into_iter().find(|known| known == domain)
    }
}

/// Takes the list of images out of a map that has one.
fn take_images(entries: &mut Vec<(String, Value)>) -> Option<Vec<Image>> {
    let images = |(name, value): &(String, Value)| {
        name == "images" && matches!(value, Value::List(elements) if matches!(elements[..], [Element::Image(_), ..]))
    };
    let Value::List(elements) = entries.swap_remove(entries.iter().position(images)?).1 else { return None };
    let image = |element| match element {
        Element::Image(image) => *image,
        _ => Image::default(),
    };
    Some(elements.into_iter().map(image).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Captions;
    use super::ReferenceImage;
    use crate::{Files, Metrics};

    fn captions(references: &str, candidates: &str, split: Option<&str>) -> Result<Captions, String> {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["refs.json", "cands.json"].map(|name| folder.path().join(name));
        std::fs::write(&paths[0], references).unwrap();
        std::fs::write(&paths[1], candidates).unwrap();
        Captions::read(&paths[0], &paths[1], split)
            .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    const KARPATHY: &str = r#"{"dataset": "coco", "images": [
        {"filepath": "val2014", "sentids": [1, 2], "filename": "a.jpg", "imgid": 0, "split": "test", "cocoid": 391895,
         "sentences": [{"tokens": ["a", "man"], "raw": "A man\nrides. ", "imgid": 0, "sentid": 1}, {"raw": "Two"}]},
        {"filepath": "train2014", "filename": "b.jpg", "imgid": 1, "split": "restval", "cocoid": 7, "sentences": [{"raw": "b"}]},
        {"filepath": "train2014", "filename": "c.jpg", "imgid": 2, "split": "train", "cocoid": 8, "sentences": [{"raw": "c"}]},
        {"filepath": "train2014", "filename": "a.jpg", "imgid": 3, "split": "train", "cocoid": 9, "sentences": [{"raw": "d"}]}]}"#;

    #[test]
    fn karpathys_json_is_read_by_split() {
        let found = captions(KARPATHY, r#"[{"image_id": 391895, "caption": "x"}]"#, None).unwrap();
        assert_eq!(
            (found.ids, found.items),
            (vec!["391895".to_owned()], vec![crate::item("x", &["A man rides. ", "Two"])])
        );
        let found = captions(KARPATHY, r#"{"7": "x", "8": "y"}"#, Some("train")).unwrap();
        assert_eq!((found.ids.join(" "), found.left_out), ("7 8".into(), 1));
        for (candidates, split, expected) in [
            (
                r#"{"7": "x"}"#,
                None,
                "has no references of 1 of the candidates' images, \"7\" for one; its images are called \"391895\", \"val2014/a.jpg\", ",
            ),
            (r#"{"7": "x"}"#, Some("dev"), "has no images of split `val`"),
            (r#"{"7": "x"}"#, Some("rest"), "unknown split `rest`"),
        ] {
            let problem = captions(KARPATHY, candidates, split).unwrap_err();
            assert!(problem.starts_with("refs.json: ") && problem.contains(expected), "{problem}");
        }
        let problem = captions(r#"{"7": ["x"]}"#, r#"{"7": "x"}"#, Some("test")).unwrap_err();
        assert!(problem.contains("a split can be chosen of Karpathy's JSON only"), "{problem}");
        let broken = KARPATHY.replace(r#""filename": "b.jpg","#, "");
        let problem = captions(&broken, r#"{"7": "x"}"#, Some("train")).unwrap_err();
        assert!(problem.contains("entry 2 of `images` lacks"), "{problem}");
        let problem = captions(r#"{"7": ["x"]}"#, KARPATHY, None).unwrap_err();
        assert!(problem.starts_with("cands.json: "), "{problem}");
    }

    #[test]
    fn candidates_may_go_by_names_that_are_distinct() {
        let by_path = captions(KARPATHY, r#"{"train2014/a.jpg": "x", "train2014/c.jpg": "y"}"#, Some("train")).unwrap();
        assert_eq!(by_path.ids, ["train2014/c.jpg", "train2014/a.jpg"]);
        let by_name = captions(KARPATHY, r#"{"c.jpg": "y"}"#, Some("train")).unwrap();
        assert_eq!(
            (by_name.ids, by_name.notes),
            (vec!["c.jpg".into()], vec!["images are matched by file name".into()])
        );
    }

    #[test]
    fn images_of_coco_may_go_by_file_names() {
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
            let found = captions(references, candidates, None).unwrap();
            assert_eq!(found.items, by_id.items, "{candidates}");
            assert!(found.notes[0].starts_with("images are matched by "), "{:?}", found.notes);
        }
    }

    #[test]
    fn references_may_be_read_elsewhere() {
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
            Captions::compare(Path::new("run.yaml"), images.to_vec(), &path).map_err(|error| error.to_string())
        };
        let found = compared(r#"[{"image_id": 4, "caption": "y"}]"#, &images).unwrap();
        assert_eq!((found.ids, found.items, found.left_out), (vec!["4".into()], vec![crate::item("y", &["c"])], 1));
        let found = compared(r#"{"a.jpg": "x", "b.jpg": "y"}"#, &images).unwrap();
        assert_eq!((found.ids.join(" "), found.items[0].references[0].as_str()), ("a.jpg b.jpg".into(), "a b"));
        let problem = compared(r#"{"q.jpg": "x"}"#, &images).unwrap_err();
        assert!(problem.contains("its images are called \"3\", \"a.jpg\", \"val/a.jpg\", "), "{problem}");
        let problem = compared(r#"{"3": "x"}"#, &[image(Some(3), "a.jpg", &[])]).unwrap_err();
        assert_eq!(problem, "run.yaml: image \"3\" has no references; add some or take out its candidate");
        let problem = compared(r#"{"3": "x"}"#, &[]).unwrap_err();
        assert_eq!(problem, "run.yaml: the split has no images");
    }

    #[test]
    fn marked_references_of_vizwiz_are_left_out() {
        let references = r#"{"info": {}, "images": [{"file_name": "a.jpg", "id": 1, "text_detected": true}], "annotations": [
            {"caption": "Quality issues are too severe.", "image_id": 1, "is_precanned": true, "is_rejected": false, "id": 1},
            {"caption": "a can", "image_id": 1, "is_precanned": false, "is_rejected": false, "id": 2},
            {"caption": "spam", "image_id": 2, "is_precanned": false, "is_rejected": true, "id": 3},
            {"caption": "", "image_id": 3, "is_precanned": 0, "is_rejected": 0, "id": 4}]}"#;
        let found = captions(references, r#"{"1": "a can", "2": "x"}"#, None).unwrap();
        assert_eq!((found.ids, found.items), (vec!["1".to_owned()], vec![crate::item("a can", &["a can"])]));
        assert_eq!(
            found.notes,
            [
                "2 references that are marked as rejected or precanned are left out; 1 images have no others and are left out"
            ]
        );
    }

    #[test]
    fn images_of_nocaps_are_scored_by_domain() {
        let references = r#"{"images": [
            {"id": 0, "open_images_id": "0013ea", "file_name": "0013ea.jpg", "domain": "in-domain", "coco_url": "x"},
            {"id": 1, "file_name": "b.jpg", "domain": "out-domain"}, {"id": 2, "file_name": "c.jpg", "domain": 5}],
            "annotations": [{"image_id": 0, "caption": "a cat"}, {"image_id": 1, "caption": "a dog"},
                            {"image_id": 2, "caption": "a bus"}]}"#;
        let found = captions(references, r#"{"0": "a cat", "1": "a tram", "2": "a bus"}"#, None).unwrap();
        assert_eq!(found.domains, [Some("in-domain"), Some("out-domain"), None]);
        let report = found.score(&Metrics::open(&Files::default()).unwrap());
        assert!(report.domains["in-domain"]["bleu_1"] > 0.99 && report.domains["out-domain"]["bleu_1"] < 0.51);
        let text = references.replace("annotations", "other");
        let problem = captions(&text, r#"{"0": "a cat"}"#, None).unwrap_err();
        assert_eq!(problem, "refs.json: its images have no captions: references are needed to score against");
    }

    #[test]
    fn images_without_captions_are_not_references() {
        let deep = format!(r#"{{"images": [{{"sentences": {}"#, "[".repeat(1_000_000));
        let problem = captions(&deep, r#"{"0": "a cat"}"#, None).unwrap_err();
        assert!(problem.contains("recursion limit exceeded"), "{problem}");
    }
}
