//! The identity of the data that a run trains on, and the points at which the training data
//! changed.

use config::{Objective, Stage};
use proto::v1;
use serde_json::{Value, json};

use super::plan::Place;

/// Maximal length of a fingerprint from a worker, in bytes. SHA-256 as hex has 64.
const MAX_FINGERPRINT: usize = 128;

/// The data of a run's workers: all workers of one coordinator process have the same.
#[derive(Debug)]
pub(super) struct RunData {
    /// The id of the worker that described the data to this coordinator; none if the journal did.
    pub source: Option<u32>,
    /// The description: fingerprints and sizes of the splits.
    pub data_set: v1::DataSet,
}

impl RunData {
    /// Why a worker with other data cannot join; none if it can. All workers of one coordinator
    /// process have the same data. Across a restart of the coordinator, validation data may change,
    /// and training data too if `may_change`.
    pub(super) fn conflict(&self, rank: u32, other: &v1::DataSet, may_change: bool) -> Option<String> {
        let Self { source, data_set: known } = self;
        let of = source.map_or_else(|| "the run has trained on".to_owned(), |source| format!("rank {source} has"));
        let end = |fingerprint: &str| fingerprint.escape_debug().to_string();
        let is_of_journal = source.is_none();
        if known.models_fingerprint != other.models_fingerprint {
            return Some(format!(
                "the models differ in their frozen weights or vocabularies: rank {rank} has those of fingerprint {}, {of} {}; \
                 bring back the earlier files, or begin a new run",
                end(&other.models_fingerprint),
                end(&known.models_fingerprint),
            ));
        }
        if known.training_fingerprint != other.training_fingerprint && !(is_of_journal && may_change) {
            let remedy = match is_of_journal {
                true => {
                    "bring back the earlier data, or serve with --accept-changes to go on with these from a new epoch on"
                }
                false => "start all workers again with the same data",
            };
            return Some(format!(
                "the training data differ: rank {rank} has {} images and {} captions (fingerprint {}), {of} {} and {} ({}); {remedy}",
                other.train_images,
                other.train_captions,
                end(&other.training_fingerprint),
                known.train_images,
                known.train_captions,
                end(&known.training_fingerprint),
            ));
        }
        let differs = !is_of_journal && known.validation_fingerprint != other.validation_fingerprint;
        differs.then(|| {
            format!(
                "the validation data differ: rank {rank} has {} images (fingerprint {}), {of} {} ({}); start all workers again \
                 with the same data",
                other.validation_images,
                end(&other.validation_fingerprint),
                known.validation_images,
                end(&known.validation_fingerprint),
            )
        })
    }
}

/// Whether the fingerprints of a description are short enough to be genuine.
pub(super) fn has_sane_fingerprints(data_set: &v1::DataSet) -> bool {
    let v1::DataSet { training_fingerprint, validation_fingerprint, models_fingerprint, .. } = data_set;
    [training_fingerprint, validation_fingerprint, models_fingerprint]
        .iter()
        .all(|fingerprint| fingerprint.len() <= MAX_FINGERPRINT)
}

/// The size of a training split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// The number of images.
    pub images: u64,
    /// The number of their captions.
    pub captions: u64,
}

impl Size {
    /// The number of samples of one epoch: captions for cross-entropy, images for the other
    /// objectives.
    #[must_use]
    pub fn epoch(self, objective: Objective) -> u64 {
        match objective {
            Objective::CrossEntropy => self.captions,
            Objective::Contrastive | Objective::Scst | Objective::Dico => self.images,
        }
    }
}

impl From<&v1::DataSet> for Size {
    fn from(data_set: &v1::DataSet) -> Self {
        Self { images: data_set.train_images, captions: data_set.train_captions }
    }
}

/// A change of the training data between two coordinator processes (`serve --accept-changes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataChange {
    /// The first generation that trains on the new data.
    pub generation: u64,
    /// The point from which on the run trains on the new data: the earliest start of a generation
    /// since then. None before the first such generation.
    pub from: Option<Place>,
    /// The size of the old data.
    pub before: Size,
}

impl DataChange {
    /// The exchange as stored in the journal; `after` is the size of the new data.
    #[must_use]
    pub fn detail(&self, after: Size) -> Value {
        json!({
            "split": "training",
            "generation": self.generation,
            "images_before_and_after": [self.before.images, after.images],
            "captions_before_and_after": [self.before.captions, after.captions],
        })
    }

    /// Reads an exchange from the journal; none if it concerns another split.
    #[must_use]
    pub fn from_detail(detail: &Value) -> Option<Self> {
        let before = |key: &str| detail[key][0].as_u64();
        Some(Self {
            generation: detail["generation"].as_u64()?,
            from: None,
            before: Size { images: before("images_before_and_after")?, captions: before("captions_before_and_after")? },
        })
    }

    /// Records that a generation starts at this point.
    pub fn starts(&mut self, generation: u64, at: Place) {
        if generation >= self.generation {
            self.from = Some(self.from.map_or(at, |from| from.min(at)));
        }
    }
}

/// The point in stage `number`, after these exchanges, at which its current sequence of samples
/// begins, and the epoch of it.
#[must_use]
pub fn sequence_start(exchanges: &[DataChange], number: u32, stage: &Stage) -> v1::SequenceStart {
    let mut start = v1::SequenceStart::default();
    for DataChange { from, before, .. } in exchanges {
        let Some(from) = from.filter(|from| from.stage == number) else { continue };
        let samples = from.step.saturating_sub(start.step) * u64::from(stage.batch);
        start.epoch += samples.div_ceil(before.epoch(stage.objective).max(1));
        start.step = from.step;
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::testing;

    fn exchange(generation: u64, images: u64) -> DataChange {
        DataChange { generation, from: None, before: Size { images, captions: 5 * images } }
    }

    fn at(step: u64) -> Place {
        Place { stage: 1, step }
    }

    #[test]
    fn other_data_begin_with_a_whole_epoch() {
        let mut stage = testing::stage("dico", 100, 4, None, None);
        stage.objective = Objective::Dico;
        let start = |exchanges: &[DataChange], number| {
            let v1::SequenceStart { step, epoch } = sequence_start(exchanges, number, &stage);
            (step, epoch)
        };
        let mut exchanges = vec![exchange(3, 10)];
        assert_eq!(start(&exchanges, 1), (0, 0));
        exchanges[0].starts(2, at(1));
        assert_eq!(start(&exchanges, 1), (0, 0));
        // 7 steps of 4 of 10 images: the third epoch has begun.
        exchanges[0].starts(3, at(7));
        assert_eq!(start(&exchanges, 1), (7, 3));
        assert_eq!(start(&exchanges, 2), (0, 0));
        // Steps that are repeated from an earlier state use the new data.
        exchanges[0].starts(4, at(9));
        exchanges[0].starts(5, at(5));
        assert_eq!(start(&exchanges, 1), (5, 2));
        // Another exchange: 3 steps of 4 of 6 images are two epochs.
        exchanges.push(exchange(6, 6));
        exchanges.iter_mut().for_each(|exchange| exchange.starts(6, at(8)));
        assert_eq!(start(&exchanges, 1), (8, 4));
        // Back to before both: the first has no effect.
        exchanges.iter_mut().for_each(|exchange| exchange.starts(7, at(0)));
        assert_eq!(start(&exchanges, 1), (0, 0));
    }

    #[test]
    fn an_epoch_of_teacher_forcing_has_all_captions() {
        let mut stage = testing::stage("xe", 100, 4, None, None);
        stage.objective = Objective::CrossEntropy;
        let mut exchanges = [exchange(1, 10)];
        exchanges[0].starts(1, at(7));
        assert_eq!(sequence_start(&exchanges, 1, &stage), v1::SequenceStart { step: 7, epoch: 1 });
    }

    #[test]
    fn the_journal_keeps_an_exchange() {
        let exchange = exchange(3, 10);
        let detail = exchange.detail(Size { images: 9, captions: 45 });
        assert_eq!(DataChange::from_detail(&detail), Some(exchange));
        let of_validation = json!({ "split": "validation", "images_before_and_after": [3, 4] });
        assert_eq!(DataChange::from_detail(&of_validation), None);
    }
}
