use serde::{Deserialize, Serialize};

/// A bound, and what happens when it is broken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A statistic of steps (its mean over the step's candidates) or a score of evaluations.
    pub metric: String,
    /// Broken above this.
    #[serde(default)]
    pub above: Option<f64>,
    /// Broken below this.
    #[serde(default)]
    pub below: Option<f64>,
    /// Broken only after so many steps, or evaluations, in a row.
    #[serde(default = "default_for", rename = "for")]
    pub for_: u32,
    /// What happens then.
    pub action: GuardAction,
}

/// What happens when a rule is broken; all of them are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardAction {
    /// Nothing else.
    Warn,
    /// The run saves its state and waits for `coordinator resume`.
    Pause,
    /// The stage ends with the best state that kept the rules. (Going on from there would only repeat what happened.)
    Rollback,
}

impl GuardAction {
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
