//! Admission: checks a worker that joins, reserves an id for it, and checks the training state that
//! it claims to hold.

use std::{net::IpAddr, time::Duration};

use dataset::limits::MAX_VALIDATION_IMAGES;
use proto::{PROTOCOL_VERSION, v1};
use serde_json::json;

use super::{
    Outcome, Refusal, RefusalKind, Run, RunPhase, SessionId, Time,
    data::{self, DataChange, RunData},
    membership::JoinSettings,
    plan::Position,
    record::EventKind,
};

/// Upper bound of the heartbeats per second of all workers together. It may be exceeded if
/// `heartbeat_timeout` is so short that workers must send heartbeats more often.
const MAX_HEARTBEATS_PER_SECOND: f64 = 5_000.0;
/// Minimal number of heartbeats within `heartbeat_timeout`.
const MIN_HEARTBEATS_PER_TIMEOUT: u32 = 5;

impl Run {
    /// Handles [`super::Event::Join`]: reserves an id for a worker, or refuses it.
    /// `generated_join_key` takes the place of a missing `idempotency_key` in the request.
    pub(super) fn handle_join(
        &mut self,
        now: Time,
        address: IpAddr,
        join: &v1::JoinRequest,
        generated_join_key: String,
    ) -> Result<v1::JoinResponse, Refusal> {
        if join.protocol_version != PROTOCOL_VERSION {
            let version = join.protocol_version;
            let reason = format!(
                "the worker speaks protocol version {version}, this coordinator {PROTOCOL_VERSION}: use equal versions"
            );
            return Err(Refusal::new(RefusalKind::FailedPrecondition, reason));
        }
        if let Some(refusal) = self.refusal_if_ending() {
            return Err(refusal);
        }
        let (max_workers, heartbeat_timeout) = (self.file.workers.max, self.heartbeat_timeout());
        let heartbeat_interval = heartbeat_interval(max_workers, heartbeat_timeout);
        let settings = JoinSettings { max_workers, heartbeat_interval, heartbeat_timeout };
        let (worker_id, session_token) = self.members.reserve(now, address, join, generated_join_key, &settings)?;
        Ok(v1::JoinResponse {
            protocol_version: PROTOCOL_VERSION,
            worker_id: worker_id.0,
            session_token,
            run_file: self.file_json.clone(),
            heartbeat_interval_ms: heartbeat_interval.as_millis() as u64,
            run_id: self.id.clone(),
            heartbeat_timeout_ms: u64::try_from(heartbeat_timeout.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Why no workers are admitted and no commands are accepted any more: the run is over, or the
    /// coordinator stops. None otherwise.
    pub(super) fn refusal_if_ending(&self) -> Option<Refusal> {
        // `RunOver` is final. `Unavailable` makes the worker retry: another coordinator may resume
        // the run.
        let run_over = |reason: String| Some(Refusal::new(RefusalKind::RunOver, reason));
        let stopping = || Some(Refusal::new(RefusalKind::Unavailable, "the coordinator is shutting down".into()));
        match &self.phase {
            RunPhase::Over { outcome: Outcome::Finished, .. } => run_over("the run is finished".into()),
            RunPhase::Over { outcome: Outcome::Failed(reason), .. } => {
                run_over(format!("the run has failed: {reason}"))
            }
            RunPhase::Over { outcome: Outcome::Stopped, .. } => stopping(),
            _ if self.stop_requested => stopping(),
            _ => None,
        }
    }

    /// Handles [`super::Event::Attach`]: makes a worker with a reservation a member, or refuses it.
    /// Evicts a worker whose data differ from the run's.
    pub(super) fn handle_attach(&mut self, now: Time, session: SessionId, attach: v1::Attach) -> Result<(), Refusal> {
        if let Some(refusal) = self.refusal_if_ending() {
            return Err(refusal);
        }
        if let Some(reason) = self.state_error(&attach) {
            return Err(Refusal::new(RefusalKind::ForeignState, reason));
        }
        let data_set = attach.data_set.unwrap_or_default();
        if !data::has_valid_fingerprints(&data_set) {
            return Err(Refusal::new(RefusalKind::InvalidArgument, "a fingerprint of the data set is too long".into()));
        }
        if data_set.validation_images > MAX_VALIDATION_IMAGES {
            let reason = format!("the validation split has more than {MAX_VALIDATION_IMAGES} images");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let worker_id = self.members.attach(now, session, &attach.session_token, attach.store_address)?;
        let accepts_changes = self.accepts_changed_data;
        let conflict = self.data.as_ref().and_then(|data| data.conflict(worker_id, &data_set, accepts_changes));
        if let Some(reason) = conflict {
            self.evict(now, worker_id, &reason);
            return Ok(());
        }
        self.record_data_changes(&data_set);
        let detail = json!({
            "rank": worker_id,
            "host": self.members.get(worker_id).map(|member| &member.machine.host),
            "train_images": data_set.train_images,
            "train_captions": data_set.train_captions,
            "skipped_images": data_set.skipped_images,
            "validation_images": data_set.validation_images,
            "training_fingerprint": data_set.training_fingerprint,
            "validation_fingerprint": data_set.validation_fingerprint,
            "models_fingerprint": data_set.models_fingerprint,
            "holds": attach.holds.as_ref().map(|position| Position::from(position).to_string()),
        });
        if self.data.as_ref().is_none_or(|data| data.reported_by.is_none()) {
            self.data = Some(RunData { reported_by: Some(worker_id), data_set });
        }
        if let Some(member) = self.members.get_mut(worker_id) {
            member.position = attach.holds.filter(is_agreed);
        }
        self.record_event(EventKind::Attached, detail);
        Ok(())
    }

    /// Records how the data of the first worker differ from the data in the journal. Does nothing
    /// for later workers.
    fn record_data_changes(&mut self, data_set: &v1::DataSet) {
        let Some(RunData { reported_by: None, data_set: before }) = &self.data else { return };
        let training_changed = before.training_fingerprint != data_set.training_fingerprint;
        let validation_changed = before.validation_fingerprint != data_set.validation_fingerprint;
        let images = json!([before.validation_images, data_set.validation_images]);
        let change = DataChange { generation: self.last_generation + 1, from: None, before: before.into() };
        if training_changed {
            self.record_event(EventKind::DataChanged, change.detail(data_set.into()));
            self.data_changes.push(change);
        }
        if validation_changed {
            let detail = json!({ "split": "validation", "images_before_and_after": images });
            self.record_event(EventKind::DataChanged, detail);
        }
    }

    /// Why the training state that a worker claims to hold cannot be part of this run's history;
    /// none if it can. The state may belong to another run, or to a part of the history that the
    /// journal has lost.
    fn state_error(&self, attach: &v1::Attach) -> Option<String> {
        let has_taken_part = attach.generation > 0 || attach.holds.is_some();
        if has_taken_part && attach.run_id != self.id {
            return Some("it took part in another run".to_owned());
        }
        let (joined, last) = (attach.generation, self.last_generation);
        if joined > last {
            return Some(format!("it took part in generation {joined}, but the run's last generation is {last}"));
        }
        if joined > 0 && self.term_log.term_of(joined) != Some(attach.term) {
            return Some(format!(
                "it took part in a generation {joined} that is not in the journal: an older copy of the \
                 journal was restored"
            ));
        }
        let position = attach.holds.as_ref()?;
        if position.generation > joined {
            return Some(format!(
                "it holds a state of generation {}, but took part in generations up to {joined} only",
                position.generation
            ));
        }
        self.position_error(position)
    }

    /// Why no worker of this run can be at the position that a worker reports; none if one can.
    pub(super) fn position_error(&self, reported: &v1::Position) -> Option<String> {
        let (position, last) = (Position::from(reported), self.last_generation);
        if !self.plan.contains(position) {
            return Some(format!("the run has no {position}"));
        }
        if reported.generation > last {
            return Some(format!("generation {} does not exist", reported.generation));
        }
        // `max_granted_position` limits only the last generation. States of earlier generations may
        // be further: if they are, they were given up, and `branch_points` excludes them.
        (reported.generation == last && is_agreed(reported) && position > self.max_granted_position)
            .then(|| format!("generation {last} is granted up to {}, not to {position}", self.max_granted_position))
    }
}

/// The heartbeat interval of workers: one second, or longer for runs with many workers, but never
/// more than a fifth of `heartbeat_timeout`.
fn heartbeat_interval(max_workers: u32, heartbeat_timeout: Duration) -> Duration {
    let interval_for_load = Duration::from_secs_f64(f64::from(max_workers) / MAX_HEARTBEATS_PER_SECOND);
    let interval = interval_for_load.max(Duration::from_secs(1));
    (heartbeat_timeout / MIN_HEARTBEATS_PER_TIMEOUT).min(interval).max(Duration::from_millis(1))
}

/// Whether a generation has agreed on the state at this position in its rendezvous, or has trained
/// it. If not, the worker has only read the state from a checkpoint.
pub(super) fn is_agreed(position: &v1::Position) -> bool {
    position.generation > 0
}
