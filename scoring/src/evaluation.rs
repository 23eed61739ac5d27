use std::collections::{BTreeMap, BTreeSet};

use crate::{Item, Metrics, Report, Scores, retrieval};

/// One image of an evaluation, with what could be said of it without looking at the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Examined {
    /// Candidate and references.
    pub item: Item,
    /// Its scores, by the names of evaluation scores.
    pub scores: BTreeMap<&'static str, f64>,
    /// The evaluator's embedding of the image, of length 1; empty where there is none.
    pub image: Vec<f32>,
    /// The evaluator's embedding of the candidate, as wide as that of the image.
    pub text: Vec<f32>,
}

impl Metrics {
    /// All scores of an evaluation: those that the items bring, what their embeddings say of retrieval, and all metrics of
    /// captions against references.
    #[must_use]
    pub fn evaluate(&self, examined: &[Examined]) -> Report {
        let items: Vec<Item> = examined.iter().map(|one| one.item.clone()).collect();
        let mut report = self.score(&items);
        let names: BTreeSet<&'static str> = examined.iter().flat_map(|one| one.scores.keys().copied()).collect();
        for name in names {
            let values: Option<Vec<f64>> = examined.iter().map(|one| one.scores.get(name).copied()).collect();
            match values {
                Some(values) => report.add(name, Scores::mean(values)),
                None => report.notes.push(format!("{name}: left out, because not all images have it")),
            }
        }
        if let Some(ranks) = ranks(examined) {
            retrieval::scores(&ranks).into_iter().for_each(|(name, scores)| report.add(name, scores));
        }
        report
    }
}

/// None unless all images have embeddings of one width.
fn ranks(examined: &[Examined]) -> Option<Vec<usize>> {
    let width = examined.first()?.image.len();
    let whole = examined.iter().all(|one| one.image.len() == width && one.text.len() == width);
    if width == 0 || !whole {
        return None;
    }
    let gathered = |of: fn(&Examined) -> &[f32]| examined.iter().flat_map(of).copied().collect::<Vec<f32>>();
    Some(retrieval::ranks(&gathered(|one| &one.text), &gathered(|one| &one.image), width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Files;

    fn examined(caption: &str, score: Option<f64>, image: [f32; 2], text: [f32; 2]) -> Examined {
        Examined {
            item: Item { candidate: caption.into(), references: vec!["a red kite".into()] },
            scores: score.map(|score| ("pac_s", score)).into_iter().collect(),
            image: image.into(),
            text: text.into(),
        }
    }

    #[test]
    fn an_evaluation_has_the_items_own_scores_retrieval_and_metrics() {
        let metrics = Metrics::open(&Files::default()).unwrap();
        // The first caption is nearer to the second image than to its own.
        let first = examined("a red kite", Some(0.5), [1.0, 0.0], [0.0, 1.0]);
        let second = examined("a dog", Some(1.0), [0.0, 1.0], [0.0, 1.0]);
        let report = metrics.evaluate(&[first.clone(), second.clone()]);
        assert_eq!((report.corpus["pac_s"], report.corpus["retrieval_r1"]), (0.75, 0.5));
        assert_eq!(report.items["retrieval_mrr"], [0.5, 1.0]);
        assert!(report.corpus["bleu_1"] > 0.0);

        let without = Examined { scores: BTreeMap::new(), image: vec![], text: vec![], ..second };
        // Whichever of the two has none.
        for both in [[first.clone(), without.clone()], [without, first]] {
            let report = metrics.evaluate(&both);
            assert!(!report.corpus.contains_key("pac_s") && !report.corpus.contains_key("retrieval_r1"));
            assert!(report.notes.iter().any(|note| note.starts_with("pac_s")));
        }
        assert_eq!(metrics.evaluate(&[]).corpus["cider"], 0.0);
    }
}
