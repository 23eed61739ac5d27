//! The index of a tar: its samples, with the position of each image. Built in one pass, stored as
//! JSON.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::annotations::{LenientValue, tidy, without_byte_order_mark};
use crate::members::{Forward, Found, Members};
use crate::store::Version;
use image_preprocess::{MAX_ENCODED_BYTES, Oddities};

/// The format version of index files; indices of other versions are rebuilt.
const FORMAT: u32 = 3;
/// Maximal size of a `.txt` member, in bytes.
const MAX_TEXT_LENGTH: u64 = 1 << 20;
/// Maximal size of a `.json` member, in bytes: the maximal number of captions of maximal length.
const MAX_JSON_LENGTH: u64 = 128 << 20;
/// Maximal number of unknown extensions that are counted separately; others are counted together.
const MAX_UNKNOWN: usize = 16;
/// Maximal length of an unknown extension, or of a path with one, that is stored, in characters.
const MAX_SHOWN: usize = 200;
/// Stands for all extensions beyond [`MAX_UNKNOWN`], and for all keys beyond [`MAX_KEYS`].
const OTHERS: &str = "...";
/// The keys of a `.json` member that may have captions, in order of preference.
pub const CAPTION_KEYS: [&str; 3] = ["captions", "caption", "text"];
/// Maximal number of keys of a `.json` member without captions that are stored for messages.
const MAX_KEYS: usize = 8;
/// Maximal length of such a key, in characters.
const MAX_KEY: usize = 40;

/// The samples of a tar, in the order in which their keys first appear.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    format: u32,
    size: u64,
    tag: String,
    /// The samples, valid or not.
    pub samples: Vec<Sample>,
    /// Members that are neither images nor captions nor hidden, by extension.
    #[serde(default)]
    pub unknown: BTreeMap<String, Unknown>,
}

/// The members with an unknown extension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// The number of members.
    pub members: u64,
    /// The path of the first one.
    pub first: String,
}

/// A sample: all members of a tar with the same key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The path of the members up to the first dot of the file name, as in WebDataset.
    pub key: String,
    /// The position of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Extent>,
    /// The captions; may be empty.
    pub captions: Vec<String>,
    /// Oddities of the image.
    #[serde(default, skip_serializing_if = "Oddities::is_empty")]
    pub oddities: Oddities,
    /// The image's number in its data set, from the `.json` member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The keys of the `.json` member, if there are no captions, for messages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Why the sample cannot be used; none if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A range of bytes in the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Image,
    Text,
    Json,
}

impl Index {
    /// Reads the headers and captions of a tar, and the first bytes of its images.
    ///
    /// # Errors
    /// The tar is truncated, invalid or cannot be read. Problems of single samples are stored with
    /// them.
    pub fn build(reader: impl Forward, version: &Version) -> Result<Self, String> {
        let mut members = Members::new(reader, version.size);
        let mut samples = Gathered::default();
        let mut unknown = BTreeMap::new();
        while let Some(found) = members.advance()? {
            match classify(&found.path) {
                Kind::Part { key, role } => {
                    let sample = samples.of(key);
                    match take(&mut members, &found, role)? {
                        Ok(content) => sample.add(content),
                        Err(problem) => sample.broken(&found.path, &problem),
                    }
                }
                // Directories and the like have no content.
                Kind::Unknown { extension } if found.plain => count(&mut unknown, extension, &found.path),
                Kind::Unknown { .. } | Kind::Hidden => {}
            }
        }
        let samples = samples.finish();
        Ok(Self { format: FORMAT, size: version.size, tag: version.tag.clone(), samples, unknown })
    }

    /// Parses an index; none if it is not of this version of the tar.
    ///
    /// # Errors
    /// It is, but its content is invalid.
    pub fn parse(bytes: &[u8], version: &Version) -> Result<Option<Self>, String> {
        let Ok(index) = serde_json::from_slice::<Self>(bytes) else { return Ok(None) };
        if (index.format, index.size, &index.tag) != (FORMAT, version.size, &version.tag) {
            return Ok(None);
        }
        for Sample { key, image, problem, .. } in &index.samples {
            let inside = image.is_none_or(|Extent { offset, length }| {
                length <= MAX_ENCODED_BYTES && offset.checked_add(length).is_some_and(|end| end <= version.size)
            });
            if !inside {
                return Err(format!("`{key}` lies outside of the tar: delete this file"));
            }
            if problem.is_none() && image.is_none() {
                return Err(format!("`{key}` lacks its image: delete this file"));
            }
        }
        Ok(Some(index))
    }

    /// The index as JSON, for [`parse`](Self::parse).
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// The role of a member, by its path.
#[derive(Debug, PartialEq, Eq)]
enum Kind<'p> {
    /// A file whose name begins with a dot, or a directory.
    Hidden,
    /// Not used. The extension is everything after the first dot of the file name, as in
    /// WebDataset.
    Unknown { extension: &'p str },
    /// A part of the sample with this key.
    Part { key: &'p str, role: Role },
}

fn classify(path: &str) -> Kind<'_> {
    // `tar -C FOLDER .` adds it to all paths.
    let path = path.strip_prefix("./").unwrap_or(path);
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
    if stem.is_empty() {
        return Kind::Hidden;
    }
    let role = match extension.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" | "png" | "webp" => Role::Image,
        "txt" => Role::Text,
        "json" => Role::Json,
        _ => return Kind::Unknown { extension },
    };
    let folder = path.len() - name.len();
    Kind::Part { key: &path[..folder + stem.len()], role }
}

/// Counts an unused member, in bounded memory.
fn count(unknown: &mut BTreeMap<String, Unknown>, extension: &str, path: &str) {
    let shown = |text: &str| text.chars().take(MAX_SHOWN).collect::<String>();
    let mut extension = shown(extension).to_ascii_lowercase();
    if unknown.len() >= MAX_UNKNOWN && !unknown.contains_key(&extension) {
        extension = OTHERS.to_owned();
    }
    unknown.entry(extension).or_insert_with(|| Unknown { members: 0, first: shown(path) }).members += 1;
}

enum Content {
    Image(Extent, Oddities),
    Text(String),
    Json(Json),
}

/// The content of a `.json` member.
#[derive(Debug, Default, PartialEq, Eq)]
struct Json {
    captions: Option<Vec<String>>,
    id: Option<u64>,
    /// Its keys, if none has captions.
    keys: Vec<String>,
}

impl Json {
    /// Parses a string, a list of strings, or an object with one of these under one of
    /// [`CAPTION_KEYS`]. Ignores other keys; an object without captions counts as metadata.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(without_byte_order_mark(bytes)).map_err(|error| error.to_string())?;
        if let Value::Object(object) = &value {
            return Ok(Self::of_object(object));
        }
        let captions = texts(&value).ok_or("neither a text, nor a list of texts, nor an object")?;
        Ok(Self { captions: Some(captions), ..Self::default() })
    }

    fn of_object(object: &Map<String, Value>) -> Self {
        let number = |key| LenientValue::deserialize(object.get(key)?).ok()?.number();
        let id = ["image_id", "cocoid", "id"].into_iter().find_map(number);
        let mut found = CAPTION_KEYS.into_iter().filter_map(|key| texts(object.get(key)?));
        let captions = found.find(|captions| !captions.is_empty());
        let mut keys = Vec::new();
        if captions.is_none() {
            keys.extend(object.keys().take(MAX_KEYS).map(|key| key.chars().take(MAX_KEY).collect()));
            keys.extend((object.len() > MAX_KEYS).then(|| OTHERS.to_owned()));
        }
        Self { captions, id, keys }
    }
}

/// The strings of a value that is a string or a list of strings.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// Reads the content of a member. The inner error is that of the member, the outer one that of the
/// tar.
fn take<R: Forward>(members: &mut Members<R>, found: &Found, role: Role) -> Result<Result<Content, String>, String> {
    let most = match role {
        Role::Image => MAX_ENCODED_BYTES,
        Role::Text => MAX_TEXT_LENGTH,
        Role::Json => MAX_JSON_LENGTH,
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
            image_preprocess::check(Cursor::new(&bytes))
                .map(|oddities| Content::Image(extent, oddities))
                .map_err(|error| error.to_string())
        }
        Role::Json => Json::parse(&bytes).map(Content::Json),
        Role::Text => String::from_utf8(bytes)
            .map(Content::Text)
            .map_err(|error| format!("{}: save it as UTF-8", error.utf8_error())),
    })
}

/// A sample that may not be complete yet.
#[derive(Default)]
struct PartialSample {
    key: String,
    image: Option<(Extent, Oddities)>,
    text: Option<String>,
    json: Option<Vec<String>>,
    id: Option<u64>,
    keys: Vec<String>,
    problem: Option<String>,
}

impl PartialSample {
    fn add(&mut self, content: Content) {
        let repeated = match content {
            Content::Image(extent, oddities) => self.image.replace((extent, oddities)).map(|_| "image"),
            Content::Text(text) => self.text.replace(text).map(|_| "`.txt`"),
            Content::Json(Json { captions, id, keys }) => {
                self.id = self.id.or(id);
                self.keys.extend(keys);
                captions.and_then(|captions| self.json.replace(captions)).map(|_| "`.json`")
            }
        };
        if let Some(what) = repeated {
            self.problem.get_or_insert_with(|| format!("more than one {what}"));
        }
    }

    fn broken(&mut self, path: &str, problem: &str) {
        self.problem.get_or_insert_with(|| format!("{path}: {problem}"));
    }

    /// The sample with the captions of the `.json`, or else the lines of the `.txt`.
    fn finish(self) -> Sample {
        let Self { key, image, text, json, id, keys, problem } = self;
        let lines = || text.iter().flat_map(|text| text.split(['\n', '\r'])).map(str::to_owned).collect();
        let captions = tidy(json.unwrap_or_else(lines));
        let keys = if captions.is_empty() { keys } else { Vec::new() };
        let problem = problem.or_else(|| image.is_none().then(|| "captions without an image".to_owned()));
        let (image, oddities) = image.map_or_else(Default::default, |(extent, oddities)| (Some(extent), oddities));
        Sample { key, image, captions, oddities, id, keys, problem }
    }
}

#[derive(Default)]
struct Gathered {
    pieces: Vec<PartialSample>,
    places: HashMap<String, usize>,
}

impl Gathered {
    fn of(&mut self, key: &str) -> &mut PartialSample {
        let place = match self.places.entry(key.to_owned()) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(vacant) => {
                self.pieces.push(PartialSample { key: key.to_owned(), ..PartialSample::default() });
                *vacant.insert(self.pieces.len() - 1)
            }
        };
        &mut self.pieces[place]
    }

    fn finish(self) -> Vec<Sample> {
        self.pieces.into_iter().map(PartialSample::finish).collect()
    }
}

#[cfg(test)]
mod tests;
