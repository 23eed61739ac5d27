//! A loaded data set: its items, images and fingerprints.

use std::path::PathBuf;

use bytes::Bytes;
use image_preprocess::Preprocessing;

use crate::positives::Positives;
use crate::shards::Shards;
use crate::{BadImage, Error, ImageRef, Item, Split, Splits, UnusualImages, fingerprint, image_checks, read_file};

/// Maximal number of unusual images that a warning names.
const MAX_NAMED_IMAGES: usize = 20;
/// The width and height, in pixels, to which [`DataSet::undecodable_images`] resizes images.
const DECODE_CHECK_SIZE: u32 = 224;

/// The images and captions of a run.
#[derive(Debug, Default)]
pub struct DataSet {
    pub(crate) splits: Splits,
    /// Images that are left out because they cannot be used.
    pub(crate) skipped: Vec<BadImage>,
    pub(crate) unusual: UnusualImages,
    /// The tars with the images; none if images are separate files.
    pub(crate) shards: Option<Shards>,
    /// The generated images and captions of the training split.
    pub(crate) positives: Positives,
    pub(crate) preprocessing: Preprocessing,
}

impl DataSet {
    /// A data set whose test split consists of these images, each a name and a file, without
    /// captions.
    #[must_use]
    pub fn from_files(files: Vec<(String, PathBuf)>) -> Self {
        let item = |(name, path): (String, PathBuf)| Item::new(&name, Vec::new(), ImageRef::File(path));
        let splits = Splits { test: files.into_iter().map(item).collect(), ..Splits::default() };
        Self { splits, ..Self::default() }
    }

    /// The same data set with only these items of a split, by index, in this order.
    ///
    /// # Panics
    /// If the split has no item with such an index.
    #[must_use]
    pub fn select(mut self, split: Split, indices: &[usize]) -> Self {
        let items = self.splits.get_mut(split);
        *items = indices.iter().map(|&index| items[index].clone()).collect();
        self
    }

    /// A data set with the items of `split` as the test split, and no others.
    #[must_use]
    pub fn into_test_split(mut self, split: Split) -> Self {
        let items = std::mem::take(self.splits.get_mut(split));
        self.splits = Splits { test: items, ..Splits::default() };
        self
    }

    /// The items of a split, in the order of their annotations.
    #[must_use]
    pub fn split(&self, split: Split) -> &[Item] {
        self.splits.get(split)
    }

    /// Whether a split has images and none of them has captions.
    #[must_use]
    pub fn lacks_captions(&self, split: Split) -> bool {
        let items = self.split(split);
        !items.is_empty() && items.iter().all(|item| item.captions.is_empty())
    }

    /// The number of captions of the training split.
    #[must_use]
    pub fn train_caption_count(&self) -> u64 {
        self.splits.train.iter().map(|item| item.captions.len() as u64).sum()
    }

    /// The generated captions of the training image with this index; may be empty.
    #[must_use]
    pub fn generated_captions(&self, image: usize) -> &[String] {
        self.positives.captions(image)
    }

    /// Notes on annotations and tar members that are skipped or unknown, one line each. Damaged
    /// images are not included; see [`skipped_images`](Self::skipped_images).
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.splits.notes
    }

    /// Warnings about unusual images, with some of their names.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let UnusualImages { exif_rotated, greyscale_16_bit } = &self.unusual;
        let exif_rotated = if self.preprocessing.exif { &[][..] } else { exif_rotated };
        let warning = |images: &[String], property: &str| {
            let first = images.iter().take(MAX_NAMED_IMAGES).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if images.len() > MAX_NAMED_IMAGES { ", ..." } else { "" };
            (!images.is_empty()).then(|| format!("{} images {property}: {first}{more}", images.len()))
        };
        let exif_rotated = warning(
            exif_rotated,
            "have an EXIF orientation that is not applied, as CLIP's own preprocessing does not (data.exif: true applies it)",
        );
        let greyscale_16_bit = warning(
            greyscale_16_bit,
            "are greyscale of 16 bits, where all above 255 becomes white, as Pillow has it (convert them to 8 bits)",
        );
        exif_rotated.into_iter().chain(greyscale_16_bit)
    }

    /// Images that are skipped because their file is missing, or because its header or last bytes
    /// show that it is invalid or truncated.
    #[must_use]
    pub fn skipped_images(&self) -> &[BadImage] {
        &self.skipped
    }

    /// Images whose pixels may be unexpected.
    #[must_use]
    pub fn unusual_images(&self) -> &UnusualImages {
        &self.unusual
    }

    /// The preprocessing of images.
    #[must_use]
    pub fn preprocessing(&self) -> Preprocessing {
        self.preprocessing
    }

    /// The encoded bytes of an image. Thread-safe.
    ///
    /// # Errors
    /// The file or tar cannot be read, the file is too large, the tar has changed since the data
    /// set was loaded, or the item belongs to another data set.
    pub fn read(&self, item: &Item) -> Result<Bytes, Error> {
        match (&item.image, &self.shards) {
            (ImageRef::File(path), _) => read_file(path),
            (ImageRef::TarMember(member), Some(shards)) => shards.read(member),
            (ImageRef::TarMember(_), None) => Err(Error::image(&item.name, "belongs to another data set")),
        }
    }

    /// The preprocessed image: `size` x `size` pixels, RGB interleaved, row by row.
    ///
    /// # Errors
    /// As for [`read`](Self::read); or the image cannot be decoded.
    pub fn pixels(&self, item: &Item, size: u32) -> Result<Vec<u8>, Error> {
        let encoded = self.read(item)?;
        self.preprocessing.apply(&encoded, size).map_err(|problem| Error::image(self.location(item), problem))
    }

    /// The preprocessed generated image for the training image with this index; see
    /// [`pixels`](Self::pixels).
    ///
    /// # Errors
    /// There is no generated image, or it cannot be read or decoded.
    pub fn generated_pixels(&self, image: usize, size: u32) -> Result<Vec<u8>, Error> {
        let path = self.positives.image(&self.splits.train[image])?;
        self.preprocessing.apply(&read_file(&path)?, size).map_err(|problem| Error::image(path.display(), problem))
    }

    /// The file, or the key and tar, of an item's image, for messages.
    #[must_use]
    pub fn location(&self, item: &Item) -> String {
        match (&item.image, &self.shards) {
            (ImageRef::TarMember(member), Some(shards)) => shards.location(member, item.path()),
            (ImageRef::TarMember(_), None) => item.name.clone(),
            (ImageRef::File(path), _) => path.display().to_string(),
        }
    }

    /// Decodes the images of a split that `images` lists by index, and their generated images, on
    /// this number of threads. Returns those that cannot be decoded; calls `on_decoded` after each
    /// image.
    ///
    /// # Errors
    /// A tar cannot be read, or has changed since the data set was loaded.
    pub fn undecodable_images(
        &self,
        split: Split,
        images: &[usize],
        threads: usize,
        on_decoded: impl Fn() + Sync,
    ) -> Result<Vec<BadImage>, Error> {
        let items = self.split(split);
        let decode = |index: usize| {
            let item = &items[images[index]];
            let mut decoded = self.pixels(item, DECODE_CHECK_SIZE);
            if split == Split::Train && self.positives.has_images() {
                decoded = decoded.and_then(|_| self.generated_pixels(images[index], DECODE_CHECK_SIZE));
            }
            on_decoded();
            match decoded {
                Ok(_) => Ok(None),
                Err(Error::Image { location, problem }) => Ok(Some(BadImage { split, location, problem })),
                Err(Error::Read { location, source }) => {
                    Ok(Some(BadImage { split, location, problem: source.to_string() }))
                }
                Err(error) => Err(error),
            }
        };
        image_checks::in_parallel(images.len(), threads, decode).into_iter().filter_map(Result::transpose).collect()
    }

    /// The SHA-256 of the ordered names and captions of the training split, and of generated
    /// captions: equal on two workers with the same training data.
    #[must_use]
    pub fn training_sha256(&self) -> String {
        let generated = self.positives.all_captions().map(|captions| (None, captions));
        fingerprint::sha256_of_captions(self.names_and_captions(Split::Train).chain(generated))
    }

    /// The SHA-256 of the ordered names and captions of the validation split: equal on two workers
    /// with the same validation data.
    #[must_use]
    pub fn validation_sha256(&self) -> String {
        fingerprint::sha256_of_captions(self.names_and_captions(Split::Validation))
    }

    fn names_and_captions(&self, split: Split) -> impl Iterator<Item = (Option<&String>, &[String])> {
        self.split(split).iter().map(|item| (Some(&item.name), &item.captions[..]))
    }

    /// The SHA-256 of the ordered names of a split's images.
    #[must_use]
    pub fn names_sha256(&self, split: Split) -> String {
        fingerprint::sha256_of_names(self.split(split).iter().map(|item| &item.name))
    }
}
