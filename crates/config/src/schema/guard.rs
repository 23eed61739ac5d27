use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rule: a bound on a metric, and what happens when the metric is beyond it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A statistic that training steps report (the mean over the step's candidates), or a score of
    /// evaluations. The names are listed under "Metrics".
    pub metric: String,
    /// The rule is broken by values above this bound. Either `above` or `below` is given.
    #[serde(default)]
    pub above: Option<f64>,
    /// The rule is broken by values below this bound.
    #[serde(default)]
    pub below: Option<f64>,
    /// Consecutive values beyond the bound, of steps or evaluations, that trigger the action. At
    /// least 1.
    #[serde(default = "default_for", rename = "for")]
    pub for_: u32,
    /// What happens when the rule is triggered. It is triggered again only after the metric was
    /// within the bound in between, also after a resume or a restart of the coordinator.
    pub action: GuardAction,
}

/// What happens when a rule is triggered. An event is recorded in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuardAction {
    /// Only the event is recorded.
    Warn,
    /// The run saves its state and pauses until `coordinator resume`.
    Pause,
    /// The stage ends with its best earlier state that kept the rules. Training does not continue
    /// from there, because it would repeat the same steps.
    Rollback,
}

impl GuardAction {
    /// All actions.
    pub const ALL: [Self; 3] = [Self::Warn, Self::Pause, Self::Rollback];

    /// The name used in run files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Warn => "warn",
            Self::Pause => "pause",
            Self::Rollback => "rollback",
        }
    }
}

fn default_for() -> u32 {
    1
}
