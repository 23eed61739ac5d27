//! Caption metrics whose values are comparable with published ones. Each metric over references
//! computes exactly what the reference implementation, pycocoevalcap 1.2, computes, including its
//! quirks, and is tested against values that pycocoevalcap printed.
//!
//! Captions are plain text. [`ptb_tokenizer`] tokenizes them once for BLEU, ROUGE-L, CIDEr-D and
//! fluency ([`Corpus`]). [`Metrics`] computes all metrics for which the user has the files. No
//! caption causes a panic: an empty list of items, items without references, and empty captions
//! have defined scores.
//!
//! | module | content |
//! |---|---|
//! | `ptb_tokenizer` | the Penn Treebank tokenizer that pycocoevalcap runs |
//! | `corpus`, `ngrams` | captions as token ids, and counts of their n-grams |
//! | `bleu`, `rouge`, `cider` | BLEU, ROUGE-L and CIDEr-D, and CIDEr-D as a reward |
//! | `meteor` | METEOR 1.5 |
//! | `spice` | runs the Java program that computes SPICE |
//! | `fluency` | metrics of captions without references: repetition, incorrect endings, diversity, length |
//! | `retrieval` | how well a caption's embedding finds its image |
//! | `metrics` | computes all metrics of items |
//! | `evaluation`, `domains` | the scores of an evaluation of a model, and of each of nocaps' domains |
//! | `report` | the scores of captions, and their output formats |
//! | `files`, `results` | reads caption files in several formats; writes COCO's result format |
//! | `correlation` | correlation of scores with human judgements |

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
pub mod ptb_tokenizer;
mod report;
pub mod results;
pub mod retrieval;
mod rouge;
pub mod spice;

pub use bleu::bleu;
pub use cider::cider_d;
pub use corpus::Corpus;
pub use error::Error;
pub use evaluation::{Embeddings, ImageEvaluation};
pub use fluency::{Fluency, fluency};
pub use metrics::{MetricFiles, Metrics};
pub use report::{MetricName, Report, ReportFormat};
pub use rouge::rouge_l;

/// A candidate with the references of its image. An image must not occur in two items, because
/// CIDEr's document frequencies count each item as one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The caption to be scored.
    pub candidate: String,
    /// The human captions of the same image, in any order.
    pub references: Vec<String>,
}

/// The values of a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The value for all items together, 0 without items. For BLEU and METEOR it is not the mean of
    /// `items`.
    pub corpus: f64,
    /// One value per item, in the order of the items.
    pub items: Vec<f64>,
}

impl Scores {
    /// The scores of a metric whose corpus value is the mean over items.
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

/// Arbitrary items with few different words, so that n-grams repeat and match.
#[cfg(test)]
fn any_items() -> impl proptest::strategy::Strategy<Value = Vec<Item>> {
    use proptest::collection::vec;
    use proptest::strategy::Strategy;

    let caption = || "([a-d] ){0,9}";
    let item = (caption(), vec(caption(), 0..4)).prop_map(|(candidate, references)| Item { candidate, references });
    vec(item, 0..6)
}
