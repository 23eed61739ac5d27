use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weights::Conventions;

/// Vocabulary of models that are trained from scratch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Vocabulary {
    /// CLIP's 49,408 BPE tokens and a padding token, as published.
    #[default]
    Full,
    /// Only the tokens of the training captions. Training from scratch is much faster, because the
    /// projection to the vocabulary is most of a step's cost.
    Corpus,
}

/// Size of a model that is trained from scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// A small model that trains in minutes on two CPU cores.
    Tiny,
    /// The size in the DiCO paper.
    Dico,
}

impl Preset {
    /// The number of positions of the captioner's decoder: no caption can have more tokens.
    #[must_use]
    pub fn captioner_positions(self) -> usize {
        match self {
            Self::Tiny => 77,
            Self::Dico => 1024,
        }
    }

    /// The dimension of the evaluator's embeddings.
    #[must_use]
    pub fn evaluator_embedding_size(self) -> usize {
        match self {
            Self::Tiny => 96,
            Self::Dico => 512,
        }
    }
}

/// The model that writes captions. There is one architecture, DiCO's: a frozen CLIP vision encoder
/// (ViT or ResNet), a projection, a BERT encoder and a GPT-2 decoder with cross-attention. BLIP,
/// GIT and LLaVA are not supported. Either `preset` or `weights` is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Captioner {
    /// Size of a captioner that is trained from scratch.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// Folder with a captioner to start from, its vision encoder and its vocabulary: a checkpoint
    /// of a run, or a folder that `worker import` wrote.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// CLIP weights with the frozen vision encoder of the captioner. If absent, it uses the
    /// evaluator's vision encoder.
    #[serde(default, alias = "vision")]
    pub vision_encoder: Option<PathBuf>,
    /// How the model of `vision_encoder` computes, where its file does not say.
    #[serde(default, skip_serializing_if = "Conventions::is_empty")]
    pub vision_clip: Conventions,
    /// Dropout probability during training, from 0 to below 1.
    #[serde(default = "default_dropout")]
    pub dropout: f64,
    /// Maximum length of a target in `cross_entropy` stages, begin and end included. Longer
    /// captions are cut, without an end token. At least 3. `decoding.max_length` limits generated
    /// captions instead.
    #[serde(default = "default_max_target_length")]
    pub max_target_length: u32,
    /// How the projection from the vision encoder starts, with `preset`.
    #[serde(default)]
    pub projection_init: ProjectionInit,
}

/// How the projection from the vision encoder starts in a captioner that is trained from scratch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionInit {
    /// Like the layers around it: weights from the normal distribution that BERT starts with, a
    /// bias of 0.
    #[default]
    Normal,
    /// As `torch.nn.Linear` starts and as in the DiCO release: weights and bias uniform between
    /// -1/sqrt(n) and 1/sqrt(n), where n is the width of the vision encoder.
    Uniform,
}

/// The model that scores captions against images: a CLIP. Either `preset` or `weights` is given.
/// With `preset`, a `contrastive` stage has to train it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluator {
    /// Size of an evaluator that is trained from scratch.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// CLIP weights, such as those of PAC-S, or a checkpoint of a run that trained its evaluator.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// How the model of `weights` computes, where its file does not say.
    #[serde(default, skip_serializing_if = "Conventions::is_empty")]
    pub clip: Conventions,
    /// Score that the evaluator's cosines are converted to, in rewards and evaluations. If absent,
    /// `pac_s`; in `evaluators`, the one that the evaluator's name begins with.
    #[serde(default)]
    pub score: Option<EvaluatorScore>,
    /// Text before captions and references that are scored in evaluations.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// Text before candidates that are rewarded.
    #[serde(default)]
    pub reward_prefix: String,
    /// How captions and references are read that are scored in evaluations.
    #[serde(default = "default_text")]
    pub text: TextReading,
    /// How candidates are read that are rewarded.
    #[serde(default)]
    pub reward_text: TextReading,
    /// How the reward reads candidates that were cut at `decoding.max_length`, without an end
    /// token.
    #[serde(default)]
    pub cut_candidates: CutCandidates,
}

/// How a text is read before it becomes tokens. Ordinary captions are read alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextReading {
    /// As OpenAI's `clip.tokenize`, which published scores are computed with: broken encodings are
    /// repaired (ftfy), HTML is unescaped twice, white space is folded.
    ClipTokenize,
    /// As it is, like Hugging Face's fast tokenizer.
    #[default]
    AsIs,
}

/// How the reward reads candidates that were cut, without an end token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CutCandidates {
    /// As the DiCO release does: CLIP pools a text at its highest token, which is the begin token
    /// where there is no end token. So all cut candidates of an image get one and the same reward,
    /// that of no text: a brake on captions that never end.
    #[default]
    AsReleased,
    /// As if they had ended where they were cut. A cut candidate can win then, and where
    /// `max_length` is short the captioner learns to stop in mid-sentence, unless the reward
    /// `missing_end` is a penalty for it.
    Closed,
}

/// Score that an evaluator's cosines are converted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvaluatorScore {
    /// PAC-S, 2 max(cos, 0), of an evaluator trained with positive augmentation (Sarto et al.
    /// 2023).
    #[default]
    PacS,
    /// CLIP-S, 2.5 max(cos, 0), of a plain CLIP (Hessel et al. 2021).
    ClipS,
}

impl EvaluatorScore {
    /// The name of the metric, and of the score in run files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PacS => "pac_s",
            Self::ClipS => "clip_s",
        }
    }

    /// The name of the metric that also uses the reference captions.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// Beams, and candidates per image in rewarded stages. 1 to 64; 2 or more to compare them.
    pub beams: u32,
    /// Maximum length of a generated caption, begin and end included. 3 to 77.
    pub max_length: u32,
    /// Exponent of the length that a beam's score is divided by.
    pub length_penalty: f64,
    /// Count the begin token (BOS) in the length of captions that were cut at `max_length`, as the
    /// DiCO release does.
    #[serde(alias = "begin_counts_when_cut")]
    pub cut_length_includes_bos: bool,
    /// Generate the candidates of rewarded stages with dropout (`captioner.dropout`), as the DiCO
    /// release does. The masks of an image follow from `seed`, stage, step and image. Each image is
    /// searched by itself, which takes longer. Evaluations and the baseline `greedy` have no
    /// dropout.
    pub candidate_dropout: bool,
}

impl Default for Evaluator {
    /// The defaults of all keys. The caller sets `preset` or `weights`.
    fn default() -> Self {
        Self {
            preset: None,
            weights: None,
            clip: Conventions::default(),
            score: None,
            prefix: default_prefix(),
            reward_prefix: String::new(),
            text: default_text(),
            reward_text: TextReading::default(),
            cut_candidates: CutCandidates::default(),
        }
    }
}

fn default_text() -> TextReading {
    TextReading::ClipTokenize
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
        Self { beams: 5, max_length: 30, length_penalty: 1.0, cut_length_includes_bos: false, candidate_dropout: false }
    }
}
