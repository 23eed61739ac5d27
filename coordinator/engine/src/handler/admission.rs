//! Admission: checks a worker that joins, reserves an id for it, and checks the training state that
//! it claims to hold.

use std::{net::IpAddr, time::Duration};

use config::limits::MAX_VALIDATION_IMAGES;
use proto::{PROTOCOL_VERSION, v1};
use serde_json::json;

use crate::{
    data::{self, DataChange, DataDescription, RunData},
    event_kind::EventKind,
    membership::{JoinSettings, Membership},
    outcome::Outcome,
    output::{Effect, Output},
    plan::{Position, is_agreed},
    record::{Attachment, Record},
    refusal::{Refusal, RefusalKind},
    settings::Settings,
    state::{
        State,
        generations::{Generations, RunPhase},
        history::History,
    },
    types::{SessionId, Time},
};

/// Upper bound of the heartbeats per second of all workers together. It may be exceeded if
/// `heartbeat_timeout` is so short that workers must send heartbeats more often.
const MAX_HEARTBEATS_PER_SECOND: f64 = 5_000.0;
/// Minimal number of heartbeats within `heartbeat_timeout`.
const MIN_HEARTBEATS_PER_TIMEOUT: u32 = 5;

/// Admits workers to the run.
pub struct AdmissionHandler<'a> {
    settings: &'a Settings,
    members: &'a mut Membership,
    generations: &'a Generations,
    history: &'a History,
    data: &'a mut RunData,
    is_stopping: bool,
    output: &'a mut Output,
}

impl<'a> AdmissionHandler<'a> {
    pub fn new(state: &'a mut State, output: &'a mut Output) -> Self {
        let State { settings, members, generations, history, data, is_stopping, .. } = state;
        Self { settings, members, generations, history, data, is_stopping: *is_stopping, output }
    }

    /// Reserves an id for a worker that joins. `generated_join_key` takes the place of a missing
    /// `idempotency_key` in the request.
    ///
    /// # Errors
    /// The worker speaks another version of the protocol, the run is over, the coordinator stops,
    /// or [`Membership::reserve`] refuses the worker.
    pub fn join(
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
        if let Some(refusal) = refusal_if_ending(self.generations, self.is_stopping) {
            return Err(refusal);
        }
        let (max_workers, heartbeat_timeout) = (self.settings.file.workers.max, self.settings.heartbeat_timeout());
        let heartbeat_interval = heartbeat_interval(max_workers, heartbeat_timeout);
        let join_settings = JoinSettings { max_workers, heartbeat_interval, heartbeat_timeout };
        let (worker_id, session_token) =
            self.members.reserve(now, address, join, generated_join_key, &join_settings)?;
        Ok(v1::JoinResponse {
            protocol_version: PROTOCOL_VERSION,
            worker_id: worker_id.0,
            session_token,
            run_file: self.settings.file_json.clone(),
            heartbeat_interval_ms: heartbeat_interval.as_millis() as u64,
            run_id: self.settings.run_id.clone(),
            heartbeat_timeout_ms: u64::try_from(heartbeat_timeout.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Makes a worker with a reservation a member. A worker with other data becomes a member and is
    /// evicted at once.
    ///
    /// # Errors
    /// The run is over, the coordinator stops, the state that the worker holds cannot be part of
    /// this run's history, its description of its data is invalid, or [`Membership::attach`]
    /// refuses the worker.
    pub fn attach(&mut self, now: Time, session: SessionId, attach: v1::Attach) -> Result<(), Refusal> {
        if let Some(refusal) = refusal_if_ending(self.generations, self.is_stopping) {
            return Err(refusal);
        }
        if let Some(reason) = self.state_error(&attach) {
            return Err(Refusal::new(RefusalKind::ForeignState, reason));
        }
        let data_set = attach.data_set.unwrap_or_default();
        check_description(&data_set)?;
        let worker_id = self.members.attach(now, session, &attach.session_token, attach.store_address)?;
        if let Some(reason) = self.data.conflict(worker_id, &data_set) {
            self.output.add_effect(Effect::Evict { worker_id, reason });
            return Ok(());
        }
        self.record_data_changes(&data_set);
        self.data.describe(worker_id, data_set.clone());
        let held_position = attach.holds.as_ref().map(Position::from);
        if let Some(member) = self.members.get_mut(worker_id) {
            member.position = attach.holds.filter(is_agreed);
            let host = member.machine.host.clone();
            self.output.record(Record::Attached(Attachment { worker_id, host, data_set, held_position }));
        }
        Ok(())
    }

    /// Records how the data of the first worker differ from the data in the journal. Does nothing
    /// for later workers.
    fn record_data_changes(&mut self, data_set: &v1::DataSet) {
        let Some(description @ DataDescription { reported_by: None, data_set: before }) = &self.data.description else {
            return;
        };
        let training_changed = description.has_other_training_data(data_set);
        let validation_changed = description.has_other_validation_data(data_set);
        let images = json!([before.validation_images, data_set.validation_images]);
        let generation = self.generations.last_number + 1;
        let change = DataChange { generation, from: None, before: before.into() };
        if training_changed {
            self.output.record(Record::DataChanged { change, after: data_set.into() });
            self.data.changes.push(change);
        }
        if validation_changed {
            let detail = json!({ "split": "validation", "images_before_and_after": images });
            self.output.record_event(EventKind::DataChanged, detail);
        }
    }

    /// Why the training state that a worker claims to hold cannot be part of this run's history;
    /// none if it can. The state may belong to another run, or to a part of the history that the
    /// journal has lost.
    fn state_error(&self, attach: &v1::Attach) -> Option<String> {
        let has_taken_part = attach.generation > 0 || attach.holds.is_some();
        if has_taken_part && attach.run_id != self.settings.run_id {
            return Some("it took part in another run".to_owned());
        }
        let (joined, last) = (attach.generation, self.generations.last_number);
        if joined > last {
            return Some(format!("it took part in generation {joined}, but the run's last generation is {last}"));
        }
        if joined > 0 && self.generations.term_log.term_of(joined) != Some(attach.term) {
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
        self.history.position_error(position, last)
    }
}

/// Why no workers are admitted and no commands are accepted any more: the run is over, or the
/// coordinator stops. None otherwise.
#[must_use]
pub fn refusal_if_ending(generations: &Generations, is_stopping: bool) -> Option<Refusal> {
    // `RunOver` is final. `Unavailable` makes the worker retry: another coordinator may resume the
    // run.
    let run_over = |reason: String| Some(Refusal::new(RefusalKind::RunOver, reason));
    let stopping = || Some(Refusal::new(RefusalKind::Unavailable, "the coordinator is shutting down".into()));
    match &generations.phase {
        RunPhase::Over { outcome: Outcome::Finished, .. } => run_over("the run is finished".into()),
        RunPhase::Over { outcome: Outcome::Failed(reason), .. } => run_over(format!("the run has failed: {reason}")),
        RunPhase::Over { outcome: Outcome::Stopped, .. } => stopping(),
        _ if is_stopping => stopping(),
        _ => None,
    }
}

/// Checks the sizes in a worker's description of its data.
fn check_description(data_set: &v1::DataSet) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::new(RefusalKind::InvalidArgument, reason));
    if !data::has_valid_fingerprints(data_set) {
        return refuse("a fingerprint of the data set is too long".into());
    }
    if data_set.validation_images > MAX_VALIDATION_IMAGES {
        return refuse(format!("the validation split has more than {MAX_VALIDATION_IMAGES} images"));
    }
    Ok(())
}

/// The heartbeat interval of workers: one second, or longer for runs with many workers, but never
/// more than a fifth of `heartbeat_timeout`.
fn heartbeat_interval(max_workers: u32, heartbeat_timeout: Duration) -> Duration {
    let interval_for_load = Duration::from_secs_f64(f64::from(max_workers) / MAX_HEARTBEATS_PER_SECOND);
    let interval = interval_for_load.max(Duration::from_secs(1));
    (heartbeat_timeout / MIN_HEARTBEATS_PER_TIMEOUT).min(interval).max(Duration::from_millis(1))
}
