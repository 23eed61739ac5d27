//! The settings of each objective, with their checks.

use metric_catalogue::names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weights::LoraConfig;

use super::{ObjectiveSettings, SampleKind, TrainedModel};
use crate::schema::check::{Problem, need, not_negative, positive};
use crate::schema::rewards::rewards_schema;
use crate::schema::{EvaluatorScore, Rewards};

/// Maximal rank of LoRA factors. From rank 384 on, the factors of a 768 x 768 matrix are as large
/// as the matrix.
const MAX_LORA_RANK: u32 = 256;

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

impl ObjectiveSettings for Contrastive {
    fn check(&self, _beams: u32) -> Result<(), Problem> {
        need(not_negative(self.generated_images), "generated_images", "must be 0 or above")?;
        need(not_negative(self.generated_captions), "generated_captions", "must be 0 or above")?;
        if let Trainable::Lora(lora) = &self.trainable {
            let range = format!("must be in 1..={MAX_LORA_RANK}");
            need((1..=MAX_LORA_RANK).contains(&lora.rank), "trainable.lora.rank", &range)?;
            need(positive(lora.alpha), "trainable.lora.alpha", "must be above 0")?;
            need(!lora.targets.is_empty(), "trainable.lora.targets", "must name at least one target")?;
        }
        Ok(())
    }

    fn trains(&self) -> TrainedModel {
        TrainedModel::Evaluator
    }
}

/// Settings of `objective: cross_entropy`. There are none: lengths and dropout are settings of the
/// captioner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CrossEntropy {}

impl ObjectiveSettings for CrossEntropy {
    fn check(&self, _beams: u32) -> Result<(), Problem> {
        Ok(())
    }

    fn samples(&self) -> SampleKind {
        SampleKind::Caption
    }
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

impl Default for Dico {
    fn default() -> Self {
        let reward = [(EvaluatorScore::PacS.into(), 1.0)].into();
        Self { beta: 0.2, tau: 300.0, weights: RejectedWeights::Softmax, reference: true, reward }
    }
}

impl ObjectiveSettings for Dico {
    fn check(&self, _beams: u32) -> Result<(), Problem> {
        need(positive(self.beta), "beta", "must be above 0")?;
        need(not_negative(self.tau), "tau", "must be 0 or above")
    }

    fn rewards(&self) -> Option<&Rewards> {
        Some(&self.reward)
    }

    fn min_candidates(&self) -> u32 {
        2
    }

    fn reports(&self, _statistic: &str) -> bool {
        true
    }
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

impl Default for Scst {
    fn default() -> Self {
        let reward = [(EvaluatorScore::PacS.into(), 1.0)].into();
        Self { reward, baseline: Baseline::default(), candidates: CandidateKind::default() }
    }
}

impl ObjectiveSettings for Scst {
    fn check(&self, beams: u32) -> Result<(), Problem> {
        need(
            self.baseline != Baseline::Mean || beams >= 2,
            "baseline",
            "`mean` of a single candidate is its own reward: raise decoding.beams",
        )
    }

    fn rewards(&self) -> Option<&Rewards> {
        Some(&self.reward)
    }

    fn reports(&self, statistic: &str) -> bool {
        ![names::IMPLICIT_ACCURACY, names::GAMMA_ENTROPY].contains(&statistic)
    }
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

/// Settings of an objective that prefers candidates with a higher reward over others, as DPO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Preference {
    /// Scale of the implicit reward, above 0. A larger value keeps the policy closer to the
    /// reference.
    pub beta: f64,
    /// Rewards that rank the candidates, with their weights: a map from reward to weight.
    #[schemars(schema_with = "rewards_schema")]
    pub reward: Rewards,
}

impl Default for Preference {
    /// The scale of the DPO paper (arXiv 2305.18290, appendix B).
    fn default() -> Self {
        Self { beta: 0.1, reward: [(EvaluatorScore::PacS.into(), 1.0)].into() }
    }
}

impl ObjectiveSettings for Preference {
    fn check(&self, _beams: u32) -> Result<(), Problem> {
        need(positive(self.beta), "beta", "must be above 0")
    }

    fn rewards(&self) -> Option<&Rewards> {
        Some(&self.reward)
    }

    fn min_candidates(&self) -> u32 {
        2
    }

    fn reports(&self, statistic: &str) -> bool {
        statistic != names::GAMMA_ENTROPY
    }
}
