use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::fault::Fault;
use super::run_journal::RunJournal;

/// The cost of faults in a run. The field names are keys of the chaos test's summary.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The number of faults.
    pub faults: usize,
    /// The number of faults of each kind.
    pub by_kind: BTreeMap<Fault, usize>,
    /// Seconds from a fault to the next applied step. For a suspended worker, from the end of its
    /// generation.
    pub recovery_s: MedianAndMax,
    /// The same seconds by kind of fault.
    pub recovery_s_by_kind: BTreeMap<Fault, MedianAndMax>,
    /// Maximal number of steps that were repeated after a fault, including the step in flight.
    pub redone_steps_max: u64,
    /// The number of times that a worker joined.
    pub joins: usize,
    /// Seconds from a worker's join to its first step.
    pub rejoin_s: MedianAndMax,
    /// The number of samples that were never trained on, from the audit.
    pub samples_lost: u64,
    /// The number of samples that were trained on more than once, from the audit.
    pub samples_repeated: u64,
    /// The number of distinct hashes of parameters at the end, minus 1.
    pub divergent_ranks: usize,
    /// The number of workers that finished the run.
    pub ranks: usize,
    /// The scores of the last evaluation.
    pub scores: BTreeMap<String, f64>,
}

/// Median and maximum of measured values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MedianAndMax {
    /// The median; of an even number of values, the lower of the two in the middle.
    pub median: f64,
    /// The maximum.
    pub max: f64,
}

impl MedianAndMax {
    /// The median and the maximum of `values`; zeros if there are no values.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len().checked_sub(1).map_or(0, |last| last / 2);
        Self { median: values.get(middle).copied().unwrap_or(0.0), max: values.last().copied().unwrap_or(0.0) }
    }
}

impl Summary {
    /// Summarizes a finished run: the seconds that each fault cost, and the hashes of the workers'
    /// parameters.
    pub(super) fn new(
        recovery_seconds: Vec<(Fault, f64)>,
        hashes: &[String],
        journal: &RunJournal,
        run_file: &Path,
    ) -> Self {
        let audit = audit(run_file);
        let samples = |key: &str| audit["samples"][key].as_u64().expect("the audit counts samples");
        let generations = audit["generations"].as_array().expect("the audit lists generations");
        // A fault repeats the step in flight. The journal records that step as given up only if
        // the failed worker had already applied it.
        let given_up = generations.iter().filter_map(|generation| generation["given_up"].as_u64());
        let mut by_kind: BTreeMap<Fault, Vec<f64>> = BTreeMap::new();
        for (fault, seconds) in &recovery_seconds {
            by_kind.entry(*fault).or_default().push(*seconds);
        }
        let distinct_hashes: BTreeSet<&String> = hashes.iter().collect();
        Self {
            faults: recovery_seconds.len(),
            by_kind: by_kind.iter().map(|(fault, seconds)| (*fault, seconds.len())).collect(),
            recovery_s: MedianAndMax::of(recovery_seconds.iter().map(|(_, seconds)| *seconds).collect()),
            recovery_s_by_kind: by_kind
                .into_iter()
                .map(|(fault, seconds)| (fault, MedianAndMax::of(seconds)))
                .collect(),
            redone_steps_max: given_up.max().unwrap_or(0).max(u64::from(!recovery_seconds.is_empty())),
            joins: journal.join_count(),
            rejoin_s: MedianAndMax::of(journal.seconds_from_join_to_step()),
            samples_lost: samples("missing"),
            samples_repeated: samples("repeated"),
            divergent_ranks: distinct_hashes.len().saturating_sub(1),
            ranks: hashes.len(),
            scores: journal.last_scores(),
        }
    }
}

/// Runs `coordinator audit`.
fn audit(run_file: &Path) -> Value {
    let run_file = run_file.to_string_lossy();
    let output = crate::run("coordinator", &["audit", "--config", &run_file, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("the audit failed: {output:?}"))
}
