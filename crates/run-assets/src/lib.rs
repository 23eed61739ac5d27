//! The assets of a run: everything that its run file names and that programs read before they
//! compute. The coordinator checks the assets (`coordinator validate`), workers compute with them.
//! Both open them here, so that both find the same faults and report them in the same words. A
//! message begins with the key of the run file that names the asset.
//!
//! | module | content |
//! |---|---|
//! | `assets` | all assets that a command needs: to train, to evaluate a split, to encode images |
//! | `weight_sources` | the weights of a run's models, and which models share weights |
//! | `evaluator` | an evaluator of a run, with its vocabulary |
//! | `open_weights` | opens weights and model folders, and verifies their checksums |
//! | `vocabulary` | the vocabulary of models that are trained from scratch |
//! | `feature_stores` | the feature stores of a run's splits |
//! | `error` | errors |
//!
//! All functions block: call them from synchronous threads, never from asynchronous code.

mod assets;
mod error;
mod evaluator;
mod feature_stores;
mod open_weights;
mod vocabulary;
mod weight_sources;

pub use assets::{RunAssets, open_metrics};
pub use error::{Error, WeightsError};
pub use evaluator::Evaluator;
pub use feature_stores::{FeatureStores, expected_manifest, store_path};
pub use open_weights::{open_evaluator, open_folder};
pub use vocabulary::{initial_vocabulary, saved_vocabulary};
pub use weight_sources::{ClipSource, WeightSource, WeightSources};

#[cfg(test)]
mod tests;
