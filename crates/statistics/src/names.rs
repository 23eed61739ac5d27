//! The names of metrics. They are fixed sets, because they become metric labels.

/// The reward of each image's best candidate.
pub const REWARD_CHOSEN: &str = "reward_chosen";
/// The rewards of the other candidates.
pub const REWARD_REJECTED: &str = "reward_rejected";
/// The difference between the best reward and the mean of the others.
pub const REWARD_MARGIN: &str = "reward_margin";
/// 1 where the implicit reward prefers the chosen candidate, else 0.
pub const IMPLICIT_ACCURACY: &str = "implicit_accuracy";
/// log p - log p_ref of candidates, per token: an estimate of KL(policy || reference).
pub const KL: &str = "kl";
/// Entropy of the weights over the rejected candidates, in nats.
pub const GAMMA_ENTROPY: &str = "gamma_entropy";
/// The number of tokens of a candidate, end token included.
pub const CAPTION_LENGTH: &str = "caption_length";
/// The fraction of a candidate's tokens that repeat an earlier one.
pub const REPETITION: &str = "repetition";

/// The metrics of training: a step reports a summary of each.
pub const TRAINING_METRICS: [&str; 8] =
    [REWARD_CHOSEN, REWARD_REJECTED, REWARD_MARGIN, IMPLICIT_ACCURACY, KL, GAMMA_ENTROPY, CAPTION_LENGTH, REPETITION];

/// The phases of a step.
pub const PHASES: [&str; 8] = ["load", "vision", "search", "reward", "reference", "learn", "all_reduce", "wait"];

/// Whether higher or lower values of a metric are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricDirection {
    /// Higher values are better.
    HigherIsBetter,
    /// Lower values are better.
    LowerIsBetter,
    /// The metric is descriptive: neither direction is better.
    Neutral,
}

/// The metrics of evaluations, each with its direction.
pub const EVALUATION_METRICS: [(&str, MetricDirection); 28] = [
    // Computed by the evaluator from the image and the references.
    ("pac_s", MetricDirection::HigherIsBetter),
    ("ref_pac_s", MetricDirection::HigherIsBetter),
    ("clip_s", MetricDirection::HigherIsBetter),
    ("ref_clip_s", MetricDirection::HigherIsBetter),
    // Captions against references.
    ("bleu_1", MetricDirection::HigherIsBetter),
    ("bleu_2", MetricDirection::HigherIsBetter),
    ("bleu_3", MetricDirection::HigherIsBetter),
    ("bleu_4", MetricDirection::HigherIsBetter),
    ("meteor", MetricDirection::HigherIsBetter),
    ("rouge_l", MetricDirection::HigherIsBetter),
    ("cider", MetricDirection::HigherIsBetter),
    ("spice", MetricDirection::HigherIsBetter),
    // Retrieval of a caption's image among all images, by the evaluator's embeddings.
    ("retrieval_r1", MetricDirection::HigherIsBetter),
    ("retrieval_r5", MetricDirection::HigherIsBetter),
    ("retrieval_r10", MetricDirection::HigherIsBetter),
    ("retrieval_mrr", MetricDirection::HigherIsBetter),
    // Fluency.
    ("rep_1", MetricDirection::LowerIsBetter),
    ("rep_2", MetricDirection::LowerIsBetter),
    ("rep_3", MetricDirection::LowerIsBetter),
    ("rep_4", MetricDirection::LowerIsBetter),
    ("incorrect_endings", MetricDirection::LowerIsBetter),
    ("distinct_1", MetricDirection::Neutral),
    ("distinct_2", MetricDirection::Neutral),
    ("vocabulary_size", MetricDirection::Neutral),
    ("mean_length", MetricDirection::Neutral),
    // The exact caption check of the synthetic data set.
    ("grammatical", MetricDirection::HigherIsBetter),
    ("truthful", MetricDirection::HigherIsBetter),
    ("details", MetricDirection::HigherIsBetter),
];

/// The retrieval metrics among [`EVALUATION_METRICS`].
pub const RETRIEVAL_METRICS: [&str; 4] = ["retrieval_r1", "retrieval_r5", "retrieval_r10", "retrieval_mrr"];

/// The direction of an evaluation metric. A name that is not in [`EVALUATION_METRICS`] is the score
/// of an evaluator with its own name, or one of its retrieval metrics: higher is better.
#[must_use]
pub fn metric_direction(name: &str) -> MetricDirection {
    EVALUATION_METRICS
        .iter()
        .find(|(metric, _)| *metric == name)
        .map_or(MetricDirection::HigherIsBetter, |(_, direction)| *direction)
}

/// nocaps' domains, as its annotations name them: how near an image's objects are to those of COCO.
pub const NOCAPS_DOMAINS: [&str; 3] = ["in-domain", "near-domain", "out-domain"];

/// Normalizes the name of a split to `train`, `val` or `test`; none for an unknown name. Data sets
/// have several names for the same split; case is ignored.
#[must_use]
pub fn canonical_split(name: &str) -> Option<&'static str> {
    match name.to_ascii_lowercase().as_str() {
        "train" | "training" => Some("train"),
        "val" | "valid" | "validation" | "dev" => Some("val"),
        "test" | "testing" => Some("test"),
        _ => None,
    }
}
