//! CLIP's text encoder.

use tch::{Device, Tensor};
use weights::clip::Architecture;

use super::{transformer::Transformer, unit};
use crate::nn::{Builder, Embedding, LayerNorm, takes_gpu_path};
use crate::prefix_tree::{PrefixTrees, Tree};

/// Number of texts in one forward pass on a CPU. The texts' prefix trees are padded to the largest
/// one; small groups keep padding low.
const GROUP: usize = 32;
/// The same on a GPU, where launch overhead dominates: as many as fit into memory for certain. An
/// image may have a thousand references.
const GPU_GROUP: usize = 1024;

/// The text encoder, parameters `transformer.*`.
pub struct Text {
    token_embedding: Embedding,
    positional_embedding: Tensor,
    transformer: Transformer,
    ln_final: LayerNorm,
    text_projection: Tensor,
}

impl Text {
    pub(super) fn new(builder: &mut Builder, architecture: &Architecture) -> Self {
        let tower = &architecture.text;
        let [width, context, vocabulary, embedding] =
            [tower.width, tower.context_length, tower.vocabulary_size, architecture.embedding].map(|size| size as i64);
        Self {
            token_embedding: Embedding::new(builder, "token_embedding", vocabulary, width, 0.02),
            positional_embedding: builder.normal("positional_embedding", &[context, width], 0.01),
            transformer: {
                let sizes = (tower.width, tower.layers, tower.heads);
                Transformer::new(builder, "transformer", sizes, architecture.activation)
            },
            ln_final: LayerNorm::new(builder, "ln_final", width, 1e-5),
            text_projection: builder.normal("text_projection", &[width, embedding], (width as f64).powf(-0.5)),
        }
    }

    /// Converts texts with begin and end tokens to unit embeddings `[texts, embedding]`, in order.
    /// The caller truncates texts to the context length. Each `each` consecutive texts are assumed
    /// to be similar, as the captions of an image are.
    ///
    /// The encoder is causal and its output is read off the end token, so a text is computed only
    /// up to that token, and common prefixes of similar texts only once.
    pub fn embed(&self, texts: &[Vec<i64>], each: usize) -> Tensor {
        let device = self.text_projection.device();
        let each = each.max(1);
        let trees = texts.chunks(each).map(|texts| Tree::build(texts.iter().map(Vec::as_slice)));
        let mut trees: Vec<(usize, Tree)> = trees.enumerate().collect();
        trees.sort_by_key(|(_, tree)| tree.size());
        let group = if takes_gpu_path(device) { GPU_GROUP } else { GROUP }.div_ceil(each);
        let embedded =
            trees.chunks(group.max(1)).map(|group| self.embed_group(group.iter().map(|(_, tree)| tree), device));
        let embedded = Tensor::cat(&embedded.collect::<Vec<_>>(), 0);
        let order = trees.iter().flat_map(|(number, tree)| (0..tree.paths.len()).map(move |text| number * each + text));
        let mut embedded_at = vec![0_i64; texts.len()];
        order.enumerate().for_each(|(at, text)| embedded_at[text] = at as i64);
        unit(&embedded.index_select(0, &Tensor::from_slice(&embedded_at).to_device(device)))
    }

    fn embed_group<'a>(&self, trees: impl Iterator<Item = &'a Tree> + Clone, device: Device) -> Tensor {
        let forest = PrefixTrees::new(trees.clone(), device);
        let positions = self.positional_embedding.index_select(0, &forest.positions.flatten(0, 1));
        let x = self.token_embedding.forward(&forest.ids);
        let x = &x + positions.view_as(&x);
        let hidden = self.transformer.forward(x, Some(&forest.mask));
        let ends = trees.enumerate().flat_map(|(number, tree)| tree.paths.iter().map(move |path| (number, path)));
        let ends = ends.map(|(number, path)| forest.place(number, path.last().copied().unwrap_or(0)));
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
    fn a_text_is_embedded_alike_whatever_stands_beside_it() {
        testing::each_code_path(check_neighbours);
    }

    fn check_neighbours() {
        let clip = Clip::new(preset(Preset::Tiny, 50), 1, testing::device());
        let texts: Vec<Vec<i64>> = (0..80).map(|i| (0..2 + i * 7 % 30).map(|j| (i + j) % 50).collect()).collect();
        for each in [1, 5, 80] {
            let together = clip.text.embed(&texts, each);
            for (number, text) in texts.iter().enumerate().step_by(9) {
                let alone = clip.text.embed(std::slice::from_ref(text), 1);
                let found = together.narrow(0, number as i64, 1);
                assert!(found.allclose(&alone, 1e-4, 1e-5, false), "text {number}, {each} together");
            }
        }
    }
}
