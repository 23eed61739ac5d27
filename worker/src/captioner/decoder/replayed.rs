//! Step-by-step decoding on a GPU.
//!
//! A step consists of about eighty small operations, and launching them takes longer than executing
//! them. So a step reads and writes tensors that persist between searches, and the operations of
//! each position are replayed as a CUDA graph.

use std::cell::RefMut;

use tch::{Kind, Tensor};

use super::{Cache, Decoder};
use crate::captioner::beam::{Steps, TopTokens, likeliest};
use crate::nn::{GraphPool, Mode, Replay, attention_length};

/// Maximal number of workspaces: for training, for evaluation, and for the last batch of an
/// evaluation.
const MAX_WORKSPACES: usize = 3;

/// The tensors and graphs for searches of one shape.
pub struct Workspace {
    shape: Shape,
    tensors: Tensors,
    /// The graph of the step at each position.
    steps: Vec<Replay>,
    pool: GraphPool,
}

#[derive(Clone, Copy, PartialEq)]
struct Shape {
    images: i64,
    memory_length: i64,
    beams: i64,
    max_length: i64,
}

/// The tensors that steps read and write.
struct Tensors {
    /// The token of each row, and the row that it continues, `[2, rows]`.
    inputs: Tensor,
    cache: Cache,
    /// The attention mask of each beam, `[images, 1, beams, nodes]`: 0 for the nodes of its own
    /// caption.
    mask: Tensor,
    /// The mask for the nodes that a step adds, one for each beam, `[beams, beams]`.
    mask_of_added: Tensor,
    /// The log-probabilities of each row's most likely tokens, and the tokens, `[2, rows, count]`.
    /// In one tensor, because each copy from a GPU synchronizes; 32-bit floats represent tokens
    /// exactly up to 2^24.
    likeliest: Tensor,
}

impl Workspace {
    fn new(decoder: &Decoder, memory: &Tensor, shape: Shape) -> Self {
        let Shape { images, beams, max_length, .. } = shape;
        let working = &decoder.output().working;
        let options = (working.kind(), working.device());
        let nodes = attention_length((max_length * beams) as usize, working.device()) as i64;
        let count = (2 * beams).min(working.size()[0]);
        let mask_of_added = Tensor::full([beams, beams], f64::NEG_INFINITY, options).fill_diagonal_(0.0, false);
        let tensors = Tensors {
            inputs: Tensor::zeros([2, images * beams], (Kind::Int64, working.device())),
            cache: decoder.cache(memory, nodes),
            mask: Tensor::full([images, 1, beams, nodes], f64::NEG_INFINITY, options),
            mask_of_added,
            likeliest: Tensor::zeros([2, images * beams, count], (Kind::Float, working.device())),
        };
        let steps = (0..max_length).map(|_| Replay::default()).collect();
        Self { shape, tensors, steps, pool: GraphPool::default() }
    }
}

impl Tensors {
    /// Adds a node to each beam. Returns hidden states `[rows, width]`.
    fn hidden(&self, decoder: &Decoder, position: i64) -> Tensor {
        let (images, _, beams, nodes) = self.mask.size4().expect("the mask is [images, 1, beams, nodes]");
        let before = position * beams;
        if before > 0 {
            let mut seen = self.mask.view([images * beams, nodes]).narrow(1, 0, before);
            seen.copy_(&seen.index_select(0, &self.inputs.get(1)));
        }
        self.mask.narrow(3, before, beams).copy_(&self.mask_of_added);
        let mask = self.mask.narrow(3, 0, before + beams);
        decoder.step(&self.inputs.get(0).view([images, beams]), position, &mask, &self.cache, Mode::Evaluate)
    }

    /// Adds a node to each beam, and writes the likeliest tokens after it to `likeliest`.
    fn write_likeliest(&self, decoder: &Decoder, position: i64) {
        let logits = decoder.logits(&self.hidden(decoder, position));
        let (log_probabilities, tokens) = likeliest(&logits, self.likeliest.size()[2]);
        self.likeliest.get(0).copy_(&log_probabilities);
        self.likeliest.get(1).copy_(&tokens);
    }
}

/// A search in progress.
pub struct Replayed<'a> {
    decoder: &'a Decoder,
    workspace: RefMut<'a, Workspace>,
    position: i64,
}

impl<'a> Replayed<'a> {
    /// See [`Decoder::begin`].
    pub fn new(decoder: &'a Decoder, memory: &Tensor, beams: i64, max_length: i64) -> Self {
        let (images, memory_length, _) = memory.size3().expect("memory is [images, length, width]");
        let shape = Shape { images, memory_length, beams, max_length };
        let mut workspaces = decoder.workspaces.borrow_mut();
        let workspace = match workspaces.iter().position(|workspace| workspace.shape == shape) {
            Some(at) => {
                let workspace = workspaces.remove(at);
                workspace.tensors.cache.replace_memory(decoder, memory);
                workspace
            }
            None => Workspace::new(decoder, memory, shape),
        };
        workspaces.truncate(MAX_WORKSPACES - 1);
        workspaces.insert(0, workspace);
        let workspace = RefMut::map(workspaces, |workspaces| &mut workspaces[0]);
        Self { decoder, workspace, position: 0 }
    }

    /// Copies the inputs of a step to the GPU. Returns the position of the step.
    fn begin_step(&mut self, tokens: &[i64], sources: Option<&[i64]>) -> i64 {
        let rows = 0..tokens.len() as i64;
        let sources = sources.map_or_else(|| rows.collect(), <[i64]>::to_vec);
        let inputs = Tensor::from_slice(&[tokens, &sources].concat()).view([2, -1]);
        self.workspace.tensors.inputs.copy_(&inputs);
        self.position += 1;
        self.position - 1
    }
}

impl Steps for Replayed<'_> {
    fn next(&mut self, tokens: &[i64], sources: Option<&[i64]>) -> Tensor {
        let position = self.begin_step(tokens, sources);
        self.decoder.logits(&self.workspace.tensors.hidden(self.decoder, position))
    }

    fn likeliest(&mut self, tokens: &[i64], sources: Option<&[i64]>, count: i64) -> TopTokens {
        let position = self.begin_step(tokens, sources);
        let Workspace { tensors, steps, pool, .. } = &mut *self.workspace;
        let (_, rows, each) = tensors.likeliest.size3().expect("it is [2, rows, count]");
        assert_eq!(count, 2 * rows / tensors.mask.size()[0], "as many as beam search asks for");
        let device = tensors.inputs.device();
        steps[position as usize].run(device, pool, || tensors.write_likeliest(self.decoder, position));
        let values = Vec::<f32>::try_from(tensors.likeliest.flatten(0, -1)).expect("it is f32");
        let (log_probabilities, tokens) = values.split_at((rows * each) as usize);
        TopTokens {
            log_probabilities: log_probabilities.to_vec(),
            tokens: tokens.iter().map(|&token| token as i64).collect(),
            each: each as usize,
        }
    }
}
