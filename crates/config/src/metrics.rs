//! What a run measures: the statistics of training steps and the scores of evaluations, each with
//! its definition, its unit, the values that it can have and those that it usually has.

use statistics::names::{self, MetricDirection};

/// Where a metric comes from, and what it needs.
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
    pub fn is_step(self) -> bool {
        matches!(self, Self::RewardedStep | Self::DicoStep)
    }
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its name in run files, in the journal and in Prometheus labels.
    pub name: &'static str,
    /// Where it comes from.
    pub source: Source,
    /// What it is.
    pub definition: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The lowest and the highest value that it can have, where there is such a bound.
    pub range: [Option<f64>; 2],
    /// Values that it usually has.
    pub typical: &'static str,
}

impl Metric {
    /// In which direction it gets better; statistics of steps only describe.
    #[must_use]
    pub fn better(&self) -> MetricDirection {
        names::EVALUATION_METRICS
            .iter()
            .find(|(name, _)| *name == self.name)
            .map_or(MetricDirection::Neutral, |(_, better)| *better)
    }
}

/// The metric of this name.
#[must_use]
pub fn metric(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

const fn bounded(low: f64, high: f64) -> [Option<f64>; 2] {
    [Some(low), Some(high)]
}

/// From 0 up.
const COUNT: [Option<f64>; 2] = [Some(0.0), None];
const ANY: [Option<f64>; 2] = [None, None];

/// All metrics: statistics of steps, then scores of evaluations. The order is that of the
/// reference.
pub const METRICS: &[Metric] = &[
    Metric {
        name: names::REWARD_CHOSEN,
        source: Source::RewardedStep,
        definition: "Reward of each image's candidate with the highest reward.",
        unit: "weighted sum of the rewards",
        range: ANY,
        typical: "0.75 to 0.9 for `{ pac_s: 1 }` on photographs",
    },
    Metric {
        name: names::REWARD_REJECTED,
        source: Source::RewardedStep,
        definition: "Rewards of the other candidates.",
        unit: "weighted sum of the rewards",
        range: ANY,
        typical: "0.02 to 0.1 below `reward_chosen` for `{ pac_s: 1 }`",
    },
    Metric {
        name: names::REWARD_MARGIN,
        source: Source::RewardedStep,
        definition: "Reward of the chosen candidate minus the mean reward of the others.",
        unit: "weighted sum of the rewards",
        range: COUNT,
        typical: "0.02 to 0.1 for `{ pac_s: 1 }`",
    },
    Metric {
        name: names::IMPLICIT_ACCURACY,
        source: Source::DicoStep,
        definition: "1 where the implicit reward, the log-probability against the reference, prefers the chosen candidate to \
                     the weighted others, else 0. The mean is a share.",
        unit: "share of images",
        range: bounded(0.0, 1.0),
        typical: "0.5 in the first steps, 0.6 to 0.9 later",
    },
    Metric {
        name: names::KL,
        source: Source::RewardedStep,
        definition: "log p - log p_ref of a candidate divided by its number of tokens, an estimate of KL(policy || reference) \
                     per token. Single values may be below 0.",
        unit: "nats per token",
        range: ANY,
        typical: "0 in the first step, up to 0.5 later; above 1 the policy has left the reference",
    },
    Metric {
        name: names::GAMMA_ENTROPY,
        source: Source::DicoStep,
        definition: "Entropy of the weights of an image's rejected candidates.",
        unit: "nats",
        range: COUNT,
        typical: "0 (all weight on one) to ln(beams - 1) (equal weights), which is 1.39 for 5 beams",
    },
    Metric {
        name: names::CAPTION_LENGTH,
        source: Source::RewardedStep,
        definition: "Tokens of a candidate, end token included.",
        unit: "tokens",
        range: COUNT,
        typical: "10 to 15 on COCO; values near `decoding.max_length` mean captions that do not end",
    },
    Metric {
        name: names::REPETITION,
        source: Source::RewardedStep,
        definition: "Share of a candidate's tokens that occur earlier in it.",
        unit: "share of tokens",
        range: bounded(0.0, 1.0),
        typical: "0.1 to 0.2 on COCO, where articles repeat; above 0.4 captions repeat phrases",
    },
    Metric {
        name: "pac_s",
        source: Source::Evaluator,
        definition: "PAC-S: 2 max(cos, 0) of the embeddings of image and caption. Only with `evaluator.score: pac_s`.",
        unit: "mean score per image",
        range: bounded(0.0, 2.0),
        typical: "0.8 to 0.9 with the published weights on COCO",
    },
    Metric {
        name: "ref_pac_s",
        source: Source::Evaluator,
        definition: "RefPAC-S: harmonic mean of `pac_s` and the highest cosine (at least 0) of the caption to a reference. Only \
                     with `evaluator.score: pac_s`.",
        unit: "mean score per image",
        range: bounded(0.0, 4.0 / 3.0),
        typical: "0.85 to 0.9 with the published weights on COCO",
    },
    Metric {
        name: "clip_s",
        source: Source::Evaluator,
        definition: "CLIP-S: 2.5 max(cos, 0) of the embeddings of image and caption. Only with `evaluator.score: clip_s`.",
        unit: "mean score per image",
        range: bounded(0.0, 2.5),
        typical: "0.7 to 0.85 with CLIP ViT-B/32 on COCO",
    },
    Metric {
        name: "ref_clip_s",
        source: Source::Evaluator,
        definition: "RefCLIP-S: harmonic mean of `clip_s` and the highest cosine (at least 0) of the caption to a reference. \
                     Only with `evaluator.score: clip_s`.",
        unit: "mean score per image",
        range: bounded(0.0, 5.0 / 3.5),
        typical: "0.75 to 0.85 with CLIP ViT-B/32 on COCO",
    },
    Metric {
        name: "bleu_1",
        source: Source::References,
        definition: "BLEU-1: clipped precision of words over the whole split, with brevity penalty.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.7 to 0.82 after `cross_entropy` on COCO",
    },
    Metric {
        name: "bleu_2",
        source: Source::References,
        definition: "BLEU-2: geometric mean of the precisions of 1- and 2-grams, with brevity penalty.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.55 to 0.65 after `cross_entropy` on COCO",
    },
    Metric {
        name: "bleu_3",
        source: Source::References,
        definition: "BLEU-3: geometric mean of the precisions of 1- to 3-grams, with brevity penalty.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.4 to 0.5 after `cross_entropy` on COCO",
    },
    Metric {
        name: "bleu_4",
        source: Source::References,
        definition: "BLEU-4: geometric mean of the precisions of 1- to 4-grams, with brevity penalty.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.3 to 0.4 after `cross_entropy` on COCO, lower after `dico`",
    },
    Metric {
        name: "meteor",
        source: Source::References,
        definition: "METEOR 1.5. Without `scoring.meteor_jar` and `scoring.meteor_paraphrases` it matches words and stems only, \
                     and is lower.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.25 to 0.3 on COCO",
    },
    Metric {
        name: "rouge_l",
        source: Source::References,
        definition: "ROUGE-L: F-measure of the longest common subsequence with a reference.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.5 to 0.6 on COCO",
    },
    Metric {
        name: "cider",
        source: Source::References,
        definition: "CIDEr-D: similarity of TF-IDF vectors of 1- to 4-grams with the references, with document frequencies of \
                     the evaluated split. Papers often report 100 times this value.",
        unit: "mean score per image",
        range: bounded(0.0, 10.0),
        typical: "1.0 to 1.4 after `cross_entropy` on COCO, lower after `dico`",
    },
    Metric {
        name: "spice",
        source: Source::References,
        definition: "SPICE: F-measure of scene graph tuples. Only with `scoring.spice_jar`.",
        unit: "score, not percent",
        range: bounded(0.0, 1.0),
        typical: "0.18 to 0.25 on COCO",
    },
    Metric {
        name: "retrieval_r1",
        source: Source::Evaluator,
        definition: "Recall at 1: share of captions whose own image is the most similar of all images of the split.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "depends on the number of images: 0.25 to 0.5 of COCO's 5,000",
    },
    Metric {
        name: "retrieval_r5",
        source: Source::Evaluator,
        definition: "Recall at 5: share of captions whose own image is among the 5 most similar.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "depends on the number of images: 0.5 to 0.75 of COCO's 5,000",
    },
    Metric {
        name: "retrieval_r10",
        source: Source::Evaluator,
        definition: "Recall at 10: share of captions whose own image is among the 10 most similar.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "depends on the number of images: 0.6 to 0.85 of COCO's 5,000",
    },
    Metric {
        name: "retrieval_mrr",
        source: Source::Evaluator,
        definition: "Mean reciprocal rank of the caption's own image among all images of the split.",
        unit: "mean of 1 / rank",
        range: bounded(0.0, 1.0),
        typical: "between `retrieval_r1` and `retrieval_r5`",
    },
    Metric {
        name: "rep_1",
        source: Source::Captions,
        definition: "Mean number of words of a caption that occur earlier in it: all words less the different ones. It is a \
                     count, not a share.",
        unit: "words per caption",
        range: COUNT,
        typical: "1 to 2 on COCO, where articles repeat",
    },
    Metric {
        name: "rep_2",
        source: Source::Captions,
        definition: "Mean number of 2-grams of a caption that occur earlier in it. It is a count, not a share.",
        unit: "2-grams per caption",
        range: COUNT,
        typical: "0.05 to 0.3 on COCO; above 1 captions repeat phrases",
    },
    Metric {
        name: "rep_3",
        source: Source::Captions,
        definition: "Mean number of 3-grams of a caption that occur earlier in it. It is a count, not a share.",
        unit: "3-grams per caption",
        range: COUNT,
        typical: "0 to 0.1 on COCO; above 0.5 captions repeat phrases",
    },
    Metric {
        name: "rep_4",
        source: Source::Captions,
        definition: "Mean number of 4-grams of a caption that occur earlier in it. It is a count, not a share.",
        unit: "4-grams per caption",
        range: COUNT,
        typical: "0 to 0.05 on COCO; above 0.5 captions repeat phrases",
    },
    Metric {
        name: "incorrect_endings",
        source: Source::Captions,
        definition: "Share of captions whose last word cannot end a caption, such as an article or a preposition.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "0 to 0.01; above 0.05 captions break off",
    },
    Metric {
        name: "distinct_1",
        source: Source::Captions,
        definition: "Different words of all captions together divided by all their words. It falls as the split grows.",
        unit: "share of words",
        range: bounded(0.0, 1.0),
        typical: "0.01 to 0.03 for COCO's 5,000 captions",
    },
    Metric {
        name: "distinct_2",
        source: Source::Captions,
        definition: "Different 2-grams of all captions together divided by all their 2-grams. It falls as the split grows.",
        unit: "share of 2-grams",
        range: bounded(0.0, 1.0),
        typical: "0.05 to 0.15 for COCO's 5,000 captions",
    },
    Metric {
        name: "vocabulary_size",
        source: Source::Captions,
        definition: "Number of different words of all captions together.",
        unit: "words",
        range: COUNT,
        typical: "500 to 1,500 for COCO's 5,000 captions",
    },
    Metric {
        name: "mean_length",
        source: Source::Captions,
        definition: "Mean number of words of a caption. Punctuation does not count.",
        unit: "words per caption",
        range: COUNT,
        typical: "9 to 11 after `cross_entropy` on COCO, more after `dico`",
    },
    Metric {
        name: "grammatical",
        source: Source::Scenes,
        definition: "Share of captions that follow the grammar of the synthetic data set. Only with `data.scenes`.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "0.95 to 1 in the demo",
    },
    Metric {
        name: "truthful",
        source: Source::Scenes,
        definition: "Share of captions of which every statement holds of the scene. Only with `data.scenes`.",
        unit: "share of captions",
        range: bounded(0.0, 1.0),
        typical: "0.95 to 1 in the demo",
    },
    Metric {
        name: "details",
        source: Source::Scenes,
        definition: "Mean number of objects, colours, sizes and relations that a caption states. Only with `data.scenes`.",
        unit: "statements per caption",
        range: COUNT,
        typical: "4 after `cross_entropy` and 7.5 after `dico` in the demo",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_has_every_metric_that_is_reported_and_no_other() {
        let own =
            |step: bool| METRICS.iter().filter(move |metric| metric.source.is_step() == step).map(|metric| metric.name);
        assert_eq!(own(true).collect::<Vec<_>>(), names::TRAINING_METRICS);
        assert_eq!(own(false).collect::<Vec<_>>(), names::EVALUATION_METRICS.map(|(name, _)| name));
    }
}
