//! The results of a load test.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::{
    account::{Grant, Measurements},
    daemon::Recorded,
    load::Load,
    usage::Usage,
};

/// The results. Times are in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The number of light workers.
    pub workers: u32,
    /// The number of connections that they shared.
    pub connections: u32,
    /// The number of steps to train.
    pub steps: u32,
    /// The minimal duration of a step.
    pub step_seconds: f64,
    /// The number of recorded steps that all workers reported.
    pub steps_recorded: u64,
    /// The number of generations.
    pub generations: u64,
    /// The time from the first grant to the end.
    pub training_seconds: f64,
    /// The simultaneous join of all workers.
    pub join_storm: JoinStorm,
    /// The delivery of directives to all workers.
    pub fan_out: FanOut,
    /// The latency of heartbeats.
    pub heartbeat: Heartbeat,
    /// The resource usage of the coordinator.
    pub coordinator: Used,
    /// CPU seconds of all workers together.
    pub workers_cpu_seconds: f64,
    /// The size of one worker's messages.
    pub messages: Messages,
}

/// The simultaneous join of all workers. Times start when they begin to connect.
#[derive(Clone, Debug, Serialize)]
pub struct JoinStorm {
    /// The number of workers that joined.
    pub joined: usize,
    /// The time until a worker has joined.
    pub join_seconds: Percentiles,
    /// The time until the last worker has its rendezvous.
    pub formed_seconds: f64,
    /// The time until the first steps are granted.
    pub training_after_seconds: f64,
}

/// `Train` directives.
#[derive(Clone, Debug, Serialize)]
pub struct FanOut {
    /// The number of directives to each worker.
    pub directives: usize,
    /// The time from the first worker's receipt to the last one's.
    pub spread_seconds: Percentiles,
    /// The number of directives that a worker's report of a step triggered.
    pub triggered: usize,
    /// The time from that report to the last worker's receipt.
    pub from_report_seconds: Percentiles,
}

/// Heartbeats, and the requests of a probe in the same queue.
#[derive(Clone, Debug, Serialize)]
pub struct Heartbeat {
    /// The number of heartbeats that the workers sent.
    pub sent: u64,
    /// The number of the probe's answers.
    pub probes: usize,
    /// The time from when a request was due to its answer.
    pub round_trip_seconds: Percentiles,
}

/// The resource usage of a process.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Used {
    /// CPU seconds until the first steps were granted.
    pub joining_cpu_seconds: f64,
    /// CPU seconds after that.
    pub training_cpu_seconds: f64,
    /// The peak memory, in bytes.
    pub peak_memory_bytes: u64,
}

/// The size of one worker's messages, without the overhead of HTTP/2 and TCP.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Messages {
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
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64)
        };
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

impl Report {
    /// The results from the measurements, the journal and the workers' resource usage.
    pub(super) fn new(load: Load, window: u32, seen: &Measurements, recorded: Recorded, workers: Usage) -> Self {
        let Load { workers: count, steps, step, connections } = load;
        let training = seen.grants.values().map(|grant| grant.first).min().unwrap_or_default();
        let end = seen.reported.values().max().copied().unwrap_or_default();
        let triggered = triggered(seen, window);
        Self {
            workers: count,
            connections,
            steps,
            step_seconds: step.as_secs_f64(),
            steps_recorded: recorded.steps,
            generations: recorded.generations,
            training_seconds: end.saturating_sub(training).as_secs_f64(),
            join_storm: JoinStorm {
                joined: seen.joined.len(),
                join_seconds: Percentiles::of(seen.joined.iter().copied()),
                formed_seconds: seen.met.as_secs_f64(),
                training_after_seconds: training.as_secs_f64(),
            },
            fan_out: FanOut {
                directives: seen.grants.len(),
                spread_seconds: Percentiles::of(seen.grants.values().map(|grant| grant.last - grant.first)),
                triggered: triggered.len(),
                from_report_seconds: Percentiles::of(triggered),
            },
            heartbeat: Heartbeat {
                sent: seen.heartbeats,
                probes: seen.probed.len(),
                round_trip_seconds: Percentiles::of(seen.probed.iter().copied()),
            },
            coordinator: Used {
                joining_cpu_seconds: seen.joining.cpu_seconds,
                training_cpu_seconds: seen.usage.cpu_seconds - seen.joining.cpu_seconds,
                peak_memory_bytes: seen.usage.peak_memory,
            },
            workers_cpu_seconds: workers.cpu_seconds,
            messages: Messages { sent_bytes: seen.sent, received_bytes: seen.received },
        }
    }
}

/// The times from a worker's report to the delivery of the directive that it triggered. A grant of
/// half a window, as most are, is sent when the report of a step leaves that much open; other
/// grants wait for something else, or reach up to a boundary.
fn triggered(seen: &Measurements, window: u32) -> Vec<Duration> {
    let since_report = |(first_step, grant): (&u64, &Grant)| {
        let report = (first_step + u64::from(grant.steps)).checked_sub(window.into())?;
        let reported = seen.reported.get(&report).filter(|_| grant.steps == window.div_ceil(2))?;
        Some(grant.last.saturating_sub(*reported))
    };
    seen.grants.iter().filter_map(since_report).collect()
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
        writeln!(f, "\n{:<38}{:>8}{:>10}{:>10}{:>10}{:>10}", "milliseconds", "of", "p50", "p90", "p99", "max")?;
        let mut row = |name: &str, of: usize, percentiles: &Percentiles| {
            let [p50, p90, p99, max] = percentiles.milliseconds();
            writeln!(f, "{name:<38}{of:>8}{p50:>10.1}{p90:>10.1}{p99:>10.1}{max:>10.1}")
        };
        row("join", join_storm.joined, &join_storm.join_seconds)?;
        row("fan-out, first to last receipt", fan_out.directives, &fan_out.spread_seconds)?;
        row("fan-out, report to last receipt", fan_out.triggered, &fan_out.from_report_seconds)?;
        row("heartbeat's way, there and back", heartbeat.probes, &heartbeat.round_trip_seconds)
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
    fn percentiles_are_values_that_were_seen() {
        let percentiles = Percentiles::of((1..=200).rev().map(Duration::from_secs));
        assert_eq!(percentiles, Percentiles { p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0 });
        assert_eq!(Percentiles::of([Duration::from_secs(3)]).p50, 3.0);
        assert_eq!(Percentiles::of([]), Percentiles::default());
    }

    #[test]
    fn a_directive_is_counted_from_the_report_that_let_it_be_sent() {
        let grant = |steps, last| Grant { steps, first: ms(0), last: ms(last) };
        // A window of 8: eight at first, four more after the fourth report, two up to a boundary,
        // eight after it.
        let grants = BTreeMap::from([(0, grant(8, 10)), (8, grant(4, 50)), (12, grant(2, 90)), (14, grant(8, 200))]);
        let reported = (1..=14).map(|step| (step, ms(10 * step))).collect();
        let seen = Measurements { grants, reported, ..Measurements::default() };
        assert_eq!(triggered(&seen, 8), [ms(10)]);
    }
}
