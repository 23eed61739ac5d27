//! All metrics that a coordinator exposes. `docs/operations.md` has the same table, and a test compares the two.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// The type of a metric, as in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Name, type, labels and meaning.
type Metric = (&'static str, Kind, &'static [&'static str], &'static str);

use Kind::{Counter, Gauge, Histogram};

#[rustfmt::skip]
pub const ALL: [Metric; 42] = [
    ("dico_build_info", Gauge, &["version"], "1, with the coordinator's version"),
    ("dico_run_state", Gauge, &["state"], "1 for the run's state, 0 for the others: waiting, forming, running, paused, finished, failed"),
    ("dico_stage_info", Gauge, &["run", "stage"], "1 for the present stage"),
    ("dico_stage_steps", Gauge, &[], "Updates of the whole present stage"),
    ("dico_step", Gauge, &[], "Committed updates of the present stage"),
    ("dico_last_step_timestamp_seconds", Gauge, &[], "When the last step was reported by all, or the coordinator started"),
    ("dico_samples_committed_total", Counter, &[], "Samples that training has consumed for good"),
    ("dico_loss", Gauge, &[], "Loss of the last step, per image or token"),
    ("dico_learning_rate", Gauge, &[], "Learning rate of the last step"),
    ("dico_gradient_norm", Gauge, &[], "Norm of the last step's gradient, before clipping"),
    ("dico_reward", Gauge, &["role", "quantile"], "Quantiles of the rewards of chosen and rejected candidates in the last step"),
    ("dico_reward_margin", Gauge, &[], "Mean reward of the best candidate minus that of the others"),
    ("dico_implicit_accuracy", Gauge, &[], "Share of images whose implicit reward prefers the best candidate"),
    ("dico_kl", Gauge, &[], "Estimate of KL(policy || reference) per token, in nats"),
    ("dico_gamma_entropy", Gauge, &[], "Mean entropy of the weights over rejected candidates, in nats"),
    ("dico_caption_length", Gauge, &[], "Mean tokens of a candidate"),
    ("dico_repetition", Gauge, &[], "Mean share of a candidate's tokens that repeat an earlier one"),
    ("dico_evaluation_score", Gauge, &["metric"], "Scores of the last evaluation"),
    ("dico_best_score", Gauge, &["metric"], "Score of the present stage's best state, by the stage's metric"),
    ("dico_guard_events_total", Counter, &["metric", "action"], "Rules of the guard that were broken"),
    ("dico_images_per_second", Gauge, &[], "Samples a second over all members in the last step"),
    ("dico_tokens_per_second", Gauge, &[], "Tokens a second that were learned from, over all members in the last step"),
    ("dico_step_seconds", Histogram, &[], "Seconds of a step on the slowest member"),
    ("dico_phase_seconds", Gauge, &["phase"], "Where the last step's time went on the average member, in seconds"),
    ("dico_all_reduce_seconds", Gauge, &[], "Longest time that a member spent in the last step's all-reduce, in seconds"),
    ("dico_slowest_rank", Gauge, &[], "Rank that the others waited for in the last step"),
    ("dico_lag_seconds", Gauge, &[], "How much longer than the average of the others the slowest rank computed, in seconds"),
    ("dico_worker_up", Gauge, &["rank"], "1 while a worker of this rank is attached, 0 after it has gone; of ranks below 256"),
    ("dico_worker_images_per_second", Gauge, &["rank"], "Samples a second of a worker in its last step; of ranks below 256"),
    ("dico_worker_tokens_per_second", Gauge, &["rank"], "Tokens a second of a worker in its last step; of ranks below 256"),
    ("dico_members", Gauge, &[], "Attached workers"),
    ("dico_workers_wanted", Gauge, &[], "The run waits where fewer workers are attached"),
    ("dico_workers_lost_total", Counter, &[], "Workers that were lost or sent away"),
    ("dico_generation", Gauge, &[], "Number of the last generation"),
    ("dico_recoveries_total", Counter, &[], "Generations that took over from one that was broken by a failure"),
    ("dico_recovery_seconds", Histogram, &[], "Seconds from the end of a generation that was broken to the next step that all have reported"),
    ("dico_checkpoints_total", Counter, &[], "Checkpoints written"),
    ("dico_last_checkpoint_timestamp_seconds", Gauge, &[], "When the last checkpoint was complete, or the coordinator started"),
    ("dico_disk_free_bytes", Gauge, &["what"], "Room on the disk of the journal (state) and of checkpoints in a folder (checkpoints)"),
    ("dico_disk_size_bytes", Gauge, &["what"], "Size of those disks"),
    ("dico_paused", Gauge, &[], "1 while the run is paused: by its guard, by somebody, or because a state cannot be saved"),
    ("dico_refusals_total", Counter, &["reason"], "Connections, calls and sessions that were refused or ended for what they are"),
];

/// Registers all descriptions with the current recorder.
pub fn describe() {
    for (name, kind, _, meaning) in ALL {
        match kind {
            Counter => describe_counter!(name, meaning),
            Gauge => describe_gauge!(name, meaning),
            Histogram => describe_histogram!(name, meaning),
        }
    }
}
