//! Parses the JSON formats of caption files.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::references::{ImageEntry, VizWizFlag};
use super::single_line;

/// An error in the content of a caption file.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormatError {
    #[error("the file is empty; expected JSON")]
    Empty,
    #[error("the file is UTF-16; save it as UTF-8")]
    Utf16,
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("the file has no captions")]
    NoCaptions,
    /// The field is the number of the entry, from 1.
    #[error("entry {0} of the list is not {{\"image_id\": ID, \"caption\": TEXT}}")]
    NotAnAnnotation(usize),
    #[error("image {0:?} is listed twice; keep one")]
    DuplicateImage(String),
    #[error("{0:?} has neither a caption nor a list of captions")]
    NoCaptionList(String),
    #[error("a caption of {0:?} is not a string")]
    CaptionNotText(String),
    #[error("a split can be selected only in Karpathy's JSON; this file has another format")]
    NoSplits,
    #[error("its images have no captions: references are needed to score against")]
    ImagesWithoutCaptions,
    #[error("unknown split `{0}`: expected one of `train`, `val`, `test`")]
    UnknownSplit(String),
    /// The field is the number of the entry, from 1.
    #[error("entry {0} of `images` lacks `filename`, `split` or `sentences`")]
    IncompleteImage(usize),
    #[error("has no images of split `{0}`")]
    EmptySplit(&'static str),
    #[error("lists images of split `{0}` more than once; keep one of each")]
    DuplicateImages(&'static str),
}

/// The captions of each image, by its id, in the order of first appearance.
pub(super) type CaptionsById = Vec<(String, Vec<String>)>;

/// The content of a caption file.
pub(super) enum CaptionDocument {
    List(Vec<ListElement>),
    /// The entries in order, with duplicate keys.
    Map(Vec<(String, MapValue)>),
}

impl CaptionDocument {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(FormatError::Empty);
        }
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return Err(FormatError::Utf16);
        }
        // The parser limits the depth of nested values.
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The captions in any format but Karpathy's.
    pub(super) fn into_captions(self) -> Result<CaptionsById, FormatError> {
        match self {
            Self::List(elements) => group_annotations(elements.into_iter().enumerate()),
            Self::Map(mut entries) => match take_annotations(&mut entries) {
                Some(elements) => group_annotations(elements.into_iter().enumerate()),
                None => captions_of_map(entries),
            },
        }
    }
}

impl<'de> Deserialize<'de> for CaptionDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOrMap;

        impl<'de> Visitor<'de> for ListOrMap {
            type Value = CaptionDocument;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("captions by image, or COCO's annotations or results")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<CaptionDocument, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element()? {
                    elements.push(element);
                }
                Ok(CaptionDocument::List(elements))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<CaptionDocument, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(CaptionDocument::Map(entries))
            }
        }

        deserializer.deserialize_any(ListOrMap)
    }
}

/// A value in the map of a caption file.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum MapValue {
    Caption(String),
    List(Vec<ListElement>),
    /// Another field of COCO's annotations.
    Other(IgnoredAny),
}

/// An element of a list in a caption file. `List` comes before `Annotation`, which serde could also
/// read from a list.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ListElement {
    Caption(String),
    List(#[expect(dead_code, reason = "only its type matters")] Vec<IgnoredAny>),
    Annotation {
        image_id: ImageId,
        caption: String,
        /// VizWiz's flags of captions that do not describe the image.
        #[serde(default)]
        is_rejected: VizWizFlag,
        #[serde(default)]
        is_precanned: VizWizFlag,
    },
    /// An element of `images`.
    Image(Box<ImageEntry>),
    Other(IgnoredAny),
}

/// The id of an image.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ImageId {
    Text(String),
    Number(i64),
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> Self {
        match id {
            ImageId::Text(text) => text,
            ImageId::Number(number) => number.to_string(),
        }
    }
}

/// Takes the list of COCO's annotations out of a map that has one.
pub(super) fn take_annotations(entries: &mut Vec<(String, MapValue)>) -> Option<Vec<ListElement>> {
    let is_annotations = |(name, value): &(String, MapValue)| {
        name == "annotations"
            && matches!(value, MapValue::List(elements) if !matches!(elements[..], [ListElement::Caption(_), ..]))
    };
    match entries.iter().position(is_annotations).map(|index| entries.swap_remove(index).1) {
        Some(MapValue::List(elements)) => Some(elements),
        _ => None,
    }
}

/// Groups COCO's annotations or results, each with its index in the list, by image.
pub(super) fn group_annotations(
    elements: impl IntoIterator<Item = (usize, ListElement)>,
) -> Result<CaptionsById, FormatError> {
    let mut groups: CaptionsById = Vec::new();
    let mut positions = HashMap::new();
    for (index, element) in elements {
        let ListElement::Annotation { image_id, caption, .. } = element else {
            return Err(FormatError::NotAnAnnotation(index + 1));
        };
        let id = String::from(image_id);
        let position = *positions.entry(id.clone()).or_insert_with(|| {
            groups.push((id, Vec::new()));
            groups.len() - 1
        });
        groups[position].1.push(single_line(&caption));
    }
    Ok(groups)
}

/// The captions of a map from ids to captions.
pub(super) fn captions_of_map(entries: Vec<(String, MapValue)>) -> Result<CaptionsById, FormatError> {
    let mut seen_ids = HashSet::new();
    let mut groups = Vec::with_capacity(entries.len());
    for (id, value) in entries {
        if !seen_ids.insert(id.clone()) {
            return Err(FormatError::DuplicateImage(id));
        }
        let elements = match value {
            MapValue::Caption(caption) => vec![ListElement::Caption(caption)],
            MapValue::List(elements) => elements,
            MapValue::Other(_) => return Err(FormatError::NoCaptionList(id)),
        };
        let captions = elements.into_iter().map(|element| match element {
            ListElement::Caption(caption) => Ok(single_line(&caption)),
            _ => Err(FormatError::CaptionNotText(id.clone())),
        });
        let captions = captions.collect::<Result<_, _>>()?;
        groups.push((id, captions));
    }
    Ok(groups)
}
