//! The worker: one process per device, which executes the coordinator's directives.
//!
//! | module | content |
//! |---|---|
//! | **A run** | |
//! | [`coordinator_session`] | the gRPC session with the coordinator: joins, receives directives, sends reports and heartbeats, reconnects |
//! | [`trainer`] | the training thread, which executes directives: steps, evaluations, checkpoints |
//! | [`run_models`] | the captioner and the evaluators of a run: builds them, and computes the outputs of frozen encoders |
//! | [`split_evaluation`] | evaluates the models of a run: captions the images of a split, and scores these captions |
//! | [`data`] | the order of training samples, and the data loader that prefetches batches |
//! | [`feature_rows`] | the rows of feature stores: outputs of frozen encoders on disk, which a run reads instead of images |
//! | [`collective`] | all-reduce, broadcast and all-gather between the ranks of a generation, by NCCL or Gloo |
//! | **Models and losses** | |
//! | [`captioner`] | the model that generates captions: encoder, decoder, beam search |
//! | [`clip`] | CLIP: the captioner's vision encoder, and the evaluators |
//! | [`clip_scorer`] | CLIP-S and PAC-S of given captions, by the weights of an evaluator |
//! | [`objective`] | the losses of training stages, one file per objective |
//! | [`optimizer`] | Adam, and the learning rate schedule |
//! | [`nn`] | layers, and all parameters of a model in one flat buffer |
//! | `prefix_tree` | prefix trees of captions: common prefixes are computed once |
//! | [`export`] | the files of a folder for transformers, other than `config.json` and the weights |
//! | **Support** | |
//! | [`cli`] | the command line, one file per subcommand |
//! | [`cuda`] | loads libtorch's CUDA libraries at run time, and waits for a GPU |
//! | [`phase_timer`] | measures the duration of each phase of a training step |
//! | [`seeds`] | derives the seed of each use of random numbers from the run's seed |
//! | [`tensor_conversion`] | converts between the tensors of weight files and libtorch's tensors |
//! | [`atomic_files`] | creates folders that are complete or do not exist, and writes files that are synced to disk |
//! | `host_memory` | settings of the C allocator, which libtorch uses for tensors on a CPU |
//! | `errors` | an error with its causes as one line |
//! | `testing` | support for unit tests: their device, and the golden files |
//!
//! Only the training thread computes with libtorch. (Its data loader and its checkpoint saver have
//! threads of their own, which only copy tensors.) The session runs on tokio. Session and training
//! thread communicate over channels.

pub mod atomic_files;
pub mod captioner;
pub mod cli;
pub mod clip;
pub mod clip_scorer;
pub mod collective;
pub mod coordinator_session;
pub mod cuda;
pub mod data;
mod errors;
pub mod export;
pub mod feature_rows;
mod host_memory;
pub mod nn;
pub mod objective;
pub mod optimizer;
pub mod phase_timer;
mod prefix_tree;
pub mod run_models;
pub mod seeds;
pub mod split_evaluation;
pub mod tensor_conversion;
#[cfg(test)]
mod testing;
pub mod trainer;
