//! Model selection and early stopping: selects the best state of a stage, and decides whether the
//! stage ends with it. A *state* here is the training state at a position: parameters and
//! optimizer, as a checkpoint contains them.

use std::collections::{BTreeMap, BTreeSet};

use config::Stage;
use serde_json::{Value, json};

use crate::{
    checkpoint::Checkpoint,
    guard::Guard,
    plan::{Boundaries, Boundary, Position},
};

/// The evaluations of the present history: for each evaluated position, the scores by metric name.
pub type Scores = BTreeMap<Position, BTreeMap<String, f64>>;

/// The best state of a stage and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BestState {
    /// The position of the state.
    pub position: Position,
    /// The score by the stage's metric.
    pub score: f64,
}

/// Why a stage ends with a state that is not its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// All steps are done, and the last state is not the best.
    BestState,
    /// Early stopping: the last evaluations, as many as the stage's `patience`, were not better
    /// than the best one.
    EarlyStopping,
    /// A rule of the guard with `action: rollback` has fired.
    Guard,
}

impl EndCause {
    /// All causes.
    pub const ALL: [Self; 3] = [Self::BestState, Self::EarlyStopping, Self::Guard];

    /// The name in the journal.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BestState => "best_state",
            Self::EarlyStopping => "early_stopping",
            Self::Guard => "guard",
        }
    }
}

/// The decision to end a stage, and the state that it ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct EndDecision {
    /// The position of the state that the stage ends with: that of a checkpoint, or the beginning
    /// of the stage. The next stage starts from that state.
    pub position: Position,
    /// Why the stage ends, for programs.
    pub cause: EndCause,
    /// Why the stage ends, as a message for display.
    pub reason: String,
    /// Later states that a user may have expected the stage to end with, in order: those with a
    /// better score than the state at `position`, and the last one that was saved.
    pub later_states: Vec<LaterState>,
}

impl EndDecision {
    /// The detail of the event that the stage has ended, in its last generation.
    #[must_use]
    pub fn detail(&self, generation: u64) -> Value {
        let Self { position, cause, reason, later_states } = self;
        json!({
            "stage": position.stage,
            "step": position.step,
            "generation": generation,
            "cause": cause.name(),
            "reason": reason,
            // The journal's name of `later_states`.
            "passed_over": later_states.iter().map(LaterState::detail).collect::<Vec<_>>(),
        })
    }
}

/// A state of a stage that is later than the one that the stage ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct LaterState {
    /// The position of the state.
    pub position: Position,
    /// Its score by the stage's metric; none if it was not evaluated.
    pub score: Option<f64>,
    /// Why it is not selected, as a message for display.
    pub reason: String,
}

impl LaterState {
    fn detail(&self) -> Value {
        let Self { position, score, reason } = self;
        json!({ "step": position.step, "score": score, "reason": reason })
    }
}

/// Maximal number of states in [`EndDecision::later_states`].
const MAX_LATER_STATES: usize = 8;

/// The settings and results of a stage that determine with which state it ends.
#[derive(Clone, Copy, Debug)]
pub struct StageView<'a> {
    /// The settings of the stage.
    pub stage: &'a Stage,
    /// The stage's guard. [`Guard::stage`] is the number of the stage.
    pub guard: &'a Guard,
    /// The scores of all stages.
    pub scores: &'a Scores,
    /// The checkpoints of all stages.
    pub checkpoints: &'a BTreeMap<Position, Checkpoint>,
    /// The boundaries that the run has passed, also those whose checkpoints are deleted by now.
    pub passed_boundaries: &'a Boundaries,
}

impl StageView<'_> {
    /// The state with the highest score among those that are saved and that no rollback rule
    /// disqualifies; the earliest one if several have that score. None if the stage has no metric,
    /// or if there is no such state.
    #[must_use]
    pub fn best_state(&self) -> Option<BestState> {
        self.best_among(|_| true)
    }

    /// The best state among those at the positions for which `is_candidate` is true.
    fn best_among(&self, is_candidate: impl Fn(Position) -> bool) -> Option<BestState> {
        let is_available =
            |position: Position| self.guard.is_qualified(position) && self.checkpoints.contains_key(&position);
        let candidates =
            self.scored_states().filter(|state| is_available(state.position) && is_candidate(state.position));
        candidates.reduce(|best, other| if other.score > best.score { other } else { best })
    }

    /// Decides whether the stage ends with an earlier state than its current one. If a rule with
    /// `action: rollback` has fired, the stage ends with a state that the rule does not disqualify.
    /// If all steps are done and the last state is not the best one, or if early stopping is due,
    /// it ends with the best state. None if the stage continues, or ends with its last state.
    #[must_use]
    pub fn end_decision(&self) -> Option<EndDecision> {
        if let Some(disqualification) = self.guard.disqualification() {
            let beginning = Position { stage: self.guard.stage(), step: 0 };
            let position = self.fallback_position(disqualification.first_position).unwrap_or(beginning);
            let reason = format!("the guard: {}", disqualification.reason);
            return Some(self.end_at(position, EndCause::Guard, reason));
        }
        let (BestState { position, score }, metric) = (self.best_state()?, self.stage.metric.as_ref()?);
        // A state that was evaluated but never saved may not exist any more.
        let was_saved = |position: &Position| self.passed_boundaries.contains(&(*position, Boundary::Checkpoint));
        let evaluated = self.evaluated_states().map(|(position, _)| position);
        let later: Vec<Position> = evaluated.filter(was_saved).filter(|other| *other > position).collect();
        let last = later.last()?;
        let step = position.step;
        if last.step >= self.stage.steps {
            let reason = format!("its best state by {metric} is that of step {step}, with {score:.4}");
            Some(self.end_at(position, EndCause::BestState, reason))
        } else if self.stage.patience.is_some_and(|patience| later.len() >= patience as usize) {
            let count = later.len();
            let reason = format!(
                "early stopping: {count} evaluations in a row were not better than {metric} {score:.4} at step {step}"
            );
            Some(self.end_at(position, EndCause::EarlyStopping, reason))
        } else {
            None
        }
    }

    /// The decision to end the stage with the state at `position`.
    fn end_at(&self, position: Position, cause: EndCause, reason: String) -> EndDecision {
        let scores: BTreeMap<Position, f64> =
            self.scored_states().map(|BestState { position, score }| (position, score)).collect();
        let selected_score = scores.get(&position).copied().unwrap_or(f64::NEG_INFINITY);
        let is_later_and_better = |(other, score): &(&Position, &f64)| **other > position && **score > selected_score;
        let better_positions = scores.iter().filter(is_later_and_better).map(|(other, _)| *other);
        let mut positions: BTreeSet<Position> = better_positions.take(MAX_LATER_STATES - 1).collect();
        positions.extend(self.last_saved_after(position));
        let later_state = |position: Position| {
            let reason = match self.guard.disqualification() {
                Some(disqualification) if position >= disqualification.first_position => {
                    format!("the guard: {}", disqualification.reason)
                }
                _ => "its score is not better".into(),
            };
            LaterState { position, score: scores.get(&position).copied(), reason }
        };
        let later_states = positions.into_iter().map(later_state).collect();
        EndDecision { position, cause, reason, later_states }
    }

    /// The last saved state of the stage, if it is later than `position`.
    #[must_use]
    pub fn last_saved_after(&self, position: Position) -> Option<Position> {
        let last = self.checkpoints.keys().rev().find(|other| other.stage == self.guard.stage());
        last.copied().filter(|last| *last > position)
    }

    /// The positions of the states that the stage has to end with if rollback rules fire. Their
    /// checkpoints must not be deleted.
    #[must_use]
    pub fn fallback_positions(&self) -> BTreeSet<Position> {
        let newest = self.checkpoints.keys().next_back().copied().unwrap_or_default();
        self.guard.first_positions_at_risk(newest).filter_map(|first| self.fallback_position(first)).collect()
    }

    /// The position of the state that the stage ends with if a rollback rule disqualifies the
    /// states from `first_disqualified` on: the best of the earlier states, or else the newest one.
    /// None if no earlier state of the stage is saved.
    fn fallback_position(&self, first_disqualified: Position) -> Option<Position> {
        let best = self.best_among(|position| position < first_disqualified).map(|best| best.position);
        let earlier = self.checkpoints.range(..first_disqualified).rev().map(|(position, _)| *position);
        let mut earlier_of_stage =
            earlier.filter(|position| position.stage == self.guard.stage() && self.guard.is_qualified(*position));
        best.or_else(|| earlier_of_stage.next())
    }

    /// The states with a finite score by the stage's metric, in order.
    fn scored_states(&self) -> impl Iterator<Item = BestState> {
        let scored_state = |(position, scores): (Position, &BTreeMap<String, f64>)| {
            let score = *scores.get(self.stage.metric.as_ref()?)?;
            score.is_finite().then_some(BestState { position, score })
        };
        self.evaluated_states().filter_map(scored_state)
    }

    /// The evaluated states of the stage with their scores, in order.
    fn evaluated_states(&self) -> impl Iterator<Item = (Position, &BTreeMap<String, f64>)> {
        let of_stage = self.scores.iter().filter(|(position, _)| position.stage == self.guard.stage());
        of_stage.map(|(position, scores)| (*position, scores))
    }
}

#[cfg(test)]
mod tests {
    use config::{GuardAction, Rule};

    use proptest::prelude::*;

    use super::*;
    use config::testing;

    fn at(step: u64) -> Position {
        Position { stage: 1, step }
    }

    /// Calls `function` with the view of a stage that was evaluated every ten steps. Each of
    /// `values` is the `cider` score and the `kl` of one evaluation. In the statistics of the step
    /// `step_with_kl_1`, if it is given, `kl` is 1.
    fn with_stage_view<T>(
        stage: &Stage,
        values: &[[f64; 2]],
        step_with_kl_1: Option<u64>,
        function: impl FnOnce(&StageView<'_>) -> T,
    ) -> T {
        let mut guard = Guard::new(1, &stage.guard);
        let evaluations = || (1..).map(|n| at(10 * n)).zip(values);
        for (position, [cider, kl]) in evaluations() {
            guard.check_evaluation(position, |name| {
                [("cider", *cider), ("kl", *kl)].into_iter().find(|pair| pair.0 == name).map(|pair| pair.1)
            });
        }
        if let Some(step) = step_with_kl_1 {
            guard.check_step(at(step), |name| (name == "kl").then_some(1.0));
        }
        let of_stage = evaluations().map(|(position, [cider, _])| (position, [("cider".to_owned(), *cider)].into()));
        let of_earlier_stage = (Position { stage: 0, step: 90 }, [("cider".to_owned(), 99.0)].into());
        let scores: Scores = of_stage.chain([of_earlier_stage]).collect();
        let saved = |position: &Position| {
            (
                *position,
                Checkpoint { position: *position, generation: 1, name: "saved".into(), ..Checkpoint::default() },
            )
        };
        let checkpoints = scores.keys().map(saved).collect();
        let passed_boundaries = &scores.keys().map(|position| (*position, Boundary::Checkpoint)).collect();
        let (guard, scores, checkpoints) = (&guard, &scores, &checkpoints);
        function(&StageView { stage, guard, scores, checkpoints, passed_boundaries })
    }

    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method has one lifetime, the closure any")]
    fn end_with_kl(stage: &Stage, values: &[[f64; 2]], step_with_kl_1: Option<u64>) -> Option<EndDecision> {
        with_stage_view(stage, values, step_with_kl_1, |view| view.end_decision())
    }

    fn end_of(stage: &Stage, scores: &[f64]) -> Option<EndDecision> {
        end_with_kl(stage, &with_zero_kl(scores), None)
    }

    fn with_zero_kl(scores: &[f64]) -> Vec<[f64; 2]> {
        scores.iter().map(|score| [*score, 0.0]).collect()
    }

    /// The step of the best state, and the step at which a stage of 50 steps ends, after
    /// evaluations with these scores every ten steps.
    fn best_and_end(stage: &Stage, scores: &[f64], step_with_kl_1: Option<u64>) -> (Option<u64>, Option<u64>) {
        with_stage_view(stage, &with_zero_kl(scores), step_with_kl_1, |view| {
            (view.best_state().map(|best| best.position.step), view.end_decision().map(|end| end.position.step))
        })
    }

    fn stage(metric: Option<&str>, patience: Option<u32>, guard: Vec<Rule>) -> Stage {
        Stage { metric: metric.map(str::to_owned), patience, guard, ..testing::stage("b", 50, 8, None, Some(10)) }
    }

    fn rule(metric: &str, above: f64, action: GuardAction) -> Rule {
        Rule { metric: metric.into(), above: Some(above), below: None, for_: 1, action }
    }

    #[test]
    fn a_stage_ends_with_its_best_state() {
        let by_cider = stage(Some("cider"), None, vec![]);
        assert_eq!(best_and_end(&by_cider, &[1.0, 3.0, 3.0, 2.0], None), (Some(20), None));
        assert_eq!(best_and_end(&by_cider, &[1.0, 3.0, 3.0, 2.0, 2.0], None), (Some(20), Some(20)));
        assert_eq!(best_and_end(&by_cider, &[1.0, 3.0, 3.0, f64::NAN, 4.0], None), (Some(50), None));
        assert_eq!(best_and_end(&stage(None, None, vec![]), &[2.0, 1.0, 1.0, 1.0, 1.0], None), (None, None));
        assert_eq!(best_and_end(&stage(Some("spice"), Some(1), vec![]), &[2.0, 1.0], None), (None, None));
    }

    #[test]
    fn patience_counts_evaluations_without_improvement() {
        let with_patience = stage(Some("cider"), Some(2), vec![]);
        assert_eq!(best_and_end(&with_patience, &[1.0, 0.5, 2.0, 1.0], None), (Some(30), None));
        assert_eq!(best_and_end(&with_patience, &[1.0, 0.5, 1.0], None), (Some(10), Some(10)));
    }

    #[test]
    fn a_rule_that_only_warns_or_pauses_does_not_disqualify_the_best_state() {
        for action in [GuardAction::Warn, GuardAction::Pause] {
            let guarded = stage(Some("cider"), None, vec![rule("cider", 5.0, action)]);
            assert_eq!(best_and_end(&guarded, &[1.0, 9.0, 3.0], None), (Some(20), None));
            assert_eq!(best_and_end(&guarded, &[1.0, 2.0, 3.0, 4.0, 9.0], None), (Some(50), None));
        }
    }

    #[test]
    fn a_rollback_selects_the_best_or_newest_qualified_state() {
        let rules = || vec![rule("cider", 5.0, GuardAction::Rollback), rule("kl", 0.5, GuardAction::Rollback)];
        assert_eq!(best_and_end(&stage(Some("cider"), None, rules()), &[3.0, 2.0, 9.0], None), (Some(10), Some(10)));
        assert_eq!(best_and_end(&stage(None, None, rules()), &[3.0, 2.0, 9.0], None), (None, Some(20)));
        assert_eq!(best_and_end(&stage(None, None, rules()), &[9.0], None), (None, Some(0)));
        // Statistics of step 21 describe the state at step 20.
        assert_eq!(best_and_end(&stage(None, None, rules()), &[3.0, 2.0], Some(21)), (None, Some(10)));
        assert_eq!(best_and_end(&stage(None, None, rules()), &[3.0, 2.0], Some(22)), (None, Some(20)));
    }

    #[test]
    fn a_decision_has_its_cause_and_the_later_states() {
        let by_cider = stage(Some("cider"), Some(3), vec![rule("cider", 5.0, GuardAction::Rollback)]);
        let later_states = |scores: &[f64]| {
            let end = end_of(&by_cider, scores).unwrap();
            let step_and_score = |later: &LaterState| (later.position.step, later.score);
            let states = end.later_states.iter().map(step_and_score).collect::<Vec<_>>();
            (end.cause, states, end.later_states[0].reason.clone())
        };
        let (cause, states, reason) = later_states(&[1.0, 3.0, 2.0, 2.5, 2.0]);
        assert_eq!((cause, states), (EndCause::BestState, vec![(50, Some(2.0))]));
        assert_eq!(reason, "its score is not better");
        let (cause, states, _) = later_states(&[3.0, 2.0, 1.0, 0.0]);
        assert_eq!((cause, states), (EndCause::EarlyStopping, vec![(40, Some(0.0))]));
        let (cause, states, reason) = later_states(&[3.0, 2.0, 9.0]);
        assert_eq!((cause, states), (EndCause::Guard, vec![(30, Some(9.0))]));
        assert_eq!(reason, "the guard: cider is 9.0000, above 5 at stage 1 step 30");
    }

    /// The step at which a stage of `values.len()` evaluations ends, and the number of evaluations
    /// after which that is decided, computed directly from the definitions:
    ///
    /// - A rollback rule fires after `for` consecutive values beyond its bound. It disqualifies the
    ///   state with the first of these values, and all later states.
    /// - The best state has the highest score of the states that are not disqualified; the earliest
    ///   one if several have that score.
    /// - If a rollback rule fires, the stage ends with the best state; else with the newest state
    ///   that is not disqualified; else with its beginning.
    fn expected_end(
        rules: &[Rule],
        has_metric: bool,
        patience: Option<u32>,
        values: &[[f64; 2]],
    ) -> Option<(u64, usize)> {
        for evaluated in 1..=values.len() {
            let is_beyond = |rule: &Rule, index: usize| {
                let value = values[index][usize::from(rule.metric == "kl")];
                value.is_nan()
                    || rule.above.is_some_and(|bound| value > bound)
                    || rule.below.is_some_and(|bound| value < bound)
            };
            let length = |rule: &Rule| rule.for_ as usize;
            let first_disqualified = |rule: &Rule| {
                let all_beyond = |start: &usize| (*start..start + length(rule)).all(|index| is_beyond(rule, index));
                (0..(evaluated + 1).saturating_sub(length(rule))).find(all_beyond)
            };
            let rollbacks = rules.iter().filter(|rule| rule.action == GuardAction::Rollback);
            let first_disqualified = rollbacks.filter_map(first_disqualified).min();
            let mut best: Option<usize> = None;
            for index in 0..first_disqualified.unwrap_or(evaluated) {
                let score = values[index][0];
                if has_metric && score.is_finite() && best.is_none_or(|best| score > values[best][0]) {
                    best = Some(index);
                }
            }
            let step = |index: usize| 10 * (index as u64 + 1);
            if let Some(first_disqualified) = first_disqualified {
                return Some((best.map_or(10 * first_disqualified as u64, step), evaluated));
            }
            let Some(best) = best else { continue };
            let without_improvement = evaluated - 1 - best;
            let is_out_of_patience = patience.is_some_and(|patience| without_improvement >= patience as usize);
            if without_improvement > 0 && (evaluated == values.len() || is_out_of_patience) {
                return Some((step(best), evaluated));
            }
        }
        None
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let actions = prop::sample::select(vec![GuardAction::Warn, GuardAction::Pause, GuardAction::Rollback]);
        (any::<bool>(), any::<bool>(), 0..5_u8, 1..4_u32, actions).prop_map(|(is_kl, is_above, bound, for_, action)| {
            let bound = Some(f64::from(bound));
            let (above, below) = if is_above { (bound, None) } else { (None, bound) };
            Rule { metric: if is_kl { "kl" } else { "cider" }.into(), above, below, for_, action }
        })
    }

    proptest! {
        #[test]
        fn a_stage_ends_as_computed_directly_from_the_definitions(
            rules in prop::collection::vec(any_rule(), 0..4), has_metric: bool, patience in prop::option::of(1..4_u32),
            values in prop::collection::vec([0..6_u8, 0..6_u8], 1..9),
        ) {
            // 5 stands for NaN.
            let value = |value: u8| if value == 5 { f64::NAN } else { f64::from(value) };
            let values: Vec<[f64; 2]> = values.into_iter().map(|pair| pair.map(value)).collect();
            let stage = stage(has_metric.then_some("cider"), patience, rules.clone());
            let stage = Stage { steps: 10 * values.len() as u64, ..stage };
            let end_after =
                |evaluated| Some((end_with_kl(&stage, &values[..evaluated], None)?.position.step, evaluated));
            let decided = (1..=values.len()).find_map(end_after);
            prop_assert_eq!(decided, expected_end(&rules, has_metric, patience, &values));
        }
    }
}
