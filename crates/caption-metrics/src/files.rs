//! Reads references and candidates from JSON files, in the forms that captioners and COCO use.
//!
//! Both files may have any of these forms:
//!
//! - `{"ID": ["caption", ...], ...}` or `{"ID": "caption", ...}`;
//! - COCO's annotations, `{"annotations": [{"image_id": ID, "caption": "..."}, ...], ...}`;
//! - COCO's results, `[{"image_id": ID, "caption": "..."}, ...]`.
//!
//! References may also be Karpathy's `dataset_*.json`, of which one split is taken.
//!
//! Of COCO's relatives, VizWiz marks captions as rejected or precanned: such references are left out. nocaps gives images a
//! `domain`: scores are then also given by domain.
//!
//! An ID is a string or a whole number; `7` and `"7"` are the same. Line breaks and other control characters in captions
//! become spaces: pycocoevalcap would take what follows for the next caption.
//!
//! Files are UTF-8, with or without a byte-order mark. The path `-` is standard input.
//!
//! Both sides may name an image by its id, its path or its file name, each in its own way: the
//! first way that all candidates can be matched in is taken.
//!
//! Scored are the images that have a candidate, as in COCO's own evaluation of results; references of other images are
//! left out, from CIDEr's document frequencies, too.

pub mod judgements;
mod matching;
mod references;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

pub use self::matching::Names;
use self::matching::{MatchedCaptions, matched};
pub use self::references::ReferenceImage;
use self::references::{Image, References, VizWizFlag};
use crate::{Error, Item, Metrics, Report};

/// Candidates with their references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captions {
    /// The images' ids, in the order in which the references first name them.
    pub ids: Vec<String>,
    /// All that the references call the images.
    pub images: Vec<Names>,
    /// What is to be scored, in the same order.
    pub items: Vec<Item>,
    /// The domain of each item, where it has one.
    pub domains: Vec<Option<&'static str>>,
    /// How many images have references but no candidate.
    pub left_out: usize,
    /// What to know of how the two go together, one line each.
    pub notes: Vec<String>,
}

impl Captions {
    /// Reads both files; one of them may be [`STDIN`]. `split` says which split of Karpathy's JSON
    /// has the references, under any of the names that [`statistics::names::split`] knows; by
    /// default `test`.
    ///
    /// # Errors
    /// A file cannot be read, is not JSON in one of the forms, or has no captions; an image has no or several candidates
    /// where it should have one; a candidate has no references, or a blank one; `split` is given of references that have
    /// none. Both are standard input.
    pub fn read(references: &Path, candidates: &Path, split: Option<&str>) -> Result<Self, Error> {
        if is_stdin(references) && is_stdin(candidates) {
            return Err(Error::format(
                name(candidates),
                "can be read only once; name a file for the references or for the candidates",
            ));
        }
        let found = References::new(document(references)?, split);
        let found = found.map_err(|problem| Error::format(name(references), problem))?;
        Self::pair(name(references), found, read_candidates(candidates)?)
    }

    /// Compares a file of candidates, or [`STDIN`], with references that were read elsewhere;
    /// messages name `source` for these.
    ///
    /// # Errors
    /// As of [`read`](Self::read), or there are no images.
    pub fn compare(source: &Path, images: Vec<ReferenceImage>, candidates: &Path) -> Result<Self, Error> {
        if images.is_empty() {
            return Err(Error::format(source, "the split has no images"));
        }
        Self::pair(source, References::of_images(images), read_candidates(candidates)?)
    }

    fn pair(source: &Path, references: References, candidates: HashMap<String, String>) -> Result<Self, Error> {
        let References { images, namings, captions: groups, domains, marked } = references;
        let MatchedCaptions { names, mut candidates, note, examples } = matched(namings, candidates);
        let mut captions =
            Self { ids: vec![], images: vec![], items: vec![], domains: vec![], left_out: 0, notes: vec![] };
        captions.notes.extend(note);
        let mut void = 0;
        for (((id, group), domain), image) in names.into_iter().zip(groups).zip(domains).zip(images) {
            let Some(candidate) = candidates.remove(&id) else {
                captions.left_out += 1;
                continue;
            };
            if group.is_empty() && marked > 0 {
                void += 1;
                continue;
            }
            if group.is_empty() {
                let problem = format!("image {id:?} has no references; add some or take out its candidate");
                return Err(Error::format(source, problem));
            }
            if let Some(blank) = group.iter().position(|caption| is_blank(caption)) {
                let problem = format!("reference {} of image {id:?} is blank; take it out or write it", blank + 1);
                return Err(Error::format(source, problem));
            }
            captions.ids.push(id);
            captions.images.push(image);
            captions.domains.push(domain);
            captions.items.push(Item { candidate, references: group });
        }
        if marked > 0 {
            let images =
                if void > 0 { format!("; {void} images have no others and are left out") } else { String::new() };
            let note = format!("{marked} references that are marked as rejected or precanned are left out{images}");
            captions.notes.push(note);
        }
        // The first by name, so that the message does not change from call to call.
        if let Some(id) = candidates.keys().min() {
            let number = candidates.len();
            let called = examples.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
            let remedy = if captions.items.is_empty() {
                format!("its images are called {called}, ...")
            } else {
                "add them".into()
            };
            let problem = format!("has no references of {number} of the candidates' images, {id:?} for one; {remedy}");
            return Err(Error::format(source, problem));
        }
        Ok(captions)
    }

    /// Scores the candidates; that some are blank and that images were left out is noted.
    ///
    /// # Errors
    /// As of [`Metrics::score`].
    #[must_use]
    pub fn score(&self, metrics: &Metrics) -> Report {
        let mut report = metrics.score(&self.items);
        let mut blank = self.ids.iter().zip(&self.items).filter(|(_, item)| is_blank(&item.candidate));
        if let Some((first, _)) = blank.next() {
            let (number, all) = (1 + blank.count(), self.items.len());
            report
                .notes
                .push(format!("{number} of {all} candidates are blank and score 0, that of image {first:?} for one"));
        }
        metrics.add_domains(&self.items, &self.domains, &mut report);
        report.notes.extend(self.notes.iter().cloned());
        if self.left_out > 0 {
            let (left_out, all) = (self.left_out, self.left_out + self.items.len());
            report.notes.push(format!("{left_out} of {all} images with references have no candidate and are left out"));
        }
        report
    }
}

/// The path that stands for standard input.
pub const STDIN: &str = "-";

fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// What messages call a file.
fn name(path: &Path) -> &Path {
    if is_stdin(path) { Path::new("standard input") } else { path }
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    if !is_stdin(path) {
        return std::fs::read(path);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The content of a file.
fn document(path: &Path) -> Result<Document, Error> {
    let bytes = contents(path).map_err(|source| Error::file(name(path), source))?;
    parse(&bytes).map_err(|problem| Error::format(name(path), problem))
}

fn parse(bytes: &[u8]) -> Result<Document, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.is_empty() {
        return Err("the file is empty; expected JSON".to_owned());
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("the file is UTF-16; save it as UTF-8".to_owned());
    }
    // The parser bounds how deep values may be nested.
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// The captions of each image, in order of first appearance.
fn read(path: &Path) -> Result<Groups, Error> {
    let groups = match document(path)? {
        Document::List(elements) => by_image(elements.into_iter().enumerate()),
        Document::Map(mut entries) => match take_annotations(&mut entries) {
            Some(elements) => by_image(elements.into_iter().enumerate()),
            None => by_key(entries),
        },
    };
    let groups = groups
        .and_then(|groups| if groups.is_empty() { Err("the file has no captions".to_owned()) } else { Ok(groups) });
    groups.map_err(|problem| Error::format(name(path), problem))
}

/// The one caption of each image.
fn read_candidates(path: &Path) -> Result<HashMap<String, String>, Error> {
    let one = |(id, captions): (String, Vec<String>)| {
        let number = captions.len();
        let [candidate] = <[String; 1]>::try_from(captions).map_err(|_| {
            Error::format(name(path), format!("image {id:?} has {number} candidates; give it exactly one"))
        })?;
        Ok((id, candidate))
    };
    read(path)?.into_iter().map(one).collect()
}

/// The captions of each image, by its id.
type Groups = Vec<(String, Vec<String>)>;

/// Takes the list of COCO's annotations out of a map that has one.
fn take_annotations(entries: &mut Vec<(String, Value)>) -> Option<Vec<Element>> {
    let coco = |(name, value): &(String, Value)| {
        name == "annotations"
            && matches!(value, Value::List(elements) if !matches!(elements[..], [Element::Caption(_), ..]))
    };
    match entries.iter().position(coco).map(|index| entries.swap_remove(index).1) {
        Some(Value::List(elements)) => Some(elements),
        _ => None,
    }
}

/// Groups COCO's annotations or results, each with its place in the list.
fn by_image(elements: impl IntoIterator<Item = (usize, Element)>) -> Result<Groups, String> {
    let mut groups: Groups = Vec::new();
    let mut positions = HashMap::new();
    for (index, element) in elements {
        let Element::Annotation { image_id, caption, .. } = element else {
            return Err(format!("entry {} of the list is not {{\"image_id\": ID, \"caption\": TEXT}}", index + 1));
        };
        let id = String::from(image_id);
        let position = *positions.entry(id.clone()).or_insert_with(|| {
            groups.push((id, Vec::new()));
            groups.len() - 1
        });
        groups[position].1.push(one_line(&caption));
    }
    Ok(groups)
}

/// Checks a map from ids to captions.
fn by_key(entries: Vec<(String, Value)>) -> Result<Groups, String> {
    let mut seen = HashSet::new();
    let mut groups = Vec::with_capacity(entries.len());
    for (id, value) in entries {
        if !seen.insert(id.clone()) {
            return Err(format!("image {id:?} is there twice; keep one"));
        }
        let elements = match value {
            Value::Caption(caption) => vec![Element::Caption(caption)],
            Value::List(elements) => elements,
            Value::Other(_) => return Err(format!("{id:?} has neither a caption nor a list of captions")),
        };
        let captions = elements.into_iter().map(|element| match element {
            Element::Caption(caption) => Ok(one_line(&caption)),
            _ => Err(format!("a caption of {id:?} is not a string")),
        });
        let captions = captions.collect::<Result<_, _>>()?;
        groups.push((id, captions));
    }
    Ok(groups)
}

/// `caption` with spaces in the place of line breaks, Unicode's two included, and other control characters.
fn one_line(caption: &str) -> String {
    caption.replace(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'), " ")
}

/// Whether `caption` has nothing but white space and characters that are not seen.
fn is_blank(caption: &str) -> bool {
    let is_unseen = |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    caption.chars().all(|c| c.is_whitespace() || is_unseen(c))
}

/// A whole file.
enum Document {
    List(Vec<Element>),
    /// In order, names that are there twice included.
    Map(Vec<(String, Value)>),
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOrMap;

        impl<'de> Visitor<'de> for ListOrMap {
            type Value = Document;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("captions by image, or COCO's annotations or results")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Document, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element()? {
                    elements.push(element);
                }
                Ok(Document::List(elements))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Document::Map(entries))
            }
        }

        deserializer.deserialize_any(ListOrMap)
    }
}

/// What a name in a map stands for.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Caption(String),
    List(Vec<Element>),
    /// Another part of COCO's annotations.
    Other(IgnoredAny),
}

/// An element of a list. Lists come before annotations, which could be read from lists, too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Element {
    Caption(String),
    List(#[expect(dead_code, reason = "only its form counts")] Vec<IgnoredAny>),
    Annotation {
        image_id: Id,
        caption: String,
        /// VizWiz's marks of captions that describe no image.
        #[serde(default)]
        is_rejected: VizWizFlag,
        #[serde(default)]
        is_precanned: VizWizFlag,
    },
    Image(Box<Image>),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(i64),
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        match id {
            Id::Text(text) => text,
            Id::Number(number) => number.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Files;

    /// Reads files of these contents.
    fn captions(references: &str, candidates: &str) -> Result<Captions, String> {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["refs.json", "cands.json"].map(|name| folder.path().join(name));
        std::fs::write(&paths[0], references).unwrap();
        std::fs::write(&paths[1], candidates).unwrap();
        Captions::read(&paths[0], &paths[1], None)
            .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    fn problem(references: &str, candidates: &str) -> String {
        captions(references, candidates).unwrap_err()
    }

    const COCO: &str = r#"{"info": {"year": 2014}, "licenses": [], "type": "captions",
        "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 7, "file_name": "7.jpg"}],
        "annotations": [{"id": 1, "image_id": 9, "caption": "A dog."}, {"id": 2, "image_id": 7, "caption": "A\ncat."},
                        {"id": 3, "image_id": 9, "caption": "One dog"}]}"#;

    #[test]
    fn all_forms_are_read_alike() {
        let expected = Captions {
            ids: vec!["9".into(), "7".into()],
            images: vec![],
            items: vec![crate::item("dog", &["A dog.", "One dog"]), crate::item("cat", &["A cat."])],
            domains: vec![None; 2],
            left_out: 0,
            notes: vec![],
        };
        let references = [
            COCO,
            r#"{"9": ["A dog.", "One dog"], "7": "A\r\u2028\u0000cat."}"#,
            r#"[{"image_id": "9", "caption": "A dog."}, {"image_id": 7, "caption": "A\tcat."},
                {"image_id": 9, "caption": "One dog"}]"#,
        ];
        let candidates = [
            r#"{"7": "cat", "9": "dog"}"#,
            r#"{"7": ["cat"], "9": "dog"}"#,
            r#"[{"image_id": 7, "caption": "cat"}, {"image_id": "9", "caption": "dog", "score": 1}]"#,
        ];
        for references in references {
            for candidates in candidates {
                let mut got = captions(references, candidates).unwrap();
                for reference in got.items.iter_mut().flat_map(|item| &mut item.references) {
                    *reference = reference.replace("   ", " ");
                }
                assert_eq!(
                    got.images.iter().map(|names| names.id.clone()).collect::<Option<Vec<_>>>(),
                    Some(got.ids.clone())
                );
                got.images.clear();
                assert_eq!(got, expected, "{references} {candidates}");
            }
        }
    }

    #[test]
    fn images_may_be_called_as_parts_of_coco_are() {
        let got =
            captions(r#"{"annotations": ["A dog."], "images": ["A cat."]}"#, r#"{"annotations": "dog"}"#).unwrap();
        assert_eq!((got.ids, got.left_out), (vec!["annotations".to_owned()], 1));
    }

    #[test]
    fn images_of_both_files_must_go_together() {
        let references = r#"{"1": ["a"], "2": ["b"], "3": []}"#;
        let two_left_out = captions(references, r#"{"2": "x"}"#).unwrap();
        assert_eq!(two_left_out.left_out, 2);
        let report = two_left_out.score(&Metrics::open(&Files::default()).unwrap());
        let last = report.notes.last().map(String::as_str);
        assert_eq!(last, Some("2 of 3 images with references have no candidate and are left out"));
        assert_eq!(
            problem(references, r#"{"2": "x", "8": "y", "5": "z"}"#),
            "refs.json: has no references of 2 of the candidates' images, \"5\" for one; add them"
        );
        assert_eq!(
            problem(references, r#"{"3": "x"}"#),
            "refs.json: image \"3\" has no references; add some or take out its candidate"
        );
        let twice = r#"[{"image_id": 2, "caption": "x"}, {"image_id": "2", "caption": "x"}]"#;
        assert_eq!(problem(references, twice), "cands.json: image \"2\" has 2 candidates; give it exactly one");
        assert_eq!(
            problem(references, r#"{"2": []}"#),
            "cands.json: image \"2\" has 0 candidates; give it exactly one"
        );
        assert_eq!(problem(references, r#"{"2": "x", "2": "y"}"#), "cands.json: image \"2\" is there twice; keep one");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_file() {
        let plain = captions(COCO, r#"{"7": "cat", "9": "dog"}"#).unwrap();
        let marked = captions(&format!("\u{feff}{COCO}"), "\u{feff}{\"7\": \"cat\", \"9\": \"dog\"}").unwrap();
        assert_eq!(marked, plain);
        assert_eq!(problem("\u{feff}", "{}"), "refs.json: the file is empty; expected JSON");
        for mark in [b"\xff\xfe{\0", b"\xfe\xff\0{"] {
            assert_eq!(parse(mark).err().as_deref(), Some("the file is UTF-16; save it as UTF-8"));
        }
    }

    #[test]
    fn blank_references_are_an_error_that_names_the_image() {
        for blank in ["", " ", "\\n", "\\u00a0\\t", "\\u200b", "\\ufeff", "\\u0000"] {
            assert_eq!(
                problem(&format!(r#"{{"1": ["a"], "2": ["a", "{blank}"]}}"#), r#"{"1": "x", "2": "x"}"#),
                "refs.json: reference 2 of image \"2\" is blank; take it out or write it"
            );
        }
        // Of an image that is not scored it does not matter.
        assert_eq!(captions(r#"{"1": ["a"], "2": [" "]}"#, r#"{"1": "x"}"#).unwrap().left_out, 1);
    }

    #[test]
    fn blank_candidates_score_zero_and_are_noted() {
        let references = r#"{"1": ["a dog"], "2": ["a cat"], "3": ["a bus"]}"#;
        let metrics = Metrics::open(&Files::default()).unwrap();
        let blank = captions(references, r#"{"1": "a dog", "2": " ", "3": ""}"#).unwrap().score(&metrics);
        let expected = "2 of 3 candidates are blank and score 0, that of image \"2\" for one";
        assert!(blank.notes.iter().any(|note| note == expected), "{:?}", blank.notes);
        for name in ["bleu_1", "rouge_l", "meteor", "cider"] {
            assert!(blank.items[name][0] > 0.1 && blank.items[name][1..].iter().all(|&score| score < 1e-6), "{name}");
        }
        let whole = captions(references, r#"{"1": "a dog", "2": "a cat", "3": "."}"#).unwrap().score(&metrics);
        assert!(!whole.notes.iter().any(|note| note.contains("blank")), "{:?}", whole.notes);
    }

    #[test]
    fn standard_input_is_one_file() {
        let stdin = Path::new(STDIN);
        let error = Captions::read(stdin, stdin, None).unwrap_err().to_string();
        assert_eq!(
            error,
            "standard input: can be read only once; name a file for the references or for the candidates"
        );
    }

    #[test]
    fn hostile_files_are_one_line() {
        let deep = "[".repeat(1_000_000);
        let deep_value = format!(r#"{{"1": {deep}"#);
        let cases = [
            ("", "the file is empty; expected JSON"),
            ("{", "EOF while parsing an object at line 1 column 1"),
            ("{\n\"1\": [\"a\",]}", "trailing comma at line 2 column 11"),
            ("{} {}", "trailing characters at line 1 column 4"),
            (
                "7",
                "invalid type: integer `7`, expected captions by image, or COCO's annotations or results at line 1 column 1",
            ),
            ("{}", "the file has no captions"),
            ("[]", "the file has no captions"),
            (r#"{"annotations": [], "images": []}"#, "the file has no captions"),
            (r#"{"1": 5}"#, "\"1\" has neither a caption nor a list of captions"),
            (r#"{"a\nb": {}}"#, r#""a\nb" has neither a caption nor a list of captions"#),
            (r#"{"1": null}"#, "\"1\" has neither a caption nor a list of captions"),
            (r#"{"1": ["a", 5]}"#, "a caption of \"1\" is not a string"),
            (r#"{"1": [["a"]]}"#, "a caption of \"1\" is not a string"),
            (r#"["a"]"#, "entry 1 of the list is not {\"image_id\": ID, \"caption\": TEXT}"),
            (r#"[[1, "a"]]"#, "entry 1 of the list is not {\"image_id\": ID, \"caption\": TEXT}"),
            (
                r#"{"annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 1.5, "caption": "a"}]}"#,
                "entry 2 of the list is not {\"image_id\": ID, \"caption\": TEXT}",
            ),
            (r#"{"1": ["\ud800"]}"#, "unexpected end of hex escape at line 1 column 15"),
            (&deep, "recursion limit exceeded at line 1 column 128"),
            (&deep_value, "recursion limit exceeded at line 1 column 133"),
        ];
        for (text, expected) in cases {
            let got = problem(text, r#"{"1": "a"}"#);
            assert_eq!(got, format!("refs.json: {expected}"));
        }
        let folder = tempfile::tempdir().unwrap();
        let error = Captions::read(&folder.path().join("none.json"), folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("none.json: No such file"), "{error}");
    }
}
