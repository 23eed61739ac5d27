//! Membership: the ids, sessions and reservations of a run's workers, and when each was last heard
//! from.
//!
//! ```text
//!   Join            Attach                 Rendezvous             Idle
//!   ----> reserved ------> member (idle) ----------> in generation ----> member (idle)
//!            |                 |                          |
//!            v                 v                          v
//!           id free again (reservation not renewed; stream closed, not heard, evicted, finished)
//! ```
//!
//! A member never loses its id to another worker. A join for an id that is taken waits (`ABORTED`,
//! and the worker retries) until the holder is gone, or is a member that was heard from after the
//! joining worker began to wait: then the holder is alive, and the join is refused for good.
//!
//! A worker that has yet to attach holds only a [reservation](reservations). A reservation costs
//! its holder one request, so no join is refused for good because of one. Workers that wait are in
//! a [queue](waiting), which decides who gets the next free place.

#[cfg(test)]
mod attacks;
mod reservations;
mod waiting;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use proto::v1;
use sha2::{Digest, Sha256};

use super::{Refusal, RefusalKind, SessionId, Time};
use reservations::{Reservation, Reservations};
use waiting::WaitQueue;

/// How long a worker may take to release a collective. No heartbeat reports progress in that.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Maximal length of the name of a host, device or version, in bytes. DNS allows 253 for host
/// names.
const MAX_NAME_LENGTH: usize = 512;

/// The weight of the newest step in a member's moving average of speed.
const SMOOTHING: f64 = 0.2;

/// The state of a member with respect to generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Available for the next generation.
    Idle,
    /// Part of this generation.
    In(u64),
    /// Told to release this generation, and has not confirmed that yet.
    LettingGo {
        /// The generation.
        generation: u64,
        /// When it was told.
        since: Time,
    },
}

/// What a worker says about its machine when it joins.
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
    /// The type of its device, e.g. "cuda".
    fn kind(&self) -> &str {
        self.device.split(':').next().unwrap_or_default()
    }
}

/// A worker with an open stream. It is removed when the stream closes, when it leaves, or when it
/// is evicted.
#[derive(Clone, Debug)]
pub struct Member {
    /// The id of its stream.
    pub session: SessionId,
    /// The machine that it runs on.
    pub machine: Machine,
    /// The address (host:port) of the rendezvous store that it serves.
    pub store_address: String,
    /// Its state with respect to generations.
    pub standing: MemberState,
    /// The activity that its last heartbeat names.
    pub phase: v1::Phase,
    /// The training state it holds.
    pub position: Option<v1::Position>,
    /// The position in its last heartbeat.
    said: Option<v1::Position>,
    /// When its last message arrived.
    pub heard: Time,
    /// When it last made progress: its phase and position are unchanged since then.
    pub moved: Time,
    /// Why it wants to leave; none if it stays.
    pub leaving: Option<String>,
    /// Other members cannot reach it: it is in no generation but one of its own, to save what only
    /// it holds.
    pub isolated: bool,
    /// Samples per second that it computes: a moving average over its steps; none before the first.
    pub speed: Option<f64>,
    /// The throughput of the last step that it reported.
    pub rates: Rates,
}

/// The throughput of a member in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Images per second.
    pub images: f64,
    /// Tokens per second.
    pub tokens: f64,
    /// The duration of the step without the all-reduce, in seconds.
    pub compute_seconds: f64,
}

impl Reservation {
    fn as_holder(&self) -> IdHolder<'_> {
        IdHolder { machine: &self.machine, heard: self.heard, state: HolderState::Loading }
    }
}

impl Member {
    fn as_holder(&self) -> IdHolder<'_> {
        let state = if self.leaving.is_some() { HolderState::Leaving } else { HolderState::Active };
        IdHolder { machine: &self.machine, heard: self.heard, state }
    }

    /// Handles the phase and position of a heartbeat. A change of either counts as progress.
    pub fn beat(&mut self, now: Time, phase: v1::Phase, position: Option<v1::Position>) {
        if (self.phase, self.said) != (phase, position) {
            (self.phase, self.said, self.moved) = (phase, position, now);
        }
    }

    /// Handles the timing of a reported step.
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

/// The SHA-256 digest of a session token or key. The time to compare two digests reveals nothing
/// about the secrets, so a client cannot guess a token byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Secret([u8; 32]);

impl Secret {
    fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// The run's settings for joins.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// `workers.max`.
    pub max_workers: u32,
    /// The heartbeat interval of workers.
    pub heartbeat: Duration,
    /// A holder that was silent for this long counts as lost.
    pub heartbeat_timeout: Duration,
}

/// The holder of an id, as far as it concerns a worker that asks for that id.
struct IdHolder<'a> {
    machine: &'a Machine,
    heard: Time,
    state: HolderState,
}

/// The state of the holder of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HolderState {
    /// It has a reservation, and loads data and models.
    Loading,
    /// It is a member.
    Active,
    /// It is a member that announced to leave.
    Leaving,
}

impl IdHolder<'_> {
    /// Whether it is a member that is alive and stays, as seen by a worker that has waited for its
    /// place for `waited`: the member was heard at least one `heartbeat` after the wait began, so the
    /// message was not under way before.
    fn stays(&self, now: Time, waited: Duration, heartbeat: Duration) -> bool {
        self.state == HolderState::Active && self.heard.saturating_add(waited) >= now.saturating_add(heartbeat)
    }
}

/// All workers of the run: members, reservations and the queue.
#[derive(Debug, Default)]
pub struct Membership {
    reserved: Reservations,
    waiting: WaitQueue,
    members: BTreeMap<u32, Member>,
    sessions: BTreeMap<SessionId, u32>,
    /// Members that are not idle.
    busy: usize,
    /// The number of members that want to leave.
    leaving: usize,
    /// No id below this is free.
    free_from: u32,
}

impl Membership {
    /// Reserves a place for a worker at `address`, or renews the reservation of the request's key;
    /// returns its rank, and the token that [`attach`](Self::attach) takes. `token` is the key of a
    /// request that has none.
    pub fn reserve(
        &mut self,
        now: Time,
        address: IpAddr,
        request: &v1::JoinRequest,
        token: String,
        terms: &Terms,
    ) -> Result<(u32, String), Refusal> {
        let v1::JoinRequest { host, version, device, idempotency_key, .. } = request;
        if [host, version, device, idempotency_key].into_iter().any(|name| name.len() > MAX_NAME_LENGTH) {
            let reason =
                format!("host, version, device and idempotency_key must not be longer than {MAX_NAME_LENGTH} bytes");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        if [host, version, device].into_iter().any(|name| name.contains(char::is_control)) {
            let reason = "host, version and device must be names, without control characters".to_owned();
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        if let Some(rank) = request.rank.filter(|rank| *rank >= config::MAX_WORKERS) {
            let reason = format!("rank {rank} is out of range: ranks are below {}", config::MAX_WORKERS);
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let machine = Machine { host: host.clone(), version: version.clone(), device: device.clone() };
        let secret = if idempotency_key.is_empty() { token } else { idempotency_key.clone() };
        let key = Secret::of(&secret);
        let waited = Duration::from_millis(request.waited_ms);
        let rank = match self.renew(now, request.rank, key, &machine, terms) {
            Some(rank) => rank,
            None => {
                self.check_kind(&machine, |holder| holder.stays(now, waited, terms.heartbeat))?;
                let vacant = self.vacant(now, address, request, key, terms);
                match &vacant {
                    // A worker without an idempotency key is not recognised when it asks again.
                    Err(refusal) if refusal.kind == RefusalKind::Held && !idempotency_key.is_empty() => {
                        self.waiting.enqueue(now, key, address, request.rank);
                    }
                    _ => self.waiting.remove(key),
                }
                let rank = vacant?;
                self.reserved.insert(rank, Reservation::new(now, key, address, machine, terms));
                rank
            }
        };
        // The token names its place: it is found without a search.
        Ok((rank, format!("{rank}.{secret}")))
    }

    /// Renews the reservation of a key, if there is one; returns its rank. A reservation older than
    /// [`MAX_CONTENDED_AGE`](reservations::MAX_CONTENDED_AGE) ends instead: [`vacant`](Self::vacant)
    /// grants it again, unless other workers come first.
    fn renew(&mut self, now: Time, wanted: Option<u32>, key: Secret, machine: &Machine, terms: &Terms) -> Option<u32> {
        let rank = self.reserved.find(wanted, key)?;
        let reservation = self.reserved.get_mut(rank)?;
        if now.saturating_sub(reservation.since) < reservations::MAX_CONTENDED_AGE {
            reservation.renew(now, machine.clone(), terms);
            return Some(rank);
        }
        self.reserved.remove(rank);
        self.free_from = self.free_from.min(rank);
        None
    }

    /// The requested rank, or else the lowest free one, if the run takes another worker and no worker
    /// in the queue comes first.
    fn vacant(
        &mut self,
        now: Time,
        address: IpAddr,
        request: &v1::JoinRequest,
        key: Secret,
        terms: &Terms,
    ) -> Result<u32, Refusal> {
        let held = |reason| Err(Refusal::new(RefusalKind::Held, reason));
        let waited = Duration::from_millis(request.waited_ms);
        let stays = |holder: &IdHolder<'_>| holder.stays(now, waited, terms.heartbeat);
        let heartbeat_timeout = terms.heartbeat_timeout.as_secs_f64();
        if let Some((rank, holder)) = request.rank.and_then(|rank| Some((rank, self.holder(rank)?))) {
            let [host, device] = [&holder.machine.host, &holder.machine.device].map(|name| name.escape_debug());
            let heard = now.saturating_sub(holder.heard).as_secs_f64();
            let (kind, what) = match holder.state {
                _ if stays(&holder) => (RefusalKind::AlreadyExists, format!("was heard {heard:.1} s ago")),
                HolderState::Leaving => (RefusalKind::Held, "is about to leave".to_owned()),
                HolderState::Loading => (RefusalKind::Held, "is loading its data and models".to_owned()),
                HolderState::Active => {
                    let what =
                        format!("was heard {heard:.1} s ago; it is lost if it is silent for {heartbeat_timeout} s");
                    (RefusalKind::Held, what)
                }
            };
            let reason = format!("rank {rank} is taken: a worker on {host} ({device}) holds it and {what}");
            return Err(Refusal::new(kind, reason));
        }
        let max = terms.max_workers;
        let free = (max as usize).saturating_sub(self.reserved.len() + self.members.len());
        if free == 0 {
            let (kind, what) = match self.reserved.len() == 0
                && self.members.values().all(|member| stays(&member.as_holder()))
            {
                true => (RefusalKind::ResourceExhausted, "as many have joined".to_owned()),
                false => {
                    let what = format!(
                        "a place is free once a worker leaves, gives up loading or was not heard for {heartbeat_timeout} s"
                    );
                    (RefusalKind::Held, what)
                }
            };
            return Err(Refusal::new(kind, format!("the run is full: workers.max is {max}, and {what}")));
        }
        let loading = self.reserved.count_of(address);
        if loading >= reservations::MAX_PER_ADDRESS {
            return held(format!(
                "{loading} workers at {address} are loading data and models: another one is let in \
                 once one of them is ready"
            ));
        }
        let ahead = self.ahead_of(key, address);
        if ahead.len() >= free || request.rank.is_some_and(|rank| ahead.contains(&Some(rank))) {
            return held(format!("{} of the workers that wait for a place come first", ahead.len()));
        }
        let rank = request.rank.or_else(|| self.free(&ahead));
        rank.ok_or_else(|| Refusal::new(RefusalKind::ResourceExhausted, "all ranks are taken".into()))
    }

    /// The ranks wanted by the workers that come before this one and could get a place now.
    fn ahead_of(&self, key: Secret, address: IpAddr) -> Vec<Option<u32>> {
        let reservations = |address| self.reserved.count_of(address);
        let could_get = |wanted: &Option<u32>| wanted.is_none_or(|rank| self.holder(rank).is_none());
        self.waiting.ahead_of(key, address, reservations).map(|waiter| waiter.wanted).filter(could_get).collect()
    }

    fn holder(&self, rank: u32) -> Option<IdHolder<'_>> {
        let member = self.members.get(&rank).map(Member::as_holder);
        member.or_else(|| self.reserved.get(rank).map(Reservation::as_holder))
    }

    /// The lowest free rank that is not in `wanted`.
    fn free(&mut self, wanted: &[Option<u32>]) -> Option<u32> {
        let is_free = |rank: &u32| self.reserved.get(*rank).is_none() && !self.members.contains_key(rank);
        self.free_from = (self.free_from..config::MAX_WORKERS).find(is_free)?;
        (self.free_from..config::MAX_WORKERS).find(|rank| is_free(rank) && !wanted.contains(&Some(*rank)))
    }

    /// Devices of different types give results that differ in the last bits, so members would not
    /// hold identical states. All members have the same type of device, so the first one represents
    /// all. Workers that load are checked again when they [attach](Self::attach).
    fn check_kind(&self, machine: &Machine, stays: impl Fn(&IdHolder<'_>) -> bool) -> Result<(), Refusal> {
        match self.members.first_key_value().map(|(rank, member)| (rank, member.as_holder())) {
            Some((rank, other)) if other.machine.kind() != machine.kind() => {
                let Machine { device, host, .. } = other.machine;
                let [own, device, host] = [&machine.device, device, host].map(|name| name.escape_debug());
                let reason = format!(
                    "workers of a run compute on devices of one kind: this one is to compute on {own}, rank {rank} on {host} \
                     computes on {device}; see --device"
                );
                // The other member may have been started by mistake, and killed since.
                let kind = if stays(&other) { RefusalKind::OtherDevice } else { RefusalKind::Held };
                Err(Refusal::new(kind, reason))
            }
            _ => Ok(()),
        }
    }

    /// Turns the reservation of `token` into a member; returns its id. Fails if the token is
    /// unknown or the device is of another type.
    pub fn attach(
        &mut self,
        now: Time,
        session: SessionId,
        token: &str,
        store_address: String,
    ) -> Result<u32, Refusal> {
        let parts = token.split_once('.');
        let presented = parts.and_then(|(rank, secret)| Some((rank.parse().ok()?, Secret::of(secret))));
        let Some(rank) = presented.and_then(|(rank, key)| self.reserved.find(Some(rank), key)) else {
            let reason = "unknown session token: join (again) to get one; tokens work once and run out".into();
            return Err(Refusal::new(RefusalKind::Unauthenticated, reason));
        };
        if store_address.is_empty() || store_address.len() > MAX_NAME_LENGTH || store_address.contains(char::is_control)
        {
            let reason = format!("store_address must be host:port, not longer than {MAX_NAME_LENGTH} bytes");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let machine = self.reserved.remove(rank).map(|reservation| reservation.machine).unwrap_or_default();
        if let Err(refusal) = self.check_kind(&machine, |_| true) {
            self.free_from = self.free_from.min(rank);
            return Err(refusal);
        }
        let member = Member {
            session,
            machine,
            store_address,
            standing: MemberState::Idle,
            phase: v1::Phase::Idle,
            position: None,
            said: None,
            heard: now,
            moved: now,
            leaving: None,
            isolated: false,
            speed: None,
            rates: Rates::default(),
        };
        self.members.insert(rank, member);
        self.sessions.insert(session, rank);
        Ok(rank)
    }

    /// Removes a member, and frees its id.
    pub fn remove(&mut self, rank: u32) -> Option<Member> {
        let member = self.members.remove(&rank)?;
        self.sessions.remove(&member.session);
        self.busy -= usize::from(member.standing != MemberState::Idle);
        self.leaving -= usize::from(member.leaving.is_some());
        self.free_from = self.free_from.min(rank);
        Some(member)
    }

    /// Sets the state of a member.
    pub fn stand(&mut self, rank: u32, standing: MemberState) {
        let Some(member) = self.members.get_mut(&rank) else { return };
        let before = std::mem::replace(&mut member.standing, standing);
        self.busy += usize::from(standing != MemberState::Idle);
        self.busy -= usize::from(before != MemberState::Idle);
    }

    /// Marks a member as leaving.
    pub fn wants_to_go(&mut self, rank: u32, why: String) {
        let Some(member) = self.members.get_mut(&rank) else { return };
        self.leaving += usize::from(member.leaving.is_none());
        member.leaving = Some(why);
    }

    /// Whether all members are idle: none is in a generation, or still releasing one.
    #[must_use]
    pub fn all_idle(&self) -> bool {
        self.busy == 0
    }

    /// The number of members that do not want to leave.
    #[must_use]
    pub fn staying(&self) -> usize {
        self.members.len() - self.leaving
    }

    /// Ends reservations that were not renewed in time, and removes workers from the queue that have
    /// stopped asking.
    pub fn expire(&mut self, now: Time) {
        self.waiting.expire(now);
        if let Some(rank) = self.reserved.expire(now) {
            self.free_from = self.free_from.min(rank);
        }
    }

    /// The id of the member with this stream.
    #[must_use]
    pub fn rank_of(&self, session: SessionId) -> Option<u32> {
        self.sessions.get(&session).copied()
    }

    /// The member with this id.
    #[must_use]
    pub fn get(&self, rank: u32) -> Option<&Member> {
        self.members.get(&rank)
    }

    /// The member with this id.
    pub fn get_mut(&mut self, rank: u32) -> Option<&mut Member> {
        self.members.get_mut(&rank)
    }

    /// All members, by id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Member)> {
        self.members.iter().map(|(&rank, member)| (rank, member))
    }

    /// The number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Members that were not heard from for `heartbeat_timeout`, and members that do not release their
    /// generation.
    #[must_use]
    pub fn overdue(&self, now: Time, heartbeat_timeout: Duration) -> Vec<(u32, OverdueReason)> {
        let overdue = |(&rank, member): (&u32, &Member)| match member.standing {
            _ if now.saturating_sub(member.heard) >= heartbeat_timeout => Some((rank, OverdueReason::Silent)),
            MemberState::LettingGo { generation, since }
                if now.saturating_sub(since) >= PATIENCE.max(heartbeat_timeout) =>
            {
                Some((rank, OverdueReason::HoldingOn(generation)))
            }
            _ => None,
        };
        self.members.iter().filter_map(overdue).collect()
    }

    /// Resets the stall timer of members that have no unfinished directive.
    pub fn excuse(&mut self, now: Time, owes: impl Fn(u32) -> bool) {
        for (_, member) in self.members.iter_mut().filter(|(rank, _)| !owes(**rank)) {
            member.moved = now;
        }
    }

    /// Whether a generation has made no progress for `stall_timeout` (for `hung_after` if all members
    /// are in the all-reduce), and which members cause that. A long computation is no stall while
    /// no other member waits for it.
    #[must_use]
    pub fn stalled(
        &self,
        now: Time,
        stall_timeout: Duration,
        hung_after: Duration,
        waits_for_others: impl Fn(&Member) -> bool,
        owes: impl Fn(u32) -> bool,
    ) -> Option<Stall> {
        let still = |member: &Member, after| now.saturating_sub(member.moved) >= after;
        let (busy, free): (Vec<_>, Vec<_>) = self.iter().partition(|(rank, _)| owes(*rank));
        let (waiting, working): (Vec<_>, Vec<_>) = busy.into_iter().partition(|(_, member)| waits_for_others(member));
        let stuck: Vec<u32> =
            working.iter().filter(|(_, member)| still(member, stall_timeout)).map(|(rank, _)| *rank).collect();
        if !stuck.is_empty() {
            return (!waiting.is_empty() || !free.is_empty()).then_some(Stall::Of(stuck));
        }
        let hangs = |member: &Member| {
            still(member, if member.phase == v1::Phase::AllReduce { hung_after } else { stall_timeout })
        };
        let all = !waiting.is_empty() && working.is_empty() && waiting.iter().all(|(_, member)| hangs(member));
        all.then_some(Stall::OfAll)
    }
}

/// A generation without progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stall {
    /// These members have made no progress for too long, and others wait for them.
    Of(Vec<u32>),
    /// All members wait for each other.
    OfAll,
}

/// Why a member is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverdueReason {
    /// It was silent for `heartbeat_timeout`.
    Silent,
    /// It does not release this generation.
    HoldingOn(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms =
        Terms { max_workers: 3, heartbeat: Duration::from_secs(1), heartbeat_timeout: Duration::from_secs(10) };

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn request(rank: Option<u32>, host: &str) -> v1::JoinRequest {
        v1::JoinRequest { rank, host: host.into(), ..Default::default() }
    }

    /// A worker's join, told apart by its key, that has waited for so many seconds.
    fn join(rank: Option<u32>, key: &str, waited: u64) -> v1::JoinRequest {
        v1::JoinRequest { idempotency_key: key.into(), waited_ms: 1000 * waited, ..request(rank, "node-a") }
    }

    fn reserve(members: &mut Membership, now: u64, request: &v1::JoinRequest) -> Result<(u32, String), Refusal> {
        members.reserve(Duration::from_secs(now), HERE, request, "token".into(), &TERMS)
    }

    fn attach(members: &mut Membership, now: u64, session: u64, token: &str) -> Result<u32, Refusal> {
        members.attach(Duration::from_secs(now), SessionId(session), token, "node-a:1".into())
    }

    #[test]
    fn names_have_no_control_characters() {
        let mut members = Membership::default();
        for name in ["node\u{1b}[2J", "node\nrank 3 was lost", "node\u{9b}1m", "node\0"] {
            let named = [
                v1::JoinRequest { host: name.into(), ..Default::default() },
                v1::JoinRequest { version: name.into(), ..Default::default() },
                v1::JoinRequest { device: name.into(), ..Default::default() },
            ];
            for request in named {
                assert_eq!(
                    reserve(&mut members, 0, &request).unwrap_err().kind,
                    RefusalKind::InvalidArgument,
                    "{name:?}"
                );
            }
            let (_, token) = reserve(&mut members, 0, &v1::JoinRequest::default()).unwrap();
            let attached = members.attach(Time::ZERO, SessionId(1), &token, format!("{name}:1"));
            assert_eq!(attached.unwrap_err().kind, RefusalKind::InvalidArgument, "{name:?}");
            members = Membership::default();
        }
    }

    #[test]
    fn ranks_are_given_from_the_lowest_free_one() {
        let mut members = Membership::default();
        let mut reserve =
            |rank, token: &str| members.reserve(Time::ZERO, HERE, &request(rank, "a"), token.into(), &TERMS);
        assert_eq!(reserve(Some(1), "t1"), Ok((1, "1.t1".into())));
        assert_eq!(reserve(None, "t0"), Ok((0, "0.t0".into())));
        assert_eq!(reserve(None, "t2"), Ok((2, "2.t2".into())));
        assert_eq!(reserve(None, "t3").unwrap_err().kind, RefusalKind::Held);
    }

    #[test]
    fn a_place_is_never_taken_from_a_worker_that_is_loading() {
        let mut members = Membership::default();
        let (rank, token) = reserve(&mut members, 0, &join(Some(4), "first", 0)).unwrap();
        assert_eq!((rank, token.as_str()), (4, "4.first"));
        // Of the same host, as when a loop in a shell starts several with one rank.
        let held = reserve(&mut members, 0, &join(Some(4), "second", 0)).unwrap_err();
        assert_eq!(held.kind, RefusalKind::Held);
        assert!(held.reason.contains("rank 4 is taken") && held.reason.contains("node-a"), "{held:?}");
        assert_eq!(attach(&mut members, 0, 1, "4.second").unwrap_err().kind, RefusalKind::Unauthenticated);
        // The holder renews its reservation while it loads; the other waits until it is a member.
        for now in 1..=3 {
            assert_eq!(reserve(&mut members, now, &join(Some(4), "first", 0)), Ok((4, token.clone())));
        }
        let held = reserve(&mut members, 3, &join(Some(4), "second", 3)).unwrap_err();
        assert!(held.kind == RefusalKind::Held && held.reason.contains("is loading"), "{held:?}");
        assert_eq!(attach(&mut members, 4, 1, &token), Ok(4));
        let refused = reserve(&mut members, 4, &join(Some(4), "second", 4)).unwrap_err();
        assert_eq!(refused.kind, RefusalKind::AlreadyExists);
        // A token works once.
        assert_eq!(attach(&mut members, 4, 2, &token).unwrap_err().kind, RefusalKind::Unauthenticated);
    }

    #[test]
    fn a_place_is_waited_for_until_its_holder_is_known_to_live_or_to_be_gone() {
        let mut members = Membership::default();
        let token = reserve(&mut members, 0, &join(Some(4), "holder", 0)).unwrap().1;
        attach(&mut members, 0, 1, &token).unwrap();
        let ask = |members: &mut Membership, now, waited| {
            reserve(members, now, &join(Some(4), "other", waited)).map_err(|refusal| (refusal.kind, refusal.reason))
        };
        let hear = |members: &mut Membership, now| members.get_mut(4).unwrap().heard = Duration::from_secs(now);
        hear(&mut members, 20);
        // It may have died a moment ago.
        assert_eq!(ask(&mut members, 20, 0).unwrap_err().0, RefusalKind::Held);
        // What is heard within a heartbeat may have been under way when it died.
        assert_eq!(ask(&mut members, 21, 1).unwrap_err().0, RefusalKind::Held);
        let (kind, reason) = ask(&mut members, 29, 9).unwrap_err();
        assert_eq!(kind, RefusalKind::Held);
        assert!(reason.contains("heard 9.0 s ago") && reason.contains("silent for 10 s"), "{reason}");
        hear(&mut members, 29);
        let (kind, reason) = ask(&mut members, 30, 10).unwrap_err();
        assert_eq!(kind, RefusalKind::AlreadyExists);
        assert!(reason.contains("rank 4 is taken") && reason.contains("node-a"), "{reason}");
        // One that leaves is heard until it is gone.
        members.wants_to_go(4, "asked".into());
        assert_eq!(ask(&mut members, 30, 10).unwrap_err().0, RefusalKind::Held);
        members.remove(4);
        assert_eq!(ask(&mut members, 31, 11).unwrap().0, 4);
    }

    #[test]
    fn a_full_run_is_waited_for_while_a_worker_of_it_may_be_dead() {
        let mut members = Membership::default();
        for rank in 0..3 {
            let token = reserve(&mut members, 0, &join(None, &format!("holder {rank}"), 0)).unwrap().1;
            attach(&mut members, 0, rank, &token).unwrap();
        }
        let hear = |members: &mut Membership, ranks: &[u32], now| {
            ranks.iter().for_each(|rank| members.get_mut(*rank).unwrap().heard = Duration::from_secs(now));
        };
        let ask = |members: &mut Membership, rank, now, waited| {
            reserve(members, now, &join(rank, "other", waited)).unwrap_err().kind
        };
        hear(&mut members, &[0, 1], 8);
        for rank in [None, Some(7)] {
            assert_eq!(ask(&mut members, rank, 8, 5), RefusalKind::Held);
        }
        hear(&mut members, &[0, 1, 2], 8);
        for rank in [None, Some(7)] {
            assert_eq!(ask(&mut members, rank, 8, 5), RefusalKind::ResourceExhausted);
        }
    }

    #[test]
    fn a_join_whose_answer_was_lost_gets_the_same_place() {
        let mut members = Membership::default();
        let first = reserve(&mut members, 0, &join(None, "key", 0)).unwrap();
        assert_eq!(reserve(&mut members, 1, &join(None, "key", 0)), Ok(first.clone()));
        assert_eq!(reserve(&mut members, 2, &join(Some(first.0), "key", 0)), Ok(first));
        assert_eq!(reserve(&mut members, 2, &join(None, "another", 0)).unwrap().0, 1);
    }

    #[test]
    fn all_compute_on_devices_of_one_kind() {
        let mut members = Membership::default();
        let reserve = |members: &mut Membership, rank, device: &str, token: &str, waited_ms| {
            let request = v1::JoinRequest { device: device.into(), waited_ms, ..request(rank, "node-a") };
            members.reserve(Time::ZERO, HERE, &request, token.into(), &TERMS)
        };
        // It was a mistake, and is corrected: the first one does not live any more.
        reserve(&mut members, Some(0), "cpu", "first", 0).unwrap();
        attach(&mut members, 0, 1, "0.first").unwrap();
        assert_eq!(reserve(&mut members, None, "cuda:0", "second", 0).unwrap_err().kind, RefusalKind::Held);
        members.remove(0);
        reserve(&mut members, Some(0), "cuda:0", "second", 0).unwrap();
        // Both load; the first of them to attach determines the kind of the run.
        reserve(&mut members, Some(1), "cpu", "another", 0).unwrap();
        attach(&mut members, 0, 2, "0.second").unwrap();
        assert_eq!(attach(&mut members, 0, 3, "1.another").unwrap_err().kind, RefusalKind::OtherDevice);
        assert_eq!(reserve(&mut members, None, "cuda:1", "third", 0).unwrap().0, 1, "it has lost its place");
        let refused = reserve(&mut members, None, "cpu", "fourth", 5000).unwrap_err();
        assert_eq!(refused.kind, RefusalKind::OtherDevice);
        assert!(["cpu", "rank 0 on node-a", "cuda:0"].iter().all(|part| refused.reason.contains(part)), "{refused:?}");
    }

    #[test]
    fn reservations_that_are_not_renewed_run_out() {
        let mut members = Membership::default();
        reserve(&mut members, 0, &join(Some(0), "loads", 0)).unwrap();
        reserve(&mut members, 0, &join(Some(1), "dies", 0)).unwrap();
        reserve(&mut members, 9, &join(Some(0), "loads", 0)).unwrap();
        members.expire(Duration::from_secs(10));
        assert_eq!(reserve(&mut members, 10, &join(Some(0), "other", 0)).unwrap_err().kind, RefusalKind::Held);
        assert_eq!(reserve(&mut members, 10, &join(Some(1), "other", 0)).unwrap().0, 1);
    }

    #[test]
    fn who_does_not_move_is_to_blame_only_if_others_wait() {
        let mut members = Membership::default();
        for rank in 0..2 {
            let token = members.reserve(Time::ZERO, HERE, &request(Some(rank), "a"), "t".into(), &TERMS).unwrap().1;
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
