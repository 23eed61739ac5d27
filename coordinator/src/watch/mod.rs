//! The live view of a run (`coordinator watch`): a screen that is redrawn, or lines.
//!
//! - `collected_status`: the data of the view.
//! - `screen`: the view on a terminal.
//! - `lines`: the view as lines, for logs.

mod collected_status;
mod lines;
mod screen;

pub use collected_status::CollectedStatus;
pub use lines::status_line;
pub use screen::{Screen, Scroll};
