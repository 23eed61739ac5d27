use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which tokens models trained from scratch know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vocabulary {
    /// All of CLIP's 49,408 BPE tokens and a pad, as published.
    #[default]
    Full,
    /// Only the tokens that the training captions use: the vocabulary projection is most of a step's cost.
    Corpus,
}

/// Sizes of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Trains in minutes on two CPU cores.
    Tiny,
    /// The paper's.
    Dico,
}

impl Preset {
    /// Positions of the captioner's decoder: no caption can have more tokens.
    #[must_use]
    pub fn captioner_positions(self) -> usize {
        match self {
            Self::Tiny => 77,
            Self::Dico => 1024,
        }
    }

    /// Numbers of one of the evaluator's embeddings.
    #[must_use]
    pub fn evaluator_embedding(self) -> usize {
        match self {
            Self::Tiny => 96,
            Self::Dico => 512,
        }
    }
}

/// The model that is trained to write captions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Captioner {
    /// Its size, to start from scratch.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// A folder that `worker import` or a run wrote, to start from: its captioner, vision tower and vocabulary.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// CLIP weights whose frozen vision tower it sees through. Absent: the evaluator's.
    #[serde(default)]
    pub vision: Option<PathBuf>,
    /// Probability of dropping an activation while training.
    #[serde(default = "default_dropout")]
    pub dropout: f64,
    /// Most tokens of a caption that teacher forcing learns from, begin and end included. A longer caption is learned as far as
    /// that, and no end token is learned there. Independent of `decoding.max_length`, which limits captions that are generated.
    #[serde(default = "default_max_target_length")]
    pub max_target_length: u32,
}

/// The model that judges captions: either a size, to be trained by a contrastive stage, or weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluator {
    /// Its size, to start from scratch.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// CLIP weights, such as PAC-S, or a checkpoint of a run that trained its evaluator.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// Which score its cosines are, in rewards and evaluations.
    #[serde(default)]
    pub score: EvaluatorScore,
    /// Put before captions and references when they are scored in evaluations.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// Put before candidates when they are rewarded.
    #[serde(default)]
    pub reward_prefix: String,
}

/// Which score an evaluator's cosines are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluatorScore {
    /// 2 max(cos, 0), of an evaluator trained with positive augmentation (Sarto et al. 2023).
    #[default]
    PacS,
    /// 2.5 max(cos, 0), of a plain CLIP (Hessel et al. 2021).
    ClipS,
}

impl EvaluatorScore {
    /// The metric's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PacS => "pac_s",
            Self::ClipS => "clip_s",
        }
    }

    /// The name of its variant that also looks at the references.
    #[must_use]
    pub fn reference_name(self) -> &'static str {
        match self {
            Self::PacS => "ref_pac_s",
            Self::ClipS => "ref_clip_s",
        }
    }

    /// Factor from cosine to score.
    #[must_use]
    pub fn factor(self) -> f64 {
        match self {
            Self::PacS => 2.0,
            Self::ClipS => 2.5,
        }
    }
}

/// Beam search, with the semantics of Hugging Face `generate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// Beams kept, and candidates proposed per image.
    pub beams: u32,
    /// Longest caption, in tokens, begin and end included.
    pub max_length: u32,
    /// Scores are divided by length to this power.
    pub length_penalty: f64,
    /// Count the begin token in the length of captions that were cut at the limit, as the DiCO release does.
    pub begin_counts_when_cut: bool,
}

fn default_dropout() -> f64 {
    0.1
}

/// As the DiCO release.
fn default_max_target_length() -> u32 {
    77
}

fn default_prefix() -> String {
    "A photo depicts ".to_owned()
}

impl Default for Decoding {
    fn default() -> Self {
        Self { beams: 5, max_length: 30, length_penalty: 1.0, begin_counts_when_cut: false }
    }
}
