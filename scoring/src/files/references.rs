//! References in the forms that only they have: Karpathy's JSON, VizWiz's marks and nocaps' domains.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use statistics::names::DOMAINS;

use super::{Document, Element, Groups, Id, Value, by_image, by_key, one_line, take_annotations};

/// The split of Karpathy's JSON that is scored by default.
const DEFAULT_SPLIT: &str = "test";
/// The splits that may be asked for.
const SPLITS: [&str; 3] = ["train", "val", "test"];

/// A mark of VizWiz: `true`, or a number other than 0.
#[derive(Default, Deserialize)]
#[serde(untagged)]
pub(super) enum Mark {
    Flag(bool),
    Number(i64),
    Other(IgnoredAny),
    #[default]
    Absent,
}

impl Mark {
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

/// What candidates are compared with.
pub(super) struct References {
    /// Ways to identify the images, each with an id an image: the one of the file, and for Karpathy's JSON further ones.
    namings: Vec<Vec<String>>,
    captions: Vec<Vec<String>>,
    domains: Vec<Option<&'static str>>,
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
                (None, None) => no_split(by_key(entries).and_then(|groups| Self::of_groups(groups, 0))),
            },
        }
    }

    fn of_groups(groups: Groups, marked: usize) -> Result<Self, String> {
        if groups.is_empty() {
            return Err("the file has no captions".into());
        }
        let (ids, captions): (Vec<String>, Vec<Vec<String>>) = groups.into_iter().unzip();
        Ok(Self { domains: vec![None; ids.len()], namings: vec![ids], captions, marked })
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
        let mut references = Self::of_groups(groups, count)?;
        let domains: HashMap<String, &str> = images.into_iter().filter_map(Image::domain).collect();
        references.domains = references.namings[0].iter().map(|id| domains.get(id).copied()).collect();
        Ok(references)
    }

    fn of_karpathy(images: Vec<Image>, split: &str) -> Result<Self, String> {
        if !SPLITS.contains(&split) {
            return Err(format!("unknown split `{split}`: expected one of `train`, `val`, `test`"));
        }
        let mut namings: [Vec<Option<String>>; 3] = Default::default();
        let mut captions = Vec::new();
        for (index, image) in images.into_iter().enumerate() {
            let Image { filepath, filename, cocoid, imgid, split: own, sentences, .. } = image;
            let (Some(filename), Some(own), Some(sentences)) = (filename, own, sentences) else {
                return Err(format!("entry {} of `images` lacks `filename`, `split` or `sentences`", index + 1));
            };
            if own != split && !(own == "restval" && split == "train") {
                continue;
            }
            let path = filepath.filter(|folder| !folder.is_empty()).map(|folder| format!("{folder}/{filename}"));
            namings[2].push(Some(path.unwrap_or_else(|| filename.clone())));
            namings[1].push(Some(filename));
            namings[0].push(cocoid.or(imgid).map(String::from));
            captions.push(sentences.iter().map(|sentence| one_line(&sentence.raw)).collect());
        }
        if captions.is_empty() {
            return Err(format!("has no images of split `{split}`"));
        }
        let namings: Vec<Vec<String>> = namings.into_iter().filter_map(distinct).collect();
        if namings.is_empty() {
            return Err(format!("lists images of split `{split}` more than once; keep one of each"));
        }
        Ok(Self { domains: vec![None; captions.len()], namings, captions, marked: 0 })
    }

    /// Id, domain and captions of each image, in the naming that knows all candidates.
    pub fn named_as<T>(self, candidates: &HashMap<String, T>) -> Vec<(String, Option<&'static str>, Vec<String>)> {
        let Self { mut namings, captions, domains, .. } = self;
        let knows_all = |names: &Vec<String>| {
            let known = names.iter().filter(|name| candidates.contains_key(*name)).count();
            known == candidates.len()
        };
        let chosen = namings.iter().position(knows_all).unwrap_or(0);
        let ids = namings.swap_remove(chosen);
        ids.into_iter().zip(domains).zip(captions).map(|((id, domain), captions)| (id, domain, captions)).collect()
    }
}

impl Image {
    /// Its id and domain, if it has both.
    fn domain(self) -> Option<(String, &'static str)> {
        let (id, Id::Text(domain)) = (self.id?, self.domain?) else { return None };
        Some((id.into(), DOMAINS.into_iter().find(|known| *known == domain)?))
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

/// The names, if all images have one and no two the same.
fn distinct(names: Vec<Option<String>>) -> Option<Vec<String>> {
    let names: Vec<String> = names.into_iter().collect::<Option<_>>()?;
    let mut seen = HashSet::with_capacity(names.len());
    names.iter().all(|name| seen.insert(name)).then_some(())?;
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::super::Captions;
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
            (r#"{"7": "x"}"#, None, "has no references of 1 of the candidates' images, \"7\" for one"),
            (r#"{"7": "x"}"#, Some("val"), "has no images of split `val`"),
            (r#"{"7": "x"}"#, Some("dev"), "unknown split `dev`"),
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
        assert_eq!(by_name.ids, ["c.jpg"]);
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
