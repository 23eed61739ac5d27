use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weights::LoraConfig;

use super::EvaluatorScore;

/// Objective of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Symmetric InfoNCE of images and captions. Trains the evaluator.
    Contrastive,
    /// Cross-entropy with teacher forcing. Trains the captioner.
    CrossEntropy,
    /// Self-critical sequence training. Fine-tunes the captioner.
    Scst,
    /// Direct CLIP-based optimization. Fine-tunes the captioner.
    Dico,
}

impl Objective {
    /// The name used in run files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Contrastive => "contrastive",
            Self::CrossEntropy => "cross_entropy",
            Self::Scst => "scst",
            Self::Dico => "dico",
        }
    }

    /// Whether the stage rewards candidates of the captioner and keeps a frozen copy of it as
    /// reference.
    #[must_use]
    pub fn is_rewarded(self) -> bool {
        matches!(self, Self::Scst | Self::Dico)
    }
}

/// Settings of `objective: contrastive`: weights of the loss's extra pairs (Sarto et al. 2023,
/// "Positive-Augmented Contrastive Learning"), and what is trained. With weights of 0 the loss is
/// plain InfoNCE.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Contrastive {
    /// Weight of generated images with real captions, 0 or above. Needs `data.positives.images`.
    pub generated_images: f64,
    /// Weight of real images with generated captions, 0 or above. Needs `data.positives.captions`.
    pub generated_captions: f64,
    /// What the stage trains of the evaluator. The rest is frozen: it is neither all-reduced nor
    /// kept with moments of the optimizer.
    pub trainable: Trainable,
}

/// What a contrastive stage trains of the evaluator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trainable {
    /// All of its weights.
    #[default]
    All,
    /// The last projections of both encoders, as PAC-S was trained.
    Projections,
    /// LoRA factors beside its weights, as PAC-S++ was trained. All stages of a run that train
    /// factors give the same settings.
    Lora(LoraConfig),
}

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
fn rewards_schema(_: &mut SchemaGenerator) -> Schema {
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

/// Settings of `objective: dico` (arXiv 2408.14547, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dico {
    /// Scale of the implicit reward, above 0. A larger value keeps the policy closer to the
    /// reference.
    pub beta: f64,
    /// Inverse temperature of the weights of the rejected candidates, 0 or above.
    pub tau: f64,
    /// Weights of the rejected candidates. Values other than `softmax` are ablations.
    pub weights: RejectedWeights,
    /// Subtract the reference's log-probabilities in the loss. `false` is an ablation.
    pub reference: bool,
    /// Rewards that rank the candidates, with their weights: a map from reward to weight.
    #[schemars(schema_with = "rewards_schema")]
    pub reward: Rewards,
}

/// Weights of the rejected candidates in DiCO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RejectedWeights {
    /// Softmax of the distance to the chosen candidate in reward, as published.
    #[default]
    Softmax,
    /// Equal weights.
    Uniform,
    /// All weight on the candidate with the lowest reward.
    Worst,
}

/// Settings of `objective: scst` (Rennie et al., CVPR 2017).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scst {
    /// Rewards that are maximised, with their weights: a map from reward to weight.
    #[schemars(schema_with = "rewards_schema")]
    pub reward: Rewards,
    /// Baseline that is subtracted from a candidate's reward.
    pub baseline: Baseline,
    /// How the `decoding.beams` candidates of an image are generated.
    pub candidates: CandidateKind,
}

/// Baseline in self-critical sequence training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean reward of the image's candidates (Cornia et al., CVPR 2020).
    #[default]
    Mean,
    /// The reward of the caption that greedy search finds.
    Greedy,
}

/// How candidates are generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CandidateKind {
    /// By beam search.
    #[default]
    Beams,
    /// By sampling from the policy.
    Samples,
}

impl Default for Dico {
    fn default() -> Self {
        let reward = [(EvaluatorScore::PacS.into(), 1.0)].into();
        Self { beta: 0.2, tau: 300.0, weights: RejectedWeights::Softmax, reference: true, reward }
    }
}

impl Default for Scst {
    fn default() -> Self {
        let reward = [(EvaluatorScore::PacS.into(), 1.0)].into();
        Self { reward, baseline: Baseline::default(), candidates: CandidateKind::default() }
    }
}
