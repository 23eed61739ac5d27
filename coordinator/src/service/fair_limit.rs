//! A limit on the number of open items (connections, streams) that clients share fairly: an item
//! beyond the limit evicts the oldest item of the client with the most items. A client that opens
//! many items therefore does not lock out other clients.
//!
//! Clients are counted by [`Peer::client_address`]. To evict an item is to close it; this module
//! does not evict members of the run.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::acceptor::Peer;

/// Open items with their peers, the oldest first.
#[derive(Debug)]
pub struct FairLimit<T> {
    max: usize,
    open: VecDeque<(Peer, T)>,
}

impl<T> FairLimit<T> {
    /// An empty collection for at most `max` open items.
    pub fn new(max: usize) -> Self {
        Self { max, open: VecDeque::new() }
    }

    /// Adds an item. Returns the item that is evicted for it, if the limit is exceeded.
    pub fn insert(&mut self, peer: Peer, item: T) -> Option<(Peer, T)> {
        self.open.push_back((peer, item));
        let evicted = (self.open.len() > self.max).then(|| self.oldest_of_largest_client())?;
        self.open.remove(evicted)
    }

    /// Adds an item if the limit is not reached. If it is reached, adds the item only if another
    /// client has more items than this client would have, and evicts the oldest item of the client
    /// with the most items. So two clients cannot evict each other's items again and again. Returns
    /// whether the item was added.
    pub fn try_insert(&mut self, peer: Peer, item: T) -> bool {
        let counts = self.counts();
        let own_count = counts.get(&peer.client_address()).copied().unwrap_or_default() + 1;
        let is_allowed = self.open.len() < self.max || counts.values().any(|count| *count > own_count);
        if is_allowed {
            self.insert(peer, item);
        }
        is_allowed
    }

    /// Removes the items for which `is_open` is false.
    pub fn retain(&mut self, is_open: impl Fn(&T) -> bool) {
        self.open.retain(|(_, item)| is_open(item));
    }

    /// The index of the oldest item of the client with the most items.
    fn oldest_of_largest_client(&self) -> usize {
        let counts = self.counts();
        let max_count = counts.values().copied().max();
        let is_of_largest = |(peer, _): &(Peer, T)| counts.get(&peer.client_address()).copied() == max_count;
        self.open.iter().position(is_of_largest).unwrap_or_default()
    }

    /// The number of items of each client address.
    fn counts(&self) -> HashMap<IpAddr, usize> {
        let mut counts = HashMap::new();
        self.open.iter().for_each(|(peer, _)| *counts.entry(peer.client_address()).or_default() += 1);
        counts
    }
}

/// A [`FairLimit`] on streams. Each stream holds the receiver that it gets here: the receiver
/// completes when the stream is evicted, and its drop shows that the stream has closed.
#[derive(Debug)]
pub struct StreamLimit(Mutex<FairLimit<oneshot::Sender<()>>>);

impl StreamLimit {
    /// A limit of `max` open streams.
    pub fn new(max: usize) -> Self {
        Self(Mutex::new(FairLimit::new(max)))
    }

    /// Removes streams that have closed. Returns the open ones.
    fn open_streams(&self) -> MutexGuard<'_, FairLimit<oneshot::Sender<()>>> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| !stream.is_closed());
        streams
    }

    /// Opens a stream: see [`FairLimit::insert`].
    pub fn open(&self, peer: Peer) -> oneshot::Receiver<()> {
        let (evict_on_drop, evicted) = oneshot::channel();
        self.open_streams().insert(peer, evict_on_drop);
        evicted
    }

    /// Opens a stream if the limit allows it: see [`FairLimit::try_insert`].
    pub fn try_open(&self, peer: Peer) -> Option<oneshot::Receiver<()>> {
        let (evict_on_drop, evicted) = oneshot::channel();
        self.open_streams().try_insert(peer, evict_on_drop).then_some(evicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inserts an item for each host of a network. Returns the index of the item that the last one
    /// evicts.
    fn evicted_by_last(max: usize, hosts: &[u8]) -> Option<usize> {
        let mut limit = FairLimit::new(max);
        let insert = |(index, host): (usize, &u8)| {
            let peer = Peer(([10, 0, 0, *host], 7).into());
            limit.insert(peer, index).map(|(_, index)| index)
        };
        hosts.iter().enumerate().map(insert).last().flatten()
    }

    #[test]
    fn the_client_with_the_most_items_loses_its_oldest() {
        assert_eq!(evicted_by_last(3, &[1, 1, 1]), None);
        assert_eq!(evicted_by_last(2, &[1, 1, 1]), Some(0));
        assert_eq!(evicted_by_last(5, &[1, 2, 3, 2, 3, 3]), Some(2), "older items of other clients stay");
        assert_eq!(evicted_by_last(3, &[1, 2, 2, 3]), Some(1), "a new client is admitted");
        assert_eq!(evicted_by_last(3, &[1, 2, 2, 1]), Some(0));
    }

    #[test]
    fn try_insert_evicts_only_items_of_clients_with_more_items() {
        let mut limit = FairLimit::new(4);
        let mut try_insert = |host| limit.try_insert(Peer(([10, 0, 0, host], 7).into()), host);
        for (host, expected) in
            [(1, true), (1, true), (1, true), (1, true), (1, false), (2, true), (2, true), (2, false)]
        {
            assert_eq!(try_insert(host), expected, "{host}");
        }
        assert!(
            try_insert(3) && !try_insert(1),
            "a third client is admitted; the first would have as many items as the second"
        );
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
