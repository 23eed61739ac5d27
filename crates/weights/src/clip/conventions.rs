//! The settings of a CLIP that its tensors do not show: activation, normalization of pixels,
//! attention heads, and which LoRA factors are added.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::{ClipConfig, VisionBackbone};
use crate::error::Error;

/// The width of an attention head in OpenAI's models, and in other models up to
/// [`MAX_COMMON_WIDTH`].
const HEAD_WIDTH: usize = 64;
/// The width up to which all public CLIP models have heads of [`HEAD_WIDTH`]. ViT-H/14 has 16 heads
/// at 1,280.
const MAX_COMMON_WIDTH: usize = 1024;

/// Activation of the MLPs of both encoders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x sigmoid(1.702 x), as OpenAI's models and PAC-S.
    #[default]
    QuickGelu,
    /// The exact GELU, as OpenCLIP's models without `quickgelu` in their name.
    Gelu,
}

/// The normalization of red, green and blue (0 to 1): (value - mean) / std.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// The mean of each channel.
    pub mean: [f32; 3],
    /// The standard deviation of each channel.
    pub std: [f32; 3],
}

impl Default for Normalization {
    /// OpenAI's normalization (`clip/clip.py`), which most other models use.
    fn default() -> Self {
        Self { mean: [0.481_454_66, 0.457_827_5, 0.408_210_73], std: [0.268_629_54, 0.261_302_6, 0.275_777_1] }
    }
}

/// A normalization that is not finite or divides by zero.
#[derive(Debug, thiserror::Error)]
#[error("mean and std must be numbers, and std above 0")]
struct NormalizationError;

impl Normalization {
    /// Checks that mean and std are finite and std is above 0.
    fn check(&self) -> Result<(), NormalizationError> {
        let is_valid =
            self.mean.iter().all(|mean| mean.is_finite()) && self.std.iter().all(|std| std.is_finite() && *std > 0.0);
        if is_valid { Ok(()) } else { Err(NormalizationError) }
    }
}

/// The family of models whose conventions a CLIP follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// OpenAI's CLIP, and models that were trained from it, such as PAC-S and PAC-S++:
    /// `quick_gelu`, OpenAI's mean and std, heads of width 64.
    Openai,
}

/// Which LoRA factors of a PAC-S++ file are added to its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraReading {
    /// The factors of attention and patch embedding, which are those that PAC-S++'s own scorer
    /// adds. It assumes that the factors of the MLPs are merged already; published cosines are
    /// computed without them.
    #[default]
    AsReleased,
    /// All factors are added, those of the MLPs, too, as in training.
    Merged,
}

/// Settings of a CLIP that its tensors do not show: activation, normalization of pixels, attention
/// heads and LoRA. A setting that is absent is taken from `open_clip_config.json` or `config.json`
/// beside the file. OpenAI's own files need none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Conventions {
    /// The family of models whose conventions it follows.
    pub family: Option<Family>,
    /// Activation of its MLPs.
    pub activation: Option<Activation>,
    /// Mean of red, green and blue (0 to 1) that is subtracted from pixels.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue that pixels are divided by.
    pub std: Option<[f32; 3]>,
    /// Attention heads of the vision encoder. Required if it is wider than 1,024.
    pub vision_heads: Option<usize>,
    /// Attention heads of the text encoder. Required if it is wider than 1,024.
    pub text_heads: Option<usize>,
    /// Which LoRA factors of a PAC-S++ file are added to its weights.
    pub lora: Option<LoraReading>,
}

impl Conventions {
    /// Whether no setting is present.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether activation and normalization are set.
    pub(super) fn are_complete(&self) -> bool {
        self.family.is_some() || (self.activation.is_some() && self.mean.is_some() && self.std.is_some())
    }

    /// OpenAI's conventions.
    #[must_use]
    pub fn openai() -> Self {
        Self { family: Some(Family::Openai), ..Self::default() }
    }

    /// The conventions of a vision encoder whose config is known, for a CLIP whose text encoder is
    /// not used.
    #[must_use]
    pub(crate) fn of_vision(activation: Activation, normalization: Normalization, backbone: &VisionBackbone) -> Self {
        Self {
            activation: Some(activation),
            mean: Some(normalization.mean),
            std: Some(normalization.std),
            vision_heads: Some(backbone.heads()),
            // One head is valid for every width, and the text encoder is not computed.
            text_heads: Some(1),
            ..Self::openai()
        }
    }

    /// These conventions, with those of `other` for the settings that are absent here. If a family
    /// is set here, the number of heads follows from it and is not taken from `other`.
    pub(super) fn or(&self, other: &Self) -> Self {
        let family_activation = self.family.map(|Family::Openai| Activation::QuickGelu);
        let family_normalization = self.family.map(|Family::Openai| Normalization::default());
        Self {
            family: self.family.or(other.family),
            activation: self.activation.or(family_activation).or(other.activation),
            mean: self.mean.or(family_normalization.map(|openai| openai.mean)).or(other.mean),
            std: self.std.or(family_normalization.map(|openai| openai.std)).or(other.std),
            vision_heads: self.vision_heads.or(other.vision_heads.filter(|_| self.family.is_none())),
            text_heads: self.text_heads.or(other.text_heads.filter(|_| self.family.is_none())),
            lora: self.lora.or(other.lora),
        }
    }

    /// Sets activation, normalization and heads in `config`, which has only the sizes. `path` is
    /// the file with the weights, for messages.
    ///
    /// # Errors
    /// A setting is absent or invalid.
    pub(super) fn complete(&self, path: &Path, config: &mut ClipConfig) -> Result<(), Error> {
        let (Some(activation), Some(mean), Some(std)) = (self.activation, self.mean, self.std) else {
            return Err(unknown_property(path, "activation, mean and std"));
        };
        let normalization = Normalization { mean, std };
        normalization.check().map_err(|problem| Error::invalid(path, problem))?;
        (config.activation, config.normalization) = (activation, normalization);
        let is_openai = self.family == Some(Family::Openai);
        let checked_heads = |encoder: &str, heads: Option<usize>, width: usize| match heads {
            Some(heads) if heads == 0 || !width.is_multiple_of(heads) => {
                let problem = format!("{heads} heads cannot share the {encoder} encoder's width of {width}");
                Err(Error::invalid(path, problem))
            }
            Some(heads) => Ok(heads),
            None if is_openai || width <= MAX_COMMON_WIDTH => heads_of_common_width(path, encoder, width),
            None => Err(unknown_property(path, &format!("{encoder}_heads (its {encoder} encoder is {width} wide)"))),
        };
        let width = config.vision_width();
        let vision_heads = match config.vision {
            // The heads of the attention pooling have the same width in all models.
            VisionBackbone::ResNet { .. } if self.vision_heads.is_none() => {
                heads_of_common_width(path, "vision", width)?
            }
            _ => checked_heads("vision", self.vision_heads, width)?,
        };
        config.vision.set_heads(vision_heads);
        config.text.heads = checked_heads("text", self.text_heads, config.text.width)?;
        Ok(())
    }
}

impl ClipConfig {
    /// The conventions with which [`ClipWeights::open`](super::ClipWeights::open) reads this config
    /// from a state dict of such a model.
    #[must_use]
    pub fn conventions(&self) -> Conventions {
        let Normalization { mean, std } = self.normalization;
        let is_openai = self.activation == Activation::default() && self.normalization == Normalization::default();
        let conventions = if is_openai {
            Conventions::openai()
        } else {
            Conventions {
                activation: Some(self.activation),
                mean: Some(mean),
                std: Some(std),
                ..Conventions::default()
            }
        };
        let uncommon_heads = |heads: usize, width: usize| {
            let is_common = heads.checked_mul(HEAD_WIDTH) == Some(width) && (is_openai || width <= MAX_COMMON_WIDTH);
            (!is_common).then_some(heads)
        };
        Conventions {
            vision_heads: uncommon_heads(self.vision.heads(), self.vision_width()),
            text_heads: uncommon_heads(self.text.heads, self.text.width),
            ..conventions
        }
    }
}

/// The number of attention heads of width [`HEAD_WIDTH`] in an encoder of this width.
fn heads_of_common_width(path: &Path, encoder: &str, width: usize) -> Result<usize, Error> {
    match width % HEAD_WIDTH {
        0 => Ok(width / HEAD_WIDTH),
        _ => Err(unknown_property(path, &format!("{encoder}_heads (its {encoder} encoder is {width} wide)"))),
    }
}

fn unknown_property(path: &Path, property: &str) -> Error {
    let problem = format!(
        "its tensors do not show its {property}: set `family: openai` if it is OpenAI's CLIP, PAC-S or PAC-S++; for another CLIP put \
         its open_clip_config.json or config.json beside it, or set `activation`, `mean` and `std`, and `vision_heads` and \
         `text_heads` where an encoder is wider than {MAX_COMMON_WIDTH} (in a run file below evaluator.clip or captioner.vision_clip, \
         on the command line after the file, as in FILE,family=openai)"
    );
    Error::invalid(path, problem)
}
