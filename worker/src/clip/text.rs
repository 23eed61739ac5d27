use tch::{Kind, Tensor};
use weights::clip::Architecture;

use super::{transformer::Transformer, unit};
use crate::nn::{Builder, Embedding, LayerNorm, causal_mask};
use crate::text::TokenBatch;

/// Texts that are run together, to the length of the longest of them: on a CPU so many, as padding is work there; on a GPU all, as
/// starting the work takes longer than most of it.
const GROUP: i64 = 32;

/// The text transformer, `transformer.*`.
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
            transformer: Transformer::new(builder, "transformer", (tower.width, tower.layers, tower.heads)),
            ln_final: LayerNorm::new(builder, "ln_final", width, 1e-5),
            text_projection: builder.normal("text_projection", &[width, embedding], (width as f64).powf(-0.5)),
        }
    }

    /// Texts with begin and end, `[batch, length]`, to unit embeddings `[batch, embedding]`. Texts longer than the context are
    /// cut by the caller.
    ///
    /// The tower is causal and reads its answer off the end token, so a text is run only as far as it goes: the batch is
    /// taken apart into groups of like length, which changes nothing but the padding that is computed for nobody.
    pub fn embed(&self, texts: &TokenBatch) -> Tensor {
        let (lengths, order) = texts.lengths.sort(0, false);
        let ids = texts.ids.index_select(0, &order);
        let group = if ids.device().is_cuda() { ids.size()[0].max(1) } else { GROUP };
        let groups = lengths.split(group, 0).into_iter().zip(ids.split(group, 0));
        let embedded = groups.map(|(lengths, ids)| self.embed_group(&ids, &lengths)).collect::<Vec<_>>();
        unit(&Tensor::cat(&embedded, 0).index_select(0, &order.argsort(0, false)))
    }

    fn embed_group(&self, ids: &Tensor, lengths: &Tensor) -> Tensor {
        let longest = lengths.max().int64_value(&[]);
        let ids = ids.narrow(1, 0, longest);
        let x = self.token_embedding.forward(&ids) + self.positional_embedding.narrow(0, 0, longest);
        let hidden = self.transformer.forward(x, Some(&causal_mask(longest, &ids)));
        let rows = Tensor::arange(ids.size()[0], (Kind::Int64, ids.device())) * longest;
        let last = hidden.flatten(0, 1).index_select(0, &(rows + lengths - 1));
        self.ln_final.forward(&last).matmul(&self.text_projection)
    }
}

#[cfg(test)]
mod tests {
    use runfile::Preset;
    use tch::Device;

    use super::*;
    use crate::clip::{Clip, preset};

    #[test]
    fn a_text_is_embedded_alike_whatever_stands_beside_it() {
        let clip = Clip::new(preset(Preset::Tiny, 50), 1, Device::Cpu);
        let texts: Vec<Vec<i64>> = (0..80).map(|i| (0..2 + i * 7 % 30).map(|j| (i + j) % 50).collect()).collect();
        let together = clip.text.embed(&TokenBatch::new(&texts, 49, Device::Cpu));
        for (number, text) in texts.iter().enumerate().step_by(9) {
            let alone = clip.text.embed(&TokenBatch::new(std::slice::from_ref(text), 49, Device::Cpu));
            assert!(together.narrow(0, number as i64, 1).allclose(&alone, 1e-4, 1e-5, false), "text {number}");
        }
    }
}
