//! The audit: does the journal bear out that every sample was trained on exactly once, and what did each fault cost?
//!
//! - The journal's chain ([`journal`](crate::journal)) shows that all records are there, as they were written, and no others.
//! - `path`: they tell of one way through the plan, up to where the run stands.
//! - `samples`: a step is a range of samples (see [`plan`](crate::run::plan)), so a step that is missing in the present history is a
//!   batch that was lost, and one that is in it twice is a batch that was repeated. Steps that were given up count for nothing;
//!   those that a stage trained beyond its best state count. Steps that turned out to be applied although nobody had reported them
//!   (`adopted`) count as committed. Where the training data were exchanged for others a sequence of samples ends, and another begins.
//! - `disk`: the checkpoints that are kept are those that the journal tells of, and were saved under it.

pub mod disk;
mod path;
mod samples;

use std::collections::BTreeMap;

use serde::Serialize;
use storage::JournalHead;

use self::samples::{TrainingData, applied, epochs};
use crate::journal::{
    Error,
    history::{Event, Generation, History, Step},
};
use crate::run::{cuts::Fate, plan::Place, record::Happening};

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audit {
    /// Whether nothing is missing, nothing repeated, and nothing else wrong.
    pub clean: bool,
    /// What is wrong, besides samples; the first of it.
    pub problems: Vec<String>,
    /// How much is wrong.
    pub problem_count: u64,
    /// The last record: its number and hash.
    pub head: String,
    /// Where the records begin, if that is not the run's beginning.
    pub recovered: Option<Recovered>,
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

/// The checkpoint that a run went on from whose journal was lost or damaged. What came before is not on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recovered {
    /// Its name.
    pub checkpoint: String,
    /// The generation that saved it.
    pub generation: u64,
    /// Where in the run that was.
    #[serde(skip)]
    pub place: Place,
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

/// Problems that are listed.
const MAX_LISTED: usize = 20;

/// Audits a journal, as it is at this moment.
///
/// # Errors
/// It cannot be read.
pub fn audit(history: &History) -> Result<Audit, Error> {
    history.hold_still()?;
    let chain = history.verify()?;
    let file = history.run_file()?;
    let (generations, steps, events) = (history.generations()?, history.steps()?, history.events()?);
    let recovered = recovered(&events);
    let starts = generations.iter().map(|generation| (generation.number, generation.start)).collect();
    let applied = applied(&steps, &events, &history.lineage()?, &starts);
    let data = TrainingData { exchanges: history.exchanges()?, last: history.training_data()?.unwrap_or_default() };
    let selections = history.selections()?.into_iter().filter_map(|selection| {
        let Place { stage, step } = selection.place;
        let (last, _) = applied.range(Place { stage, step: 0 }..=Place { stage, step: u64::MAX }).next_back()?;
        let name = file.stages.get(stage as usize)?.name.clone();
        Some(Selected { stage, name, step, trained: last.step })
    });
    let selections = selections.collect();
    let begin = recovered.as_ref().map_or_else(Place::default, |recovered| recovered.place);
    let (epochs, gaps) = epochs(&file, &data, &applied, begin);
    let mut samples = Samples::default();
    for Epoch { samples: Samples { committed, missing, repeated }, .. } in &epochs {
        samples.committed += committed;
        samples.missing += missing;
        samples.repeated += repeated;
    }
    let found = path::problems(&file, &generations, &steps, &events, recovered.as_ref());
    let mut audit = Audit {
        clean: samples.missing == 0 && samples.repeated == 0,
        problems: Vec::new(),
        problem_count: chain.count - chain.problems.len() as u64,
        head: chain.head.to_string(),
        recovered,
        finished: events.iter().any(|event| event.kind == Happening::Finished.name()),
        samples,
        epochs,
        selections,
        exchanges: data.exchanged(&file),
        generations: lives(&generations, &steps),
    };
    audit.add(chain.problems.into_iter().chain(found).chain(gaps));
    Ok(audit)
}

impl Audit {
    /// Something else is wrong.
    pub fn add(&mut self, problems: impl IntoIterator<Item = String>) {
        for problem in problems {
            self.problem_count += 1;
            if self.problems.len() < MAX_LISTED {
                self.problems.push(problem);
            }
        }
        self.clean &= self.problem_count == 0;
    }

    /// Holds the journal against a record that was its last once.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn expect(&mut self, history: &History, head: &JournalHead) -> Result<(), Error> {
        let problem = || format!("the journal does not have record {head}: it was changed, or is an older copy");
        let has = history.contains(head)?;
        self.add((!has).then(problem));
        Ok(())
    }
}

/// The checkpoint that the journal begins with, if it took the place of another one.
fn recovered(events: &[Event]) -> Option<Recovered> {
    let first = events.first().filter(|event| event.kind == Happening::Recovered.name())?;
    Some(Recovered {
        checkpoint: first.detail["checkpoint"].as_str()?.to_owned(),
        generation: first.detail["generation"].as_u64()?,
        place: point(&first.detail)?,
    })
}

fn point(json: &serde_json::Value) -> Option<Place> {
    let stage = u32::try_from(json.get("stage")?.as_u64()?).ok()?;
    Some(Place { stage, step: json.get("step")?.as_u64()? })
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
mod tampered;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use runfile::Objective;

    use super::*;
    use crate::run::{
        cuts::{Lineage, Selection},
        data::{Exchange, Size},
        testing,
    };

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
        let start = |event: &Event| Some((event.detail["generation"].as_u64()?, point(&event.detail["to"])?));
        let starts = events.iter().filter_map(start).collect();
        let (epochs, gaps) = epochs(&file, data, &applied(steps, events, lineage, &starts), Place::default());
        assert_eq!(gaps, [""; 0]);
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
    fn what_a_generation_was_to_adopt_that_has_started_elsewhere_does_not_count() {
        let applied = |starts: &[(u64, u64)]| {
            let starts = starts.iter().map(|(number, step)| (*number, Place { stage: 0, step: *step })).collect();
            applied(&[step(1, 1, true)], &[adopted(1, 3)], &Lineage::default(), &starts).len()
        };
        assert_eq!((applied(&[(2, 3)]), applied(&[(2, 1)]), applied(&[])), (3, 1, 1));
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
