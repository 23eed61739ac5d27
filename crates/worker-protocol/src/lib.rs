//! What a worker does with the coordinator's directives, as state machines without clock, sockets
//! or threads: in which order it executes them, when it stops, and what it reports. `dico-worker`
//! runs them on its threads, the simulation of `dico-coordinator` in virtual time, and
//! `load-generator` without computing anything.
//!
//! ```text
//!   coordinator                                                  libtorch, collective
//!      | directives                                                     ^ Work
//!      v                                                                |
//!   Session ------------ Command, with the generation's flags ---> Training
//!      |  checks each directive, raises flags                           | one directive at a time,
//!      |  <-------------------- reports ------------------------------- | one piece of work at a time
//!      v
//!   coordinator
//! ```
//!
//! A worker has one [`Session`] protocol, which lives as long as its training state, and one
//! [`Training`] protocol, on the thread that trains. They share only the [`GenerationFlags`], which
//! reach a training thread that is busy or waits for other ranks.
//!
//! | file | content |
//! |---|---|
//! | `session` | the side of the connection: attaching, directives, reports, loss of the connection |
//! | `training` | the side of the training thread: what it does next, and what it reports |
//! | `checker` | whether a directive is valid in this run at this point |
//! | `flags` | signals from the session to the training thread |
//! | `violation` | a violation of the protocol by the coordinator |

mod checker;
mod flags;
mod session;
mod training;
mod violation;

pub use checker::CheckedDirective;
pub use flags::{GenerationFlags, StopFlag};
pub use session::{Command, Continuation, DirectiveEffect, ReportEffect, Session};
pub use training::{GenerationFailure, Response, Training, TrainingEnd, Work};
pub use violation::ProtocolViolation;
