//! The guard: bounds on statistics of steps and on scores of evaluations.
//!
//! A rule fires when its metric is beyond the bound `for` times in a row. It fires again only after
//! the metric was within the bound in between. Only a rule with `action: rollback` disqualifies
//! states: the first one beyond the bound, and all that were trained from it.

use config::{GuardAction, Rule};

use super::plan::Position;

/// A rule that fires, with the value that triggers it.
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
    pub since: Position,
    /// The rule, the value and the step, as a message for display.
    pub reason: String,
}

/// A rule and its observations.
#[derive(Debug)]
struct RuleState {
    rule: Rule,
    /// The number of values in a row beyond the bound, up to the last observation.
    violations_in_row: u32,
    /// The state of the first of these values.
    since: Position,
}

/// The rules of a stage, and their state.
#[derive(Debug)]
pub struct Guard {
    stage: u32,
    rules: Vec<RuleState>,
    /// The rollback rule that has fired; if several have, the one with the earliest state.
    violation: Option<Violation>,
}

impl Guard {
    /// A guard for a stage without observations.
    #[must_use]
    pub fn new(stage: u32, rules: &[Rule]) -> Self {
        let unobserved =
            |rule: &Rule| RuleState { rule: rule.clone(), violations_in_row: 0, since: Position::default() };
        Self { stage, rules: rules.iter().map(unobserved).collect(), violation: None }
    }

    /// The number of the stage.
    #[must_use]
    pub fn stage(&self) -> u32 {
        self.stage
    }

    /// Checks the statistics of the step that reached `position`; they describe the state before
    /// its update. Returns the rules that fire.
    pub fn check_step(&mut self, position: Position, value: impl Fn(&str) -> Option<f64>) -> Vec<TriggeredRule> {
        let state = Position { step: position.step.saturating_sub(1), ..position };
        self.observe(position, state, value)
    }

    /// Checks the scores of the state at `position`. Returns the rules that fire.
    pub fn check_evaluation(&mut self, position: Position, value: impl Fn(&str) -> Option<f64>) -> Vec<TriggeredRule> {
        self.observe(position, position, value)
    }

    fn observe(
        &mut self,
        position: Position,
        state: Position,
        value: impl Fn(&str) -> Option<f64>,
    ) -> Vec<TriggeredRule> {
        let mut triggered_rules = Vec::new();
        for RuleState { rule, violations_in_row, since } in &mut self.rules {
            let Some(value) = value(&rule.metric) else { continue };
            // NaN is beyond every bound.
            let is_within_bound =
                rule.above.is_none_or(|bound| value <= bound) && rule.below.is_none_or(|bound| value >= bound);
            if is_within_bound {
                *violations_in_row = 0;
                continue;
            }
            if *violations_in_row == 0 {
                *since = state;
            }
            *violations_in_row = violations_in_row.saturating_add(1);
            if *violations_in_row != rule.for_ {
                continue;
            }
            let (above, bound) = (rule.above.is_some(), rule.above.or(rule.below).unwrap_or_default());
            let triggered = TriggeredRule { metric: rule.metric.clone(), value, bound, action: rule.action, above };
            let is_earliest = self.violation.as_ref().is_none_or(|earlier| *since < earlier.since);
            if rule.action == GuardAction::Rollback && is_earliest {
                self.violation = Some(Violation { since: *since, reason: format!("{triggered} at {position}") });
            }
            triggered_rules.push(triggered);
        }
        triggered_rules
    }

    /// The rollback rule that has fired; if several have, the one with the earliest state.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// The first states that rollback rules may still disqualify: for each rule the first state in
    /// its row of values beyond the bound, or else `newest`, which it has not checked yet; and the
    /// state of the violation.
    pub fn possible_violations(&self, newest: Position) -> impl Iterator<Item = Position> {
        let since = move |state: &RuleState| if state.violations_in_row > 0 { state.since } else { newest };
        let rules = self.rules.iter().filter(|state| state.rule.action == GuardAction::Rollback);
        rules.map(since).chain(self.violation.as_ref().map(|violation| violation.since))
    }

    /// Whether the stage may end with the state at `position`: no rollback rule has fired on it or
    /// on an earlier state.
    #[must_use]
    pub fn qualifies(&self, position: Position) -> bool {
        self.violation.as_ref().is_none_or(|violation| position < violation.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(above: Option<f64>, below: Option<f64>, for_: u32, action: GuardAction) -> Rule {
        Rule { metric: "kl".into(), above, below, for_, action }
    }

    fn at(step: u64) -> Position {
        Position { stage: 1, step }
    }

    /// The steps, from 1, at which the rule fires on these values.
    fn fires(rule: Rule, values: &[f64]) -> Vec<u64> {
        let mut guard = Guard::new(1, &[rule]);
        let fires = |&(step, value): &(u64, &f64)| !guard.check_step(at(step), |_| Some(*value)).is_empty();
        (1..).zip(values).filter(fires).map(|(step, _)| step).collect()
    }

    #[test]
    fn a_rule_fires_again_only_after_a_value_within_the_bound() {
        let above = rule(Some(1.0), None, 1, GuardAction::Warn);
        assert_eq!(fires(above, &[1.0, 1.1, 9.0, 1.2, 1.0, 1.1, f64::NAN]), [2, 6]);
        let below = rule(None, Some(0.5), 1, GuardAction::Warn);
        assert_eq!(fires(below, &[0.4, 0.5, 0.6, 0.4, f64::NAN]), [1, 4]);
    }

    #[test]
    fn a_rule_fires_after_the_configured_number_of_violations_in_a_row() {
        let three_in_row = rule(Some(1.0), None, 3, GuardAction::Warn);
        assert_eq!(fires(three_in_row, &[2.0, 2.0, 0.0, 2.0, 2.0, 2.0, 2.0, 0.0, 2.0, 2.0, 2.0]), [6, 11]);
    }

    #[test]
    fn an_observation_without_the_metric_does_not_change_a_rule() {
        let mut guard = Guard::new(1, &[rule(Some(1.0), None, 2, GuardAction::Warn)]);
        assert_eq!(guard.check_step(at(1), |_| Some(2.0)), []);
        assert_eq!(guard.check_evaluation(at(1), |name| (name == "cider").then_some(9.0)), []);
        let triggered = &guard.check_step(at(2), |_| Some(2.5))[0];
        assert_eq!((triggered.value, triggered.bound), (2.5, 1.0));
        assert_eq!(triggered.to_string(), "kl is 2.5000, above 1");
    }

    #[test]
    fn a_rollback_rule_names_the_first_state_that_it_may_disqualify() {
        let rollback = rule(Some(1.0), None, 2, GuardAction::Rollback);
        let warn = Rule { action: GuardAction::Warn, ..rollback.clone() };
        let mut guard = Guard::new(1, &[warn, rollback]);
        let suspects =
            |guard: &Guard| guard.possible_violations(at(9)).map(|position| position.step).collect::<Vec<_>>();
        assert_eq!(suspects(&guard), [9]);
        guard.check_step(at(4), |_| Some(2.0));
        assert_eq!(suspects(&guard), [3]);
        guard.check_step(at(5), |_| Some(0.0));
        assert_eq!(suspects(&guard), [9]);
        guard.check_step(at(6), |_| Some(2.0));
        guard.check_step(at(7), |_| Some(2.0));
        guard.check_step(at(8), |_| Some(0.0));
        assert_eq!(suspects(&guard), [9, 5], "a violation stays");
    }

    #[test]
    fn statistics_of_a_step_describe_the_state_before_it() {
        let rollback = rule(Some(1.0), None, 2, GuardAction::Rollback);
        let mut guard = Guard::new(1, std::slice::from_ref(&rollback));
        guard.check_step(at(4), |_| Some(2.0));
        assert!(guard.violation().is_none() && guard.qualifies(at(9)));
        guard.check_step(at(5), |_| Some(2.0));
        assert_eq!(guard.violation().map(|violation| violation.since), Some(at(3)));
        assert!(guard.qualifies(at(2)) && !guard.qualifies(at(3)));
    }

    #[test]
    fn only_a_rollback_disqualifies_states() {
        for (action, expected) in [
            (GuardAction::Warn, [true; 4]),
            (GuardAction::Pause, [true; 4]),
            // From the first of the two evaluations in a row beyond the bound.
            (GuardAction::Rollback, [true, false, false, false]),
        ] {
            let mut guard = Guard::new(1, &[rule(Some(1.0), None, 2, action)]);
            let scores = [0.0, 2.0, 2.0, 0.0];
            (1..).zip(scores).for_each(|(number, score)| _ = guard.check_evaluation(at(4 * number), |_| Some(score)));
            assert_eq!([4, 8, 12, 16].map(|step| guard.qualifies(at(step))), expected, "{action:?}");
            assert_eq!(guard.violation().is_some(), action == GuardAction::Rollback);
        }
    }

    #[test]
    fn the_violation_with_the_earliest_state_counts() {
        let slow = Rule { metric: "cider".into(), ..rule(Some(1.0), None, 3, GuardAction::Rollback) };
        let mut guard = Guard::new(1, &[rule(Some(1.0), None, 1, GuardAction::Rollback), slow]);
        for (step, kl) in [(4, 0.0), (8, 0.0), (12, 2.0)] {
            guard.check_evaluation(at(step), |metric| Some(if metric == "kl" { kl } else { 2.0 }));
        }
        assert_eq!(guard.violation().map(|violation| violation.since), Some(at(4)));
    }
}
