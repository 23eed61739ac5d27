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

/// A caption that a captioner proposes for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What it says, without special tokens.
    pub text: String,
    /// Whether the captioner ended it with the end token; false where it was cut at the length
    /// limit.
    pub ended: bool,
}

/// The end token's id in n-grams: no word's, because these are numbered from 1.
const END: u32 = u32::MAX;

/// CIDEr-D as a reward: scores any number of candidates against the references of an image, with document frequencies
/// that stay those of a whole split (as `Rennie et al.`, "Self-critical Sequence Training for Image Captioning", CVPR
/// 2017, take those of the training split).
///
/// The end token counts as a word: of every reference, of every candidate that has it, and in
/// document frequencies, as in the published code of self-critical training (ruotianluo's
/// `self-critical.pytorch`, `array_to_str`). Without it a captioner learns to stop in mid-sentence
/// ("a dog and a"): the n-grams of such an end match inside references, and nothing is lost by the
/// missing rest. With it, "and a END" matches no reference, and a candidate that was cut at the
/// length limit misses the n-grams that end the references. Reported scores ([`cider_d`]) never
/// contain it.
///
/// Rewards are those of [`cider_d`] for a job that has one candidate for each image of the split,
/// where a further word that no caption has ends all references and all candidates that ended.
pub struct Cider {
    vocabulary: Vocabulary,
    references: Groups,
    rarity: Rarity,
}

impl Cider {
    /// Tokenises the references of each image, ends them with the end token, and counts in how many
    /// images' references each n-gram occurs.
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
                groups.push(END);
                groups.end_caption();
            }
        }
        let rarity = Rarity::new(groups.iter());
        Self { vocabulary, references: groups, rarity }
    }

    /// The rewards of `candidates` (0 to 10), all of the image at index `image` of the references
    /// given to [`Self::new`].
    ///
    /// # Panics
    /// There is no such image.
    #[must_use]
    pub fn rewards(&self, image: usize, candidates: &[Candidate]) -> Vec<f64> {
        let mut counts = Sparse::new();
        let mut references = Vec::new();
        for caption in self.references.get(image) {
            let mut reference = Vector::default();
            reference.set(caption, &mut counts, &self.rarity);
            references.push(reference);
        }
        let mut tokeniser = Tokeniser::default();
        let (mut ids, mut candidate) = (Vec::new(), Vector::default());
        let reward = |Candidate { text, ended }: &Candidate| {
            // Words that no reference has match nothing, but lengthen the candidate's vector.
            let mut strange = Vocabulary::default();
            ids.clear();
            tokeniser.each(text, |token| {
                let id = |word| self.vocabulary.get(word).unwrap_or_else(|| self.vocabulary.last() + strange.id(word));
                ids.extend(token.split_whitespace().map(id));
            });
            ids.extend(ended.then_some(END));
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

    fn ended(text: &str) -> Candidate {
        Candidate { text: text.into(), ended: true }
    }

    fn cut(text: &str) -> Candidate {
        Candidate { text: text.into(), ended: false }
    }

    #[test]
    fn one_item_has_no_rarity_but_its_reward_among_others_has() {
        let cider = Cider::new(&[vec!["a b c d".into()], vec!["e f".into()]]);
        let rewards = cider.rewards(0, &[ended("a b c d"), ended("x y"), ended("x x"), ended("")]);
        assert_near(rewards[0], 10.0);
        // The end token alone is in all documents, so it weighs nothing.
        assert_eq!(rewards[1..], [0.0; 3]);
        // Unigrams e, x: one of two matches. Bigrams (e x, x END) and trigrams (e x END): none.
        assert_near(cider.rewards(1, &[ended("e x")])[0], 10.0 / 4.0 / 2.0);
    }

    #[test]
    fn a_caption_without_its_end_token_misses_the_ngrams_that_end_references() {
        let cider = Cider::new(&[vec!["a b c d".into()], vec!["e f".into()]]);
        // All weights are ln 2, END alone weighs 0. Of unigrams all match; of bigrams 3 of 4, of
        // trigrams 2 of 3, of 4-grams 1 of 2; each cosine is the root of that share. One bigram is
        // missing.
        let expected = [1.0, 3.0 / 4.0, 2.0 / 3.0, 1.0 / 2.0].map(f64::sqrt).iter().sum::<f64>() * 10.0 / 4.0;
        let rewards = cider.rewards(0, &[cut("a b c d"), ended("a b c d")]);
        assert_near(rewards[0], expected * (-1.0_f64 / 72.0).exp());
        assert_near(rewards[1], 10.0);
    }

    /// A case of the built-in world, where a captioner that was rewarded without the end token
    /// ended all its captions with "and a".
    #[test]
    fn an_end_in_mid_sentence_is_worth_less_only_where_the_end_token_counts() {
        let references = ["a cross", "a yellow cross and a purple cross and a blue cross"];
        let others = [["a purple circle", "there is a small star"], ["a blue triangle", "a triangle"]];
        let [right, wrong] = ["a purple cross and a cross", "a purple cross and a cross and a"];
        let metric =
            |candidate| cider_d(&[item(candidate, &references), item("", &others[0]), item("", &others[1])]).items[0];
        assert!(metric(wrong) > metric(right), "{} and {}", metric(wrong), metric(right));
        let job = [references, others[0], others[1]].map(|captions| captions.map(str::to_owned).to_vec());
        let rewards = Cider::new(&job).rewards(0, &[ended(right), ended(wrong), cut(wrong)]);
        assert!(rewards[0] > 1.1 * rewards[1], "{rewards:?}");
    }

    proptest! {
        /// Through `cider_d`, on texts that end with a word that no text has.
        #[test]
        fn rewards_are_the_scores_of_a_job_whose_captions_end_with_one_more_word(items in some_items()) {
            let references: Vec<_> = items.iter().map(|item| item.references.clone()).collect();
            let cider = Cider::new(&references);
            let with_end = |text: &String| format!("{text} theend");
            let mut job: Vec<Item> = items
                .iter()
                .map(|item| Item { references: item.references.iter().map(with_end).collect(), ..item.clone() })
                .collect();
            let of_cut = cider_d(&job).items;
            job.iter_mut().for_each(|item| item.candidate = with_end(&item.candidate));
            let of_ended = cider_d(&job).items;
            for (image, Item { candidate, .. }) in items.iter().enumerate() {
                let rewards = cider.rewards(
                    image,
                    &[ended("a b"), ended(candidate), cut("zzz a yyy zzz"), cut(candidate), ended("")],
                );
                prop_assert!((rewards[1] - of_ended[image]).abs() < 1e-12, "{} is not {}", rewards[1], of_ended[image]);
                prop_assert!((rewards[3] - of_cut[image]).abs() < 1e-12, "{} is not {}", rewards[3], of_cut[image]);
            }
        }
    }
}
