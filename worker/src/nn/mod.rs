//! Building blocks of models: layers, parameters in one flat buffer, and CUDA graphs.

mod code_path;
mod layers;
mod lora;
mod operators;
mod parameters;
mod replay;

#[cfg(test)]
pub use code_path::on_gpu_path;
pub use code_path::takes_gpu_path;
pub use layers::{
    BatchNorm, Conv1d, Embedding, LayerNorm, Linear, Mode, attention, attention_length, attention_mask, merge_heads,
    split_heads, split_parts, stack_parts,
};
pub use lora::Weight;
pub use operators::{Parameter, Update, adam, guarded, linear, log_normalisers, logits, token_log_probabilities};
pub use parameters::{Backend, Builder, Gradient, Mismatch, Parameters};
pub use replay::{GraphPool, Replay, ReplayedFunction};
