//! Reservations: places of workers that load data and models, and have yet to attach.
//!
//! A reservation costs its holder one request, so a client could take all places of a run. Three
//! limits prevent that: a reservation lasts for seconds unless it is renewed, one address has few
//! at a time, and a reservation is not renewed for long while workers with fewer reservations wait.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{Machine, Secret, Terms};
use crate::run::Time;

/// Most reservations of one address: twice the GPUs of a large machine. Of more workers behind one
/// proxy, some wait until others have attached.
pub const MAX_PER_ADDRESS: usize = 32;
/// Age from which a reservation is only renewed if no worker in the queue comes first. Most workers
/// load in less; one that loses its place joins again when it has loaded, and waits for the next
/// place.
pub const MAX_CONTENDED_AGE: Duration = Duration::from_secs(300);
/// How long a reservation lasts without renewal.
const TTL: Duration = Duration::from_secs(10);
/// The same in heartbeats, where those are rare: a worker renews its reservation with each.
const TTL_HEARTBEATS: u32 = 5;

/// The place of a worker that has yet to attach.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// The idempotency key of its join.
    pub key: Secret,
    /// The address of the worker that made it.
    pub address: IpAddr,
    /// The machine, as the worker describes it.
    pub machine: Machine,
    /// When it was made.
    pub since: Time,
    /// When it was made or last renewed.
    pub heard: Time,
    /// When it ends without renewal.
    until: Time,
}

impl Reservation {
    /// A reservation that is made now.
    pub fn new(now: Time, key: Secret, address: IpAddr, machine: Machine, terms: &Terms) -> Self {
        Self { key, address, machine, since: now, heard: now, until: now.saturating_add(ttl(terms)) }
    }

    /// Renews it.
    pub fn renew(&mut self, now: Time, machine: Machine, terms: &Terms) {
        (self.machine, self.heard, self.until) = (machine, now, now.saturating_add(ttl(terms)));
    }
}

/// How long a reservation lasts without renewal.
fn ttl(terms: &Terms) -> Duration {
    TTL.max(terms.heartbeat.saturating_mul(TTL_HEARTBEATS)).min(terms.heartbeat_timeout)
}

/// All reservations of a run, by rank.
#[derive(Debug, Default)]
pub struct Reservations {
    by_rank: BTreeMap<u32, Reservation>,
    /// Number of reservations of each address; addresses without any are absent.
    by_address: BTreeMap<IpAddr, usize>,
}

impl Reservations {
    /// Number of reservations.
    pub fn len(&self) -> usize {
        self.by_rank.len()
    }

    /// The reservation of a rank.
    pub fn get(&self, rank: u32) -> Option<&Reservation> {
        self.by_rank.get(&rank)
    }

    /// The reservation of a rank.
    pub fn get_mut(&mut self, rank: u32) -> Option<&mut Reservation> {
        self.by_rank.get_mut(&rank)
    }

    /// Number of reservations of an address.
    pub fn count_of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).copied().unwrap_or_default()
    }

    /// The rank that is reserved under a key; only `wanted` is considered, if it is given.
    pub fn find(&self, wanted: Option<u32>, key: Secret) -> Option<u32> {
        let has_key = |reservation: &Reservation| reservation.key == key;
        match wanted {
            Some(rank) => self.get(rank).is_some_and(has_key).then_some(rank),
            None => self.by_rank.iter().find(|(_, reservation)| has_key(reservation)).map(|(rank, _)| *rank),
        }
    }

    /// Reserves a free rank.
    pub fn insert(&mut self, rank: u32, reservation: Reservation) {
        *self.by_address.entry(reservation.address).or_default() += 1;
        self.by_rank.insert(rank, reservation);
    }

    /// Ends a reservation.
    pub fn remove(&mut self, rank: u32) -> Option<Reservation> {
        let reservation = self.by_rank.remove(&rank)?;
        if let Some(count) = self.by_address.get_mut(&reservation.address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&reservation.address);
            }
        }
        Some(reservation)
    }

    /// Ends reservations that were not renewed in time; returns the lowest rank among them.
    pub fn expire(&mut self, now: Time) -> Option<u32> {
        let expired = |(rank, reservation): (&u32, &Reservation)| (now >= reservation.until).then_some(*rank);
        let expired: Vec<u32> = self.by_rank.iter().filter_map(expired).collect();
        expired.iter().for_each(|rank| _ = self.remove(*rank));
        expired.first().copied()
    }
}
