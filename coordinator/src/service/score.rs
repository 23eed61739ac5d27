//! Scores of an evaluation that need all of its items: CIDEr-D and BLEU against the references.

use std::collections::BTreeMap;

use crate::run::evaluation::{self, Item};

/// All scores of an evaluation, and the items with what scores they have of their own added.
#[must_use]
pub fn score(mut items: Vec<Item>) -> (BTreeMap<String, f64>, Vec<Item>) {
    let mut metrics = evaluation::means(&items);
    let captions: Vec<scoring::Item> = items
        .iter()
        .map(|item| scoring::Item { candidate: item.caption.clone(), references: item.references.clone() })
        .collect();
    if captions.iter().any(|item| !item.references.is_empty()) {
        let corpus = scoring::Corpus::new(&captions);
        let cider = scoring::cider_d(&corpus);
        let [bleu_1, _, _, bleu_4] = scoring::bleu(&corpus);
        for (name, scores) in [("cider", cider), ("bleu_1", bleu_1), ("bleu_4", bleu_4)] {
            metrics.insert(name.to_owned(), scores.corpus);
            for (item, score) in items.iter_mut().zip(scores.items) {
                item.scores.insert(name.to_owned(), score);
            }
        }
    }
    (metrics, items)
}
