//! The guard: bounds on statistics of steps and on scores of evaluations.
//!
//! A rule fires when its metric was beyond the bound `for` times in a row. It fires again only after the metric was within
//! the bound in between. Only a rule with `action: rollback` disqualifies states: the first that was beyond the bound, and
//! all that were trained from it.

use config::{GuardAction, Rule};

use super::plan::Place;

/// The event that a rule fires.
#[derive(Clone, Debug, PartialEq)]
pub struct TriggeredRule {
    /// The metric that the rule checks.
    pub metric: String,
    /// The value beyond the bound.
    pub value: f64,
    /// The bound of the rule.
    pub bound: f64,
    /// The action of the rule.
    pub action: GuardAction,
    above: bool,
}

impl std::fmt::Display for TriggeredRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { metric, value, bound, above, .. } = self;
        write!(f, "{metric} is {value:.4}, {} {bound}", if *above { "above" } else { "below" })
    }
}

/// A rule with `action: rollback` that has fired.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// The first state that is known to be beyond the bound. It and all later states are
    /// disqualified.
    pub since: Place,
    /// The rule, the value and the step, as a message to people.
    pub reason: String,
}

#[derive(Debug)]
struct Watched {
    rule: Rule,
    /// The number of values in a row beyond the bound, and the state of the first of them.
    broken: u32,
    since: Place,
}

/// The rules of a stage, and their state.
#[derive(Debug)]
pub struct Guard {
    stage: u32,
    rules: Vec<Watched>,
    /// If several rules have fired, the one that goes back furthest.
    violation: Option<Violation>,
}

impl Guard {
    /// A guard for a stage without observations.
    #[must_use]
    pub fn new(stage: u32, rules: &[Rule]) -> Self {
        let watched = |rule: &Rule| Watched { rule: rule.clone(), broken: 0, since: Place::default() };
        Self { stage, rules: rules.iter().map(watched).collect(), violation: None }
    }

    /// The number of the stage.
    #[must_use]
    pub fn stage(&self) -> u32 {
        self.stage
    }

    /// Checks the statistics of the step that reached `place`; they are of the state before its
    /// update. Returns the rules that fire.
    pub fn step(&mut self, place: Place, value: impl Fn(&str) -> Option<f64>) -> Vec<TriggeredRule> {
        let state = Place { step: place.step.saturating_sub(1), ..place };
        self.observe(place, state, value)
    }

    /// Checks the scores of the state at `place`. Returns the rules that fire.
    pub fn evaluation(&mut self, place: Place, value: impl Fn(&str) -> Option<f64>) -> Vec<TriggeredRule> {
        self.observe(place, place, value)
    }

    fn observe(&mut self, place: Place, state: Place, value: impl Fn(&str) -> Option<f64>) -> Vec<TriggeredRule> {
        let mut firings = Vec::new();
        for Watched { rule, broken, since } in &mut self.rules {
            let Some(value) = value(&rule.metric) else { continue };
            // NaN is beyond every bound.
            let kept = rule.above.is_none_or(|bound| value <= bound) && rule.below.is_none_or(|bound| value >= bound);
            if kept {
                *broken = 0;
                continue;
            }
            if *broken == 0 {
                *since = state;
            }
            *broken = broken.saturating_add(1);
            if *broken != rule.for_ {
                continue;
            }
            let (above, bound) = (rule.above.is_some(), rule.above.or(rule.below).unwrap_or_default());
            let firing = TriggeredRule { metric: rule.metric.clone(), value, bound, action: rule.action, above };
            let is_earliest = self.violation.as_ref().is_none_or(|held| *since < held.since);
            if rule.action == GuardAction::Rollback && is_earliest {
                self.violation = Some(Violation { since: *since, reason: format!("{firing} at {place}") });
            }
            firings.push(firing);
        }
        firings
    }

    /// The rollback rule that has fired; if several have, the one that goes back furthest.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// The states from which rollback rules may still disqualify: for each rule the first state in
    /// its row of values beyond the bound, or else `newest`, which it has not checked yet; and the
    /// violation.
    pub fn suspects(&self, newest: Place) -> impl Iterator<Item = Place> {
        let suspect = move |watched: &Watched| if watched.broken > 0 { watched.since } else { newest };
        let rules = self.rules.iter().filter(|watched| watched.rule.action == GuardAction::Rollback);
        rules.map(suspect).chain(self.violation.as_ref().map(|violation| violation.since))
    }

    /// Whether the stage may end with the state at `place`: no rollback rule has fired on it or on
    /// an earlier state.
    #[must_use]
    pub fn qualifies(&self, place: Place) -> bool {
        self.violation.as_ref().is_none_or(|violation| place < violation.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(above: Option<f64>, below: Option<f64>, for_: u32, action: GuardAction) -> Rule {
        Rule { metric: "kl".into(), above, below, for_, action }
    }

    fn at(step: u64) -> Place {
        Place { stage: 1, step }
    }

    /// The steps, from 1, at which the rule fires on these values.
    fn fires(rule: Rule, values: &[f64]) -> Vec<u64> {
        let mut guard = Guard::new(1, &[rule]);
        let fires = |&(step, value): &(u64, &f64)| !guard.step(at(step), |_| Some(*value)).is_empty();
        (1..).zip(values).filter(fires).map(|(step, _)| step).collect()
    }

    #[test]
    fn a_rule_fires_when_it_is_broken_and_again_only_after_it_was_kept() {
        let above = rule(Some(1.0), None, 1, GuardAction::Warn);
        assert_eq!(fires(above, &[1.0, 1.1, 9.0, 1.2, 1.0, 1.1, f64::NAN]), [2, 6]);
        let below = rule(None, Some(0.5), 1, GuardAction::Warn);
        assert_eq!(fires(below, &[0.4, 0.5, 0.6, 0.4, f64::NAN]), [1, 4]);
    }

    #[test]
    fn a_rule_waits_for_so_many_in_a_row() {
        let patient = rule(Some(1.0), None, 3, GuardAction::Warn);
        assert_eq!(fires(patient, &[2.0, 2.0, 0.0, 2.0, 2.0, 2.0, 2.0, 0.0, 2.0, 2.0, 2.0]), [6, 11]);
    }

    #[test]
    fn what_is_not_observed_neither_keeps_nor_breaks() {
        let mut guard = Guard::new(1, &[rule(Some(1.0), None, 2, GuardAction::Warn)]);
        assert_eq!(guard.step(at(1), |_| Some(2.0)), []);
        assert_eq!(guard.evaluation(at(1), |name| (name == "cider").then_some(9.0)), []);
        let firing = &guard.step(at(2), |_| Some(2.5))[0];
        assert_eq!((firing.value, firing.bound, firing.to_string().as_str()), (2.5, 1.0, "kl is 2.5000, above 1"));
    }

    #[test]
    fn a_rule_that_may_call_for_an_earlier_state_names_the_first_suspect() {
        let rollback = rule(Some(1.0), None, 2, GuardAction::Rollback);
        let warn = Rule { action: GuardAction::Warn, ..rollback.clone() };
        let mut guard = Guard::new(1, &[warn, rollback]);
        let suspects = |guard: &Guard| guard.suspects(at(9)).map(|place| place.step).collect::<Vec<_>>();
        assert_eq!(suspects(&guard), [9]);
        guard.step(at(4), |_| Some(2.0));
        assert_eq!(suspects(&guard), [3]);
        guard.step(at(5), |_| Some(0.0));
        assert_eq!(suspects(&guard), [9]);
        guard.step(at(6), |_| Some(2.0));
        guard.step(at(7), |_| Some(2.0));
        guard.step(at(8), |_| Some(0.0));
        assert_eq!(suspects(&guard), [9, 5], "what has fired stays");
    }

    #[test]
    fn a_step_speaks_of_the_state_before_it_and_an_evaluation_of_its_own() {
        let rollback = rule(Some(1.0), None, 2, GuardAction::Rollback);
        let mut guard = Guard::new(1, std::slice::from_ref(&rollback));
        guard.step(at(4), |_| Some(2.0));
        assert!(guard.violation().is_none() && guard.qualifies(at(9)));
        guard.step(at(5), |_| Some(2.0));
        assert_eq!(guard.violation().map(|violation| violation.since), Some(at(3)));
        assert!(guard.qualifies(at(2)) && !guard.qualifies(at(3)));
    }

    #[test]
    fn only_a_rollback_disqualifies_states() {
        for (action, expected) in [
            (GuardAction::Warn, [true; 4]),
            (GuardAction::Pause, [true; 4]),
            // From the first of the two evaluations in a row that broke it.
            (GuardAction::Rollback, [true, false, false, false]),
        ] {
            let mut guard = Guard::new(1, &[rule(Some(1.0), None, 2, action)]);
            let scores = [0.0, 2.0, 2.0, 0.0];
            (1..).zip(scores).for_each(|(number, score)| _ = guard.evaluation(at(4 * number), |_| Some(score)));
            assert_eq!([4, 8, 12, 16].map(|step| guard.qualifies(at(step))), expected, "{action:?}");
            assert_eq!(guard.violation().is_some(), action == GuardAction::Rollback);
        }
    }

    #[test]
    fn of_several_rules_the_one_that_goes_back_furthest_counts() {
        let slow = Rule { metric: "cider".into(), ..rule(Some(1.0), None, 3, GuardAction::Rollback) };
        let mut guard = Guard::new(1, &[rule(Some(1.0), None, 1, GuardAction::Rollback), slow]);
        for (step, kl) in [(4, 0.0), (8, 0.0), (12, 2.0)] {
            guard.evaluation(at(step), |metric| Some(if metric == "kl" { kl } else { 2.0 }));
        }
        assert_eq!(guard.violation().map(|violation| violation.since), Some(at(4)));
    }
}
