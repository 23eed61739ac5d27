//! CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015), as in pycocoevalcap's `cider_scorer.py`.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::corpus::{CaptionGroups, Vocabulary};
use crate::ngrams::{self, MAX_ORDER, Ngram, NgramHasher, SparseVector};
use crate::ptb_tokenizer::PtbTokenizer;
use crate::{Corpus, Scores};

/// Standard deviation of the Gaussian length penalty, in words.
const SIGMA: f64 = 6.0;
/// The factor by which CIDEr-D scales similarities, as in the paper.
const SCALE: f64 = 10.0;

/// CIDEr-D (0 to 10), as `Cider()` of pycocoevalcap: the mean over n = 1..4 and the references of
/// the cosine between TF-IDF vectors of n-grams, with the candidate's weights clipped to the
/// reference's in the numerator, times a Gaussian (sigma 6) of the difference in length, times 10
/// (`Vedantam et al.`, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, section
/// 6).
///
/// Document frequencies come from the references of `corpus`, one count per item. The length is the
/// number of bigrams, as in the reference implementation. The corpus value is the mean over items.
/// A single item scores 0, because all n-grams of its references are in all documents. An item
/// without references scores 0 but counts as a document.
#[must_use]
pub fn cider_d(corpus: &Corpus) -> Scores {
    let idf = InverseDocumentFrequency::new(corpus.words().map(|(_, references)| references));
    let mut counts = SparseVector::new();
    let (mut candidate, mut reference) = (TfIdfVector::default(), TfIdfVector::default());
    let mut items = Vec::with_capacity(corpus.len());
    for (caption, references) in corpus.words() {
        candidate.recompute(caption, &mut counts, &idf);
        items.push(mean_similarity(references.map(|caption| {
            reference.recompute(caption, &mut counts, &idf);
            candidate.similarity(&reference)
        })));
    }
    Scores::mean(items)
}

/// A caption that a captioner proposes for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The text, without special tokens.
    pub text: String,
    /// Whether the captioner ended the text with the end token; false if the text was truncated at
    /// the length limit.
    pub has_end_token: bool,
}

/// The end token's id in n-grams. Words have smaller ids: [`Vocabulary`] numbers them from 1.
const END_TOKEN: u32 = u32::MAX;

/// CIDEr-D as a reward: it scores any number of candidates against the references of an image, with
/// fixed document frequencies of a whole split (as in `Rennie et al.`, "Self-critical Sequence
/// Training for Image Captioning", CVPR 2017, which uses those of the training split).
///
/// The end token counts as a word in references, in candidates that have it, and in document
/// frequencies, as in the published code of self-critical training (ruotianluo's
/// `self-critical.pytorch`, `array_to_str`). Without it a captioner learns to stop in mid-sentence
/// ("a dog and a"), because the last n-grams of such a caption match inside references and the
/// missing rest costs nothing. With the end token, "and a END" matches no reference, and a
/// candidate that was cut at the length limit misses the n-grams at the end of the references.
/// Reported scores ([`cider_d`]) do not count the end token.
///
/// A reward equals the score of [`cider_d`] for items with one candidate for each image of the
/// split, if an additional word that no caption contains is appended to all references and to all
/// candidates with an end token.
pub struct CiderReward {
    /// The words of the references.
    vocabulary: Vocabulary,
    /// The references of each image, with the end token.
    references: CaptionGroups,
    idf: InverseDocumentFrequency,
}

impl CiderReward {
    /// Tokenizes the references of each image, appends the end token, and counts document
    /// frequencies.
    #[must_use]
    pub fn new(references: &[Vec<String>]) -> Self {
        let mut tokenizer = PtbTokenizer::default();
        let mut vocabulary = Vocabulary::default();
        let mut groups = CaptionGroups::default();
        for captions in references {
            groups.begin_group();
            for caption in captions {
                tokenizer.for_each_token(caption, |token| {
                    token.split_whitespace().for_each(|word| groups.push(vocabulary.intern(word)));
                });
                groups.push(END_TOKEN);
                groups.end_caption();
            }
        }
        let idf = InverseDocumentFrequency::new(groups.iter());
        Self { vocabulary, references: groups, idf }
    }

    /// The rewards (0 to 10) of `candidates` for the image with index `image` in the references
    /// given to [`Self::new`].
    ///
    /// # Panics
    /// There is no such image.
    #[must_use]
    pub fn rewards(&self, image: usize, candidates: &[Candidate]) -> Vec<f64> {
        let mut counts = SparseVector::new();
        let mut references = Vec::new();
        for caption in self.references.get(image) {
            let mut reference = TfIdfVector::default();
            reference.recompute(caption, &mut counts, &self.idf);
            references.push(reference);
        }
        let mut tokenizer = PtbTokenizer::default();
        let (mut ids, mut candidate) = (Vec::new(), TfIdfVector::default());
        let reward = |Candidate { text, has_end_token }: &Candidate| {
            // Words that no reference contains match nothing, but increase the candidate's norm.
            let mut unknown_words = Vocabulary::default();
            ids.clear();
            tokenizer.for_each_token(text, |token| {
                let id = |word| {
                    self.vocabulary.get(word).unwrap_or_else(|| self.vocabulary.last_id() + unknown_words.intern(word))
                };
                ids.extend(token.split_whitespace().map(id));
            });
            ids.extend(has_end_token.then_some(END_TOKEN));
            candidate.recompute(&ids, &mut counts, &self.idf);
            mean_similarity(references.iter().map(|reference| candidate.similarity(reference)))
        };
        candidates.iter().map(reward).collect()
    }
}

/// The mean similarity to references, times [`SCALE`]; 0 without references.
fn mean_similarity(similarities: impl ExactSizeIterator<Item = f64>) -> f64 {
    let references = similarities.len();
    if references == 0 { 0.0 } else { SCALE * similarities.sum::<f64>() / references as f64 }
}

/// Inverse document frequencies of n-grams over the references of all items.
struct InverseDocumentFrequency {
    /// The number of items in whose references an n-gram occurs, if it is more than one. Most
    /// n-grams occur in one item, which has the same weight as none.
    documents: HashMap<Ngram, u32, BuildHasherDefault<NgramHasher>>,
    /// The logarithms of 0 (taken as 1), 1, 2, ... up to the number of items.
    logarithms: Vec<f64>,
}

impl InverseDocumentFrequency {
    /// Counts document frequencies in the references of each item.
    fn new<'a>(items: impl ExactSizeIterator<Item = impl Iterator<Item = &'a [u32]>>) -> Self {
        let logarithms = (0..=items.len()).map(|number| (number.max(1) as f64).ln()).collect();
        let mut documents = HashMap::<_, u32, _>::default();
        let mut distinct = Vec::new();
        for references in items {
            distinct.clear();
            distinct.extend(references.flat_map(ngrams::all_orders));
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

    /// The logarithm of the number of items divided by the document frequency of `ngram`.
    fn weight(&self, ngram: Ngram) -> f64 {
        let documents = self.documents.get(&ngram).map_or(0, |&number| number as usize);
        self.logarithms[self.logarithms.len() - 1] - self.logarithms[documents]
    }
}

/// The TF-IDF vector of a caption, with n-grams of all orders.
#[derive(Default)]
struct TfIdfVector {
    weights: SparseVector<f64>,
    /// Euclidean norms by order.
    norms: [f64; MAX_ORDER],
    /// The number of bigrams, which CIDEr-D uses as the length of the caption.
    bigrams: usize,
}

impl TfIdfVector {
    /// Replaces the content with the vector of `caption`, reusing memory; `counts` is scratch
    /// space.
    fn recompute(&mut self, caption: &[u32], counts: &mut SparseVector<u32>, idf: &InverseDocumentFrequency) {
        ngrams::count(caption, counts);
        let mut squares = [0.0; MAX_ORDER];
        self.weights.clear();
        self.weights.extend(counts.iter().map(|&(ngram, count)| {
            let weight = f64::from(count) * idf.weight(ngram);
            squares[ngram.order()] += weight * weight;
            (ngram, weight)
        }));
        self.norms = squares.map(f64::sqrt);
        self.bigrams = caption.len().saturating_sub(1);
    }

    fn similarity(&self, reference: &Self) -> f64 {
        let mut products = [0.0; MAX_ORDER];
        ngrams::for_each_common(&self.weights, &reference.weights, |index, weight, reference_weight| {
            products[self.weights[index].0.order()] += weight.min(reference_weight) * reference_weight;
        });
        let norms = self.norms.iter().zip(&reference.norms).map(|(norm, reference_norm)| norm * reference_norm);
        // If a norm is 0, so is the product.
        let cosines = products.iter().zip(norms).map(|(product, norm)| if norm == 0.0 { 0.0 } else { product / norm });
        let distance = self.bigrams.abs_diff(reference.bigrams) as f64;
        cosines.sum::<f64>() / MAX_ORDER as f64 * (-distance * distance / (2.0 * SIGMA * SIGMA)).exp()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Item, any_items, item};

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
    fn missing_orders_of_a_short_caption_count_as_zero() {
        // Unigrams and bigrams agree; there are no longer ones: 10 * 2 / 4.
        assert_near(cider_d(&[item("a b", &["a b"]), item("c", &["c"])]).items[0], 5.0);
    }

    #[test]
    fn repetition_is_clipped_and_length_penalised() {
        // Only the unigram counts: min(3w, w) * w / (3w * w) = 1/3; two bigrams more than the
        // reference's none.
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

    fn with_end_token(text: &str) -> Candidate {
        Candidate { text: text.into(), has_end_token: true }
    }

    fn without_end_token(text: &str) -> Candidate {
        Candidate { text: text.into(), has_end_token: false }
    }

    #[test]
    fn rewards_use_document_frequencies_of_all_images() {
        let cider = CiderReward::new(&[vec!["a b c d".into()], vec!["e f".into()]]);
        let rewards = cider
            .rewards(0, &[with_end_token("a b c d"), with_end_token("x y"), with_end_token("x x"), with_end_token("")]);
        assert_near(rewards[0], 10.0);
        // The end token alone is in all documents, so it weighs nothing.
        assert_eq!(rewards[1..], [0.0; 3]);
        // Unigrams e, x: one of two matches. Bigrams (e x, x END) and trigrams (e x END): none.
        assert_near(cider.rewards(1, &[with_end_token("e x")])[0], 10.0 / 4.0 / 2.0);
    }

    #[test]
    fn a_cut_caption_misses_the_last_ngrams_of_references() {
        let cider = CiderReward::new(&[vec!["a b c d".into()], vec!["e f".into()]]);
        // All weights are ln 2, END alone weighs 0. Of unigrams all match; of bigrams 3 of 4, of
        // trigrams 2 of 3, of 4-grams 1 of 2; each cosine is the root of that share. One bigram is
        // missing.
        let expected = [1.0, 3.0 / 4.0, 2.0 / 3.0, 1.0 / 2.0].map(f64::sqrt).iter().sum::<f64>() * 10.0 / 4.0;
        let rewards = cider.rewards(0, &[without_end_token("a b c d"), with_end_token("a b c d")]);
        assert_near(rewards[0], expected * (-1.0_f64 / 72.0).exp());
        assert_near(rewards[1], 10.0);
    }

    /// A case of the synthetic data set: a captioner that was rewarded without the end token ended
    /// all its captions with "and a".
    #[test]
    fn the_end_token_lowers_the_reward_of_incomplete_captions() {
        let references = ["a cross", "a yellow cross and a purple cross and a blue cross"];
        let others = [["a purple circle", "there is a small star"], ["a blue triangle", "a triangle"]];
        let [complete, incomplete] = ["a purple cross and a cross", "a purple cross and a cross and a"];
        let score_without_end =
            |candidate| cider_d(&[item(candidate, &references), item("", &others[0]), item("", &others[1])]).items[0];
        let scores = [complete, incomplete].map(score_without_end);
        assert!(scores[1] > scores[0], "{scores:?}");
        let all_references = [references, others[0], others[1]].map(|captions| captions.map(str::to_owned).to_vec());
        let rewards = CiderReward::new(&all_references)
            .rewards(0, &[with_end_token(complete), with_end_token(incomplete), without_end_token(incomplete)]);
        assert!(rewards[0] > 1.1 * rewards[1], "{rewards:?}");
    }

    proptest! {
        /// Compares with `cider_d` for captions with an additional last word that no caption
        /// contains.
        #[test]
        fn rewards_equal_scores_with_an_additional_last_word(items in any_items()) {
            let references: Vec<_> = items.iter().map(|item| item.references.clone()).collect();
            let cider = CiderReward::new(&references);
            let with_end = |text: &String| format!("{text} theend");
            let mut with_last_word: Vec<Item> = items
                .iter()
                .map(|item| Item { references: item.references.iter().map(with_end).collect(), ..item.clone() })
                .collect();
            let scores_without_end = cider_d(&with_last_word).items;
            with_last_word.iter_mut().for_each(|item| item.candidate = with_end(&item.candidate));
            let scores_with_end = cider_d(&with_last_word).items;
            for (image, Item { candidate, .. }) in items.iter().enumerate() {
                let rewards = cider.rewards(
                    image,
                    &[with_end_token("a b"), with_end_token(candidate), without_end_token("zzz a yyy zzz"), without_end_token(candidate), with_end_token("")],
                );
                prop_assert!((rewards[1] - scores_with_end[image]).abs() < 1e-12, "{} is not {}", rewards[1], scores_with_end[image]);
                prop_assert!((rewards[3] - scores_without_end[image]).abs() < 1e-12, "{} is not {}", rewards[3], scores_without_end[image]);
            }
        }
    }
}
