//! Model selection and early stopping: which state of a stage is the best, and whether the stage
//! ends with it.

use std::collections::{BTreeMap, BTreeSet};

use config::Stage;

use super::{
    guard::Guard,
    plan::{Boundaries, Boundary, Place},
    record::Checkpoint,
};

/// Scores by metric name of the evaluations of the present history, by evaluated state.
pub type Scores = BTreeMap<Place, BTreeMap<String, f64>>;

/// The best state of a stage and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BestState {
    /// The state.
    pub place: Place,
    /// The score by the stage's metric.
    pub score: f64,
}

/// Why a stage ends with a state other than its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// All steps are done, and the last state is not the best.
    BestState,
    /// Early stopping: as many evaluations in a row as the stage's `patience` were not better.
    EarlyStopping,
    /// A rule of the guard with `action: rollback` has fired.
    Guard,
}

impl EndCause {
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

/// The decision that a stage ends, and with which state.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// The state that the next stage starts from: a checkpoint, or the beginning of the stage.
    pub place: Place,
    /// Why the stage ends, for programs.
    pub cause: EndCause,
    /// Why the stage ends, as a message to people.
    pub reason: String,
    /// Later states that a user may have expected instead, in order: the last one that was saved,
    /// and those with a better score.
    pub passed_over: Vec<LaterState>,
}

/// A later state that a stage does not end with.
#[derive(Clone, Debug, PartialEq)]
pub struct LaterState {
    /// The state.
    pub place: Place,
    /// Its score by the stage's metric; none if it was not evaluated.
    pub score: Option<f64>,
    /// Why it is not selected, as a message to people.
    pub reason: String,
}

/// Maximal number of states in [`End::passed_over`].
const MAX_PASSED_OVER: usize = 8;

/// A view of a stage and its states, from which the decisions follow.
#[derive(Clone, Copy, Debug)]
pub struct StageView<'a> {
    /// The stage.
    pub stage: &'a Stage,
    /// The stage's guard, which has the stage's number, too.
    pub guard: &'a Guard,
    /// The scores of the run.
    pub scores: &'a Scores,
    /// The checkpoints of the run.
    pub checkpoints: &'a BTreeMap<Place, Checkpoint>,
    /// The boundaries that the run has passed. Includes checkpoints that are deleted by now.
    pub done: &'a Boundaries,
}

impl StageView<'_> {
    /// The state with the highest score among those that are saved and that no rollback rule
    /// disqualifies; the earliest of equals. None if the stage has no metric or no such state.
    #[must_use]
    pub fn best(&self) -> Option<BestState> {
        self.best_of(|_| true)
    }

    fn best_of(&self, which: impl Fn(Place) -> bool) -> Option<BestState> {
        let is_available = |place: Place| self.guard.qualifies(place) && self.checkpoints.contains_key(&place);
        let candidates = self.scored().filter(|candidate| is_available(candidate.place) && which(candidate.place));
        candidates.reduce(|best, other| if other.score > best.score { other } else { best })
    }

    /// The decision to end the stage with another state than its current one: before a rule with
    /// `action: rollback` was broken; or with the best state, if all steps are done and the last
    /// state is not the best, or if `patience` has run out. None if the stage goes on or ends with
    /// its last state.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        if let Some(violation) = self.guard.violation() {
            let place = self.fallback(violation.since).unwrap_or(Place { stage: self.guard.stage(), step: 0 });
            let reason = format!("the guard: {}", violation.reason);
            return Some(self.end_at(place, EndCause::Guard, reason));
        }
        let (BestState { place, score }, metric) = (self.best()?, self.stage.metric.as_ref()?);
        // A state that was evaluated, but never saved, may be lost by now.
        let saved = |place: &Place| self.done.contains(&(*place, Boundary::Checkpoint));
        let later: Vec<Place> =
            self.evaluated().map(|(place, _)| place).filter(saved).filter(|other| *other > place).collect();
        let last = later.last()?;
        let step = place.step;
        if last.step >= self.stage.steps {
            let reason = format!("the best of its states by {metric} is that of step {step}, with {score:.4}");
            Some(self.end_at(place, EndCause::BestState, reason))
        } else if self.stage.patience.is_some_and(|patience| later.len() >= patience as usize) {
            let count = later.len();
            let reason = format!(
                "early stopping: {count} evaluations in a row were not better than {metric} {score:.4} at step {step}"
            );
            Some(self.end_at(place, EndCause::EarlyStopping, reason))
        } else {
            None
        }
    }

    fn end_at(&self, place: Place, cause: EndCause, reason: String) -> End {
        let scores: BTreeMap<Place, f64> = self.scored().map(|BestState { place, score }| (place, score)).collect();
        let selected = scores.get(&place).copied().unwrap_or(f64::NEG_INFINITY);
        let better =
            scores.iter().filter(|(other, score)| **other > place && **score > selected).map(|(other, _)| *other);
        let mut places: BTreeSet<Place> = better.take(MAX_PASSED_OVER - 1).collect();
        places.extend(self.last_after(place));
        let passed_over = |place: Place| {
            let reason = match self.guard.violation() {
                Some(violation) if place >= violation.since => format!("the guard: {}", violation.reason),
                _ => "its score is not better".into(),
            };
            LaterState { place, score: scores.get(&place).copied(), reason }
        };
        End { place, cause, reason, passed_over: places.into_iter().map(passed_over).collect() }
    }

    /// The last saved state of the stage, if it is later than `place`.
    #[must_use]
    pub fn last_after(&self, place: Place) -> Option<Place> {
        let later = self.checkpoints.keys().rev().find(|other| other.stage == self.guard.stage());
        later.copied().filter(|other| *other > place)
    }

    /// The states that the stage may have to end with because of rollback rules that are broken, or
    /// that may turn out to be. Their checkpoints have to be kept.
    #[must_use]
    pub fn fallbacks(&self) -> BTreeSet<Place> {
        let newest = self.checkpoints.keys().next_back().copied().unwrap_or_default();
        self.guard.suspects(newest).filter_map(|since| self.fallback(since)).collect()
    }

    /// The state that the stage ends with if a rollback rule was broken from `since` on.
    fn fallback(&self, since: Place) -> Option<Place> {
        let best = self.best_of(|place| place < since).map(|best| best.place);
        let earlier = self.checkpoints.range(..since).rev().map(|(place, _)| *place);
        let mut own = earlier.filter(|place| place.stage == self.guard.stage() && self.guard.qualifies(*place));
        best.or_else(|| own.next())
    }

    /// The states with a finite score by the stage's metric, in order.
    fn scored(&self) -> impl Iterator<Item = BestState> {
        let scored = |(place, scores): (Place, &BTreeMap<String, f64>)| {
            let score = *scores.get(self.stage.metric.as_ref()?)?;
            score.is_finite().then_some(BestState { place, score })
        };
        self.evaluated().filter_map(scored)
    }

    fn evaluated(&self) -> impl Iterator<Item = (Place, &BTreeMap<String, f64>)> {
        let own = self.scores.iter().filter(|(place, _)| place.stage == self.guard.stage());
        own.map(|(place, scores)| (*place, scores))
    }
}

#[cfg(test)]
mod tests {
    use config::{GuardAction, Rule};

    use proptest::prelude::*;

    use super::*;
    use crate::run::testing;

    fn at(step: u64) -> Place {
        Place { stage: 1, step }
    }

    /// Judges a stage after evaluations every ten steps, each with a score by `cider` and a value of `kl`; and after the
    /// statistics of the step `violated`, if any, in which `kl` is 1.
    fn judge_all<T>(
        stage: &Stage,
        values: &[[f64; 2]],
        violated: Option<u64>,
        judge: impl FnOnce(&StageView<'_>) -> T,
    ) -> T {
        let mut guard = Guard::new(1, &stage.guard);
        let places = || (1..).map(|n| at(10 * n)).zip(values);
        for (place, [cider, kl]) in places() {
            guard.evaluation(place, |name| {
                [("cider", *cider), ("kl", *kl)].into_iter().find(|pair| pair.0 == name).map(|pair| pair.1)
            });
        }
        if let Some(step) = violated {
            guard.step(at(step), |name| (name == "kl").then_some(1.0));
        }
        let own = places().map(|(place, [cider, _])| (place, [("cider".to_owned(), *cider)].into()));
        let earlier = (Place { stage: 0, step: 90 }, [("cider".to_owned(), 99.0)].into());
        let scores: Scores = own.chain([earlier]).collect();
        let saved = |place: &Place| {
            (*place, Checkpoint { place: *place, generation: 1, name: "saved".into(), ..Checkpoint::default() })
        };
        let checkpoints = scores.keys().map(saved).collect();
        let done = scores.keys().map(|place| (*place, Boundary::Checkpoint)).collect();
        judge(&StageView { stage, guard: &guard, scores: &scores, checkpoints: &checkpoints, done: &done })
    }

    fn end_of_all(stage: &Stage, values: &[[f64; 2]], violated: Option<u64>) -> Option<End> {
        judge_all(stage, values, violated, |known| known.end())
    }

    fn end_of(stage: &Stage, scores: &[f64]) -> Option<End> {
        end_of_all(stage, &with_kl(scores), None)
    }

    fn with_kl(scores: &[f64]) -> Vec<[f64; 2]> {
        scores.iter().map(|score| [*score, 0.0]).collect()
    }

    /// The best step, and the one that a stage of 50 steps ends at, after evaluations with these scores every ten steps.
    fn judge(stage: &Stage, scores: &[f64], violated: Option<u64>) -> (Option<u64>, Option<u64>) {
        judge_all(stage, &with_kl(scores), violated, |known| {
            (known.best().map(|best| best.place.step), known.end().map(|end| end.place.step))
        })
    }

    fn stage(metric: Option<&str>, patience: Option<u32>, guard: Vec<Rule>) -> Stage {
        Stage { metric: metric.map(str::to_owned), patience, guard, ..testing::stage("b", 50, 8, None, Some(10)) }
    }

    fn rule(metric: &str, above: f64, action: GuardAction) -> Rule {
        Rule { metric: metric.into(), above: Some(above), below: None, for_: 1, action }
    }

    #[test]
    fn a_stage_ends_with_its_best() {
        let by_cider = stage(Some("cider"), None, vec![]);
        assert_eq!(judge(&by_cider, &[1.0, 3.0, 3.0, 2.0], None), (Some(20), None));
        assert_eq!(judge(&by_cider, &[1.0, 3.0, 3.0, 2.0, 2.0], None), (Some(20), Some(20)));
        assert_eq!(judge(&by_cider, &[1.0, 3.0, 3.0, f64::NAN, 4.0], None), (Some(50), None));
        assert_eq!(judge(&stage(None, None, vec![]), &[2.0, 1.0, 1.0, 1.0, 1.0], None), (None, None));
        assert_eq!(judge(&stage(Some("spice"), Some(1), vec![]), &[2.0, 1.0], None), (None, None));
    }

    #[test]
    fn patience_counts_evaluations_without_a_better_one() {
        let patient = stage(Some("cider"), Some(2), vec![]);
        assert_eq!(judge(&patient, &[1.0, 0.5, 2.0, 1.0], None), (Some(30), None));
        assert_eq!(judge(&patient, &[1.0, 0.5, 1.0], None), (Some(10), Some(10)));
    }

    #[test]
    fn a_rule_that_only_warns_or_pauses_does_not_disqualify_the_best() {
        for action in [GuardAction::Warn, GuardAction::Pause] {
            let watched = stage(Some("cider"), None, vec![rule("cider", 5.0, action)]);
            assert_eq!(judge(&watched, &[1.0, 9.0, 3.0], None), (Some(20), None));
            assert_eq!(judge(&watched, &[1.0, 2.0, 3.0, 4.0, 9.0], None), (Some(50), None));
        }
    }

    #[test]
    fn a_rollback_goes_to_the_best_that_kept_the_rules_or_the_newest() {
        let rules = || vec![rule("cider", 5.0, GuardAction::Rollback), rule("kl", 0.5, GuardAction::Rollback)];
        assert_eq!(judge(&stage(Some("cider"), None, rules()), &[3.0, 2.0, 9.0], None), (Some(10), Some(10)));
        assert_eq!(judge(&stage(None, None, rules()), &[3.0, 2.0, 9.0], None), (None, Some(20)));
        assert_eq!(judge(&stage(None, None, rules()), &[9.0], None), (None, Some(0)));
        // Statistics of step 21 are of the state at 20.
        assert_eq!(judge(&stage(None, None, rules()), &[3.0, 2.0], Some(21)), (None, Some(10)));
        assert_eq!(judge(&stage(None, None, rules()), &[3.0, 2.0], Some(22)), (None, Some(20)));
    }

    #[test]
    fn an_end_says_why_and_what_it_passes_over() {
        let by_cider = stage(Some("cider"), Some(3), vec![rule("cider", 5.0, GuardAction::Rollback)]);
        let passed_over = |scores: &[f64]| {
            let end = end_of(&by_cider, scores).unwrap();
            let step = |passed: &LaterState| (passed.place.step, passed.score);
            (end.cause, end.passed_over.iter().map(step).collect::<Vec<_>>(), end.passed_over[0].reason.clone())
        };
        let (cause, states, reason) = passed_over(&[1.0, 3.0, 2.0, 2.5, 2.0]);
        assert_eq!((cause, states), (EndCause::BestState, vec![(50, Some(2.0))]));
        assert_eq!(reason, "its score is not better");
        let (cause, states, _) = passed_over(&[3.0, 2.0, 1.0, 0.0]);
        assert_eq!((cause, states), (EndCause::EarlyStopping, vec![(40, Some(0.0))]));
        let (cause, states, reason) = passed_over(&[3.0, 2.0, 9.0]);
        assert_eq!((cause, states), (EndCause::Guard, vec![(30, Some(9.0))]));
        assert_eq!(reason, "the guard: cider is 9.0000, above 5 at stage 1 step 30");
    }

    /// The step at which a stage of `values.len()` evaluations ends, and after how many of them that is decided: a plain
    /// statement of the rules. A rollback rule disqualifies the first state of `for` in a row beyond its bound, and all later
    /// ones. The best is the highest score of the states that are left, the earliest of equals. A guard's end falls back to
    /// the best, else the newest that is left, else the beginning.
    fn plainly(rules: &[Rule], has_metric: bool, patience: Option<u32>, values: &[[f64; 2]]) -> Option<(u64, usize)> {
        for seen in 1..=values.len() {
            let is_beyond = |rule: &Rule, index: usize| {
                let value = values[index][usize::from(rule.metric == "kl")];
                value.is_nan()
                    || rule.above.is_some_and(|bound| value > bound)
                    || rule.below.is_some_and(|bound| value < bound)
            };
            let length = |rule: &Rule| rule.for_ as usize;
            let begins = |rule: &Rule| {
                let all_beyond = |start: &usize| (*start..start + length(rule)).all(|index| is_beyond(rule, index));
                (0..(seen + 1).saturating_sub(length(rule))).find(all_beyond)
            };
            let since = rules.iter().filter(|rule| rule.action == GuardAction::Rollback).filter_map(begins).min();
            let mut best: Option<usize> = None;
            for index in 0..since.unwrap_or(seen) {
                let score = values[index][0];
                if has_metric && score.is_finite() && best.is_none_or(|best| score > values[best][0]) {
                    best = Some(index);
                }
            }
            let step = |index: usize| 10 * (index as u64 + 1);
            if let Some(since) = since {
                return Some((best.map_or(10 * since as u64, step), seen));
            }
            let Some(best) = best else { continue };
            let not_better = seen - 1 - best;
            let is_over = seen == values.len() || patience.is_some_and(|patience| not_better >= patience as usize);
            if not_better > 0 && is_over {
                return Some((step(best), seen));
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
        fn a_stage_ends_where_a_plain_statement_of_the_rules_says(
            rules in prop::collection::vec(any_rule(), 0..4), has_metric: bool, patience in prop::option::of(1..4_u32),
            values in prop::collection::vec([0..6_u8, 0..6_u8], 1..9),
        ) {
            // 5 stands for what is no number.
            let value = |value: u8| if value == 5 { f64::NAN } else { f64::from(value) };
            let values: Vec<[f64; 2]> = values.into_iter().map(|pair| pair.map(value)).collect();
            let stage = Stage { steps: 10 * values.len() as u64, ..stage(has_metric.then_some("cider"), patience, rules.clone()) };
            let decided = (1..=values.len()).find_map(|seen| Some((end_of_all(&stage, &values[..seen], None)?.place.step, seen)));
            prop_assert_eq!(decided, plainly(&rules, has_metric, patience, &values));
        }
    }
}
