use tch::{Kind, Tensor};

use super::{CaptionerArchitecture, Initial, beam::Steps};
use crate::nn::{Builder, Conv1d, Embedding, LayerNorm, Mode, attention, causal_mask, merge_heads, split_heads};

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
            let (query, own) = block.self_attention_inputs(&x);
            let x = block.after_attention(x, &attention(&query, &own.key, &own.value, Some(&mask), mode), mode);
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
        let rows = memory.size()[0] * beams;
        let layers = self.blocks.iter().map(|block| {
            let shape = [rows, block.heads, max_length, memory.size()[2] / block.heads];
            let empty = || Tensor::zeros(shape, (Kind::Float, memory.device()));
            Layer { own: KeyValue { key: empty(), value: empty() }, memory: block.memory(memory) }
        });
        Incremental { decoder: self, layers: layers.collect(), beams, length: 0 }
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

    fn self_attention_inputs(&self, x: &Tensor) -> (Tensor, KeyValue) {
        let projected = self.c_attn.forward(&self.ln_1.forward(x));
        let width = x.size()[2];
        let part = |i| split_heads(&projected.narrow(2, i * width, width).contiguous(), self.heads);
        (part(0), KeyValue { key: part(1), value: part(2) })
    }

    fn after_attention(&self, x: Tensor, attended: &Tensor, mode: Mode) -> Tensor {
        x + mode.drop(self.c_proj.forward(&merge_heads(attended)))
    }

    /// Keys and values of what the encoder saw, once an image however many captions attend to it.
    fn memory(&self, memory: &Tensor) -> KeyValue {
        let projected = self.cross_key_value.forward(memory);
        let width = memory.size()[2];
        let part = |i| split_heads(&projected.narrow(2, i * width, width).contiguous(), self.heads);
        KeyValue { key: part(0), value: part(1) }
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
    layers: Vec<Layer>,
    beams: i64,
    length: i64,
}

struct Layer {
    own: KeyValue,
    memory: KeyValue,
}

impl Steps for Incremental<'_> {
    fn next(&mut self, tokens: &[i64], origins: Option<&[i64]>) -> Tensor {
        let device = self.layers[0].own.key.device();
        let position = self.length;
        let tokens = Tensor::from_slice(tokens).to_device(device).unsqueeze(1);
        let mut x = self.decoder.tokens.forward(&tokens) + self.decoder.positions.table().narrow(0, position, 1);
        let origins = origins.map(|rows| Tensor::from_slice(rows).to_device(device));
        for (block, layer) in self.decoder.blocks.iter().zip(&mut self.layers) {
            let (query, new) = block.self_attention_inputs(&x);
            let extend = |cache: &mut Tensor, new: &Tensor| {
                if let Some(origins) = &origins {
                    let kept = cache.narrow(2, 0, position);
                    let reordered = kept.index_select(0, origins);
                    cache.narrow(2, 0, position).copy_(&reordered);
                }
                cache.narrow(2, position, 1).copy_(new);
                cache.narrow(2, 0, position + 1)
            };
            let key = extend(&mut layer.own.key, &new.key);
            let value = extend(&mut layer.own.value, &new.value);
            x = block.after_attention(x, &attention(&query, &key, &value, None, Mode::Evaluate), Mode::Evaluate);
            x = block.cross_attention(x, &layer.memory, self.beams, Mode::Evaluate);
            x = block.feed_forward(x, Mode::Evaluate);
        }
        self.length += 1;
        self.decoder.logits(&self.decoder.norm.forward(&x)).squeeze_dim(1).log_softmax(-1, Kind::Float)
    }
}
