//! Injection of faults, and their repair.

use std::collections::BTreeMap;

use dico_engine::{Command, Time, WorkerId};
use rand::{
    Rng,
    seq::{IndexedRandom, IteratorRandom},
};

use super::{
    ProcessId,
    cluster::{Cluster, SimEvent},
    network::Direction,
    worker::{Activity, WakeReason},
};

/// The time after which an operator kills a worker that hangs.
const OPERATOR_DELAY: Time = Time::from_secs(900);

/// A kind of fault. Most faults affect one worker, the victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A worker process is killed (SIGKILL).
    KillWorker,
    /// A worker's machine is lost; its connections are not closed.
    LoseMachine,
    /// A worker process is suspended (SIGSTOP).
    SuspendWorker,
    /// A worker's training thread is blocked for a while; its heartbeats continue.
    BlockTraining,
    /// A worker's training thread is blocked until an operator kills the process; its heartbeats
    /// continue.
    HangTraining,
    /// A worker computes 20 times more slowly than the others.
    SlowWorker,
    /// A worker's collective fails.
    FailCollective,
    /// A worker reports a fatal failure and exits.
    FailWorker,
    /// A worker's messages do not reach the coordinator.
    PartitionToCoordinator,
    /// The coordinator's messages do not reach a worker.
    PartitionToWorker,
    /// A worker and the coordinator cannot reach each other.
    PartitionCoordinator,
    /// A worker and its peers cannot reach each other.
    PartitionPeers,
    /// A session is reset, and all packets in flight are lost.
    ResetSession,
    /// Some join requests and responses are lost.
    LoseJoins,
    /// Some packets have long delays.
    DelayPackets,
    /// The coordinator is killed.
    KillCoordinator,
    /// The coordinator is killed between two actions.
    CrashBetweenActions,
    /// The coordinator receives a shutdown signal.
    StopCoordinator,
    /// A second worker is started with the worker id of the victim.
    DuplicateWorkerId,
    /// A worker receives a shutdown signal.
    ShutDownWorker,
    /// The disk is full.
    FillDisk,
    /// A checkpoint on disk is damaged.
    DamageCheckpoint,
    /// The coordinator process is suspended (SIGSTOP).
    SuspendCoordinator,
    /// The coordinator waits for its journal; its connections stay open.
    BlockJournal,
    /// An operator sends a command.
    SendCommand,
}

impl Fault {
    /// All faults. Seeds depend on their order.
    pub const ALL: [Self; 25] = [
        Self::KillWorker,
        Self::LoseMachine,
        Self::SuspendWorker,
        Self::BlockTraining,
        Self::HangTraining,
        Self::SlowWorker,
        Self::FailCollective,
        Self::FailWorker,
        Self::PartitionToCoordinator,
        Self::PartitionToWorker,
        Self::PartitionCoordinator,
        Self::PartitionPeers,
        Self::ResetSession,
        Self::LoseJoins,
        Self::DelayPackets,
        Self::KillCoordinator,
        Self::CrashBetweenActions,
        Self::StopCoordinator,
        Self::DuplicateWorkerId,
        Self::ShutDownWorker,
        Self::FillDisk,
        Self::DamageCheckpoint,
        Self::SuspendCoordinator,
        Self::BlockJournal,
        Self::SendCommand,
    ];

    /// Faults after which no step has to be repeated.
    pub const HARMLESS: [Self; 5] =
        [Self::ShutDownWorker, Self::SlowWorker, Self::FillDisk, Self::BlockJournal, Self::SendCommand];

    /// The directions that a partition affects.
    fn directions(self) -> &'static [Direction] {
        match self {
            Self::PartitionToCoordinator => &[Direction::ToCoordinator],
            Self::PartitionToWorker => &[Direction::ToWorker],
            Self::PartitionCoordinator => &[Direction::ToCoordinator, Direction::ToWorker],
            Self::PartitionPeers => &[Direction::BetweenWorkers],
            _ => &[],
        }
    }
}

/// The state of fault injection.
#[derive(Debug, Default)]
pub struct Faults {
    /// Whether injection has ended.
    pub is_stopped: bool,
    /// The number of faults that are not repaired yet. Hangs are not counted: an operator repairs
    /// them.
    pub unrepaired_count: u32,
    /// The number of injected faults of each kind.
    pub counts: BTreeMap<Fault, u64>,
}

impl Cluster {
    /// Schedules a worker on each machine, the first fault, and the end of faults.
    pub fn start_workers_and_faults(&mut self) {
        for machine in 0..self.scenario.machines.len() {
            self.queue
                .schedule_after(Time::from_millis(self.rng.random_range(0..2_000)), SimEvent::StartWorker { machine });
        }
        if !self.scenario.faults.is_empty() {
            self.schedule_next_fault();
        }
        self.queue.schedule_after(self.scenario.faults_end_at, SimEvent::StopFaults);
    }

    fn schedule_next_fault(&mut self) {
        let delay = self.scenario.fault_interval.mul_f64(self.rng.random_range(0.0..2.0));
        self.queue.schedule_after(delay, SimEvent::InjectFault);
    }

    /// Schedules a new worker on the machine of one that has ended.
    pub fn schedule_replacement(&mut self, host: &str) {
        let machine = (0..self.scenario.machines.len()).find(|machine| host_name(*machine) == host);
        if let Some(machine) = machine {
            let delay = self.random_restart_delay();
            self.queue.schedule_after(delay, SimEvent::StartWorker { machine });
        }
    }

    /// Starts a worker on a machine.
    pub fn start_worker_on(&mut self, machine: usize) {
        self.start_worker(host_name(machine), self.scenario.machines[machine]);
    }

    /// Injects a random fault of the scenario and schedules the next one.
    pub fn inject_random_fault(&mut self) {
        if self.faults.is_stopped {
            return;
        }
        let fault = *self.scenario.faults.choose(&mut self.rng).expect("the scenario has faults");
        if let Some(victim) = self.workers.keys().copied().choose(&mut self.rng) {
            self.trace(format_args!("{fault:?} {victim:?}"));
            *self.faults.counts.entry(fault).or_default() += 1;
            self.inject_fault(fault, victim);
        }
        self.restart_progress_timeout();
        self.schedule_next_fault();
    }

    /// Injects a fault, and schedules its repair if it lasts.
    fn inject_fault(&mut self, fault: Fault, victim: ProcessId) {
        match fault {
            Fault::KillWorker => self.end_worker(victim),
            Fault::LoseMachine => self.lose_machine(victim),
            Fault::SuspendWorker | Fault::BlockTraining | Fault::HangTraining | Fault::SlowWorker => {
                let Some(worker) = self.workers.get_mut(&victim) else { return };
                match fault {
                    Fault::SuspendWorker => worker.is_suspended = true,
                    Fault::BlockTraining | Fault::HangTraining => worker.is_training_blocked = true,
                    _ => worker.step_duration = self.scenario.step_duration * 20,
                }
                self.schedule_repair(fault, victim);
            }
            Fault::FailCollective => {
                let activity = self.workers.get(&victim).map(|worker| &worker.activity);
                if !matches!(
                    activity,
                    None | Some(
                        Activity::Idle
                            | Activity::CheckingPeers(_)
                            | Activity::CopyingState(_)
                            | Activity::AwaitingSaver
                            | Activity::Finishing
                    )
                ) {
                    self.schedule_wake_up(victim, Time::ZERO, WakeReason::CollectiveFailed);
                }
            }
            Fault::FailWorker => {
                let worker = &self.workers[&victim];
                if worker.generation.is_some() && worker.session().is_some() {
                    self.fail_worker(victim, "out of memory");
                }
            }
            Fault::PartitionToCoordinator
            | Fault::PartitionToWorker
            | Fault::PartitionCoordinator
            | Fault::PartitionPeers => {
                fault.directions().iter().for_each(|direction| self.partition(victim, *direction));
                self.schedule_repair(fault, victim);
            }
            Fault::ResetSession => {
                if let Some(session) = self.workers[&victim].session() {
                    let (coordinator_notices, worker_notices) = (true, true);
                    self.reset_session(session, coordinator_notices, worker_notices);
                }
            }
            Fault::LoseJoins | Fault::DelayPackets => {
                let network = &mut self.network;
                match fault {
                    Fault::LoseJoins => network.loses_joins = true,
                    _ => network.has_long_delays = true,
                }
                self.schedule_repair(fault, victim);
            }
            Fault::KillCoordinator => {
                let restart_after = self.random_restart_delay();
                self.kill_coordinator(restart_after);
            }
            Fault::CrashBetweenActions => self.coordinator.actions_until_crash = Some(self.rng.random_range(0..40)),
            Fault::StopCoordinator => self
                .queue
                .schedule_after(Time::ZERO, SimEvent::StopCoordinator { incarnation: self.coordinator.incarnation }),
            Fault::DuplicateWorkerId => {
                if let Some(worker_id) = self.workers[&victim].worker_id {
                    self.start_worker(format!("duplicate of {victim:?}"), Some(worker_id));
                }
            }
            Fault::ShutDownWorker => {
                self.queue.schedule_after(
                    Time::ZERO,
                    SimEvent::ConnectionWakeUp { worker: victim, reason: WakeReason::ShutdownSignal },
                );
            }
            Fault::FillDisk => {
                self.disk.is_full = true;
                self.schedule_repair(fault, victim);
            }
            Fault::DamageCheckpoint => {
                let name = self.disk.checkpoints.keys().choose(&mut self.rng).cloned();
                self.disk.damaged.extend(name);
            }
            Fault::SuspendCoordinator if self.coordinator.engine.is_some() => {
                let now = self.queue.now();
                self.coordinator.suspended_since.get_or_insert(now);
                self.schedule_repair(fault, victim);
            }
            Fault::BlockJournal if self.coordinator.engine.is_some() => {
                self.coordinator.is_waiting_for_journal = true;
                self.schedule_repair(fault, victim);
            }
            Fault::SuspendCoordinator | Fault::BlockJournal => {}
            Fault::SendCommand => {
                let worker_id = self.workers[&victim].worker_id.unwrap_or_default();
                let commands =
                    [Command::Pause, Command::Checkpoint, Command::Evaluate, Command::Drain(WorkerId(worker_id))];
                let command = *commands.choose(&mut self.rng).expect("there are four commands");
                self.send_command(command);
            }
        }
    }

    /// Schedules the repair of a fault after a random time.
    fn schedule_repair(&mut self, fault: Fault, victim: ProcessId) {
        let max_ms = if self.rng.random_ratio(1, 8) { 80_000 } else { 6_000 };
        let duration = match fault {
            // The coordinator should evict the worker long before that.
            Fault::HangTraining => OPERATOR_DELAY,
            _ => Time::from_millis(self.rng.random_range(50..max_ms)),
        };
        self.faults.unrepaired_count += u32::from(fault != Fault::HangTraining);
        self.queue.schedule_after(duration, SimEvent::RepairFault(fault, victim));
    }

    /// Ends the effect of a fault.
    pub fn repair_fault(&mut self, fault: Fault, victim: ProcessId) {
        self.faults.unrepaired_count -= u32::from(fault != Fault::HangTraining);
        if let Some(worker) = self.workers.get_mut(&victim) {
            worker.repaired_at = self.queue.now();
        }
        match fault {
            Fault::HangTraining => self.end_worker(victim),
            Fault::FillDisk => self.disk.is_full = false,
            Fault::SuspendCoordinator | Fault::BlockJournal => self.resume_coordinator(),
            Fault::SuspendWorker | Fault::BlockTraining => self.resume_worker(victim),
            Fault::SlowWorker => {
                if let Some(worker) = self.workers.get_mut(&victim) {
                    worker.step_duration = self.scenario.step_duration;
                }
            }
            Fault::LoseJoins => self.network.loses_joins = false,
            Fault::DelayPackets => {
                (self.network.has_long_delays, self.network.long_delays_ended_at) = (false, self.queue.now());
            }
            _ => fault.directions().iter().for_each(|direction| self.heal(victim, *direction)),
        }
        self.restart_progress_timeout();
    }

    /// Ends the injection of faults. Repairs stay scheduled.
    pub fn stop_faults(&mut self) {
        self.faults.is_stopped = true;
        self.coordinator.actions_until_crash = None;
        self.restart_progress_timeout();
    }

    /// Restarts the timeout within which the run has to make progress.
    fn restart_progress_timeout(&mut self) {
        self.invariants.last_fault_change_at = self.queue.now();
    }
}

/// The host name of a machine.
fn host_name(machine: usize) -> String {
    format!("machine {machine}")
}
