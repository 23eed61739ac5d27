//! Deterministic simulation tests: the state machine with simulated workers, network and disk, in
//! virtual time. Messages are lost or delayed, connections fail, processes are suspended or killed.
//! The tests assert that the run still reaches its end, and trains on each sample once.
//!
//! ```text
//!   seeds ------> scenario     parameters of a run, drawn from the seed
//!     |      '--> faults       fault injection and repair
//!     v
//!   cluster <---- event_queue  events in virtual time
//!     |---------- coordinator  state machine and journal; may crash between any two actions
//!     |---------- network      sessions with ordered streams; delays, partitions, resets
//!     |---------- worker       process: connection (joins, heartbeats, reconnects) and training
//!     |---------- collective   rendezvous and all-reduce of a generation's members
//!     |---------- saver        writes a worker's checkpoints while training continues
//!     |---------- disk         checkpoint storage
//!     '---------- invariants   assertions after each event
//!   scripted                   tests of one scenario each, without random faults
//!   invalid_messages           messages that no correct worker sends
//! ```
//!
//! The state of a simulated worker is the list of its updates. A worker applies an update only
//! after all members of the generation have entered the all-reduce. Captions name their state, and
//! scores depend on the position of the state alone. Sequential code can therefore compute the step
//! with which a stage must end ([`scenario::Scenario::expected_best_step`]).

mod cluster;
mod collective;
mod connection;
mod coordinator;
mod disk;
mod event_queue;
mod faults;
mod invalid_messages;
mod invariants;
mod network;
mod saver;
mod scenario;
mod scripted;
pub(crate) mod seeds;
mod training;
mod worker;

use std::net::{IpAddr, Ipv4Addr};

use super::plan::Position;

/// The address of workers in tests in which it does not matter.
const WORKER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The number of validation images: three ranges (0..50, 50..100, 100..120).
const VALIDATION_IMAGES: u64 = 120;

/// Identifies a worker process. Unlike a worker id, it is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ProcessId(u64);

/// An update of the parameters: the position that it reached, and the generation that applied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Update {
    position: Position,
    generation: u64,
}

/// A state of the parameters: all updates that led to it.
type History = Vec<Update>;

/// A pseudo-random score in 0..7 of the state at a position. The salt selects the metric and varies
/// between scenarios.
fn score(salt: u64, position: Position) -> f64 {
    let mixed = (position.step + 31 * u64::from(position.stage) + 1).wrapping_mul(salt | 1);
    ((mixed ^ (mixed >> 7)) % 7) as f64
}
