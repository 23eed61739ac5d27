//! The queue of workers that were told to ask again for a place.
//!
//! Workers ask again after pauses of up to five seconds, so a client that asks a thousand times a
//! second would get every place that becomes free. Therefore a free place is kept for the first
//! worker in the queue. Workers are ordered by the number of reservations of their address, fewest
//! first, and then by arrival.

use std::{net::IpAddr, time::Duration};

use super::Secret;
use crate::run::Time;

/// Most workers in the queue. Further workers are told to ask again, but have no position.
const MAX_WAITERS: usize = 1024;
/// Most workers of one address in the queue.
const MAX_WAITERS_PER_ADDRESS: usize = 32;
/// A worker that has not asked for so long leaves the queue: three times the longest pause of a
/// worker.
const WAITER_TTL: Duration = Duration::from_secs(15);

/// A worker that waits for a place.
#[derive(Debug)]
pub struct WaitingWorker {
    key: Secret,
    address: IpAddr,
    /// The rank that it asks for; none if any rank will do.
    pub wanted: Option<u32>,
    /// When it last asked.
    asked: Time,
}

/// Workers that wait for a place, in the order of their arrival.
#[derive(Debug, Default)]
pub struct WaitQueue(Vec<WaitingWorker>);

impl WaitQueue {
    /// Adds a worker that was told to ask again; a worker in the queue keeps its position.
    pub fn enqueue(&mut self, now: Time, key: Secret, address: IpAddr, wanted: Option<u32>) {
        if let Some(waiter) = self.0.iter_mut().find(|waiter| waiter.key == key) {
            (waiter.wanted, waiter.asked) = (wanted, now);
            return;
        }
        let of_address = self.0.iter().filter(|waiter| waiter.address == address).count();
        if self.0.len() < MAX_WAITERS && of_address < MAX_WAITERS_PER_ADDRESS {
            self.0.push(WaitingWorker { key, address, wanted, asked: now });
        }
    }

    /// Removes a worker that got a place, or was refused for good.
    pub fn remove(&mut self, key: Secret) {
        self.0.retain(|waiter| waiter.key != key);
    }

    /// Removes workers that have stopped asking.
    pub fn expire(&mut self, now: Time) {
        self.0.retain(|waiter| now.saturating_sub(waiter.asked) < WAITER_TTL);
    }

    /// The workers that come before a worker at `address`, which may be in the queue or not.
    /// `reservations` is the number of reservations of an address.
    pub fn ahead_of(
        &self,
        key: Secret,
        address: IpAddr,
        reservations: impl Fn(IpAddr) -> usize,
    ) -> impl Iterator<Item = &WaitingWorker> {
        let position = self.0.iter().position(|waiter| waiter.key == key).unwrap_or(self.0.len());
        let own = (reservations(address), position);
        let is_ahead =
            move |(position, waiter): &(usize, &WaitingWorker)| (reservations(waiter.address), *position) < own;
        self.0.iter().enumerate().filter(is_ahead).map(|(_, waiter)| waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn key(name: &str) -> Secret {
        Secret::of(name)
    }

    /// How many workers are ahead of each of these, where the address 10.0.0.9 has a reservation.
    fn ahead(queue: &WaitQueue, workers: &[(&str, u8)]) -> Vec<usize> {
        let reservations = |of: IpAddr| usize::from(of == address(9));
        workers.iter().map(|(name, last)| queue.ahead_of(key(name), address(*last), reservations).count()).collect()
    }

    #[test]
    fn addresses_with_fewer_reservations_come_first() {
        let mut queue = WaitQueue::default();
        for (name, last) in [("greedy", 9), ("first", 1), ("second", 2)] {
            queue.enqueue(Time::ZERO, key(name), address(last), None);
        }
        // A worker that asks again keeps its position.
        queue.enqueue(Time::from_secs(1), key("first"), address(1), None);
        let workers = [("first", 1), ("second", 2), ("new", 3), ("greedy", 9), ("greedy and new", 9)];
        assert_eq!(ahead(&queue, &workers), [0, 1, 2, 2, 3]);
        queue.remove(key("first"));
        assert_eq!(ahead(&queue, &workers[1..]), [0, 1, 1, 2]);
    }

    #[test]
    fn workers_that_stop_asking_leave_the_queue() {
        let mut queue = WaitQueue::default();
        queue.enqueue(Time::ZERO, key("gone"), address(1), None);
        queue.enqueue(Time::ZERO, key("asks"), address(2), None);
        queue.enqueue(Time::from_secs(5), key("asks"), address(2), None);
        queue.expire(WAITER_TTL);
        assert_eq!(ahead(&queue, &[("asks", 2), ("new", 3)]), [0, 1]);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut queue = WaitQueue::default();
        for number in 0..4_000_u32 {
            let address = IpAddr::from((number % 200 + (10 << 24)).to_be_bytes());
            queue.enqueue(Time::ZERO, key(&number.to_string()), address, None);
        }
        assert_eq!(queue.0.len(), MAX_WAITERS);
        let mut queue = WaitQueue::default();
        for number in 0..100 {
            queue.enqueue(Time::ZERO, key(&number.to_string()), address(1), None);
        }
        assert_eq!(queue.0.len(), MAX_WAITERS_PER_ADDRESS);
    }
}
