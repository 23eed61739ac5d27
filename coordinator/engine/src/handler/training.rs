//! Training: grants steps, commits what the members report, and begins stages.

use std::collections::BTreeSet;

use config::Sharding;
use proto::{v1, v1::directive::Directive};

use crate::{
    membership::{MemberState, Membership},
    output::{Effect, Output},
    plan::Position,
    record::Record,
    settings::Settings,
    shares,
    state::{
        Measurements, State,
        generations::{Generation, Generations, PendingBoundary},
        history::History,
        stage::StageState,
    },
    statistics::StepStatistics,
    types::{Time, WorkerId},
    violation::ProtocolViolation,
};

/// How many of the next `steps` may be granted: up to `control.window` steps beyond those that all
/// members have reported. Returns 0 if that is less than half of `control.window` and less than
/// `steps`: fewer directives with more steps each cause less network traffic, and the members still
/// have granted steps to train.
#[must_use]
pub fn grantable_steps(settings: &Settings, generation: &Generation, steps: u64) -> u32 {
    let window = settings.file.control.window;
    let granted = generation.granted.step;
    let reported = generation.step_tracker.min_position().map_or(granted, |position| position.step);
    let grantable = reported.saturating_add(window.into()).saturating_sub(granted).min(u64::from(u32::MAX));
    let min_grant = u64::from(window.div_ceil(2)).min(steps);
    if grantable < min_grant { 0 } else { grantable.min(steps) as u32 }
}

/// Records the merged statistics of a step.
pub fn record_step(measurements: &mut Measurements, output: &mut Output, step: StepStatistics) {
    measurements.latest_step = Some(step.clone());
    output.record(Record::Step(step));
}

/// Records the steps that only some members of the last generation reported.
pub fn record_incomplete_steps(generations: &mut Generations, measurements: &mut Measurements, output: &mut Output) {
    if let Some(generation) = &mut generations.current {
        for step in generation.step_merger.drain() {
            record_step(measurements, output, step);
        }
    }
}

/// Orders the members to train, and receives their reports.
pub struct TrainingHandler<'a> {
    settings: &'a Settings,
    members: &'a mut Membership,
    generations: &'a mut Generations,
    history: &'a mut History,
    stage: &'a mut StageState,
    measurements: &'a mut Measurements,
    output: &'a mut Output,
}

impl<'a> TrainingHandler<'a> {
    pub fn new(state: &'a mut State, output: &'a mut Output) -> Self {
        let State { settings, members, generations, history, stage, measurements, .. } = state;
        Self { settings, members, generations, history, stage, measurements, output }
    }

    /// Grants this number of steps: sends each member its share of the batch.
    pub fn grant_steps(&mut self, steps: u32) {
        let Some(generation) = &mut self.generations.current else { return };
        let first = generation.granted;
        let sizes = share_sizes(self.settings, self.members, generation, self.history.plan.stage(first).batch);
        generation.granted = first.after(steps.into());
        self.history.max_granted_position = generation.granted;
        for (worker_id, share) in generation.members.iter().zip(shares::ranges(&sizes)) {
            let Some(member) = self.members.get(*worker_id) else { continue };
            let train = v1::Train {
                stage: first.stage,
                first_step: first.step,
                steps,
                share_begin: share.start,
                share_end: share.end,
            };
            self.output.send(member.session, generation.number, Directive::Train(train));
        }
    }

    /// Orders the members to enter a stage.
    pub fn begin_stage(&mut self, stage: u32) {
        let Some(generation) = &mut self.generations.current else { return };
        self.history.max_granted_position = Position { stage, step: 0 };
        generation.pending_boundary = Some(PendingBoundary::Advance { stage, advanced: BTreeSet::new() });
        for member in generation.members.iter().filter_map(|id| self.members.get(*id)) {
            self.output.send(member.session, generation.number, Directive::Advance(v1::Advance { stage }));
        }
    }

    /// Handles `StepDone`: a member has applied a step. The first report of a step commits it.
    ///
    /// # Errors
    /// The report is invalid, or the member was not ordered to train that step next.
    pub fn step_done(
        &mut self,
        now: Time,
        worker_id: WorkerId,
        report: &v1::StepDone,
    ) -> Result<(), ProtocolViolation> {
        let reported = report.position.ok_or_else(|| ProtocolViolation::new("a step without position"))?;
        let position = Position::from(&reported);
        self.generations.check_exists(reported.generation)?;
        if self.generations.is_over() || !is_of_last_generation(self.members, worker_id, reported.generation) {
            return Ok(());
        }
        let generation = self.generations.current.as_mut();
        let Some(generation) = generation.filter(|generation| generation.number == reported.generation) else {
            return Ok(());
        };
        let Some(previous) = generation.step_tracker.position_of(worker_id) else { return Ok(()) };
        if position != previous.after(1) || position > generation.granted {
            let granted = generation.granted;
            return Err(ProtocolViolation::new(format!(
                "it reported {position} after {previous}, with steps granted up to {granted}"
            )));
        }
        if report.samples > self.history.plan.stage(position).batch {
            let samples = report.samples;
            return Err(ProtocolViolation::new(format!(
                "it reported {samples} samples in a step, more than the batch"
            )));
        }
        let statistics = StepStatistics::from_report(worker_id, report, &reported)?;
        generation.step_tracker.advance(worker_id, position);
        if let Some(step) = generation.step_merger.add(generation.members.len(), statistics) {
            self.output.add_effect(Effect::StepMerged(Box::new(step)));
        }
        if let Some(member) = self.members.get_mut(worker_id) {
            member.position = Some(reported);
            member.record_step_timing(report);
        }
        self.commit(position);
        self.measurements.throughput.record_position(now, position);
        Ok(())
    }

    /// Handles `Advanced`: a member has entered a stage.
    ///
    /// # Errors
    /// The member was not ordered to enter that stage, or has not trained all granted steps.
    pub fn advanced(&mut self, worker_id: WorkerId, report: &v1::Advanced) -> Result<(), ProtocolViolation> {
        if !self.generations.is_current(self.members, worker_id, report.generation)? {
            return Ok(());
        }
        let Some(generation) = &mut self.generations.current else { return Ok(()) };
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

    /// Moves the committed position forward to this one.
    fn commit(&mut self, position: Position) {
        let is_new_stage = self.history.commit(position);
        if is_new_stage {
            self.stage.restart_guard(self.history);
        }
    }
}

/// Whether a member is in this generation, or still releases it. Reports of the last generation are
/// accepted after its end, until the next generation forms: the members have applied these steps.
fn is_of_last_generation(members: &Membership, worker_id: WorkerId, number: u64) -> bool {
    let state = members.get(worker_id).map(|member| member.state);
    match state {
        Some(MemberState::InGeneration(generation) | MemberState::Releasing { generation, .. }) => generation == number,
        Some(MemberState::Idle) | None => false,
    }
}

/// Updates and returns the number of samples of a batch for each rank of the generation.
fn share_sizes(settings: &Settings, members: &Membership, generation: &mut Generation, batch: u32) -> Vec<u32> {
    let (shared_batch, sizes) = &mut generation.shares;
    if *shared_batch != batch {
        (*shared_batch, *sizes) = (batch, shares::equal_sizes(batch, generation.members.len()));
    }
    if settings.file.control.sharding == Sharding::Proportional {
        let speeds = generation.members.iter().map(|id| members.get(*id)?.speed);
        if let Some(speeds) = speeds.collect::<Option<Vec<f64>>>() {
            *sizes = shares::rebalance(sizes, &speeds);
        }
    }
    sizes.clone()
}
