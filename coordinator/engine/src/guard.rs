//! The guard: rules that bound statistics of steps and scores of evaluations.
//!
//! A rule fires when its metric is beyond the bound for the number of consecutive values that the
//! rule's key `for` sets. It fires again only after a value within the bound. A rule with `action:
//! rollback` that fires also disqualifies checkpoints: the stage cannot end with parameters whose
//! values made the rule fire, nor with parameters that were trained from them.

use config::{GuardAction, Rule};

use crate::plan::Position;

/// A rule that fires, with the value that makes it fire.
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
    /// Whether the bound is an upper one.
    pub is_above: bool,
    /// The position of the parameters with the first of the consecutive values beyond the bound.
    pub first_position: Position,
}

impl std::fmt::Display for TriggeredRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { metric, value, bound, is_above, .. } = self;
        write!(f, "{metric} is {value:.4}, {} {bound}", if *is_above { "above" } else { "below" })
    }
}

/// The positions that a rule with `action: rollback` has disqualified by firing: the stage cannot
/// end with the parameters at these positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Disqualification {
    /// The position of the parameters with the first of the consecutive values beyond the bound.
    /// This position and all later ones are disqualified.
    pub first_position: Position,
    /// The rule, the value and the step, as a message for display.
    pub reason: String,
}

/// A rule, and the count of its latest values beyond the bound.
#[derive(Clone, Debug)]
struct RuleState {
    rule: Rule,
    /// The number of consecutive values beyond the bound, up to the latest value.
    beyond_bound_count: u32,
    /// The position of the parameters with the first of these values.
    first_position: Position,
}

/// The guard of a stage: its rules with their counts.
#[derive(Clone, Debug)]
pub struct Guard {
    stage: u32,
    rules: Vec<RuleState>,
    /// None while no rollback rule has fired. If several rules have fired, the one with the
    /// earliest first position counts.
    disqualification: Option<Disqualification>,
}

impl Guard {
    /// A guard that has not checked any value of its stage yet.
    #[must_use]
    pub fn new(stage: u32, rules: &[Rule]) -> Self {
        let initial_state =
            |rule: &Rule| RuleState { rule: rule.clone(), beyond_bound_count: 0, first_position: Position::default() };
        Self { stage, rules: rules.iter().map(initial_state).collect(), disqualification: None }
    }

    /// The number of the stage.
    #[must_use]
    pub fn stage(&self) -> u32 {
        self.stage
    }

    /// Checks the statistics of the step that reached `position`. They describe the parameters
    /// before the step's update, which are those of the position one step earlier. Returns the
    /// rules that fire.
    pub fn check_step(&mut self, position: Position, value: impl Fn(&str) -> Option<f64>) -> Vec<TriggeredRule> {
        let measured_position = Position { step: position.step.saturating_sub(1), ..position };
        self.check_rules(position, measured_position, value)
    }

    /// Checks the scores of the parameters at `position`. Returns the rules that fire.
    pub fn check_evaluation(&mut self, position: Position, value: impl Fn(&str) -> Option<f64>) -> Vec<TriggeredRule> {
        self.check_rules(position, position, value)
    }

    /// Checks the values of the metrics, which were measured on the parameters at
    /// `measured_position`. `position` is for messages.
    fn check_rules(
        &mut self,
        position: Position,
        measured_position: Position,
        value: impl Fn(&str) -> Option<f64>,
    ) -> Vec<TriggeredRule> {
        let mut triggered_rules = Vec::new();
        for RuleState { rule, beyond_bound_count, first_position } in &mut self.rules {
            let Some(value) = value(&rule.metric) else { continue };
            // NaN is beyond every bound.
            let is_within_bound =
                rule.above.is_none_or(|bound| value <= bound) && rule.below.is_none_or(|bound| value >= bound);
            if is_within_bound {
                *beyond_bound_count = 0;
                continue;
            }
            if *beyond_bound_count == 0 {
                *first_position = measured_position;
            }
            *beyond_bound_count = beyond_bound_count.saturating_add(1);
            if *beyond_bound_count != rule.for_ {
                continue;
            }
            let (is_above, bound) = (rule.above.is_some(), rule.above.or(rule.below).unwrap_or_default());
            triggered_rules.push(TriggeredRule {
                metric: rule.metric.clone(),
                value,
                bound,
                action: rule.action,
                is_above,
                first_position: *first_position,
            });
        }
        triggered_rules.iter().for_each(|rule| self.disqualify(position, rule));
        triggered_rules
    }

    /// Disqualifies positions if `triggered`, which has fired at `position`, has `action:
    /// rollback`. Does nothing if the guard does not have the rule: the user may have changed it
    /// since.
    pub fn disqualify(&mut self, position: Position, triggered: &TriggeredRule) {
        let TriggeredRule { first_position, metric, bound, is_above, .. } = triggered;
        let is_same = |RuleState { rule, .. }: &RuleState| {
            let own_bound = if *is_above { rule.above } else { rule.below };
            rule.action == GuardAction::Rollback && rule.metric == *metric && own_bound == Some(*bound)
        };
        let is_earliest = self.disqualification.as_ref().is_none_or(|earlier| *first_position < earlier.first_position);
        if triggered.action == GuardAction::Rollback && is_earliest && self.rules.iter().any(is_same) {
            let reason = format!("{triggered} at {position}");
            self.disqualification = Some(Disqualification { first_position: *first_position, reason });
        }
    }

    /// The positions that a rollback rule has disqualified. None while no rollback rule has fired.
    /// If several rules have fired, the one with the earliest first position counts.
    #[must_use]
    pub fn disqualification(&self) -> Option<&Disqualification> {
        self.disqualification.as_ref()
    }

    /// The position from which on each rollback rule disqualifies, or would disqualify if it fired
    /// next: the first position of the rule's consecutive values beyond the bound. If the latest
    /// value was within the bound, it is `newest`, the newest checkpoint, whose value is not known
    /// yet. The last item is the first position of the present disqualification, if there is one.
    pub fn first_positions_at_risk(&self, newest: Position) -> impl Iterator<Item = Position> {
        let first_position =
            move |state: &RuleState| if state.beyond_bound_count > 0 { state.first_position } else { newest };
        let rollback_rules = self.rules.iter().filter(|state| state.rule.action == GuardAction::Rollback);
        let disqualified = self.disqualification.as_ref().map(|disqualification| disqualification.first_position);
        rollback_rules.map(first_position).chain(disqualified)
    }

    /// Whether the stage may end with the parameters at `position`: no rollback rule has
    /// disqualified them.
    #[must_use]
    pub fn is_qualified(&self, position: Position) -> bool {
        self.disqualification.as_ref().is_none_or(|disqualification| position < disqualification.first_position)
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

    /// The steps at which the rule fires, if these are its values from step 1 on.
    fn steps_that_fire(rule: Rule, values: &[f64]) -> Vec<u64> {
        let mut guard = Guard::new(1, &[rule]);
        let fires = |&(step, value): &(u64, &f64)| !guard.check_step(at(step), |_| Some(*value)).is_empty();
        (1..).zip(values).filter(fires).map(|(step, _)| step).collect()
    }

    #[test]
    fn a_rule_fires_again_only_after_a_value_within_the_bound() {
        let above = rule(Some(1.0), None, 1, GuardAction::Warn);
        assert_eq!(steps_that_fire(above, &[1.0, 1.1, 9.0, 1.2, 1.0, 1.1, f64::NAN]), [2, 6]);
        let below = rule(None, Some(0.5), 1, GuardAction::Warn);
        assert_eq!(steps_that_fire(below, &[0.4, 0.5, 0.6, 0.4, f64::NAN]), [1, 4]);
    }

    #[test]
    fn a_rule_fires_after_the_configured_number_of_consecutive_values_beyond_the_bound() {
        let needs_three = rule(Some(1.0), None, 3, GuardAction::Warn);
        assert_eq!(steps_that_fire(needs_three, &[2.0, 2.0, 0.0, 2.0, 2.0, 2.0, 2.0, 0.0, 2.0, 2.0, 2.0]), [6, 11]);
    }

    #[test]
    fn values_without_the_metric_of_a_rule_do_not_change_its_count() {
        let mut guard = Guard::new(1, &[rule(Some(1.0), None, 2, GuardAction::Warn)]);
        assert_eq!(guard.check_step(at(1), |_| Some(2.0)), []);
        assert_eq!(guard.check_evaluation(at(1), |name| (name == "cider").then_some(9.0)), []);
        let triggered = &guard.check_step(at(2), |_| Some(2.5))[0];
        assert_eq!((triggered.value, triggered.bound), (2.5, 1.0));
        assert_eq!(triggered.to_string(), "kl is 2.5000, above 1");
    }

    #[test]
    fn the_first_position_at_risk_is_that_of_the_first_consecutive_value_beyond_the_bound() {
        let rollback = rule(Some(1.0), None, 2, GuardAction::Rollback);
        let warn = Rule { action: GuardAction::Warn, ..rollback.clone() };
        let mut guard = Guard::new(1, &[warn, rollback]);
        let steps_at_risk =
            |guard: &Guard| guard.first_positions_at_risk(at(9)).map(|position| position.step).collect::<Vec<_>>();
        assert_eq!(steps_at_risk(&guard), [9]);
        guard.check_step(at(4), |_| Some(2.0));
        assert_eq!(steps_at_risk(&guard), [3]);
        guard.check_step(at(5), |_| Some(0.0));
        assert_eq!(steps_at_risk(&guard), [9]);
        guard.check_step(at(6), |_| Some(2.0));
        guard.check_step(at(7), |_| Some(2.0));
        guard.check_step(at(8), |_| Some(0.0));
        assert_eq!(steps_at_risk(&guard), [9, 5], "a disqualification is permanent");
    }

    #[test]
    fn statistics_of_a_step_describe_the_parameters_before_its_update() {
        let rollback = rule(Some(1.0), None, 2, GuardAction::Rollback);
        let mut guard = Guard::new(1, std::slice::from_ref(&rollback));
        guard.check_step(at(4), |_| Some(2.0));
        assert!(guard.disqualification().is_none() && guard.is_qualified(at(9)));
        guard.check_step(at(5), |_| Some(2.0));
        assert_eq!(guard.disqualification().map(|disqualification| disqualification.first_position), Some(at(3)));
        assert!(guard.is_qualified(at(2)) && !guard.is_qualified(at(3)));
    }

    #[test]
    fn only_a_rollback_rule_disqualifies_positions() {
        for (action, expected) in [
            (GuardAction::Warn, [true; 4]),
            (GuardAction::Pause, [true; 4]),
            // All positions from the first of the two consecutive evaluations beyond the bound.
            (GuardAction::Rollback, [true, false, false, false]),
        ] {
            let mut guard = Guard::new(1, &[rule(Some(1.0), None, 2, action)]);
            let scores = [0.0, 2.0, 2.0, 0.0];
            (1..).zip(scores).for_each(|(number, score)| _ = guard.check_evaluation(at(4 * number), |_| Some(score)));
            assert_eq!([4, 8, 12, 16].map(|step| guard.is_qualified(at(step))), expected, "{action:?}");
            assert_eq!(guard.disqualification().is_some(), action == GuardAction::Rollback);
        }
    }

    #[test]
    fn the_disqualification_with_the_earliest_position_counts() {
        let needs_three = Rule { metric: "cider".into(), ..rule(Some(1.0), None, 3, GuardAction::Rollback) };
        let mut guard = Guard::new(1, &[rule(Some(1.0), None, 1, GuardAction::Rollback), needs_three]);
        for (step, kl) in [(4, 0.0), (8, 0.0), (12, 2.0)] {
            guard.check_evaluation(at(step), |metric| Some(if metric == "kl" { kl } else { 2.0 }));
        }
        assert_eq!(guard.disqualification().map(|disqualification| disqualification.first_position), Some(at(4)));
    }
}
