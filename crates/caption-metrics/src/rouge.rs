//! ROUGE-L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004), as in
//! pycocoevalcap's `rouge.py`.

use crate::{Corpus, Scores};

/// Maximal number of tokens of a caption that count: more than real captions have. It bounds the
/// time, which grows with the product of two captions' lengths.
const MAX_TOKENS: usize = 4096;
/// Weight of recall over precision.
const BETA: f64 = 1.2;
/// An empty caption. The reference implementation splits it into one empty token, so two empty
/// captions match. Here this token has id 0, which no other token has.
const EMPTY_CAPTION: &[u32] = &[0];

/// ROUGE-L (0 to 1), as `Rouge()` of pycocoevalcap: the F-measure (beta 1.2) of the best precision
/// and the best recall of the longest common subsequence over the references; the two may come from
/// different references. The corpus value is the mean over items. An item without references scores
/// 0. The first 4,096 tokens of a caption count.
#[must_use]
pub fn rouge_l(corpus: &Corpus) -> Scores {
    let mut row = Vec::new();
    let mut items = Vec::with_capacity(corpus.len());
    for (candidate, references) in corpus.tokens() {
        let candidate = counted_tokens(candidate);
        let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
        for reference in references.map(counted_tokens) {
            let common = longest_common_subsequence(candidate, reference, &mut row) as f64;
            precision = precision.max(common / candidate.len() as f64);
            recall = recall.max(common / reference.len() as f64);
        }
        // Precision and recall are both 0 or both positive.
        let denominator = recall + BETA * BETA * precision;
        items.push(if denominator == 0.0 { 0.0 } else { (1.0 + BETA * BETA) * precision * recall / denominator });
    }
    Scores::mean(items)
}

/// The tokens that count: the first [`MAX_TOKENS`]; never none.
fn counted_tokens(caption: &[u32]) -> &[u32] {
    if caption.is_empty() { EMPTY_CAPTION } else { &caption[..caption.len().min(MAX_TOKENS)] }
}

/// The length of the longest common subsequence; `row` is scratch space.
fn longest_common_subsequence(left: &[u32], right: &[u32], row: &mut Vec<usize>) -> usize {
    // After each element of `left`: the length for each prefix of `right`.
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
    use crate::{Item, any_items, item};

    fn values(items: &[Item]) -> Vec<f64> {
        rouge_l(&Corpus::new(items)).items
    }

    fn f_measure(precision: f64, recall: f64) -> f64 {
        2.44 * precision * recall / (recall + 1.44 * precision)
    }

    /// The length of the longest common subsequence by its definition.
    fn lcs_by_recursion(left: &[u32], right: &[u32]) -> usize {
        match (left, right) {
            ([l, left_rest @ ..], [r, right_rest @ ..]) if l == r => 1 + lcs_by_recursion(left_rest, right_rest),
            ([_, left_rest @ ..], [_, right_rest @ ..]) => {
                lcs_by_recursion(left_rest, right).max(lcs_by_recursion(left, right_rest))
            }
            _ => 0,
        }
    }

    #[test]
    fn precision_and_recall_come_from_different_references() {
        // "a b c" of the long reference gives the best precision, "a b" of the short one the best
        // recall.
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
    fn only_the_first_tokens_count() {
        // Comparing all tokens would take hours.
        let endless = "a ".repeat(1_000_000);
        assert_eq!(values(&[item(&endless, &[&endless, "b"])]), [1.0]);
        let long = "a ".repeat(MAX_TOKENS);
        assert_eq!(values(&[item(&format!("{long} b"), &[&long])]), [1.0]);
        assert!(values(&[item(&format!("b {long}"), &[&long])])[0] < 1.0);
    }

    proptest! {
        #[test]
        fn the_longest_common_subsequence_is_found(
            left in proptest::collection::vec(1_u32..4, 0..9), right in proptest::collection::vec(1_u32..4, 0..9),
        ) {
            let expected = lcs_by_recursion(&left, &right);
            prop_assert_eq!(longest_common_subsequence(&left, &right, &mut vec![7]), expected);
        }

        #[test]
        fn values_are_between_zero_and_one(items in any_items()) {
            for value in values(&items) {
                prop_assert!((0.0..=1.0 + 1e-12).contains(&value), "{value}");
            }
        }
    }
}
