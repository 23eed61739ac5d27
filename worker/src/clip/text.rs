//! CLIP's text encoder.

use tch::{Device, Tensor};
use weights::clip::ClipConfig;

use super::{l2_normalize, transformer::Transformer};
use crate::nn::{Embedding, LayerNorm, ParameterBuilder, uses_gpu_path};
use crate::prefix_tree::{PrefixTree, PrefixTreeBatch};

/// Number of texts in one forward pass on a CPU, rounded up to whole prefix trees. The trees of a
/// pass are padded to the largest one; small batches keep padding low.
const CPU_BATCH_SIZE: usize = 32;
/// Number of texts in one forward pass on a GPU, rounded up to whole prefix trees. Launch overhead
/// dominates there, so the number is large; it limits the memory of a pass.
const GPU_BATCH_SIZE: usize = 1024;

/// The text encoder, parameters `token_embedding.*`, `positional_embedding`, `transformer.*`,
/// `ln_final.*` and `text_projection`.
pub struct TextModel {
    token_embedding: Embedding,
    positional_embedding: Tensor,
    transformer: Transformer,
    ln_final: LayerNorm,
    text_projection: Tensor,
}

impl TextModel {
    pub(super) fn new(builder: &mut ParameterBuilder, config: &ClipConfig) -> Self {
        let text_config = &config.text;
        let [width, context, vocabulary, embedding] =
            [text_config.width, text_config.context_length, text_config.vocabulary_size, config.embedding]
                .map(|size| size as i64);
        Self {
            token_embedding: Embedding::new(builder, "token_embedding", vocabulary, width, 0.02),
            positional_embedding: builder.normal("positional_embedding", &[context, width], 0.01),
            transformer: {
                let sizes = (text_config.width, text_config.layers, text_config.heads);
                Transformer::new(builder, "transformer", sizes, config.activation)
            },
            ln_final: LayerNorm::new(builder, "ln_final", width, 1e-5),
            text_projection: builder.normal("text_projection", &[width, embedding], (width as f64).powf(-0.5)),
        }
    }

    /// Converts tokenized texts to unit embeddings `[texts, embedding]`, in order. The caller
    /// truncates texts to the context length. Each `per_tree` consecutive texts share a prefix
    /// tree: they should be similar, as the captions of an image are.
    ///
    /// The encoder is causal, and a text's embedding is the output at its last token, usually the
    /// end token. So a text is computed only up to that token, and common prefixes of texts in a
    /// tree are computed once.
    pub fn embed(&self, texts: &[Vec<i64>], per_tree: usize) -> Tensor {
        let device = self.text_projection.device();
        let per_tree = per_tree.max(1);
        let trees = texts.chunks(per_tree).map(|texts| PrefixTree::build(texts.iter().map(Vec::as_slice)));
        let mut trees: Vec<(usize, PrefixTree)> = trees.enumerate().collect();
        trees.sort_by_key(|(_, tree)| tree.size());
        let trees_per_batch = if uses_gpu_path(device) { GPU_BATCH_SIZE } else { CPU_BATCH_SIZE }.div_ceil(per_tree);
        let embedded = trees
            .chunks(trees_per_batch.max(1))
            .map(|batch| self.embed_trees(batch.iter().map(|(_, tree)| tree), device));
        let embedded = Tensor::cat(&embedded.collect::<Vec<_>>(), 0);
        let order =
            trees.iter().flat_map(|(number, tree)| (0..tree.paths.len()).map(move |text| number * per_tree + text));
        let mut rows = vec![0_i64; texts.len()];
        order.enumerate().for_each(|(row, text)| rows[text] = row as i64);
        l2_normalize(&embedded.index_select(0, &Tensor::from_slice(&rows).to_device(device)))
    }

    /// The embeddings of all texts of some trees, in order, not normalized, `[texts, embedding]`.
    fn embed_trees<'a>(&self, trees: impl Iterator<Item = &'a PrefixTree> + Clone, device: Device) -> Tensor {
        let batch = PrefixTreeBatch::new(trees.clone(), device);
        let positions = self.positional_embedding.index_select(0, &batch.positions.flatten(0, 1));
        let x = self.token_embedding.forward(&batch.ids);
        let x = &x + positions.view_as(&x);
        let hidden = self.transformer.forward(x, Some(&batch.mask));
        let ends = trees.enumerate().flat_map(|(number, tree)| tree.paths.iter().map(move |path| (number, path)));
        let ends = ends.map(|(number, path)| batch.flat_index(number, path.last().copied().unwrap_or(0)));
        let ends = Tensor::from_slice(&ends.collect::<Vec<_>>()).to_device(device);
        self.ln_final.forward(&hidden.flatten(0, 1).index_select(0, &ends)).matmul(&self.text_projection)
    }
}

#[cfg(test)]
mod tests {
    use config::Preset;

    use crate::clip::{Clip, preset};
    use crate::testing;

    #[test]
    fn the_embedding_of_a_text_does_not_depend_on_the_rest_of_the_batch() {
        testing::each_code_path(check_batches);
    }

    fn check_batches() {
        let clip = Clip::new(preset(Preset::Tiny, 50), 1, testing::device());
        let texts: Vec<Vec<i64>> = (0..80).map(|i| (0..2 + i * 7 % 30).map(|j| (i + j) % 50).collect()).collect();
        for per_tree in [1, 5, 80] {
            let together = clip.text.embed(&texts, per_tree);
            for (number, text) in texts.iter().enumerate().step_by(9) {
                let alone = clip.text.embed(std::slice::from_ref(text), 1);
                let actual = together.narrow(0, number as i64, 1);
                assert!(actual.allclose(&alone, 1e-4, 1e-5, false), "text {number}, {per_tree} per tree");
            }
        }
    }
}
