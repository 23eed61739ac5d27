//! What the tensors of a CLIP do not say of it: its activation, how its pixels are normalised, how many
//! heads its attention has, and which of its LoRA factors count.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Vision};
use crate::error::Error;

/// Width of an attention head in OpenAI's models, and in those of others up to [`MAX_COMMON_WIDTH`].
const HEAD_WIDTH: usize = 64;
/// Up to this width all published models have heads of [`HEAD_WIDTH`]; ViT-H/14 has 16 heads at 1,280.
const MAX_COMMON_WIDTH: usize = 1024;

/// Activation of the MLPs of both towers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x sigmoid(1.702 x), as OpenAI's models and PAC-S.
    #[default]
    QuickGelu,
    /// The exact GELU, as OpenCLIP's models without `quickgelu` in their name.
    Gelu,
}

/// How red, green and blue (0 to 1) are normalised: (value - mean) / std.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Of each channel.
    pub mean: [f32; 3],
    /// Of each channel.
    pub std: [f32; 3],
}

impl Default for Normalization {
    /// OpenAI's (`clip/clip.py`), which most others took over.
    fn default() -> Self {
        Self { mean: [0.481_454_66, 0.457_827_5, 0.408_210_73], std: [0.268_629_54, 0.261_302_6, 0.275_777_1] }
    }
}

impl Normalization {
    /// Whether pixels can be normalised so.
    fn check(&self) -> Result<(), String> {
        let usable =
            self.mean.iter().all(|mean| mean.is_finite()) && self.std.iter().all(|std| std.is_finite() && *std > 0.0);
        if usable { Ok(()) } else { Err("mean and std must be numbers, and std above 0".to_owned()) }
    }
}

/// Whose conventions a CLIP follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// OpenAI's CLIP, and what was trained from it, such as PAC-S and PAC-S++: `quick_gelu`, OpenAI's
    /// mean and std, heads of width 64.
    Openai,
}

/// Which LoRA factors of a PAC-S++ file are added to its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraReading {
    /// Those that the released scorer adds: of attention and of the patch embedding. It takes those of
    /// the MLPs for merged already, and published cosines are computed without them.
    #[default]
    AsReleased,
    /// All, as they were trained.
    Merged,
}

/// What is said of a CLIP beside its weights. What is left out is taken from `open_clip_config.json` or
/// `config.json` beside the file. OpenAI's own files need nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Conventions {
    /// Whose conventions it follows.
    pub family: Option<Family>,
    /// Activation of its MLPs.
    pub activation: Option<Activation>,
    /// Mean of red, green and blue (0 to 1) that is subtracted from pixels.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue that pixels are divided by.
    pub std: Option<[f32; 3]>,
    /// Attention heads of the vision encoder. Necessary where it is wider than 1,024.
    pub vision_heads: Option<usize>,
    /// Attention heads of the text encoder. Necessary where it is wider than 1,024.
    pub text_heads: Option<usize>,
    /// Which LoRA factors of a PAC-S++ file are added to its weights.
    pub lora: Option<LoraReading>,
}

impl Conventions {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether activation and normalisation are said.
    pub(super) fn are_complete(&self) -> bool {
        self.family.is_some() || (self.activation.is_some() && self.mean.is_some() && self.std.is_some())
    }

    /// All of OpenAI's.
    #[must_use]
    pub fn openai() -> Self {
        Self { family: Some(Family::Openai), ..Self::default() }
    }

    /// Those of a vision tower that is known, whatever the text tower has.
    #[must_use]
    pub(crate) fn of_vision(activation: Activation, normalization: Normalization, vision: &Vision) -> Self {
        Self {
            activation: Some(activation),
            mean: Some(normalization.mean),
            std: Some(normalization.std),
            vision_heads: Some(vision.heads()),
            // One head fits every width, and the text tower is not computed.
            text_heads: Some(1),
            ..Self::openai()
        }
    }

    /// What both say; where they differ, what this one says.
    pub(super) fn over(&self, other: &Self) -> Self {
        let family = |own: &Self| own.family.map(|Family::Openai| Normalization::default());
        Self {
            family: self.family.or(other.family),
            activation: self.activation.or(family(self).map(|_| Activation::QuickGelu)).or(other.activation),
            mean: self.mean.or(family(self).map(|openai| openai.mean)).or(other.mean),
            std: self.std.or(family(self).map(|openai| openai.std)).or(other.std),
            vision_heads: self.vision_heads.or(other.vision_heads.filter(|_| self.family.is_none())),
            text_heads: self.text_heads.or(other.text_heads.filter(|_| self.family.is_none())),
            lora: self.lora.or(other.lora),
        }
    }

    /// Completes an architecture whose sizes are known.
    ///
    /// # Errors
    /// Not all of it is said.
    pub(super) fn complete(&self, path: &Path, architecture: &mut Architecture) -> Result<(), Error> {
        let (Some(activation), Some(mean), Some(std)) = (self.activation, self.mean, self.std) else {
            return Err(unsaid(path, "activation, mean and std"));
        };
        let normalization = Normalization { mean, std };
        normalization.check().map_err(|problem| Error::format(path, problem))?;
        (architecture.activation, architecture.normalization) = (activation, normalization);
        let is_openai = self.family == Some(Family::Openai);
        let heads = |tower: &str, said: Option<usize>, width: usize| match said {
            Some(heads) if heads == 0 || !width.is_multiple_of(heads) => {
                Err(Error::format(path, format!("{heads} heads cannot share the {tower} encoder's width of {width}")))
            }
            Some(heads) => Ok(heads),
            None if is_openai || width <= MAX_COMMON_WIDTH => common_heads(path, tower, width),
            None => Err(unsaid(path, &format!("{tower}_heads (its {tower} encoder is {width} wide)"))),
        };
        let width = architecture.vision_width();
        let vision_heads = match architecture.vision {
            // The attention that pools has heads of one width everywhere.
            Vision::ResNet { .. } if self.vision_heads.is_none() => common_heads(path, "vision", width)?,
            _ => heads("vision", self.vision_heads, width)?,
        };
        architecture.vision.set_heads(vision_heads);
        architecture.text.heads = heads("text", self.text_heads, architecture.text.width)?;
        Ok(())
    }
}

impl Architecture {
    /// What a reader has to be told of a bare state dict of this architecture.
    #[must_use]
    pub fn conventions(&self) -> Conventions {
        let Normalization { mean, std } = self.normalization;
        let is_openai = self.activation == Activation::default() && self.normalization == Normalization::default();
        let said = if is_openai {
            Conventions::openai()
        } else {
            Conventions {
                activation: Some(self.activation),
                mean: Some(mean),
                std: Some(std),
                ..Conventions::default()
            }
        };
        let unusual = |heads: usize, width: usize| {
            let is_common = heads.checked_mul(HEAD_WIDTH) == Some(width) && (is_openai || width <= MAX_COMMON_WIDTH);
            (!is_common).then_some(heads)
        };
        Conventions {
            vision_heads: unusual(self.vision.heads(), self.vision_width()),
            text_heads: unusual(self.text.heads, self.text.width),
            ..said
        }
    }
}

fn common_heads(path: &Path, tower: &str, width: usize) -> Result<usize, Error> {
    match width % HEAD_WIDTH {
        0 => Ok(width / HEAD_WIDTH),
        _ => Err(unsaid(path, &format!("{tower}_heads (its {tower} encoder is {width} wide)"))),
    }
}

fn unsaid(path: &Path, what: &str) -> Error {
    let problem = format!(
        "its tensors do not say its {what}: set `family: openai` if it is OpenAI's CLIP, PAC-S or PAC-S++; for another CLIP put \
         its open_clip_config.json or config.json beside it, or set `activation`, `mean` and `std`, and `vision_heads` and \
         `text_heads` where a tower is wider than {MAX_COMMON_WIDTH} (in a run file below evaluator.clip or captioner.vision_clip, \
         on the command line after the file, as in FILE,family=openai)"
    );
    Error::format(path, problem)
}
