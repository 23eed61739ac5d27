//! The run's status, for the CLI, the HTTP API and the metrics.

use proto::v1;

use super::{
    Outcome, Phase, Run, Time,
    membership::{MemberState, Rates},
    statistics::StepStatistics,
};

/// Maximal number of ids in a message that lists members.
const NAMED: usize = 8;

impl Run {
    /// The run's state with all members.
    #[must_use]
    pub fn status(&self, now: Time) -> v1::StatusResponse {
        let member = |(rank, member): (u32, &super::membership::Member)| v1::Member {
            rank,
            host: member.machine.host.clone(),
            device: member.machine.device.clone(),
            phase: member.phase.into(),
            position: member.position,
            seconds_since_heard: now.saturating_sub(member.heard).as_secs_f64(),
            images_per_second: member.rates.images,
            tokens_per_second: member.rates.tokens,
            compute_seconds: member.rates.compute_seconds,
        };
        let example = self.latest.as_ref().and_then(|step| step.example.clone());
        v1::StatusResponse { members: self.members.iter().map(member).collect(), example, ..self.outline() }
    }

    /// The members with ids below `rank`, with their throughput.
    pub fn first_members(&self, rank: u32) -> impl Iterator<Item = (u32, Rates)> {
        self.members.iter().take_while(move |(other, _)| *other < rank).map(|(rank, member)| (rank, member.rates))
    }

    /// The number of members.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.members.len()
    }

    /// The run's state without the list of members and without the candidates of an example.
    #[must_use]
    pub fn outline(&self) -> v1::StatusResponse {
        let stage = self.plan.stage(self.committed);
        let (state, reason) = self.state();
        let steps = self.plan.steps(self.committed.stage);
        let lag = self.latest.as_ref().and_then(|step| step.pace.lag());
        v1::StatusResponse {
            run_id: self.id.clone(),
            run: self.file.name.clone(),
            state: state.into(),
            generation: self.last_generation,
            stage: self.committed.stage,
            stage_name: stage.name.clone(),
            step: self.committed.step,
            steps,
            loss: self.latest.as_ref().and_then(StepStatistics::loss).unwrap_or(0.0),
            reward: self.latest.as_ref().and_then(StepStatistics::reward),
            images_per_second: self.latest.as_ref().map_or(0.0, StepStatistics::images_per_second),
            members: Vec::new(),
            reason,
            slowest_rank: lag.map(|(rank, _)| rank),
            lag_seconds: lag.map_or(0.0, |(_, seconds)| seconds),
            tokens_per_second: self.latest.as_ref().map_or(0.0, StepStatistics::tokens_per_second),
            seconds_left: self.throughput.until(self.committed, steps),
            min_workers: self.file.workers.min,
            example: None,
        }
    }

    /// Whether a generation trains or the run is complete: the readiness probe. If not, why.
    ///
    /// # Errors
    /// The reason, in one line.
    pub fn readiness(&self) -> Result<(), String> {
        match self.state() {
            ("running" | "finished", _) => Ok(()),
            (state, reason) => Err(format!("{state}: {reason}")),
        }
    }

    /// The number of samples that training has consumed and committed.
    #[must_use]
    pub fn samples_committed(&self) -> u64 {
        self.plan.samples_before(self.committed)
    }

    fn state(&self) -> (&'static str, String) {
        match (&self.phase, &self.paused) {
            (Phase::Waiting | Phase::Forming | Phase::Running, Some(reason)) => ("paused", reason.clone()),
            (Phase::Waiting, None) => ("waiting", self.waiting_for()),
            (Phase::Forming, None) => {
                let ready = self.generation.as_ref().map_or(0, |generation| generation.ready.len());
                ("forming", format!("{ready} of {} members are ready", self.members.len()))
            }
            (Phase::Running, None) => match self.cannot_save() {
                Some(reason) => ("paused", format!("{reason}; it is tried again every few seconds")),
                None => ("running", String::new()),
            },
            (Phase::Over { outcome: Outcome::Finished, .. }, _) => {
                ("finished", self.result().map(|name| format!("its result is checkpoint {name}")).unwrap_or_default())
            }
            (Phase::Over { outcome: Outcome::Failed(reason), .. }, _) => ("failed", reason.clone()),
            (Phase::Over { outcome: Outcome::Stopped, .. }, _) => {
                ("waiting", "the coordinator is shutting down".into())
            }
        }
    }

    /// Why a state or captions cannot be saved; none if they can.
    fn cannot_save(&self) -> Option<&str> {
        let state = self.unsaved.as_ref().map(|unsaved| &unsaved.reason);
        let captions = || self.evaluation.as_ref().and_then(|evaluation| evaluation.unsaved.as_ref());
        state.or_else(captions).map(String::as_str)
    }

    fn waiting_for(&self) -> String {
        let (members, min) = (self.members.staying(), self.file.workers.min as usize);
        if members < min {
            return format!("{members} of at least {min} workers are attached");
        }
        if self.members.all_idle() {
            let at = self.committed;
            return format!(
                "workers that hold {at} may be on their way back; without them it goes on from the last checkpoint"
            );
        }
        let is_busy = |(_, member): &(u32, &super::membership::Member)| member.standing != MemberState::Idle;
        let mut busy = self.members.iter().filter(is_busy).map(|(rank, _)| rank.to_string());
        let named: Vec<String> = busy.by_ref().take(NAMED).collect();
        let others = match busy.count() {
            0 => String::new(),
            others => format!(" and {others} others"),
        };
        format!("rank {}{others} have yet to let go of generation {}", named.join(", "), self.last_generation)
    }
}
