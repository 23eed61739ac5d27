//! The captions of an evaluation, as the journal stores them.

use std::collections::BTreeMap;

/// The caption of an image in an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvaluatedCaption {
    /// The name of the image.
    pub image: String,
    /// The caption.
    pub caption: String,
    /// The reference captions.
    pub references: Vec<String>,
    /// The scores of the caption, by metric.
    pub scores: BTreeMap<String, f64>,
}
