//! Reservations: ids of workers that load data and models, and have not attached yet.
//!
//! A client can make a reservation with a single request, so one client could reserve all ids of a
//! run and keep all workers out. Three limits prevent that:
//!
//! - A reservation lasts for seconds unless it is renewed.
//! - An IP address (for IPv6, a /64 prefix) has at most [`MAX_RESERVATIONS_PER_ADDRESS`]
//!   reservations at a time.
//! - A reservation older than [`MAX_CONTENDED_AGE`] is not renewed while workers at addresses with
//!   fewer reservations wait.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    join_key::{JoinKeyDigest, JoinSettings},
    member::Machine,
};
use crate::types::{Time, WorkerId};

/// Maximal number of reservations of one address: twice the GPUs of a large machine. If more
/// workers join from behind one proxy, some wait until others have attached.
pub const MAX_RESERVATIONS_PER_ADDRESS: usize = 32;
/// Age from which a reservation is only renewed if no worker in the queue comes first. Most workers
/// load in less time. A worker that loses its reservation joins again when it has loaded, and waits
/// for the next unassigned id.
pub const MAX_CONTENDED_AGE: Duration = Duration::from_secs(300);
/// Minimal lifetime of a reservation without renewal, unless `heartbeat_timeout` is shorter.
const MIN_LIFETIME: Duration = Duration::from_secs(10);
/// Lifetime of a reservation without renewal, in heartbeat intervals, if that is longer than
/// [`MIN_LIFETIME`]. A worker renews its reservation at each interval.
const LIFETIME_HEARTBEATS: u32 = 5;

/// The reservation of a worker that has not attached yet.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// The digest of the join key of the request that made it.
    pub join_key: JoinKeyDigest,
    /// The address of the worker that made it.
    pub address: IpAddr,
    /// The worker's description of its machine.
    pub machine: Machine,
    /// When it was made.
    pub reserved_at: Time,
    /// When it was made or last renewed.
    pub renewed_at: Time,
    /// When it ends without renewal.
    expires_at: Time,
}

impl Reservation {
    /// A reservation that is made now.
    pub fn new(now: Time, join_key: JoinKeyDigest, address: IpAddr, machine: Machine, settings: &JoinSettings) -> Self {
        let expires_at = now.saturating_add(lifetime(settings));
        Self { join_key, address, machine, reserved_at: now, renewed_at: now, expires_at }
    }

    /// Starts its lifetime again. `machine` replaces the description of the worker's machine.
    pub fn renew(&mut self, now: Time, machine: Machine, settings: &JoinSettings) {
        let expires_at = now.saturating_add(lifetime(settings));
        (self.machine, self.renewed_at, self.expires_at) = (machine, now, expires_at);
    }
}

/// The lifetime of a reservation without renewal: at most `heartbeat_timeout`.
fn lifetime(settings: &JoinSettings) -> Duration {
    let heartbeats = settings.heartbeat_interval.saturating_mul(LIFETIME_HEARTBEATS);
    MIN_LIFETIME.max(heartbeats).min(settings.heartbeat_timeout)
}

/// All reservations of a run, by worker id.
#[derive(Debug, Default)]
pub struct Reservations {
    by_id: BTreeMap<WorkerId, Reservation>,
    /// Number of reservations of each address; addresses without reservations are absent.
    count_by_address: BTreeMap<IpAddr, usize>,
}

impl Reservations {
    /// Number of reservations.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are no reservations.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The reservation of an id.
    pub fn get(&self, worker_id: WorkerId) -> Option<&Reservation> {
        self.by_id.get(&worker_id)
    }

    /// The reservation of an id.
    pub fn get_mut(&mut self, worker_id: WorkerId) -> Option<&mut Reservation> {
        self.by_id.get_mut(&worker_id)
    }

    /// Number of reservations of an address.
    pub fn count_of(&self, address: IpAddr) -> usize {
        self.count_by_address.get(&address).copied().unwrap_or_default()
    }

    /// The id that is reserved under a join key; only `requested_id` is considered, if it is given.
    pub fn find(&self, requested_id: Option<WorkerId>, join_key: JoinKeyDigest) -> Option<WorkerId> {
        let has_key = |reservation: &Reservation| reservation.join_key == join_key;
        match requested_id {
            Some(worker_id) => self.get(worker_id).is_some_and(has_key).then_some(worker_id),
            None => self.by_id.iter().find(|(_, reservation)| has_key(reservation)).map(|(worker_id, _)| *worker_id),
        }
    }

    /// Reserves an unassigned id.
    pub fn insert(&mut self, worker_id: WorkerId, reservation: Reservation) {
        *self.count_by_address.entry(reservation.address).or_default() += 1;
        self.by_id.insert(worker_id, reservation);
    }

    /// Ends a reservation.
    pub fn remove(&mut self, worker_id: WorkerId) -> Option<Reservation> {
        let reservation = self.by_id.remove(&worker_id)?;
        if let Some(count) = self.count_by_address.get_mut(&reservation.address) {
            *count -= 1;
            if *count == 0 {
                self.count_by_address.remove(&reservation.address);
            }
        }
        Some(reservation)
    }

    /// Ends reservations that were not renewed in time; returns the lowest id among them.
    pub fn remove_expired(&mut self, now: Time) -> Option<WorkerId> {
        let is_expired = |(_, reservation): &(&WorkerId, &Reservation)| now >= reservation.expires_at;
        let expired: Vec<WorkerId> = self.by_id.iter().filter(is_expired).map(|(worker_id, _)| *worker_id).collect();
        expired.iter().for_each(|worker_id| _ = self.remove(*worker_id));
        expired.first().copied()
    }
}
