use std::collections::{BTreeMap, BTreeSet};

use crate::{Item, Metrics, Report, Scores, retrieval};

/// One image of an evaluation, with what could be said of it without looking at the others.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageEvaluation {
    /// Candidate and references.
    pub item: Item,
    /// Its scores by name.
    pub scores: BTreeMap<String, f64>,
    /// The evaluators' embeddings, by what the names of their retrieval metrics begin with.
    pub embeddings: BTreeMap<String, Embeddings>,
}

/// An evaluator's embeddings of an image and its caption.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embeddings {
    /// Of the image, of length 1.
    pub image: Vec<f32>,
    /// Of the caption, of length 1, as wide as that of the image.
    pub text: Vec<f32>,
}

impl Metrics {
    /// All scores of an evaluation: those that the items bring, what their embeddings say of retrieval, and all metrics of
    /// captions against references.
    #[must_use]
    pub fn evaluate(&self, examined: &[ImageEvaluation]) -> Report {
        let items: Vec<Item> = examined.iter().map(|one| one.item.clone()).collect();
        let mut report = self.score(&items);
        let names: BTreeSet<&String> = examined.iter().flat_map(|one| one.scores.keys()).collect();
        for name in names {
            let values: Option<Vec<f64>> = examined.iter().map(|one| one.scores.get(name).copied()).collect();
            match values {
                Some(values) => report.add(name.clone(), Scores::mean(values)),
                None => report.notes.push(format!("{name}: left out, because not all images have it")),
            }
        }
        let prefixes: BTreeSet<&String> = examined.iter().flat_map(|one| one.embeddings.keys()).collect();
        for prefix in prefixes {
            for (name, scores) in ranks(examined, prefix).iter().flat_map(|ranks| retrieval::scores(ranks)) {
                report.add(format!("{prefix}{name}"), scores);
            }
        }
        report
    }
}

/// None unless all images have embeddings of one width by this evaluator.
fn ranks(examined: &[ImageEvaluation], prefix: &str) -> Option<Vec<usize>> {
    let all: Vec<&Embeddings> = examined.iter().map(|one| one.embeddings.get(prefix)).collect::<Option<_>>()?;
    let width = all.first()?.image.len();
    if width == 0 || all.iter().any(|one| one.image.len() != width || one.text.len() != width) {
        return None;
    }
    let gathered = |of: fn(&Embeddings) -> &[f32]| all.iter().flat_map(|one| of(one)).copied().collect::<Vec<f32>>();
    Some(retrieval::ranks(&gathered(|one| &one.text), &gathered(|one| &one.image), width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Files;

    fn examined(caption: &str, score: Option<f64>, image: [f32; 2], text: [f32; 2]) -> ImageEvaluation {
        ImageEvaluation {
            item: Item { candidate: caption.into(), references: vec!["a red kite".into()] },
            scores: score.map(|score| ("pac_s".to_owned(), score)).into_iter().collect(),
            embeddings: [(String::new(), Embeddings { image: image.into(), text: text.into() })].into(),
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

        let without = ImageEvaluation { scores: BTreeMap::new(), embeddings: BTreeMap::new(), ..second };
        // Whichever of the two has none.
        for both in [[first.clone(), without.clone()], [without, first]] {
            let report = metrics.evaluate(&both);
            assert!(!report.corpus.contains_key("pac_s") && !report.corpus.contains_key("retrieval_r1"));
            assert!(report.notes.iter().any(|note| note.starts_with("pac_s")));
        }
        assert_eq!(metrics.evaluate(&[]).corpus["cider"], 0.0);
    }

    #[test]
    fn each_evaluator_has_its_retrieval() {
        let metrics = Metrics::open(&Files::default()).unwrap();
        let mut first = examined("a red kite", None, [1.0, 0.0], [0.0, 1.0]);
        let mut second = examined("a dog", None, [0.0, 1.0], [0.0, 1.0]);
        for (one, image) in [(&mut first, [1.0, 0.0]), (&mut second, [0.0, 1.0])] {
            let embeddings = Embeddings { image: image.into(), text: image.into() };
            one.embeddings.insert("clip_s_".to_owned(), embeddings);
        }
        let report = metrics.evaluate(&[first.clone(), second.clone()]);
        assert_eq!((report.corpus["retrieval_r1"], report.corpus["clip_s_retrieval_r1"]), (0.5, 1.0));
        // One without numbers of one evaluator leaves those of the other.
        second.embeddings.remove("clip_s_");
        let report = metrics.evaluate(&[first, second]);
        assert_eq!(report.corpus["retrieval_r1"], 0.5);
        assert!(!report.corpus.contains_key("clip_s_retrieval_r1"));
    }
}
