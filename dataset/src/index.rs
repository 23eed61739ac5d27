//! What is in a tar: its samples, with the place of each image. Found in one pass, kept as JSON.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Cursor;

use serde::{Deserialize, Serialize};

use crate::LARGEST_IMAGE;
use crate::annotations::tidy;
use crate::members::{Forward, Found, Members};
use crate::preprocess::{self, Oddities};
use crate::store::Version;

/// Of the index files; indices of other numbers are built anew.
const FORMAT: u32 = 2;
/// Longest `.txt` member, in bytes.
const LONGEST_TEXT: u64 = 1 << 20;
/// Longest `.json` member, in bytes.
const LONGEST_JSON: u64 = 16 << 20;

/// A tar's samples, in the order in which their keys first appear.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    format: u32,
    size: u64,
    tag: String,
    /// Sound and broken ones.
    pub samples: Vec<Sample>,
}

/// All members of a tar that share a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Path of the members up to the first dot of the file name: WebDataset's rule.
    pub key: String,
    /// The image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Extent>,
    /// What people said of it.
    pub captions: Vec<String>,
    /// What is odd about the image.
    #[serde(default, skip_serializing_if = "Oddities::is_empty")]
    pub oddities: Oddities,
    /// Why the sample cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Where in the tar something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// What people said of an image, as a `.json` member says it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Captions {
    Plain(Vec<String>),
    /// Other keys are not looked at; without `captions` the member is taken for metadata.
    Keyed {
        #[serde(default)]
        captions: Option<Vec<String>>,
    },
}

#[derive(Clone, Copy)]
enum Role {
    Image,
    Text,
    Json,
}

impl Index {
    /// Reads a tar's headers and captions, and the first bytes of its images.
    ///
    /// # Errors
    /// The tar is truncated, no tar, or cannot be read. What is wrong with single samples is noted with them.
    pub fn build(reader: impl Forward, version: &Version) -> Result<Self, String> {
        let mut members = Members::new(reader, version.size);
        let mut samples = Gathered::default();
        while let Some(found) = members.advance()? {
            if let Some((key, role)) = classify(&found.path) {
                let sample = samples.of(key);
                match take(&mut members, &found, role)? {
                    Ok(content) => sample.add(content),
                    Err(problem) => sample.broken(&found.path, &problem),
                }
            }
        }
        Ok(Self { format: FORMAT, size: version.size, tag: version.tag.clone(), samples: samples.finish() })
    }

    /// The index of `bytes`, if it is one of this version of the tar.
    ///
    /// # Errors
    /// It is, and says what cannot be true.
    pub fn parse(bytes: &[u8], version: &Version) -> Result<Option<Self>, String> {
        let Ok(index) = serde_json::from_slice::<Self>(bytes) else { return Ok(None) };
        if (index.format, index.size, &index.tag) != (FORMAT, version.size, &version.tag) {
            return Ok(None);
        }
        for Sample { key, image, captions, problem, .. } in &index.samples {
            let inside = image.is_none_or(|Extent { offset, length }| {
                length <= LARGEST_IMAGE && offset.checked_add(length).is_some_and(|end| end <= version.size)
            });
            if !inside {
                return Err(format!("`{key}` lies outside of the tar: delete this file"));
            }
            if problem.is_none() && (image.is_none() || captions.is_empty()) {
                return Err(format!("`{key}` lacks its image or captions: delete this file"));
            }
        }
        Ok(Some(index))
    }

    /// The bytes that [`parse`](Self::parse) reads.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// Key and role of a member; none if it is hidden or of no use.
fn classify(path: &str) -> Option<(&str, Role)> {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let (stem, extension) = name.split_once('.').filter(|(stem, _)| !stem.is_empty())?;
    let role = match extension.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" | "png" | "webp" => Role::Image,
        "txt" => Role::Text,
        "json" => Role::Json,
        _ => return None,
    };
    let folder = path.len() - name.len();
    Some((&path[..folder + stem.len()], role))
}

enum Content {
    Image(Extent, Oddities),
    Text(String),
    Json(Option<Vec<String>>),
}

/// What a member has to say; the inner error is the member's, the outer one the tar's.
fn take<R: Forward>(members: &mut Members<R>, found: &Found, role: Role) -> Result<Result<Content, String>, String> {
    let most = match role {
        Role::Image => LARGEST_IMAGE,
        Role::Text => LONGEST_TEXT,
        Role::Json => LONGEST_JSON,
    };
    if !found.plain {
        return Ok(Err("is no plain file".to_owned()));
    }
    if found.length > most {
        return Ok(Err(format!("{} bytes: more than {most}", found.length)));
    }
    let bytes = members.start(found, most)?;
    Ok(match role {
        Role::Image => {
            let extent = Extent { offset: found.offset, length: found.length };
            preprocess::check(Cursor::new(&bytes)).map(|oddities| Content::Image(extent, oddities))
        }
        Role::Json => serde_json::from_slice(&bytes).map_err(|error| error.to_string()).map(|captions| {
            Content::Json(match captions {
                Captions::Plain(captions) => Some(captions),
                Captions::Keyed { captions } => captions,
            })
        }),
        Role::Text => String::from_utf8(bytes).map(Content::Text).map_err(|error| error.to_string()),
    })
}

/// A sample that is not complete yet.
#[derive(Default)]
struct Pieces {
    key: String,
    image: Option<(Extent, Oddities)>,
    text: Option<String>,
    json: Option<Vec<String>>,
    problem: Option<String>,
}

impl Pieces {
    fn add(&mut self, content: Content) {
        let repeated = match content {
            Content::Image(extent, oddities) => self.image.replace((extent, oddities)).map(|_| "image"),
            Content::Text(text) => self.text.replace(text).map(|_| "`.txt`"),
            Content::Json(Some(captions)) => self.json.replace(captions).map(|_| "`.json`"),
            Content::Json(None) => None,
        };
        if let Some(what) = repeated {
            self.problem.get_or_insert_with(|| format!("more than one {what}"));
        }
    }

    fn broken(&mut self, path: &str, problem: &str) {
        self.problem.get_or_insert_with(|| format!("{path}: {problem}"));
    }

    /// All captions of the `.json`, or else the one of the `.txt`.
    fn finish(self) -> Sample {
        let Self { key, image, text, json, problem } = self;
        let captions = tidy(json.unwrap_or_else(|| text.into_iter().collect()));
        let problem = problem.or_else(|| match (image, captions.is_empty()) {
            (None, _) => Some("captions without an image".to_owned()),
            (_, true) => Some("an image without captions".to_owned()),
            _ => None,
        });
        let (image, oddities) = image.map_or_else(Default::default, |(extent, oddities)| (Some(extent), oddities));
        Sample { key, image, captions, oddities, problem }
    }
}

#[derive(Default)]
struct Gathered {
    pieces: Vec<Pieces>,
    places: HashMap<String, usize>,
}

impl Gathered {
    fn of(&mut self, key: &str) -> &mut Pieces {
        let place = match self.places.entry(key.to_owned()) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(vacant) => {
                self.pieces.push(Pieces { key: key.to_owned(), ..Pieces::default() });
                *vacant.insert(self.pieces.len() - 1)
            }
        };
        &mut self.pieces[place]
    }

    fn finish(self) -> Vec<Sample> {
        self.pieces.into_iter().map(Pieces::finish).collect()
    }
}

#[cfg(test)]
mod tests;
