//! Collects all faults of a data set.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use dataset::{BadImage, DataSet, Split};
use serde::Serialize;
use tokenizer::Vocabulary;

use super::source::Source;
use super::summary::spread;

/// Images of each split that are decoded, unless all are to be.
const DECODED: usize = 1_000;
/// Default of `captioner.max_target_length`: the positions of CLIP's text tower.
const MAX_CAPTION_LENGTH: usize = 77;

/// Findings about a data set, one line each.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Findings that make a run refuse the data.
    pub problems: Vec<String>,
    /// Findings that do not stop a run.
    pub notes: Vec<String>,
}

/// Splits with the data that they are in.
pub type Read = Vec<(Split, Arc<DataSet>)>;

/// Reads all splits. Where they cannot be read together, each is read alone, so that one does not
/// hide the others.
pub fn survey(source: &Source) -> (Read, Findings) {
    let mut findings = Findings::default();
    let mut read = Read::new();
    if let Ok(data) = DataSet::survey_splits(&source.settings, &source.splits) {
        findings.notes.extend(data.overlaps());
        let data = Arc::new(data);
        read.extend(source.splits.iter().map(|split| (*split, Arc::clone(&data))));
    } else {
        for &split in &source.splits {
            match DataSet::survey_splits(&source.settings, &[split]) {
                Ok(data) => read.push((split, Arc::new(data))),
                Err(error) => findings.add_problem(error.to_string()),
            }
        }
    }
    for (split, data) in &read {
        findings.add_split(source, *split, data);
    }
    if findings.problems.is_empty() && read.iter().all(|(split, data)| data.split(*split).is_empty()) {
        findings.problems.push("there is no image that can be used".to_owned());
    }
    (read, findings)
}

impl Findings {
    fn add_problem(&mut self, problem: String) {
        // Of a file for several splits, each of them says the same.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn add_split(&mut self, source: &Source, split: Split, data: &DataSet) {
        let bad = data.left_out().iter().filter(|bad| bad.split == split);
        bad.for_each(|bad| self.add_bad_image(source, bad));
        let notes = data.notes().iter().cloned().chain(data.warnings());
        for note in notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        let missing = source.run.as_ref().and_then(|run| data.missing_captions(run, split));
        if let Some(problem) = missing {
            self.problems.push(problem.to_string());
        } else if data.lacks_captions(split) {
            self.notes.push(format!(
                "split `{split}` has no captions: it can be captioned and fine-tuned on by DiCO or SCST with PAC-S or CLIP-S, but \
                 neither cross-entropy nor contrastive stages can train on it, and there are no scores against references"
            ));
        }
        if source.run.is_some() && split != Split::Test && data.split(split).is_empty() {
            self.problems.push(format!("split `{split}` has no image that can be used"));
        }
    }

    fn add_bad_image(&mut self, source: &Source, bad: &BadImage) {
        let line = format!("{}: {bad}", bad.split);
        if source.settings.skip_corrupt {
            self.notes.push(format!("left out: {line}"));
        } else {
            self.problems.push(line);
        }
    }

    /// Decodes images of each split, or all. Those that a feature store stands in for are not
    /// needed.
    pub fn decode(&mut self, source: &Source, read: &Read, all: bool) {
        if source.settings.features.is_some() {
            return;
        }
        let threads = available_parallelism().map_or(1, NonZero::get);
        for (split, data) in read {
            let images: Vec<usize> = spread(data.split(*split).len(), if all { usize::MAX } else { DECODED }).collect();
            match data.try_decoding(*split, &images, threads, || ()) {
                Ok(bad) => bad.iter().for_each(|bad| self.add_bad_image(source, bad)),
                Err(error) => self.add_problem(error.to_string()),
            }
        }
    }

    /// Counts training captions that are longer than the captioner's targets.
    pub fn add_limits(&mut self, source: &Source, read: &Read) {
        let (limit, of) = match &source.run {
            Some(run) => (run.captioner.max_target_length as usize, "captioner.max_target_length"),
            None => (MAX_CAPTION_LENGTH, "the default of captioner.max_target_length"),
        };
        let Some((split, data)) = read.iter().find(|(split, _)| *split == Split::Train) else { return };
        let vocabulary = Vocabulary::full();
        let captions = data.split(*split).iter().flat_map(|item| &item.captions);
        let longer = captions.filter(|caption| vocabulary.length(caption) > limit).count();
        if longer > 0 {
            self.notes.push(format!(
                "split `{split}`: {longer} captions have more than {limit} tokens, {of}: they are learned up to there"
            ));
        }
    }
}
