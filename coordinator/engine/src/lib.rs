//! The engine: the state machine of a run, without clock, sockets, threads or randomness, like
//! openraft's engine. Its inputs are [`Event`]s and the time, its outputs are [`Action`]s.
//!
//! The *training state* at a position is what a checkpoint saves and a rendezvous copies between
//! workers: parameters, optimizer moments and the position. In this crate, *the state at a
//! position* always means the training state.
//!
//! ```text
//!   Event: Join, Attach, Message, Closed, Violation, CaptionsKept, CaptionSaveAttempted,
//!          Scored, Tick, Control, Shutdown
//!      |
//!      v
//!   Engine           engine      passes the event to its handler, then reconciles: applies the
//!      |                         effects, makes the first change that is due, and repeats
//!      |---- handler             change the state; each borrows the concerns that it may touch
//!      |       |---- admission           checks workers that join, and the state that they bring
//!      |       |---- membership          removes members, and marks those that leave
//!      |       |---- membership_changes  halts a generation for a worker that joins or leaves
//!      |       |---- failure_detection   finds members that are silent, or make no progress
//!      |       |---- reachability        finds members that others cannot connect to
//!      |       |---- generation          waiting -> forming -> running -> waiting -> ... -> over
//!      |       |---- training            grants steps, commits steps, begins stages
//!      |       |---- saving              saves the training state, and deletes old checkpoints
//!      |       |---- evaluation          assigns images to caption, and requests scores
//!      |       |---- stage               checks the guard's rules, and ends stages
//!      |       '---- control             executes commands of operators
//!      |---- decision            what happens next in a running generation: a table
//!      |---- output              the actions of an event, and the effects that are still to apply
//!      |---- state               one struct for each concern
//!      |       |---- generations         the current generation, and facts about earlier ones
//!      |       |---- history             the present history: positions, boundaries, scores
//!      |       |---- start_point         where the next generation starts
//!      |       |---- checkpoints         the saved states, and the save in progress
//!      |       |---- evaluation          the evaluation in progress
//!      |       |---- stage               the guard of the current stage, and the pause
//!      |       |---- membership          worker ids, sessions, reservations, heartbeats
//!      |       '---- data                the identity of the training data, and its changes
//!      '---- status              the answers to status requests and to the readiness probe
//!      |
//!      v
//!   Action: Admit, Accept, Refuse, Send, Close, Record, CollectCaptions, KeepCaptions, Score,
//!           DeleteCheckpoint, Exit
//!
//! plan             boundaries: checkpoints, evaluations, ends of stages
//! lineage          the present history: which states belong to it
//! guard            rules on metrics that warn, pause the run, or end the stage
//! model_selection  which state a stage ends with
//! term_log         which coordinator process formed a generation
//! shares           division of a batch among ranks
//! step_tracker     the position of each member
//! statistics       merged reports of a step
//! throughput       the time to the end of the stage
//! captions         captions of an evaluation, checked against limits
//! record           what the journal stores
//! event_kind       the kinds of events in the event log
//! checkpoint       a saved training state
//! restored         what the journal gives back to the next coordinator process
//! types            identifiers of workers, ranks, sessions and requests
//! command          what operators can order
//! outcome          how a coordinator process ends
//! refusal          why a worker or a command is refused
//! violation        a message that does not fit the protocol
//! settings         what does not change while a coordinator process serves the run
//! ```
//!
//! Three positions of the run matter. `committed` is the furthest position that at least one member
//! has applied and reported: the samples up to it are consumed. `granted` is the position up to
//! which the workers were ordered to train: at most `control.window` steps beyond the last step
//! that all members have reported. The third is the own position of each member of the generation.
//! It is at most `granted`, and at most one step or stage change behind `committed`, because a
//! member applies a step only after all members have entered the all-reduce of that step. The
//! training state of a worker comes only from another member, from a checkpoint or from the seed,
//! and each of them names its position in the plan. Therefore every training state has consumed
//! each sample up to its position exactly once.

// A function of the state machine fits on a screen: see `clippy.toml`.
#![warn(clippy::too_many_lines)]

pub mod action;
pub mod checkpoint;
pub mod command;
pub mod data;
pub mod decision;
mod engine;
pub mod event;
pub mod event_kind;
pub mod guard;
mod handler;
pub mod image_ranges;
pub mod lineage;
pub mod membership;
pub mod model_selection;
pub mod outcome;
mod output;
pub mod plan;
pub mod record;
pub mod refusal;
pub mod restored;
pub mod settings;
pub mod shares;
pub mod state;
pub mod statistics;
pub mod status;
pub mod step_tracker;
pub mod term_log;
pub mod throughput;
pub mod types;
pub mod violation;

pub use action::Action;
pub use command::Command;
pub use engine::Engine;
pub use event::Event;
pub use event_kind::EventKind;
pub use handler::control::end_of_granted_steps;
pub use outcome::Outcome;
pub use refusal::{Refusal, RefusalKind};
pub use status::NotReady;
pub use types::{Rank, RequestId, SessionId, Time, WorkerId};
pub use violation::ProtocolViolation;
