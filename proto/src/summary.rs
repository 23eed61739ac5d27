//! Conversions between a summary (of rewards, lengths and so on) and its message.

use summary_statistics::{InvalidSummaryError, Summary, SummaryParts};

use crate::v1;

impl From<&Summary> for v1::Summary {
    fn from(summary: &Summary) -> Self {
        let SummaryParts { count, mean, m2, min, max, positive, negative, zero } = summary.clone().into();
        let (positive, negative) = (positive.into_iter().collect(), negative.into_iter().collect());
        Self { count, mean, m2, min, max, positive, negative, zero }
    }
}

/// Fails if the message's fields contradict each other, are not finite, or exceed a limit of
/// `summary_statistics`. A correct peer never sends such a message.
impl TryFrom<&v1::Summary> for Summary {
    type Error = InvalidSummaryError;

    fn try_from(message: &v1::Summary) -> Result<Self, InvalidSummaryError> {
        let buckets = |counts: &std::collections::HashMap<i32, u64>| {
            counts.iter().map(|(&bucket, &count)| (bucket, count)).collect()
        };
        Self::try_from(SummaryParts {
            count: message.count,
            mean: message.mean,
            m2: message.m2,
            min: message.min,
            max: message.max,
            positive: buckets(&message.positive),
            negative: buckets(&message.negative),
            zero: message.zero,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_summary_is_unchanged_by_the_conversion_to_a_message_and_back(values in prop::collection::vec(-1e12..1e12_f64, 0..40)) {
            let summary = Summary::of(values);
            prop_assert_eq!(Summary::try_from(&v1::Summary::from(&summary)), Ok(summary));
        }
    }

    #[test]
    fn a_count_other_than_the_sum_of_the_buckets_is_refused() {
        let message = v1::Summary { count: 4, ..(&Summary::of([1.0, -2.0, 0.0])).into() };
        assert_eq!(Summary::try_from(&message), Err(InvalidSummaryError));
    }
}
