//! Audit of samples: counts the samples that were trained on once, never, or repeatedly.

use std::collections::BTreeMap;

use config::RunFile;
use dico_engine::{
    data::{DataChange, SplitSize},
    lineage::{Lineage, StateFate},
    plan::Position,
};
use journal::{HistoryMove, Step};
use proto::v1;
use serde::Serialize;

/// Maximal number of consecutive steps without a report that are counted one by one. Real journals
/// have far fewer. A forged journal can contain any step number, and counting up to a very large
/// one would take hours.
const MAX_GAP_STEPS: u64 = 1_000_000;

/// Numbers of samples by how often they were trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SampleCounts {
    /// Trained on at least once.
    pub committed: u64,
    /// Never trained on, although a later step of their stage was applied.
    pub missing: u64,
    /// Trained on again after the first time, counted each time.
    pub repeated: u64,
}

impl SampleCounts {
    /// Counts `samples` samples, each of which was trained on `times` times.
    fn add(&mut self, times: u64, samples: u64) {
        match times {
            0 => self.missing += samples,
            _ => {
                self.committed += samples;
                self.repeated += (times - 1) * samples;
            }
        }
    }
}

/// One pass through the data of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Epoch {
    /// Number of the stage, from 0.
    pub stage: u32,
    /// The name of the stage.
    pub name: String,
    /// The number of the epoch, from 0.
    pub epoch: u64,
    /// The samples of this epoch.
    #[serde(flatten)]
    pub samples: SampleCounts,
}

/// A change of training data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataChangeSummary {
    /// Number of the stage, from 0.
    pub stage: u32,
    /// The name of the stage.
    pub name: String,
    /// The last step that was trained on the old data.
    pub step: u64,
    /// The number of images of the old data.
    pub images_before: u64,
    /// The number of images of the new data.
    pub images_after: u64,
    /// The number of captions of the old data.
    pub captions_before: u64,
    /// The number of captions of the new data.
    pub captions_after: u64,
}

/// The training data of a run and their changes.
pub(super) struct TrainingData {
    pub changes: Vec<DataChange>,
    /// The size of the data since the last change.
    pub last_size: SplitSize,
}

impl TrainingData {
    /// The version of the data that a generation trains on: the number of changes up to it.
    fn version(&self, generation: u64) -> usize {
        self.changes.partition_point(|change| change.generation <= generation)
    }

    /// The size of this version of the data.
    fn size(&self, version: usize) -> SplitSize {
        self.changes.get(version).map_or(self.last_size, |change| change.before)
    }

    /// The changes that took effect.
    pub fn changes_in_effect(&self, file: &RunFile) -> Vec<DataChangeSummary> {
        let summary = |(version, change): (usize, &DataChange)| {
            let (Position { stage, step }, before, after) = (change.from?, change.before, self.size(version + 1));
            Some(DataChangeSummary {
                stage,
                name: file.stages.get(stage as usize)?.name.clone(),
                step,
                images_before: before.images,
                images_after: after.images,
                captions_before: before.captions,
                captions_after: after.captions,
            })
        };
        self.changes.iter().enumerate().filter_map(summary).collect()
    }
}

/// How a step that was not given up was applied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AppliedStep {
    /// How often it was applied.
    times: u64,
    /// The last generation that applied it.
    generation: u64,
}

/// The steps that were applied and not given up. `starts` has the position at which each generation
/// started. A move forward, which adopts steps, counts if its generation started at the position
/// that the move names, and if it adopts at most [`MAX_GAP_STEPS`].
pub(super) fn applied_steps(
    steps: &[Step],
    moves: &[HistoryMove],
    lineage: &Lineage,
    starts: &BTreeMap<u64, Position>,
) -> BTreeMap<Position, AppliedStep> {
    let mut all: BTreeMap<Position, AppliedStep> = BTreeMap::new();
    for step in steps.iter().filter(|step| step.fate != StateFate::GivenUp) {
        let applied = all.entry(step.position).or_default();
        applied.times += 1;
        applied.generation = applied.generation.max(step.generation);
    }
    // An adopted step was applied, but not reported. It replaces the missing report unless it was
    // given up later. It belongs to the generation before the one that adopts it.
    for HistoryMove { generation: adopting_generation, from, to } in
        moves.iter().copied().filter(|moved| moved.to > moved.from)
    {
        let reported = if from.stage == to.stage { from.step } else { 0 };
        if starts.get(&adopting_generation) != Some(&to) || to.step.saturating_sub(reported) > MAX_GAP_STEPS {
            continue;
        }
        for step in reported + 1..=to.step {
            let position = Position { stage: to.stage, step };
            if lineage.fate(position, adopting_generation) != StateFate::GivenUp {
                all.entry(position)
                    .or_insert(AppliedStep { times: 1, generation: adopting_generation.saturating_sub(1) });
            }
        }
    }
    all
}

/// Counts the samples of each epoch, up to the last applied step of each stage. The journal records
/// only steps beyond `begin`. Also returns problems: gaps that are too long to be counted.
pub(super) fn count_epochs(
    file: &RunFile,
    data: &TrainingData,
    applied: &BTreeMap<Position, AppliedStep>,
    begin: Position,
) -> (Vec<Epoch>, Vec<String>) {
    let (mut epochs, mut problems) = (Vec::new(), Vec::new());
    for (number, stage) in (begin.stage..).zip(file.stages.iter().skip(begin.stage as usize)) {
        let unrecorded = if number == begin.stage { begin.step } else { 0 };
        let mut counter =
            SampleCounter { data, stage, start: v1::SequenceStart::default(), version: 0, epochs: BTreeMap::new() };
        let mut next = unrecorded.saturating_add(1);
        let in_stage = |step| Position { stage: number, step };
        for (Position { step, .. }, applied_step) in applied.range(in_stage(next)..=in_stage(u64::MAX)) {
            if step - next > MAX_GAP_STEPS {
                problems.push(format!("stage {}: steps {next} to {} are missing", stage.name, step - 1));
            } else {
                (next..*step).for_each(|step| counter.add(step, AppliedStep::default()));
            }
            counter.add(*step, *applied_step);
            next = step.saturating_add(1);
        }
        let epoch = |(epoch, samples)| Epoch { stage: number, name: stage.name.clone(), epoch, samples };
        epochs.extend(counter.epochs.into_iter().map(epoch));
    }
    (epochs, problems)
}

/// Counts the samples of a stage by epoch, step by step.
struct SampleCounter<'a> {
    data: &'a TrainingData,
    stage: &'a config::Stage,
    /// The epoch and step at which the present sequence of samples starts: a new one starts when
    /// the training data change.
    start: v1::SequenceStart,
    /// The version of the present data, as of [`TrainingData::version`].
    version: usize,
    /// The counts so far, by epoch.
    epochs: BTreeMap<u64, SampleCounts>,
}

impl SampleCounter<'_> {
    /// Counts the samples of the next step. A missing step is an [`AppliedStep`] of zero times.
    fn add(&mut self, step: u64, AppliedStep { times, generation }: AppliedStep) {
        let batch = u64::from(self.stage.batch);
        if self.data.version(generation) > self.version {
            let length = self.data.size(self.version).epoch_samples(&self.stage.objective).max(1);
            self.start.epoch += (step - 1 - self.start.step).saturating_mul(batch).div_ceil(length);
            self.start.step = step - 1;
            self.version = self.data.version(generation);
        }
        let length = self.data.size(self.version).epoch_samples(&self.stage.objective);
        let samples = |step: u64| (step - self.start.step).saturating_mul(batch);
        let (mut begin, end) = (samples(step - 1), samples(step));
        while begin < end && length > 0 {
            let epoch = begin / length;
            let until = end.min((epoch + 1).saturating_mul(length));
            self.epochs.entry(self.start.epoch + epoch).or_default().add(times, until - begin);
            begin = until;
        }
    }
}
