//! The driver: the one task that owns the run. It feeds events to the run and executes its actions.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use checkpoint_store::{Checkpoints, JournalHead};
use proto::{v1, v1::directive::Directive};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::{self, Instant, MissedTickBehavior},
};
use tonic::Status;
use tracing::{info, warn};

use super::{
    clock::Clock,
    evaluations::WrittenEvaluation,
    http::Readiness,
    metrics::Metrics,
    recorder::Recorder,
    refusals::{Reason, Refusals},
};
use crate::run::{
    Action, Command, Event, Outcome, RequestId, Run, SessionId, record::Record, statistics::StepStatistics,
};

/// Interval of ticks: the precision of timeouts.
const TICK: Duration = Duration::from_millis(100);
/// Minimal interval between log lines about progress.
const PROGRESS: Duration = Duration::from_secs(1);
/// Maximal number of inputs handled before the next tick is checked for.
const TURN: usize = 256;

/// An input of the driver, from the network or the operating system.
pub enum Input {
    /// A worker asks to join.
    Join {
        /// The worker's address, for limits; see [`Peer::client_address`](super::door::Peer::client_address).
        address: IpAddr,
        token: String,
        join: v1::JoinRequest,
        reply: oneshot::Sender<Result<v1::JoinResponse, Status>>,
    },
    /// A worker opens its stream.
    Attach { session: SessionId, attach: v1::Attach, line: Outbox },
    /// Another event of the run.
    Event(Event),
    /// An operator sends a command; the reply says what will happen.
    Control { command: Command, reply: oneshot::Sender<Result<String, Status>> },
    /// A client asks for the status.
    Status { reply: oneshot::Sender<v1::StatusResponse> },
    /// The coordinator is asked to stop.
    Shutdown,
}

/// The outbox of a worker's stream. Dropping it ends the stream.
pub struct Outbox {
    pub peer: SocketAddr,
    pub outbound: mpsc::Sender<Result<v1::Directive, Status>>,
    /// Dropped with the outbox: tells the task that reads the worker's messages to end.
    pub _hold: oneshot::Sender<()>,
}

/// The run with everything that its actions need.
pub struct Driver {
    pub run: Run,
    pub recorder: Recorder,
    pub metrics: Metrics,
    pub refusals: Refusals,
    /// Computes the scores of captions.
    pub scoring: Arc<caption_metrics::Metrics>,
    pub readiness: watch::Sender<Readiness>,
    /// The run's checkpoints.
    pub checkpoints: Arc<Checkpoints>,
    /// For events from other tasks and threads.
    pub inputs: mpsc::Sender<Input>,
    /// The final status, for requests after the run's end.
    pub ended: watch::Sender<Option<v1::StatusResponse>>,
    /// Whether to keep serving when the run is finished, until an operator stops the coordinator.
    pub stay: bool,
}

impl Driver {
    /// Drives the run to its end. Returns how it ended.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn drive(self, mut waiting: mpsc::Receiver<Input>) -> anyhow::Result<Outcome> {
        let mut ticks = time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = EventLoop {
            driver: self,
            clock: Clock::start(Instant::now()),
            asked: BTreeMap::new(),
            last: 0,
            lines: BTreeMap::new(),
            examination: None,
            reported: None,
            noted: false,
        };
        let mut inputs = Vec::with_capacity(TURN);
        let mut over = None;
        loop {
            let mut outcome = None;
            let mut ticked = false;
            tokio::select! {
                _ = waiting.recv_many(&mut inputs, TURN) => {
                    turn.clock.turn(Instant::now());
                    for input in inputs.drain(..) {
                        let ended = turn.take(input).await?;
                        outcome = outcome.or(ended);
                    }
                }
                _ = ticks.tick() => {
                    ticked = true;
                    turn.clock.turn(Instant::now());
                    outcome = turn.event(Event::Tick).await?;
                    turn.driver.refusals.log_suppressed(Instant::now());
                }
            }
            // The status of a run with thousands of members takes longer than most inputs.
            if ticked || outcome.is_some() || (turn.noted && waiting.is_empty()) {
                turn.publish();
            }
            let Driver { run, stay, .. } = &turn.driver;
            let stays = *stay && !run.is_stopping();
            over = over.or(outcome);
            if let Some(outcome) = over.take_if(|outcome| *outcome != Outcome::Finished || !stays) {
                turn.driver.ended.send_replace(Some(turn.driver.run.status(turn.clock.now())));
                let head = turn.driver.recorder.head().await?;
                turn.driver.recorder.finish().await?;
                info!(%head, "the journal is closed; `coordinator audit --head` finds out whether it is changed later");
                return Ok(outcome);
            }
        }
    }
}

/// A request that waits for an answer.
enum PendingRequest {
    Join(oneshot::Sender<Result<v1::JoinResponse, Status>>),
    Control(oneshot::Sender<Result<String, Status>>),
}

struct EventLoop {
    driver: Driver,
    clock: Clock,
    asked: BTreeMap<RequestId, PendingRequest>,
    /// The last request id.
    last: u64,
    lines: BTreeMap<SessionId, Outbox>,
    /// The task that saves and scores captions.
    examination: Option<AbortHandle>,
    /// When progress was last logged.
    reported: Option<Instant>,
    /// Whether anything was recorded since metrics and readiness were last updated.
    noted: bool,
}

impl EventLoop {
    async fn take(&mut self, input: Input) -> anyhow::Result<Option<Outcome>> {
        let event = match input {
            Input::Join { address, token, join, reply } => {
                let request = self.number();
                self.asked.insert(request, PendingRequest::Join(reply));
                Event::Join { request, address, token, join }
            }
            Input::Control { command, reply } => {
                let request = self.number();
                self.asked.insert(request, PendingRequest::Control(reply));
                Event::Control { request, command }
            }
            Input::Attach { session, attach, line } => {
                self.lines.insert(session, line);
                Event::Attach { session, attach }
            }
            Input::Event(event) => event,
            Input::Status { reply } => {
                // The client may have disconnected.
                _ = reply.send(self.driver.run.status(self.clock.now()));
                return Ok(None);
            }
            Input::Shutdown => {
                info!("asked to stop");
                Event::Shutdown
            }
        };
        if let Event::Closed { session } = &event {
            self.lines.remove(session);
        }
        self.event(event).await
    }

    /// A fresh request id.
    fn number(&mut self) -> RequestId {
        self.last += 1;
        RequestId(self.last)
    }

    async fn event(&mut self, event: Event) -> anyhow::Result<Option<Outcome>> {
        let mut outcome = None;
        for action in self.driver.run.on_event(self.clock.now(), event) {
            match action {
                // If the worker has disconnected, its reservation expires.
                Action::Admit { request, response } => {
                    if let Some(PendingRequest::Join(reply)) = self.asked.remove(&request) {
                        _ = reply.send(Ok(response));
                    }
                }
                Action::Done { request, message } => {
                    if let Some(PendingRequest::Control(reply)) = self.asked.remove(&request) {
                        _ = reply.send(Ok(message));
                    }
                }
                Action::Refuse { request, refusal } => match self.asked.remove(&request) {
                    Some(PendingRequest::Join(reply)) => _ = reply.send(Err(refusal.into())),
                    Some(PendingRequest::Control(reply)) => _ = reply.send(Err(refusal.into())),
                    None => {}
                },
                Action::Send { session, mut directive } => {
                    if let Some(Directive::Checkpoint(checkpoint)) = &mut directive.directive {
                        let JournalHead { sequence, hash } = self.driver.recorder.head().await?;
                        checkpoint.journal = Some(v1::JournalHead { sequence, hash });
                    }
                    self.send(session, Ok(directive));
                }
                Action::Close { session, refusal } => {
                    if let (Some(refusal), Some(line)) = (refusal, self.lines.get(&session)) {
                        let status = Status::from(refusal);
                        self.driver.refusals.note(line.peer, Reason::of_session(status.code()), status.message());
                        self.send(session, Err(status));
                    }
                    self.lines.remove(&session);
                }
                Action::Record(record) => {
                    self.noted = true;
                    self.tell(&record);
                    self.driver.metrics.record(&record);
                    let durable = record.must_be_durable();
                    self.driver.recorder.write(record).await?;
                    if durable {
                        self.driver.recorder.sync().await?;
                    }
                }
                Action::Score { evaluation, items, captions: path } => {
                    let (inputs, scoring) = (self.driver.inputs.clone(), Arc::clone(&self.driver.scoring));
                    let task = tokio::spawn(WrittenEvaluation { evaluation, items, path }.examine(scoring, inputs));
                    // There is one evaluation at a time: an unfinished earlier one was cancelled.
                    if let Some(earlier) = self.examination.replace(task.abort_handle()) {
                        earlier.abort();
                    }
                }
                Action::DeleteCheckpoint(name) => self.delete(name),
                Action::Exit(how) => outcome = Some(how),
            }
        }
        Ok(outcome)
    }

    /// Sends a message to a worker without waiting. A worker that does not read its stream counts
    /// as lost, and its stream is ended.
    fn send(&mut self, session: SessionId, message: Result<v1::Directive, Status>) {
        let Some(line) = self.lines.get(&session) else { return };
        if line.outbound.try_send(message).is_err() {
            self.lines.remove(&session);
            let inputs = self.driver.inputs.clone();
            // On another task, because this one empties the channel.
            tokio::spawn(async move { _ = inputs.send(Input::Event(Event::Closed { session })).await });
        }
    }

    fn delete(&self, name: String) {
        let checkpoints = Arc::clone(&self.driver.checkpoints);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = checkpoints.delete(&name) {
                warn!(%error, "could not delete an old checkpoint");
            }
        });
    }

    fn publish(&mut self) {
        self.noted = false;
        self.driver.metrics.publish(&self.driver.run);
        let readiness = self.driver.run.readiness();
        self.driver.readiness.send_if_modified(|known| std::mem::replace(known, readiness.clone()) != readiness);
    }

    /// Logs the records that operators are interested in.
    fn tell(&mut self, record: &Record) {
        match record {
            Record::Formed { generation, members, start, source, cause, .. } => {
                let ranks = ranges(members.iter().map(|(rank, _)| *rank));
                info!(generation, members = members.len(), ranks, at = %start, %source, cause, "forming a generation");
            }
            Record::Ready { generation, .. } => info!(generation, "training"),
            Record::Ended { generation, reason } => info!(generation, reason, "the generation ended"),
            Record::Step(step) => self.tell_progress(step),
            Record::Saved(saved) => info!(at = %saved.place, name = saved.name, "checkpoint"),
            Record::Damaged(name) => warn!(name, "a checkpoint cannot be used"),
            Record::Deleted(name) => info!(name, "deleting an old checkpoint"),
            Record::Evaluated { place, metrics, .. } => info!(at = %place, ?metrics, "evaluation"),
            Record::Guard { place, firing } => {
                warn!(at = %place, action = firing.action.name(), "the guard: {firing}");
            }
            Record::Event { what, detail } if !what.is_trouble() => info!(%detail, "{}", what.name()),
            Record::Event { what, detail } => warn!(%detail, "{}", what.name()),
        }
    }

    fn tell_progress(&mut self, step: &StepStatistics) {
        if self.reported.is_some_and(|reported| reported.elapsed() < PROGRESS) {
            return;
        }
        self.reported = Some(Instant::now());
        let status = self.driver.run.outline();
        info!(
            stage = status.stage_name,
            step = format_args!("{}/{}", step.place.step, status.steps),
            loss = step.loss(),
            reward = step.reward(),
            images_per_second = step.images_per_second().round(),
            "progress"
        );
    }
}

/// Ascending numbers as text: `0-3,7,9-10`.
fn ranges(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if number.checked_sub(1) == Some(*last) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(first, last): (u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.into_iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn ranks_are_logged_as_ranges() {
        assert_eq!(ranges([0, 1, 2, 3, 7, 9, 10]), "0-3,7,9-10");
        assert_eq!(ranges([]), "");
    }
}
