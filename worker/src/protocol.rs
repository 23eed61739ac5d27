//! Validation of directives: checks each one against the run file, and against the previous
//! messages of both sides. The rest of the worker relies on it.
//!
//! ```text
//!         Rendezvous                                               Abandon
//!   idle ------------> in a generation (Train, Evaluate, ..., Halt) -------> abandoned
//!    ^                                |                                          |
//!    '--------------------------------'------- Idle, which the worker says ------'
//! ```

use config::RunFile;
use proto::EVALUATION_RANGE;
use proto::v1::{self, directive::Directive as Kind, worker_message::Message};

/// Maximal number of peers that a member may be told to check. Each check takes a thread.
const MAX_PEERS: usize = 256;
/// Maximal length of a store's address, in bytes. A coordinator accepts no longer ones.
const MAX_ADDRESS_BYTES: usize = 512;
/// Maximal number of unreported checkpoints of a generation. A coordinator has one saved at a time,
/// and orders another while some ranks still work on it only if rank 0 has failed to write it.
const MAX_UNREPORTED_CHECKPOINTS: usize = 1_000;
/// The number of hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;
/// Maximal number of characters that are shown of a text in a directive.
const MAX_SHOWN_CHARS: usize = 100;

/// How a coordinator has broken the protocol, in one line of limited length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator broke the protocol: {0}")]
pub struct ProtocolViolation(String);

impl ProtocolViolation {
    /// A violation with this description, of one line.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// A valid directive: its numbers are within the run, and its order is right.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedDirective {
    generation: u64,
    kind: Kind,
}

impl CheckedDirective {
    /// An Abandon for a generation that the worker releases by itself.
    #[must_use]
    pub fn abandon(generation: u64) -> Self {
        Self { generation, kind: Kind::Abandon(v1::Abandon::default()) }
    }

    /// The generation of the directive.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The content of the directive.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The generation and the content.
    #[must_use]
    pub fn into_parts(self) -> (u64, Kind) {
        (self.generation, self.kind)
    }
}

/// Limits that follow from the run file.
#[derive(Debug)]
struct Limits {
    /// The steps and the batch size of each stage.
    stages: Vec<(u64, u32)>,
    max_workers: u32,
    /// Maximal number of granted steps beyond the last reported one.
    window: u32,
    validation_images: u64,
}

impl Limits {
    fn new(run: &RunFile, validation_images: u64) -> Self {
        Self {
            stages: run.stages.iter().map(|stage| (stage.steps, stage.batch)).collect(),
            max_workers: run.workers.max,
            window: run.control.window,
            validation_images,
        }
    }

    /// The steps and the batch size of a stage.
    fn stage(&self, stage: u32) -> Result<(u64, u32), String> {
        let stages = self.stages.len();
        let found = self.stages.get(stage as usize).copied();
        found.ok_or_else(|| format!("stage {stage} (from 0) of a run that has {stages}"))
    }
}

/// A point of the run: stage and step.
type Point = (u32, u64);

/// The last generation that the worker was told of.
#[derive(Debug)]
struct Generation {
    number: u64,
    /// Whether the coordinator has abandoned it.
    abandoned: bool,
    /// Whether the worker has reported that it released it.
    let_go: bool,
    /// The point that the worker reaches with all granted steps.
    granted: Point,
    /// The last point that the worker has reported.
    reported: Point,
    /// The number of ranges of images that were assigned and not reported.
    ranges: usize,
    /// The number of the last checkpoint.
    checkpoint: Option<u64>,
    /// The number of checkpoints that were not reported.
    unreported: usize,
}

/// The state of the protocol between a worker and its coordinators, which determines the directives
/// that are valid next. Persists over sessions, as generations do.
#[derive(Debug)]
pub struct Protocol {
    limits: Limits,
    generation: Option<Generation>,
    finished: bool,
}

impl Protocol {
    /// The state before the first directive of a run with this number of validation images.
    #[must_use]
    pub fn new(run: &RunFile, validation_images: u64) -> Self {
        Self { limits: Limits::new(run, validation_images), generation: None, finished: false }
    }

    /// Takes other settings of the same run, between two generations.
    pub fn configure(&mut self, run: &RunFile) {
        self.limits = Limits::new(run, self.limits.validation_images);
    }

    /// Records a report of the worker. Called before the report is sent.
    pub fn note(&mut self, message: &Message) {
        let Some(generation) = &mut self.generation else { return };
        let number = generation.number;
        match message {
            Message::StepDone(v1::StepDone { position: Some(position), .. }) if position.generation == number => {
                generation.reported = (position.stage, position.step);
            }
            Message::Advanced(advanced) if advanced.generation == number => generation.reported = (advanced.stage, 0),
            Message::EvaluationItems(items) if items.generation == number && !items.more => {
                generation.ranges = generation.ranges.saturating_sub(1);
            }
            Message::CheckpointDone(v1::CheckpointDone { generation: of, .. })
            | Message::CheckpointFailed(v1::CheckpointFailed { generation: of, .. })
                if *of == number =>
            {
                generation.unreported = generation.unreported.saturating_sub(1);
            }
            Message::Idle(idle) if idle.generation >= number => generation.let_go = true,
            _ => {}
        }
    }

    /// Checks a directive. Returns none for one that is obsolete.
    ///
    /// # Errors
    /// The directive does not fit the run, or is not valid at this point.
    pub fn check(&mut self, directive: v1::Directive) -> Result<Option<CheckedDirective>, ProtocolViolation> {
        let v1::Directive { generation, directive } = directive;
        let kind = directive.ok_or_else(|| ProtocolViolation::new("a directive that says nothing"))?;
        let what = name(&kind);
        let matters =
            self.check_kind(generation, &kind).map_err(|problem| ProtocolViolation(format!("{what}: {problem}")))?;
        // Reasons are only logged.
        let kind = match kind {
            Kind::Abandon(_) => Kind::Abandon(v1::Abandon::default()),
            Kind::Halt(_) => Kind::Halt(v1::Halt::default()),
            kind => kind,
        };
        Ok(matters.then_some(CheckedDirective { generation, kind }))
    }

    /// Whether the directive is not obsolete.
    fn check_kind(&mut self, number: u64, kind: &Kind) -> Result<bool, String> {
        need(!self.finished, || "after Finish".to_owned())?;
        match kind {
            // The session ends with it.
            Kind::Leave(_) => return Ok(false),
            Kind::Finish(_) => {
                self.finished = true;
                return Ok(true);
            }
            Kind::Rendezvous(order) => {
                self.rendezvous(number, order)?;
                return Ok(true);
            }
            _ => {}
        }
        let Self { limits, generation: Some(generation), .. } = self else {
            return Err(format!("of generation {number}, before any Rendezvous"));
        };
        let last = generation.number;
        if matches!(kind, Kind::Abandon(_) | Kind::Halt(_)) {
            need(number <= last, || format!("of generation {number}, where the last is {last}"))?;
            let matters = number == last && !generation.let_go && !generation.abandoned;
            generation.abandoned |= matters && matches!(kind, Kind::Abandon(_));
            return Ok(matters);
        }
        need(number == last, || format!("of generation {number}, in generation {last}"))?;
        need(!generation.abandoned, || format!("of generation {number}, after Abandon"))?;
        match kind {
            Kind::Train(order) => generation.train(limits, order)?,
            Kind::Evaluate(order) => generation.evaluate(limits, order)?,
            Kind::Checkpoint(order) => generation.checkpoint(order)?,
            Kind::Advance(order) => generation.advance(limits, order)?,
            Kind::Rendezvous(_) | Kind::Abandon(_) | Kind::Halt(_) | Kind::Finish(_) | Kind::Leave(_) => {}
        }
        // Directives that were in flight when the worker released the generation are obsolete, not
        // wrong.
        Ok(!generation.let_go)
    }

    fn rendezvous(&mut self, number: u64, order: &v1::Rendezvous) -> Result<(), String> {
        let last = self.generation.as_ref().map_or(0, |generation| generation.number);
        need(number > last, || format!("generation {number} after generation {last}"))?;
        let is_idle = self.generation.as_ref().is_none_or(|generation| generation.let_go);
        need(is_idle, || format!("generation {number} before the worker has let go of generation {last}"))?;
        let v1::Rendezvous { rank, world_size, store_address, source_rank, checkpoint, checkpoint_sha256, .. } = order;
        let max = self.limits.max_workers;
        need((1..=max).contains(world_size) && rank < world_size, || {
            format!("rank {rank} of {world_size} in a run of at most {max} workers")
        })?;
        let v1::Position { stage, step, .. } = order.position.ok_or("without a position")?;
        let (steps, batch) = self.limits.stage(stage)?;
        need(step <= steps, || format!("at step {step} of stage {stage}, which has {steps}"))?;
        match source_rank {
            Some(source) => {
                need(source < world_size, || format!("the state of rank {source} in a generation of {world_size}"))?;
                need(checkpoint.is_empty(), || format!("the state of rank {source}, and of a checkpoint"))?;
            }
            None if checkpoint.is_empty() => {
                need((stage, step) == (0, 0), || format!("the state of the seed at stage {stage} step {step}"))?;
            }
            None => {
                check_checkpoint(checkpoint)?;
                let is_sha256 = checkpoint_sha256.len() == SHA256_DIGITS
                    && checkpoint_sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
                need(is_sha256, || format!("a checkpoint with the SHA-256 {}", shown(checkpoint_sha256)))?;
            }
        }
        let v1::SequenceStart { step: first, epoch } = order.sequence_start.unwrap_or_default();
        // A step begins at most as many epochs as it has samples.
        need(first <= step && epoch <= first.saturating_mul(batch.into()), || {
            format!("samples from step {first} and epoch {epoch} on, at step {step}")
        })?;
        let peers = order.peers.len();
        need(peers < *world_size as usize && peers <= MAX_PEERS, || {
            format!("{peers} peers in a generation of {world_size}; at most {MAX_PEERS}")
        })?;
        let mut addresses = order.peers.iter().map(|peer| &peer.store_address).chain([store_address]);
        if let Some(address) = addresses.find(|address| address.len() > MAX_ADDRESS_BYTES) {
            return Err(format!("an address of {} bytes, {}", address.len(), shown(address)));
        }
        let at = (stage, step);
        self.generation = Some(Generation {
            number,
            abandoned: false,
            let_go: false,
            granted: at,
            reported: at,
            ranges: 0,
            checkpoint: None,
            unreported: 0,
        });
        Ok(())
    }
}

impl Generation {
    fn train(&mut self, limits: &Limits, order: &v1::Train) -> Result<(), String> {
        let v1::Train { stage, first_step, steps, share_begin, share_end } = *order;
        let (of_stage, batch) = limits.stage(stage)?;
        let (at_stage, at_step) = self.granted;
        need((stage, first_step) == self.granted, || {
            format!("from stage {stage} step {first_step} on, at stage {at_stage} step {at_step}")
        })?;
        need(steps >= 1 && u64::from(steps) <= of_stage - first_step, || {
            format!("{steps} steps from step {first_step} on of stage {stage}, which has {of_stage}")
        })?;
        need(share_begin < share_end && share_end <= batch, || {
            format!("the samples {share_begin}..{share_end} of a batch of {batch}")
        })?;
        let end = first_step + u64::from(steps);
        let (reported_stage, reported_step) = self.reported;
        let reported = if reported_stage == stage { reported_step } else { 0 };
        let window = limits.window;
        need(end.saturating_sub(reported) <= window.into(), || {
            format!("up to step {end} after a report of step {reported}, with a window of {window}")
        })?;
        self.granted = (stage, end);
        Ok(())
    }

    fn evaluate(&mut self, limits: &Limits, order: &v1::Evaluate) -> Result<(), String> {
        let ranges = self.ranges;
        need(ranges == 0, || format!("while {ranges} ranges of images of another are not reported"))?;
        let images = limits.validation_images;
        let mut next = 0;
        for &v1::ImageRange { begin, end } in &order.ranges {
            let is_range = next <= begin && begin < end && end <= images && end - begin <= EVALUATION_RANGE;
            need(is_range, || {
                format!("the images {begin}..{end} of {images}, after {next}; at most {EVALUATION_RANGE} at once")
            })?;
            next = end;
        }
        self.ranges = order.ranges.len();
        Ok(())
    }

    fn checkpoint(&mut self, order: &v1::Checkpoint) -> Result<(), String> {
        let v1::Checkpoint { checkpoint: number, name, journal } = order;
        check_checkpoint(name)?;
        let hash = journal.as_ref().map_or(0, |head| head.hash.len());
        need(hash <= SHA256_DIGITS, || format!("a record of the journal whose hash has {hash} bytes"))?;
        let last = self.checkpoint;
        need(last.is_none_or(|last| *number > last), || {
            format!("number {number} after number {}", last.unwrap_or_default())
        })?;
        need(self.unreported < MAX_UNREPORTED_CHECKPOINTS, || {
            format!("number {number} while {MAX_UNREPORTED_CHECKPOINTS} others are not reported")
        })?;
        self.checkpoint = Some(*number);
        self.unreported += 1;
        Ok(())
    }

    fn advance(&mut self, limits: &Limits, order: &v1::Advance) -> Result<(), String> {
        let (stage, (at, _)) = (order.stage, self.granted);
        limits.stage(stage)?;
        need(stage == at + 1, || format!("to stage {stage} from stage {at}"))?;
        self.granted = (stage, 0);
        Ok(())
    }
}

fn check_checkpoint(name: &str) -> Result<(), String> {
    checkpoint_store::check_name(name).map_err(|_| format!("the checkpoint name {}", shown(name)))
}

fn need(holds: bool, problem: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(problem()) }
}

/// The beginning of a text, escaped and in quotes.
fn shown(text: &str) -> String {
    let (beginning, rest) = match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => (&text[..end], "..."),
        None => (text, ""),
    };
    format!("{beginning:?}{rest}")
}

fn name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Rendezvous(_) => "Rendezvous",
        Kind::Train(_) => "Train",
        Kind::Evaluate(_) => "Evaluate",
        Kind::Checkpoint(_) => "Checkpoint",
        Kind::Advance(_) => "Advance",
        Kind::Abandon(_) => "Abandon",
        Kind::Finish(_) => "Finish",
        Kind::Leave(_) => "Leave",
        Kind::Halt(_) => "Halt",
    }
}

#[cfg(test)]
mod tests;
