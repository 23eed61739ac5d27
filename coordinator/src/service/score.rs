//! Scores of an evaluation: what needs all captions at once, besides what the workers reported.

use std::collections::BTreeMap;

use scoring::{Examined, Metrics};
use statistics::names;

use crate::run::captions::Item;

/// All scores of an evaluation, and the items with those that they have of their own. The embeddings have done their work then, and
/// are gone.
#[must_use]
pub fn score(metrics: &Metrics, items: Vec<Item>) -> (BTreeMap<String, f64>, Vec<Item>) {
    let (mut items, examined): (Vec<Item>, Vec<Examined>) = items.into_iter().map(examined).unzip();
    let report = metrics.evaluate(&examined);
    report.notes.iter().for_each(|note| tracing::warn!("evaluation: {note}"));
    for (name, scores) in report.items {
        for (item, score) in items.iter_mut().zip(scores) {
            item.scores.insert(name.clone().into_owned(), score);
        }
    }
    (report.corpus.into_iter().map(|(name, score)| (name.into_owned(), score)).collect(), items)
}

fn examined(mut item: Item) -> (Item, Examined) {
    let known = names::EVALUATION.into_iter().map(|(name, _)| name);
    let examined = Examined {
        item: scoring::Item { candidate: item.caption.clone(), references: item.references.clone() },
        scores: known.filter_map(|name| Some((name, *item.scores.get(name)?))).collect(),
        image: std::mem::take(&mut item.image_embedding),
        text: std::mem::take(&mut item.text_embedding),
    };
    (item, examined)
}

#[cfg(test)]
mod tests {
    use scoring::Files;

    use super::*;

    #[test]
    fn an_evaluation_has_the_workers_scores_and_those_against_references() {
        let item = |pac_s: f64, embedding: [f32; 2]| Item {
            caption: "a red ball on the green grass".into(),
            references: vec!["a red ball on the green grass".into()],
            scores: [("pac_s".to_owned(), pac_s)].into(),
            image_embedding: embedding.into(),
            text_embedding: embedding.into(),
            ..Item::default()
        };
        let metrics = Metrics::open(&Files::default()).unwrap();
        let (scores, items) = score(&metrics, vec![item(0.5, [1.0, 0.0]), item(1.0, [0.0, 1.0])]);
        assert_eq!((scores["pac_s"], scores["retrieval_r1"]), (0.75, 1.0));
        assert!(scores["bleu_4"] > 0.999, "{scores:?}");
        assert_eq!((items[1].scores["pac_s"], items[1].scores["retrieval_mrr"]), (1.0, 1.0));
        assert!(items.iter().all(|item| item.text_embedding.is_empty() && item.image_embedding.is_empty()));
        assert!(score(&metrics, vec![]).1.is_empty());
    }
}
