//! The connection of a simulated worker: joins, attaches, passes directives and reports between the
//! coordinator and the training thread as [`worker_protocol::Session`] says, sends heartbeats, and
//! reconnects.

use dico_engine::{RefusalKind, RequestId, SessionId, Time};
use proto::{PROTOCOL_VERSION, v1, v1::worker_message::Message};
use rand::Rng;
use worker_protocol::{Continuation, DirectiveEffect, ReportEffect, Session};

use super::{
    ProcessId, VALIDATION_IMAGES,
    cluster::{Cluster, SimEvent},
    network::{Direction, PacketToCoordinator, PacketToWorker},
    worker::{Activity, ConnectionState, FalseClaim, WakeReason, Worker},
};

/// Bounds of the delay between two attempts to join.
const MIN_BACK_OFF: Time = Time::from_millis(100);
const MAX_BACK_OFF: Time = Time::from_secs(5);
/// The time after which a worker that is not admitted exits.
const JOIN_TIMEOUT: Time = Time::from_secs(60);
/// The time after which a join request counts as lost.
const JOIN_RESPONSE_TIMEOUT: Time = Time::from_secs(5);

/// The data of all workers.
fn data_set() -> v1::DataSet {
    v1::DataSet { train_images: 7, train_captions: 31, validation_images: VALIDATION_IMAGES, ..Default::default() }
}

impl Cluster {
    /// Starts to join, or to join again.
    pub fn start_joining(&mut self, id: ProcessId) {
        let now = self.queue.now();
        let Some(worker) = self.workers.get_mut(&id) else { return };
        (worker.joining_since, worker.back_off, worker.retry_later_since) = (now, Time::ZERO, None);
        self.send_join_request(id);
    }

    /// Sends a join request. The request and the response may be lost.
    fn send_join_request(&mut self, id: ProcessId) {
        let request = RequestId(self.next_id());
        let (now, latency, is_lost) = (self.queue.now(), self.latency(), self.is_lost(id, Direction::ToCoordinator));
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.connection = ConnectionState::Joining(request);
        let join = v1::JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            worker_id: worker.worker_id,
            host: worker.host.clone(),
            idempotency_key: format!("{id:?} since {:?}", worker.joining_since),
            waited_ms: worker.retry_later_since.map_or(0, |since| (now - since).as_millis() as u64),
            ..Default::default()
        };
        if !is_lost {
            self.queue.schedule_after(latency, SimEvent::JoinRequest { worker: id, request, join });
        }
        self.queue.schedule_after(
            JOIN_RESPONSE_TIMEOUT,
            SimEvent::ConnectionWakeUp { worker: id, reason: WakeReason::JoinTimeout(request) },
        );
    }

    /// Whether a join request or response is lost.
    fn is_lost(&mut self, id: ProcessId, direction: Direction) -> bool {
        self.network.is_partitioned(id, direction) || (self.network.loses_joins && self.rng.random_ratio(1, 4))
    }

    /// Sends the coordinator's response to a join request.
    pub fn send_join_response(
        &mut self,
        id: ProcessId,
        request: RequestId,
        response: Result<v1::JoinResponse, RefusalKind>,
    ) {
        if !self.is_lost(id, Direction::ToWorker) {
            let latency = self.latency();
            self.queue.schedule_after(latency, SimEvent::JoinResponse { worker: id, request, response });
        }
    }

    /// Handles the response to a join request: loads or attaches, retries, or exits.
    pub fn handle_join_response(
        &mut self,
        id: ProcessId,
        request: RequestId,
        response: Result<v1::JoinResponse, RefusalKind>,
    ) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.connection != ConnectionState::Joining(request) {
            return;
        }
        match response {
            Ok(response) => {
                let v1::JoinResponse { worker_id, session_token, run_id, .. } = response;
                worker.worker_id = Some(worker_id);
                let run = &self.scenario.file;
                if worker.false_claim.is_some() {
                    worker.protocol = Some(Session::new(run.clone(), run_id.clone(), VALIDATION_IMAGES));
                }
                let continuation = worker.protocol.as_mut().map(|protocol| protocol.continue_with(run, &run_id));
                if let Some(Continuation::Reload(_)) = continuation {
                    worker.reset();
                }
                if worker.protocol.is_some() {
                    self.attach(id, session_token);
                } else {
                    worker.connection = ConnectionState::Loading { session_token, run_id };
                    let duration = Time::from_millis(self.rng.random_range(50..self.scenario.max_loading_ms));
                    self.queue.schedule_after(
                        duration,
                        SimEvent::ConnectionWakeUp { worker: id, reason: WakeReason::Loaded },
                    );
                }
            }
            // A worker that joins again may be refused because the coordinator has not noticed yet
            // that its earlier session is lost. If it is still refused after twice the heartbeat
            // timeout, another worker has the id.
            Err(RefusalKind::AlreadyExists) if worker.protocol.is_some() => {
                if self.queue.now() - worker.joining_since >= 2 * self.scenario.heartbeat_timeout() {
                    worker.worker_id = worker.requested_worker_id;
                }
                self.retry_join_later(id);
            }
            Err(RefusalKind::RetryLater) => {
                worker.retry_later_since.get_or_insert(self.queue.now());
                self.retry_join_later(id);
            }
            Err(RefusalKind::Unavailable) => self.retry_join_later(id),
            Err(refusal) => {
                let expected = [RefusalKind::AlreadyExists, RefusalKind::ResourceExhausted];
                let is_over = refusal == RefusalKind::RunOver && self.invariants.is_over;
                assert!(
                    is_over || expected.contains(&refusal),
                    "the coordinator refused a correct worker: {refusal:?}"
                );
                self.retire_worker(id);
            }
        }
    }

    /// Schedules the next attempt to join, or ends the worker after [`JOIN_TIMEOUT`].
    fn retry_join_later(&mut self, id: ProcessId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if self.queue.now() - worker.joining_since > JOIN_TIMEOUT {
            self.retire_worker(id);
            return;
        }
        worker.connection = ConnectionState::Disconnected;
        worker.back_off = (worker.back_off * 2).clamp(MIN_BACK_OFF, MAX_BACK_OFF);
        let back_off = worker.back_off;
        self.queue.schedule_after(back_off, SimEvent::ConnectionWakeUp { worker: id, reason: WakeReason::Join });
    }

    /// Opens a session: sends the state that the worker holds, and unsent reports.
    fn attach(&mut self, id: ProcessId, session_token: String) {
        let session = SessionId(self.next_id());
        self.open_session(session, id);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.connection = ConnectionState::Attached(session);
        let store_address = format!("{}:{}", worker.host, id.0);
        let Some(protocol) = &mut worker.protocol else { return };
        let attach = protocol.attach(session_token, store_address, data_set());
        let attach = match worker.false_claim {
            Some(FalseClaim { position, generation, term }) => {
                v1::Attach { holds: Some(position), generation, term, ..attach }
            }
            None => attach,
        };
        self.invariants.reported_states.insert(session, attach.holds.map(|_| worker.history.clone()));
        let is_leaving = worker.is_leaving;
        self.send_to_coordinator(session, PacketToCoordinator::Attach(attach));
        if is_leaving {
            self.send_leaving(id, session);
        }
        self.pass_reports(id);
        self.send_heartbeat(id, session);
    }

    /// Handles a wake-up of the connection. Ignores a wake-up that does not fit the connection's
    /// state.
    pub fn handle_connection_wake_up(&mut self, id: ProcessId, reason: WakeReason) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match (reason, &worker.connection) {
            (WakeReason::Join, ConnectionState::Disconnected) => self.send_join_request(id),
            (WakeReason::JoinTimeout(request), ConnectionState::Joining(pending)) if request == *pending => {
                worker.retry_later_since = None;
                self.retry_join_later(id);
            }
            (WakeReason::Loaded, ConnectionState::Loading { session_token, run_id }) => {
                let session_token = session_token.clone();
                worker.protocol = Some(Session::new(self.scenario.file.clone(), run_id.clone(), VALIDATION_IMAGES));
                self.attach(id, session_token);
            }
            (WakeReason::ShutdownSignal, connection) => {
                worker.is_leaving = true;
                match *connection {
                    // A worker that is not a member yet can leave at once.
                    _ if worker.protocol.is_none() => self.end_worker(id),
                    ConnectionState::Attached(session) => self.send_leaving(id, session),
                    _ => {}
                }
            }
            (WakeReason::ReleaseTimeout(session), ConnectionState::Releasing(lost)) if session == *lost => {
                worker.protocol.iter_mut().for_each(Session::on_release_timeout);
                self.wake_if_abandoned(id);
            }
            (WakeReason::Heartbeat(session), ConnectionState::Attached(own)) if session == *own => {
                self.send_heartbeat(id, session);
            }
            _ => {}
        }
    }

    /// Sends a heartbeat, or disconnects if the coordinator has been unreachable for the heartbeat
    /// timeout.
    fn send_heartbeat(&mut self, id: ProcessId, session: SessionId) {
        let heartbeat_timeout = self.scenario.heartbeat_timeout();
        let since = |direction| self.network.partitions.get(&(id, direction)).copied();
        let unreachable_since = since(Direction::ToCoordinator)
            .into_iter()
            .chain(since(Direction::ToWorker))
            .chain(self.coordinator.suspended_since)
            .min();
        if unreachable_since.is_some_and(|since| self.queue.now() - since >= heartbeat_timeout) {
            self.disconnect(id);
            return;
        }
        let Some(worker) = self.workers.get(&id) else { return };
        let phase = match &worker.activity {
            Activity::Idle | Activity::Finishing => v1::Phase::Idle,
            Activity::CheckingPeers(_) | Activity::AwaitingRendezvous(_) | Activity::ReceivingState(_) => {
                v1::Phase::Rendezvous
            }
            Activity::Computing(_) => v1::Phase::Compute,
            Activity::AwaitingAllReduce(_) | Activity::ApplyingUpdate(_) => v1::Phase::AllReduce,
            Activity::Captioning(_) => v1::Phase::Evaluate,
            Activity::CopyingState(_) | Activity::AwaitingSaver => v1::Phase::Checkpoint,
        };
        let heartbeat = v1::Heartbeat { phase: phase.into(), position: worker.position() };
        self.send_to_coordinator(session, PacketToCoordinator::Message(Message::Heartbeat(heartbeat)));
        let interval = (heartbeat_timeout / 5).min(Time::from_secs(1));
        self.queue.schedule_after(
            interval,
            SimEvent::ConnectionWakeUp { worker: id, reason: WakeReason::Heartbeat(session) },
        );
    }

    /// Handles a packet of the coordinator.
    pub fn receive_from_coordinator(&mut self, id: ProcessId, session: SessionId, packet: PacketToWorker) {
        let Some(worker) =
            self.workers.get_mut(&id).filter(|worker| worker.connection == ConnectionState::Attached(session))
        else {
            return;
        };
        match packet {
            PacketToWorker::Directive(directive) => {
                let Some(protocol) = &mut worker.protocol else { return };
                match protocol.on_directive(*directive) {
                    Ok(DirectiveEffect::None) => {}
                    Ok(DirectiveEffect::Execute(command)) => self.enqueue_command(id, command),
                    Ok(DirectiveEffect::Leave { .. }) => self.retire_worker(id),
                    Err(violation) => panic!("{id:?}: {violation}"),
                }
            }
            // The run was over before this worker reconnected.
            PacketToWorker::End(Some(RefusalKind::RunOver)) if self.invariants.is_over => self.retire_worker(id),
            PacketToWorker::End(Some(RefusalKind::ForeignState)) => {
                let is_false_claim = worker.false_claim.is_some();
                assert!(is_false_claim || self.is_restored_from_backup, "a correct worker's state was refused");
                self.refused_states += 1;
                let generation = worker.generation.take();
                worker.reset();
                self.send_to_coordinator(session, PacketToCoordinator::End);
                if let Some(generation) = generation {
                    let is_silent = false;
                    self.release_collective(id, generation, is_silent);
                }
                self.start_joining(id);
            }
            PacketToWorker::End(refusal) => {
                let expected = [None, Some(RefusalKind::Unauthenticated), Some(RefusalKind::Unavailable)];
                assert!(expected.contains(&refusal), "a correct worker's session was refused: {refusal:?}");
                self.disconnect(id);
            }
        }
    }

    /// Announces that the worker wants to leave.
    fn send_leaving(&mut self, id: ProcessId, session: SessionId) {
        let Some(protocol) = self.workers.get_mut(&id).and_then(|worker| worker.protocol.as_mut()) else { return };
        let leaving = protocol.announce_leave("shutdown signal");
        self.send_to_coordinator(session, PacketToCoordinator::Message(leaving));
    }

    /// Handles the loss of the connection: the training thread releases its generation, then the
    /// worker joins again. The worker waits up to the heartbeat timeout for the step in flight.
    pub fn disconnect(&mut self, id: ProcessId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let (ConnectionState::Attached(session), Some(protocol)) = (&worker.connection, &mut worker.protocol) else {
            return;
        };
        let (session, command) = (*session, protocol.on_disconnect());
        worker.connection = ConnectionState::Releasing(session);
        self.send_to_coordinator(session, PacketToCoordinator::End);
        self.queue.schedule_after(
            self.scenario.heartbeat_timeout(),
            SimEvent::ConnectionWakeUp { worker: id, reason: WakeReason::ReleaseTimeout(session) },
        );
        self.enqueue_command(id, command);
    }

    /// Takes a report of the training thread or the saver.
    pub fn report(&mut self, id: ProcessId, message: Message) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.reports.push_back(message);
        self.pass_reports(id);
    }

    /// Passes reports on. They wait while the worker is between two sessions.
    fn pass_reports(&mut self, id: ProcessId) {
        while let Some(worker) = self.workers.get_mut(&id) {
            let Worker { connection, protocol: Some(protocol), reports, history, training, .. } = worker else {
                return;
            };
            if !matches!(connection, ConnectionState::Attached(_) | ConnectionState::Releasing(_)) {
                return;
            }
            let Some(report) = reports.pop_front() else { return };
            let effect = protocol.on_report(report);
            let is_last = matches!(effect, ReportEffect::SendLast(_));
            match (effect, connection) {
                (ReportEffect::Send(report) | ReportEffect::SendLast(report), ConnectionState::Attached(session)) => {
                    let session = *session;
                    if matches!(report, Message::Idle(_)) {
                        let state = training.position().map(|_| history.clone());
                        self.invariants.reported_states.insert(session, state);
                    }
                    self.send_to_coordinator(session, PacketToCoordinator::Message(report));
                }
                (ReportEffect::Released, _) => self.start_joining(id),
                _ => {}
            }
            if is_last {
                self.retire_worker(id);
            }
        }
    }
}
