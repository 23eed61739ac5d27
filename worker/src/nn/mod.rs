//! Building blocks of models: layers, parameters in one flat buffer, and CUDA graphs.
//!
//! | file | content |
//! |---|---|
//! | `layers` | linear layers, normalization, embeddings, attention, dropout |
//! | `lora` | a weight matrix that may have LoRA factors |
//! | `parameters` | all parameters of a model in one flat buffer, and the builder that creates them |
//! | `operators` | operators that this crate adds to libtorch, in C++ |
//! | `cuda_graph` | computations that are captured and replayed as CUDA graphs |
//! | `code_path` | whether a model uses the operations for a CPU or those for a GPU |

mod code_path;
mod cuda_graph;
mod layers;
mod lora;
mod operators;
mod parameters;

#[cfg(test)]
pub use code_path::on_gpu_path;
pub use code_path::uses_gpu_path;
pub use cuda_graph::{GraphPool, GraphedComputation, GraphedFunction};
pub use layers::{
    BatchNorm, Conv1d, DropoutMode, Embedding, LayerNorm, Linear, attention, cast_attention_mask, merge_heads,
    padded_attention_length, split_heads, split_projections, stack_projections,
};
pub use lora::LoraWeight;
pub use operators::{AdamUpdate, Parameter, adam, checked_call, linear, logits, logsumexp, token_log_probabilities};
pub use parameters::{Backend, GradientBuffer, ParameterBuilder, ParameterMismatchError, Parameters};
