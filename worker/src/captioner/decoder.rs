use tch::{Kind, Tensor};

use super::{CaptionerArchitecture, Initial, beam::Steps};
use crate::forest::Forest;
use crate::nn::{
    self, Builder, Conv1d, Embedding, LayerNorm, Mode, Parameter, attention, attention_mask, merge_heads, split_heads,
    split_parts, stack_parts,
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

    /// The captions of each image, as a tree, to hidden states `[images, nodes, width]`, attending to `memory`
    /// `[images, memory length, width]`.
    pub fn forward(&self, captions: &Forest, memory: &Tensor, mode: Mode) -> Tensor {
        let x = mode.drop(self.tokens.forward(&captions.ids) + self.positions.forward(&captions.positions));
        let mask = attention_mask(&captions.mask, self.output().working.kind());
        let x = self.blocks.iter().fold(x, |x, block| {
            let [query, key, value] = split_parts(&block.self_attention_inputs(&x), block.heads);
            let x = block.after_attention(x, &attention(&query, &key, &value, Some(&mask), mode), mode);
            let x = block.cross_attention(x, &block.memory(memory), mode);
            block.feed_forward(x, mode)
        });
        self.norm.forward(&x)
    }

    /// What hidden states are multiplied with for logits, `[vocabulary, width]`.
    pub fn output(&self) -> &Parameter {
        self.tokens.table()
    }

    /// Prepares step-by-step decoding of `beams` captions for each image of `memory`, of at most `max_length` tokens.
    pub fn begin(&self, memory: &Tensor, beams: i64, max_length: i64) -> Incremental<'_> {
        let (images, _, width) = memory.size3().expect("memory is [images, length, width]");
        let memory: Vec<KeyValue> = self.blocks.iter().map(|block| block.memory(memory)).collect();
        let (layers, heads) = (self.blocks.len() as i64, self.blocks.first().map_or(1, |block| block.heads));
        let shape = [layers, 2, images, heads, max_length * beams, width / heads];
        let working = &self.output().working;
        let own = Tensor::zeros(shape, (working.kind(), working.device()));
        Incremental { decoder: self, own, memory, beams, seen: vec![Vec::new(); (images * beams) as usize], length: 0 }
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

    /// The captions of an image ask its memory side by side; keys are never copied for them.
    fn cross_attention(&self, x: Tensor, memory: &KeyValue, mode: Mode) -> Tensor {
        let query = split_heads(&self.cross_query.forward(&self.ln_cross.forward(&x)), self.heads);
        let attended = attention(&query, &memory.key, &memory.value, None, mode);
        x + mode.drop(self.cross_proj.forward(&merge_heads(&attended)))
    }

    fn feed_forward(&self, x: Tensor, mode: Mode) -> Tensor {
        let hidden = self.c_fc.forward(&self.ln_2.forward(&x)).gelu("tanh");
        x + mode.drop(self.mlp_proj.forward(&hidden))
    }
}

/// Decoding under way. The beams of an image grow one tree, of which every node stays where it is: a beam that goes on from
/// another sees that one's nodes, and nothing has to be copied for it.
pub struct Incremental<'a> {
    decoder: &'a Decoder,
    /// Each layer's own keys and values of all nodes so far, `[layers, 2, images, heads, longest * beams, head width]`.
    own: Tensor,
    /// Each layer's keys and values of the memory.
    memory: Vec<KeyValue>,
    beams: i64,
    /// Of each beam, what is added to its scores of its image's nodes: 0 for those that it has gone through.
    seen: Vec<Vec<f32>>,
    length: i64,
}

impl Incremental<'_> {
    /// Adds a node to each beam. Returns what is added to scores, `[images, 1, beams, nodes]`.
    fn grow(&mut self, origins: Option<&[i64]>) -> Tensor {
        if let Some(origins) = origins {
            self.seen = origins.iter().map(|&row| self.seen[row as usize].clone()).collect();
        }
        let beams = self.beams as usize;
        for (row, seen) in self.seen.iter_mut().enumerate() {
            seen.extend((0..beams).map(|beam| if beam == row % beams { 0.0 } else { f32::NEG_INFINITY }));
        }
        self.length += 1;
        let images = self.seen.len() as i64 / self.beams;
        Tensor::from_slice(&self.seen.concat()).view([images, 1, self.beams, self.length * self.beams])
    }
}

impl Steps for Incremental<'_> {
    fn next(&mut self, tokens: &[i64], origins: Option<&[i64]>) -> Tensor {
        let Decoder { tokens: embedding, positions, blocks, norm } = self.decoder;
        let device = self.own.device();
        let position = self.length;
        let mask = self.grow(origins).to_device(device).to_kind(self.own.kind());
        let tokens = Tensor::from_slice(tokens).view([-1, self.beams]).to_device(device);
        let mut x = embedding.forward(&tokens) + positions.table().master.narrow(0, position, 1);
        for (layer, (block, memory)) in blocks.iter().zip(&self.memory).enumerate() {
            let inputs = stack_parts(&block.self_attention_inputs(&x), 3, block.heads);
            let own = self.own.get(layer as i64);
            own.narrow(3, position * self.beams, self.beams).copy_(&inputs.narrow(0, 1, 2));
            let own = own.narrow(3, 0, self.length * self.beams);
            let attended = attention(&inputs.get(0), &own.get(0), &own.get(1), Some(&mask), Mode::Evaluate);
            x = block.after_attention(x, &attended, Mode::Evaluate);
            x = block.cross_attention(x, memory, Mode::Evaluate);
            x = block.feed_forward(x, Mode::Evaluate);
        }
        nn::logits(&norm.forward(&x).flatten(0, 1), self.decoder.output()).to_kind(Kind::Float)
    }
}
