//! Single scenarios, in a world without random faults.

mod claims;
mod membership;
mod oversight;
mod recovery;

use config::RunFile;
use proto::v1;

use super::{
    WorkerId,
    scenario::Scenario,
    worker::Worker,
    world::{SimWorld, Trace},
};
use crate::run::{
    Action, Command, Outcome, Time,
    plan::Place,
    record::{EventKind, Record, Source},
};

/// Longer than any activity.
const LONG: Time = Time::from_secs(600);

impl SimWorld {
    fn of(file: RunFile) -> Self {
        Self::with(Scenario::quiet(file))
    }

    fn with(scenario: Scenario) -> Self {
        Self::new(0, Trace::Dropped, |_| scenario)
    }

    /// Starts a worker, and waits until it is admitted.
    fn join(&mut self) -> WorkerId {
        let host = format!("host {}", self.last_worker + 1);
        let id = self.start_worker(host, None);
        self.until(|world| world.is_member(id));
        id
    }

    /// Whether this worker is a member.
    fn is_member(&self, id: WorkerId) -> bool {
        let session = self.workers.get(&id).and_then(Worker::session);
        session.is_some_and(|session| self.run().members.rank_of(session).is_some())
    }

    fn until(&mut self, enough: impl Fn(&Self) -> bool) {
        let end = self.agenda.now() + LONG;
        while !enough(self) {
            assert!(self.step(end), "not within {LONG:?}");
        }
    }

    /// Lets this time pass.
    fn pass(&mut self, time: Time) {
        let end = self.agenda.now() + time;
        while self.step(end) {}
    }

    fn finish(&mut self) {
        self.until(|world| world.outcome.is_some());
        assert_eq!(self.outcome, Some(Outcome::Finished));
        self.check_disk();
    }

    fn resume(&mut self) {
        self.steer(Command::Resume);
    }

    fn status(&self) -> v1::StatusResponse {
        self.run().status(self.coordinator.clock)
    }

    /// The committed steps, in order.
    fn committed(&self) -> Vec<Place> {
        self.invariants.committed.iter().map(|step| step.place).collect()
    }

    fn checkpoints(&self) -> Vec<&str> {
        self.disk.checkpoints.keys().map(String::as_str).collect()
    }

    fn count(&self, what: impl Fn(&Record) -> bool) -> usize {
        self.coordinator.records.iter().filter(|record| what(record)).count()
    }

    fn happened(&self, what: EventKind) -> usize {
        self.count(|record| matches!(record, Record::Event { what: other, .. } if *other == what))
    }

    /// The start and the source of each generation.
    fn origins(&self) -> Vec<(Place, Source)> {
        let formed = |record: &Record| match record {
            Record::Formed { start, source, .. } => Some((*start, source.clone())),
            _ => None,
        };
        self.coordinator.records.iter().filter_map(formed).collect()
    }
}

fn at(stage: u32, step: u64) -> Place {
    Place { stage, step }
}

/// The token of an admitted join.
pub fn admitted(actions: &[Action]) -> String {
    let token = |action: &Action| match action {
        Action::Admit { response, .. } => Some(response.session_token.clone()),
        _ => None,
    };
    actions.iter().find_map(token).unwrap_or_default()
}
