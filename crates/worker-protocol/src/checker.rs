//! Validation of directives: checks each one against the run file, and against the previous
//! messages of both sides. The rest of the worker relies on these checks.
//!
//! ```text
//!           Rendezvous                        Abandon
//!   idle ---------------> in a generation --------------> abandoned
//!    ^                           |                            |
//!    '---------------------------'----------------------------'
//!        the worker reports Idle: it has released the generation
//! ```
//!
//! Train, Evaluate, Checkpoint, Advance and Halt are valid in a generation. Finish is always valid;
//! no directive is valid after it. Some directives are obsolete, not violations: those of the last
//! generation if the worker has released it without an Abandon, and Abandon and Halt of earlier
//! generations.

use config::RunFile;
use proto::IMAGES_PER_EVALUATION_RANGE;
use proto::v1::{self, directive::Directive as DirectiveKind, worker_message::Message};

use crate::ProtocolViolation;

/// Maximal number of peers in a Rendezvous. The worker opens a TCP connection to each of them, on a
/// thread per peer.
const MAX_PEERS: usize = 256;
/// Maximal length of the address of a rendezvous store, in bytes; equal to the coordinator's limit.
const MAX_ADDRESS_BYTES: usize = 512;
/// Maximal number of unreported checkpoints of a generation. Normally there is one. There are more
/// only if rank 0 fails to write a checkpoint while other ranks still hash their copy: the
/// coordinator then orders the next one.
const MAX_UNREPORTED_CHECKPOINTS: usize = 1_000;
/// The number of hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;
/// Maximal number of characters of a directive's text that an error message quotes.
const MAX_QUOTED_CHARS: usize = 100;

/// A validated directive: its numbers are within the limits of the run, and the protocol allows it
/// at this point.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedDirective {
    generation: u64,
    kind: DirectiveKind,
}

impl CheckedDirective {
    /// An Abandon directive for a generation that the worker releases without a directive of the
    /// coordinator.
    pub(crate) fn abandon(generation: u64) -> Self {
        Self { generation, kind: DirectiveKind::Abandon(v1::Abandon::default()) }
    }

    /// The generation of the directive.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The content of the directive.
    #[must_use]
    pub fn kind(&self) -> &DirectiveKind {
        &self.kind
    }

    /// The generation and the content.
    pub(crate) fn into_parts(self) -> (u64, DirectiveKind) {
        (self.generation, self.kind)
    }
}

/// Limits that follow from the run file.
#[derive(Debug)]
struct RunLimits {
    /// The steps and the batch size of each stage.
    stages: Vec<(u64, u32)>,
    max_workers: u32,
    /// Maximal number of granted steps beyond the last reported one.
    window: u32,
    validation_images: u64,
}

impl RunLimits {
    fn new(run: &RunFile, validation_images: u64) -> Self {
        Self {
            stages: run.stages.iter().map(|stage| (stage.steps, stage.batch)).collect(),
            max_workers: run.workers.max,
            window: run.control.window,
            validation_images,
        }
    }

    /// The steps and the batch size of a stage.
    fn stage(&self, stage: u32) -> Result<(u64, u32), ProtocolViolation> {
        let stages = self.stages.len();
        let limits = self.stages.get(stage as usize).copied();
        limits.ok_or_else(|| ProtocolViolation::new(format!("stage {stage} (from 0) of a run that has {stages}")))
    }
}

/// A position in the plan: stage and step.
type StageStep = (u32, u64);

/// The generation of the last Rendezvous.
#[derive(Debug)]
struct Generation {
    number: u64,
    /// Whether the coordinator has sent Abandon.
    is_abandoned: bool,
    /// Whether the worker has reported Idle: it has released the generation.
    is_released: bool,
    /// The position that the worker reaches with all granted steps.
    granted: StageStep,
    /// The last position in this generation that the worker has reported.
    reported: StageStep,
    /// Number of image ranges that are assigned and not yet reported.
    pending_ranges: usize,
    /// The number of the last ordered checkpoint.
    last_checkpoint: Option<u64>,
    /// Number of checkpoints that are ordered and not yet reported.
    unreported_checkpoints: usize,
}

/// Checks directives. Records the messages between a worker and its coordinators, which determine
/// the directives that are valid next. Kept over sessions, because the numbers of generations
/// increase over all of them.
#[derive(Debug)]
pub struct ProtocolChecker {
    limits: RunLimits,
    generation: Option<Generation>,
    is_finished: bool,
}

impl ProtocolChecker {
    /// A checker before the first directive of a run with this number of validation images.
    #[must_use]
    pub fn new(run: &RunFile, validation_images: u64) -> Self {
        Self { limits: RunLimits::new(run, validation_images), generation: None, is_finished: false }
    }

    /// Applies changed settings of the same run, between two generations.
    pub fn configure(&mut self, run: &RunFile) {
        self.limits = RunLimits::new(run, self.limits.validation_images);
    }

    /// Records a report of the worker. Called before the report is sent.
    pub fn record_report(&mut self, message: &Message) {
        let Some(generation) = &mut self.generation else { return };
        let number = generation.number;
        match message {
            Message::StepDone(v1::StepDone { position: Some(position), .. }) if position.generation == number => {
                generation.reported = (position.stage, position.step);
            }
            Message::Advanced(advanced) if advanced.generation == number => generation.reported = (advanced.stage, 0),
            Message::EvaluationItems(items) if items.generation == number && !items.more => {
                generation.pending_ranges = generation.pending_ranges.saturating_sub(1);
            }
            Message::CheckpointDone(v1::CheckpointDone { generation: ordered_in, .. })
            | Message::CheckpointFailed(v1::CheckpointFailed { generation: ordered_in, .. })
                if *ordered_in == number =>
            {
                generation.unreported_checkpoints = generation.unreported_checkpoints.saturating_sub(1);
            }
            // An Idle of an earlier generation may still be queued.
            Message::Idle(idle) if idle.generation >= number => generation.is_released = true,
            _ => {}
        }
    }

    /// Checks a directive. Returns none if there is nothing to execute: the directive is obsolete,
    /// or a Leave, which the session executes.
    ///
    /// # Errors
    /// The directive does not fit the run, or is not valid at this point.
    pub fn check(&mut self, directive: v1::Directive) -> Result<Option<CheckedDirective>, ProtocolViolation> {
        let v1::Directive { generation, directive } = directive;
        let kind = directive.ok_or_else(|| ProtocolViolation::new("a directive without content"))?;
        let name = directive_name(&kind);
        let is_current = self.check_kind(generation, &kind).map_err(|violation| violation.in_directive(name))?;
        // The training thread does not need the reasons, which may be long.
        let kind = match kind {
            DirectiveKind::Abandon(_) => DirectiveKind::Abandon(v1::Abandon::default()),
            DirectiveKind::Halt(_) => DirectiveKind::Halt(v1::Halt::default()),
            kind => kind,
        };
        Ok(is_current.then_some(CheckedDirective { generation, kind }))
    }

    /// Checks a directive of generation `number`. Returns whether it has to be executed: false for
    /// an obsolete directive and for a Leave.
    fn check_kind(&mut self, number: u64, kind: &DirectiveKind) -> Result<bool, ProtocolViolation> {
        ensure(!self.is_finished, || "after Finish".to_owned())?;
        match kind {
            // The session executes it.
            DirectiveKind::Leave(_) => return Ok(false),
            DirectiveKind::Finish(_) => {
                self.is_finished = true;
                return Ok(true);
            }
            DirectiveKind::Rendezvous(directive) => {
                self.check_rendezvous(number, directive)?;
                return Ok(true);
            }
            _ => {}
        }
        let Self { limits, generation: Some(generation), .. } = self else {
            return Err(ProtocolViolation::new(format!("of generation {number}, before any Rendezvous")));
        };
        let last = generation.number;
        if matches!(kind, DirectiveKind::Abandon(_) | DirectiveKind::Halt(_)) {
            ensure(number <= last, || format!("of generation {number}, where the last is {last}"))?;
            let is_current = number == last && !generation.is_released && !generation.is_abandoned;
            generation.is_abandoned |= is_current && matches!(kind, DirectiveKind::Abandon(_));
            return Ok(is_current);
        }
        ensure(number == last, || format!("of generation {number}, in generation {last}"))?;
        ensure(!generation.is_abandoned, || format!("of generation {number}, after Abandon"))?;
        match kind {
            DirectiveKind::Train(directive) => generation.check_train(limits, directive)?,
            DirectiveKind::Evaluate(directive) => generation.check_evaluate(limits, directive)?,
            DirectiveKind::Checkpoint(directive) => generation.check_checkpoint(directive)?,
            DirectiveKind::Advance(directive) => generation.check_advance(limits, directive)?,
            DirectiveKind::Rendezvous(_)
            | DirectiveKind::Abandon(_)
            | DirectiveKind::Halt(_)
            | DirectiveKind::Finish(_)
            | DirectiveKind::Leave(_) => {}
        }
        // A directive may be in flight when the worker releases the generation. It is obsolete, not
        // a violation.
        Ok(!generation.is_released)
    }

    fn check_rendezvous(&mut self, number: u64, directive: &v1::Rendezvous) -> Result<(), ProtocolViolation> {
        let last = self.generation.as_ref().map_or(0, |generation| generation.number);
        ensure(number > last, || format!("generation {number} after generation {last}"))?;
        let is_idle = self.generation.as_ref().is_none_or(|generation| generation.is_released);
        ensure(is_idle, || format!("generation {number} before the worker has released generation {last}"))?;
        let v1::Rendezvous { rank, world_size, store_address, source_rank, checkpoint, checkpoint_sha256, .. } =
            directive;
        let max = self.limits.max_workers;
        ensure((1..=max).contains(world_size) && rank < world_size, || {
            format!("rank {rank} of {world_size} in a run of at most {max} workers")
        })?;
        let v1::Position { stage, step, .. } =
            directive.position.ok_or_else(|| ProtocolViolation::new("without a position"))?;
        let (steps, batch) = self.limits.stage(stage)?;
        ensure(step <= steps, || format!("at step {step} of stage {stage}, which has {steps}"))?;
        match source_rank {
            Some(source) => {
                ensure(source < world_size, || format!("the state of rank {source} in a generation of {world_size}"))?;
                ensure(checkpoint.is_empty(), || format!("the state of rank {source}, and of a checkpoint"))?;
            }
            None if checkpoint.is_empty() => {
                ensure((stage, step) == (0, 0), || format!("the state of the seed at stage {stage} step {step}"))?;
            }
            None => {
                check_checkpoint_name(checkpoint)?;
                let is_sha256 = checkpoint_sha256.len() == SHA256_DIGITS
                    && checkpoint_sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
                ensure(is_sha256, || format!("a checkpoint with the SHA-256 {}", quoted(checkpoint_sha256)))?;
            }
        }
        let v1::SequenceStart { step: first, epoch } = directive.sequence_start.unwrap_or_default();
        // A step begins at most as many epochs as it has samples.
        ensure(first <= step && epoch <= first.saturating_mul(batch.into()), || {
            format!("samples from step {first} and epoch {epoch} on, at step {step}")
        })?;
        let peers = directive.peers.len();
        ensure(peers < *world_size as usize && peers <= MAX_PEERS, || {
            format!("{peers} peers in a generation of {world_size}; at most {MAX_PEERS}")
        })?;
        let mut addresses = directive.peers.iter().map(|peer| &peer.store_address).chain([store_address]);
        if let Some(address) = addresses.find(|address| address.len() > MAX_ADDRESS_BYTES) {
            return Err(ProtocolViolation::new(format!("an address of {} bytes, {}", address.len(), quoted(address))));
        }
        self.generation = Some(Generation {
            number,
            is_abandoned: false,
            is_released: false,
            granted: (stage, step),
            reported: (stage, step),
            pending_ranges: 0,
            last_checkpoint: None,
            unreported_checkpoints: 0,
        });
        Ok(())
    }
}

impl Generation {
    fn check_train(&mut self, limits: &RunLimits, directive: &v1::Train) -> Result<(), ProtocolViolation> {
        let v1::Train { stage, first_step, steps, share_begin, share_end } = *directive;
        let (stage_steps, batch) = limits.stage(stage)?;
        let (granted_stage, granted_step) = self.granted;
        ensure((stage, first_step) == self.granted, || {
            format!("from stage {stage} step {first_step} on, at stage {granted_stage} step {granted_step}")
        })?;
        ensure(steps >= 1 && u64::from(steps) <= stage_steps - first_step, || {
            format!("{steps} steps from step {first_step} on of stage {stage}, which has {stage_steps}")
        })?;
        ensure(share_begin < share_end && share_end <= batch, || {
            format!("the samples {share_begin}..{share_end} of a batch of {batch}")
        })?;
        let end = first_step + u64::from(steps);
        let (reported_stage, reported_step) = self.reported;
        // The last report may be of the stage before.
        let reported = if reported_stage == stage { reported_step } else { 0 };
        let window = limits.window;
        ensure(end.saturating_sub(reported) <= window.into(), || {
            format!("up to step {end} after a report of step {reported}, with a window of {window}")
        })?;
        self.granted = (stage, end);
        Ok(())
    }

    fn check_evaluate(&mut self, limits: &RunLimits, directive: &v1::Evaluate) -> Result<(), ProtocolViolation> {
        let pending = self.pending_ranges;
        ensure(pending == 0, || format!("while {pending} image ranges of the previous Evaluate are not reported"))?;
        let images = limits.validation_images;
        let mut previous_end = 0;
        for &v1::ImageRange { begin, end } in &directive.ranges {
            let is_valid =
                previous_end <= begin && begin < end && end <= images && end - begin <= IMAGES_PER_EVALUATION_RANGE;
            ensure(is_valid, || {
                format!(
                    "the images {begin}..{end} of {images}, after {previous_end}; at most {IMAGES_PER_EVALUATION_RANGE} at once"
                )
            })?;
            previous_end = end;
        }
        self.pending_ranges = directive.ranges.len();
        Ok(())
    }

    fn check_checkpoint(&mut self, directive: &v1::Checkpoint) -> Result<(), ProtocolViolation> {
        let v1::Checkpoint { checkpoint: number, name, journal } = directive;
        check_checkpoint_name(name)?;
        let hash_bytes = journal.as_ref().map_or(0, |head| head.hash.len());
        ensure(hash_bytes <= SHA256_DIGITS, || format!("a record of the journal whose hash has {hash_bytes} bytes"))?;
        let last = self.last_checkpoint;
        ensure(last.is_none_or(|last| *number > last), || {
            format!("number {number} after number {}", last.unwrap_or_default())
        })?;
        ensure(self.unreported_checkpoints < MAX_UNREPORTED_CHECKPOINTS, || {
            format!("number {number} while {MAX_UNREPORTED_CHECKPOINTS} others are not reported")
        })?;
        self.last_checkpoint = Some(*number);
        self.unreported_checkpoints += 1;
        Ok(())
    }

    fn check_advance(&mut self, limits: &RunLimits, directive: &v1::Advance) -> Result<(), ProtocolViolation> {
        let (stage, (current, _)) = (directive.stage, self.granted);
        limits.stage(stage)?;
        ensure(stage == current + 1, || format!("to stage {stage} from stage {current}"))?;
        self.granted = (stage, 0);
        Ok(())
    }
}

fn check_checkpoint_name(name: &str) -> Result<(), ProtocolViolation> {
    checkpoint_store::check_name(name)
        .map_err(|_| ProtocolViolation::new(format!("the checkpoint name {}", quoted(name))))
}

/// Fails with the description of a violation unless `condition` is true.
fn ensure(condition: bool, description: impl FnOnce() -> String) -> Result<(), ProtocolViolation> {
    if condition { Ok(()) } else { Err(ProtocolViolation::new(description())) }
}

/// The beginning of a text, escaped and in quotes.
fn quoted(text: &str) -> String {
    let (beginning, rest) = match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => (&text[..end], "..."),
        None => (text, ""),
    };
    format!("{beginning:?}{rest}")
}

fn directive_name(kind: &DirectiveKind) -> &'static str {
    match kind {
        DirectiveKind::Rendezvous(_) => "Rendezvous",
        DirectiveKind::Train(_) => "Train",
        DirectiveKind::Evaluate(_) => "Evaluate",
        DirectiveKind::Checkpoint(_) => "Checkpoint",
        DirectiveKind::Advance(_) => "Advance",
        DirectiveKind::Abandon(_) => "Abandon",
        DirectiveKind::Finish(_) => "Finish",
        DirectiveKind::Leave(_) => "Leave",
        DirectiveKind::Halt(_) => "Halt",
    }
}

/// A directive that was not checked.
#[cfg(test)]
pub(crate) fn unchecked(generation: u64, kind: DirectiveKind) -> CheckedDirective {
    CheckedDirective { generation, kind }
}

#[cfg(test)]
mod tests;
