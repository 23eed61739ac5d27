//! Invariants of the coordinator: its directives, its records, and the state that it restores.

use config::GuardAction;
use dico_engine::{
    EventKind, Outcome, SessionId,
    checkpoint::Checkpoint,
    model_selection::{EndCause, EndDecision},
    plan::Position,
    record::{Record, StateSource},
    state::generations::RunPhase,
};
use proto::{v1, v1::directive::Directive};

use super::{Invariants, common_prefix_len, positions, prefix_up_to};
use crate::simulation::{
    Update, UpdateHistory, cluster::Cluster, coordinator::CaptionedState, score, training::digest,
};

impl Cluster {
    /// Asserts that a paused run sends no directives to train, evaluate, advance or finish.
    pub fn check_sent(&self, directive: &v1::Directive) {
        let continues = matches!(
            directive.directive,
            Some(Directive::Train(_) | Directive::Evaluate(_) | Directive::Advance(_) | Directive::Finish(_))
        );
        assert!(!(self.invariants.is_paused && continues), "a paused run sent {directive:?}");
    }

    /// Checks a record, and updates the invariants with it.
    pub fn check_record(&mut self, record: &Record) {
        match record {
            Record::Formed { generation, term, start, source, .. } => {
                self.invariants.last_term = *term;
                self.check_formed(*generation, *start, source);
            }
            Record::Ended { generation, .. } => {
                assert_eq!(self.invariants.current_generation.take(), Some(*generation));
            }
            Record::Saved(saved) => {
                self.check_saved(saved);
                self.invariants.checkpoints.insert(saved.position, saved.name.clone());
            }
            Record::Deleting(name) => self.check_deleted(name),
            Record::Damaged(name) => {
                self.invariants.checkpoints.retain(|_, saved| saved != name);
                assert!(self.disk.damaged.contains(name), "the coordinator discarded the intact checkpoint {name}");
                self.invariants.has_damaged_checkpoint = true;
            }
            Record::Event { kind: EventKind::Lost, detail } => self.check_eviction(detail),
            Record::Evaluated { position, .. } => {
                let updates = prefix_up_to(&self.invariants.committed, *position).len();
                let may_repeat = false;
                let earlier = self.invariants.evaluated.insert(*position, (updates, may_repeat));
                assert!(earlier.is_none_or(|(_, may_repeat)| may_repeat), "{position} was evaluated twice");
            }
            Record::Paused { .. } => self.invariants.is_paused = true,
            Record::Resumed { .. } => self.invariants.is_paused = false,
            Record::HistoryMoved(moved) => self.invariants.has_recorded_rollback |= moved.to < moved.from,
            Record::StageEnded { end: EndDecision { position: end, cause, .. }, .. } => {
                let end = *end;
                let earlier_end = self.invariants.selected_steps.insert(end.stage, end.step);
                assert_eq!(earlier_end, None, "stage {} ended twice", end.stage);
                self.invariants.given_up_after = Some(end);
                if *cause != EndCause::Guard {
                    // The later steps are not selected. They count as trained, not as given up.
                    let committed = prefix_up_to(&self.invariants.committed, end).len();
                    self.invariants.committed.truncate(committed);
                    self.invariants.committed_position = end.min(self.invariants.committed_position);
                }
            }
            Record::RunEnded { outcome: Outcome::Finished, .. } => {
                self.check_finished();
                self.invariants.is_over = true;
            }
            Record::RunEnded { outcome: Outcome::Failed(_), .. } => self.invariants.is_over = true,
            _ => {}
        }
    }

    /// Asserts that a new generation starts from an allowed state. Committed steps are given up
    /// only if the journal records that, and no member holds them.
    fn check_formed(&mut self, generation: u64, start: Position, source: &StateSource) {
        let current = self.invariants.current_generation.replace(generation);
        assert_eq!(current, None, "generation {generation} was formed before the last one ended");
        let last = self.invariants.last_generation;
        assert!(generation > last, "generation {generation} was formed after {last}");
        self.invariants.last_generation = generation;
        self.invariants.generations_formed += 1;
        let members = &self.state().members;
        let held_state = |session: SessionId| self.invariants.reported_states[&session].clone();
        let state = match source {
            StateSource::Member(worker_id) => members.get(*worker_id).and_then(|member| held_state(member.session)),
            StateSource::Checkpoint(name) => self.disk.checkpoints.get(name).cloned(),
            StateSource::Seed => Some(UpdateHistory::new()),
        };
        let state = state.unwrap_or_else(|| panic!("{source} has no state"));
        assert_eq!(positions(&state), self.steps_to(start), "{source} does not hold the state at {start}");
        let committed = &self.invariants.committed;
        let kept_count = common_prefix_len(committed, &state);
        let given_up_count = committed.len() - kept_count;
        // Whether a later generation has started at an earlier position than that of this update.
        let is_abandoned = |update: &Update| {
            let later = &mut self.invariants.generation_starts.range(update.generation + 1..);
            later.any(|(_, start)| *start < update.position)
        };
        assert!(!state.last().is_some_and(is_abandoned), "{source} holds a state that was given up: {state:?}");
        assert!(
            given_up_count == 0 || kept_count == state.len(),
            "{source} is on another branch: {state:?}, {committed:?}"
        );
        if given_up_count > 0 && self.invariants.given_up_after.is_none() {
            assert!(self.invariants.has_recorded_rollback, "committed steps were given up without a record");
            let has_only_harmless_faults = self.scenario.has_only_harmless_faults() && !self.is_restored_from_backup;
            assert!(!has_only_harmless_faults, "committed steps were given up without a fault");
            for (worker_id, member) in members.iter() {
                let position = member.position.unwrap_or_default();
                let mut later = self.invariants.generation_starts.range(position.generation + 1..);
                let is_abandoned = later.any(|(_, start)| *start < Position::from(&position));
                let is_further =
                    |state: &UpdateHistory| !is_abandoned && common_prefix_len(committed, state) > kept_count;
                assert!(
                    !held_state(member.session).is_some_and(|state| is_further(&state)),
                    "worker {worker_id} held a state that is given up"
                );
            }
        }
        self.invariants.steps_given_up += given_up_count as u64;
        self.invariants.committed = state;
        self.invariants.committed_position = start;
        self.invariants.generation_starts.insert(generation, start);
        self.invariants.evaluated.retain(|position, (updates, may_repeat)| {
            // The start of a stage has the same state as the end of the stage before, so its number
            // of updates does not show that it is given up.
            *may_repeat |= *position > start;
            *updates <= self.invariants.committed.len()
        });
        (self.invariants.given_up_after, self.invariants.has_recorded_rollback) = (None, false);
    }

    /// Asserts that the coordinator expects a checkpoint that a member has written.
    pub fn check_expected_checkpoint(&self, session: Option<SessionId>, name: &str) {
        let Some(engine) = self
            .coordinator
            .engine
            .as_ref()
            .filter(|engine| !matches!(engine.state().generations.phase, RunPhase::Over { .. }))
        else {
            return;
        };
        let is_member = session.is_some_and(|session| engine.state().members.worker_id_of(session).is_some());
        let is_expected = engine.state().checkpoints.in_progress.as_ref().is_some_and(|saving| saving.name == name);
        assert!(is_expected || !is_member, "the coordinator does not expect the checkpoint {name}");
    }

    /// Asserts that a recorded checkpoint holds the committed state.
    fn check_saved(&self, saved: &Checkpoint) {
        let Checkpoint { position, name, parameters_sha256, .. } = saved;
        let committed = prefix_up_to(&self.invariants.committed, *position);
        assert_eq!(self.disk.checkpoints.get(name).map(Vec::as_slice), Some(committed), "checkpoint {name}");
        assert_eq!(digest(committed), *parameters_sha256);
    }

    /// Asserts that a deleted checkpoint is not needed: it is not the last one of its stage, not
    /// the one with which the stage has ended, and not the best one of a stage without rollback
    /// rules.
    fn check_deleted(&mut self, name: &str) {
        let Some(position) =
            self.invariants.checkpoints.iter().find(|(_, saved)| *saved == name).map(|(position, _)| *position)
        else {
            return;
        };
        let Position { stage, step } = position;
        let checkpoints = || self.invariants.checkpoints.keys().filter(|other| other.stage == stage);
        assert_ne!(checkpoints().next_back(), Some(&position), "the last checkpoint of its stage was deleted: {name}");
        assert_ne!(
            self.invariants.selected_steps.get(&stage),
            Some(&step),
            "the checkpoint was deleted with which stage {stage} has ended: {name}"
        );
        let settings = &self.scenario.file.stages[stage as usize];
        let can_roll_back = settings.guard.iter().any(|rule| rule.action == GuardAction::Rollback);
        if settings.metric.is_some() && !can_roll_back && !self.invariants.selected_steps.contains_key(&stage) {
            let scored = checkpoints().filter(|other| self.state().history.scores.contains_key(other));
            let best = scored.reduce(|best, other| {
                if score(self.scenario.salt, *other) > score(self.scenario.salt, *best) { other } else { best }
            });
            assert_ne!(best, Some(&position), "the best checkpoint of its stage was deleted: {name}");
        }
        self.invariants.checkpoints.remove(&position);
    }

    /// Asserts that the captions of an evaluation are of the committed state.
    pub fn check_captions(&self, captioned: &CaptionedState) {
        let committed = prefix_up_to(&self.invariants.committed, captioned.position);
        assert_eq!(
            digest(committed),
            captioned.digest,
            "the captions are of another state than the committed one at {}",
            captioned.position
        );
    }

    /// After each event: asserts that committed steps are applied, and that the committed history
    /// only grows.
    pub fn check_committed(&mut self) {
        let Some(engine) = &self.coordinator.engine else { return };
        let (position, generation) = (engine.state().history.committed, engine.state().generations.last_number);
        // The coordinator may crash before it records that a generation was formed, or that a stage
        // has ended.
        let is_unrecorded = generation != self.invariants.last_generation
            || engine.state().history.plan.has_ended_early(position.stage)
                != self.invariants.selected_steps.contains_key(&position.stage);
        if position == self.invariants.committed_position || is_unrecorded {
            return;
        }
        assert!(
            position > self.invariants.committed_position,
            "the committed position went from {} to {position}",
            self.invariants.committed_position
        );
        let applied = self
            .invariants
            .generation_states
            .get(&generation)
            .map(|state| prefix_up_to(state, position).to_vec())
            .unwrap_or_default();
        assert!(applied.starts_with(&self.invariants.committed), "committed steps have changed");
        assert_eq!(positions(&applied), self.steps_to(position), "a committed step was not applied");
        (self.invariants.committed, self.invariants.committed_position) = (applied, position);
    }

    /// After a start of the coordinator: asserts that it has restored all durable records.
    pub fn check_restored(&mut self) {
        let engine = self.coordinator.engine.as_ref().expect("the coordinator has just started");
        let history = &engine.state().history;
        assert!(history.committed <= self.invariants.committed_position, "{} was never committed", history.committed);
        let position = history.committed;
        let Invariants { committed, evaluated, is_paused, given_up_after, .. } = &mut self.invariants;
        committed.truncate(prefix_up_to(committed, position).len());
        evaluated.retain(|position, _| given_up_after.is_none_or(|end| *position <= end));
        let is_restored = |position: &Position, may_repeat: bool| may_repeat || history.scores.contains_key(position);
        assert!(
            evaluated.iter().all(|(position, (_, may_repeat))| is_restored(position, *may_repeat)),
            "an evaluation was not restored"
        );
        assert!(
            history.scores.keys().all(|position| evaluated.contains_key(position)),
            "an evaluation of another history was restored"
        );
        assert_eq!(engine.state().stage.pause_reason.is_some(), *is_paused, "the pause was not restored");
        for stage in 0..self.scenario.file.stages.len() as u32 {
            assert_eq!(history.plan.steps(stage), self.stage_end(stage), "the end of stage {stage} was not restored");
        }
        (self.invariants.committed_position, self.invariants.current_generation, self.invariants.given_up_after) =
            (position, None, None);
        assert_eq!(positions(&self.invariants.committed), self.steps_to(position));
        self.check_known_checkpoints();
    }

    /// Asserts that a finished run has committed each step, and that all members hold its state.
    fn check_finished(&self) {
        assert_eq!(
            positions(&self.invariants.committed),
            self.steps_to(self.run_end()),
            "the run finished without committing each step once"
        );
        for worker in self.workers.values() {
            // Includes workers that have failed without the coordinator's notice.
            let is_of_run = worker.run_id() == self.run_id && worker.last_generation().1 == self.invariants.last_term;
            let last_position =
                worker.position().filter(|position| position.generation == self.invariants.last_generation);
            if is_of_run && last_position.is_some() {
                assert_eq!(worker.history, self.invariants.committed, "a member ends with another state");
            }
        }
    }
}
