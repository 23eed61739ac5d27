//! Prometheus metrics of the run. Each coordinator has its own recorder of the crate `metrics`, in
//! place of the global one, because tests run several coordinators in one process.

mod descriptions;
mod workers;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use config::{GuardAction, RunFile};
use dico_engine::{EventKind, record::Record, state::State, statistics::StepStatistics};
use metric_catalogue::{METRICS, names};
use metrics::{Counter, Gauge, Label, counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use proto::v1::RunState;
use summary_statistics::Summary;

use super::refusals::Refusals;
use workers::WorkerGauges;

/// Upper bounds of the histogram of step durations, in seconds.
const STEP_BUCKETS_SECONDS: [f64; 14] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0];
/// Upper bounds of the histogram of recovery times, in seconds.
const RECOVERY_BUCKETS_SECONDS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];
/// The states of a run, as in its status.
const STATES: [RunState; 6] =
    [RunState::Waiting, RunState::Forming, RunState::Running, RunState::Paused, RunState::Finished, RunState::Failed];
/// The quantiles of rewards that are exposed, with their labels.
const REWARD_QUANTILES: [(f64, &str); 5] =
    [(0.05, "0.05"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (0.95, "0.95")];

/// All metrics of a coordinator.
pub struct Metrics {
    recorder: PrometheusRecorder,
    /// The name of the run.
    run: String,
    /// The name of the stage whose `dico_stage_info` is 1.
    stage: Option<String>,
    /// The metric of evaluations for which `dico_best_score` is set.
    best_metric: Option<String>,
    worker_gauges: WorkerGauges,
    recovery: Recovery,
}

/// The progress of the recovery from a failed generation.
#[derive(Clone, Copy, Debug)]
enum Recovery {
    /// No generation has ended yet, or the next one runs and no recovery is measured.
    NotNeeded,
    /// A generation has ended at this time, because of a failure or for another reason.
    GenerationEnded(Instant),
    /// A generation has failed at this time, and the next one is ready. Its first step completes
    /// the recovery.
    GenerationReady(Instant),
}

impl Metrics {
    /// The metrics of a run.
    pub fn new(file: &RunFile) -> Self {
        let buckets =
            [("dico_step_seconds", &STEP_BUCKETS_SECONDS[..]), ("dico_recovery_seconds", &RECOVERY_BUCKETS_SECONDS)];
        let builder = buckets.into_iter().fold(PrometheusBuilder::new(), |builder, (name, bounds)| {
            let metric = Matcher::Full(name.to_owned());
            builder.set_buckets_for_metric(metric, bounds).expect("the buckets are not empty")
        });
        let recorder = builder.build_recorder();
        let worker_gauges = with_local_recorder(&recorder, || {
            descriptions::describe();
            gauge!("dico_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            gauge!("dico_workers_wanted").set(file.workers.min);
            // Initial values, so that alerts on the age of the last step and checkpoint work from
            // the start.
            gauge!("dico_last_step_timestamp_seconds").set(unix_seconds_now());
            gauge!("dico_last_checkpoint_timestamp_seconds").set(unix_seconds_now());
            for total in ["dico_recoveries_total", "dico_checkpoints_total", "dico_workers_lost_total"] {
                counter!(total).absolute(0);
            }
            for rule in file.stages.iter().flat_map(|stage| &stage.guard) {
                guard_counter(&rule.metric, rule.action).absolute(0);
            }
            WorkerGauges::default()
        });
        Self {
            recorder,
            run: file.name.clone(),
            stage: None,
            best_metric: None,
            worker_gauges,
            recovery: Recovery::NotNeeded,
        }
    }

    /// A handle that renders the metrics as text.
    pub fn handle(&self) -> PrometheusHandle {
        self.recorder.handle()
    }

    /// The counters of refusals, in this recorder.
    pub fn refusals(&self) -> Refusals {
        with_local_recorder(&self.recorder, Refusals::new)
    }

    /// The gauges for a disk's size and free space. `what` is their label: what the disk holds.
    pub fn disk(&self, what: &'static str) -> [Gauge; 2] {
        with_local_recorder(&self.recorder, || {
            ["dico_disk_size_bytes", "dico_disk_free_bytes"].map(|name| gauge!(name, "what" => what))
        })
    }

    /// Updates the metrics for a record.
    pub fn record(&mut self, record: &Record) {
        let Self { recorder, recovery, .. } = self;
        with_local_recorder(&*recorder, || match record {
            Record::Step(step) => {
                expose_step(step);
                // Steps of the ended generation that only some members reported are recorded after
                // its end; they do not complete a recovery.
                if let Recovery::GenerationReady(since) = *recovery {
                    histogram!("dico_recovery_seconds").record(since.elapsed().as_secs_f64());
                    *recovery = Recovery::NotNeeded;
                }
            }
            Record::Ended { .. } => {
                if let Recovery::NotNeeded = recovery {
                    *recovery = Recovery::GenerationEnded(Instant::now());
                }
            }
            Record::Ready { recovery: true, .. } => {
                counter!("dico_recoveries_total").increment(1);
                if let Recovery::GenerationEnded(since) = *recovery {
                    *recovery = Recovery::GenerationReady(since);
                }
            }
            Record::Ready { recovery: false, .. } => {
                if let Recovery::GenerationEnded(_) = *recovery {
                    *recovery = Recovery::NotNeeded;
                }
            }
            Record::Saved(_) => {
                counter!("dico_checkpoints_total").increment(1);
                gauge!("dico_last_checkpoint_timestamp_seconds").set(unix_seconds_now());
            }
            Record::Event { kind: EventKind::Lost, .. } => counter!("dico_workers_lost_total").increment(1),
            Record::Evaluated { metrics: scores, .. } => {
                for (metric, score) in scores {
                    gauge!("dico_evaluation_score", "metric" => metric.clone()).set(*score);
                }
            }
            Record::Guard { rule, .. } => guard_counter(&rule.metric, rule.action).increment(1),
            Record::Formed { .. }
            | Record::Deleting(_)
            | Record::Damaged(_)
            | Record::Attached(_)
            | Record::DataChanged { .. }
            | Record::StageEnded { .. }
            | Record::Paused { .. }
            | Record::Resumed { .. }
            | Record::HistoryMoved(_)
            | Record::RunEnded { .. }
            | Record::Event { .. } => {}
        });
    }

    /// Updates the metrics from the run's state.
    pub fn publish(&mut self, state: &State) {
        let (status, samples, best) = (state.status_summary(), state.samples_committed(), state.best_state());
        let members = state.member_count();
        let Self { recorder, run: name, stage, best_metric: last_metric, worker_gauges, .. } = self;
        with_local_recorder(&*recorder, || {
            for run_state in STATES {
                let is_current = status.state() == run_state;
                gauge!("dico_run_state", "state" => run_state.name()).set(f64::from(is_current));
            }
            worker_gauges.publish(state);
            gauge!("dico_stage_steps").set(status.steps as f64);
            gauge!("dico_step").set(status.step as f64);
            gauge!("dico_generation").set(status.generation as f64);
            gauge!("dico_members").set(members as f64);
            counter!("dico_samples_committed_total").absolute(samples);
            let set_stage_info = |stage: &str, value| {
                gauge!("dico_stage_info", "run" => name.clone(), "stage" => stage.to_owned()).set(value);
            };
            if let Some(earlier) =
                stage.replace(status.stage_name.clone()).filter(|earlier| *earlier != status.stage_name)
            {
                set_stage_info(&earlier, 0.0);
            }
            set_stage_info(&status.stage_name, 1.0);
            gauge!("dico_paused").set(f64::from(status.state() == RunState::Paused));
            let set_best_score =
                |metric: &str, value| gauge!("dico_best_score", "metric" => metric.to_owned()).set(value);
            let metric = best.map(|(metric, _)| metric.to_owned());
            if let Some(earlier) = std::mem::replace(last_metric, metric.clone()).filter(|_| *last_metric != metric) {
                set_best_score(&earlier, f64::NAN);
            }
            if let Some((metric, state)) = best {
                set_best_score(metric, state.score);
            }
        });
        // Folds histogram samples into buckets, so that they do not accumulate between scrapes.
        recorder.handle().run_upkeep();
    }
}

fn guard_counter(metric: &str, action: GuardAction) -> Counter {
    counter!("dico_guard_events_total", "metric" => metric.to_owned(), "action" => action.name())
}

fn expose_step(step: &StepStatistics) {
    if let Some(loss) = step.loss() {
        gauge!("dico_loss").set(loss);
    }
    gauge!("dico_learning_rate").set(step.learning_rate);
    gauge!("dico_gradient_norm").set(step.gradient_norm);
    histogram!("dico_step_seconds").record(step.seconds);
    gauge!("dico_all_reduce_seconds").set(step.all_reduce_seconds);
    gauge!("dico_images_per_second").set(step.images_per_second());
    gauge!("dico_tokens_per_second").set(step.tokens_per_second());
    gauge!("dico_last_step_timestamp_seconds").set(unix_seconds_now());
    for (phase, seconds) in step.phases() {
        gauge!("dico_phase_seconds", "phase" => phase).set(seconds);
    }
    if let Some((worker_id, seconds)) = step.compute_times.straggler_lag() {
        gauge!("dico_slowest_rank").set(worker_id.0);
        gauge!("dico_lag_seconds").set(seconds);
    }
    for metric in &METRICS {
        let summary = step.summaries.get(metric.name).filter(|summary| summary.count() > 0);
        if let (Some(gauge), Some(summary)) = (metric.gauge, summary) {
            gauge!(gauge).set(summary.mean());
        }
    }
    for (name, role) in [(names::REWARD_CHOSEN, "chosen"), (names::REWARD_REJECTED, "rejected")] {
        if let Some(summary) = step.summaries.get(name) {
            expose_reward(summary, role);
        }
    }
}

fn expose_reward(summary: &Summary, role: &'static str) {
    for (q, quantile) in REWARD_QUANTILES {
        if let Some(value) = summary.quantile(q) {
            let labels = vec![Label::new("role", role), Label::new("quantile", quantile)];
            gauge!("dico_reward", labels).set(value);
        }
    }
}

fn unix_seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests;
