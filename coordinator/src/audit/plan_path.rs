//! Audit of the path through the plan: each generation starts at the position that the run has
//! reached, or the journal records which steps it gave up or adopted. The steps of a generation are
//! consecutive. A finished run has reached the end of the plan.

use std::collections::BTreeMap;

use config::RunFile;
use dico_engine::{
    plan::{Plan, Position, SelectedSteps},
    record::EventKind,
};

use super::{event_detail::position_of, recovery_start::RecoveryStart};
use crate::journal::read_only::{Event, Generation, Step};

/// Finds the problems, in the order of the run.
pub(super) fn path_problems(
    file: &RunFile,
    generations: &[Generation],
    steps: &[Step],
    events: &[Event],
    recovered: Option<&RecoveryStart>,
) -> Vec<String> {
    let mut path = PathCheck {
        plan: Plan::new(file, selected_steps(events)),
        jumps: jumps(events),
        ends_by_generation: positions_by_generation(events, EventKind::StageEndedEarly),
        problems: unknown_kinds(events),
    };
    let first_generation = recovered.map_or(1, |recovered| recovered.generation);
    let mut reached = recovered.map_or_else(Position::default, |recovered| recovered.position);
    let mut steps_by_generation: BTreeMap<u64, Vec<Position>> = BTreeMap::new();
    steps.iter().for_each(|step| steps_by_generation.entry(step.generation).or_default().push(step.position));
    for (number, generation) in (first_generation..).zip(generations) {
        if generation.number != number {
            path.problems.push(format!("generation {number} is missing"));
            break;
        }
        path.check_start(generation, reached);
        reached = path.check_steps(generation, &steps_by_generation.remove(&number).unwrap_or_default());
    }
    for (generation, steps) in steps_by_generation {
        let was_formed = generations.iter().any(|formed| formed.number == generation);
        if !was_formed && let Some(Position { stage, step }) = steps.first() {
            let problem = format!("stage {stage} step {step} is of generation {generation}, which was never formed");
            path.problems.push(problem);
        }
    }
    if events.iter().any(|event| event.kind == EventKind::Finished.name()) && !path.is_end(reached) {
        path.problems.push(format!("the journal says that the run is finished, but it has only reached {reached}"));
    }
    path.problems
}

/// A problem if an event has an unknown kind; at most one, for the first of these events.
fn unknown_kinds(events: &[Event]) -> Vec<String> {
    let is_known = |kind: &str| kind == "guard" || EventKind::ALL.iter().any(|event_kind| event_kind.name() == kind);
    let unknown = events.iter().filter(|event| !is_known(&event.kind));
    unknown.map(|event| format!("an event is of the unknown kind {:?}", event.kind)).take(1).collect()
}

/// The stages that ended early, each with the step of the state that it ended with.
fn selected_steps(events: &[Event]) -> SelectedSteps {
    let ended = events.iter().filter(|event| event.kind == EventKind::StageEndedEarly.name());
    ended.filter_map(|event| position_of(&event.detail)).map(|Position { stage, step }| (stage, step)).collect()
}

/// The positions of events of a kind, by generation.
fn positions_by_generation(events: &[Event], kind: EventKind) -> BTreeMap<u64, Position> {
    let of_kind = events.iter().filter(|event| event.kind == kind.name());
    of_kind.filter_map(|event| Some((event.detail["generation"].as_u64()?, position_of(&event.detail)?))).collect()
}

/// The recorded jumps. A generation jumps if it starts at another position than the run has
/// reached, because it gives up or adopts steps. Each jump has the number of the generation, the
/// position that was reached, and the position of the start. A coordinator may end after it has
/// recorded a jump and before it has recorded the generation. Then a later generation with the same
/// number may start at another position.
fn jumps(events: &[Event]) -> Vec<(u64, Position, Position)> {
    let kinds = [EventKind::RolledBack, EventKind::Adopted].map(EventKind::name);
    let of_kind = events.iter().filter(|event| kinds.contains(&event.kind.as_str()));
    let jump = |event: &Event| {
        let detail = &event.detail;
        Some((detail["generation"].as_u64()?, position_of(&detail["from"])?, position_of(&detail["to"])?))
    };
    of_kind.filter_map(jump).collect()
}

/// The check of the path, with the problems found so far.
struct PathCheck {
    plan: Plan,
    /// The recorded jumps: see [`jumps`].
    jumps: Vec<(u64, Position, Position)>,
    /// The states with which stages ended early, by the last generation of the stage.
    ends_by_generation: BTreeMap<u64, Position>,
    problems: Vec<String>,
}

impl PathCheck {
    /// Whether both positions have the same parameters. The end of a stage and step 0 of the next
    /// stage do, because a stage begins with the parameters that the previous one ended with.
    fn has_same_parameters(&self, one: Position, other: Position) -> bool {
        let (earlier, later) = (one.min(other), one.max(other));
        earlier == later
            || self.plan.contains(earlier) && self.plan.contains(later) && self.plan.is_next_beginning(earlier, later)
    }

    /// Whether nothing is left to train at a position.
    fn is_end(&self, mut at: Position) -> bool {
        while self.plan.contains(at) && at.step >= self.plan.steps(at.stage) {
            at = Position { stage: at.stage + 1, step: 0 };
        }
        at.step == 0 && !self.plan.contains(at)
    }

    /// Checks the start of a generation against the position that the run had reached.
    fn check_start(&mut self, generation: &Generation, reached: Position) {
        let Generation { number, start, .. } = generation;
        if !self.plan.contains(*start) {
            self.problems.push(format!("generation {number} starts at {start}, which the run does not have"));
            return;
        }
        let stage_end = self.ends_by_generation.get(&(number - 1)).copied();
        let is_reached = |position: Position| {
            self.has_same_parameters(position, reached)
                || stage_end.is_some_and(|end| self.has_same_parameters(position, end))
        };
        let is_recorded_jump = |&(generation, from, to): &(u64, Position, Position)| {
            generation == *number && to == *start && is_reached(from)
        };
        if !is_reached(*start) && !self.jumps.iter().any(is_recorded_jump) {
            self.problems.push(format!("generation {number} starts at {start}, but the run had reached {reached}"));
        }
    }

    /// Checks that a generation's steps are consecutive. Returns the position that they reach.
    fn check_steps(&mut self, generation: &Generation, steps: &[Position]) -> Position {
        let mut reached = generation.start;
        for step in steps {
            let is_next = *step == reached.after(1)
                || (step.step == 1 && self.has_same_parameters(reached, Position { step: 0, ..*step }));
            if !is_next || !self.plan.contains(*step) {
                let number = generation.number;
                self.problems.push(format!("generation {number} has {step} after {reached}"));
                // Later steps are not checked: their problems would follow from this one.
                return steps.last().copied().filter(|last| self.plan.contains(*last)).unwrap_or(reached);
            }
            reached = *step;
        }
        reached
    }
}
