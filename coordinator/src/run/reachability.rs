//! Reachability: evicts members that other members cannot connect to, so that the rest can train.
//!
//! A generation needs a connection between any two members, and the coordinator sees only the
//! connections to itself. Therefore each member tries to connect to some of the other members
//! before a rendezvous, and reports those that it cannot reach. Each report gives a pair of
//! members. When all members have released the failed generation, the coordinator evicts the member
//! that is in the most pairs, and repeats this until no pair is left.
//!
//! A member that advertises a loopback address to members on other machines is evicted first,
//! regardless of the number of pairs. If it is the sole holder of the furthest training state, it
//! is *isolated* instead of evicted: it saves that state in a generation without other members, and
//! leaves.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use proto::v1;

use super::{Run, Time, WorkerId, generation::StartPoint, membership::Member, plan::Position, record::StateSource};

/// Maximal number of other members that each member tries to connect to.
const MAX_PROBED_PEERS: usize = 64;

/// Pairs of members that cannot reach each other, the lower id first.
pub(super) type UnreachablePairs = BTreeSet<(WorkerId, WorkerId)>;

/// The peers that the member at `index` tries to connect to: the [`MAX_PROBED_PEERS`] members that
/// follow it in `members`. The first member follows the last one. `members` has each member's id
/// and the address of its TCPStore.
pub(super) fn peers_to_probe(members: &[(WorkerId, String)], index: usize) -> Vec<v1::Peer> {
    let others = members.iter().cycle().skip(index + 1).take(MAX_PROBED_PEERS.min(members.len() - 1));
    others.map(|(id, address)| v1::Peer { worker_id: id.0, store_address: address.clone() }).collect()
}

/// The member to evict: the one in the most pairs. Among members in equally many pairs, these are
/// preferred, in this order: a member that is not `sole_holder`; the member with the oldest last
/// message, because it may be dead; the member with the highest id, because the member with the
/// lowest id serves the rendezvous.
fn select_eviction(
    pairs: &UnreachablePairs,
    sole_holder: Option<WorkerId>,
    last_message_at: impl Fn(WorkerId) -> Time,
) -> Option<WorkerId> {
    let mut counts: BTreeMap<WorkerId, usize> = BTreeMap::new();
    for worker_id in pairs.iter().flat_map(|(a, b)| [*a, *b]) {
        *counts.entry(worker_id).or_default() += 1;
    }
    let priority =
        |(id, count): &(WorkerId, usize)| (*count, Some(*id) != sole_holder, Reverse(last_message_at(*id)), *id);
    counts.into_iter().max_by_key(priority).map(|(worker_id, _)| worker_id)
}

/// Whether only the machine itself can be reached at this address (host:port): the IP address is a
/// loopback address (127.0.0.1) or unspecified (0.0.0.0).
fn is_machine_local(address: &str) -> bool {
    let ip = address.parse::<SocketAddr>().map(|address| address.ip().to_canonical());
    ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

impl Run {
    /// Records the peers that a member reports as unreachable. Ignores reports about earlier
    /// generations and unknown members.
    pub(super) fn record_unreachable(&mut self, worker_id: WorkerId, failed: &v1::Failed) {
        if failed.generation != self.last_generation {
            return;
        }
        let reported = failed.unreachable_workers.iter().take(MAX_PROBED_PEERS).map(|id| WorkerId(*id));
        let peers = reported.filter(|peer| *peer != worker_id && self.members.get(*peer).is_some());
        let pairs: Vec<_> = peers.map(|peer| (worker_id.min(peer), worker_id.max(peer))).collect();
        self.unreachable_pairs.extend(pairs);
    }

    /// Evicts members until all pairs of the remaining members can reach each other. Called when no
    /// member is in a generation any more.
    pub(super) fn evict_unreachable(&mut self, now: Time) {
        let mut pairs = std::mem::take(&mut self.unreachable_pairs);
        pairs.retain(|(a, b)| self.members.get(*a).is_some() && self.members.get(*b).is_some());
        self.evict_machine_local(now, &mut pairs);
        let last_message_at = |run: &Self, id| run.members.get(id).map_or(Time::ZERO, |member| member.last_message_at);
        let sole_holder = self.sole_holder();
        while let Some(worker_id) = select_eviction(&pairs, sole_holder, |id| last_message_at(self, id)) {
            let has_worker = |(a, b): &(WorkerId, WorkerId)| *a == worker_id || *b == worker_id;
            let peer = |(a, b): &(WorkerId, WorkerId)| if *a == worker_id { *b } else { *a };
            let peers: Vec<String> =
                pairs.iter().filter(|pair| has_worker(pair)).map(|pair| peer(pair).to_string()).collect();
            pairs.retain(|pair| !has_worker(pair));
            let hint = self.machine_local_address(worker_id).map_or_else(String::new, |address| {
                format!("; it advertises {address}, which only its own machine can reach: start it with --host ADDRESS")
            });
            let noun = if peers.len() == 1 { "worker" } else { "workers" };
            self.evict(now, worker_id, &format!("it and {noun} {} cannot reach each other{hint}", peers.join(", ")));
        }
    }

    /// Evicts, or isolates, members with machine-local addresses that members with other addresses
    /// cannot reach.
    fn evict_machine_local(&mut self, now: Time, pairs: &mut UnreachablePairs) {
        let mut misconfigured: BTreeMap<WorkerId, (WorkerId, String)> = BTreeMap::new();
        for (a, b) in pairs.iter().copied() {
            match (self.machine_local_address(a), self.machine_local_address(b)) {
                (Some(address), None) => _ = misconfigured.insert(a, (b, address)),
                (None, Some(address)) => _ = misconfigured.insert(b, (a, address)),
                _ => {}
            }
        }
        pairs.retain(|(a, b)| !misconfigured.contains_key(a) && !misconfigured.contains_key(b));
        for (worker_id, (peer, address)) in misconfigured {
            let host = self.members.get(peer).map(|member| member.machine.host.escape_debug().to_string());
            let reason = format!(
                "it advertises {address}, which worker {peer} on {} cannot reach: start it with --host and an address \
                 of its machine that other machines can reach",
                host.unwrap_or_default()
            );
            if self.sole_holder() == Some(worker_id) && !self.is_saved(self.select_start().start) {
                self.request_leave(worker_id, reason);
                if let Some(member) = self.members.get_mut(worker_id) {
                    member.is_isolated = true;
                }
            } else {
                self.evict(now, worker_id, &reason);
            }
        }
    }

    /// The address that a member advertises, if only its own machine can reach it.
    fn machine_local_address(&self, worker_id: WorkerId) -> Option<String> {
        let address = &self.members.get(worker_id)?.tcp_store_address;
        is_machine_local(address).then(|| address.rsplit_once(':').map_or("", |(host, _)| host).to_owned())
    }

    /// The sole holder of the furthest training state: the only member that holds it. None if
    /// several members hold it, or if only a checkpoint does. The eviction of a sole holder loses
    /// steps, unless the state [is saved](Self::is_saved).
    fn sole_holder(&self) -> Option<WorkerId> {
        let StartPoint { start, source: StateSource::Member(worker_id) } = self.select_start() else { return None };
        let holds = |member: &Member| member.position.as_ref().map(Position::from) == Some(start);
        (self.members.iter().filter(|(_, member)| holds(member)).count() == 1).then_some(worker_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_unspecified_addresses_are_machine_local_in_every_notation() {
        for address in ["127.0.0.1:7", "127.9.9.9:7", "[::1]:7", "[::ffff:127.0.0.1]:7", "0.0.0.0:7", "[::]:7"] {
            assert!(is_machine_local(address), "{address}");
        }
        for address in ["10.0.0.1:7", "[fd00::1]:7", "[::ffff:10.0.0.1]:7", "host:7", "localhost", ""] {
            assert!(!is_machine_local(address), "{address}");
        }
    }

    #[test]
    fn a_member_probes_the_members_that_follow_it() {
        let members = |count: u32| -> Vec<_> { (0..count).map(|n| (WorkerId(2 * n), format!("host:{n}"))).collect() };
        let ids =
            |count, index| peers_to_probe(&members(count), index).iter().map(|peer| peer.worker_id).collect::<Vec<_>>();
        assert_eq!(ids(1, 0), [0; 0]);
        assert_eq!(ids(3, 1), [4, 0]);
        assert_eq!(ids(100, 99).len(), MAX_PROBED_PEERS);
        assert_eq!(ids(100, 99)[..2], [0, 2]);
    }

    #[test]
    fn the_member_in_most_pairs_is_evicted() {
        let pairs = |pairs: &[(u32, u32)]| pairs.iter().map(|(a, b)| (WorkerId(*a), WorkerId(*b))).collect();
        let select = |ids: &[(u32, u32)], silent: u32| {
            let last_message_at = |id| Time::from_secs(u64::from(id != WorkerId(silent)));
            select_eviction(&pairs(ids), None, last_message_at).map(|id| id.0)
        };
        assert_eq!(select(&[(0, 1), (1, 2)], 0), Some(1));
        assert_eq!(select(&[(0, 1)], 0), Some(0));
        assert_eq!(select(&[(0, 1)], 9), Some(1));
        assert_eq!(select(&[(0, 5), (0, 7), (5, 7), (0, 9)], 7), Some(0));
        assert_eq!(select(&[], 0), None);
        let select_with_sole_holder = |sole_holder| select_eviction(&pairs(&[(0, 1)]), sole_holder, |_| Time::ZERO);
        assert_eq!(
            (select_with_sole_holder(None), select_with_sole_holder(Some(WorkerId(1)))),
            (Some(WorkerId(1)), Some(WorkerId(0)))
        );
    }
}
