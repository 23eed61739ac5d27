//! An evaluator of a run.

use std::sync::Arc;

use config::{EvaluatorScore, NamedEvaluator};
use tokenizer::Vocabulary;

/// An evaluator of a run, with its vocabulary.
#[derive(Clone)]
pub struct Evaluator {
    /// Its name in rewards, which is also the name of its metric.
    pub name: String,
    /// The name of its metric that includes references.
    pub reference_metric: String,
    /// The name prefix of its retrieval metrics.
    pub retrieval_prefix: String,
    /// The score that its cosines are converted to.
    pub score: EvaluatorScore,
    /// Its settings in the run file, e.g. how it tokenizes texts.
    pub settings: config::Evaluator,
    /// Its vocabulary.
    pub vocabulary: Arc<Vocabulary>,
    /// The index of its CLIP: 0 for that of the primary evaluator, `i + 1` for
    /// [`WeightSources::other_clips`](crate::WeightSources::other_clips)`[i]`. Frozen evaluators
    /// with the same weights share a CLIP.
    pub clip_index: usize,
}

impl Evaluator {
    /// The evaluator `named` of a run file, with this vocabulary and the index of its CLIP.
    #[must_use]
    pub fn new(named: &NamedEvaluator<'_>, vocabulary: Arc<Vocabulary>, clip_index: usize) -> Self {
        Self {
            name: named.name.to_owned(),
            reference_metric: named.reference_metric(),
            retrieval_prefix: named.retrieval_prefix(),
            score: named.score(),
            settings: named.settings.clone(),
            vocabulary,
            clip_index,
        }
    }
}
