//! Chaos tests: real processes under random faults, and the cost of each fault.
//!
//! ```text
//! cluster.rs       a coordinator on a fixed port and its workers, restarted when they end
//! fault.rs         the faults
//! run_journal.rs   queries of the run's journal
//! summary.rs       the results
//! ```
//!
//! There is one fault at a time. The next fault is injected at a random time after the first step
//! that follows the previous fault. The generation then has at least two members (unless the test
//! has one worker), so one that holds the training state survives. The simulation covers the loss
//! of the state.

mod cluster;
mod fault;
mod run_journal;
mod summary;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use journal::Generation;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Workspace, wait_for};
use cluster::Cluster;
pub use fault::Fault;
use run_journal::RunJournal;
pub use summary::{MedianAndMax, Summary};

/// The heartbeat timeout of these runs, in seconds.
const HEARTBEAT_TIMEOUT: f64 = 2.0;
/// The maximal time between a recovery and the next fault.
const MAX_FAULT_INTERVAL: Duration = Duration::from_millis(1500);

/// The parameters of a chaos test.
pub struct Chaos {
    /// The number of workers.
    pub workers: u32,
    /// The kinds of faults that are injected. All have the same probability.
    pub fault_kinds: Vec<Fault>,
    /// The maximal number of faults.
    pub max_faults: usize,
    /// The time after which there are no more faults.
    pub max_duration: Duration,
    /// The random seed.
    pub seed: u64,
    /// The number of cross-entropy steps, which determines the duration of the run.
    pub steps: u64,
}

impl Chaos {
    /// Runs to the end without faults. Returns the scores of the last evaluation.
    ///
    /// # Panics
    /// The run does not finish.
    #[must_use]
    pub fn run_without_faults(&self, workspace: &Workspace, name: &str) -> serde_json::Value {
        let mut cluster = Cluster::start(&self.run_file(workspace, name), self.workers);
        let journal = wait_for("a journal", || RunJournal::try_open(workspace, name));
        cluster.finish(|time| journal.last_step_after(time));
        serde_json::json!(journal.last_scores())
    }

    /// Runs to the end with faults.
    ///
    /// # Panics
    /// The run does not recover from a fault, or does not finish.
    #[must_use]
    pub fn run(&self, workspace: &Workspace, name: &str) -> Summary {
        let run_file = self.run_file(workspace, name);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut cluster = Cluster::start(&run_file, self.workers);
        let journal = wait_for("a journal", || RunJournal::try_open(workspace, name));
        let started_at = Instant::now();
        let mut recovery_seconds = Vec::new();
        while recovery_seconds.len() < self.max_faults && started_at.elapsed() < self.max_duration {
            let interval = random.random_range(Duration::ZERO..MAX_FAULT_INTERVAL);
            let stable_generation = self.wait_until_stable(&mut cluster, &journal, interval);
            let Some(Generation { number: generation, members, .. }) = stable_generation else { break };
            let fault = self.fault_kinds[random.random_range(0..self.fault_kinds.len())];
            let worker_id = members[random.random_range(0..members.len())].0;
            let injected_at = unix_time();
            let ends_generation = fault.inject(&mut cluster, worker_id, &mut random);
            let recovery_start = match fault {
                // `heartbeat_timeout` determines the time until the eviction. Only the recovery
                // after the eviction is measured.
                Fault::Stop => wait_for("the end of the suspended worker's generation", || journal.end_of(generation)),
                Fault::StopCoordinator => unix_time(),
                _ => injected_at,
            };
            let next_step_at = wait_for("a step after the fault", || {
                cluster.restart_workers();
                let next_step = match ends_generation {
                    true => journal.steps_after(injected_at).find(|step| step.generation > generation),
                    false => journal.steps_after(recovery_start).next(),
                };
                next_step.map(|step| step.at).or_else(|| journal.is_finished().then_some(recovery_start))
            });
            fault.clear(&mut cluster, worker_id);
            recovery_seconds.push((fault, next_step_at - recovery_start));
        }
        let hashes = cluster.finish(|time| journal.last_step_after(time));
        Summary::new(recovery_seconds, &hashes, &journal, &run_file)
    }

    /// Waits until a generation of at least two members (one if the test has one worker) has
    /// applied a step and was seen `min_age` ago or earlier. Returns none if the run is finished.
    fn wait_until_stable(&self, cluster: &mut Cluster, journal: &RunJournal, min_age: Duration) -> Option<Generation> {
        let min_members = (self.workers as usize).min(2);
        let (mut last_number, mut first_seen_at) = (0, Instant::now());
        wait_for("a generation that trains", || {
            cluster.restart_workers();
            if journal.is_finished() {
                return Some(None);
            }
            let generation = journal.last_generation()?;
            if last_number != generation.number {
                (last_number, first_seen_at) = (generation.number, Instant::now());
            }
            let is_stable = generation.members.len() >= min_members
                && first_seen_at.elapsed() >= min_age
                && journal.has_trained(&generation);
            is_stable.then_some(Some(generation))
        })
    }

    fn run_file(&self, workspace: &Workspace, name: &str) -> std::path::PathBuf {
        let folder = workspace.path("");
        let (folder, workers, steps) = (folder.display(), self.workers, self.steps);
        let optimizer = "optimizer: { learning_rate: 1.0e-3 }";
        let text = format!(
            "name: chaos\nseed: 5\noutput: {folder}/{name}\nworkers: {{ min: 1, max: {workers} }}\n\
             data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n  \
             scenes: {folder}/world/scenes.json\nvocabulary: corpus\nevaluator: {{ preset: tiny, prefix: \"\" }}\n\
             captioner: {{ preset: tiny, dropout: 0.0 }}\ndecoding: {{ beams: 3, max_length: 20 }}\n\
             control: {{ heartbeat_timeout: {HEARTBEAT_TIMEOUT:.1} }}\nstages:\n  \
             - {{ name: evaluator, objective: contrastive, steps: 30, batch: 24, {optimizer} }}\n  \
             - {{ name: xe, objective: cross_entropy, steps: {steps}, batch: 24, checkpoint_every: 100, evaluate_every: {}, {optimizer} }}\n  \
             - {{ name: dico, objective: dico, steps: {}, batch: 12, checkpoint_every: 20, optimizer: {{ learning_rate: 1.0e-5 }} }}\n",
            (steps / 3).max(1),
            (steps / 20).max(1),
        );
        let path = workspace.path(&format!("{name}.yaml"));
        std::fs::write(&path, text).expect("the run file can be written");
        path
    }
}

/// Unix time in seconds, as in the journal.
fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |duration| duration.as_secs_f64())
}
