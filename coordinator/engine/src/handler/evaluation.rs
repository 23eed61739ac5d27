//! Evaluations: assigns the validation images to the members, and has their captions scored. The
//! captions themselves are kept by the caller of the state machine.
//!
//! An evaluation belongs to the run, not to a generation. When a generation ends during an
//! evaluation and the next generation starts from the same state, the evaluation continues: members
//! report only the captions that are missing, and scores that are being computed are used. If the
//! next generation starts from another state, the evaluated state is given up and the evaluation is
//! cancelled.

use std::collections::BTreeMap;

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use crate::{
    action::Action,
    data::RunData,
    event_kind::EventKind,
    image_ranges::{self, CaptionedRanges, ImageRange},
    membership::Membership,
    output::Output,
    plan::{Boundary, Position},
    record::Record,
    settings::Settings,
    state::{
        State,
        evaluation::Evaluation,
        generations::{Generations, PendingBoundary},
        history::History,
    },
    types::{Rank, WorkerId},
    violation::ProtocolViolation,
};

/// Executes evaluations.
pub struct EvaluationHandler<'a> {
    settings: &'a Settings,
    members: &'a Membership,
    data: &'a RunData,
    generations: &'a mut Generations,
    history: &'a mut History,
    evaluation: &'a mut Option<Evaluation>,
    output: &'a mut Output,
}

impl<'a> EvaluationHandler<'a> {
    pub fn new(state: &'a mut State, output: &'a mut Output) -> Self {
        let State { settings, members, data, generations, history, evaluation, .. } = state;
        Self { settings, members, data, generations, history, evaluation, output }
    }

    /// Starts or continues the evaluation of the state at the granted position: assigns the missing
    /// ranges of images to members, or waits for the scores if no range is missing.
    pub fn start(&mut self) {
        let Some(generation) = &self.generations.current else { return };
        let position = generation.granted;
        if self.evaluation.is_none() {
            let captioned = Some(CaptionedRanges::new(self.data.validation_images()));
            let number = self.generations.next_directive_number();
            *self.evaluation = Some(Evaluation { number, position, captioned, save_error: None });
        }
        let Some(Evaluation { number, captioned, .. }) = self.evaluation.as_ref() else { return };
        let number = *number;
        let missing = captioned.as_ref().map(CaptionedRanges::missing);
        if missing.is_some() {
            self.output.push_action(Action::CollectCaptions { evaluation: number });
        }
        match missing.filter(|missing| !missing.is_empty()) {
            Some(missing) => self.assign_ranges(number, &missing),
            None => self.request_scores(),
        }
    }

    /// Orders the members to write captions of these ranges of images.
    fn assign_ranges(&mut self, evaluation: u64, missing: &[ImageRange]) {
        let Some(generation) = &mut self.generations.current else { return };
        let world_size = generation.members.len() as u32;
        let mut pending = BTreeMap::new();
        for (rank, worker_id) in (0..).map(Rank).zip(&generation.members) {
            let share = image_ranges::share_of_rank(missing, world_size, rank);
            pending.insert(*worker_id, share.iter().copied().collect());
            let Some(member) = self.members.get(*worker_id) else { continue };
            let ranges = share.iter().map(|range| (*range).into()).collect();
            let evaluate = Directive::Evaluate(v1::Evaluate { evaluation, ranges });
            self.output.send(member.session, generation.number, evaluate);
        }
        generation.pending_boundary = Some(PendingBoundary::Captions { pending });
    }

    /// Waits for the scores of the complete captions. Requests the scores unless they were
    /// requested before.
    fn request_scores(&mut self) {
        if let Some(generation) = &mut self.generations.current {
            generation.pending_boundary = Some(PendingBoundary::Scores);
        }
        let Some(Evaluation { number, position, captioned, .. }) = self.evaluation.as_mut() else { return };
        let (evaluation, position, Some(_)) = (*number, *position, captioned.take()) else { return };
        let name = position.checkpoint_name(&self.history.plan.stage(position).name, None);
        let captions_file = self.settings.file.captions_folder().join(format!("{name}.json"));
        self.output.push_action(Action::Score { evaluation, captions_file });
    }

    /// Handles `EvaluationItems`: a member reports captions of a range. They are kept if they were
    /// assigned to it.
    ///
    /// # Errors
    /// The captions were not assigned to the member.
    pub fn items(&mut self, worker_id: WorkerId, report: &v1::EvaluationItems) -> Result<(), ProtocolViolation> {
        if !self.generations.is_current(self.members, worker_id, report.generation)? {
            return Ok(());
        }
        let generation = self.generations.current.as_mut();
        let boundary = generation.and_then(|generation| generation.pending_boundary.as_mut());
        let evaluation = self.evaluation.as_ref().filter(|evaluation| evaluation.number == report.evaluation);
        let is_collecting = evaluation.is_some_and(|evaluation| evaluation.captioned.is_some());
        let Some(PendingBoundary::Captions { pending }) = boundary.filter(|_| is_collecting) else {
            return Err(ProtocolViolation::new(format!("evaluation {} is not in progress", report.evaluation)));
        };
        let range = ImageRange::from(report.range.ok_or_else(|| ProtocolViolation::new("captions without a range"))?);
        let is_pending = pending
            .get_mut(&worker_id)
            .is_some_and(|pending| if report.more { pending.contains(&range) } else { pending.remove(&range) });
        if !is_pending {
            let ImageRange { begin, end } = range;
            return Err(ProtocolViolation::new(format!(
                "captions of the images {begin}..{end}, which were not assigned to it, or which it has sent before"
            )));
        }
        if let Some(member) = self.members.get(worker_id) {
            let (session, has_more) = (member.session, report.more);
            self.output.push_action(Action::KeepCaptions { session, range, has_more });
        }
        Ok(())
    }

    /// Handles [`CaptionsKept`](crate::event::Event::CaptionsKept): a range is complete.
    pub fn captions_kept(&mut self, range: ImageRange) {
        let Some(captioned) = self.evaluation.as_mut().and_then(|evaluation| evaluation.captioned.as_mut()) else {
            return;
        };
        captioned.complete(range);
        if captioned.is_complete() {
            self.request_scores();
        }
    }

    /// Handles [`CaptionSaveAttempted`](crate::event::Event::CaptionSaveAttempted): saving the
    /// captions has failed, or has succeeded after a failure.
    pub fn caption_save_attempted(&mut self, number: u64, error: Option<String>) {
        // There is no evaluation any more if its state was given up in the meantime.
        let Some(evaluation) = self.evaluation.as_mut().filter(|evaluation| evaluation.number == number) else {
            return;
        };
        let position = evaluation.position.to_string();
        let previous_error = std::mem::replace(&mut evaluation.save_error, error);
        match (&previous_error, &evaluation.save_error) {
            (None, Some(reason)) => {
                self.output.record_event(EventKind::SaveFailed, json!({ "at": position, "reason": reason }));
            }
            (Some(reason), None) => {
                self.output.record_event(EventKind::SavedAgain, json!({ "at": position, "reason": reason }));
            }
            _ => {}
        }
    }

    /// Completes the evaluation with this number. Returns the position of the evaluated state; none
    /// if the state was given up in the meantime.
    pub fn complete(&mut self, number: u64) -> Option<Position> {
        let Evaluation { position, .. } = self.evaluation.take_if(|evaluation| evaluation.number == number)?;
        if let Some(generation) = &mut self.generations.current {
            generation.pending_boundary.take_if(|boundary| matches!(boundary, PendingBoundary::Scores));
        }
        self.history.set_passed(position, Boundary::Evaluation, true);
        self.history.progress_count += 1;
        Some(position)
    }

    /// Records the scores of a completed evaluation.
    pub fn record(&mut self, evaluation: u64, position: Position, metrics: BTreeMap<String, f64>) {
        self.history.scores.insert(position, metrics.clone());
        let generation = self.generations.last_number;
        self.output.record(Record::Evaluated { position, generation, evaluation, metrics });
    }

    /// Cancels the evaluation if the next generation starts from another state.
    pub fn cancel_outdated(&mut self, start: Position) {
        self.evaluation.take_if(|evaluation| evaluation.position != start);
    }
}
