//! Caption metrics, comparable with published numbers: each follows what the reference implementation, pycocoevalcap
//! 1.2, really computes, quirks included, and is checked against values it printed.
//!
//! Captions are given as plain text and tokenised by [`tokens`], once for all metrics over references ([`Corpus`]).
//! [`Metrics`] computes all that the files at hand allow. Nothing here panics on odd captions: no items, no references
//! and empty captions all have defined scores.

mod bleu;
pub mod cider;
mod corpus;
pub mod correlation;
mod domains;
mod error;
mod evaluation;
pub mod files;
mod fluency;
pub mod meteor;
mod metrics;
mod ngrams;
mod report;
pub mod results;
pub mod retrieval;
mod rouge;
pub mod spice;
pub mod tokens;

pub use bleu::bleu;
pub use cider::cider_d;
pub use corpus::Corpus;
pub use error::Error;
pub use evaluation::{Embeddings, ImageEvaluation};
pub use fluency::{Fluency, fluency};
pub use metrics::{Files, Metrics};
pub use report::{Form, Name, Report};
pub use rouge::rouge_l;

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

impl Scores {
    /// Of a metric whose value for all items is their mean.
    #[must_use]
    pub fn mean(items: Vec<f64>) -> Self {
        let corpus = if items.is_empty() { 0.0 } else { items.iter().sum::<f64>() / items.len() as f64 };
        Self { corpus, items }
    }
}

#[cfg(test)]
mod golden;

#[cfg(test)]
fn item(candidate: &str, references: &[&str]) -> Item {
    Item { candidate: candidate.into(), references: references.iter().map(|&text| text.into()).collect() }
}

/// Items of few words, so that n-grams repeat and match.
#[cfg(test)]
fn some_items() -> impl proptest::strategy::Strategy<Value = Vec<Item>> {
    use proptest::collection::vec;
    use proptest::strategy::Strategy;

    let caption = || "([a-d] ){0,9}";
    let item = (caption(), vec(caption(), 0..4)).prop_map(|(candidate, references)| Item { candidate, references });
    vec(item, 0..6)
}
