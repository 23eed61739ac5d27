//! Membership: who has a place in the run, under which rank, and when they were last heard.
//!
//! ```text
//!   Join            Attach                 Rendezvous             Idle
//!   ----> reserved ------> member (idle) ----------> in generation ----> member (idle)
//!            |                 |                          |
//!            v                 v                          v
//!         place free again (reservation ran out; stream closed, not heard, evicted, finished)
//! ```

use std::{collections::BTreeMap, time::Duration};

use proto::v1;
use sha2::{Digest, Sha256};

use super::{Refusal, RefusalKind, SessionId, Time};

/// Ranks are below this.
pub const RANKS: u32 = 100_000;
/// How long a worker may take for what no heartbeat speaks of: loading its data, letting go of a collective.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Longest name of a host, device or version, in bytes.
const LONGEST_NAME: usize = 256;

/// What a member is doing, as far as generations go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Free for the next generation.
    Idle,
    /// Part of this generation.
    In(u64),
    /// Told to let go of this generation, and has not said yet that it did.
    LettingGo {
        /// The generation.
        generation: u64,
        /// When it was told.
        since: Time,
    },
}

/// What a worker says of itself at join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Host name or address.
    pub host: String,
    /// Software version.
    pub version: String,
    /// Device, e.g. "cpu".
    pub device: String,
}

/// An attached worker.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its stream.
    pub session: SessionId,
    /// Where it runs.
    pub machine: Machine,
    /// host:port of the store it serves.
    pub store_address: String,
    /// What it is doing, as far as generations go.
    pub standing: Standing,
    /// What it says it is doing.
    pub phase: v1::Phase,
    /// The training state it holds.
    pub position: Option<v1::Position>,
    /// When it was last heard.
    pub heard: Time,
}

/// What is kept of a session token: how long it takes to compare digests tells nothing of what they are of, so that nobody can
/// find a token piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Secret([u8; 32]);

impl Secret {
    fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

#[derive(Clone, Debug)]
struct Reservation {
    token: Secret,
    machine: Machine,
    until: Time,
}

/// All places of the run.
#[derive(Debug, Default)]
pub struct Membership {
    reserved: BTreeMap<u32, Reservation>,
    members: BTreeMap<u32, Member>,
    sessions: BTreeMap<SessionId, u32>,
}

impl Membership {
    /// Reserves a place and says its rank.
    pub fn reserve(
        &mut self,
        request: &v1::JoinRequest,
        token: String,
        most: u32,
        until: Time,
    ) -> Result<u32, Refusal> {
        let v1::JoinRequest { host, version, device, .. } = request;
        if [host, version, device].into_iter().any(|name| name.len() > LONGEST_NAME) {
            let reason = format!("host, version and device must not be longer than {LONGEST_NAME} bytes");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let machine = Machine { host: host.clone(), version: version.clone(), device: device.clone() };
        if let Some(rank) = request.rank {
            self.check_wanted(rank, &machine)?;
            // The same host asks again: its worker died while loading and was started anew.
            self.reserved.remove(&rank);
        }
        if self.reserved.len() + self.members.len() >= most as usize {
            let reason = format!("the run is full: workers.max is {most}, and as many have joined");
            return Err(Refusal::new(RefusalKind::ResourceExhausted, reason));
        }
        let free = |rank: &u32| !self.reserved.contains_key(rank) && !self.members.contains_key(rank);
        let rank = request.rank.or_else(|| (0..RANKS).find(free));
        let rank = rank.ok_or_else(|| Refusal::new(RefusalKind::ResourceExhausted, "all ranks are taken".into()))?;
        self.reserved.insert(rank, Reservation { token: Secret::of(&token), machine, until });
        Ok(rank)
    }

    fn check_wanted(&self, rank: u32, machine: &Machine) -> Result<(), Refusal> {
        if rank >= RANKS {
            let reason = format!("rank {rank} is out of range: ranks are below {RANKS}");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let taken = |holder: &Machine, doing: &str| {
            let Machine { host, device, .. } = holder;
            let reason = format!(
                "rank {rank} is taken: a worker on {} ({}) {doing}; choose another --rank, or none to be given one",
                host.escape_debug(),
                device.escape_debug()
            );
            Err(Refusal::new(RefusalKind::AlreadyExists, reason))
        };
        match (self.members.get(&rank), self.reserved.get(&rank)) {
            (Some(member), _) => taken(&member.machine, "holds it"),
            (None, Some(held)) if held.machine.host != machine.host => taken(&held.machine, "is loading under it"),
            _ => Ok(()),
        }
    }

    /// Turns the reservation of `token` into a member; says its rank.
    pub fn attach(
        &mut self,
        now: Time,
        session: SessionId,
        token: &str,
        store_address: String,
    ) -> Result<u32, Refusal> {
        let presented = Secret::of(token);
        let found = self.reserved.iter().find(|(_, reservation)| reservation.token == presented);
        let Some(rank) = found.map(|(&rank, _)| rank) else {
            let reason = "unknown session token: join (again) to get one; tokens work once and run out".into();
            return Err(Refusal::new(RefusalKind::Unauthenticated, reason));
        };
        if store_address.is_empty() || store_address.len() > LONGEST_NAME {
            let reason = format!("store_address must be host:port, not longer than {LONGEST_NAME} bytes");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let machine = self.reserved.remove(&rank).map(|reservation| reservation.machine).unwrap_or_default();
        let member = Member {
            session,
            machine,
            store_address,
            standing: Standing::Idle,
            phase: v1::Phase::Idle,
            position: None,
            heard: now,
        };
        self.members.insert(rank, member);
        self.sessions.insert(session, rank);
        Ok(rank)
    }

    /// Gives up a member's place.
    pub fn remove(&mut self, rank: u32) -> Option<Member> {
        let member = self.members.remove(&rank)?;
        self.sessions.remove(&member.session);
        Some(member)
    }

    /// Frees the places of reservations that have run out.
    pub fn expire(&mut self, now: Time) {
        self.reserved.retain(|_, reservation| reservation.until > now);
    }

    /// The member behind a stream.
    #[must_use]
    pub fn rank_of(&self, session: SessionId) -> Option<u32> {
        self.sessions.get(&session).copied()
    }

    /// A member.
    #[must_use]
    pub fn get(&self, rank: u32) -> Option<&Member> {
        self.members.get(&rank)
    }

    /// A member.
    pub fn get_mut(&mut self, rank: u32) -> Option<&mut Member> {
        self.members.get_mut(&rank)
    }

    /// All members, by rank.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Member)> {
        self.members.iter().map(|(&rank, member)| (rank, member))
    }

    /// How many members there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Members that were not heard for `lost_after`, and those that do not let go of their generation.
    #[must_use]
    pub fn overdue(&self, now: Time, lost_after: Duration) -> Vec<(u32, Overdue)> {
        let overdue = |(&rank, member): (&u32, &Member)| match member.standing {
            _ if now.saturating_sub(member.heard) >= lost_after => Some((rank, Overdue::Silent)),
            Standing::LettingGo { generation, since } if now.saturating_sub(since) >= PATIENCE.max(lost_after) => {
                Some((rank, Overdue::HoldingOn(generation)))
            }
            _ => None,
        };
        self.members.iter().filter_map(overdue).collect()
    }
}

/// Why a member is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// It was not heard.
    Silent,
    /// It does not let go of this generation.
    HoldingOn(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTIL: Time = Duration::from_secs(60);

    fn request(rank: Option<u32>, host: &str) -> v1::JoinRequest {
        v1::JoinRequest { rank, host: host.into(), ..Default::default() }
    }

    #[test]
    fn ranks_are_given_from_the_lowest_free_one() {
        let mut members = Membership::default();
        assert_eq!(members.reserve(&request(Some(1), "a"), "t1".into(), 3, UNTIL), Ok(1));
        assert_eq!(members.reserve(&request(None, "a"), "t0".into(), 3, UNTIL), Ok(0));
        assert_eq!(members.reserve(&request(None, "a"), "t2".into(), 3, UNTIL), Ok(2));
        let full = members.reserve(&request(None, "a"), "t3".into(), 3, UNTIL).unwrap_err();
        assert_eq!(full.kind, RefusalKind::ResourceExhausted);
    }

    #[test]
    fn a_taken_rank_names_its_holder() {
        let mut members = Membership::default();
        members.reserve(&request(Some(4), "node-a"), "first".into(), 3, UNTIL).unwrap();
        let loading = members.reserve(&request(Some(4), "node-b"), "other".into(), 3, UNTIL).unwrap_err();
        assert_eq!(loading.kind, RefusalKind::AlreadyExists);
        // The same host may start its worker anew; the first token is void then.
        members.reserve(&request(Some(4), "node-a"), "second".into(), 3, UNTIL).unwrap();
        let void = members.attach(Time::ZERO, SessionId(1), "first", "node-a:1".into()).unwrap_err();
        assert_eq!(void.kind, RefusalKind::Unauthenticated);
        assert_eq!(members.attach(Time::ZERO, SessionId(2), "second", "node-a:1".into()), Ok(4));
        let attached = members.reserve(&request(Some(4), "node-a"), "third".into(), 3, UNTIL).unwrap_err();
        assert!(attached.reason.contains("rank 4 is taken") && attached.reason.contains("node-a"), "{attached:?}");
    }

    #[test]
    fn reservations_run_out() {
        let mut members = Membership::default();
        members.reserve(&request(Some(0), "a"), "token".into(), 1, UNTIL).unwrap();
        members.expire(UNTIL);
        assert_eq!(members.reserve(&request(Some(0), "b"), "token".into(), 1, UNTIL + UNTIL), Ok(0));
    }
}
