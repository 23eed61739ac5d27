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
pub mod limits;
mod members;
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
    /// File name, or the key in its tar: names the image in reports.
    pub name: String,
    /// Its number in COCO, where the annotations say it.
    pub id: Option<u64>,
    /// At least one.
    pub captions: Vec<String>,
    image: ImageRef,
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

impl DataSet {
    /// Reads the annotations of all splits and looks at every image's header, unless a feature store stands in for them; tars
    /// are indexed instead, once, and their index is kept beside them.
    ///
    /// # Errors
    /// Annotations cannot be read or are not in their format; the split for training or validation is empty; or an image is
    /// missing or no image while `skip_corrupt` is unset; or there is more of something than [`limits`] allow.
    pub fn load(settings: &runfile::Data) -> Result<Self, Error> {
        let mut data = Self::real(settings)?;
        data.check_texts(|split| source(settings, split))?;
        if let Some(positives) = &settings.positives {
            data.positives = Positives::load(positives, data.split(Split::Train))?;
        }
        Ok(data)
    }

    fn real(settings: &runfile::Data) -> Result<Self, Error> {
        if let Some(tars) = &settings.webdataset {
            return webdataset::load(tars, settings.skip_corrupt, storage::Access::environment().streaming())?
                .complete(&tars.train);
        }
        if let Some(karpathy) = &settings.karpathy {
            let splits = karpathy::read_splits(&karpathy.annotations, &karpathy.images)?;
            return Self::of_files(splits, settings)?.complete(karpathy.annotations.display());
        }
        if let Some(coco) = &settings.coco {
            return Self::of_files(coco::read_splits(coco)?, settings)?.complete(coco.train.annotations.display());
        }
        Err(Error::format("data", "needs exactly one of `karpathy`, `coco` and `webdataset`"))
    }

    fn of_files(mut splits: Splits, settings: &runfile::Data) -> Result<Self, Error> {
        let mut skipped = 0;
        // A feature store stands in for the images, unless they say which of them it left out.
        if settings.features.is_some() && !settings.skip_corrupt {
            return Ok(Self { splits, skipped, shards: None, positives: Positives::default() });
        }
        for split in Split::ALL {
            skipped += checks::keep_images(splits.get_mut(split), settings.skip_corrupt)?;
        }
        Ok(Self { splits, skipped, shards: None, positives: Positives::default() })
    }

    /// The set, if there is something to train on and something to evaluate on.
    fn complete(self, source: impl Display) -> Result<Self, Error> {
        for split in [Split::Train, Split::Validation] {
            if self.split(split).is_empty() {
                return Err(Error::format(source, format!("no usable image in split `{split}`")));
            }
        }
        Ok(self)
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
            (ImageRef::Member(member), Some(shards)) => shards.place(member, &item.name),
            (ImageRef::Member(_), None) => item.name.clone(),
            (ImageRef::File(path), _) => path.display().to_string(),
        }
    }
}

/// The file or pattern that the captions of a split come from.
fn source(settings: &runfile::Data, split: Split) -> String {
    let runfile::Data { karpathy, coco, webdataset, .. } = settings;
    let karpathy = karpathy.as_ref().map(|karpathy| karpathy.annotations.display().to_string());
    let of_coco = |coco: &runfile::Coco| match split {
        Split::Train => Some(coco.train.annotations.display().to_string()),
        Split::Validation => Some(coco.validation.annotations.display().to_string()),
        Split::Test => coco.test.as_ref().map(|test| test.annotations.display().to_string()),
    };
    let of_tars = |tars: &runfile::WebDataset| match split {
        Split::Train => Some(tars.train.clone()),
        Split::Validation => Some(tars.validation.clone()),
        Split::Test => tars.test.clone(),
    };
    let coco = || coco.as_ref().and_then(of_coco);
    karpathy.or_else(coco).or_else(|| webdataset.as_ref().and_then(of_tars)).unwrap_or_else(|| "data".to_owned())
}

/// The files of the validation split's images, by name, where they are in a folder. Only annotations are read.
///
/// # Errors
/// They cannot be read or are not in their format.
pub fn validation_files(settings: &runfile::Data) -> Result<HashMap<String, PathBuf>, Error> {
    let splits = match (&settings.karpathy, &settings.coco) {
        (Some(karpathy), _) => karpathy::read_splits(&karpathy.annotations, &karpathy.images)?,
        (None, Some(coco)) => coco::read_splits(coco)?,
        (None, None) => Splits::default(),
    };
    let file = |item: Item| match item.image {
        ImageRef::File(path) => Some((item.name, path)),
        ImageRef::Member(_) => None,
    };
    Ok(splits.validation.into_iter().filter_map(file).collect())
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
