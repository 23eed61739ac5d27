//! The audit: does the journal bear out that every sample was trained on exactly once, and what did each fault cost?
//!
//! A step is a range of samples (see [`plan`](crate::run::plan)), so a step that is missing in the present history is a batch
//! that was lost, and one that is in it twice is a batch that was repeated. Steps that were given up count for nothing;
//! those that a stage trained beyond its best state count. Steps that turned out to be applied although nobody had reported them
//! (`adopted`) count as committed. Where the training data were exchanged for others a sequence of samples ends, and another begins.

use std::collections::BTreeMap;

use proto::v1;
use runfile::RunFile;
use serde::Serialize;

use crate::journal::Error;
use crate::journal::history::{Event, Generation, History, Step};
use crate::run::{
    cuts::{Fate, Lineage},
    data::{Exchange, Size},
    plan::Place,
    record::Happening,
};

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audit {
    /// Whether nothing is missing and nothing repeated.
    pub clean: bool,
    /// Whether the run is complete.
    pub finished: bool,
    /// Samples over all epochs.
    pub samples: Samples,
    /// Epochs that were begun, in order.
    pub epochs: Vec<Epoch>,
    /// Stages that ended with an earlier state than their last because that was the best one, in order.
    pub selections: Vec<Selected>,
    /// Where the training data were exchanged for others in the middle of a stage or before it, in order.
    pub exchanges: Vec<Exchanged>,
    /// Generations, in order.
    pub generations: Vec<Life>,
}

/// Samples that were committed, and those that should have been and were not, or were again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Samples {
    /// Trained on, once.
    pub committed: u64,
    /// Before the point where the run stands, and never trained on.
    pub missing: u64,
    /// Trained on again.
    pub repeated: u64,
}

impl Samples {
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
    /// Its name.
    pub name: String,
    /// Which pass, from 0.
    pub epoch: u64,
    /// What became of its samples.
    #[serde(flatten)]
    pub samples: Samples,
}

/// A stage that ended with its best state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Selected {
    /// Number of the stage, from 0.
    pub stage: u32,
    /// Its name.
    pub name: String,
    /// The step of the selected state. The next stage starts from it.
    pub step: u64,
    /// The last step that was trained.
    pub trained: u64,
}

/// Training data that others took the place of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exchanged {
    /// Number of the stage, from 0.
    pub stage: u32,
    /// Its name.
    pub name: String,
    /// The last step that was trained on the data before.
    pub step: u64,
    /// Their images.
    pub images_before: u64,
    /// The images that are trained on from there on.
    pub images_after: u64,
    /// The captions before.
    pub captions_before: u64,
    /// The captions from there on.
    pub captions_after: u64,
}

/// What became of a generation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Life {
    /// Its number.
    pub generation: u64,
    /// Identities of its members.
    pub members: Vec<u32>,
    /// Why the one before it ended.
    pub cause: String,
    /// Stage and step at which it started.
    pub start: (u32, u64),
    /// Whose state it started from.
    pub source: String,
    /// Steps that it applied.
    pub steps: u64,
    /// Of those, how many were given up later.
    pub given_up: u64,
    /// Seconds from the end of the one before it to its first applied step.
    pub recovery_s: Option<f64>,
}

/// Audits a journal.
///
/// # Errors
/// It cannot be read.
pub fn audit(history: &History) -> Result<Audit, Error> {
    let file = history.run_file()?;
    let (generations, steps, events) = (history.generations()?, history.steps()?, history.events()?);
    let applied = applied(&steps, &events, &history.lineage()?);
    let data = TrainingData { exchanges: history.exchanges()?, last: history.training_data()?.unwrap_or_default() };
    let selections = history.selections()?.into_iter().filter_map(|selection| {
        let Place { stage, step } = selection.place;
        let (last, _) = applied.range(Place { stage, step: 0 }..=Place { stage, step: u64::MAX }).next_back()?;
        let name = file.stages.get(stage as usize)?.name.clone();
        Some(Selected { stage, name, step, trained: last.step })
    });
    let selections = selections.collect();
    let epochs = epochs(&file, &data, &applied);
    let mut samples = Samples::default();
    for Epoch { samples: Samples { committed, missing, repeated }, .. } in &epochs {
        samples.committed += committed;
        samples.missing += missing;
        samples.repeated += repeated;
    }
    Ok(Audit {
        clean: samples.missing == 0 && samples.repeated == 0,
        finished: events.iter().any(|event| event.kind == Happening::Finished.name()),
        samples,
        epochs,
        selections,
        exchanges: data.exchanged(&file),
        generations: lives(&generations, &steps),
    })
}

/// All that a run has trained on.
struct TrainingData {
    exchanges: Vec<Exchange>,
    /// Size of what no exchange has ended.
    last: Size,
}

impl TrainingData {
    /// How many exchanges a generation came after.
    fn version(&self, generation: u64) -> usize {
        self.exchanges.partition_point(|exchange| exchange.generation <= generation)
    }

    /// The size after so many exchanges.
    fn size(&self, version: usize) -> Size {
        self.exchanges.get(version).map_or(self.last, |exchange| exchange.before)
    }

    /// Those exchanges that took effect.
    fn exchanged(&self, file: &RunFile) -> Vec<Exchanged> {
        let exchanged = |(version, exchange): (usize, &Exchange)| {
            let (Place { stage, step }, before, after) = (exchange.from?, exchange.before, self.size(version + 1));
            Some(Exchanged {
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

/// A step that was not given up.
#[derive(Clone, Copy, Debug, Default)]
struct Applied {
    /// How often.
    times: u64,
    /// The last generation that applied it.
    generation: u64,
}

/// The steps that were applied, but for what was given up.
fn applied(steps: &[Step], events: &[Event], lineage: &Lineage) -> BTreeMap<Place, Applied> {
    let mut all: BTreeMap<Place, Applied> = BTreeMap::new();
    for step in steps.iter().filter(|step| step.fate != Fate::GivenUp) {
        let applied = all.entry(step.place).or_default();
        applied.times += 1;
        applied.generation = applied.generation.max(step.generation);
    }
    // What is adopted was applied, but not reported: unless it was given up later it stands in for the missing report. It comes from
    // the generation before the one that adopts it.
    for event in events.iter().filter(|event| event.kind == Happening::Adopted.name()) {
        let [from, to] = ["from", "to"].map(|key| point(&event.detail[key]));
        let (Some(from), Some(to), Some(by)) = (from, to, event.detail["generation"].as_u64()) else { continue };
        let first = if from.stage == to.stage { from.step } else { 0 };
        for step in first + 1..=to.step {
            let place = Place { stage: to.stage, step };
            if lineage.fate(place, by) != Fate::GivenUp {
                all.entry(place).or_insert(Applied { times: 1, generation: by.saturating_sub(1) });
            }
        }
    }
    all
}

fn point(json: &serde_json::Value) -> Option<Place> {
    let stage = u32::try_from(json.get("stage")?.as_u64()?).ok()?;
    Some(Place { stage, step: json.get("step")?.as_u64()? })
}

/// What became of the samples of each epoch, up to the last step of each stage that was applied.
fn epochs(file: &RunFile, data: &TrainingData, applied: &BTreeMap<Place, Applied>) -> Vec<Epoch> {
    let mut epochs = Vec::new();
    for (number, stage) in (0..).zip(&file.stages) {
        let of_stage = |step| Place { stage: number, step };
        let Some((last, _)) = applied.range(of_stage(0)..=of_stage(u64::MAX)).next_back() else { continue };
        let batch = u64::from(stage.batch);
        let mut own: BTreeMap<u64, Samples> = BTreeMap::new();
        // Where the present sequence of samples begins, and the data that it goes through.
        let (mut start, mut version) = (v1::SequenceStart::default(), 0);
        for step in 1..=last.step {
            let Applied { times, generation } = applied.get(&of_stage(step)).copied().unwrap_or_default();
            if data.version(generation) > version {
                let length = data.size(version).epoch(stage.objective).max(1);
                start.epoch += ((step - 1 - start.step) * batch).div_ceil(length);
                start.step = step - 1;
                version = data.version(generation);
            }
            let length = data.size(version).epoch(stage.objective);
            let (mut begin, end) = ((step - 1 - start.step) * batch, (step - start.step) * batch);
            while begin < end && length > 0 {
                let epoch = begin / length;
                let until = end.min((epoch + 1) * length);
                own.entry(start.epoch + epoch).or_default().add(times, until - begin);
                begin = until;
            }
        }
        let epoch = |(epoch, samples)| Epoch { stage: number, name: stage.name.clone(), epoch, samples };
        epochs.extend(own.into_iter().map(epoch));
    }
    epochs
}

fn lives(generations: &[Generation], steps: &[Step]) -> Vec<Life> {
    let mut own: BTreeMap<u64, Vec<&Step>> = BTreeMap::new();
    for step in steps {
        own.entry(step.generation).or_default().push(step);
    }
    let mut ended = None;
    let life = |generation: &Generation| {
        let steps = own.get(&generation.number).map_or(&[][..], Vec::as_slice);
        let first = steps.iter().map(|step| step.at).min_by(f64::total_cmp);
        let before = std::mem::replace(&mut ended, generation.ended_at);
        Life {
            generation: generation.number,
            members: generation.members.clone(),
            cause: generation.cause.clone(),
            start: (generation.start.stage, generation.start.step),
            source: generation.source.clone(),
            steps: steps.len() as u64,
            given_up: steps.iter().filter(|step| step.fate == Fate::GivenUp).count() as u64,
            recovery_s: first.zip(before).map(|(first, before)| first - before),
        }
    };
    generations.iter().map(life).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use runfile::Objective;

    use super::*;
    use crate::run::{cuts::Selection, testing};

    fn step(step: u64, generation: u64, counts: bool) -> Step {
        let fate = if counts { Fate::Current } else { Fate::GivenUp };
        Step { place: Place { stage: 0, step }, generation, at: 100.0 + step as f64, fate }
    }

    fn adopted(from: u64, to: u64) -> Event {
        let detail = serde_json::json!({ "from": { "stage": 0, "step": from }, "to": { "stage": 0, "step": to }, "generation": 2 });
        Event { at: 0.0, kind: "adopted".into(), detail }
    }

    /// Samples by epoch of a stage with batches of 4 of 10 images.
    fn by_epoch(steps: &[Step], events: &[Event]) -> Vec<[u64; 3]> {
        by_epoch_with(steps, events, &Lineage::default())
    }

    fn by_epoch_with(steps: &[Step], events: &[Event], lineage: &Lineage) -> Vec<[u64; 3]> {
        by_epoch_of(
            &TrainingData { exchanges: vec![], last: Size { images: 10, captions: 50 } },
            steps,
            events,
            lineage,
        )
    }

    fn by_epoch_of(data: &TrainingData, steps: &[Step], events: &[Event], lineage: &Lineage) -> Vec<[u64; 3]> {
        let mut file = testing::run_file(vec![testing::stage("a", 20, 4, None, None)]);
        file.stages[0].objective = Objective::Dico;
        let epochs = epochs(&file, data, &applied(steps, events, lineage));
        assert!(epochs.iter().zip(0..).all(|(epoch, number)| epoch.epoch == number), "{epochs:?}");
        epochs.iter().map(|epoch| epoch.samples).map(|s| [s.committed, s.missing, s.repeated]).collect()
    }

    #[test]
    fn steps_that_follow_each_other_are_clean() {
        let steps: Vec<_> = (1..=5).map(|n| step(n, 1, true)).collect();
        assert_eq!(by_epoch(&steps, &[]), [[10, 0, 0], [10, 0, 0]]);
        assert_eq!(by_epoch(&[], &[]), Vec::<[u64; 3]>::new());
    }

    #[test]
    fn a_gap_is_a_loss_and_a_double_a_repetition() {
        // The third step is half in the first epoch, half in the second.
        let gap: Vec<_> = [1, 2, 4, 5].map(|n| step(n, 1, true)).into();
        assert_eq!(by_epoch(&gap, &[]), [[8, 2, 0], [8, 2, 0]]);
        let double = [step(1, 1, true), step(2, 1, true), step(2, 2, true), step(3, 2, true)];
        assert_eq!(by_epoch(&double, &[]), [[10, 0, 4], [2, 0, 0]]);
        // What was given up counts for nothing; what was adopted fills the gap.
        let given_up = [step(1, 1, true), step(2, 1, false), step(2, 2, true), step(3, 2, true)];
        assert_eq!(by_epoch(&given_up, &[]), [[10, 0, 0], [2, 0, 0]]);
        assert_eq!(by_epoch(&gap, &[adopted(2, 3)]), [[10, 0, 0], [10, 0, 0]]);
        // Adopted, and then given up by the guard; or not selected.
        let place = Place { stage: 0, step: 2 };
        let kept = [step(1, 1, true), step(2, 1, true)];
        let given_up = Lineage::new(&[(3, place)].into(), &BTreeSet::new());
        assert_eq!(by_epoch_with(&kept, &[adopted(2, 4)], &given_up), [[8, 0, 0]]);
        let not_selected = Lineage::new(&[(3, place)].into(), &[Selection { place, generation: 2 }].into());
        assert_eq!(by_epoch_with(&kept, &[adopted(2, 4)], &not_selected), [[10, 0, 0], [6, 0, 0]]);
    }

    #[test]
    fn exchanged_data_begin_with_an_epoch_of_their_own() {
        // Seven images in place of ten from the third generation on, which starts after the third step.
        let exchange = Exchange {
            generation: 3,
            from: Some(Place { stage: 0, step: 3 }),
            before: Size { images: 10, captions: 50 },
        };
        let data = TrainingData { exchanges: vec![exchange], last: Size { images: 7, captions: 35 } };
        let audited = |steps: &[Step], events: &[Event]| by_epoch_of(&data, steps, events, &Lineage::default());
        let steps = [step(1, 1, true), step(2, 2, true), step(3, 2, true), step(4, 3, true), step(5, 4, true)];
        assert_eq!(audited(&steps, &[]), [[10, 0, 0], [2, 0, 0], [7, 0, 0], [1, 0, 0]]);
        assert_eq!(audited(&steps[..3], &[]), [[10, 0, 0], [2, 0, 0]]);
        // What was trained in vain beyond the exchange counts for nothing.
        let given_up = [&steps[..3], &[step(4, 2, false)], &steps[3..]].concat();
        assert_eq!(audited(&given_up, &[]), audited(&steps, &[]));
        // A step that is missing is one of the data before, and one that a generation adopts of those that the one before it had.
        let gap = [&steps[..2], &steps[3..]].concat();
        assert_eq!(audited(&gap, &[]), [[8, 2, 0], [0, 2, 0], [7, 0, 0], [1, 0, 0]]);
        let by_three = Event {
            detail: serde_json::json!({ "from": { "stage": 0, "step": 2 }, "to": { "stage": 0, "step": 3 }, "generation": 3 }),
            ..adopted(2, 3)
        };
        assert_eq!(audited(&gap, &[by_three]), audited(&steps, &[]));
    }

    #[test]
    fn a_recovery_lasts_from_the_end_to_the_next_applied_step() {
        let generation = |number, ended_at| Generation {
            number,
            members: vec![0, 2],
            cause: "rank 1 was lost".into(),
            start: Place { stage: 0, step: 2 },
            source: "rank 0".into(),
            formed_at: 0.0,
            ready_at: None,
            ended_at,
        };
        let steps = [step(1, 1, true), step(2, 1, true), step(3, 1, false), step(3, 3, true)];
        let lives = lives(&[generation(1, Some(102.5)), generation(2, Some(102.75)), generation(3, None)], &steps);
        assert_eq!(lives.iter().map(|life| (life.steps, life.given_up)).collect::<Vec<_>>(), [(3, 1), (0, 0), (1, 0)]);
        assert_eq!(lives.iter().map(|life| life.recovery_s).collect::<Vec<_>>(), [None, None, Some(0.25)]);
    }
}
