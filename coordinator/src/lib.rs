//! The coordinator of a distributed, elastic DiCO run: plans what is trained, directs the workers that train it, and
//! records what they report. It never sees a tensor and links no libtorch.
//!
//! ```text
//!   run file (YAML)                                     workers
//!        |                                              |     ^
//!        v                                      reports |     | directives
//!      cli  serve, and one each for what else is asked  v     |
//!        |                                        service::grpc     service::http --> Prometheus, probes, the page
//!        '------------> service::driver <---- Input ----'              ^
//!                         |        ^                                   |
//!                   Event |        | Action                            |
//!                         v        |                                   |
//!                       run::Run --'   (pure: no clock, no I/O)        |
//!                                                                      |
//!                       service::driver -- Record --> journal (SQLite) |
//!                              |----------- Record --> service::metrics'
//!                              '----------- captions --> scoring --> Event
//! ```
//!
//! - [`run`]: everything hard is decided here, by a function from events to actions.
//! - [`service`]: the thin shell of sockets, clock and threads around it.
//! - [`journal`]: the durable record, and how a restarted coordinator goes on.
//! - [`audit`]: whether the journal bears out that every sample was trained on once.
//! - [`report`] and [`tensorboard`]: the journal as a page, and as event files.
//! - `watch`: a run as it goes, in a terminal.
//! - [`cli`]: one file per subcommand.

pub mod audit;
mod checkpoints;
pub mod cli;
mod happened;
pub mod journal;
mod random;
pub mod report;
pub mod run;
pub mod service;
pub mod tensorboard;
mod text;
mod watch;
