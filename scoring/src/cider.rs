//! CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015), as pycocoevalcap's `cider_scorer.py` computes it.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::ngrams::{self, Corpus, MAX_ORDER, Ngram, NgramHasher, Sparse};
use crate::{Item, Scores};

/// Standard deviation of the penalty on differences in length.
const SIGMA: f64 = 6.0;
/// The paper's factor, which brings values to the range of other metrics.
const SCALE: f64 = 10.0;

/// CIDEr-D, as `Cider()` of pycocoevalcap: the mean over n = 1..4 and the references of the cosine between TF-IDF
/// vectors of n-grams, the candidate's weights clipped to the reference's in the numerator, times a Gaussian (sigma 6)
/// of the difference in length, times 10 (`Vedantam et al.`, "CIDEr: Consensus-based Image Description Evaluation",
/// CVPR 2015, section 6).
///
/// Document frequencies come from the references given, one count per item; the length is the number of bigrams, as in
/// the reference implementation. `corpus` is the mean over items. A single item scores 0, because every n-gram of its
/// references is in all documents; so does one without references, which still counts as a document.
pub fn cider_d(items: &[Item]) -> Scores {
    let corpus = Corpus::new(items);
    let rarity = Rarity::new(&corpus);
    let mut counts = Sparse::new();
    let (mut candidate, mut reference) = (Vector::default(), Vector::default());
    let items: Vec<f64> = corpus
        .items()
        .map(|(caption, references)| {
            candidate.set(caption, &mut counts, &rarity);
            let number = references.len();
            let sum: f64 = references
                .map(|caption| {
                    reference.set(caption, &mut counts, &rarity);
                    candidate.similarity(&reference)
                })
                .sum();
            if number == 0 { 0.0 } else { SCALE * sum / number as f64 }
        })
        .collect();
    let mean = if items.is_empty() { 0.0 } else { items.iter().sum::<f64>() / items.len() as f64 };
    Scores { corpus: mean, items }
}

/// Inverse document frequencies over the references of a job.
struct Rarity {
    /// In how many items' references an n-gram occurs.
    documents: HashMap<Ngram, u32, BuildHasherDefault<NgramHasher>>,
    /// The logarithm of 0 (taken as that of 1), 1, ..., all items.
    logarithms: Vec<f64>,
}

impl Rarity {
    fn new(corpus: &Corpus) -> Self {
        let mut documents = HashMap::<_, u32, _>::default();
        let (mut counts, mut distinct) = (Sparse::new(), Vec::new());
        for (_, references) in corpus.items() {
            distinct.clear();
            for reference in references {
                ngrams::count(reference, &mut counts);
                distinct.extend(counts.iter().map(|&(ngram, _)| ngram));
            }
            distinct.sort_unstable();
            distinct.dedup();
            for &ngram in &distinct {
                *documents.entry(ngram).or_default() += 1;
            }
        }
        let logarithms = (0..=corpus.items().len()).map(|number| (number.max(1) as f64).ln()).collect();
        Self { documents, logarithms }
    }

    fn of(&self, ngram: Ngram) -> f64 {
        let documents = self.documents.get(&ngram).map_or(0, |&number| number as usize);
        self.logarithms[self.logarithms.len() - 1] - self.logarithms[documents]
    }
}

/// A caption's TF-IDF vector, all orders in one.
#[derive(Default)]
struct Vector {
    weights: Sparse<f64>,
    /// Euclidean norms, by order.
    norms: [f64; MAX_ORDER],
    bigrams: usize,
}

impl Vector {
    /// Makes this the vector of `caption`, keeping the memory; `counts` is scratch space.
    fn set(&mut self, caption: &[u32], counts: &mut Sparse<u32>, rarity: &Rarity) {
        ngrams::count(caption, counts);
        let mut squares = [0.0; MAX_ORDER];
        self.weights.clear();
        self.weights.extend(counts.iter().map(|&(ngram, count)| {
            let weight = f64::from(count) * rarity.of(ngram);
            squares[ngram.order()] += weight * weight;
            (ngram, weight)
        }));
        self.norms = squares.map(f64::sqrt);
        self.bigrams = caption.len().saturating_sub(1);
    }

    fn similarity(&self, reference: &Self) -> f64 {
        let mut products = [0.0; MAX_ORDER];
        ngrams::join(&self.weights, &reference.weights, |index, own, theirs| {
            products[self.weights[index].0.order()] += own.min(theirs) * theirs;
        });
        let cosines = products.iter().zip(self.norms.iter().zip(&reference.norms)).map(|(product, (own, theirs))| {
            let norm = own * theirs;
            // Without weight on either side the product is 0 too.
            if norm == 0.0 { 0.0 } else { product / norm }
        });
        let distance = self.bigrams.abs_diff(reference.bigrams) as f64;
        cosines.sum::<f64>() / MAX_ORDER as f64 * (-distance * distance / (2.0 * SIGMA * SIGMA)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(candidate: &str, references: &[&str]) -> Item {
        Item { candidate: candidate.into(), references: references.iter().map(|&text| text.into()).collect() }
    }

    fn assert_near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    }

    #[test]
    fn identical_candidate_scores_ten() {
        let scores = cider_d(&[item("a b c d", &["a b c d"]), item("e f g h", &["e f g h", "e f g h"])]);
        scores.items.iter().for_each(|&value| assert_near(value, 10.0));
        assert_near(scores.corpus, 10.0);
    }

    #[test]
    fn disjoint_candidate_scores_zero() {
        let scores = cider_d(&[item("e f g h", &["a b c d"]), item("a b c d", &["e f g h"])]);
        assert_eq!(scores, Scores { corpus: 0.0, items: vec![0.0, 0.0] });
    }

    #[test]
    fn orders_that_a_short_caption_lacks_count_as_zero() {
        // Unigrams and bigrams agree; there are no longer ones: 10 * 2 / 4.
        assert_near(cider_d(&[item("a b", &["a b"]), item("c", &["c"])]).items[0], 5.0);
    }

    #[test]
    fn repetition_is_clipped_and_length_penalised() {
        // Only the unigram counts: min(3w, w) * w / (3w * w) = 1/3; two bigrams more than the reference's none.
        let scores = cider_d(&[item("a a a", &["a"]), item("b", &["b"])]);
        assert_near(scores.items[0], 10.0 / 4.0 / 3.0 * (-4.0_f64 / 72.0).exp());
    }

    #[test]
    fn empty_input_scores_zero() {
        assert_eq!(cider_d(&[]), Scores { corpus: 0.0, items: vec![] });
        assert_eq!(cider_d(&[item("a b c d", &["a b c d"])]), Scores { corpus: 0.0, items: vec![0.0] });
        let odd = [item("", &["a"]), item("a", &[]), item("", &[]), item("", &[""])];
        assert_eq!(cider_d(&odd), Scores { corpus: 0.0, items: vec![0.0; 4] });
    }
}
