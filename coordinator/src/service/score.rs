//! Scores of an evaluation: means of what the workers reported, and what needs all captions at once.

use std::collections::BTreeMap;

use crate::run::captions::Item;

/// Scores by name: of all items together, and of each.
#[derive(Default)]
struct Report {
    corpus: BTreeMap<String, f64>,
    items: BTreeMap<String, Vec<f64>>,
}

/// All scores of an evaluation, and the items with what scores they have of their own added. The embeddings have done their
/// work then, and are gone.
#[must_use]
pub fn score(mut items: Vec<Item>) -> (BTreeMap<String, f64>, Vec<Item>) {
    let mut metrics = means(&items);
    let report = against_references(&items);
    metrics.extend(report.corpus);
    for (name, scores) in report.items {
        for (item, score) in items.iter_mut().zip(scores) {
            item.scores.insert(name.clone(), score);
        }
    }
    for item in &mut items {
        (item.image_embedding, item.text_embedding) = (Vec::new(), Vec::new());
    }
    (metrics, items)
}

/// BLEU and CIDEr-D; nothing where there are no references.
fn against_references(items: &[Item]) -> Report {
    let mut report = Report::default();
    if items.iter().all(|item| item.references.is_empty()) {
        return report;
    }
    let captions: Vec<scoring::Item> = items
        .iter()
        .map(|item| scoring::Item { candidate: item.caption.clone(), references: item.references.clone() })
        .collect();
    let [bleu_1, bleu_2, bleu_3, bleu_4] = scoring::bleu(&captions);
    let cider = scoring::cider_d(&captions);
    for (name, scores) in
        [("bleu_1", bleu_1), ("bleu_2", bleu_2), ("bleu_3", bleu_3), ("bleu_4", bleu_4), ("cider", cider)]
    {
        report.corpus.insert(name.to_owned(), scores.corpus);
        report.items.insert(name.to_owned(), scores.items);
    }
    report
}

/// The mean of every score that workers reported, over the items that have it.
fn means(items: &[Item]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<&str, (f64, u64)> = BTreeMap::new();
    for (name, score) in items.iter().flat_map(|item| &item.scores) {
        let (sum, count) = sums.entry(name).or_default();
        (*sum, *count) = (*sum + score, *count + 1);
    }
    sums.into_iter().map(|(name, (sum, count))| (name.to_owned(), sum / count as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_workers_are_averaged_over_those_that_have_them() {
        let item = |scores: &[(&str, f64)]| Item {
            scores: scores.iter().map(|(name, score)| ((*name).to_owned(), *score)).collect(),
            text_embedding: vec![1.0],
            ..Item::default()
        };
        let (metrics, items) = score(vec![item(&[("pac_s", 0.5), ("truthful", 1.0)]), item(&[("pac_s", 1.0)])]);
        assert_eq!(metrics, [("pac_s".to_owned(), 0.75), ("truthful".to_owned(), 1.0)].into());
        assert!(items.iter().all(|item| item.text_embedding.is_empty()));
        assert_eq!(score(vec![]), (BTreeMap::new(), vec![]));
    }

    #[test]
    fn captions_are_compared_with_their_references() {
        let text = "a red ball on the green grass".to_owned();
        let item = Item { caption: text.clone(), references: vec![text], ..Item::default() };
        let (metrics, items) = score(vec![item]);
        assert!(metrics["bleu_4"] > 0.999, "{metrics:?}");
        assert_eq!(metrics.keys().collect::<Vec<_>>(), items[0].scores.keys().collect::<Vec<_>>());
    }
}
