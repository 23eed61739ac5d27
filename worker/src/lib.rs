//! The worker: one process per device, which executes the coordinator's directives.
//!
//! | module | content |
//! |---|---|
//! | [`captioner`] | the model that is trained: encoder, decoder, beam search |
//! | [`models`] | the models of a run, their sources, and the frozen encoders |
//! | [`clip`] | CLIP: the captioner's vision encoder, and the evaluators |
//! | [`objective`] | the losses of training stages, one file per objective |
//! | [`optimizer`] | Adam, and the learning rate schedule |
//! | [`collective`] | all-reduce, broadcast and gather between the ranks of a generation |
//! | [`cuda`] | loads libtorch's CUDA libraries at run time |
//! | [`data`] | the order of samples, and the loader that prefetches batches |
//! | [`caption_evaluator`] | the caption evaluator: captions of other images, and their scores |
//! | [`export`] | the files of an exported folder besides weights, for transformers |
//! | [`feature_source`] | the feature stores that a run's models can use |
//! | [`tensors`] | conversions between the bytes of files and libtorch's tensors |
//! | [`phase_timer`] | the phase timer of a step |
//! | `errors` | messages of errors with their causes |
//! | [`files`] | atomic files and folders |
//! | `prefix_tree` | prefix trees of captions: common prefixes are computed once |
//! | `memory` | settings of the C allocator |
//! | [`nn`] | layers, and parameters in one flat buffer |
//! | [`protocol`] | validation of the coordinator's directives |
//! | [`trainer`] | the training thread, which executes directives |
//! | [`session`] | the connection to the coordinator |
//! | [`cli`] | one file per subcommand |
//!
//! Only the training thread uses libtorch; the session runs on tokio; they communicate over
//! channels.

pub mod caption_evaluator;
pub mod caption_scorer;
pub mod captioner;
pub mod cli;
pub mod clip;
pub mod collective;
pub mod cuda;
pub mod data;
mod errors;
pub mod export;
pub mod feature_source;
pub mod files;
#[cfg(test)]
mod golden;
mod memory;
pub mod models;
pub mod nn;
pub mod objective;
pub mod optimizer;
pub mod phase_timer;
mod prefix_tree;
pub mod protocol;
pub mod seeds;
pub mod session;
pub mod tensors;
#[cfg(test)]
mod testing;
pub mod trainer;
