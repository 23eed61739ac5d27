use std::collections::{BTreeMap, BTreeSet};

use journal::{Generation, ReadOnlyJournal, Step};

use crate::Workspace;

/// Queries of the journal of a run in progress. They have no result while the journal is locked,
/// which happens while a coordinator starts.
pub struct RunJournal(ReadOnlyJournal);

impl RunJournal {
    /// Opens the journal; none if it does not exist yet.
    pub fn try_open(workspace: &Workspace, name: &str) -> Option<Self> {
        workspace.try_journal(name).map(Self)
    }

    /// The last generation.
    pub fn last_generation(&self) -> Option<Generation> {
        self.0.generations().ok()?.pop()
    }

    /// Whether a step of this generation is recorded.
    pub fn has_trained(&self, generation: &Generation) -> bool {
        self.steps_after(generation.formed_at).any(|step| step.generation == generation.number)
    }

    /// The steps that were recorded after `time` (Unix seconds), in the order of their times.
    pub fn steps_after(&self, time: f64) -> impl DoubleEndedIterator<Item = Step> {
        self.0.steps_recorded_after(time).unwrap_or_default().into_iter()
    }

    /// When the last step after `time` was recorded; both in Unix seconds.
    pub fn last_step_after(&self, time: f64) -> Option<f64> {
        self.steps_after(time).next_back().map(|step| step.at)
    }

    /// When a generation ended, in Unix seconds; none if it has not ended.
    pub fn end_of(&self, generation: u64) -> Option<f64> {
        self.0.generations().ok()?.into_iter().find(|recorded| recorded.number == generation)?.ended_at
    }

    /// Whether the run is finished.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished().unwrap_or(false)
    }

    /// The scores of the last evaluation.
    pub fn last_scores(&self) -> BTreeMap<String, f64> {
        let last = self.0.latest_evaluations(1).expect("evaluations can be read").pop();
        last.expect("the run was evaluated").scores
    }

    /// The number of times that a worker joined.
    pub fn join_count(&self) -> usize {
        self.0.attached_workers().expect("attachments can be read").len()
    }

    /// The seconds from each join of a worker to the first step of a generation with that worker.
    /// Leaves out joins of workers that left or failed before a step: these joined again before
    /// they trained.
    pub fn seconds_from_join_to_step(&self) -> Vec<f64> {
        let mut first_step_times: BTreeMap<u64, f64> = BTreeMap::new();
        for Step { generation, at, .. } in self.steps_after(0.0) {
            first_step_times.entry(generation).or_insert(at);
        }
        let trained: Vec<(f64, BTreeSet<_>)> = self
            .0
            .generations()
            .expect("generations can be read")
            .into_iter()
            .filter_map(|generation| {
                Some((*first_step_times.get(&generation.number)?, generation.members.into_iter().collect()))
            })
            .collect();
        let joins = self.0.attached_workers().expect("attachments can be read");
        let seconds_to_step = |(number, join): (usize, &journal::AttachedWorker)| {
            let mut later_joins = joins[number + 1..].iter().filter(|later| later.worker_id == join.worker_id);
            let joined_again_at = later_joins.next().map_or(f64::INFINITY, |later| later.at);
            let mut with_worker =
                trained.iter().filter(|(at, members)| *at > join.at && members.contains(&join.worker_id));
            let first_step_at = with_worker.next()?.0;
            (first_step_at < joined_again_at).then_some(first_step_at - join.at)
        };
        joins.iter().enumerate().filter_map(seconds_to_step).collect()
    }
}
