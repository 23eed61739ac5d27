//! Handlers: each changes the concerns of the [state](crate::state) that it borrows. What follows
//! for other concerns it returns as [effects](crate::output::Effect). Where a decision needs the
//! whole state, the handler is a function.

pub mod admission;
pub mod control;
pub mod evaluation;
pub mod failure_detection;
pub mod generation;
pub mod membership;
pub mod membership_changes;
pub mod reachability;
pub mod saving;
pub mod stage;
pub mod training;
