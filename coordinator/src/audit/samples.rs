//! Audit of samples: which were trained on once, never, or again.

use std::collections::BTreeMap;

use config::RunFile;
use proto::v1;

use super::{DataChangeSummary, Epoch, Samples, point};
use crate::{
    journal::history::{Event, Step},
    run::{
        data::{DataChange, Size},
        lineage::{Lineage, StateFate},
        plan::Place,
        record::EventKind,
    },
};

/// Maximal number of steps without a report that are counted one by one. Real journals have far
/// fewer, and each of them may begin an epoch.
const MAX_GAP: u64 = 1_000_000;

/// All training data of a run.
pub(super) struct TrainingData {
    pub exchanges: Vec<DataChange>,
    /// The size of the data since the last exchange.
    pub last: Size,
}

impl TrainingData {
    /// The number of exchanges before a generation.
    fn version(&self, generation: u64) -> usize {
        self.exchanges.partition_point(|exchange| exchange.generation <= generation)
    }

    /// The size of the data after this number of exchanges.
    fn size(&self, version: usize) -> Size {
        self.exchanges.get(version).map_or(self.last, |exchange| exchange.before)
    }

    /// The exchanges that took effect.
    pub fn exchanged(&self, file: &RunFile) -> Vec<DataChangeSummary> {
        let exchanged = |(version, exchange): (usize, &DataChange)| {
            let (Place { stage, step }, before, after) = (exchange.from?, exchange.before, self.size(version + 1));
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
        self.exchanges.iter().enumerate().filter_map(exchanged).collect()
    }
}

/// The record of a step that was not given up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AppliedStep {
    /// How often it was applied.
    times: u64,
    /// The last generation that applied it.
    generation: u64,
}

/// The steps that were applied and not given up. An adoption counts if the generation that is said
/// to adopt started from that point, and if it is not implausibly long.
pub(super) fn applied(
    steps: &[Step],
    events: &[Event],
    lineage: &Lineage,
    starts: &BTreeMap<u64, Place>,
) -> BTreeMap<Place, AppliedStep> {
    let mut all: BTreeMap<Place, AppliedStep> = BTreeMap::new();
    for step in steps.iter().filter(|step| step.fate != StateFate::GivenUp) {
        let applied = all.entry(step.place).or_default();
        applied.times += 1;
        applied.generation = applied.generation.max(step.generation);
    }
    // An adopted step was applied, but not reported: it replaces the missing report unless it was
    // given up later. It belongs to the generation before the one that adopts it.
    for event in events.iter().filter(|event| event.kind == EventKind::Adopted.name()) {
        let [from, to] = ["from", "to"].map(|key| point(&event.detail[key]));
        let (Some(from), Some(to), Some(by)) = (from, to, event.detail["generation"].as_u64()) else { continue };
        let first = if from.stage == to.stage { from.step } else { 0 };
        if starts.get(&by) != Some(&to) || to.step.saturating_sub(first) > MAX_GAP {
            continue;
        }
        for step in first + 1..=to.step {
            let place = Place { stage: to.stage, step };
            if lineage.fate(place, by) != StateFate::GivenUp {
                all.entry(place).or_insert(AppliedStep { times: 1, generation: by.saturating_sub(1) });
            }
        }
    }
    all
}

/// The samples of each epoch, up to the last applied step of each stage. Points before `begin` are
/// not recorded. Also returns further problems.
pub(super) fn epochs(
    file: &RunFile,
    data: &TrainingData,
    applied: &BTreeMap<Place, AppliedStep>,
    begin: Place,
) -> (Vec<Epoch>, Vec<String>) {
    let (mut epochs, mut problems) = (Vec::new(), Vec::new());
    for (number, stage) in (begin.stage..).zip(file.stages.iter().skip(begin.stage as usize)) {
        let before = if number == begin.stage { begin.step } else { 0 };
        let mut walk =
            SampleWalk { data, stage, start: v1::SequenceStart::default(), version: 0, own: BTreeMap::new() };
        let mut next = before + 1;
        let of_stage = |step| Place { stage: number, step };
        for (Place { step, .. }, done) in applied.range(of_stage(next)..=of_stage(u64::MAX)) {
            if step - next > MAX_GAP {
                problems.push(format!("stage {}: steps {next} to {} are missing", stage.name, step - 1));
            } else {
                (next..*step).for_each(|step| walk.add(step, AppliedStep::default()));
            }
            walk.add(*step, *done);
            next = step + 1;
        }
        let epoch = |(epoch, samples)| Epoch { stage: number, name: stage.name.clone(), epoch, samples };
        epochs.extend(walk.own.into_iter().map(epoch));
    }
    (epochs, problems)
}

/// A walk through the samples of a stage.
struct SampleWalk<'a> {
    data: &'a TrainingData,
    stage: &'a config::Stage,
    /// The start of the present sequence of samples.
    start: v1::SequenceStart,
    /// The number of exchanges before the present data.
    version: usize,
    own: BTreeMap<u64, Samples>,
}

impl SampleWalk<'_> {
    /// Counts the samples of the next step.
    fn add(&mut self, step: u64, AppliedStep { times, generation }: AppliedStep) {
        let batch = u64::from(self.stage.batch);
        if self.data.version(generation) > self.version {
            let length = self.data.size(self.version).epoch(self.stage.objective).max(1);
            self.start.epoch += (step - 1 - self.start.step).saturating_mul(batch).div_ceil(length);
            self.start.step = step - 1;
            self.version = self.data.version(generation);
        }
        let length = self.data.size(self.version).epoch(self.stage.objective);
        let samples = |step: u64| (step - self.start.step).saturating_mul(batch);
        let (mut begin, end) = (samples(step - 1), samples(step));
        while begin < end && length > 0 {
            let epoch = begin / length;
            let until = end.min((epoch + 1).saturating_mul(length));
            self.own.entry(self.start.epoch + epoch).or_default().add(times, until - begin);
            begin = until;
        }
    }
}
