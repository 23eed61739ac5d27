//! Metrics of single workers.

use std::collections::BTreeMap;

use metrics::{Gauge, gauge};

use crate::run::{Run, WorkerId, membership::Rates};

/// Only workers with ids below this limit have their own series, to bound the number of series.
const MAX_WORKER_ID: WorkerId = WorkerId(256);

/// The gauges of all workers seen so far, with ids below [`MAX_WORKER_ID`].
#[derive(Default)]
pub struct WorkerGauges(BTreeMap<WorkerId, Gauges>);

/// The gauges of one worker.
struct Gauges {
    up: Gauge,
    images: Gauge,
    tokens: Gauge,
}

impl Gauges {
    fn new(worker_id: WorkerId) -> Self {
        let gauge_of = |name: &'static str| gauge!(name, "rank" => worker_id.to_string());
        Self {
            up: gauge_of("dico_worker_up"),
            images: gauge_of("dico_worker_images_per_second"),
            tokens: gauge_of("dico_worker_tokens_per_second"),
        }
    }

    fn set(&self, is_up: bool, rates: Rates) {
        self.up.set(f64::from(is_up));
        self.images.set(rates.images);
        self.tokens.set(rates.tokens);
    }
}

impl WorkerGauges {
    /// Updates the gauges in the current recorder. Workers that have left have `up` 0 and no
    /// throughput.
    pub fn publish(&mut self, run: &Run) {
        let members: BTreeMap<WorkerId, Rates> = run.members_below(MAX_WORKER_ID).collect();
        for (worker_id, rates) in &members {
            self.0.entry(*worker_id).or_insert_with(|| Gauges::new(*worker_id)).set(true, *rates);
        }
        self.0
            .iter()
            .filter(|(worker_id, _)| !members.contains_key(worker_id))
            .for_each(|(_, gauges)| gauges.set(false, Rates::default()));
    }
}
