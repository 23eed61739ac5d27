//! Data sets of images and captions: annotation formats, and tars in folders or buckets.
//!
//! Used by the coordinator to check a run's data before it starts, and by workers to train on it.
//! All functions block: call them from synchronous threads, never from asynchronous code.

mod annotations;
mod braces;
mod checks;
mod coco;
mod error;
pub mod image_folder;
mod index;
mod karpathy;
pub mod limits;
mod members;
mod names;
mod needs;
mod overlap;
mod positives;
mod shards;
mod store;
mod webdataset;

use std::collections::HashMap;
use std::fmt::{Display, Formatter};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::Bytes;
use image_preprocess::{CropOffset, MAX_ENCODED_BYTES, Oddities, Preprocessing};
use sha2::{Digest, Sha256};

pub use error::{Error, UnknownSplit};
use positives::Positives;
use shards::{Member, Shards};

/// Maximal number of odd images that are named in a line.
const NAMED: usize = 20;
/// The size to which images are decoded in a test.
const TRIAL_SIZE: u32 = 224;

/// A split of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// For training.
    Train,
    /// For evaluation, never for training.
    Validation,
    /// Not used by a run; may be empty.
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

/// Parses any of the names that [`statistics::names::split`] knows.
impl FromStr for Split {
    type Err = UnknownSplit;

    fn from_str(name: &str) -> Result<Self, UnknownSplit> {
        let known = Self::ALL.into_iter().find(|split| statistics::names::split(name) == Some(split.name()));
        known.ok_or_else(|| UnknownSplit(name.to_owned()))
    }
}

/// An image with its captions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The name of the image, unique within its split, in the journal, reports and result files:
    /// its file name, or the key in its tar. If these are not unique, the path or the tar is part
    /// of it.
    pub name: String,
    /// The image's number in its data set (COCO's, if known). All images of a split have different
    /// ones, or none has one.
    pub id: Option<u64>,
    /// The reference captions. All images of a split have at least one, or none has any.
    pub captions: Vec<String>,
    /// The image's domain in nocaps; see [`statistics::names::DOMAINS`].
    pub domain: Option<&'static str>,
    /// The path below the images' folder, or the key in the tar, if that is not `name`.
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

    /// The image's file; none if it is in a tar.
    fn file(&self) -> Option<&Path> {
        match &self.image {
            ImageRef::File(path) => Some(path),
            ImageRef::Member(_) => None,
        }
    }
}

/// An image that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadImage {
    /// The split that contains it.
    pub split: Split,
    /// Its file, or its tar and its key in it.
    pub place: String,
    /// The problem with it.
    pub problem: String,
}

impl Display for BadImage {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.place, self.problem)
    }
}

/// Images whose pixels may be unexpected, among those that were checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OddImages {
    /// Photos with an EXIF orientation other than 1.
    pub turned: Vec<String>,
    /// 16-bit greyscale images.
    pub grey_of_16_bits: Vec<String>,
}

/// The location of an image's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ImageRef {
    File(PathBuf),
    Member(Member),
}

/// The items of each split, in the order of their annotations.
#[derive(Debug, Default)]
struct Splits {
    train: Vec<Item>,
    validation: Vec<Item>,
    test: Vec<Item>,
    /// Images with unusable annotations.
    unusable: Vec<BadImage>,
    /// Notes on what was skipped or not understood, one line each.
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
#[derive(Debug, Default)]
pub struct DataSet {
    splits: Splits,
    left_out: Vec<BadImage>,
    odd: OddImages,
    shards: Option<Shards>,
    positives: Positives,
    preprocessing: Preprocessing,
}

/// Which checks of images are made when a data set is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImageChecks {
    /// The header and end of each image, unless a feature store replaces the images.
    Images,
    /// None: only annotations are read.
    Nothing,
}

impl DataSet {
    /// Reads the annotations of all splits, and checks the header and end of each image, unless a
    /// feature store replaces the images. Tars are indexed instead, once, and the index is stored
    /// beside them. Logs which images are skipped or odd.
    ///
    /// # Errors
    /// Annotations cannot be read or have a wrong format; an image is missing or invalid while
    /// `skip_corrupt` is unset; the training or validation split is empty; or a limit of [`limits`]
    /// is exceeded.
    pub fn load(settings: &config::Data) -> Result<Self, Error> {
        let data = Self::survey(settings)?;
        data.report(settings)?;
        data.trainable(settings)?;
        Ok(data)
    }

    /// As [`load`](Self::load), for a run that will train on the data.
    ///
    /// # Errors
    /// As for `load`; or a split has no captions although the run needs them.
    pub fn load_for(run: &config::RunFile) -> Result<Self, Error> {
        let data = Self::load(&run.data)?;
        data.captioned(run)?;
        Ok(data)
    }

    /// As [`load`](Self::load), for a single split, which may have no captions; the other splits
    /// are empty.
    ///
    /// # Errors
    /// As for `load`.
    pub fn load_split(settings: &config::Data, split: Split) -> Result<Self, Error> {
        let data = Self::read_splits(settings, &[split], ImageChecks::Images)?;
        data.report(settings)?;
        data.not_empty(split, settings)?;
        Ok(data)
    }

    /// As [`load`](Self::load), but unusable images are always skipped, even all of them, and
    /// nothing is logged.
    ///
    /// # Errors
    /// Annotations cannot be read or have a wrong format.
    pub fn survey(settings: &config::Data) -> Result<Self, Error> {
        Self::survey_splits(settings, &Split::ALL)
    }

    /// As [`survey`](Self::survey), for some splits; the others are empty.
    ///
    /// # Errors
    /// As for `survey`.
    pub fn survey_splits(settings: &config::Data, wanted: &[Split]) -> Result<Self, Error> {
        let mut data = Self::read_splits(settings, wanted, ImageChecks::Images)?;
        if let Some(positives) = settings.positives.as_ref().filter(|_| wanted.contains(&Split::Train)) {
            data.find_positives(positives)?;
        }
        Ok(data)
    }

    /// As [`load_split`](Self::load_split), but without checks of images; the split may be empty.
    ///
    /// # Errors
    /// Annotations or tars cannot be read or have a wrong format.
    pub fn annotated(settings: &config::Data, split: Split) -> Result<Self, Error> {
        Self::read_splits(settings, &[split], ImageChecks::Nothing)
    }

    fn read_splits(settings: &config::Data, wanted: &[Split], look: ImageChecks) -> Result<Self, Error> {
        // A feature store replaces the images, unless skipped images have to be known.
        let looks = look == ImageChecks::Images && (settings.features.is_none() || settings.skip_corrupt);
        let mut data = if let Some(tars) = &settings.webdataset {
            webdataset::load(tars, wanted, object_io::Access::environment().streaming())?
        } else if let Some(karpathy) = &settings.karpathy {
            Self::of_files(karpathy::read_splits(&karpathy.annotations, &karpathy.images, wanted)?, looks)
        } else if let Some(coco) = &settings.coco {
            Self::of_files(coco::read_splits(coco, wanted)?, looks)
        } else {
            return Err(Error::format("data", "needs exactly one of `karpathy`, `coco` and `webdataset`"));
        };
        data.check_texts(|split| source(settings, split))?;
        data.preprocessing = preprocessing(settings);
        Ok(data)
    }

    fn of_files(mut splits: Splits, looks: bool) -> Self {
        let left_out = std::mem::take(&mut splits.unusable);
        if !looks {
            return Self { splits, left_out, ..Self::default() };
        }
        let mut data = Self { left_out, ..Self::default() };
        data.splits.notes = std::mem::take(&mut splits.notes);
        for split in Split::ALL {
            let items = std::mem::take(splits.get_mut(split));
            let files: Vec<&Path> = items.iter().filter_map(Item::file).collect();
            let found = checks::look(&files);
            items.into_iter().zip(found).for_each(|(item, found)| data.add(split, item, found));
        }
        data
    }

    /// Adds an item, or skips it.
    fn add(&mut self, split: Split, item: Item, found: Result<Oddities, String>) {
        let place = || self.place(&item);
        match found {
            Err(problem) => {
                let bad = BadImage { split, place: place(), problem };
                self.left_out.push(bad);
            }
            Ok(Oddities { is_turned, is_grey_of_16_bits }) => {
                let (turned, grey) = (is_turned.then(place), is_grey_of_16_bits.then(place));
                self.odd.turned.extend(turned);
                self.odd.grey_of_16_bits.extend(grey);
                self.splits.get_mut(split).push(item);
            }
        }
    }

    /// Finds generated images and captions of the training split. Skips images whose generated
    /// image cannot be used.
    fn find_positives(&mut self, settings: &config::Positives) -> Result<(), Error> {
        if let Some(folder) = &settings.images {
            let items = std::mem::take(&mut self.splits.train);
            let files: Vec<PathBuf> = items.iter().map(|item| positives::image(folder, item)).collect();
            let found = checks::look(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>());
            for ((item, file), found) in items.into_iter().zip(files).zip(found) {
                match found {
                    Ok(_) => self.splits.train.push(item),
                    Err(problem) => {
                        let (place, split) = (file.display().to_string(), Split::Train);
                        let hint = if file.exists() { "" } else { positives::ambiguous(&item) };
                        let problem = format!("generated image: {problem}{hint}");
                        self.left_out.push(BadImage { split, place, problem });
                    }
                }
            }
        }
        self.positives = Positives::load(settings, &self.splits.train)?;
        Ok(())
    }

    /// Logs which images are skipped or odd, and the notes.
    ///
    /// # Errors
    /// An image would have to be skipped while `skip_corrupt` is unset.
    fn report(&self, settings: &config::Data) -> Result<(), Error> {
        if let ([first, rest @ ..], false) = (&self.left_out[..], settings.skip_corrupt) {
            let BadImage { place, problem, .. } = first.clone();
            return Err(Error::Unusable { place, problem, more: rest.len() });
        }
        self.left_out.iter().for_each(|bad| tracing::warn!("leaving out {bad}"));
        for warning in self.notes().iter().cloned().chain(self.warnings()) {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    /// Checks that there are images for training and evaluation, with captions where `run` needs
    /// them.
    ///
    /// # Errors
    /// There are not.
    pub fn complete(&self, run: &config::RunFile) -> Result<(), Error> {
        self.trainable(&run.data)?;
        self.captioned(run)
    }

    fn trainable(&self, settings: &config::Data) -> Result<(), Error> {
        [Split::Train, Split::Validation].into_iter().try_for_each(|split| self.not_empty(split, settings))
    }

    fn captioned(&self, run: &config::RunFile) -> Result<(), Error> {
        match Split::ALL.into_iter().find_map(|split| self.missing_captions(run, split)) {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }

    /// The error that `run` needs captions of a split that has none; none if it does not.
    #[must_use]
    pub fn missing_captions(&self, run: &config::RunFile, split: Split) -> Option<Error> {
        if !self.lacks_captions(split) {
            return None;
        }
        let reason = needs::reason(run, split)?;
        Some(Error::format(source(&run.data, split), format!("split `{split}` has no captions: {reason}")))
    }

    /// Whether a split has images and none of them has captions.
    #[must_use]
    pub fn lacks_captions(&self, split: Split) -> bool {
        let items = self.split(split);
        !items.is_empty() && items.iter().all(|item| item.captions.is_empty())
    }

    fn not_empty(&self, split: Split, settings: &config::Data) -> Result<(), Error> {
        if !self.split(split).is_empty() {
            return Ok(());
        }
        let mut of_split = self.left_out.iter().filter(|bad| bad.split == split);
        let left_out = of_split
            .next()
            .map(|first| format!("images left out: {}, the first of them {first}", 1 + of_split.count()));
        let why: String = left_out.iter().chain(self.notes()).map(|reason| format!("; {reason}")).collect();
        Err(Error::format(source(settings, split), format!("no usable image in split `{split}`{why}")))
    }

    /// Notes on what was skipped or not understood, one line each. Damaged images are not included;
    /// see [`left_out`](Self::left_out).
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.splits.notes
    }

    /// Warnings about odd images, with some of their names.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let OddImages { turned, grey_of_16_bits } = &self.odd;
        let turned = if self.preprocessing.exif { &[][..] } else { turned };
        let of = |images: &[String], what: &str| {
            let first = images.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if images.len() > NAMED { ", ..." } else { "" };
            (!images.is_empty()).then(|| format!("{} images {what}: {first}{more}", images.len()))
        };
        let turned = of(
            turned,
            "have an EXIF orientation that is not applied, as CLIP's own preprocessing does not (data.exif: true applies it)",
        );
        let grey = of(
            grey_of_16_bits,
            "are greyscale of 16 bits, where all above 255 becomes white, as Pillow has it (convert them to 8 bits)",
        );
        turned.into_iter().chain(grey)
    }

    /// The items of a split, in the order of their annotations.
    #[must_use]
    pub fn split(&self, split: Split) -> &[Item] {
        self.splits.get(split)
    }

    /// Images that are skipped because their file is missing, invalid or truncated, as far as that
    /// is visible without decoding.
    #[must_use]
    pub fn left_out(&self) -> &[BadImage] {
        &self.left_out
    }

    /// Images whose pixels may be unexpected.
    #[must_use]
    pub fn odd(&self) -> &OddImages {
        &self.odd
    }

    /// A data set of these files as the test split, each with its name, without captions.
    #[must_use]
    pub fn of_images(files: Vec<(String, PathBuf)>) -> Self {
        let item = |(name, path): (String, PathBuf)| Item::new(&name, Vec::new(), ImageRef::File(path));
        let splits = Splits { test: files.into_iter().map(item).collect(), ..Splits::default() };
        Self { splits, ..Self::default() }
    }

    /// The same data set with only these items of a split, by index, in this order.
    ///
    /// # Panics
    /// If the split has no item with such an index.
    #[must_use]
    pub fn select(mut self, split: Split, numbers: &[usize]) -> Self {
        let items = self.splits.get_mut(split);
        *items = numbers.iter().map(|&number| items[number].clone()).collect();
        self
    }

    /// A data set with the items of `split` as the test split, and no others.
    #[must_use]
    pub fn as_test(mut self, split: Split) -> Self {
        let items = std::mem::take(self.splits.get_mut(split));
        self.splits = Splits { test: items, ..Splits::default() };
        self
    }

    /// The preprocessing of images.
    #[must_use]
    pub fn preprocessing(&self) -> Preprocessing {
        self.preprocessing
    }

    /// Decodes some images of a split, by index, on this number of threads, and their generated
    /// images. Returns which cannot be decoded; calls `done` after each.
    ///
    /// # Errors
    /// A tar cannot be read, or has changed since the data set was loaded.
    pub fn try_decoding(
        &self,
        split: Split,
        images: &[usize],
        threads: usize,
        done: impl Fn() + Sync,
    ) -> Result<Vec<BadImage>, Error> {
        let items = self.split(split);
        let attempt = |at: usize| {
            let item = &items[images[at]];
            let mut decoded = self.pixels(item, TRIAL_SIZE);
            if split == Split::Train && self.positives.has_images() {
                decoded = decoded.and_then(|_| self.generated_pixels(images[at], TRIAL_SIZE));
            }
            done();
            match decoded {
                Ok(_) => Ok(None),
                Err(Error::Image { place, problem }) => Ok(Some(BadImage { split, place, problem })),
                Err(Error::Read { place, source }) => Ok(Some(BadImage { split, place, problem: source.to_string() })),
                Err(error) => Err(error),
            }
        };
        checks::in_parallel(images.len(), threads, attempt).into_iter().filter_map(Result::transpose).collect()
    }

    /// The number of captions of the training split.
    #[must_use]
    pub fn train_captions(&self) -> u64 {
        self.splits.train.iter().map(|item| item.captions.len() as u64).sum()
    }

    /// The generated captions of a training image; may be empty.
    #[must_use]
    pub fn generated_captions(&self, image: usize) -> &[String] {
        self.positives.captions(image)
    }

    /// The preprocessed generated image for training image `image`; see [`pixels`](Self::pixels).
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn generated_pixels(&self, image: usize, size: u32) -> Result<Vec<u8>, Error> {
        let path = self.positives.image(&self.splits.train[image])?;
        self.preprocessing.square(&read_file(&path)?, size).map_err(|problem| Error::image(path.display(), problem))
    }

    /// The SHA-256 of the ordered names and captions of the training split, and of generated
    /// captions: equal on two workers with the same training data.
    #[must_use]
    pub fn training_sha256(&self) -> String {
        sha256_of(self.named(Split::Train).chain(self.positives.all_captions().map(|captions| (None, captions))))
    }

    /// The SHA-256 of the ordered names and captions of the validation split: equal on two workers
    /// with the same validation data.
    #[must_use]
    pub fn validation_sha256(&self) -> String {
        sha256_of(self.named(Split::Validation))
    }

    fn named(&self, split: Split) -> impl Iterator<Item = (Option<&String>, &[String])> {
        self.split(split).iter().map(|item| (Some(&item.name), &item.captions[..]))
    }

    /// The SHA-256 of the ordered names of a split's images.
    #[must_use]
    pub fn names_sha256(&self, split: Split) -> String {
        let mut hash = Sha256::new();
        for item in self.split(split) {
            hash.update((item.name.len() as u64).to_le_bytes());
            hash.update(&item.name);
        }
        format!("{:x}", hash.finalize())
    }

    /// The encoded bytes of an image. Thread-safe.
    ///
    /// # Errors
    /// The file or tar cannot be read, or has changed since the data set was loaded.
    pub fn read(&self, item: &Item) -> Result<Bytes, Error> {
        match (&item.image, &self.shards) {
            (ImageRef::File(path), _) => read_file(path),
            (ImageRef::Member(member), Some(shards)) => shards.read(member),
            (ImageRef::Member(_), None) => Err(Error::image(&item.name, "belongs to another data set")),
        }
    }

    /// The preprocessed image: `size` x `size` pixels, RGB interleaved, row by row.
    ///
    /// # Errors
    /// As for [`read`](Self::read); or the image is damaged or too large.
    pub fn pixels(&self, item: &Item, size: u32) -> Result<Vec<u8>, Error> {
        let encoded = self.read(item)?;
        self.preprocessing.square(&encoded, size).map_err(|problem| Error::image(self.place(item), problem))
    }

    /// The file, or the key and tar, of an item's image, for messages.
    #[must_use]
    pub fn place(&self, item: &Item) -> String {
        match (&item.image, &self.shards) {
            (ImageRef::Member(member), Some(shards)) => shards.place(member, item.path()),
            (ImageRef::Member(_), None) => item.name.clone(),
            (ImageRef::File(path), _) => path.display().to_string(),
        }
    }
}

/// The SHA-256 of texts in order; each group ends with a line feed.
fn sha256_of<'a>(groups: impl Iterator<Item = (Option<&'a String>, &'a [String])>) -> String {
    let mut hash = Sha256::new();
    for (name, captions) in groups {
        for text in name.into_iter().chain(captions) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.update(b"\n");
    }
    format!("{:x}", hash.finalize())
}

/// The preprocessing of images that a run file sets.
fn preprocessing(settings: &config::Data) -> Preprocessing {
    let crop_offset = match settings.crop_offset {
        config::CropOffset::HalfToEven => CropOffset::HalfToEven,
        config::CropOffset::Floor => CropOffset::Floor,
    };
    Preprocessing { exif: settings.exif, crop_offset }
}

/// The file or pattern of a split's captions.
fn source(settings: &config::Data, split: Split) -> String {
    let config::Data { karpathy, coco, webdataset, .. } = settings;
    let karpathy = karpathy.as_ref().map(|karpathy| karpathy.annotations.display().to_string());
    let of_coco = |coco: &config::Coco| match split {
        Split::Train => Some(coco.train.annotations.display().to_string()),
        Split::Validation => Some(coco.validation.annotations.display().to_string()),
        Split::Test => coco.test.as_ref().map(|test| test.annotations.display().to_string()),
    };
    let of_tars = |tars: &config::WebDataset| match split {
        Split::Train => Some(tars.train.clone()),
        Split::Validation => Some(tars.validation.clone()),
        Split::Test => tars.test.clone(),
    };
    let coco = || coco.as_ref().and_then(of_coco);
    karpathy.or_else(coco).or_else(|| webdataset.as_ref().and_then(of_tars)).unwrap_or_else(|| "data".to_owned())
}

/// The paths of the validation split's images, by name; empty if they are in tars. Reads only
/// annotations.
///
/// # Errors
/// They cannot be read or have a wrong format.
pub fn validation_files(settings: &config::Data) -> Result<HashMap<String, PathBuf>, Error> {
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

/// The bytes of an image file, up to the maximal size of an image.
///
/// # Errors
/// It cannot be read, or is too large.
pub fn read_file(path: &Path) -> Result<Bytes, Error> {
    let failed = |source| Error::Read { place: path.display().to_string(), source };
    let mut encoded = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_ENCODED_BYTES + 1).read_to_end(&mut encoded).map_err(failed)?;
    if encoded.len() as u64 > MAX_ENCODED_BYTES {
        return Err(Error::image(path.display(), format!("larger than {MAX_ENCODED_BYTES} bytes")));
    }
    Ok(encoded.into())
}

#[cfg(test)]
mod tests;
