//! Parameters in one flat buffer, and the few layers that both models are made of.

mod layers;
mod parameters;

pub use layers::{
    BatchNorm, Conv1d, Embedding, LayerNorm, Linear, Mode, attention, causal_mask, merge_heads, split_heads,
    split_parts, stack_parts,
};
pub use parameters::{Builder, Gradient, Mismatch, Parameters};
