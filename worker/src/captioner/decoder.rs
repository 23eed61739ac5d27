use tch::{Kind, Tensor};

use super::{CaptionerArchitecture, Initial, beam::Steps};
use crate::nn::{
    Builder, Conv1d, Embedding, LayerNorm, Mode, attention, causal_mask, merge_heads, split_heads, split_parts,
    stack_parts,
};

/// A GPT-2 with cross-attention, `decoder.transformer.*`; the output is tied to the token embedding.
pub struct Decoder {
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

struct Block {
    heads: i64,
    ln_1: LayerNorm,
    c_attn: Conv1d,
    c_proj: Conv1d,
    ln_cross: LayerNorm,
    cross_query: Conv1d,
    cross_key_value: Conv1d,
    cross_proj: Conv1d,
    ln_2: LayerNorm,
    c_fc: Conv1d,
    mlp_proj: Conv1d,
}

/// A layer's keys and values, each `[batch, heads, length, head width]`.
struct KeyValue {
    key: Tensor,
    value: Tensor,
}

impl Decoder {
    pub fn new(builder: &mut Builder, sizes: &CaptionerArchitecture, initial: Initial) -> Self {
        let name = "decoder.transformer";
        let [width, vocabulary, positions] =
            [sizes.width, sizes.vocabulary_size, sizes.positions].map(|size| size as i64);
        Self {
            tokens: Embedding::new(builder, &format!("{name}.wte"), vocabulary, width, initial.weights),
            positions: Embedding::new(builder, &format!("{name}.wpe"), positions, width, initial.weights),
            blocks: (0..sizes.decoder_layers)
                .map(|i| Block::new(builder, &format!("{name}.h.{i}"), sizes, initial))
                .collect(),
            norm: LayerNorm::new(builder, &format!("{name}.ln_f"), width, 1e-5),
        }
    }

    /// Tokens `[images * each, length]` to hidden states `[images * each, length, width]`, attending to `memory`
    /// `[images, memory length, width]`, which the `each` captions of an image share.
    pub fn forward(&self, tokens: &Tensor, memory: &Tensor, each: i64, mode: Mode) -> Tensor {
        let length = tokens.size()[1];
        let x = mode.drop(self.tokens.forward(tokens) + self.positions.first(length));
        let mask = causal_mask(length, tokens);
        let x = self.blocks.iter().fold(x, |x, block| {
            let [query, key, value] = split_parts(&block.self_attention_inputs(&x), block.heads);
            let x = block.after_attention(x, &attention(&query, &key, &value, Some(&mask), mode), mode);
            let x = block.cross_attention(x, &block.memory(memory), each, mode);
            block.feed_forward(x, mode)
        });
        self.norm.forward(&x)
    }

    /// Hidden states `[.., width]` to logits `[.., vocabulary]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        hidden.linear(self.tokens.table(), None::<&Tensor>)
    }

    /// Prepares step-by-step decoding of `beams` captions for each image of `memory`, of at most `max_length` tokens.
    pub fn begin(&self, memory: &Tensor, beams: i64, max_length: i64) -> Incremental<'_> {
        let (images, _, width) = memory.size3().expect("memory is [images, length, width]");
        let memory: Vec<KeyValue> = self.blocks.iter().map(|block| block.memory(memory)).collect();
        let (layers, heads) = (self.blocks.len() as i64, self.blocks.first().map_or(1, |block| block.heads));
        let shape = [layers, images * beams, 2, heads, max_length, width / heads];
        let own = Tensor::zeros(shape, (Kind::Float, self.tokens.table().device()));
        Incremental { decoder: self, own, memory, beams, length: 0 }
    }
}

impl Block {
    fn new(builder: &mut Builder, name: &str, sizes: &CaptionerArchitecture, initial: Initial) -> Self {
        let (width, inner) = (sizes.width as i64, sizes.decoder_inner as i64);
        let norm = |builder: &mut Builder, part: &str| LayerNorm::new(builder, &format!("{name}.{part}"), width, 1e-5);
        let linear = |builder: &mut Builder, part: &str, inputs, outputs| {
            // GPT-2 scales the projections that end in the residual stream by the number of residual layers.
            let into_stream = part.ends_with("c_proj");
            let scale = if into_stream { (2.0 * sizes.decoder_layers as f64).powf(-0.5) } else { 1.0 };
            Conv1d::new(builder, &format!("{name}.{part}"), inputs, outputs, initial.weights * scale)
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
    fn self_attention_inputs(&self, x: &Tensor) -> Tensor {
        self.c_attn.forward(&self.ln_1.forward(x))
    }

    fn after_attention(&self, x: Tensor, attended: &Tensor, mode: Mode) -> Tensor {
        x + mode.drop(self.c_proj.forward(&merge_heads(attended)))
    }

    /// Keys and values of what the encoder saw, once an image however many captions attend to it.
    fn memory(&self, memory: &Tensor) -> KeyValue {
        let [key, value] = split_parts(&self.cross_key_value.forward(memory), self.heads);
        KeyValue { key, value }
    }

    /// The captions of an image ask its memory as further query positions; keys are never copied for them.
    fn cross_attention(&self, x: Tensor, memory: &KeyValue, each: i64, mode: Mode) -> Tensor {
        let (rows, length, width) = x.size3().expect("activations are [rows, length, width]");
        let query = self.cross_query.forward(&self.ln_cross.forward(&x)).view([rows / each, each * length, width]);
        let attended = attention(&split_heads(&query, self.heads), &memory.key, &memory.value, None, mode);
        x + mode.drop(self.cross_proj.forward(&merge_heads(&attended).view([rows, length, width])))
    }

    fn feed_forward(&self, x: Tensor, mode: Mode) -> Tensor {
        let hidden = self.c_fc.forward(&self.ln_2.forward(&x)).gelu("tanh");
        x + mode.drop(self.mlp_proj.forward(&hidden))
    }
}

/// Decoding under way: what each caption attends to, kept.
pub struct Incremental<'a> {
    decoder: &'a Decoder,
    /// Each layer's own keys and values so far, `[layers, rows, 2, heads, longest, head width]`: one tensor, so that all of them are
    /// put into a new order at once.
    own: Tensor,
    /// Each layer's keys and values of the memory.
    memory: Vec<KeyValue>,
    beams: i64,
    length: i64,
}

impl Steps for Incremental<'_> {
    fn next(&mut self, tokens: &[i64], origins: Option<&[i64]>) -> Tensor {
        let device = self.own.device();
        let position = self.length;
        let tokens = Tensor::from_slice(tokens).to_device(device).unsqueeze(1);
        let mut x = self.decoder.tokens.forward(&tokens) + self.decoder.positions.table().narrow(0, position, 1);
        if let Some(rows) = origins {
            self.own = self.own.index_select(1, &Tensor::from_slice(rows).to_device(device));
        }
        for (layer, (block, memory)) in self.decoder.blocks.iter().zip(&self.memory).enumerate() {
            let inputs = stack_parts(&block.self_attention_inputs(&x), 3, block.heads);
            let own = self.own.get(layer as i64);
            own.narrow(3, position, 1).copy_(&inputs.narrow(0, 1, 2).transpose(0, 1));
            let own = own.narrow(3, 0, position + 1);
            let [key, value] = [0, 1].map(|part| own.select(1, part));
            let attended = attention(&inputs.get(0), &key, &value, None, Mode::Evaluate);
            x = block.after_attention(x, &attended, Mode::Evaluate);
            x = block.cross_attention(x, memory, self.beams, Mode::Evaluate);
            x = block.feed_forward(x, Mode::Evaluate);
        }
        self.length += 1;
        self.decoder.logits(&self.decoder.norm.forward(&x)).squeeze_dim(1).log_softmax(-1, Kind::Float)
    }
}
