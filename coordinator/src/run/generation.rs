//! Generations: fixed sets of members that train together, from the rendezvous to the end. A
//! generation corresponds to a quorum of torchft or a rendezvous round of torchelastic.
//!
//! ```text
//!                enough members, all idle             all are ready
//!     waiting ---------------------------> forming ----------------> running ---> over
//!        ^                                    |                         |    run finished,
//!        |                                    | (1), (3)                |    stopped or failed
//!        |  Abandon directive to all members, |                         | (1), (2), (3)
//!        |  then Idle message of all members  |                         |
//!        '------------------------------------+-------------------------'
//!
//!     (1) at once: a member fails or is evicted
//!     (2) after the step in flight: a worker joins or leaves; see membership_changes
//!     (3) at once: a stage ends with an earlier state, perhaps due to scores that arrive while the
//!         next generation forms; see stage_end
//! ```

use std::collections::BTreeSet;

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, Outcome, ProtocolViolation, Rank, Run, RunPhase, Time, WorkerId,
    admission::is_agreed,
    data,
    membership::MemberState,
    one_line,
    plan::Position,
    progress::PendingBoundary,
    reachability,
    record::{EventKind, Record, StateSource},
    statistics::StepMerger,
    step_tracker::StepTracker,
};

/// The run fails when this many fatal failures in a row have the same reason, with no progress
/// between them. At most one failure is counted per generation.
const MAX_SAME_FATAL_FAILURES: u32 = 3;
/// The run fails after this many generations with failures that members report and that are not
/// fatal, or with stalls of all members, with no progress between them.
const MAX_OTHER_FAILURES: u32 = 5;

/// The members, the start and the progress of one generation.
#[derive(Debug)]
pub(super) struct Generation {
    /// Generations are numbered from 1.
    pub number: u64,
    /// Worker ids in order; the index is the rank in the generation.
    pub members: Vec<WorkerId>,
    /// The position at which it starts.
    pub start: Position,
    /// The source of the training state that it starts from.
    pub source: StateSource,
    /// The members that have finished the rendezvous.
    pub ready_members: BTreeSet<WorkerId>,
    /// The position up to which the members were ordered to train.
    pub granted: Position,
    /// The position that each member has reported.
    pub step_tracker: StepTracker,
    /// The batch size, and the number of samples of each rank's share of a batch.
    pub shares: (u32, Vec<u32>),
    /// The run's progress count when the generation was formed.
    pub initial_progress_count: u64,
    /// The evaluation or stage change that is in progress; none while the members train. A save is
    /// not included, because the members train during a save.
    pub pending_boundary: Option<PendingBoundary>,
    /// Why the generation has to end. Its members were ordered to halt; it ends when one has halted
    /// or all granted steps are done.
    pub halt_reason: Option<String>,
    /// The reports of steps that not all members have reported yet.
    pub step_merger: StepMerger,
}

impl Generation {
    /// Whether all members have reported all steps that were granted.
    pub fn all_steps_reported(&self) -> bool {
        self.step_tracker.all_at(self.granted)
    }
}

/// How a generation ended.
#[derive(Clone, Debug)]
pub(super) struct GenerationEnd {
    /// Why it ended, as a message for display.
    pub reason: String,
    /// Whether it ended because of a failure.
    pub is_failure: bool,
}

/// Counts failures without progress between them, to end a run that cannot continue.
#[derive(Debug, Default)]
pub(super) struct FailureCounter {
    /// The run's progress count at the last failure.
    progress_count: u64,
    fatal_failures: Option<FatalFailures>,
    /// The generation of the last failure that was not fatal, and the number of these failures.
    other_failures: (u64, u32),
}

/// Consecutive fatal failures with the same reason.
#[derive(Debug)]
struct FatalFailures {
    reason: String,
    /// The generation of the last one.
    generation: u64,
    count: u32,
}

impl FailureCounter {
    /// Counts a failure, at most once per generation. Returns true if the run has to fail.
    pub(super) fn record(&mut self, progress_count: u64, generation: u64, reason: &str, is_fatal: bool) -> bool {
        if progress_count != self.progress_count {
            *self = Self { progress_count, ..Self::default() };
        }
        if !is_fatal {
            let (last_generation, count) = &mut self.other_failures;
            if *last_generation != generation {
                (*last_generation, *count) = (generation, *count + 1);
            }
            return *count >= MAX_OTHER_FAILURES;
        }
        match &mut self.fatal_failures {
            Some(fatal) if fatal.reason == reason => {
                if fatal.generation != generation {
                    (fatal.generation, fatal.count) = (generation, fatal.count + 1);
                }
                fatal.count >= MAX_SAME_FATAL_FAILURES
            }
            different => {
                let first = FatalFailures { reason: reason.to_owned(), generation, count: 1 };
                *different = Some(first);
                false
            }
        }
    }
}

/// The position at which a generation starts, and the source of the training state at that
/// position.
pub(super) struct StartPoint {
    pub start: Position,
    pub source: StateSource,
}

impl Run {
    /// Forms the next generation if enough members have joined and all members have released the
    /// last generation.
    pub(super) fn try_form_generation(&mut self, now: Time) {
        if !self.members.are_all_idle() {
            return;
        }
        self.evict_unreachable(now);
        let Some(members) = self.select_members() else { return };
        let StartPoint { start, source } = self.select_start();
        if self.must_wait_for_removed_holder(now, start) {
            return;
        }
        self.flush_statistics();
        let number = self.last_generation + 1;
        (self.last_generation, self.max_granted_position) = (number, start);
        self.term_log.record(number, self.term);
        self.branch_points.add(number, start);
        self.data_changes.iter_mut().for_each(|change| change.record_start(number, start));
        self.cancel_outdated_evaluation(start);
        self.move_committed(start, number, &source);
        self.delete_unfinished_checkpoints();

        let machine = |id: &WorkerId| Some((*id, self.members.get(*id)?.machine.clone()));
        let machines: Vec<_> = members.iter().filter_map(machine).collect();
        let (cause, term) = (self.last_end.reason.clone(), self.term);
        self.record(Record::Formed {
            generation: number,
            term,
            members: machines,
            cause,
            start,
            source: source.clone(),
        });
        self.send_rendezvous(number, &members, start, &source);
        self.generation = Some(Generation {
            number,
            step_tracker: StepTracker::new(&members, start),
            shares: (0, Vec::new()),
            initial_progress_count: self.progress_count,
            members,
            start,
            source,
            ready_members: BTreeSet::new(),
            granted: start,
            pending_boundary: None,
            halt_reason: None,
            step_merger: StepMerger::default(),
        });
        self.phase = RunPhase::Forming;
    }

    /// The furthest training state that is available, and its source. Several members may hold it;
    /// then a member that stays is preferred to one that leaves, then the one with the lowest id.
    /// If a checkpoint is further than all members, the source is the checkpoint. If there is
    /// neither, it is the seed.
    pub(super) fn select_start(&self) -> StartPoint {
        let is_usable = |position: &v1::Position| self.branch_points.is_current(position.into(), position.generation);
        let held_states = self.members.iter().filter_map(|(worker_id, member)| {
            let position = Position::from(member.position.as_ref().filter(|position| is_usable(position))?);
            Some((position, member.leave_reason.is_none(), std::cmp::Reverse(worker_id)))
        });
        let last_checkpoint = self.checkpoints.values().next_back();
        match (held_states.max(), last_checkpoint) {
            (Some((start, _, worker_id)), saved) if saved.is_none_or(|saved| saved.position <= start) => {
                StartPoint { start, source: StateSource::Member(worker_id.0) }
            }
            (_, Some(saved)) => {
                StartPoint { start: saved.position, source: StateSource::Checkpoint(saved.name.clone()) }
            }
            (_, None) => StartPoint { start: Position::default(), source: StateSource::Seed },
        }
    }

    /// Moves `committed` to the start of the next generation. It moves back if the state at
    /// `committed` is lost. It moves forward if members have applied steps whose reports or records
    /// were lost.
    fn move_committed(&mut self, start: Position, generation: u64, source: &StateSource) {
        // Needed even if no committed step is given up: the beginning of a stage may have been
        // evaluated although no step of the stage is committed.
        self.passed_boundaries.retain(|(position, _)| *position <= start);
        self.scores.retain(|position, _| *position <= start);
        let previous = self.committed;
        if start == previous {
            return;
        }
        let detail = json!({
            "from": { "stage": previous.stage, "step": previous.step },
            "to": { "stage": start.stage, "step": start.step },
            "generation": generation,
            "source": source.to_string(),
        });
        self.record_event(if start < previous { EventKind::RolledBack } else { EventKind::Adopted }, detail);
        self.cancel_save_beyond(start);
        self.committed = start;
        if start < previous || start.stage != previous.stage {
            self.restart_guard();
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
        let saved_checkpoint = self.checkpoints.values().find(|saved| saved.name == checkpoint);
        let (checkpoint_run_id, checkpoint_sha256) =
            saved_checkpoint.map(|saved| (saved.run_id.clone(), saved.parameters_sha256.clone())).unwrap_or_default();
        let sequence_start = data::sequence_start(&self.data_changes, start.stage, self.plan.stage(start));
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
                peers: reachability::peers_to_probe(&addresses, index),
                sequence_start: Some(sequence_start),
                term: self.term,
            };
            self.send(session, number, Directive::Rendezvous(rendezvous));
        }
    }

    /// Starts training when all members of the generation are ready.
    pub(super) fn try_start_training(&mut self, now: Time) {
        let Some(generation) = &self.generation else { return };
        if generation.ready_members.len() < generation.members.len() {
            return;
        }
        let generation = generation.number;
        self.phase = RunPhase::Running;
        self.record(Record::Ready { generation, recovery: self.last_end.is_failure });
        self.send_due_directives(now);
    }

    /// Whether a worker's message about generation `number` is about the generation that forms or
    /// runs. False if that generation has ended. Fails if it does not exist, or if it forms or runs
    /// and the worker is not in it.
    pub(super) fn is_current_generation(&self, worker_id: WorkerId, number: u64) -> Result<bool, ProtocolViolation> {
        if number > self.last_generation {
            return Err(ProtocolViolation::new(format!("generation {number} does not exist")));
        }
        let is_active = matches!(self.phase, RunPhase::Forming | RunPhase::Running);
        let state = self.members.get(worker_id).map(|member| member.state);
        match state {
            Some(MemberState::InGeneration(current)) if current == number => Ok(is_active),
            _ if is_active && number == self.last_generation => {
                Err(ProtocolViolation::new(format!("it is not in generation {number}")))
            }
            _ => Ok(false),
        }
    }

    /// Handles `Ready`: a member has finished the rendezvous.
    pub(super) fn handle_ready(&mut self, worker_id: WorkerId, ready: &v1::Ready) -> Result<(), ProtocolViolation> {
        if !self.is_current_generation(worker_id, ready.generation)? {
            return Ok(());
        }
        let Some(generation) = &mut self.generation else { return Ok(()) };
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
    pub(super) fn handle_idle(
        &mut self,
        now: Time,
        worker_id: WorkerId,
        idle: &v1::Idle,
    ) -> Result<(), ProtocolViolation> {
        if idle.generation > self.last_generation {
            return Err(ProtocolViolation::new(format!("generation {} does not exist", idle.generation)));
        }
        if let Some(reason) = idle.position.as_ref().and_then(|position| self.position_error(position)) {
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
        self.remove_from_save(now, worker_id, idle.saving);
        if was_in_generation {
            let halt_reason = self.generation.as_ref().and_then(|generation| generation.halt_reason.clone());
            let is_failure = halt_reason.is_none();
            let reason = halt_reason.unwrap_or_else(|| format!("worker {worker_id} released the generation"));
            self.end_generation(now, &reason, is_failure);
        }
        Ok(())
    }

    /// Handles `Failed`: a member reports a failure.
    pub(super) fn handle_failed(
        &mut self,
        now: Time,
        worker_id: WorkerId,
        failed: &v1::Failed,
    ) -> Result<(), ProtocolViolation> {
        if failed.generation > self.last_generation {
            return Err(ProtocolViolation::new(format!("generation {} does not exist", failed.generation)));
        }
        let reason = one_line(&failed.reason);
        let in_generation = MemberState::InGeneration(failed.generation);
        let is_current = matches!(self.phase, RunPhase::Forming | RunPhase::Running)
            && self.members.get(worker_id).is_some_and(|member| member.state == in_generation);
        if is_current && !failed.damaged_checkpoint.is_empty() {
            self.discard_damaged_checkpoint(worker_id, &failed.damaged_checkpoint, &reason)?;
        }
        self.record_unreachable(worker_id, failed);
        // In a generation that halts, other members may have released the collective first, so that
        // this member's collective operation has failed. That is not a failure of the run.
        let is_halting = self.generation.as_ref().is_some_and(|generation| generation.halt_reason.is_some());
        let must_fail = if failed.fatal {
            // A fatal failure counts even if the generation has ended already, because other
            // members have noticed the failure first.
            self.failure_counter.record(self.progress_count, failed.generation, &reason, failed.fatal)
        } else {
            let is_counted = is_current && !is_halting;
            is_counted && self.failure_counter.record(self.progress_count, failed.generation, &reason, failed.fatal)
        };
        let text = format!("worker {worker_id} failed: {reason}");
        if failed.fatal {
            let session = self.members.get(worker_id).map(|member| member.session);
            self.remove_member(now, worker_id, EventKind::Lost, &text);
            self.actions.extend(session.map(|session| Action::Close { session, refusal: None }));
        } else if is_current {
            // A member that reports a failure releases its generation by itself, so it gets no
            // Abandon directive.
            let state = MemberState::Releasing { generation: failed.generation, since: now };
            self.members.set_state(worker_id, state);
            self.end_generation(now, &text, !is_halting);
        }
        if must_fail && !matches!(self.phase, RunPhase::Over { .. }) {
            self.end_run(now, Outcome::Failed(format!("generations keep failing without progress: {text}")));
        }
        Ok(())
    }

    /// Ends the generation that forms or runs, if there is one: orders its members to abandon it.
    pub(super) fn end_generation(&mut self, now: Time, reason: &str, is_failure: bool) {
        let is_active = matches!(self.phase, RunPhase::Forming | RunPhase::Running);
        let Some(generation) = self.generation.as_mut().filter(|_| is_active) else { return };
        let number = generation.number;
        generation.pending_boundary = None;
        self.throughput.reset_timer();
        self.phase = RunPhase::Waiting;
        self.last_end = GenerationEnd { reason: reason.to_owned(), is_failure };
        for worker_id in generation.members.clone() {
            let in_generation = MemberState::InGeneration(number);
            let member = self.members.get(worker_id).filter(|member| member.state == in_generation);
            let Some(session) = member.map(|member| member.session) else { continue };
            self.members.set_state(worker_id, MemberState::Releasing { generation: number, since: now });
            self.send(session, number, Directive::Abandon(v1::Abandon { reason: reason.to_owned() }));
        }
        self.record(Record::Ended { generation: number, reason: reason.to_owned() });
    }

    /// Records the steps that only some members of the last generation reported.
    pub(super) fn flush_statistics(&mut self) {
        if let Some(generation) = &mut self.generation {
            let steps: Vec<_> = generation.step_merger.drain().collect();
            for step in steps {
                self.record_step(step);
            }
        }
    }
}
