//! Checks the images that a run file names. Lists all unusable images at once, and counts unusual
//! ones.

use std::collections::HashSet;
use std::io::Write;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::{Context, bail};
use dataset::{BadImage, DataSet, Split};
use image_features::Store;
use serde_json::{Value, json};

/// Maximal number of images of each split that are decoded without `--decode-all`.
const MAX_SAMPLED_IMAGES: usize = 1_000;
/// Minimal number of decoding threads, even on a machine with fewer cores, because threads wait for
/// disks and servers.
const MIN_THREADS: usize = 8;

/// The result of the check of a run's images.
pub struct Images {
    /// The data set without the images that are missing or whose header or end is damaged.
    pub data: Arc<DataSet>,
    /// All images that cannot be used.
    bad: Vec<BadImage>,
    /// The number of images that were decoded, or could not be decoded.
    decoded: usize,
    /// Whether the run leaves out bad images.
    skip_corrupt: bool,
}

impl Images {
    /// Checks that all images exist, and decodes some of each split, evenly spread, or all of them.
    /// With a feature store, images are decoded only with `decode_all`.
    ///
    /// # Errors
    /// Annotations or tar files cannot be read or have another format.
    pub fn inspect(settings: &config::Data, decode_all: bool) -> anyhow::Result<Self> {
        let progress = cli_support::spinner("checking images");
        let data = DataSet::load_usable(settings).context("data")?;
        progress.finish_and_clear();
        let max = match () {
            () if decode_all => usize::MAX,
            () if settings.features.is_some() => 0,
            () => MAX_SAMPLED_IMAGES,
        };
        let samples = Split::ALL.map(|split| (split, spread_evenly(data.split(split).len(), max)));
        let decoded: usize = samples.iter().map(|(_, images)| images.len()).sum();
        let bar = cli_support::progress_bar(decoded as u64, "images decoded");
        let threads = available_parallelism().map_or(1, NonZero::get).max(MIN_THREADS);
        let mut bad = data.skipped_images().to_vec();
        for (split, images) in samples {
            bad.extend(data.undecodable_images(split, &images, threads, || bar.inc(1)).context("data")?);
        }
        bar.finish_and_clear();
        Ok(Self { data: Arc::new(data), bad, decoded, skip_corrupt: settings.skip_corrupt })
    }

    /// Adds the images that could not be decoded when the feature store of a split was computed.
    pub fn add_undecodable_rows(&mut self, split: Split, store: &Store) {
        let problem = "could not be decoded when features were stored";
        let undecodable = self.data.split(split).iter().enumerate().filter(|(row, _)| store.is_undecodable(*row));
        let bad = undecodable.map(|(_, item)| BadImage {
            split,
            location: self.data.location(item),
            problem: problem.to_owned(),
        });
        let listed: HashSet<&str> = self.bad.iter().map(|bad| bad.location.as_str()).collect();
        let new: Vec<BadImage> = bad.filter(|bad| !listed.contains(bad.location.as_str())).collect();
        self.bad.extend(new);
    }

    /// Checks that a run can use the images. Otherwise prints all bad images.
    ///
    /// # Errors
    /// An image is bad and may not be left out, or a split has no usable image.
    pub fn check_usable(&self, json: bool) -> anyhow::Result<()> {
        let empty_split = [Split::Train, Split::Validation].into_iter().find(|split| {
            let bad = self.bad.iter().filter(|bad| bad.split == *split).count();
            self.data.split(*split).len() + self.skipped_in(*split) <= bad
        });
        let refused = if self.skip_corrupt { None } else { self.bad.first() };
        if refused.is_none() && empty_split.is_none() {
            return Ok(());
        }
        if json {
            writeln!(cli_support::stdout(), "{}", self.json())?;
        } else {
            self.lines().try_for_each(|line| writeln!(cli_support::stdout(), "{line}"))?;
        }
        let count = self.bad.len();
        match (refused, empty_split) {
            (Some(first), _) => bail!(
                "data: {count} images are missing or cannot be decoded, the first of them {first} (replace them, or set \
                 data.skip_corrupt to leave them out)"
            ),
            (None, split) => bail!("data: no usable image in split `{}`", split.map_or("", Split::name)),
        }
    }

    /// The number of images of a split that are not in `data`.
    fn skipped_in(&self, split: Split) -> usize {
        self.data.skipped_images().iter().filter(|bad| bad.split == split).count()
    }

    /// Descriptions of the data and the images, in lines for people.
    pub fn summary(&self) -> Vec<String> {
        let [train, validation, test] = Split::ALL.map(|split| self.data.split(split).len());
        let all = train + validation + test;
        let left_out = if self.bad.is_empty() { String::new() } else { format!(", {} left out", self.bad.len()) };
        let captions = self.data.train_caption_count();
        let has_no_captions = test > 0 && self.data.split(Split::Test).iter().all(|item| item.captions.is_empty());
        let without_captions = if has_no_captions { " (without captions)" } else { "" };
        let hint = if self.decoded < all { "; --decode-all decodes all" } else { "" };
        let mut lines = vec![
            format!(
                "data: {train} training images with {captions} captions, {validation} validation, {test} test{without_captions}{left_out}"
            ),
            format!("images: {} of {all} decoded{hint}", self.decoded),
        ];
        lines.extend(self.data.warnings().map(|warning| format!("images: {warning}")));
        lines.extend(self.lines());
        lines
    }

    /// A line for each bad image.
    fn lines(&self) -> impl Iterator<Item = String> {
        let label = if self.skip_corrupt { "left out" } else { "bad image" };
        self.bad.iter().map(move |bad| format!("{label}: {}: {bad}", bad.split))
    }

    /// The result for programs.
    pub fn json(&self) -> Value {
        let bad = |bad: &BadImage| json!({ "split": bad.split.name(), "image": bad.location, "problem": bad.problem });
        let unusual = self.data.unusual_images();
        json!({
            "decoded_images": self.decoded,
            "bad_images": self.bad.iter().map(bad).collect::<Vec<_>>(),
            "turned_images": unusual.exif_rotated,
            "images_of_16_bit_grey": unusual.greyscale_16_bit,
        })
    }
}

/// At most `max` of the numbers `0..count`, evenly spread.
fn spread_evenly(count: usize, max: usize) -> Vec<usize> {
    let selected = count.min(max);
    (0..selected).map(|index| (index as u128 * count as u128 / selected as u128) as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_evenly() {
        assert_eq!(spread_evenly(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread_evenly(3, usize::MAX), [0, 1, 2]);
        assert!(spread_evenly(0, 4).is_empty() && spread_evenly(4, 0).is_empty());
    }
}
