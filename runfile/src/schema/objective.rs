use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a stage minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Symmetric InfoNCE of images and captions; trains the evaluator.
    Contrastive,
    /// Teacher forcing; trains the captioner.
    CrossEntropy,
    /// Self-critical sequence training; fine-tunes the captioner.
    Scst,
    /// Direct CLIP-based optimisation; fine-tunes the captioner.
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

    /// Whether candidates of the captioner's own are rewarded, and the captioner as it was is kept as reference.
    #[must_use]
    pub fn is_rewarded(self) -> bool {
        matches!(self, Self::Scst | Self::Dico)
    }
}

/// Weights of a contrastive loss's extra pairs (Sarto et al. 2023, "Positive-Augmented Contrastive Learning"): of generated
/// images with the real captions, and of the real images with generated captions. 0: plain InfoNCE.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Contrastive {
    /// Of generated images with real captions; needs `data.positives.images`.
    pub generated_images: f64,
    /// Of real images with generated captions; needs `data.positives.captions`.
    pub generated_captions: f64,
}

/// Where a candidate's reward comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reward {
    /// CIDEr-D against the image's captions, with document frequencies of the training split. The
    /// end token counts as a word of captions and candidates, unlike in the metric of that name.
    Cider,
    /// The evaluator's, where `evaluator.score` is that.
    ClipS,
    /// The evaluator's, where `evaluator.score` is that.
    PacS,
    /// A penalty: 1 for a candidate that was cut at `decoding.max_length`, without an end token,
    /// else 0. Its weight is below 0, and it goes with another reward.
    MissingEnd,
}

/// Rewards and their weights; a candidate's reward is the weighted sum.
pub type Rewards = BTreeMap<Reward, f64>;

/// DiCO's constants (arXiv 2408.14547, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dico {
    /// Scales the implicit reward: how far the policy may leave the reference.
    pub beta: f64,
    /// Inverse temperature of the weights over the rejected candidates.
    pub tau: f64,
    /// How the rejected candidates are weighed; other than `softmax` for ablations.
    pub weights: Weights,
    /// Hold the policy near the reference; `false` for ablations.
    pub reference: bool,
    /// What ranks the candidates.
    pub reward: Rewards,
}

/// How DiCO weighs the rejected candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// By how far each is behind the chosen one, as published.
    #[default]
    Softmax,
    /// All alike.
    Uniform,
    /// The worst alone.
    Worst,
}

/// Self-critical sequence training (Rennie et al., CVPR 2017), on the candidates of a search or on samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scst {
    /// What is maximised.
    pub reward: Rewards,
    /// What a candidate has to beat.
    pub baseline: Baseline,
    /// Where the `decoding.beams` candidates of an image come from.
    pub candidates: Candidates,
}

/// What a candidate's reward is compared with in self-critical training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean reward of the image's candidates (Cornia et al., CVPR 2020).
    #[default]
    Mean,
    /// The reward of the caption that greedy search finds.
    Greedy,
}

/// Where candidates come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Candidates {
    /// Beam search.
    #[default]
    Beams,
    /// Drawn from the policy.
    Samples,
}

impl Default for Dico {
    fn default() -> Self {
        let reward = [(Reward::PacS, 1.0)].into();
        Self { beta: 0.2, tau: 300.0, weights: Weights::Softmax, reference: true, reward }
    }
}

impl Default for Scst {
    fn default() -> Self {
        let reward = [(Reward::PacS, 1.0)].into();
        Self { reward, baseline: Baseline::default(), candidates: Candidates::default() }
    }
}
