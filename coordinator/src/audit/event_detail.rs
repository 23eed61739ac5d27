//! Positions in the details of the journal's events.

use dico_engine::plan::Position;

/// Parses the position in an event's detail.
pub(super) fn position_of(json: &serde_json::Value) -> Option<Position> {
    let stage = u32::try_from(json.get("stage")?.as_u64()?).ok()?;
    Some(Position { stage, step: json.get("step")?.as_u64()? })
}
