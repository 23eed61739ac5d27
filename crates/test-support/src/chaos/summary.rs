use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::fault::Fault;
use super::record::Record;

/// The cost of faults in a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The number of faults.
    pub faults: usize,
    /// The number of faults of each kind.
    pub by_kind: BTreeMap<Fault, usize>,
    /// Seconds from a fault to the next applied step; for a suspended worker, from its eviction.
    pub recovery_s: Spread,
    /// The same by kind.
    pub recovery_s_by_kind: BTreeMap<Fault, Spread>,
    /// Maximal number of steps that were repeated after a fault, including the one in flight.
    pub redone_steps_max: u64,
    /// Seconds from a worker's join to its first step.
    pub rejoin_s: Spread,
    /// Samples that were never trained on, from the audit.
    pub samples_lost: u64,
    /// Samples that were trained on twice, from the audit.
    pub samples_repeated: u64,
    /// The number of workers whose parameters differed at the end.
    pub divergent_ranks: usize,
    /// The number of workers at the end.
    pub ranks: usize,
    /// The scores of the last evaluation.
    pub scores: Value,
}

/// Median and maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The maximum.
    pub max: f64,
}

impl Spread {
    /// Of these values; zeros if there are none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len().checked_sub(1).map_or(0, |last| last / 2);
        Self { median: values.get(middle).copied().unwrap_or(0.0), max: values.last().copied().unwrap_or(0.0) }
    }
}

impl Summary {
    /// The results of a finished run.
    pub(super) fn new(costs: Vec<(Fault, f64)>, hashes: &[String], record: &Record, run_file: &Path) -> Self {
        let audit = audit(run_file);
        let samples = |key: &str| audit["samples"][key].as_u64().expect("an audit counts samples");
        let generations = audit["generations"].as_array().expect("an audit lists generations");
        // The step in flight is repeated; if the failed worker had already applied it, it is
        // recorded as given up.
        let given_up = generations.iter().filter_map(|generation| generation["given_up"].as_u64());
        let mut by_kind: BTreeMap<Fault, Vec<f64>> = BTreeMap::new();
        for (fault, seconds) in &costs {
            by_kind.entry(*fault).or_default().push(*seconds);
        }
        let different: BTreeSet<&String> = hashes.iter().collect();
        Self {
            faults: costs.len(),
            by_kind: by_kind.iter().map(|(fault, costs)| (*fault, costs.len())).collect(),
            recovery_s: Spread::of(costs.iter().map(|(_, seconds)| *seconds).collect()),
            recovery_s_by_kind: by_kind.into_iter().map(|(fault, costs)| (fault, Spread::of(costs))).collect(),
            redone_steps_max: given_up.max().unwrap_or(0).max(u64::from(!costs.is_empty())),
            rejoin_s: Spread::of(record.rejoins()),
            samples_lost: samples("missing"),
            samples_repeated: samples("repeated"),
            divergent_ranks: different.len().saturating_sub(1),
            ranks: hashes.len(),
            scores: record.last_scores(),
        }
    }
}

fn audit(run_file: &Path) -> Value {
    let run_file = run_file.to_string_lossy();
    let output = crate::run("coordinator", &["audit", "--config", &run_file, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no audit: {output:?}"))
}
