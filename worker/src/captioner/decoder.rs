//! The captioner's decoder: a GPT-2 with cross-attention.

mod replayed;

use std::cell::RefCell;

use tch::{Kind, Tensor};

use super::{CaptionerArchitecture, CaptionerInit, beam::Steps};
use crate::nn::{
    self, Builder, Conv1d, Embedding, LayerNorm, Mode, Parameter, attention, attention_mask, merge_heads, split_heads,
    split_parts, stack_parts, takes_gpu_path,
};
use crate::prefix_tree::PrefixTrees;
use replayed::{Replayed, Workspace};

/// The decoder, parameters `decoder.transformer.*`. The output projection is tied to the token
/// embedding.
pub struct Decoder {
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    /// Workspaces of searches on a GPU, the most recently used first. They hold CUDA graphs, which
    /// contain the addresses of this decoder's parameters.
    workspaces: RefCell<Vec<Workspace>>,
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

/// The keys and values of a layer, each `[batch, heads, length, head width]`.
struct KeyValue {
    key: Tensor,
    value: Tensor,
}

impl Decoder {
    pub fn new(builder: &mut Builder, sizes: &CaptionerArchitecture, initial: CaptionerInit) -> Self {
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
            workspaces: RefCell::default(),
        }
    }

    /// Maps the captions of each image, as a prefix tree, to hidden states `[images, nodes,
    /// width]`. They attend to `memory` `[images, memory length, width]`, the encoder's output.
    pub fn forward(&self, captions: &PrefixTrees, memory: &Tensor, mode: Mode) -> Tensor {
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

    /// The output projection, `[vocabulary, width]`.
    pub fn output(&self) -> &Parameter {
        self.tokens.table()
    }

    /// Prepares step-by-step decoding of `beams` captions of at most `max_length` tokens for each
    /// image of `memory`.
    pub fn begin(&self, memory: &Tensor, beams: i64, max_length: i64, mode: Mode) -> Box<dyn Steps + '_> {
        // A replayed CUDA graph would repeat the same random numbers.
        if takes_gpu_path(memory.device()) && mode.dropout() == 0.0 {
            return Box::new(Replayed::new(self, memory, beams, max_length));
        }
        let rows = (memory.size()[0] * beams) as usize;
        let cache = self.cache(memory, max_length * beams);
        Box::new(Incremental { decoder: self, cache, beams, mode, seen: vec![Vec::new(); rows], length: 0 })
    }

    /// A cache for trees of `nodes` nodes each, with the keys and values of `memory`.
    fn cache(&self, memory: &Tensor, nodes: i64) -> Cache {
        let (images, _, width) = memory.size3().expect("memory is [images, length, width]");
        let memory: Vec<KeyValue> = self.blocks.iter().map(|block| block.memory(memory)).collect();
        let (layers, heads) = (self.blocks.len() as i64, self.blocks.first().map_or(1, |block| block.heads));
        let working = &self.output().working;
        let shape = [layers, 2, images, heads, nodes, width / heads];
        Cache { own: Tensor::zeros(shape, (working.kind(), working.device())), memory }
    }

    /// Adds a node at `position` for each of `tokens` `[images, beams]` to the images' trees.
    /// `mask` `[images, 1, beams, nodes]` is added to the attention scores of all nodes up to
    /// these. Returns hidden states `[images * beams, width]`.
    fn step(&self, tokens: &Tensor, position: i64, mask: &Tensor, cache: &Cache, mode: Mode) -> Tensor {
        let beams = tokens.size()[1];
        let embedded = self.tokens.forward(tokens) + self.positions.table().master.narrow(0, position, 1);
        let mut x = mode.drop(embedded);
        for (layer, (block, memory)) in self.blocks.iter().zip(&cache.memory).enumerate() {
            let inputs = stack_parts(&block.self_attention_inputs(&x), 3, block.heads);
            let own = cache.own.get(layer as i64);
            own.narrow(3, position * beams, beams).copy_(&inputs.narrow(0, 1, 2));
            let own = own.narrow(3, 0, (position + 1) * beams);
            let attended = attention(&inputs.get(0), &own.get(0), &own.get(1), Some(mask), mode);
            x = block.after_attention(x, &attended, mode);
            x = block.cross_attention(x, memory, mode);
            x = block.feed_forward(x, mode);
        }
        self.norm.forward(&x).flatten(0, 1)
    }

    /// Maps hidden states `[rows, width]` to logits `[rows, vocabulary]`, in 32 bits.
    fn logits(&self, hidden: &Tensor) -> Tensor {
        nn::logits(hidden, self.output()).to_kind(Kind::Float)
    }
}

impl Block {
    fn new(builder: &mut Builder, name: &str, sizes: &CaptionerArchitecture, initial: CaptionerInit) -> Self {
        let (width, inner) = (sizes.width as i64, sizes.decoder_inner as i64);
        let norm = |builder: &mut Builder, part: &str| LayerNorm::new(builder, &format!("{name}.{part}"), width, 1e-5);
        let linear = |builder: &mut Builder, part: &str, inputs, outputs| {
            // As GPT-2, scales the projections into the residual stream by the number of residual
            // layers.
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

    /// The keys and values of the encoder's output, once per image, however many captions attend to
    /// it.
    fn memory(&self, memory: &Tensor) -> KeyValue {
        let [key, value] = split_parts(&self.cross_key_value.forward(memory), self.heads);
        KeyValue { key, value }
    }

    /// Cross-attention. The captions of an image attend to the same keys, which are not copied.
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

/// The KV cache of a search. The beams of an image form one tree whose nodes never move: a beam
/// that continues another one attends to that beam's nodes, and nothing is copied.
struct Cache {
    /// The keys and values of the trees' nodes in each layer, `[layers, 2, images, heads, nodes,
    /// head width]`.
    own: Tensor,
    /// The keys and values of the memory in each layer.
    memory: Vec<KeyValue>,
}

impl Cache {
    /// Overwrites the keys and values of the memory with those of a `memory` of the same shape.
    fn replace_memory(&self, decoder: &Decoder, memory: &Tensor) {
        for (block, kept) in decoder.blocks.iter().zip(&self.memory) {
            let KeyValue { key, value } = block.memory(memory);
            kept.key.shallow_clone().copy_(&key);
            kept.value.shallow_clone().copy_(&value);
        }
    }
}

/// Step-by-step decoding on a CPU, and on any device with dropout.
struct Incremental<'a> {
    decoder: &'a Decoder,
    cache: Cache,
    beams: i64,
    mode: Mode,
    /// For each beam, the mask over its image's nodes: 0 for the nodes of its caption, minus
    /// infinity elsewhere.
    seen: Vec<Vec<f32>>,
    length: i64,
}

impl Incremental<'_> {
    /// Adds a node to each beam. Returns the attention mask, `[images, 1, beams, nodes]`.
    fn grow(&mut self, sources: Option<&[i64]>) -> Tensor {
        if let Some(sources) = sources {
            self.seen = sources.iter().map(|&row| self.seen[row as usize].clone()).collect();
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
    fn next(&mut self, tokens: &[i64], sources: Option<&[i64]>) -> Tensor {
        let position = self.length;
        let own = &self.cache.own;
        let (kind, device) = (own.kind(), own.device());
        let mask = self.grow(sources).to_device(device).to_kind(kind);
        let tokens = Tensor::from_slice(tokens).view([-1, self.beams]).to_device(device);
        self.decoder.logits(&self.decoder.step(&tokens, position, &mask, &self.cache, self.mode))
    }
}
