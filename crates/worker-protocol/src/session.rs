//! The side of the connection: attaches, checks directives and passes them on, passes reports back,
//! and releases the generation when the connection is lost.
//!
//! ```text
//!              attach                    on_disconnect
//!   detached ----------> attached ------------------------> releasing
//!      ^                                                        |
//!      '--------------------------------------------------------'
//!        the training thread reports Idle: it has released the generation
//! ```
//!
//! Reports that the training thread makes while the worker is detached wait for the next session.
//! Those of a generation that is being released are dropped: the position that the worker reports
//! when it attaches again includes them.

use config::{Change, Mutability, RunFile};
use proto::v1::{self, directive::Directive as DirectiveKind, worker_message::Message};

use crate::checker::ProtocolChecker;
use crate::{CheckedDirective, GenerationFlags, ProtocolViolation};

/// A directive for the training thread, with the flags of its generation.
#[derive(Clone, Debug)]
pub struct Command {
    /// The directive.
    pub directive: CheckedDirective,
    /// The flags of the directive's generation.
    pub flags: GenerationFlags,
}

/// What follows from a directive.
#[derive(Debug)]
pub enum DirectiveEffect {
    /// Nothing: the directive is obsolete, or a Halt, for which the flag is raised.
    None,
    /// The training thread executes it after the commands before it. If it is an Abandon, the flag
    /// is raised already.
    Execute(Command),
    /// The session ends, and the worker exits.
    Leave {
        /// The coordinator's reason.
        reason: String,
        /// Whether this worker wanted to leave, or no state is lost. Else it was evicted, and exits
        /// with an error.
        is_expected: bool,
    },
}

/// What follows from a report of the training thread.
#[derive(Debug)]
pub enum ReportEffect {
    /// It is sent to the coordinator.
    Send(Message),
    /// It is the last message: the run is complete, or this worker cannot continue. The worker
    /// sends it if it is attached, and exits.
    SendLast(Message),
    /// It is dropped.
    Discard,
    /// The generation of a lost session is released: the worker joins again.
    Released,
}

/// How a worker continues with the settings of a coordinator that it joins again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continuation {
    /// With the same settings.
    Unchanged,
    /// With changed settings, which the training thread applies. Lists their keys.
    Changed(String),
    /// Data and models have to be loaded again, and the training state is lost, for this reason.
    Reload(String),
}

/// The state of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Detached,
    Attached,
    /// The session is lost, and the training thread has not released the generation yet.
    Releasing,
}

/// The side of the connection of one worker, for one run.
#[derive(Debug)]
pub struct Session {
    checker: ProtocolChecker,
    run: RunFile,
    run_id: String,
    connection: Connection,
    /// The generation of the last Rendezvous; 0 before the first.
    generation: u64,
    /// The term of that generation: the coordinator process that formed it.
    term: u64,
    /// The flags of that generation.
    flags: GenerationFlags,
    /// The position of the training state when the last session ended.
    held_position: Option<v1::Position>,
    /// Whether this worker has announced in the present session that it leaves.
    has_announced_leave: bool,
}

impl Session {
    /// A worker that has loaded the data and models of the run with the id `run_id`, and holds no
    /// training state.
    #[must_use]
    pub fn new(run: RunFile, run_id: String, validation_images: u64) -> Self {
        Self {
            checker: ProtocolChecker::new(&run, validation_images),
            run,
            run_id,
            connection: Connection::Detached,
            generation: 0,
            term: 0,
            flags: GenerationFlags::default(),
            held_position: None,
            has_announced_leave: false,
        }
    }

    /// The generation of the last Rendezvous; 0 before the first.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The term of that generation.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The flags of that generation.
    #[must_use]
    pub fn flags(&self) -> &GenerationFlags {
        &self.flags
    }

    /// The id of the run.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Whether this worker has announced in the present session that it leaves.
    #[must_use]
    pub fn has_announced_leave(&self) -> bool {
        self.has_announced_leave
    }

    /// Applies the settings with which a coordinator has answered a join between two sessions. On
    /// [`Continuation::Reload`] this state machine is obsolete.
    pub fn continue_with(&mut self, run: &RunFile, run_id: &str) -> Continuation {
        if self.run_id != run_id {
            let reason = "the coordinator serves another run, which cannot use this worker's state";
            return Continuation::Reload(reason.to_owned());
        }
        if self.run == *run {
            return Continuation::Unchanged;
        }
        let changes = config::changes(&self.run, run);
        let changed = changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>().join(", ");
        if !changes.iter().all(is_applied_in_place) {
            return Continuation::Reload(format!("the coordinator has new settings: {changed}"));
        }
        self.checker.configure(run);
        self.run = run.clone();
        Continuation::Changed(changed)
    }

    /// Opens a session. Returns its first message, which says what the worker holds.
    pub fn attach(&mut self, session_token: String, store_address: String, data_set: v1::DataSet) -> v1::Attach {
        (self.connection, self.has_announced_leave) = (Connection::Attached, false);
        v1::Attach {
            session_token,
            store_address,
            data_set: Some(data_set),
            holds: self.held_position,
            run_id: self.run_id.clone(),
            generation: self.generation,
            term: self.term,
        }
    }

    /// Announces that this worker wants to leave. It finishes the step in flight, and then waits
    /// for the coordinator's Leave.
    pub fn announce_leave(&mut self, reason: &str) -> Message {
        self.has_announced_leave = true;
        self.flags.halt.raise();
        Message::Leaving(v1::Leaving { reason: reason.to_owned() })
    }

    /// Handles a directive of the coordinator.
    ///
    /// # Errors
    /// The directive violates the protocol. The worker reports it with
    /// [`violation_report`](Self::violation_report), and exits.
    pub fn on_directive(&mut self, directive: v1::Directive) -> Result<DirectiveEffect, ProtocolViolation> {
        if let Some(DirectiveKind::Leave(leave)) = directive.directive {
            let is_expected = self.is_expected(&leave);
            return Ok(DirectiveEffect::Leave { reason: leave.reason, is_expected });
        }
        let Some(directive) = self.checker.check(directive)? else { return Ok(DirectiveEffect::None) };
        match directive.kind() {
            DirectiveKind::Rendezvous(rendezvous) => {
                (self.generation, self.term) = (directive.generation(), rendezvous.term);
                self.flags = GenerationFlags::default();
            }
            DirectiveKind::Abandon(_) => self.flags.abandon.raise(),
            DirectiveKind::Halt(_) => {
                self.flags.halt.raise();
                return Ok(DirectiveEffect::None);
            }
            _ => {}
        }
        Ok(DirectiveEffect::Execute(self.command(directive)))
    }

    /// Whether this worker exits without an error after a Leave: it wanted to leave, or no state is
    /// lost.
    #[must_use]
    pub fn is_expected(&self, leave: &v1::Leave) -> bool {
        leave.orderly || self.has_announced_leave
    }

    /// The last message of a worker whose coordinator has violated the protocol.
    #[must_use]
    pub fn violation_report(&self, violation: &ProtocolViolation) -> Message {
        let (generation, reason) = (self.generation, violation.to_string());
        Message::Failed(v1::Failed { generation, reason, fatal: true, ..Default::default() })
    }

    /// Handles a report of the training thread. Called while the worker is attached, or releases
    /// the generation of a lost session; reports in between wait.
    pub fn on_report(&mut self, report: Message) -> ReportEffect {
        self.checker.record_report(&report);
        if is_last(&report) {
            return ReportEffect::SendLast(report);
        }
        match (self.connection, &report) {
            (Connection::Attached, _) => ReportEffect::Send(report),
            // An Idle of an earlier generation may still be queued.
            (Connection::Releasing, Message::Idle(idle)) if idle.generation >= self.generation => {
                (self.connection, self.held_position) = (Connection::Detached, idle.position);
                ReportEffect::Released
            }
            (Connection::Releasing | Connection::Detached, _) => ReportEffect::Discard,
        }
    }

    /// Handles the loss of the connection: the training thread has to release the generation. The
    /// step in flight completes if the other members complete it: they may have lost the
    /// coordinator, too. Call [`on_release_timeout`](Self::on_release_timeout) if that takes longer
    /// than the heartbeat timeout.
    pub fn on_disconnect(&mut self) -> Command {
        self.connection = Connection::Releasing;
        self.flags.halt.raise();
        self.command(CheckedDirective::abandon(self.generation))
    }

    /// Ends the waits of the training thread, which has not released the generation of a lost
    /// session in time.
    pub fn on_release_timeout(&mut self) {
        self.flags.abandon.raise();
    }

    fn command(&self, directive: CheckedDirective) -> Command {
        Command { directive, flags: self.flags.clone() }
    }
}

/// Whether the worker exits after this report.
fn is_last(report: &Message) -> bool {
    match report {
        Message::Finished(_) => true,
        Message::Failed(failed) => failed.fatal,
        _ => false,
    }
}

/// Whether a change of a setting takes effect without loading data and models again.
fn is_applied_in_place(Change { key, mutability, .. }: &Change) -> bool {
    let is_in = |section: &str| key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    // Before the first generation, `coordinator serve` accepts changes of fixed settings, too.
    *mutability != Mutability::Fixed && !["data", "compute_dtype", "output", "checkpoints.url"].into_iter().any(is_in)
}

#[cfg(test)]
mod tests;
