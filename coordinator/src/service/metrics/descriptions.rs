//! All metrics that a coordinator exposes. `docs/operations.md` has the same table, and a test
//! compares the two.

use metric_catalogue::METRICS;
use metrics::{describe_counter, describe_gauge, describe_histogram};

/// The type of a metric, as in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// The description of a metric of Prometheus: name, type, labels and meaning.
pub type Description = (&'static str, Kind, &'static [&'static str], &'static str);

use Kind::{Counter, Gauge, Histogram};

/// Metrics of the coordinator, its workers and the run.
#[rustfmt::skip]
const COORDINATOR: [Description; 36] = [
    ("dico_build_info", Gauge, &["version"], "1, with the coordinator's version"),
    ("dico_run_state", Gauge, &["state"], "1 for the run's state, 0 for the others: waiting, forming, running, paused, finished, failed"),
    ("dico_stage_info", Gauge, &["run", "stage"], "1 for the current stage"),
    ("dico_stage_steps", Gauge, &[], "Steps of the current stage in total"),
    ("dico_step", Gauge, &[], "Committed steps of the current stage"),
    ("dico_last_step_timestamp_seconds", Gauge, &[], "When all members had reported the last step, or the coordinator started"),
    ("dico_samples_committed_total", Counter, &[], "Samples of committed steps on the present lineage"),
    ("dico_loss", Gauge, &[], "Loss of the last step, per image or token"),
    ("dico_learning_rate", Gauge, &[], "Learning rate of the last step"),
    ("dico_gradient_norm", Gauge, &[], "Norm of the last step's gradient, before clipping"),
    ("dico_reward", Gauge, &["role", "quantile"], "Quantiles of the rewards of chosen and rejected candidates in the last step"),
    ("dico_evaluation_score", Gauge, &["metric"], "Scores of the last evaluation"),
    ("dico_best_score", Gauge, &["metric"], "Best score of the current stage, by the stage's metric"),
    ("dico_guard_events_total", Counter, &["metric", "action"], "Triggered guard rules"),
    ("dico_images_per_second", Gauge, &[], "Samples per second of the last step, over all members"),
    ("dico_tokens_per_second", Gauge, &[], "Trained tokens per second of the last step, over all members"),
    ("dico_step_seconds", Histogram, &[], "Duration of a step on the slowest member, in seconds"),
    ("dico_phase_seconds", Gauge, &["phase"], "Duration of each phase of the last step, averaged over members, in seconds"),
    ("dico_all_reduce_seconds", Gauge, &[], "Longest time of a member in the last step's all-reduce, in seconds"),
    ("dico_slowest_rank", Gauge, &[], "Worker id of the slowest member in the last step"),
    ("dico_lag_seconds", Gauge, &[], "Compute time of the slowest member in the last step minus the average of the others, in seconds"),
    ("dico_worker_up", Gauge, &["rank"], "1 while the worker with this id is attached, 0 after it has left; only ids below 256"),
    ("dico_worker_images_per_second", Gauge, &["rank"], "Samples per second of a worker in its last step; only ids below 256"),
    ("dico_worker_tokens_per_second", Gauge, &["rank"], "Tokens per second of a worker in its last step; only ids below 256"),
    ("dico_members", Gauge, &[], "Attached workers"),
    ("dico_workers_wanted", Gauge, &[], "Minimal number of workers, `workers.min`: the run waits while fewer are attached"),
    ("dico_workers_lost_total", Counter, &[], "Workers that failed or were evicted"),
    ("dico_generation", Gauge, &[], "Number of the last generation"),
    ("dico_recoveries_total", Counter, &[], "Generations that were formed after a failure"),
    ("dico_recovery_seconds", Histogram, &[], "Time from the end of a failed generation to the next step that all members have reported, in seconds"),
    ("dico_checkpoints_total", Counter, &[], "Checkpoints written"),
    ("dico_last_checkpoint_timestamp_seconds", Gauge, &[], "When the last checkpoint was completed, or the coordinator started"),
    ("dico_disk_free_bytes", Gauge, &["what"], "Free space on the disk of the journal (state) and of checkpoints in a folder (checkpoints), in bytes"),
    ("dico_disk_size_bytes", Gauge, &["what"], "Size of these disks, in bytes"),
    ("dico_paused", Gauge, &[], "1 while the run is paused: by its guard, by an operator, or because a state or captions cannot be saved"),
    ("dico_refusals_total", Counter, &["reason"], "Refused connections and calls, and sessions that were ended with an error"),
];

/// All metrics: those in [`COORDINATOR`], then the gauges of the catalogue's metrics.
pub fn all() -> impl Iterator<Item = Description> {
    let training = METRICS.iter().filter_map(|metric| Some((metric.gauge?, Gauge, &[][..], metric.definition)));
    COORDINATOR.into_iter().chain(training)
}

/// Registers all descriptions with the current recorder of the crate `metrics`.
pub fn describe() {
    for (name, kind, _, meaning) in all() {
        match kind {
            Counter => describe_counter!(name, meaning),
            Gauge => describe_gauge!(name, meaning),
            Histogram => describe_histogram!(name, meaning),
        }
    }
}
