//! Workers one by one.

use std::collections::BTreeMap;

use metrics::{Gauge, gauge};

use crate::run::{Run, membership::Rates};

/// Ranks below this have series of their own: Prometheus should not have to keep those of ten thousand.
const SHOWN: u32 = 256;

/// The gauges of the ranks that were ever seen, of those that are shown.
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
    /// Shows who is there and how fast they are, with the recorder in force; nothing comes from who has gone.
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
