//! The items of a data set: images with their captions.

use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};

use crate::Split;
use crate::shards::TarMember;

/// An image with its captions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The name of the image, unique within its split, in the journal, reports and result files:
    /// its file name, or the key in its tar. If these are not unique in the split, the path or the
    /// tar is part of the name.
    pub name: String,
    /// The image's numeric id in its data set: the COCO id, if the data set has COCO ids. Within a
    /// split, either all images have distinct ids or no image has an id.
    pub id: Option<u64>,
    /// The reference captions. Within a split, either every image has captions or no image has.
    pub captions: Vec<String>,
    /// The image's domain in nocaps; see [`metric_catalogue::names::NOCAPS_DOMAINS`].
    pub domain: Option<&'static str>,
    /// The path below the images' folder, or the key in the tar, if that is not `name`.
    pub(crate) path: Option<String>,
    /// Whether another image of the split has the same path (in another tar).
    pub(crate) shares_path: bool,
    /// Whether another image of the split has the same file name (in another folder).
    pub(crate) shares_file_name: bool,
    pub(crate) image: ImageRef,
}

impl Item {
    pub(crate) fn new(name: &str, captions: Vec<String>, image: ImageRef) -> Self {
        let name = name.to_owned();
        let (shares_path, shares_file_name) = (false, false);
        Self { name, id: None, captions, domain: None, path: None, shares_path, shares_file_name, image }
    }

    /// The image's file; none if it is in a tar.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.image {
            ImageRef::File(path) => Some(path),
            ImageRef::TarMember(_) => None,
        }
    }
}

/// Where an image's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// A file of its own.
    File(PathBuf),
    /// A member of a tar.
    TarMember(TarMember),
}

/// An image that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadImage {
    /// The split that contains it.
    pub split: Split,
    /// Its file, or its key and its tar.
    pub location: String,
    /// The problem with it.
    pub problem: String,
}

impl Display for BadImage {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.location, self.problem)
    }
}

/// Images whose pixels may be unexpected, among those that were checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnusualImages {
    /// The locations of photos with an EXIF orientation other than 1.
    pub exif_rotated: Vec<String>,
    /// The locations of 16-bit greyscale images.
    pub greyscale_16_bit: Vec<String>,
}

/// The items of each split, in the order of their annotations.
#[derive(Debug, Default)]
pub struct Splits {
    pub train: Vec<Item>,
    pub validation: Vec<Item>,
    pub test: Vec<Item>,
    /// Images with unusable annotations.
    pub unusable: Vec<BadImage>,
    /// Notes on annotations and tar members that are skipped or unknown, one line each.
    pub notes: Vec<String>,
}

impl Splits {
    pub fn get(&self, split: Split) -> &[Item] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        }
    }

    pub fn get_mut(&mut self, split: Split) -> &mut Vec<Item> {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
            Split::Test => &mut self.test,
        }
    }
}
