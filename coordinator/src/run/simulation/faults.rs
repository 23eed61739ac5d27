//! Fault injection, and repair of the faults.

use std::collections::BTreeMap;

use proto::v1;
use rand::{
    Rng,
    seq::{IndexedRandom, IteratorRandom},
};

use super::{
    WorkerId,
    network::Direction,
    worker::{Activity, Wake},
    world::{SimEvent, SimWorld},
};
use crate::run::{Command, Time};

/// An operator kills a hanging worker after this time.
const TENDED_AFTER: Time = Time::from_secs(900);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A worker is killed.
    Kill,
    /// A machine vanishes silently.
    Vanish,
    /// A worker process is suspended (SIGSTOP).
    Freeze,
    /// A worker's training thread is blocked for a while; its heartbeats continue.
    Stick,
    /// A worker's training thread is blocked for ever; its heartbeats continue.
    Hang,
    /// A worker computes much more slowly than the others.
    Slow,
    /// A worker's collective fails.
    Break,
    /// A worker fails, reports that and exits.
    Fatal,
    /// A worker's messages do not reach the coordinator.
    CutUp,
    /// The coordinator's messages do not reach a worker.
    CutDown,
    /// A worker and the coordinator cannot reach each other.
    CutOff,
    /// A worker and its peers cannot reach each other.
    CutPeers,
    /// A session is reset, and all messages in flight are lost.
    Reset,
    /// Join requests and answers are lost.
    Lossy,
    /// Some messages have long delays.
    Erratic,
    /// The coordinator is killed.
    KillCoordinator,
    /// The coordinator is killed between two actions.
    Doom,
    /// The coordinator is asked to stop.
    Stop,
    /// A second worker is started with another one's id.
    Duplicate,
    /// A worker gets a shutdown signal.
    Leave,
    /// The disk is full.
    FillDisk,
    /// A checkpoint on disk is damaged.
    Damage,
    /// The coordinator process is suspended (SIGSTOP).
    FreezeCoordinator,
    /// The coordinator waits for its journal; its connections stay open.
    HoldUpJournal,
    /// An operator sends a command.
    Meddle,
}

impl Fault {
    pub const ALL: [Self; 25] = [
        Self::Kill,
        Self::Vanish,
        Self::Freeze,
        Self::Stick,
        Self::Hang,
        Self::Slow,
        Self::Break,
        Self::Fatal,
        Self::CutUp,
        Self::CutDown,
        Self::CutOff,
        Self::CutPeers,
        Self::Reset,
        Self::Lossy,
        Self::Erratic,
        Self::KillCoordinator,
        Self::Doom,
        Self::Stop,
        Self::Duplicate,
        Self::Leave,
        Self::FillDisk,
        Self::Damage,
        Self::FreezeCoordinator,
        Self::HoldUpJournal,
        Self::Meddle,
    ];

    /// Faults that cost no training work.
    pub const HARMLESS: [Self; 5] = [Self::Leave, Self::Slow, Self::FillDisk, Self::HoldUpJournal, Self::Meddle];

    fn ways(self) -> &'static [Direction] {
        match self {
            Self::CutUp => &[Direction::Up],
            Self::CutDown => &[Direction::Down],
            Self::CutOff => &[Direction::Up, Direction::Down],
            Self::CutPeers => &[Direction::Peers],
            _ => &[],
        }
    }
}

#[derive(Debug, Default)]
pub struct Faults {
    /// Whether no further faults are injected.
    pub calm: bool,
    /// The number of faults that are not repaired yet.
    pub under_way: u32,
    pub counts: BTreeMap<Fault, u64>,
}

impl SimWorld {
    /// Starts a worker on each machine, and schedules faults.
    pub fn begin(&mut self) {
        for machine in 0..self.scenario.machines.len() {
            self.agenda.after(Time::from_millis(self.rng.random_range(0..2_000)), SimEvent::Hire { machine });
        }
        if !self.scenario.faults.is_empty() {
            self.next_fault();
        }
        self.agenda.after(self.scenario.calm_from, SimEvent::Calm);
    }

    fn next_fault(&mut self) {
        let wait = self.scenario.fault_every.mul_f64(self.rng.random_range(0.0..2.0));
        self.agenda.after(wait, SimEvent::Fault);
    }

    /// Frees the machine of a worker that has ended.
    pub fn vacate(&mut self, host: &str) {
        let machine = (0..self.scenario.machines.len()).find(|machine| host_of(*machine) == host);
        if let Some(machine) = machine {
            let after = self.some_time();
            self.agenda.after(after, SimEvent::Hire { machine });
        }
    }

    pub fn hire(&mut self, machine: usize) {
        self.start_worker(host_of(machine), self.scenario.machines[machine]);
    }

    /// Injects a fault.
    pub fn strike(&mut self) {
        if self.faults.calm {
            return;
        }
        let fault = *self.scenario.faults.choose(&mut self.rng).expect("some can");
        if let Some(victim) = self.workers.keys().copied().choose(&mut self.rng) {
            self.trace(format_args!("{fault:?} {victim:?}"));
            *self.faults.counts.entry(fault).or_default() += 1;
            self.inflict(fault, victim);
        }
        self.stir();
        self.next_fault();
    }

    fn inflict(&mut self, fault: Fault, victim: WorkerId) {
        match fault {
            Fault::Kill => self.end_worker(victim, false),
            Fault::Vanish => self.end_worker(victim, true),
            Fault::Freeze | Fault::Stick | Fault::Hang | Fault::Slow => {
                let Some(worker) = self.workers.get_mut(&victim) else { return };
                match fault {
                    Fault::Freeze => worker.frozen = true,
                    Fault::Stick | Fault::Hang => worker.stuck = true,
                    _ => worker.pace = self.scenario.pace * 20,
                }
                self.mend_later(fault, victim);
            }
            Fault::Break => {
                let doing = self.workers.get(&victim).map(|worker| &worker.doing);
                if !matches!(
                    doing,
                    None | Some(
                        Activity::Nothing
                            | Activity::Reaching(_)
                            | Activity::Copying(_)
                            | Activity::HandingOver
                            | Activity::Finishing
                    )
                ) {
                    self.wake(victim, Time::ZERO, Wake::Broken);
                }
            }
            Fault::Fatal => {
                let worker = &self.workers[&victim];
                if let Some(generation) = worker.generation.filter(|_| worker.session().is_some()) {
                    self.leave_generation(victim, generation);
                    let reason = "out of memory".to_owned();
                    self.fail(victim, v1::Failed { generation, reason, fatal: true, ..Default::default() });
                }
            }
            Fault::CutUp | Fault::CutDown | Fault::CutOff | Fault::CutPeers => {
                fault.ways().iter().for_each(|way| self.cut(victim, *way));
                self.mend_later(fault, victim);
            }
            Fault::Reset => {
                if let Some(session) = self.workers[&victim].session() {
                    self.reset(session, true, true);
                }
            }
            Fault::Lossy | Fault::Erratic => {
                let network = &mut self.network;
                *(if fault == Fault::Lossy { &mut network.lossy } else { &mut network.erratic }) = true;
                self.mend_later(fault, victim);
            }
            Fault::KillCoordinator => {
                let back_after = self.some_time();
                self.kill_coordinator(back_after);
            }
            Fault::Doom => self.coordinator.doomed = Some(self.rng.random_range(0..40)),
            Fault::Stop => self.agenda.after(Time::ZERO, SimEvent::Stop { life: self.coordinator.life }),
            Fault::Duplicate => {
                if let Some(rank) = self.workers[&victim].rank {
                    self.start_worker(format!("duplicate of {victim:?}"), Some(rank));
                }
            }
            Fault::Leave => {
                self.agenda.after(Time::ZERO, SimEvent::Connection { worker: victim, wake: Wake::Leave });
            }
            Fault::FillDisk => {
                self.disk.full = true;
                self.mend_later(fault, victim);
            }
            Fault::Damage => {
                let name = self.disk.checkpoints.keys().choose(&mut self.rng).cloned();
                self.disk.damaged.extend(name);
            }
            Fault::FreezeCoordinator if self.coordinator.run.is_some() => {
                let now = self.agenda.now();
                self.coordinator.frozen.get_or_insert(now);
                self.mend_later(fault, victim);
            }
            Fault::HoldUpJournal if self.coordinator.run.is_some() => {
                self.coordinator.held_up = true;
                self.mend_later(fault, victim);
            }
            Fault::FreezeCoordinator | Fault::HoldUpJournal => {}
            Fault::Meddle => {
                let rank = self.workers[&victim].rank.unwrap_or_default();
                let wishes = [Command::Pause, Command::Checkpoint, Command::Evaluate, Command::Drain(rank)];
                let command = *wishes.choose(&mut self.rng).expect("there are four");
                self.steer(command);
            }
        }
    }

    fn mend_later(&mut self, fault: Fault, victim: WorkerId) {
        let most = if self.rng.random_ratio(1, 8) { 80_000 } else { 6_000 };
        let lasts = match fault {
            // Until an operator kills it; the run should not have to wait for that.
            Fault::Hang => TENDED_AFTER,
            _ => Time::from_millis(self.rng.random_range(50..most)),
        };
        self.faults.under_way += u32::from(fault != Fault::Hang);
        self.agenda.after(lasts, SimEvent::Mend(fault, victim));
    }

    pub fn put_right(&mut self, fault: Fault, victim: WorkerId) {
        self.faults.under_way -= u32::from(fault != Fault::Hang);
        if let Some(worker) = self.workers.get_mut(&victim) {
            worker.well_since = self.agenda.now();
        }
        match fault {
            Fault::Hang => self.end_worker(victim, false),
            Fault::FillDisk => self.disk.full = false,
            Fault::FreezeCoordinator | Fault::HoldUpJournal => self.thaw_coordinator(),
            Fault::Freeze | Fault::Stick => self.thaw(victim),
            Fault::Slow => {
                if let Some(worker) = self.workers.get_mut(&victim) {
                    worker.pace = self.scenario.pace;
                }
            }
            Fault::Lossy => self.network.lossy = false,
            Fault::Erratic => (self.network.erratic, self.network.erratic_until) = (false, self.agenda.now()),
            _ => fault.ways().iter().for_each(|way| self.mend(victim, *way)),
        }
        self.stir();
    }

    /// Stops the injection of faults; existing ones are repaired at their time.
    pub fn calm_down(&mut self) {
        self.faults.calm = true;
        self.coordinator.doomed = None;
        self.stir();
    }

    fn stir(&mut self) {
        self.invariants.calm_since = self.agenda.now();
    }
}

fn host_of(machine: usize) -> String {
    format!("machine {machine}")
}
