//! The names of measurements. They are fixed sets, because they become metric labels.

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

/// The summaries that a step reports.
pub const ALL: [&str; 8] =
    [REWARD_CHOSEN, REWARD_REJECTED, REWARD_MARGIN, IMPLICIT_ACCURACY, KL, GAMMA_ENTROPY, CAPTION_LENGTH, REPETITION];

/// The phases of a step.
pub const PHASES: [&str; 8] = ["load", "vision", "search", "reward", "reference", "learn", "all_reduce", "wait"];

/// The better direction of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The higher the better.
    Higher,
    /// The lower the better.
    Lower,
    /// Neither: it is only descriptive.
    Neither,
}

/// The scores of evaluations, with their better direction.
pub const EVALUATION: [(&str, Better); 28] = [
    // By the evaluator, from the image and from references.
    ("pac_s", Better::Higher),
    ("ref_pac_s", Better::Higher),
    ("clip_s", Better::Higher),
    ("ref_clip_s", Better::Higher),
    // Against references.
    ("bleu_1", Better::Higher),
    ("bleu_2", Better::Higher),
    ("bleu_3", Better::Higher),
    ("bleu_4", Better::Higher),
    ("meteor", Better::Higher),
    ("rouge_l", Better::Higher),
    ("cider", Better::Higher),
    ("spice", Better::Higher),
    // Retrieval of a caption's image among all, by the evaluator.
    ("retrieval_r1", Better::Higher),
    ("retrieval_r5", Better::Higher),
    ("retrieval_r10", Better::Higher),
    ("retrieval_mrr", Better::Higher),
    // Fluency.
    ("rep_1", Better::Lower),
    ("rep_2", Better::Lower),
    ("rep_3", Better::Lower),
    ("rep_4", Better::Lower),
    ("incorrect_endings", Better::Lower),
    ("distinct_1", Better::Neither),
    ("distinct_2", Better::Neither),
    ("vocabulary_size", Better::Neither),
    ("mean_length", Better::Neither),
    // By the judge of the synthetic data set.
    ("grammatical", Better::Higher),
    ("truthful", Better::Higher),
    ("details", Better::Higher),
];

/// The retrieval scores among them.
pub const RETRIEVAL: [&str; 4] = ["retrieval_r1", "retrieval_r5", "retrieval_r10", "retrieval_mrr"];

/// The better direction of a score. Scores that are not in [`EVALUATION`] are those of evaluators
/// with names of their own, or their retrieval scores: higher is better.
#[must_use]
pub fn better(name: &str) -> Better {
    EVALUATION.iter().find(|(known, _)| *known == name).map_or(Better::Higher, |(_, better)| *better)
}

/// nocaps' domains, as its annotations name them: how near an image's objects are to those of COCO.
pub const DOMAINS: [&str; 3] = ["in-domain", "near-domain", "out-domain"];

/// The split `train`, `val` or `test` that `name` means; none for other names. Data sets have
/// several names for the same split; case is ignored.
#[must_use]
pub fn split(name: &str) -> Option<&'static str> {
    match name.to_ascii_lowercase().as_str() {
        "train" | "training" => Some("train"),
        "val" | "valid" | "validation" | "dev" => Some("val"),
        "test" | "testing" => Some("test"),
        _ => None,
    }
}
