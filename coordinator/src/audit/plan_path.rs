//! Audit of the path through the plan: each generation starts at the position that the run has
//! reached, or the journal records which steps it gave up or adopted. The steps of a generation are
//! consecutive. A finished run has reached the end of the plan.

use std::collections::BTreeMap;

use config::RunFile;
use dico_engine::plan::{Plan, Position};
use journal::{Generation, HistoryMove, Recovery, StageEnd, Step};

/// Finds the problems, in the order of the run.
pub(super) fn path_problems(
    file: &RunFile,
    generations: &[Generation],
    steps: &[Step],
    records: &PathRecords,
    recovered: Option<&Recovery>,
) -> Vec<String> {
    let mut path = PathCheck {
        plan: Plan::new(file, records.stage_ends.iter().map(|end| (end.position.stage, end.position.step)).collect()),
        moves: records.moves.clone(),
        ends_by_generation: records.stage_ends.iter().map(|end| (end.generation, end.position)).collect(),
        problems: Vec::new(),
    };
    let first_generation = recovered.map_or(1, |recovered| recovered.generation);
    let mut reached = recovered.map_or_else(Position::default, |recovered| recovered.position);
    let mut steps_by_generation: BTreeMap<u64, Vec<Position>> = BTreeMap::new();
    steps.iter().for_each(|step| steps_by_generation.entry(step.generation).or_default().push(step.position));
    for (number, generation) in (first_generation..).zip(generations) {
        if generation.number != number {
            path.problems.push(format!("generation {number} is missing"));
            break;
        }
        path.check_start(generation, reached);
        reached = path.check_steps(generation, &steps_by_generation.remove(&number).unwrap_or_default());
    }
    for (generation, steps) in steps_by_generation {
        let was_formed = generations.iter().any(|formed| formed.number == generation);
        if !was_formed && let Some(Position { stage, step }) = steps.first() {
            let problem = format!("stage {stage} step {step} is of generation {generation}, which was never formed");
            path.problems.push(problem);
        }
    }
    if records.is_finished && !path.is_end(reached) {
        path.problems.push(format!("the journal says that the run is finished, but it has only reached {reached}"));
    }
    path.problems
}

/// What the journal records about the path, besides generations and steps.
pub(super) struct PathRecords {
    /// The ends of stages with an earlier state than their last one.
    pub stage_ends: Vec<StageEnd>,
    /// The moves of the committed position. A generation moves it if it starts at another position
    /// than the run has reached, because it gives up or adopts steps. A coordinator may end after
    /// it has recorded a move and before it has recorded the generation. Then a later generation
    /// with the same number may start at another position.
    pub moves: Vec<HistoryMove>,
    /// Whether the run is complete.
    pub is_finished: bool,
}

/// The check of the path, with the problems found so far.
struct PathCheck {
    plan: Plan,
    /// See [`PathRecords::moves`].
    moves: Vec<HistoryMove>,
    /// The states with which stages ended early, by the last generation of the stage.
    ends_by_generation: BTreeMap<u64, Position>,
    problems: Vec<String>,
}

impl PathCheck {
    /// Whether both positions have the same parameters. The end of a stage and step 0 of the next
    /// stage do, because a stage begins with the parameters that the previous one ended with.
    fn has_same_parameters(&self, one: Position, other: Position) -> bool {
        let (earlier, later) = (one.min(other), one.max(other));
        earlier == later
            || self.plan.contains(earlier) && self.plan.contains(later) && self.plan.is_next_beginning(earlier, later)
    }

    /// Whether nothing is left to train at a position.
    fn is_end(&self, mut at: Position) -> bool {
        while self.plan.contains(at) && at.step >= self.plan.steps(at.stage) {
            at = Position { stage: at.stage + 1, step: 0 };
        }
        at.step == 0 && !self.plan.contains(at)
    }

    /// Checks the start of a generation against the position that the run had reached.
    fn check_start(&mut self, generation: &Generation, reached: Position) {
        let Generation { number, start, .. } = generation;
        if !self.plan.contains(*start) {
            self.problems.push(format!("generation {number} starts at {start}, which the run does not have"));
            return;
        }
        let stage_end = self.ends_by_generation.get(&number.saturating_sub(1)).copied();
        let is_reached = |position: Position| {
            self.has_same_parameters(position, reached)
                || stage_end.is_some_and(|end| self.has_same_parameters(position, end))
        };
        let is_recorded_move =
            |moved: &HistoryMove| moved.generation == *number && moved.to == *start && is_reached(moved.from);
        if !is_reached(*start) && !self.moves.iter().any(is_recorded_move) {
            self.problems.push(format!("generation {number} starts at {start}, but the run had reached {reached}"));
        }
    }

    /// Checks that a generation's steps are consecutive. Returns the position that they reach.
    fn check_steps(&mut self, generation: &Generation, steps: &[Position]) -> Position {
        let mut reached = generation.start;
        for step in steps {
            let is_next = *step == reached.after(1)
                || (step.step == 1 && self.has_same_parameters(reached, Position { step: 0, ..*step }));
            if !is_next || !self.plan.contains(*step) {
                let number = generation.number;
                self.problems.push(format!("generation {number} has {step} after {reached}"));
                // Later steps are not checked: their problems would follow from this one.
                return steps.last().copied().filter(|last| self.plan.contains(*last)).unwrap_or(reached);
            }
            reached = *step;
        }
        reached
    }
}
