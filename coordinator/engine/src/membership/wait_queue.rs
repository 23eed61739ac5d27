//! The queue of workers that wait for an id: their joins were answered with `ABORTED`.
//!
//! Workers retry after pauses of up to five seconds. Without a queue, a client that sends a
//! thousand requests per second would be first whenever an id becomes unassigned, and would get all
//! ids. Therefore an unassigned id is kept for the first worker in the queue. Workers are ordered
//! by the number of reservations of their IP address, fewest first, and then by arrival.

use std::{net::IpAddr, time::Duration};

use super::join_key::JoinKeyDigest;
use crate::types::{Time, WorkerId};

/// Maximal number of workers in the queue. Further workers retry without a position in the queue.
const MAX_WAITING: usize = 1024;
/// Maximal number of workers of one address in the queue.
const MAX_WAITING_PER_ADDRESS: usize = 32;
/// A worker that has not retried for this long leaves the queue: three times a worker's longest
/// pause.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);

/// A worker that waits for an id.
#[derive(Debug)]
pub struct WaitingWorker {
    join_key: JoinKeyDigest,
    address: IpAddr,
    /// The id that it requests; none if it accepts any.
    pub requested_id: Option<WorkerId>,
    /// When its last request arrived.
    last_request_at: Time,
}

/// Workers that wait for an id, in the order of their arrival.
#[derive(Debug, Default)]
pub struct WaitQueue(Vec<WaitingWorker>);

impl WaitQueue {
    /// Adds a worker whose request was answered with `ABORTED`. A worker in the queue keeps its
    /// position.
    pub fn enqueue(&mut self, now: Time, join_key: JoinKeyDigest, address: IpAddr, requested_id: Option<WorkerId>) {
        if let Some(waiting) = self.0.iter_mut().find(|waiting| waiting.join_key == join_key) {
            (waiting.requested_id, waiting.last_request_at) = (requested_id, now);
            return;
        }
        let count_of_address = self.0.iter().filter(|waiting| waiting.address == address).count();
        if self.0.len() < MAX_WAITING && count_of_address < MAX_WAITING_PER_ADDRESS {
            self.0.push(WaitingWorker { join_key, address, requested_id, last_request_at: now });
        }
    }

    /// Removes a worker that got an id, or was refused permanently.
    pub fn remove(&mut self, join_key: JoinKeyDigest) {
        self.0.retain(|waiting| waiting.join_key != join_key);
    }

    /// Removes workers that do not retry any more.
    pub fn remove_expired(&mut self, now: Time) {
        self.0.retain(|waiting| now.saturating_sub(waiting.last_request_at) < RETRY_TIMEOUT);
    }

    /// The workers in the queue that come before the worker with `join_key` at `address`. That
    /// worker need not be in the queue. `reservation_count` returns the number of reservations of
    /// an address.
    pub fn ahead_of(
        &self,
        join_key: JoinKeyDigest,
        address: IpAddr,
        reservation_count: impl Fn(IpAddr) -> usize,
    ) -> impl Iterator<Item = &WaitingWorker> {
        let index = self.0.iter().position(|waiting| waiting.join_key == join_key).unwrap_or(self.0.len());
        let own_order = (reservation_count(address), index);
        let is_ahead =
            move |(index, waiting): &(usize, &WaitingWorker)| (reservation_count(waiting.address), *index) < own_order;
        self.0.iter().enumerate().filter(is_ahead).map(|(_, waiting)| waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last_byte: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last_byte])
    }

    fn join_key(name: &str) -> JoinKeyDigest {
        JoinKeyDigest::of(name)
    }

    /// The number of workers ahead of each of these workers, if the address 10.0.0.9 has a
    /// reservation.
    fn count_ahead(queue: &WaitQueue, workers: &[(&str, u8)]) -> Vec<usize> {
        let reservation_count = |joining: IpAddr| usize::from(joining == address(9));
        let ahead =
            |(name, last_byte): &(&str, u8)| queue.ahead_of(join_key(name), address(*last_byte), reservation_count);
        workers.iter().map(|worker| ahead(worker).count()).collect()
    }

    #[test]
    fn addresses_with_fewer_reservations_come_first() {
        let mut queue = WaitQueue::default();
        for (name, last_byte) in [("with a reservation", 9), ("first", 1), ("second", 2)] {
            queue.enqueue(Time::ZERO, join_key(name), address(last_byte), None);
        }
        // A worker that retries keeps its position.
        queue.enqueue(Time::from_secs(1), join_key("first"), address(1), None);
        let workers =
            [("first", 1), ("second", 2), ("new", 3), ("with a reservation", 9), ("with a reservation and new", 9)];
        assert_eq!(count_ahead(&queue, &workers), [0, 1, 2, 2, 3]);
        queue.remove(join_key("first"));
        assert_eq!(count_ahead(&queue, &workers[1..]), [0, 1, 1, 2]);
    }

    #[test]
    fn workers_that_stop_retrying_leave_the_queue() {
        let mut queue = WaitQueue::default();
        queue.enqueue(Time::ZERO, join_key("stopped"), address(1), None);
        queue.enqueue(Time::ZERO, join_key("retries"), address(2), None);
        queue.enqueue(Time::from_secs(5), join_key("retries"), address(2), None);
        queue.remove_expired(RETRY_TIMEOUT);
        assert_eq!(count_ahead(&queue, &[("retries", 2), ("new", 3)]), [0, 1]);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut queue = WaitQueue::default();
        for number in 0..4_000_u32 {
            let address = IpAddr::from((number % 200 + (10 << 24)).to_be_bytes());
            queue.enqueue(Time::ZERO, join_key(&number.to_string()), address, None);
        }
        assert_eq!(queue.0.len(), MAX_WAITING);
        let mut queue = WaitQueue::default();
        for number in 0..100 {
            queue.enqueue(Time::ZERO, join_key(&number.to_string()), address(1), None);
        }
        assert_eq!(queue.0.len(), MAX_WAITING_PER_ADDRESS);
    }
}
