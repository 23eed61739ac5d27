//! Simulated runs of many seeds; everything random in a run follows from its seed.
//!
//! `SEEDS` is the number of seeds (default 10,000); `SEED=n` runs only that one and prints all its
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

use rand::Rng;

use super::{
    faults::Fault,
    scenario::Scenario,
    worker::Worker,
    world::{SimWorld, Trace},
};
use crate::{
    audit::audit,
    journal::history::History,
    run::{Outcome, Time, plan::Place},
};

/// The default number of seeds.
const SEEDS: u64 = 10_000;
/// No more seeds are run after this many failures.
const MAX_FAILURES: usize = 5;
/// One seed in this many is run twice.
const REPEATED: usize = 100;
/// The virtual time by which each run has to be over.
const OVER_BY: Time = Time::from_secs(3_600);

/// Runs a seed to the end of its run.
fn live(seed: u64, trace: Trace) -> SimWorld {
    let mut world = SimWorld::new(seed, trace, Scenario::any);
    world.begin();
    finish(&mut world);
    check_audit(&mut world);
    world
}

/// Runs a world to the end of its run.
fn finish(world: &mut SimWorld) {
    while world.outcome.is_none() && world.step(OVER_BY) {}
    assert_eq!(world.outcome, Some(Outcome::Finished), "at {:?}", world.agenda.now());
    world.check_end();
}

/// Asserts that the audit of a finished run's journal is clean.
fn check_audit(world: &mut SimWorld) {
    let audit = audit(&world.record()).expect("a whole journal");
    assert!(audit.clean && audit.finished, "the record shows something else: {audit:?}");
}

/// More generations than any run has.
const NEVER_FORMED: u64 = 1_000;

/// Workers of another run that have joined with a state.
struct LeftOver {
    honest: u64,
    /// Those that claim a state of this run, of a generation that never existed.
    liars: u64,
}

/// Interrupts a seed's run, and serves another run to its end, which the workers of the first one
/// join.
fn follow(seed: u64, trace: Trace) -> LeftOver {
    let mut former = SimWorld::new(seed, Trace::Dropped, Scenario::any);
    former.begin();
    let events = former.rng.random_range(0..3_000);
    while former.outcome.is_none() && former.events < events && former.step(OVER_BY) {}

    let mut world = SimWorld::new(!seed, trace, Scenario::any);
    // As many as there are machines.
    let machines = world.scenario.machines.len();
    for (id, mut worker) in std::mem::take(&mut former.workers).into_iter().take(machines) {
        if let Some(position) = worker.position.as_mut().filter(|_| id.0 % 2 == 0) {
            position.generation += NEVER_FORMED;
            (worker.lies, worker.told) = (true, worker.told + NEVER_FORMED);
        }
        world.left_over.push(worker);
    }
    let of = |workers: &[Worker], lies: bool| {
        workers.iter().filter(|worker| worker.position.is_some() && worker.lies == lies).count() as u64
    };
    let [honest, liars] = [false, true].map(|lies| of(&world.left_over, lies));
    world.begin();
    finish(&mut world);
    LeftOver { honest: honest - of(&world.left_over, false), liars: liars - of(&world.left_over, true) }
}

/// Restores an older copy of a seed's journal, and runs it to the end. None if checkpoints on disk
/// show that it is old; else the number of workers whose states the copy does not know.
fn go_on_with_backup(seed: u64, trace: Trace) -> Option<u64> {
    let mut world = SimWorld::new(seed, Trace::Dropped, Scenario::any);
    world.begin();
    let (before, lost) = (world.rng.random_range(0..2_000), world.rng.random_range(1..1_000));
    let run_on = |world: &mut SimWorld, events: u64| {
        while world.outcome.is_none() && world.events < events && world.step(OVER_BY) {}
    };
    run_on(&mut world, before);
    let backup = world.back_up();
    run_on(&mut world, before + lost);
    if !backup.agrees(&world) {
        return None;
    }
    let mut world = world.restore_backup(backup, !seed, trace);
    world.begin();
    finish(&mut world);
    check_audit(&mut world);
    Some(world.disowned)
}

/// The journal of a seed's run after this many events, or at its end.
pub fn recorded(seed: u64, events: u64) -> History {
    let mut world = SimWorld::new(seed, Trace::Dropped, Scenario::any);
    world.begin();
    while world.outcome.is_none() && world.events < events && world.step(OVER_BY) {}
    world.record()
}

/// The fingerprint of a seed's run: its number of events, and a hash of all of them.
fn fingerprint(seed: u64) -> (u64, u64) {
    let world = live(seed, Trace::Hashed(DefaultHasher::new()));
    let Trace::Hashed(hasher) = world.trace else { unreachable!("as said above") };
    (world.events, hasher.finish())
}

/// Totals over all seeds.
#[derive(Default)]
struct Totals {
    seeds: u64,
    events: u64,
    /// Virtual time.
    seconds: u64,
    coordinators: u64,
    generations: u64,
    trained: u64,
    repeated: u64,
    committed: u64,
    lost: u64,
    twice: u64,
    evaluations: u64,
    checkpoints: u64,
    faults: BTreeMap<Fault, u64>,
}

impl Totals {
    fn add(&mut self, world: &SimWorld) {
        self.seeds += 1;
        self.events += world.events;
        self.seconds += world.agenda.now().as_secs();
        self.coordinators += world.coordinator.life;
        self.generations += world.invariants.formed;
        let planned: BTreeSet<Place> = world.way_to(world.end()).into_iter().collect();
        let committed: BTreeSet<Place> = world.invariants.committed.iter().map(|step| step.place).collect();
        self.committed += committed.len() as u64;
        self.lost += (&planned - &committed).len() as u64;
        self.twice += (world.invariants.committed.len() - committed.len()) as u64;
        self.trained += world.invariants.trained;
        self.repeated += world.invariants.repeated;
        self.checkpoints += world.disk.checkpoints.len() as u64;
        self.evaluations += world.invariants.evaluated.len() as u64;
        for (fault, count) in &world.faults.counts {
            *self.faults.entry(*fault).or_default() += count;
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, events, seconds, coordinators, generations, .. } = self;
        let Self { trained, repeated, committed, lost, twice, evaluations, checkpoints, .. } = self;
        writeln!(f, "{seeds} seeds, {events} events in {seconds} virtual seconds")?;
        writeln!(f, "{coordinators} coordinators, {generations} generations")?;
        writeln!(
            f,
            "{trained} steps trained, {repeated} of them given up with a state that was lost, or for a better one"
        )?;
        writeln!(f, "{committed} steps committed in the end, {lost} lost, {twice} committed twice")?;
        writeln!(f, "{evaluations} evaluations, {checkpoints} checkpoints in the end")?;
        let faults: Vec<String> = self.faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        write!(f, "faults: {}", faults.join(", "))
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value}: not a number")))
}

/// The message of a panic.
fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

/// Runs every seed, on all cores.
fn with_all_seeds(run: impl Fn(u64) + Sync) {
    let (seeds, next) = (number("SEEDS").unwrap_or(SEEDS), AtomicU64::new(0));
    let failures = Mutex::new(BTreeMap::new());
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds {
            return;
        }
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| run(seed))) {
            let mut failures = failures.lock().expect("whole");
            failures.insert(seed, said(&*panic).to_owned());
            if failures.len() >= MAX_FAILURES {
                next.store(seeds, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("whole");
    let lines: Vec<String> = failures.iter().map(|(seed, reason)| format!("seed {seed} failed: {reason}")).collect();
    if let Some(seed) = failures.keys().next() {
        let replay = "cargo test -p dico-coordinator --lib simulation::seeds -- --nocapture";
        panic!("{}\nreplay: SEED={seed} {replay}", lines.join("\n"));
    }
}

#[test]
fn whatever_happens_every_step_is_trained_once_and_the_run_is_finished() {
    if let Some(seed) = number("SEED") {
        live(seed, Trace::Printed);
        return;
    }
    let totals = Mutex::new(Totals::default());
    with_all_seeds(|seed| {
        let world = live(seed, Trace::Dropped);
        totals.lock().expect("whole").add(&world);
    });
    println!("{}", totals.into_inner().expect("whole"));
}

#[test]
fn a_run_is_not_touched_by_workers_that_another_has_left_over() {
    if let Some(seed) = number("SEED") {
        follow(seed, Trace::Printed);
        return;
    }
    let (came, lied) = (AtomicU64::new(0), AtomicU64::new(0));
    with_all_seeds(|seed| {
        let LeftOver { honest, liars } = follow(seed, Trace::Dropped);
        came.fetch_add(honest, Ordering::Relaxed);
        lied.fetch_add(liars, Ordering::Relaxed);
    });
    let (came, lied) = (came.into_inner(), lied.into_inner());
    assert!(came > 0 && lied > 0);
    println!("{came} workers of other runs came, and {lied} that lied about it");
}

#[test]
fn an_older_copy_of_the_journal_goes_on_without_what_was_lost() {
    if let Some(seed) = number("SEED") {
        go_on_with_backup(seed, Trace::Printed);
        return;
    }
    let (worlds, disowned) = (AtomicU64::new(0), AtomicU64::new(0));
    with_all_seeds(|seed| {
        if let Some(refused) = go_on_with_backup(seed, Trace::Dropped) {
            worlds.fetch_add(1, Ordering::Relaxed);
            disowned.fetch_add(refused, Ordering::Relaxed);
        }
    });
    let (worlds, disowned) = (worlds.into_inner(), disowned.into_inner());
    assert!(worlds > 0 && disowned > 0);
    println!("{worlds} older copies went on, and refused {disowned} states of what was lost");
}

#[test]
fn a_seed_always_gives_the_same_run() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds.step_by(REPEATED) {
        assert_eq!(fingerprint(seed), fingerprint(seed), "seed {seed}");
    }
}
