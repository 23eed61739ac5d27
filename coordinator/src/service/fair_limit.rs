//! A limit on the number of open items (connections, sessions) that clients share fairly: one item too many evicts the oldest item
//! of the client address with the most items. A client that opens many items therefore does not lock out other clients.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use super::door::Peer;

/// Open items, the oldest first.
#[derive(Debug)]
pub struct FairLimit<T> {
    max: usize,
    open: VecDeque<(Peer, T)>,
}

impl<T> FairLimit<T> {
    /// No items; at most `max` can be open at once.
    pub fn new(max: usize) -> Self {
        Self { max, open: VecDeque::new() }
    }

    /// Adds an item; returns the item that is evicted for it, if there are too many.
    pub fn insert(&mut self, peer: Peer, item: T) -> Option<(Peer, T)> {
        self.open.push_back((peer, item));
        let evicted = (self.open.len() > self.max).then(|| self.oldest_of_largest_client())?;
        self.open.remove(evicted)
    }

    /// Removes the items for which `is_open` is false.
    pub fn retain(&mut self, is_open: impl Fn(&T) -> bool) {
        self.open.retain(|(_, item)| is_open(item));
    }

    /// Index of the oldest item of the address with the most items.
    fn oldest_of_largest_client(&self) -> usize {
        let mut counts = HashMap::<IpAddr, usize>::new();
        self.open.iter().for_each(|(peer, _)| *counts.entry(peer.client_address()).or_default() += 1);
        let most = counts.values().copied().max();
        let is_of_largest = |(peer, _): &(Peer, T)| counts.get(&peer.client_address()).copied() == most;
        self.open.iter().position(is_of_largest).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inserts one item for each address; returns the index of the item that the last one evicts.
    fn evicted(max: usize, addresses: &[u8]) -> Option<usize> {
        let mut limit = FairLimit::new(max);
        let insert = |(index, last): (usize, &u8)| {
            let peer = Peer(([10, 0, 0, *last], 7).into());
            limit.insert(peer, index).map(|(_, index)| index)
        };
        addresses.iter().enumerate().map(insert).last().flatten()
    }

    #[test]
    fn the_client_with_the_most_items_loses_its_oldest() {
        assert_eq!(evicted(3, &[1, 1, 1]), None);
        assert_eq!(evicted(2, &[1, 1, 1]), Some(0));
        assert_eq!(evicted(5, &[1, 2, 3, 2, 3, 3]), Some(2), "older items of other clients stay");
        assert_eq!(evicted(3, &[1, 2, 2, 3]), Some(1), "a new client is let in");
        assert_eq!(evicted(3, &[1, 2, 2, 1]), Some(0));
    }

    #[test]
    fn closed_items_do_not_count() {
        let (mut limit, peer) = (FairLimit::new(1), Peer(([10, 0, 0, 1], 7).into()));
        assert!(limit.insert(peer, "closed").is_none());
        limit.retain(|item| *item != "closed");
        assert!(limit.insert(peer, "open").is_none());
        assert_eq!(limit.insert(peer, "new").map(|(_, item)| item), Some("open"));
    }
}
