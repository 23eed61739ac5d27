//! Simulation tests: the state machine with simulated workers, networks and disks, in virtual time.
//! With messages lost, delayed or cut off, and processes suspended or killed, each sample is still
//! trained on once, and the run reaches its end.
//!
//! ```text
//!   seeds ------> scenario    the parameters of a run; everything follows from one number
//!     |      '--> faults      fault injection and repair
//!     v
//!   world <------ agenda      the event queue, in virtual time
//!     |---------- coordinator the state machine and its journal; dies between any two actions
//!     |---------- network     sessions with ordered streams; delays, cuts, resets, lost answers
//!     |---------- worker      a process: connection (joins, heartbeats, reconnects) and training
//!     |---------- collective  operations that members can only complete together
//!     |---------- saver       of a worker: writes checkpoints while training goes on
//!     |---------- disk        checkpoints
//!     '---------- invariants  checked at every step
//!   stories       single scenarios, in the same world
//!   nonsense      messages that no correct worker sends
//! ```
//!
//! The state of a simulated worker is the list of its updates. An update happens only when all
//! members of a generation have entered it, as in an all-reduce. Captions name their state, and
//! scores depend on nothing else; so a few lines of sequential code can compute the step at which a
//! stage with a metric must end.

mod agenda;
mod collective;
mod connection;
mod coordinator;
mod disk;
mod faults;
mod invariants;
mod network;
mod nonsense;
mod saver;
mod scenario;
pub(crate) mod seeds;
mod stories;
mod training;
mod worker;
mod world;

use std::net::{IpAddr, Ipv4Addr};

use super::plan::Place;

/// The address of a worker, where it does not matter.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The number of validation images: three ranges.
const IMAGES: u64 = 120;

/// The id of a worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WorkerId(u64);

/// An update: the point that it reached, and the generation that applied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Step {
    place: Place,
    generation: u64,
}

/// A state: all updates that led to it.
type History = Vec<Step>;

/// A score in 0..7 of a state, derived from the salt.
fn score(salt: u64, at: Place) -> f64 {
    let mixed = (at.step + 31 * u64::from(at.stage) + 1).wrapping_mul(salt | 1);
    ((mixed ^ (mixed >> 7)) % 7) as f64
}
