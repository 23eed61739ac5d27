//! Joins: assigns worker ids, reserves them for workers that load, and refuses joins that the run
//! cannot admit.

use std::{net::IpAddr, time::Duration};

use proto::v1;

use super::{
    join_key::{JoinKeyDigest, JoinSettings, MAX_JOIN_TEXT_BYTES},
    member::{Machine, Member},
    members::Membership,
    reservations::{self, Reservation},
};
use crate::{
    refusal::{Refusal, RefusalKind},
    types::{SessionId, Time, WorkerId},
};

/// The worker that has an id: a member, or a worker with a reservation of it.
pub(super) struct IdHolder<'a> {
    machine: &'a Machine,
    last_message_at: Time,
    state: HolderState,
}

/// Whether the holder of an id loads, is a member, or leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HolderState {
    /// It has a reservation, and loads data and models.
    Loading,
    /// It is a member.
    Active,
    /// It is a member that has announced that it leaves.
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
    /// Reserves an id for a worker at `address`, or renews the reservation that an earlier request
    /// with the same idempotency key made. Returns the id, and the session token that
    /// [`attach`](Self::attach) takes. `generated_join_key` replaces a missing idempotency key.
    ///
    /// # Errors
    /// The request is invalid, the id is taken, or the run takes no further worker.
    pub fn reserve(
        &mut self,
        now: Time,
        address: IpAddr,
        request: &v1::JoinRequest,
        generated_join_key: String,
        settings: &JoinSettings,
    ) -> Result<(WorkerId, String), Refusal> {
        check_request(request)?;
        let v1::JoinRequest { host, version, device, idempotency_key, .. } = request;
        let machine = Machine { host: host.clone(), version: version.clone(), device: device.clone() };
        let join_key = if idempotency_key.is_empty() { generated_join_key } else { idempotency_key.clone() };
        let digest = JoinKeyDigest::of(&join_key);
        let requested_id = request.worker_id.map(WorkerId);
        let worker_id = match self.renew_reservation(now, requested_id, digest, &machine, settings) {
            Some(worker_id) => worker_id,
            None => {
                let waited = Duration::from_millis(request.waited_ms);
                let is_alive =
                    |holder: &IdHolder<'_>| holder.is_alive_and_stays(now, waited, settings.heartbeat_interval);
                self.check_device_type(&machine, is_alive)?;
                let unassigned_id = self.find_unassigned_id(now, address, request, digest, settings);
                match &unassigned_id {
                    // Without an idempotency key the worker is not recognised when it retries, so
                    // it cannot have a position in the queue.
                    Err(refusal) if refusal.kind == RefusalKind::RetryLater && !idempotency_key.is_empty() => {
                        self.wait_queue.enqueue(now, digest, address, requested_id);
                    }
                    _ => self.wait_queue.remove(digest),
                }
                let worker_id = unassigned_id?;
                self.reservations.insert(worker_id, Reservation::new(now, digest, address, machine, settings));
                worker_id
            }
        };
        // The session token contains the id, so the reservation is found without a search.
        Ok((worker_id, format!("{worker_id}.{join_key}")))
    }

    /// Turns the worker with the reservation of a session token into a member; returns its id.
    ///
    /// # Errors
    /// The token is unknown, the address is invalid, or the device is of another type than those of
    /// the members. In the last case the reservation ends.
    pub fn attach(
        &mut self,
        now: Time,
        session: SessionId,
        session_token: &str,
        tcp_store_address: String,
    ) -> Result<WorkerId, Refusal> {
        let Some(worker_id) = self.find_reservation(session_token) else {
            let reason =
                "unknown session token: join again to get a new one; a token works once and expires".to_owned();
            return Err(Refusal::new(RefusalKind::Unauthenticated, reason));
        };
        let is_valid_length = (1..=MAX_JOIN_TEXT_BYTES).contains(&tcp_store_address.len());
        if !is_valid_length || tcp_store_address.contains(char::is_control) {
            let reason = format!("store_address must be host:port of at most {MAX_JOIN_TEXT_BYTES} bytes");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let machine = self.reservations.remove(worker_id).map(|reservation| reservation.machine).unwrap_or_default();
        let counts_as_alive = |_: &IdHolder<'_>| true;
        if let Err(refusal) = self.check_device_type(&machine, counts_as_alive) {
            self.min_unassigned_id = self.min_unassigned_id.min(worker_id);
            return Err(refusal);
        }
        self.members.insert(worker_id, Member::new(now, session, machine, tcp_store_address));
        self.worker_ids.insert(session, worker_id);
        Ok(worker_id)
    }

    /// The id that is reserved under a session token.
    pub(super) fn find_reservation(&self, session_token: &str) -> Option<WorkerId> {
        let (worker_id, join_key) = session_token.split_once('.')?;
        self.reservations.find(Some(WorkerId(worker_id.parse().ok()?)), JoinKeyDigest::of(join_key))
    }

    /// Renews the reservation of a join key, if there is one; returns its id. A reservation older
    /// than [`MAX_CONTENDED_AGE`](reservations::MAX_CONTENDED_AGE) ends instead:
    /// [`find_unassigned_id`](Self::find_unassigned_id) then assigns the same id again, unless
    /// workers in the queue come first.
    fn renew_reservation(
        &mut self,
        now: Time,
        requested_id: Option<WorkerId>,
        join_key: JoinKeyDigest,
        machine: &Machine,
        settings: &JoinSettings,
    ) -> Option<WorkerId> {
        let worker_id = self.reservations.find(requested_id, join_key)?;
        let reservation = self.reservations.get_mut(worker_id)?;
        if now.saturating_sub(reservation.reserved_at) < reservations::MAX_CONTENDED_AGE {
            reservation.renew(now, machine.clone(), settings);
            return Some(worker_id);
        }
        self.reservations.remove(worker_id);
        self.min_unassigned_id = self.min_unassigned_id.min(worker_id);
        None
    }

    /// The requested id, or else the lowest unassigned id, if the run admits another worker and no
    /// worker in the queue comes first.
    fn find_unassigned_id(
        &mut self,
        now: Time,
        address: IpAddr,
        request: &v1::JoinRequest,
        join_key: JoinKeyDigest,
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
        let remaining_count = (max as usize).saturating_sub(self.reservations.len() + self.members.len());
        if remaining_count == 0 {
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
        let ahead = self.requested_ids_ahead_of(join_key, address);
        if ahead.len() >= remaining_count || requested_id.is_some_and(|id| ahead.contains(&Some(id))) {
            return retry_later(format!("{} workers in the queue come first", ahead.len()));
        }
        let worker_id = requested_id.or_else(|| self.lowest_unassigned_id(&ahead));
        worker_id.ok_or_else(|| Refusal::new(RefusalKind::ResourceExhausted, "all worker ids are taken".into()))
    }

    /// The requested ids (none: any id) of the workers in the queue that come before this worker
    /// and could get an id now.
    fn requested_ids_ahead_of(&self, join_key: JoinKeyDigest, address: IpAddr) -> Vec<Option<WorkerId>> {
        let reservation_count = |address| self.reservations.count_of(address);
        let is_available = |requested: &Option<WorkerId>| requested.is_none_or(|id| self.holder_of(id).is_none());
        let ahead = self.wait_queue.ahead_of(join_key, address, reservation_count);
        ahead.map(|waiting| waiting.requested_id).filter(is_available).collect()
    }

    fn holder_of(&self, worker_id: WorkerId) -> Option<IdHolder<'_>> {
        let member = self.members.get(&worker_id).map(Member::as_holder);
        member.or_else(|| self.reservations.get(worker_id).map(Reservation::as_holder))
    }

    /// The lowest unassigned id that no worker in the queue has requested: `ids_kept_for_queue` has
    /// the requested ids.
    fn lowest_unassigned_id(&mut self, ids_kept_for_queue: &[Option<WorkerId>]) -> Option<WorkerId> {
        let ids_from = |first: WorkerId| (first.0..config::MAX_WORKERS).map(WorkerId);
        let is_unassigned = |id: &WorkerId| self.reservations.get(*id).is_none() && !self.members.contains_key(id);
        self.min_unassigned_id = ids_from(self.min_unassigned_id).find(is_unassigned)?;
        ids_from(self.min_unassigned_id).find(|id| is_unassigned(id) && !ids_kept_for_queue.contains(&Some(*id)))
    }

    /// Refuses a worker whose device is of another type than the members' devices. Devices of
    /// different types give results that differ in the last bits, so the members would not hold
    /// identical parameters. All members have the same type of device, so the comparison with the
    /// first member is enough. The refusal is permanent if `is_alive` is true for that member.
    /// Workers that load are checked again when they [attach](Self::attach).
    pub(super) fn check_device_type(
        &self,
        machine: &Machine,
        is_alive: impl Fn(&IdHolder<'_>) -> bool,
    ) -> Result<(), Refusal> {
        match self.members.first_key_value().map(|(worker_id, member)| (worker_id, member.as_holder())) {
            Some((worker_id, first_member)) if first_member.machine.device_type() != machine.device_type() => {
                let Machine { device, host, .. } = first_member.machine;
                let [own, device, host] = [&machine.device, device, host].map(|name| name.escape_debug());
                let reason = format!(
                    "all workers of a run must use the same type of device: this one uses {own}, worker {worker_id} on \
                     {host} uses {device}; see --device"
                );
                // The first member may have been started by mistake, and killed since.
                let kind = if is_alive(&first_member) { RefusalKind::DeviceMismatch } else { RefusalKind::RetryLater };
                Err(Refusal::new(kind, reason))
            }
            _ => Ok(()),
        }
    }
}

/// Checks the lengths and values of the fields of a join request.
fn check_request(request: &v1::JoinRequest) -> Result<(), Refusal> {
    let refuse = |reason| Err(Refusal::new(RefusalKind::InvalidArgument, reason));
    let v1::JoinRequest { host, version, device, idempotency_key, .. } = request;
    if [host, version, device, idempotency_key].into_iter().any(|name| name.len() > MAX_JOIN_TEXT_BYTES) {
        return refuse(format!(
            "host, version, device and idempotency_key must not be longer than {MAX_JOIN_TEXT_BYTES} bytes"
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
