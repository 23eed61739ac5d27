//! CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015), as pycocoevalcap's `cider_scorer.py` computes it.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::corpus::{Groups, Vocabulary};
use crate::ngrams::{self, MAX_ORDER, Ngram, NgramHasher, Sparse};
use crate::tokens::Tokeniser;
use crate::{Corpus, Scores};

/// Standard deviation of the penalty on differences in length.
const SIGMA: f64 = 6.0;
/// The paper's factor, which brings values to the range of other metrics.
const SCALE: f64 = 10.0;

/// CIDEr-D (0 to 10), as `Cider()` of pycocoevalcap: the mean over n = 1..4 and the references of the cosine between
/// TF-IDF vectors of n-grams, the candidate's weights clipped to the reference's in the numerator, times a Gaussian
/// (sigma 6) of the difference in length, times 10 (`Vedantam et al.`, "CIDEr: Consensus-based Image Description
/// Evaluation", CVPR 2015, section 6).
///
/// Document frequencies come from the references given, one count per item; the length is the number of bigrams, as in
/// the reference implementation. `corpus` is the mean over items. A single item scores 0, because every n-gram of its
/// references is in all documents; so does one without references, which still counts as a document.
#[must_use]
pub fn cider_d(corpus: &Corpus) -> Scores {
    let rarity = Rarity::new(corpus.words().map(|(_, references)| references));
    let mut counts = Sparse::new();
    let (mut candidate, mut reference) = (Vector::default(), Vector::default());
    let mut items = Vec::with_capacity(corpus.len());
    for (caption, references) in corpus.words() {
        candidate.set(caption, &mut counts, &rarity);
        items.push(mean(references.map(|caption| {
            reference.set(caption, &mut counts, &rarity);
            candidate.similarity(&reference)
        })));
    }
    Scores::mean(items)
}

/// CIDEr-D as a reward: scores any number of candidates against the references of an image, with document frequencies
/// that stay those of a whole split (as `Rennie et al.`, "Self-critical Sequence Training for Image Captioning", CVPR
/// 2017, take those of the training split).
///
/// Scores are those of [`cider_d`] for a job that has one candidate for each image of the split.
pub struct Cider {
    vocabulary: Vocabulary,
    references: Groups,
    rarity: Rarity,
}

impl Cider {
    /// Tokenises the references of each image, and counts in how many images' references each n-gram occurs.
    #[must_use]
    pub fn new(references: &[Vec<String>]) -> Self {
        let mut tokeniser = Tokeniser::default();
        let mut vocabulary = Vocabulary::default();
        let mut groups = Groups::default();
        for captions in references {
            groups.begin();
            for caption in captions {
                tokeniser.each(caption, |token| {
                    token.split_whitespace().for_each(|word| groups.push(vocabulary.id(word)));
                });
                groups.end_caption();
            }
        }
        let rarity = Rarity::new(groups.iter());
        Self { vocabulary, references: groups, rarity }
    }

    /// The scores of `candidates` (0 to 10), all of the image at index `image` of the references given to [`Self::new`].
    ///
    /// # Panics
    /// There is no such image.
    #[must_use]
    pub fn rewards(&self, image: usize, candidates: &[String]) -> Vec<f64> {
        let mut counts = Sparse::new();
        let mut references = Vec::new();
        for caption in self.references.get(image) {
            let mut reference = Vector::default();
            reference.set(caption, &mut counts, &self.rarity);
            references.push(reference);
        }
        let mut tokeniser = Tokeniser::default();
        let (mut ids, mut candidate) = (Vec::new(), Vector::default());
        let reward = |caption: &String| {
            // Words that no reference has match nothing, but lengthen the candidate's vector.
            let mut strange = Vocabulary::default();
            ids.clear();
            tokeniser.each(caption, |token| {
                let id = |word| self.vocabulary.get(word).unwrap_or_else(|| self.vocabulary.last() + strange.id(word));
                ids.extend(token.split_whitespace().map(id));
            });
            candidate.set(&ids, &mut counts, &self.rarity);
            mean(references.iter().map(|reference| candidate.similarity(reference)))
        };
        candidates.iter().map(reward).collect()
    }
}

/// The mean similarity to references, in CIDEr's scale; 0 without references.
fn mean(similarities: impl ExactSizeIterator<Item = f64>) -> f64 {
    let references = similarities.len();
    if references == 0 { 0.0 } else { SCALE * similarities.sum::<f64>() / references as f64 }
}

/// Inverse document frequencies over the references of a job.
struct Rarity {
    /// In how many items' references an n-gram occurs, where that is more than one: most n-grams occur in one, which
    /// counts the same as none.
    documents: HashMap<Ngram, u32, BuildHasherDefault<NgramHasher>>,
    /// The logarithm of 0 (taken as that of 1), 1, ..., all items.
    logarithms: Vec<f64>,
}

impl Rarity {
    /// Of the references of each item.
    fn new<'a>(items: impl ExactSizeIterator<Item = impl Iterator<Item = &'a [u32]>>) -> Self {
        let logarithms = (0..=items.len()).map(|number| (number.max(1) as f64).ln()).collect();
        let mut documents = HashMap::<_, u32, _>::default();
        let mut distinct = Vec::new();
        for references in items {
            distinct.clear();
            distinct.extend(references.flat_map(ngrams::all));
            distinct.sort_unstable();
            distinct.dedup();
            for &ngram in &distinct {
                *documents.entry(ngram).or_default() += 1;
            }
        }
        documents.retain(|_, number| *number > 1);
        documents.shrink_to_fit();
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
    use proptest::prelude::*;

    use super::*;
    use crate::{Item, item, some_items};

    fn cider_d(items: &[Item]) -> Scores {
        super::cider_d(&Corpus::new(items))
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

    #[test]
    fn one_item_has_no_rarity_but_its_reward_among_others_has() {
        let cider = Cider::new(&[vec!["a b c d".into()], vec!["e f".into()]]);
        let rewards = cider.rewards(0, &["a b c d".into(), "x y".into(), "x x".into(), String::new()]);
        assert_near(rewards[0], 10.0);
        assert_eq!(rewards[1..], [0.0; 3]);
        // Of two unigrams that weigh the same one matches; none of the bigram.
        assert_near(cider.rewards(1, &["e x".into()])[0], 10.0 / 4.0 / 2.0);
    }

    proptest! {
        #[test]
        fn rewards_are_the_scores_of_a_job(items in some_items()) {
            let references: Vec<_> = items.iter().map(|item| item.references.clone()).collect();
            let cider = Cider::new(&references);
            for (image, (item, score)) in items.iter().zip(cider_d(&items).items).enumerate() {
                let rewards = cider.rewards(image, &["a b".into(), item.candidate.clone(), "zzz a yyy zzz".into()]);
                prop_assert!((rewards[1] - score).abs() < 1e-12, "{} is not {score}", rewards[1]);
            }
        }
    }
}
