//! Parameters in one flat buffer, and the few layers that both models are made of.

mod layers;
mod operators;
mod parameters;
mod ways;

pub use layers::{
    BatchNorm, Conv1d, Embedding, LayerNorm, Linear, Mode, attention, merge_heads, split_heads, split_parts,
    stack_parts,
};
pub use operators::{Matrix, Update, adam, linear, log_normalisers, logits, token_log_probabilities};
pub use parameters::{Backend, Builder, Gradient, Mismatch, Parameters};
#[cfg(test)]
pub use ways::as_on_gpus;
pub use ways::prefers_few_operations;
