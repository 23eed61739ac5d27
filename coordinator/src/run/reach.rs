//! Reachability: evicts members that other members cannot connect to, so that the rest can train.
//!
//! A generation needs a connection between any two members, and the coordinator sees only the
//! connections to itself. Before a rendezvous each member therefore tries to connect to some of the
//! others and reports those that it cannot reach. When all have released the generation that failed
//! for it, the coordinator evicts the member that is in most of the reported pairs, and repeats
//! this until no pair is left.
//!
//! A member that advertises a loopback address to members of other machines is at fault whatever
//! the pairs are. If it alone holds the furthest state, it is isolated instead of evicted: it saves
//! that state in a generation of its own, and leaves.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use proto::v1;

use super::{Run, Time, generation::StartPoint, membership::Member, plan::Place, record::Source};

/// The number of other members that each member tries to connect to.
const PEERS: usize = 64;

/// Pairs of members that cannot reach each other, the lower identity first.
pub(super) type UnreachablePairs = BTreeSet<(u32, u32)>;

/// The peers that the member at `index` tries to connect to: the [`PEERS`] that follow it in the
/// circle of all `members`.
pub(super) fn peers(members: &[(u32, String)], index: usize) -> Vec<v1::Peer> {
    let others = members.iter().cycle().skip(index + 1).take(PEERS.min(members.len() - 1));
    others.map(|(rank, address)| v1::Peer { rank: *rank, store_address: address.clone() }).collect()
}

/// The member to evict: the one in most pairs. Ties are decided in this order: a member other than
/// `precious`; the one not heard from for longest, because it may be dead; the highest id, because
/// the member with the lowest id serves the rendezvous.
fn worst(complaints: &UnreachablePairs, precious: Option<u32>, heard: impl Fn(u32) -> Time) -> Option<u32> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for rank in complaints.iter().flat_map(|(a, b)| [*a, *b]) {
        *counts.entry(rank).or_default() += 1;
    }
    let order = |(rank, count): &(u32, usize)| (*count, Some(*rank) != precious, Reverse(heard(*rank)), *rank);
    counts.into_iter().max_by_key(order).map(|(rank, _)| rank)
}

/// Whether an address (host:port) names a different machine on every machine: loopback or
/// unspecified.
fn is_local(address: &str) -> bool {
    let ip = address.parse::<SocketAddr>().map(|address| address.ip().to_canonical());
    ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

impl Run {
    /// Records the peers that a member reports as unreachable. Ignores reports about earlier
    /// generations and unknown members.
    pub(super) fn complain(&mut self, rank: u32, failed: &v1::Failed) {
        if failed.generation == self.last_generation {
            let known = failed.unreachable.iter().take(PEERS).filter(|other| self.members.get(**other).is_some());
            let pairs = known.filter(|other| **other != rank).map(|other| (rank.min(*other), rank.max(*other)));
            self.complaints.extend(pairs.collect::<Vec<_>>());
        }
    }

    /// Evicts unreachable members. Called when no member is in a generation any more.
    pub(super) fn part(&mut self, now: Time) {
        let mut complaints = std::mem::take(&mut self.complaints);
        complaints.retain(|(a, b)| self.members.get(*a).is_some() && self.members.get(*b).is_some());
        self.part_from_local(now, &mut complaints);
        let heard = |run: &Self, rank| run.members.get(rank).map_or(Time::ZERO, |member| member.heard);
        let precious = self.sole_holder();
        while let Some(rank) = worst(&complaints, precious, |rank| heard(self, rank)) {
            let of_it = |(a, b): &(u32, u32)| *a == rank || *b == rank;
            let others: Vec<String> =
                complaints.iter().filter(|pair| of_it(pair)).map(|(a, b)| (a + b - rank).to_string()).collect();
            complaints.retain(|pair| !of_it(pair));
            let hint = self.local_address(rank).map_or_else(String::new, |address| {
                format!(
                    "; it advertises {address}, which its own machine alone can reach: start it with --host ADDRESS"
                )
            });
            self.evict(now, rank, &format!("it and rank {} cannot reach each other{hint}", others.join(", ")));
        }
    }

    /// Evicts members with local addresses that cannot be reached by members with others.
    fn part_from_local(&mut self, now: Time, complaints: &mut UnreachablePairs) {
        let mut at_fault: BTreeMap<u32, (u32, String)> = BTreeMap::new();
        for (a, b) in complaints.iter().copied() {
            match (self.local_address(a), self.local_address(b)) {
                (Some(address), None) => _ = at_fault.insert(a, (b, address)),
                (None, Some(address)) => _ = at_fault.insert(b, (a, address)),
                _ => {}
            }
        }
        complaints.retain(|(a, b)| !at_fault.contains_key(a) && !at_fault.contains_key(b));
        for (rank, (other, address)) in at_fault {
            let host = self.members.get(other).map(|member| member.machine.host.escape_debug().to_string());
            let reason = format!(
                "it advertises {address}, which rank {other} on {} cannot reach: start it with --host and an address of its \
                 machine that other machines reach",
                host.unwrap_or_default()
            );
            if self.sole_holder() == Some(rank) && !self.is_saved(self.origin().start) {
                self.wants_to_go(rank, reason);
                if let Some(member) = self.members.get_mut(rank) {
                    member.isolated = true;
                }
            } else {
                self.evict(now, rank, &reason);
            }
        }
    }

    /// The address that a member advertises, if its own machine alone can reach it.
    fn local_address(&self, rank: u32) -> Option<String> {
        let address = &self.members.get(rank)?.store_address;
        is_local(address).then(|| address.rsplit_once(':').map_or("", |(host, _)| host).to_owned())
    }

    /// The member that alone holds the furthest state, if there is one: evicting it would lose
    /// work, unlike evicting a member without state.
    fn sole_holder(&self) -> Option<u32> {
        let StartPoint { start, source: Source::Member(rank) } = self.origin() else { return None };
        let holds = |member: &Member| member.position.as_ref().map(Place::from) == Some(start);
        (self.members.iter().filter(|(_, member)| holds(member)).count() == 1).then_some(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_are_local_whatever_they_are_written_as() {
        for address in ["127.0.0.1:7", "127.9.9.9:7", "[::1]:7", "[::ffff:127.0.0.1]:7", "0.0.0.0:7", "[::]:7"] {
            assert!(is_local(address), "{address}");
        }
        for address in ["10.0.0.1:7", "[fd00::1]:7", "[::ffff:10.0.0.1]:7", "host:7", "localhost", ""] {
            assert!(!is_local(address), "{address}");
        }
    }

    #[test]
    fn a_member_reaches_for_those_that_follow_it() {
        let members = |count: u32| -> Vec<_> { (0..count).map(|n| (2 * n, format!("host:{n}"))).collect() };
        let ranks = |count, index| peers(&members(count), index).iter().map(|peer| peer.rank).collect::<Vec<_>>();
        assert_eq!(ranks(1, 0), [0; 0]);
        assert_eq!(ranks(3, 1), [4, 0]);
        assert_eq!(ranks(100, 99).len(), PEERS);
        assert_eq!(ranks(100, 99)[..2], [0, 2]);
    }

    #[test]
    fn who_is_cut_off_goes_and_the_others_stay() {
        let worst = |pairs: &[(u32, u32)], silent: u32| {
            worst(&pairs.iter().copied().collect(), None, |rank| Time::from_secs(u64::from(rank != silent)))
        };
        assert_eq!(worst(&[(0, 1), (1, 2)], 0), Some(1));
        assert_eq!(worst(&[(0, 1)], 0), Some(0));
        assert_eq!(worst(&[(0, 1)], 9), Some(1));
        assert_eq!(worst(&[(0, 5), (0, 7), (5, 7), (0, 9)], 7), Some(0));
        assert_eq!(worst(&[], 0), None);
        let only = |precious| super::worst(&[(0, 1)].into(), precious, |_| Time::ZERO);
        assert_eq!((only(None), only(Some(1))), (Some(1), Some(0)));
    }
}
