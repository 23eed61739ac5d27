//! A run as it goes, for whoever looks at it: what was seen of it so far, as a screen that is drawn again and again, or as lines.

mod lines;
mod screen;
mod seen;

pub use lines::line;
pub use screen::{Screen, Turn};
pub use seen::Seen;
