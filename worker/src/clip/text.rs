use tch::Tensor;

use super::{Config, transformer::Transformer, unit};
use crate::nn::{Builder, Embedding, LayerNorm, causal_mask};
use crate::text::TokenBatch;

/// The text transformer, `transformer.*`.
pub struct Text {
    token_embedding: Embedding,
    positional_embedding: Tensor,
    transformer: Transformer,
    ln_final: LayerNorm,
    text_projection: Tensor,
}

impl Text {
    pub(super) fn new(builder: &mut Builder, config: &Config) -> Self {
        let width = config.text.width;
        Self {
            token_embedding: Embedding::new(builder, "token_embedding", config.vocabulary_size, width, 0.02),
            positional_embedding: builder.normal("positional_embedding", &[config.context_length, width], 0.01),
            transformer: Transformer::new(builder, "transformer", config.text),
            ln_final: LayerNorm::new(builder, "ln_final", width, 1e-5),
            text_projection: builder.normal("text_projection", &[width, config.embedding], (width as f64).powf(-0.5)),
        }
    }

    /// Texts with begin and end, `[batch, length]`, to unit embeddings `[batch, embedding]`.
    ///
    /// The tower is causal and reads its answer off the end token, so it runs only as far as the longest text; longer ones
    /// than the context are cut by the caller.
    #[must_use]
    pub fn embed(&self, texts: &TokenBatch) -> Tensor {
        let (batch, length) = texts.ids.size2().expect("texts are [batch, length]");
        let x = self.token_embedding.forward(&texts.ids) + self.positional_embedding.narrow(0, 0, length);
        let hidden = self.transformer.forward(x, Some(&causal_mask(length, &texts.ids)));
        let rows = Tensor::arange(batch, (tch::Kind::Int64, texts.ids.device())) * length;
        let last = hidden.flatten(0, 1).index_select(0, &(rows + &texts.lengths - 1));
        unit(&self.ln_final.forward(&last).matmul(&self.text_projection))
    }
}
