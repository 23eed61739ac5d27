//! The audit: does the journal bear out that every sample was trained on exactly once, and what did each fault cost?
//!
//! A step is a range of samples (see [`plan`](crate::run::plan)), so a step that is missing in the present history is a batch
//! that was lost, and one that is in it twice is a batch that was repeated. Steps that were given up count for nothing;
//! those that a stage trained beyond its best state count. Steps that turned out to be applied although nobody had reported them (`adopted`) count as committed.

use std::collections::BTreeMap;

use runfile::{Objective, RunFile};
use serde::Serialize;

use crate::journal::Error;
use crate::journal::history::{Event, Generation, History, Step};
use crate::run::{
    cuts::{Fate, Lineage},
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
    let times = times(&steps, &events, &history.lineage()?);
    let selections = history.selections()?.into_iter().filter_map(|selection| {
        let Place { stage, step } = selection.place;
        let (last, _) = times.range(Place { stage, step: 0 }..=Place { stage, step: u64::MAX }).next_back()?;
        let name = file.stages.get(stage as usize)?.name.clone();
        Some(Selected { stage, name, step, trained: last.step })
    });
    let selections = selections.collect();
    let epochs = epochs(&file, history.training_split()?, &times);
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
        generations: lives(&generations, &steps),
    })
}

/// How often each step was applied, but for what was given up.
fn times(steps: &[Step], events: &[Event], lineage: &Lineage) -> BTreeMap<Place, u64> {
    let mut times: BTreeMap<Place, u64> = BTreeMap::new();
    for step in steps.iter().filter(|step| step.fate != Fate::GivenUp) {
        *times.entry(step.place).or_default() += 1;
    }
    // What is adopted was applied, but not reported: unless it was given up later it stands in for the missing report.
    for event in events.iter().filter(|event| event.kind == Happening::Adopted.name()) {
        let [from, to] = ["from", "to"].map(|key| point(&event.detail[key]));
        let (Some(from), Some(to), Some(by)) = (from, to, event.detail["generation"].as_u64()) else { continue };
        let first = if from.stage == to.stage { from.step } else { 0 };
        for step in first + 1..=to.step {
            let place = Place { stage: to.stage, step };
            if lineage.fate(place, by) != Fate::GivenUp {
                times.entry(place).or_insert(1);
            }
        }
    }
    times
}

fn point(json: &serde_json::Value) -> Option<Place> {
    let stage = u32::try_from(json.get("stage")?.as_u64()?).ok()?;
    Some(Place { stage, step: json.get("step")?.as_u64()? })
}

/// What became of the samples of each epoch, up to the last step of each stage that was applied.
fn epochs(file: &RunFile, split: Option<(u64, u64)>, times: &BTreeMap<Place, u64>) -> Vec<Epoch> {
    let Some((images, captions)) = split else { return Vec::new() };
    let mut epochs = Vec::new();
    for (number, stage) in (0..).zip(&file.stages) {
        let of_stage = |step| Place { stage: number, step };
        let Some((last, _)) = times.range(of_stage(0)..=of_stage(u64::MAX)).next_back() else { continue };
        let length = match stage.objective {
            Objective::CrossEntropy => captions,
            Objective::Contrastive | Objective::Scst | Objective::Dico => images,
        };
        let batch = u64::from(stage.batch);
        let mut own: BTreeMap<u64, Samples> = BTreeMap::new();
        for step in 1..=last.step {
            let times = times.get(&of_stage(step)).copied().unwrap_or(0);
            let (mut begin, end) = ((step - 1) * batch, step * batch);
            while begin < end && length > 0 {
                let epoch = begin / length;
                let until = end.min((epoch + 1) * length);
                own.entry(epoch).or_default().add(times, until - begin);
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
        let mut file = testing::run_file(vec![testing::stage("a", 20, 4, None, None)]);
        file.stages[0].objective = Objective::Dico;
        let epochs = epochs(&file, Some((10, 50)), &times(steps, events, lineage));
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
