//! Images and what people said of them: annotation formats, tars in folders or buckets, and the pixels that CLIP sees.
//!
//! Both sides use this: the coordinator to check a run's data before it starts, the workers to train on it. Everything here
//! blocks; call it from plain threads, never from asynchronous code.

mod annotations;
mod braces;
mod checks;
mod coco;
mod error;
mod index;
mod karpathy;
mod members;
mod names;
mod positives;
pub mod preprocess;
mod shards;
mod store;
mod webdataset;

use std::collections::HashMap;
use std::fmt::{Display, Formatter};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::Bytes;
use sha2::{Digest, Sha256};

pub use error::{Error, UnknownSplit};
use positives::Positives;
use shards::{Member, Shards};

/// Encoded images above this many bytes are refused: no photograph comes near.
const LARGEST_IMAGE: u64 = 256 << 20;

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Trained on.
    Train,
    /// Evaluated on, never trained on.
    Validation,
    /// Neither trained on nor looked at while training; may be empty.
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The name used on command lines and in annotations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        }
    }
}

impl Display for Split {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Split {
    type Err = UnknownSplit;

    fn from_str(name: &str) -> Result<Self, UnknownSplit> {
        match name {
            "train" => Ok(Self::Train),
            "val" | "validation" => Ok(Self::Validation),
            "test" => Ok(Self::Test),
            _ => Err(UnknownSplit(name.to_owned())),
        }
    }
}

/// An image and what people said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Identifies the image within its split, in the journal, reports and result files: its file name, or the key in its tar.
    /// Where these are not unique, the path or the tar is part of it.
    pub name: String,
    /// The image's number in its data set (COCO's, where it is known). All images of a split have one of their own, or none has.
    pub id: Option<u64>,
    /// Human captions. At least one in the splits that a run trains and evaluates on; none in splits for evaluation servers.
    pub captions: Vec<String>,
    /// Which of nocaps' domains the image belongs to; see [`statistics::names::DOMAINS`].
    pub domain: Option<&'static str>,
    /// Path below the images' folder, or key in the tar, where that is not `name`.
    path: Option<String>,
    /// Whether another image of the split has the same path (in another tar).
    shares_path: bool,
    /// Whether another image of the split has the same file name (in another folder).
    shares_file_name: bool,
    image: ImageRef,
}

impl Item {
    fn new(name: &str, captions: Vec<String>, image: ImageRef) -> Self {
        let name = name.to_owned();
        let (shares_path, shares_file_name) = (false, false);
        Self { name, id: None, captions, domain: None, path: None, shares_path, shares_file_name, image }
    }
}

/// Where an image's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ImageRef {
    File(PathBuf),
    Member(Member),
}

/// Items of each split, in the order of their annotations.
#[derive(Debug, Default)]
struct Splits {
    train: Vec<Item>,
    validation: Vec<Item>,
    test: Vec<Item>,
    /// What was left out or not understood, a line each.
    notes: Vec<String>,
}

impl Splits {
    fn get(&self, split: Split) -> &[Item] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        }
    }

    fn get_mut(&mut self, split: Split) -> &mut Vec<Item> {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
            Split::Test => &mut self.test,
        }
    }
}

/// The images and captions of a run.
#[derive(Debug)]
pub struct DataSet {
    splits: Splits,
    skipped: u64,
    shards: Option<Shards>,
    positives: Positives,
}

/// How far images are looked at when a data set is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Every image's header, unless a feature store stands in for the images.
    Headers,
    /// Annotations only.
    Nothing,
}

impl DataSet {
    /// Reads the annotations of all splits and looks at every image's header, unless a feature store stands in for them; tars
    /// are indexed instead, once, and their index is kept beside them.
    ///
    /// # Errors
    /// Annotations cannot be read or are not in their format; the split for training or validation is empty; or an image is
    /// missing or no image while `skip_corrupt` is unset.
    pub fn load(settings: &runfile::Data) -> Result<Self, Error> {
        let mut data = Self::read_splits(settings, &Split::ALL, Look::Headers)?;
        data.complete(settings)?;
        if let Some(positives) = &settings.positives {
            data.positives = Positives::load(positives, data.split(Split::Train))?;
        }
        Ok(data)
    }

    /// Like [`load`](Self::load), of one split alone, which may be without captions; the other splits are empty.
    ///
    /// # Errors
    /// Like `load`.
    pub fn load_split(settings: &runfile::Data, split: Split) -> Result<Self, Error> {
        let data = Self::read_splits(settings, &[split], Look::Headers)?;
        data.not_empty(split, settings)?;
        Ok(data)
    }

    /// Like [`load_split`](Self::load_split), but no image is looked at; the split may be empty.
    ///
    /// # Errors
    /// Annotations or tars cannot be read or are not in their format.
    pub fn annotated(settings: &runfile::Data, split: Split) -> Result<Self, Error> {
        Self::read_splits(settings, &[split], Look::Nothing)
    }

    fn read_splits(settings: &runfile::Data, wanted: &[Split], look: Look) -> Result<Self, Error> {
        let data = if let Some(tars) = &settings.webdataset {
            let access = storage::Access::environment().streaming();
            webdataset::load(tars, wanted, settings.skip_corrupt, access)?
        } else if let Some(karpathy) = &settings.karpathy {
            Self::of_files(karpathy::read_splits(&karpathy.annotations, &karpathy.images, wanted)?, settings, look)?
        } else if let Some(coco) = &settings.coco {
            Self::of_files(coco::read_splits(coco, wanted)?, settings, look)?
        } else {
            return Err(Error::format("data", "needs exactly one of `karpathy`, `coco` and `webdataset`"));
        };
        if look != Look::Nothing {
            data.notes().iter().for_each(|note| tracing::warn!("{note}"));
        }
        Ok(data)
    }

    fn of_files(mut splits: Splits, settings: &runfile::Data, look: Look) -> Result<Self, Error> {
        let mut skipped = 0;
        // A feature store stands in for the images, unless they say which of them it left out.
        let features = settings.features.is_some() && !settings.skip_corrupt;
        if look == Look::Headers && !features {
            for split in Split::ALL {
                skipped += checks::keep_images(splits.get_mut(split), settings.skip_corrupt)?;
            }
        }
        Ok(Self { splits, skipped, shards: None, positives: Positives::default() })
    }

    /// Checks that there is something to train on and something to evaluate on, with captions.
    fn complete(&self, settings: &runfile::Data) -> Result<(), Error> {
        for (split, why) in [
            (Split::Train, "training needs captions"),
            (
                Split::Validation,
                "evaluations during training score against captions; `worker evaluate` takes such a split",
            ),
        ] {
            self.not_empty(split, settings)?;
            if self.split(split).iter().all(|item| item.captions.is_empty()) {
                return Err(Error::format(source(settings, split), format!("split `{split}` has no captions: {why}")));
            }
        }
        Ok(())
    }

    fn not_empty(&self, split: Split, settings: &runfile::Data) -> Result<(), Error> {
        if !self.split(split).is_empty() {
            return Ok(());
        }
        let why: String = self.notes().iter().map(|note| format!("; {note}")).collect();
        Err(Error::format(source(settings, split), format!("no usable image in split `{split}`{why}")))
    }

    /// What was left out or not understood, a line each, for people. Images that are left out because they are damaged are
    /// not among it; see [`skipped`](Self::skipped).
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.splits.notes
    }

    /// The items of a split, in the order of their annotations.
    #[must_use]
    pub fn split(&self, split: Split) -> &[Item] {
        self.splits.get(split)
    }

    /// Images left out because their file is missing or not an image.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Captions of the training split.
    #[must_use]
    pub fn train_captions(&self) -> u64 {
        self.splits.train.iter().map(|item| item.captions.len() as u64).sum()
    }

    /// Generated captions of a training image, if there are any.
    #[must_use]
    pub fn generated_captions(&self, image: usize) -> &[String] {
        self.positives.captions(image)
    }

    /// A generated picture of what training image `image` shows, as CLIP sees it; see [`pixels`](Self::pixels).
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn generated_pixels(&self, image: usize, size: u32) -> Result<Vec<u8>, Error> {
        let path = self.positives.image(&self.splits.train[image])?;
        preprocess::square(&read_file(&path)?, size).map_err(|problem| Error::image(path.display(), problem))
    }

    /// SHA-256 over the ordered names and captions of training and validation; equal where two workers see the same data.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let real = self.splits.train.iter().chain(&self.splits.validation);
        let real = real.map(|item| (Some(&item.name), &item.captions[..]));
        let generated = self.positives.all_captions().map(|captions| (None, captions));
        for (name, captions) in real.chain(generated) {
            for text in name.into_iter().chain(captions) {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text);
            }
            hash.update(b"\n");
        }
        format!("{:x}", hash.finalize())
    }

    /// SHA-256 over the ordered names of a split's images.
    #[must_use]
    pub fn names_sha256(&self, split: Split) -> String {
        let mut hash = Sha256::new();
        for item in self.split(split) {
            hash.update((item.name.len() as u64).to_le_bytes());
            hash.update(&item.name);
        }
        format!("{:x}", hash.finalize())
    }

    /// The image's encoded bytes. May be called from many threads at once.
    ///
    /// # Errors
    /// The file or tar cannot be read, or has changed since the set was loaded.
    pub fn read(&self, item: &Item) -> Result<Bytes, Error> {
        match (&item.image, &self.shards) {
            (ImageRef::File(path), _) => read_file(path),
            (ImageRef::Member(member), Some(shards)) => shards.read(member),
            (ImageRef::Member(_), None) => Err(Error::image(&item.name, "belongs to another data set")),
        }
    }

    /// The image as CLIP sees it: `size` x `size` pixels, red, green and blue interleaved, row by row.
    ///
    /// # Errors
    /// Like [`read`](Self::read), or the image is damaged or absurdly large.
    pub fn pixels(&self, item: &Item, size: u32) -> Result<Vec<u8>, Error> {
        let encoded = self.read(item)?;
        preprocess::square(&encoded, size).map_err(|problem| Error::image(self.place(item), problem))
    }

    /// Names an item's image for people.
    fn place(&self, item: &Item) -> String {
        match (&item.image, &self.shards) {
            (ImageRef::Member(member), Some(shards)) => shards.place(member, item.path()),
            (ImageRef::Member(_), None) => item.name.clone(),
            (ImageRef::File(path), _) => path.display().to_string(),
        }
    }
}

/// Names the file that a split comes from in errors.
fn source(settings: &runfile::Data, split: Split) -> String {
    if let Some(karpathy) = &settings.karpathy {
        return karpathy.annotations.display().to_string();
    }
    let of = |splits: [Option<String>; 3]| {
        let [train, validation, test] = splits;
        match split {
            Split::Train => train,
            Split::Validation => validation,
            Split::Test => test,
        }
    };
    let found = match (&settings.coco, &settings.webdataset) {
        (Some(coco), _) => of([Some(&coco.train), Some(&coco.validation), coco.test.as_ref()]
            .map(|split| split.map(|split| split.annotations.display().to_string()))),
        (None, Some(tars)) => of([Some(tars.train.clone()), Some(tars.validation.clone()), tars.test.clone()]),
        (None, None) => None,
    };
    found.unwrap_or_else(|| "data".to_owned())
}

/// The files of the validation split's images, by name, where they are in a folder. Only annotations are read.
///
/// # Errors
/// They cannot be read or are not in their format.
pub fn validation_files(settings: &runfile::Data) -> Result<HashMap<String, PathBuf>, Error> {
    if settings.webdataset.is_some() {
        return Ok(HashMap::new());
    }
    let data = DataSet::annotated(settings, Split::Validation)?;
    let file = |item: Item| match item.image {
        ImageRef::File(path) => Some((item.name, path)),
        ImageRef::Member(_) => None,
    };
    Ok(data.splits.validation.into_iter().filter_map(file).collect())
}

/// The bytes of an image file, of any size that an image may have.
///
/// # Errors
/// It cannot be read, or no image is as large.
pub fn read_file(path: &Path) -> Result<Bytes, Error> {
    let failed = |source| Error::Read { place: path.display().to_string(), source };
    let mut encoded = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(LARGEST_IMAGE + 1).read_to_end(&mut encoded).map_err(failed)?;
    if encoded.len() as u64 > LARGEST_IMAGE {
        return Err(Error::image(path.display(), format!("larger than {LARGEST_IMAGE} bytes")));
    }
    Ok(encoded.into())
}

#[cfg(test)]
mod tests;
