//! Generations: fixed sets of members that train together, from the rendezvous to the end. A
//! generation corresponds to a quorum of torchft or a rendezvous round of torchelastic.
//!
//! ```text
//!                enough members, all idle             all are ready
//!     waiting ---------------------------> forming ----------------> running ---> over
//!        ^                                    |                         |    run finished,
//!        |                                    | (1), (3)                |    stopped or failed
//!        |  Abandon directive to all members, |                         | (1), (2), (3)
//!        |  then Idle message of all members  |                         |
//!        '------------------------------------+-------------------------'
//!
//!     (1) at once: a member fails or is evicted
//!     (2) after the step in flight: a worker joins or leaves; see handler::membership_changes
//!     (3) at once: a stage ends with an earlier state, perhaps due to scores that arrive while the
//!         next generation forms; see handler::stage
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    image_ranges::ImageRange,
    membership::{MemberState, Membership},
    outcome::Outcome,
    plan::Position,
    record::StateSource,
    statistics::StepMerger,
    step_tracker::StepTracker,
    term_log::TermLog,
    types::{Time, WorkerId},
    violation::ProtocolViolation,
};

/// The run fails when this many fatal failures in a row have the same reason, with no progress
/// between them. At most one failure is counted per generation.
const MAX_SAME_FATAL_FAILURES: u32 = 3;
/// The run fails after this many generations with failures that members report and that are not
/// fatal, or with stalls of all members, with no progress between them.
const MAX_OTHER_FAILURES: u32 = 5;

/// The phase of the run's life cycle, which is also that of its generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunPhase {
    /// No generation: waiting for members to join or to release the last one.
    Waiting,
    /// The members of a new generation are in their rendezvous.
    Forming,
    /// The members of the generation train.
    Running,
    /// The run is finished or has failed, or this coordinator process stops. It waits until this
    /// time for its members to disconnect.
    Over {
        /// How the run or the process ended.
        outcome: Outcome,
        /// The time.
        until: Time,
    },
}

/// All generations of the run: the current one, and the facts about earlier ones that are still
/// needed.
#[derive(Debug)]
pub struct Generations {
    /// The phase of the run and of its generation.
    pub phase: RunPhase,
    /// The generation that forms or runs; while waiting, the one that ended last, whose reports may
    /// still arrive.
    pub current: Option<Generation>,
    /// Number of the last generation; 0 if there was none.
    pub last_number: u64,
    /// The number of the last evaluation or checkpoint directive.
    pub last_directive: u64,
    /// Which term formed which generation.
    pub term_log: TermLog,
    /// How the last generation ended.
    pub last_end: GenerationEnd,
    /// Counts failed generations, to end a run that cannot continue.
    pub failure_counter: FailureCounter,
    /// Pairs of members that could not reach each other since the last generation was formed.
    pub unreachable_pairs: UnreachablePairs,
    /// When a member with a training state was last removed; initially the coordinator's start.
    pub state_holder_removed_at: Time,
}

/// Pairs of members that cannot reach each other, the lower id first.
pub type UnreachablePairs = BTreeSet<(WorkerId, WorkerId)>;

impl Generations {
    /// The generations of a run that has formed `last_number` generations in earlier coordinator
    /// processes, and that is in `phase`.
    #[must_use]
    pub fn new(phase: RunPhase, last_number: u64, term_log: TermLog) -> Self {
        Self {
            phase,
            current: None,
            last_number,
            // Workers may still execute directives of an earlier coordinator process. Their numbers
            // must not be used again.
            last_directive: last_number << 32,
            term_log,
            last_end: GenerationEnd { reason: "start".into(), is_failure: false },
            failure_counter: FailureCounter::default(),
            unreachable_pairs: UnreachablePairs::default(),
            state_holder_removed_at: Time::ZERO,
        }
    }

    /// A new number for an evaluation or checkpoint directive.
    pub fn next_directive_number(&mut self) -> u64 {
        self.last_directive += 1;
        self.last_directive
    }

    /// Whether a generation forms or runs.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, RunPhase::Forming | RunPhase::Running)
    }

    /// Whether the run, or this coordinator process, is at its end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, RunPhase::Over { .. })
    }

    /// The generation that runs.
    #[must_use]
    pub fn running(&self) -> Option<&Generation> {
        self.current.as_ref().filter(|_| self.phase == RunPhase::Running)
    }

    /// Checks that a generation with this number was formed.
    ///
    /// # Errors
    /// The run has not formed that many generations.
    pub fn check_exists(&self, number: u64) -> Result<(), ProtocolViolation> {
        match number > self.last_number {
            true => Err(ProtocolViolation::new(format!("generation {number} does not exist"))),
            false => Ok(()),
        }
    }

    /// Whether a worker's message about generation `number` is about the generation that forms or
    /// runs. False if that generation has ended.
    ///
    /// # Errors
    /// The generation does not exist, or it forms or runs and the worker is not in it.
    pub fn is_current(
        &self,
        members: &Membership,
        worker_id: WorkerId,
        number: u64,
    ) -> Result<bool, ProtocolViolation> {
        self.check_exists(number)?;
        let state = members.get(worker_id).map(|member| member.state);
        match state {
            Some(MemberState::InGeneration(current)) if current == number => Ok(self.is_active()),
            _ if self.is_active() && number == self.last_number => {
                Err(ProtocolViolation::new(format!("it is not in generation {number}")))
            }
            _ => Ok(false),
        }
    }
}

/// The members, the start and the progress of one generation.
#[derive(Debug)]
pub struct Generation {
    /// Generations are numbered from 1.
    pub number: u64,
    /// Worker ids in order; the index is the rank in the generation.
    pub members: Vec<WorkerId>,
    /// The position at which it starts.
    pub start: Position,
    /// The source of the training state that it starts from.
    pub source: StateSource,
    /// The members that have finished the rendezvous.
    pub ready_members: BTreeSet<WorkerId>,
    /// The position up to which the members were ordered to train.
    pub granted: Position,
    /// The position that each member has reported.
    pub step_tracker: StepTracker,
    /// The batch size, and the number of samples of each rank's share of a batch.
    pub shares: (u32, Vec<u32>),
    /// The run's progress count when the generation was formed.
    pub initial_progress_count: u64,
    /// The evaluation or stage change that is in progress; none while the members train. A save is
    /// not included, because the members train during a save.
    pub pending_boundary: Option<PendingBoundary>,
    /// Why the generation has to end. Its members were ordered to halt; it ends when one has halted
    /// or all granted steps are done.
    pub halt_reason: Option<String>,
    /// The reports of steps that not all members have reported yet.
    pub step_merger: StepMerger,
}

impl Generation {
    /// A generation that forms.
    #[must_use]
    pub fn new(
        number: u64,
        members: Vec<WorkerId>,
        start: Position,
        source: StateSource,
        initial_progress_count: u64,
    ) -> Self {
        Self {
            number,
            step_tracker: StepTracker::new(&members, start),
            shares: (0, Vec::new()),
            initial_progress_count,
            members,
            start,
            source,
            ready_members: BTreeSet::new(),
            granted: start,
            pending_boundary: None,
            halt_reason: None,
            step_merger: StepMerger::default(),
        }
    }

    /// Whether all members have reported all steps that were granted.
    #[must_use]
    pub fn all_steps_reported(&self) -> bool {
        self.step_tracker.all_at(self.granted)
    }

    /// Whether the coordinator scores captions, and no member has to do anything.
    #[must_use]
    pub fn is_scoring(&self) -> bool {
        matches!(self.pending_boundary, Some(PendingBoundary::Scores))
    }

    /// Whether a member writes captions or trains granted steps.
    #[must_use]
    pub fn has_work_in_flight(&self) -> bool {
        !self.all_steps_reported() || matches!(self.pending_boundary, Some(PendingBoundary::Captions { .. }))
    }
}

/// An evaluation or a stage change that is in progress, and the reports that are still missing.
#[derive(Debug)]
pub enum PendingBoundary {
    /// An evaluation: the members caption images.
    Captions {
        /// The ranges of images that were assigned to each member and are not reported yet.
        pending: BTreeMap<WorkerId, BTreeSet<ImageRange>>,
    },
    /// An evaluation: the coordinator scores the captions, and the members wait.
    Scores,
    /// A stage change: the members enter the next stage.
    Advance {
        /// The number of the next stage.
        stage: u32,
        /// The members that have reported that they have entered it.
        advanced: BTreeSet<WorkerId>,
    },
}

/// How a generation ended.
#[derive(Clone, Debug)]
pub struct GenerationEnd {
    /// Why it ended, as a message for display.
    pub reason: String,
    /// Whether it ended because of a failure.
    pub is_failure: bool,
}

/// Counts failures without progress between them, to end a run that cannot continue.
#[derive(Debug, Default)]
pub struct FailureCounter {
    /// The run's progress count at the last failure.
    progress_count: u64,
    fatal_failures: Option<FatalFailures>,
    /// The generation of the last failure that was not fatal, and the number of these failures.
    other_failures: (u64, u32),
}

/// Consecutive fatal failures with the same reason.
#[derive(Debug)]
struct FatalFailures {
    reason: String,
    /// The generation of the last one.
    generation: u64,
    count: u32,
}

impl FailureCounter {
    /// Counts a failure, at most once per generation. Returns true if the run has to fail.
    pub fn record(&mut self, progress_count: u64, generation: u64, reason: &str, is_fatal: bool) -> bool {
        if progress_count != self.progress_count {
            *self = Self { progress_count, ..Self::default() };
        }
        if !is_fatal {
            let (last_generation, count) = &mut self.other_failures;
            if *last_generation != generation {
                (*last_generation, *count) = (generation, *count + 1);
            }
            return *count >= MAX_OTHER_FAILURES;
        }
        match &mut self.fatal_failures {
            Some(fatal) if fatal.reason == reason => {
                if fatal.generation != generation {
                    (fatal.generation, fatal.count) = (generation, fatal.count + 1);
                }
                fatal.count >= MAX_SAME_FATAL_FAILURES
            }
            different => {
                let first = FatalFailures { reason: reason.to_owned(), generation, count: 1 };
                *different = Some(first);
                false
            }
        }
    }
}
