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

use crate::{
    handler::{membership::MembershipHandler, membership_changes::state_holders},
    membership::Membership,
    output::{Effect, Output},
    state::{
        State,
        generations::{Generations, UnreachablePairs},
    },
    types::{Time, WorkerId},
};

/// Maximal number of other members that each member tries to connect to.
const MAX_PROBED_PEERS: usize = 64;

/// The peers that the member at `index` tries to connect to: the [`MAX_PROBED_PEERS`] members that
/// follow it in `members`. The first member follows the last one. `members` has each member's id
/// and the address of its TCPStore.
#[must_use]
pub fn peers_to_probe(members: &[(WorkerId, String)], index: usize) -> Vec<v1::Peer> {
    let others = members.iter().cycle().skip(index + 1).take(MAX_PROBED_PEERS.min(members.len() - 1));
    others.map(|(id, address)| v1::Peer { worker_id: id.0, store_address: address.clone() }).collect()
}

/// Records the peers that a member reports as unreachable. Ignores reports about earlier
/// generations and unknown members.
pub fn record_unreachable(
    generations: &mut Generations,
    members: &Membership,
    worker_id: WorkerId,
    failed: &v1::Failed,
) {
    if failed.generation != generations.last_number {
        return;
    }
    let reported = failed.unreachable_workers.iter().take(MAX_PROBED_PEERS).map(|id| WorkerId(*id));
    let peers = reported.filter(|peer| *peer != worker_id && members.get(*peer).is_some());
    generations.unreachable_pairs.extend(peers.map(|peer| (worker_id.min(peer), worker_id.max(peer))));
}

/// Queues the eviction of members, so that all pairs of the remaining members can reach each other.
/// A misconfigured member is handled alone; the engine calls this function again after it is gone.
/// Called when no member is in a generation any more. Returns whether a member has to leave.
pub fn evict_unreachable(state: &mut State, output: &mut Output) -> bool {
    let mut pairs = std::mem::take(&mut state.generations.unreachable_pairs);
    pairs.retain(|(a, b)| state.members.get(*a).is_some() && state.members.get(*b).is_some());
    if let Some((worker_id, reason)) = find_misconfigured(&state.members, &pairs) {
        // The other pairs are examined when this member is gone: another one may be the sole holder
        // then.
        pairs.retain(|(a, b)| *a != worker_id && *b != worker_id);
        state.generations.unreachable_pairs = pairs;
        evict_or_isolate(state, output, worker_id, reason);
        return true;
    }
    let evictions = select_evictions(pairs, state_holders(state).sole_holder(), |id| {
        state.members.get(id).map_or(Time::ZERO, |member| member.last_message_at)
    });
    for (worker_id, peers) in &evictions {
        let reason = describe_unreachable(&state.members, *worker_id, peers);
        output.add_effect(Effect::Evict { worker_id: *worker_id, reason });
    }
    !evictions.is_empty()
}

/// The members to evict until no pair is left, in order, each with the peers that it cannot reach.
///
/// Evicts the member in the most pairs. Among members in equally many pairs, these are preferred,
/// in this order: a member that is not `sole_holder`; the member with the oldest last message,
/// because it may be dead; the member with the highest id, because the member with the lowest id
/// serves the rendezvous.
fn select_evictions(
    mut pairs: UnreachablePairs,
    sole_holder: Option<WorkerId>,
    last_message_at: impl Fn(WorkerId) -> Time,
) -> Vec<(WorkerId, BTreeSet<WorkerId>)> {
    let mut evictions = Vec::new();
    loop {
        let mut peers: BTreeMap<WorkerId, BTreeSet<WorkerId>> = BTreeMap::new();
        for (a, b) in pairs.iter().copied() {
            peers.entry(a).or_default().insert(b);
            peers.entry(b).or_default().insert(a);
        }
        let priority = |(id, peers): &(WorkerId, BTreeSet<WorkerId>)| {
            (peers.len(), Some(*id) != sole_holder, Reverse(last_message_at(*id)), *id)
        };
        let Some((worker_id, peers)) = peers.into_iter().max_by_key(priority) else { return evictions };
        pairs.retain(|(a, b)| *a != worker_id && *b != worker_id);
        evictions.push((worker_id, peers));
    }
}

/// Why a member is evicted that cannot reach these peers.
fn describe_unreachable(members: &Membership, worker_id: WorkerId, peers: &BTreeSet<WorkerId>) -> String {
    let hint = machine_local_address(members, worker_id).map_or_else(String::new, |address| {
        format!("; it advertises {address}, which only its own machine can reach: start it with --host ADDRESS")
    });
    let noun = if peers.len() == 1 { "worker" } else { "workers" };
    let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
    format!("it and {noun} {} cannot reach each other{hint}", peers.join(", "))
}

/// A member with a machine-local address that a member with another address cannot reach, with the
/// reason to remove it.
fn find_misconfigured(members: &Membership, pairs: &UnreachablePairs) -> Option<(WorkerId, String)> {
    let (worker_id, peer, address) = pairs.iter().find_map(|(a, b)| {
        match (machine_local_address(members, *a), machine_local_address(members, *b)) {
            (Some(address), None) => Some((*a, *b, address)),
            (None, Some(address)) => Some((*b, *a, address)),
            _ => None,
        }
    })?;
    let host = members.get(peer).map(|member| member.machine.host.escape_debug().to_string());
    let reason = format!(
        "it advertises {address}, which worker {peer} on {} cannot reach: start it with --host and an address of its \
         machine that other machines can reach",
        host.unwrap_or_default()
    );
    Some((worker_id, reason))
}

/// Evicts a member. If the furthest state would be lost with it, isolates it instead: it saves that
/// state, and leaves.
fn evict_or_isolate(state: &mut State, output: &mut Output, worker_id: WorkerId, reason: String) {
    let holders = state_holders(state);
    let is_state_lost =
        holders.sole_holder() == Some(worker_id) && !state.checkpoints.can_restore(holders.select_start().start);
    if !is_state_lost {
        output.add_effect(Effect::Evict { worker_id, reason });
        return;
    }
    MembershipHandler::new(state, output).request_leave(worker_id, reason);
    if let Some(member) = state.members.get_mut(worker_id) {
        member.is_isolated = true;
    }
}

/// The address that a member advertises, if only its own machine can reach it.
fn machine_local_address(members: &Membership, worker_id: WorkerId) -> Option<String> {
    let address = &members.get(worker_id)?.tcp_store_address;
    is_machine_local(address).then(|| address.rsplit_once(':').map_or("", |(host, _)| host).to_owned())
}

/// Whether only the machine itself can be reached at this address (host:port): the IP address is a
/// loopback address (127.0.0.1) or unspecified (0.0.0.0).
fn is_machine_local(address: &str) -> bool {
    let ip = address.parse::<SocketAddr>().map(|address| address.ip().to_canonical());
    ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
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

    /// The ids to evict, in order. The worker `silent` has the oldest last message.
    fn evicted(pairs: &[(u32, u32)], sole_holder: Option<u32>, silent: u32) -> Vec<u32> {
        let pairs = pairs.iter().map(|(a, b)| (WorkerId(*a), WorkerId(*b))).collect();
        let last_message_at = |id| Time::from_secs(u64::from(id != WorkerId(silent)));
        let evictions = select_evictions(pairs, sole_holder.map(WorkerId), last_message_at);
        evictions.into_iter().map(|(id, _)| id.0).collect()
    }

    #[test]
    fn the_member_in_most_pairs_is_evicted_first() {
        assert_eq!(evicted(&[(0, 1), (1, 2)], None, 0), [1]);
        assert_eq!(evicted(&[(0, 5), (0, 7), (5, 7), (0, 9)], None, 7), [0, 7]);
        assert_eq!(evicted(&[], None, 0), [0; 0]);
    }

    #[test]
    fn a_silent_member_or_the_one_with_the_higher_id_is_evicted_but_rather_not_the_sole_holder() {
        assert_eq!(evicted(&[(0, 1)], None, 0), [0]);
        assert_eq!(evicted(&[(0, 1)], None, 9), [1]);
        assert_eq!(evicted(&[(0, 1)], Some(1), 9), [0]);
    }
}
