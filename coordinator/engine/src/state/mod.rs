//! The state of a run, one struct a concern. [Handlers](crate::handler) change it; each borrows the
//! concerns that it may touch.

pub mod checkpoints;
pub mod evaluation;
pub mod generations;
pub mod history;
pub mod stage;
pub mod start_point;

use crate::{
    data::RunData, guard::Guard, membership::Membership, outcome::Outcome, plan::Plan, restored::RestoredRun,
    settings::Settings, statistics::StepStatistics, throughput::Throughput, types::Time,
};
use checkpoints::Checkpoints;
use evaluation::Evaluation;
use generations::{Generations, RunPhase};
use history::History;
use stage::StageState;

/// The state of a run.
#[derive(Debug)]
pub struct State {
    /// What does not change while the coordinator process runs.
    pub settings: Settings,
    /// The workers.
    pub members: Membership,
    /// The phase of the run, and its generations.
    pub generations: Generations,
    /// The plan, and the path that the run has taken through it.
    pub history: History,
    /// The saved states, and the save in progress.
    pub checkpoints: Checkpoints,
    /// The evaluation in progress.
    pub evaluation: Option<Evaluation>,
    /// The guard of the current stage, and the pause.
    pub stage: StageState,
    /// The identity of the data, and its changes.
    pub data: RunData,
    /// Measurements for status and metrics.
    pub measurements: Measurements,
    /// Whether the coordinator was asked to stop.
    pub is_stopping: bool,
}

/// Measurements of the run for status and metrics. No decision depends on them.
#[derive(Debug, Default)]
pub struct Measurements {
    /// The statistics of the last recorded step.
    pub latest_step: Option<StepStatistics>,
    /// The measured seconds per step of the current stage.
    pub throughput: Throughput,
}

impl State {
    /// The state of a run at the start of a coordinator process. `settings` are those of the
    /// process, `restored` is what an earlier process's journal gives.
    #[must_use]
    pub fn new(settings: Settings, restored: RestoredRun) -> Self {
        let plan = Plan::new(&settings.file, restored.selected_steps);
        let history = History {
            max_granted_position: plan.max_granted_position(restored.committed, &restored.passed_boundaries),
            plan,
            committed: restored.committed,
            branch_points: restored.branch_points,
            passed_boundaries: restored.passed_boundaries,
            scores: restored.scores,
            progress_count: 0,
        };
        let phase = match restored.is_finished {
            true => RunPhase::Over { outcome: Outcome::Finished, until: Time::ZERO },
            false => RunPhase::Waiting,
        };
        let last_generation = restored.last_generation;
        let mut stage = StageState {
            guard: Guard::new(0, &[]),
            rollbacks: restored.rollbacks,
            pause_reason: restored.pause_reason,
        };
        stage.restart_guard(&history);
        for (position, means) in restored.step_means {
            // Rules that fire here also fired in an earlier coordinator process, which executed
            // their actions.
            stage.guard.check_step(position, |metric| means.get(metric).copied());
        }
        Self {
            settings,
            members: Membership::default(),
            generations: Generations::new(phase, last_generation, restored.term_log),
            history,
            checkpoints: Checkpoints::new(
                restored.checkpoints,
                restored.superseded_checkpoints,
                restored.unfinished_checkpoints,
                last_generation == 0,
            ),
            evaluation: None,
            stage,
            data: RunData::new(restored.data_set, restored.data_changes),
            measurements: Measurements::default(),
            is_stopping: false,
        }
    }
}
