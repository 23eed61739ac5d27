//! The worker: one process per device, a replica that follows the coordinator's plan.
//!
//! | room | what is in it |
//! |---|---|
//! | [`captioner`] | the model that is trained: encoder, decoder, beam search |
//! | [`clip`] | vision and text towers; the evaluator and the captioner's eyes |
//! | [`objective`] | what a stage minimises, one file per objective |
//! | [`optimizer`] | Adam, and the learning rate's schedule |
//! | [`collective`] | all-reduce, broadcast and gather between the ranks of a generation |
//! | [`data`] | annotation formats, decoding, the order of samples, the loader |
//! | [`text`] | tokens and vocabularies |
//! | [`nn`] | layers, and parameters in one flat buffer |
//! | [`trainer`] | the training thread, which executes directives |
//! | [`session`] | the connection to the coordinator |
//! | [`cli`] | one file per subcommand |
//!
//! libtorch lives on the training thread alone; the session lives on tokio; channels are the only bridge.

pub mod captioner;
pub mod cli;
pub mod clip;
pub mod collective;
pub mod data;
pub mod nn;
pub mod objective;
pub mod optimizer;
pub mod seeds;
pub mod session;
pub mod text;
pub mod trainer;
