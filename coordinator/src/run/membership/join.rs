//! Joins: assigns worker ids, reserves them for workers that load, and refuses joins that the run
//! cannot admit.

use std::{net::IpAddr, time::Duration};

use proto::v1;
use sha2::{Digest, Sha256};

use super::{
    MAX_NAME_BYTES, Machine, Member, Membership,
    reservations::{self, Reservation},
};
use crate::run::{Refusal, RefusalKind, Time, WorkerId};

/// The settings of the run for joins.
#[derive(Clone, Copy, Debug)]
pub struct JoinSettings {
    /// `workers.max`.
    pub max_workers: u32,
    /// The heartbeat interval of workers.
    pub heartbeat_interval: Duration,
    /// A holder that sent no message for this long counts as failed.
    pub heartbeat_timeout: Duration,
}

/// The SHA-256 digest of a session token or key. The time to compare two digests reveals nothing
/// about the secrets, so a client cannot guess a token byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SecretDigest([u8; 32]);

impl SecretDigest {
    pub fn new(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }
}

/// The worker that has an id: a member, or a worker with a reservation.
pub(super) struct IdHolder<'a> {
    machine: &'a Machine,
    last_message_at: Time,
    state: HolderState,
}

/// The state of the holder of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HolderState {
    /// It has a reservation, and loads data and models.
    Loading,
    /// It is a member.
    Active,
    /// It is a member that has announced to leave.
    Leaving,
}

impl IdHolder<'_> {
    /// Whether it is a member that is alive and stays, for a worker that has waited for `waited`.
    /// The member must have sent a message at least one heartbeat interval after the wait began, so
    /// that the message was not in transit before.
    fn is_alive_and_stays(&self, now: Time, waited: Duration, heartbeat_interval: Duration) -> bool {
        self.state == HolderState::Active
            && self.last_message_at.saturating_add(waited) >= now.saturating_add(heartbeat_interval)
    }
}

impl Reservation {
    fn as_holder(&self) -> IdHolder<'_> {
        IdHolder { machine: &self.machine, last_message_at: self.renewed_at, state: HolderState::Loading }
    }
}

impl Member {
    fn as_holder(&self) -> IdHolder<'_> {
        let state = if self.leave_reason.is_some() { HolderState::Leaving } else { HolderState::Active };
        IdHolder { machine: &self.machine, last_message_at: self.last_message_at, state }
    }
}

impl Membership {
    /// Reserves an id for a worker at `address`, or renews the reservation of the request's key.
    /// Returns the id, and the token that [`attach`](Self::attach) takes. `token` is the key of a
    /// request that has none.
    pub fn reserve(
        &mut self,
        now: Time,
        address: IpAddr,
        request: &v1::JoinRequest,
        token: String,
        settings: &JoinSettings,
    ) -> Result<(WorkerId, String), Refusal> {
        check_request(request)?;
        let v1::JoinRequest { host, version, device, idempotency_key, .. } = request;
        let machine = Machine { host: host.clone(), version: version.clone(), device: device.clone() };
        let secret = if idempotency_key.is_empty() { token } else { idempotency_key.clone() };
        let key = SecretDigest::new(&secret);
        let requested_id = request.worker_id.map(WorkerId);
        let worker_id = match self.renew_reservation(now, requested_id, key, &machine, settings) {
            Some(worker_id) => worker_id,
            None => {
                let waited = Duration::from_millis(request.waited_ms);
                let is_alive =
                    |holder: &IdHolder<'_>| holder.is_alive_and_stays(now, waited, settings.heartbeat_interval);
                self.check_device_type(&machine, is_alive)?;
                let found = self.find_free_id(now, address, request, key, settings);
                match &found {
                    // A worker without an idempotency key is not recognised when it retries.
                    Err(refusal) if refusal.kind == RefusalKind::RetryLater && !idempotency_key.is_empty() => {
                        self.wait_queue.enqueue(now, key, address, requested_id);
                    }
                    _ => self.wait_queue.remove(key),
                }
                let worker_id = found?;
                self.reservations.insert(worker_id, Reservation::new(now, key, address, machine, settings));
                worker_id
            }
        };
        // The token contains the id, so the reservation is found without a search.
        Ok((worker_id, format!("{worker_id}.{secret}")))
    }

    /// The id that is reserved under a session token.
    pub(super) fn find_reservation(&self, token: &str) -> Option<WorkerId> {
        let (worker_id, secret) = token.split_once('.')?;
        self.reservations.find(Some(WorkerId(worker_id.parse().ok()?)), SecretDigest::new(secret))
    }

    /// Renews the reservation of a key, if there is one; returns its id. A reservation older than
    /// [`MAX_CONTENDED_AGE`](reservations::MAX_CONTENDED_AGE) ends instead:
    /// [`find_free_id`](Self::find_free_id) grants it again, unless other workers come first.
    fn renew_reservation(
        &mut self,
        now: Time,
        requested_id: Option<WorkerId>,
        key: SecretDigest,
        machine: &Machine,
        settings: &JoinSettings,
    ) -> Option<WorkerId> {
        let worker_id = self.reservations.find(requested_id, key)?;
        let reservation = self.reservations.get_mut(worker_id)?;
        if now.saturating_sub(reservation.reserved_at) < reservations::MAX_CONTENDED_AGE {
            reservation.renew(now, machine.clone(), settings);
            return Some(worker_id);
        }
        self.reservations.remove(worker_id);
        self.min_free_id = self.min_free_id.min(worker_id);
        None
    }

    /// The requested id, or else the lowest free one, if the run admits another worker and no
    /// worker in the queue comes first.
    fn find_free_id(
        &mut self,
        now: Time,
        address: IpAddr,
        request: &v1::JoinRequest,
        key: SecretDigest,
        settings: &JoinSettings,
    ) -> Result<WorkerId, Refusal> {
        let retry_later = |reason| Err(Refusal::new(RefusalKind::RetryLater, reason));
        let waited = Duration::from_millis(request.waited_ms);
        let is_alive = |holder: &IdHolder<'_>| holder.is_alive_and_stays(now, waited, settings.heartbeat_interval);
        let timeout = settings.heartbeat_timeout.as_secs_f64();
        let requested_id = request.worker_id.map(WorkerId);
        if let Some((worker_id, holder)) = requested_id.and_then(|id| Some((id, self.holder_of(id)?))) {
            let [host, device] = [&holder.machine.host, &holder.machine.device].map(|name| name.escape_debug());
            let silence = now.saturating_sub(holder.last_message_at).as_secs_f64();
            let (kind, state) = match holder.state {
                _ if is_alive(&holder) => {
                    (RefusalKind::AlreadyExists, format!("sent its last message {silence:.1} s ago"))
                }
                HolderState::Leaving => (RefusalKind::RetryLater, "is about to leave".to_owned()),
                HolderState::Loading => (RefusalKind::RetryLater, "is loading its data and models".to_owned()),
                HolderState::Active => {
                    let state = format!(
                        "sent its last message {silence:.1} s ago; it counts as failed after {timeout} s without one"
                    );
                    (RefusalKind::RetryLater, state)
                }
            };
            let reason = format!("worker id {worker_id} is taken: a worker on {host} ({device}) has it and {state}");
            return Err(Refusal::new(kind, reason));
        }
        let max = settings.max_workers;
        let free_count = (max as usize).saturating_sub(self.reservations.len() + self.members.len());
        if free_count == 0 {
            let all_alive = self.members.values().all(|member| is_alive(&member.as_holder()));
            let (kind, state) = match self.reservations.is_empty() && all_alive {
                true => (RefusalKind::ResourceExhausted, "that many workers have joined".to_owned()),
                false => {
                    let state = format!(
                        "an id becomes free when a worker leaves, stops loading or sends no message for {timeout} s"
                    );
                    (RefusalKind::RetryLater, state)
                }
            };
            return Err(Refusal::new(kind, format!("the run is full: workers.max is {max}, and {state}")));
        }
        let loading_count = self.reservations.count_of(address);
        if loading_count >= reservations::MAX_RESERVATIONS_PER_ADDRESS {
            return retry_later(format!(
                "{loading_count} workers at {address} are loading data and models: another one is admitted when one \
                 of them has attached"
            ));
        }
        let ahead = self.requests_ahead_of(key, address);
        if ahead.len() >= free_count || requested_id.is_some_and(|id| ahead.contains(&Some(id))) {
            return retry_later(format!("{} workers in the queue come first", ahead.len()));
        }
        let worker_id = requested_id.or_else(|| self.lowest_free_id(&ahead));
        worker_id.ok_or_else(|| Refusal::new(RefusalKind::ResourceExhausted, "all worker ids are taken".into()))
    }

    /// The requested ids (none: any id) of the workers in the queue that come before this one and
    /// could get an id now.
    fn requests_ahead_of(&self, key: SecretDigest, address: IpAddr) -> Vec<Option<WorkerId>> {
        let reservations = |address| self.reservations.count_of(address);
        let is_available = |requested: &Option<WorkerId>| requested.is_none_or(|id| self.holder_of(id).is_none());
        let ahead = self.wait_queue.ahead_of(key, address, reservations);
        ahead.map(|waiting| waiting.requested_id).filter(is_available).collect()
    }

    fn holder_of(&self, worker_id: WorkerId) -> Option<IdHolder<'_>> {
        let member = self.members.get(&worker_id).map(Member::as_holder);
        member.or_else(|| self.reservations.get(worker_id).map(Reservation::as_holder))
    }

    /// The lowest free id that is not in `requested`.
    fn lowest_free_id(&mut self, requested: &[Option<WorkerId>]) -> Option<WorkerId> {
        let ids_from = |first: WorkerId| (first.0..config::MAX_WORKERS).map(WorkerId);
        let is_free = |id: &WorkerId| self.reservations.get(*id).is_none() && !self.members.contains_key(id);
        self.min_free_id = ids_from(self.min_free_id).find(is_free)?;
        ids_from(self.min_free_id).find(|id| is_free(id) && !requested.contains(&Some(*id)))
    }

    /// Devices of different types give results that differ in the last bits, so members would not
    /// hold identical states. All members have the same type of device, so the first one represents
    /// all. Workers that load are checked again when they [attach](Self::attach).
    pub(super) fn check_device_type(
        &self,
        machine: &Machine,
        is_alive: impl Fn(&IdHolder<'_>) -> bool,
    ) -> Result<(), Refusal> {
        match self.members.first_key_value().map(|(worker_id, member)| (worker_id, member.as_holder())) {
            Some((worker_id, other)) if other.machine.device_type() != machine.device_type() => {
                let Machine { device, host, .. } = other.machine;
                let [own, device, host] = [&machine.device, device, host].map(|name| name.escape_debug());
                let reason = format!(
                    "all workers of a run must use the same type of device: this one uses {own}, worker {worker_id} on \
                     {host} uses {device}; see --device"
                );
                // The other member may have been started by mistake, and killed since.
                let kind = if is_alive(&other) { RefusalKind::DeviceMismatch } else { RefusalKind::RetryLater };
                Err(Refusal::new(kind, reason))
            }
            _ => Ok(()),
        }
    }
}

/// Checks the sizes and values of a request.
fn check_request(request: &v1::JoinRequest) -> Result<(), Refusal> {
    let refuse = |reason| Err(Refusal::new(RefusalKind::InvalidArgument, reason));
    let v1::JoinRequest { host, version, device, idempotency_key, .. } = request;
    if [host, version, device, idempotency_key].into_iter().any(|name| name.len() > MAX_NAME_BYTES) {
        return refuse(format!(
            "host, version, device and idempotency_key must not be longer than {MAX_NAME_BYTES} bytes"
        ));
    }
    if [host, version, device].into_iter().any(|name| name.contains(char::is_control)) {
        return refuse("host, version and device must not contain control characters".to_owned());
    }
    if let Some(id) = request.worker_id.filter(|id| *id >= config::MAX_WORKERS) {
        return refuse(format!("worker id {id} is out of range: ids are below {}", config::MAX_WORKERS));
    }
    Ok(())
}
