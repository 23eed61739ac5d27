//! Collects the problems of a data set.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use dataset::{BadImage, DataSet, Split};
use serde::Serialize;
use tokenizer::Vocabulary;

use super::data_source::DataSource;
use super::summary::evenly_spaced;

/// Maximal number of images of each split that are decoded by default.
const DECODED_IMAGES: usize = 1_000;
/// Default of `captioner.max_target_length`: the number of positions of CLIP's text encoder.
const DEFAULT_MAX_TARGET_LENGTH: usize = 77;

/// What `worker inspect` reports about a data set, one line each.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Findings that make a run refuse the data.
    pub problems: Vec<String>,
    /// Findings that do not stop a run.
    pub notes: Vec<String>,
}

/// Splits, each with the data set that it is in.
pub type LoadedSplits = Vec<(Split, Arc<DataSet>)>;

/// Loads all splits. If they cannot be loaded together, loads each of them separately, so that an
/// invalid split does not hide the others.
pub fn load_splits(source: &DataSource) -> (LoadedSplits, Findings) {
    let mut findings = Findings::default();
    let mut loaded = LoadedSplits::new();
    if let Ok(data) = DataSet::load_usable_splits(&source.settings, &source.splits) {
        findings.notes.extend(data.overlaps());
        let data = Arc::new(data);
        loaded.extend(source.splits.iter().map(|split| (*split, Arc::clone(&data))));
    } else {
        for &split in &source.splits {
            match DataSet::load_usable_splits(&source.settings, &[split]) {
                Ok(data) => loaded.push((split, Arc::new(data))),
                Err(error) => findings.add_problem(error.to_string()),
            }
        }
    }
    for (split, data) in &loaded {
        findings.add_split(source, *split, data);
    }
    if findings.problems.is_empty() && loaded.iter().all(|(split, data)| data.split(*split).is_empty()) {
        findings.problems.push("there is no image that can be used".to_owned());
    }
    (loaded, findings)
}

impl Findings {
    fn add_problem(&mut self, problem: String) {
        // A file for several splits has the same problem in each of them.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Adds the findings of a loaded split.
    fn add_split(&mut self, source: &DataSource, split: Split, data: &DataSet) {
        let bad_images = data.skipped_images().iter().filter(|bad| bad.split == split);
        bad_images.for_each(|bad| self.add_bad_image(source, bad));
        let notes = data.notes().iter().cloned().chain(data.warnings());
        for note in notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        let missing = source.run.as_ref().and_then(|run| data.missing_captions_error(run, split));
        if let Some(problem) = missing {
            self.problems.push(problem.to_string());
        } else if data.lacks_captions(split) {
            self.notes.push(format!(
                "split `{split}` has no captions: dico and scst stages with PAC-S or CLIP-S can train on it, but cross_entropy and \
                 contrastive stages cannot, and there are no scores against references"
            ));
        }
        if source.run.is_some() && split != Split::Test && data.split(split).is_empty() {
            self.problems.push(format!("split `{split}` has no image that can be used"));
        }
    }

    fn add_bad_image(&mut self, source: &DataSource, bad: &BadImage) {
        let line = format!("{}: {bad}", bad.split);
        if source.settings.skip_corrupt {
            self.notes.push(format!("left out: {line}"));
        } else {
            self.problems.push(line);
        }
    }

    /// Decodes images of each split, all of them if `all` is set, and adds those that cannot be
    /// decoded. A data set with feature stores does not need its images.
    pub fn add_undecodable_images(&mut self, source: &DataSource, splits: &LoadedSplits, all: bool) {
        if source.settings.features.is_some() {
            return;
        }
        let threads = available_parallelism().map_or(1, NonZero::get);
        let max_images = if all { usize::MAX } else { DECODED_IMAGES };
        for (split, data) in splits {
            let images: Vec<usize> = evenly_spaced(data.split(*split).len(), max_images).collect();
            match data.undecodable_images(*split, &images, threads, || ()) {
                Ok(bad_images) => bad_images.iter().for_each(|bad| self.add_bad_image(source, bad)),
                Err(error) => self.add_problem(error.to_string()),
            }
        }
    }

    /// Adds a note on training captions that are longer than the captioner's targets.
    pub fn add_truncated_captions(&mut self, source: &DataSource, splits: &LoadedSplits) {
        let (max_length, setting) = match &source.run {
            Some(run) => (run.captioner.max_target_length as usize, "captioner.max_target_length"),
            None => (DEFAULT_MAX_TARGET_LENGTH, "the default of captioner.max_target_length"),
        };
        let Some((split, data)) = splits.iter().find(|(split, _)| *split == Split::Train) else { return };
        let vocabulary = Vocabulary::full();
        let captions = data.split(*split).iter().flat_map(|item| &item.captions);
        let truncated = captions.filter(|caption| vocabulary.token_count(caption) > max_length).count();
        if truncated > 0 {
            self.notes.push(format!(
                "split `{split}`: {truncated} captions have more than {max_length} tokens ({setting}) and are truncated in training"
            ));
        }
    }
}
