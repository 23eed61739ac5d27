//! Fluency of captions without references: repetition, incorrect endings, diversity and length. A
//! captioner that is optimized for a CLIP-based reward tends to repeat words and to stop in
//! mid-sentence; these metrics detect it.

use crate::ngrams::{self, MAX_ORDER, Ngram, SparseVector};
use crate::{Corpus, Scores};

/// Words that a complete caption does not end with: articles, prepositions and forms of "be". It is
/// the list of `bad_count_rate` in ruotianluo's `ImageCaptioning.pytorch` (`eval_utils.py`), not
/// that of `misc.py`, which lists endings to remove from captions.
const INCORRECT_ENDINGS: [&str; 17] = [
    "a", "after", "am", "an", "are", "at", "before", "for", "in", "is", "near", "of", "on", "the", "to", "upon", "with",
];

/// The fluency of candidates.
#[derive(Debug, Clone, PartialEq)]
pub struct Fluency {
    /// Rep-1 to Rep-4: the number of n-grams of a caption that repeat an earlier one, that is, all
    /// n-grams minus the distinct ones. The corpus value is the mean. (The papers on CLIP-based
    /// rewards report "repeated n-grams" without a formula; this is the simplest interpretation.)
    pub repeated_ngrams: [Scores; 4],
    /// 1 if a caption ends with a word of [`INCORRECT_ENDINGS`], else 0. The corpus value is the
    /// fraction of captions with incorrect endings.
    pub incorrect_endings: Scores,
    /// The number of distinct n-grams of all captions divided by the number of n-grams, for n = 1
    /// and 2 (`Li et al.`, "A Diversity-Promoting Objective Function for Neural Conversation
    /// Models", NAACL 2016); 0 without n-grams.
    pub distinct: [f64; 2],
    /// The number of different words of all captions.
    pub vocabulary_size: usize,
    /// The mean number of words of a caption.
    pub mean_length: f64,
}

/// Computes the fluency of the candidates of `corpus`. Words are those of BLEU and CIDEr-D:
/// punctuation does not count, and clitics are separate words.
#[must_use]
pub fn fluency(corpus: &Corpus) -> Fluency {
    // "a." is a token too: the tokenizer keeps the full stop of a single letter.
    let ending_ids: Vec<u32> = INCORRECT_ENDINGS.into_iter().chain(["a."]).filter_map(|word| corpus.id(word)).collect();
    let mut repeated = [(); MAX_ORDER].map(|()| Vec::with_capacity(corpus.len()));
    let mut incorrect = Vec::with_capacity(corpus.len());
    let mut counts = SparseVector::new();
    // Unigrams and bigrams of all candidates.
    let mut short_ngrams: Vec<Ngram> = Vec::new();
    let mut total = [0_usize; MAX_ORDER];
    for (candidate, _) in corpus.words() {
        ngrams::count(candidate, &mut counts);
        let mut repeats = [0_u32; MAX_ORDER];
        for &(ngram, count) in &counts {
            repeats[ngram.order()] += count - 1;
        }
        short_ngrams.extend(counts.iter().map(|&(ngram, _)| ngram).filter(|ngram| ngram.order() < 2));
        for (order, values) in repeated.iter_mut().enumerate() {
            values.push(repeats[order].into());
            total[order] += candidate.len().saturating_sub(order);
        }
        let has_incorrect_ending = candidate.last().is_some_and(|last| ending_ids.contains(last));
        incorrect.push(f64::from(u8::from(has_incorrect_ending)));
    }
    short_ngrams.sort_unstable();
    short_ngrams.dedup();
    let distinct_count = |order| short_ngrams.iter().filter(|ngram| ngram.order() == order).count();
    let ratio = |numerator: usize, denominator: usize| {
        if denominator == 0 { 0.0 } else { numerator as f64 / denominator as f64 }
    };
    Fluency {
        repeated_ngrams: repeated.map(Scores::mean),
        incorrect_endings: Scores::mean(incorrect),
        distinct: [0, 1].map(|order| ratio(distinct_count(order), total[order])),
        vocabulary_size: distinct_count(0),
        mean_length: ratio(total[0], corpus.len()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{any_items, item};

    fn fluency_of(captions: &[&str]) -> Fluency {
        let items: Vec<_> =
            captions.iter().map(|caption| item(caption, &["a word that only references have"])).collect();
        fluency(&Corpus::new(&items))
    }

    #[test]
    fn repeated_ngrams_are_all_ngrams_minus_distinct_ones() {
        let Fluency { repeated_ngrams, .. } = fluency_of(&["a b a b a", "a b c", ""]);
        let [one, two, three, four] = repeated_ngrams.map(|scores| scores.items);
        assert_eq!((one, two), (vec![3.0, 0.0, 0.0], vec![2.0, 0.0, 0.0]));
        assert_eq!((three, four), (vec![1.0, 0.0, 0.0], vec![0.0; 3]));
        assert_eq!(fluency_of(&["a a", "a b"]).repeated_ngrams[0].corpus, 0.5);
    }

    #[test]
    fn endings_are_compared_without_punctuation_and_case() {
        let captions = ["A dog on a.", "a dog runs IN", "a dog sits", "", "a dog with", "the withered"];
        let Fluency { incorrect_endings, .. } = fluency_of(&captions);
        assert_eq!(incorrect_endings, Scores { corpus: 0.5, items: vec![1.0, 1.0, 0.0, 0.0, 1.0, 0.0] });
    }

    #[test]
    fn distinct_ngrams_are_counted_over_all_captions() {
        let Fluency { distinct, vocabulary_size, mean_length, .. } = fluency_of(&["a cat sat", "a cat", "cat"]);
        assert_eq!((vocabulary_size, mean_length), (3, 2.0));
        assert_eq!(distinct, [3.0 / 6.0, 2.0 / 3.0]);
    }

    #[test]
    fn captions_without_words_have_zero_scores() {
        let none = fluency_of(&[]);
        assert_eq!((none.distinct, none.vocabulary_size, none.mean_length), ([0.0; 2], 0, 0.0));
        assert_eq!(fluency_of(&["", "!"]).distinct, [0.0; 2]);
    }

    proptest! {
        #[test]
        fn values_are_within_their_bounds(items in any_items()) {
            let Fluency { repeated_ngrams, distinct, vocabulary_size, mean_length, .. } = fluency(&Corpus::new(&items));
            // A repeated n-gram contains two repeated n-grams of the next lower order.
            for (shorter, longer) in repeated_ngrams.iter().zip(&repeated_ngrams[1..]) {
                prop_assert!(shorter.items.iter().zip(&longer.items).all(|(s, l)| s >= l));
            }
            prop_assert!(distinct.iter().all(|share| (0.0..=1.0).contains(share)));
            prop_assert!(vocabulary_size as f64 <= mean_length * items.len() as f64 + 1e-9);
        }
    }
}
