//! The state machine against simulated workers, networks and disks, in virtual time: whatever is lost, late, cut off, frozen or
//! killed, every sample is trained on once, and the run reaches its end.
//!
//! ```text
//!   seeds ------> scenario    what a run is like; everything follows from one number
//!     |      '--> faults      what goes wrong, and is put right
//!     v
//!   world <------ agenda      what is due, in virtual time
//!     |---------- coordinator the state machine and its journal; dies between any two actions
//!     |---------- network     sessions that keep their order; delays, cuts, resets, lost answers
//!     |---------- worker      a process: connection (joins, beats, comes back) and training (executes directives)
//!     |---------- collective  what the members of a generation can only do together
//!     |---------- saver       a worker's: writes checkpoints while training goes on
//!     |---------- disk        checkpoints
//!     '---------- invariants  what must hold, checked at every step
//!   stories       one thing at a time, in the same world
//!   nonsense      messages that no worker would send
//! ```
//!
//! A simulated worker's state is the list of updates that it has been through; an update happens only when all members of a
//! generation have come to it, as an all-reduce demands. Captions name their state, and scores depend on nothing else: so a stage
//! with a metric must end at the step that a few lines of sequential code name.

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

/// A worker's address, where any will do.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Images of the validation split: three ranges.
const IMAGES: u64 = 120;

/// Names a worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WorkerId(u64);

/// An update: the point that it led to, and the generation that applied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Step {
    place: Place,
    generation: u64,
}

/// A state: all updates that led to it.
type History = Vec<Step>;

/// Some score in 0..7 of a state.
fn score(salt: u64, at: Place) -> f64 {
    let mixed = (at.step + 31 * u64::from(at.stage) + 1).wrapping_mul(salt | 1);
    ((mixed ^ (mixed >> 7)) % 7) as f64
}
