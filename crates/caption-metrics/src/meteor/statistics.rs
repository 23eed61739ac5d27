//! The statistics from which the score is computed. Statistics of several captions can be added.

use super::alignment::Alignment;
use super::matcher::{Caption, WordSpan};
use super::tables::MatchStage;

/// METEOR's alpha: the weight of recall in the mean. Precision has the rest.
const RECALL_WEIGHT: f64 = 0.85;
/// METEOR's beta: the exponent of fragmentation in the penalty.
const FRAGMENTATION_EXPONENT: f64 = 0.2;
/// METEOR's gamma: the maximal penalty.
const MAX_PENALTY: f64 = 0.6;
/// METEOR's delta: the weight of a content word. A function word has the rest.
const CONTENT_WORD_WEIGHT: f64 = 0.75;

/// The weight of a matched word by stage: exact, stem, synonym, paraphrase.
const STAGE_WEIGHTS: [f64; 4] = [1.0, 0.6, 0.8, 0.6];

/// The statistics of candidates and the references that they are aligned with.
#[derive(Debug, Clone, Default)]
pub(super) struct Statistics {
    candidate: CaptionStatistics,
    reference: CaptionStatistics,
    chunks: u64,
}

/// The statistics of the candidates, or of the references.
#[derive(Debug, Clone, Default)]
struct CaptionStatistics {
    words: WordCounts,
    /// Matched words, by stage.
    matched: [WordCounts; STAGE_WEIGHTS.len()],
}

/// Numbers of content words and function words.
#[derive(Debug, Clone, Copy, Default)]
struct WordCounts {
    content: u64,
    function: u64,
}

impl Statistics {
    pub fn from_alignment(candidate: &Caption, reference: &Caption, alignment: &Alignment) -> Self {
        let matches = || alignment.matches.iter();
        Self {
            candidate: CaptionStatistics::new(candidate, matches().map(|matched| (matched.stage, matched.candidate))),
            reference: CaptionStatistics::new(reference, matches().map(|matched| (matched.stage, matched.reference))),
            chunks: alignment.chunks as u64,
        }
    }

    /// Adds the statistics of one candidate. A single chunk that covers both captions is not
    /// counted.
    pub fn add(&mut self, other: &Self) {
        self.candidate.add(&other.candidate);
        self.reference.add(&other.reference);
        if !other.is_complete_single_chunk() {
            self.chunks += other.chunks;
        }
    }

    /// The score, from 0 to 1.
    pub fn score(&self) -> f64 {
        let precision = self.candidate.weighted_matched_fraction();
        let recall = self.reference.weighted_matched_fraction();
        let mean = 1.0 / ((1.0 - RECALL_WEIGHT) / precision + RECALL_WEIGHT / recall);
        let fragmentation = if self.is_complete_single_chunk() {
            0.0
        } else {
            self.chunks as f64 / ((self.candidate.matched_words() + self.reference.matched_words()) as f64 / 2.0)
        };
        // If nothing matches, the fragmentation is 0 / 0 and the product NaN; `max` makes it 0.
        (mean * (1.0 - MAX_PENALTY * fragmentation.powf(FRAGMENTATION_EXPONENT))).max(0.0)
    }

    /// Whether all words of both captions are matched, in the same order.
    fn is_complete_single_chunk(&self) -> bool {
        self.candidate.is_completely_matched() && self.reference.is_completely_matched() && self.chunks == 1
    }
}

impl CaptionStatistics {
    fn new(caption: &Caption, matched: impl Iterator<Item = (MatchStage, WordSpan)>) -> Self {
        let mut statistics = Self::default();
        caption.is_function_word.iter().for_each(|&is_function_word| statistics.words.count(is_function_word));
        for (stage, span) in matched {
            let words = &mut statistics.matched[stage as usize];
            caption.is_function_word[span.words()].iter().for_each(|&is_function_word| words.count(is_function_word));
        }
        statistics
    }

    fn add(&mut self, other: &Self) {
        self.words.add(other.words);
        self.matched.iter_mut().zip(other.matched).for_each(|(own, other)| own.add(other));
    }

    fn matched_words(&self) -> u64 {
        self.matched.iter().map(|words| words.content + words.function).sum()
    }

    fn is_completely_matched(&self) -> bool {
        self.matched_words() == self.words.content + self.words.function
    }

    fn weighted_matched_fraction(&self) -> f64 {
        let by_stage = || self.matched.iter().zip(STAGE_WEIGHTS);
        let content = by_stage().map(|(words, weight)| words.content as f64 * weight * CONTENT_WORD_WEIGHT);
        let function = by_stage().map(|(words, weight)| words.function as f64 * weight * (1.0 - CONTENT_WORD_WEIGHT));
        let matched: f64 = content.chain(function).sum();
        matched
            / (CONTENT_WORD_WEIGHT * self.words.content as f64
                + (1.0 - CONTENT_WORD_WEIGHT) * self.words.function as f64)
    }
}

impl WordCounts {
    fn count(&mut self, is_function_word: bool) {
        *(if is_function_word { &mut self.function } else { &mut self.content }) += 1;
    }

    fn add(&mut self, other: Self) {
        self.content += other.content;
        self.function += other.function;
    }
}
