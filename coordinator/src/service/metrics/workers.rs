//! Metrics of single workers.

use std::collections::BTreeMap;

use dico_engine::{WorkerId, membership::MemberThroughput, state::State};
use metrics::{Gauge, gauge};

/// Only workers with ids below this limit have their own time series, to bound the number of
/// series.
const WORKER_ID_LIMIT: WorkerId = WorkerId(256);

/// The gauges of all workers seen so far, with ids below [`WORKER_ID_LIMIT`].
#[derive(Default)]
pub struct WorkerGauges(BTreeMap<WorkerId, MemberGauges>);

/// The gauges of one worker. Their label `rank` is the worker id.
struct MemberGauges {
    up: Gauge,
    images_per_second: Gauge,
    tokens_per_second: Gauge,
}

impl MemberGauges {
    fn new(worker_id: WorkerId) -> Self {
        let gauge_of = |name: &'static str| gauge!(name, "rank" => worker_id.to_string());
        Self {
            up: gauge_of("dico_worker_up"),
            images_per_second: gauge_of("dico_worker_images_per_second"),
            tokens_per_second: gauge_of("dico_worker_tokens_per_second"),
        }
    }

    fn set(&self, is_up: bool, throughput: MemberThroughput) {
        self.up.set(f64::from(is_up));
        self.images_per_second.set(throughput.images_per_second);
        self.tokens_per_second.set(throughput.tokens_per_second);
    }
}

impl WorkerGauges {
    /// Updates the gauges in the current recorder. Workers that are no longer members have `up` 0
    /// and no throughput.
    pub fn publish(&mut self, state: &State) {
        let members: BTreeMap<WorkerId, MemberThroughput> = state.members_below(WORKER_ID_LIMIT).collect();
        for (worker_id, throughput) in &members {
            self.0.entry(*worker_id).or_insert_with(|| MemberGauges::new(*worker_id)).set(true, *throughput);
        }
        self.0
            .iter()
            .filter(|(worker_id, _)| !members.contains_key(worker_id))
            .for_each(|(_, gauges)| gauges.set(false, MemberThroughput::default()));
    }
}
