use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::conventions::{Activation, Normalization};
use crate::captioner::VisionConfig;
use crate::shapes::Shapes;

/// The config of a CLIP: its sizes, activation and normalization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// The side of an image, in pixels.
    pub image_size: usize,
    /// The architecture of the vision encoder, with its sizes.
    pub vision: VisionBackbone,
    /// The sizes of the text encoder.
    pub text: TextConfig,
    /// The width of the joint embedding space.
    pub embedding: usize,
    /// The activation of both encoders' MLPs; unused for a ResNet.
    #[serde(default)]
    pub activation: Activation,
    /// The normalization of pixels.
    #[serde(default)]
    pub normalization: Normalization,
}

/// The architecture of a vision encoder, with its sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VisionBackbone {
    /// A vision transformer.
    Transformer {
        /// The side of a patch, in pixels.
        patch_size: usize,
        /// The width of the residual stream.
        width: usize,
        /// The number of residual blocks.
        layers: usize,
        /// The number of attention heads.
        heads: usize,
    },
    /// OpenAI's modified ResNet.
    ResNet {
        /// The number of residual blocks in each stage.
        blocks: [usize; 4],
        /// The number of channels of the first stage's bottlenecks.
        width: usize,
        /// The number of heads of the attention pooling.
        heads: usize,
    },
}

/// The sizes of a text encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextConfig {
    /// The width of the residual stream.
    pub width: usize,
    /// The number of residual blocks.
    pub layers: usize,
    /// The number of attention heads.
    pub heads: usize,
    /// Maximal number of tokens of a text, begin and end tokens included.
    pub context_length: usize,
    /// The number of tokens in the vocabulary.
    pub vocabulary_size: usize,
}

impl VisionBackbone {
    /// The number of attention heads.
    #[must_use]
    pub fn heads(&self) -> usize {
        let (Self::Transformer { heads, .. } | Self::ResNet { heads, .. }) = self;
        *heads
    }

    pub(super) fn set_heads(&mut self, number: usize) {
        let (Self::Transformer { heads, .. } | Self::ResNet { heads, .. }) = self;
        *heads = number;
    }

    /// The width of the hidden states: of the residual stream, or the last stage's channels.
    #[must_use]
    pub fn hidden_width(&self) -> usize {
        match self {
            Self::Transformer { width, .. } => *width,
            Self::ResNet { width, .. } => width.saturating_mul(32),
        }
    }

    /// The number of hidden states for images of `image_size` pixels per side: one for the class
    /// token and one for each patch, or one for each cell of the feature map of the last stage.
    #[must_use]
    pub fn sequence_length(&self, image_size: usize) -> usize {
        let (side, class_tokens) = match self {
            Self::Transformer { patch_size, .. } => (image_size.checked_div(*patch_size).unwrap_or(0), 1),
            Self::ResNet { .. } => (image_size / 32, 0),
        };
        side.saturating_mul(side).saturating_add(class_tokens)
    }
}

impl ClipConfig {
    /// A config of these sizes with OpenAI's activation and normalization.
    #[must_use]
    pub fn new(image_size: usize, vision: VisionBackbone, text: TextConfig, embedding: usize) -> Self {
        let (activation, normalization) = Default::default();
        Self { image_size, vision, text, embedding, activation, normalization }
    }

    /// The config of the vision encoder alone.
    #[must_use]
    pub fn vision_config(&self) -> VisionConfig {
        VisionConfig {
            image_size: self.image_size,
            backbone: self.vision.clone(),
            activation: self.activation,
            normalization: self.normalization,
        }
    }

    /// The width of the vision encoder's hidden states; see [`VisionBackbone::hidden_width`].
    #[must_use]
    pub fn vision_width(&self) -> usize {
        self.vision.hidden_width()
    }

    /// The number of the vision encoder's hidden states; see [`VisionBackbone::sequence_length`].
    #[must_use]
    pub fn vision_sequence_length(&self) -> usize {
        self.vision.sequence_length(self.image_size)
    }

    /// The sizes of the model whose tensors have these shapes under OpenAI's names, derived as
    /// OpenAI's `build_model` does (`clip/model.py`). Shapes do not determine heads, activation and
    /// normalization: [`Conventions::complete`] sets them.
    ///
    /// [`Conventions::complete`]: super::conventions::Conventions::complete
    pub(super) fn from_shapes(shapes: &Shapes) -> Result<Self, ClipShapeError> {
        let shapes = NamedShapes(shapes);
        let (image_size, vision) = if shapes.0.contains_key("visual.layer1.0.conv1.weight") {
            shapes.resnet()?
        } else {
            shapes.transformer()?
        };
        let [_, embedding] = shapes.shape("text_projection")?;
        Ok(Self::new(image_size, vision, shapes.text()?, embedding))
    }
}

/// A tensor is missing, or its shape is not that of a CLIP.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tensor}: {problem}")]
pub(crate) struct ClipShapeError {
    /// The name of the tensor.
    pub tensor: String,
    /// The problem with it.
    pub problem: String,
}

impl ClipShapeError {
    fn new(tensor: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { tensor: tensor.into(), problem: problem.into() }
    }
}

/// The shapes of a CLIP's tensors by OpenAI's names, from which sizes are derived.
struct NamedShapes<'a>(&'a Shapes);

impl NamedShapes<'_> {
    /// The shape of a tensor with `N` dimensions, none of them zero.
    fn shape<const N: usize>(&self, name: &str) -> Result<[usize; N], ClipShapeError> {
        let shape = self.0.get(name).ok_or_else(|| ClipShapeError::new(name, "is missing"))?;
        match <[usize; N]>::try_from(shape.as_slice()) {
            Ok(sides) if !sides.contains(&0) => Ok(sides),
            _ => Err(ClipShapeError::new(
                name,
                format!("has shape {shape:?}; it should have {N} dimensions, none of them empty"),
            )),
        }
    }

    /// The image size and sizes of a vision transformer. The shapes do not show the number of
    /// heads, which is set to 1.
    fn transformer(&self) -> Result<(usize, VisionBackbone), ClipShapeError> {
        let name = "visual.conv1.weight";
        let [width, _, _, patch_size] = self.shape(name)?;
        let side = self.grid_side("visual.positional_embedding")?;
        let image_size = side.checked_mul(patch_size).ok_or_else(|| ClipShapeError::new(name, "is too large"))?;
        let layers = self.block_count("visual.transformer.resblocks.")?;
        Ok((image_size, VisionBackbone::Transformer { patch_size, width, layers, heads: 1 }))
    }

    /// The image size and sizes of a ResNet. The number of heads is set to 1, as above.
    fn resnet(&self) -> Result<(usize, VisionBackbone), ClipShapeError> {
        let name = "visual.layer1.0.conv1.weight";
        let [width, ..] = self.shape::<4>(name)?;
        let position_embedding = "visual.attnpool.positional_embedding";
        let side = self.grid_side(position_embedding)?;
        let [_, hidden] = self.shape(position_embedding)?;
        if width.checked_mul(32) != Some(hidden) {
            let problem = format!("has width {hidden}, not 32 times the first stage's {width}");
            return Err(ClipShapeError::new(position_embedding, problem));
        }
        let image_size = side.checked_mul(32).ok_or_else(|| ClipShapeError::new(position_embedding, "is too large"))?;
        let [first, second, third, fourth] =
            [1, 2, 3, 4].map(|stage| self.block_count(&format!("visual.layer{stage}.")));
        let blocks = [first?, second?, third?, fourth?];
        Ok((image_size, VisionBackbone::ResNet { blocks, width, heads: 1 }))
    }

    /// The sizes of the text encoder. The number of heads is set to 1, as above.
    fn text(&self) -> Result<TextConfig, ClipShapeError> {
        let [context_length, _] = self.shape("positional_embedding")?;
        let [vocabulary_size, _] = self.shape("token_embedding.weight")?;
        let [width] = self.shape("ln_final.weight")?;
        let layers = self.block_count("transformer.resblocks.")?;
        Ok(TextConfig { width, layers, heads: 1, context_length, vocabulary_size })
    }

    fn block_count(&self, prefix: &str) -> Result<usize, ClipShapeError> {
        count_blocks(self.0.keys().map(String::as_str), prefix)
    }

    /// The side of the square grid of positions. There is one more position: that of the class
    /// token, or in a ResNet that of the pooled embedding.
    fn grid_side(&self, name: &str) -> Result<usize, ClipShapeError> {
        let [positions, _] = self.shape(name)?;
        let side = (positions - 1).isqrt();
        if side == 0 || side * side + 1 != positions {
            let problem = format!("has {positions} positions, which is not a square number plus one");
            return Err(ClipShapeError::new(name, problem));
        }
        Ok(side)
    }
}

/// The number of blocks below `prefix`. They have to be numbered from 0 without gaps.
fn count_blocks<'a>(names: impl Iterator<Item = &'a str>, prefix: &str) -> Result<usize, ClipShapeError> {
    let suffixes = names.filter_map(|name| name.strip_prefix(prefix));
    let numbers: BTreeSet<&str> = suffixes.filter_map(|rest| rest.split('.').next()).collect();
    match (0..numbers.len()).find(|number| !numbers.contains(number.to_string().as_str())) {
        None if !numbers.is_empty() => Ok(numbers.len()),
        missing => Err(ClipShapeError::new(format!("{prefix}{}", missing.unwrap_or(0)), "is missing")),
    }
}
