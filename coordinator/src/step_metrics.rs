//! The metrics of a step that the report and TensorBoard show as curves, by name.

use journal::{Distribution, RecordedStep};
use metric_catalogue::names;

/// Distributions that are shown by their quantiles, with the names of the quantiles.
const QUANTILE_NAMES: [(&str, [&str; 5]); 2] = [
    (
        names::REWARD_CHOSEN,
        ["reward_chosen_p05", "reward_chosen_p25", "reward_chosen_p50", "reward_chosen_p75", "reward_chosen_p95"],
    ),
    (
        names::REWARD_REJECTED,
        [
            "reward_rejected_p05",
            "reward_rejected_p25",
            "reward_rejected_p50",
            "reward_rejected_p75",
            "reward_rejected_p95",
        ],
    ),
];
/// Distributions that are shown by their means.
const MEAN_NAMES: [&str; 6] = [
    names::REWARD_MARGIN,
    names::IMPLICIT_ACCURACY,
    names::KL,
    names::GAMMA_ENTROPY,
    names::CAPTION_LENGTH,
    names::REPETITION,
];

/// The finite metrics of training: `loss`, `learning_rate`, `reward_chosen_p50` and so on.
pub fn training_metrics(step: &RecordedStep) -> Vec<(&'static str, f64)> {
    let distribution = |name: &str| step.summaries.get(name).filter(|distribution| distribution.count > 0);
    let mut metrics =
        vec![("loss", step.loss), ("learning_rate", step.learning_rate), ("gradient_norm", step.gradient_norm)];
    for (name, quantiles) in QUANTILE_NAMES {
        if let Some(Distribution { p05, p25, p50, p75, p95, .. }) = distribution(name) {
            metrics.extend(quantiles.into_iter().zip([*p05, *p25, *p50, *p75, *p95]));
        }
    }
    metrics.extend(MEAN_NAMES.into_iter().filter_map(|name| Some((name, distribution(name)?.mean))));
    finite(metrics)
}

/// The finite metrics of speed: `step_seconds`, `images_per_second` and so on.
pub fn speed_metrics(step: &RecordedStep) -> Vec<(&'static str, f64)> {
    finite(vec![
        ("images_per_second", step.samples_per_second()),
        ("step_seconds", step.seconds),
        ("all_reduce_seconds", step.all_reduce_seconds),
        ("lag_seconds", step.lag_seconds),
    ])
}

fn finite(metrics: Vec<(&'static str, Option<f64>)>) -> Vec<(&'static str, f64)> {
    let present = metrics.into_iter().filter_map(|(name, value)| Some((name, value?)));
    present.filter(|(_, value)| value.is_finite()).collect()
}
