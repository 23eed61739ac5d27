//! BLEU (Papineni et al., ACL 2002), with the smoothing of pycocoevalcap's `bleu_scorer.py`.

use crate::ngrams::{self, MAX_ORDER};
use crate::{Corpus, Scores};

/// Added to numerators, so that the geometric mean for a caption without matches is not exactly 0.
const NUMERATOR_EPSILON: f64 = 1e-15;
/// Added to denominators to avoid division by zero.
const DENOMINATOR_EPSILON: f64 = 1e-9;

/// BLEU-1 to BLEU-4 (0 to 1), as `Bleu(4)` of pycocoevalcap: the geometric mean of clipped n-gram
/// precisions (`Papineni et al.`, "BLEU: a Method for Automatic Evaluation of Machine Translation",
/// ACL 2002), times the brevity penalty. A precision is `(correct + 1e-15) / (guess + 1e-9)`, from
/// the numbers of matching and of all n-grams of the candidate. The penalty is `exp(1 - 1 / ratio)`
/// if `ratio`, of candidate length to reference length, is below 1. The reference length is that of
/// the reference with the closest length (the shorter of two equally close ones).
///
/// Corpus values are computed from counts and lengths summed over the items. An item without
/// references matches nothing and has reference length 0, so that its n-grams lower the precisions
/// of the corpus.
#[must_use]
pub fn bleu(corpus: &Corpus) -> [Scores; 4] {
    let mut total = Statistics::default();
    let mut by_order = [(); MAX_ORDER].map(|()| Vec::with_capacity(corpus.len()));
    let mut builder = StatisticsBuilder::default();
    for (candidate, references) in corpus.words() {
        let statistics = builder.statistics(candidate, references);
        for (values, value) in by_order.iter_mut().zip(statistics.bleu()) {
            values.push(value);
        }
        total.add(&statistics);
    }
    let mut corpus_values = total.bleu().into_iter();
    by_order.map(|items| Scores { corpus: corpus_values.next().unwrap_or_default(), items })
}

/// The statistics that BLEU is computed from, of one item or summed over several.
#[derive(Debug, Default, PartialEq)]
struct Statistics {
    /// The number of the candidate's n-grams that match the references, by order; unigrams first.
    correct: [u64; MAX_ORDER],
    /// The number of all n-grams of the candidate, by order.
    guess: [u64; MAX_ORDER],
    candidate_length: u64,
    reference_length: u64,
}

impl Statistics {
    fn add(&mut self, other: &Self) {
        for order in 0..MAX_ORDER {
            self.correct[order] += other.correct[order];
            self.guess[order] += other.guess[order];
        }
        self.candidate_length += other.candidate_length;
        self.reference_length += other.reference_length;
    }

    fn bleu(&self) -> [f64; MAX_ORDER] {
        let ratio =
            (self.candidate_length as f64 + NUMERATOR_EPSILON) / (self.reference_length as f64 + DENOMINATOR_EPSILON);
        let penalty = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        std::array::from_fn(|order| {
            product *=
                (self.correct[order] as f64 + NUMERATOR_EPSILON) / (self.guess[order] as f64 + DENOMINATOR_EPSILON);
            product.powf(1.0 / (order + 1) as f64) * penalty
        })
    }
}

/// Computes statistics of items, with buffers that are reused between items.
#[derive(Default)]
struct StatisticsBuilder {
    candidate: ngrams::SparseVector<u32>,
    reference: ngrams::SparseVector<u32>,
    /// For each n-gram of the candidate, the maximal count in any single reference.
    max_counts: Vec<u32>,
}

impl StatisticsBuilder {
    fn statistics<'a>(&mut self, candidate: &[u32], references: impl Iterator<Item = &'a [u32]> + Clone) -> Statistics {
        let closest = references.clone().map(<[_]>::len).min_by_key(|&len| (len.abs_diff(candidate.len()), len));
        let mut statistics = Statistics {
            correct: [0; MAX_ORDER],
            guess: std::array::from_fn(|order| candidate.len().saturating_sub(order) as u64),
            candidate_length: candidate.len() as u64,
            reference_length: closest.unwrap_or(0) as u64,
        };

        ngrams::count(candidate, &mut self.candidate);
        self.max_counts.clear();
        self.max_counts.resize(self.candidate.len(), 0);
        for reference in references {
            ngrams::count(reference, &mut self.reference);
            ngrams::for_each_common(&self.candidate, &self.reference, |index, _, count| {
                self.max_counts[index] = self.max_counts[index].max(count);
            });
        }
        for (&(ngram, count), &max_count) in self.candidate.iter().zip(&self.max_counts) {
            statistics.correct[ngram.order()] += u64::from(count.min(max_count));
        }
        statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Item, item};

    fn values(items: &[Item]) -> [f64; MAX_ORDER] {
        bleu(&Corpus::new(items)).map(|scores| scores.corpus)
    }

    fn assert_near(got: [f64; MAX_ORDER], expected: [f64; MAX_ORDER]) {
        for (got, expected) in got.into_iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-8, "{got} is not {expected}");
        }
    }

    #[test]
    fn identical_candidate_scores_one() {
        assert_near(values(&[item("a red kite flies", &["A red kite flies.", "kite"])]), [1.0; 4]);
    }

    #[test]
    fn disjoint_candidate_scores_the_smoothing_only() {
        let [one, two, ..] = values(&[item("a b c d", &["e f g h"])]);
        assert!((one - 1e-15 / 4.0).abs() < 1e-24);
        assert!((two - (1e-30_f64 / 12.0).sqrt()).abs() < 1e-24);
    }

    #[test]
    fn counts_are_clipped_to_one_reference() {
        // Papineni's example: 2 of 7, as no reference has "the" more than twice.
        let [one, ..] = values(&[item("the the the the the the the", &["the cat is on the mat", "the cat sat"])]);
        assert!((one - 2.0 / 7.0).abs() < 1e-9);
    }

    #[test]
    fn short_candidate_is_penalised() {
        let penalty = (1.0_f64 - 8.0 / 4.0).exp();
        assert_near(values(&[item("a b c d", &["a b c d e f g h"])]), [penalty; 4]);
    }

    #[test]
    fn the_shorter_of_two_equally_close_references_counts() {
        // 2 and 6 are as far from 4; with 6 there would be a penalty.
        assert_near(values(&[item("a b c d", &["a b c d e f", "a b"])]), [1.0; 4]);
    }

    #[test]
    fn corpus_pools_counts() {
        let scores = &bleu(&Corpus::new(&[item("a b", &["a b"]), item("a b c d e f", &["u v w x y z"])]))[0];
        assert!((scores.corpus - 2.0 / 8.0).abs() < 1e-9, "{scores:?}");
    }

    #[test]
    fn empty_input_scores_zero() {
        for scores in bleu(&Corpus::new(&[])) {
            assert_eq!(scores, Scores { corpus: 0.0, items: vec![] });
        }
        for scores in bleu(&Corpus::new(&[item("", &["a b"]), item("", &[])])) {
            assert_eq!(scores, Scores { corpus: 0.0, items: vec![0.0, 0.0] });
        }
        for scores in bleu(&Corpus::new(&[item("a b", &[]), item("a b", &[""])])) {
            assert!(scores.corpus < 1e-3 && scores.items[0] < 1e-3 && scores.items[0] == scores.items[1]);
        }
    }
}
