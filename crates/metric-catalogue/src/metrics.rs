//! The metrics of training steps and of evaluations. Run files, guards, the journal, Prometheus,
//! the page, reports and documents take names and descriptions from this table.

use crate::names;

/// What a metric is computed in (training steps or evaluations), and from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Training steps of `scst` and `dico` stages.
    RewardedStep,
    /// Training steps of `dico` stages.
    DicoStep,
    /// Evaluations: the evaluator's embeddings.
    Evaluator,
    /// Evaluations: the references of the images.
    References,
    /// Evaluations: the captions alone.
    Captions,
    /// Evaluations: the scene graphs of the synthetic data set, `data.scenes`.
    Scenes,
}

impl Source {
    /// Whether training steps report it, rather than evaluations.
    #[must_use]
    pub const fn is_step(self) -> bool {
        matches!(self, Self::RewardedStep | Self::DicoStep)
    }
}

/// Whether higher or lower values of a metric are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Higher values are better.
    HigherIsBetter,
    /// Lower values are better.
    LowerIsBetter,
    /// The metric is descriptive: neither direction is better.
    Neutral,
}

/// A metric: a statistic of training steps or a score of evaluations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its name in run files, in the journal and in labels of Prometheus.
    pub name: &'static str,
    /// Its name on pages and in reports.
    pub label: &'static str,
    /// What it is computed in and from.
    pub source: Source,
    /// Which values are better.
    pub direction: Direction,
    /// The Prometheus gauge of its mean in the last step; none if there is no such gauge.
    pub gauge: Option<&'static str>,
    /// Its definition, for documents.
    pub definition: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The lowest and the highest possible value; none where there is no such bound.
    pub range: [Option<f64>; 2],
    /// Typical values, for documents.
    pub typical: &'static str,
}

/// The metric of this name.
#[must_use]
pub fn metric(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// The direction of an evaluation metric. A name that is not in [`METRICS`] is the score of an
/// evaluator with its own name, or one of its retrieval metrics: higher is better.
#[must_use]
pub fn direction(name: &str) -> Direction {
    metric(name).map_or(Direction::HigherIsBetter, |metric| metric.direction)
}

/// The label of a metric, or of another value of a step; none if it has none of its own.
#[must_use]
pub fn label(name: &str) -> Option<&'static str> {
    let value = || STEP_VALUES.iter().find(|value| value.name == name).map(|value| value.label);
    metric(name).map(|metric| metric.label).or_else(value)
}

/// A value that each training step reports besides its metrics. Rules of guards cannot use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepValue {
    /// Its name in the journal.
    pub name: &'static str,
    /// Its name on pages and in reports.
    pub label: &'static str,
    /// Its definition, for documents.
    pub definition: &'static str,
}

/// The values of a step besides its metrics.
pub const STEP_VALUES: [StepValue; 7] = [
    StepValue { name: "loss", label: "Loss", definition: "Loss per image or token." },
    StepValue { name: "learning_rate", label: "Learning rate", definition: "Learning rate of the step." },
    StepValue { name: "gradient_norm", label: "Gradient norm", definition: "Norm of the gradient before clipping." },
    StepValue { name: "images_per_second", label: "Throughput", definition: "Images per second, over all workers." },
    StepValue { name: "seconds", label: "Step time", definition: "Duration of a step on the slowest worker." },
    StepValue {
        name: "all_reduce_seconds",
        label: "All-reduce",
        definition: "Longest time of a worker in the all-reduce.",
    },
    StepValue {
        name: "lag_seconds",
        label: "Straggler lag",
        definition: "Compute time of the slowest worker minus the average of the others.",
    },
];

const fn bounded(low: f64, high: f64) -> [Option<f64>; 2] {
    [Some(low), Some(high)]
}

/// The range of metrics that are 0 or above.
const NON_NEGATIVE: [Option<f64>; 2] = [Some(0.0), None];
/// The range of metrics without bounds.
const ANY: [Option<f64>; 2] = [None, None];

/// All metrics: those of training steps first, then those of evaluations. The order is that of
/// documents.
pub const METRICS: [Metric; 36] = [
    Metric {
        name: names::REWARD_CHOSEN,
        label: "Reward of the best candidate",
        source: Source::RewardedStep,
        direction: Direction::Neutral,
        gauge: None,
        definition: "Reward of each image's candidate with the highest reward.",
        unit: "weighted sum of the rewards",
        range: ANY,
        typical: "0.75 to 0.9 for `{ pac_s: 1 }` on photographs",
    },
    Metric {
        name: names::REWARD_REJECTED,
        label: "Reward of the other candidates",
        source: Source::RewardedStep,
        direction: Direction::Neutral,
        gauge: None,
        definition: "Rewards of the other candidates.",
        unit: "weighted sum of the rewards",
        range: ANY,
        typical: "0.02 to 0.1 below `reward_chosen` for `{ pac_s: 1 }`",
    },
    Metric {
        name: names::REWARD_MARGIN,
        label: "Reward margin",
        source: Source::RewardedStep,
        direction: Direction::Neutral,
        gauge: Some("dico_reward_margin"),
        definition: "Reward of the chosen candidate minus the mean reward of the others.",
        unit: "weighted sum of the rewards",
        range: NON_NEGATIVE,
        typical: "0.02 to 0.1 for `{ pac_s: 1 }`",
    },
    Metric {
        name: names::IMPLICIT_ACCURACY,
        label: "Implicit accuracy",
        source: Source::DicoStep,
        direction: Direction::Neutral,
        gauge: Some("dico_implicit_accuracy"),
        definition: "1 where the implicit reward, the log-probability against the reference, prefers the chosen candidate to \
                     the weighted others, else 0. The mean is a share.",
        unit: "share of images",
        range: bounded(0.0, 1.0),
        typical: "0.5 in the first steps, 0.6 to 0.9 later",
    },
    Metric {
        name: names::KL,
        label: "KL to the reference",
        source: Source::RewardedStep,
        direction: Direction::Neutral,
        gauge: Some("dico_kl"),
        definition: "log p - log p_ref of a candidate divided by its number of tokens, an estimate of KL(policy || reference) \
                     per token. Single values may be below 0.",
        unit: "nats per token",
        range: ANY,
        typical: "0 in the first step, up to 0.5 later; above 1 the policy has left the reference",
    },
    Metric {
        name: names::GAMMA_ENTROPY,
        label: "Gamma entropy",
        source: Source::DicoStep,
        direction: Direction::Neutral,
        gauge: Some("dico_gamma_entropy"),
        definition: "Entropy of the weights of an image's rejected candidates.",
        unit: "nats",
        range: NON_NEGATIVE,
        typical: "0 (all weight on one) to ln(beams - 1) (equal weights), which is 1.39 for 5 beams",
    },
    Metric {
        name: names::CAPTION_LENGTH,
        label: "Caption length",
        source: Source::RewardedStep,
        direction: Direction::Neutral,
        gauge: Some("dico_caption_length"),
        definition: "Tokens of a candidate, end token included.",
        unit: "tokens",
        range: NON_NEGATIVE,
        typical: "10 to 15 on COCO; values near `decoding.max_length` mean captions that do not end",
    },
    Metric {
        name: names::REPETITION,
        label: "Repetition",
        source: Source::RewardedStep,
        direction: Direction::Neutral,
        gauge: Some("dico_repetition"),
        definition: "Share of a candidate's tokens that occur earlier in it.",
        unit: "share of tokens",
        range: bounded(0.0, 1.0),
        typical: "0.1 to 0.2 on COCO, where articles repeat; above 0.4 captions repeat phrases",
    },
    Metric {
        name: "pac_s",
        label: "PAC-S",
        source: Source::Evaluator,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "PAC-S: 2 max(cos, 0) of the embeddings of image and caption. Only with `evaluator.score: pac_s`.",
        unit: "mean score per image",
        range: bounded(0.0, 2.0),
        typical: "0.8 to 0.9 with the published weights on COCO",
    },
    Metric {
        name: "ref_pac_s",
        label: "RefPAC-S",
        source: Source::Evaluator,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "RefPAC-S: harmonic mean of `pac_s` and the highest cosine (at least 0) of the caption to a reference. Only \
                     with `evaluator.score: pac_s`.",
        unit: "mean score per image",
        range: bounded(0.0, 4.0 / 3.0),
        typical: "0.85 to 0.9 with the published weights on COCO",
    },
    Metric {
        name: "clip_s",
        label: "CLIP-S",
        source: Source::Evaluator,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "CLIP-S: 2.5 max(cos, 0) of the embeddings of image and caption. Only with `evaluator.score: clip_s`.",
        unit: "mean score per image",
        range: bounded(0.0, 2.5),
        typical: "0.7 to 0.85 with CLIP ViT-B/32 on COCO",
    },
    Metric {
        name: "ref_clip_s",
        label: "RefCLIP-S",
        source: Source::Evaluator,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "RefCLIP-S: harmonic mean of `clip_s` and the highest cosine (at least 0) of the caption to a reference. \
                     Only with `evaluator.score: clip_s`.",
        unit: "mean score per image",
        range: bounded(0.0, 5.0 / 3.5),
        typical: "0.75 to 0.85 with CLIP ViT-B/32 on COCO",
    },
    Metric {
        name: "bleu_1",
        label: "BLEU-1",
        source: Source::References,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "BLEU-1: clipped precision of words over the whole split, with brevity penalty.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.7 to 0.82 after `cross_entropy` on COCO",
    },
    Metric {
        name: "bleu_2",
        label: "BLEU-2",
        source: Source::References,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "BLEU-2: geometric mean of the precisions of 1- and 2-grams, with brevity penalty.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.55 to 0.65 after `cross_entropy` on COCO",
    },
    Metric {
        name: "bleu_3",
        label: "BLEU-3",
        source: Source::References,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "BLEU-3: geometric mean of the precisions of 1- to 3-grams, with brevity penalty.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.4 to 0.5 after `cross_entropy` on COCO",
    },
    Metric {
        name: "bleu_4",
        label: "BLEU-4",
        source: Source::References,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "BLEU-4: geometric mean of the precisions of 1- to 4-grams, with brevity penalty.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.3 to 0.4 after `cross_entropy` on COCO, lower after `dico`",
    },
    Metric {
        name: "meteor",
        label: "METEOR",
        source: Source::References,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "METEOR 1.5. Without `scoring.meteor_jar` and `scoring.meteor_paraphrases` it matches words and stems only, \
                     and is lower.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.25 to 0.3 on COCO",
    },
    Metric {
        name: "rouge_l",
        label: "ROUGE-L",
        source: Source::References,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "ROUGE-L: F-measure of the longest common subsequence with a reference.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.5 to 0.6 on COCO",
    },
    Metric {
        name: "cider",
        label: "CIDEr-D",
        source: Source::References,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "CIDEr-D: similarity of TF-IDF vectors of 1- to 4-grams with the references, with document frequencies of \
                     the evaluated split. Papers often report 100 times this value.",
        unit: "mean score per image",
        range: bounded(0.0, 10.0),
        typical: "1.0 to 1.4 after `cross_entropy` on COCO, lower after `dico`",
    },
    Metric {
        name: "spice",
        label: "SPICE",
        source: Source::References,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "SPICE: F-measure of scene graph tuples. Only with `scoring.spice_jar`.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.18 to 0.25 on COCO",
    },
    Metric {
        name: "retrieval_r1",
        label: "Retrieval R@1",
        source: Source::Evaluator,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "Recall at 1: share of captions whose own image is the most similar of all images of the split.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "depends on the number of images: 0.25 to 0.5 of COCO's 5,000",
    },
    Metric {
        name: "retrieval_r5",
        label: "Retrieval R@5",
        source: Source::Evaluator,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "Recall at 5: share of captions whose own image is among the 5 most similar.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "depends on the number of images: 0.5 to 0.75 of COCO's 5,000",
    },
    Metric {
        name: "retrieval_r10",
        label: "Retrieval R@10",
        source: Source::Evaluator,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "Recall at 10: share of captions whose own image is among the 10 most similar.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "depends on the number of images: 0.6 to 0.85 of COCO's 5,000",
    },
    Metric {
        name: "retrieval_mrr",
        label: "Retrieval MRR",
        source: Source::Evaluator,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "Mean reciprocal rank of the caption's own image among all images of the split.",
        unit: "mean of 1 / rank",
        range: bounded(0.0, 1.0),
        typical: "between `retrieval_r1` and `retrieval_r5`",
    },
    Metric {
        name: "rep_1",
        label: "Rep-1",
        source: Source::Captions,
        direction: Direction::LowerIsBetter,
        gauge: None,
        definition: "Mean number of words of a caption that occur earlier in it: all words less the different ones. It is a \
                     count, not a share.",
        unit: "words per caption",
        range: NON_NEGATIVE,
        typical: "1 to 2 on COCO, where articles repeat",
    },
    Metric {
        name: "rep_2",
        label: "Rep-2",
        source: Source::Captions,
        direction: Direction::LowerIsBetter,
        gauge: None,
        definition: "Mean number of 2-grams of a caption that occur earlier in it. It is a count, not a share.",
        unit: "2-grams per caption",
        range: NON_NEGATIVE,
        typical: "0.05 to 0.3 on COCO; above 1 captions repeat phrases",
    },
    Metric {
        name: "rep_3",
        label: "Rep-3",
        source: Source::Captions,
        direction: Direction::LowerIsBetter,
        gauge: None,
        definition: "Mean number of 3-grams of a caption that occur earlier in it. It is a count, not a share.",
        unit: "3-grams per caption",
        range: NON_NEGATIVE,
        typical: "0 to 0.1 on COCO; above 0.5 captions repeat phrases",
    },
    Metric {
        name: "rep_4",
        label: "Rep-4",
        source: Source::Captions,
        direction: Direction::LowerIsBetter,
        gauge: None,
        definition: "Mean number of 4-grams of a caption that occur earlier in it. It is a count, not a share.",
        unit: "4-grams per caption",
        range: NON_NEGATIVE,
        typical: "0 to 0.05 on COCO; above 0.5 captions repeat phrases",
    },
    Metric {
        name: "incorrect_endings",
        label: "Incorrect endings",
        source: Source::Captions,
        direction: Direction::LowerIsBetter,
        gauge: None,
        definition: "Share of captions whose last word cannot end a caption, such as an article or a preposition.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "0 to 0.01; above 0.05 captions break off",
    },
    Metric {
        name: "distinct_1",
        label: "Distinct-1",
        source: Source::Captions,
        direction: Direction::Neutral,
        gauge: None,
        definition: "Different words of all captions together divided by all their words. It falls as the split grows.",
        unit: "share of words",
        range: bounded(0.0, 1.0),
        typical: "0.01 to 0.03 for COCO's 5,000 captions",
    },
    Metric {
        name: "distinct_2",
        label: "Distinct-2",
        source: Source::Captions,
        direction: Direction::Neutral,
        gauge: None,
        definition: "Different 2-grams of all captions together divided by all their 2-grams. It falls as the split grows.",
        unit: "share of 2-grams",
        range: bounded(0.0, 1.0),
        typical: "0.05 to 0.15 for COCO's 5,000 captions",
    },
    Metric {
        name: "vocabulary_size",
        label: "Vocabulary size",
        source: Source::Captions,
        direction: Direction::Neutral,
        gauge: None,
        definition: "Number of different words of all captions together.",
        unit: "words",
        range: NON_NEGATIVE,
        typical: "500 to 1,500 for COCO's 5,000 captions",
    },
    Metric {
        name: "mean_length",
        label: "Mean length",
        source: Source::Captions,
        direction: Direction::Neutral,
        gauge: None,
        definition: "Mean number of words of a caption. Punctuation does not count.",
        unit: "words per caption",
        range: NON_NEGATIVE,
        typical: "9 to 11 after `cross_entropy` on COCO, more after `dico`",
    },
    Metric {
        name: "grammatical",
        label: "Grammatical",
        source: Source::Scenes,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "Share of captions that follow the grammar of the synthetic data set. Only with `data.scenes`.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "0.95 to 1 in the demo",
    },
    Metric {
        name: "truthful",
        label: "Truthful",
        source: Source::Scenes,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "Share of captions of which every statement holds of the scene. Only with `data.scenes`.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "0.95 to 1 in the demo",
    },
    Metric {
        name: "details",
        label: "Details",
        source: Source::Scenes,
        direction: Direction::HigherIsBetter,
        gauge: None,
        definition: "Mean number of objects, colours, sizes and relations that a caption states. Only with `data.scenes`.",
        unit: "statements per caption",
        range: NON_NEGATIVE,
        typical: "4 after `cross_entropy` and 7.5 after `dico` in the demo",
    },
];

/// The number of metrics of training steps.
const STEP_METRIC_COUNT: usize = 8;

/// The names of metrics `first..first + N` of the table.
const fn table_names<const N: usize>(first: usize) -> [&'static str; N] {
    let mut names = [""; N];
    let mut index = 0;
    while index < N {
        names[index] = METRICS[first + index].name;
        index += 1;
    }
    names
}

/// The names of the metrics of training steps. A step of a `dico` stage reports a summary of each,
/// one of an `scst` stage those of [`Source::RewardedStep`], others none.
pub const TRAINING_METRICS: [&str; STEP_METRIC_COUNT] = table_names(0);

/// The names of the metrics of evaluations.
pub const EVALUATION_METRICS: [&str; METRICS.len() - STEP_METRIC_COUNT] = table_names(STEP_METRIC_COUNT);

/// The names of the retrieval metrics, which are among [`EVALUATION_METRICS`].
pub const RETRIEVAL_METRICS: [&str; 4] = ["retrieval_r1", "retrieval_r5", "retrieval_r10", "retrieval_mrr"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_steps_come_first_and_names_are_unique() {
        assert!(METRICS.iter().take(STEP_METRIC_COUNT).all(|metric| metric.source.is_step()));
        assert!(!METRICS.iter().skip(STEP_METRIC_COUNT).any(|metric| metric.source.is_step()));
        let mut names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        names.extend(STEP_VALUES.iter().map(|value| value.name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(RETRIEVAL_METRICS.iter().all(|name| EVALUATION_METRICS.contains(name)));
    }
}
