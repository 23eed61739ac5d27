//! Human judgements of captions: ratings, or preferences between two captions.
//!
//! | format | data sets |
//! |---|---|
//! | `{ID: {"image_path": ..., "ground_truth": [...], "human_judgement": [{"caption": ..., "rating": ...}, ...]}, ...}` | Flickr8k-Expert and Flickr8k-CF, as CLIPScore's and PAC-S's repositories have them |
//! | `[{"image": ..., "caption": ..., "references": [...], "rating": ...}, ...]` | Composite, and other data sets with ratings |
//! | `[{"image": ..., "captions": [A, B], "references": [...], "preferred": 0 or 1, "category": ...}, ...]` | Pascal-50S; `category` is optional |
//!
//! Captions whose rating is `NaN`, `null` or absent are left out, as in PAC-S's own code.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{display_path, read_bytes, single_line};
use crate::{Error, Item};

/// A caption that humans judged. [`Judgements`] has their rating or preference.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgedCaption {
    /// Path or name of the image.
    pub image: String,
    /// The caption as candidate, with the references of its image.
    pub item: Item,
}

/// The human judgements in a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Judgements {
    /// Captions with their ratings.
    Ratings(Vec<(JudgedCaption, f64)>),
    /// Pairs of captions, the preferred one first, with the category of the pair; empty if it has
    /// none.
    Pairs(Vec<([JudgedCaption; 2], String)>),
}

/// The judgements of an image in the format of Flickr8k-Expert and Flickr8k-CF.
#[derive(Deserialize)]
struct ImageJudgements {
    image_path: String,
    ground_truth: Vec<String>,
    human_judgement: Vec<RatedCaption>,
}

/// A caption of [`ImageJudgements`]. `NaN` is replaced with `null` before the file is parsed.
#[derive(Deserialize)]
struct RatedCaption {
    caption: String,
    rating: Option<f64>,
}

/// An element of a list of rated captions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RatedEntry {
    image: String,
    caption: String,
    #[serde(default)]
    references: Vec<String>,
    rating: Option<f64>,
}

/// An element of a list of pairs, with the index of the preferred caption.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PairEntry {
    image: String,
    captions: [String; 2],
    #[serde(default)]
    references: Vec<String>,
    preferred: usize,
    #[serde(default)]
    category: String,
}

/// The content of a file, in one of the formats.
#[derive(Deserialize)]
#[serde(untagged)]
enum JudgementsFile {
    ByImage(BTreeMap<String, ImageJudgements>),
    Pairs(Vec<PairEntry>),
    Ratings(Vec<RatedEntry>),
}

impl Judgements {
    /// Reads a file; `-` is standard input.
    ///
    /// # Errors
    /// The file cannot be read, is in none of the formats, or has no judgements.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = read_bytes(path).map_err(|source| Error::file(display_path(path), source))?;
        let format_error = |problem: String| Error::invalid(display_path(path), problem);
        let text = String::from_utf8(bytes).map_err(|_| format_error("is not UTF-8".to_owned()))?;
        let file = serde_json::from_str(&replace_nan_with_null(text.trim_start_matches('\u{feff}')))
            .map_err(|error| format_error(format!("is in none of the formats of judgements: {error}")))?;
        let judgements = match file {
            JudgementsFile::ByImage(images) => {
                Self::Ratings(images.into_values().flat_map(ImageJudgements::into_rated).collect())
            }
            JudgementsFile::Ratings(rated) => {
                Self::Ratings(rated.into_iter().filter_map(RatedEntry::into_rated).collect())
            }
            JudgementsFile::Pairs(pairs) => {
                let judged_pair = |(index, pair): (usize, PairEntry)| {
                    let problem = || format_error(format!("pair {}: `preferred` is neither 0 nor 1", index + 1));
                    pair.into_judged().ok_or_else(problem)
                };
                Self::Pairs(pairs.into_iter().enumerate().map(judged_pair).collect::<Result<_, _>>()?)
            }
        };
        if judgements.is_empty() {
            return Err(format_error("has no judgements".to_owned()));
        }
        Ok(judgements)
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Ratings(rated) => rated.is_empty(),
            Self::Pairs(pairs) => pairs.is_empty(),
        }
    }

    /// All captions, in order; both captions of each pair.
    #[must_use]
    pub fn captions(&self) -> Vec<&JudgedCaption> {
        match self {
            Self::Ratings(rated) => rated.iter().map(|(judged, _)| judged).collect(),
            Self::Pairs(pairs) => pairs.iter().flat_map(|(pair, _)| pair).collect(),
        }
    }
}

fn judged_caption(image: &str, caption: &str, references: &[String]) -> JudgedCaption {
    let references = references.iter().map(|text| single_line(text)).collect();
    JudgedCaption { image: image.to_owned(), item: Item { candidate: single_line(caption), references } }
}

impl ImageJudgements {
    fn into_rated(self) -> Vec<(JudgedCaption, f64)> {
        let Self { image_path, ground_truth, human_judgement } = self;
        let rated = human_judgement.into_iter().filter_map(|RatedCaption { caption, rating }| {
            Some((judged_caption(&image_path, &caption, &ground_truth), rating.filter(|rating| rating.is_finite())?))
        });
        rated.collect()
    }
}

impl RatedEntry {
    fn into_rated(self) -> Option<(JudgedCaption, f64)> {
        let rating = self.rating.filter(|rating| rating.is_finite())?;
        Some((judged_caption(&self.image, &self.caption, &self.references), rating))
    }
}

impl PairEntry {
    fn into_judged(self) -> Option<([JudgedCaption; 2], String)> {
        let Self { image, captions, references, preferred, category } = self;
        let mut pair = captions.map(|caption| judged_caption(&image, &caption, &references));
        match preferred {
            0 => {}
            1 => pair.swap(0, 1),
            _ => return None,
        }
        Some((pair, category))
    }
}

/// Replaces `NaN`, which Python writes but JSON does not have, with `null`.
fn replace_nan_with_null(json: &str) -> String {
    let (mut result, mut in_string, mut is_escaped, mut rest) = (String::with_capacity(json.len()), false, false, json);
    while let Some(next) = rest.chars().next() {
        if !in_string && let Some(after) = rest.strip_prefix("NaN") {
            result.push_str("null");
            rest = after;
            continue;
        }
        in_string ^= next == '"' && !is_escaped;
        is_escaped = in_string && next == '\\' && !is_escaped;
        result.push(next);
        rest = &rest[next.len_utf8()..];
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Judgements, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("judgements.json");
        std::fs::write(&path, text).unwrap();
        Judgements::read(&path)
    }

    #[test]
    fn all_formats_are_read() {
        let flickr = r#"{"ab": {"image_path": "images/ab.jpg", "ground_truth": ["a dog \"NaN\"", "dog"], "human_judgement":
            [{"image_id": "x", "image_path": "y", "caption": "a\ncat", "rating": 1.0}, {"caption": "dog", "rating": NaN}]}}"#;
        let expected = judged_caption("images/ab.jpg", "a cat", &["a dog \"NaN\"".into(), "dog".into()]);
        let ratings = Judgements::Ratings(vec![(expected, 1.0)]);
        assert_eq!(read(flickr).unwrap(), ratings);
        let rated = r#"[{"image": "images/ab.jpg", "caption": "a cat", "references": ["a dog \"NaN\"", "dog"], "rating": 1},
            {"image": "q.jpg", "caption": "x", "rating": null}]"#;
        assert_eq!(read(rated).unwrap(), ratings);
        let pairs =
            r#"[{"image": "a.jpg", "captions": ["x", "y"], "references": ["z"], "preferred": 1, "category": "HM"}]"#;
        let (x, y) = (judged_caption("a.jpg", "x", &["z".into()]), judged_caption("a.jpg", "y", &["z".into()]));
        let judgements = read(pairs).unwrap();
        assert_eq!(judgements.captions(), [&y, &x]);
        assert_eq!(judgements, Judgements::Pairs(vec![([y, x], "HM".into())]));
    }

    #[test]
    fn other_formats_are_refused() {
        for (text, expected) in [
            ("[]", "no judgements"),
            ("{}", "no judgements"),
            (r#"[{"image": "a"}]"#, "none of the formats"),
            ("[", "none of the formats"),
            (
                r#"[{"image": "a.jpg", "captions": ["x", "y"], "preferred": 2}]"#,
                "pair 1: `preferred` is neither 0 nor 1",
            ),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
