//! The plan: the next action of the run at each position. It follows from the run file, from the
//! stages that have ended early, and from operators' requests.
//!
//! A stage *ends early* if it ends with an earlier state than its last one: by early stopping, by a
//! rollback of the guard, or because another state than the last one is the best. In the last case
//! all steps of the stage were trained.
//!
//! The batch size of a stage is constant, so a position in the run determines the data: step `s` of
//! a stage consumes the samples `s * batch .. (s + 1) * batch` of that stage's infinite, permuted
//! sequence.

use std::collections::{BTreeMap, BTreeSet};

use config::{RunFile, Stage};
use proto::v1;

/// A position in the run: `step` updates of stage `stage` are applied. Ordered by progress of the
/// run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The number of the stage, from 0.
    pub stage: u32,
    /// The number of updates of the stage that are applied.
    pub step: u64,
}

impl Position {
    /// The position after `steps` more updates of the same stage.
    #[must_use]
    pub fn after(self, steps: u64) -> Self {
        Self { stage: self.stage, step: self.step.saturating_add(steps) }
    }

    /// The name of a checkpoint at this position, in the stage with this name. If an earlier
    /// attempt to save it may still be writing, `attempt` is the generation of the new attempt, and
    /// makes the name unique.
    #[must_use]
    pub fn checkpoint_name(self, stage: &str, attempt: Option<u64>) -> String {
        let attempt = attempt.map(|generation| format!(".{generation}")).unwrap_or_default();
        format!("{}-{stage}-{:08}{attempt}", self.stage, self.step)
    }

    /// This position as a protocol message. `generation` is the one that trained the state at the
    /// position, or started from it.
    #[must_use]
    pub fn in_generation(self, generation: u64) -> v1::Position {
        v1::Position { stage: self.stage, step: self.step, generation }
    }
}

impl From<&v1::Position> for Position {
    fn from(position: &v1::Position) -> Self {
        Self { stage: position.stage, step: position.step }
    }
}

/// Whether a generation has agreed on the state at this position in its rendezvous, or has trained
/// it. If not, the worker has only read the state from a checkpoint.
#[must_use]
pub fn is_agreed(position: &v1::Position) -> bool {
    position.generation > 0
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stage {} step {}", self.stage, self.step)
    }
}

/// What takes place at a boundary, which is a position of the plan between two steps. (Changes of
/// stages are not included.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Boundary {
    /// Save the state; training continues during the save.
    Checkpoint,
    /// Caption the validation images, and score the captions.
    Evaluation,
}

/// The boundaries that the present history has passed.
pub type Boundaries = BTreeSet<(Position, Boundary)>;

/// The next action of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextAction {
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

/// For each stage that ended early: the step of the state that it ended with.
pub type SelectedSteps = BTreeMap<u32, u64>;

/// The stages of a run with their boundaries.
#[derive(Clone, Debug)]
pub struct Plan {
    stages: Vec<Stage>,
    selected_steps: SelectedSteps,
    /// For each kind of boundary: the last position for which an operator requested one.
    requested_boundaries: BTreeMap<Boundary, Position>,
}

impl Plan {
    /// The plan of a valid run file. The stages in `selected_steps` have ended early.
    #[must_use]
    pub fn new(file: &RunFile, selected_steps: SelectedSteps) -> Self {
        Self { stages: file.stages.clone(), selected_steps, requested_boundaries: BTreeMap::new() }
    }

    /// Adds a boundary at this position that an operator has requested.
    pub fn add_requested_boundary(&mut self, boundary: Boundary, position: Position) {
        self.requested_boundaries.insert(boundary, position);
    }

    /// Ends the stage of this position early, with the state at this position.
    pub fn end_stage(&mut self, position: Position) {
        self.selected_steps.insert(position.stage, position.step);
    }

    /// Whether the stage has ended early.
    #[must_use]
    pub fn has_ended_early(&self, stage: u32) -> bool {
        self.selected_steps.contains_key(&stage)
    }

    /// Whether the run file has this stage, with at least this many steps.
    #[must_use]
    pub fn contains(&self, position: Position) -> bool {
        self.stages.get(position.stage as usize).is_some_and(|stage| position.step <= stage.steps)
    }

    /// Whether the run passes this position: its stage has not ended at an earlier step.
    #[must_use]
    pub fn reaches(&self, position: Position) -> bool {
        position.step <= self.steps(position.stage)
    }

    /// Whether `next` is the beginning of a stage and `position` is the end of the stage before it.
    /// Both positions then have the same parameters.
    #[must_use]
    pub fn is_next_beginning(&self, position: Position, next: Position) -> bool {
        next.step == 0 && next.stage == position.stage + 1 && position.step >= self.steps(position.stage)
    }

    /// The furthest position that workers may have reached, if the journal has `committed` and
    /// `passed_boundaries`. Workers may have trained steps that the journal does not have. But they
    /// cannot have passed an evaluation that it does not have, because an evaluation is recorded
    /// before the next step is granted. Each stage that does not end early ends with an evaluation.
    #[must_use]
    pub fn max_granted_position(&self, committed: Position, passed_boundaries: &Boundaries) -> Position {
        let is_evaluated = |end: Position| passed_boundaries.contains(&(end, Boundary::Evaluation));
        let mut position = committed;
        loop {
            let end = Position { step: self.steps(position.stage), ..position };
            let is_stage_over = self.has_ended_early(position.stage) || is_evaluated(end);
            if position.step < end.step || !is_stage_over || position.stage as usize + 1 == self.stages.len() {
                let Stage { evaluate_every, evaluate_first, steps, .. } = self.stage(position);
                let planned_end = Position { step: *steps, ..position };
                if self.has_ended_early(position.stage) {
                    // Workers may have trained beyond the position at which the stage ended.
                    return planned_end;
                }
                let interval = evaluate_every.unwrap_or(u64::MAX);
                let next_evaluation =
                    Position { step: position.step.div_ceil(interval).saturating_mul(interval), ..position };
                let is_passed = is_evaluated(next_evaluation) || (next_evaluation.step == 0 && !evaluate_first);
                return if is_passed { next_evaluation.after(interval) } else { next_evaluation }.min(planned_end);
            }
            position = Position { stage: position.stage + 1, step: 0 };
        }
    }

    /// The settings of the stage at a position.
    ///
    /// # Panics
    /// If the run has no such stage; see [`Plan::contains`].
    #[must_use]
    pub fn stage(&self, position: Position) -> &Stage {
        &self.stages[position.stage as usize]
    }

    /// The next action at `position`, given the boundaries that the run has passed. A checkpoint
    /// comes before an evaluation at the same position, for two reasons: if a worker crashes in the
    /// evaluation, no step is lost; and if the evaluation shows that the state is the best one, its
    /// checkpoint exists already. A stage that has ended early is not evaluated at its end, because
    /// the scores could not change the decision any more.
    #[must_use]
    pub fn next_action(&self, position: Position, passed_boundaries: &Boundaries) -> NextAction {
        let stage = self.stage(position);
        let end = self.steps(position.stage);
        let is_at_end = position.step >= end;
        let is_scheduled = |every: Option<u64>| {
            let is_multiple = every.is_some_and(|every| position.step.is_multiple_of(every));
            position.step > 0 && (is_at_end || is_multiple)
        };
        let is_due = |boundary| !passed_boundaries.contains(&(position, boundary));
        let is_requested = |boundary| self.requested_boundaries.get(&boundary) == Some(&position);
        let evaluates = is_scheduled(stage.evaluate_every) || (stage.evaluate_first && position.step == 0);
        let evaluates = evaluates || is_requested(Boundary::Evaluation);
        let evaluates = evaluates && !(is_at_end && self.has_ended_early(position.stage));
        let saves = is_scheduled(stage.checkpoint_every) || (evaluates && stage.metric.is_some());
        let saves = saves || is_requested(Boundary::Checkpoint);
        if saves && is_due(Boundary::Checkpoint) {
            NextAction::Checkpoint
        } else if evaluates && is_due(Boundary::Evaluation) {
            NextAction::Evaluate
        } else if !is_at_end {
            let steps_until = |every: u64| every - position.step % every;
            let steps_until_scheduled =
                [stage.checkpoint_every, stage.evaluate_every].into_iter().flatten().map(steps_until);
            let requested = self.requested_boundaries.values().filter(|requested| requested.stage == position.stage);
            let steps_until_requested = requested.filter_map(|requested| requested.step.checked_sub(position.step));
            let steps_until_requested = steps_until_requested.filter(|steps| *steps > 0);
            NextAction::Train {
                steps: steps_until_scheduled.chain(steps_until_requested).fold(end - position.step, u64::min),
            }
        } else if (position.stage as usize) + 1 < self.stages.len() {
            NextAction::Advance { stage: position.stage + 1 }
        } else {
            NextAction::Finish
        }
    }

    /// The number of steps of a stage: that of the run file or, if the stage has ended early, the
    /// step of the state that it ended with.
    #[must_use]
    pub fn steps(&self, stage: u32) -> u64 {
        let planned_steps = self.stages[stage as usize].steps;
        self.selected_steps.get(&stage).map_or(planned_steps, |selected| planned_steps.min(*selected))
    }

    /// The number of samples that training has consumed at `position`.
    #[must_use]
    pub fn samples_before(&self, position: Position) -> u64 {
        let batch = |stage: u32| u64::from(self.stages[stage as usize].batch);
        let earlier = (0..position.stage).map(|stage| self.steps(stage).saturating_mul(batch(stage)));
        earlier.chain([position.step.saturating_mul(batch(position.stage))]).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use config::testing;

    /// Executes the plan from its beginning; returns all actions.
    fn execute(plan: &Plan) -> Vec<(Position, NextAction)> {
        let (mut at, mut passed, mut actions) = (Position::default(), Boundaries::new(), Vec::new());
        loop {
            let next = plan.next_action(at, &passed);
            actions.push((at, next));
            match next {
                NextAction::Train { steps } => at = at.after(steps),
                NextAction::Checkpoint => _ = passed.insert((at, Boundary::Checkpoint)),
                NextAction::Evaluate => _ = passed.insert((at, Boundary::Evaluation)),
                NextAction::Advance { stage } => at = Position { stage, step: 0 },
                NextAction::Finish => return actions,
            }
        }
    }

    #[test]
    fn a_stage_ends_with_a_checkpoint_then_an_evaluation() {
        let file = testing::run_file(vec![testing::stage("a", 5, 4, Some(2), Some(4))]);
        let plan = Plan::new(&file, SelectedSteps::new());
        let at = |step| Position { stage: 0, step };
        let expected = [
            (at(0), NextAction::Train { steps: 2 }),
            (at(2), NextAction::Checkpoint),
            (at(2), NextAction::Train { steps: 2 }),
            (at(4), NextAction::Checkpoint),
            (at(4), NextAction::Evaluate),
            (at(4), NextAction::Train { steps: 1 }),
            (at(5), NextAction::Checkpoint),
            (at(5), NextAction::Evaluate),
            (at(5), NextAction::Finish),
        ];
        assert_eq!(execute(&plan), expected);
    }

    #[test]
    fn an_operator_can_request_boundaries() {
        let mut plan = Plan::new(&testing::run_file(vec![testing::stage("a", 5, 4, None, None)]), SelectedSteps::new());
        let at = |step| Position { stage: 0, step };
        plan.add_requested_boundary(Boundary::Checkpoint, at(2));
        plan.add_requested_boundary(Boundary::Evaluation, at(2));
        let expected = [
            (at(0), NextAction::Train { steps: 2 }),
            (at(2), NextAction::Checkpoint),
            (at(2), NextAction::Evaluate),
            (at(2), NextAction::Train { steps: 3 }),
        ];
        assert_eq!(execute(&plan)[..4], expected);
    }

    #[test]
    fn stages_follow_each_other_and_their_samples_are_counted() {
        let stages = vec![testing::stage("a", 3, 4, None, None), testing::stage("b", 2, 5, None, None)];
        let plan = Plan::new(&testing::run_file(stages), SelectedSteps::new());
        let actions = execute(&plan);
        assert!(actions.contains(&(Position { stage: 0, step: 3 }, NextAction::Advance { stage: 1 })));
        assert_eq!(actions.last(), Some(&(Position { stage: 1, step: 2 }, NextAction::Finish)));
        assert_eq!(plan.samples_before(Position { stage: 1, step: 2 }), 3 * 4 + 2 * 5);
    }

    #[test]
    fn a_stage_with_a_metric_saves_every_state_that_it_evaluates() {
        let stage =
            Stage { metric: Some("cider".into()), evaluate_first: true, ..testing::stage("a", 3, 4, None, Some(2)) };
        let plan = Plan::new(&testing::run_file(vec![stage]), SelectedSteps::new());
        let at = |step| Position { stage: 0, step };
        let expected = [
            (at(0), NextAction::Checkpoint),
            (at(0), NextAction::Evaluate),
            (at(0), NextAction::Train { steps: 2 }),
            (at(2), NextAction::Checkpoint),
            (at(2), NextAction::Evaluate),
            (at(2), NextAction::Train { steps: 1 }),
            (at(3), NextAction::Checkpoint),
            (at(3), NextAction::Evaluate),
            (at(3), NextAction::Finish),
        ];
        assert_eq!(execute(&plan), expected);
    }

    #[test]
    fn a_stage_that_was_ended_early_is_not_evaluated_again() {
        let stage = Stage { evaluate_first: true, ..testing::stage("a", 6, 4, None, Some(2)) };
        let file = testing::run_file(vec![stage, testing::stage("b", 1, 5, None, None)]);
        let at = |step| Position { stage: 0, step };
        let mut plan = Plan::new(&file, SelectedSteps::new());
        plan.end_stage(at(4));
        let passed = [(at(4), Boundary::Checkpoint), (at(4), Boundary::Evaluation)].into();
        assert_eq!(plan.next_action(at(4), &passed), NextAction::Advance { stage: 1 });
        assert_eq!(plan.samples_before(Position { stage: 1, step: 1 }), 4 * 4 + 5);
        // The state with which a stage ends is always saved, also if the stage has ended early.
        assert_eq!(plan.next_action(at(4), &Boundaries::new()), NextAction::Checkpoint);
        plan.end_stage(at(0));
        assert_eq!(plan.next_action(at(0), &Boundaries::new()), NextAction::Advance { stage: 1 });
    }

    proptest! {
        #[test]
        fn every_step_is_planned_once(
            steps in 1..60_u64, checkpoint in prop::option::of(1..20_u64), evaluate in prop::option::of(1..20_u64),
        ) {
            let file = testing::run_file(vec![testing::stage("a", steps, 4, checkpoint, evaluate)]);
            let actions = execute(&Plan::new(&file, SelectedSteps::new()));
            let steps_of = |action: &NextAction| if let NextAction::Train { steps } = action { *steps } else { 0 };
            let trained: u64 = actions.iter().map(|(_, action)| steps_of(action)).sum();
            prop_assert_eq!(trained, steps);
            let evaluated = actions.iter().filter(|(_, action)| *action == NextAction::Evaluate).count() as u64;
            prop_assert_eq!(evaluated, evaluate.map_or(0, |every| (steps - 1) / every) + 1);
        }
    }
}
