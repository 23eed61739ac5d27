//! Metrics for each worker.

use std::collections::BTreeMap;

use metrics::{Gauge, gauge};

use crate::run::{Run, membership::Rates};

/// Only workers with ids below this have their own series, to bound the number of series.
const SHOWN: u32 = 256;

/// The gauges of all workers seen so far, with ids below [`SHOWN`].
#[derive(Default)]
pub struct Ranks(BTreeMap<u32, Rank>);

struct Rank {
    up: Gauge,
    images: Gauge,
    tokens: Gauge,
}

impl Rank {
    fn new(rank: u32) -> Self {
        let of_rank = |name: &'static str| gauge!(name, "rank" => rank.to_string());
        Self {
            up: of_rank("dico_worker_up"),
            images: of_rank("dico_worker_images_per_second"),
            tokens: of_rank("dico_worker_tokens_per_second"),
        }
    }

    fn set(&self, up: bool, rates: Rates) {
        self.up.set(f64::from(up));
        self.images.set(rates.images);
        self.tokens.set(rates.tokens);
    }
}

impl Ranks {
    /// Updates the gauges in the current recorder; workers that left have `up` 0 and no throughput.
    pub fn publish(&mut self, run: &Run) {
        let members: BTreeMap<u32, Rates> = run.first_members(SHOWN).collect();
        for (rank, rates) in &members {
            self.0.entry(*rank).or_insert_with(|| Rank::new(*rank)).set(true, *rates);
        }
        self.0
            .iter()
            .filter(|(rank, _)| !members.contains_key(rank))
            .for_each(|(_, gone)| gone.set(false, Rates::default()));
    }
}
