//! The parameters that a model needs, with their shapes. Weights are checked against them before
//! memory is allocated, and all differences are reported at once.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::captioner::{CaptionerConfig, VisionConfig};
use crate::clip::{ClipConfig, VisionBackbone};
use crate::error::{Error, printable};

/// The shapes of tensors by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Maximal number of layers, so that a malicious file cannot request an endless list.
const MAX_LAYERS: usize = 1024;
/// Maximal number of tensors that a message lists, for each kind of difference.
const MAX_LISTED_TENSORS: usize = 500;

/// A config has an encoder or a decoder of more than 1,024 layers.
#[derive(Debug, thiserror::Error)]
#[error("{0} layers are more than the maximum of {MAX_LAYERS}")]
pub struct TooManyLayersError(usize);

/// The names and shapes of the parameters that a model needs.
#[derive(Default)]
struct RequiredParameters(Shapes);

impl RequiredParameters {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.insert(name.into(), shape.to_vec());
    }

    /// Adds a weight of this shape, and a bias with one value per output.
    fn add_linear(&mut self, name: &str, weight_shape: &[usize], outputs: usize) {
        self.add(format!("{name}.weight"), weight_shape);
        self.add(format!("{name}.bias"), &[outputs]);
    }

    fn add_norm(&mut self, name: &str, width: usize) {
        self.add_linear(name, &[width], width);
    }

    /// Adds a residual block of either encoder of a CLIP.
    fn add_transformer_block(&mut self, name: &str, width: usize) {
        let [stacked_width, mlp_width] = [3, 4].map(|times| width.saturating_mul(times));
        self.add_norm(&format!("{name}.ln_1"), width);
        self.add(format!("{name}.attn.in_proj_weight"), &[stacked_width, width]);
        self.add(format!("{name}.attn.in_proj_bias"), &[stacked_width]);
        self.add_linear(&format!("{name}.attn.out_proj"), &[width, width], width);
        self.add_norm(&format!("{name}.ln_2"), width);
        self.add_linear(&format!("{name}.mlp.c_fc"), &[mlp_width, width], mlp_width);
        self.add_linear(&format!("{name}.mlp.c_proj"), &[width, mlp_width], width);
    }

    /// Adds a convolution with a square kernel and no bias, and the batch norm after it.
    fn add_convolution(&mut self, convolution: &str, norm: &str, [outputs, inputs, kernel_side]: [usize; 3]) {
        self.add(format!("{convolution}.weight"), &[outputs, inputs, kernel_side, kernel_side]);
        for part in ["weight", "bias", "running_mean", "running_var"] {
            self.add(format!("{norm}.{part}"), &[outputs]);
        }
    }
}

impl CaptionerConfig {
    /// The shapes of the parameters of encoder and decoder, under their upstream names (see
    /// [`captioner`](crate::captioner)).
    ///
    /// # Errors
    /// The config has too many layers.
    pub fn shapes(&self) -> Result<Shapes, TooManyLayersError> {
        let Self { vision_width, width, encoder_inner, encoder_positions, .. } = *self;
        let Self { decoder_inner, positions, vocabulary_size, .. } = *self;
        check_layer_count(self.encoder_layers.max(self.decoder_layers))?;
        let [double_width, triple_width] = [2, 3].map(|times| width.saturating_mul(times));
        let mut required = RequiredParameters::default();
        required.add_linear("encoder.vis_enc_to_enc_proj", &[width, vision_width], width);
        let embeddings = "encoder.encoder.embeddings";
        required.add(format!("{embeddings}.position_embeddings.weight"), &[encoder_positions, width]);
        required.add(format!("{embeddings}.token_type_embeddings.weight"), &[2, width]);
        required.add_norm(&format!("{embeddings}.LayerNorm"), width);
        for layer in 0..self.encoder_layers {
            let full_name = |name: &str| format!("encoder.encoder.encoder.layer.{layer}.{name}");
            for square in ["self.query", "self.key", "self.value", "output.dense"] {
                required.add_linear(&full_name(&format!("attention.{square}")), &[width, width], width);
            }
            required.add_norm(&full_name("attention.output.LayerNorm"), width);
            required.add_linear(&full_name("intermediate.dense"), &[encoder_inner, width], encoder_inner);
            required.add_linear(&full_name("output.dense"), &[width, encoder_inner], width);
            required.add_norm(&full_name("output.LayerNorm"), width);
        }
        required.add("decoder.transformer.wte.weight", &[vocabulary_size, width]);
        required.add("decoder.transformer.wpe.weight", &[positions, width]);
        required.add_norm("decoder.transformer.ln_f", width);
        for layer in 0..self.decoder_layers {
            let full_name = |name: &str| format!("decoder.transformer.h.{layer}.{name}");
            for norm in ["ln_1", "ln_cross_attn", "ln_2"] {
                required.add_norm(&full_name(norm), width);
            }
            // GPT-2's linear layers store inputs first.
            required.add_linear(&full_name("attn.c_attn"), &[width, triple_width], triple_width);
            required.add_linear(&full_name("attn.c_proj"), &[width, width], width);
            required.add_linear(&full_name("crossattention.c_attn"), &[width, double_width], double_width);
            required.add_linear(&full_name("crossattention.q_attn"), &[width, width], width);
            required.add_linear(&full_name("crossattention.c_proj"), &[width, width], width);
            required.add_linear(&full_name("mlp.c_fc"), &[width, decoder_inner], decoder_inner);
            required.add_linear(&full_name("mlp.c_proj"), &[decoder_inner, width], width);
        }
        Ok(required.0)
    }
}

impl VisionConfig {
    /// The shapes of the encoder's parameters up to its hidden states, under OpenAI's names.
    ///
    /// # Errors
    /// The config has too many layers.
    pub fn shapes(&self) -> Result<Shapes, TooManyLayersError> {
        let mut required = RequiredParameters::default();
        match self.backbone {
            VisionBackbone::Transformer { patch_size, width, layers, .. } => {
                check_layer_count(layers)?;
                required.add("visual.conv1.weight", &[width, 3, patch_size, patch_size]);
                required.add("visual.class_embedding", &[width]);
                required.add("visual.positional_embedding", &[self.sequence_length(), width]);
                required.add_norm("visual.ln_pre", width);
                (0..layers).for_each(|layer| {
                    required.add_transformer_block(&format!("visual.transformer.resblocks.{layer}"), width);
                });
            }
            VisionBackbone::ResNet { blocks, width, .. } => {
                check_layer_count(blocks.into_iter().fold(0, usize::saturating_add))?;
                let half = width / 2;
                for (number, shape) in [("1", [half, 3, 3]), ("2", [half, half, 3]), ("3", [width, half, 3])] {
                    required.add_convolution(&format!("visual.conv{number}"), &format!("visual.bn{number}"), shape);
                }
                let mut inputs = width;
                for (stage, block_count) in blocks.into_iter().enumerate() {
                    let middle = width.saturating_mul(1 << stage);
                    let outputs = middle.saturating_mul(4);
                    for block in 0..block_count {
                        let name = format!("visual.layer{}.{block}", stage + 1);
                        let shapes =
                            [("1", [middle, inputs, 1]), ("2", [middle, middle, 3]), ("3", [outputs, middle, 1])];
                        for (number, shape) in shapes {
                            required.add_convolution(
                                &format!("{name}.conv{number}"),
                                &format!("{name}.bn{number}"),
                                shape,
                            );
                        }
                        if block == 0 {
                            let (convolution, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
                            required.add_convolution(&convolution, &norm, [outputs, inputs, 1]);
                        }
                        inputs = outputs;
                    }
                }
            }
        }
        Ok(required.0)
    }
}

impl ClipConfig {
    /// The shapes of both encoders' parameters, under OpenAI's names.
    ///
    /// # Errors
    /// An encoder has too many layers.
    pub fn shapes(&self) -> Result<Shapes, TooManyLayersError> {
        let mut required = RequiredParameters(self.vision_config().shapes()?);
        let (embedding, width) = (self.embedding, self.vision_width());
        match self.vision {
            VisionBackbone::Transformer { .. } => {
                required.add_norm("visual.ln_post", width);
                required.add("visual.proj", &[width, embedding]);
            }
            VisionBackbone::ResNet { .. } => {
                let name = "visual.attnpool";
                let positions = self.vision_sequence_length().saturating_add(1);
                required.add(format!("{name}.positional_embedding"), &[positions, width]);
                for part in ["q", "k", "v"] {
                    required.add_linear(&format!("{name}.{part}_proj"), &[width, width], width);
                }
                required.add_linear(&format!("{name}.c_proj"), &[embedding, width], embedding);
            }
        }
        let text = &self.text;
        check_layer_count(text.layers)?;
        required.add("token_embedding.weight", &[text.vocabulary_size, text.width]);
        required.add("positional_embedding", &[text.context_length, text.width]);
        (0..text.layers)
            .for_each(|layer| required.add_transformer_block(&format!("transformer.resblocks.{layer}"), text.width));
        required.add_norm("ln_final", text.width);
        required.add("text_projection", &[text.width, embedding]);
        required.add("logit_scale", &[]);
        Ok(required.0)
    }
}

fn check_layer_count(layers: usize) -> Result<(), TooManyLayersError> {
    if layers > MAX_LAYERS { Err(TooManyLayersError(layers)) } else { Ok(()) }
}

/// Refuses weights whose shapes differ from the required ones. The error lists all tensors that are
/// missing, unknown, or of a wrong shape.
pub(crate) fn check_shapes(path: &Path, required: &Shapes, actual: &Shapes) -> Result<(), Error> {
    let missing = required.keys().filter(|name| !actual.contains_key(*name)).cloned();
    let extra = actual.keys().filter(|name| !required.contains_key(*name)).cloned();
    let misshapen = required.iter().filter_map(|(name, required)| {
        let actual = actual.get(name).filter(|actual| *actual != required)?;
        Some(format!("{name} {actual:?}, not {required:?}"))
    });
    let mut problem = String::new();
    list_names(&mut problem, "missing", missing.collect());
    list_names(&mut problem, "extra", extra.collect());
    list_names(&mut problem, "misshapen", misshapen.collect());
    if problem.is_empty() { Ok(()) } else { Err(Error::TensorMismatch { path: path.to_owned(), problem }) }
}

fn list_names(problem: &mut String, label: &str, names: Vec<String>) {
    if names.is_empty() {
        return;
    }
    let listed: Vec<String> = names.iter().take(MAX_LISTED_TENSORS).map(|name| printable(name)).collect();
    let separator = if problem.is_empty() { "" } else { "; " };
    // Writing to a string does not fail.
    _ = write!(problem, "{separator}{label}: {}", listed.join(", "));
    if names.len() > MAX_LISTED_TENSORS {
        _ = write!(problem, " and {} more", names.len() - MAX_LISTED_TENSORS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_differences_are_listed_in_one_error() {
        let shapes = |entries: &[(&str, &[usize])]| -> Shapes {
            entries.iter().map(|&(name, shape)| (name.to_owned(), shape.to_vec())).collect()
        };
        let required = shapes(&[("a", &[1]), ("b", &[2, 3]), ("c", &[4]), ("d", &[])]);
        assert!(check_shapes(Path::new("x"), &required, &required).is_ok());
        let actual = shapes(&[("b", &[3, 2]), ("d", &[]), ("e\n", &[1]), ("f", &[1])]);
        let text = check_shapes(Path::new("model.pt"), &required, &actual).unwrap_err().to_string();
        assert_eq!(text, "model.pt: missing: a, c; extra: e\u{fffd}, f; misshapen: b [3, 2], not [2, 3]");
    }

    #[test]
    fn huge_sizes_neither_overflow_nor_take_long() {
        let huge = usize::MAX;
        let vision = |backbone| VisionConfig::new(huge, backbone);
        let transformer = VisionBackbone::Transformer { patch_size: 1, width: huge, layers: 2, heads: 1 };
        assert!(vision(transformer).shapes().is_ok());
        assert!(vision(VisionBackbone::ResNet { blocks: [1, 1, 1, 1], width: huge, heads: 1 }).shapes().is_ok());
        assert!(vision(VisionBackbone::ResNet { blocks: [huge; 4], width: 1, heads: 1 }).shapes().is_err());
        assert!(
            vision(VisionBackbone::Transformer { patch_size: 0, width: 1, layers: huge, heads: 1 }).shapes().is_err()
        );
    }
}
