//! Which state of a stage is the best, and whether the stage ends with it before its last step is done.

use std::collections::{BTreeMap, BTreeSet};

use runfile::Stage;

use super::{
    guard::Guard,
    plan::{Boundaries, Boundary, Place},
    record::Checkpoint,
};

/// Scores of the evaluations of the present history, by the state that was evaluated.
pub type Scores = BTreeMap<Place, BTreeMap<String, f64>>;

/// A state and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// The state.
    pub place: Place,
    /// Its score, by the stage's metric.
    pub score: f64,
}

/// Where a stage ends instead of where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// The last state that counts. There is a checkpoint of it, or it is the stage's beginning.
    pub place: Place,
    /// Why, for people.
    pub reason: String,
}

/// A stage and what is known of its states.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The stage.
    pub stage: &'a Stage,
    /// What its guard has seen; names the stage's number, too.
    pub guard: &'a Guard,
    /// Scores of the run.
    pub scores: &'a Scores,
    /// Checkpoints of the run.
    pub checkpoints: &'a BTreeMap<Place, Checkpoint>,
    /// What the run has behind it, checkpoints among that which are deleted by now.
    pub done: &'a Boundaries,
}

impl Known<'_> {
    /// The best state, where the stage has a metric: of the states that kept the rules, and that are still there, the one
    /// with the highest score; of equals the earliest.
    #[must_use]
    pub fn best(&self) -> Option<Best> {
        self.best_of(|_| true)
    }

    fn best_of(&self, which: impl Fn(Place) -> bool) -> Option<Best> {
        let metric = self.stage.metric.as_ref()?;
        let there = |place: Place| self.guard.kept(place) && self.checkpoints.contains_key(&place);
        let scored = self.evaluated().filter(|(place, _)| there(*place) && which(*place));
        let candidates = scored.filter_map(|(place, scores)| Some(Best { place, score: *scores.get(metric)? }));
        let finite = candidates.filter(|candidate| candidate.score.is_finite());
        finite.reduce(|best, other| if other.score > best.score { other } else { best })
    }

    /// Where the stage ends, if that is somewhere else than where it stands: before a rule was broken that calls for an
    /// earlier state; or at the best state, once the last is known not to be it or patience has run out.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        if let Some(violation) = self.guard.violation() {
            let place = self.fallback(violation.since).unwrap_or(Place { stage: self.guard.stage(), step: 0 });
            return Some(End { place, reason: format!("the guard: {}", violation.reason) });
        }
        let (Best { place, score }, metric) = (self.best()?, self.stage.metric.as_ref()?);
        // What was evaluated, but never saved, is a state that the run may not have any more.
        let saved = |place: &Place| self.done.contains(&(*place, Boundary::Checkpoint));
        let evaluated = || self.evaluated().map(|(place, _)| place).filter(saved);
        let later = evaluated().filter(|other| *other > place).count();
        let last = evaluated().any(|place| place.step >= self.stage.steps);
        let impatient = self.stage.patience.is_some_and(|patience| later >= patience as usize);
        let reason = || format!("{later} evaluations in a row were not better than {metric} {score:.4} at {place}");
        (later > 0 && (last || impatient)).then(|| End { place, reason: reason() })
    }

    /// The states that the stage may end with because of rules that are not kept from some state on, or may not be.
    #[must_use]
    pub fn fallbacks(&self) -> BTreeSet<Place> {
        let newest = self.checkpoints.keys().next_back().copied().unwrap_or_default();
        self.guard.suspects(newest).filter_map(|since| self.fallback(since)).collect()
    }

    /// The state that the stage ends with if it was beyond a bound from `since` on.
    fn fallback(&self, since: Place) -> Option<Place> {
        let best = self.best_of(|place| place < since).map(|best| best.place);
        let earlier = self.checkpoints.range(..since).rev().map(|(place, _)| *place);
        let mut kept = earlier.filter(|place| place.stage == self.guard.stage() && self.guard.kept(*place));
        best.or_else(|| kept.next())
    }

    fn evaluated(&self) -> impl Iterator<Item = (Place, &BTreeMap<String, f64>)> {
        let own = self.scores.iter().filter(|(place, _)| place.stage == self.guard.stage());
        own.map(|(place, scores)| (*place, scores))
    }
}

#[cfg(test)]
mod tests {
    use runfile::{GuardAction, Rule};

    use super::*;
    use crate::run::testing;

    fn at(step: u64) -> Place {
        Place { stage: 1, step }
    }

    /// The best step, and the one that a stage of 50 steps ends at, after evaluations with these scores every ten steps.
    fn judge(stage: &Stage, scores: &[f64], violated: Option<u64>) -> (Option<u64>, Option<u64>) {
        let mut guard = Guard::new(1, &stage.guard);
        let places = || (1..).map(|n| at(10 * n)).zip(scores);
        for (place, score) in places() {
            guard.evaluation(place, |name| (name == "cider").then_some(*score));
        }
        if let Some(step) = violated {
            guard.step(at(step), |name| (name == "kl").then_some(1.0));
        }
        let own = places().map(|(place, score)| (place, [("cider".to_owned(), *score)].into()));
        let earlier = (Place { stage: 0, step: 90 }, [("cider".to_owned(), 99.0)].into());
        let scores: Scores = own.chain([earlier]).collect();
        let saved = |place: &Place| {
            let parameters_sha256 = String::new();
            (*place, Checkpoint { place: *place, generation: 1, name: "saved".into(), parameters_sha256 })
        };
        let checkpoints = scores.keys().map(saved).collect();
        let done = scores.keys().map(|place| (*place, Boundary::Checkpoint)).collect();
        let known = Known { stage, guard: &guard, scores: &scores, checkpoints: &checkpoints, done: &done };
        (known.best().map(|best| best.place.step), known.end().map(|end| end.place.step))
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
    fn what_broke_a_rule_is_never_the_best() {
        let warned = stage(Some("cider"), None, vec![rule("cider", 5.0, GuardAction::Warn)]);
        assert_eq!(judge(&warned, &[1.0, 9.0, 3.0], None), (Some(30), None));
        assert_eq!(judge(&warned, &[9.0, 9.0, 9.0, 9.0, 9.0], None), (None, None));
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
}
