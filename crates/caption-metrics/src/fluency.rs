//! How captions read, without references: repetition, broken ends, variety and length. Optimising a model of images and
//! texts makes captioners repeat themselves and break off; these measures show it.

use crate::ngrams::{self, MAX_ORDER, Ngram, Sparse};
use crate::{Corpus, Scores};

/// Words that no caption ends with: articles, prepositions and forms of "be". It is the list behind `bad_count_rate` in
/// ruotianluo's `ImageCaptioning.pytorch` (`eval_utils.py`). The list in its `misc.py` is another one, of endings that may
/// be cut off captions.
const BAD_ENDINGS: [&str; 17] = [
    "a", "after", "am", "an", "are", "at", "before", "for", "in", "is", "near", "of", "on", "the", "to", "upon", "with",
];

/// How the candidates of a job read.
#[derive(Debug, Clone, PartialEq)]
pub struct Fluency {
    /// Rep-1 to Rep-4: how many n-grams of a caption repeat an earlier one of it, that is, all less the different ones.
    /// `corpus` is the mean. (The papers on CLIP-based rewards report "repeated n-grams" of a caption without a formula;
    /// this is the plainest reading.)
    pub repeated: [Scores; 4],
    /// 1 where a caption's last word is one that no caption ends with, else 0; `corpus` is the share of such captions.
    pub incorrect_endings: Scores,
    /// Different n-grams of all captions together over all n-grams, for n = 1 and 2 (after `Li et al.`, "A
    /// Diversity-Promoting Objective Function for Neural Conversation Models", NAACL 2016); 0 without n-grams.
    pub distinct: [f64; 2],
    /// How many different words the captions have.
    pub vocabulary_size: usize,
    /// Words a caption.
    pub mean_length: f64,
}

/// Measures the candidates of `corpus`, in the words that BLEU and CIDEr-D see: punctuation does not count, clitics are
/// words of their own.
#[must_use]
pub fn fluency(corpus: &Corpus) -> Fluency {
    // The tokeniser lets a single letter keep its full stop.
    let bad_endings: Vec<u32> = BAD_ENDINGS.into_iter().chain(["a."]).filter_map(|word| corpus.id(word)).collect();
    let mut repeated = [(); MAX_ORDER].map(|()| Vec::with_capacity(corpus.len()));
    let mut incorrect = Vec::with_capacity(corpus.len());
    let mut counts = Sparse::new();
    let mut short: Vec<Ngram> = Vec::new();
    let mut total = [0_usize; MAX_ORDER];
    for (candidate, _) in corpus.words() {
        ngrams::count(candidate, &mut counts);
        let mut again = [0_u32; MAX_ORDER];
        for &(ngram, count) in &counts {
            again[ngram.order()] += count - 1;
        }
        short.extend(counts.iter().map(|&(ngram, _)| ngram).filter(|ngram| ngram.order() < 2));
        for (order, values) in repeated.iter_mut().enumerate() {
            values.push(again[order].into());
            total[order] += candidate.len().saturating_sub(order);
        }
        let ends_badly = candidate.last().is_some_and(|last| bad_endings.contains(last));
        incorrect.push(f64::from(u8::from(ends_badly)));
    }
    short.sort_unstable();
    short.dedup();
    let different = |order| short.iter().filter(|ngram| ngram.order() == order).count();
    let ratio = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    Fluency {
        repeated: repeated.map(Scores::mean),
        incorrect_endings: Scores::mean(incorrect),
        distinct: [0, 1].map(|order| ratio(different(order), total[order])),
        vocabulary_size: different(0),
        mean_length: ratio(total[0], corpus.len()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{item, some_items};

    fn of(captions: &[&str]) -> Fluency {
        let items: Vec<_> =
            captions.iter().map(|caption| item(caption, &["a word that only references have"])).collect();
        fluency(&Corpus::new(&items))
    }

    #[test]
    fn repeated_is_all_less_different() {
        let Fluency { repeated, .. } = of(&["a b a b a", "a b c", ""]);
        let [one, two, three, four] = repeated.map(|scores| scores.items);
        assert_eq!((one, two), (vec![3.0, 0.0, 0.0], vec![2.0, 0.0, 0.0]));
        assert_eq!((three, four), (vec![1.0, 0.0, 0.0], vec![0.0; 3]));
        assert_eq!(of(&["a a", "a b"]).repeated[0].corpus, 0.5);
    }

    #[test]
    fn endings_are_looked_up_without_punctuation_and_case() {
        let captions = ["A dog on a.", "a dog runs IN", "a dog sits", "", "a dog with", "the withered"];
        let Fluency { incorrect_endings, .. } = of(&captions);
        assert_eq!(incorrect_endings, Scores { corpus: 0.5, items: vec![1.0, 1.0, 0.0, 0.0, 1.0, 0.0] });
    }

    #[test]
    fn variety_is_counted_over_all_captions() {
        let Fluency { distinct, vocabulary_size, mean_length, .. } = of(&["a cat sat", "a cat", "cat"]);
        assert_eq!((vocabulary_size, mean_length), (3, 2.0));
        assert_eq!(distinct, [3.0 / 6.0, 2.0 / 3.0]);
    }

    #[test]
    fn nothing_measures_zero() {
        let none = of(&[]);
        assert_eq!((none.distinct, none.vocabulary_size, none.mean_length), ([0.0; 2], 0, 0.0));
        assert_eq!(of(&["", "!"]).distinct, [0.0; 2]);
    }

    proptest! {
        #[test]
        fn values_keep_their_bounds(items in some_items()) {
            let Fluency { repeated, distinct, vocabulary_size, mean_length, .. } = fluency(&Corpus::new(&items));
            // A repeated n-gram is two repeated shorter ones.
            for (shorter, longer) in repeated.iter().zip(&repeated[1..]) {
                prop_assert!(shorter.items.iter().zip(&longer.items).all(|(s, l)| s >= l));
            }
            prop_assert!(distinct.iter().all(|share| (0.0..=1.0).contains(share)));
            prop_assert!(vocabulary_size as f64 <= mean_length * items.len() as f64 + 1e-9);
        }
    }
}
