//! Chaos tests: real processes under random faults, and the cost of each fault.
//!
//! ```text
//! cluster.rs   a coordinator on a fixed port and its workers, restarted when they end
//! fault.rs     the faults
//! record.rs    queries of the run's journal
//! summary.rs   the results
//! ```
//!
//! One fault at a time: the next one is injected a random time after a step was applied following
//! the last one. At least two members are present when one is taken, so that the state is never
//! lost; the simulation covers that case.

mod cluster;
mod fault;
mod record;
mod summary;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Workspace, wait_for};
use cluster::Cluster;
pub use fault::Fault;
use record::Record;
pub use summary::{Spread, Summary};

/// The heartbeat timeout of these runs, in seconds.
const HEARTBEAT_TIMEOUT: f64 = 2.0;
/// The longest time between a recovery and the next fault.
const MAX_PAUSE: Duration = Duration::from_millis(1500);

/// The parameters of a chaos test.
pub struct Chaos {
    /// The number of workers.
    pub workers: u32,
    /// The kinds of faults, with equal probability.
    pub kinds: Vec<Fault>,
    /// Maximal number of faults.
    pub most: usize,
    /// Maximal duration of faults.
    pub limit: Duration,
    /// The random seed.
    pub seed: u64,
    /// The number of cross-entropy steps, which determines the duration of the run.
    pub steps: u64,
}

impl Chaos {
    /// Runs to the end without faults. Returns the scores of the last evaluation.
    ///
    /// # Panics
    /// If the run does not finish.
    #[must_use]
    pub fn quiet(&self, workspace: &Workspace, name: &str) -> serde_json::Value {
        let mut cluster = Cluster::start(&self.run_file(workspace, name), self.workers);
        let record = wait_for("a journal", || Record::try_open(workspace, name));
        cluster.finish(|| record.steps());
        record.last_scores()
    }

    /// Runs to the end with faults.
    ///
    /// # Panics
    /// If the run does not finish, or does not recover.
    #[must_use]
    pub fn run(&self, workspace: &Workspace, name: &str) -> Summary {
        let run_file = self.run_file(workspace, name);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut cluster = Cluster::start(&run_file, self.workers);
        let record = wait_for("a journal", || Record::try_open(workspace, name));
        let started = Instant::now();
        let mut costs = Vec::new();
        while costs.len() < self.most && started.elapsed() < self.limit {
            let pause = random.random_range(Duration::ZERO..MAX_PAUSE);
            let Some((generation, members)) = self.calm(&mut cluster, &record, pause) else { break };
            let fault = self.kinds[random.random_range(0..self.kinds.len())];
            let victim = members[random.random_range(0..members.len())];
            let at = now();
            let ends = fault.strike(&mut cluster, victim, &mut random);
            let since = match fault {
                // The time until its eviction is determined by `heartbeat_timeout`; the recovery after it
                // is measured.
                Fault::Stop => wait_for("the end of the stopped worker's generation", || record.ended(generation)),
                Fault::StopCoordinator => now(),
                _ => at,
            };
            let next = wait_for("a step after the fault", || {
                cluster.tend();
                let next = if ends { record.applied_after(generation) } else { record.applied_since(since) };
                next.or_else(|| record.finished().then_some(since))
            });
            fault.relieve(&mut cluster, victim);
            costs.push((fault, next - since));
        }
        let hashes = cluster.finish(|| record.steps());
        Summary::new(costs, &hashes, &record, &run_file)
    }

    /// Waits until a generation of several members has trained for `pause`. Returns its number and
    /// members; none once the run is finished.
    fn calm(&self, cluster: &mut Cluster, record: &Record, pause: Duration) -> Option<(i64, Vec<u32>)> {
        let enough = (self.workers as usize).min(2);
        let mut since = (0, Instant::now());
        wait_for("a calm", || {
            cluster.tend();
            if record.finished() {
                return Some(None);
            }
            let (number, members) = record.generation()?;
            if since.0 != number {
                since = (number, Instant::now());
            }
            let calm = members.len() >= enough && record.has_trained(number) && since.1.elapsed() >= pause;
            calm.then_some(Some((number, members)))
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
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
