//! Simulated runs of many seeds. A seed determines all random choices of its run.
//!
//! `SEEDS` is the number of seeds (default 10,000). `SEED=n` runs only seed n and prints its
//! events.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{DefaultHasher, Hasher},
    panic::{self, AssertUnwindSafe},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use dico_engine::{Outcome, Time, plan::Position};
use journal::ReadOnlyJournal;
use proto::v1;
use rand::Rng;

use super::{
    cluster::{Cluster, Trace},
    faults::Fault,
    scenario::Scenario,
    worker::{FalseClaim, Worker},
};
use crate::audit::audit;

/// The default number of seeds.
const DEFAULT_SEEDS: u64 = 10_000;
/// The number of failed seeds after which no more seeds are run.
const MAX_FAILURES: usize = 5;
/// One of this many seeds is run twice, to compare the two runs.
const REPEAT_INTERVAL: usize = 100;
/// The virtual time within which each run has to finish.
const MAX_VIRTUAL_TIME: Time = Time::from_secs(3_600);

/// Runs a seed's run to its end, and checks its journal.
fn run_seed(seed: u64, trace: Trace) -> Cluster {
    let mut cluster = Cluster::new(seed, trace, Scenario::random);
    cluster.start_workers_and_faults();
    run_to_end(&mut cluster);
    check_audit(&mut cluster);
    cluster
}

/// Runs a cluster until its run is finished.
fn run_to_end(cluster: &mut Cluster) {
    while cluster.outcome.is_none() && cluster.step(MAX_VIRTUAL_TIME) {}
    assert_eq!(cluster.outcome, Some(Outcome::Finished), "at {:?}", cluster.queue.now());
    cluster.check_end();
}

/// Asserts that the audit of a finished run's journal is clean.
fn check_audit(cluster: &mut Cluster) {
    let audit = audit(&cluster.take_journal()).expect("the journal is intact");
    assert!(audit.clean && audit.finished, "the audit of the journal is not clean: {audit:?}");
}

/// Added to the generation of a forged state: more generations than any run has.
const FORGED_GENERATION_OFFSET: u64 = 1_000;

/// The numbers of workers that have joined a run with a state of another run.
struct FormerWorkerCounts {
    /// Workers that report correctly which run their state belongs to.
    honest: u64,
    /// Workers that claim that their state belongs to this run, to a generation that never existed.
    forging: u64,
}

/// Runs a part of a seed's run, and then another run to its end, which the workers of the first run
/// join.
fn run_with_former_workers(seed: u64, trace: Trace) -> FormerWorkerCounts {
    let mut former = Cluster::new(seed, Trace::Off, Scenario::random);
    former.start_workers_and_faults();
    let events = former.rng.random_range(0..3_000);
    while former.outcome.is_none() && former.event_count < events && former.step(MAX_VIRTUAL_TIME) {}

    let mut cluster = Cluster::new(!seed, trace, Scenario::random);
    // At most one former worker for each machine.
    let machines = cluster.scenario.machines.len();
    let workers = std::mem::take(&mut former.workers).into_iter().filter(|(_, worker)| !worker.is_finishing());
    for (id, mut worker) in workers.take(machines) {
        if let Some(position) = worker.position().filter(|_| id.0 % 2 == 0) {
            let (generation, term) = worker.last_generation();
            let offset = FORGED_GENERATION_OFFSET;
            let position = v1::Position { generation: position.generation + offset, ..position };
            worker.false_claim = Some(FalseClaim { position, generation: generation + offset, term });
        }
        cluster.former_workers.push(worker);
    }
    let count_with_state = |workers: &[Worker], is_forging: bool| {
        let is_counted = |worker: &&Worker| worker.position().is_some() && worker.false_claim.is_some() == is_forging;
        workers.iter().filter(is_counted).count() as u64
    };
    let [honest, forging] = [false, true].map(|is_forging| count_with_state(&cluster.former_workers, is_forging));
    cluster.start_workers_and_faults();
    run_to_end(&mut cluster);
    // The workers that are still in `former_workers` have not joined.
    FormerWorkerCounts {
        honest: honest - count_with_state(&cluster.former_workers, false),
        forging: forging - count_with_state(&cluster.former_workers, true),
    }
}

/// Restores an older copy of a seed's journal, and continues the run from it to the end. Returns
/// the number of training states that the coordinator refused, because the copy does not have their
/// generations. None if checkpoints on disk are newer than the copy, so that a coordinator would
/// refuse to start with it.
fn run_from_backup(seed: u64, trace: Trace) -> Option<u64> {
    let mut cluster = Cluster::new(seed, Trace::Off, Scenario::random);
    cluster.start_workers_and_faults();
    let (events_before_backup, lost_events) = (cluster.rng.random_range(0..2_000), cluster.rng.random_range(1..1_000));
    let run_until = |cluster: &mut Cluster, events: u64| {
        while cluster.outcome.is_none() && cluster.event_count < events && cluster.step(MAX_VIRTUAL_TIME) {}
    };
    run_until(&mut cluster, events_before_backup);
    let backup = cluster.back_up_journal();
    run_until(&mut cluster, events_before_backup + lost_events);
    if !backup.matches_disk(&cluster) {
        return None;
    }
    let mut cluster = cluster.restore_backup(backup, !seed, trace);
    cluster.start_workers_and_faults();
    run_to_end(&mut cluster);
    check_audit(&mut cluster);
    Some(cluster.refused_states)
}

/// The journal of a seed's run after this number of events, or at its end. For tests of the audit.
pub fn recorded_journal(seed: u64, events: u64) -> ReadOnlyJournal {
    let mut cluster = Cluster::new(seed, Trace::Off, Scenario::random);
    cluster.start_workers_and_faults();
    while cluster.outcome.is_none() && cluster.event_count < events && cluster.step(MAX_VIRTUAL_TIME) {}
    cluster.take_journal()
}

/// The fingerprint of a seed's run: the number of events, and a hash of its trace.
fn fingerprint(seed: u64) -> (u64, u64) {
    let cluster = run_seed(seed, Trace::Hash(DefaultHasher::new()));
    let Trace::Hash(hasher) = cluster.trace else { unreachable!("the trace is hashed") };
    (cluster.event_count, hasher.finish())
}

/// Totals over all seeds.
#[derive(Default)]
struct Totals {
    seeds: u64,
    events: u64,
    virtual_seconds: u64,
    /// Coordinator processes.
    coordinators: u64,
    generations: u64,
    /// Steps that at least one member has applied.
    steps_trained: u64,
    /// Committed steps that were given up.
    steps_given_up: u64,
    /// Different steps in the committed histories at the end.
    steps_committed: u64,
    /// Planned steps that are not committed at the end.
    steps_missing: u64,
    steps_committed_twice: u64,
    /// Evaluated states of the histories at the end.
    evaluations: u64,
    /// Checkpoints on disk at the end.
    checkpoints: u64,
    faults: BTreeMap<Fault, u64>,
}

impl Totals {
    fn add(&mut self, cluster: &Cluster) {
        self.seeds += 1;
        self.events += cluster.event_count;
        self.virtual_seconds += cluster.queue.now().as_secs();
        self.coordinators += cluster.coordinator.incarnation;
        self.generations += cluster.invariants.generations_formed;
        let planned: BTreeSet<Position> = cluster.steps_to(cluster.run_end()).into_iter().collect();
        let committed: BTreeSet<Position> = cluster.invariants.committed.iter().map(|update| update.position).collect();
        self.steps_committed += committed.len() as u64;
        self.steps_missing += (&planned - &committed).len() as u64;
        self.steps_committed_twice += (cluster.invariants.committed.len() - committed.len()) as u64;
        self.steps_trained += cluster.invariants.steps_trained;
        self.steps_given_up += cluster.invariants.steps_given_up;
        self.checkpoints += cluster.disk.checkpoints.len() as u64;
        self.evaluations += cluster.invariants.evaluated.len() as u64;
        for (fault, count) in &cluster.faults.counts {
            *self.faults.entry(*fault).or_default() += count;
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, events, virtual_seconds, coordinators, generations, .. } = self;
        let Self { steps_trained, steps_given_up, steps_committed, steps_missing, steps_committed_twice, .. } = self;
        let Self { evaluations, checkpoints, .. } = self;
        writeln!(f, "{seeds} seeds, {events} events in {virtual_seconds} virtual seconds")?;
        writeln!(f, "{coordinators} coordinators, {generations} generations")?;
        writeln!(f, "{steps_trained} steps trained, {steps_given_up} of them given up after a failure or a rollback")?;
        writeln!(
            f,
            "{steps_committed} steps committed in the end, {steps_missing} missing, {steps_committed_twice} committed twice"
        )?;
        writeln!(f, "{evaluations} evaluations, {checkpoints} checkpoints in the end")?;
        let faults: Vec<String> = self.faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        write!(f, "faults: {}", faults.join(", "))
    }
}

/// The value of an environment variable, if it is set.
fn env_number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// The message of a panic.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

/// Calls `run` for each seed, on all cores. Panics with the seeds that failed.
fn for_each_seed(run: impl Fn(u64) + Sync) {
    let (seeds, next) = (env_number("SEEDS").unwrap_or(DEFAULT_SEEDS), AtomicU64::new(0));
    let failures = Mutex::new(BTreeMap::new());
    let run_seeds = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds {
            return;
        }
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| run(seed))) {
            let mut failures = failures.lock().expect("no thread panics while it holds the lock");
            failures.insert(seed, panic_message(&*panic).to_owned());
            if failures.len() >= MAX_FAILURES {
                next.store(seeds, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(run_seeds);
        }
    });
    let failures = failures.into_inner().expect("no thread panics while it holds the lock");
    let lines: Vec<String> = failures.iter().map(|(seed, reason)| format!("seed {seed} failed: {reason}")).collect();
    if let Some(seed) = failures.keys().next() {
        let replay = "cargo test -p dico-coordinator --lib simulation::seeds -- --nocapture";
        panic!("{}\nreplay: SEED={seed} {replay}", lines.join("\n"));
    }
}

#[test]
fn each_run_finishes_and_commits_each_step_once() {
    if let Some(seed) = env_number("SEED") {
        run_seed(seed, Trace::Print);
        return;
    }
    let totals = Mutex::new(Totals::default());
    for_each_seed(|seed| {
        let cluster = run_seed(seed, Trace::Off);
        totals.lock().expect("no thread panics while it holds the lock").add(&cluster);
    });
    println!("{}", totals.into_inner().expect("no thread panics while it holds the lock"));
}

#[test]
fn a_run_is_not_affected_by_workers_of_another_run() {
    if let Some(seed) = env_number("SEED") {
        run_with_former_workers(seed, Trace::Print);
        return;
    }
    let (total_honest, total_forging) = (AtomicU64::new(0), AtomicU64::new(0));
    for_each_seed(|seed| {
        let FormerWorkerCounts { honest, forging } = run_with_former_workers(seed, Trace::Off);
        total_honest.fetch_add(honest, Ordering::Relaxed);
        total_forging.fetch_add(forging, Ordering::Relaxed);
    });
    let (honest, forging) = (total_honest.into_inner(), total_forging.into_inner());
    assert!(honest > 0 && forging > 0);
    println!("{honest} workers of other runs joined, and {forging} with a forged state");
}

#[test]
fn a_run_resumes_from_an_older_copy_of_its_journal() {
    if let Some(seed) = env_number("SEED") {
        run_from_backup(seed, Trace::Print);
        return;
    }
    let (resumed_runs, refused_states) = (AtomicU64::new(0), AtomicU64::new(0));
    for_each_seed(|seed| {
        if let Some(refused) = run_from_backup(seed, Trace::Off) {
            resumed_runs.fetch_add(1, Ordering::Relaxed);
            refused_states.fetch_add(refused, Ordering::Relaxed);
        }
    });
    let (resumed_runs, refused_states) = (resumed_runs.into_inner(), refused_states.into_inner());
    assert!(resumed_runs > 0 && refused_states > 0);
    println!(
        "{resumed_runs} runs resumed from older copies, and refused {refused_states} states that these do not know"
    );
}

#[test]
fn a_seed_determines_its_run() {
    let seeds = match env_number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..env_number("SEEDS").unwrap_or(DEFAULT_SEEDS),
    };
    for seed in seeds.step_by(REPEAT_INTERVAL) {
        assert_eq!(fingerprint(seed), fingerprint(seed), "seed {seed}");
    }
}
