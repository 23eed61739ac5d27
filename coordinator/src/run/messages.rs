//! Messages of workers: finds the sender of each message, and calls the handler of its kind.

use proto::v1::worker_message::Message;

use super::{
    Action, ProtocolViolation, Refusal, RefusalKind, Run, SessionId, Time, WorkerId, one_line, record::EventKind,
};

impl Run {
    /// Handles a message of a worker. Ends the session of a worker that violates the protocol.
    pub(super) fn handle_message(&mut self, now: Time, session: SessionId, message: Message) {
        // A session that is being closed has no member. Its last messages are ignored.
        let Some(worker_id) = self.members.worker_id_of(session) else { return };
        if let Some(member) = self.members.get_mut(worker_id) {
            member.last_message_at = now;
        }
        if let Err(violation) = self.dispatch_message(now, worker_id, message) {
            let reason = format!("worker {worker_id} violated the protocol: {}", one_line(&violation.to_string()));
            let refusal = Refusal::new(RefusalKind::InvalidArgument, reason.clone());
            self.actions.push(Action::Close { session, refusal: Some(refusal) });
            self.remove_member(now, worker_id, EventKind::Lost, &reason);
        }
    }

    fn dispatch_message(&mut self, now: Time, worker_id: WorkerId, message: Message) -> Result<(), ProtocolViolation> {
        match message {
            Message::Attach(_) => Err(ProtocolViolation::new("it attached twice")),
            Message::Heartbeat(heartbeat) => {
                if let Some(reason) = heartbeat.position.as_ref().and_then(|position| self.position_error(position)) {
                    return Err(ProtocolViolation::new(format!("it reported an impossible position: {reason}")));
                }
                if let Some(member) = self.members.get_mut(worker_id) {
                    member.record_heartbeat(now, heartbeat.phase(), heartbeat.position);
                }
                Ok(())
            }
            Message::Ready(ready) => self.handle_ready(worker_id, &ready),
            Message::StepDone(report) => self.handle_step_done(now, worker_id, &report),
            Message::EvaluationItems(items) => {
                self.record_progress(now, worker_id);
                self.handle_evaluation_items(worker_id, items)
            }
            Message::CheckpointDone(done) => {
                self.record_progress(now, worker_id);
                self.handle_checkpoint_done(now, worker_id, done)
            }
            Message::Advanced(advanced) => self.handle_advanced(worker_id, &advanced),
            Message::Idle(idle) => self.handle_idle(now, worker_id, &idle),
            Message::Failed(failed) => self.handle_failed(now, worker_id, &failed),
            Message::CheckpointFailed(failed) => {
                self.record_progress(now, worker_id);
                self.handle_checkpoint_failed(now, worker_id, &failed)
            }
            Message::Leaving(leaving) => {
                self.handle_leaving(worker_id, &leaving);
                Ok(())
            }
            Message::Finished(_) => {
                if let Some(member) = self.members.get(worker_id) {
                    self.actions.push(Action::Close { session: member.session, refusal: None });
                }
                self.remove_member(now, worker_id, EventKind::Left, "finished");
                Ok(())
            }
        }
    }
}
