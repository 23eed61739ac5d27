//! What the score is computed from; statistics of several captions add up.

use super::align::Alignment;
use super::matches::{Caption, Span};
use super::tables::Stage;

/// Weight of recall in the mean; that of precision is the rest.
const ALPHA: f64 = 0.85;
/// Exponent of fragmentation in the penalty.
const BETA: f64 = 0.2;
/// The largest penalty.
const GAMMA: f64 = 0.6;
/// Weight of a content word; that of a function word is the rest.
const DELTA: f64 = 0.75;

/// Weight of a word by the stage that matched it: exact, stem, synonym, paraphrase.
const WEIGHTS: [f64; 4] = [1.0, 0.6, 0.8, 0.6];

/// Of candidates and the references that they are aligned with.
#[derive(Debug, Clone, Default)]
pub(super) struct Statistics {
    candidate: SideStatistics,
    reference: SideStatistics,
    chunks: u64,
}

/// Of the captions of one side.
#[derive(Debug, Clone, Default)]
struct SideStatistics {
    words: Words,
    /// By stage.
    matched: [Words; WEIGHTS.len()],
}

/// Numbers of words.
#[derive(Debug, Clone, Copy, Default)]
struct Words {
    content: u64,
    function: u64,
}

impl Statistics {
    pub fn of(candidate: &Caption, reference: &Caption, alignment: &Alignment) -> Self {
        let matches = || alignment.matches.iter();
        Self {
            candidate: SideStatistics::of(candidate, matches().map(|found| (found.stage, found.candidate))),
            reference: SideStatistics::of(reference, matches().map(|found| (found.stage, found.reference))),
            chunks: alignment.chunks as u64,
        }
    }

    /// Adds those of one candidate. The chunk of one that is all of its reference is free here, too.
    pub fn add(&mut self, other: &Self) {
        self.candidate.add(&other.candidate);
        self.reference.add(&other.reference);
        if !other.is_one_chunk() {
            self.chunks += other.chunks;
        }
    }

    /// From 0 to 1.
    pub fn score(&self) -> f64 {
        let precision = self.candidate.weighted_share_matched();
        let recall = self.reference.weighted_share_matched();
        let mean = 1.0 / ((1.0 - ALPHA) / precision + ALPHA / recall);
        let fragmentation = if self.is_one_chunk() {
            0.0
        } else {
            self.chunks as f64 / ((self.candidate.words_matched() + self.reference.words_matched()) as f64 / 2.0)
        };
        // Not a number where nothing matches, which `max` makes 0.
        (mean * (1.0 - GAMMA * fragmentation.powf(BETA))).max(0.0)
    }

    /// Whether all words of both sides are matched, in the same order.
    fn is_one_chunk(&self) -> bool {
        self.candidate.is_matched() && self.reference.is_matched() && self.chunks == 1
    }
}

impl SideStatistics {
    fn of(caption: &Caption, matched: impl Iterator<Item = (Stage, Span)>) -> Self {
        let mut side = Self::default();
        caption.is_function_word.iter().for_each(|&is| side.words.count(is));
        for (stage, span) in matched {
            let words = &mut side.matched[stage as usize];
            caption.is_function_word[span.words()].iter().for_each(|&is| words.count(is));
        }
        side
    }

    fn add(&mut self, other: &Self) {
        self.words.add(other.words);
        self.matched.iter_mut().zip(other.matched).for_each(|(own, other)| own.add(other));
    }

    fn words_matched(&self) -> u64 {
        self.matched.iter().map(|words| words.content + words.function).sum()
    }

    fn is_matched(&self) -> bool {
        self.words_matched() == self.words.content + self.words.function
    }

    fn weighted_share_matched(&self) -> f64 {
        let by_stage = || self.matched.iter().zip(WEIGHTS);
        let content = by_stage().map(|(words, weight)| words.content as f64 * weight * DELTA);
        let function = by_stage().map(|(words, weight)| words.function as f64 * weight * (1.0 - DELTA));
        let matched: f64 = content.chain(function).sum();
        matched / (DELTA * self.words.content as f64 + (1.0 - DELTA) * self.words.function as f64)
    }
}

impl Words {
    fn count(&mut self, is_function_word: bool) {
        *(if is_function_word { &mut self.function } else { &mut self.content }) += 1;
    }

    fn add(&mut self, other: Self) {
        self.content += other.content;
        self.function += other.function;
    }
}
