use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::conventions::{Activation, Normalization};
use crate::captioner::VisionArchitecture;

/// The config of a CLIP: its sizes, activation and normalization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// The side of an image, in pixels.
    pub image_size: usize,
    /// The sizes of the vision encoder.
    pub vision: Vision,
    /// The sizes of the text encoder.
    pub text: Text,
    /// The width of the joint embedding space.
    pub embedding: usize,
    /// The activation of both encoders' MLPs; unused for a ResNet.
    #[serde(default)]
    pub activation: Activation,
    /// The normalization of pixels.
    #[serde(default)]
    pub normalization: Normalization,
}

/// The sizes of a vision encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Vision {
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
pub struct Text {
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

impl Vision {
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

    /// The number of hidden states for images of `image_size` pixels per side: the class token and
    /// the patches, or the cells of the last stage.
    #[must_use]
    pub fn tokens(&self, image_size: usize) -> usize {
        let (side, class) = match self {
            Self::Transformer { patch_size, .. } => (image_size.checked_div(*patch_size).unwrap_or(0), 1),
            Self::ResNet { .. } => (image_size / 32, 0),
        };
        side.saturating_mul(side).saturating_add(class)
    }
}

impl Architecture {
    /// A config of these sizes with OpenAI's activation and normalization.
    #[must_use]
    pub fn new(image_size: usize, vision: Vision, text: Text, embedding: usize) -> Self {
        let (activation, normalization) = Default::default();
        Self { image_size, vision, text, embedding, activation, normalization }
    }

    /// The config of the vision encoder alone.
    #[must_use]
    pub fn tower(&self) -> VisionArchitecture {
        VisionArchitecture {
            image_size: self.image_size,
            vision: self.vision.clone(),
            activation: self.activation,
            normalization: self.normalization,
        }
    }

    /// The width of the vision encoder's hidden states; see [`Vision::hidden_width`].
    #[must_use]
    pub fn vision_width(&self) -> usize {
        self.vision.hidden_width()
    }

    /// The number of the vision encoder's hidden states; see [`Vision::tokens`].
    #[must_use]
    pub fn vision_tokens(&self) -> usize {
        self.vision.tokens(self.image_size)
    }

    /// The sizes that tensors of these shapes have under OpenAI's names, found as its `build_model` does
    /// (`clip/model.py`). Shapes say neither heads nor conventions: [`Conventions::complete`] sets them.
    /// The error is the tensor that does not fit, and why.
    ///
    /// [`Conventions::complete`]: super::conventions::Conventions::complete
    pub(super) fn from_shapes(shapes: &Shapes) -> Result<Self, TensorMismatch> {
        let shapes = Named(shapes);
        let (image_size, vision) = if shapes.0.contains_key("visual.layer1.0.conv1.weight") {
            shapes.resnet()?
        } else {
            shapes.transformer()?
        };
        let [_, embedding] = shapes.of("text_projection")?;
        Ok(Self::new(image_size, vision, shapes.text()?, embedding))
    }
}

/// The shapes of tensors by name.
pub(super) type Shapes = BTreeMap<String, Vec<usize>>;
/// The name of a tensor that does not fit, and the reason.
pub(crate) type TensorMismatch = (String, String);

struct Named<'a>(&'a Shapes);

impl Named<'_> {
    /// The shape of a tensor with `N` dimensions, none of them zero.
    fn of<const N: usize>(&self, name: &str) -> Result<[usize; N], TensorMismatch> {
        let shape = self.0.get(name).ok_or_else(|| (name.to_owned(), "is missing".to_owned()))?;
        match <[usize; N]>::try_from(shape.as_slice()) {
            Ok(sides) if !sides.contains(&0) => Ok(sides),
            _ => Err((
                name.to_owned(),
                format!("has shape {shape:?}; it should have {N} dimensions, none of them empty"),
            )),
        }
    }

    fn transformer(&self) -> Result<(usize, Vision), TensorMismatch> {
        let name = "visual.conv1.weight";
        let [width, _, _, patch_size] = self.of(name)?;
        let side = self.side("visual.positional_embedding")?;
        let image_size = side.checked_mul(patch_size).ok_or_else(|| (name.to_owned(), "is too large".to_owned()))?;
        let layers = self.count("visual.transformer.resblocks.")?;
        Ok((image_size, Vision::Transformer { patch_size, width, layers, heads: 1 }))
    }

    fn resnet(&self) -> Result<(usize, Vision), TensorMismatch> {
        let name = "visual.layer1.0.conv1.weight";
        let [width, ..] = self.of::<4>(name)?;
        let pooled = "visual.attnpool.positional_embedding";
        let side = self.side(pooled)?;
        let [_, hidden] = self.of(pooled)?;
        if width.checked_mul(32) != Some(hidden) {
            return Err((pooled.to_owned(), format!("has width {hidden}, not 32 times the first stage's {width}")));
        }
        let image_size = side.checked_mul(32).ok_or_else(|| (pooled.to_owned(), "is too large".to_owned()))?;
        let [first, second, third, fourth] = [1, 2, 3, 4].map(|stage| self.count(&format!("visual.layer{stage}.")));
        let blocks = [first?, second?, third?, fourth?];
        Ok((image_size, Vision::ResNet { blocks, width, heads: 1 }))
    }

    fn text(&self) -> Result<Text, TensorMismatch> {
        let [context_length, _] = self.of("positional_embedding")?;
        let [vocabulary_size, _] = self.of("token_embedding.weight")?;
        let [width] = self.of("ln_final.weight")?;
        let layers = self.count("transformer.resblocks.")?;
        Ok(Text { width, layers, heads: 1, context_length, vocabulary_size })
    }

    fn count(&self, prefix: &str) -> Result<usize, TensorMismatch> {
        count_blocks(self.0.keys().map(String::as_str), prefix)
    }

    /// The side of the square grid of positions, of which there is one more for the class token.
    fn side(&self, name: &str) -> Result<usize, TensorMismatch> {
        let [positions, _] = self.of(name)?;
        let side = (positions - 1).isqrt();
        if side == 0 || side * side + 1 != positions {
            return Err((name.to_owned(), format!("has {positions} positions, which is no square and one")));
        }
        Ok(side)
    }
}

/// The number of blocks below `prefix`, which have to be numbered from 0 without gaps.
fn count_blocks<'a>(names: impl Iterator<Item = &'a str>, prefix: &str) -> Result<usize, TensorMismatch> {
    let below = names.filter_map(|name| name.strip_prefix(prefix));
    let numbers: BTreeSet<&str> = below.filter_map(|rest| rest.split('.').next()).collect();
    match (0..numbers.len()).find(|number| !numbers.contains(number.to_string().as_str())) {
        None if !numbers.is_empty() => Ok(numbers.len()),
        missing => Err((format!("{prefix}{}", missing.unwrap_or(0)), "is missing".to_owned())),
    }
}
