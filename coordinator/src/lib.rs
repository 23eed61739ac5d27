//! The coordinator of a distributed, elastic DiCO run. It plans what is trained, directs the
//! workers that train it, and records what they report. It never sees a tensor and links no
//! libtorch.
//!
//! ```text
//!   run file (YAML)                         workers
//!        |                                  |     ^
//!        v                          reports |     | directives
//!      cli  (serve)                         v     |
//!        |                            service::grpc     service::http --> Prometheus, probes, page
//!        '--> service::driver <-- Input ----'              ^
//!                |        ^                                |
//!          Event |        | Action                         |
//!                v        |                                |
//!              run::Run --'   (pure: no clock, no I/O)     |
//!                                                          |
//!              service::driver -- Record --> journal (SQLite)
//!                     |---------- Record --> service::metrics
//!                     '---------- captions --> scores --> Event
//! ```
//!
//! - [`run`]: the state machine, a function from events to actions. All decisions are made here.
//! - [`service`]: sockets, clock and threads around it.
//! - [`journal`]: the durable record of a run, from which a restarted coordinator resumes.
//! - [`audit`]: checks with the journal that each sample was trained on exactly once.
//! - [`report`] and [`tensorboard`]: the journal as an HTML page, and as event files.
//! - `watch`: a live view of a run in a terminal.
//! - [`cli`]: the command line, one file per subcommand.

pub mod audit;
mod checkpoints;
pub mod cli;
mod event_text;
mod formatting;
pub mod journal;
mod random;
pub mod report;
pub mod run;
pub mod service;
pub mod tensorboard;
mod watch;
