//! The evaluation in progress.

use crate::{image_ranges::CaptionedRanges, plan::Position};

/// The evaluation in progress. It belongs to the run, not to a generation.
#[derive(Debug)]
pub struct Evaluation {
    /// The number of the evaluation; directives and reports contain it.
    pub number: u64,
    /// The position of the state that is evaluated.
    pub position: Position,
    /// The ranges of images that are captioned so far; none once all are, and their captions are
    /// being scored.
    pub captioned: Option<CaptionedRanges>,
    /// Why the captions cannot be saved; none if they can. Until they are saved, the evaluation is
    /// not complete and the run waits.
    pub save_error: Option<String>,
}
