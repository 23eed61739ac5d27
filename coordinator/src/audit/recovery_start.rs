//! The start of the records of a recovered journal, which does not have the run's beginning.

use dico_engine::{plan::Position, record::EventKind};
use serde::Serialize;

use super::event_detail::position_of;
use crate::journal::read_only::Event;

/// The checkpoint from which a run with a recovered journal resumed. Earlier steps are not
/// recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecoveryStart {
    /// The name of the checkpoint.
    pub checkpoint: String,
    /// The generation that saved it.
    pub generation: u64,
    /// The position at which it was saved.
    #[serde(skip)]
    pub position: Position,
}

/// The checkpoint that a recovered journal begins with; `None` if it was not recovered.
pub(super) fn recovery_start(events: &[Event]) -> Option<RecoveryStart> {
    let first = events.first().filter(|event| event.kind == EventKind::Recovered.name())?;
    Some(RecoveryStart {
        checkpoint: first.detail["checkpoint"].as_str()?.to_owned(),
        generation: first.detail["generation"].as_u64()?,
        position: position_of(&first.detail)?,
    })
}
