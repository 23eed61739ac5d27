//! Names of training metrics, phases and domains, and the normalized names of splits.

/// The reward of each image's best candidate.
pub const REWARD_CHOSEN: &str = "reward_chosen";
/// The rewards of the other candidates.
pub const REWARD_REJECTED: &str = "reward_rejected";
/// The difference between the best reward and the mean of the others.
pub const REWARD_MARGIN: &str = "reward_margin";
/// 1 where the implicit reward prefers the chosen candidate to the weighted others, else 0.
pub const IMPLICIT_ACCURACY: &str = "implicit_accuracy";
/// log p - log p_ref of candidates, per token: an estimate of KL(policy || reference).
pub const KL: &str = "kl";
/// Entropy of the weights of an image's rejected candidates, in nats.
pub const GAMMA_ENTROPY: &str = "gamma_entropy";
/// The number of tokens of a candidate, end token included.
pub const CAPTION_LENGTH: &str = "caption_length";
/// The fraction of a candidate's tokens that repeat an earlier one.
pub const REPETITION: &str = "repetition";

/// The phases of a step.
pub const PHASES: [&str; 8] = ["load", "vision", "search", "reward", "reference", "learn", "all_reduce", "wait"];

/// nocaps' domains, as its annotations name them: how near an image's objects are to those of COCO.
pub const NOCAPS_DOMAINS: [&str; 3] = ["in-domain", "near-domain", "out-domain"];

/// Normalizes the name of a split of a data set to `train`, `val` or `test`; none for an unknown
/// name. Data sets have several names for the same split. Upper and lower case are the same.
#[must_use]
pub fn canonical_split(name: &str) -> Option<&'static str> {
    match name.to_ascii_lowercase().as_str() {
        "train" | "training" => Some("train"),
        "val" | "valid" | "validation" | "dev" => Some("val"),
        "test" | "testing" => Some("test"),
        _ => None,
    }
}
