//! What a simulation amounts to.

use std::{fmt, time::Duration};

use serde::Serialize;

use super::{
    Load,
    account::{Grant, Seen},
    daemon::Recorded,
    usage::Usage,
};

/// How a coordinator did under load. Times are in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Light workers.
    pub workers: u32,
    /// Connections that they shared.
    pub connections: u32,
    /// Steps to train.
    pub steps: u32,
    /// What a step took at least.
    pub step_seconds: f64,
    /// Steps that the coordinator has on record as reported by all.
    pub steps_recorded: u64,
    /// Generations that it needed.
    pub generations: u64,
    /// How long it was from the first grant to the end.
    pub training_seconds: f64,
    /// How all came at once.
    pub join_storm: JoinStorm,
    /// How directives reached everybody.
    pub fan_out: FanOut,
    /// How soon heartbeats are heard.
    pub heartbeat: Heartbeat,
    /// What the coordinator used.
    pub coordinator: Used,
    /// CPU seconds of all workers together.
    pub workers_cpu_seconds: f64,
    /// What one worker and the coordinator told each other.
    pub messages: Messages,
}

/// All workers come at once. Counted from when they begin to connect.
#[derive(Clone, Debug, Serialize)]
pub struct JoinStorm {
    /// Workers that joined.
    pub joined: usize,
    /// Until a worker has its place.
    pub join_seconds: Percentiles,
    /// Until the last one knows of its generation.
    pub formed_seconds: f64,
    /// Until the first one may train.
    pub training_after_seconds: f64,
}

/// `Train` directives.
#[derive(Clone, Debug, Serialize)]
pub struct FanOut {
    /// How many there were, to each worker.
    pub directives: usize,
    /// From the first worker's receipt to the last one's.
    pub spread_seconds: Percentiles,
    /// Of these, how many a report of a step let be sent.
    pub triggered: usize,
    /// From that report to the last worker's receipt.
    pub from_report_seconds: Percentiles,
}

/// Heartbeats, and a probe in their way.
#[derive(Clone, Debug, Serialize)]
pub struct Heartbeat {
    /// Heartbeats that the workers sent.
    pub sent: u64,
    /// Answers to the probe.
    pub probes: usize,
    /// From when a question was due to its answer.
    pub round_trip_seconds: Percentiles,
}

/// What a process used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Used {
    /// CPU seconds until the first worker might train.
    pub joining_cpu_seconds: f64,
    /// CPU seconds from then on.
    pub training_cpu_seconds: f64,
    /// The most memory it held.
    pub peak_memory_bytes: u64,
}

/// Bytes of the messages of one worker, without what HTTP/2 and TCP add.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Messages {
    /// To the coordinator, but for captions.
    pub sent_bytes: u64,
    /// From the coordinator.
    pub received_bytes: u64,
}

/// Values of which 50%, 90%, 99% and 100% of all are not above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 90%.
    pub p90: f64,
    /// 99%.
    pub p99: f64,
    /// All.
    pub max: f64,
}

impl Percentiles {
    /// Of some durations, in seconds; 0 of none.
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
    /// What was seen and what was recorded of a load, whose workers used so much.
    pub(super) fn new(load: Load, window: u32, seen: &Seen, recorded: Recorded, workers: Usage) -> Self {
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

/// How long after the report that let them be sent directives had reached everybody. A grant of half a window, as most are, is
/// sent when the step is reported that leaves just as much open; others wait for something else, or reach up to a boundary.
fn triggered(seen: &Seen, window: u32) -> Vec<Duration> {
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
        // A window of 8: eight at first, four more when the fourth is reported, two up to a boundary, eight after it.
        let grants = BTreeMap::from([(0, grant(8, 10)), (8, grant(4, 50)), (12, grant(2, 90)), (14, grant(8, 200))]);
        let reported = (1..=14).map(|step| (step, ms(10 * step))).collect();
        let seen = Seen { grants, reported, ..Seen::default() };
        assert_eq!(triggered(&seen, 8), [ms(10)]);
    }
}
