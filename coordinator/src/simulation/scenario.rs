//! The parameters of a simulated run: its run file, its machines and its speeds.

use config::{GuardAction, Rule, RunFile, Sharding, Stage};
use dico_engine::{
    Time,
    plan::{Position, SelectedSteps},
};
use rand::{Rng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::{MAX_SCORE, faults::Fault, score};
use config::testing;

/// The parameters of a simulated run.
pub struct Scenario {
    /// The run file.
    pub file: RunFile,
    /// Selects the pseudo-random scores and statistics of states.
    pub salt: u64,
    /// One in this many images can be decoded, in each range from its first image on. The captions
    /// of the others are missing.
    pub decodable_image_stride: usize,
    /// The approximate duration of a worker's step.
    pub step_duration: Time,
    /// The maximal time in which a worker loads data and models, in milliseconds.
    pub max_loading_ms: u64,
    /// The maximal time in which a worker writes a checkpoint.
    pub max_saving_time: Time,
    /// The time that scoring an evaluation takes.
    pub scoring_time: Time,
    /// For each machine: the worker id that its worker requests, if any.
    pub machines: Vec<Option<u32>>,
    /// Whether a run that has stopped, paused or failed is resumed, as by an operator. Scripted
    /// tests resume runs themselves.
    pub is_resumed: bool,
    /// The possible faults.
    pub faults: Vec<Fault>,
    /// The mean interval between faults.
    pub fault_interval: Time,
    /// The time from which on no faults are injected.
    pub faults_end_at: Time,
}

impl Scenario {
    /// A run of this file without faults.
    pub fn without_faults(file: RunFile) -> Self {
        Self {
            file,
            salt: 0,
            decodable_image_stride: 1,
            step_duration: Time::from_millis(100),
            max_loading_ms: 100,
            max_saving_time: Time::from_millis(200),
            scoring_time: Time::from_millis(100),
            machines: vec![],
            is_resumed: false,
            faults: vec![],
            fault_interval: Time::ZERO,
            faults_end_at: Time::ZERO,
        }
    }

    /// Random parameters.
    pub fn random(rng: &mut ChaCha8Rng) -> Self {
        let mut stage = |name: &str, max_steps: u64, batch: u32| {
            let random_interval = |rng: &mut ChaCha8Rng| rng.random_bool(0.6).then(|| rng.random_range(2..6));
            let steps = rng.random_range(max_steps / 2..=max_steps);
            let checkpoint_every = random_interval(rng);
            let evaluate_every = random_interval(rng);
            testing::stage(name, steps, batch, checkpoint_every, evaluate_every)
        };
        let mut stages = vec![stage("a", 14, 8), stage("b", 8, 5)];
        if rng.random() {
            stages.iter_mut().for_each(|stage| randomize_stage_ends(stage, rng));
        }
        let mut file = testing::run_file(stages);
        file.workers.min = rng.random_range(1..=3);
        file.workers.max = rng.random_range(file.workers.min + 1..=5);
        file.control.window = rng.random_range(1..=6);
        file.control.heartbeat_timeout = f64::from(rng.random_range(2..=6_u32));
        file.control.stall_timeout = f64::from(rng.random_range(20..=60_u32));
        if rng.random() {
            file.control.sharding = Sharding::Proportional;
        }
        file.checkpoints.keep = rng.random_range(1..=3);
        // Sometimes there is one machine more than `workers.max`.
        let machines = rng.random_range(file.workers.min..=file.workers.max) + u32::from(rng.random_ratio(1, 8));
        let has_worker_ids = rng.random_ratio(1, 4);
        let faults = match rng.random_range(0..8) {
            0 => Fault::HARMLESS.to_vec(),
            1 => Fault::ALL.choose(rng).copied().into_iter().collect(),
            _ => Fault::ALL.into_iter().filter(|_| rng.random_ratio(1, 3)).collect(),
        };
        Self {
            salt: rng.random_range(0..1_000),
            // Two of the 50 images of a range.
            decodable_image_stride: 25,
            step_duration: Time::from_millis(rng.random_range(20..300)),
            max_loading_ms: *[100, 1_000, 5_000].choose(rng).expect("the list is not empty"),
            max_saving_time: Time::from_millis(*[50, 300, 3_000, 20_000].choose(rng).expect("the list is not empty")),
            scoring_time: Time::from_millis(rng.random_range(1..3_000)),
            machines: (0..machines).map(|worker_id| has_worker_ids.then_some(worker_id)).collect(),
            is_resumed: true,
            faults,
            fault_interval: Time::from_millis(*[200, 700, 2_000, 8_000].choose(rng).expect("the list is not empty")),
            faults_end_at: Time::from_secs(rng.random_range(5..60)),
            file,
        }
    }

    /// Whether no step has to be repeated after any of the faults. False for scripted scenarios
    /// (those that are not resumed), because their tests cause failures themselves.
    pub fn has_only_harmless_faults(&self) -> bool {
        self.is_resumed && self.faults.iter().all(|fault| Fault::HARMLESS.contains(fault))
    }

    pub fn heartbeat_timeout(&self) -> Time {
        Time::from_secs_f64(self.file.control.heartbeat_timeout)
    }

    /// Whether a stage is evaluated at a step that it reaches.
    pub fn is_evaluated(&self, stage: &Stage, step: u64) -> bool {
        match step {
            0 => stage.evaluate_first,
            step => stage.evaluate_every.is_some_and(|every| step.is_multiple_of(every)) || step == stage.steps,
        }
    }

    /// Asserts that each stage with a metric has ended with its best state, and that a stage
    /// without a metric has not ended early. Does not check stages with a rollback rule.
    pub fn check_selected_steps(&self, selected_steps: &SelectedSteps) {
        for (number, stage) in (0..).zip(&self.file.stages) {
            let selected = selected_steps.get(&number).copied();
            let can_roll_back = stage.guard.iter().any(|rule| rule.action == GuardAction::Rollback);
            if stage.metric.is_none() && !can_roll_back {
                assert_eq!(selected, None, "stage {number} has no metric and no rule, and must not end early");
            }
            if stage.metric.is_some() && !can_roll_back {
                assert_eq!(
                    selected.unwrap_or(stage.steps),
                    self.expected_best_step(stage, number),
                    "stage {number} must end with its best state"
                );
            }
        }
    }

    /// The step of the best state of a stage that has a metric and no rollback rule: the stage must
    /// end with that state.
    pub fn expected_best_step(&self, stage: &Stage, number: u32) -> u64 {
        let (mut best, mut without_improvement) = (None, 0);
        for step in (0..=stage.steps).filter(|step| self.is_evaluated(stage, *step)) {
            let score = score(self.salt, Position { stage: number, step });
            match best {
                Some((highest, _)) if score <= highest => without_improvement += 1,
                _ => (best, without_improvement) = (Some((score, step)), 0),
            }
            if stage.patience.is_some_and(|patience| without_improvement >= patience) {
                break;
            }
        }
        best.map_or(stage.steps, |(_, step)| step)
    }
}

/// Sets a random metric, patience, first evaluation and guard of a stage.
fn randomize_stage_ends(stage: &mut Stage, rng: &mut ChaCha8Rng) {
    stage.metric = rng.random_bool(0.7).then(|| "cider".to_owned());
    stage.patience = stage.metric.as_ref().filter(|_| rng.random()).map(|_| rng.random_range(1..3));
    stage.evaluate_first = rng.random();
    let rules = rng.random_range(0..3);
    stage.guard = (0..rules).map(|_| random_rule(rng)).collect();
}

/// A random rule of the guard.
fn random_rule(rng: &mut ChaCha8Rng) -> Rule {
    let bound = f64::from(rng.random_range(2..7_u32)) - 0.5;
    let (above, below) = if rng.random() { (Some(bound), None) } else { (None, Some(MAX_SCORE as f64 - bound)) };
    let actions = [GuardAction::Warn, GuardAction::Pause, GuardAction::Rollback];
    let metric = (*["cider", "kl"].choose(rng).expect("the list is not empty")).to_owned();
    Rule {
        metric,
        above,
        below,
        for_: rng.random_range(1..5),
        action: *actions.choose(rng).expect("the list is not empty"),
    }
}
