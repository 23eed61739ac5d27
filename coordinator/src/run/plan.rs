//! The plan: what the run has to do at each point, derived from the run file and from the stages
//! that ended early.
//!
//! The batch size of a stage is constant, so a point of the run determines the data: step `s` of a
//! stage consumes the samples `s * batch .. (s + 1) * batch` of that stage's infinite, permuted
//! sequence.

use std::collections::{BTreeMap, BTreeSet};

use config::{RunFile, Stage};
use proto::v1;

/// A point of the run: `step` updates of stage `stage` are applied. Ordered by progress of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The number of the stage, from 0.
    pub stage: u32,
    /// The number of updates of the stage that are applied.
    pub step: u64,
}

impl Place {
    /// The point after `steps` more updates of the same stage.
    #[must_use]
    pub fn after(self, steps: u64) -> Self {
        Self { stage: self.stage, step: self.step.saturating_add(steps) }
    }

    /// The name of a checkpoint of this point, in the stage with this name. If an earlier attempt
    /// to save it may still be writing, `attempt` is the generation of the new attempt, and makes
    /// the name unique.
    #[must_use]
    pub fn checkpoint_name(self, stage: &str, attempt: Option<u64>) -> String {
        let attempt = attempt.map(|generation| format!(".{generation}")).unwrap_or_default();
        format!("{}-{stage}-{:08}{attempt}", self.stage, self.step)
    }

    /// The position in protocol messages of a state that `generation` trained or agreed on.
    #[must_use]
    pub fn in_generation(self, generation: u64) -> v1::Position {
        v1::Position { stage: self.stage, step: self.step, generation }
    }
}

impl From<&v1::Position> for Place {
    fn from(position: &v1::Position) -> Self {
        Self { stage: position.stage, step: position.step }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stage {} step {}", self.stage, self.step)
    }
}

/// An interruption of training at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Boundary {
    /// Save the state.
    Checkpoint,
    /// Write captions of the validation images, and score them.
    Evaluation,
}

/// The boundaries that the present history has passed.
pub type Boundaries = BTreeSet<(Place, Boundary)>;

/// The next action of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Train for `steps` updates without interruption.
    Train {
        /// The number of updates up to the next boundary; at least 1.
        steps: u64,
    },
    /// Save the state.
    Checkpoint,
    /// Evaluate the state.
    Evaluate,
    /// Begin the next stage.
    Advance {
        /// The number of the next stage.
        stage: u32,
    },
    /// The run is complete.
    Finish,
}

/// The step at which each stage ended, for stages that ended before their last step.
pub type StageEnds = BTreeMap<u32, u64>;

/// The stages of a run with their boundaries.
#[derive(Clone, Debug)]
pub struct Plan {
    stages: Vec<Stage>,
    ends: StageEnds,
    /// The last boundary of each kind that an operator requested.
    asked: BTreeMap<Boundary, Place>,
}

impl Plan {
    /// The plan of a checked run file, in which these stages have ended early.
    #[must_use]
    pub fn new(file: &RunFile, ends: StageEnds) -> Self {
        Self { stages: file.stages.clone(), ends, asked: BTreeMap::new() }
    }

    /// Adds a boundary at this point, at an operator's request.
    pub fn ask(&mut self, boundary: Boundary, at: Place) {
        self.asked.insert(boundary, at);
    }

    /// Ends the stage at this point.
    pub fn end(&mut self, at: Place) {
        self.ends.insert(at.stage, at.step);
    }

    /// Whether the stage was ended early.
    #[must_use]
    pub fn has_ended(&self, stage: u32) -> bool {
        self.ends.contains_key(&stage)
    }

    /// Whether the run file has this point.
    #[must_use]
    pub fn contains(&self, at: Place) -> bool {
        self.stages.get(at.stage as usize).is_some_and(|stage| at.step <= stage.steps)
    }

    /// Whether the run passes this point, given where its stages have ended.
    #[must_use]
    pub fn reaches(&self, at: Place) -> bool {
        at.step <= self.steps(at.stage)
    }

    /// Whether `next` is the beginning of a stage and `at` the end of the stage before: the same
    /// state.
    #[must_use]
    pub fn is_next_beginning(&self, at: Place, next: Place) -> bool {
        next.step == 0 && next.stage == at.stage + 1 && at.step >= self.steps(at.stage)
    }

    /// The furthest point that workers may have reached, in a run whose journal has `at` as
    /// committed and these boundaries as `done`. No evaluation is passed before it is recorded, and
    /// each stage ends with one.
    #[must_use]
    pub fn horizon(&self, at: Place, done: &Boundaries) -> Place {
        let evaluated = |place: Place| done.contains(&(place, Boundary::Evaluation));
        let mut at = at;
        loop {
            let end = Place { step: self.steps(at.stage), ..at };
            let is_over = self.has_ended(at.stage) || evaluated(end);
            if at.step < end.step || !is_over || at.stage as usize + 1 == self.stages.len() {
                let Stage { evaluate_every, evaluate_first, steps, .. } = self.stage(at);
                let whole = Place { step: *steps, ..at };
                if self.has_ended(at.stage) {
                    // It may have gone further than the point at which it ended.
                    return whole;
                }
                let every = evaluate_every.unwrap_or(u64::MAX);
                let regular = Place { step: at.step.div_ceil(every).saturating_mul(every), ..at };
                let passed = evaluated(regular) || (regular.step == 0 && !evaluate_first);
                return if passed { regular.after(every) } else { regular }.min(whole);
            }
            at = Place { stage: at.stage + 1, step: 0 };
        }
    }

    /// The settings of the stage at a point of the run.
    ///
    /// # Panics
    /// If the run has no such point; see [`Plan::contains`].
    #[must_use]
    pub fn stage(&self, at: Place) -> &Stage {
        &self.stages[at.stage as usize]
    }

    /// The action at `at`, given the boundaries that are `done`. A checkpoint comes before an
    /// evaluation at the same point: if the evaluation crashes a worker, no state is lost; and if
    /// the state proves to be the best, it is saved. A stage that was ended early is not evaluated
    /// at its end: its end is decided, and scores would not change that.
    #[must_use]
    pub fn next(&self, at: Place, done: &Boundaries) -> Next {
        let stage = self.stage(at);
        let end = self.steps(at.stage);
        let last = at.step >= end;
        let falls = |every: Option<u64>| {
            let regular = every.is_some_and(|every| at.step.is_multiple_of(every));
            at.step > 0 && (last || regular)
        };
        let due = |boundary| !done.contains(&(at, boundary));
        let asked = |boundary| self.asked.get(&boundary) == Some(&at);
        let evaluated = falls(stage.evaluate_every) || (stage.evaluate_first && at.step == 0);
        let evaluated = evaluated || asked(Boundary::Evaluation);
        let evaluated = evaluated && !(last && self.has_ended(at.stage));
        let saved = falls(stage.checkpoint_every) || (evaluated && stage.metric.is_some());
        let saved = saved || asked(Boundary::Checkpoint);
        if saved && due(Boundary::Checkpoint) {
            Next::Checkpoint
        } else if evaluated && due(Boundary::Evaluation) {
            Next::Evaluate
        } else if !last {
            let until = |every: u64| every - at.step % every;
            let boundaries = [stage.checkpoint_every, stage.evaluate_every].into_iter().flatten().map(until);
            let asked = self.asked.values().filter(|asked| asked.stage == at.stage);
            let asked = asked.filter_map(|asked| asked.step.checked_sub(at.step).filter(|steps| *steps > 0));
            Next::Train { steps: boundaries.chain(asked).fold(end - at.step, u64::min) }
        } else if (at.stage as usize) + 1 < self.stages.len() {
            Next::Advance { stage: at.stage + 1 }
        } else {
            Next::Finish
        }
    }

    /// The number of updates of a stage, up to where it ended if it ended early.
    #[must_use]
    pub fn steps(&self, stage: u32) -> u64 {
        let planned = self.stages[stage as usize].steps;
        self.ends.get(&stage).map_or(planned, |end| planned.min(*end))
    }

    /// The number of samples that training has consumed at `at`.
    #[must_use]
    pub fn samples_before(&self, at: Place) -> u64 {
        let batch = |stage: u32| u64::from(self.stages[stage as usize].batch);
        let earlier = (0..at.stage).map(|stage| self.steps(stage).saturating_mul(batch(stage)));
        earlier.chain([at.step.saturating_mul(batch(at.stage))]).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::run::testing;

    /// Walks the plan from its beginning, and does what it says.
    fn walk(plan: &Plan) -> Vec<(Place, Next)> {
        let (mut at, mut done, mut said) = (Place::default(), Boundaries::new(), Vec::new());
        loop {
            let next = plan.next(at, &done);
            said.push((at, next));
            match next {
                Next::Train { steps } => at = at.after(steps),
                Next::Checkpoint => _ = done.insert((at, Boundary::Checkpoint)),
                Next::Evaluate => _ = done.insert((at, Boundary::Evaluation)),
                Next::Advance { stage } => at = Place { stage, step: 0 },
                Next::Finish => return said,
            }
        }
    }

    #[test]
    fn a_stage_ends_with_a_checkpoint_then_an_evaluation() {
        let plan = Plan::new(&testing::run_file(vec![testing::stage("a", 5, 4, Some(2), Some(4))]), StageEnds::new());
        let at = |step| Place { stage: 0, step };
        let expected = [
            (at(0), Next::Train { steps: 2 }),
            (at(2), Next::Checkpoint),
            (at(2), Next::Train { steps: 2 }),
            (at(4), Next::Checkpoint),
            (at(4), Next::Evaluate),
            (at(4), Next::Train { steps: 1 }),
            (at(5), Next::Checkpoint),
            (at(5), Next::Evaluate),
            (at(5), Next::Finish),
        ];
        assert_eq!(walk(&plan), expected);
    }

    #[test]
    fn what_is_asked_for_is_a_boundary_like_any_other() {
        let mut plan = Plan::new(&testing::run_file(vec![testing::stage("a", 5, 4, None, None)]), StageEnds::new());
        let at = |step| Place { stage: 0, step };
        plan.ask(Boundary::Checkpoint, at(2));
        plan.ask(Boundary::Evaluation, at(2));
        let expected = [
            (at(0), Next::Train { steps: 2 }),
            (at(2), Next::Checkpoint),
            (at(2), Next::Evaluate),
            (at(2), Next::Train { steps: 3 }),
        ];
        assert_eq!(walk(&plan)[..4], expected);
    }

    #[test]
    fn stages_follow_each_other_and_count_their_samples() {
        let stages = vec![testing::stage("a", 3, 4, None, None), testing::stage("b", 2, 5, None, None)];
        let plan = Plan::new(&testing::run_file(stages), StageEnds::new());
        let said = walk(&plan);
        assert!(said.contains(&(Place { stage: 0, step: 3 }, Next::Advance { stage: 1 })));
        assert_eq!(said.last(), Some(&(Place { stage: 1, step: 2 }, Next::Finish)));
        assert_eq!(plan.samples_before(Place { stage: 1, step: 2 }), 3 * 4 + 2 * 5);
    }

    #[test]
    fn a_stage_with_a_metric_saves_all_that_it_evaluates() {
        let stage =
            Stage { metric: Some("cider".into()), evaluate_first: true, ..testing::stage("a", 3, 4, None, Some(2)) };
        let plan = Plan::new(&testing::run_file(vec![stage]), StageEnds::new());
        let at = |step| Place { stage: 0, step };
        let expected = [
            (at(0), Next::Checkpoint),
            (at(0), Next::Evaluate),
            (at(0), Next::Train { steps: 2 }),
            (at(2), Next::Checkpoint),
            (at(2), Next::Evaluate),
            (at(2), Next::Train { steps: 1 }),
            (at(3), Next::Checkpoint),
            (at(3), Next::Evaluate),
            (at(3), Next::Finish),
        ];
        assert_eq!(walk(&plan), expected);
    }

    #[test]
    fn a_stage_that_was_ended_is_over_there() {
        let stage = Stage { evaluate_first: true, ..testing::stage("a", 6, 4, None, Some(2)) };
        let file = testing::run_file(vec![stage, testing::stage("b", 1, 5, None, None)]);
        let at = |step| Place { stage: 0, step };
        let mut plan = Plan::new(&file, StageEnds::new());
        plan.end(at(4));
        let done = [(at(4), Boundary::Checkpoint), (at(4), Boundary::Evaluation)].into();
        assert_eq!(plan.next(at(4), &done), Next::Advance { stage: 1 });
        assert_eq!(plan.samples_before(Place { stage: 1, step: 1 }), 4 * 4 + 5);
        // No further evaluation; but the final state of a stage is always saved.
        assert_eq!(plan.next(at(4), &Boundaries::new()), Next::Checkpoint);
        plan.end(at(0));
        assert_eq!(plan.next(at(0), &Boundaries::new()), Next::Advance { stage: 1 });
    }

    proptest! {
        #[test]
        fn every_step_is_planned_once(
            steps in 1..60_u64, checkpoint in prop::option::of(1..20_u64), evaluate in prop::option::of(1..20_u64),
        ) {
            let file = testing::run_file(vec![testing::stage("a", steps, 4, checkpoint, evaluate)]);
            let said = walk(&Plan::new(&file, StageEnds::new()));
            let trained: u64 = said.iter().map(|(_, next)| if let Next::Train { steps } = next { *steps } else { 0 }).sum();
            prop_assert_eq!(trained, steps);
            let evaluated = said.iter().filter(|(_, next)| *next == Next::Evaluate).count() as u64;
            prop_assert_eq!(evaluated, evaluate.map_or(0, |every| (steps - 1) / every) + 1);
        }
    }
}
