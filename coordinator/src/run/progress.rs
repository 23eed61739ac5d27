//! Progress of a running generation: what is granted, what is committed, and the boundaries in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, Outcome, Phase, Run, Time, Violation,
    evaluation::{Evaluation, Item},
    generation::Generation,
    membership::Standing,
    plan::{self, Boundary, Next, Place},
    record::{Checkpoint, Happening, Record},
    statistics::StepStatistics,
};

/// So many windows may the slowest member's reports be behind what is granted. Members train in lockstep, so only their
/// reports can be late; the bound keeps one that never reports from making the coordinator remember without end.
const WINDOWS_BEHIND: u64 = 4;
/// Longest hash that a worker may report, in bytes: SHA-256 as hex has 64.
const LONGEST_HASH: usize = 128;

/// A boundary directive that was sent and that not all members have reported.
#[derive(Debug)]
pub(super) enum Awaiting {
    /// A checkpoint is being written.
    Checkpoint {
        number: u64,
        place: Place,
        path: PathBuf,
        /// Hash of the parameters, by rank.
        hashes: BTreeMap<u32, String>,
    },
    /// Captions are being written.
    Captions(Evaluation),
    /// Captions are being scored.
    Scores { evaluation: u64, place: Place },
    /// The next stage is being entered.
    Advance { stage: u32, done: BTreeSet<u32> },
}

impl Run {
    /// Sends what comes next, as far as it may be sent by now.
    pub(super) fn proceed(&mut self, now: Time) {
        loop {
            let Some(generation) = self.generation.as_ref().filter(|_| self.phase == Phase::Running) else { return };
            if generation.awaiting.is_some() {
                return;
            }
            let granted = generation.granted;
            let next = self.plan.next(granted, &self.done);
            if next == Next::Finish {
                if generation.quiet() {
                    self.conclude(now, Outcome::Finished);
                }
                return;
            }
            if self.stopping {
                let saved = granted == Place::default() || self.done.contains(&(granted, Boundary::Checkpoint));
                if !saved {
                    self.place_checkpoint(granted);
                } else if generation.quiet() {
                    self.conclude(now, Outcome::Stopped);
                }
                return;
            }
            if let Some(reason) = &generation.ending {
                if generation.quiet() {
                    let reason = reason.clone();
                    self.end_generation(now, &reason, false);
                }
                return;
            }
            match next {
                Next::Train { steps } => {
                    let steps = self.grantable(generation, steps);
                    if steps == 0 {
                        return;
                    }
                    self.grant(steps);
                }
                Next::Checkpoint => self.place_checkpoint(granted),
                Next::Evaluate => {
                    let number = self.next_directive();
                    let awaiting = Awaiting::Captions(Evaluation::new(number, granted));
                    self.place(awaiting, &Directive::Evaluate(v1::Evaluate { evaluation: number }));
                }
                Next::Advance { stage } => {
                    let awaiting = Awaiting::Advance { stage, done: BTreeSet::new() };
                    self.place(awaiting, &Directive::Advance(v1::Advance { stage }));
                }
                Next::Finish => unreachable!("handled above"),
            }
        }
    }

    /// How many of the next `steps` may be granted. None as long as it is less than half a window: a directive for every
    /// step would only make noise.
    fn grantable(&self, generation: &Generation, steps: u64) -> u32 {
        let window = self.file.control.window;
        let granted = generation.granted.step;
        let slowest = generation.progress.values().map(|place| place.step).min().unwrap_or(granted);
        let committed = self.committed.step.saturating_add(window.into());
        let limit = committed.min(slowest.saturating_add(WINDOWS_BEHIND * u64::from(window)));
        let open = limit.saturating_sub(granted).min(u64::from(u32::MAX));
        let enough = u64::from(window.div_ceil(2)).min(steps);
        if open < enough { 0 } else { open.min(steps) as u32 }
    }

    fn grant(&mut self, steps: u32) {
        let Some(generation) = &mut self.generation else { return };
        let from = generation.granted;
        generation.granted = from.after(steps.into());
        let (number, ranks) = (generation.number, generation.members.clone());
        let batch = self.plan.stage(from).batch;
        for (index, rank) in ranks.iter().enumerate() {
            let share = plan::share(batch, ranks.len() as u32, index as u32);
            let train = v1::Train {
                stage: from.stage,
                first_step: from.step,
                steps,
                share_begin: share.start,
                share_end: share.end,
            };
            if let Some(session) = self.members.get(*rank).map(|member| member.session) {
                self.send(session, number, Directive::Train(train));
            }
        }
    }

    /// Sends a boundary directive to all members, and waits for them.
    fn place(&mut self, awaiting: Awaiting, directive: &Directive) {
        let Some(generation) = &mut self.generation else { return };
        generation.awaiting = Some(awaiting);
        let (number, ranks) = (generation.number, generation.members.clone());
        for rank in ranks {
            if let Some(session) = self.members.get(rank).map(|member| member.session) {
                self.send(session, number, directive.clone());
            }
        }
    }

    fn next_directive(&mut self) -> u64 {
        self.last_directive += 1;
        self.last_directive
    }

    // ------------------------------------------------------------------------------------------------------- steps

    pub(super) fn step_done(&mut self, rank: u32, report: &v1::StepDone) -> Result<(), Violation> {
        let position = report.position.ok_or("a step without position")?;
        let place = Place::from(&position);
        if position.generation > self.last_generation {
            return Err(format!("generation {} does not exist", position.generation));
        }
        // Reports of the generation that ended last are welcome until the next one forms: those steps are applied.
        let standing = self.members.get(rank).map(|member| member.standing);
        let own = match standing {
            Some(Standing::In(generation) | Standing::LettingGo { generation, .. }) => generation,
            _ => return Ok(()),
        };
        let generation = self.generation.as_mut().filter(|generation| generation.number == position.generation);
        let Some(generation) = generation.filter(|_| own == position.generation) else { return Ok(()) };
        let Some(reached) = generation.progress.get_mut(&rank) else { return Ok(()) };
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
        let report = StepStatistics::read(report, &position)?;
        *reached = place;
        let whole = generation.merger.add(generation.members.len(), report);
        if let Some(member) = self.members.get_mut(rank) {
            member.position = Some(position);
        }
        self.commit(place);
        if let Some(step) = whole {
            self.record_step(step);
        }
        Ok(())
    }

    fn commit(&mut self, place: Place) {
        if place > self.committed {
            self.committed = place;
            self.progress += 1;
        }
    }

    pub(super) fn record_step(&mut self, step: StepStatistics) {
        self.latest = Some(step.clone());
        self.record(Record::Step(step));
    }

    pub(super) fn advanced(&mut self, rank: u32, advanced: &v1::Advanced) -> Result<(), Violation> {
        if !self.is_current(rank, advanced.generation)? {
            return Ok(());
        }
        let Some(generation) = &mut self.generation else { return Ok(()) };
        let (number, world) = (generation.number, generation.members.len());
        let Some(Awaiting::Advance { stage, done }) = &mut generation.awaiting else {
            return Err("it advanced to a stage unasked".into());
        };
        if *stage != advanced.stage || generation.progress.get(&rank) != Some(&generation.granted) {
            return Err(format!("it advanced to stage {} instead of {stage}, or too early", advanced.stage));
        }
        done.insert(rank);
        let place = Place { stage: *stage, step: 0 };
        if done.len() == world {
            generation.awaiting = None;
            generation.granted = place;
            generation.progress.values_mut().for_each(|reached| *reached = place);
        }
        if let Some(member) = self.members.get_mut(rank) {
            member.position = Some(place.in_generation(number));
        }
        self.commit(place);
        Ok(())
    }

    // -------------------------------------------------------------------------------------------------- checkpoints

    fn place_checkpoint(&mut self, place: Place) {
        let number = self.next_directive();
        let stage = &self.plan.stage(place).name;
        let folder = format!("{}-{stage}-{:08}", place.stage, place.step);
        let path = self.file.output.join("checkpoints").join(folder);
        let directive = v1::Checkpoint { checkpoint: number, path: path.to_string_lossy().into_owned() };
        let awaiting = Awaiting::Checkpoint { number, place, path, hashes: BTreeMap::new() };
        self.place(awaiting, &Directive::Checkpoint(directive));
    }

    pub(super) fn checkpoint_done(
        &mut self,
        now: Time,
        rank: u32,
        report: v1::CheckpointDone,
    ) -> Result<(), Violation> {
        if !self.is_current(rank, report.generation)? {
            return Ok(());
        }
        let hash = report.parameters_sha256;
        if hash.is_empty() || hash.len() > LONGEST_HASH {
            return Err("a checkpoint without a hash of the parameters".into());
        }
        let Some(generation) = &mut self.generation else { return Ok(()) };
        let world = generation.members.len();
        let Some(Awaiting::Checkpoint { number, place, path, hashes }) = &mut generation.awaiting else {
            return Err("a checkpoint that was not asked for".into());
        };
        if *number != report.checkpoint || generation.progress.get(&rank) != Some(place) {
            return Err(format!("checkpoint {} instead of {number}, or too early", report.checkpoint));
        }
        hashes.insert(rank, hash);
        if hashes.len() < world {
            return Ok(());
        }
        let (place, path, hashes) = (*place, std::mem::take(path), std::mem::take(hashes));
        let generation_number = generation.number;
        generation.awaiting = None;
        let hash = hashes.values().next().cloned().unwrap_or_default();
        if hashes.values().any(|other| *other != hash) {
            let list: Vec<String> = hashes.iter().map(|(rank, hash)| format!("rank {rank} {}", one(hash))).collect();
            let reason = format!("the ranks' parameters differ at {place}: {}", list.join(", "));
            self.event(Happening::Diverged, json!({ "stage": place.stage, "step": place.step, "hashes": hashes }));
            self.conclude(now, Outcome::Failed(reason));
            return Ok(());
        }
        self.done.insert((place, Boundary::Checkpoint));
        self.progress += 1;
        let saved = Checkpoint { place, generation: generation_number, path, parameters_sha256: hash };
        self.checkpoints.insert(place, saved.clone());
        self.record(Record::Saved(saved));
        self.retire_checkpoints();
        Ok(())
    }

    /// Deletes what is neither among the newest checkpoints nor the last of its stage.
    fn retire_checkpoints(&mut self) {
        let keep = self.file.control.keep_checkpoints as usize;
        let newest: BTreeSet<Place> = self.checkpoints.keys().rev().take(keep).copied().collect();
        let last: BTreeMap<u32, Place> = self.checkpoints.keys().map(|place| (place.stage, *place)).collect();
        let kept = |place: &Place| newest.contains(place) || last.get(&place.stage) == Some(place);
        let retired: Vec<Place> = self.checkpoints.keys().filter(|place| !kept(place)).copied().collect();
        for checkpoint in retired.iter().filter_map(|place| self.checkpoints.remove(place)).collect::<Vec<_>>() {
            self.record(Record::Deleted(checkpoint.path.clone()));
            self.actions.push(Action::DeleteCheckpoint(checkpoint.path));
        }
    }

    // -------------------------------------------------------------------------------------------------- evaluations

    /// The evaluation that a message of `rank` is about; none if the message is of an older generation.
    fn evaluation(&mut self, rank: u32, number: u64, evaluation: u64) -> Result<Option<&mut Evaluation>, Violation> {
        if !self.is_current(rank, number)? {
            return Ok(None);
        }
        match self.generation.as_mut().and_then(|generation| generation.awaiting.as_mut()) {
            Some(Awaiting::Captions(awaited)) if awaited.number == evaluation => Ok(Some(awaited)),
            _ => Err(format!("evaluation {evaluation} is not under way")),
        }
    }

    pub(super) fn evaluation_items(&mut self, rank: u32, items: v1::EvaluationItems) -> Result<(), Violation> {
        match self.evaluation(rank, items.generation, items.evaluation)? {
            Some(evaluation) => evaluation.add(rank, items.items),
            None => Ok(()),
        }
    }

    pub(super) fn evaluation_done(&mut self, rank: u32, done: &v1::EvaluationDone) -> Result<(), Violation> {
        let Some(evaluation) = self.evaluation(rank, done.generation, done.evaluation)? else { return Ok(()) };
        evaluation.done(rank);
        let (number, place) = (evaluation.number, evaluation.place);
        let Some(generation) = &mut self.generation else { return Ok(()) };
        let world = generation.members.len();
        if let Some(Awaiting::Captions(evaluation)) = generation.awaiting.take_if(|awaiting| match awaiting {
            Awaiting::Captions(evaluation) => evaluation.complete(world),
            _ => false,
        }) {
            generation.awaiting = Some(Awaiting::Scores { evaluation: number, place });
            let (items, duplicates) = evaluation.into_items();
            if duplicates > 0 {
                let detail = json!({ "stage": place.stage, "step": place.step, "duplicates": duplicates });
                self.event(Happening::Duplicates, detail);
            }
            self.actions.push(Action::Score { evaluation: number, items });
        }
        Ok(())
    }

    pub(super) fn scored(&mut self, number: u64, metrics: BTreeMap<String, f64>, items: Vec<Item>) {
        let Some(generation) = &mut self.generation else { return };
        let scores = generation
            .awaiting
            .take_if(|awaiting| matches!(awaiting, Awaiting::Scores { evaluation, .. } if *evaluation == number));
        // None: the generation ended meanwhile, and the next one evaluates again.
        let Some(Awaiting::Scores { place, .. }) = scores else { return };
        let generation = generation.number;
        self.done.insert((place, Boundary::Evaluation));
        self.progress += 1;
        self.record(Record::Evaluated { place, generation, metrics, items });
    }
}

/// A hash as text that cannot do harm in a log.
fn one(hash: &str) -> String {
    hash.escape_debug().to_string()
}
