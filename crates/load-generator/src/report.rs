//! The results of a load test.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::{
    coordinator::JournalCounts,
    load::LoadTest,
    recorder::{Measurements, StepGrant},
    usage::Usage,
};

/// The results of a load test. Times are in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The number of simulated workers.
    pub workers: u32,
    /// The number of connections that they shared.
    pub connections: u32,
    /// The number of steps to train.
    pub steps: u32,
    /// The minimal duration of a step.
    pub step_seconds: f64,
    /// The number of steps in the journal. All workers reported them, unless a generation ended
    /// early.
    pub steps_recorded: u64,
    /// The number of generations.
    pub generations: u64,
    /// The time from the first grant to the first report of the last step.
    pub training_seconds: f64,
    /// The joins of all workers, which start at the same moment.
    pub join_storm: JoinStorm,
    /// The delivery of directives to all workers.
    pub fan_out: FanOut,
    /// The latency of heartbeats.
    pub heartbeat: HeartbeatLatency,
    /// The resource usage of the coordinator.
    pub coordinator: CoordinatorUsage,
    /// CPU seconds of all workers together.
    pub workers_cpu_seconds: f64,
    /// The total size of the messages from and to one worker.
    pub messages: MessageSizes,
}

/// The joins of all workers, which start at the same moment. Times are since that moment.
#[derive(Clone, Debug, Serialize)]
pub struct JoinStorm {
    /// The number of workers that joined.
    pub joined: usize,
    /// The times until each worker has joined.
    pub join_seconds: Percentiles,
    /// The time until the last worker received the directive `Rendezvous`.
    pub formed_seconds: f64,
    /// The time until the first steps are granted.
    pub training_after_seconds: f64,
}

/// The delivery of `Train` directives to all workers.
#[derive(Clone, Debug, Serialize)]
pub struct FanOut {
    /// The number of `Train` directives to each worker.
    pub directives: usize,
    /// The time from the first worker's receipt to the last one's.
    pub spread_seconds: Percentiles,
    /// The number of these directives that the reports of a step triggered: the coordinator grants
    /// more steps when the last worker has reported the step.
    pub triggered: usize,
    /// The time from the first worker's report of that step to the last worker's receipt: an upper
    /// bound of the time since the last worker's report.
    pub from_report_seconds: Percentiles,
}

/// The latency of heartbeats. Heartbeats are not answered, so it is measured with the requests of
/// the latency probe, which pass through the same queue of the coordinator.
#[derive(Clone, Debug, Serialize)]
pub struct HeartbeatLatency {
    /// The number of heartbeats that the workers sent.
    pub sent: u64,
    /// The number of the probe's requests that were answered.
    pub probes: usize,
    /// The time from when a request was due to its answer.
    pub round_trip_seconds: Percentiles,
}

/// The resource usage of the coordinator.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CoordinatorUsage {
    /// CPU seconds until the first steps were granted.
    pub joining_cpu_seconds: f64,
    /// CPU seconds after that.
    pub training_cpu_seconds: f64,
    /// The peak memory, in bytes.
    pub peak_memory_bytes: u64,
}

/// The total size of the messages from and to one worker, without the overhead of HTTP/2 and TCP.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MessageSizes {
    /// To the coordinator, without captions, in bytes.
    pub sent_bytes: u64,
    /// From the coordinator, in bytes.
    pub received_bytes: u64,
}

/// The 50th, 90th, 99th and 100th percentile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The maximum.
    pub max: f64,
}

impl Percentiles {
    /// The percentiles of durations, in seconds; 0 if there are none.
    #[must_use]
    pub fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let position = (sorted.len() * percent).div_ceil(100);
            sorted.get(position.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64)
        };
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

impl Report {
    /// Computes the results from the measurements, the journal and this process's resource usage.
    pub(super) fn new(
        load: LoadTest,
        window: u32,
        measurements: &Measurements,
        journal: JournalCounts,
        own_usage: Usage,
    ) -> Self {
        let LoadTest { workers, steps, step_duration, connections } = load;
        let training_start = measurements.grants.values().map(|grant| grant.first_receipt).min().unwrap_or_default();
        let training_end = measurements.first_reports.values().max().copied().unwrap_or_default();
        let from_report = times_from_first_report(measurements, window);
        Self {
            workers,
            connections,
            steps,
            step_seconds: step_duration.as_secs_f64(),
            steps_recorded: journal.steps,
            generations: journal.generations,
            training_seconds: training_end.saturating_sub(training_start).as_secs_f64(),
            join_storm: JoinStorm {
                joined: measurements.join_times.len(),
                join_seconds: Percentiles::of(measurements.join_times.iter().copied()),
                formed_seconds: measurements.last_rendezvous_receipt.as_secs_f64(),
                training_after_seconds: training_start.as_secs_f64(),
            },
            fan_out: FanOut {
                directives: measurements.grants.len(),
                spread_seconds: Percentiles::of(
                    measurements.grants.values().map(|grant| grant.last_receipt - grant.first_receipt),
                ),
                triggered: from_report.len(),
                from_report_seconds: Percentiles::of(from_report),
            },
            heartbeat: HeartbeatLatency {
                sent: measurements.heartbeats,
                probes: measurements.probe_latencies.len(),
                round_trip_seconds: Percentiles::of(measurements.probe_latencies.iter().copied()),
            },
            coordinator: CoordinatorUsage {
                joining_cpu_seconds: measurements.usage_before_training.cpu_seconds,
                training_cpu_seconds: measurements.usage.cpu_seconds - measurements.usage_before_training.cpu_seconds,
                peak_memory_bytes: measurements.usage.peak_memory_bytes,
            },
            workers_cpu_seconds: own_usage.cpu_seconds,
            messages: MessageSizes { sent_bytes: measurements.sent_bytes, received_bytes: measurements.received_bytes },
        }
    }
}

/// The times from the first report of a step to the last receipt of the directive that the last
/// report of this step triggered. The coordinator sends a grant of half a window, as most are, when
/// all workers have reported a step that makes this many more steps available. Grants of other
/// sizes have other causes, or end at a boundary; they are left out.
fn times_from_first_report(measurements: &Measurements, window: u32) -> Vec<Duration> {
    let since_first_report = |(steps_before, grant): (&u64, &StepGrant)| {
        let reported_step = (steps_before + u64::from(grant.steps)).checked_sub(window.into())?;
        let first_report =
            measurements.first_reports.get(&reported_step).filter(|_| grant.steps == window.div_ceil(2))?;
        Some(grant.last_receipt.saturating_sub(*first_report))
    };
    measurements.grants.iter().filter_map(since_first_report).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workers, connections, steps, join_storm, fan_out, heartbeat, coordinator, messages, .. } = self;
        let (recorded, generations) = (self.steps_recorded, self.generations);
        writeln!(
            f,
            "{workers} workers on {connections} connections; {recorded} of {steps} steps, {generations} generation(s)"
        )?;
        let rate = f64::from(*steps) / self.training_seconds.max(f64::MIN_POSITIVE);
        writeln!(f, "training            {:.1} s, {rate:.2} steps/s", self.training_seconds)?;
        let (formed, training) = (join_storm.formed_seconds, join_storm.training_after_seconds);
        writeln!(f, "join storm          all in the generation after {formed:.2} s, training after {training:.2} s")?;
        writeln!(
            f,
            "coordinator CPU     {:.1} s joining, {:.1} s training",
            coordinator.joining_cpu_seconds, coordinator.training_cpu_seconds
        )?;
        writeln!(
            f,
            "coordinator memory  {:.0} MiB at most",
            coordinator.peak_memory_bytes as f64 / f64::from(1 << 20)
        )?;
        writeln!(f, "workers CPU         {:.1} s", self.workers_cpu_seconds)?;
        writeln!(
            f,
            "messages            {} bytes from a worker, {} to it",
            messages.sent_bytes, messages.received_bytes
        )?;
        writeln!(f, "\n{:<38}{:>8}{:>10}{:>10}{:>10}{:>10}", "milliseconds", "count", "p50", "p90", "p99", "max")?;
        let mut row = |name: &str, count: usize, percentiles: &Percentiles| {
            let [p50, p90, p99, max] = percentiles.milliseconds();
            writeln!(f, "{name:<38}{count:>8}{p50:>10.1}{p90:>10.1}{p99:>10.1}{max:>10.1}")
        };
        row("join", join_storm.joined, &join_storm.join_seconds)?;
        row("fan-out, first to last receipt", fan_out.directives, &fan_out.spread_seconds)?;
        row("fan-out, first report to last receipt", fan_out.triggered, &fan_out.from_report_seconds)?;
        row("heartbeat round trip, upper bound", heartbeat.probes, &heartbeat.round_trip_seconds)
    }
}

impl Percentiles {
    fn milliseconds(&self) -> [f64; 4] {
        [self.p50, self.p90, self.p99, self.max].map(|seconds| seconds * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn percentiles_are_values_of_the_sample() {
        let percentiles = Percentiles::of((1..=200).rev().map(Duration::from_secs));
        assert_eq!(percentiles, Percentiles { p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0 });
        assert_eq!(Percentiles::of([Duration::from_secs(3)]).p50, 3.0);
        assert_eq!(Percentiles::of([]), Percentiles::default());
    }

    #[test]
    fn a_directive_is_measured_from_the_first_report_of_the_step_that_triggered_it() {
        let grant = |steps, last| StepGrant { steps, first_receipt: ms(0), last_receipt: ms(last) };
        // The window is 8 steps. Grants: eight at first, four after the reports of step 4, two up
        // to a boundary, eight after it.
        let grants = BTreeMap::from([(0, grant(8, 10)), (8, grant(4, 50)), (12, grant(2, 90)), (14, grant(8, 200))]);
        let first_reports = (1..=14).map(|step| (step, ms(10 * step))).collect();
        let measurements = Measurements { grants, first_reports, ..Measurements::default() };
        assert_eq!(times_from_first_report(&measurements, 8), [ms(10)]);
    }
}
