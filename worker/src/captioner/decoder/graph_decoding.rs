//! Step-by-step decoding on a GPU with CUDA graphs.
//!
//! A step consists of about eighty small operations, and launching them takes longer than executing
//! them. So a step reads and writes static tensors, which persist between searches, and the
//! operations of each position are replayed as a CUDA graph.

use std::cell::{RefCell, RefMut};

use tch::{Kind, Tensor};

use super::gpt2::{Gpt2Model, KeyValueCache};
use crate::captioner::beam::{NextTokenLogits, TopTokens, top_log_probabilities};
use crate::nn::{DropoutMode, GraphPool, GraphedComputation, pad_to_mask_alignment};

/// Maximal number of workspaces: for training, for evaluation, and for the last batch of an
/// evaluation.
const MAX_WORKSPACES: usize = 3;

/// The static tensors and CUDA graphs for decoding with one shape.
pub struct DecodingWorkspace {
    shape: DecodingShape,
    tensors: StaticTensors,
    /// The graph of the step at each position.
    steps: Vec<GraphedComputation>,
    /// The memory pool that all graphs share.
    pool: GraphPool,
}

#[derive(Clone, Copy, PartialEq)]
struct DecodingShape {
    images: i64,
    memory_length: i64,
    beams: i64,
    max_length: i64,
}

/// The tensors that the graphs read and write. A row is one beam of one image.
struct StaticTensors {
    /// The last token of each row, and the index of the row that this row continues, `[2, rows]`.
    inputs: Tensor,
    cache: KeyValueCache,
    /// The attention mask of each beam, `[images, 1, beams, nodes]`: 0 for the nodes of its own
    /// caption, minus infinity elsewhere.
    mask: Tensor,
    /// The mask for the nodes that a step appends, one for each beam, `[beams, beams]`.
    appended_mask: Tensor,
    /// The log-probabilities of each row's most likely tokens, and the tokens, `[2, rows, count]`.
    /// They share one tensor, because each copy from a GPU synchronizes; 32-bit floats represent
    /// tokens exactly up to 2^24.
    top_tokens: Tensor,
}

impl DecodingWorkspace {
    fn new(model: &Gpt2Model, memory: &Tensor, shape: DecodingShape) -> Self {
        let DecodingShape { images, beams, max_length, .. } = shape;
        let working = &model.output_projection().working;
        let options = (working.kind(), working.device());
        let nodes = pad_to_mask_alignment((max_length * beams) as usize, working.device()) as i64;
        let count = (2 * beams).min(working.size()[0]);
        let appended_mask = Tensor::full([beams, beams], f64::NEG_INFINITY, options).fill_diagonal_(0.0, false);
        let tensors = StaticTensors {
            inputs: Tensor::zeros([2, images * beams], (Kind::Int64, working.device())),
            cache: model.new_cache(memory, nodes),
            mask: Tensor::full([images, 1, beams, nodes], f64::NEG_INFINITY, options),
            appended_mask,
            top_tokens: Tensor::zeros([2, images * beams, count], (Kind::Float, working.device())),
        };
        let steps = (0..max_length).map(|_| GraphedComputation::default()).collect();
        Self { shape, tensors, steps, pool: GraphPool::default() }
    }
}

impl StaticTensors {
    /// Appends a node to each beam. Returns hidden states `[rows, width]`.
    fn hidden_states(&self, model: &Gpt2Model, position: i64) -> Tensor {
        let (images, _, beams, nodes) = self.mask.size4().expect("the mask is [images, 1, beams, nodes]");
        let earlier_nodes = position * beams;
        if earlier_nodes > 0 {
            let mut mask = self.mask.view([images * beams, nodes]).narrow(1, 0, earlier_nodes);
            mask.copy_(&mask.index_select(0, &self.inputs.get(1)));
        }
        self.mask.narrow(3, earlier_nodes, beams).copy_(&self.appended_mask);
        let mask = self.mask.narrow(3, 0, earlier_nodes + beams);
        model.step(&self.inputs.get(0).view([images, beams]), position, &mask, &self.cache, DropoutMode::Evaluate)
    }

    /// Appends a node to each beam, and writes the most likely next tokens to `top_tokens`.
    fn write_top_tokens(&self, model: &Gpt2Model, position: i64) {
        let logits = model.logits(&self.hidden_states(model, position));
        let (log_probabilities, tokens) = top_log_probabilities(&logits, self.top_tokens.size()[2]);
        self.top_tokens.get(0).copy_(&log_probabilities);
        self.top_tokens.get(1).copy_(&tokens);
    }
}

/// Step-by-step decoding that replays CUDA graphs.
pub struct GraphDecoding<'a> {
    model: &'a Gpt2Model,
    workspace: RefMut<'a, DecodingWorkspace>,
    position: i64,
}

impl<'a> GraphDecoding<'a> {
    /// See [`Decoder::start_decoding`](super::Decoder::start_decoding). `workspaces` belong to
    /// `model`.
    pub fn new(
        model: &'a Gpt2Model,
        workspaces: &'a RefCell<Vec<DecodingWorkspace>>,
        memory: &Tensor,
        beams: i64,
        max_length: i64,
    ) -> Self {
        let (images, memory_length, _) = memory.size3().expect("memory is [images, length, width]");
        let shape = DecodingShape { images, memory_length, beams, max_length };
        let mut workspaces = workspaces.borrow_mut();
        let workspace = match workspaces.iter().position(|workspace| workspace.shape == shape) {
            Some(index) => {
                let workspace = workspaces.remove(index);
                workspace.tensors.cache.replace_memory(model, memory);
                workspace
            }
            None => DecodingWorkspace::new(model, memory, shape),
        };
        workspaces.truncate(MAX_WORKSPACES - 1);
        workspaces.insert(0, workspace);
        let workspace = RefMut::map(workspaces, |workspaces| &mut workspaces[0]);
        Self { model, workspace, position: 0 }
    }

    /// Copies the inputs of a step to the GPU. Returns the position of the step.
    fn copy_inputs(&mut self, tokens: &[i64], beam_indices: Option<&[i64]>) -> i64 {
        let rows = 0..tokens.len() as i64;
        let beam_indices = beam_indices.map_or_else(|| rows.collect(), <[i64]>::to_vec);
        let inputs = Tensor::from_slice(&[tokens, &beam_indices].concat()).view([2, -1]);
        self.workspace.tensors.inputs.copy_(&inputs);
        self.position += 1;
        self.position - 1
    }
}

impl NextTokenLogits for GraphDecoding<'_> {
    fn next_token_logits(&mut self, tokens: &[i64], beam_indices: Option<&[i64]>) -> Tensor {
        let position = self.copy_inputs(tokens, beam_indices);
        self.model.logits(&self.workspace.tensors.hidden_states(self.model, position))
    }

    fn top_tokens(&mut self, tokens: &[i64], beam_indices: Option<&[i64]>, count: i64) -> TopTokens {
        let position = self.copy_inputs(tokens, beam_indices);
        let DecodingWorkspace { tensors, steps, pool, .. } = &mut *self.workspace;
        let (_, rows, per_row) = tensors.top_tokens.size3().expect("the top tokens are [2, rows, count]");
        assert_eq!(count, 2 * rows / tensors.mask.size()[0], "the graphs compute 2 * beams tokens per row");
        let device = tensors.inputs.device();
        steps[position as usize].run(device, pool, || tensors.write_top_tokens(self.model, position));
        let values = Vec::<f32>::try_from(tensors.top_tokens.flatten(0, -1)).expect("the top tokens are f32");
        let (log_probabilities, tokens) = values.split_at((rows * per_row) as usize);
        TopTokens {
            log_probabilities: log_probabilities.to_vec(),
            tokens: tokens.iter().map(|&token| token as i64).collect(),
            per_row: per_row as usize,
        }
    }
}
