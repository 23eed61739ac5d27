//! The present history of the run: how far it is, which states belong to it, and which boundaries
//! it has passed.

use proto::v1;

use crate::{
    lineage::BranchPoints,
    model_selection::Scores,
    plan::{Boundaries, Boundary, Plan, Position, is_agreed},
};

/// The plan of the run, and the path that the run has taken through it.
#[derive(Debug)]
pub struct History {
    /// The stages with their boundaries and ends.
    pub plan: Plan,
    /// The furthest position that a member has applied and reported.
    pub committed: Position,
    /// The furthest position that workers may have reached: steps are granted up to here.
    pub max_granted_position: Position,
    /// Decides which states belong to the present history.
    pub branch_points: BranchPoints,
    /// The boundaries that the present history has passed.
    pub passed_boundaries: Boundaries,
    /// The scores of the present history's evaluations.
    pub scores: Scores,
    /// Incremented with each committed position, saved checkpoint, completed evaluation and
    /// discarded damaged checkpoint. A run whose generations keep failing while this number does
    /// not change cannot continue, and fails.
    pub progress_count: u64,
}

impl History {
    /// Moves `committed` forward to this position. Returns whether the run has entered a new stage
    /// by that.
    pub fn commit(&mut self, position: Position) -> bool {
        if position <= self.committed {
            return false;
        }
        let is_new_stage = position.stage != self.committed.stage;
        self.committed = position;
        self.progress_count += 1;
        is_new_stage
    }

    /// Continues the history from `start`, in `generation`. What lies beyond is given up.
    pub fn branch(&mut self, generation: u64, start: Position) {
        self.max_granted_position = start;
        self.branch_points.add(generation, start);
        // Needed even if no committed step is given up: the beginning of a stage may have been
        // evaluated although no step of the stage is committed.
        self.passed_boundaries.retain(|(position, _)| *position <= start);
        self.scores.retain(|position, _| *position <= start);
        self.committed = start;
    }

    /// Records that the boundary at this position is passed, or, if it turns out that it was not
    /// passed, removes it.
    pub fn set_passed(&mut self, position: Position, boundary: Boundary, is_passed: bool) {
        match is_passed {
            true => self.passed_boundaries.insert((position, boundary)),
            false => self.passed_boundaries.remove(&(position, boundary)),
        };
    }

    /// Whether a state that a worker holds belongs to the present history.
    #[must_use]
    pub fn is_current(&self, held: &v1::Position) -> bool {
        self.branch_points.is_current(held.into(), held.generation)
    }

    /// Why no worker of this run can be at the position that a worker reports; none if one can.
    /// `last_generation` is the number of the last generation.
    #[must_use]
    pub fn position_error(&self, reported: &v1::Position, last_generation: u64) -> Option<String> {
        let position = Position::from(reported);
        if !self.plan.contains(position) {
            return Some(format!("the run has no {position}"));
        }
        if reported.generation > last_generation {
            return Some(format!("generation {} does not exist", reported.generation));
        }
        // `max_granted_position` limits only the last generation. States of earlier generations may
        // be further: if they are, they were given up, and `branch_points` excludes them.
        let is_of_last = reported.generation == last_generation && is_agreed(reported);
        (is_of_last && position > self.max_granted_position).then(|| {
            let granted = self.max_granted_position;
            format!("generation {last_generation} is granted up to {granted}, not to {position}")
        })
    }
}
