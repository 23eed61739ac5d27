//! Caption metrics, comparable with published numbers: each follows what the reference implementation, pycocoevalcap
//! 1.2, really computes, quirks included, and is checked against values it printed.
//!
//! Captions are given as plain text; every metric tokenises them itself ([`tokens`]). Nothing here panics on odd input:
//! no items, no references and empty captions all have defined scores.

mod bleu;
mod cider;
pub mod meteor;
mod ngrams;
pub mod tokens;

pub use bleu::bleu;
pub use cider::cider_d;

/// One image: the caption to be judged and the human ones to judge it by. An image must not be listed twice, because
/// CIDEr's document frequencies count it once per item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The caption to be judged.
    pub candidate: String,
    /// The human captions of the same image, in any order.
    pub references: Vec<String>,
}

/// A metric's values for one call.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The value for all items together; for BLEU it is not the mean of `items`. 0 where there are none.
    pub corpus: f64,
    /// One value per item, in the order given.
    pub items: Vec<f64>,
}

#[cfg(test)]
mod golden;
