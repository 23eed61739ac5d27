//! Generations: forms the next one, receives the messages about its rendezvous and its end, and
//! ends it.

use proto::{v1, v1::directive::Directive};

use crate::{
    data::{self, RunData},
    handler::{
        membership_changes::{must_wait_for_removed_holder, select_members, state_holders},
        reachability::peers_to_probe,
        training,
    },
    membership::{MemberState, Membership},
    output::{Effect, Output},
    plan::{Position, is_agreed},
    record::{HistoryMove, Record, StateSource},
    settings::Settings,
    state::{
        Measurements, State,
        checkpoints::Checkpoints,
        generations::{Generation, GenerationEnd, Generations, RunPhase},
        history::History,
        stage::StageState,
        start_point::StartPoint,
    },
    types::{Rank, Time, WorkerId},
    violation::{ProtocolViolation, one_line},
};

/// The members of the next generation and its start. None if no generation can be formed now.
#[must_use]
pub fn next_generation(state: &State, now: Time) -> Option<(Vec<WorkerId>, StartPoint)> {
    let holders = state_holders(state);
    let members = select_members(&holders, &state.settings)?;
    (!must_wait_for_removed_holder(state, now)).then(|| (members, holders.select_start()))
}

/// A failure that a member has reported.
pub struct MemberFailure {
    /// The member and its reason, as a message for display.
    pub reason: String,
    /// Whether the member has to be removed.
    pub is_fatal: bool,
    /// Whether the run cannot continue, because generations keep failing.
    pub must_end_run: bool,
}

/// Forms, starts and ends generations.
pub struct GenerationHandler<'a> {
    settings: &'a Settings,
    members: &'a mut Membership,
    generations: &'a mut Generations,
    history: &'a mut History,
    stage: &'a mut StageState,
    data: &'a mut RunData,
    checkpoints: &'a Checkpoints,
    measurements: &'a mut Measurements,
    output: &'a mut Output,
}

impl<'a> GenerationHandler<'a> {
    pub fn new(state: &'a mut State, output: &'a mut Output) -> Self {
        let State { settings, members, generations, history, stage, data, checkpoints, measurements, .. } = state;
        Self { settings, members, generations, history, stage, data, checkpoints, measurements, output }
    }

    /// Forms the next generation of these members, from this start.
    pub fn form(&mut self, members: Vec<WorkerId>, StartPoint { start, source }: StartPoint) {
        training::record_incomplete_steps(self.generations, self.measurements, self.output);
        let number = self.generations.last_number + 1;
        self.generations.last_number = number;
        self.generations.term_log.record(number, self.settings.term);
        self.data.changes.iter_mut().for_each(|change| change.record_start(number, start));
        self.move_history(start, number, &source);

        let machine = |id: &WorkerId| Some((*id, self.members.get(*id)?.machine.clone()));
        self.output.record(Record::Formed {
            generation: number,
            term: self.settings.term,
            members: members.iter().filter_map(machine).collect(),
            cause: self.generations.last_end.reason.clone(),
            start,
            source: source.clone(),
        });
        self.send_rendezvous(number, &members, start, &source);
        let progress_count = self.history.progress_count;
        self.generations.current = Some(Generation::new(number, members, start, source, progress_count));
        self.generations.phase = RunPhase::Forming;
        self.output.add_effect(Effect::GenerationFormed { start });
    }

    /// Continues the history from the start of the next generation. That is before the committed
    /// position if the state there is lost, and beyond it if members have applied steps whose
    /// reports or records were lost.
    fn move_history(&mut self, start: Position, generation: u64, source: &StateSource) {
        let previous = self.history.committed;
        self.history.branch(generation, start);
        self.stage.forget_rollbacks_beyond(start);
        if start == previous {
            return;
        }
        let source = source.clone();
        self.output.record(Record::HistoryMoved(HistoryMove { from: previous, to: start, generation, source }));
        match start < previous || start.stage != previous.stage {
            true => self.stage.restart_guard(self.history),
            // Rules that have fired at adopted steps may be known from the journal.
            false => self.stage.disqualify(start),
        }
    }

    fn send_rendezvous(&mut self, number: u64, members: &[WorkerId], start: Position, source: &StateSource) {
        let rank_of = |id: WorkerId| members.iter().position(|other| *other == id).map(|index| Rank(index as u32));
        let address = |id: &WorkerId| Some((*id, self.members.get(*id)?.tcp_store_address.clone()));
        let addresses: Vec<(WorkerId, String)> = members.iter().filter_map(address).collect();
        let (source_rank, checkpoint) = match source {
            StateSource::Member(worker_id) => (rank_of(*worker_id), String::new()),
            StateSource::Checkpoint(name) => (None, name.clone()),
            StateSource::Seed => (None, String::new()),
        };
        let saved_checkpoint = self.checkpoints.saved.values().find(|saved| saved.name == checkpoint);
        let (checkpoint_run_id, checkpoint_sha256) =
            saved_checkpoint.map(|saved| (saved.run_id.clone(), saved.parameters_sha256.clone())).unwrap_or_default();
        let sequence_start = data::sequence_start(&self.data.changes, start.stage, self.history.plan.stage(start));
        for (index, worker_id) in members.iter().enumerate() {
            self.members.set_state(*worker_id, MemberState::InGeneration(number));
            let Some(session) = self.members.get(*worker_id).map(|member| member.session) else { continue };
            let rendezvous = v1::Rendezvous {
                rank: index as u32,
                world_size: members.len() as u32,
                store_address: addresses.first().map(|(_, address)| address.clone()).unwrap_or_default(),
                source_rank: source_rank.map(|rank| rank.0),
                checkpoint: checkpoint.clone(),
                checkpoint_sha256: checkpoint_sha256.clone(),
                checkpoint_run_id: checkpoint_run_id.clone(),
                position: Some(start.in_generation(number)),
                peers: peers_to_probe(&addresses, index),
                sequence_start: Some(sequence_start),
                term: self.settings.term,
            };
            self.output.send(session, number, Directive::Rendezvous(rendezvous));
        }
    }

    /// Starts training if all members of the generation are ready. Returns whether they are.
    pub fn try_start_training(&mut self) -> bool {
        let Some(generation) = &self.generations.current else { return false };
        if generation.ready_members.len() < generation.members.len() {
            return false;
        }
        let recovery = self.generations.last_end.is_failure;
        self.output.record(Record::Ready { generation: generation.number, recovery });
        self.generations.phase = RunPhase::Running;
        true
    }

    /// Handles `Ready`: a member has finished the rendezvous.
    ///
    /// # Errors
    /// The member is not in that generation, or is at another position than its start.
    pub fn ready(&mut self, worker_id: WorkerId, ready: &v1::Ready) -> Result<(), ProtocolViolation> {
        if !self.generations.is_current(self.members, worker_id, ready.generation)? {
            return Ok(());
        }
        let Some(generation) = &mut self.generations.current else { return Ok(()) };
        let reported = ready.position.as_ref().map(Position::from);
        if reported != Some(generation.start) {
            let reported = reported.map_or_else(|| "no position".into(), |reported| reported.to_string());
            return Err(ProtocolViolation::new(format!("it is ready at {reported} instead of {}", generation.start)));
        }
        generation.ready_members.insert(worker_id);
        let position = generation.start.in_generation(generation.number);
        if let Some(member) = self.members.get_mut(worker_id) {
            member.position = Some(position);
        }
        Ok(())
    }

    /// Handles `Idle`: a member has released its generation.
    ///
    /// # Errors
    /// The generation does not exist, or no worker can be at the position that the member reports.
    pub fn idle(&mut self, now: Time, worker_id: WorkerId, idle: &v1::Idle) -> Result<(), ProtocolViolation> {
        self.generations.check_exists(idle.generation)?;
        let last = self.generations.last_number;
        if let Some(reason) = idle.position.as_ref().and_then(|position| self.history.position_error(position, last)) {
            return Err(ProtocolViolation::new(format!("it reported an impossible position: {reason}")));
        }
        let position = idle.position.filter(is_agreed);
        let Some(member) = self.members.get_mut(worker_id) else { return Ok(()) };
        let member_generation = match member.state {
            MemberState::InGeneration(generation) | MemberState::Releasing { generation, .. } => generation,
            MemberState::Idle => 0,
        };
        if member_generation > idle.generation {
            return Ok(());
        }
        let was_in_generation = matches!(member.state, MemberState::InGeneration(_));
        member.position = position;
        member.record_heartbeat(now, v1::Phase::Idle, position);
        self.members.set_state(worker_id, MemberState::Idle);
        self.output.add_effect(Effect::GenerationReleased { worker_id, unfinished_save: idle.saving });
        if was_in_generation {
            let current = self.generations.current.as_ref();
            let halt_reason = current.and_then(|generation| generation.halt_reason.clone());
            let is_failure = halt_reason.is_none();
            let reason = halt_reason.unwrap_or_else(|| format!("worker {worker_id} released the generation"));
            self.output.add_effect(Effect::EndGeneration { reason, is_failure });
        }
        Ok(())
    }

    /// Counts a failure that a member reports, unless it follows from a halt or from a failure of
    /// others. Ends the generation unless the failure is fatal: then the member has to be removed.
    pub fn member_failed(&mut self, now: Time, worker_id: WorkerId, failed: &v1::Failed) -> MemberFailure {
        let reason = one_line(&failed.reason);
        let is_current = self.is_in_active_generation(worker_id, failed.generation);
        // In a generation that halts, other members may have released the collective first, so that
        // this member's collective operation has failed. That is not a failure of the run.
        let is_halting = self.generations.current.as_ref().is_some_and(|generation| generation.halt_reason.is_some());
        // A fatal failure counts even if the generation has ended already, because other members
        // have noticed the failure first.
        let is_counted = failed.fatal || (is_current && !is_halting);
        let Generations { failure_counter, .. } = self.generations;
        let progress_count = self.history.progress_count;
        let must_fail = is_counted && failure_counter.record(progress_count, failed.generation, &reason, failed.fatal);
        let text = format!("worker {worker_id} failed: {reason}");
        if !failed.fatal && is_current {
            // A member that reports a failure releases its generation by itself, so it gets no
            // Abandon directive.
            let state = MemberState::Releasing { generation: failed.generation, since: now };
            self.members.set_state(worker_id, state);
            self.output.add_effect(Effect::EndGeneration { reason: text.clone(), is_failure: !is_halting });
        }
        MemberFailure { reason: text, is_fatal: failed.fatal, must_end_run: must_fail }
    }

    /// Whether the member is in this generation, and the generation forms or runs.
    #[must_use]
    pub fn is_in_active_generation(&self, worker_id: WorkerId, number: u64) -> bool {
        let in_generation = MemberState::InGeneration(number);
        self.generations.is_active() && self.members.get(worker_id).is_some_and(|member| member.state == in_generation)
    }

    /// Ends the generation that forms or runs, if there is one: orders its members to abandon it.
    pub fn end(&mut self, now: Time, reason: &str, is_failure: bool) {
        let is_active = self.generations.is_active();
        let Some(generation) = self.generations.current.as_mut().filter(|_| is_active) else { return };
        let number = generation.number;
        generation.pending_boundary = None;
        for worker_id in &generation.members {
            let in_generation = MemberState::InGeneration(number);
            let member = self.members.get(*worker_id).filter(|member| member.state == in_generation);
            let Some(session) = member.map(|member| member.session) else { continue };
            self.members.set_state(*worker_id, MemberState::Releasing { generation: number, since: now });
            self.output.send(session, number, Directive::Abandon(v1::Abandon { reason: reason.to_owned() }));
        }
        self.generations.phase = RunPhase::Waiting;
        self.generations.last_end = GenerationEnd { reason: reason.to_owned(), is_failure };
        self.measurements.throughput.reset_timer();
        self.output.record(Record::Ended { generation: number, reason: reason.to_owned() });
    }

    /// Orders all members of the running generation to stop after the work in flight.
    pub fn halt(&mut self, reason: String) {
        let Some(generation) = &mut self.generations.current else { return };
        for member in generation.members.iter().filter_map(|id| self.members.get(*id)) {
            let halt = Directive::Halt(v1::Halt { reason: reason.clone() });
            self.output.send(member.session, generation.number, halt);
        }
        generation.halt_reason = Some(reason);
    }
}
