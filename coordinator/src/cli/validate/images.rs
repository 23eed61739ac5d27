//! The images that a run file names: which of them cannot be used, all at once, and which are odd.

use std::collections::HashSet;
use std::io::Write;
use std::num::NonZero;
use std::thread::available_parallelism;

use anyhow::{Context, bail};
use dataset::{BadImage, DataSet, Split};
use feature_store::Store;
use serde_json::{Value, json};

/// So many images of each split are decoded unless all are to be.
const SAMPLE: usize = 1_000;
/// Threads that decode where there are fewer cores: some of them wait for disks and servers.
const MIN_THREADS: usize = 8;

/// What was found of the images of a run.
pub struct Images {
    /// Without those that turned out to be bad before any was decoded.
    pub data: DataSet,
    /// Those that cannot be used, whenever that was found.
    bad: Vec<BadImage>,
    decoded: usize,
    /// Whether bad images are left out, so that the run goes on without them.
    skip_corrupt: bool,
}

impl Images {
    /// Looks at all images, and decodes some of each split, evenly spread, or all of them. Images
    /// that a feature store stands in for are not decoded, unless all are to be.
    ///
    /// # Errors
    /// Annotations or tars cannot be read or are not in their format.
    pub fn look(settings: &config::Data, decode_all: bool) -> anyhow::Result<Self> {
        let progress = cli_support::spinner("looking at images");
        let data = DataSet::survey(settings).context("data")?;
        progress.finish_and_clear();
        let most = match () {
            () if decode_all => usize::MAX,
            () if settings.features.is_some() => 0,
            () => SAMPLE,
        };
        let samples = Split::ALL.map(|split| (split, spread(data.split(split).len(), most)));
        let decoded: usize = samples.iter().map(|(_, images)| images.len()).sum();
        let bar = cli_support::bar(decoded as u64, "images decoded");
        let threads = available_parallelism().map_or(1, NonZero::get).max(MIN_THREADS);
        let mut bad = data.left_out().to_vec();
        for (split, images) in samples {
            bad.extend(data.try_decoding(split, &images, threads, || bar.inc(1)).context("data")?);
        }
        bar.finish_and_clear();
        Ok(Self { data, bad, decoded, skip_corrupt: settings.skip_corrupt })
    }

    /// Adds the images that could not be decoded when the store of a split was made.
    pub fn add_blank_rows(&mut self, split: Split, store: &Store) {
        let problem = "could not be decoded when features were stored";
        let blank = self.data.split(split).iter().enumerate().filter(|(row, _)| store.is_blank(*row));
        let bad = blank.map(|(_, item)| BadImage { split, place: self.data.place(item), problem: problem.to_owned() });
        let known: HashSet<&str> = self.bad.iter().map(|bad| bad.place.as_str()).collect();
        let new: Vec<BadImage> = bad.filter(|bad| !known.contains(bad.place.as_str())).collect();
        self.bad.extend(new);
    }

    /// Refuses images that a run would end with: bad ones that may not be left out, or too few that
    /// are left. Then all bad ones are printed.
    pub fn expect_usable(&self, json: bool) -> anyhow::Result<()> {
        let missing = [Split::Train, Split::Validation].into_iter().find(|split| {
            let bad = self.bad.iter().filter(|bad| bad.split == *split).count();
            self.data.split(*split).len() + self.left_out_of(*split) <= bad
        });
        let refused = if self.skip_corrupt { None } else { self.bad.first() };
        if refused.is_none() && missing.is_none() {
            return Ok(());
        }
        if json {
            writeln!(cli_support::out(), "{}", self.json())?;
        } else {
            self.lines().try_for_each(|line| writeln!(cli_support::out(), "{line}"))?;
        }
        let count = self.bad.len();
        match (refused, missing) {
            (Some(first), _) => bail!(
                "data: {count} images are missing or cannot be decoded, the first of them {first} (replace them, or set \
                 data.skip_corrupt to leave them out)"
            ),
            (None, split) => bail!("data: no usable image in split `{}`", split.map_or("", Split::name)),
        }
    }

    fn left_out_of(&self, split: Split) -> usize {
        self.data.left_out().iter().filter(|bad| bad.split == split).count()
    }

    /// What there is to say of them, for people.
    pub fn summary(&self) -> Vec<String> {
        let [train, validation, test] = Split::ALL.map(|split| self.data.split(split).len());
        let all = train + validation + test;
        let left_out = if self.bad.is_empty() { String::new() } else { format!(", {} left out", self.bad.len()) };
        let captions = self.data.train_captions();
        let silent = test > 0 && self.data.split(Split::Test).iter().all(|item| item.captions.is_empty());
        let silent = if silent { " (without captions)" } else { "" };
        let more = if self.decoded < all { "; --decode-all decodes all" } else { "" };
        let mut lines = vec![
            format!(
                "data: {train} training images with {captions} captions, {validation} validation, {test} test{silent}{left_out}"
            ),
            format!("images: {} of {all} decoded{more}", self.decoded),
        ];
        lines.extend(self.data.warnings().map(|warning| format!("images: {warning}")));
        lines.extend(self.lines());
        lines
    }

    /// A line for each bad image.
    fn lines(&self) -> impl Iterator<Item = String> {
        let what = if self.skip_corrupt { "left out" } else { "bad image" };
        self.bad.iter().map(move |bad| format!("{what}: {}: {bad}", bad.split))
    }

    /// All of it, for programs.
    pub fn json(&self) -> Value {
        let bad = |bad: &BadImage| json!({ "split": bad.split.name(), "image": bad.place, "problem": bad.problem });
        let odd = self.data.odd();
        json!({
            "decoded_images": self.decoded,
            "bad_images": self.bad.iter().map(bad).collect::<Vec<_>>(),
            "turned_images": odd.turned,
            "images_of_16_bit_grey": odd.grey_of_16_bits,
        })
    }
}

/// At most `most` of `0..count`, evenly spread.
fn spread(count: usize, most: usize) -> Vec<usize> {
    let taken = count.min(most);
    (0..taken).map(|at| (at as u128 * count as u128 / taken as u128) as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_evenly() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, usize::MAX), [0, 1, 2]);
        assert!(spread(0, 4).is_empty() && spread(4, 0).is_empty());
    }
}
