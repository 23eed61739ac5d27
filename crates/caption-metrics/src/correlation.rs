//! How well scores go together with what people think: Kendall's rank correlation, and accuracy on pairs.

use std::cmp::Ordering;

/// Kendall's tau-b and tau-c (Stuart's) of two lists of equal length, as `scipy.stats.kendalltau` defines them. None where one of
/// them has one value only.
///
/// Takes time n log n (Knight 1966): pairs that are ordered differently are counted as exchanges of a merge sort.
///
/// # Panics
/// The lists are of different length.
#[must_use]
pub fn kendall(one: &[f64], other: &[f64]) -> Option<[f64; 2]> {
    assert_eq!(one.len(), other.len(), "each score has one judgement");
    let mut pairs: Vec<(f64, f64)> = one.iter().copied().zip(other.iter().copied()).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let tied_in_one = tied(pairs.chunk_by(|a, b| a.0 == b.0).map(<[_]>::len));
    let tied_in_both = tied(pairs.chunk_by(|a, b| a == b).map(<[_]>::len));
    let values_of_one = pairs.chunk_by(|a, b| a.0 == b.0).count();
    let mut seconds: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
    let exchanged = sort_counting(&mut seconds);
    let tied_in_other = tied(seconds.chunk_by(|a, b| a == b).map(<[_]>::len));
    let values_of_other = seconds.chunk_by(|a, b| a == b).count();

    let fewest = values_of_one.min(values_of_other);
    if fewest < 2 {
        return None;
    }
    let all = pair_count(pairs.len());
    let agreeing = all - tied_in_one - tied_in_other + tied_in_both - 2.0 * exchanged as f64;
    let tau_b = agreeing / ((all - tied_in_one) * (all - tied_in_other)).sqrt();
    let (count, fewest) = (pairs.len() as f64, fewest as f64);
    let tau_c = 2.0 * agreeing / (count * count * (fewest - 1.0) / fewest);
    Some([tau_b.clamp(-1.0, 1.0), tau_c])
}

/// Pairs within runs of these lengths.
fn tied(lengths: impl Iterator<Item = usize>) -> f64 {
    lengths.map(pair_count).sum()
}

/// Pairs among so many.
fn pair_count(count: usize) -> f64 {
    count as f64 * (count as f64 - 1.0) / 2.0
}

/// Sorts, and counts the pairs that were in the wrong order.
fn sort_counting(values: &mut [f64]) -> u64 {
    let middle = values.len() / 2;
    if middle == 0 {
        return 0;
    }
    let (left, right) = values.split_at_mut(middle);
    let mut exchanged = sort_counting(left) + sort_counting(right);
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut rest, mut next) = (&left[..], &right[..]);
    while let ([first, left @ ..], [second, right @ ..]) = (rest, next) {
        if second.total_cmp(first) == Ordering::Less {
            exchanged += rest.len() as u64;
            merged.push(*second);
            next = right;
        } else {
            merged.push(*first);
            rest = left;
        }
    }
    merged.extend_from_slice(rest);
    merged.extend_from_slice(next);
    values.copy_from_slice(&merged);
    exchanged
}

/// The share of pairs of which the preferred one has the higher score; equal scores count half.
#[must_use]
pub fn accuracy(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<f64> {
    let (mut right, mut count) = (0.0, 0_usize);
    for (preferred, other) in pairs {
        right += match preferred.total_cmp(&other) {
            Ordering::Greater => 1.0,
            Ordering::Equal => 0.5,
            Ordering::Less => 0.0,
        };
        count += 1;
    }
    (count > 0).then(|| right / count as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By definition: all pairs are looked at.
    fn counted(one: &[f64], other: &[f64]) -> Option<[f64; 2]> {
        let (mut agreeing, mut untied_one, mut untied_other) = (0.0, 0.0, 0.0);
        for i in 0..one.len() {
            for j in 0..i {
                let [a, b] = [one[i] - one[j], other[i] - other[j]];
                agreeing += if a * b == 0.0 { 0.0 } else { (a * b).signum() };
                untied_one += f64::from(a != 0.0);
                untied_other += f64::from(b != 0.0);
            }
        }
        let values =
            |of: &[f64]| of.iter().map(|value| value.to_bits()).collect::<std::collections::BTreeSet<_>>().len();
        let fewest = values(one).min(values(other)) as f64;
        let count = one.len() as f64;
        let both = [
            agreeing / f64::sqrt(untied_one * untied_other),
            2.0 * agreeing / (count * count * (fewest - 1.0) / fewest),
        ];
        (fewest > 1.0).then_some(both)
    }

    proptest! {
        #[test]
        fn correlations_are_those_of_all_pairs(
            pairs in prop::collection::vec((0..6_u8, 0..4_u8), 0..60), fine in prop::collection::vec(-1.0..1.0_f64, 60),
        ) {
            let one: Vec<f64> = pairs.iter().map(|pair| f64::from(pair.0)).collect();
            let other: Vec<f64> = pairs.iter().map(|pair| f64::from(pair.1)).collect();
            for (a, b) in [(&one[..], &other[..]), (&fine[..one.len()], &other[..]), (&one[..], &one[..])] {
                match (kendall(a, b), counted(a, b)) {
                    (Some(found), Some(expected)) => {
                        prop_assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
                    }
                    (found, expected) => prop_assert_eq!(found, expected),
                }
            }
        }
    }

    #[test]
    fn values_are_those_of_scipy() {
        // scipy.stats.kendalltau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0], variant=...)
        let found = kendall(&[12.0, 2.0, 1.0, 12.0, 2.0], &[1.0, 4.0, 7.0, 1.0, 0.0]).unwrap();
        assert!((found[0] + 0.471_404_520_791_031_7).abs() < 1e-15 && (found[1] + 0.48).abs() < 1e-15, "{found:?}");
        assert_eq!(kendall(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(kendall(&[], &[]), None);
    }

    #[test]
    fn ties_of_pairs_count_half() {
        assert_eq!(accuracy([(2.0, 1.0), (1.0, 2.0), (1.0, 1.0), (3.0, 1.0)]), Some(0.625));
        assert_eq!(accuracy([]), None);
    }
}
