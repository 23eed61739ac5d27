//! The worker: one process per device, a replica that follows the coordinator's plan.
//!
//! | room | what is in it |
//! |---|---|
//! | [`captioner`] | the model that is trained: encoder, decoder, beam search |
//! | [`models`] | which models a run has, what they start from, and what the frozen towers see |
//! | [`clip`] | vision and text towers; the evaluator and the captioner's eyes |
//! | [`objective`] | what a stage minimises, one file per objective |
//! | [`optimizer`] | Adam, and the learning rate's schedule |
//! | [`collective`] | all-reduce, broadcast and gather between the ranks of a generation |
//! | [`cuda`] | the part of libtorch that computes on GPUs, found and opened at run time |
//! | [`data`] | the order of samples, and the loader that prepares batches ahead |
//! | [`examination`] | captions of images that were not trained on, and their scores |
//! | [`export`] | what an exported folder holds besides weights, for transformers |
//! | [`sight`] | the feature stores that a run's models can use |
//! | [`tensors`] | between the bytes of files and libtorch's tensors |
//! | [`laps`] | where the time of a step goes |
//! | [`files`] | files and folders that appear only when they are complete |
//! | `forest` | captions as trees: what they have in common is computed once |
//! | `memory` | what the allocator does with memory that is freed |
//! | [`nn`] | layers, and parameters in one flat buffer |
//! | [`protocol`] | what a coordinator may tell a worker, and when |
//! | [`trainer`] | the training thread, which executes directives |
//! | [`session`] | the connection to the coordinator |
//! | [`cli`] | one file per subcommand |
//!
//! libtorch lives on the training thread alone; the session lives on tokio; channels are the only bridge.

pub mod caption_scorer;
pub mod captioner;
pub mod cli;
pub mod clip;
pub mod collective;
pub mod cuda;
pub mod data;
pub mod examination;
pub mod export;
pub mod files;
mod forest;
#[cfg(test)]
mod golden;
pub mod laps;
mod memory;
pub mod models;
pub mod nn;
pub mod objective;
pub mod optimizer;
pub mod protocol;
pub mod seeds;
pub mod session;
pub mod sight;
pub mod tensors;
#[cfg(test)]
mod testing;
pub mod trainer;
