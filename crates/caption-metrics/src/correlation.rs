//! Correlation of scores with human judgements: Kendall's tau, and accuracy on pairs of captions.

use std::cmp::Ordering;

/// Kendall's tau-b and tau-c (Stuart's) of two lists of equal length, as `scipy.stats.kendalltau`
/// defines them. None if a list has fewer than two distinct values.
///
/// Takes time n log n (Knight 1966): the discordant pairs of captions are the inversions that a
/// merge sort removes.
///
/// # Panics
/// The lists are of different length.
#[must_use]
pub fn kendall_tau(scores: &[f64], ratings: &[f64]) -> Option<[f64; 2]> {
    assert_eq!(scores.len(), ratings.len(), "each score has one judgement");
    let mut observations: Vec<(f64, f64)> = scores.iter().copied().zip(ratings.iter().copied()).collect();
    observations.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let tied_scores = count_pairs_in_runs(observations.chunk_by(|a, b| a.0 == b.0).map(<[_]>::len));
    let tied_in_both = count_pairs_in_runs(observations.chunk_by(|a, b| a == b).map(<[_]>::len));
    let distinct_scores = observations.chunk_by(|a, b| a.0 == b.0).count();
    let mut ratings_by_score: Vec<f64> = observations.iter().map(|&(_, rating)| rating).collect();
    let discordant = sort_counting_inversions(&mut ratings_by_score);
    let tied_ratings = count_pairs_in_runs(ratings_by_score.chunk_by(|a, b| a == b).map(<[_]>::len));
    let distinct_ratings = ratings_by_score.chunk_by(|a, b| a == b).count();

    let fewer_values = distinct_scores.min(distinct_ratings);
    if fewer_values < 2 {
        return None;
    }
    let pair_total = pair_count(observations.len());
    let concordance = pair_total - tied_scores - tied_ratings + tied_in_both - 2.0 * discordant as f64;
    let tau_b = concordance / ((pair_total - tied_scores) * (pair_total - tied_ratings)).sqrt();
    let (count, fewer_values) = (observations.len() as f64, fewer_values as f64);
    let tau_c = 2.0 * concordance / (count * count * (fewer_values - 1.0) / fewer_values);
    Some([tau_b.clamp(-1.0, 1.0), tau_c])
}

/// The number of pairs within runs of these lengths.
fn count_pairs_in_runs(lengths: impl Iterator<Item = usize>) -> f64 {
    lengths.map(pair_count).sum()
}

/// The number of pairs of `count` elements.
fn pair_count(count: usize) -> f64 {
    count as f64 * (count as f64 - 1.0) / 2.0
}

/// Sorts `values` and returns the number of pairs that were in the wrong order.
fn sort_counting_inversions(values: &mut [f64]) -> u64 {
    let middle = values.len() / 2;
    if middle == 0 {
        return 0;
    }
    let (left, right) = values.split_at_mut(middle);
    let mut inversions = sort_counting_inversions(left) + sort_counting_inversions(right);
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left_rest, mut right_rest) = (&left[..], &right[..]);
    while let ([first, left @ ..], [second, right @ ..]) = (left_rest, right_rest) {
        if second.total_cmp(first) == Ordering::Less {
            inversions += left_rest.len() as u64;
            merged.push(*second);
            right_rest = right;
        } else {
            merged.push(*first);
            left_rest = left;
        }
    }
    merged.extend_from_slice(left_rest);
    merged.extend_from_slice(right_rest);
    values.copy_from_slice(&merged);
    inversions
}

/// The fraction of pairs in which the preferred caption has the higher score; equal scores count
/// half. None without pairs.
#[must_use]
pub fn pairwise_accuracy(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<f64> {
    let (mut correct, mut count) = (0.0, 0_usize);
    for (preferred, other) in pairs {
        correct += match preferred.total_cmp(&other) {
            Ordering::Greater => 1.0,
            Ordering::Equal => 0.5,
            Ordering::Less => 0.0,
        };
        count += 1;
    }
    (count > 0).then(|| correct / count as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tau-b and tau-c by their definitions over all pairs.
    fn tau_by_definition(scores: &[f64], ratings: &[f64]) -> Option<[f64; 2]> {
        let (mut concordance, mut untied_scores, mut untied_ratings) = (0.0, 0.0, 0.0);
        for i in 0..scores.len() {
            for j in 0..i {
                let [a, b] = [scores[i] - scores[j], ratings[i] - ratings[j]];
                concordance += if a * b == 0.0 { 0.0 } else { (a * b).signum() };
                untied_scores += f64::from(a != 0.0);
                untied_ratings += f64::from(b != 0.0);
            }
        }
        let distinct_values =
            |list: &[f64]| list.iter().map(|value| value.to_bits()).collect::<std::collections::BTreeSet<_>>().len();
        let fewer_values = distinct_values(scores).min(distinct_values(ratings)) as f64;
        let count = scores.len() as f64;
        let taus = [
            concordance / f64::sqrt(untied_scores * untied_ratings),
            2.0 * concordance / (count * count * (fewer_values - 1.0) / fewer_values),
        ];
        (fewer_values > 1.0).then_some(taus)
    }

    proptest! {
        #[test]
        fn taus_equal_those_by_definition(
            pairs in prop::collection::vec((0..6_u8, 0..4_u8), 0..60), distinct in prop::collection::vec(-1.0..1.0_f64, 60),
        ) {
            let scores: Vec<f64> = pairs.iter().map(|pair| f64::from(pair.0)).collect();
            let ratings: Vec<f64> = pairs.iter().map(|pair| f64::from(pair.1)).collect();
            for (a, b) in [(&scores[..], &ratings[..]), (&distinct[..scores.len()], &ratings[..]), (&scores[..], &scores[..])] {
                match (kendall_tau(a, b), tau_by_definition(a, b)) {
                    (Some(taus), Some(expected)) => {
                        prop_assert!(taus.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{taus:?} {expected:?}");
                    }
                    (taus, expected) => prop_assert_eq!(taus, expected),
                }
            }
        }
    }

    #[test]
    fn taus_equal_those_of_scipy() {
        // scipy.stats.kendalltau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0], variant=...)
        let taus = kendall_tau(&[12.0, 2.0, 1.0, 12.0, 2.0], &[1.0, 4.0, 7.0, 1.0, 0.0]).unwrap();
        assert!((taus[0] + 0.471_404_520_791_031_7).abs() < 1e-15 && (taus[1] + 0.48).abs() < 1e-15, "{taus:?}");
        assert_eq!(kendall_tau(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(kendall_tau(&[], &[]), None);
    }

    #[test]
    fn tied_pairs_count_half() {
        assert_eq!(pairwise_accuracy([(2.0, 1.0), (1.0, 2.0), (1.0, 1.0), (3.0, 1.0)]), Some(0.625));
        assert_eq!(pairwise_accuracy([]), None);
    }
}
