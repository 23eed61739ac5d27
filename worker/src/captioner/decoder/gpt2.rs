//! GPT-2 with cross-attention, as in transformers' `GPT2LMHeadModel`: the forward pass over whole
//! captions, and single decoding steps with a KV cache. `memory` is the output of the encoder, as
//! in `torch.nn.TransformerDecoder`.

use tch::{Kind, Tensor};
use weights::CaptionerConfig;

use crate::captioner::initialization::CaptionerInit;
use crate::nn::{
    self, DropoutMode, Embedding, LayerNorm, MixedPrecisionParameter, ParameterBuilder, TransposedLinear, attention,
    cast_attention_mask, merge_heads, split_fused_projections, split_heads, view_fused_projections,
};
use crate::prefix_tree::PrefixTreeBatch;

/// The model, parameters `decoder.transformer.*`. The output projection is tied to the token
/// embedding.
pub struct Gpt2Model {
    token_embedding: Embedding,
    position_embedding: Embedding,
    blocks: Vec<DecoderBlock>,
    norm: LayerNorm,
}

/// A block (`GPT2Block` in transformers): self-attention (`c_attn`, `c_proj`), cross-attention
/// (`cross_*`), and a feed-forward part (`c_fc`, `mlp_proj`).
struct DecoderBlock {
    heads: i64,
    ln_1: LayerNorm,
    c_attn: TransposedLinear,
    c_proj: TransposedLinear,
    ln_cross: LayerNorm,
    cross_query: TransposedLinear,
    cross_key_value: TransposedLinear,
    cross_proj: TransposedLinear,
    ln_2: LayerNorm,
    c_fc: TransposedLinear,
    mlp_proj: TransposedLinear,
}

/// The keys and values of an attention layer, each `[batch, heads, length, head width]`.
struct KeysAndValues {
    key: Tensor,
    value: Tensor,
}

impl Gpt2Model {
    pub fn new(builder: &mut ParameterBuilder, sizes: &CaptionerConfig, initial: CaptionerInit) -> Self {
        let name = "decoder.transformer";
        let [width, vocabulary, positions] =
            [sizes.width, sizes.vocabulary_size, sizes.positions].map(|size| size as i64);
        Self {
            token_embedding: Embedding::new(
                builder,
                &format!("{name}.wte"),
                vocabulary,
                width,
                initial.weight_deviation,
            ),
            position_embedding: Embedding::new(
                builder,
                &format!("{name}.wpe"),
                positions,
                width,
                initial.weight_deviation,
            ),
            blocks: (0..sizes.decoder_layers)
                .map(|i| DecoderBlock::new(builder, &format!("{name}.h.{i}"), sizes, initial))
                .collect(),
            norm: LayerNorm::new(builder, &format!("{name}.ln_f"), width, 1e-5),
        }
    }

    /// Maps the captions of each image, as a prefix tree, to hidden states `[images, nodes,
    /// width]`. The captions attend to `memory` `[images, memory length, width]`, the encoder's
    /// output.
    pub fn forward(&self, captions: &PrefixTreeBatch, memory: &Tensor, mode: DropoutMode) -> Tensor {
        let x = mode.dropout(
            self.token_embedding.forward(&captions.ids) + self.position_embedding.forward(&captions.positions),
        );
        let mask = cast_attention_mask(&captions.mask, self.output_projection().working.kind());
        let x = self.blocks.iter().fold(x, |x, block| {
            let [query, key, value] = split_fused_projections(&block.self_attention_projections(&x), block.heads);
            let x = block.add_self_attention(x, &attention(&query, &key, &value, Some(&mask), mode), mode);
            let x = block.cross_attention(x, &block.cross_attention_key_value(memory), mode);
            block.feed_forward(x, mode)
        });
        self.norm.forward(&x)
    }

    /// The output projection, `[vocabulary, width]`.
    pub fn output_projection(&self) -> &MixedPrecisionParameter {
        self.token_embedding.table()
    }

    /// A cache for trees of `nodes` nodes each, with the keys and values of `memory`
    /// `[images, memory length, width]`.
    pub fn new_cache(&self, memory: &Tensor, nodes: i64) -> KeyValueCache {
        let (images, _, width) = memory.size3().expect("memory is [images, length, width]");
        let cross_attention = self.blocks.iter().map(|block| block.cross_attention_key_value(memory)).collect();
        let (layers, heads) = (self.blocks.len() as i64, self.blocks.first().map_or(1, |block| block.heads));
        let working = &self.output_projection().working;
        let shape = [layers, 2, images, heads, nodes, width / heads];
        KeyValueCache { self_attention: Tensor::zeros(shape, (working.kind(), working.device())), cross_attention }
    }

    /// Appends a node at `position` for each of `tokens` `[images, beams]` to the images' trees.
    /// `mask` `[images, 1, beams, nodes]` is added to the attention scores of the nodes up to and
    /// including these. Returns hidden states `[images * beams, width]`.
    pub fn step(
        &self,
        tokens: &Tensor,
        position: i64,
        mask: &Tensor,
        cache: &KeyValueCache,
        mode: DropoutMode,
    ) -> Tensor {
        let beams = tokens.size()[1];
        let embedded =
            self.token_embedding.forward(tokens) + self.position_embedding.table().master.narrow(0, position, 1);
        let mut x = mode.dropout(embedded);
        for (layer, (block, memory_key_value)) in self.blocks.iter().zip(&cache.cross_attention).enumerate() {
            let projections = view_fused_projections(&block.self_attention_projections(&x), 3, block.heads);
            let key_value = cache.self_attention.get(layer as i64);
            key_value.narrow(3, position * beams, beams).copy_(&projections.narrow(0, 1, 2));
            let key_value = key_value.narrow(3, 0, (position + 1) * beams);
            let attended = attention(&projections.get(0), &key_value.get(0), &key_value.get(1), Some(mask), mode);
            x = block.add_self_attention(x, &attended, mode);
            x = block.cross_attention(x, memory_key_value, mode);
            x = block.feed_forward(x, mode);
        }
        self.norm.forward(&x).flatten(0, 1)
    }

    /// Maps hidden states `[rows, width]` to logits `[rows, vocabulary]`, in 32 bits.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        nn::logits(hidden, self.output_projection()).to_kind(Kind::Float)
    }
}

impl DecoderBlock {
    fn new(builder: &mut ParameterBuilder, name: &str, sizes: &CaptionerConfig, initial: CaptionerInit) -> Self {
        let (width, inner) = (sizes.width as i64, sizes.decoder_inner as i64);
        let norm = |builder: &mut ParameterBuilder, part: &str| {
            LayerNorm::new(builder, &format!("{name}.{part}"), width, 1e-5)
        };
        let linear = |builder: &mut ParameterBuilder, part: &str, inputs, outputs| {
            // As transformers' `GPT2PreTrainedModel._init_weights`, scales the projections into the
            // residual stream by 1 / sqrt(2 blocks).
            let is_residual_projection = part.ends_with("c_proj");
            let scale = if is_residual_projection { (2.0 * sizes.decoder_layers as f64).powf(-0.5) } else { 1.0 };
            TransposedLinear::new(builder, &format!("{name}.{part}"), inputs, outputs, initial.weight_deviation * scale)
        };
        Self {
            heads: sizes.heads as i64,
            ln_1: norm(builder, "ln_1"),
            c_attn: linear(builder, "attn.c_attn", width, 3 * width),
            c_proj: linear(builder, "attn.c_proj", width, width),
            ln_cross: norm(builder, "ln_cross_attn"),
            cross_query: linear(builder, "crossattention.q_attn", width, width),
            cross_key_value: linear(builder, "crossattention.c_attn", width, 2 * width),
            cross_proj: linear(builder, "crossattention.c_proj", width, width),
            ln_2: norm(builder, "ln_2"),
            c_fc: linear(builder, "mlp.c_fc", width, inner),
            mlp_proj: linear(builder, "mlp.c_proj", inner, width),
        }
    }

    /// Queries, keys and values side by side, `[batch, length, 3 * width]`.
    fn self_attention_projections(&self, x: &Tensor) -> Tensor {
        self.c_attn.forward(&self.ln_1.forward(x))
    }

    /// Adds the output projection of `attended` `[batch, heads, length, head width]` to the
    /// residual stream `x`.
    fn add_self_attention(&self, x: Tensor, attended: &Tensor, mode: DropoutMode) -> Tensor {
        x + mode.dropout(self.c_proj.forward(&merge_heads(attended)))
    }

    /// The keys and values of the encoder's output `[images, memory length, width]`. They exist
    /// once per image, independent of the number of captions.
    fn cross_attention_key_value(&self, memory: &Tensor) -> KeysAndValues {
        let [key, value] = split_fused_projections(&self.cross_key_value.forward(memory), self.heads);
        KeysAndValues { key, value }
    }

    /// Cross-attention of `x` `[images, nodes, width]`. All captions of an image attend to the same
    /// keys, which are not copied.
    fn cross_attention(&self, x: Tensor, memory_key_value: &KeysAndValues, mode: DropoutMode) -> Tensor {
        let query = split_heads(&self.cross_query.forward(&self.ln_cross.forward(&x)), self.heads);
        let KeysAndValues { key, value } = memory_key_value;
        let attended = attention(&query, key, value, None, mode);
        x + mode.dropout(self.cross_proj.forward(&merge_heads(&attended)))
    }

    fn feed_forward(&self, x: Tensor, mode: DropoutMode) -> Tensor {
        let hidden = self.c_fc.forward(&self.ln_2.forward(&x)).gelu("tanh");
        x + mode.dropout(self.mlp_proj.forward(&hidden))
    }
}

/// The KV cache of step-by-step decoding. The beams of an image form one tree whose nodes never
/// move. A beam that continues another beam attends to that beam's nodes, and nothing is copied.
pub struct KeyValueCache {
    /// The keys and values of the trees' nodes in each layer, `[layers, 2, images, heads, nodes,
    /// head width]`.
    self_attention: Tensor,
    /// The keys and values of the encoder's output in each layer.
    cross_attention: Vec<KeysAndValues>,
}

impl KeyValueCache {
    /// Replaces the keys and values of the encoder's output by the keys and values of `memory`,
    /// which has the shape of the previous output.
    pub fn replace_memory(&self, model: &Gpt2Model, memory: &Tensor) {
        for (block, cached) in model.blocks.iter().zip(&self.cross_attention) {
            let KeysAndValues { key, value } = block.cross_attention_key_value(memory);
            cached.key.shallow_clone().copy_(&key);
            cached.value.shallow_clone().copy_(&value);
        }
    }
}
