//! Scores of an evaluation. Workers compute the scores that need a model or the scene of an image,
//! such as PAC-S. This module averages these, and adds retrieval and the metrics that need only
//! texts, such as CIDEr-D and the share of repeated n-grams.

use std::collections::BTreeMap;

use caption_metrics::{ImageEvaluation, Metrics};
use journal::EvaluatedCaption;

use crate::captions::EvaluationItem;

/// Computes the scores of an evaluation. Returns the scores by metric, and the captions with their
/// own scores.
#[must_use]
pub fn score_captions(metrics: &Metrics, items: Vec<EvaluationItem>) -> (BTreeMap<String, f64>, Vec<EvaluatedCaption>) {
    let (mut captions, evaluations): (Vec<EvaluatedCaption>, Vec<ImageEvaluation>) =
        items.into_iter().map(split_evaluation).unzip();
    let report = metrics.evaluate(&evaluations);
    report.notes.iter().for_each(|note| tracing::warn!("evaluation: {note}"));
    for (name, scores) in report.items {
        for (caption, score) in captions.iter_mut().zip(scores) {
            caption.scores.insert(name.clone().into_owned(), score);
        }
    }
    (report.corpus.into_iter().map(|(name, score)| (name.into_owned(), score)).collect(), captions)
}

/// Makes the input of the metrics for an item. Moves the item's embeddings into that input.
fn split_evaluation(mut item: EvaluationItem) -> (EvaluatedCaption, ImageEvaluation) {
    let evaluation = ImageEvaluation {
        item: caption_metrics::Item { candidate: item.caption.clone(), references: item.references.clone() },
        scores: item.scores.clone(),
        embeddings: std::mem::take(&mut item.embeddings),
    };
    (item.into_evaluated(), evaluation)
}

#[cfg(test)]
mod tests {
    use caption_metrics::{Embeddings, MetricFiles};

    use super::*;

    #[test]
    fn an_evaluation_has_scores_of_workers_and_scores_against_references() {
        // The names of retrieval metrics of the run's main evaluator have no prefix.
        let no_prefix = String::new;
        let item = |pac_s: f64, embedding: [f32; 2]| EvaluationItem {
            caption: "a red ball on the green grass".into(),
            references: vec!["a red ball on the green grass".into()],
            scores: [("pac_s".to_owned(), pac_s)].into(),
            embeddings: [(no_prefix(), Embeddings { image: embedding.into(), text: embedding.into() })].into(),
            ..EvaluationItem::default()
        };
        let metrics = Metrics::open(&MetricFiles::default()).unwrap();
        let (scores, items) = score_captions(&metrics, vec![item(0.5, [1.0, 0.0]), item(1.0, [0.0, 1.0])]);
        assert_eq!((scores["pac_s"], scores["retrieval_r1"]), (0.75, 1.0));
        assert!(scores["bleu_4"] > 0.999, "{scores:?}");
        assert_eq!((items[1].scores["pac_s"], items[1].scores["retrieval_mrr"]), (1.0, 1.0));
        assert!(score_captions(&metrics, vec![]).1.is_empty());
    }
}
