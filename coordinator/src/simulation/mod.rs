//! Deterministic simulation tests: the state machine with simulated workers, network and disk, in
//! virtual time. Messages are lost or delayed, connections fail, processes are suspended or killed.
//! The tests assert that the run still reaches its end, and trains on each sample once.
//!
//! ```text
//!   tests: seeds               runs with random scenarios and faults
//!     |    scripted            one test for each scenario, without random faults
//!     |    invalid_messages    messages that no correct worker sends (without a cluster)
//!     |    resumption          a run that continues from a journal on disk
//!     |
//!     | create
//!     v
//!   cluster --- has ---------> scenario     the parameters of the run: run file, machines, speeds
//!     |--- takes events from > event_queue  events in virtual time
//!     |--- injects ----------> faults       fault injection and repair
//!     |--- checks -----------> invariants   assertions after each event
//!     |
//!     | simulates
//!     |---> coordinator   the state machine and its journal; may crash between any two actions
//!     |---> network       sessions of two ordered streams each; delays, partitions, resets
//!     |---> disk          the storage of checkpoints
//!     '---> worker        a worker process, which consists of:
//!             |---> connection   joins, heartbeats, reconnects
//!             |---> training     the training thread, whose work takes virtual time
//!             |---> collective   the rendezvous and all-reduces of a generation's members
//!             '---> saver        writes checkpoints while training continues
//! ```
//!
//! Connection and training thread run the worker's own state machines (`worker-protocol`): only the
//! work, the network, the collectives and the saver are simulated.
//!
//! The training state of a simulated worker is its [`UpdateHistory`]: the list of the updates
//! that it has applied. A worker applies an update only after all members of the generation have
//! entered the all-reduce. The text of a caption names the state that it was computed from. The
//! score of a state depends only on the scenario and the state's position. Therefore sequential
//! code can compute which state of a stage is the best, and so must end the stage
//! ([`scenario::Scenario::expected_best_step`]; stages with a rollback rule are not checked).

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
mod resumption;
mod saver;
mod scenario;
mod scripted;
pub(crate) mod seeds;
mod training;
mod worker;

use std::net::{IpAddr, Ipv4Addr};

use dico_engine::plan::Position;

/// The IP address of workers in tests that do not depend on it.
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

/// The training state of a simulated worker: all updates that led to it, in order.
type UpdateHistory = Vec<Update>;

/// The highest [`score`].
const MAX_SCORE: u64 = 6;

/// The score of the state at a position: a pseudo-random integer from 0 to [`MAX_SCORE`]. Different
/// salts give different scores, for different metrics and scenarios.
fn score(salt: u64, position: Position) -> f64 {
    let mixed = (position.step + 31 * u64::from(position.stage) + 1).wrapping_mul(salt | 1);
    ((mixed ^ (mixed >> 7)) % (MAX_SCORE + 1)) as f64
}
