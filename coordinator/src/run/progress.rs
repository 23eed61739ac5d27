//! Progress of a running generation: grants steps, executes the plan's boundaries between them, and
//! commits what the members report.

use std::collections::{BTreeMap, BTreeSet};

use config::Sharding;
use proto::{v1, v1::directive::Directive};

use super::{
    Outcome, ProtocolViolation, Rank, Run, RunPhase, Time, WorkerId,
    captions::ImageRange,
    generation::Generation,
    membership::MemberState,
    plan::{NextAction, Position},
    record::Record,
    shares,
    statistics::StepStatistics,
};

/// An evaluation or a stage change that is in progress, and the reports that are still missing.
#[derive(Debug)]
pub(super) enum PendingBoundary {
    /// An evaluation: the members caption images.
    Captions {
        /// The ranges of images that were assigned to each member and are not reported yet.
        pending: BTreeMap<WorkerId, BTreeSet<ImageRange>>,
    },
    /// An evaluation: the coordinator scores the captions, and the members wait.
    Scores,
    /// A stage change: the members enter the next stage.
    Advance {
        /// The number of the next stage.
        stage: u32,
        /// The members that have reported that they have entered it.
        advanced: BTreeSet<WorkerId>,
    },
}

impl Run {
    /// Sends the directives that are due. Halts or ends the generation, or ends the run, if that is
    /// due. Called after each event while a generation runs.
    pub(super) fn send_due_directives(&mut self, now: Time) {
        while let Some(generation) = self.generation.as_ref().filter(|_| self.phase == RunPhase::Running) {
            let (granted, are_all_reported) = (generation.granted, generation.all_steps_reported());
            let next = self.plan.next_action(granted, &self.passed_boundaries);
            let (halt_reason, is_paused) = (generation.halt_reason.clone(), self.pause_reason.is_some());
            if halt_reason.is_none()
                && (next != NextAction::Finish || is_paused)
                && let Some(reason) = self.reason_to_halt(generation)
            {
                self.halt_generation(reason);
                continue;
            }
            // Scoring needs no member, and the next generation can use the scores: joining and
            // leaving members do not wait for it.
            let is_scoring = matches!(generation.pending_boundary, Some(PendingBoundary::Scores));
            if generation.pending_boundary.is_some() && !is_scoring {
                return;
            }
            if next == NextAction::Finish && !is_paused {
                if are_all_reported && self.saving.is_none() {
                    self.end_run(now, Outcome::Finished);
                }
                return;
            }
            if self.stop_requested {
                // If the state cannot be saved, the coordinator stops nevertheless: the operator
                // sees the reason, and the next coordinator process resumes from the last
                // checkpoint.
                if are_all_reported && (self.failed_save.is_some() || self.ensure_saved(granted)) {
                    self.end_run(now, Outcome::Stopped);
                }
                return;
            }
            if let Some(reason) = halt_reason {
                if are_all_reported {
                    let is_failure = false;
                    self.end_generation(now, &reason, is_failure);
                }
                return;
            }
            if self.failed_save.is_some() {
                if are_all_reported && self.retry_save(now, granted) {
                    continue;
                }
                return;
            }
            if self.is_save_only(generation) {
                if self.ensure_saved(granted) && are_all_reported {
                    let is_failure = false;
                    self.end_generation(now, "all members leave", is_failure);
                }
                return;
            }
            if is_paused {
                self.ensure_saved(granted);
                return;
            }
            if is_scoring || !self.send_next_directive(granted, next) {
                return;
            }
        }
    }

    /// Sends the directive for the plan's next action at `granted`. Returns false if it cannot be
    /// sent yet.
    fn send_next_directive(&mut self, granted: Position, next: NextAction) -> bool {
        // Only one checkpoint is saved at a time. In a stage with a metric, training also waits for
        // the save, because the stage may end with the state that is being saved.
        let saving_position = self.saving.as_ref().map(|saving| saving.position);
        let has_metric = self.plan.stage(granted).metric.is_some();
        match next {
            NextAction::Train { .. } if saving_position == Some(granted) && has_metric => return false,
            NextAction::Train { steps } => {
                let Some(generation) = &self.generation else { return false };
                let steps = self.grantable_steps(generation, steps);
                if steps == 0 {
                    return false;
                }
                self.grant_steps(steps);
            }
            NextAction::Checkpoint | NextAction::Advance { .. } if saving_position.is_some() => return false,
            NextAction::Checkpoint => self.start_save(granted),
            NextAction::Evaluate => self.start_evaluation(granted),
            NextAction::Advance { stage } => {
                self.max_granted_position = Position { stage, step: 0 };
                let boundary = PendingBoundary::Advance { stage, advanced: BTreeSet::new() };
                self.send_boundary(boundary, &Directive::Advance(v1::Advance { stage }));
            }
            NextAction::Finish => unreachable!("send_due_directives ends the run"),
        }
        true
    }

    /// How many of the next `steps` may be granted: up to `control.window` steps beyond those that
    /// all members have reported. Returns 0 if that is less than half of `control.window` and less
    /// than `steps`: fewer directives with more steps each cause less network traffic, and the
    /// members still have granted steps to train.
    fn grantable_steps(&self, generation: &Generation, steps: u64) -> u32 {
        let window = self.file.control.window;
        let granted = generation.granted.step;
        let reported = generation.step_tracker.min_position().map_or(granted, |position| position.step);
        let grantable = reported.saturating_add(window.into()).saturating_sub(granted).min(u64::from(u32::MAX));
        let min_grant = u64::from(window.div_ceil(2)).min(steps);
        if grantable < min_grant { 0 } else { grantable.min(steps) as u32 }
    }

    /// Grants this number of steps: sends each member its share of the batch.
    fn grant_steps(&mut self, steps: u32) {
        let Some(from) = self.generation.as_ref().map(|generation| generation.granted) else { return };
        let shares: Vec<_> = shares::ranges(&self.share_sizes(self.plan.stage(from).batch)).collect();
        if let Some(generation) = &mut self.generation {
            generation.granted = from.after(steps.into());
            self.max_granted_position = generation.granted;
        }
        self.broadcast(|rank, _| {
            let share = shares.get(rank.index()).cloned().unwrap_or_default();
            Directive::Train(v1::Train {
                stage: from.stage,
                first_step: from.step,
                steps,
                share_begin: share.start,
                share_end: share.end,
            })
        });
    }

    /// Updates and returns the number of samples of a batch for each rank of the generation.
    fn share_sizes(&mut self, batch: u32) -> Vec<u32> {
        let Some(generation) = &mut self.generation else { return Vec::new() };
        let (shared_batch, sizes) = &mut generation.shares;
        if *shared_batch != batch {
            (*shared_batch, *sizes) = (batch, shares::equal_sizes(batch, generation.members.len()));
        }
        if self.file.control.sharding == Sharding::Proportional {
            let speeds = generation.members.iter().map(|id| self.members.get(*id)?.speed);
            if let Some(speeds) = speeds.collect::<Option<Vec<f64>>>() {
                *sizes = shares::rebalance(sizes, &speeds);
            }
        }
        sizes.clone()
    }

    /// Sends the directive of a boundary to all members. No steps are granted until the boundary is
    /// complete.
    pub(super) fn send_boundary(&mut self, boundary: PendingBoundary, directive: &Directive) {
        if let Some(generation) = &mut self.generation {
            generation.pending_boundary = Some(boundary);
        }
        self.broadcast(|_, _| directive.clone());
    }

    /// Sends a directive to all members of the generation. The closure gets the member's rank and
    /// the world size.
    pub(super) fn broadcast(&mut self, directive: impl Fn(Rank, u32) -> Directive) {
        let Some(generation) = &self.generation else { return };
        let (number, members) = (generation.number, generation.members.clone());
        for (rank, worker_id) in (0..).map(Rank).zip(&members) {
            if let Some(session) = self.members.get(*worker_id).map(|member| member.session) {
                self.send(session, number, directive(rank, members.len() as u32));
            }
        }
    }

    /// A new number for an evaluation or checkpoint directive.
    pub(super) fn next_directive_number(&mut self) -> u64 {
        self.last_directive += 1;
        self.last_directive
    }

    /// Handles `StepDone`: a member has applied a step. The first report of a step commits it.
    pub(super) fn handle_step_done(
        &mut self,
        now: Time,
        worker_id: WorkerId,
        report: &v1::StepDone,
    ) -> Result<(), ProtocolViolation> {
        let reported = report.position.ok_or_else(|| ProtocolViolation::new("a step without position"))?;
        let position = Position::from(&reported);
        if reported.generation > self.last_generation {
            return Err(ProtocolViolation::new(format!("generation {} does not exist", reported.generation)));
        }
        // Reports of the last generation are accepted after its end, until the next generation
        // forms: the members have applied these steps.
        let state = self.members.get(worker_id).map(|member| member.state);
        let Some(
            MemberState::InGeneration(member_generation) | MemberState::Releasing { generation: member_generation, .. },
        ) = state
        else {
            return Ok(());
        };
        let generation = self.generation.as_mut().filter(|generation| generation.number == reported.generation);
        let Some(generation) = generation.filter(|_| member_generation == reported.generation) else { return Ok(()) };
        let Some(previous) = generation.step_tracker.position_of(worker_id) else { return Ok(()) };
        if matches!(self.phase, RunPhase::Over { .. }) {
            return Ok(());
        }
        if position != previous.after(1) || position > generation.granted {
            let granted = generation.granted;
            return Err(ProtocolViolation::new(format!(
                "it reported {position} after {previous}, with steps granted up to {granted}"
            )));
        }
        if report.samples > self.plan.stage(position).batch {
            return Err(ProtocolViolation::new(format!(
                "it reported {} samples in a step, more than the batch",
                report.samples
            )));
        }
        let statistics = StepStatistics::from_report(worker_id, report, &reported)?;
        generation.step_tracker.advance(worker_id, position);
        let merged = generation.step_merger.add(generation.members.len(), statistics);
        if let Some(member) = self.members.get_mut(worker_id) {
            member.position = Some(reported);
            member.record_step_timing(report);
        }
        self.commit(position);
        self.throughput.record_position(now, position);
        if let Some(step) = merged {
            self.check_step(&step);
            self.record_step(step);
        }
        Ok(())
    }

    /// Moves `committed` forward to this position.
    fn commit(&mut self, position: Position) {
        if position > self.committed {
            let is_new_stage = position.stage != self.committed.stage;
            self.committed = position;
            self.progress_count += 1;
            if is_new_stage {
                self.restart_guard();
            }
        }
    }

    /// Records the merged statistics of a step.
    pub(super) fn record_step(&mut self, step: StepStatistics) {
        self.latest_step = Some(step.clone());
        self.record(Record::Step(step));
    }

    /// Handles `Advanced`: a member has entered a stage.
    pub(super) fn handle_advanced(
        &mut self,
        worker_id: WorkerId,
        report: &v1::Advanced,
    ) -> Result<(), ProtocolViolation> {
        if !self.is_current_generation(worker_id, report.generation)? {
            return Ok(());
        }
        let Some(generation) = &mut self.generation else { return Ok(()) };
        let (number, world_size) = (generation.number, generation.members.len());
        let Some(PendingBoundary::Advance { stage, advanced }) = &mut generation.pending_boundary else {
            return Err(ProtocolViolation::new("it advanced to a stage without a directive"));
        };
        if *stage != report.stage || generation.step_tracker.position_of(worker_id) != Some(generation.granted) {
            return Err(ProtocolViolation::new(format!(
                "it advanced to stage {} instead of {stage}, or too early",
                report.stage
            )));
        }
        advanced.insert(worker_id);
        let position = Position { stage: *stage, step: 0 };
        if advanced.len() == world_size {
            generation.pending_boundary = None;
            generation.granted = position;
            generation.step_tracker.set_all(position);
        }
        if let Some(member) = self.members.get_mut(worker_id) {
            member.position = Some(position.in_generation(number));
        }
        self.commit(position);
        Ok(())
    }
}
