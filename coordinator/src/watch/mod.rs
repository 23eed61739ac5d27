//! The live view of a run (`coordinator watch`): a screen that is redrawn, or lines.

mod collected_status;
mod lines;
mod screen;

pub use collected_status::CollectedStatus;
pub use lines::line;
pub use screen::{Screen, Scroll};
