//! Live view of a run (`coordinator watch`): as a screen that is redrawn, or as lines.

mod lines;
mod screen;
mod seen;

pub use lines::line;
pub use screen::{Screen, Scroll};
pub use seen::CollectedStatus;
