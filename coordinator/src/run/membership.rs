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
pub const RANKS: u32 = runfile::MAX_WORKERS;
/// How long a worker may take for what no heartbeat speaks of: loading its data, letting go of a collective.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Longest name of a host, device or version, in bytes; of host names DNS allows 253.
const LONGEST_NAME: usize = 512;

/// What the newest step counts for in a member's speed.
const SMOOTHING: f64 = 0.2;

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
    /// Device, e.g. "cpu" or "cuda:0".
    pub device: String,
}

impl Machine {
    /// What its device is one of, e.g. "cuda".
    fn kind(&self) -> &str {
        self.device.split(':').next().unwrap_or_default()
    }
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
    /// What its last heartbeat said of that.
    said: Option<v1::Position>,
    /// When it was last heard.
    pub heard: Time,
    /// When it last got on with what it does: since then phase and position are what they are.
    pub moved: Time,
    /// Why it wants to go, if it does.
    pub leaving: Option<String>,
    /// Samples a second that it computes, as far as it is known: a moving average over its steps.
    pub speed: Option<f64>,
    /// The last step that it reported.
    pub rates: Rates,
}

/// How fast a member was in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Images a second.
    pub images: f64,
    /// Tokens a second.
    pub tokens: f64,
    /// Seconds that the step took without the all-reduce.
    pub compute_seconds: f64,
}

impl Member {
    /// It was heard, and says what it is doing.
    pub fn beat(&mut self, now: Time, phase: v1::Phase, position: Option<v1::Position>) {
        if (self.phase, self.said) != (phase, position) {
            (self.phase, self.said, self.moved) = (phase, position, now);
        }
    }

    /// It has made a step.
    pub fn measure(&mut self, step: &v1::StepDone) {
        let compute_seconds = (step.seconds - step.all_reduce_seconds).max(0.0);
        let a_second = |count: f64| if step.seconds > 0.0 { count / step.seconds } else { 0.0 };
        let (images, tokens) = (a_second(step.samples.into()), a_second(step.tokens as f64));
        self.rates = Rates { images, tokens, compute_seconds };
        let now = f64::from(step.samples) / compute_seconds;
        if now.is_finite() && now > 0.0 {
            self.speed = Some(self.speed.map_or(now, |known| known + SMOOTHING * (now - known)));
        }
    }
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
    /// Members that are not idle.
    busy: usize,
    /// Members that want to go.
    leaving: usize,
    /// No rank below is free.
    free_from: u32,
}

impl Membership {
    /// Reserves a place; says its rank, and the token by which it is taken.
    pub fn reserve(
        &mut self,
        request: &v1::JoinRequest,
        token: String,
        most: u32,
        until: Time,
    ) -> Result<(u32, String), Refusal> {
        let v1::JoinRequest { host, version, device, .. } = request;
        if [host, version, device].into_iter().any(|name| name.len() > LONGEST_NAME) {
            let reason = format!("host, version and device must not be longer than {LONGEST_NAME} bytes");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let machine = Machine { host: host.clone(), version: version.clone(), device: device.clone() };
        self.check_kind(request.rank, &machine)?;
        if let Some(rank) = request.rank {
            self.check_wanted(rank, &machine)?;
            // The same host asks again: its worker died while loading and was started anew.
            self.reserved.remove(&rank);
        }
        if self.reserved.len() + self.members.len() >= most as usize {
            let reason = format!("the run is full: workers.max is {most}, and as many have joined");
            return Err(Refusal::new(RefusalKind::ResourceExhausted, reason));
        }
        let rank = request.rank.or_else(|| self.free());
        let rank = rank.ok_or_else(|| Refusal::new(RefusalKind::ResourceExhausted, "all ranks are taken".into()))?;
        // The token says whose it is: it is found without a search.
        let token = format!("{rank}.{token}");
        self.reserved.insert(rank, Reservation { token: Secret::of(&token), machine, until });
        Ok((rank, token))
    }

    /// The lowest rank that is free.
    fn free(&mut self) -> Option<u32> {
        let is_free = |rank: &u32| !self.reserved.contains_key(rank) && !self.members.contains_key(rank);
        let rank = (self.free_from..RANKS).find(is_free)?;
        self.free_from = rank;
        Some(rank)
    }

    /// Devices of different kinds give results that differ in their last bits, and states that have to be equal would not be.
    /// Whoever holds a place is of the same kind as all who do.
    fn check_kind(&self, wanted: Option<u32>, machine: &Machine) -> Result<(), Refusal> {
        let loading = || self.reserved.iter().find(|(rank, _)| Some(**rank) != wanted);
        let member = self.members.first_key_value().map(|(rank, member)| (rank, &member.machine));
        let other = member.or_else(|| loading().map(|(rank, reservation)| (rank, &reservation.machine)));
        match other {
            Some((rank, other)) if other.kind() != machine.kind() => {
                let [own, device, host] = [&machine.device, &other.device, &other.host].map(|name| name.escape_debug());
                let reason = format!(
                    "workers of a run compute on devices of one kind: this one is to compute on {own}, rank {rank} on {host} \
                     computes on {device}; see --device"
                );
                Err(Refusal::new(RefusalKind::OtherDevice, reason))
            }
            _ => Ok(()),
        }
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
        let rank = token.split_once('.').and_then(|(rank, _)| rank.parse().ok());
        let presented = Secret::of(token);
        let reserved = |rank: &u32| self.reserved.get(rank).is_some_and(|reservation| reservation.token == presented);
        let Some(rank) = rank.filter(reserved) else {
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
            said: None,
            heard: now,
            moved: now,
            leaving: None,
            speed: None,
            rates: Rates::default(),
        };
        self.members.insert(rank, member);
        self.sessions.insert(session, rank);
        Ok(rank)
    }

    /// Gives up a member's place.
    pub fn remove(&mut self, rank: u32) -> Option<Member> {
        let member = self.members.remove(&rank)?;
        self.sessions.remove(&member.session);
        self.busy -= usize::from(member.standing != Standing::Idle);
        self.leaving -= usize::from(member.leaving.is_some());
        self.free_from = self.free_from.min(rank);
        Some(member)
    }

    /// A member's standing changes.
    pub fn stand(&mut self, rank: u32, standing: Standing) {
        let Some(member) = self.members.get_mut(&rank) else { return };
        let before = std::mem::replace(&mut member.standing, standing);
        self.busy += usize::from(standing != Standing::Idle);
        self.busy -= usize::from(before != Standing::Idle);
    }

    /// A member wants to go.
    pub fn wants_to_go(&mut self, rank: u32, why: String) {
        let Some(member) = self.members.get_mut(&rank) else { return };
        self.leaving += usize::from(member.leaving.is_none());
        member.leaving = Some(why);
    }

    /// Whether nobody is in a generation, or has yet to let go of one.
    #[must_use]
    pub fn all_idle(&self) -> bool {
        self.busy == 0
    }

    /// How many do not want to go.
    #[must_use]
    pub fn staying(&self) -> usize {
        self.members.len() - self.leaving
    }

    /// Frees the places of reservations that have run out.
    pub fn expire(&mut self, now: Time) {
        for (rank, _) in self.reserved.extract_if(.., |_, reservation| reservation.until <= now) {
            self.free_from = self.free_from.min(rank);
        }
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

    /// Those who owe nothing do not stand still, however long they are left alone.
    pub fn excuse(&mut self, now: Time, owes: impl Fn(u32) -> bool) {
        for (_, member) in self.members.iter_mut().filter(|(rank, _)| !owes(**rank)) {
            member.moved = now;
        }
    }

    /// Whether a generation has not got on for `stall_after` (for `hung_after`, where all are in the all-reduce), and because of
    /// whom. Who computes for long is let be as long as nobody waits for it.
    #[must_use]
    pub fn stalled(
        &self,
        now: Time,
        stall_after: Duration,
        hung_after: Duration,
        waits_for_others: impl Fn(&Member) -> bool,
        owes: impl Fn(u32) -> bool,
    ) -> Option<Stall> {
        let still = |member: &Member, after| now.saturating_sub(member.moved) >= after;
        let (busy, free): (Vec<_>, Vec<_>) = self.iter().partition(|(rank, _)| owes(*rank));
        let (waiting, working): (Vec<_>, Vec<_>) = busy.into_iter().partition(|(_, member)| waits_for_others(member));
        let stuck: Vec<u32> =
            working.iter().filter(|(_, member)| still(member, stall_after)).map(|(rank, _)| *rank).collect();
        if !stuck.is_empty() {
            return (!waiting.is_empty() || !free.is_empty()).then_some(Stall::Of(stuck));
        }
        let hangs = |member: &Member| {
            still(member, if member.phase == v1::Phase::AllReduce { hung_after } else { stall_after })
        };
        let all = !waiting.is_empty() && working.is_empty() && waiting.iter().all(|(_, member)| hangs(member));
        all.then_some(Stall::OfAll)
    }
}

/// A generation that does not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stall {
    /// These have not moved for too long, and others wait for them.
    Of(Vec<u32>),
    /// All wait for each other.
    OfAll,
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
        assert_eq!(members.reserve(&request(Some(1), "a"), "t1".into(), 3, UNTIL), Ok((1, "1.t1".into())));
        assert_eq!(members.reserve(&request(None, "a"), "t0".into(), 3, UNTIL), Ok((0, "0.t0".into())));
        assert_eq!(members.reserve(&request(None, "a"), "t2".into(), 3, UNTIL), Ok((2, "2.t2".into())));
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
        let void = members.attach(Time::ZERO, SessionId(1), "4.first", "node-a:1".into()).unwrap_err();
        assert_eq!(void.kind, RefusalKind::Unauthenticated);
        assert_eq!(members.attach(Time::ZERO, SessionId(2), "4.second", "node-a:1".into()), Ok(4));
        let attached = members.reserve(&request(Some(4), "node-a"), "third".into(), 3, UNTIL).unwrap_err();
        assert!(attached.reason.contains("rank 4 is taken") && attached.reason.contains("node-a"), "{attached:?}");
    }

    #[test]
    fn all_compute_on_devices_of_one_kind() {
        let mut members = Membership::default();
        let on = |rank, device: &str| v1::JoinRequest { device: device.into(), ..request(rank, "node-a") };
        members.reserve(&on(Some(0), "cpu"), "first".into(), 3, UNTIL).unwrap();
        // It was a mistake, and is corrected.
        members.reserve(&on(Some(0), "cuda:0"), "second".into(), 3, UNTIL).unwrap();
        members.attach(Time::ZERO, SessionId(1), "0.second", "node-a:1".into()).unwrap();
        members.reserve(&on(None, "cuda:1"), "third".into(), 3, UNTIL).unwrap();
        let refused = members.reserve(&on(None, "cpu"), "fourth".into(), 3, UNTIL).unwrap_err();
        assert_eq!(refused.kind, RefusalKind::OtherDevice);
        assert!(["cpu", "rank 0 on node-a", "cuda:0"].iter().all(|part| refused.reason.contains(part)), "{refused:?}");
    }

    #[test]
    fn reservations_run_out() {
        let mut members = Membership::default();
        members.reserve(&request(Some(0), "a"), "token".into(), 1, UNTIL).unwrap();
        members.expire(UNTIL);
        assert_eq!(members.reserve(&request(None, "b"), "token".into(), 1, UNTIL + UNTIL).unwrap().0, 0);
    }

    #[test]
    fn who_does_not_move_is_to_blame_only_if_others_wait() {
        let mut members = Membership::default();
        for rank in 0..2 {
            let token = members.reserve(&request(Some(rank), "a"), "t".into(), 2, UNTIL).unwrap().1;
            members.attach(Time::ZERO, SessionId(rank.into()), &token, "a:1".into()).unwrap();
        }
        let (now, after) = (Duration::from_secs(40), Duration::from_secs(30));
        let reduces = |member: &Member| member.phase == v1::Phase::AllReduce;
        let mut beat = |rank: u32, seconds, phase| {
            let member = members.get_mut(rank).unwrap();
            member.beat(Duration::from_secs(seconds), phase, None);
            members.stalled(now, after, after, reduces, |_| true)
        };
        beat(0, 1, v1::Phase::Compute);
        assert_eq!(beat(1, 1, v1::Phase::Compute), None, "both compute for long");
        assert_eq!(beat(1, 35, v1::Phase::AllReduce), Some(Stall::Of(vec![0])));
        assert_eq!(beat(0, 36, v1::Phase::Load), None, "it moved");
        beat(0, 2, v1::Phase::AllReduce);
        assert_eq!(beat(1, 3, v1::Phase::Idle), Some(Stall::Of(vec![1])), "it has not even begun");
        assert_eq!(members.stalled(now, after, after, reduces, |rank| rank == 0), Some(Stall::OfAll));
        members.get_mut(1).unwrap().beat(Duration::from_secs(4), v1::Phase::AllReduce, None);
        assert_eq!(members.stalled(now, after, after, reduces, |_| true), Some(Stall::OfAll));
        members.excuse(now, |rank| rank == 0);
        assert_eq!(members.stalled(now, after, after, reduces, |_| true), None, "it was let alone until now");
    }
}
