//! The parameters of models with their shapes. Weights are checked against them before memory is
//! allocated, and all differences are reported at once.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::captioner::{CaptionerArchitecture, VisionArchitecture};
use crate::clip::{Architecture, Vision};
use crate::error::{Error, printable};

/// The shapes of tensors by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Maximal number of layers; keeps a malicious file from requesting an endless list.
const MAX_LAYERS: usize = 1024;
/// Maximal number of names in a message, for each kind of difference.
const MAX_TOLD: usize = 500;

/// The parameters that a model of some config needs.
#[derive(Default)]
struct RequiredParameters(Shapes);

impl RequiredParameters {
    fn one(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.insert(name.into(), shape.to_vec());
    }

    /// A weight, and a bias of its outputs.
    fn pair(&mut self, name: &str, weight: &[usize], outputs: usize) {
        self.one(format!("{name}.weight"), weight);
        self.one(format!("{name}.bias"), &[outputs]);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.pair(name, &[width], width);
    }

    /// A block of either encoder of a CLIP.
    fn block(&mut self, name: &str, width: usize) {
        let [three, four] = [3, 4].map(|times| width.saturating_mul(times));
        self.norm(&format!("{name}.ln_1"), width);
        self.one(format!("{name}.attn.in_proj_weight"), &[three, width]);
        self.one(format!("{name}.attn.in_proj_bias"), &[three]);
        self.pair(&format!("{name}.attn.out_proj"), &[width, width], width);
        self.norm(&format!("{name}.ln_2"), width);
        self.pair(&format!("{name}.mlp.c_fc"), &[four, width], four);
        self.pair(&format!("{name}.mlp.c_proj"), &[width, four], width);
    }

    fn convolution(&mut self, convolution: &str, norm: &str, [outputs, inputs, side]: [usize; 3]) {
        self.one(format!("{convolution}.weight"), &[outputs, inputs, side, side]);
        for part in ["weight", "bias", "running_mean", "running_var"] {
            self.one(format!("{norm}.{part}"), &[outputs]);
        }
    }
}

impl CaptionerArchitecture {
    /// The parameters of encoder and decoder under the published names.
    ///
    /// # Errors
    /// It has too many layers.
    pub fn shapes(&self) -> Result<Shapes, String> {
        let Self { vision_width, width, encoder_inner, encoder_positions, .. } = *self;
        let Self { decoder_inner, positions, vocabulary_size, .. } = *self;
        few(self.encoder_layers.max(self.decoder_layers))?;
        let [twice, thrice] = [2, 3].map(|times| width.saturating_mul(times));
        let mut needed = RequiredParameters::default();
        needed.pair("encoder.vis_enc_to_enc_proj", &[width, vision_width], width);
        let embeddings = "encoder.encoder.embeddings";
        needed.one(format!("{embeddings}.position_embeddings.weight"), &[encoder_positions, width]);
        needed.one(format!("{embeddings}.token_type_embeddings.weight"), &[2, width]);
        needed.norm(&format!("{embeddings}.LayerNorm"), width);
        for layer in 0..self.encoder_layers {
            let part = |name: &str| format!("encoder.encoder.encoder.layer.{layer}.{name}");
            for square in ["self.query", "self.key", "self.value", "output.dense"] {
                needed.pair(&part(&format!("attention.{square}")), &[width, width], width);
            }
            needed.norm(&part("attention.output.LayerNorm"), width);
            needed.pair(&part("intermediate.dense"), &[encoder_inner, width], encoder_inner);
            needed.pair(&part("output.dense"), &[width, encoder_inner], width);
            needed.norm(&part("output.LayerNorm"), width);
        }
        needed.one("decoder.transformer.wte.weight", &[vocabulary_size, width]);
        needed.one("decoder.transformer.wpe.weight", &[positions, width]);
        needed.norm("decoder.transformer.ln_f", width);
        for layer in 0..self.decoder_layers {
            let part = |name: &str| format!("decoder.transformer.h.{layer}.{name}");
            for norm in ["ln_1", "ln_cross_attn", "ln_2"] {
                needed.norm(&part(norm), width);
            }
            // GPT-2's linear layers store inputs first.
            needed.pair(&part("attn.c_attn"), &[width, thrice], thrice);
            needed.pair(&part("attn.c_proj"), &[width, width], width);
            needed.pair(&part("crossattention.c_attn"), &[width, twice], twice);
            needed.pair(&part("crossattention.q_attn"), &[width, width], width);
            needed.pair(&part("crossattention.c_proj"), &[width, width], width);
            needed.pair(&part("mlp.c_fc"), &[width, decoder_inner], decoder_inner);
            needed.pair(&part("mlp.c_proj"), &[decoder_inner, width], width);
        }
        Ok(needed.0)
    }
}

impl VisionArchitecture {
    /// The parameters of the encoder up to its hidden states, under OpenAI's names.
    ///
    /// # Errors
    /// It has too many layers.
    pub fn shapes(&self) -> Result<Shapes, String> {
        let mut needed = RequiredParameters::default();
        match self.vision {
            Vision::Transformer { patch_size, width, layers, .. } => {
                few(layers)?;
                needed.one("visual.conv1.weight", &[width, 3, patch_size, patch_size]);
                needed.one("visual.class_embedding", &[width]);
                needed.one("visual.positional_embedding", &[self.tokens(), width]);
                needed.norm("visual.ln_pre", width);
                (0..layers).for_each(|layer| needed.block(&format!("visual.transformer.resblocks.{layer}"), width));
            }
            Vision::ResNet { blocks, width, .. } => {
                few(blocks.into_iter().fold(0, usize::saturating_add))?;
                let half = width / 2;
                for (number, shape) in [("1", [half, 3, 3]), ("2", [half, half, 3]), ("3", [width, half, 3])] {
                    needed.convolution(&format!("visual.conv{number}"), &format!("visual.bn{number}"), shape);
                }
                let mut inputs = width;
                for (stage, count) in blocks.into_iter().enumerate() {
                    let middle = width.saturating_mul(1 << stage);
                    let outputs = middle.saturating_mul(4);
                    for block in 0..count {
                        let name = format!("visual.layer{}.{block}", stage + 1);
                        let shapes =
                            [("1", [middle, inputs, 1]), ("2", [middle, middle, 3]), ("3", [outputs, middle, 1])];
                        for (number, shape) in shapes {
                            needed.convolution(&format!("{name}.conv{number}"), &format!("{name}.bn{number}"), shape);
                        }
                        if block == 0 {
                            let (convolution, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
                            needed.convolution(&convolution, &norm, [outputs, inputs, 1]);
                        }
                        inputs = outputs;
                    }
                }
            }
        }
        Ok(needed.0)
    }
}

impl Architecture {
    /// The parameters of both encoders under OpenAI's names.
    ///
    /// # Errors
    /// An encoder has too many layers.
    pub fn shapes(&self) -> Result<Shapes, String> {
        let mut needed = RequiredParameters(self.tower().shapes()?);
        let (embedding, width) = (self.embedding, self.vision_width());
        match self.vision {
            Vision::Transformer { .. } => {
                needed.norm("visual.ln_post", width);
                needed.one("visual.proj", &[width, embedding]);
            }
            Vision::ResNet { .. } => {
                let name = "visual.attnpool";
                let tokens = self.vision_tokens().saturating_add(1);
                needed.one(format!("{name}.positional_embedding"), &[tokens, width]);
                for part in ["q", "k", "v"] {
                    needed.pair(&format!("{name}.{part}_proj"), &[width, width], width);
                }
                needed.pair(&format!("{name}.c_proj"), &[embedding, width], embedding);
            }
        }
        let text = &self.text;
        few(text.layers)?;
        needed.one("token_embedding.weight", &[text.vocabulary_size, text.width]);
        needed.one("positional_embedding", &[text.context_length, text.width]);
        (0..text.layers).for_each(|layer| needed.block(&format!("transformer.resblocks.{layer}"), text.width));
        needed.norm("ln_final", text.width);
        needed.one("text_projection", &[text.width, embedding]);
        needed.one("logit_scale", &[]);
        Ok(needed.0)
    }
}

fn few(layers: usize) -> Result<(), String> {
    if layers > MAX_LAYERS { Err(format!("{layers} layers are more than any such model has")) } else { Ok(()) }
}

/// Refuses weights that differ from `needed`, and lists all that are missing, unknown, or of a
/// wrong shape.
pub(crate) fn compare(path: &Path, needed: &Shapes, found: &Shapes) -> Result<(), Error> {
    let missing = needed.keys().filter(|name| !found.contains_key(*name)).cloned();
    let extra = found.keys().filter(|name| !needed.contains_key(*name)).cloned();
    let misshapen = needed.iter().filter_map(|(name, needed)| {
        let found = found.get(name).filter(|found| *found != needed)?;
        Some(format!("{name} {found:?}, not {needed:?}"))
    });
    let mut problem = String::new();
    tell(&mut problem, "missing", missing.collect());
    tell(&mut problem, "extra", extra.collect());
    tell(&mut problem, "misshapen", misshapen.collect());
    if problem.is_empty() { Ok(()) } else { Err(Error::TensorMismatch { path: path.to_owned(), problem }) }
}

fn tell(problem: &mut String, what: &str, names: Vec<String>) {
    if names.is_empty() {
        return;
    }
    let told: Vec<String> = names.iter().take(MAX_TOLD).map(|name| printable(name)).collect();
    let separator = if problem.is_empty() { "" } else { "; " };
    // Writing to a string does not fail.
    _ = write!(problem, "{separator}{what}: {}", told.join(", "));
    if names.len() > MAX_TOLD {
        _ = write!(problem, " and {} more", names.len() - MAX_TOLD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_does_not_fit_is_told_at_once() {
        let shapes = |entries: &[(&str, &[usize])]| -> Shapes {
            entries.iter().map(|&(name, shape)| (name.to_owned(), shape.to_vec())).collect()
        };
        let needed = shapes(&[("a", &[1]), ("b", &[2, 3]), ("c", &[4]), ("d", &[])]);
        assert!(compare(Path::new("x"), &needed, &needed).is_ok());
        let found = shapes(&[("b", &[3, 2]), ("d", &[]), ("e\n", &[1]), ("f", &[1])]);
        let text = compare(Path::new("model.pt"), &needed, &found).unwrap_err().to_string();
        assert_eq!(text, "model.pt: missing: a, c; extra: e\u{fffd}, f; misshapen: b [3, 2], not [2, 3]");
    }

    #[test]
    fn absurd_sizes_neither_overflow_nor_run_on() {
        let huge = usize::MAX;
        let vision = |vision| VisionArchitecture::new(huge, vision);
        let tower = Vision::Transformer { patch_size: 1, width: huge, layers: 2, heads: 1 };
        assert!(vision(tower).shapes().is_ok());
        assert!(vision(Vision::ResNet { blocks: [1, 1, 1, 1], width: huge, heads: 1 }).shapes().is_ok());
        assert!(vision(Vision::ResNet { blocks: [huge; 4], width: 1, heads: 1 }).shapes().is_err());
        assert!(vision(Vision::Transformer { patch_size: 0, width: 1, layers: huge, heads: 1 }).shapes().is_err());
    }
}
