//! The coordinator of a distributed, elastic DiCO run. It plans what is trained, directs the
//! workers that train it, and records what they report. It never sees a tensor and links no
//! libtorch.
//!
//! ```text
//!    workers, admin commands           browsers, Prometheus, probes
//!        |          ^                      |            ^
//!  calls |          | directives, answers  | requests   | answers
//!        v          |                      v            |
//!      service::grpc                     service::http (web page, metrics)
//!        |                                 |            ^
//!        | DriverInput                     |            | reads
//!        v                 DriverInput     |            |
//!      service::driver <-------------------'            |
//!        |       ^  | |                                 |
//!        |       |  | '---- Record -----> journal (SQLite), service::metrics
//!        |       |  |
//!        |       |  '---- captions -----> service::evaluations -- scores --> service::driver
//!        | Event | Action
//!        v       |
//!      dico_engine::Engine (pure: no clock, no I/O)
//! ```
//!
//! `cli::serve` reads the run file and starts the service. The driver is the task that owns the
//! state machine [`Engine`](dico_engine::Engine). A `DriverInput` is a message to the driver, such
//! as a call with the channel for its answer. The driver converts most inputs to a
//! [`Event`](dico_engine::Event) without channel. The captions of an evaluation are scored by
//! `service::evaluations`, outside of the state machine and on a thread of their own; the scores
//! come back to the driver as an event.
//!
//! The *web page* is the dashboard that `service::http` serves to browsers (`service/http/page/`).
//! The HTML file of `coordinator report` is called *the report*.
//!
//! - [`dico_engine`], a crate of its own: the state machine, a function from events to actions. All
//!   decisions are made there.
//! - [`service`]: the sockets, the clock and the threads around the state machine.
//! - [`journal`], a crate of its own: the durable record of a run, from which a restarted
//!   coordinator resumes.
//! - `checkpoints`: compares the stored checkpoints with those in the journal at the start.
//! - [`audit`]: checks the journal and the checkpoints, and that each sample was trained on exactly
//!   once.
//! - [`report`]: the report of a run from its journal, as an HTML file or as JSON.
//! - [`tensorboard`]: the journal as TensorBoard event files.
//! - `watch`: a live view of a run in a terminal (`coordinator watch`).
//! - `buckets`: curves with a bounded number of points, for the web page and the report.
//! - `step_metrics`: the metrics of a step that the report and TensorBoard show.
//! - `event_messages`: one-line descriptions of events, for `coordinator events` and the report.
//! - `formatting`: numbers, durations and times as text.
//! - `random_ids`: random keys of join requests and coordinator terms.
//! - [`cli`]: the command line, one file per subcommand.

pub mod audit;
mod buckets;
mod captions;
mod checkpoints;
pub mod cli;
mod event_messages;
mod formatting;
mod random_ids;
pub mod report;
pub mod service;
#[cfg(test)]
mod simulation;
mod step_metrics;
pub mod tensorboard;
mod watch;
