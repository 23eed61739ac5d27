//! Audit of the path: whether the records describe one path through the plan. Each generation
//! starts at the run's present point, or records what it gave up or adopted; its steps are
//! consecutive; and a finished run has reached the end of the plan.

use std::collections::BTreeMap;

use config::RunFile;

use super::{Recovered, point};
use crate::{
    journal::history::{Event, Generation, Step},
    run::{
        plan::{Place, Plan, StageEnds},
        record::EventKind,
    },
};

/// The problems, in the order of the run.
pub(super) fn problems(
    file: &RunFile,
    generations: &[Generation],
    steps: &[Step],
    events: &[Event],
    recovered: Option<&Recovered>,
) -> Vec<String> {
    let mut path = Path {
        plan: Plan::new(file, ends(events)),
        moves: moves(events),
        ended: of_generations(events, EventKind::StageEnded),
        problems: unknown(events),
    };
    let first = recovered.map_or(1, |recovered| recovered.generation);
    let mut stood = recovered.map_or_else(Place::default, |recovered| recovered.place);
    let mut own: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
    steps.iter().for_each(|step| own.entry(step.generation).or_default().push(step.place));
    for (number, generation) in (first..).zip(generations) {
        if generation.number != number {
            path.problems.push(format!("generation {number} is missing"));
            break;
        }
        path.begin(generation, stood);
        stood = path.follow(generation, &own.remove(&number).unwrap_or_default());
    }
    for (generation, steps) in own {
        let known = generations.iter().any(|known| known.number == generation);
        if !known && let Some(Place { stage, step }) = steps.first() {
            let problem = format!("stage {stage} step {step} is of generation {generation}, which was never formed");
            path.problems.push(problem);
        }
    }
    if events.iter().any(|event| event.kind == EventKind::Finished.name()) && !path.is_end(stood) {
        path.problems.push(format!("the run is said to be finished, and stands at {stood}"));
    }
    path.problems
}

fn unknown(events: &[Event]) -> Vec<String> {
    let is_known = |kind: &str| kind == "guard" || EventKind::ALL.iter().any(|known| known.name() == kind);
    let unknown = events.iter().filter(|event| !is_known(&event.kind));
    unknown.map(|event| format!("an event is of the unknown kind {:?}", event.kind)).take(1).collect()
}

fn ends(events: &[Event]) -> StageEnds {
    let ended = events.iter().filter(|event| event.kind == EventKind::StageEnded.name());
    ended.filter_map(|event| point(&event.detail)).map(|Place { stage, step }| (stage, step)).collect()
}

/// The points of events of a kind, by generation.
fn of_generations(events: &[Event], what: EventKind) -> BTreeMap<u64, Place> {
    let own = events.iter().filter(|event| event.kind == what.name());
    own.filter_map(|event| Some((event.detail["generation"].as_u64()?, point(&event.detail)?))).collect()
}

/// The moves of generations, by giving up or adopting steps: number, from, to. A coordinator may
/// die before it records the generation itself; the next one with that number may start elsewhere.
fn moves(events: &[Event]) -> Vec<(u64, Place, Place)> {
    let kinds = [EventKind::RolledBack, EventKind::Adopted].map(EventKind::name);
    let own = events.iter().filter(|event| kinds.contains(&event.kind.as_str()));
    let moved = |event: &Event| {
        let detail = &event.detail;
        Some((detail["generation"].as_u64()?, point(&detail["from"])?, point(&detail["to"])?))
    };
    own.filter_map(moved).collect()
}

struct Path {
    plan: Plan,
    moves: Vec<(u64, Place, Place)>,
    /// The points at which stages ended, by the last generation before.
    ended: BTreeMap<u64, Place>,
    problems: Vec<String>,
}

impl Path {
    /// Whether both points have the same state: a stage begins with the final state of the one
    /// before.
    fn is_same(&self, one: Place, other: Place) -> bool {
        let (earlier, later) = (one.min(other), one.max(other));
        earlier == later
            || self.plan.contains(earlier) && self.plan.contains(later) && self.plan.is_next_beginning(earlier, later)
    }

    /// Whether nothing is left to train at a point.
    fn is_end(&self, mut at: Place) -> bool {
        while self.plan.contains(at) && at.step >= self.plan.steps(at.stage) {
            at = Place { stage: at.stage + 1, step: 0 };
        }
        at.step == 0 && !self.plan.contains(at)
    }

    /// Checks the start of a generation against the point that the run had reached.
    fn begin(&mut self, generation: &Generation, stood: Place) {
        let Generation { number, start, .. } = generation;
        if !self.plan.contains(*start) {
            self.problems.push(format!("generation {number} starts at {start}, which the run does not have"));
            return;
        }
        let ended = self.ended.get(&(number - 1)).copied();
        let is_where_it_stood =
            |at: Place| self.is_same(at, stood) || ended.is_some_and(|ended| self.is_same(at, ended));
        let is_told = |&(of, from, to): &(u64, Place, Place)| of == *number && to == *start && is_where_it_stood(from);
        if !is_where_it_stood(*start) && !self.moves.iter().any(is_told) {
            self.problems.push(format!("generation {number} starts at {start}, and the run stood at {stood}"));
        }
    }

    /// Checks that a generation's steps are consecutive. Returns the point that they reach.
    fn follow(&mut self, generation: &Generation, steps: &[Place]) -> Place {
        let mut at = generation.start;
        for step in steps {
            let follows = *step == at.after(1) || (step.step == 1 && self.is_same(at, Place { step: 0, ..*step }));
            if !follows || !self.plan.contains(*step) {
                let number = generation.number;
                self.problems.push(format!("generation {number} has {step} after {at}"));
                // Problems of the later steps follow from this one.
                return steps.last().copied().filter(|last| self.plan.contains(*last)).unwrap_or(at);
            }
            at = *step;
        }
        at
    }
}
