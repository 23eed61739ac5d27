//! What people think of captions: ratings, or which of two they prefer.
//!
//! | form | where it comes from |
//! |---|---|
//! | `{ID: {"image_path": ..., "ground_truth": [...], "human_judgement": [{"caption": ..., "rating": ...}, ...]}, ...}` | Flickr8k-Expert and Flickr8k-CF, as CLIPScore's and PAC-S's repositories have them |
//! | `[{"image": ..., "caption": ..., "references": [...], "rating": ...}, ...]` | Composite, and whatever else is rated |
//! | `[{"image": ..., "captions": [A, B], "references": [...], "preferred": 0 or 1, "category": ...}, ...]` | Pascal-50S; `category` may be left out |
//!
//! A rating that is `NaN` or `null` is left out, as PAC-S's own code does.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{contents, name, one_line};
use crate::{Error, Item};

/// A caption that people judged.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgedCaption {
    /// Path or name of its image.
    pub image: String,
    /// The caption, and others of its image.
    pub item: Item,
}

/// What is known of all captions of a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Judgements {
    /// Captions, each with its rating.
    Ratings(Vec<(JudgedCaption, f64)>),
    /// Pairs of captions, the preferred one first, and the category of the pair.
    Pairs(Vec<([JudgedCaption; 2], String)>),
}

#[derive(Deserialize)]
struct ImageJudgements {
    image_path: String,
    ground_truth: Vec<String>,
    human_judgement: Vec<Rated>,
}

#[derive(Deserialize)]
struct Rated {
    caption: String,
    rating: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    image: String,
    caption: String,
    #[serde(default)]
    references: Vec<String>,
    rating: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    image: String,
    captions: [String; 2],
    #[serde(default)]
    references: Vec<String>,
    preferred: usize,
    #[serde(default)]
    category: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    ByImage(BTreeMap<String, ImageJudgements>),
    Pairs(Vec<Pair>),
    Ratings(Vec<One>),
}

impl Judgements {
    /// Reads a file; `-` is standard input.
    ///
    /// # Errors
    /// It cannot be read, or has none of the forms, or no judgements.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = contents(path).map_err(|source| Error::file(name(path), source))?;
        let wrong = |problem: String| Error::format(name(path), problem);
        let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8".to_owned()))?;
        let file = serde_json::from_str(&without_nan(text.trim_start_matches('\u{feff}')))
            .map_err(|error| wrong(format!("has none of the forms of judgements: {error}")))?;
        let found = match file {
            File::ByImage(images) => Self::Ratings(images.into_values().flat_map(ImageJudgements::rated).collect()),
            File::Ratings(rated) => Self::Ratings(rated.into_iter().filter_map(One::rated).collect()),
            File::Pairs(pairs) => {
                let pair = |(number, pair): (usize, Pair)| {
                    let problem = || wrong(format!("pair {}: `preferred` is neither 0 nor 1", number + 1));
                    pair.judged().ok_or_else(problem)
                };
                Self::Pairs(pairs.into_iter().enumerate().map(pair).collect::<Result<_, _>>()?)
            }
        };
        if found.is_empty() {
            return Err(wrong("has no judgements".to_owned()));
        }
        Ok(found)
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Ratings(rated) => rated.is_empty(),
            Self::Pairs(pairs) => pairs.is_empty(),
        }
    }

    /// All captions, in order; of a pair both.
    #[must_use]
    pub fn captions(&self) -> Vec<&JudgedCaption> {
        match self {
            Self::Ratings(rated) => rated.iter().map(|(judged, _)| judged).collect(),
            Self::Pairs(pairs) => pairs.iter().flat_map(|(pair, _)| pair).collect(),
        }
    }
}

fn judged(image: &str, caption: &str, references: &[String]) -> JudgedCaption {
    let references = references.iter().map(|text| one_line(text)).collect();
    JudgedCaption { image: image.to_owned(), item: Item { candidate: one_line(caption), references } }
}

impl ImageJudgements {
    fn rated(self) -> Vec<(JudgedCaption, f64)> {
        let Self { image_path, ground_truth, human_judgement } = self;
        let rated = human_judgement.into_iter().filter_map(|Rated { caption, rating }| {
            Some((judged(&image_path, &caption, &ground_truth), rating.filter(|rating| rating.is_finite())?))
        });
        rated.collect()
    }
}

impl One {
    fn rated(self) -> Option<(JudgedCaption, f64)> {
        let rating = self.rating.filter(|rating| rating.is_finite())?;
        Some((judged(&self.image, &self.caption, &self.references), rating))
    }
}

impl Pair {
    fn judged(self) -> Option<([JudgedCaption; 2], String)> {
        let Self { image, captions, references, preferred, category } = self;
        let mut pair = captions.map(|caption| judged(&image, &caption, &references));
        match preferred {
            0 => {}
            1 => pair.swap(0, 1),
            _ => return None,
        }
        Some((pair, category))
    }
}

/// The same with `null` for `NaN`, which Python writes though JSON has no such thing.
fn without_nan(json: &str) -> String {
    let (mut result, mut in_text, mut escaped, mut rest) = (String::with_capacity(json.len()), false, false, json);
    while let Some(next) = rest.chars().next() {
        if !in_text && let Some(after) = rest.strip_prefix("NaN") {
            result.push_str("null");
            rest = after;
            continue;
        }
        in_text ^= next == '"' && !escaped;
        escaped = in_text && next == '\\' && !escaped;
        result.push(next);
        rest = &rest[next.len_utf8()..];
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Judgements, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("judgements.json");
        std::fs::write(&path, text).unwrap();
        Judgements::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn all_forms_are_read() {
        let flickr = r#"{"ab": {"image_path": "images/ab.jpg", "ground_truth": ["a dog \"NaN\"", "dog"], "human_judgement":
            [{"image_id": "x", "image_path": "y", "caption": "a\ncat", "rating": 1.0}, {"caption": "dog", "rating": NaN}]}}"#;
        let expected = judged("images/ab.jpg", "a cat", &["a dog \"NaN\"".into(), "dog".into()]);
        assert_eq!(read(flickr), Ok(Judgements::Ratings(vec![(expected.clone(), 1.0)])));
        let rated = r#"[{"image": "images/ab.jpg", "caption": "a cat", "references": ["a dog \"NaN\"", "dog"], "rating": 1},
            {"image": "q.jpg", "caption": "x", "rating": null}]"#;
        assert_eq!(read(rated), read(flickr));
        let pairs =
            r#"[{"image": "a.jpg", "captions": ["x", "y"], "references": ["z"], "preferred": 1, "category": "HM"}]"#;
        let (x, y) = (judged("a.jpg", "x", &["z".into()]), judged("a.jpg", "y", &["z".into()]));
        let found = read(pairs).unwrap();
        assert_eq!(found.captions(), [&y, &x]);
        assert_eq!(found, Judgements::Pairs(vec![([y, x], "HM".into())]));
    }

    #[test]
    fn what_is_none_of_them_is_refused() {
        for (text, expected) in [
            ("[]", "no judgements"),
            ("{}", "no judgements"),
            (r#"[{"image": "a"}]"#, "none of the forms"),
            ("[", "none of the forms"),
            (
                r#"[{"image": "a.jpg", "captions": ["x", "y"], "preferred": 2}]"#,
                "pair 1: `preferred` is neither 0 nor 1",
            ),
        ] {
            assert!(read(text).unwrap_err().contains(expected), "{text}: {:?}", read(text));
        }
    }
}
