//! The identity of a run's data (fingerprints and sizes), and the positions at which the training
//! data have changed.

use config::{Objective, SampleKind, Stage};
use proto::v1;
use serde_json::{Value, json};

use crate::{plan::Position, types::WorkerId};

/// Maximal length of a fingerprint from a worker, in bytes. SHA-256 as hex has 64.
const MAX_FINGERPRINT_BYTES: usize = 128;

/// The identity of a run's data. All workers of one coordinator process must have the same data.
#[derive(Debug)]
pub struct RunData {
    /// The description of the data; none before the first worker of a new run attaches.
    pub description: Option<DataDescription>,
    /// Changes of the training data, in order.
    pub changes: Vec<DataChange>,
    /// Whether the first worker may have training data other than the data in the journal
    /// (`serve --accept-changes`).
    pub accepts_changes: bool,
}

impl RunData {
    /// The data that the journal describes.
    #[must_use]
    pub fn new(data_set: Option<v1::DataSet>, changes: Vec<DataChange>) -> Self {
        let description = data_set.map(|data_set| DataDescription { reported_by: None, data_set });
        Self { description, changes, accepts_changes: false }
    }

    /// The number of images in the validation split; 0 if the data are not known.
    #[must_use]
    pub fn validation_images(&self) -> u64 {
        self.description.as_ref().map_or(0, |description| description.data_set.validation_images)
    }

    /// Why a worker with these data cannot become a member; none if it can.
    #[must_use]
    pub fn conflict(&self, worker_id: WorkerId, reported: &v1::DataSet) -> Option<String> {
        self.description.as_ref()?.conflict(worker_id, reported, self.accepts_changes)
    }

    /// Records the data of a worker that attaches, if it is the first one of this coordinator
    /// process.
    pub fn describe(&mut self, worker_id: WorkerId, data_set: v1::DataSet) {
        if self.description.as_ref().is_none_or(|description| description.reported_by.is_none()) {
            self.description = Some(DataDescription { reported_by: Some(worker_id), data_set });
        }
    }
}

/// The description of a run's data.
#[derive(Debug)]
pub struct DataDescription {
    /// The first worker that attached to this coordinator process, and so described the data. None
    /// if no worker has attached yet and the description is from the journal.
    pub reported_by: Option<WorkerId>,
    /// The description: fingerprints and sizes of the splits. A fingerprint is empty if the journal
    /// was migrated from a version that did not have it.
    pub data_set: v1::DataSet,
}

impl DataDescription {
    /// Whether the training data `reported` are other data than those described.
    #[must_use]
    pub fn has_other_training_data(&self, reported: &v1::DataSet) -> bool {
        let has_other_size = SplitSize::from(&self.data_set) != SplitSize::from(reported);
        self.differs(&self.data_set.training_fingerprint, &reported.training_fingerprint, has_other_size)
    }

    /// Whether the validation data `reported` are other data than those described.
    #[must_use]
    pub fn has_other_validation_data(&self, reported: &v1::DataSet) -> bool {
        let has_other_size = self.data_set.validation_images != reported.validation_images;
        self.differs(&self.data_set.validation_fingerprint, &reported.validation_fingerprint, has_other_size)
    }

    /// Whether a reported fingerprint is another one than the one described. If a migrated journal
    /// does not have the latter, only `has_other_size` can show that.
    fn differs(&self, described: &str, reported: &str, has_other_size: bool) -> bool {
        let is_unknown = self.reported_by.is_none() && described.is_empty();
        if is_unknown { has_other_size } else { described != reported }
    }

    /// Why a worker with the data `reported` cannot become a member; none if it can. If the
    /// expected data are from the journal, they are those of an earlier coordinator process: then
    /// the validation data may differ, and if `accepts_changes` also the training data.
    fn conflict(&self, worker_id: WorkerId, reported: &v1::DataSet, accepts_changes: bool) -> Option<String> {
        let Self { reported_by, data_set: expected } = self;
        let expected_by =
            reported_by.map_or_else(|| "the run has trained on".to_owned(), |first| format!("worker {first} has"));
        let escape = |fingerprint: &str| match fingerprint {
            "" => "not recorded".to_owned(),
            fingerprint => fingerprint.escape_debug().to_string(),
        };
        let is_from_journal = reported_by.is_none();
        // Models have no size: unknown ones cannot be compared.
        if self.differs(&expected.models_fingerprint, &reported.models_fingerprint, false) {
            return Some(format!(
                "the models differ in their frozen weights or vocabularies: worker {worker_id} has fingerprint {}, \
                 {expected_by} {}; restore the earlier files, or start a new run",
                escape(&reported.models_fingerprint),
                escape(&expected.models_fingerprint),
            ));
        }
        if self.has_other_training_data(reported) && !(is_from_journal && accepts_changes) {
            let remedy = match is_from_journal {
                true => {
                    "restore the earlier data, or serve with --accept-changes to continue with the new data from a new \
                     epoch"
                }
                false => "restart all workers with the same data",
            };
            return Some(format!(
                "the training data differ: worker {worker_id} has {} images and {} captions (fingerprint {}), \
                 {expected_by} {} and {} ({}); {remedy}",
                reported.train_images,
                reported.train_captions,
                escape(&reported.training_fingerprint),
                expected.train_images,
                expected.train_captions,
                escape(&expected.training_fingerprint),
            ));
        }
        let differs = !is_from_journal && self.has_other_validation_data(reported);
        differs.then(|| {
            format!(
                "the validation data differ: worker {worker_id} has {} images (fingerprint {}), {expected_by} {} ({}); \
                 restart all workers with the same data",
                reported.validation_images,
                escape(&reported.validation_fingerprint),
                expected.validation_images,
                escape(&expected.validation_fingerprint),
            )
        })
    }
}

/// Whether the fingerprints of a description are within the limit.
#[must_use]
pub fn has_valid_fingerprints(data_set: &v1::DataSet) -> bool {
    let v1::DataSet { training_fingerprint, validation_fingerprint, models_fingerprint, .. } = data_set;
    [training_fingerprint, validation_fingerprint, models_fingerprint]
        .iter()
        .all(|fingerprint| fingerprint.len() <= MAX_FINGERPRINT_BYTES)
}

/// The size of a training split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitSize {
    /// The number of images.
    pub images: u64,
    /// The number of their captions.
    pub captions: u64,
}

impl SplitSize {
    /// The number of samples of one epoch: captions for cross-entropy, images for the other
    /// objectives.
    #[must_use]
    pub fn epoch_samples(self, objective: &Objective) -> u64 {
        match objective.samples() {
            SampleKind::Caption => self.captions,
            SampleKind::Image => self.images,
        }
    }
}

impl From<&v1::DataSet> for SplitSize {
    fn from(data_set: &v1::DataSet) -> Self {
        Self { images: data_set.train_images, captions: data_set.train_captions }
    }
}

/// A change of the training data between two coordinator processes (`serve --accept-changes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataChange {
    /// The number of the first generation after the change.
    pub generation: u64,
    /// The position from which on the run trains on the new data: the earliest start of a
    /// generation since the change. None before the first generation with the new data.
    pub from: Option<Position>,
    /// The size of the old data.
    pub before: SplitSize,
}

impl DataChange {
    /// The detail of the change's event; `after` is the size of the new data.
    #[must_use]
    pub fn detail(&self, after: SplitSize) -> Value {
        json!({
            "split": "training",
            "generation": self.generation,
            "images_before_and_after": [self.before.images, after.images],
            "captions_before_and_after": [self.before.captions, after.captions],
        })
    }

    /// Records that a generation starts at this position.
    pub fn record_start(&mut self, generation: u64, at: Position) {
        if generation >= self.generation {
            self.from = Some(self.from.map_or(at, |from| from.min(at)));
        }
    }
}

/// Where the current sequence of samples of stage `stage_number` begins, after these changes of the
/// training data. Each change in the middle of the stage begins a new sequence, with the epoch
/// after the one that was in progress.
#[must_use]
pub fn sequence_start(changes: &[DataChange], stage_number: u32, stage: &Stage) -> v1::SequenceStart {
    let mut start = v1::SequenceStart::default();
    for DataChange { from, before, .. } in changes {
        let Some(from) = from.filter(|from| from.stage == stage_number) else { continue };
        let samples = from.step.saturating_sub(start.step) * u64::from(stage.batch);
        start.epoch += samples.div_ceil(before.epoch_samples(&stage.objective).max(1));
        start.step = from.step;
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::testing;

    fn change(generation: u64, images: u64) -> DataChange {
        DataChange { generation, from: None, before: SplitSize { images, captions: 5 * images } }
    }

    fn at(step: u64) -> Position {
        Position { stage: 1, step }
    }

    #[test]
    fn new_data_begin_with_a_whole_epoch() {
        let mut stage = testing::stage("dico", 100, 4, None, None);
        stage.objective = Objective::Dico(config::Dico::default());
        let start = |changes: &[DataChange], stage_number| {
            let v1::SequenceStart { step, epoch } = sequence_start(changes, stage_number, &stage);
            (step, epoch)
        };
        let mut changes = vec![change(3, 10)];
        assert_eq!(start(&changes, 1), (0, 0));
        changes[0].record_start(2, at(1));
        assert_eq!(start(&changes, 1), (0, 0));
        // 7 steps of 4 of 10 images: the third epoch has begun.
        changes[0].record_start(3, at(7));
        assert_eq!(start(&changes, 1), (7, 3));
        assert_eq!(start(&changes, 2), (0, 0));
        // Steps that are repeated from an earlier state use the new data.
        changes[0].record_start(4, at(9));
        changes[0].record_start(5, at(5));
        assert_eq!(start(&changes, 1), (5, 2));
        // Another change: 3 steps of 4 of 6 images are two epochs.
        changes.push(change(6, 6));
        changes.iter_mut().for_each(|change| change.record_start(6, at(8)));
        assert_eq!(start(&changes, 1), (8, 4));
        // A generation starts before both changes: the run then uses only the newest data.
        changes.iter_mut().for_each(|change| change.record_start(7, at(0)));
        assert_eq!(start(&changes, 1), (0, 0));
    }

    #[test]
    fn an_epoch_of_cross_entropy_has_all_captions() {
        let mut stage = testing::stage("xe", 100, 4, None, None);
        stage.objective = Objective::CrossEntropy(config::CrossEntropy::default());
        let mut changes = [change(1, 10)];
        changes[0].record_start(1, at(7));
        assert_eq!(sequence_start(&changes, 1, &stage), v1::SequenceStart { step: 7, epoch: 1 });
    }

    #[test]
    fn data_without_fingerprints_in_the_journal_are_compared_by_their_sizes() {
        let with_images = |images| v1::DataSet { train_images: images, train_captions: 50, ..v1::DataSet::default() };
        let reported = |images| v1::DataSet {
            training_fingerprint: "t".into(),
            validation_fingerprint: "v".into(),
            models_fingerprint: "m".into(),
            ..with_images(images)
        };
        let mut data = RunData::new(Some(with_images(10)), vec![]);
        assert_eq!(data.conflict(WorkerId(0), &reported(10)), None);
        let conflict = data.conflict(WorkerId(0), &reported(9)).unwrap();
        assert!(conflict.contains("10 and 50 (not recorded)") && conflict.contains("--accept-changes"), "{conflict}");
        data.accepts_changes = true;
        assert_eq!(data.conflict(WorkerId(0), &reported(9)), None);
        // The first worker describes the data with fingerprints.
        data.describe(WorkerId(0), reported(10));
        let other_models = v1::DataSet { models_fingerprint: "n".into(), ..reported(10) };
        assert!(data.conflict(WorkerId(1), &other_models).unwrap().contains("models differ"));
        let unknown_models = v1::DataSet { models_fingerprint: String::new(), ..reported(10) };
        assert!(data.conflict(WorkerId(1), &unknown_models).is_some());
    }
}
