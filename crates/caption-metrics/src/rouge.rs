//! ROUGE-L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004), as pycocoevalcap's `rouge.py`
//! computes it.

use crate::{Corpus, Scores};

/// Words of a caption that are looked at: more than captions have, and few enough for time that
/// grows with the product of two captions' lengths.
const MAX_WORDS: usize = 4096;
/// Weight of recall over precision.
const BETA: f64 = 1.2;
/// What an empty caption is to the reference implementation, which splits it into one empty token: 0, no other token's
/// id. Thus two empty captions agree.
const EMPTY: &[u32] = &[0];

/// ROUGE-L (0 to 1), as `Rouge()` of pycocoevalcap: the F-measure (beta 1.2) of the best precision and the best recall
/// over the references, each of the longest common subsequence; the two may come from different references. `corpus` is
/// the mean over items. An item without references scores 0. Of a caption the first 4,096 tokens count.
#[must_use]
pub fn rouge_l(corpus: &Corpus) -> Scores {
    let mut row = Vec::new();
    let mut items = Vec::with_capacity(corpus.len());
    for (candidate, references) in corpus.tokens() {
        let candidate = some(candidate);
        let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
        for reference in references.map(some) {
            let common = longest_common_subsequence(candidate, reference, &mut row) as f64;
            precision = precision.max(common / candidate.len() as f64);
            recall = recall.max(common / reference.len() as f64);
        }
        // Both are 0 or none is.
        let balance = recall + BETA * BETA * precision;
        items.push(if balance == 0.0 { 0.0 } else { (1.0 + BETA * BETA) * precision * recall / balance });
    }
    Scores::mean(items)
}

fn some(caption: &[u32]) -> &[u32] {
    if caption.is_empty() { EMPTY } else { &caption[..caption.len().min(MAX_WORDS)] }
}

/// The length of the longest common subsequence; `row` is scratch space.
fn longest_common_subsequence(left: &[u32], right: &[u32], row: &mut Vec<usize>) -> usize {
    // After each element of `left`: the length with what of `right` comes before each position.
    row.clear();
    row.resize(right.len() + 1, 0);
    for l in left {
        let mut diagonal = 0;
        for (index, r) in right.iter().enumerate() {
            let above = row[index + 1];
            row[index + 1] = if l == r { diagonal + 1 } else { above.max(row[index]) };
            diagonal = above;
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Item, item, some_items};

    fn values(items: &[Item]) -> Vec<f64> {
        rouge_l(&Corpus::new(items)).items
    }

    fn f_measure(precision: f64, recall: f64) -> f64 {
        2.44 * precision * recall / (recall + 1.44 * precision)
    }

    /// By the definition.
    fn by_recursion(left: &[u32], right: &[u32]) -> usize {
        match (left, right) {
            ([l, left_rest @ ..], [r, right_rest @ ..]) if l == r => 1 + by_recursion(left_rest, right_rest),
            ([_, left_rest @ ..], [_, right_rest @ ..]) => {
                by_recursion(left_rest, right).max(by_recursion(left, right_rest))
            }
            _ => 0,
        }
    }

    #[test]
    fn precision_and_recall_come_from_different_references() {
        // "a b" is all of the candidate's half and all of the short reference; "a b c" is in the long one.
        let got = values(&[item("a b c x", &["a b", "a b c d e f g h"])])[0];
        assert!((got - f_measure(3.0 / 4.0, 1.0)).abs() < 1e-12, "{got}");
    }

    #[test]
    fn identical_scores_one_and_disjoint_zero() {
        assert_eq!(values(&[item("a b", &["x", "A b!"]), item("a b", &["c d"])]), [1.0, 0.0]);
    }

    #[test]
    fn empty_captions_agree_with_each_other_only() {
        let items = [item("", &["a", "."]), item("!", &[""]), item("", &["a"]), item("a", &[""]), item("a", &[])];
        assert_eq!(values(&items), [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(rouge_l(&Corpus::new(&[])), Scores { corpus: 0.0, items: vec![] });
    }

    #[test]
    fn only_so_many_words_count() {
        // Compared as a whole they would take hours.
        let endless = "a ".repeat(1_000_000);
        assert_eq!(values(&[item(&endless, &[&endless, "b"])]), [1.0]);
        let long = "a ".repeat(MAX_WORDS);
        assert_eq!(values(&[item(&format!("{long} b"), &[&long])]), [1.0]);
        assert!(values(&[item(&format!("b {long}"), &[&long])])[0] < 1.0);
    }

    proptest! {
        #[test]
        fn subsequence_is_the_longest(
            left in proptest::collection::vec(1_u32..4, 0..9), right in proptest::collection::vec(1_u32..4, 0..9),
        ) {
            let expected = by_recursion(&left, &right);
            prop_assert_eq!(longest_common_subsequence(&left, &right, &mut vec![7]), expected);
        }

        #[test]
        fn values_are_shares(items in some_items()) {
            for value in values(&items) {
                prop_assert!((0.0..=1.0 + 1e-12).contains(&value), "{value}");
            }
        }
    }
}
