//! Building blocks of models: layers, parameters in one flat buffer, and CUDA graphs.
//!
//! | file | content |
//! |---|---|
//! | `layers` | linear layers, normalization, embeddings, attention, dropout |
//! | `lora` | [`LoraWeight`], a weight matrix that may have LoRA factors |
//! | `parameters` | [`Parameters`]: all parameters of a model in one flat buffer, on the device and in the precision of its [`Backend`]; and the builder that creates them |
//! | `operators` | operators that this crate adds to libtorch, in C++, and [`MixedPrecisionParameter`], the weights that they multiply with |
//! | `cuda_graph` | [`GraphedComputation`] and [`GraphedFunction`], which are captured once and then replayed as CUDA graphs |
//! | `code_path` | whether a model uses the operations for a CPU or those for a GPU |

mod code_path;
mod cuda_graph;
mod layers;
mod lora;
mod operators;
mod parameters;

pub use code_path::uses_gpu_path;
#[cfg(test)]
pub use code_path::with_forced_gpu_path;
pub use cuda_graph::{GraphPool, GraphedComputation, GraphedFunction};
pub use layers::{
    BatchNorm, DropoutMode, Embedding, LayerNorm, Linear, TransposedLinear, attention, cast_attention_mask,
    merge_heads, pad_to_mask_alignment, split_fused_projections, split_heads, view_fused_projections,
};
pub use lora::LoraWeight;
pub use operators::{
    AdamUpdate, MixedPrecisionParameter, adam, checked_call, linear, logits, logsumexp, token_log_probabilities,
};
pub use parameters::{Backend, GradientBuffer, ParameterBuilder, ParameterMismatchError, Parameters};
