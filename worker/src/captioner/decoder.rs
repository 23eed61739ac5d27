//! The captioner's decoder: a GPT-2 with cross-attention, and its step-by-step decoding.
//!
//! | file | content |
//! |---|---|
//! | `gpt2` | the model, and its KV cache |
//! | `incremental_decoding` | step-by-step decoding on a CPU, and with dropout also on a GPU |
//! | `graph_decoding` | step-by-step decoding on a GPU with CUDA graphs |

mod gpt2;
mod graph_decoding;
mod incremental_decoding;

use std::cell::RefCell;

use tch::Tensor;
use weights::CaptionerConfig;

use super::beam::NextTokenLogits;
use super::initialization::CaptionerInit;
use crate::nn::{DropoutMode, MixedPrecisionParameter, ParameterBuilder, uses_gpu_path};
use crate::prefix_tree::PrefixTreeBatch;
use gpt2::Gpt2Model;
use graph_decoding::{DecodingWorkspace, GraphDecoding};
use incremental_decoding::IncrementalDecoding;

/// The decoder: the model with the workspaces of its step-by-step decoding.
pub struct Decoder {
    model: Gpt2Model,
    /// Workspaces of decoding on a GPU, the most recently used first. They hold CUDA graphs, which
    /// contain the addresses of the model's parameters.
    workspaces: RefCell<Vec<DecodingWorkspace>>,
}

impl Decoder {
    pub fn new(builder: &mut ParameterBuilder, sizes: &CaptionerConfig, initial: CaptionerInit) -> Self {
        Self { model: Gpt2Model::new(builder, sizes, initial), workspaces: RefCell::default() }
    }

    /// See [`Gpt2Model::forward`].
    pub fn forward(&self, captions: &PrefixTreeBatch, memory: &Tensor, mode: DropoutMode) -> Tensor {
        self.model.forward(captions, memory, mode)
    }

    /// The output projection, `[vocabulary, width]`.
    pub fn output_projection(&self) -> &MixedPrecisionParameter {
        self.model.output_projection()
    }

    /// Starts step-by-step decoding of `beams` captions of at most `max_length` tokens, begin and
    /// end tokens included, for each image of `memory`, `[images, memory length, width]`.
    pub fn start_decoding(
        &self,
        memory: &Tensor,
        beams: i64,
        max_length: i64,
        mode: DropoutMode,
    ) -> Box<dyn NextTokenLogits + '_> {
        // With dropout, a replayed CUDA graph would repeat the same random numbers.
        if uses_gpu_path(memory.device()) && mode.probability() == 0.0 {
            return Box::new(GraphDecoding::new(&self.model, &self.workspaces, memory, beams, max_length));
        }
        Box::new(IncrementalDecoding::new(&self.model, memory, beams, max_length, mode))
    }
}
