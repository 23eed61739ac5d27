//! The driver: the one task that owns the run. It feeds events to the run and executes its actions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use checkpoint_store::Checkpoints;
use dico_engine::{Action, Engine, Event, Outcome, RequestId, SessionId, record::Record, statistics::StepStatistics};
use journal::EvaluatedCaption;
use proto::{v1, v1::directive::Directive, v1::worker_message::Message};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::{self, Instant, MissedTickBehavior},
};
use tonic::Status;
use tracing::{info, warn};

use crate::captions::{CollectedCaptions, ReportableScores};

use super::{
    clock::Clock,
    driver_input::{DriverInput, SessionHandle},
    evaluations::CompletedEvaluation,
    metrics::Metrics,
    readiness::Readiness,
    recorder::Recorder,
    refusals::{RefusalReason, Refusals, status_of},
};

/// Interval of ticks, which is the precision of the run's timeouts.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// Minimal interval between log lines about progress.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Maximal number of inputs that one iteration of the event loop handles.
const MAX_INPUTS_PER_ITERATION: usize = 256;

/// The run, and what the driver needs to execute its actions.
pub struct Driver {
    pub engine: Engine,
    pub recorder: Recorder,
    /// The metrics for Prometheus.
    pub metrics: Metrics,
    pub refusals: Refusals,
    /// Computes the scores of captions.
    pub scoring: Arc<caption_metrics::Metrics>,
    /// The readiness of the run. The recorder has that of the journal.
    pub readiness: watch::Sender<Readiness>,
    /// The run's checkpoints.
    pub checkpoints: Arc<Checkpoints>,
    /// The sender of the driver's own input channel, for the tasks that it spawns.
    pub inputs: mpsc::Sender<DriverInput>,
    /// The status when the driver stopped, for later requests; `None` until then.
    pub status_at_stop: watch::Sender<Option<v1::StatusResponse>>,
    /// Whether to keep serving when the run is finished, until an operator stops the coordinator.
    pub stay: bool,
}

impl Driver {
    /// Drives the run until the coordinator has to exit. Returns how the process ended.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn drive(self, mut queue: mpsc::Receiver<DriverInput>) -> anyhow::Result<Outcome> {
        let mut ticks = time::interval(TICK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reportable = ReportableScores::of_run(&self.engine.state().settings.file);
        let mut event_loop = EventLoop {
            driver: self,
            clock: Clock::start(Instant::now()),
            pending_requests: BTreeMap::new(),
            last_request_id: 0,
            sessions: BTreeMap::new(),
            evaluation_task: None,
            captions: CollectedCaptions::new(reportable),
            scored_captions: None,
            last_progress_log: None,
            has_new_records: false,
        };
        let mut batch = Vec::with_capacity(MAX_INPUTS_PER_ITERATION);
        // Set once the run has requested the exit. With `stay`, the driver continues after a
        // finished run until an operator stops it.
        let mut exit_outcome = None;
        loop {
            let mut outcome = None;
            let mut is_tick = false;
            tokio::select! {
                _ = queue.recv_many(&mut batch, MAX_INPUTS_PER_ITERATION) => {
                    event_loop.clock.begin_iteration(Instant::now());
                    for input in batch.drain(..) {
                        outcome = outcome.or(event_loop.handle_input(input).await?);
                    }
                }
                _ = ticks.tick() => {
                    is_tick = true;
                    event_loop.clock.begin_iteration(Instant::now());
                    outcome = event_loop.handle_event(Event::Tick).await?;
                    event_loop.driver.refusals.log_suppressed_counts(Instant::now());
                }
            }
            // To publish the metrics of thousands of members takes longer than to handle most
            // inputs. So the driver publishes at each tick, and after new records only when no
            // input waits.
            if is_tick || outcome.is_some() || (event_loop.has_new_records && queue.is_empty()) {
                event_loop.publish();
            }
            let Driver { engine, stay, .. } = &event_loop.driver;
            let keeps_serving = *stay && !engine.state().is_stopping;
            exit_outcome = exit_outcome.or(outcome);
            if let Some(outcome) = exit_outcome.take_if(|outcome| *outcome != Outcome::Finished || !keeps_serving) {
                let status = event_loop.driver.engine.state().status(event_loop.clock.now());
                event_loop.driver.status_at_stop.send_replace(Some(status));
                let head = event_loop.driver.recorder.head().await?;
                event_loop.driver.recorder.finish().await?;
                info!(%head, "the journal is closed; `coordinator audit --head HEAD` detects later changes");
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

/// The event loop: the driver with its open requests, sessions and tasks.
struct EventLoop {
    driver: Driver,
    /// The run's time. It hardly advances while the driver is blocked or the process is suspended.
    clock: Clock,
    pending_requests: BTreeMap<RequestId, PendingRequest>,
    last_request_id: u64,
    sessions: BTreeMap<SessionId, SessionHandle>,
    /// The task that saves and scores the captions of the last evaluation; it may have ended.
    evaluation_task: Option<AbortHandle>,
    /// The captions of the evaluation in progress.
    captions: CollectedCaptions,
    /// The captions of an evaluation that is scored and not recorded yet.
    scored_captions: Option<Vec<EvaluatedCaption>>,
    /// When progress was last logged.
    last_progress_log: Option<Instant>,
    /// Whether there were records since the last call of [`Self::publish`].
    has_new_records: bool,
}

impl EventLoop {
    async fn handle_input(&mut self, input: DriverInput) -> anyhow::Result<Option<Outcome>> {
        let event = match input {
            DriverInput::Join { address, generated_join_key, join, reply } => {
                let request = self.next_request_id();
                self.pending_requests.insert(request, PendingRequest::Join(reply));
                Event::Join { request, address, generated_join_key, join }
            }
            DriverInput::Control { command, reply } => {
                let request = self.next_request_id();
                self.pending_requests.insert(request, PendingRequest::Control(reply));
                Event::Control { request, command }
            }
            DriverInput::Attach { session, attach, handle } => {
                self.sessions.insert(session, handle);
                Event::Attach { session, attach }
            }
            DriverInput::Event(event) => event,
            DriverInput::Scored { evaluation, metrics, captions } => {
                self.scored_captions = Some(captions);
                Event::Scored { evaluation, metrics }
            }
            DriverInput::Status { reply } => {
                // The client may have disconnected.
                _ = reply.send(self.driver.engine.state().status(self.clock.now()));
                return Ok(None);
            }
            DriverInput::Shutdown => {
                info!("received a request to stop");
                Event::Shutdown
            }
        };
        if let Event::Closed { session } = &event {
            self.sessions.remove(session);
        }
        self.handle_event(event).await
    }

    fn next_request_id(&mut self) -> RequestId {
        self.last_request_id += 1;
        RequestId(self.last_request_id)
    }

    /// Passes an event to the run, then the answers to its actions. Returns the outcome if the
    /// coordinator has to exit.
    async fn handle_event(&mut self, event: Event) -> anyhow::Result<Option<Outcome>> {
        let (mut outcome, mut next) = (None, Some(event));
        while let Some(mut event) = next.take() {
            // The run does not need the captions of an evaluation.
            let items = match &mut event {
                Event::Message { message: Message::EvaluationItems(report), .. } => std::mem::take(&mut report.items),
                _ => Vec::new(),
            };
            let (exit_outcome, answer) = self.execute(event, items).await?;
            (outcome, next) = (outcome.or(exit_outcome), answer);
        }
        Ok(outcome)
    }

    /// Passes an event to the run, and executes its actions. `items` are the captions of the event.
    /// Returns the outcome if the coordinator has to exit, and the answer to an action.
    async fn execute(
        &mut self,
        event: Event,
        mut items: Vec<v1::EvaluationItem>,
    ) -> anyhow::Result<(Option<Outcome>, Option<Event>)> {
        let (mut outcome, mut answer) = (None, None);
        for action in self.driver.engine.on_event(self.clock.now(), event) {
            match action {
                // If the worker has disconnected, its reservation expires.
                Action::Admit { request, response } => {
                    if let Some(PendingRequest::Join(reply)) = self.pending_requests.remove(&request) {
                        _ = reply.send(Ok(response));
                    }
                }
                Action::Accept { request, message } => {
                    if let Some(PendingRequest::Control(reply)) = self.pending_requests.remove(&request) {
                        _ = reply.send(Ok(message));
                    }
                }
                Action::Refuse { request, refusal } => match self.pending_requests.remove(&request) {
                    Some(PendingRequest::Join(reply)) => _ = reply.send(Err(status_of(refusal))),
                    Some(PendingRequest::Control(reply)) => _ = reply.send(Err(status_of(refusal))),
                    None => {}
                },
                Action::Send { session, mut directive } => {
                    // A checkpoint names the journal's last record, which the run does not know.
                    if let Some(Directive::Checkpoint(checkpoint)) = &mut directive.directive {
                        checkpoint.journal = Some(self.driver.recorder.head().await?);
                    }
                    self.send(session, Ok(directive));
                }
                Action::Close { session, refusal } => {
                    if let (Some(refusal), Some(handle)) = (refusal, self.sessions.get(&session)) {
                        let status = status_of(refusal);
                        self.driver.refusals.record(
                            handle.peer,
                            RefusalReason::from_session_status(status.code()),
                            status.message(),
                        );
                        self.send(session, Err(status));
                    }
                    self.sessions.remove(&session);
                }
                Action::Record(record) => {
                    self.has_new_records = true;
                    self.log_record(&record);
                    self.driver.metrics.record(&record);
                    let must_be_durable = record.must_be_durable();
                    if let Record::Evaluated { evaluation, .. } = &record {
                        let captions = self.scored_captions.take().unwrap_or_default();
                        self.driver.recorder.stage_captions(*evaluation, captions).await?;
                    }
                    self.driver.recorder.write(record).await?;
                    if must_be_durable {
                        self.driver.recorder.sync().await?;
                    }
                }
                Action::CollectCaptions { evaluation } => self.captions.begin(evaluation),
                Action::KeepCaptions { session, range, has_more } => {
                    answer = match self.captions.add(range, std::mem::take(&mut items), has_more) {
                        Ok(()) => (!has_more).then_some(Event::CaptionsKept { range }),
                        Err(violation) => Some(Event::Violation { session, violation }),
                    };
                }
                Action::Score { evaluation, captions_file: path } => {
                    let items = self.captions.take_items();
                    let (inputs, scoring) = (self.driver.inputs.clone(), Arc::clone(&self.driver.scoring));
                    let task =
                        tokio::spawn(CompletedEvaluation { evaluation, items, path }.save_and_score(scoring, inputs));
                    // The run has one evaluation at a time. It has dropped the evaluation of a task
                    // that still runs.
                    if let Some(cancelled) = self.evaluation_task.replace(task.abort_handle()) {
                        cancelled.abort();
                    }
                }
                Action::DeleteCheckpoint(name) => self.delete_checkpoint(name),
                Action::Exit(exit_outcome) => outcome = Some(exit_outcome),
            }
        }
        Ok((outcome, answer))
    }

    /// Sends a directive, or the error that ends the session, to a worker without waiting. Ends the
    /// session of a worker that does not read its stream.
    fn send(&mut self, session: SessionId, message: Result<v1::Directive, Status>) {
        let Some(handle) = self.sessions.get(&session) else { return };
        if handle.directives.try_send(message).is_err() {
            self.sessions.remove(&session);
            let inputs = self.driver.inputs.clone();
            // On another task, because this task reads the channel of inputs: if it waited for
            // space in that channel, it would wait for ever.
            tokio::spawn(async move { _ = inputs.send(DriverInput::Event(Event::Closed { session })).await });
        }
    }

    fn delete_checkpoint(&self, name: String) {
        let checkpoints = Arc::clone(&self.driver.checkpoints);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = checkpoints.delete(&name) {
                warn!(%error, "cannot delete an old checkpoint");
            }
        });
    }

    /// Updates the metrics and the readiness that depend on the run's state.
    fn publish(&mut self) {
        self.has_new_records = false;
        self.driver.metrics.publish(self.driver.engine.state());
        let readiness = self.driver.engine.state().readiness();
        self.driver.readiness.send_if_modified(|last| std::mem::replace(last, readiness.clone()) != readiness);
    }

    /// Logs a record. Logs only some of the steps: see [`Self::log_progress`].
    fn log_record(&mut self, record: &Record) {
        match record {
            Record::Formed { generation, members, start, source, cause, .. } => {
                let worker_ids = format_ranges(members.iter().map(|(worker_id, _)| worker_id.0));
                info!(generation, members = members.len(), worker_ids, at = %start, %source, cause, "forming a generation");
            }
            Record::Ready { generation, .. } => info!(generation, "training"),
            Record::Ended { generation, reason } => info!(generation, reason, "the generation ended"),
            Record::Step(step) => self.log_progress(step),
            Record::Saved(saved) => info!(at = %saved.position, name = saved.name, "checkpoint"),
            Record::Damaged(name) => warn!(name, "a checkpoint cannot be used"),
            Record::Deleting(name) => info!(name, "deleting an old checkpoint"),
            Record::Evaluated { position, metrics, .. } => info!(at = %position, ?metrics, "evaluation"),
            Record::Guard { position, rule, .. } => {
                warn!(at = %position, action = rule.action.name(), "the guard: {rule}");
            }
            // An event of the journal, not an [`Event`] of the state machine.
            _ => match record.event() {
                Some((kind, detail)) if kind.needs_attention() => warn!(%detail, "{}", kind.name()),
                Some((kind, detail)) => info!(%detail, "{}", kind.name()),
                None => {}
            },
        }
    }

    /// Logs a step, unless another one was logged within the last [`PROGRESS_LOG_INTERVAL`].
    fn log_progress(&mut self, step: &StepStatistics) {
        if self.last_progress_log.is_some_and(|last| last.elapsed() < PROGRESS_LOG_INTERVAL) {
            return;
        }
        self.last_progress_log = Some(Instant::now());
        let status = self.driver.engine.state().status_summary();
        info!(
            stage = status.stage_name,
            step = format_args!("{}/{}", step.position.step, status.steps),
            loss = step.loss(),
            reward = step.reward(),
            images_per_second = step.images_per_second().round(),
            "progress"
        );
    }
}

/// Formats ascending numbers as ranges: `0-3,7,9-10`.
fn format_ranges(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if number.checked_sub(1) == Some(*last) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text = |(first, last): (u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.into_iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::format_ranges;

    #[test]
    fn consecutive_numbers_are_written_as_ranges() {
        assert_eq!(format_ranges([0, 1, 2, 3, 7, 9, 10]), "0-3,7,9-10");
        assert_eq!(format_ranges([]), "");
    }
}
