//! Progress of a running generation: grants steps, executes the plan's boundaries between them, and
//! commits what the members report.

use std::collections::{BTreeMap, BTreeSet};

use config::Sharding;
use proto::{v1, v1::directive::Directive};

use super::{
    Outcome, Phase, ProtocolViolation, Run, Time,
    captions::Images,
    generation::Generation,
    membership::MemberState,
    plan::{Next, Place},
    record::Record,
    shares,
    statistics::StepStatistics,
};

/// A boundary directive that was sent to the members, and the reports that are still missing.
#[derive(Debug)]
pub(super) enum PendingBoundary {
    /// The members write captions.
    Captions {
        /// The ranges of images that were assigned to each worker id and are not reported yet.
        asked: BTreeMap<u32, BTreeSet<Images>>,
    },
    /// The coordinator scores the captions; no member is involved.
    Scores,
    /// The members enter the next stage.
    Advance { stage: u32, done: BTreeSet<u32> },
}

impl Run {
    /// Sends directives for as long as the next one may be sent. Halts, ends or concludes the
    /// generation where that is due. Called after each event.
    pub(super) fn proceed(&mut self, now: Time) {
        while let Some(generation) = self.generation.as_ref().filter(|_| self.phase == Phase::Running) {
            let (granted, quiet) = (generation.granted, generation.quiet());
            let next = self.plan.next(granted, &self.done);
            let (halted, paused) = (generation.ending.clone(), self.paused.is_some());
            if halted.is_none()
                && (next != Next::Finish || paused)
                && let Some(reason) = self.reason_to_halt(generation)
            {
                self.halt(reason);
                continue;
            }
            // Scoring needs no member, and the next generation can use the scores: joining and
            // leaving members do not wait for it.
            let scoring = matches!(generation.awaiting, Some(PendingBoundary::Scores));
            if generation.awaiting.is_some() && !scoring {
                return;
            }
            if next == Next::Finish && !paused {
                if quiet && self.saving.is_none() {
                    self.conclude(now, Outcome::Finished);
                }
                return;
            }
            if self.stopping {
                // If the state cannot be saved, the operator has been told, and the last checkpoint
                // has to do.
                if quiet && (self.unsaved.is_some() || self.secured(granted)) {
                    self.conclude(now, Outcome::Stopped);
                }
                return;
            }
            if let Some(reason) = halted {
                if quiet {
                    self.end_generation(now, &reason, false);
                }
                return;
            }
            if self.unsaved.is_some() {
                if quiet && self.save_again(now, granted) {
                    continue;
                }
                return;
            }
            if self.only_saves(generation) {
                if self.secured(granted) && quiet {
                    self.end_generation(now, "all members leave", false);
                }
                return;
            }
            if paused {
                self.secured(granted);
                return;
            }
            if scoring || !self.advance(granted, next) {
                return;
            }
        }
    }

    /// Sends the directive that comes next at `granted`. Returns false if it cannot be sent yet.
    fn advance(&mut self, granted: Place, next: Next) -> bool {
        // Only one checkpoint is saved at a time. Where a stage may end with the state that is
        // being saved, training waits for the save.
        let saving = self.saving.as_ref().map(|saving| saving.place);
        match next {
            Next::Train { .. } if saving == Some(granted) && self.plan.stage(granted).metric.is_some() => return false,
            Next::Train { steps } => {
                let Some(generation) = &self.generation else { return false };
                let steps = self.grantable(generation, steps);
                if steps == 0 {
                    return false;
                }
                self.grant(steps);
            }
            Next::Checkpoint | Next::Advance { .. } if saving.is_some() => return false,
            Next::Checkpoint => self.place_checkpoint(granted),
            Next::Evaluate => self.evaluate(granted),
            Next::Advance { stage } => {
                let awaiting = PendingBoundary::Advance { stage, done: BTreeSet::new() };
                self.horizon = Place { stage, step: 0 };
                self.place(awaiting, &Directive::Advance(v1::Advance { stage }));
            }
            Next::Finish => unreachable!("the caller deals with it"),
        }
        true
    }

    /// How many of the next `steps` may be granted: up to `control.window` steps beyond those that
    /// all members have reported. Members train in step_tracker, so only their reports can be late.
    /// Returns 0 if less than half a window is open, because a directive for every step would only
    /// add traffic.
    fn grantable(&self, generation: &Generation, steps: u64) -> u32 {
        let window = self.file.control.window;
        let granted = generation.granted.step;
        let reported = generation.step_tracker.last().map_or(granted, |last| last.step);
        let open = reported.saturating_add(window.into()).saturating_sub(granted).min(u64::from(u32::MAX));
        let enough = u64::from(window.div_ceil(2)).min(steps);
        if open < enough { 0 } else { open.min(steps) as u32 }
    }

    fn grant(&mut self, steps: u32) {
        let Some(from) = self.generation.as_ref().map(|generation| generation.granted) else { return };
        let shares: Vec<_> = shares::ranges(&self.shares(self.plan.stage(from).batch)).collect();
        if let Some(generation) = &mut self.generation {
            generation.granted = from.after(steps.into());
            self.horizon = generation.granted;
        }
        self.tell(|index, _| {
            let share = shares.get(index as usize).cloned().unwrap_or_default();
            Directive::Train(v1::Train {
                stage: from.stage,
                first_step: from.step,
                steps,
                share_begin: share.start,
                share_end: share.end,
            })
        });
    }

    /// The number of samples of a batch for each rank of the generation.
    fn shares(&mut self, batch: u32) -> Vec<u32> {
        let Some(generation) = &mut self.generation else { return Vec::new() };
        let (of, sizes) = &mut generation.shares;
        if *of != batch {
            (*of, *sizes) = (batch, shares::even(batch, generation.members.len()));
        }
        if self.file.control.sharding == Sharding::Proportional {
            let speeds = generation.members.iter().map(|rank| self.members.get(*rank)?.speed);
            if let Some(speeds) = speeds.collect::<Option<Vec<f64>>>() {
                *sizes = shares::follow(sizes, &speeds);
            }
        }
        sizes.clone()
    }

    /// Sends a boundary directive to all members, and waits for their reports.
    pub(super) fn place(&mut self, awaiting: PendingBoundary, directive: &Directive) {
        if let Some(generation) = &mut self.generation {
            generation.awaiting = Some(awaiting);
        }
        self.tell(|_, _| directive.clone());
    }

    /// Sends a directive to all members of the generation. The closure gets the member's rank in
    /// the generation and the world size.
    pub(super) fn tell(&mut self, directive: impl Fn(u32, u32) -> Directive) {
        let Some(generation) = &self.generation else { return };
        let (number, ranks) = (generation.number, generation.members.clone());
        for (index, rank) in (0..).zip(&ranks) {
            if let Some(session) = self.members.get(*rank).map(|member| member.session) {
                self.send(session, number, directive(index, ranks.len() as u32));
            }
        }
    }

    pub(super) fn next_directive(&mut self) -> u64 {
        self.last_directive += 1;
        self.last_directive
    }

    // ------------------------------------------------------------------------------------------------------- steps

    pub(super) fn step_done(&mut self, now: Time, rank: u32, report: &v1::StepDone) -> Result<(), ProtocolViolation> {
        let position = report.position.ok_or("a step without position")?;
        let place = Place::from(&position);
        if position.generation > self.last_generation {
            return Err(format!("generation {} does not exist", position.generation));
        }
        // Reports of the generation that ended last are accepted until the next one forms: those
        // steps are applied.
        let standing = self.members.get(rank).map(|member| member.standing);
        let own = match standing {
            Some(MemberState::In(generation) | MemberState::LettingGo { generation, .. }) => generation,
            _ => return Ok(()),
        };
        let generation = self.generation.as_mut().filter(|generation| generation.number == position.generation);
        let Some(generation) = generation.filter(|_| own == position.generation) else { return Ok(()) };
        let Some(reached) = generation.step_tracker.of(rank) else { return Ok(()) };
        if matches!(self.phase, Phase::Over { .. }) {
            return Ok(());
        }
        if place != reached.after(1) || place > generation.granted {
            let granted = generation.granted;
            return Err(format!("reported {place} after {reached}, with steps granted up to {granted}"));
        }
        if report.samples > self.plan.stage(place).batch {
            return Err(format!("{} samples in a step", report.samples));
        }
        let read = StepStatistics::read(rank, report, &position)?;
        generation.step_tracker.advance(rank, place);
        let whole = generation.merger.add(generation.members.len(), read);
        if let Some(member) = self.members.get_mut(rank) {
            member.position = Some(position);
            member.measure(report);
        }
        self.commit(place);
        self.throughput.reached(now, place);
        if let Some(step) = whole {
            self.guard_step(&step);
            self.record_step(step);
        }
        Ok(())
    }

    fn commit(&mut self, place: Place) {
        if place > self.committed {
            let entered = place.stage != self.committed.stage;
            self.committed = place;
            self.progress += 1;
            if entered {
                self.watch();
            }
        }
    }

    pub(super) fn record_step(&mut self, step: StepStatistics) {
        self.latest = Some(step.clone());
        self.record(Record::Step(step));
    }

    pub(super) fn advanced(&mut self, rank: u32, advanced: &v1::Advanced) -> Result<(), ProtocolViolation> {
        if !self.is_current(rank, advanced.generation)? {
            return Ok(());
        }
        let Some(generation) = &mut self.generation else { return Ok(()) };
        let (number, world) = (generation.number, generation.members.len());
        let Some(PendingBoundary::Advance { stage, done }) = &mut generation.awaiting else {
            return Err("it advanced to a stage unasked".into());
        };
        if *stage != advanced.stage || generation.step_tracker.of(rank) != Some(generation.granted) {
            return Err(format!("it advanced to stage {} instead of {stage}, or too early", advanced.stage));
        }
        done.insert(rank);
        let place = Place { stage: *stage, step: 0 };
        if done.len() == world {
            generation.awaiting = None;
            generation.granted = place;
            generation.step_tracker.set_all(place);
        }
        if let Some(member) = self.members.get_mut(rank) {
            member.position = Some(place.in_generation(number));
        }
        self.commit(place);
        Ok(())
    }
}
