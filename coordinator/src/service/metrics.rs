//! The run as Prometheus sees it. The recorder is this coordinator's own, not the process's: several can live in one
//! process, as they do in tests.

use metrics::{
    Label, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram, with_local_recorder,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use runfile::RunFile;
use statistics::{Summary, names};

use super::refusals::Refusals;
use crate::run::{Run, record::Record, statistics::StepStatistics};

/// Bounds of the buckets of step durations, in seconds.
const STEP_SECONDS: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0];
/// Quantiles of rewards.
const QUANTILES: [(f64, &str); 5] = [(0.05, "0.05"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (0.95, "0.95")];

/// Gauges of a step that are the mean of a summary.
const MEANS: [(&str, &str, &str); 6] = [
    (names::REWARD_MARGIN, "dico_reward_margin", "Mean reward of the best candidate minus that of the others"),
    (
        names::IMPLICIT_ACCURACY,
        "dico_implicit_accuracy",
        "Share of images whose implicit reward prefers the best candidate",
    ),
    (names::KL, "dico_kl", "Estimate of KL(policy || reference) per token, in nats"),
    (names::GAMMA_ENTROPY, "dico_gamma_entropy", "Mean entropy of the weights over rejected candidates, in nats"),
    (names::CAPTION_LENGTH, "dico_caption_length", "Mean tokens of a candidate"),
    (names::REPETITION, "dico_repetition", "Mean share of a candidate's tokens that repeat an earlier one"),
];

/// All metrics of a coordinator.
pub struct Metrics {
    recorder: PrometheusRecorder,
    run: String,
    /// Stage whose `dico_stage_info` is 1.
    stage: Option<String>,
    /// Metric whose `dico_best_score` is a number.
    best: Option<String>,
}

impl Metrics {
    /// The metrics of a run.
    pub fn new(file: &RunFile) -> Self {
        let seconds = Matcher::Full("dico_step_seconds".into());
        let builder = PrometheusBuilder::new().set_buckets_for_metric(seconds, &STEP_SECONDS);
        let recorder = builder.expect("the buckets are not empty").build_recorder();
        with_local_recorder(&recorder, || {
            describe();
            gauge!("dico_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            counter!("dico_recoveries_total").absolute(0);
            counter!("dico_checkpoints_total").absolute(0);
        });
        Self { recorder, run: file.name.clone(), stage: None, best: None }
    }

    /// Renders the metrics.
    pub fn handle(&self) -> PrometheusHandle {
        self.recorder.handle()
    }

    /// Counts what is refused.
    pub fn refusals(&self) -> Refusals {
        with_local_recorder(&self.recorder, Refusals::new)
    }

    /// Brings the metrics up to date with something that happened.
    pub fn record(&self, record: &Record) {
        with_local_recorder(&self.recorder, || match record {
            Record::Step(step) => expose_step(step),
            Record::Ready { recovery: true, .. } => counter!("dico_recoveries_total").increment(1),
            Record::Saved(_) => counter!("dico_checkpoints_total").increment(1),
            Record::Evaluated { metrics, .. } => {
                for (metric, score) in metrics {
                    gauge!("dico_evaluation_score", "metric" => metric.clone()).set(*score);
                }
            }
            Record::Guard { firing, .. } => {
                let labels = [("metric", firing.metric.clone()), ("action", firing.action.name().to_owned())];
                counter!("dico_guard_events_total", &labels).increment(1);
            }
            Record::Ready { .. }
            | Record::Formed { .. }
            | Record::Ended { .. }
            | Record::Deleted(_)
            | Record::Damaged(_)
            | Record::Event { .. } => {}
        });
    }

    /// Brings the metrics up to date with how the run stands.
    pub fn publish(&mut self, run: &Run) {
        let (status, samples, best) = (run.outline(), run.samples_committed(), run.best());
        let members = run.attached();
        let Self { recorder, run, stage, best: known } = self;
        with_local_recorder(&*recorder, || {
            gauge!("dico_step").set(status.step as f64);
            gauge!("dico_generation").set(status.generation as f64);
            gauge!("dico_members").set(members as f64);
            counter!("dico_samples_committed_total").absolute(samples);
            let info = |name: &str, value| {
                gauge!("dico_stage_info", "run" => run.clone(), "stage" => name.to_owned()).set(value);
            };
            if let Some(earlier) =
                stage.replace(status.stage_name.clone()).filter(|earlier| *earlier != status.stage_name)
            {
                info(&earlier, 0.0);
            }
            info(&status.stage_name, 1.0);
            gauge!("dico_paused").set(f64::from(status.state == "paused"));
            let score = |metric: &str, value| gauge!("dico_best_score", "metric" => metric.to_owned()).set(value);
            let metric = best.map(|(metric, _)| metric.to_owned());
            if let Some(earlier) = std::mem::replace(known, metric.clone()).filter(|_| *known != metric) {
                score(&earlier, f64::NAN);
            }
            if let Some((metric, best)) = best {
                score(metric, best.score);
            }
        });
        // Folds what histograms have gathered into their buckets, so that it does not pile up between scrapes.
        recorder.handle().run_upkeep();
    }
}

fn expose_step(step: &StepStatistics) {
    gauge!("dico_loss").set(step.loss());
    gauge!("dico_learning_rate").set(step.learning_rate);
    gauge!("dico_gradient_norm").set(step.gradient_norm);
    histogram!("dico_step_seconds").record(step.seconds);
    gauge!("dico_all_reduce_seconds").set(step.all_reduce_seconds);
    gauge!("dico_images_per_second").set(step.images_per_second());
    if let Some((rank, seconds)) = step.pace.lag() {
        gauge!("dico_slowest_rank").set(rank);
        gauge!("dico_lag_seconds").set(seconds);
    }
    for (summary, gauge, _) in MEANS {
        if let Some(summary) = step.summaries.get(summary).filter(|summary| summary.count() > 0) {
            gauge!(gauge).set(summary.mean());
        }
    }
    for (summary, role) in [(names::REWARD_CHOSEN, "chosen"), (names::REWARD_REJECTED, "rejected")] {
        if let Some(summary) = step.summaries.get(summary) {
            expose_reward(summary, role);
        }
    }
}

fn expose_reward(summary: &Summary, role: &'static str) {
    for (q, quantile) in QUANTILES {
        if let Some(value) = summary.quantile(q) {
            let labels = vec![Label::new("role", role), Label::new("quantile", quantile)];
            gauge!("dico_reward", labels).set(value);
        }
    }
}

fn describe() {
    describe_gauge!("dico_step", "Committed updates of the present stage");
    describe_gauge!("dico_stage_info", "1 for the present stage");
    describe_gauge!("dico_loss", "Loss of the last step, per image or token");
    describe_gauge!("dico_learning_rate", "Learning rate of the last step");
    describe_gauge!("dico_gradient_norm", "Norm of the last step's gradient, before clipping");
    describe_gauge!("dico_reward", "Quantiles of the rewards of candidates in the last step");
    for (_, gauge, description) in MEANS {
        describe_gauge!(gauge, description);
    }
    describe_histogram!("dico_step_seconds", "Seconds of a step on the slowest member");
    describe_gauge!("dico_all_reduce_seconds", "Longest time a member spent in the last step's all-reduce, in seconds");
    describe_gauge!("dico_images_per_second", "Samples a second over all members in the last step");
    describe_gauge!("dico_slowest_rank", "Rank that the others waited for in the last step");
    describe_gauge!(
        "dico_lag_seconds",
        "How much longer than the average of the others the slowest rank computed, in seconds"
    );
    describe_counter!("dico_samples_committed_total", "Samples that training has consumed for good");
    describe_gauge!("dico_generation", "Number of the last generation");
    describe_gauge!("dico_members", "Attached workers");
    describe_counter!("dico_recoveries_total", "Generations that took over from one that was broken by a failure");
    describe_counter!("dico_checkpoints_total", "Checkpoints written");
    describe_gauge!("dico_evaluation_score", "Scores of the last evaluation");
    describe_gauge!("dico_best_score", "Score of the present stage's best state, by the stage's metric");
    describe_counter!("dico_guard_events_total", "Rules of the guard that were broken");
    describe_gauge!("dico_paused", "1 while the run is paused: by its guard, or because a state cannot be saved");
    describe_counter!(
        "dico_refusals_total",
        "Connections, calls and sessions that were refused or ended for what they are"
    );
    describe_gauge!("dico_build_info", "Version of the coordinator");
}
