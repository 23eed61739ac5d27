//! Rewards of candidates, which several objectives have.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::EvaluatorScore;

/// A reward of a candidate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Reward {
    /// CIDEr-D against the image's captions.
    Cider,
    /// The score of the evaluator of this name.
    Evaluator(String),
    /// 1 for a candidate without an end token.
    MissingEnd,
}

impl Reward {
    /// The name used in run files.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Cider => "cider",
            Self::Evaluator(name) => name,
            Self::MissingEnd => "missing_end",
        }
    }
}

impl From<String> for Reward {
    fn from(name: String) -> Self {
        match name.as_str() {
            "cider" => Self::Cider,
            "missing_end" => Self::MissingEnd,
            _ => Self::Evaluator(name),
        }
    }
}

impl From<Reward> for String {
    fn from(reward: Reward) -> Self {
        reward.name().to_owned()
    }
}

impl From<EvaluatorScore> for Reward {
    fn from(score: EvaluatorScore) -> Self {
        Self::Evaluator(score.name().to_owned())
    }
}

/// Rewards and their weights. A candidate's reward is the weighted sum.
pub type Rewards = BTreeMap<Reward, f64>;

/// The schema of [`Rewards`]: a map from names of rewards to weights.
pub(super) fn rewards_schema(_: &mut SchemaGenerator) -> Schema {
    let properties = [
        (
            "cider",
            "CIDEr-D against the image's captions, 0 to 10, with document frequencies of the training split. The end token counts \
             as a word of captions and candidates, unlike in the metric `cider`.",
        ),
        (
            "missing_end",
            "A penalty: 1 for a candidate that was cut at `decoding.max_length`, without an end token, else 0. Its weight is \
             below 0, and another reward is given as well.",
        ),
        ("pac_s", "PAC-S, 0 to 2: the score of `evaluator` unless `evaluator.score` says otherwise."),
        ("clip_s", "CLIP-S, 0 to 2.5: the score of `evaluator` where `evaluator.score` is `clip_s`."),
    ];
    let property =
        |(name, description): (&str, &str)| (name.to_owned(), json!({ "type": "number", "description": description }));
    let properties: serde_json::Map<String, Value> = properties.into_iter().map(property).collect();
    json_schema!({
        "type": "object",
        "properties": properties,
        "additionalProperties": {
            "type": "number",
            "description": "The score of the evaluator of this name in `evaluators`: 0 to 2 for `score: pac_s`, 0 to 2.5 for `clip_s`."
        }
    })
}
