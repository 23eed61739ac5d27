//! A step of the Train directive: its execution, and its report.

use std::time::Instant;

use proto::v1;

use super::Trainer;
use super::directive_error::DirectiveError;
use super::step::TrainingStep;
use crate::phase_timer::{PhaseTimer, StepPhase};

impl Trainer {
    /// Executes one update of the stage's model. Returns its report without the position, and
    /// whether a rank has requested that the generation ends after this step.
    pub(super) fn train_step(&mut self, directive: &v1::Train) -> Result<(v1::StepDone, bool), DirectiveError> {
        let timer = PhaseTimer::default();
        timer.add(StepPhase::Wait, self.idle_since.take().map_or(0.0, |since| since.elapsed().as_secs_f64()));
        let (generation_config, position) = (self.generation_config(), self.position());
        let step = TrainingStep {
            run: &self.run,
            data: &self.data,
            cider: self.cider.as_ref(),
            loader: &self.loader,
            batches: &mut self.training_batches,
            state: &mut self.training_state,
            position,
            generation_config,
            collective: self.collective.as_deref().ok_or_else(DirectiveError::no_generation)?,
            share: directive.share_begin..directive.share_end,
            abandon: &self.protocol.flags().abandon,
            halt: &self.protocol.flags().halt,
            set_phase: &|phase| self.progress.set_phase(phase),
            timer: &timer,
        };
        let step = step.run()?;
        let is_halt_requested = step.is_halt_requested;
        let report = step.into_report(&self.data, &timer);
        self.idle_since = Some(Instant::now());
        Ok((report, is_halt_requested))
    }
}
