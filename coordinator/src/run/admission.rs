//! Admission: checks a worker that joins, reserves an id for it, and decides which state it brings.

use std::{net::IpAddr, time::Duration};

use dataset::limits::MAX_VALIDATION_IMAGES;
use proto::{PROTOCOL_VERSION, v1};
use serde_json::json;

use super::{
    Outcome, Phase, Refusal, RefusalKind, Run, SessionId, Time,
    data::{self, DataChange, RunData},
    membership::Terms,
    plan::Place,
    record::EventKind,
};

/// Upper bound of the heartbeats per second of all workers together, as far as `heartbeat_timeout` allows.
const HEARTBEATS_A_SECOND: f64 = 5_000.0;

impl Run {
    pub(super) fn join(
        &mut self,
        now: Time,
        address: IpAddr,
        join: &v1::JoinRequest,
        token: String,
    ) -> Result<v1::JoinResponse, Refusal> {
        if join.protocol_version != PROTOCOL_VERSION {
            let theirs = join.protocol_version;
            let reason = format!(
                "the worker speaks protocol version {theirs}, this coordinator {PROTOCOL_VERSION}: use equal versions"
            );
            return Err(Refusal::new(RefusalKind::FailedPrecondition, reason));
        }
        if let Some(refusal) = self.closed_to_workers() {
            return Err(refusal);
        }
        let (max_workers, heartbeat_timeout) = (self.file.workers.max, self.heartbeat_timeout());
        let calm = Duration::from_secs_f64(f64::from(max_workers) / HEARTBEATS_A_SECOND);
        let heartbeat = (heartbeat_timeout / 5).min(calm.max(Duration::from_secs(1))).max(Duration::from_millis(1));
        let (rank, session_token) =
            self.members.reserve(now, address, join, token, &Terms { max_workers, heartbeat, heartbeat_timeout })?;
        Ok(v1::JoinResponse {
            protocol_version: PROTOCOL_VERSION,
            rank,
            session_token,
            run_file: self.file_json.clone(),
            heartbeat_interval_ms: heartbeat.as_millis() as u64,
            run_id: self.id.clone(),
            heartbeat_timeout_ms: u64::try_from(self.heartbeat_timeout().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Why the run admits no more workers; none if it does.
    pub(super) fn closed_to_workers(&self) -> Option<Refusal> {
        // `Over` is final. `Unavailable` makes the worker retry: another coordinator may resume the
        // run.
        let over = |reason: String| Some(Refusal::new(RefusalKind::Over, reason));
        let stopping = || Some(Refusal::new(RefusalKind::Unavailable, "the coordinator is shutting down".into()));
        match &self.phase {
            Phase::Over { outcome: Outcome::Finished, .. } => over("the run is finished".into()),
            Phase::Over { outcome: Outcome::Failed(reason), .. } => over(format!("the run has failed: {reason}")),
            Phase::Over { outcome: Outcome::Stopped, .. } => stopping(),
            _ if self.stopping => stopping(),
            _ => None,
        }
    }

    pub(super) fn attach(&mut self, now: Time, session: SessionId, attach: v1::Attach) -> Result<(), Refusal> {
        if let Some(refusal) = self.closed_to_workers() {
            return Err(refusal);
        }
        if let Some(reason) = self.disown(&attach) {
            return Err(Refusal::new(RefusalKind::Disowned, reason));
        }
        let data_set = attach.data_set.unwrap_or_default();
        if !data::has_sane_fingerprints(&data_set) {
            return Err(Refusal::new(RefusalKind::InvalidArgument, "a fingerprint of the data set is too long".into()));
        }
        if data_set.validation_images > MAX_VALIDATION_IMAGES {
            let reason = format!("a validation split of more than {MAX_VALIDATION_IMAGES} images");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let rank = self.members.attach(now, session, &attach.session_token, attach.store_address)?;
        let may_change = self.may_exchange_data;
        if let Some(reason) = self.data_set.as_ref().and_then(|known| known.conflict(rank, &data_set, may_change)) {
            self.evict(now, rank, &reason);
            return Ok(());
        }
        self.note_changes(&data_set);
        let detail = json!({
            "rank": rank,
            "host": self.members.get(rank).map(|member| &member.machine.host),
            "train_images": data_set.train_images,
            "train_captions": data_set.train_captions,
            "skipped_images": data_set.skipped_images,
            "validation_images": data_set.validation_images,
            "training_fingerprint": data_set.training_fingerprint,
            "validation_fingerprint": data_set.validation_fingerprint,
            "models_fingerprint": data_set.models_fingerprint,
            "holds": attach.holds.as_ref().map(|position| Place::from(position).to_string()),
        });
        if self.data_set.as_ref().is_none_or(|known| known.source.is_none()) {
            self.data_set = Some(RunData { source: Some(rank), data_set });
        }
        if let Some(member) = self.members.get_mut(rank) {
            member.position = attach.holds.filter(is_held);
        }
        self.event(EventKind::Joined, detail);
        Ok(())
    }

    /// Records how the data of the first worker differ from the data in the journal.
    fn note_changes(&mut self, data_set: &v1::DataSet) {
        let Some(RunData { source: None, data_set: before }) = &self.data_set else { return };
        let (training, validation) = (
            before.training_fingerprint != data_set.training_fingerprint,
            before.validation_fingerprint != data_set.validation_fingerprint,
        );
        let images = json!([before.validation_images, data_set.validation_images]);
        let exchange = DataChange { generation: self.last_generation + 1, from: None, before: before.into() };
        if training {
            self.event(EventKind::DataChanged, exchange.detail(data_set.into()));
            self.exchanges.push(exchange);
        }
        if validation {
            self.event(EventKind::DataChanged, json!({ "split": "validation", "images_before_and_after": images }));
        }
    }

    /// Why the state that a worker claims to hold cannot be part of this run's history; none if it
    /// can. It belongs to another run, or to a part that this run's journal has lost.
    fn disown(&self, attach: &v1::Attach) -> Option<String> {
        let claims = attach.generation > 0 || attach.holds.is_some();
        if claims && attach.run_id != self.id {
            return Some("it has taken part in another run".to_owned());
        }
        let (told, last) = (attach.generation, self.last_generation);
        if told > last {
            return Some(format!("it was told of generation {told}, and the run has come to generation {last}"));
        }
        if told > 0 && self.terms.of(told) != Some(attach.term) {
            return Some(format!(
                "it was told of a generation {told} that is not in the journal: an older copy of the \
                 journal was brought back"
            ));
        }
        let position = attach.holds.as_ref()?;
        if position.generation > told {
            return Some(format!(
                "it holds a state of generation {}, and was told of generations up to {told} only",
                position.generation
            ));
        }
        self.impossible(position)
    }

    /// Why no worker of this run can be at the position that a worker reports; none if one can.
    pub(super) fn impossible(&self, position: &v1::Position) -> Option<String> {
        let (place, last) = (Place::from(position), self.last_generation);
        if !self.plan.contains(place) {
            return Some(format!("the run has no {place}"));
        }
        if position.generation > last {
            return Some(format!("generation {} does not exist", position.generation));
        }
        // States of an earlier generation beyond the start of a later one were given up: see
        // `cuts`.
        (position.generation == last && is_held(position) && place > self.horizon)
            .then(|| format!("generation {last} was told to come to {}, not to {place}", self.horizon))
    }
}

/// Whether a generation has agreed on the state at this position. Other positions are those of
/// states that were read from a checkpoint.
pub(super) fn is_held(position: &v1::Position) -> bool {
    position.generation > 0
}
