//! The connection of a simulated worker: joins, attaches, passes directives to the training thread,
//! sends reports and heartbeats, and reconnects.

use dico_engine::{RefusalKind, RequestId, SessionId, Time};
use proto::{PROTOCOL_VERSION, v1, v1::directive::Directive, v1::worker_message::Message};
use rand::Rng;

use super::{
    ProcessId, VALIDATION_IMAGES,
    cluster::{Cluster, SimEvent},
    network::{Direction, PacketToCoordinator, PacketToWorker},
    worker::{Activity, ConnectionState, WakeReason},
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
                worker.worker_id = Some(response.worker_id);
                match worker.forges_run_id {
                    true => worker.run_id = response.run_id,
                    false if worker.run_id != response.run_id => worker.reset_for_run(response.run_id),
                    false => {}
                }
                if worker.is_loaded {
                    self.attach(id, response.session_token);
                } else {
                    worker.connection = ConnectionState::Loading { session_token: response.session_token };
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
            Err(RefusalKind::AlreadyExists) if worker.is_loaded => {
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
        let attach = v1::Attach {
            session_token,
            store_address: format!("{}:{}", worker.host, id.0),
            data_set: Some(data_set()),
            holds: worker.position,
            generation: worker.latest_generation,
            term: worker.term,
            run_id: worker.run_id.clone(),
        };
        self.invariants.reported_states.insert(session, worker.position.map(|_| worker.history.clone()));
        let unsent_reports = std::mem::take(&mut worker.unsent_reports);
        let is_leaving = worker.is_leaving;
        self.send_to_coordinator(session, PacketToCoordinator::Attach(attach));
        if is_leaving {
            self.send_leaving(id, session);
        }
        unsent_reports
            .into_iter()
            .for_each(|message| self.send_to_coordinator(session, PacketToCoordinator::Message(message)));
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
            (WakeReason::Loaded, ConnectionState::Loading { session_token }) => {
                let session_token = session_token.clone();
                worker.is_loaded = true;
                self.attach(id, session_token);
            }
            (WakeReason::ShutdownSignal, connection) => {
                worker.is_leaving = true;
                match *connection {
                    // A worker that is not a member yet can leave at once.
                    _ if !worker.is_loaded => self.end_worker(id),
                    ConnectionState::Attached(session) => self.send_leaving(id, session),
                    _ => {}
                }
            }
            (WakeReason::ReleaseTimeout(session), ConnectionState::Releasing(lost)) if session == *lost => {
                let generation = worker.latest_generation;
                self.abandon_generation(id, generation);
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
        let worker = &self.workers[&id];
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
        let heartbeat = v1::Heartbeat { phase: phase.into(), position: worker.position };
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
            PacketToWorker::Directive(directive) => match directive.directive {
                Some(Directive::Leave(_)) => self.retire_worker(id),
                Some(Directive::Halt(_)) if directive.generation >= worker.latest_generation => {
                    worker.halted_generation = worker.latest_generation;
                }
                Some(Directive::Rendezvous(v1::Rendezvous { term, .. })) => {
                    (worker.latest_generation, worker.term) = (directive.generation, term);
                    self.enqueue_directive(id, *directive);
                }
                Some(Directive::Abandon(_)) if directive.generation >= worker.latest_generation => {
                    self.abandon_generation(id, directive.generation);
                    self.enqueue_directive(id, *directive);
                }
                _ => self.enqueue_directive(id, *directive),
            },
            // The run was over before this worker reconnected.
            PacketToWorker::End(Some(RefusalKind::RunOver)) if self.invariants.is_over => self.retire_worker(id),
            PacketToWorker::End(Some(RefusalKind::ForeignState)) => {
                assert!(worker.forges_run_id || self.is_restored_from_backup, "a correct worker's state was refused");
                self.refused_states += 1;
                let run_id = worker.run_id.clone();
                worker.reset_for_run(run_id);
                self.disconnect(id);
            }
            PacketToWorker::End(refusal) => {
                let expected = [None, Some(RefusalKind::Unauthenticated), Some(RefusalKind::Unavailable)];
                assert!(expected.contains(&refusal), "a correct worker's session was refused: {refusal:?}");
                self.disconnect(id);
            }
        }
    }

    /// Announces that the worker wants to leave, and halts its generation.
    fn send_leaving(&mut self, id: ProcessId, session: SessionId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.halted_generation = worker.latest_generation;
        self.send_to_coordinator(
            session,
            PacketToCoordinator::Message(Message::Leaving(v1::Leaving { reason: "shutdown signal".to_owned() })),
        );
    }

    /// Handles the loss of the connection: the training thread releases its generation, then the
    /// worker joins again. The other members may have lost the coordinator, too, so the worker
    /// waits up to the heartbeat timeout for the step in flight.
    pub fn disconnect(&mut self, id: ProcessId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let ConnectionState::Attached(session) = worker.connection else { return };
        (worker.connection, worker.halted_generation) = (ConnectionState::Releasing(session), worker.latest_generation);
        let directive = Some(Directive::Abandon(v1::Abandon::default()));
        let abandon = v1::Directive { generation: worker.latest_generation, directive };
        self.send_to_coordinator(session, PacketToCoordinator::End);
        self.queue.schedule_after(
            self.scenario.heartbeat_timeout(),
            SimEvent::ConnectionWakeUp { worker: id, reason: WakeReason::ReleaseTimeout(session) },
        );
        self.enqueue_directive(id, abandon);
    }

    /// Sends a report of the training thread, or stores it until the next session.
    pub fn report(&mut self, id: ProcessId, message: Message) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let is_last_message = match &message {
            Message::Finished(_) => true,
            Message::Failed(failed) => failed.fatal,
            _ => false,
        };
        match worker.connection {
            ConnectionState::Attached(session) => {
                if matches!(message, Message::Idle(_)) {
                    self.invariants.reported_states.insert(session, worker.position.map(|_| worker.history.clone()));
                }
                self.send_to_coordinator(session, PacketToCoordinator::Message(message));
            }
            // The report can be dropped: the worker reports its position when it joins again, which
            // includes the step of the report.
            ConnectionState::Releasing(_) if matches!(&message, Message::Idle(idle) if idle.generation >= worker.latest_generation) =>
            {
                self.start_joining(id);
            }
            ConnectionState::Releasing(_) => {}
            ConnectionState::Disconnected | ConnectionState::Joining(_) | ConnectionState::Loading { .. } => {
                worker.unsent_reports.push(message);
            }
        }
        if is_last_message {
            self.retire_worker(id);
        }
    }
}
