//! The index of a tar: its samples, with the byte range of each image. Built in one pass, stored as
//! JSON.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::annotations::{LenientValue, clean_captions, without_byte_order_mark};
use crate::store::Version;
use crate::tar_reader::{ForwardReader, MemberHeader, TarError, TarReader};
use image_preprocess::{ImageWarnings, MAX_ENCODED_BYTES};

/// The format version of index files; indices of other versions are rebuilt.
const FORMAT_VERSION: u32 = 3;
/// Maximal size of a `.txt` member, in bytes.
const MAX_TXT_MEMBER_BYTES: u64 = 1 << 20;
/// Maximal size of a `.json` member, in bytes: more than the maximal number of captions of maximal
/// length.
const MAX_JSON_MEMBER_BYTES: u64 = 128 << 20;
/// Maximal number of unknown extensions that are counted separately; others are counted together.
const MAX_UNKNOWN_EXTENSIONS: usize = 16;
/// Maximal length of a stored unknown extension, or of a path with one, in characters; the rest is
/// cut off.
const MAX_UNKNOWN_CHARS: usize = 200;
/// Stands for all extensions beyond [`MAX_UNKNOWN_EXTENSIONS`] and for all keys beyond
/// [`MAX_JSON_KEYS`].
const OTHERS: &str = "...";
/// The keys of a `.json` member that may have captions, in order of preference.
pub const CAPTION_KEYS: [&str; 3] = ["captions", "caption", "text"];
/// Maximal number of keys of a `.json` member without captions that are stored for messages.
const MAX_JSON_KEYS: usize = 8;
/// Maximal length of a stored key, in characters.
const MAX_JSON_KEY_CHARS: usize = 40;

/// The samples of a tar, in the order in which their keys first appear.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TarIndex {
    /// [`FORMAT_VERSION`], or that of another program version.
    format: u32,
    /// The size of the tar that was indexed.
    size: u64,
    /// The version of the tar that was indexed; see [`Version::tag`].
    tag: String,
    /// The samples, valid or not.
    pub samples: Vec<Sample>,
    /// Plain files with an unknown extension, by extension. Hidden ones are not counted.
    #[serde(default)]
    pub unknown: BTreeMap<String, UnknownMembers>,
}

/// The members with an unknown extension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownMembers {
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
    /// The byte range of the image in the tar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Extent>,
    /// The captions; may be empty.
    pub captions: Vec<String>,
    /// Whether the image has an EXIF rotation or is 16-bit greyscale, so that its pixels may differ
    /// from what its author expects. The name in index files is an earlier one.
    #[serde(default, rename = "oddities", skip_serializing_if = "ImageWarnings::is_empty")]
    pub warnings: ImageWarnings,
    /// The image's numeric id in its data set, from the `.json` member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The keys of the `.json` member, if there are no captions, for messages.
    #[serde(default, rename = "keys", skip_serializing_if = "Vec::is_empty")]
    pub json_keys: Vec<String>,
    /// The reason why the sample cannot be used; none if it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// An index file whose content cannot be right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// An image ends beyond the tar, or is too large.
    #[error("the byte range of `{key}` is outside of the tar or too large: delete this file")]
    OutsideTar {
        /// The key of the sample.
        key: String,
    },
    /// A valid sample has no image.
    #[error("`{key}` lacks its image: delete this file")]
    MissingImage {
        /// The key of the sample.
        key: String,
    },
}

/// Why a member of a sample cannot be used.
#[derive(Debug, thiserror::Error)]
enum MemberError {
    /// The member is a directory, a link or a sparse file.
    #[error("is not a regular file")]
    NotAFile,
    /// The member is too large.
    #[error("{length} bytes: more than {limit}")]
    TooLarge {
        /// The size of the member.
        length: u64,
        /// The maximal size.
        limit: u64,
    },
    /// The image is invalid or truncated.
    #[error(transparent)]
    Image(#[from] image_preprocess::Error),
    /// The `.txt` is not UTF-8.
    #[error("{}: save it as UTF-8", .0.utf8_error())]
    Text(#[from] std::string::FromUtf8Error),
    /// The `.json` is invalid.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The `.json` has another type than captions or metadata have.
    #[error("neither a text, nor a list of texts, nor an object")]
    JsonType,
}

/// A range of bytes in the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
}

/// The type of a member that belongs to a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MemberType {
    Image,
    Text,
    Json,
}

impl TarIndex {
    /// Reads the headers, captions and images of a tar, and checks the images.
    ///
    /// # Errors
    /// The tar is truncated, invalid or cannot be read. Problems of single samples are stored with
    /// them.
    pub fn build(reader: impl ForwardReader, version: &Version) -> Result<Self, TarError> {
        let mut tar = TarReader::new(reader, version.size);
        let mut samples = SampleGroups::default();
        let mut unknown = BTreeMap::new();
        while let Some(member) = tar.next_member()? {
            match classify_path(&member.path) {
                PathClass::SampleMember { key, member_type } => {
                    let sample = samples.entry(key);
                    match read_content(&mut tar, &member, member_type)? {
                        Ok(content) => sample.add(content),
                        Err(error) => sample.set_problem(&member.path, &error),
                    }
                }
                // Directories, links, devices and sparse files are not counted.
                PathClass::Unknown { extension } if member.is_plain_file => {
                    count_unknown(&mut unknown, extension, &member.path);
                }
                PathClass::Unknown { .. } | PathClass::Hidden => {}
            }
        }
        let samples = samples.finish();
        Ok(Self { format: FORMAT_VERSION, size: version.size, tag: version.tag.clone(), samples, unknown })
    }

    /// Parses an index; none if it is not an index of this format, or describes another version of
    /// the tar.
    ///
    /// # Errors
    /// The index describes this version of the tar, but its content is invalid.
    pub fn parse(bytes: &[u8], version: &Version) -> Result<Option<Self>, IndexError> {
        let Ok(index) = serde_json::from_slice::<Self>(bytes) else { return Ok(None) };
        if (index.format, index.size, &index.tag) != (FORMAT_VERSION, version.size, &version.tag) {
            return Ok(None);
        }
        for Sample { key, image, problem, .. } in &index.samples {
            let is_inside = image.is_none_or(|Extent { offset, length }| {
                length <= MAX_ENCODED_BYTES && offset.checked_add(length).is_some_and(|end| end <= version.size)
            });
            if !is_inside {
                return Err(IndexError::OutsideTar { key: key.clone() });
            }
            if problem.is_none() && image.is_none() {
                return Err(IndexError::MissingImage { key: key.clone() });
            }
        }
        Ok(Some(index))
    }

    /// The index as JSON, for [`parse`](Self::parse).
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// The class of a member, by its path.
#[derive(Debug, PartialEq, Eq)]
enum PathClass<'p> {
    /// A file whose name begins with a dot, or a path that ends in `/`.
    Hidden,
    /// A file that no sample uses. The extension is everything after the first dot of the file
    /// name, as in WebDataset.
    Unknown { extension: &'p str },
    /// A member of the sample with this key.
    SampleMember { key: &'p str, member_type: MemberType },
}

fn classify_path(path: &str) -> PathClass<'_> {
    // `tar -C FOLDER .` adds `./` to all paths.
    let path = path.strip_prefix("./").unwrap_or(path);
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
    if stem.is_empty() {
        return PathClass::Hidden;
    }
    let member_type = match extension.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" | "png" | "webp" => MemberType::Image,
        "txt" => MemberType::Text,
        "json" => MemberType::Json,
        _ => return PathClass::Unknown { extension },
    };
    let folder = path.len() - name.len();
    PathClass::SampleMember { key: &path[..folder + stem.len()], member_type }
}

/// Counts a member with an unknown extension, in bounded memory.
fn count_unknown(unknown: &mut BTreeMap<String, UnknownMembers>, extension: &str, path: &str) {
    let truncated = |text: &str| text.chars().take(MAX_UNKNOWN_CHARS).collect::<String>();
    let mut extension = truncated(extension).to_ascii_lowercase();
    if unknown.len() >= MAX_UNKNOWN_EXTENSIONS && !unknown.contains_key(&extension) {
        extension = OTHERS.to_owned();
    }
    unknown.entry(extension).or_insert_with(|| UnknownMembers { members: 0, first: truncated(path) }).members += 1;
}

/// The content of a member.
enum MemberContent {
    Image(Extent, ImageWarnings),
    Text(String),
    Json(JsonContent),
}

/// The content of a `.json` member.
#[derive(Debug, Default, PartialEq, Eq)]
struct JsonContent {
    captions: Option<Vec<String>>,
    id: Option<u64>,
    /// The keys of the object, if none has captions.
    keys: Vec<String>,
}

impl JsonContent {
    /// Parses a string, a list of strings, or an object with one of these under one of
    /// [`CAPTION_KEYS`]. Ignores other keys; an object without captions counts as metadata.
    fn parse(bytes: &[u8]) -> Result<Self, MemberError> {
        let value: Value = serde_json::from_slice(without_byte_order_mark(bytes))?;
        if let Value::Object(object) = &value {
            return Ok(Self::from_object(object));
        }
        let captions = texts(&value).ok_or(MemberError::JsonType)?;
        Ok(Self { captions: Some(captions), ..Self::default() })
    }

    fn from_object(object: &Map<String, Value>) -> Self {
        let number = |key| LenientValue::deserialize(object.get(key)?).ok()?.number();
        let id = ["image_id", "cocoid", "id"].into_iter().find_map(number);
        let mut candidates = CAPTION_KEYS.into_iter().filter_map(|key| texts(object.get(key)?));
        let captions = candidates.find(|captions| !captions.is_empty());
        let mut keys = Vec::new();
        if captions.is_none() {
            keys.extend(object.keys().take(MAX_JSON_KEYS).map(|key| key.chars().take(MAX_JSON_KEY_CHARS).collect()));
            keys.extend((object.len() > MAX_JSON_KEYS).then(|| OTHERS.to_owned()));
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

/// Reads the content of a member. The inner error concerns the member, the outer one the tar.
fn read_content<R: ForwardReader>(
    tar: &mut TarReader<R>,
    member: &MemberHeader,
    member_type: MemberType,
) -> Result<Result<MemberContent, MemberError>, TarError> {
    let limit = match member_type {
        MemberType::Image => MAX_ENCODED_BYTES,
        MemberType::Text => MAX_TXT_MEMBER_BYTES,
        MemberType::Json => MAX_JSON_MEMBER_BYTES,
    };
    if !member.is_plain_file {
        return Ok(Err(MemberError::NotAFile));
    }
    if member.length > limit {
        return Ok(Err(MemberError::TooLarge { length: member.length, limit }));
    }
    let bytes = tar.read_content(member, limit)?;
    Ok(parse_content(bytes, member, member_type))
}

fn parse_content(bytes: Vec<u8>, member: &MemberHeader, member_type: MemberType) -> Result<MemberContent, MemberError> {
    Ok(match member_type {
        MemberType::Image => {
            let extent = Extent { offset: member.offset, length: member.length };
            MemberContent::Image(extent, image_preprocess::check(Cursor::new(&bytes))?)
        }
        MemberType::Text => MemberContent::Text(String::from_utf8(bytes)?),
        MemberType::Json => MemberContent::Json(JsonContent::parse(&bytes)?),
    })
}

/// A sample whose members are being read.
#[derive(Default)]
struct PartialSample {
    key: String,
    image: Option<(Extent, ImageWarnings)>,
    /// The content of the `.txt` member.
    text: Option<String>,
    /// The captions in the `.json` member.
    json: Option<Vec<String>>,
    id: Option<u64>,
    json_keys: Vec<String>,
    problem: Option<String>,
}

impl PartialSample {
    fn add(&mut self, content: MemberContent) {
        let duplicate = match content {
            MemberContent::Image(extent, warnings) => self.image.replace((extent, warnings)).map(|_| "image"),
            MemberContent::Text(text) => self.text.replace(text).map(|_| "`.txt`"),
            MemberContent::Json(JsonContent { captions, id, keys }) => {
                self.id = self.id.or(id);
                self.json_keys.extend(keys);
                captions.and_then(|captions| self.json.replace(captions)).map(|_| "`.json`")
            }
        };
        if let Some(member) = duplicate {
            self.problem.get_or_insert_with(|| format!("more than one {member}"));
        }
    }

    /// Records why a member cannot be used; the first problem of a sample is kept.
    fn set_problem(&mut self, path: &str, error: &MemberError) {
        self.problem.get_or_insert_with(|| format!("{path}: {error}"));
    }

    /// The sample with the captions of the `.json`, or else the lines of the `.txt`.
    fn finish(self) -> Sample {
        let Self { key, image, text, json, id, json_keys, problem } = self;
        let lines = || text.iter().flat_map(|text| text.split(['\n', '\r'])).map(str::to_owned).collect();
        let captions = clean_captions(json.unwrap_or_else(lines));
        let json_keys = if captions.is_empty() { json_keys } else { Vec::new() };
        let problem = problem.or_else(|| image.is_none().then(|| "captions without an image".to_owned()));
        let (image, warnings) = image.map_or_else(Default::default, |(extent, warnings)| (Some(extent), warnings));
        Sample { key, image, captions, warnings, id, json_keys, problem }
    }
}

/// The samples of a tar, in the order in which their keys first appear.
#[derive(Default)]
struct SampleGroups {
    samples: Vec<PartialSample>,
    index_by_key: HashMap<String, usize>,
}

impl SampleGroups {
    /// The sample with this key; a new one if it is the first of the key.
    fn entry(&mut self, key: &str) -> &mut PartialSample {
        let index = match self.index_by_key.entry(key.to_owned()) {
            Entry::Occupied(index) => *index.get(),
            Entry::Vacant(vacant) => {
                self.samples.push(PartialSample { key: key.to_owned(), ..PartialSample::default() });
                *vacant.insert(self.samples.len() - 1)
            }
        };
        &mut self.samples[index]
    }

    fn finish(self) -> Vec<Sample> {
        self.samples.into_iter().map(PartialSample::finish).collect()
    }
}

#[cfg(test)]
mod tests;
