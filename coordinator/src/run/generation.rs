//! Generations: fixed sets of members that train together, from the rendezvous to the end. A
//! generation corresponds to a quorum of torchft or a rendezvous round of torchelastic.
//!
//! ```text
//!                enough members, all idle             all are ready
//!     waiting ---------------------------> forming ----------------> running ---> over
//!        ^                                    |                         |
//!        | Abandon, then Idle of all members  | (1)                     | (1), (2), (3)
//!        '------------------------------------+-------------------------'
//!
//!     (1) at once: a member is lost or fails
//!     (2) after the step in flight: a member joins or leaves; see membership_changes
//!     (3) a stage ends with an earlier state; see oversight
//! ```

use std::collections::BTreeSet;

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, Outcome, Phase, ProtocolViolation, Run, Time,
    admission::is_held,
    data,
    membership::MemberState,
    one_line,
    plan::Place,
    progress::PendingBoundary,
    reach,
    record::{EventKind, Record, Source},
    statistics::StepMerger,
    step_tracker::StepTracker,
};

/// The run fails after this many generations in a row that ended with the same fatal failure and
/// without progress.
const SAME_FATAL_FAILURES: u32 = 3;
/// The run fails after this many generations in a row that ended with other failures and without
/// progress.
const FAILURES: u32 = 5;

/// The members, the starting state and the progress of one generation.
#[derive(Debug)]
pub(super) struct Generation {
    pub number: u64,
    /// Worker ids in order; the index is the rank in the generation.
    pub members: Vec<u32>,
    pub start: Place,
    /// The source of the state that it starts from.
    pub source: Source,
    pub ready: BTreeSet<u32>,
    /// The point up to which directives were sent.
    pub granted: Place,
    /// The point that each member has reported.
    pub step_tracker: StepTracker,
    /// A batch size, and the number of its samples for each rank.
    pub shares: (u32, Vec<u32>),
    /// The run's progress when the generation was formed.
    pub began: u64,
    /// The boundary directive that was sent and that not all members have reported; none while
    /// training.
    pub awaiting: Option<PendingBoundary>,
    /// Why the generation is to end. Its members were told to halt; it ends when one has halted or
    /// all granted steps are done.
    pub ending: Option<String>,
    pub merger: StepMerger,
}

impl Generation {
    /// Whether all members have reported all steps that were granted.
    pub fn quiet(&self) -> bool {
        self.step_tracker.all_at(self.granted)
    }
}

/// Counts failures without progress in between, to stop a run that cannot go on.
#[derive(Debug, Default)]
pub(super) struct Failures {
    progress: u64,
    fatal: Option<Fatal>,
    /// The generation of the last other failure, and the number of such failures.
    other: (u64, u32),
}

#[derive(Debug)]
struct Fatal {
    reason: String,
    generation: u64,
    count: u32,
}

impl Failures {
    /// Counts a failure, at most once per generation. Returns true if the run has to fail.
    pub(super) fn count(&mut self, progress: u64, generation: u64, reason: &str, is_fatal: bool) -> bool {
        if progress != self.progress {
            *self = Self { progress, ..Self::default() };
        }
        if !is_fatal {
            if self.other.0 != generation {
                self.other = (generation, self.other.1 + 1);
            }
            return self.other.1 >= FAILURES;
        }
        match &mut self.fatal {
            Some(fatal) if fatal.reason == reason => {
                if fatal.generation != generation {
                    (fatal.generation, fatal.count) = (generation, fatal.count + 1);
                }
                fatal.count >= SAME_FATAL_FAILURES
            }
            other => {
                *other = Some(Fatal { reason: reason.to_owned(), generation, count: 1 });
                false
            }
        }
    }
}

/// The point at which a generation starts, and the source of that state.
pub(super) struct StartPoint {
    pub start: Place,
    pub source: Source,
}

impl Run {
    /// Forms the next generation if enough members have joined and all have released the last one.
    pub(super) fn try_form(&mut self, now: Time) {
        if !self.members.all_idle() {
            return;
        }
        self.part(now);
        let Some(ranks) = self.next_members() else { return };
        let StartPoint { start, source } = self.origin();
        if self.is_missed(now, start) {
            return;
        }
        self.flush_statistics();
        let number = self.last_generation + 1;
        (self.last_generation, self.horizon) = (number, start);
        self.terms.record(number, self.term);
        self.cuts.cut(number, start);
        self.exchanges.iter_mut().for_each(|exchange| exchange.starts(number, start));
        self.keep_evaluation(start);
        self.go_to(start, number, &source);
        self.delete_unfinished();

        let machine = |rank: &u32| Some((*rank, self.members.get(*rank)?.machine.clone()));
        let members: Vec<_> = ranks.iter().filter_map(machine).collect();
        let cause = self.cause.0.clone();
        let term = self.term;
        self.record(Record::Formed { generation: number, term, members, cause, start, source: source.clone() });
        self.rendezvous(number, &ranks, start, &source);
        self.generation = Some(Generation {
            number,
            step_tracker: StepTracker::new(&ranks, start),
            shares: (0, Vec::new()),
            began: self.progress,
            members: ranks,
            start,
            source,
            ready: BTreeSet::new(),
            granted: start,
            awaiting: None,
            ending: None,
            merger: StepMerger::default(),
        });
        self.phase = Phase::Forming;
    }

    /// The furthest state available: a member's (that of the lowest id, members that stay first),
    /// else a checkpoint's, else the seed's.
    pub(super) fn origin(&self) -> StartPoint {
        let usable = |position: &v1::Position| self.cuts.allow(position.into(), position.generation);
        let held = self.members.iter().filter_map(|(rank, member)| {
            let place = Place::from(member.position.as_ref().filter(|position| usable(position))?);
            // Among members with the same state, one that stays is preferred.
            Some((place, member.leaving.is_none(), std::cmp::Reverse(rank)))
        });
        let saved = self.checkpoints.values().next_back();
        match (held.max(), saved) {
            (Some((start, _, rank)), saved) if saved.is_none_or(|saved| saved.place <= start) => {
                StartPoint { start, source: Source::Member(rank.0) }
            }
            (_, Some(saved)) => StartPoint { start: saved.place, source: Source::Checkpoint(saved.name.clone()) },
            (_, None) => StartPoint { start: Place::default(), source: Source::Seed },
        }
    }

    /// Moves `committed` to the start of the next generation: back if the state is lost, forward if
    /// only the reports are.
    fn go_to(&mut self, start: Place, generation: u64, source: &Source) {
        // Needed even if no committed step is given up: the beginning of a stage may be recorded
        // only for its evaluation.
        self.done.retain(|(place, _)| *place <= start);
        self.scores.retain(|place, _| *place <= start);
        let from = self.committed;
        if start == from {
            return;
        }
        let detail = json!({
            "from": { "stage": from.stage, "step": from.step },
            "to": { "stage": start.stage, "step": start.step },
            "generation": generation,
            "source": source.to_string(),
        });
        self.event(if start < from { EventKind::RolledBack } else { EventKind::Adopted }, detail);
        self.saves_up_to(start);
        self.committed = start;
        if start < from || start.stage != from.stage {
            self.watch();
        }
    }

    fn rendezvous(&mut self, number: u64, ranks: &[u32], start: Place, source: &Source) {
        let in_generation = |rank: u32| ranks.iter().position(|other| *other == rank).map(|index| index as u32);
        let address = |rank: &u32| Some((*rank, self.members.get(*rank)?.store_address.clone()));
        let addresses: Vec<(u32, String)> = ranks.iter().filter_map(address).collect();
        let (source_rank, checkpoint) = match source {
            Source::Member(rank) => (in_generation(*rank), String::new()),
            Source::Checkpoint(name) => (None, name.clone()),
            Source::Seed => (None, String::new()),
        };
        let saved = self.checkpoints.values().find(|saved| saved.name == checkpoint);
        let (checkpoint_run_id, checkpoint_sha256) =
            saved.map(|saved| (saved.run_id.clone(), saved.parameters_sha256.clone())).unwrap_or_default();
        let sequence_start = data::sequence_start(&self.exchanges, start.stage, self.plan.stage(start));
        for (index, rank) in ranks.iter().enumerate() {
            self.members.stand(*rank, MemberState::In(number));
            let Some(session) = self.members.get(*rank).map(|member| member.session) else { continue };
            let rendezvous = v1::Rendezvous {
                rank: index as u32,
                world_size: ranks.len() as u32,
                store_address: addresses.first().map(|(_, address)| address.clone()).unwrap_or_default(),
                source_rank,
                checkpoint: checkpoint.clone(),
                checkpoint_sha256: checkpoint_sha256.clone(),
                checkpoint_run_id: checkpoint_run_id.clone(),
                position: Some(start.in_generation(number)),
                peers: reach::peers(&addresses, index),
                sequence_start: Some(sequence_start),
                term: self.term,
            };
            self.send(session, number, Directive::Rendezvous(rendezvous));
        }
    }

    /// Starts training when all members of the generation are ready.
    pub(super) fn try_run(&mut self, now: Time) {
        let Some(generation) = &self.generation else { return };
        if generation.ready.len() < generation.members.len() {
            return;
        }
        let generation = generation.number;
        self.phase = Phase::Running;
        self.record(Record::Ready { generation, recovery: self.cause.1 });
        self.proceed(now);
    }

    /// Whether a message of a worker belongs to the generation that forms or runs. False for an
    /// older generation; a violation of the protocol for a generation that does not exist.
    pub(super) fn is_current(&self, rank: u32, number: u64) -> Result<bool, ProtocolViolation> {
        if number > self.last_generation {
            return Err(format!("generation {number} does not exist"));
        }
        let live = matches!(self.phase, Phase::Forming | Phase::Running);
        let standing = self.members.get(rank).map(|member| member.standing);
        match standing {
            Some(MemberState::In(own)) if own == number => Ok(live),
            _ if live && number == self.last_generation => Err(format!("it is not in generation {number}")),
            _ => Ok(false),
        }
    }

    pub(super) fn ready(&mut self, rank: u32, ready: &v1::Ready) -> Result<(), ProtocolViolation> {
        if !self.is_current(rank, ready.generation)? {
            return Ok(());
        }
        let Some(generation) = &mut self.generation else { return Ok(()) };
        let at = ready.position.as_ref().map(Place::from);
        if at != Some(generation.start) {
            let at = at.map_or_else(|| "nowhere".into(), |at| at.to_string());
            return Err(format!("it is ready at {at} instead of {}", generation.start));
        }
        generation.ready.insert(rank);
        let position = generation.start.in_generation(generation.number);
        if let Some(member) = self.members.get_mut(rank) {
            member.position = Some(position);
        }
        Ok(())
    }

    pub(super) fn idle(&mut self, now: Time, rank: u32, idle: &v1::Idle) -> Result<(), ProtocolViolation> {
        if idle.generation > self.last_generation {
            return Err(format!("generation {} does not exist", idle.generation));
        }
        if let Some(reason) = idle.position.as_ref().and_then(|position| self.impossible(position)) {
            return Err(format!("it says where it cannot be: {reason}"));
        }
        let position = idle.position.filter(is_held);
        let Some(member) = self.members.get_mut(rank) else { return Ok(()) };
        let own = match member.standing {
            MemberState::In(own) | MemberState::LettingGo { generation: own, .. } => own,
            MemberState::Idle => 0,
        };
        if own > idle.generation {
            return Ok(());
        }
        let was_in = matches!(member.standing, MemberState::In(_));
        member.position = position;
        member.beat(now, v1::Phase::Idle, position);
        self.members.stand(rank, MemberState::Idle);
        self.stops_saving(now, rank, idle.saving);
        if was_in {
            let halted = self.generation.as_ref().and_then(|generation| generation.ending.clone());
            let by_failure = halted.is_none();
            let reason = halted.unwrap_or_else(|| format!("rank {rank} let go of the generation"));
            self.end_generation(now, &reason, by_failure);
        }
        Ok(())
    }

    pub(super) fn failed(&mut self, now: Time, rank: u32, failed: &v1::Failed) -> Result<(), ProtocolViolation> {
        if failed.generation > self.last_generation {
            return Err(format!("generation {} does not exist", failed.generation));
        }
        let reason = one_line(&failed.reason);
        let current = matches!(self.phase, Phase::Forming | Phase::Running)
            && self.members.get(rank).is_some_and(|member| member.standing == MemberState::In(failed.generation));
        if current && !failed.damaged_checkpoint.is_empty() {
            self.damaged(rank, &failed.damaged_checkpoint, &reason)?;
        }
        self.complain(rank, failed);
        // Other members may have halted first, so that its collective operation failed.
        let halted = self.generation.as_ref().is_some_and(|generation| generation.ending.is_some());
        let too_many = if failed.fatal {
            // Other members may have noticed first, and ended the generation: the cause counts all
            // the same.
            self.failures.count(self.progress, failed.generation, &reason, true)
        } else {
            current && !halted && self.failures.count(self.progress, failed.generation, &reason, false)
        };
        let text = format!("rank {rank} failed: {reason}");
        if failed.fatal {
            let session = self.members.get(rank).map(|member| member.session);
            self.remove(now, rank, EventKind::Lost, &text);
            self.actions.extend(session.map(|session| Action::Close { session, refusal: None }));
        } else if current {
            // A member that reports a failure releases its generation by itself: it gets no
            // directive.
            self.members.stand(rank, MemberState::LettingGo { generation: failed.generation, since: now });
            self.end_generation(now, &text, !halted);
        }
        if too_many && !matches!(self.phase, Phase::Over { .. }) {
            self.conclude(now, Outcome::Failed(format!("generations keep failing without progress: {text}")));
        }
        Ok(())
    }

    /// Ends the generation that forms or runs, if there is one: sends Abandon to all members in it.
    pub(super) fn end_generation(&mut self, now: Time, reason: &str, by_failure: bool) {
        let live = matches!(self.phase, Phase::Forming | Phase::Running);
        let Some(generation) = self.generation.as_mut().filter(|_| live) else { return };
        let number = generation.number;
        generation.awaiting = None;
        self.throughput.interrupt();
        self.phase = Phase::Waiting;
        self.cause = (reason.to_owned(), by_failure);
        for rank in generation.members.clone() {
            let member = self.members.get(rank).filter(|member| member.standing == MemberState::In(number));
            let Some(session) = member.map(|member| member.session) else { continue };
            self.members.stand(rank, MemberState::LettingGo { generation: number, since: now });
            self.send(session, number, Directive::Abandon(v1::Abandon { reason: reason.to_owned() }));
        }
        self.record(Record::Ended { generation: number, reason: reason.to_owned() });
    }

    /// Records the steps that only some members of the last generation reported.
    pub(super) fn flush_statistics(&mut self) {
        if let Some(generation) = &mut self.generation {
            let steps: Vec<_> = generation.merger.drain().collect();
            for step in steps {
                self.record_step(step);
            }
        }
    }
}
