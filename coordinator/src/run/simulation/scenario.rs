//! The parameters of a simulated run: its run file, its machines and its speeds.

use config::{GuardAction, Rule, RunFile, Sharding, Stage};
use rand::{Rng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::{faults::Fault, score};
use crate::run::{
    Time,
    plan::{Place, StageEnds},
    testing,
};

pub struct Scenario {
    pub file: RunFile,
    /// The input of scores and statistics besides the state.
    pub salt: u64,
    /// One image in this many can be decoded.
    pub stride: usize,
    /// The approximate duration of a worker's step.
    pub pace: Time,
    /// The longest time in which a worker loads data and models, in milliseconds.
    pub loading: u64,
    /// The longest time in which a worker writes a checkpoint.
    pub saving: Time,
    /// The time that scoring an evaluation takes.
    pub scoring: Time,
    /// The machines, with the id that a worker on each is started with.
    pub machines: Vec<Option<u32>>,
    /// Whether a run that was stopped, paused or given up is resumed after a while.
    pub goes_on: bool,
    /// The possible faults, their interval, and the time at which they end.
    pub faults: Vec<Fault>,
    pub fault_every: Time,
    pub calm_from: Time,
}

impl Scenario {
    /// A run of this file without faults.
    pub fn quiet(file: RunFile) -> Self {
        Self {
            file,
            salt: 0,
            stride: 1,
            pace: Time::from_millis(100),
            loading: 100,
            saving: Time::from_millis(200),
            scoring: Time::from_millis(100),
            machines: vec![],
            goes_on: false,
            faults: vec![],
            fault_every: Time::ZERO,
            calm_from: Time::ZERO,
        }
    }

    pub fn any(rng: &mut ChaCha8Rng) -> Self {
        let mut stage = |name: &str, most: u64, batch: u32| {
            let every = |rng: &mut ChaCha8Rng| rng.random_bool(0.6).then(|| rng.random_range(2..6));
            testing::stage(name, rng.random_range(most / 2..=most), batch, every(rng), every(rng))
        };
        let mut stages = vec![stage("a", 14, 8), stage("b", 8, 5)];
        if rng.random() {
            stages.iter_mut().for_each(|stage| oversee(stage, rng));
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
        // Sometimes one machine more than the run has room for.
        let machines = rng.random_range(file.workers.min..=file.workers.max) + u32::from(rng.random_ratio(1, 8));
        let ranks = rng.random_ratio(1, 4);
        let faults = match rng.random_range(0..8) {
            0 => Fault::HARMLESS.to_vec(),
            1 => Fault::ALL.choose(rng).copied().into_iter().collect(),
            _ => Fault::ALL.into_iter().filter(|_| rng.random_ratio(1, 3)).collect(),
        };
        Self {
            salt: rng.random_range(0..1_000),
            stride: 25,
            pace: Time::from_millis(rng.random_range(20..300)),
            loading: *[100, 1_000, 5_000].choose(rng).expect("some"),
            saving: Time::from_millis(*[50, 300, 3_000, 20_000].choose(rng).expect("some")),
            scoring: Time::from_millis(rng.random_range(1..3_000)),
            machines: (0..machines).map(|rank| ranks.then_some(rank)).collect(),
            goes_on: true,
            faults,
            fault_every: Time::from_millis(*[200, 700, 2_000, 8_000].choose(rng).expect("some")),
            calm_from: Time::from_secs(rng.random_range(5..60)),
            file,
        }
    }

    /// Whether no fault costs training work.
    pub fn is_harmless(&self) -> bool {
        self.goes_on && self.faults.iter().all(|fault| Fault::HARMLESS.contains(fault))
    }

    pub fn heartbeat_timeout(&self) -> Time {
        Time::from_secs_f64(self.file.control.heartbeat_timeout)
    }

    /// Whether a stage that continues beyond a step, or ends there, is evaluated at it.
    pub fn is_evaluated(&self, stage: &Stage, step: u64) -> bool {
        match step {
            0 => stage.evaluate_first,
            step => stage.evaluate_every.is_some_and(|every| step.is_multiple_of(every)) || step == stage.steps,
        }
    }

    /// Asserts that stages end where sequential code computes.
    pub fn check_ends(&self, ends: &StageEnds) {
        for (number, stage) in (0..).zip(&self.file.stages) {
            let end = ends.get(&number).copied();
            let rollback = stage.guard.iter().any(|rule| rule.action == GuardAction::Rollback);
            if stage.metric.is_none() && !rollback {
                assert_eq!(end, None, "stage {number} has no reason to end early");
            }
            if stage.metric.is_some() && !rollback {
                assert_eq!(end.unwrap_or(stage.steps), self.best_end(stage, number), "the best of stage {number}");
            }
        }
    }

    /// The end of a stage with a metric and without a rollback rule.
    pub fn best_end(&self, stage: &Stage, number: u32) -> u64 {
        let (mut best, mut worse) = (None, 0);
        for step in (0..=stage.steps).filter(|step| self.is_evaluated(stage, *step)) {
            let score = score(self.salt, Place { stage: number, step });
            match best {
                Some((highest, _)) if score <= highest => worse += 1,
                _ => (best, worse) = (Some((score, step)), 0),
            }
            if stage.patience.is_some_and(|patience| worse >= patience) {
                break;
            }
        }
        best.map_or(stage.steps, |(_, step)| step)
    }
}

/// Sets a random metric, patience, first evaluation and guard.
fn oversee(stage: &mut Stage, rng: &mut ChaCha8Rng) {
    stage.metric = rng.random_bool(0.7).then(|| "cider".to_owned());
    stage.patience = stage.metric.as_ref().filter(|_| rng.random()).map(|_| rng.random_range(1..3));
    stage.evaluate_first = rng.random();
    let rules = rng.random_range(0..3);
    stage.guard = (0..rules).map(|_| rule(rng)).collect();
}

fn rule(rng: &mut ChaCha8Rng) -> Rule {
    let bound = f64::from(rng.random_range(2..7_u32)) - 0.5;
    let (above, below) = if rng.random() { (Some(bound), None) } else { (None, Some(6.0 - bound)) };
    let actions = [GuardAction::Warn, GuardAction::Pause, GuardAction::Rollback];
    let metric = (*["cider", "kl"].choose(rng).expect("some")).to_owned();
    Rule { metric, above, below, for_: rng.random_range(1..5), action: *actions.choose(rng).expect("some") }
}
