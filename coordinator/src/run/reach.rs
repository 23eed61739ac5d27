//! Members that cannot reach each other: some have to go, so that the others can go on.
//!
//! A generation needs a connection between any two of its members, and the coordinator sees only those to itself. So before they
//! meet, members try to reach some of the others, and say whom they cannot. When all have let go of the generation that failed
//! for it, whoever is part of most such pairs is sent away, until none is left.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use proto::v1;

use super::{Run, Time, generation::Origin, membership::Member, plan::Place, record::Source};

/// So many others does a member make sure to reach.
const PEERS: usize = 64;

/// Pairs of members that cannot reach each other, the lower identity first.
pub(super) type Complaints = BTreeSet<(u32, u32)>;

/// Whom the member at `index` makes sure to reach: those that follow it in the circle of all `members`.
pub(super) fn peers(members: &[(u32, String)], index: usize) -> Vec<v1::Peer> {
    let others = members.iter().cycle().skip(index + 1).take(PEERS.min(members.len() - 1));
    others.map(|(rank, address)| v1::Peer { rank: *rank, store_address: address.clone() }).collect()
}

/// Who is part of most pairs; of several rather not whoever is `precious`; then whoever was not heard for longest, for it may be
/// gone altogether; then the highest identity, because the lowest one serves the meeting.
fn worst(complaints: &Complaints, precious: Option<u32>, heard: impl Fn(u32) -> Time) -> Option<u32> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for rank in complaints.iter().flat_map(|(a, b)| [*a, *b]) {
        *counts.entry(rank).or_default() += 1;
    }
    let order = |(rank, count): &(u32, usize)| (*count, Some(*rank) != precious, Reverse(heard(*rank)), *rank);
    counts.into_iter().max_by_key(order).map(|(rank, _)| rank)
}

impl Run {
    /// Notes whom a member could not reach.
    pub(super) fn complain(&mut self, rank: u32, failed: &v1::Failed) {
        if failed.generation == self.last_generation {
            let known = failed.unreachable.iter().take(PEERS).filter(|other| self.members.get(**other).is_some());
            let pairs = known.filter(|other| **other != rank).map(|other| (rank.min(*other), rank.max(*other)));
            self.complaints.extend(pairs.collect::<Vec<_>>());
        }
    }

    /// Sends away whom others cannot reach, now that nobody is in a generation any more.
    pub(super) fn part(&mut self, now: Time) {
        let mut complaints = std::mem::take(&mut self.complaints);
        complaints.retain(|(a, b)| self.members.get(*a).is_some() && self.members.get(*b).is_some());
        let heard = |run: &Self, rank| run.members.get(rank).map_or(Time::ZERO, |member| member.heard);
        let precious = self.sole_holder();
        while let Some(rank) = worst(&complaints, precious, |rank| heard(self, rank)) {
            let of_it = |(a, b): &(u32, u32)| *a == rank || *b == rank;
            let others: Vec<String> =
                complaints.iter().filter(|pair| of_it(pair)).map(|(a, b)| (a + b - rank).to_string()).collect();
            complaints.retain(|pair| !of_it(pair));
            self.evict(now, rank, &format!("it and rank {} cannot reach each other", others.join(", ")));
        }
    }

    /// Who alone holds the furthest state: it must not have to go for somebody who has nothing.
    fn sole_holder(&self) -> Option<u32> {
        let Origin { start, source: Source::Member(rank) } = self.origin() else { return None };
        let holds = |member: &Member| member.position.as_ref().map(Place::from) == Some(start);
        (self.members.iter().filter(|(_, member)| holds(member)).count() == 1).then_some(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
