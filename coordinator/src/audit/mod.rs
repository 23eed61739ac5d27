//! The audit: verifies from the journal that each sample was trained on exactly once, and reports
//! the cost of each fault.
//!
//! - The journal's hash chain ([`journal`]) shows that all records are unchanged,
//!   that none is missing, and that none was added.
//! - `plan_path` checks that the records describe one path through the plan, up to the run's
//!   present position.
//! - `samples` counts samples. A step is a range of samples (see [`plan`](dico_engine::plan)). A
//!   step that is missing in the present history is a lost batch, and a step that occurs twice is a
//!   repeated batch. Steps that were given up do not count. Steps that were trained after the
//!   checkpoint that model selection chose do count. Steps that were applied although no member had
//!   reported them (event `adopted`) count as committed. If the training data change, one sequence
//!   of samples ends and another begins.
//! - `stored_checkpoints` checks that the stored checkpoints are those in the journal, and that
//!   they were saved under this journal or one that it replaced.

mod plan_path;
mod recovery_start;
mod samples;
pub mod stored_checkpoints;

use std::collections::BTreeMap;

use dico_engine::{WorkerId, lineage::StateFate, plan::Position};
use journal::{Error, Generation, ReadOnlyJournal, Step};
use proto::v1;
use serde::Serialize;

use self::{
    plan_path::PathRecords,
    samples::{TrainingData, applied_steps, count_epochs},
};
pub use self::{
    recovery_start::RecoveryStart,
    samples::{DataChangeSummary, Epoch, SampleCounts},
};

/// The result of an audit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audit {
    /// Whether no sample is missing or repeated, and no problem was found.
    pub clean: bool,
    /// Messages about the first problems other than missing or repeated samples.
    pub problems: Vec<String>,
    /// The number of all problems other than missing or repeated samples.
    pub problem_count: u64,
    /// The last record: its number and hash.
    pub head: String,
    /// The start of the records, if the journal was recovered and does not have the run's
    /// beginning.
    pub recovered: Option<RecoveryStart>,
    /// Whether the run is complete.
    pub finished: bool,
    /// The samples of all epochs.
    pub samples: SampleCounts,
    /// The epochs that have begun, in order.
    pub epochs: Vec<Epoch>,
    /// Stages that ended with an earlier checkpoint than their last, because the earlier one had
    /// the best score; in order.
    pub selections: Vec<StageSelection>,
    /// Changes of training data, each with the stage that was trained next or at that time; in
    /// order.
    #[serde(rename = "exchanges")]
    pub data_changes: Vec<DataChangeSummary>,
    /// Generations, in order.
    pub generations: Vec<GenerationRecord>,
}

/// A stage that ended with an earlier checkpoint than its last, because the earlier one had the
/// best score.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageSelection {
    /// Number of the stage, from 0.
    pub stage: u32,
    /// The name of the stage.
    pub name: String,
    /// The step of the earlier checkpoint. The next stage starts from it.
    pub step: u64,
    /// The last step that was trained.
    pub trained: u64,
}

/// The record of a generation, from start to end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationRecord {
    /// The number of the generation.
    pub generation: u64,
    /// The worker ids of its members.
    pub members: Vec<WorkerId>,
    /// Why the previous generation ended; `start` for a coordinator's first generation.
    pub cause: String,
    /// The stage and step at which it started.
    pub start: (u32, u64),
    /// Where its initial parameters come from: `worker N`, `checkpoint NAME` or `seed`.
    pub source: String,
    /// The number of steps that it applied.
    pub steps: u64,
    /// The number of these steps that were given up later.
    pub given_up: u64,
    /// Seconds from the end of the previous generation to the first step of this one; `None` if
    /// there is no such end or step.
    pub recovery_s: Option<f64>,
}

/// Maximal number of problems that are listed.
const MAX_LISTED_PROBLEMS: usize = 20;

/// Audits the present content of a journal.
///
/// # Errors
/// The journal cannot be read.
pub fn audit(journal: &ReadOnlyJournal) -> Result<Audit, Error> {
    journal.begin_snapshot()?;
    let chain = journal.verify()?;
    let file = journal.run_file()?;
    let (generations, steps, recovered) = (journal.generations()?, journal.steps()?, journal.recovery()?);
    let path_records = PathRecords {
        stage_ends: journal.stage_ends()?,
        moves: journal.history_moves()?,
        is_finished: journal.is_finished()?,
    };
    let starts = generations.iter().map(|generation| (generation.number, generation.start)).collect();
    let applied = applied_steps(&steps, &path_records.moves, &journal.lineage()?, &starts);
    let data = TrainingData {
        changes: journal.data_changes()?,
        last_size: journal.training_split_size()?.unwrap_or_default(),
    };
    let selections = journal.selections()?.into_iter().filter_map(|selection| {
        let Position { stage, step } = selection.position;
        let (last, _) = applied.range(Position { stage, step: 0 }..=Position { stage, step: u64::MAX }).next_back()?;
        let name = file.stages.get(stage as usize)?.name.clone();
        Some(StageSelection { stage, name, step, trained: last.step })
    });
    let selections = selections.collect();
    let begin = recovered.as_ref().map_or_else(Position::default, |recovered| recovered.position);
    let (epochs, gaps) = count_epochs(&file, &data, &applied, begin);
    let mut samples = SampleCounts::default();
    for Epoch { samples: SampleCounts { committed, missing, repeated }, .. } in &epochs {
        samples.committed += committed;
        samples.missing += missing;
        samples.repeated += repeated;
    }
    let path_problems = plan_path::path_problems(&file, &generations, &steps, &path_records, recovered.as_ref());
    let mut audit = Audit {
        clean: samples.missing == 0 && samples.repeated == 0,
        problems: Vec::new(),
        // The problems that the chain's check has only counted. `add_problems` counts the others.
        problem_count: chain.count - chain.problems.len() as u64,
        head: chain.head.to_string(),
        recovered: recovered.as_ref().map(RecoveryStart::from),
        finished: path_records.is_finished,
        samples,
        epochs,
        selections,
        data_changes: data.changes_in_effect(&file),
        generations: generation_records(&generations, &steps),
    };
    audit.add_problems(chain.problems.into_iter().chain(path_problems).chain(gaps));
    Ok(audit)
}

impl Audit {
    /// Counts problems, and lists them as long as fewer than `MAX_LISTED_PROBLEMS` are listed.
    pub fn add_problems(&mut self, problems: impl IntoIterator<Item = String>) {
        for problem in problems {
            self.problem_count += 1;
            if self.problems.len() < MAX_LISTED_PROBLEMS {
                self.problems.push(problem);
            }
        }
        self.clean &= self.problem_count == 0;
    }

    /// Adds a problem if the journal does not contain `head`, a record that was its last one when a
    /// coordinator or an earlier audit printed it.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn check_record(&mut self, journal: &ReadOnlyJournal, head: &v1::JournalHead) -> Result<(), Error> {
        let problem = || format!("the journal does not have record {head}: it was changed, or is an older copy");
        let is_present = journal.contains(head)?;
        self.add_problems((!is_present).then(problem));
        Ok(())
    }
}

/// Summarizes each generation with its steps and the duration of its recovery.
fn generation_records(generations: &[Generation], steps: &[Step]) -> Vec<GenerationRecord> {
    let mut steps_by_generation: BTreeMap<u64, Vec<&Step>> = BTreeMap::new();
    for step in steps {
        steps_by_generation.entry(step.generation).or_default().push(step);
    }
    let mut last_end = None;
    let record = |generation: &Generation| {
        let steps = steps_by_generation.get(&generation.number).map_or(&[][..], Vec::as_slice);
        let first = steps.iter().map(|step| step.at).min_by(f64::total_cmp);
        let previous_end = std::mem::replace(&mut last_end, generation.ended_at);
        GenerationRecord {
            generation: generation.number,
            members: generation.members.clone(),
            cause: generation.cause.clone(),
            start: (generation.start.stage, generation.start.step),
            source: generation.source.clone(),
            steps: steps.len() as u64,
            given_up: steps.iter().filter(|step| step.fate == StateFate::GivenUp).count() as u64,
            recovery_s: first.zip(previous_end).map(|(first, previous_end)| first - previous_end),
        }
    };
    generations.iter().map(record).collect()
}

#[cfg(test)]
mod migration_tests;

#[cfg(test)]
mod tamper_tests;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use config::Objective;

    use super::*;
    use config::testing;
    use dico_engine::{
        data::{DataChange, SplitSize},
        lineage::{Lineage, ModelSelection},
    };
    use journal::HistoryMove;

    fn step(step: u64, generation: u64) -> Step {
        let (position, at) = (Position { stage: 0, step }, 100.0 + step as f64);
        Step { position, generation, at, fate: StateFate::Current }
    }

    fn given_up(step: Step) -> Step {
        Step { fate: StateFate::GivenUp, ..step }
    }

    fn adopted(from: u64, to: u64) -> HistoryMove {
        let at = |step| Position { stage: 0, step };
        HistoryMove { generation: 2, from: at(from), to: at(to) }
    }

    /// The committed, missing and repeated samples by epoch of a stage with 10 images and batches
    /// of 4.
    fn samples_by_epoch(steps: &[Step], moves: &[HistoryMove]) -> Vec<[u64; 3]> {
        samples_by_epoch_in_lineage(steps, moves, &Lineage::default())
    }

    fn samples_by_epoch_in_lineage(steps: &[Step], moves: &[HistoryMove], lineage: &Lineage) -> Vec<[u64; 3]> {
        samples_by_epoch_of_data(
            &TrainingData { changes: vec![], last_size: SplitSize { images: 10, captions: 50 } },
            steps,
            moves,
            lineage,
        )
    }

    fn samples_by_epoch_of_data(
        data: &TrainingData,
        steps: &[Step],
        moves: &[HistoryMove],
        lineage: &Lineage,
    ) -> Vec<[u64; 3]> {
        let (steps_of_stage, batch) = (20, 4);
        let mut file = testing::run_file(vec![testing::stage("a", steps_of_stage, batch, None, None)]);
        file.stages[0].objective = Objective::Dico(config::Dico::default());
        let starts = moves.iter().map(|moved| (moved.generation, moved.to)).collect();
        let (epochs, gaps) =
            count_epochs(&file, data, &applied_steps(steps, moves, lineage, &starts), Position::default());
        assert_eq!(gaps, [""; 0]);
        assert!(epochs.iter().zip(0..).all(|(epoch, number)| epoch.epoch == number), "{epochs:?}");
        epochs.iter().map(|epoch| epoch.samples).map(|s| [s.committed, s.missing, s.repeated]).collect()
    }

    #[test]
    fn consecutive_steps_have_no_missing_or_repeated_samples() {
        let steps: Vec<_> = (1..=5).map(|n| step(n, 1)).collect();
        assert_eq!(samples_by_epoch(&steps, &[]), [[10, 0, 0], [10, 0, 0]]);
        assert_eq!(samples_by_epoch(&[], &[]), Vec::<[u64; 3]>::new());
    }

    #[test]
    fn a_missing_step_is_missing_samples_and_a_double_step_is_repeated_samples() {
        // Half of the third step is in the first epoch, half in the second.
        let gap: Vec<_> = [1, 2, 4, 5].map(|n| step(n, 1)).into();
        assert_eq!(samples_by_epoch(&gap, &[]), [[8, 2, 0], [8, 2, 0]]);
        let double = [step(1, 1), step(2, 1), step(2, 2), step(3, 2)];
        assert_eq!(samples_by_epoch(&double, &[]), [[10, 0, 4], [2, 0, 0]]);
        // Steps that were given up do not count. Adopted steps fill the gap.
        let with_given_up = [step(1, 1), given_up(step(2, 1)), step(2, 2), step(3, 2)];
        assert_eq!(samples_by_epoch(&with_given_up, &[]), [[10, 0, 0], [2, 0, 0]]);
        assert_eq!(samples_by_epoch(&gap, &[adopted(2, 3)]), [[10, 0, 0], [10, 0, 0]]);
        // The guard gives up adopted steps, or model selection ends the stage with an earlier step.
        let position = Position { stage: 0, step: 2 };
        let kept = [step(1, 1), step(2, 1)];
        let rolled_back = Lineage::new(&[(3, position)].into(), &BTreeSet::new());
        assert_eq!(samples_by_epoch_in_lineage(&kept, &[adopted(2, 4)], &rolled_back), [[8, 0, 0]]);
        let not_selected = Lineage::new(&[(3, position)].into(), &[ModelSelection { position, generation: 2 }].into());
        assert_eq!(samples_by_epoch_in_lineage(&kept, &[adopted(2, 4)], &not_selected), [[10, 0, 0], [6, 0, 0]]);
    }

    #[test]
    fn adopted_steps_do_not_count_if_their_generation_started_elsewhere() {
        let applied = |starts: &[(u64, u64)]| {
            let starts = starts.iter().map(|(number, step)| (*number, Position { stage: 0, step: *step })).collect();
            applied_steps(&[step(1, 1)], &[adopted(1, 3)], &Lineage::default(), &starts).len()
        };
        assert_eq!((applied(&[(2, 3)]), applied(&[(2, 1)]), applied(&[])), (3, 1, 1));
    }

    #[test]
    fn changed_data_begin_with_a_new_epoch() {
        // From the third generation on, which starts after the third step, there are seven images
        // instead of ten.
        let data_change = DataChange {
            generation: 3,
            from: Some(Position { stage: 0, step: 3 }),
            before: SplitSize { images: 10, captions: 50 },
        };
        let data = TrainingData { changes: vec![data_change], last_size: SplitSize { images: 7, captions: 35 } };
        let audited =
            |steps: &[Step], moves: &[HistoryMove]| samples_by_epoch_of_data(&data, steps, moves, &Lineage::default());
        let steps = [step(1, 1), step(2, 2), step(3, 2), step(4, 3), step(5, 4)];
        assert_eq!(audited(&steps, &[]), [[10, 0, 0], [2, 0, 0], [7, 0, 0], [1, 0, 0]]);
        assert_eq!(audited(&steps[..3], &[]), [[10, 0, 0], [2, 0, 0]]);
        // Steps beyond the change that were given up do not count.
        let with_given_up = [&steps[..3], &[given_up(step(4, 2))], &steps[3..]].concat();
        assert_eq!(audited(&with_given_up, &[]), audited(&steps, &[]));
        // A missing step counts with the old data. An adopted step counts with the data of the
        // generation before the one that adopts it.
        let gap = [&steps[..2], &steps[3..]].concat();
        assert_eq!(audited(&gap, &[]), [[8, 2, 0], [0, 2, 0], [7, 0, 0], [1, 0, 0]]);
        let adopted_by_generation_3 = HistoryMove { generation: 3, ..adopted(2, 3) };
        assert_eq!(audited(&gap, &[adopted_by_generation_3]), audited(&steps, &[]));
    }

    #[test]
    fn a_recovery_lasts_from_the_end_of_a_generation_to_the_next_applied_step() {
        let generation = |number, ended_at| Generation {
            number,
            members: vec![WorkerId(0), WorkerId(2)],
            cause: "worker 1 failed: its stream closed".into(),
            start: Position { stage: 0, step: 2 },
            source: "worker 0".into(),
            formed_at: 0.0,
            ready_at: None,
            ended_at,
        };
        let steps = [step(1, 1), step(2, 1), given_up(step(3, 1)), step(3, 3)];
        let records =
            generation_records(&[generation(1, Some(102.5)), generation(2, Some(102.75)), generation(3, None)], &steps);
        assert_eq!(
            records.iter().map(|record| (record.steps, record.given_up)).collect::<Vec<_>>(),
            [(3, 1), (0, 0), (1, 0)]
        );
        assert_eq!(records.iter().map(|record| record.recovery_s).collect::<Vec<_>>(), [None, None, Some(0.25)]);
    }
}
