//! A limit on the number of open items (connections, sessions) that clients share fairly: one item
//! too many evicts the oldest item of the client address with the most items. A client that opens
//! many items therefore does not lock out other clients.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

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

    /// Adds an item if there is room, or if a client has more items than this one would have: then
    /// that client loses its oldest. So clients cannot take turns in evicting each other. Returns
    /// whether the item was added.
    pub fn try_insert(&mut self, peer: Peer, item: T) -> bool {
        let counts = self.counts();
        let own = counts.get(&peer.client_address()).copied().unwrap_or_default() + 1;
        let is_allowed = self.open.len() < self.max || counts.values().any(|count| *count > own);
        if is_allowed {
            self.insert(peer, item);
        }
        is_allowed
    }

    /// Removes the items for which `is_open` is false.
    pub fn retain(&mut self, is_open: impl Fn(&T) -> bool) {
        self.open.retain(|(_, item)| is_open(item));
    }

    /// Index of the oldest item of the address with the most items.
    fn oldest_of_largest_client(&self) -> usize {
        let counts = self.counts();
        let most = counts.values().copied().max();
        let is_of_largest = |(peer, _): &(Peer, T)| counts.get(&peer.client_address()).copied() == most;
        self.open.iter().position(is_of_largest).unwrap_or_default()
    }

    /// Number of items of each address.
    fn counts(&self) -> HashMap<IpAddr, usize> {
        let mut counts = HashMap::new();
        self.open.iter().for_each(|(peer, _)| *counts.entry(peer.client_address()).or_default() += 1);
        counts
    }
}

/// A [`FairLimit`] on streams. Each stream holds the receiver that it gets here, which completes
/// when the stream is evicted.
#[derive(Debug)]
pub struct StreamLimit(Mutex<FairLimit<oneshot::Sender<()>>>);

impl StreamLimit {
    /// At most `max` streams at once.
    pub fn new(max: usize) -> Self {
        Self(Mutex::new(FairLimit::new(max)))
    }

    /// The streams that are still open.
    fn open_streams(&self) -> MutexGuard<'_, FairLimit<oneshot::Sender<()>>> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| !stream.is_closed());
        streams
    }

    /// Opens a stream, as [`FairLimit::insert`] does.
    pub fn open(&self, peer: Peer) -> oneshot::Receiver<()> {
        let (evict, evicted) = oneshot::channel();
        self.open_streams().insert(peer, evict);
        evicted
    }

    /// Opens a stream if it may, as [`FairLimit::try_insert`] does.
    pub fn try_open(&self, peer: Peer) -> Option<oneshot::Receiver<()>> {
        let (evict, evicted) = oneshot::channel();
        self.open_streams().try_insert(peer, evict).then_some(evicted)
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
    fn an_item_that_needs_no_place_evicts_only_from_larger_clients() {
        let mut limit = FairLimit::new(4);
        let mut try_insert = |last| limit.try_insert(Peer(([10, 0, 0, last], 7).into()), last);
        for (last, expected) in
            [(1, true), (1, true), (1, true), (1, true), (1, false), (2, true), (2, true), (2, false)]
        {
            assert_eq!(try_insert(last), expected, "{last}");
        }
        assert!(try_insert(3) && !try_insert(1), "each of the others has more than the one that is added");
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
