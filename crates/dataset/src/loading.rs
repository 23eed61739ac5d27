//! Loading a data set as a run file describes it, with checks of its images and captions.

use std::path::{Path, PathBuf};

use image_preprocess::{CropOffset, ImageWarnings, Preprocessing};

use crate::image_checks::ImageCheckError;
use crate::positives::{self, Positives};
use crate::{
    BadImage, DataSet, Error, Item, Split, Splits, caption_requirements, coco, image_checks, karpathy, webdataset,
};

/// The checks of images that loading a data set makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImageChecks {
    /// The header and end of each image, unless a feature store replaces the images.
    HeaderAndEnd,
    /// None: only annotations are read.
    None,
}

impl DataSet {
    /// Reads the annotations of all splits, and checks the header and end of each image, unless a
    /// feature store replaces the images. Tars are indexed instead, once, and the index is stored
    /// beside them. Logs skipped and unusual images.
    ///
    /// # Errors
    /// As for [`load_usable`](Self::load_usable); or an image is missing or invalid while
    /// `skip_corrupt` is unset; or the training or validation split is empty.
    pub fn load(settings: &config::Data) -> Result<Self, Error> {
        let data = Self::load_usable(settings)?;
        data.log_findings(settings)?;
        data.check_trainable(settings)?;
        Ok(data)
    }

    /// As [`load`](Self::load), for a single split, which may have no captions; the other splits
    /// are empty.
    ///
    /// # Errors
    /// As for `load`, but only this split must not be empty.
    pub fn load_split(settings: &config::Data, split: Split) -> Result<Self, Error> {
        let data = Self::read_splits(settings, &[split], ImageChecks::HeaderAndEnd)?;
        data.log_findings(settings)?;
        data.check_not_empty(split, settings)?;
        Ok(data)
    }

    /// As [`load`](Self::load), but unusable images are always skipped, even all of them, and
    /// nothing is logged.
    ///
    /// # Errors
    /// Annotations, tars or generated captions cannot be read or have a wrong format, a training
    /// image has no generated captions although the run uses them, or a limit of
    /// [`limits`](crate::limits) is exceeded.
    pub fn load_usable(settings: &config::Data) -> Result<Self, Error> {
        Self::load_usable_splits(settings, &Split::ALL)
    }

    /// As [`load_usable`](Self::load_usable), for some splits; the others are empty.
    ///
    /// # Errors
    /// As for `load_usable`.
    pub fn load_usable_splits(settings: &config::Data, requested: &[Split]) -> Result<Self, Error> {
        let mut data = Self::read_splits(settings, requested, ImageChecks::HeaderAndEnd)?;
        if let Some(positives) = settings.positives.as_ref().filter(|_| requested.contains(&Split::Train)) {
            data.load_positives(positives)?;
        }
        Ok(data)
    }

    /// As [`load_split`](Self::load_split), but without checks of images; the split may be empty.
    ///
    /// # Errors
    /// Annotations or tars cannot be read or have a wrong format, or a limit of
    /// [`limits`](crate::limits) is exceeded.
    pub fn load_annotations(settings: &config::Data, split: Split) -> Result<Self, Error> {
        Self::read_splits(settings, &[split], ImageChecks::None)
    }

    fn read_splits(settings: &config::Data, requested: &[Split], checks: ImageChecks) -> Result<Self, Error> {
        // With a feature store the images are not read, so they need no check. With `skip_corrupt`
        // they are checked nevertheless, to know which of them are left out.
        let reads_images = settings.features.is_none() || settings.skip_corrupt;
        let checks = if reads_images { checks } else { ImageChecks::None };
        let mut data = if let Some(tars) = &settings.webdataset {
            webdataset::load(tars, requested, object_storage::Access::from_environment().for_streaming())?
        } else if let Some(karpathy) = &settings.karpathy {
            Self::from_splits(karpathy::read_splits(&karpathy.annotations, &karpathy.images, requested)?, checks)
        } else if let Some(coco) = &settings.coco {
            Self::from_splits(coco::read_splits(coco, requested)?, checks)
        } else {
            return Err(Error::invalid("data", "needs exactly one of `karpathy`, `coco` and `webdataset`"));
        };
        data.check_texts(|split| annotation_source(settings, split))?;
        data.preprocessing = preprocessing(settings);
        Ok(data)
    }

    fn from_splits(mut splits: Splits, checks: ImageChecks) -> Self {
        let skipped = std::mem::take(&mut splits.unusable);
        if checks == ImageChecks::None {
            return Self { splits, skipped, ..Self::default() };
        }
        let mut data = Self { skipped, ..Self::default() };
        data.splits.notes = std::mem::take(&mut splits.notes);
        for split in Split::ALL {
            let items = std::mem::take(splits.get_mut(split));
            let files: Vec<&Path> = items.iter().filter_map(Item::file).collect();
            let results = image_checks::check_files(&files);
            items.into_iter().zip(results).for_each(|(item, result)| data.add(split, item, result));
        }
        data
    }

    /// Adds an item, or skips it, depending on the result of its image's check.
    pub(crate) fn add(&mut self, split: Split, item: Item, result: Result<ImageWarnings, ImageCheckError>) {
        let location = || self.location(&item);
        match result {
            Err(error) => {
                let bad = BadImage { split, location: location(), problem: error.to_string() };
                self.skipped.push(bad);
            }
            Ok(ImageWarnings { has_exif_rotation, is_16_bit_grayscale }) => {
                let (rotated, greyscale) = (has_exif_rotation.then(location), is_16_bit_grayscale.then(location));
                self.unusual.exif_rotated.extend(rotated);
                self.unusual.greyscale_16_bit.extend(greyscale);
                self.splits.get_mut(split).push(item);
            }
        }
    }

    /// Loads generated images and captions of the training split. Skips training images whose
    /// generated image cannot be used.
    ///
    /// # Errors
    /// The generated captions cannot be read, have a wrong format, or lack captions of an image.
    fn load_positives(&mut self, settings: &config::Positives) -> Result<(), Error> {
        if let Some(folder) = &settings.images {
            let items = std::mem::take(&mut self.splits.train);
            let files: Vec<PathBuf> = items.iter().map(|item| positives::image_path(folder, item)).collect();
            let results = image_checks::check_files(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>());
            for ((item, file), result) in items.into_iter().zip(files).zip(results) {
                match result {
                    Ok(_) => self.splits.train.push(item),
                    Err(problem) => {
                        let (location, split) = (file.display().to_string(), Split::Train);
                        let hint = if file.exists() { "" } else { positives::ambiguous_name_hint(&item) };
                        let problem = format!("generated image: {problem}{hint}");
                        self.skipped.push(BadImage { split, location, problem });
                    }
                }
            }
        }
        self.positives = Positives::load(settings, &self.splits.train)?;
        Ok(())
    }

    /// Logs skipped and unusual images, and the notes.
    ///
    /// # Errors
    /// An image would have to be skipped while `skip_corrupt` is unset.
    fn log_findings(&self, settings: &config::Data) -> Result<(), Error> {
        if let ([first, rest @ ..], false) = (&self.skipped[..], settings.skip_corrupt) {
            let BadImage { location, problem, .. } = first.clone();
            return Err(Error::Unusable { location, problem, more: rest.len() });
        }
        self.skipped.iter().for_each(|bad| tracing::warn!("leaving out {bad}"));
        for warning in self.notes().iter().cloned().chain(self.warnings()) {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    /// Checks that there are images for training and evaluation, with captions where `run` needs
    /// them.
    ///
    /// # Errors
    /// A split lacks images or captions.
    pub fn check_complete(&self, run: &config::RunFile) -> Result<(), Error> {
        self.check_trainable(&run.data)?;
        Split::ALL.into_iter().try_for_each(|split| self.missing_captions_error(run, split).map_or(Ok(()), Err))
    }

    fn check_trainable(&self, settings: &config::Data) -> Result<(), Error> {
        [Split::Train, Split::Validation].into_iter().try_for_each(|split| self.check_not_empty(split, settings))
    }

    /// The error that a split has no captions although `run` needs them; none if the split has
    /// captions or the run needs none.
    #[must_use]
    pub fn missing_captions_error(&self, run: &config::RunFile, split: Split) -> Option<Error> {
        if !self.lacks_captions(split) {
            return None;
        }
        let reason = caption_requirements::reason(run, split)?;
        Some(Error::invalid(annotation_source(&run.data, split), format!("split `{split}` has no captions: {reason}")))
    }

    fn check_not_empty(&self, split: Split, settings: &config::Data) -> Result<(), Error> {
        if !self.split(split).is_empty() {
            return Ok(());
        }
        let mut skipped = self.skipped.iter().filter(|bad| bad.split == split);
        let skipped =
            skipped.next().map(|first| format!("images left out: {}, the first of them {first}", 1 + skipped.count()));
        let reasons: String = skipped.iter().chain(self.notes()).map(|reason| format!("; {reason}")).collect();
        Err(Error::invalid(annotation_source(settings, split), format!("no usable image in split `{split}`{reasons}")))
    }
}

/// The preprocessing of images that a run file sets.
fn preprocessing(settings: &config::Data) -> Preprocessing {
    let crop_offset = match settings.crop_offset {
        config::CropOffset::HalfToEven => CropOffset::HalfToEven,
        config::CropOffset::Floor => CropOffset::Floor,
    };
    Preprocessing { exif: settings.exif, crop_offset }
}

/// The annotation file or tar pattern of a split, for messages.
fn annotation_source(settings: &config::Data, split: Split) -> String {
    let config::Data { karpathy, coco, webdataset, .. } = settings;
    let karpathy = karpathy.as_ref().map(|karpathy| karpathy.annotations.display().to_string());
    let coco_file = |coco: &config::Coco| match split {
        Split::Train => Some(coco.train.annotations.display().to_string()),
        Split::Validation => Some(coco.validation.annotations.display().to_string()),
        Split::Test => coco.test.as_ref().map(|test| test.annotations.display().to_string()),
    };
    let tar_pattern = |tars: &config::WebDataset| match split {
        Split::Train => Some(tars.train.clone()),
        Split::Validation => Some(tars.validation.clone()),
        Split::Test => tars.test.clone(),
    };
    let coco = || coco.as_ref().and_then(coco_file);
    karpathy.or_else(coco).or_else(|| webdataset.as_ref().and_then(tar_pattern)).unwrap_or_else(|| "data".to_owned())
}
